"""How well a fitted function predicts values: the measures reported next to every explanation.

Knows fitted functions, masks and values. Which masks are fair to judge on (ones the fit has not
seen) is for the caller to know.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from spex_engine.fourier import Masks, SparseFourier, checked_samples


def r2(f: SparseFourier, masks: Masks, values: npt.ArrayLike) -> float:
    """``1 - sum (v - f(x))^2 / sum (v - mean v)^2`` over masks bool (m, n), values float (m,).

    At most 1, which is perfect; 0 is no better than the mean of these values; there is no lower
    bound. Where all values are the same, no variation is there to explain: 1.0 if every one is
    predicted (to 1e-9 relative), else nan. ValueError for other shapes, no masks, or values that
    are not finite.
    """
    masks, measured = checked_samples(masks, values, f.n_features)
    predicted = f.predict(masks)
    if np.ptp(measured) == 0.0:
        exact = np.allclose(predicted, measured, rtol=1e-9, atol=1e-300)
        return 1.0 if exact else math.nan
    errors = np.sum((measured - predicted) ** 2)
    return float(1.0 - errors / np.sum((measured - measured.mean()) ** 2))
