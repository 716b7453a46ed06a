"""Values of known noise, and values that are only bounds: what the fits make of them."""

import itertools
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal, truncnorm

from spex_engine import Explanation, SparseFourier, explain, recovery
from spex_engine.designs import Design, enumerate_masks
from spex_engine.estimators import ESTIMATORS, linear
from spex_engine.estimators.censored import imputed, truncated
from spex_engine.estimators.spectral_gp import Posterior
from spex_engine.estimators.spectral_prior import (
    kernel,
    negative_log_posterior,
    prior_centre,
)
from spex_engine.evaluation import Portion
from spex_engine.fourier import Floats, Masks, characters
from spex_engine.judging import judged
from spex_engine.wire import Faithfulness


def some_masks(m: int, n: int, seed: int = 0) -> Masks:
    return np.random.default_rng(seed).random((m, n)) < 0.5


def truth(n: int, pairs: int = 3, seed: int = 0) -> SparseFourier:
    rng = np.random.default_rng(seed)
    supports = [(), *((i,) for i in range(n)), *((2 * i, 2 * i + 1) for i in range(pairs))]
    return SparseFourier(n, "truth", tuple(supports), rng.normal(size=len(supports)))


def noises(m: int, seed: int = 1) -> tuple[Floats, Floats]:
    """Noise of which a third is large, and its variances."""
    rng = np.random.default_rng(seed)
    variances = np.where(rng.random(m) < 0.4, 9.0, 0.01)
    return rng.normal(size=m) * np.sqrt(variances), variances


# ---- linear --------------------------------------------------------------------------------------


def test_generalised_least_squares() -> None:
    """Oracle: ``(X'V^-1 X)^-1 X'V^-1 y`` and its covariance, with the true V."""
    n, m, common = 6, 3000, 0.25
    masks, f = some_masks(m, n), truth(n, 0)
    noise, variances = noises(m)
    values = f.predict(masks) + noise + np.random.default_rng(2).normal(size=m) * np.sqrt(common)
    design = np.column_stack([np.ones(m), characters(masks, [(i,) for i in range(n)])])
    weighted = design.T / (common + variances)
    covariance = np.linalg.inv(weighted @ design)
    expected = covariance @ weighted @ values
    fitted = linear.fit(masks, values, variances=variances)
    deviations = np.sqrt(np.diagonal(covariance))
    assert fitted.covariance is not None
    assert np.abs((fitted.coefficients - expected) / deviations).max() < 0.1
    np.testing.assert_allclose(np.sqrt(np.diagonal(fitted.covariance)), deviations, rtol=0.1)
    plain = linear.fit(masks, values)
    assert np.abs((plain.coefficients - expected) / deviations).max() > 1.0


def test_whole_weights_are_samples_said_several_times() -> None:
    masks, rng = some_masks(300, 5), np.random.default_rng(0)
    values, times = truth(5, 0).predict(masks) + rng.normal(size=300), rng.integers(1, 4, 300)
    columns = characters(masks, [(i,) for i in range(5)])
    weighted, _ = linear.ridge(columns, values, times / times.mean())
    repeated, _ = linear.ridge(np.repeat(columns, times, axis=0), np.repeat(values, times))
    np.testing.assert_allclose(weighted, repeated, rtol=0.01, atol=0.002)  # penalties differ


def test_only_the_ratio_of_weights_matters() -> None:
    """Folds have weights of another mean than all samples."""
    masks, rng = some_masks(60, 5), np.random.default_rng(0)
    columns = characters(masks, [(i,) for i in range(5)])
    values = 3.0 + truth(5, 0).predict(masks) + 0.05 * rng.normal(size=60)
    weights = rng.random(60)
    for found, expected in zip(
        linear.ridge(columns, values, 1.3 * weights),
        linear.ridge(columns, values, weights),
        strict=True,
    ):
        assert found is not None
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    even, plain = (linear.ridge(columns, values, w)[0] for w in (np.full(60, 7.0), None))
    np.testing.assert_allclose(even, plain)


def test_noise_that_all_values_share_is_no_news() -> None:
    masks = some_masks(200, 8)
    values = truth(8, 0).predict(masks) + np.random.default_rng(0).normal(size=200)
    with_it, without = (
        linear.fit(masks, values, max_order=2, variances=v) for v in (np.full(200, 0.7), None)
    )
    assert with_it.supports == without.supports
    np.testing.assert_allclose(with_it.coefficients, without.coefficients)


def test_what_the_noise_does_not_explain_is_found() -> None:
    rng = np.random.default_rng(0)
    variances = rng.choice([0.01, 1.0, 4.0], 4000)
    values = rng.normal(size=4000) * np.sqrt(0.3 + variances)
    weights = linear.noise_weights(np.zeros((4000, 0)), values, variances)
    expected = 1 / (0.3 + variances)
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=0.1)
    np.testing.assert_array_equal(
        linear.noise_weights(np.zeros((9, 0)), np.ones(9), np.arange(9.0)), np.ones(9)
    )


# ---- the Gaussian process ------------------------------------------------------------------------


def test_posterior_with_noise_of_their_own() -> None:
    """Oracle: Bayesian regression on all 2^n characters, noise as a diagonal matrix."""
    masks = some_masks(40, 5)
    noise, variances = noises(40)
    values = truth(5, 2).predict(masks) + noise
    posterior = Posterior.of(masks, values, variances)
    assert posterior is not None
    every = [s for size in range(6) for s in itertools.combinations(range(5), size)]
    prior = posterior.prior_variances(every)
    seen = characters(masks, every)
    inverse = np.linalg.inv(
        seen * prior @ seen.T + np.diag(posterior.prior.noise + variances / posterior.scale**2)
    )
    expected = prior * (seen.T @ inverse @ (values - posterior.mean))
    expected[0] += posterior.mean
    np.testing.assert_allclose(posterior.coefficients(every)[0], expected, rtol=1e-6, atol=1e-9)


def test_what_the_others_say_of_each() -> None:
    """Oracle: the prediction of a sample by the same process, given the other samples alone."""
    masks = some_masks(30, 5)
    noise, variances = noises(30)
    posterior = Posterior.of(masks, truth(5, 2).predict(masks) + noise, variances)
    assert posterior is not None
    whole = posterior.prior.factor @ posterior.prior.factor.T
    values, scale = whole @ posterior.prior.alpha, posterior.scale
    means, squares = posterior.left_out()
    for i in (0, 7, 29):
        others = np.arange(30) != i
        weights = np.linalg.solve(whole[np.ix_(others, others)], whole[others, i])
        assert means[i] == pytest.approx(posterior.mean + scale * (weights @ values[others]))
        assert squares[i] == pytest.approx(
            scale**2 * (whole[i, i] - weights @ whole[others, i]), rel=1e-6
        )


def test_density_and_gradient_with_noise_of_their_own() -> None:
    rng = np.random.default_rng(3)
    signs, known = rng.choice([-1.0, 1.0], (25, 4)), rng.random(25)
    values = rng.normal(size=25)
    eta = prior_centre(4) + 0.3 * rng.normal(size=6)
    value, gradient, _ = negative_log_posterior(eta, signs, values, known)
    numeric = approx_fprime(eta, lambda e: negative_log_posterior(e, signs, values, known)[0], 1e-6)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-4)

    def density(noise: Floats) -> float:
        matrix = kernel(signs, signs, np.exp(eta[:4]), float(np.exp(eta[4]))) + np.diag(noise)
        return float(multivariate_normal(np.zeros(25), matrix).logpdf(values))

    own = np.exp(eta[5])
    plain = negative_log_posterior(eta, signs, values)[0]
    assert value - plain == pytest.approx(density(own + 0 * known) - density(own + known))


# ---- every estimator -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "order"),
    [("linear", 1), ("linear", 2), ("gp", None), ("proxyspex", None)],
)
def test_coefficients_are_better_where_the_noise_is_known(method: str, order: int | None) -> None:
    if method == "proxyspex":
        pytest.importorskip("lightgbm")
    n, m = 10, 400
    masks, f = some_masks(m, n), truth(n, 0 if order == 1 else 3)
    noise, variances = noises(m)
    values = f.predict(masks) + noise
    errors = [
        recovery(ESTIMATORS[method](masks, values, max_order=order, variances=v), f).error
        for v in (variances, None)
    ]
    assert errors[0] < 0.7 * errors[1]


def test_exact_knows_how_far_noise_reaches() -> None:
    masks, rng = enumerate_masks(6), np.random.default_rng(0)
    variances = rng.random(64)
    f = ESTIMATORS["exact"](masks, rng.normal(size=64), variances=variances)
    signs = characters(masks, [s for s in f.supports]) / 64
    assert f.covariance is not None
    np.testing.assert_allclose(f.covariance, np.diagonal(signs.T * variances @ signs))
    twice = ESTIMATORS["exact"](
        np.concatenate([masks, masks]), np.ones(128), variances=np.ones(128)
    )
    assert twice.covariance == pytest.approx(1 / 128)


# ---- bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [-1, 1])
def test_moments_of_a_truncated_normal(side: int) -> None:
    means, deviations = np.array([0.0, 2.0, -5.0, 30.0]), np.array([1.0, 0.5, 1.0, 1.0])
    bounds = np.array([-1.0, 1.0, 0.5, 29.0])
    mean, variance = truncated(means, deviations**2, bounds, np.full(4, side, np.int8))
    for i in range(4):
        ends = (bounds[i] - means[i]) / deviations[i]
        low, high = (-np.inf, ends) if side < 0 else (ends, np.inf)
        expected = truncnorm(low, high, means[i], deviations[i])
        assert mean[i] == pytest.approx(expected.mean(), rel=1e-6)
        assert variance[i] == pytest.approx(expected.var(), rel=1e-4)


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_what_lies_beyond_a_bound_is_found(share: float, side: int, noise: float) -> None:
    m, n = 300, 8
    masks, f = some_masks(m, n), truth(n, 2)
    hidden = f.predict(masks) + noise * np.random.default_rng(0).normal(size=m)
    bound = np.quantile(hidden, share if side < 0 else 1 - share)
    cut = hidden < bound if side < 0 else hidden > bound
    values, sides = np.where(cut, bound, hidden), np.where(cut, side, 0).astype(np.int8)
    filled, variances = imputed(masks, values, sides)
    np.testing.assert_array_equal(filled[~cut], values[~cut])
    assert (side * (filled - values) >= 0).all()
    assert ((variances > 0) == cut).all()
    as_numbers = linear.fit(masks, values, max_order=2)
    expected = linear.fit(masks, filled, max_order=2, variances=variances)
    errors = [recovery(g, f).error for g in (expected, as_numbers)]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize(("share", "most"), [(0.5, 1.3), (0.8, 2.0)])
def test_error_bars_know_how_little_bounds_tell(share: float, most: float) -> None:
    """Distances of the Gaussian process's single effects from the truth, in standard errors.

    Bounds are no observations of what is to be expected beyond them: taken for such, these are 1.6
    and 3.7. Where most values are cut off, 1 is not reached (docs/method.md).
    """
    m, n, distances = 160, 10, list[float]()
    for seed in range(8):
        masks, f = some_masks(m, n, seed), truth(n, 3, seed)
        hidden = f.predict(masks) + 0.7 * np.random.default_rng(1000 + seed).normal(size=m)
        bound = np.quantile(hidden, share)
        sides = np.where(hidden < bound, -1, 0).astype(np.int8)
        filled, variances = imputed(masks, np.maximum(hidden, bound), sides)
        g = ESTIMATORS["gp"](masks, filled, variances=variances)
        assert g.covariance is not None
        errors, true = np.sqrt(np.diagonal(g.covariance)), f.to_dict()
        distances += [
            (c - true[s]) / e
            for s, c, e in zip(g.supports, g.coefficients, errors, strict=True)
            if len(s) == 1
        ]
    assert len(distances) == 8 * n
    assert 0.7 < np.sqrt(np.mean(np.square(distances))) < most


def test_bounds_stay_where_nothing_tells_more() -> None:
    masks = some_masks(20, 4)
    for values, exact in ((np.arange(20.0), 3), (np.ones(20), 10)):
        sides = np.where(np.arange(20) < exact, 0, -1).astype(np.int8)
        np.testing.assert_array_equal(imputed(masks, values, sides)[0], values)


# ---- a whole run ---------------------------------------------------------------------------------


class Noisy:
    """An evaluator of known noise, or with values that are cut off, in two portions."""

    def __init__(self, f: SparseFourier, cut: float | None = None, *, told: bool = True) -> None:
        self.f, self.cut, self.told = f, cut, told

    def evaluate(self, masks: Masks) -> Iterator[Portion]:
        for rows in np.array_split(np.arange(len(masks))[::-1], 2):
            values = self.f.predict(masks[rows])
            seeds = [int.from_bytes(mask.tobytes(), "little") % 2**32 for mask in masks[rows]]
            if self.cut is not None:
                sides = np.where(values < self.cut, -1, 0).astype(np.int8)
                values = np.maximum(values, self.cut)
                yield Portion(rows, values, censored=sides if self.told else None)
                continue
            loud = np.array([seed % 5 < 2 for seed in seeds])
            variances = np.where(loud, 9.0, 0.01)
            drawn = np.array([np.random.default_rng(seed).normal() for seed in seeds])
            values = values + drawn * np.sqrt(variances)
            yield Portion(rows, values, variances if self.told else None)


def both(make: Callable[[bool], Noisy], n: int, **how: object) -> tuple[Explanation, Explanation]:
    told, untold = (explain(make(told), n, **how) for told in (True, False))  # type: ignore[arg-type]
    return told, untold


@pytest.mark.parametrize("method", ["auto", "linear"])
def test_a_run_that_is_told_of_noise_finds_more(method: str) -> None:
    f = truth(12, 0 if method == "linear" else 3)
    told, untold = both(lambda t: Noisy(f, told=t), 12, budget=300, method=method)
    assert recovery(told.fourier, f).error < 0.7 * recovery(untold.fourier, f).error
    assert told.variances is not None
    assert set(told.variances.tolist()) == {9.0, 0.01}
    assert (untold.variances, told.censored, untold.censored) == (None, None, None)
    assert told.variances.shape == told.values.shape


@pytest.mark.parametrize("method", ["auto", "linear", "spex"])
def test_a_run_that_is_told_of_bounds_finds_more(method: str) -> None:
    f = truth(10, 0 if method == "linear" else 2)
    cut = float(np.quantile(f.predict(enumerate_masks(10)), 0.4))
    told, untold = both(lambda t: Noisy(f, cut, told=t), 10, budget=300, method=method)
    assert recovery(told.fourier, f).error < 0.5 * recovery(untold.fourier, f).error
    assert told.censored is not None
    bounds = told.censored != 0
    np.testing.assert_array_equal(told.values == cut, bounds)
    said = f"{bounds.sum()} of {len(bounds)} values are only bounds: what is to be expected beyond "
    assert any(note.startswith(said) for note in told.notes)
    assert told.faithfulness.how.endswith("those that are only bounds left out")
    assert told.faithfulness.n_test < untold.faithfulness.n_test


def test_bounds_turn_enumeration_into_regression() -> None:
    f = truth(7, 2)
    cut = float(np.quantile(f.predict(enumerate_masks(7)), 0.3))
    e = explain(Noisy(f, cut), 7, budget=128)
    assert e.fourier.method != "exact"
    assert recovery(e.fourier, f).error < 0.1


def test_enumeration_of_noisy_values_has_error_bars() -> None:
    e = explain(Noisy(truth(6, 2)), 6, budget=64)
    assert e.fourier.method == "exact"
    assert e.variances is not None
    assert e.fourier.covariance == pytest.approx(e.variances.sum() / 64**2)
    assert "values are noisy, by " in e.notes[0]


def test_spex_says_that_it_does_not_weigh() -> None:
    e = explain(Noisy(truth(12, 2)), 12, budget=600, method="spex")
    assert "spex lets all values count the same, though some are known to be noisier" in e.notes


class Bounded:
    """Values of which the ``exact`` ones are known, and the others are at most what they are."""

    def __init__(self, f: SparseFourier, exact: Callable[[Masks], Masks]) -> None:
        self.f, self.exact = f, exact

    def evaluate(self, masks: Masks) -> Iterator[Portion]:
        sides = np.where(self.exact(masks), 0, -1).astype(np.int8)
        yield Portion(np.arange(len(masks)), self.f.predict(masks), censored=sides)


NOTHING_JUDGES = (
    "all values that were held out from the fit are only bounds, which can judge nothing"
)


@pytest.mark.parametrize("method", ["linear", "auto", "gp"])
def test_nothing_but_bounds(method: str) -> None:
    e = explain(Bounded(truth(10, 2), lambda masks: np.zeros(len(masks), bool)), 10, 300, method)
    assert e.faithfulness == Faithfulness(None, NOTHING_JUDGES, 0)
    assert e.near_full == Faithfulness(None, NOTHING_JUDGES, 0)
    *others, said = e.notes
    assert said == (
        "300 of 300 values are only bounds: too few others are there to tell more of them, so "
        "bounds were taken as values"
    )
    assert len(others) == (method == "auto")
    assert all(note.endswith(", with bounds taken as values") for note in others)


def test_bounds_near_the_full_prompt_are_left_out_and_said_there() -> None:
    f = truth(12, 2)
    some = explain(Bounded(f, lambda masks: (masks.sum(axis=1) < 9) | masks[:, 0]), 12, 300)
    assert some.near_full is not None
    assert some.near_full.how.endswith("held out from the fit, those that are only bounds left out")
    none = explain(Bounded(f, lambda masks: masks.sum(axis=1) < 9), 12, 300)
    assert none.near_full == Faithfulness(None, NOTHING_JUDGES, 0)
    assert none.faithfulness.n_test > 0
    fitted_only = explain(Bounded(f, lambda masks: ~masks.all(axis=1)), 12, 300)
    assert "bounds" not in fitted_only.faithfulness.how  # the full prompt is not held out


# ---- what noise leaves to be predicted -----------------------------------------------------------


def noisy_design(m: int, n: int, n_near: int) -> Design:
    uniform, near = some_masks(m, n), np.ones((n_near, n), np.bool_)
    near[np.arange(n_near), np.arange(n_near) % n] = False
    rows = tuple(range(m, m + n_near))
    return Design(np.concatenate([uniform, near]), np.ones(m + n_near, np.bool_), 0, rows)


@pytest.mark.parametrize("deviation", [0.3, 1.5, 30.0])
def test_the_truth_reaches_the_r2_that_noise_is_said_to_allow(deviation: float) -> None:
    f, design = truth(8, 2), noisy_design(4000, 8, 0)
    rng, every = np.random.default_rng(0), np.ones(4000, np.bool_)
    variances = deviation**2 * rng.choice([0.5, 1.5], 4000)
    values = f.predict(design.masks) + rng.normal(size=4000) * np.sqrt(variances)
    found = judged(design, f, (), values, every, variances).faithfulness
    said = re.fullmatch(
        r"uniform masks held out from the fit, whose noise allows R2 (\d\.\d\d) at most", found.how
    )
    assert said is not None
    assert found.r2 is not None
    assert float(said[1]) == pytest.approx(max(0.0, found.r2), abs=0.03)
    assert judged(design, f, (), values, every).faithfulness.how == (
        "uniform masks held out from the fit"
    )


def test_noise_near_the_full_prompt_is_no_fault_of_the_fit() -> None:
    f, design = SparseFourier(8, "t", ((0,),), np.array([2.0])), noisy_design(400, 8, 200)
    noise = 0.8 * np.random.default_rng(0).normal(size=600) * (np.arange(600) >= 400)
    variances = np.where(np.arange(600) < 400, 0.0, 0.64)
    values, every = f.predict(design.masks) + noise, np.ones(600, np.bool_)
    untold, told = (judged(design, f, (), values, every, v) for v in (None, variances))
    assert "near the full prompt the fit is worse" in untold.notes[0]
    assert told.notes == ()
    assert told.near_full is not None
    assert "whose noise allows R2" in told.near_full.how


def test_a_noisy_run_says_what_its_noise_allows() -> None:
    e = explain(Noisy(truth(12, 3)), 12, budget=300, method="linear")
    assert re.search(r"whose noise allows R2 0\.\d\d at most$", e.faithfulness.how)
