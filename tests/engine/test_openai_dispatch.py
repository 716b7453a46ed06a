"""Many requests: nothing is lost, nothing asked twice, nothing spent beyond the budget."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai_stub import Entry, Faults, Reply, Stub, chat, completions

from spex_engine.backends.openai.budget import Cost, Prices, Spent
from spex_engine.backends.openai.dispatch import Dispatcher, open_dispatcher
from spex_engine.backends.openai.failures import Failure
from spex_engine.backends.openai.loop import Loop
from spex_engine.backends.openai.members import Patience
from spex_engine.wire import Access, InputError, StoppedError

COST = Cost(7, 1)  # what the stub says it counts
QUICK = Patience(first=0.005, longest=0.05, first_outage=0.01, answer_within=0.15)


def never() -> bool:
    return False


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def dispatcher_of(*stubs: Stub, patience: Patience = QUICK, **access) -> Dispatcher:
    access = {"concurrency": 8, **access}
    urls = tuple(stub.url for stub in stubs)
    return open_dispatcher(Access(base_urls=urls, **access), "stub", patience=patience)


async def ask(dispatcher: Dispatcher, prompt: str, cost: Cost = COST) -> str:
    answer = await dispatcher.request(
        lambda client: client.completions.with_raw_response.create(
            model="stub", prompt=prompt, max_tokens=1
        ),
        cost,
    )
    return answer.value.choices[0].text


def arrivals(
    loop: Loop,
    dispatcher: Dispatcher,
    n: int,
    should_stop: Callable[[], bool] = never,
    cost: Cost = COST,
) -> Iterator[tuple[int, str | Failure]]:
    jobs = ((i, lambda i=i: ask(dispatcher, f"prompt {i}", cost)) for i in range(n))
    return loop.arrivals(jobs, 2 * dispatcher.concurrency, should_stop)


def requested_again(log: list[Entry]) -> list[str]:
    """Prompts that were sent although an answer to them had been sent to its end."""
    answered: dict[str, float] = {}
    again = []
    for entry in log:
        prompt = entry.body["prompt"]
        if prompt in answered and entry.started > answered[prompt]:
            again.append(prompt)
        if entry.status == 200 and entry.fault is None and entry.ended is not None:
            answered[prompt] = entry.ended
    return again


def test_every_row_gets_its_own_answer(loop):
    with Stub() as stub:
        dispatcher = dispatcher_of(stub)
        got = list(arrivals(loop, dispatcher, 100))
        assert sorted(got) == [(i, f"prompt {i}") for i in range(100)]
        assert len(stub.log) == 100
        assert max(entry.at_once for entry in stub.log) <= 8
        assert dispatcher.ledger.spent == Spent(100, 800, None)
        loop.run(dispatcher.close(), never)


@pytest.mark.parametrize("seed", range(3))
def test_with_faults_nothing_is_lost_and_nothing_asked_again(loop, seed):
    faults = Faults(too_many=0.05, error=0.05, hang=0.03, reset=0.04, garbage=0.03)
    with Stub(faults=faults, seed=seed) as stub:
        dispatcher = dispatcher_of(stub)
        got = list(arrivals(loop, dispatcher, 200))
        assert sorted(got) == [(i, f"prompt {i}") for i in range(200)]
        met = Counter(entry.fault for entry in stub.log)
        assert {"429", "500", "hang", "reset", "garbage"} <= met.keys()
        assert requested_again(stub.log) == []
        assert len(stub.log) == 200 + met.total() - met[None]
        # all that was sent is paid for: what was refused as a call, the rest whole
        spent = dispatcher.ledger.spent
        assert spent.calls == len(stub.log)
        assert spent.tokens == COST.tokens * (len(stub.log) - met["429"])
        assert dispatcher.ledger.in_flight == 0


def test_more_at_once_than_is_allowed_is_found_out(loop):
    with Stub(latency=0.04, allowed=4) as stub:
        dispatcher = dispatcher_of(stub, concurrency=16, patience=Patience(first=0.05))
        got = list(arrivals(loop, dispatcher, 150))
        assert sorted(got) == [(i, f"prompt {i}") for i in range(150)]
        refused = sum(entry.status == 429 for entry in stub.log)
        assert 12 <= refused < 60  # the first burst, and hardly more


@pytest.mark.parametrize("limit", [{"max_calls": 25}, {"max_tokens": 200}, {"max_cost": 2e-4}])
def test_the_budget_is_never_passed_and_what_was_paid_for_is_kept(loop, limit):
    """Each request takes 8 tokens, at a millionth each."""
    with Stub(faults=Faults(error=0.2, hang=0.1)) as stub:
        limits = {"max_calls": None, "max_tokens": None, "max_cost": None, **limit}
        dispatcher = dispatcher_of(stub, input_price=1.0, output_price=1.0, **limits)
        got = dict(arrivals(loop, dispatcher, 100))
        assert len(stub.log) == 25
        answered = {entry.body["prompt"] for entry in stub.log if entry.status == 200}
        assert {f"prompt {i}" for i, text in got.items() if isinstance(text, str)} == answered
        kinds = {failure.kind for failure in got.values() if isinstance(failure, Failure)}
        assert kinds == {"budget"}
        assert "is reached" in str(dispatcher.ledger.exhausted) or "leaves no room" in str(
            dispatcher.ledger.exhausted
        )
        assert len(got) < 100  # no more were begun


def test_what_is_reserved_and_not_used_is_spent_on_others(loop):
    with Stub(latency=0.005) as stub:
        dispatcher = dispatcher_of(stub, max_tokens=160, max_cost=None)
        got = dict(arrivals(loop, dispatcher, 40, cost=Cost(40, 10)))
        # 8 tokens each: as long as 50 fit beside what is spent
        assert sum(isinstance(text, str) for text in got.values()) == (160 - 50) // 8 + 1


def test_prices_of_the_dispatcher(loop):
    with Stub() as stub:
        access = Access(base_urls=(stub.url,))
        dispatcher = open_dispatcher(access, "stub", Prices(10.0, 100.0))
        loop.run(ask(dispatcher, "p"), never)
        assert dispatcher.ledger.spent.cost == pytest.approx((7 * 10 + 1 * 100) / 1e6)


def test_an_answer_tells_what_it_cost_and_from_where(loop):
    with Stub(
        {"/v1/completions": lambda b, h: Reply(200, completions(b, h), {"X-Request-Id": "7"})}
    ) as stub:
        dispatcher = dispatcher_of(stub)
        answer = loop.run(
            dispatcher.request(
                lambda client: client.completions.with_raw_response.create(
                    model="stub", prompt="p"
                ),
                Cost(100, 100),
            ),
            never,
        )
        assert (answer.cost, answer.address) == (Cost(7, 1), stub.url)
        assert answer.headers["x-request-id"] == "7"


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 0, "completion_tokens": 0}])
def test_an_endpoint_that_counts_nothing_costs_what_was_reserved(loop, usage):
    with Stub({"/v1/completions": lambda b, h: {**completions(b, h), "usage": usage}}) as stub:
        dispatcher = dispatcher_of(stub)
        loop.run(ask(dispatcher, "p", Cost(30, 3)), never)
        assert dispatcher.ledger.spent.tokens == 33


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 9}, 9 + 3),
        ({"completion_tokens": 2}, 30 + 2),
        ({"prompt_tokens": 9, "completion_tokens": None}, 9 + 3),
        ({"prompt_tokens": 9, "completion_tokens": 0}, 9),
        ({"prompt_tokens": -1, "completion_tokens": "2"}, 33),
    ],
)
def test_a_count_that_is_missing_costs_what_was_reserved(loop, usage, tokens):
    with Stub({"/v1/completions": lambda b, h: {**completions(b, h), "usage": usage}}) as stub:
        dispatcher = dispatcher_of(stub)
        loop.run(ask(dispatcher, "p", Cost(30, 3)), never)
        assert dispatcher.ledger.spent.tokens == tokens


def test_chat_and_fields_that_the_sdk_does_not_know(loop):
    handler = {"/v1/chat/completions": lambda b, h: {**chat(b, h), "prompt_logprobs": [1]}}
    with Stub(handler) as stub:
        dispatcher = dispatcher_of(stub)
        answer = loop.run(
            dispatcher.request(
                lambda client: client.chat.completions.with_raw_response.create(
                    model="stub", messages=[{"role": "user", "content": "hello"}]
                ),
                COST,
            ),
            never,
        )
        assert answer.value.choices[0].message.content == "hello"
        assert answer.value.model_extra["prompt_logprobs"] == [1]
        assert dispatcher.ledger.spent.tokens == 11


def test_closing_the_iterator_gives_up_what_is_in_flight_and_counts_it(loop):
    with Stub() as stub:
        dispatcher = dispatcher_of(stub, patience=Patience(answer_within=60.0))
        iterator = arrivals(loop, dispatcher, 1000)
        first = [next(iterator) for _ in range(3)]
        stub.latency = 60.0
        while stub.at_once < 8:
            time.sleep(0.005)
        iterator.close()
        spent = dispatcher.ledger.spent
        assert dispatcher.ledger.in_flight == 0
        assert spent.calls == len(stub.log)  # answered or given up, all that was sent
        assert spent.tokens == COST.tokens * len(stub.log)
        assert len(first) == 3
        assert len(stub.log) < 40
        while stub.at_once:  # the endpoint is told, by the connection's end
            time.sleep(0.005)
        stub.latency = 0.0
        assert loop.run(ask(dispatcher, "after"), never) == "after"


def test_should_stop_is_asked_while_nothing_arrives(loop):
    stop = threading.Event()
    with Stub(latency=60.0) as stub:
        dispatcher = dispatcher_of(stub, patience=Patience(answer_within=120.0))
        threading.Timer(0.2, stop.set).start()
        assert list(arrivals(loop, dispatcher, 50, stop.is_set)) == []
        assert dispatcher.ledger.spent.calls == len(stub.log) == 8
        with pytest.raises(StoppedError):
            loop.run(ask(dispatcher, "p"), stop.is_set)


def test_what_has_ended_when_it_is_stopped_is_still_handed_on(loop):
    """Each result that was paid for; what had not ended is given up."""
    ended = []
    stop = threading.Event()

    async def job(i: int) -> int:
        if i >= 5:
            await asyncio.sleep(3600)
        if i == 3:
            raise Failure("context", "too long")
        ended.append(i)
        if len(ended) == 4:
            stop.set()
        return i

    got = {}
    jobs = ((i, lambda i=i: job(i)) for i in range(8))
    for row, result in loop.arrivals(jobs, 8, stop.is_set):
        stop.wait()  # the others end while this one is looked at
        got[row] = result
    assert got.keys() == {0, 1, 2, 3, 4}
    assert [got[i] for i in ended] == ended
    assert got[3].kind == "context"


def test_what_waits_for_a_place_costs_nothing_when_it_is_given_up(loop):
    stop = threading.Event()
    with Stub(latency=60.0) as stub:
        dispatcher = dispatcher_of(stub, concurrency=1, patience=Patience(answer_within=120.0))
        threading.Timer(0.2, stop.set).start()
        assert list(arrivals(loop, dispatcher, 50, stop.is_set)) == []
        assert dispatcher.ledger.spent.calls == 1
        assert dispatcher.pool.in_flight == 0


def test_jobs_are_begun_as_others_end(loop):
    begun = 0
    running: set[int] = set()
    most = 0

    async def job(i: int) -> int:
        nonlocal most
        running.add(i)
        most = max(most, len(running))
        await asyncio.sleep(0)
        running.remove(i)
        return i

    def jobs():
        nonlocal begun
        for i in range(1000):
            begun += 1
            yield i, lambda i=i: job(i)

    iterator = loop.arrivals(jobs(), 10, never)
    assert next(iterator)[0] in range(10)
    assert begun <= 10
    assert len(list(iterator)) == 999
    assert most <= 10


def test_a_failure_is_a_result_and_a_fatal_one_ends_the_run(loop):
    async def job(i: int) -> int:
        if i == 2:
            raise Failure("context", "too long")
        if i == 5:
            raise Failure("key", "wrong key")
        return i

    got = dict(loop.arrivals(((i, lambda i=i: job(i)) for i in range(100)), 1, never))
    assert got.keys() == {0, 1, 2, 3, 4, 5}
    assert (got[2].kind, got[5].kind) == ("context", "key")
    with pytest.raises(Failure, match="wrong key"):
        loop.run(job(5), never)


def test_a_defect_is_no_failure(loop):
    with Stub() as stub:
        dispatcher = dispatcher_of(stub)
        wrong = dispatcher.request(lambda client: client.no_such_method(), COST)
        with pytest.raises(AttributeError):
            loop.run(wrong, never)
        assert (dispatcher.ledger.in_flight, dispatcher.pool.in_flight) == (0, 0)


def test_a_concurrency_of_nothing():
    with pytest.raises(InputError, match="concurrency is 0"):
        open_dispatcher(Access(base_urls=("http://127.0.0.1:1/v1",), concurrency=0), "stub")


def test_connections_are_used_again(loop):
    with Stub(latency=0.002) as stub:
        list(arrivals(loop, dispatcher_of(stub), 200))
        assert stub.connections <= 8


def test_closing_a_loop_ends_its_thread():
    loop = Loop()
    name = loop._thread
    loop.close()
    loop.close()
    assert not name.is_alive()


def test_no_module_of_the_sdk_is_loaded_before_a_client_is_made():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "import spex_engine.backends.openai.dispatch, spex_engine.backends.openai.loop\n"
        "print([m for m in ('openai', 'httpx', 'httpx2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
