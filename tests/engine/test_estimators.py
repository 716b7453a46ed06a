"""Each estimator on functions whose coefficients are known."""

import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spex_engine import SparseFourier, fit, interactions
from spex_engine.designs import draw_design, enumerate_masks
from spex_engine.estimators import ESTIMATORS, PLANS, estimator, exact, linear, selection
from spex_engine.estimators.lasso import lasso_path
from spex_engine.faithfulness import r2
from spex_engine.fourier import characters


def truth(n: int, pairs: int, seed: int = 0) -> SparseFourier:
    rng = np.random.default_rng(seed)
    every_pair = list(combinations(range(n), 2))
    chosen = [every_pair[i] for i in rng.permutation(len(every_pair))[:pairs]]
    supports = ((), *((i,) for i in range(n)), *sorted(chosen))
    signs = rng.choice([-1.0, 1.0], len(supports))
    return SparseFourier(n, "truth", supports, signs * rng.uniform(0.5, 1.5, len(supports)))


# ---- exact -------------------------------------------------------------------------------------


@given(st.integers(0, 5).flatmap(lambda n: arrays(np.float64, 2**n, elements=st.floats(-9, 9))))
def test_exact_reproduces_every_value(values: np.ndarray) -> None:
    masks = enumerate_masks(len(values).bit_length() - 1)
    order = np.random.default_rng(0).permutation(len(values))
    f = exact.fit(masks[order], values[order])
    np.testing.assert_allclose(f.predict(masks), values, rtol=0, atol=1e-12)
    assert f.covariance is not None
    assert f.covariance.tolist() == [0.0] * len(f.supports)


def test_exact_leaves_out_zeros_and_rounding() -> None:
    masks = enumerate_masks(4)
    f = exact.fit(masks, masks @ np.array([0.1, 0.2, 0.3, 0.0]))
    assert f.supports == ((), (0,), (1,), (2,))
    assert exact.fit(masks, np.full(16, 0.1)).to_dict() == {(): 0.1}
    assert exact.fit(masks, np.zeros(16)).supports == ()


def test_exact_up_to_an_order_truncates() -> None:
    masks = enumerate_masks(4)
    values = np.random.default_rng(0).normal(size=16)
    everything = exact.fit(masks, values).to_dict()
    kept = exact.fit(masks, values, max_order=2).to_dict()
    assert kept == {s: c for s, c in everything.items() if len(s) <= 2}


def test_exact_takes_the_mean_of_repeated_masks() -> None:
    masks = np.array([[False], [True], [True]])
    assert exact.fit(masks, np.array([1.0, 2.0, 4.0])).to_dict() == {(): 2.0, (0,): -1.0}


def test_exact_needs_every_mask() -> None:
    masks = enumerate_masks(3)
    assert exact.is_complete(masks)
    assert not exact.is_complete(masks[1:])
    assert not exact.is_complete(np.ones((8, 3), bool))
    assert not exact.is_complete(np.ones((8, 100), bool))
    with pytest.raises(ValueError, match=r"shape \(7, 3\), expected all 2\*\*3 masks"):
        exact.fit(masks[1:], np.zeros(7))


# ---- linear, order 1 ---------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(1, 2), (5, 20), (30, 100)])
def test_order_one_recovers_an_additive_function(n: int, m: int) -> None:
    expected = truth(n, 0)
    masks = draw_design(n, m).masks
    f = linear.fit(masks, expected.predict(masks))
    assert f.supports == expected.supports
    # n + 1 samples for n + 1 coefficients leave no way to tell noise: those are shrunk a little
    tolerance = 0.35 if m == n + 1 else 1e-8
    np.testing.assert_allclose(f.coefficients, expected.coefficients, rtol=0, atol=tolerance)


def test_the_constant_is_not_penalised() -> None:
    masks = draw_design(8, 60).masks
    noise = np.random.default_rng(0).normal(size=60)
    near, far = (linear.fit(masks, noise + shift) for shift in (0.0, 1e6))
    assert far.coefficients[0] - near.coefficients[0] == pytest.approx(1e6, rel=1e-12)
    np.testing.assert_allclose(far.coefficients[1:], near.coefficients[1:], atol=1e-6)


def test_pure_noise_is_shrunk_away() -> None:
    masks = draw_design(30, 60, seed=1).masks
    noise = np.random.default_rng(1).normal(size=60)
    design = np.column_stack([np.ones(60), characters(masks, [(i,) for i in range(30)])])
    least_squares = np.linalg.lstsq(design, noise, rcond=None)[0][1:]
    shrunk = linear.fit(masks, noise).coefficients[1:]
    assert np.linalg.norm(shrunk) < 0.5 * np.linalg.norm(least_squares)


def test_error_bars_cover() -> None:
    """Of 2000 coefficients about 95% lie within two standard errors."""
    expected = truth(20, 0)
    masks = draw_design(20, 120).masks
    within = []
    for seed in range(100):
        noise = np.random.default_rng(seed).normal(size=120)
        f = linear.fit(masks, expected.predict(masks) + noise)
        assert f.covariance is not None
        errors = np.abs(f.coefficients - expected.coefficients)
        within.append(errors <= 2 * np.sqrt(np.diagonal(f.covariance)))
    assert 0.92 < np.mean(within) < 0.98


def test_covariance_is_that_of_least_squares_where_the_penalty_is_small() -> None:
    masks = np.random.default_rng(0).random((200, 4)) < 0.8  # characters with a mean
    values = truth(4, 0).predict(masks) + 1e-3 * np.random.default_rng(1).normal(size=200)
    f = linear.fit(masks, values)
    design = characters(masks, f.supports)
    residual = values - f.predict(masks)
    expected = residual @ residual / (200 - 5) * np.linalg.inv(design.T @ design)
    np.testing.assert_allclose(f.covariance, expected, rtol=1e-3, atol=1e-12)


def test_a_fit_that_could_interpolate_does_not_call_itself_certain() -> None:
    """As many samples as coefficients: cross-validation alone would take noise for signal."""
    expected = truth(20, 0)
    within = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        masks = rng.random((21, 20)) < 0.5
        f = linear.fit(masks, expected.predict(masks) + 0.1 * rng.normal(size=21))
        assert f.covariance is not None
        errors = np.abs(f.coefficients - expected.coefficients)
        within.append(errors <= 2 * np.sqrt(np.diagonal(f.covariance)))
    assert np.mean(within) > 0.85


def test_more_features_than_samples() -> None:
    masks = draw_design(50, 20).masks
    f = linear.fit(masks, truth(50, 0).predict(masks))
    assert len(f.supports) == 51
    assert f.covariance is not None
    assert (np.diagonal(f.covariance) > 0).all()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("m", [1, 2, 3, 40])
def test_constant_values(m: int, order: int) -> None:
    masks = draw_design(6, m).masks
    f = linear.fit(masks, np.full(m, 0.1), max_order=order)
    np.testing.assert_allclose(f.predict(enumerate_masks(6)), 0.1, rtol=1e-12)


def test_the_same_mask_again_and_again() -> None:
    f = linear.fit(np.ones((4, 3), bool), np.array([1.0, 2.0, 3.0, 4.0]))
    assert f.to_dict() == {(): 2.5, (0,): 0.0, (1,): 0.0, (2,): 0.0}
    assert f.covariance is None


def test_no_features_at_all() -> None:
    f = linear.fit(np.zeros((4, 0), bool), np.array([1.0, 2.0, 3.0, 4.0]))
    assert f.to_dict() == {(): 2.5}
    assert f.covariance == pytest.approx(np.var([1, 2, 3, 4], ddof=1) / 4)


# ---- linear, higher orders ---------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_order_two_finds_the_pairs(noise: float) -> None:
    expected = truth(20, 8)
    masks = draw_design(20, 250).masks
    values = expected.predict(masks) + noise * np.random.default_rng(0).normal(size=250)
    f = linear.fit(masks, values, max_order=2)
    assert set(expected.supports) <= set(f.supports)
    found = f.to_dict()
    for support, coefficient in expected.to_dict().items():
        assert found[support] == pytest.approx(coefficient, abs=1e-6 + 0.35 * noise)
    false = [abs(c) for s, c in found.items() if s not in expected.supports]
    assert max(false, default=0.0) < 1e-6 + 0.3 * noise


def test_order_three() -> None:
    supports = ((), (0,), (1, 4), (2, 3, 5))
    expected = SparseFourier(8, "truth", supports, np.array([1.0, 2.0, -1.0, 1.5]))
    masks = draw_design(8, 100).masks
    found = linear.fit(masks, expected.predict(masks), max_order=3).to_dict()
    for support, coefficient in expected.to_dict().items():
        assert found[support] == pytest.approx(coefficient, abs=1e-6)


def test_few_samples_let_features_compete() -> None:
    expected = SparseFourier(40, "truth", ((), (3,), (5, 9)), np.array([0.0, 2.0, 2.0]))
    masks = draw_design(40, 100).masks
    f = linear.fit(masks, expected.predict(masks), max_order=2)
    assert {(3,), (5, 9)} <= set(f.supports)
    assert len(f.supports) < 41


def test_with_enough_samples_every_feature_has_an_error_bar() -> None:
    expected = SparseFourier(10, "truth", ((), (5, 9)), np.array([0.0, 2.0]))
    masks = draw_design(10, 100).masks
    values = expected.predict(masks) + 0.1 * np.random.default_rng(0).normal(size=100)
    f = linear.fit(masks, values, max_order=2)
    assert {(i,) for i in range(10)} <= set(f.supports)
    assert all(i.stderr for i in interactions(f, "BII"))


def test_order_two_depends_on_the_seed_only() -> None:
    masks = draw_design(10, 100).masks
    values = truth(10, 5).predict(masks) + np.random.default_rng(0).normal(size=100)
    first, second = (linear.fit(masks, values, max_order=2, seed=4) for _ in range(2))
    assert first.to_dict() == second.to_dict()


def test_too_few_samples_for_interactions() -> None:
    masks = draw_design(5, 9).masks
    f = linear.fit(masks, np.arange(9.0), max_order=2)
    assert max(map(len, f.supports)) == 1


def test_too_many_characters() -> None:
    masks = draw_design(300, 100).masks
    with pytest.raises(ValueError, match="max_order: 3 means 4500250 characters of 300 features"):
        linear.fit(masks, np.zeros(100), max_order=3)


@given(seed=st.integers(0, 100), p=st.integers(1, 30))
@settings(max_examples=20)
def test_lasso_path_is_optimal(seed: int, p: int) -> None:
    """The subgradient conditions: |X'r/m| <= penalty, with equality and b's sign where b != 0."""
    rng = np.random.default_rng(seed)
    columns, target = rng.normal(size=(25, p)), rng.normal(size=25)
    penalties = np.abs(columns.T @ target).max() / 25 * np.geomspace(1, 0.05, 6)
    for penalty, b in zip(penalties, lasso_path(columns, target, penalties), strict=True):
        correlation = columns.T @ (target - columns @ b) / 25
        assert np.abs(correlation).max() <= 1.03 * penalty
        active = b != 0
        np.testing.assert_allclose(
            correlation[active], penalty * np.sign(b[active]), atol=0.03 * penalty
        )


def test_lasso_of_empty_columns() -> None:
    path = lasso_path(np.zeros((5, 3)), np.ones(5), np.array([1e-9, 1e-10]))
    assert [b.tolist() for b in path] == [[0.0] * 3] * 2


# ---- auto and the registry ---------------------------------------------------------------------


def test_auto_is_exact_where_every_mask_is_there() -> None:
    masks = enumerate_masks(3)
    assert selection.choose(masks, np.zeros(8)).method == "exact"
    assert fit(masks, np.arange(8.0)).method == "exact"


@pytest.mark.parametrize(("pairs", "order"), [(0, 1), (10, 2)])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_auto_takes_the_order_that_predicts(pairs: int, order: int, noise: float) -> None:
    masks = draw_design(16, 200).masks
    values = truth(16, pairs).predict(masks) + noise * np.random.default_rng(1).normal(size=200)
    choice = selection.choose(masks, values)
    assert (choice.method, choice.max_order) == ("linear", order)
    assert choice.why.startswith(
        f"linear of order {order}: best of the cross-validated R2 (linear of order 1 "
    )
    assert max(map(len, selection.fit(masks, values).supports)) == order


def test_auto_goes_as_far_as_it_may() -> None:
    three = SparseFourier(8, "truth", ((0,), (1, 2, 3)), np.array([1.0, 2.0]))
    masks = draw_design(8, 120).masks
    values = three.predict(masks)
    assert selection.choose(masks, values, max_order=3).max_order == 3
    assert (1, 2, 3) in selection.fit(masks, values, max_order=3).to_dict()
    only = selection.choose(masks, values, max_order=1)
    assert (only.max_order, only.why) == (1, "linear of order 1: no higher order was asked for")


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([1 - 1e-4, 1.0, 1.0], ("linear", 1)),  # as good: the plainest
        ([0.5, 0.8, 0.9], ("gp", None)),
        ([0.5, 0.9, 0.8], ("linear", 2)),  # better by far
        ([0.5, 0.9, 0.89], ("gp", None)),  # by less than its standard error
    ],
)
def test_auto_takes_a_lead_for_luck_unless_it_is_clear(
    monkeypatch: pytest.MonkeyPatch, scores: list[float], chosen: tuple[str, int | None]
) -> None:
    monkeypatch.setattr(selection._Contest, "scores", lambda contest: scores)
    monkeypatch.setattr(selection._Contest, "_clearly_better", lambda *_: False)
    choice = selection.choose(draw_design(8, 100).masks, np.arange(100.0))
    assert (choice.method, choice.max_order) == chosen


def test_a_lead_is_clear_beyond_its_standard_error() -> None:
    masks, values = draw_design(8, 60).masks, np.arange(60.0)
    contest = selection._Contest.of(masks, values, seed=0)
    gains = np.random.default_rng(0).normal(0.5, 1.0, size=60)  # mean / error: about 3.9
    contest.errors.extend([np.ones(60) * 9 - gains, np.ones(60) * 9])
    assert contest._clearly_better(0, 1)
    assert not contest._clearly_better(1, 0)
    contest.errors[0] = np.ones(60) * 9 - np.resize([9.0, -8.9], 60)  # mean / error: 0.04
    assert not contest._clearly_better(0, 1)


@pytest.mark.parametrize("method", ["gp", "proxyspex", "linear", "auto"])
def test_the_unit_of_the_values_does_not_matter(method: str) -> None:
    masks = np.random.default_rng(0).integers(0, 2, (120, 8)).astype(np.bool_)
    values = masks[:, 0] + 2.0 * masks[:, 1] * masks[:, 2]
    small = fit(masks, 1e-15 * values, method=method)
    assert r2(small, masks, 1e-15 * values) == pytest.approx(
        r2(fit(masks, values, method=method), masks, values), abs=0.01
    )


def test_the_same_mask_again_and_again_is_no_contest() -> None:
    masks = np.ones((50, 6), np.bool_)
    choice = selection.choose(masks, np.random.default_rng(0).normal(size=50))
    assert choice.method == "linear"
    assert "the same mask again and again" in choice.why


def test_auto_tries_trees_where_the_others_leave_much_unexplained() -> None:
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, (300, 20)).astype(np.bool_)
    hard = masks[:, 0] * masks[:, 1:4].sum(axis=1) * masks[:, 5] + rng.normal(size=300)
    assert "ProxySPEX" in selection.choose(masks, hard).why
    assert "ProxySPEX" not in selection.choose(masks, hard, trees=False).why
    assert "ProxySPEX" not in selection.choose(masks, 1.0 * masks[:, 0] * masks[:, 1]).why


def test_auto_says_why_trees_were_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = draw_design(12, 100).masks
    noise = np.random.default_rng(0).normal(size=100)
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    assert "ProxySPEX was not tried: method: 'proxyspex' needs LightGBM" in (
        selection.choose(masks, noise).why
    )
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert "LightGBM and torch do not get on" in selection.choose(masks, noise).why


def test_auto_tries_no_pairs_on_few_samples() -> None:
    choice = selection.choose(draw_design(64, 200).masks, np.arange(200.0))
    assert "order 2" not in choice.why
    few = selection.choose(draw_design(8, 12).masks, np.arange(12.0))
    assert few.why == "linear of order 1: 12 masks are too few for pairs"


def test_auto_is_not_taken_in_by_paired_masks() -> None:
    """Characters of even order are equal on a mask and its complement: no fold may part them."""
    n = 23
    four = [tuple(np.random.default_rng(seed).permutation(n)[:4]) for seed in range(12)]
    supports = tuple(tuple(sorted(map(int, support))) for support in four)
    game = SparseFourier(n, "even", supports, np.ones(len(supports)))
    masks = draw_design(n, 500).masks
    f = selection.fit(masks, game.predict(masks))
    unseen = np.random.default_rng(99).integers(0, 2, (800, n)).astype(np.bool_)
    assert r2(f, unseen, game.predict(unseen)) > -0.1  # nothing to be learnt, nothing invented


def test_auto_takes_the_gaussian_process_where_it_predicts_best() -> None:
    n, rng = 24, np.random.default_rng(0)
    masks = rng.integers(0, 2, (300, n)).astype(np.bool_)
    values = np.tanh(masks[:, :6].sum(axis=1) - 3.0) * (1 + masks[:, 7] * masks[:, 8])
    choice = selection.choose(masks, values)
    assert choice.method == "gp"
    assert choice.why.startswith("Gaussian process: best of")
    assert selection.fit(masks, values).method == "gp"


@pytest.mark.parametrize("method", ["auto", "linear"])
@pytest.mark.parametrize("m", [1, 2, 5])
def test_hardly_any_samples(method: str, m: int) -> None:
    masks = draw_design(4, m).masks
    f = fit(masks, np.arange(float(m)), method=method)
    assert f.n_features == 4
    assert np.isfinite(f.predict(masks)).all()


def test_registry() -> None:
    assert set(ESTIMATORS) == {"auto", "exact", "gp", "linear", "proxyspex", "spex"}
    assert set(PLANS) == {"spex"}
    assert estimator("exact") is exact.fit


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="method: 'lime', expected one of 'auto', 'exact', 'lin"):
        fit(np.ones((1, 1), bool), [1.0], method="lime")


@pytest.mark.parametrize(
    ("masks", "values", "message"),
    [
        (np.ones((2, 3)), [1.0, 2.0], r"masks: got float64, expected a bool array \(m, n\)"),
        (np.ones(3, bool), [1.0] * 3, r"masks: shape \(3,\), expected \(m, n\)"),
        (np.ones((2, 3), bool), [1.0, np.nan], "values: 1 of 2 are NaN or infinite"),
        (np.ones((2, 3), bool), [1.0], r"values: shape \(1,\), expected \(2,\)"),
        (np.ones((0, 3), bool), [], "expected at least one mask"),
    ],
)
def test_fit_on_unfit_samples(masks: np.ndarray, values: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(masks, values)
