import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spex_engine.designs import anchor_masks, draw_design, enumerate_masks


def distinct(masks: np.ndarray) -> int:
    return len({mask.tobytes() for mask in masks})


def test_enumeration_counts_in_binary() -> None:
    assert enumerate_masks(2).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert enumerate_masks(0).shape == (1, 0)
    codes = enumerate_masks(10) @ (1 << np.arange(10))
    assert codes.tolist() == list(range(1024))


@pytest.mark.parametrize("n", [-1, 27])
def test_enumeration_has_an_end(n: int) -> None:
    with pytest.raises(ValueError, match=rf"n_features: {n}, expected 0\.\.26"):
        enumerate_masks(n)


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, int, int, int]:
    n = draw(st.integers(0, 40))
    size = draw(st.integers(1, min(2**n, 300)))
    n_test = draw(st.integers(0, max(0, size - len(anchor_masks(n, size)))))
    return n, size, n_test, draw(st.integers(0, 5))


@given(plans())
def test_distinct_complete_and_reproducible(plan: tuple[int, int, int, int]) -> None:
    n, size, n_test, seed = plan
    design = draw_design(n, size, n_test, seed)
    assert design.masks.shape == (size, n)
    assert design.masks.dtype == np.bool_
    assert distinct(design.masks) == size
    assert design.held_out.sum() == n_test
    again = draw_design(n, size, n_test, seed)
    np.testing.assert_array_equal(again.masks, design.masks)
    np.testing.assert_array_equal(again.held_out, design.held_out)


def test_full_and_empty_then_leave_one_out_then_pairs() -> None:
    n = 12
    masks = draw_design(n, 4 * n).masks
    assert masks[0].all()
    assert not masks[1].any()
    np.testing.assert_array_equal(masks[2 : n + 2], ~np.eye(n, dtype=bool))
    np.testing.assert_array_equal(masks[n + 2 :: 2], ~masks[n + 3 :: 2])


def test_small_budgets_spend_nothing_on_leave_one_out() -> None:
    n = 12
    masks = draw_design(n, 4 * n - 1).masks
    np.testing.assert_array_equal(masks[2:-1:2], ~masks[3::2])
    assert not (masks.sum(axis=1) == n - 1).all()


def test_random_masks_are_uniform() -> None:
    masks = draw_design(100, 2000, 200, seed=3).masks[102:]
    assert masks.mean() == pytest.approx(0.5, abs=0.005)
    assert np.abs(masks.mean(axis=0) - 0.5).max() < 0.05
    agreement = 1 - 2 * (masks[:, :1] ^ masks[:, 1:]).mean(axis=0)
    assert np.abs(agreement).max() < 0.11  # five standard deviations


def test_every_mask_in_random_order() -> None:
    masks = draw_design(6, 64, 16, seed=1).masks
    assert distinct(masks) == 64
    codes = masks[8:] @ (1 << np.arange(6))
    assert np.abs(np.corrcoef(np.arange(len(codes)), codes)[0, 1]) < 0.4


def test_held_out_masks_are_random_ones_and_evenly_spread() -> None:
    design = draw_design(20, 400, 60, seed=1)
    assert not design.held_out[:22].any()
    for tenth in np.array_split(design.held_out[22:], 10):
        assert tenth.sum() == pytest.approx(6, abs=1)


def test_seeds_differ() -> None:
    assert (draw_design(20, 90, seed=0).masks != draw_design(20, 90, seed=1).masks).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 9), r"size: 9, expected 1\.\.2\*\*3"),
        ((3, 0), r"size: 0, expected 1\.\.2\*\*3"),
        ((10, 20, 19), r"n_test: 19, expected 0\.\.18"),
        ((10, 20, -1), r"n_test: -1, expected 0\.\.18"),
    ],
)
def test_what_cannot_be_had(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_design(*arguments)
