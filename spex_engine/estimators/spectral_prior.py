"""The prior of the spectral Gaussian process: how relevant each feature is, learnt from samples.

Knows signs and standardised values, not masks, supports or coefficients. With one relevance
theta_j >= 0 for each feature the kernel is a weighted Hamming distance,
``k(x, y) = v exp(-sum_{j: x_j != y_j} theta_j)``, and the samples carry noise of variance ``w``.
The parameters eta are ``(log theta_1 .. log theta_n, log v, log w)``, under independent normal
priors; they are set to their posterior mode, and how sharp that mode is goes into the error bars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri

from spex_engine.fourier import Floats

# normal priors of the parameters: log theta_j about log(1.5 / n), log v about log 2, log w about
# log 0.1. They matter where samples are few (research: not sensitive within a factor of two).
_RELEVANCE, _VARIANCE, _NOISE = 1.5, 2.0, 0.1
_RELEVANCE_SD, _SCALE_SD = 1.0, 2.0
_BOUNDS = (-12.0, 3.0), (-8.0, 8.0), (float(np.log(1e-6)), 3.0)  # w > 0: a well-conditioned kernel
_COARSE = 500  # samples of the first steps: far from the mode that is direction enough
_MAX_STEPS = 60
_ENOUGH = 0.02  # nats gained by a step: below, the mode is near enough
_LONGEST = 2.0  # step in any one parameter


@dataclass(frozen=True, eq=False)
class FittedPrior:
    """The mode, the kernel there, and what the errors of the parameters are.

    ``theta`` (n,), ``variance`` and ``noise``: the kernel's parameters at the mode.
    ``factor``: lower Cholesky factor of the kernel matrix with noise, (m, m), and ``alpha``: its
    inverse times the values, (m,).
    ``slopes``: ``factor^-1 (dK / d eta) alpha``, (m, n + 2).
    ``uncertainty``: covariance of eta about its mode by Laplace's approximation, (n + 2, n + 2).
    """

    theta: Floats
    variance: float
    noise: float
    factor: Floats
    alpha: Floats
    slopes: Floats
    uncertainty: Floats


def fit_prior(signs: Floats, values: Floats, n_tuned: int) -> FittedPrior:
    """The prior for signs +-1 (m, n) and values (m,) of mean 0 and variance 1, about.

    The mode is found on the first ``n_tuned`` samples, the kernel is that of all of them.
    """
    m, n = signs.shape
    eta = prior_centre(n)
    for part in sorted({min(m, _COARSE), min(m, n_tuned)}):
        eta, local = _mode(signs[:part], values[:part], eta)
    if n_tuned < m:
        local = _Local.at(eta, signs, values)
    assert local is not None, "the kernel at the mode is positive definite"
    _, information, slopes = local.derivatives()
    variance, noise = np.exp(eta[n:])
    return FittedPrior(
        np.exp(eta[:n]),
        float(variance),
        float(noise),
        local.factor,
        local.alpha,
        slopes,
        np.asarray(np.linalg.inv(information), dtype=np.float64),
    )


def prior_centre(n_features: int) -> Floats:
    """The prior's mean of eta, (n + 2,)."""
    relevances = np.full(n_features, np.log(_RELEVANCE / max(1, n_features)))
    return np.concatenate([relevances, np.log([_VARIANCE, _NOISE])])


def negative_log_posterior(
    eta: Floats, signs: Floats, values: Floats
) -> tuple[float, Floats, Floats]:
    """Of eta (n + 2,) up to a constant, its gradient (n + 2,) and its average information."""
    local = _Local.at(eta, signs, values)
    assert local is not None, "the kernel is positive definite"
    gradient, information, _ = local.derivatives()
    return local.value, gradient, information


def _mode(signs: Floats, values: Floats, eta: Floats) -> tuple[Floats, _Local | None]:
    """Scoring with the average information (Gilmour, Thompson & Cullis 1995), damped.

    It takes about a quarter of the kernel matrices that a quasi-Newton method needs.
    """
    n = signs.shape[1]
    low, high = np.array([_BOUNDS[0]] * n + [*_BOUNDS[1:]]).T
    here, damping = _Local.at(eta, signs, values), 0.1
    assert here is not None, "the kernel at the start is positive definite"
    for _ in range(_MAX_STEPS):
        gradient, information, _ = here.derivatives()
        diagonal = np.diag(np.diagonal(information))
        gain = 0.0
        while damping < 1e6:
            step = -np.linalg.solve(information + damping * diagonal, gradient)
            moved = np.clip(eta + np.clip(step, -_LONGEST, _LONGEST), low, high)
            there = _Local.at(moved, signs, values)
            if there is not None and there.value < here.value:
                step = moved - eta
                expected = -(gradient @ step + step @ information @ step / 2)
                gain = here.value - there.value
                eta, here = moved, there
                damping *= 0.25 if gain > expected / 2 else 2.0 if gain < expected / 5 else 1.0
                break
            damping = max(4 * damping, 1e-3)
        if gain < _ENOUGH:
            break
    return eta, here


@dataclass(frozen=True, eq=False)
class _Local:
    """The negative log posterior at one eta, and what its derivatives are made of."""

    eta: Floats
    signs: Floats
    value: float
    smooth: Floats  # the kernel without noise, (m, m)
    factor: Floats
    alpha: Floats
    values: Floats

    @classmethod
    def at(cls, eta: Floats, signs: Floats, values: Floats) -> _Local | None:
        """None where the kernel is not positive definite in double precision."""
        n = signs.shape[1]
        smooth = kernel(signs, signs, np.exp(eta[:n]), float(np.exp(eta[n])))
        with_noise = smooth.copy()
        with_noise[np.diag_indices_from(with_noise)] += np.exp(eta[n + 1])
        try:
            factor = cholesky(with_noise, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            return None
        alpha = cho_solve((factor, True), values, check_finite=False)
        away = (eta - prior_centre(n)) / _deviations(n)
        value = 0.5 * values @ alpha + np.log(np.diagonal(factor)).sum() + 0.5 * away @ away
        return cls(eta, signs, float(value), smooth, factor, alpha, values)

    def derivatives(self) -> tuple[Floats, Floats, Floats]:
        """Gradient (n + 2,), average information (n + 2, n + 2) with the prior's, and slopes.

        Gradient: Rasmussen & Williams (2006) eq. 5.9, all theta_j at once as two matrix products,
        since ``dK / d log theta_j = -theta_j k(x, y) (1 - x_j y_j) / 2``. The average information
        ``a' dK_i K^-1 dK_j a / 2`` is the mean of the observed and the expected one, without their
        traces.
        """
        n = self.signs.shape[1]
        theta, noise = np.exp(self.eta[:n]), float(np.exp(self.eta[n + 1]))
        fitted = self.values - noise * self.alpha
        changes = np.empty((len(self.values), n + 2))
        turned = self.signs * (self.smooth @ (self.signs * self.alpha[:, None]))
        changes[:, :n] = -0.5 * theta * (fitted[:, None] - turned)
        changes[:, n], changes[:, n + 1] = fitted, noise * self.alpha
        slopes = solve_triangular(
            self.factor, changes, lower=True, overwrite_b=True, check_finite=False
        )
        inverse, _ = dpotri(self.factor, lower=1)  # its lower half
        slack = np.outer(self.alpha, self.alpha)
        slack -= np.tril(inverse) + np.tril(inverse, -1).T
        trace = float(np.trace(slack))
        slack *= self.smooth
        total = float(slack.sum())
        same = np.einsum("ij,ij->j", self.signs, slack @ self.signs)
        precision = _deviations(n) ** -2
        gradient = precision * (self.eta - prior_centre(n))
        gradient[:n] += theta / 4 * (total - same)
        gradient[n:] -= 0.5 * np.array([total, noise * trace])
        information = 0.5 * slopes.T @ slopes
        information[np.diag_indices_from(information)] += precision
        return gradient, information, slopes


def kernel(signs: Floats, others: Floats, theta: Floats, variance: float) -> Floats:
    """``k`` between the rows of signs (m, n) and others (l, n), without noise: (m, l)."""
    same = (signs * theta) @ others.T
    return np.asarray(variance * np.exp(0.5 * (same - theta.sum())), dtype=np.float64)


def _deviations(n_features: int) -> Floats:
    """The prior's standard deviations of eta, (n + 2,)."""
    return np.array([_RELEVANCE_SD] * n_features + [_SCALE_SD] * 2)
