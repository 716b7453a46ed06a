"""The spectral Gaussian process: a prior on Walsh coefficients that is fitted, not assumed.

Knows samples only. With masks as signs, the kernel is a weighted Hamming distance with one
relevance theta_j >= 0 for each feature,

    k(x, y) = sigma^2 exp(-sum_{j: x_j != y_j} theta_j)
            = c sum_S (prod_{j in S} rho_j) chi_S(x) chi_S(y),
    rho_j = tanh(theta_j / 2),  c = sigma^2 prod_j (1 + exp(-theta_j)) / 2,

so that the coefficient of S has prior variance ``c prod_{j in S} rho_j``: low orders and relevant
features first, which is the sparsity, low degree and hierarchy that SPEX and ProxySPEX assume, but
with its scales learnt from the samples by marginal likelihood. Every coefficient then has a
posterior mean and variance in closed form (Rasmussen & Williams 2006, eq. 2.25-2.26).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

from spex_engine.fourier import Floats, Masks, SparseFourier, Support, characters

MAX_SAMPLES = 4096  # beyond, the cubic cost is minutes
_N_CANDIDATES = 20_000  # supports of largest prior variance whose posterior mean is computed
_N_KEPT = 400
_PRIOR_CENTRE, _PRIOR_SD = 1.5, 1.0  # of log theta_j: log(centre / n), and its deviation
_NOISE_FLOOR = 1e-6  # of the values' variance: keeps the kernel matrix well conditioned
_MAX_STEPS = 200


def fit(
    masks: Masks, values: Floats, *, max_order: int | None = None, seed: int = 0
) -> SparseFourier:
    """The posterior of the coefficients that matter, with their covariance.

    ``max_order`` None: no limit. Deterministic: ``seed`` only draws the samples that are used
    where there are more than 4096.
    """
    m, n = masks.shape
    if m > MAX_SAMPLES:
        some = np.sort(np.random.default_rng(seed).permutation(m)[:MAX_SAMPLES])
        masks, values = masks[some], values[some]
    scale = float(values.std())
    if n == 0 or scale <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return SparseFourier(n, "gp", ((),), np.array([values.mean()]), np.zeros(1))
    posterior = _Posterior.fit(masks, (values - values.mean()) / scale)
    supports = _most_likely(posterior.rho, n if max_order is None else min(n, max_order))
    means = posterior.means(supports)
    means[0] = np.inf  # the constant stays
    kept = np.sort(np.argsort(-np.abs(means), kind="stable")[:_N_KEPT])
    chosen = [supports[i] for i in kept.tolist()]
    coefficients, covariance = posterior.coefficients(chosen)
    coefficients = coefficients * scale
    coefficients[0] += values.mean()
    return SparseFourier(n, "gp", tuple(chosen), coefficients, covariance * scale**2)


@dataclass(frozen=True, eq=False)
class _Posterior:
    """The process given the samples, at fitted hyperparameters; values are standardised."""

    masks: Masks
    rho: Floats  # (n,)
    constant: float  # the prior variance of the constant, c
    factor: Floats  # lower Cholesky factor of the kernel matrix with noise, (m, m)
    alpha: Floats  # its inverse times the values, (m,)

    @classmethod
    def fit(cls, masks: Masks, values: Floats) -> _Posterior:
        signs = 1.0 - 2.0 * masks.astype(np.float64)
        theta, variance, noise = _hyperparameters(signs, values)
        kernel = variance * np.exp(-_distances(signs, theta))
        kernel[np.diag_indices_from(kernel)] += noise
        factor = cholesky(kernel, lower=True, overwrite_a=True)
        alpha = cho_solve((factor, True), values)
        constant = variance * float(np.prod((1 + np.exp(-theta)) / 2))
        return cls(masks, np.tanh(theta / 2), constant, factor, alpha)

    def prior_variances(self, supports: list[Support]) -> Floats:
        return np.array([self.constant * np.prod(self.rho[list(s)]) for s in supports])

    def means(self, supports: list[Support]) -> Floats:
        """Posterior means of the coefficients, float (k,)."""
        step = max(1, (1 << 24) // len(self.masks))
        parts = [
            self.alpha @ characters(self.masks, supports[i : i + step])
            for i in range(0, len(supports), step)
        ]
        return self.prior_variances(supports) * np.concatenate(parts)

    def coefficients(self, supports: list[Support]) -> tuple[Floats, Floats]:
        """Posterior means (k,) and covariance (k, k)."""
        variances = self.prior_variances(supports)
        scaled = characters(self.masks, supports) * variances
        means: Floats = self.alpha @ scaled
        half = solve_triangular(self.factor, scaled, lower=True, overwrite_b=True)
        covariance = np.diag(variances) - half.T @ half
        covariance[np.diag_indices_from(covariance)] = np.maximum(np.diagonal(covariance), 0.0)
        return means, (covariance + covariance.T) / 2


def _distances(signs: Floats, theta: Floats) -> Floats:
    """``sum_{j: x_j != y_j} theta_j`` for all pairs of masks, (m, m)."""
    distances: Floats = 0.5 * (theta.sum() - (signs * theta) @ signs.T)
    return distances


def _hyperparameters(signs: Floats, values: Floats) -> tuple[Floats, float, float]:
    """theta (n,), the kernel's variance and the noise's: the maximum a posteriori.

    The first steps use a part of the samples: far from the maximum that is direction enough.
    """
    m, n = signs.shape
    start = np.concatenate([np.full(n, np.log(_PRIOR_CENTRE / n)), [np.log(2.0), np.log(0.1)]])
    for part in sorted({min(m, 250), min(m, 700), m}):
        found = minimize(
            _negative_log_posterior,
            start,
            args=(signs[:part], values[:part]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-12.0, 3.0)] * n + [(-8.0, 8.0), (np.log(_NOISE_FLOOR), 3.0)],
            options={"maxiter": _MAX_STEPS, "ftol": 1e-6 if part == m else 1e-5},
        )
        start = found.x
    theta, (variance, noise) = np.exp(start[:n]), np.exp(start[n:])
    return theta, float(variance), float(noise)


def _negative_log_posterior(
    parameters: Floats, signs: Floats, values: Floats
) -> tuple[float, Floats]:
    """Of log theta (n,), log variance and log noise; with its gradient (n + 2,).

    Gradient: Rasmussen & Williams eq. 5.9, all theta_j at once as two matrix products.
    """
    m, n = signs.shape
    theta, (variance, noise) = np.exp(parameters[:n]), np.exp(parameters[n:])
    smooth = variance * np.exp(-_distances(signs, theta))
    kernel = smooth.copy()
    kernel[np.diag_indices(m)] += noise
    factor = cholesky(kernel, lower=True, overwrite_a=True, check_finite=False)
    alpha = cho_solve((factor, True), values, check_finite=False)
    inverse, _ = dpotri(factor, lower=1)  # its lower half
    away = (parameters[:n] - np.log(_PRIOR_CENTRE / n)) / _PRIOR_SD
    value = 0.5 * values @ alpha + np.log(np.diagonal(factor)).sum() + 0.5 * away @ away
    slack = np.outer(alpha, alpha) - (np.tril(inverse) + np.tril(inverse, -1).T)
    trace = float(np.trace(slack))
    slack *= smooth
    total = float(slack.sum())
    same = np.einsum("ij,ij->j", signs, slack @ signs)
    gradient = np.concatenate(
        [theta / 4 * (total - same) + away / _PRIOR_SD, [-0.5 * total, -0.5 * noise * trace]]
    )
    return float(value), gradient


def _most_likely(rho: Floats, max_order: int) -> list[Support]:
    """The supports of largest prior variance, the empty one first, best first.

    Every support but the empty one has one parent here: with features from relevant to
    irrelevant, take the last one out if its predecessor is in, else move it up by one. A parent's
    product is never smaller, so a heap meets the supports in order.
    """
    order = np.argsort(-rho, kind="stable")
    log_rho = np.log(np.maximum(rho[order], 1e-300))
    found: list[Support] = [()]
    heap: list[tuple[float, Support]] = []
    if len(order) and max_order > 0:
        heap.append((-float(log_rho[0]), (0,)))
    while heap and len(found) < _N_CANDIDATES:
        cost, support = heapq.heappop(heap)
        found.append(tuple(sorted(int(order[i]) for i in support)))
        last = support[-1]
        if last + 1 == len(order):
            continue
        step = -float(log_rho[last + 1])
        heapq.heappush(heap, (cost + float(log_rho[last]) + step, (*support[:-1], last + 1)))
        if len(support) < max_order:
            heapq.heappush(heap, (cost + step, (*support, last + 1)))
    return found
