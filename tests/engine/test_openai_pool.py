"""Several endpoints: the least busy one, each slowed by its own faults, the dead out and back."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from openai_stub import Faults, Rate, Reply, Stub, completions, error

from spex_engine.backends.openai.budget import Cost
from spex_engine.backends.openai.clients import Address
from spex_engine.backends.openai.dispatch import Dispatcher, open_dispatcher
from spex_engine.backends.openai.failures import Failure
from spex_engine.backends.openai.members import Endpoint, Patience
from spex_engine.backends.openai.pool import Pool
from spex_engine.wire import Access

COST = Cost(10, 1)
QUICK = Patience(first=0.01, longest=0.08, failures=3, first_outage=0.02, answer_within=5.0)


def pool_of(n: int, most: int, patience: Patience = QUICK) -> Pool:
    endpoints = [Endpoint(Address(f"http://host{i}/v1", None), None, most) for i in range(n)]
    return Pool(endpoints, most, patience)


def dispatcher_of(*stubs: Stub, concurrency: int = 4, patience: Patience = QUICK) -> Dispatcher:
    access = Access(base_urls=tuple(stub.url for stub in stubs), concurrency=concurrency)
    return open_dispatcher(access, "stub", patience=patience)


async def ask(dispatcher: Dispatcher, prompt: str = "p") -> str:
    answer = await dispatcher.request(
        lambda client: client.completions.with_raw_response.create(
            model="stub", prompt=prompt, max_tokens=1
        ),
        COST,
    )
    return answer.value.choices[0].text


async def ask_many(dispatcher: Dispatcher, n: int) -> None:
    prompts = [f"prompt {i}" for i in range(n)]
    assert await asyncio.gather(*(ask(dispatcher, p) for p in prompts)) == prompts


async def test_the_least_busy_endpoint_is_next_and_the_cap_is_for_all():
    pool = pool_of(3, most=7)
    taken = [await pool.acquire(COST) for _ in range(7)]
    assert sorted(endpoint.in_flight for endpoint in pool.endpoints) == [2, 2, 3]
    waiting = asyncio.ensure_future(pool.acquire(COST))
    await asyncio.sleep(0)
    assert not waiting.done()
    pool.ended(taken[0], COST, None, {})
    assert await waiting in pool.endpoints
    assert pool.in_flight == 7


async def test_a_retry_comes_before_what_was_not_yet_sent():
    pool = pool_of(1, most=1)
    (endpoint,) = pool.endpoints
    await pool.acquire(COST)
    first = asyncio.ensure_future(pool.acquire(COST))
    await asyncio.sleep(0)
    again = asyncio.ensure_future(pool.acquire(COST, again=True))
    await asyncio.sleep(0)
    pool.release(endpoint, COST)
    await again
    assert not first.done()
    pool.release(endpoint, COST)
    await first


async def test_who_stops_waiting_takes_no_place():
    pool = pool_of(1, most=1)
    (endpoint,) = pool.endpoints
    await pool.acquire(COST)
    waiting = asyncio.ensure_future(pool.acquire(COST))
    await asyncio.sleep(0)
    pool.release(endpoint, COST)  # given, but not yet taken when it is cancelled
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.in_flight == 0


async def test_a_refusal_slows_the_endpoint_that_refused():
    pool = pool_of(2, most=8)
    slow, other = pool.endpoints
    places = [await pool.acquire(COST) for _ in range(8)]
    for endpoint in places:
        failure = Failure("rate", "slow down", status=429, wait=60.0)
        pool.ended(endpoint, COST, failure if endpoint is slow else None, {})
    assert slow.window.size < other.window.size == 8
    assert {await pool.acquire(COST) for _ in range(8)} == {other}


async def test_work_goes_to_every_endpoint():
    with Stub(latency=0.02) as one, Stub(latency=0.02) as two:
        await ask_many(dispatcher_of(one, two), 40)
        assert len(one.log) + len(two.log) == 40
        assert min(len(one.log), len(two.log)) >= 10


async def test_one_that_refuses_much_leaves_the_work_to_the_other():
    with Stub(latency=0.01, allowed=1) as narrow, Stub(latency=0.01) as wide:
        dispatcher = dispatcher_of(narrow, wide, concurrency=8)
        await ask_many(dispatcher, 100)
        assert dispatcher.pool.endpoints[1].window.size == 8
        served = [sum(e.status == 200 for e in stub.log) for stub in (narrow, wide)]
        assert sum(served) == 100
        assert served[1] > served[0]


async def test_a_dead_endpoint_is_taken_out_and_comes_back():
    with Stub() as alive, Stub() as dying:
        dispatcher = dispatcher_of(alive, dying)
        await ask_many(dispatcher, 8)
        dying.stop()
        await ask_many(dispatcher, 40)
        assert dispatcher.pool.endpoints[1].outages > 0
        served = len(dying.log)
        dying.start()
        while len(dying.log) < served + 5:  # the test's own time limit ends it
            await ask_many(dispatcher, 8)
            await asyncio.sleep(0.01)
        assert dispatcher.pool.endpoints[1].outages == 0
        assert dispatcher.ledger.in_flight == 0


async def test_errors_in_a_row_take_an_endpoint_out_and_one_request_asks_it_again():
    with Stub() as alive, Stub(faults=Faults(error=1.0)) as broken:
        dispatcher = dispatcher_of(
            alive, broken, patience=Patience(first=0.01, failures=3, first_outage=600.0)
        )
        await ask_many(dispatcher, 100)
        assert 3 <= len(broken.log) <= 6  # those in flight when the third failed


REFUSALS = {
    "key": error(401, "wrong key"),
    "model": error(404, "The model `stub` does not exist", code="model_not_found"),
    "quota": error(429, "You exceeded your current quota", code="insufficient_quota"),
    "not_openai": Reply(200, "<html>Welcome</html>"),
    "redirect": Reply(307, headers={"location": "https://elsewhere.example/v1"}),
}


@pytest.mark.parametrize("kind", REFUSALS)
async def test_one_that_refuses_what_another_can_is_taken_out_with_a_note(kind):
    unfit = {"/v1/completions": lambda body, headers: REFUSALS[kind]}
    with Stub(unfit) as wrong, Stub(latency=0.02) as right:
        dispatcher = dispatcher_of(wrong, right, concurrency=8)
        await ask_many(dispatcher, 60)
        (note,) = dispatcher.notes
        assert note.startswith(f"an endpoint was taken out: {wrong.url} ") or (
            note.startswith("an endpoint was taken out: The account at") and wrong.url in note
        )
        assert len(wrong.log) <= 4  # those in flight when the first of them was refused
        assert sum(entry.status == 200 for entry in right.log) == 60
        assert dispatcher.ledger.spent.calls == len(wrong.log) + 60


async def test_one_without_tls_is_taken_out():
    with Stub() as plain, Stub() as right:
        access = Access(base_urls=(plain.url.replace("http:", "https:"), right.url), concurrency=4)
        dispatcher = open_dispatcher(access, "stub", patience=QUICK)
        await ask_many(dispatcher, 20)
        assert "No secure connection" in dispatcher.notes[0]
        assert dispatcher.ledger.spent.calls == 20  # a failed handshake is no call


async def test_where_all_refuse_each_is_told_and_none_is_taken_out():
    refusals = [REFUSALS["key"], REFUSALS["model"]]
    handlers = [{"/v1/completions": lambda b, h, reply=reply: reply} for reply in refusals]
    with Stub(handlers[0]) as one, Stub(handlers[1]) as other:
        dispatcher = dispatcher_of(one, other)
        with pytest.raises(Failure, match="None of the endpoints can be used") as raised:
            await ask(dispatcher)
        assert raised.value.fatal
        assert f"{one.url} wants a key" in str(raised.value)
        assert f"{other.url} has no model" in str(raised.value)
        assert dispatcher.notes == ()
        one.handlers["/v1/completions"] = other.handlers["/v1/completions"] = completions
        await ask_many(dispatcher, 20)
        assert one.log[-1].status == other.log[-1].status == 200


async def test_what_no_member_can_do_takes_none_of_them_out():
    """An optional part of the protocol that is asked for, once in an idle pool and once in load."""
    with Stub() as one, Stub() as other:
        dispatcher = dispatcher_of(one, other)

        def missing():
            return dispatcher.request(
                lambda client: client.responses.with_raw_response.create(model="stub", input="p"),
                COST,
            )

        for _ in range(2):
            with pytest.raises(Failure) as raised:
                await missing()
            assert raised.value.kind == "not_openai"
        load = asyncio.ensure_future(ask_many(dispatcher, 40))
        done = await asyncio.gather(*(missing() for _ in range(5)), return_exceptions=True)
        await load
        assert [failure.kind for failure in done] == ["not_openai"] * 5
        assert dispatcher.notes == ()
        assert all(endpoint.doubts == 0 for endpoint in dispatcher.pool.endpoints)


async def test_what_the_only_living_member_cannot_do_is_its_own_failure():
    with Stub() as alive, Stub() as gone:
        dispatcher = dispatcher_of(gone, alive)
        gone.stop()
        await ask_many(dispatcher, 20)
        assert dispatcher.pool.endpoints[0].outages
        with pytest.raises(Failure) as raised:
            await dispatcher.request(
                lambda client: client.responses.with_raw_response.create(model="stub", input="p"),
                COST,
            )
        assert raised.value.kind == "not_openai"
        assert await ask(dispatcher) == "p"


async def test_a_silent_member_costs_its_requests_one_wait(monkeypatch):
    monkeypatch.setattr("spex_engine.backends.openai.members.is_here", lambda url: False)
    patience = Patience(first=0.01, first_outage=60.0, first_answer_within=0.2)
    with Stub(latency=600.0) as silent, Stub() as right:
        dispatcher = dispatcher_of(silent, right, patience=patience)
        await ask_many(dispatcher, 30)
        assert len(silent.log) <= 4
        assert dispatcher.ledger.spent.calls == 30 + len(silent.log)  # it may have computed


async def test_the_last_member_stays():
    pool = pool_of(2, most=4)
    one, other = pool.endpoints
    failure = Failure("key", "wrong key")
    for _ in pool.endpoints:
        pool.ended(await pool.acquire(COST), COST, failure, {})
    assert one.doubts == other.doubts == 1
    pool.judge({one: failure}, answered=True)
    pool.judge({other: failure}, answered=True)
    assert pool.notes == ("an endpoint was taken out: wrong key",)
    assert await pool.acquire(COST) is other


async def test_all_dead_says_what_each_address_did():
    with Stub(faults=Faults(error=1.0)) as broken, Stub() as gone:
        dispatcher = dispatcher_of(broken, gone)
        gone.stop()
        done = await asyncio.gather(*(ask(dispatcher) for _ in range(20)), return_exceptions=True)
    failures = [str(failure) for failure in done if isinstance(failure, Failure) and failure.fatal]
    assert failures
    assert all(isinstance(failure, Failure) for failure in done)
    whole = [f for f in failures if f.startswith("None of the endpoints answers. ")]
    assert whole
    assert f"{broken.url} failed with error 500" in whole[-1]
    assert f"Nothing answers at {gone.url}" in whole[-1]


async def test_a_new_request_asks_those_that_were_given_up_anew():
    with Stub() as stub:
        dispatcher = dispatcher_of(stub)
        stub.stop()
        with pytest.raises(Failure, match="Nothing answers"):
            await ask(dispatcher)
        stub.start()
        assert await ask(dispatcher, "back") == "back"


async def test_a_request_that_the_server_cannot_do_does_not_take_it_out():
    def choosy(body, headers):
        return error(500, "cannot") if body["prompt"] == "bad" else completions(body, headers)

    with Stub({"/v1/completions": choosy}) as stub:
        dispatcher = dispatcher_of(stub)
        assert await ask(dispatcher) == "p"
        with pytest.raises(Failure, match="error 500") as raised:
            await ask(dispatcher, "bad")
        assert not raised.value.fatal
        assert len(stub.log) == 1 + 1 + QUICK.retries
        assert dispatcher.pool.endpoints[0].outages == 0


async def test_headers_pace_requests_before_any_is_refused():
    with Stub(rate=Rate(limit=10, per=0.5)) as stub:
        dispatcher = dispatcher_of(stub)
        await ask_many(dispatcher, 30)
        refused = sum(entry.status == 429 for entry in stub.log)
    assert refused <= 3  # several may be sent before the first answer has come


async def test_a_rate_that_no_header_tells_is_found():
    with Stub(rate=Rate(limit=5, per=0.1, headers=False)) as stub:
        dispatcher = dispatcher_of(stub, patience=Patience(first=0.05))
        await ask_many(dispatcher, 40)


async def test_retry_after_is_waited_for():
    moments = []

    def once(body, headers):
        moments.append(time.monotonic())
        if len(moments) == 1:
            return error(429, "wait", {"retry-after": "0.2"})
        return completions(body, headers)

    with Stub({"/v1/completions": once}) as stub:
        await ask(dispatcher_of(stub))
    assert moments[1] - moments[0] >= 0.2


async def test_one_that_asks_for_too_long_a_wait_leaves_the_work_to_the_other():
    refusal = error(429, "come back tomorrow", {"retry-after": "86400"})
    with Stub({"/v1/completions": lambda body, headers: refusal}) as closed, Stub() as open_:
        dispatcher = dispatcher_of(closed, open_)
        await ask_many(dispatcher, 30)
        assert len(closed.log) <= 4


def test_backoff_is_random_and_grows():
    patience = Patience(first=0.5, longest=60.0)
    draw = random.Random(0)
    longest = [max(patience.pause(retry, draw) for _ in range(300)) for retry in range(12)]
    for retry, pause in enumerate(longest):
        bound = min(60.0, 0.5 * 2**retry)
        assert 0.9 * bound < pause <= bound
    assert min(patience.pause(5, draw) for _ in range(300)) < 1.0
    assert [patience.pause(3, random.Random(4)) for _ in range(2)] == [
        patience.pause(3, random.Random(4)) for _ in range(2)
    ]
