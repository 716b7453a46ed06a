"""The fast Walsh-Hadamard transform: from all 2^b values of a function to all its coefficients.

Knows arrays only: neither masks nor supports nor where the values came from. Index ``x`` of the
last axis is the mask whose bit ``i`` (lowest first) is feature ``i``, and index ``s`` of the
result is the support with the same bits.

Normalisation: the forward transform divides by ``2**b``, so that coefficients are those of
``f(x) = sum_s F(s) (-1)^popcount(s & x)`` and ``F(0)`` is the mean; the inverse divides by nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

RealArray = npt.NDArray[np.floating[Any]]


def fwht(values: npt.ArrayLike) -> RealArray:
    """Coefficients ``F(s) = 2^-b sum_x f(x) (-1)^popcount(s & x)`` over the last axis.

    ``values``: real ``(..., 2**b)``; the result has the same shape. float32 stays float32, every
    other real type becomes float64. The input is left as it is. Raises ValueError for complex
    input or a last axis whose length is not a power of two.
    """
    out = _copy(values, "values")
    _butterfly(out)
    out /= out.shape[-1]
    return out


def inverse_fwht(coefficients: npt.ArrayLike) -> RealArray:
    """Values ``f(x) = sum_s F(s) (-1)^popcount(s & x)``: undoes `fwht`. Same shapes and errors."""
    out = _copy(coefficients, "coefficients")
    _butterfly(out)
    return out


def _copy(array: npt.ArrayLike, name: str) -> RealArray:
    given = np.asarray(array)
    if given.dtype.kind not in "biuf":
        raise ValueError(f"{name}: dtype {given.dtype}, expected real numbers")
    length = given.shape[-1] if given.ndim else 0
    if length < 1 or length & (length - 1):
        raise ValueError(f"{name}: shape {given.shape}, expected (..., 2**b)")
    dtype = np.float32 if given.dtype == np.float32 else np.float64
    return np.array(given, dtype=dtype, order="C")


def _butterfly(out: RealArray) -> None:
    """The unnormalised transform in place: log2(length) steps over the whole array."""
    length = out.shape[-1]
    half = 1
    while half < length:
        blocks = out.reshape(-1, length // (2 * half), 2, half)
        low, high = blocks[:, :, 0, :], blocks[:, :, 1, :]
        difference = low - high
        low += high
        high[...] = difference
        half *= 2
