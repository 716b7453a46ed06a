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


@runtime_checkable
class Evaluator(Protocol):
    """What can evaluate masks, in the order and in the portions that suit it."""

    def evaluate(self, masks: Masks) -> Iterator[tuple[npt.ArrayLike, npt.ArrayLike]]:
        """Portions of the values of ``masks``, bool (m, n), as they are known.

        A portion is ``(rows, values)``: rows of the masks, int (k,), each yielded once in all, and
        their values, float (k,). NaN or infinite means that the evaluation failed, and so does a
        row that is never yielded. An empty portion is allowed: it is a chance to stop. A generator
        is closed where its values are no longer wanted: it should then give up what is in flight.
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


def as_evaluator(game: Game | Evaluator) -> Evaluator:
    """``game`` itself where it is an evaluator, else one that calls it. ValueError for neither."""
    if isinstance(game, Evaluator) and not isinstance(game, type):
        return game
    if not callable(game):
        raise ValueError(f"game: {type(game).__name__}, expected a function from masks to values")
    return PlainGame(game)


def arrivals(
    evaluator: Evaluator, masks: Masks, should_stop: Callable[[], bool]
) -> Generator[tuple[Rows, Floats], None, None]:
    """The portions that ``evaluator`` yields for ``masks``, as int and float arrays; NaN is failed.

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
            rows, values = _checked(portion, awaited)
            awaited[rows] = False
            yield rows, values
            if awaited.any() and should_stop():
                return
        if awaited.any():  # perhaps it ended because it was stopped itself: then they did not fail
            should_stop()
    finally:
        close = getattr(source, "close", None)  # generators have it, other iterators need not
        if close is not None:
            close()


def _checked(portion: Any, awaited: npt.NDArray[np.bool_]) -> tuple[Rows, Floats]:
    try:
        given_rows, given_values = portion
    except (TypeError, ValueError):
        raise ValueError(
            f"game: evaluate yielded {type(portion).__name__}, expected pairs (rows, values)"
        ) from None
    rows = np.asarray(given_rows)
    if rows.ndim != 1 or (len(rows) and not np.issubdtype(rows.dtype, np.integer)):
        raise ValueError(
            f"game: evaluate yielded rows of {rows.dtype} {rows.shape}, expected integers (k,)"
        )
    rows = rows.astype(np.intp)
    values = _floats(given_values, f"({len(rows)},) of evaluate")
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
    return rows, values


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
