"""The spectral Gaussian process, against Bayesian regression on every character."""

import itertools

import numpy as np
import pytest
from scipy.optimize import check_grad

from spex_engine.designs import enumerate_masks
from spex_engine.estimators import spectral_gp
from spex_engine.estimators.spectral_gp import (
    _distances,
    _most_likely,
    _negative_log_posterior,
    _Posterior,
)
from spex_engine.faithfulness import r2
from spex_engine.fourier import Floats, Masks, SparseFourier, characters
from spex_engine.indices import interactions


def all_supports(n: int) -> list[tuple[int, ...]]:
    return [s for size in range(n + 1) for s in itertools.combinations(range(n), size)]


def random_masks(m: int, n: int, seed: int = 0) -> Masks:
    return np.random.default_rng(seed).integers(0, 2, (m, n)).astype(np.bool_)


def test_kernel_is_the_sum_over_characters() -> None:
    n, theta, variance = 6, np.array([0.1, 2.0, 0.0, 0.7, 1.3, 0.02]), 1.7
    masks = enumerate_masks(n)
    kernel = variance * np.exp(-_distances(1.0 - 2.0 * masks, theta))
    rho = np.tanh(theta / 2)
    constant = variance * np.prod((1 + np.exp(-theta)) / 2)
    supports = all_supports(n)
    prior = np.array([constant * np.prod(rho[list(s)]) for s in supports])
    chi = characters(masks, supports)
    np.testing.assert_allclose(kernel, (chi * prior) @ chi.T, atol=1e-12)


def test_gradient() -> None:
    rng = np.random.default_rng(3)
    signs = 1.0 - 2.0 * random_masks(40, 5)
    values = signs[:, 0] * signs[:, 1] + 0.3 * signs[:, 2] + 0.1 * rng.normal(size=40)
    for _ in range(5):
        at = rng.normal(-1.0, 0.7, size=7)
        error = check_grad(
            lambda p: _negative_log_posterior(p, signs, values)[0],
            lambda p: _negative_log_posterior(p, signs, values)[1],
            at,
        )
        assert error < 1e-3 * np.linalg.norm(_negative_log_posterior(at, signs, values)[1])


def test_posterior_is_bayesian_regression_on_all_characters() -> None:
    """Oracle: the Gaussian linear model with the prior variances, by the normal equations."""
    n, m = 5, 23
    masks = random_masks(m, n, seed=1)
    rng = np.random.default_rng(2)
    values = masks[:, 0] * masks[:, 1] - 0.5 * masks[:, 2] + 0.05 * rng.normal(size=m)
    values = (values - values.mean()) / values.std()
    posterior = _Posterior.fit(masks, values)
    supports = all_supports(n)
    prior = posterior.prior_variances(supports)
    chi = characters(masks, supports)
    kernel = (chi * prior) @ chi.T
    noise = (posterior.factor @ posterior.factor.T)[0, 0] - kernel[0, 0]
    precision = np.diag(1 / prior) + chi.T @ chi / noise
    expected_covariance = np.linalg.inv(precision)
    expected = expected_covariance @ chi.T @ values / noise
    means, covariance = posterior.coefficients(supports)
    np.testing.assert_allclose(means, expected, atol=1e-7)
    np.testing.assert_allclose(covariance, expected_covariance, atol=1e-7)
    np.testing.assert_allclose(posterior.means(supports), means, atol=1e-12)


@pytest.mark.parametrize("max_order", [1, 2, 6])
def test_supports_come_in_order_of_prior_variance(max_order: int) -> None:
    rho = np.random.default_rng(4).uniform(0.01, 0.9, size=6)
    found = _most_likely(rho, max_order)
    expected = [s for s in all_supports(6) if len(s) <= max_order]
    products = [float(np.prod(rho[list(s)])) for s in found]
    assert sorted(found) == sorted(expected)
    assert products[1:] == sorted(products[1:], reverse=True)


def and_or_game(masks: Masks) -> Floats:
    """An AND, an OR and a lone effect among features that do nothing."""
    values: Floats = (
        3.0 * (masks[:, 0] & masks[:, 7]) + 2.0 * (masks[:, 3] | masks[:, 11]) - 1.0 * masks[:, 5]
    )
    return values


def test_finds_the_pairs_among_many_features() -> None:
    n = 24
    masks = random_masks(260, n)
    f = spectral_gp.fit(masks, and_or_game(masks))
    unseen = random_masks(500, n, seed=9)
    assert r2(f, unseen, and_or_game(unseen)) > 0.97
    pairs = [i for i in interactions(f, "FBII", order=2) if len(i.members) == 2]
    assert [i.members for i in pairs[:2]] == [(0, 7), (3, 11)]
    assert pairs[0].value == pytest.approx(3.0, abs=0.4)
    assert pairs[1].value == pytest.approx(-2.0, abs=0.4)


def test_error_bars_hold_the_truth() -> None:
    """Over many small noisy games, two standard errors hold about 95% of the coefficients."""
    inside = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        masks = random_masks(120, 8, seed)
        truth = SparseFourier(8, "truth", ((0,), (1,), (0, 1), (2, 3)), rng.normal(size=4))
        values = truth.predict(masks) + 0.3 * rng.normal(size=120)
        f = spectral_gp.fit(masks, values)
        assert f.covariance is not None
        known = truth.to_dict()
        for support, value, variance in zip(
            f.supports, f.coefficients, np.diagonal(f.covariance), strict=True
        ):
            if 0 < len(support) <= 2:
                inside.append(abs(value - known.get(support, 0.0)) <= 2 * np.sqrt(variance))
    assert 0.9 <= np.mean(inside) <= 1.0


def test_max_order_is_kept() -> None:
    masks = random_masks(80, 7)
    f = spectral_gp.fit(masks, and_or_game(np.pad(masks, ((0, 0), (0, 5)))), max_order=1)
    assert max(map(len, f.supports)) == 1


def test_constant_values_and_no_features() -> None:
    constant = spectral_gp.fit(random_masks(20, 4), np.full(20, 2.5))
    assert constant.to_dict() == {(): 2.5}
    assert spectral_gp.fit(np.zeros((3, 0), np.bool_), np.ones(3)).to_dict() == {(): 1.0}


def test_units_and_offset_follow_the_values() -> None:
    masks = random_masks(100, 6)
    values = and_or_game(np.pad(masks, ((0, 0), (0, 6))))
    f, g = spectral_gp.fit(masks, values), spectral_gp.fit(masks, 10 * values - 7)
    unseen = random_masks(50, 6, seed=5)
    np.testing.assert_allclose(g.predict(unseen), 10 * f.predict(unseen) - 7, atol=1e-2)
