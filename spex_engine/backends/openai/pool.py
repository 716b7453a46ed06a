"""Which endpoint gets the next request: of those that live and have room, the least busy one.

Each endpoint is slowed by its own refusals and headers, taken out when it fails several times in a
row, and asked again after a growing pause. One that refuses what another can do is taken out for
good. Knows when requests begin and end, not what they are. One event loop uses it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from spex_engine.backends.openai.budget import Cost
from spex_engine.backends.openai.failures import MEMBER, Failure
from spex_engine.backends.openai.members import Endpoint, Patience
from spex_engine.backends.openai.rates import LONGEST_WAIT

_CROWDED = ("rate", "timeout")


class _Waiting(NamedTuple):
    future: asyncio.Future[Endpoint]
    cost: Cost
    avoid: Collection[Endpoint]


class Pool:
    """Several endpoints that serve the same model, and at most ``most`` requests in flight."""

    def __init__(
        self, endpoints: Sequence[Endpoint], most: int, patience: Patience, seed: int = 0
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._most = most
        self._patience = patience
        self._random = random.Random(seed)
        self._waiting: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.answers = 0  # of all endpoints

    @property
    def answered(self) -> bool:
        return any(endpoint.answered for endpoint in self.endpoints)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"an endpoint was taken out: {e.out}" for e in self.endpoints if e.out)

    @property
    def in_flight(self) -> int:
        return sum(endpoint.in_flight for endpoint in self.endpoints)

    async def acquire(
        self, cost: Cost, again: bool = False, avoid: Collection[Endpoint] = ()
    ) -> Endpoint:
        """A place at an endpoint, to be given back by `release`; Failure where all are dead.

        Requests are served in order, those that are sent ``again`` before all others. avoid: those
        that have refused it.
        """
        future: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        if not again and self._given_up(self._candidates(avoid)):
            for endpoint in self.endpoints:  # a new request, perhaps of a new run: ask them anew
                endpoint.failures = endpoint.outages = 0
                endpoint.not_before = 0.0
                endpoint.out = None
        waiting = _Waiting(future, cost, avoid)
        (self._waiting.appendleft if again else self._waiting.append)(waiting)
        self._serve()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result(), cost)  # given and cancelled in the same moment
            raise

    def release(self, endpoint: Endpoint, cost: Cost) -> None:
        """Give a place back that was not used, or whose use tells nothing."""
        self._leave(endpoint, cost)
        self._serve()

    def ended(
        self,
        endpoint: Endpoint,
        cost: Cost,
        failure: Failure | None,
        headers: Mapping[str, str],
        again: bool = False,
    ) -> None:
        """Give a place back and learn from the answer or the failure; again: of a second try.

        An endpoint that has refused a request which others may serve is asked nothing until `judge`
        was told what became of it.
        """
        self._leave(endpoint, cost)
        now = _now()
        endpoint.hear(headers, now)
        if failure is None or failure.status is not None:
            endpoint.has_answered(self._patience)
        if failure is None or not failure.passing:  # if only that the request itself is wrong
            endpoint.failures = endpoint.refusals = endpoint.outages = 0
            endpoint.window.answered(refused=False)
            self.answers += 1
            if failure is not None and failure.kind in MEMBER:
                endpoint.doubts += 1
                endpoint.last_failure = failure
        else:
            self._slow_down(endpoint, failure, now, again)
        self._serve()

    def has_others(self, refused: Collection[Endpoint]) -> bool:
        """Whether one lives that has not refused the request."""
        left = [e for e in self.endpoints if e.out is None and e not in refused]
        return any(e.lives(_now()) for e in left)

    def judge(self, refused: Mapping[Endpoint, Failure], answered: bool) -> None:
        """The request that these refused has ended; if another answered it, it is their fault.

        The last endpoint stays: there is none to compare it with.
        """
        for endpoint, failure in refused.items():
            if failure.kind in MEMBER:
                endpoint.doubts -= 1
                if answered and any(e.out is None for e in self.endpoints if e is not endpoint):
                    endpoint.out = failure
        self._serve()

    def _leave(self, endpoint: Endpoint, cost: Cost) -> None:
        endpoint.in_flight -= 1
        endpoint.tokens_in_flight -= cost.tokens

    def _slow_down(self, endpoint: Endpoint, failure: Failure, now: float, again: bool) -> None:
        endpoint.last_failure = failure
        endpoint.window.answered(failure.kind in _CROWDED or failure.status in (503, 529))
        pause = failure.wait or 0.0
        if failure.kind == "rate":
            if endpoint.window.size == 1:  # fewer at once do not help: it is asked too often
                pause = pause or self._patience.pause(endpoint.refusals, self._random)
                endpoint.refusals += 1
            endpoint.failures = endpoint.outages = 0
        elif failure.kind == "timeout" and not endpoint.answered:
            # it has been waited for long enough
            endpoint.outages = max(endpoint.outages, self._patience.first_contact)
            pause = max(pause, self._outage(endpoint, now))
        elif failure.kind != "timeout":
            # one request that the server cannot do, however often, says nothing of the others
            endpoint.failures += not (again and failure.kind == "server")
            if endpoint.outages or endpoint.failures >= self._patience.failures:
                pause = max(pause, self._outage(endpoint, now))
        endpoint.not_before = max(endpoint.not_before, now + pause)

    def _outage(self, endpoint: Endpoint, now: float) -> float:
        """Take an endpoint out, and say for how long."""
        if now < endpoint.not_before:  # sent before it was taken out
            return 0.0
        endpoint.outages += 1
        seconds = self._patience.first_outage * 2.0 ** (endpoint.outages - 1)
        return min(self._patience.longest, seconds)

    def _candidates(self, avoid: Collection[Endpoint]) -> list[Endpoint]:
        """Those that may be asked what ``avoid`` refused; the doubted only if no other lives."""
        left = [e for e in self.endpoints if e.out is None and e not in avoid]
        trusted = [e for e in left if not e.doubts]
        return trusted if any(e.lives(_now()) for e in trusted) else left

    def _given_up(self, endpoints: Sequence[Endpoint]) -> bool:
        """None is worth waiting for: asked again often enough, or paused for too long."""
        now, patience = _now(), self._patience
        return not self.in_flight and all(
            e.outages > (patience.retries if e.answered else patience.first_contact)
            or e.not_before - now > LONGEST_WAIT
            for e in endpoints
        )

    def _serve(self) -> None:
        """Give places to those who wait, in order, as far as there are any."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self._given_up(self._candidates(self._waiting[0].avoid)):
            future = self._waiting.popleft().future
            if not future.done():
                future.set_exception(self._all_dead())
        while self._waiting and self.in_flight < self._most:
            future, cost, avoid = self._waiting[0]
            if future.done():
                self._waiting.popleft()
                continue
            now = _now()
            roomy = [e for e in self._candidates(avoid) if e.room > 0]
            ready = [e for e in roomy if e.wait(cost, now) <= 0]
            if not ready:
                if roomy:
                    soonest = min(e.wait(cost, now) for e in roomy)
                    self._timer = asyncio.get_running_loop().call_later(soonest, self._serve)
                return
            endpoint = min(ready, key=lambda e: (e.outages == 0, e.in_flight))
            endpoint.in_flight += 1
            endpoint.tokens_in_flight += cost.tokens
            for bucket, amount in zip(endpoint.buckets, (1, cost.tokens), strict=True):
                bucket.take(amount)
            self._waiting.popleft()
            future.set_result(endpoint)

    def _all_dead(self) -> Failure:
        """What each address did; the kind is the first one's."""
        last = [e.last_failure for e in self.endpoints if e.last_failure is not None]
        message = str(last[0])
        if len(last) > 1:
            message = "None of the endpoints answers. " + " ".join(map(str, last))
        return Failure(last[0].kind, message, status=last[0].status, fatal=True)


def _now() -> float:
    return asyncio.get_running_loop().time()
