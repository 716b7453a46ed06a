"""The prior of the spectral Gaussian process: how relevant each feature is, learnt from samples.

Knows signs and standardised values, not masks, supports or coefficients. With one relevance
theta_j >= 0 for each feature the kernel is a weighted Hamming distance,
``k(x, y) = v exp(-sum_{j: x_j != y_j} theta_j)``, and the samples carry noise of variance ``w``.
The parameters eta are ``(log theta_1 .. log theta_n, log v, log w)``, under independent normal
priors; they are set to their posterior mode, and how sharp that mode is goes into the error bars.

Features come in reading order, and in a text neighbours act together more often than others. So
pairs one and two apart get more prior variance than the kernel gives them, by a factor that is
learnt as well (`neighbours`); where order means nothing it is found to be next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

from spex_engine.fourier import Floats

# normal priors of the parameters: log theta_j about log(1.5 / n), log v about log 2, log w about
# log 0.1. They matter where samples are few (research: not sensitive within a factor of two).
_RELEVANCE, _VARIANCE, _NOISE = 1.5, 2.0, 0.1
_RELEVANCE_SD, _SCALE_SD = 1.0, 2.0
_BOUNDS = (-12.0, 3.0), (-8.0, 8.0), (float(np.log(1e-6)), 3.0)  # w > 0: a well-conditioned kernel
N_LAGS = 2  # how far apart pairs are that count as neighbours
_CLOSENESS = 0.1  # centre of the prior of their extra variance, in units of the kernel's own
_MAX_CLOSENESS_STEPS = 12
_CLOSE = 700  # samples that closeness is learnt from
_COARSE = 500  # samples of the first steps: far from the mode that is direction enough
_MAX_STEPS = 60
_ENOUGH = 0.02  # nats gained by a step: below, the mode is near enough
_LONGEST = 2.0  # step in any one parameter


@dataclass(frozen=True, eq=False)
class FittedPrior:
    """The mode, the kernel there, and what the errors of the parameters are.

    ``theta`` (n,), ``variance`` and ``noise``: the kernel's parameters at the mode.
    ``closeness`` (2,): the extra prior variance of pairs one and two apart, in units of the
    kernel's own.
    ``factor``: lower Cholesky factor of the kernel matrix with all noise, (m, m), and ``alpha``:
    its inverse times the ``values``, (m,). ``known``: the mean of the noise variances that were
    given, which come on top of ``noise``.
    ``slopes``: ``factor^-1 (dK / d eta) alpha``, (m, n + 2).
    ``uncertainty``: covariance of eta about its mode by Laplace's approximation, (n + 2, n + 2).
    """

    theta: Floats
    variance: float
    noise: float
    closeness: Floats
    factor: Floats
    values: Floats
    alpha: Floats
    slopes: Floats
    uncertainty: Floats
    known: float = 0.0

    def inverse(self) -> Floats:
        """The lower half of the inverse of the kernel matrix with noise, (m, m)."""
        inverse, _ = dpotri(self.factor, lower=1)
        return np.asarray(inverse, dtype=np.float64)


def fit_prior(
    signs: Floats, values: Floats, n_tuned: int, known: Floats | None = None
) -> FittedPrior:
    """The prior for signs +-1 (m, n) and values (m,) of mean 0 and variance 1, about.

    The mode is found on the first ``n_tuned`` samples, the kernel is that of all of them.
    ``known`` (m,): noise variances of the samples beside ``w``; None: nothing.
    """
    m, n = signs.shape
    eta = prior_centre(n)
    more = np.zeros(m) if known is None else known
    for part in sorted({min(m, _COARSE), min(m, n_tuned)}):
        eta = _mode(signs[:part], values[:part], eta, more[:part])
    tuned = min(m, n_tuned, _CLOSE)
    closeness, eta = _closeness(signs[:tuned], values[:tuned], eta, more[:tuned])
    local = _Local.at(eta, signs, values, closeness, more)
    assert local is not None, "the kernel at the mode is positive definite"
    _, information, slopes = local.derivatives()
    variance, noise = np.exp(eta[n:])
    return FittedPrior(
        np.exp(eta[:n]),
        float(variance),
        float(noise),
        closeness,
        local.factor,
        values,
        local.alpha,
        slopes,
        np.asarray(np.linalg.inv(information), dtype=np.float64),
        float(more.mean()),
    )


def neighbours(signs: Floats, eta: Floats) -> list[Floats]:
    """What pairs one and two apart contribute to the kernel matrix, by their own prior variances.

    ``c sum_i rho_i rho_(i+l) chi_{i,i+l}(x) chi_{i,i+l}(y)`` for l = 1, 2, each (m, m).
    """
    n = signs.shape[1]
    theta = np.exp(eta[:n])
    scaled = signs * np.sqrt(np.tanh(theta / 2))
    constant = np.exp(eta[n]) * np.prod((1 + np.exp(-theta)) / 2)
    pairs = [scaled[:, :-lag] * scaled[:, lag:] for lag in range(1, N_LAGS + 1)]
    return [np.asarray(constant * (pair @ pair.T)) for pair in pairs]


def _closeness(
    signs: Floats, values: Floats, eta: Floats, known: Floats | None = None
) -> tuple[Floats, Floats]:
    """The closeness (2,), and eta with the kernel's variance and the noise that go with it.

    Relevances stay as they are. The parameters ``log`` of the kernel's scale, of the closenesses
    and of the noise have normal priors and are set to their mode, as eta is.
    """
    m, n = signs.shape
    if n <= N_LAGS:
        return np.zeros(N_LAGS), eta
    whole = kernel(signs, signs, np.exp(eta[:n]), float(np.exp(eta[n])))
    parts = [whole, *neighbours(signs, eta), np.eye(m)]
    noise = np.zeros((m, m)) if known is None else np.diag(known)
    centre = np.array([0.0, *[np.log(_CLOSENESS)] * N_LAGS, eta[-1]])

    def at(logs: Floats) -> tuple[float, Floats] | None:
        """Negative log posterior and its gradient."""
        sizes = np.exp(logs)
        matrix = sum((size * part for size, part in zip(sizes, parts, strict=True)), noise)
        try:
            factor = cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            return None
        alpha = cho_solve((factor, True), values, check_finite=False)
        away = (logs - centre) / _SCALE_SD
        inverse, _ = dpotri(factor, lower=1)
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        slopes = np.array([np.vdot(inverse, part) - alpha @ part @ alpha for part in parts])
        value = 0.5 * values @ alpha + np.log(np.diagonal(factor)).sum() + 0.5 * away @ away
        return float(value), 0.5 * sizes * slopes + away / _SCALE_SD

    def objective(logs: Floats) -> tuple[float, Floats]:
        found = at(logs)
        return found if found is not None else (np.inf, np.zeros_like(logs))

    bounds = [(-3.0, 3.0), *[(-9.0, 5.0)] * N_LAGS, _BOUNDS[2]]
    found = minimize(
        objective,
        centre,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": _MAX_CLOSENESS_STEPS, "ftol": 1e-5},
    ).x
    closeness = np.exp(found[1:-1] - found[0])
    return closeness, np.concatenate([eta[:n], [eta[n] + found[0], found[-1]]])


def prior_centre(n_features: int) -> Floats:
    """The prior's mean of eta, (n + 2,)."""
    relevances = np.full(n_features, np.log(_RELEVANCE / max(1, n_features)))
    return np.concatenate([relevances, np.log([_VARIANCE, _NOISE])])


def negative_log_posterior(
    eta: Floats, signs: Floats, values: Floats, known: Floats | None = None
) -> tuple[float, Floats, Floats]:
    """Of eta (n + 2,) up to a constant, its gradient (n + 2,) and its average information."""
    local = _Local.at(eta, signs, values, known=known)
    assert local is not None, "the kernel is positive definite"
    gradient, information, _ = local.derivatives()
    return local.value, gradient, information


def _mode(signs: Floats, values: Floats, eta: Floats, known: Floats | None = None) -> Floats:
    """Scoring with the average information (Gilmour, Thompson & Cullis 1995), damped.

    It takes about a quarter of the kernel matrices that a quasi-Newton method needs.
    """
    n = signs.shape[1]
    low, high = np.array([_BOUNDS[0]] * n + [*_BOUNDS[1:]]).T
    here, damping = _Local.at(eta, signs, values, known=known), 0.1
    assert here is not None, "the kernel at the start is positive definite"
    for _ in range(_MAX_STEPS):
        gradient, information, _ = here.derivatives()
        diagonal = np.diag(np.diagonal(information))
        gain = 0.0
        while damping < 1e6:
            step = -np.linalg.solve(information + damping * diagonal, gradient)
            moved = np.clip(eta + np.clip(step, -_LONGEST, _LONGEST), low, high)
            there = _Local.at(moved, signs, values, known=known)
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
    return eta


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
    def at(
        cls,
        eta: Floats,
        signs: Floats,
        values: Floats,
        closeness: Floats | None = None,
        known: Floats | None = None,
    ) -> _Local | None:
        """None where the kernel is not positive definite in double precision.

        ``known`` noise depends on no parameter, so that no derivative knows of it.
        """
        n = signs.shape[1]
        smooth = kernel(signs, signs, np.exp(eta[:n]), float(np.exp(eta[n])))
        with_noise = smooth.copy()
        if closeness is not None:
            for size, part in zip(closeness, neighbours(signs, eta), strict=False):
                with_noise += size * part
        with_noise[np.diag_indices_from(with_noise)] += np.exp(eta[n + 1])
        if known is not None:
            with_noise[np.diag_indices_from(with_noise)] += known
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
        changes = np.empty((len(self.values), n + 2))
        fitted = self.smooth @ self.alpha
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
