"""Batches: what goes in one, how their size is learnt, what is given up and when."""

from __future__ import annotations

import time
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_engine.backends.batching import (
    BatchSize,
    OutOfMemoryError,
    Run,
    padded,
    score_rows,
)
from spex_engine.wire import ModelError

TARGET = np.array([7, 8])


def rows(*lengths: int) -> list[np.ndarray]:
    """Rows that begin with different ids."""
    return [np.arange(100 * i, 100 * i + n) for i, n in enumerate(lengths)]


class Pass:
    """Scores a place by the sum of all ids up to it and the wanted token; remembers its batches.

    What it keeps of a row is those very ids, so that a wrong past shows in the scores.
    """

    def __init__(self, fits: int = 10**9, seconds: float = 0.0, shares: bool = False) -> None:
        self.fits, self.seconds, self.shares = fits, seconds, shares
        self.overhead = 64.0
        self.kept_tokens = self.past_tokens = self.max_logits = 10**9
        self.batches: list[list[int]] = []
        self.held = 0

    def __call__(self, runs):
        if len(runs) > self.fits:
            raise OutOfMemoryError
        time.sleep(self.seconds)
        self.batches.append([len(run.ids) - run.start for run in runs])
        scores, states = [], []
        for run in runs:
            past = [] if run.past is None else run.past[: run.start]
            seen = np.cumsum([*past, *run.ids[run.start :]])
            scores.append(seen[run.places] + run.wanted / 10)
            states.append(run.ids[: run.keep].copy() if run.keep else None)
        return scores, states

    @property
    def read(self) -> int:
        return sum(map(sum, self.batches))


def expected(row, *targets) -> list[float]:
    found = []
    for target in targets:
        seen = np.cumsum([*row, *target])
        found += [seen[len(row) - 1 + t] + token / 10 for t, token in enumerate(target)]
    return found


def scored(given, targets, forward, size, should_stop=None):
    found = np.full((len(given), sum(map(len, targets))), np.nan)
    seen: Counter[int] = Counter()
    for reached, scores in score_rows(given, targets, forward, size, should_stop):
        found[reached] = scores
        seen.update(reached.tolist())
    assert set(seen.values()) <= {1}
    return found


# ---- what is in a batch ----------------------------------------------------------------------


def test_input_order_and_equal_rows_once():
    given = rows(3, 5, 2)
    given = [*given, given[0].copy(), given[2].copy()]
    forward = Pass()
    found = scored(given, [TARGET], forward, BatchSize(1000))
    np.testing.assert_allclose(found, [expected(row, TARGET) for row in given])
    assert forward.batches == [[6, 4, 3]]  # the target's last token is not read


def test_bounded_by_padded_tokens_and_by_logits():
    forward = Pass(seconds=0.02)
    forward.max_logits = 6
    size = BatchSize(tokens=24, ceiling=24)
    scored(rows(10, 10, 4, 4, 4, 4, 4), [TARGET], forward, size)
    assert sorted(forward.batches) == [[5, 5], [5, 5, 5], [11, 11]]


def test_starts_with_one_row_and_grows():
    forward = Pass()
    scored(rows(*[9] * 40), [TARGET], forward, BatchSize())
    assert [len(batch) for batch in forward.batches] == [1, 4, 16, 19]


def test_targets_that_differ_in_their_last_token_share_a_row():
    forward = Pass()
    targets = [np.array([5]), np.array([6]), np.array([5, 6]), np.array([5, 9])]
    given = rows(4, 3)
    found = scored(given, targets, forward, BatchSize(1000))
    np.testing.assert_allclose(found, [expected(row, *targets) for row in given])
    assert sorted(chain(*forward.batches)) == [3, 4, 4, 5]


def test_padding_and_places():
    past = np.arange(3)
    runs = [
        Run(np.arange(10, 16), 3, past, 0, np.array([4, 5]), np.zeros((1, 2), dtype=int)),
        Run(np.array([1, 2]), 0, None, 0, np.array([1]), np.zeros((1, 1), dtype=int)),
    ]
    ids, places = padded(runs)
    assert ids.tolist() == [[13, 14, 15], [1, 2, 0]]
    assert places.tolist() == [[1, 2], [1, 1]]


# ---- what rows share --------------------------------------------------------------------------


ROWS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=60), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.sampled_from([0, 50, 1000]), st.sampled_from([1, 60, 10**6]), st.integers(1, 3))
def test_any_rows_score_as_they_would_alone(given_rows, tokens, kept, n_targets):
    given = [np.array([9] * 200 + row) for row in given_rows]  # so that sharing pays
    targets = [np.array([5] * t + [t]) for t in range(1, n_targets + 1)]
    forward = Pass(shares=True)
    forward.kept_tokens = forward.past_tokens = kept
    size = BatchSize(tokens, adapts=False)
    found = scored(given, targets, forward, size)
    np.testing.assert_allclose(found, [expected(row, *targets) for row in given])
    if len({row.tobytes() for row in given}) > 1:
        assert forward.read < sum(len(row) for row in given) * n_targets


def test_a_preamble_and_targets_are_read_once():
    preamble = np.arange(200)
    given = [np.concatenate([preamble, row]) for row in rows(*[20] * 6)]
    targets = [np.array([1, 2, 3]), np.array([4, 5, 6])]
    forward = Pass(shares=True)
    scored(given, targets, forward, BatchSize(10_000))
    # The last token of each row again for its second target: there the logits are wanted.
    assert forward.read == 200 + 6 * (20 + 2 + 1 + 2)


def test_states_are_given_up_when_nobody_waits_for_them():
    class Counting(Pass):
        most = 0

        def __call__(self, runs):
            scores, states = super().__call__(runs)
            alive.update(id(state) for state in states if state is not None)
            return scores, states

    alive: set[int] = set()
    random = np.random.default_rng(0)
    blocks = random.integers(0, 10**6, (40, 30))
    given = [
        np.concatenate([np.arange(50), blocks[i], blocks[j]]) for i in range(8) for j in range(8)
    ]
    forward = Counting(shares=True)
    forward.kept_tokens = 100  # the deeper ones first, so that few are held
    found = scored(given, [TARGET], forward, BatchSize(90, adapts=False))
    np.testing.assert_allclose(found, [expected(row, TARGET) for row in given])
    assert forward.read <= 50 + 8 * 30 + 64 * 31
    first_leaf = next(i for i, batch in enumerate(forward.batches) if max(batch) == 31)
    assert first_leaf <= 3


# ---- how large -------------------------------------------------------------------------------


def test_slow_batches_shrink_and_quick_small_ones_do_not():
    size = BatchSize(tokens=1000)
    size.took(1000, 0.625)
    assert size.tokens == 800
    size.took(10, 0.01)
    assert size.tokens == 800
    size.took(800, 0.1)
    assert size.tokens == 3200
    size.took(3200, 40.0)
    assert size.tokens == 1600  # at once no further: the machine may have been busy


def test_size_counts_what_a_pass_costs_beside_its_tokens():
    size = BatchSize(overhead=64)
    size.took(36, 0.1)  # as long as 100 tokens
    assert size.tokens == 144  # four times as much, although 436 would fit
    size.took(936, 0.5)
    size.took(936, 0.5)
    assert size.tokens == 936
    for _ in range(9):
        size.took(200, 3.0)
    assert size.tokens == 4 * 64  # less would mostly wait for the model's weights


def test_size_stays_where_it_must_repeat():
    size = BatchSize(tokens=100, adapts=False)
    size.took(100, 10.0)
    size.took(100, 0.001)
    assert size.tokens == 100


# ---- out of memory, stopped ------------------------------------------------------------------


@pytest.mark.parametrize("shares", [False, True])
def test_overflow_is_remembered(shares):
    forward = Pass(fits=2, shares=shares)
    size = BatchSize(tokens=10_000)
    given = [np.concatenate([np.arange(50), row]) for row in rows(*[8] * 9)]
    found = scored(given, [TARGET], forward, size)
    np.testing.assert_allclose(found, [expected(row, TARGET) for row in given])
    assert {len(batch) for batch in forward.batches} <= {1, 2}
    size.took(10, 1e-6)
    assert size.ceiling is not None
    assert size.tokens <= size.ceiling < 3 * 60


def test_single_row_that_does_not_fit():
    with pytest.raises(ModelError, match="single row of 11 tokens; shorten"):
        scored(rows(4, 10), [TARGET], Pass(fits=0), BatchSize(10_000))


def test_states_are_given_up_where_they_take_the_memory_that_is_lacking():
    class Tight(Pass):
        def __call__(self, runs):
            if any(run.past is not None for run in runs):
                raise OutOfMemoryError
            return super().__call__(runs)

    forward = Tight(shares=True)
    given = [np.concatenate([np.arange(50), row]) for row in rows(*[8] * 5)]
    found = scored(given, [TARGET], forward, BatchSize(10_000))
    np.testing.assert_allclose(found, [expected(row, TARGET) for row in given])
    assert not forward.shares  # and no more in later calls


def test_stopped_between_batches():
    forward = Pass()
    size = BatchSize(0, ceiling=0)
    found = scored(rows(5, 9, 7), [TARGET], forward, size, lambda: len(forward.batches) == 2)
    assert forward.batches == [[10], [8]]
    np.testing.assert_array_equal(np.isnan(found[:, 0]), [True, False, False])


def test_nothing_to_score():
    assert scored([], [TARGET], Pass(shares=True), BatchSize()).shape == (0, 2)
