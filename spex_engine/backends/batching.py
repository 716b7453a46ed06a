"""Scoring many rows in few batches: the same row once, like lengths together, sizes that fit.

Knows rows of token ids and a function that scores a batch of them; it must not know which library
runs the model. A batch is bounded by its padded tokens, because these, and not the number of
rows, decide what it costs in time and memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Ids
from spex_engine.wire import ModelError

ScoreBatch = Callable[[Sequence[Ids]], NDArray[np.float64]]

_SECONDS = 0.2  # a batch should take this long: cancelling waits for the one under way
_GROWTH = 4  # a batch is at most so many times the last one, whose speed may mislead


class OutOfMemoryError(Exception):
    """A batch did not fit into the memory of the device."""


@dataclass
class BatchSize:
    """How many padded tokens a batch may hold; learnt from the batches before it.

    Starts at a single row. Batches over the time aimed at make it smaller, quick ones larger, and
    what once ran out of memory is never tried again. Which rows share a batch shows in the last
    bits of their scores: where ``adapts`` is False, time has no say and results repeat exactly.
    """

    tokens: int = 0
    ceiling: int | None = None
    adapts: bool = True

    def took(self, tokens: int, seconds: float) -> None:
        if not self.adapts:
            return
        fitting = int(tokens * _SECONDS / max(seconds, 1e-6))
        if seconds > _SECONDS:
            self.tokens = fitting
        else:
            self.tokens = max(self.tokens, min(fitting, _GROWTH * tokens))
        if self.ceiling is not None:
            self.tokens = min(self.tokens, self.ceiling)

    def overflowed(self, tokens: int) -> None:
        self.ceiling = tokens // 2
        self.tokens = min(self.tokens, self.ceiling)


def score_rows(
    rows: Sequence[Ids],
    n_target: int,
    score: ScoreBatch,
    size: BatchSize,
    max_rows: int,
    should_stop: Callable[[], bool] | None = None,
) -> NDArray[np.float64]:
    """Scores of all rows in their own order; float (len(rows), n_target).

    score: b rows -> float (b, n_target), or OutOfMemoryError. size: kept and improved from call to
    call. max_rows: a bound beside the tokens, for what grows with the rows alone. should_stop is
    asked before each batch; rows not reached are NaN. Raises ModelError where even a single row
    does not fit into memory.
    """
    scores = np.full((len(rows), n_target), np.nan)
    places: dict[bytes, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.tobytes(), []).append(i)
    # Longest first: if memory is short, that shows before anything has been paid for.
    pending = sorted(places.values(), key=lambda same: -len(rows[same[0]]))
    while pending and not (should_stop is not None and should_stop()):
        width = len(rows[pending[0][0]]) + n_target
        count = min(max(1, size.tokens // width), max_rows, len(pending))
        batch = pending[:count]
        started = time.perf_counter()
        try:
            found = score([rows[same[0]] for same in batch])
        except OutOfMemoryError:
            if count == 1:
                raise ModelError(
                    f"Not enough memory to score a single row of {width} tokens; shorten the "
                    "prompt, use a smaller model, or close what else uses the device."
                ) from None
            size.overflowed(count * width)
            continue
        size.took(count * width, time.perf_counter() - started)
        for same, values in zip(batch, found, strict=True):
            scores[same] = values
        pending = pending[count:]
    return scores
