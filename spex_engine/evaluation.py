"""Masks in, values out: the one way in which the engine asks a game for anything.

Values arrive as they come, in any order, from something that may have many evaluations in flight;
a plain function of masks is made to look like that. It checks what comes back and knows nothing
of designs, fits, or what a mask stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from spex_engine.fourier import Floats, Masks

CHUNK = 64  # masks a plain function is asked for at once: progress and stop come between chunks

Game = Callable[[Masks], npt.ArrayLike]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Portion:
    """Values of some of the masks that were asked for, and how far they can be relied on.

    ``rows`` of the masks, int (k,); ``values`` float (k,), NaN or infinite where the evaluation
    failed. ``variances`` float (k,): of the noise of each value, in its unit squared, NaN where
    that is not known; None: no noise is known of. ``censored`` int (k,): -1 where the true value is
    at most this one, 1 where it is at least this one, 0 where it is this one; None: all are.
    """

    rows: Rows
    values: Floats
    variances: Floats | None = None
    censored: npt.NDArray[np.int8] | None = None


@runtime_checkable
class Evaluator(Protocol):
    """What can evaluate masks, in the order and in the portions that suit it."""

    def evaluate(
        self, masks: Masks
    ) -> Iterator[Portion] | Iterator[tuple[npt.ArrayLike, npt.ArrayLike]]:
        """Portions of the values of ``masks``, bool (m, n), as they are known.

        A `Portion`, or just ``(rows, values)``: rows of the masks, int (k,), each yielded once in
        all, and their values, float (k,). NaN or infinite means that the evaluation failed, and so
        does a row that is never yielded. An empty portion is allowed: it is a chance to stop. A
        generator is closed where its values are no longer wanted: it should then give up what is in
        flight.
        """
        ...


@dataclass(frozen=True, slots=True)
class PlainGame:
    """The evaluator that asks a function of masks, chunk by chunk, each when it is wanted."""

    game: Game

    def evaluate(self, masks: Masks) -> Iterator[tuple[npt.ArrayLike, npt.ArrayLike]]:
        for start in range(0, len(masks), CHUNK):
            chunk = masks[start : start + CHUNK]
            size, shape = len(chunk), chunk.shape
            values = _floats(self.game(chunk), f"({size},) back")
            if values.shape != (size,):
                raise ValueError(
                    f"game: returned shape {values.shape} for masks {shape}, "
                    f"expected ({size},), one value per mask"
                )
            yield np.arange(start, start + size), values


@dataclass(frozen=True, eq=False)
class Samples:
    """What is known of the first j masks of a design: as in a `Portion`, each (j,).

    ``values`` are NaN where an evaluation failed or has not come. A variance that is not known is
    the mean of those that are.
    """

    values: Floats
    variances: Floats | None = None
    censored: npt.NDArray[np.int8] | None = None


class Collected:
    """What has arrived of the values of ``size`` masks, and which of them are ``done``."""

    def __init__(self, size: int) -> None:
        self.values = np.full(size, np.nan)
        self.done = np.zeros(size, np.bool_)
        self._variances = np.full(size, np.nan)
        self._censored = np.zeros(size, np.int8)

    def add(self, start: int, portion: Portion) -> None:
        """A checked portion, whose rows count from ``start``."""
        rows = start + portion.rows
        self.values[rows], self.done[rows] = portion.values, True
        if portion.variances is not None:
            self._variances[rows] = portion.variances
        if portion.censored is not None:
            self._censored[rows] = portion.censored

    def first(self, count: int) -> Samples:
        """Of the first ``count`` masks; None for what no value has."""
        variances, censored = self._variances[:count], self._censored[:count]
        there = np.isfinite(variances)
        return Samples(
            self.values[:count],
            np.where(there, variances, variances[there].mean()) if there.any() else None,
            censored if censored.any() else None,
        )


def as_evaluator(game: Game | Evaluator) -> Evaluator:
    """``game`` itself where it is an evaluator, else one that calls it. ValueError for neither."""
    if isinstance(game, Evaluator) and not isinstance(game, type):
        return game
    if not callable(game):
        raise ValueError(f"game: {type(game).__name__}, expected a function from masks to values")
    return PlainGame(game)


def arrivals(
    evaluator: Evaluator, masks: Masks, should_stop: Callable[[], bool]
) -> Generator[Portion, None, None]:
    """The portions that ``evaluator`` yields for ``masks``, checked; NaN is failed.

    ``should_stop`` is asked before the first mask is asked for, and after each portion while rows
    are awaited; once it is true nothing more is. However this ends, the evaluator's iterator is
    closed. ValueError for rows that are no rows of the masks, or come twice, and for unfit values.
    """
    if should_stop():
        return
    awaited = np.ones(len(masks), np.bool_)
    source = iter(evaluator.evaluate(masks.copy()))  # it may write into what it is given
    try:
        for portion in source:
            checked = _checked(portion, awaited)
            awaited[checked.rows] = False
            yield checked
            if awaited.any() and should_stop():
                return
        if awaited.any():  # perhaps it ended because it was stopped itself: then they did not fail
            should_stop()
    finally:
        close = getattr(source, "close", None)  # generators have it, other iterators need not
        if close is not None:
            close()


def _checked(portion: Any, awaited: npt.NDArray[np.bool_]) -> Portion:
    if not isinstance(portion, Portion):
        try:
            given_rows, given_values = portion
        except (TypeError, ValueError):
            raise ValueError(
                f"game: evaluate yielded {type(portion).__name__}, expected a Portion or pairs "
                "(rows, values)"
            ) from None
        portion = Portion(given_rows, given_values)
    rows = np.asarray(portion.rows)
    if rows.ndim != 1 or (len(rows) and not np.issubdtype(rows.dtype, np.integer)):
        raise ValueError(
            f"game: evaluate yielded rows of {rows.dtype} {rows.shape}, expected integers (k,)"
        )
    rows = rows.astype(np.intp)
    values = _floats(portion.values, f"({len(rows)},) of evaluate")
    if values.shape != rows.shape:
        raise ValueError(
            f"game: evaluate yielded values {values.shape} for rows {rows.shape}, "
            "expected one value per row"
        )
    beyond = rows[(rows < 0) | (rows >= len(awaited))]
    if len(beyond):
        raise ValueError(f"game: evaluate yielded row {beyond[0]}, expected 0..{len(awaited) - 1}")
    twice = np.flatnonzero(np.bincount(rows, minlength=len(awaited)) + ~awaited > 1)
    if len(twice):
        raise ValueError(f"game: evaluate yielded row {twice[0]} twice, expected each row once")
    variances = None if portion.variances is None else _variances(portion.variances, len(rows))
    censored = None if portion.censored is None else _censored(portion.censored, len(rows))
    return Portion(rows, values, variances, censored)


def _variances(given: Any, size: int) -> Floats:
    variances = _floats(given, f"({size},), variances of evaluate")
    if variances.shape != (size,) or (variances < 0).any():
        raise ValueError(
            f"game: evaluate yielded variances {variances.shape}, expected ({size},), none below 0"
        )
    return variances


def _censored(given: Any, size: int) -> npt.NDArray[np.int8]:
    sides = np.asarray(given)
    whole = np.issubdtype(sides.dtype, np.integer) or size == 0  # True would be no side
    if sides.shape != (size,) or not whole or not np.isin(sides, (-1, 0, 1)).all():
        raise ValueError(
            f"game: evaluate yielded censored {sides.dtype} {sides.shape}, expected ({size},) of "
            "-1 (at most the value), 0 (the value) and 1 (at least)"
        )
    return sides.astype(np.int8)


def _floats(returned: Any, expected: str) -> Floats:
    """The values returned, nan where the evaluation failed."""
    if np.iscomplexobj(returned):
        raise ValueError("game: returned complex numbers, expected real ones")
    try:
        values = np.array(returned, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"game: expected real numbers {expected}: {error}") from None
    values[~np.isfinite(values)] = np.nan
    return values
