"""Masks asked of an endpoint, each once, and scores handed on as its answers come.

What every tier shares: masks that come to the same request share it, what cannot be paid for is
never yielded, what failed is NaN, and the notes say how often and why. It must not know what is
asked or how answers are read.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Scores, ShouldStop
from spex_engine.backends.openai.asking import Connection
from spex_engine.backends.openai.budget import Ledger
from spex_engine.backends.openai.capabilities import forget
from spex_engine.backends.openai.clients import is_here
from spex_engine.backends.openai.failures import Failure

Rows = NDArray[np.intp]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Row:
    """What was answered for one mask: the columns' values (w,), as in `base.Scores`."""

    values: Sequence[float]
    input_tokens: int
    censored: Sequence[bool] | None = None
    answers: tuple[str, ...] | None = None


@dataclass
class Problems:
    """What did not go well while masks were asked, told once and not for each of ``what``."""

    what: str = "masks"
    why_unfit: str = "the answers could not be read"
    unfit: int = 0  # masks whose answer is no score
    failed: int = 0  # masks that were refused, or got no answer
    last: str = ""  # of these
    unpaid: str = ""

    def notes(self) -> tuple[str, ...]:
        found = []
        if self.unpaid:
            found.append(f"not all masks were asked for: {self.unpaid}")
        if self.failed:
            found.append(f"{self.what} that failed: {self.failed:,}, the last one so: {self.last}")
        if self.unfit:
            found.append(f"{self.what} without a score: {self.unfit:,} ({self.why_unfit})")
        return tuple(found)


async def together(asked: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all that is asked of one mask, begun at once. Raises Failure.

    Nobody begins a second mask before a first one is paid for. Where one fails the others are
    waited for: they are paid for already.
    """
    results = await asyncio.gather(*asked, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in failures:
        if not isinstance(failure, Failure) or failure.fatal:
            raise failure
    if failures:
        raise failures[0]
    return [result for result in results if not isinstance(result, BaseException)]


def afterwards(connection: Connection) -> tuple[str, ...]:
    """What is known by now of the endpoints and of what the run has taken, for its notes."""
    dispatcher = connection.dispatcher
    here = all(is_here(endpoint.address.url) for endpoint in dispatcher.pool.endpoints)
    return (*dispatcher.notes, _spent(dispatcher.ledger, free=here))


def _spent(ledger: Ledger, free: bool) -> str:
    """free: nobody asks money for it, as far as can be told."""
    calls, money, tokens = ledger.spent.calls, ledger.spent.cost, ledger.spent_tokens
    said = (
        f"{calls:,} request{'' if calls == 1 else 's'}, {tokens.input_tokens:,} input and "
        f"{tokens.output_tokens:,} output tokens"
    )
    if money is None and not free:
        return (
            f"{said}; their price is not known, so that no limit on the cost can be kept: set "
            "inputPrice and outputPrice for one"
        )
    if not money:
        return said
    return f"{said}, about ${money:,.2f}" if money >= 0.01 else f"{said}, less than $0.01"


def digest(parts: Iterable[bytes]) -> bytes:
    """32 bytes that differ where any part does."""
    whole = hashlib.blake2b(digest_size=32)
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.digest()


def scores_as_they_come(
    connection: Connection,
    addresses: Sequence[bytes],
    ask: Callable[[int], Coroutine[Any, Any, Row]],
    width: int,
    problems: Problems,
    should_stop: ShouldStop,
) -> Iterator[tuple[Rows, Scores]]:
    """``ask(row)`` for one row of each address; its scores for all of them.

    Raises what every later request would meet too: a Failure that is fatal, the budget's aside.
    """
    rows: dict[bytes, list[int]] = {}
    for row, address in enumerate(addresses):
        rows.setdefault(address, []).append(row)
    jobs = ((same[0], lambda row=same[0]: ask(row)) for same in rows.values())
    at_once = 2 * connection.dispatcher.concurrency
    fatal: Failure | None = None
    for row, found in connection.loop.arrivals(jobs, at_once, should_stop):
        if isinstance(found, Failure):
            if found.kind == "budget":
                problems.unpaid = str(found)
                continue
            if found.fatal:
                forget(connection)  # it may be another server when it is asked again
                fatal = found  # what is in flight still counts: it is paid for
                continue
            problems.failed += 1
            problems.last = str(found)
            found = Row([np.nan] * width, 0)
        elif np.isnan(found.values).all():
            problems.unfit += 1
        same = rows[addresses[row]]
        yield np.array(same, dtype=np.intp), _repeated(found, len(same), width)
    if fatal is not None:
        raise fatal


def _repeated(row: Row, times: int, width: int) -> Scores:
    read = np.zeros(times, dtype=np.int64)
    read[0] = row.input_tokens  # it was read once
    censored = None if row.censored is None else np.tile(np.array(row.censored, bool), (times, 1))
    return Scores(
        np.tile(np.array(row.values, dtype=np.float64).reshape(1, width), (times, 1)),
        read,
        censored,
        None if row.answers is None else (row.answers,) * times,
    )
