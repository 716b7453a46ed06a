"""Exact enumeration: every mask was measured, so the coefficients are known and not estimated.

Knows samples only.
"""

from __future__ import annotations

import numpy as np

from spex_engine.designs import enumerate_masks
from spex_engine.fourier import Floats, Masks, SparseFourier
from spex_engine.walsh import fwht


def is_complete(masks: Masks) -> bool:
    """Whether masks bool (m, n) hold each of the 2**n masks at least once."""
    m, n = masks.shape
    if n >= m.bit_length():  # m < 2**n; beyond it codes of any n would have to fit int64
        return False
    return bool(len(np.unique(_codes(masks))) == 2**n)


def fit(
    masks: Masks,
    values: Floats,
    *,
    max_order: int | None = None,
    seed: int = 0,
    variances: Floats | None = None,
) -> SparseFourier:
    """All coefficients up to ``max_order`` (None: n) by one fast Walsh-Hadamard transform.

    A mask measured more than once counts with its mean. The values are taken as exact, so that
    error bars are zero, unless ``variances`` are known: then each coefficient, a mean of 2^n values
    with signs, has the sum of theirs over 4^n. Coefficients that are zero to within rounding,
    |F| <= (n + 1) eps max |v| (the error bound of the transform), are left out: their error bars of
    zero would call them significant. ``seed`` has no use here. ValueError where a mask is missing.
    """
    n = masks.shape[1]
    if not is_complete(masks):
        raise ValueError(
            f"masks: shape {masks.shape}, expected all 2**{n} masks for method 'exact'"
        )
    codes = _codes(masks)
    sums = np.bincount(codes, weights=values, minlength=2**n)
    coefficients = np.asarray(fwht(sums / np.bincount(codes, minlength=2**n)), dtype=np.float64)
    known = np.abs(coefficients) > (n + 1) * np.finfo(np.float64).eps * np.abs(values).max()
    members = enumerate_masks(n)
    if max_order is not None:
        known &= members.sum(axis=1) <= max_order
    at = np.flatnonzero(known)
    supports = tuple(tuple(np.flatnonzero(row).tolist()) for row in members[at])
    noise = 0.0
    if variances is not None:  # of means over masks measured more than once
        times = np.bincount(codes, minlength=2**n)[codes]
        noise = float(np.sum(variances / times**2)) / 4**n
    return SparseFourier(n, "exact", supports, coefficients[at], np.full(len(at), noise))


def _codes(masks: Masks) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Position of each mask in `enumerate_masks`."""
    return masks @ (np.int64(1) << np.arange(masks.shape[1], dtype=np.int64))
