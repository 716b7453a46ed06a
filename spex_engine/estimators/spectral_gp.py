"""The spectral Gaussian process: a prior on Walsh coefficients that is fitted, not assumed.

Knows samples only. The kernel of `spectral_prior` is, in the Walsh basis,

    v exp(-sum_{j: x_j != y_j} theta_j) = c sum_S (prod_{j in S} rho_j) chi_S(x) chi_S(y),
    rho_j = tanh(theta_j / 2),  c = v prod_j (1 + exp(-theta_j)) / 2,

so that the coefficient of S has prior variance ``c prod_{j in S} rho_j``: low orders and relevant
features first, which is the sparsity, low degree and hierarchy that SPEX and ProxySPEX assume, but
with its scales learnt from the samples by marginal likelihood. Pairs of neighbours in reading order
get more (`spectral_prior`). Every coefficient then has a
posterior mean and variance in closed form (Rasmussen & Williams 2006, eq. 2.25-2.26).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy.linalg import solve_triangular

from spex_engine.estimators.spectral_prior import FittedPrior, fit_prior
from spex_engine.fourier import Floats, Masks, SparseFourier, Support, characters

MAX_SAMPLES = 6000  # beyond, the cubic cost is minutes
_MAX_TUNED = 2000  # samples that relevances are learnt from
_N_CANDIDATES = 20_000  # supports of largest prior variance whose posterior mean is computed
_N_KEPT = 600
_UNLIKELY = 2.7  # squared standard normal that is exceeded once in ten times
_BLOCK = 2000  # candidates looked at together
_SHUFFLE = 0  # seed of the order of samples that relevances are learnt from


def fit(
    masks: Masks,
    values: Floats,
    *,
    max_order: int | None = None,
    seed: int = 0,
    variances: Floats | None = None,
) -> SparseFourier:
    """The posterior of the coefficients that matter, with their covariance.

    ``max_order`` None: no limit. The 600 coefficients of largest posterior mean are kept. Where
    there are more than 6000 samples, that many of them are drawn by ``seed``; nothing else depends
    on it. ``variances`` are added to the noise that is learnt.
    """
    m, n = masks.shape
    if m > MAX_SAMPLES:
        some = np.sort(np.random.default_rng(seed).permutation(m)[:MAX_SAMPLES])
        masks, values = masks[some], values[some]
        variances = None if variances is None else variances[some]
    posterior = Posterior.of(masks, values, variances)
    if posterior is None:
        return SparseFourier(n, "gp", ((),), np.array([values.mean()]), np.zeros(1))
    supports = posterior.largest(_N_KEPT, n if max_order is None else min(n, max_order))
    coefficients, covariance = posterior.coefficients(supports)
    return SparseFourier(n, "gp", tuple(supports), coefficients, covariance)


@dataclass(frozen=True, eq=False)
class Posterior:
    """The process given samples: any coefficient's distribution. Get it from `of`."""

    masks: Masks  # (m, n)
    mean: float  # of the values, and their deviation: the process is of standardised ones
    scale: float
    prior: FittedPrior

    @classmethod
    def of(cls, masks: Masks, values: Floats, variances: Floats | None = None) -> Posterior | None:
        """From masks bool (m, n) and finite values (m,), with known noise ``variances`` (m,).

        None where the values do not vary.
        """
        mean, scale = float(values.mean()), float(values.std())
        if masks.shape[1] == 0 or scale <= 1e-12 * float(np.abs(values).max()):
            return None
        if len(masks) > _MAX_TUNED:  # which samples come first must not matter
            order = np.random.default_rng(_SHUFFLE).permutation(len(masks))
            masks, values = masks[order], values[order]
            variances = None if variances is None else variances[order]
        signs = 1.0 - 2.0 * masks.astype(np.float64)
        known = None if variances is None else variances / scale**2
        prior = fit_prior(signs, (values - mean) / scale, _MAX_TUNED, known)
        return cls(masks, mean, scale, prior)

    @property
    def relevances(self) -> Floats:
        """rho (n,): each feature's factor in the prior variances, in 0..1."""
        return np.asarray(np.tanh(self.prior.theta / 2), dtype=np.float64)

    @property
    def constant(self) -> float:
        """c, the prior variance of the constant."""
        return self.prior.variance * float(np.prod((1 + np.exp(-self.prior.theta)) / 2))

    def left_out(self) -> tuple[Floats, Floats]:
        """What the other samples say of each sample's value: means (m,) and variances (m,).

        The noise of the sample itself is within the variance (Rasmussen & Williams 2006, eq. 5.12).
        In the order of the samples given, if they were not more than 2000.
        """
        precision = np.diagonal(self.prior.inverse())
        values = (self.prior.values - self.prior.alpha / precision) * self.scale + self.mean
        return values, self.scale**2 / precision

    def prior_variances(self, supports: list[Support]) -> Floats:
        """Of each support's coefficient (k,), for standardised values."""
        return self._kernels(supports) * self._closer(supports)

    def _kernels(self, supports: list[Support]) -> Floats:
        """``c prod_{j in S} rho_j`` (k,): what the kernel gives each support."""
        members = _members(supports, len(self.prior.theta))
        return np.asarray(self.constant * np.exp(members @ _log(self.relevances)))

    def _closer(self, supports: list[Support]) -> Floats:
        """By how much the prior variance of each support (k,) is larger, as one of neighbours."""
        lags = [s[1] - s[0] if len(s) == 2 else 0 for s in supports]
        return np.array([1.0, *(1.0 + self.prior.closeness), *[1.0]])[
            np.minimum(lags, len(self.prior.closeness) + 1)
        ]

    def coefficients(self, supports: list[Support]) -> tuple[Floats, Floats]:
        """Posterior means (k,) and covariance (k, k), in the unit of the values and its square.

        The covariance is that at the parameters' mode, with two additions without which large
        coefficients lie outside their intervals too often: what the means move with the parameters
        within their own uncertainty, to first order (Laplace's approximation), and the wider prior
        of coefficients that are larger than theirs allows (`_wider`).
        """
        theta, prior = self.prior.theta, self.prior
        members, variances = _members(supports, len(theta)), self.prior_variances(supports)
        by_kernel = 1 / self._closer(supports)  # the share that moves with the parameters
        scaled = characters(self.masks, supports) * variances
        means: Floats = prior.alpha @ scaled
        half = solve_triangular(prior.factor, scaled, lower=True, overwrite_b=True)
        # d log prior variance / d eta: of the constant's factors, of the members', of v, of w
        relative = np.zeros((len(supports), len(theta) + 2))
        relative[:, :-2] = members * (theta / np.sinh(theta)) - theta / (1 + np.exp(theta))
        relative[:, -2] = 1.0
        moved = (means * by_kernel)[:, None] * relative - half.T @ prior.slopes
        covariance = np.diag(variances) - half.T @ half
        left = np.maximum(np.diagonal(covariance), 0.0)
        covariance[np.diag_indices_from(covariance)] = left
        wider = _wider(means, left, variances)
        covariance = covariance * wider[:, None] * wider + moved @ prior.uncertainty @ moved.T
        means = means * self.scale + self.mean * ~members.any(axis=1)
        return means, (covariance + covariance.T) / 2 * self.scale**2

    def largest(self, count: int, max_order: int) -> list[Support]:
        """The constant and the supports of largest posterior mean, ``count`` in all at most.

        All single features and pairs are looked at, and larger supports by falling prior variance
        until ``|F(S)| <= c prod rho ||alpha||_1`` says that no other can be among the largest, or
        they are not among the 20,000 likeliest.
        """
        n, alpha = self.masks.shape[1], self.prior.alpha
        signs = 1.0 - 2.0 * self.masks.astype(np.float64)
        rho, log_rho = self.relevances, _log(self.relevances)
        found: list[Support] = [(i,) for i in range(n)] if max_order > 0 else []
        sizes = rho * np.abs(alpha @ signs) if found else np.zeros(0)
        if max_order > 1:
            pairs = np.abs((signs * (alpha[:, None] * rho)).T @ (signs * rho))
            for lag, extra in enumerate(self.prior.closeness, start=1):
                pairs[np.arange(n - lag), np.arange(lag, n)] *= 1 + extra
            upper = np.triu_indices(n, 1)
            best = np.argsort(-pairs[upper], kind="stable")[:count]
            found += list(zip(*(index[best].tolist() for index in upper), strict=True))
            sizes = np.concatenate([sizes, pairs[upper][best]])
        padded = np.concatenate([signs.T, np.ones((1, len(signs)))]).astype(np.int8)
        total, weights = float(np.abs(alpha).sum()), alpha.astype(np.float32)
        likely = islice(_by_prior(log_rho, max_order), _N_CANDIDATES)
        while block := list(islice(likely, _BLOCK)):
            least = np.partition(sizes, -count)[-count] if len(sizes) >= count else 0.0
            if np.exp(block[0][0]) * total < least:
                break
            block = [item for item in block if len(item[1]) > 2]
            if not block:
                continue
            supports = [support for _, support in block]
            columns = np.full((len(block), max(map(len, supports))), n)
            for row, support in zip(columns, supports, strict=True):
                row[: len(support)] = support
            characters_ = np.multiply.reduce([padded[column] for column in columns.T])
            means = np.exp([prior for prior, _ in block]) * np.abs(characters_ @ weights)
            found, sizes = found + supports, np.concatenate([sizes, means])
        kept = np.argsort(-sizes, kind="stable")[: count - 1]
        return [(), *(found[i] for i in np.sort(kept).tolist())]


def _members(supports: list[Support], n_features: int) -> Masks:
    """Which features are in which support, bool (k, n)."""
    members = np.zeros((len(supports), n_features), dtype=np.bool_)
    for row, support in zip(members, supports, strict=True):
        row[list(support)] = True
    return members


def _wider(means: Floats, left: Floats, prior: Floats) -> Floats:
    """The factor (k,) by which a coefficient's standard deviation is wider than the posterior's.

    With prior variance ``p`` and posterior variance ``left``, the samples alone say
    ``f = mean / r`` with variance ``e``, where ``r = 1 - left / p`` and ``left = r e``. Where
    ``f^2 > 2.7 (p + e)``, which the prior gives one chance in ten, the coefficient's own variance
    is rather ``q = max(p, f^2 - e)``, and the squared error to expect of the mean, which is still
    shrunk by ``r``, is ``r^2 e + (1 - r)^2 q``: noise and bias.
    """
    trust = np.maximum(1 - left / np.maximum(prior, 1e-300), 1e-12)
    alone, error = (means / trust) ** 2, left / trust
    own = np.where(alone > _UNLIKELY * (prior + error), np.maximum(prior, alone - error), prior)
    expected = trust * left + (1 - trust) ** 2 * own
    wider: Floats = np.sqrt(np.maximum(expected, left) / np.maximum(left, 1e-300))
    return wider


def _log(relevances: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(relevances, 1e-300)), dtype=np.float64)


def _by_prior(log_rho: Floats, max_order: int) -> Iterator[tuple[float, Support]]:
    """Supports of 1 to ``max_order`` features by falling ``sum_{j in S} log rho_j``, with it.

    Every one but the first has one parent here: with features from relevant to irrelevant, take
    the last one out if its predecessor is in, else move it up by one. A parent's sum is never
    smaller, so a heap meets the supports in order.
    """
    order = np.argsort(-log_rho, kind="stable").tolist()
    costs = (-log_rho[order]).tolist()
    heap: list[tuple[float, Support]] = [(costs[0], (0,))] if order and max_order > 0 else []
    while heap:
        cost, support = heapq.heappop(heap)
        yield -cost, tuple(sorted(order[i] for i in support))
        following = support[-1] + 1
        if following == len(order):
            continue
        moved = cost - costs[support[-1]] + costs[following]
        heapq.heappush(heap, (moved, (*support[:-1], following)))
        if len(support) < max_order:
            heapq.heappush(heap, (cost + costs[following], (*support, following)))
