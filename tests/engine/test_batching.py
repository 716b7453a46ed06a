"""Batches: what goes in one, how their size is learnt, what is given up and when."""

from __future__ import annotations

import time

import numpy as np
import pytest

from spex_engine.backends.batching import BatchSize, OutOfMemoryError, score_rows
from spex_engine.wire import ModelError


def rows(*lengths: int) -> list[np.ndarray]:
    return [np.arange(i, i + n) for i, n in enumerate(lengths)]


class Scorer:
    """Scores a row by its length and its first id; remembers the lengths of each batch."""

    def __init__(self, fits: int = 10**9, seconds: float = 0.0) -> None:
        self.fits, self.seconds = fits, seconds
        self.batches: list[list[int]] = []

    def __call__(self, batch):
        if len(batch) > self.fits:
            raise OutOfMemoryError
        time.sleep(self.seconds)
        self.batches.append([len(row) for row in batch])
        return np.array([[len(row), row[0]] for row in batch], dtype=float)


def test_input_order_and_equal_rows_once():
    given = rows(3, 5, 2)
    given = [*given, given[0].copy(), given[2].copy()]
    score = Scorer()
    found = score_rows(given, 2, score, BatchSize(1000), max_rows=100)
    assert found.tolist() == [[3, 0], [5, 1], [2, 2], [3, 0], [2, 2]]
    assert score.batches == [[5, 3, 2]]


def test_bounded_by_tokens_of_the_longest_and_by_rows():
    score = Scorer(seconds=0.02)
    size = BatchSize(tokens=24, ceiling=24)
    score_rows(rows(10, 10, 4, 4, 4, 4, 4), 2, score, size, max_rows=3)
    assert score.batches == [[10, 10], [4, 4, 4], [4, 4]]


def test_starts_with_one_row_and_grows():
    score = Scorer()
    score_rows(rows(*[8] * 40), 2, score, BatchSize(), max_rows=100)
    assert [len(batch) for batch in score.batches] == [1, 4, 16, 19]


def test_slow_batches_shrink_and_quick_small_ones_do_not():
    size = BatchSize(tokens=1000)
    size.took(1000, 2.0)
    assert size.tokens == 100
    size.took(10, 0.01)
    assert size.tokens == 100
    size.took(100, 0.001)
    assert size.tokens == 400


def test_overflow_is_remembered():
    score = Scorer(fits=2)
    size = BatchSize(tokens=10_000)
    found = score_rows(rows(*[8] * 9), 2, score, size, max_rows=100)
    assert not np.isnan(found).any()
    assert {len(batch) for batch in score.batches} <= {1, 2}
    size.took(10, 1e-6)
    assert size.ceiling is not None
    assert size.tokens <= size.ceiling < 3 * 10


def test_single_row_that_does_not_fit():
    with pytest.raises(ModelError, match="single row of 12 tokens; shorten"):
        score_rows(rows(4, 10), 2, Scorer(fits=0), BatchSize(10_000), max_rows=100)


def test_stopped_between_batches():
    score = Scorer()
    found = score_rows(
        rows(5, 9, 7), 2, score, BatchSize(0, ceiling=0), 100, lambda: len(score.batches) == 2
    )
    assert score.batches == [[9], [7]]
    np.testing.assert_array_equal(np.isnan(found[:, 0]), [True, False, False])
