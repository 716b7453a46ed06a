"""The worker client against the real worker process, without an editor."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from server.planning import make_plan
from server.settings import Settings
from server.worker_client import WorkerClient, WorkerError
from spex_engine import __version__, wire
from tests.server.endpoint_stub import KEY, PROMPT, chat_stub

SECONDS = 120.0


def request(text: str, **said: object) -> wire.ExplainRequest:
    return make_plan(text, Path("/prompt.md"), Settings(), said).request


def ignore(_: wire.Progress) -> None:
    pass


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[WorkerClient]:
    client = WorkerClient()
    yield client
    await client.close()
    assert client.state == "stopped"


async def test_handshake(worker):
    assert worker.state == "stopped"
    assert worker.pid is None
    hello = await worker.hello()
    assert hello.protocol == wire.PROTOCOL_VERSION
    assert hello.engine == __version__
    assert hello.python == ".".join(map(str, sys.version_info[:3]))
    assert hello.packages["numpy"]
    assert worker.state == "ready"


async def test_progress_comes_before_the_result(worker, example):
    seen: list[wire.Progress] = []
    states: list[str] = []

    def on_progress(progress: wire.Progress) -> None:
        seen.append(progress)
        states.append(worker.state)

    result = await worker.explain(request(example), on_progress)
    messages = [p.message for p in seen]
    assert (messages[0], messages[1], messages[-1]) == (
        *("loading demo", "asking the model"),
        "fitting",
    )
    assert set(messages[1:-1]) == {"asking the model"}
    assert (seen[-1].done, seen[-1].total) == (64, 64)
    assert len({p.id for p in seen}) == 1
    assert set(states) == {"busy"}
    assert worker.state == "ready"
    assert result.evaluations == wire.Evaluations(64, 64, 0, 0)
    assert [s.index for s in result.segments] == list(range(6))
    strongest = result.interactions[0]
    assert (strongest.segments, strongest.kind) == ((0, 2), "synergy")


async def test_requests_in_turn_and_at_once_go_to_one_process(worker, example):
    first = await worker.explain(request(example), ignore)
    pid = worker.pid
    again, words = await asyncio.gather(
        worker.explain(request(example), ignore),
        worker.explain(request("Say hello to Anna.\n", target="Hello"), ignore),
    )
    assert worker.pid == pid
    assert again.interactions[0].segments == first.interactions[0].segments
    assert again.interactions[0].value == pytest.approx(first.interactions[0].value, abs=1e-4)
    assert len(words.segments) == 4
    assert words.target.text == "Hello"


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        ({"model": "hf:"}, wire.BAD_INPUT, "hf: names no model"),
        ({"model": "magic:x"}, wire.BAD_INPUT, "No kind of model is called 'magic:x'"),
        ({"model": "openai:"}, wire.BAD_INPUT, "openai: names no model; write openai:NAME"),
        ({"method": "exact", "budget": 32}, wire.BAD_INPUT, "32"),
        ({"model": "hf:/nonexistent"}, wire.MODEL_ERROR, "no folder /nonexistent"),
    ],
)
async def test_what_cannot_be_done_is_said_and_the_next_request_works(
    worker, example, said, code, message
):
    with pytest.raises(WorkerError, match=message) as caught:
        await worker.explain(request(example, **said), ignore)
    assert caught.value.code == code
    assert worker.state == "ready"
    assert await worker.explain(request(example), ignore)


async def test_cancel_stops_the_run_and_the_process_lives_on(worker, slow_prompt, example):
    pid = (await worker.hello()) and worker.pid
    begun = asyncio.Event()
    run = asyncio.create_task(worker.explain(request(slow_prompt), lambda _: begun.set()))
    await begun.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert worker.state in ("ready", "stopped")  # stopped: it was too slow to stop by itself
    assert await worker.explain(request(example), ignore)
    assert pid


async def test_killing_a_frozen_worker_for_one_request_does_not_fail_another(
    worker, slow_prompt, example
):
    begun = asyncio.Event()
    slow = asyncio.create_task(worker.explain(request(slow_prompt), lambda _: begun.set()))
    await begun.wait()
    other = asyncio.create_task(worker.explain(request(example), ignore))
    await asyncio.sleep(0)  # lets the other send its request
    frozen = worker.pid
    assert frozen is not None
    os.kill(frozen, signal.SIGSTOP)
    slow.cancel()
    assert (await other).evaluations.computed == 64
    assert slow.cancelled()
    assert worker.pid != frozen


async def test_a_worker_that_dies_fails_the_run_it_was_at_and_is_replaced(
    worker, slow_prompt, example
):
    begun = asyncio.Event()
    runs = [asyncio.create_task(worker.explain(request(slow_prompt), lambda _: begun.set()))]
    await begun.wait()
    runs.append(asyncio.create_task(worker.explain(request(example), ignore)))
    await asyncio.sleep(0)  # lets the second send its request
    died = worker.pid
    assert died is not None
    os.kill(died, signal.SIGKILL)
    error, result = await asyncio.gather(*runs, return_exceptions=True)
    assert isinstance(error, WorkerError)
    assert error.code == wire.WORKER_DIED
    assert "signal 9" in str(error)
    assert isinstance(result, wire.ExplainResult)  # it had not begun: it was asked again
    assert worker.pid != died


async def test_a_worker_that_is_killed_while_idle_does_not_fail_the_next_run(worker, example):
    """Whether or not its end has been noticed when the run starts."""
    for seconds in (0.0, 0.01, 0.05):
        await worker.hello()
        died = worker.pid
        os.kill(died, signal.SIGKILL)
        await asyncio.sleep(seconds)
        assert (await worker.explain(request(example), ignore)).evaluations.requested == 64
        assert worker.pid != died


async def test_a_request_that_kills_its_worker_is_asked_again_only_once(
    worker, example, monkeypatch
):
    started = []

    async def start() -> None:
        started.append(await real_start())
        os.kill(worker.pid, signal.SIGKILL)

    real_start = worker._start
    monkeypatch.setattr(worker, "_start", start)
    with pytest.raises(WorkerError, match="signal 9"):
        await worker.explain(request(example), ignore)
    assert len(started) == 2


async def test_another_protocol_version_is_refused_every_time(worker, example, monkeypatch):
    monkeypatch.setattr(wire, "PROTOCOL_VERSION", 999)
    for _ in range(2):  # a worker that was refused must not serve the next request
        with pytest.raises(WorkerError, match=r"speaks protocol \d+, the server 999"):
            await worker.explain(request(example), ignore)
        assert worker.state == "stopped"
    monkeypatch.undo()
    assert await worker.hello()


async def test_an_answer_that_cannot_be_read_is_an_error(worker, monkeypatch):
    monkeypatch.setattr(wire, "HANDSHAKE", wire.SHUTDOWN)  # answers null, and ends
    with pytest.raises(WorkerError, match="answer cannot be read: Handshake: expected an object"):
        await worker.hello()


async def test_a_worker_that_never_answers_is_given_up(deaf_python, monkeypatch):
    monkeypatch.setattr("server.worker_client.START_SECONDS", 0.2)
    worker = WorkerClient(deaf_python)
    with pytest.raises(WorkerError, match="did not answer"):
        await worker.hello()
    assert worker.state == "stopped"


async def test_another_interpreter_counts_from_the_next_request_on(worker, bare_python, example):
    await worker.hello()
    first = worker.pid
    worker.interpreter = bare_python
    hello = await worker.hello()
    assert worker.pid != first
    assert hello.packages["numpy"] is None
    with pytest.raises(WorkerError, match="No module named 'numpy'"):
        await worker.explain(request(example), ignore)


@pytest.mark.parametrize("moment", [1, 100, 300, 450])
async def test_what_was_acknowledged_before_a_kill_is_not_paid_for_again(worker, moment):
    """Progress is told once values are in the store."""
    notes = " ".join(f"Guest{n} likes tea." for n in range(5))
    asked = request(f"{notes}\n", segments="word", budget=512, target="tea", method="linear")
    told = 0

    def kill(progress: wire.Progress) -> None:
        nonlocal told
        if progress.done >= moment > told:
            os.kill(worker.pid, signal.SIGKILL)
        told = max(told, progress.done)

    with pytest.raises(WorkerError) as caught:
        await worker.explain(asked, kill)
    assert caught.value.code == wire.WORKER_DIED
    assert told >= moment
    rest = (await worker.explain(asked, ignore)).evaluations
    assert (rest.computed + rest.cached, rest.failed) == (512, 0)
    assert rest.cached >= told
    again = (await worker.explain(asked, ignore)).evaluations
    assert (again.computed, again.cached) == (0, 512)


async def test_a_worker_that_takes_another_s_place_has_its_keys(worker):
    with chat_stub() as stub:
        origin = stub.url.removesuffix("/v1")
        settings = {"model": "openai:tiny", "choices": ("Paris", "Rome"), "segments": "line"}
        asked = request(PROMPT, **settings)
        asked = dataclasses.replace(asked, access=wire.Access((stub.url,), store=False))
        await worker.hand_over(origin, KEY)
        os.kill(worker.pid, signal.SIGKILL)
        await worker.explain(asked, ignore)
        assert {entry.headers.get("authorization") for entry in stub.log} == {f"Bearer {KEY}"}
        stub.log.clear()
        await worker.hand_over(origin, None)  # the person has taken it back
        await worker.explain(asked, ignore)
        assert stub.log
        assert all(KEY not in str(entry.headers) for entry in stub.log)
