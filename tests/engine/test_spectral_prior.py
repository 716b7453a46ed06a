"""The spectral process's prior: its kernel, its derivatives, and that the mode is one."""

import itertools

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize
from scipy.stats import multivariate_normal, norm

from spex_engine.designs import enumerate_masks
from spex_engine.estimators import spectral_prior
from spex_engine.estimators.spectral_prior import (
    fit_prior,
    kernel,
    negative_log_posterior,
    neighbours,
    prior_centre,
)
from spex_engine.fourier import Floats, characters


def sample(m: int, n: int, seed: int = 3) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size=(m, n))
    values = signs[:, 0] * signs[:, 1] + 0.3 * signs[:, 2] + 0.1 * rng.normal(size=m)
    return signs, (values - values.mean()) / values.std()


def test_kernel_is_the_sum_over_characters() -> None:
    n, theta, variance = 6, np.array([0.1, 2.0, 0.0, 0.7, 1.3, 0.02]), 1.7
    masks = enumerate_masks(n)
    signs = 1.0 - 2.0 * masks
    rho = np.tanh(theta / 2)
    constant = variance * np.prod((1 + np.exp(-theta)) / 2)
    supports = [s for size in range(n + 1) for s in itertools.combinations(range(n), size)]
    prior = np.array([constant * np.prod(rho[list(s)]) for s in supports])
    chi = characters(masks, supports)
    np.testing.assert_allclose(kernel(signs, signs, theta, variance), (chi * prior) @ chi.T)


def test_neighbours_are_the_sum_over_their_characters() -> None:
    n, eta = 6, np.log([0.1, 2.0, 0.01, 0.7, 1.3, 0.02, 1.7, 0.1])
    masks = enumerate_masks(n)
    signs, theta = 1.0 - 2.0 * masks, np.exp(eta[:n])
    rho, constant = np.tanh(theta / 2), 1.7 * np.prod((1 + np.exp(-theta)) / 2)
    for lag, part in enumerate(neighbours(signs, eta), start=1):
        pairs = [(i, i + lag) for i in range(n - lag)]
        chi = characters(masks, pairs)
        prior = np.array([constant * rho[i] * rho[j] for i, j in pairs])
        np.testing.assert_allclose(part, (chi * prior) @ chi.T)


def test_closeness_is_what_makes_the_values_likeliest() -> None:
    """The posterior density on a grid, by the normal density itself."""
    rng = np.random.default_rng(1)
    signs = rng.choice([-1.0, 1.0], size=(90, 12))
    values = (signs[:, :-1] * signs[:, 1:]) @ rng.normal(size=11) + signs @ rng.normal(size=12)
    values += signs[:, 0] * signs[:, 7] + 0.3 * rng.normal(size=90)
    values /= values.std()
    eta = spectral_prior._mode(signs, values, prior_centre(12))
    closeness, moved = spectral_prior._closeness(signs, values, eta)
    scale = np.exp(moved[-2] - eta[-2])
    whole = kernel(signs, signs, np.exp(eta[:-2]), np.exp(eta[-2]))
    parts = neighbours(signs, eta)

    def density(logs: Floats) -> float:
        covariance = np.exp(logs[0]) * whole + np.exp(logs[3]) * np.eye(90)
        covariance += np.exp(logs[1]) * parts[0] + np.exp(logs[2]) * parts[1]
        centre = [0.0, np.log(0.1), np.log(0.1), eta[-1]]
        likelihood = multivariate_normal.logpdf(values, np.zeros(90), covariance)
        return float(likelihood + norm.logpdf(logs, centre, 2.0).sum())

    found = np.log([scale, *(scale * closeness), np.exp(moved[-1])])
    assert closeness[0] > 1.0
    for unit in np.eye(4):
        for step in (-0.5, 0.5):
            assert density(found + step * unit) < density(found) + 1e-3


def test_value_is_the_log_density_of_the_values() -> None:
    """Differences of it, against the normal density with the kernel's covariance."""
    signs, values = sample(30, 4)

    def expected(eta: Floats) -> float:
        covariance = kernel(signs, signs, np.exp(eta[:4]), np.exp(eta[4]))
        covariance += np.exp(eta[5]) * np.eye(30)
        likelihood = multivariate_normal.logpdf(values, np.zeros(30), covariance)
        deviations = np.array([1.0] * 4 + [2.0] * 2)
        return -float(likelihood + norm.logpdf(eta, prior_centre(4), deviations).sum())

    one, two = np.random.default_rng(0).normal(-1.0, 0.7, size=(2, 6))
    got = [negative_log_posterior(eta, signs, values)[0] for eta in (one, two)]
    assert got[0] - got[1] == pytest.approx(expected(one) - expected(two))


def test_gradient() -> None:
    signs, values = sample(40, 5)
    for seed in range(5):
        at = np.random.default_rng(seed).normal(-1.0, 0.7, size=7)
        numeric = approx_fprime(at, lambda p: negative_log_posterior(p, signs, values)[0], 1e-6)
        gradient = negative_log_posterior(at, signs, values)[1]
        np.testing.assert_allclose(gradient, numeric, atol=1e-3 * np.abs(gradient).max())


def test_average_information_is_a_curvature() -> None:
    """Over many draws of values from the process itself it is, in the mean, the Hessian's."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], size=(60, 3))
    eta = np.log([0.5, 0.2, 0.05, 2.0, 0.1])
    covariance = kernel(signs, signs, np.exp(eta[:3]), 2.0) + 0.1 * np.eye(60)
    average, hessian = np.zeros((5, 5)), np.zeros((5, 5))
    for _ in range(400):
        values = rng.multivariate_normal(np.zeros(60), covariance)
        average += negative_log_posterior(eta, signs, values)[2] / 400
        for i, unit in enumerate(1e-4 * np.eye(5)):
            up = negative_log_posterior(eta + unit, signs, values)[1]
            down = negative_log_posterior(eta - unit, signs, values)[1]
            hessian[i] += (up - down) / 2e-4 / 400
    np.testing.assert_allclose(average, hessian, atol=0.1 * np.abs(hessian).max())


@pytest.mark.parametrize("seed", range(4))
def test_the_mode_is_where_another_optimiser_ends(seed: int) -> None:
    signs, values = sample(120, 6, seed)
    eta = spectral_prior._mode(signs, values, prior_centre(6))
    other = minimize(
        lambda p: negative_log_posterior(p, signs, values)[:2],
        prior_centre(6),
        jac=True,
        bounds=[(-12.0, 3.0)] * 6 + [(-8.0, 8.0), (np.log(1e-6), 3.0)],
    )
    assert negative_log_posterior(eta, signs, values)[0] <= other.fun + 0.05


def test_a_kernel_that_is_all_one_still_has_a_mode() -> None:
    """The same mask again and again: nothing to learn, and nothing that fails."""
    signs = np.ones((20, 3))
    values = np.random.default_rng(0).normal(size=20)
    prior = fit_prior(signs, values, n_tuned=20)
    assert np.isfinite(prior.alpha).all()
    assert prior.noise == pytest.approx(float(np.mean((values - values.mean()) ** 2)), rel=0.2)
