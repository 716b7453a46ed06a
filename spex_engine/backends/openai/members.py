"""One endpoint of a pool: what is in flight there, how long it may take, how it has been doing.

Keeps the counts that `pool` decides by. Knows when requests begin and end, not what they are.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from spex_engine.backends.openai.budget import Cost
from spex_engine.backends.openai.clients import Address, is_here
from spex_engine.backends.openai.failures import Failure
from spex_engine.backends.openai.rates import LONGEST_WAIT, Bucket, Window


@dataclass(frozen=True)
class Patience:
    """How long to go on with what fails; seconds."""

    retries: int = 6  # of one request
    first: float = 0.5  # the longest pause before the first retry; it doubles from there
    longest: float = 60.0
    failures: int = 5  # in a row, before an endpoint is taken out
    first_outage: float = 1.0
    answer_within: float = 120.0  # one request, from its sending to the end of its answer
    # of an endpoint that never answered, so that a wrong address is known within half a minute
    first_answer_within: float = 30.0
    first_contact: int = 2  # how often it is asked again, if it can be told at once that it is dead

    def pause(self, retry: int, random_: random.Random) -> float:
        """Exponential backoff with full jitter (Brooker 2015); retry counts from 0."""
        return random_.uniform(0, min(self.longest, self.first * 2.0 ** min(retry, 32)))


PATIENCE = Patience()


class Endpoint:
    """One address with its client, what is in flight there, and how it has been doing."""

    def __init__(self, address: Address, client: Any, most: int) -> None:
        self.address = address
        self.client = client
        self.window = Window(most)
        self.buckets = (Bucket("requests"), Bucket("tokens"))
        self.in_flight = 0
        self.tokens_in_flight = 0
        self.not_before = 0.0  # no request until then
        self.answered = False  # ever
        self.failures = 0  # in a row
        self.refusals = 0  # in a row
        self.outages = 0  # in a row; 0: it lives
        self.doubts = 0  # requests that it refused and that are being asked elsewhere
        self.out: Failure | None = None  # why it is asked no more
        self.last_failure: Failure | None = None
        self._deadlines: set[asyncio.Timeout] = set()  # of requests, while it never answered

    def first_limit(self, patience: Patience) -> float:
        """Seconds for an answer while none came. A server of this machine may load its model."""
        if is_here(self.address.url):
            return patience.answer_within
        return min(patience.answer_within, patience.first_answer_within)

    @property
    def room(self) -> int:
        return (self.window.size if not self.outages else 1) - self.in_flight

    def lives(self, now: float) -> bool:
        """Neither taken out nor paused for longer than anyone waits."""
        return not self.outages and self.not_before - now <= LONGEST_WAIT

    def wait(self, cost: Cost, now: float) -> float:
        """Seconds until its headers and pauses let a request of that cost go."""
        amounts = (1, cost.tokens)
        waits = (b.wait(n, now) for b, n in zip(self.buckets, amounts, strict=True))
        return max(self.not_before - now, *waits, 0.0)

    @asynccontextmanager
    async def in_time(self, patience: Patience) -> AsyncIterator[None]:
        """Of one request. TimeoutError: it, or its answer, takes too long."""
        limit = patience.answer_within if self.answered else self.first_limit(patience)
        async with asyncio.timeout(limit) as deadline:
            if not self.answered:
                self._deadlines.add(deadline)
            try:
                yield
            finally:
                self._deadlines.discard(deadline)

    def has_answered(self, patience: Patience) -> None:
        """What else was sent there may take its time from now on: it is no wrong address."""
        self.answered = True
        more = patience.answer_within - self.first_limit(patience)
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule((deadline.when() or 0.0) + more)
        self._deadlines.clear()

    def hear(self, headers: Mapping[str, str], now: float) -> None:
        for bucket, n in zip(self.buckets, (self.in_flight, self.tokens_in_flight), strict=True):
            bucket.hear(headers, n, now)
