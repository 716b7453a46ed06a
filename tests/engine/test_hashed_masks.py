"""Masks that outlive edits: what is drawn again, and that they are as random as others."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from spex_engine.designs import Design, draw_design
from spex_engine.first_task import test_sizes as sizes_held_out
from spex_engine.fourier import Masks
from spex_engine.hashed_masks import MAX_SOLVED, HashedMasks, _solved


def identities(n: int) -> list[bytes]:
    return [f"segment {i}".encode() for i in range(n)]


def design(size: int, names: list[bytes], seed: int = 0) -> Design:
    n_test, n_near = sizes_held_out(size) if size < 2 ** len(names) else (0, 0)
    return draw_design(len(names), size, n_test, seed, n_near, names)


def kept(masks: Masks, names: list[bytes]) -> set[tuple[bytes, ...]]:
    """Each mask as what it keeps: what a model would read."""
    return {tuple(itertools.compress(names, mask)) for mask in masks.tolist()}


@pytest.mark.parametrize(
    ("n", "size", "lost"),
    [(8, 100, 0.15), (8, 256, 0.0), (20, 256, 0.12), (20, 1024, 0.05), (60, 256, 0.15)],
)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_masks_that_leave_an_edited_segment_out_are_drawn_again(
    n: int, size: int, lost: float, where: float
) -> None:
    names = identities(n)
    at = round(where * (n - 1))
    before = kept(design(size, names).masks, names)
    names[at] = b"edited"
    after = kept(design(size, names).masks, names)
    without = {mask for mask in before if f"segment {at}".encode() not in mask}
    assert len(without - after) <= lost * len(without)
    assert len(without & after) >= size // 4


@pytest.mark.parametrize(("n", "size"), [(7, 64), (20, 512), (60, 512)])
def test_insertions_and_deletions_leave_what_they_can(n: int, size: int) -> None:
    names = identities(n)
    before = kept(design(size, names).masks, names)
    for other in ([*names[:3], b"new", *names[3:]], names[:3] + names[4:]):
        after = kept(design(size, other).masks, other)
        assert len(before & after) >= 0.36 * size


@given(st.integers(1, 24), st.integers(0, 3), st.integers(0, 3), st.data())
@settings(max_examples=30, deadline=None)
def test_designs_are_sound_and_depend_on_seed_and_identities_only(
    n: int, seed: int, near: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, min(2**n, 80)))
    n_test = min(size // 4, max(0, size - n - 4))
    n_near = min(near, max(0, size - n_test - n - 4)) if n > 3 else 0
    names = identities(n)
    found, again = (draw_design(n, size, n_test, seed, n_near, names) for _ in range(2))
    np.testing.assert_array_equal(found.masks, again.masks)
    np.testing.assert_array_equal(found.held_out, again.held_out)
    assert len(np.unique(found.masks, axis=0)) == len(found.masks) == size
    assert found.held_out.sum() == n_test + n_near
    dropped = n - found.masks[list(found.near_full)].sum(axis=1)
    assert len(dropped) == n_near
    assert ((dropped >= 1) & (dropped <= 3)).all()
    assert found.masks[0].all()


def test_seeds_and_streams_differ() -> None:
    names = identities(20)
    one, other = (kept(design(300, names, seed).masks, names) for seed in (0, 1))
    assert len(one & other) < 100  # anchors, and what chance has
    first, anew = (
        np.concatenate(list(itertools.islice(HashedMasks.of(names, 0).uniform(300, s), 1)))
        for s in (0, 10)
    )
    assert not kept(first, names) & kept(anew, names)


def every_solution(systems: Masks) -> Iterator[Masks]:
    """Oracle: try all masks."""
    n = systems.shape[1]
    for x in itertools.product([False, True], repeat=n):
        for system in systems:
            if not ((system[:, :n] & np.array(x)).sum(axis=1) + system[:, n] & 1).any():
                yield np.array(x)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_linear_systems_are_solved(n: int) -> None:
    systems = np.random.default_rng(n).random((60, n, n + 1)) < 0.5
    found = _solved(systems)
    assert sorted(map(bytes, found)) == sorted(map(bytes, every_solution(systems)))


@pytest.mark.parametrize("n", [16, 70, MAX_SOLVED + 10])
def test_bits_are_fair_and_independent(n: int) -> None:
    """By chi-square tests of all bits, and of all pairs and all threes of ten features."""
    batches = HashedMasks.of(identities(n), 5).uniform(1500, 0)
    signs = 1.0 - 2.0 * next(itertools.islice(batches, 0, None))
    while len(signs) < 1500:
        signs = np.concatenate([signs, 1.0 - 2.0 * next(batches)])
    m = len(signs)
    for order in (1, 2, 3):
        sets = list(itertools.combinations(range(n if order == 1 else 10), order))
        means = np.array([signs[:, s].prod(axis=1).mean() for s in sets])
        assert 1e-3 < chi2.sf(m * float(means @ means), len(sets)) < 1 - 1e-3


def test_a_design_of_many_segments_is_drawn_bit_by_bit() -> None:
    names = identities(MAX_SOLVED + 1)
    before = kept(design(300, names).masks, names)
    inserted = [*names[:9], b"new", *names[9:]]
    after = kept(design(300, inserted).masks, inserted)
    assert len(before & after) >= 80  # half of those without the new one


def test_near_full_masks_drop_each_feature_and_number_alike() -> None:
    batches = HashedMasks.of(identities(12), 0).near_full(3000, 3, 2)
    dropped = ~next(batches)
    counts = np.bincount(dropped.sum(axis=1), minlength=4)
    assert counts[0] == 0
    assert chi2.sf(float(((counts[1:] - 1000) ** 2 / 1000).sum()), 2) > 1e-3
    expected = dropped.sum() / 12
    assert chi2.sf(float(((dropped.sum(axis=0) - expected) ** 2 / expected).sum()), 11) > 1e-3
