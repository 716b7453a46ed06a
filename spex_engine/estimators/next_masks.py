"""Which masks would tell the spectral Gaussian process most about the coefficients it reports.

Knows a posterior and where it may look for masks. Which of them were asked for already, and what
is done with the answers, is for the caller to know.
"""

from __future__ import annotations

import numpy as np

from spex_engine.estimators.spectral_gp import Posterior
from spex_engine.fourier import Masks, characters

_N_REPORTED = 300  # coefficients whose variance is to fall


def next_masks(posterior: Posterior, candidates: Masks, count: int, max_order: int) -> Masks:
    """``count`` of the candidates bool (l, n), the most informative first.

    One after the other, the one whose value is expected to lower the total variance of the 300
    largest coefficients of order 1 and more most, given all before it: for a value with covariance
    ``c`` (k,) with these coefficients and variance ``v``, that is ``|c|^2 / v``. What the other
    coefficients leave open counts as noise. Given the prior, a posterior variance depends on the
    masks and not on the values, so nothing needs to be known of those to come. ValueError where
    there are fewer candidates.
    """
    if not 0 <= count <= len(candidates):
        raise ValueError(f"count: {count}, expected 0..{len(candidates)}")
    supports = posterior.largest(_N_REPORTED, max_order)
    covariance = posterior.coefficients(supports)[1] / posterior.scale**2
    signs = characters(candidates, supports)
    shared = signs @ covariance  # (l, k): of each candidate's value with each coefficient
    prior = posterior.prior
    unlisted = prior.variance - float(posterior.prior_variances(supports).sum())
    noise = prior.noise + prior.known + max(0.0, unlisted)
    chosen: list[int] = []
    for _ in range(count):
        variance = np.einsum("lk,lk->l", shared, signs) + noise
        worth = np.einsum("lk,lk->l", shared[:, 1:], shared[:, 1:]) / variance
        worth[chosen] = -np.inf
        best = int(np.argmax(worth))
        chosen.append(best)
        shared -= np.outer(signs @ shared[best], shared[best]) / variance[best]
    return candidates[chosen]
