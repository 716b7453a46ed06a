"""Values of which only a bound is known, as they may be expected: a Tobit model, by EP.

Knows samples only. A bound taken for a value makes the game look flat where it is cut off, and
leaving it out makes it look as if nothing lay beyond. So each censored value is replaced by what it
is expected to be, given its bound and what all the other samples say of it, which is what the
spectral Gaussian process predicts without it. Every other censored value takes part in that as the
normal observation that tells as much as its bound does (expectation propagation: Minka 2001; Groot
& Lucas 2012). The result is a sample for every estimator.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from spex_engine.estimators.spectral_gp import Posterior
from spex_engine.fourier import Floats, Masks

_ROUNDS = 5
_TOGETHER = 1000  # samples: a round is a fit of them, whose cost is cubic
_FEWEST = 8  # exact values, to say anything of the others
_NOTHING = 1e-3  # precision of a bound, in units of the prediction's, that says nothing


def imputed(
    masks: Masks,
    values: Floats,
    sides: npt.NDArray[np.int8],
    variances: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Values (m,) of masks bool (m, n) with expected ones for bounds, and all noise variances (m,).

    ``sides`` (m,): -1 where the true value is at most the given one, 1 where it is at least that,
    0 where it is that one. ``variances`` (m,) as estimators take them; those of expected values
    grow by that of the observation which tells as much as the bound. What such a value is expected
    to be rests on the other samples, so that how far it may be off would count these twice. Where
    next to nothing is exact, or nothing varies, bounds stay.
    """
    filled = values.copy()
    noise = np.zeros(len(values)) if variances is None else variances.copy()
    parts = -(-len(values) // _TOGETHER)
    for start in range(parts):
        rows = slice(start, None, parts)
        cut = sides[rows] != 0
        if cut.any() and np.count_nonzero(~cut) >= _FEWEST:
            filled[rows], noise[rows] = _expected(
                masks[rows], filled[rows], sides[rows], noise[rows]
            )
    return filled, noise


def _expected(
    masks: Masks, values: Floats, sides: npt.NDArray[np.int8], noise: Floats
) -> tuple[Floats, Floats]:
    cut = sides != 0
    bounds, side = values[cut], sides[cut]
    seen, known = values.copy(), noise.copy()
    seen[cut] = values[~cut].mean()
    open_ = 1 / _NOTHING * float(values.var())  # noise of an observation that says nothing
    known[cut] += open_
    mean, own = bounds, np.zeros(len(bounds))
    for _ in range(_ROUNDS):
        posterior = Posterior.of(masks, seen, known)
        if posterior is None:
            break
        others, spread = posterior.left_out()
        others, spread = others[cut], np.maximum(spread[cut] - (known - noise)[cut], 1e-9 * open_)
        mean, variance = truncated(others, spread, bounds, side)
        precision = np.maximum(1 / variance - 1 / spread, _NOTHING / spread)
        seen[cut] = others + (mean - others) / (variance * precision)
        own = 1 / precision
        known[cut] = noise[cut] + own
    filled, more = values.copy(), noise.copy()
    filled[cut] = mean
    more[cut] += own
    return filled, more


def truncated(
    mean: Floats, variance: Floats, bound: Floats, side: npt.NDArray[np.int8]
) -> tuple[Floats, Floats]:
    """Mean and variance (k,) of a normal variable known to be at most (side -1) or at least (1)
    ``bound``.
    """
    deviation = np.sqrt(variance)
    away = side * (mean - bound) / deviation  # how far within its bound it is expected
    ratio = np.exp(-0.5 * away**2 - 0.5 * np.log(2 * np.pi) - log_ndtr(away))
    left = 1 - ratio * (ratio + away)
    return mean + side * deviation * ratio, variance * np.maximum(left, 1e-6)
