"""Scores that are noisy, so that each mask is scored several times: one by one, and as rows.

A repetition is asked, kept and paid for alone; a row of `base.Scores` holds all of a mask's. It
must not know what is asked, nor where repetitions are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Scores, ShouldStop

Rows = NDArray[np.intp]
Portion = tuple[Rows, Scores]


@runtime_checkable
class Repeats(Protocol):
    """A `base.Scorer` whose columns are repetitions, which can be asked for one by one."""

    @property
    def repeats(self) -> int:
        """Columns of a row."""
        ...

    def repetition_addresses(
        self, masks: NDArray[np.bool_], numbers: NDArray[np.intp]
    ) -> list[bytes]:
        """What repetition ``numbers[i]`` of ``masks[i]`` asks, as 32 bytes; not how many there
        are."""
        ...

    def repetitions(
        self, masks: NDArray[np.bool_], numbers: NDArray[np.intp], should_stop: ShouldStop
    ) -> Iterator[Portion]:
        """As `base.Scorer.score`, with one column: repetition ``numbers[i]`` of ``masks[i]``."""
        ...


def one_by_one(
    masks: NDArray[np.bool_], repeats: int
) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """(masks, numbers) of all repetitions, a mask's side by side, as `in_rows` has them."""
    return np.repeat(masks, repeats, axis=0), np.tile(np.arange(repeats), len(masks))


def in_rows(portions: Iterable[Portion], n_masks: int, repeats: int) -> Iterator[Portion]:
    """Single repetitions as rows of masks: each as soon as its last repetition has come, in the end
    those of which only some came, with NaN for the others."""
    values = np.full((n_masks, repeats), np.nan)
    read = np.zeros(n_masks, dtype=np.int64)
    texts = [[""] * repeats for _ in range(n_masks)]
    left = np.full(n_masks, repeats)
    answered = False

    def rows_of(chosen: Rows) -> Portion:
        answers = tuple(tuple(texts[row]) for row in chosen) if answered else None
        return chosen, Scores(values[chosen], read[chosen], answers=answers)

    for places, scores in portions:
        masks, numbers = np.divmod(places, repeats)
        values[masks, numbers] = scores.values[:, 0]
        np.add.at(read, masks, scores.input_tokens)
        np.subtract.at(left, masks, 1)
        if scores.answers is not None:
            answered = True
            for mask, number, (text,) in zip(masks, numbers, scores.answers, strict=True):
                texts[mask][number] = text
        whole = np.unique(masks[left[masks] == 0])
        if len(whole):
            yield rows_of(whole)
    begun = np.flatnonzero((left > 0) & (left < repeats))
    if len(begun):
        yield rows_of(begun)
