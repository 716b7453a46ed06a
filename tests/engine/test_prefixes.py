"""Which rows continue which: nothing read twice, nothing kept that does not pay."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_engine.backends.prefixes import Prefixes, no_prefixes, prefix_trie, share_prefixes

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=24)


def as_ids(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int64) for row in rows]


def limits(rows: list[np.ndarray]) -> list[int]:
    return [len(row) - 1 for row in rows]


def read(plan: Prefixes, rows: list[np.ndarray]) -> int:
    return sum(map(len, rows)) - int(plan.shared.sum())


def assert_sound(plan: Prefixes, rows: list[np.ndarray], most: list[int]) -> None:
    """Every row continues one that begins the same, none waits for itself."""
    for i, (parent, shared) in enumerate(zip(plan.parents, plan.shared, strict=True)):
        assert 0 <= shared <= most[i]
        assert (shared > 0) == (parent >= 0)
        if parent >= 0:
            assert rows[parent][:shared].tolist() == rows[i][:shared].tolist()
            assert len(rows[parent]) >= shared
    depths = plan.depths()
    above = plan.parents >= 0
    assert (depths[~above] == 0).all()
    assert (depths[above] == depths[plan.parents[above]] + 1).all()


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_the_trie_reads_every_edge_once(given_rows: list[list[int]]) -> None:
    rows = as_ids([list(row) for row in {tuple(row) for row in given_rows}])
    # A last token of its own for each row, so that the limit takes nothing off.
    rows = [np.append(row, 10 + i) for i, row in enumerate(rows)]
    plan = prefix_trie(rows, limits(rows))
    assert_sound(plan, rows, limits(rows))
    edges = {tuple(row[: at + 1]) for row in rows for at in range(len(row))}
    assert read(plan, rows) == len(edges)
    assert plan.depths().max() <= np.log2(len(rows))


@settings(max_examples=200, deadline=None)
@given(ROWS, st.integers(0, 3), st.floats(0, 20))
def test_any_plan_is_sound(given_rows: list[list[int]], less: int, overhead: float) -> None:
    rows = as_ids(given_rows)
    most = [max(0, len(row) - 1 - less) for row in rows]
    for plan in (prefix_trie(rows, most), share_prefixes(rows, most, overhead)):
        assert_sound(plan, rows, most)
    assert_sound(no_prefixes(len(rows)), rows, most)


def test_a_fixed_preamble_is_read_once() -> None:
    random = np.random.default_rng(0)
    preamble = np.arange(100)
    rows = [np.concatenate([preamble, random.permutation(40) + 200]) for _ in range(50)]
    plan = share_prefixes(rows, limits(rows), overhead=64.0)
    assert (plan.parents < 0).sum() == 1
    assert (plan.shared[plan.parents >= 0] >= 100).all()


def near_full(n: int, m: int, size: int, drops: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    ids = np.arange(n * size).reshape(n, size)
    masks = np.ones((m, n), dtype=bool)
    for mask in masks:
        mask[random.choice(n, random.integers(1, drops + 1), replace=False)] = False
    return [ids[mask].ravel() for mask in np.unique(masks, axis=0)]


def test_near_full_masks_share_more_than_the_full_prompts_beginning() -> None:
    rows = near_full(64, 512, 3, drops=3)
    whole = sum(map(len, rows))
    trunk = share_prefixes(rows, limits(rows), overhead=1e9)
    assert read(trunk, rows) == whole  # a pass may cost so much that none is worth it
    plan = share_prefixes(rows, limits(rows), overhead=64.0)
    assert_sound(plan, rows, limits(rows))
    assert read(plan, rows) < 0.45 * whole
    assert plan.depths().max() >= 2


def test_a_deeper_plan_must_earn_its_passes() -> None:
    rows = near_full(64, 256, 3, drops=3)
    plans = [share_prefixes(rows, limits(rows), overhead) for overhead in (0, 200, 2000, 10**6)]
    depths = [int(plan.depths().max()) for plan in plans]
    assert depths == sorted(depths, reverse=True)
    assert depths[0] > depths[-1] == 0
    assert all(read(a, rows) <= read(b, rows) for a, b in pairwise(plans))


def test_what_two_rows_share_briefly_is_read_twice() -> None:
    rows = as_ids([[1, 2, 3, 10, 11, 12], [1, 2, 3, 20, 21, 22]])
    assert share_prefixes(rows, limits(rows), overhead=0.0).parents.tolist() == [-1, -1]


def test_a_long_chain_of_ever_shorter_prompts() -> None:
    rows = [np.arange(n) for n in range(1, 1500)]
    plan = prefix_trie(rows, limits(rows))
    assert_sound(plan, rows, limits(rows))
    assert read(plan, rows) < 2 * 1499  # each but one reads its last token again


@pytest.mark.parametrize("rows", [[], [[1, 2]]])
def test_none_and_one(rows: list[list[int]]) -> None:
    plan = share_prefixes(as_ids(rows), limits(as_ids(rows)), overhead=1.0)
    assert plan.parents.tolist() == [-1] * len(rows)
