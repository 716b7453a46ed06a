import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_engine import SparseFourier, fit, noise_floor, r2, readings, recovery, removal_curve
from spex_engine.designs import enumerate_masks
from spex_engine.faithfulness import NoiseFloor, Reading, Recovery, removal_masks

MASKS = np.array([[False, False], [True, False], [False, True], [True, True]])


def constant(value: float) -> SparseFourier:
    return SparseFourier(2, "t", ((),), np.array([value]))


def test_definition() -> None:
    f = SparseFourier(2, "t", ((0,),), np.array([-1.0]))  # predicts -1, 1, -1, 1
    values = np.array([-1.0, 2.0, -1.0, 0.0])
    assert r2(f, MASKS, values) == pytest.approx(1 - 2.0 / 6.0)
    assert r2(f, MASKS, [-1, 1, -1, 1]) == 1.0
    assert r2(constant(0.0), MASKS, values) == 0.0
    assert r2(constant(10.0), MASKS, values) < -10


def test_values_without_variation() -> None:
    assert r2(constant(0.1), MASKS, [0.1] * 4) == 1.0
    assert r2(constant(0.1 + 1e-16), MASKS, [0.1] * 4) == 1.0
    assert math.isnan(r2(constant(0.2), MASKS, [0.1] * 4))
    assert r2(constant(0.0), MASKS[:1], [0.0]) == 1.0


def test_unfit_input() -> None:
    with pytest.raises(ValueError, match=r"masks: shape \(4, 1\), expected \(m, 2\)"):
        r2(constant(0.0), MASKS[:, :1], np.zeros(4))
    with pytest.raises(ValueError, match=r"values: shape \(3,\), expected \(4,\)"):
        r2(constant(0.0), MASKS, np.zeros(3))
    with pytest.raises(ValueError, match="at least one mask"):
        r2(constant(0.0), MASKS[:0], [])
    with pytest.raises(ValueError, match="values: 1 of 4 are NaN"):
        r2(constant(0.0), MASKS, [0, 1, 2, np.nan])


# ---- removal -----------------------------------------------------------------------------------


def either(masks: np.ndarray) -> np.ndarray:
    """4 where one of the first two is kept, 1 more for the third, 2 less for the last."""
    return 4.0 * (masks[:, 0] | masks[:, 1]) + masks[:, 2] - 2.0 * masks[:, -1]


def exact(game: Callable[[np.ndarray], np.ndarray], n: int) -> SparseFourier:
    masks = enumerate_masks(n)
    return fit(masks, game(masks), method="exact")


def test_removal_follows_the_fit_and_measures_the_game() -> None:
    curve = removal_curve(exact(either, 6), lambda masks: either(masks) + 10.0)
    dropped = [tuple(np.flatnonzero(~mask).tolist()) for mask in curve.masks]
    # one: the last counts most; two: the first two are an OR, which no single drop shows
    assert dropped[:4] == [(), (5,), (0, 1), (0, 1, 2)]
    np.testing.assert_allclose(curve.values[:4], [13.0, 15.0, 9.0, 8.0])
    np.testing.assert_allclose(curve.change[:4], [0.0, 2.0, 4.0, 5.0])
    np.testing.assert_allclose(curve.relative[1], 2 / 13)
    assert not curve.masks[-1].any()
    assert curve.area == pytest.approx(np.mean([2, 4, 5, 5, 5, 3]))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_removal_of_small_functions_is_the_best_there_is(seed: int) -> None:
    """Against all masks that lack r features; 64 ways hold all there are of seven features."""
    rng = np.random.default_rng(seed)
    masks = enumerate_masks(7)
    f = fit(masks, rng.normal(size=128), method="exact")
    falls = np.abs(f.predict(masks[-1:]) - f.predict(masks))
    found = np.abs(f.predict(masks[-1:]) - f.predict(removal_masks(f)))
    dropped = (~masks).sum(axis=1)
    np.testing.assert_allclose(found, [falls[dropped == r].max() for r in range(8)], atol=1e-12)


def test_removal_of_many_features() -> None:
    n = 80
    weights = -np.linspace(1.0, 2.0, n)
    f = SparseFourier(n, "t", tuple((i,) for i in range(n)), weights / 2)
    masks = removal_masks(f, most=20)
    assert masks.shape == (21, n)
    np.testing.assert_array_equal((~masks).sum(axis=1), np.arange(21))
    assert all(not mask[n - r :].any() for r, mask in enumerate(masks))


def test_removal_with_nothing_to_remove_and_with_failures() -> None:
    f = exact(either, 3)
    curve = removal_curve(f, lambda masks: np.where(masks.all(axis=1), 0.0, np.nan))
    assert np.isnan(curve.change[1:]).all()
    assert math.isnan(curve.area)
    assert np.isnan(removal_curve(f, lambda masks: np.zeros(len(masks))).relative).all()
    alone = removal_curve(SparseFourier(0, "t", (), np.zeros(0)), lambda masks: np.ones(len(masks)))
    assert alone.masks.shape == (1, 0)
    assert math.isnan(alone.area)
    partly = removal_curve(f, lambda masks: np.where(masks.any(axis=1), either(masks), np.inf))
    assert partly.area == pytest.approx(partly.change[1:3].mean())


def test_removal_of_what_cannot_be() -> None:
    f = exact(either, 3)
    for most in (-1, 4, 1.0, True):
        with pytest.raises(ValueError, match=rf"most: {most}, expected an integer 0\.\.3"):
            removal_masks(f, most)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"game: returned shape \(1,\), expected \(4,\)"):
        removal_curve(f, lambda masks: np.zeros(1))


# ---- recovery ----------------------------------------------------------------------------------


def sparse(**terms: float) -> SparseFourier:
    """Names are the features of a support: ``_`` the constant, ``_02`` features 0 and 2."""
    supports = tuple(tuple(int(i) for i in name[1:]) for name in terms)
    return SparseFourier(5, "t", supports, np.array(list(terms.values())))


TRUTH = sparse(_=9.0, _0=3.0, _12=-2.0, _4=0.5)


def test_recovery_of_the_truth_itself() -> None:
    assert recovery(TRUTH, TRUTH) == Recovery(1.0, 1.0, 1.0, 0.0)


def test_recovery_compares_the_strongest() -> None:
    found = recovery(sparse(_0=3.0, _12=-1.0, _3=0.7, _4=0.6), TRUTH)
    assert (found.precision, found.recall, found.f1) == (2 / 3, 2 / 3, pytest.approx(2 / 3))
    assert found.error == pytest.approx(math.sqrt((1.0 + 0.49 + 0.01) / 13.25))
    top = recovery(sparse(_0=3.0, _12=-1.0, _3=0.7, _4=0.6), TRUTH, k=2)
    assert (top.precision, top.recall, top.error) == (1.0, 1.0, found.error)
    fewer = recovery(sparse(_=1.0, _0=3.0, _3=0.0), TRUTH)
    assert (fewer.precision, fewer.recall, fewer.f1) == (1.0, 1 / 3, pytest.approx(0.5))


def test_recovery_where_there_is_nothing() -> None:
    nothing = sparse(_=1.0)
    assert recovery(nothing, TRUTH) == Recovery(1.0, 0.0, 0.0, 1.0)
    assert recovery(sparse(_3=1.0), TRUTH).f1 == 0.0
    in_vain, rightly = recovery(TRUTH, nothing), recovery(nothing, nothing)
    assert (in_vain.precision, in_vain.recall, in_vain.f1) == (0.0, 1.0, 0.0)
    assert (rightly.precision, rightly.recall, rightly.f1) == (1.0, 1.0, 1.0)
    assert math.isnan(in_vain.error)


def test_error_is_what_the_values_say() -> None:
    """Parseval, against R2 over every mask; shifting the mean is free."""
    f = sparse(_=2.0, _0=2.6, _12=-1.5, _23=0.4)
    masks = enumerate_masks(5)
    values = TRUTH.predict(masks)
    shifted = values - values.mean() + f.predict(masks).mean()
    assert 1 - recovery(f, TRUTH).error ** 2 == pytest.approx(r2(f, masks, shifted))


def test_recovery_of_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="f: 2 features, expected 5 as in truth"):
        recovery(constant(1.0), TRUTH)
    with pytest.raises(ValueError, match="k: 0, expected an integer of 1 or more"):
        recovery(TRUTH, TRUTH, k=0)


# ---- noise -------------------------------------------------------------------------------------


def test_noise_is_told_from_what_differs_between_masks() -> None:
    rng = np.random.default_rng(0)
    repeats = 2.0 * rng.normal(size=(4000, 1)) + 0.5 * rng.normal(size=(4000, 3))
    floor = noise_floor(repeats)
    assert floor.variance == pytest.approx(0.25, rel=0.05)
    assert floor.highest_r2 == pytest.approx(4 / 4.25, abs=0.01)


def test_the_highest_r2_is_that_of_the_true_function() -> None:
    rng = np.random.default_rng(1)
    masks = rng.random((3000, 5)) < 0.5
    repeats = TRUTH.predict(masks)[:, None] + 2.0 * rng.normal(size=(3000, 2))
    repeats[rng.random(repeats.shape) < 0.3] = np.nan
    there = np.isfinite(repeats[:, 0])
    reached = r2(TRUTH, masks[there], repeats[there, 0])
    assert noise_floor(repeats).highest_r2 == pytest.approx(reached, abs=0.03)


def test_noise_by_hand() -> None:
    floor = noise_floor([[1.0, 3.0], [6.0, 6.0]])  # within (2 + 0) / 2; between 2 * (2^2 + 2^2)
    assert floor.variance == 1.0
    assert floor.highest_r2 == pytest.approx(7.5 / 8.5)  # (16 - 1) / 2
    uneven = noise_floor([[1.0, 3.0, np.nan], [6.0, np.nan, np.nan], [np.nan] * 3])
    assert uneven.variance == 2.0  # between 32/3, r0 4/3
    assert uneven.highest_r2 == pytest.approx(6.5 / 8.5)


def test_noise_alone_and_no_noise() -> None:
    alone = noise_floor(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert alone == NoiseFloor(2.0, 0.0)
    assert noise_floor([[1.0, 1.0], [2.0, 2.0]]) == NoiseFloor(0.0, 1.0)
    assert math.isnan(noise_floor([[1.0, 1.0], [1.0, 1.0]]).highest_r2)


@pytest.mark.parametrize(
    ("repeats", "message"),
    [
        ([1.0, 2.0], r"repeats: shape \(2,\), expected \(m, r\)"),
        ([[1.0], [2.0]], "repeats: 2 masks with 2 values, expected two masks or more, one of them"),
        ([[1.0, 2.0], [np.nan, np.nan]], "repeats: 1 masks with 2 values"),
        (np.zeros((0, 3)), "repeats: 0 masks with 0 values"),
        ([["x"]], r"repeats: expected real numbers \(m, r\)"),
    ],
)
def test_no_repeats(repeats: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noise_floor(repeats)  # type: ignore[arg-type]


# ---- readings ----------------------------------------------------------------------------------


def overridden(masks: np.ndarray) -> np.ndarray:
    """Feature 0 helps, but does harm where 1, 2 and 3 are all there; feature 4 always helps."""
    return masks[:, 0] * (1.0 - 2.0 * masks[:, 1:4].all(axis=1)) + masks[:, 4]


def test_where_the_two_readings_disagree() -> None:
    """Feature 0, on average 1 - 2/8; at the full mask -1."""
    masks = enumerate_masks(5)
    found = readings(exact(overridden, 5), masks, overridden(masks))
    assert [reading.feature for reading in found] == list(range(5))
    assert found[0] == Reading(0, pytest.approx(0.75), -1.0, measured=True, disagree=True)
    # features 1 to 3 do harm both ways
    assert found[1] == Reading(1, pytest.approx(-0.25), -2.0, measured=True, disagree=False)
    assert found[4] == Reading(4, pytest.approx(1.0), 1.0, measured=True, disagree=False)


def test_readings_are_predicted_where_not_measured() -> None:
    masks = enumerate_masks(5)
    some = masks[[31, 30, 27]]  # full, without 0, without 2
    found = readings(exact(overridden, 5), some, overridden(some))
    assert [reading.measured for reading in found] == [True, False, True, False, False]
    np.testing.assert_allclose([reading.near_full for reading in found], [-1.0, -2, -2, -2, 1])
    found = readings(exact(overridden, 5), masks[:31], overridden(masks[:31]))
    assert not any(reading.measured for reading in found)


def test_small_readings_of_other_sign_disagree_about_nothing() -> None:
    masks = enumerate_masks(5)
    values = overridden(masks) + 20.0 * masks[:, 4]
    assert not any(r.disagree for r in readings(fit(masks, values, method="exact"), masks, values))
