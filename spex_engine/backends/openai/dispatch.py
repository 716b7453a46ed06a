"""Sends requests to a pool of endpoints: as many at once as they take, retried, and paid for.

A request is a function of the SDK's client that is called anew for each try. Every try is reserved
in the ledger before it is sent and settled when it ends, however it ends. Knows neither what is
asked nor what is made of the answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from spex_engine.backends.openai.budget import (
    NOTHING,
    UNKNOWN,
    Cost,
    Ledger,
    Prices,
    Reservation,
)
from spex_engine.backends.openai.clients import addresses, make_client
from spex_engine.backends.openai.connections import explain, timed_out
from spex_engine.backends.openai.failures import (
    MEMBER,
    PASSING,
    Failure,
    none_left,
    not_openai,
    quote,
)
from spex_engine.backends.openai.members import PATIENCE, Endpoint, Patience
from spex_engine.backends.openai.pool import Pool
from spex_engine.wire import Access, InputError

Call = Callable[[Any], Awaitable[Any]]

_COMPUTED_PERHAPS = (200, 408)  # statuses below 500 that come with a failure


@dataclass(frozen=True)
class Answer:
    """value: the SDK's parsed object. cost: as the server counts it, as reserved where it does not.

    address: the base URL that answered. headers: of the answer, names in lower case.
    """

    value: Any
    cost: Cost
    address: str
    headers: Mapping[str, str]


class Dispatcher:
    """Requests for one model."""

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        concurrency: int,
        model: str,
        seed: int = 0,
        patience: Patience = PATIENCE,
    ) -> None:
        self.pool = pool
        self.ledger = ledger
        self.concurrency = concurrency
        self._model = model
        self._patience = patience
        self._random = random.Random(seed)
        self._settled = asyncio.Event()  # set and replaced whenever a request ends

    async def request(self, call: Call, cost: Cost) -> Answer:
        """One answered request, at most ``cost`` each try. Failure: what went wrong at the end.

        call: gives what the SDK's ``with_raw_response`` gives. It may be called several times.
        """
        refused: dict[Endpoint, Failure] = {}
        answered = False
        try:
            answer = await self._answered(call, cost, refused)
            answered = True
            return answer
        except Failure as failure:
            if refused and failure.kind in (*PASSING, *MEMBER):  # the others were no better
                raise none_left(list(refused.values())) from None
            raise
        finally:
            self.pool.judge(refused, answered)

    async def _answered(self, call: Call, cost: Cost, refused: dict[Endpoint, Failure]) -> Answer:
        """As `request`; refused: gets the endpoints that cannot serve it, while others may."""
        answers, retry = self.pool.answers, 0
        while True:
            again = retry > 0 or bool(refused)
            endpoint, reservation = await self._admitted(cost, again, refused)
            outcome = await self._try(call, endpoint, reservation, cost, again)
            if isinstance(outcome, Answer):
                return outcome
            if outcome.kind in MEMBER or (outcome.kind == "timeout" and not endpoint.answered):
                refused[endpoint] = outcome
                if self.pool.has_others(refused):
                    continue
                outcome.fatal = True
                raise outcome
            retries = self._patience.retries if self.pool.answered else self._patience.first_contact
            if not outcome.passing or retry >= retries:
                if outcome.kind in ("rate", "timeout") and answers == self.pool.answers:
                    outcome.fatal = True  # nothing else was answered meanwhile either
                raise outcome
            if outcome.wait is None:  # else the endpoint pauses, and another may have room
                await asyncio.sleep(self._patience.pause(retry, self._random))
            retry += 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What a result should tell of the endpoints."""
        return self.pool.notes

    async def close(self) -> None:
        for endpoint in self.pool.endpoints:
            await endpoint.client.close()

    async def _admitted(
        self, cost: Cost, again: bool, avoid: Collection[Endpoint]
    ) -> tuple[Endpoint, Reservation]:
        """A place at an endpoint and the means to use it; Failure where they are spent."""
        while True:
            endpoint = await self.pool.acquire(cost, again, avoid)
            reservation = self.ledger.reserve(cost)
            if reservation is not None:
                return endpoint, reservation
            settled = self._settled
            self.pool.release(endpoint, cost)
            if not self.ledger.may_fit_later(cost):
                raise Failure("budget", str(self.ledger.exhausted))
            await settled.wait()  # what is in flight may cost less than was reserved for it
            again = True

    async def _try(
        self, call: Call, endpoint: Endpoint, reservation: Reservation, cost: Cost, again: bool
    ) -> Answer | Failure:
        """One try, which leaves the ledger and the pool in order however it ends."""
        outcome = None
        headers: Mapping[str, str] = {}
        try:
            outcome, headers = await self._sent(call, endpoint, reservation.cost)
            return outcome
        finally:
            self._pay(reservation, outcome)
            if outcome is None:
                self.pool.release(endpoint, cost)
            else:
                failure = outcome if isinstance(outcome, Failure) else None
                self.pool.ended(endpoint, cost, failure, headers, again)
            self._settled.set()
            self._settled = asyncio.Event()

    async def _sent(
        self, call: Call, endpoint: Endpoint, reserved: Cost
    ) -> tuple[Answer | Failure, Mapping[str, str]]:
        import openai

        address = endpoint.address
        known = (address.url, self._model, address.secret, address.proxy)
        headers: Mapping[str, str] = {}
        try:
            async with endpoint.in_time(self._patience):
                raw = await call(endpoint.client)
            headers = {name.lower(): value for name, value in raw.headers.items()}
            try:
                value = raw.parse()
            except ValueError as error:  # no JSON, though it says so
                return explain(error, *known), headers
        except TimeoutError:
            limit = None if endpoint.answered else endpoint.first_limit(self._patience)
            return timed_out(address.url, limit, address.proxy), headers
        except openai.OpenAIError as error:
            headers = getattr(getattr(error, "response", None), "headers", {})
            return explain(error, *known), headers
        failure = _hidden_failure(value, address.url, address.secret)
        if failure is not None:
            return failure, headers
        return Answer(value, _usage(value, reserved), address.url, headers), headers

    def _pay(self, reservation: Reservation, outcome: Answer | Failure | None) -> None:
        """None: it was given up in flight."""
        if outcome is None:
            self.ledger.lost(reservation)
        elif isinstance(outcome, Answer):
            self.ledger.settle(reservation, outcome.cost)
        elif not outcome.reached:
            self.ledger.withdraw(reservation)
        elif outcome.status in _COMPUTED_PERHAPS or (outcome.status or 500) >= 500:
            self.ledger.lost(reservation)
        else:  # refused before the model read it
            self.ledger.settle(reservation, NOTHING)


def open_dispatcher(
    access: Access,
    model: str,
    prices: Prices = UNKNOWN,
    secrets: Mapping[str, str] | None = None,
    seed: int = 0,
    patience: Patience = PATIENCE,
) -> Dispatcher:
    """For the endpoints of ``access``. InputError or ModelError: they cannot be used."""
    if access.concurrency < 1:
        raise InputError(f"concurrency is {access.concurrency}. Set it to 1 or more.")
    endpoints = [
        Endpoint(address, make_client(address, patience.answer_within), access.concurrency)
        for address in addresses(access, secrets)
    ]
    pool = Pool(endpoints, access.concurrency, patience, seed)
    return Dispatcher(pool, Ledger(access, prices), access.concurrency, model, seed, patience)


def _usage(value: Any, reserved: Cost) -> Cost:
    """Tokens as completions, chat, responses and embeddings report them; what is left out counts
    as reserved."""
    usage = getattr(value, "usage", None)
    read = _count(usage, "prompt_tokens", "input_tokens")
    written = _count(usage, "completion_tokens", "output_tokens")
    if not read and not written:  # some servers count nothing, and say 0
        return reserved
    return Cost(
        read or reserved.input_tokens, reserved.output_tokens if written is None else written
    )


def _count(usage: Any, *names: str) -> int | None:
    found = (getattr(usage, name, None) for name in names)
    return next((n for n in found if isinstance(n, int) and n >= 0), None)


def _hidden_failure(value: Any, url: str, key: str | None) -> Failure | None:
    """An answer with status 200 that is none: a web page, or an error in an envelope."""
    if isinstance(value, str | bytes) or value is None:
        return not_openai(url, 200)
    error = getattr(value, "error", None)
    if not error:
        return None
    said = error.get("message", error) if isinstance(error, dict) else error
    return Failure(
        "server",
        f"{url} failed ({quote(str(said), key)}). Try again later, or look at the server's log.",
        status=200,
    )
