"""SparseFourier: a function of masks as a few Walsh-Fourier coefficients, with their errors.

The one result every estimator returns and every index is read from. It knows masks and supports;
it does not know how the coefficients were estimated or what the features are. Convention (SPEX,
arXiv 2502.13870, section 2): ``f(x) = sum_S F(S) chi_S(x)``, ``chi_S(x) = (-1)^{sum_{i in S} x_i}``
with ``x_i = 1`` for kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Masks = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Support = tuple[int, ...]

_CHUNK = 1 << 22  # entries of a character matrix held at once by predict: 32 MiB


@dataclass(frozen=True, eq=False)
class SparseFourier:
    """A function of ``n_features`` kept-or-dropped features with ``k`` known coefficients.

    ``supports``: k distinct, strictly increasing tuples of features; ``()`` is the constant.
    ``coefficients``: float (k,), in the unit of the value function.
    ``covariance``: None where errors are unknown, (k, k), or (k,) variances of independent errors.
    Raises ValueError where these do not fit together. The arrays are kept as read-only copies.
    """

    n_features: int
    method: str
    supports: tuple[Support, ...]
    coefficients: Floats
    covariance: Floats | None = None

    def __post_init__(self) -> None:
        if isinstance(self.n_features, bool) or not isinstance(self.n_features, int | np.integer):
            raise ValueError(f"n_features: {self.n_features!r}, expected an integer")
        if self.n_features < 0:
            raise ValueError(f"n_features: {self.n_features}, expected 0 or more")
        supports = tuple(tuple(int(i) for i in support) for support in self.supports)
        for support in supports:
            if any(a >= b for a, b in pairwise(support)):
                raise ValueError(f"supports: {support}, expected strictly increasing features")
            if support and not 0 <= support[0] <= support[-1] < self.n_features:
                raise ValueError(f"supports: {support}, expected features 0..{self.n_features - 1}")
        if len(set(supports)) < len(supports):
            raise ValueError("supports: a support is given twice, expected distinct supports")
        k = len(supports)
        coefficients = _frozen(self.coefficients, "coefficients", [(k,)])
        covariance = self.covariance
        if covariance is not None:
            covariance = _frozen(covariance, "covariance", [(k,), (k, k)])
            variances = covariance if covariance.ndim == 1 else np.diagonal(covariance)
            if (variances < 0).any():
                raise ValueError("covariance: a variance is negative")
            if covariance.ndim == 2 and not np.allclose(covariance, covariance.T):
                raise ValueError("covariance: not symmetric")
        for name, value in (
            ("n_features", int(self.n_features)),
            ("supports", supports),
            ("coefficients", coefficients),
            ("covariance", covariance),
        ):
            object.__setattr__(self, name, value)

    def predict(self, masks: Masks) -> Floats:
        """The function on bool (m, n_features) masks: float (m,). ValueError for other masks."""
        masks = checked_masks(masks, self.n_features)
        rows = max(1, _CHUNK // max(1, len(self.supports)))
        parts = [
            characters(masks[start : start + rows], self.supports) @ self.coefficients
            for start in range(0, len(masks), rows)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def top(self, k: int) -> SparseFourier:
        """The k terms of largest |coefficient|, strongest first (ties: smaller support first).

        The constant counts as a term like any other. All terms, where there are k or fewer.
        """
        if k < 0:
            raise ValueError(f"k: {k}, expected 0 or more")
        order = sorted(
            range(len(self.supports)),
            key=lambda i: (
                -abs(float(self.coefficients[i])),
                len(self.supports[i]),
                self.supports[i],
            ),
        )[:k]
        covariance = self.covariance
        if covariance is not None:
            covariance = covariance[order] if covariance.ndim == 1 else covariance[order][:, order]
        return SparseFourier(
            self.n_features,
            self.method,
            tuple(self.supports[i] for i in order),
            self.coefficients[order],
            covariance,
        )

    def to_dict(self) -> dict[Support, float]:
        """``{support: coefficient}``."""
        return dict(zip(self.supports, self.coefficients.tolist(), strict=True))


def characters(masks: Masks, supports: Sequence[Support]) -> Floats:
    """``chi_S(x)`` for every mask and support: bool (m, n) and k supports to +-1.0 (m, k)."""
    members = np.zeros((masks.shape[1], len(supports)), dtype=np.float32)
    sizes = [len(support) for support in supports]
    rows = np.fromiter(chain.from_iterable(supports), dtype=np.intp, count=sum(sizes))
    members[rows, np.repeat(np.arange(len(supports)), sizes)] = 1
    # float32 counts are exact far beyond any n here, and their product is BLAS where bool's is not
    counts = masks.astype(np.float32) @ members
    signs = 1 - 2 * (counts.astype(np.int32) & 1)
    return signs.astype(np.float64)


def checked_masks(masks: Any, n_features: int | None = None) -> Masks:
    """``masks`` as they are, if they are bool (m, n_features); ValueError otherwise."""
    columns = "n" if n_features is None else str(n_features)
    if not isinstance(masks, np.ndarray) or masks.dtype != np.bool_:
        kind = masks.dtype if isinstance(masks, np.ndarray) else type(masks).__name__
        raise ValueError(f"masks: got {kind}, expected a bool array (m, {columns})")
    if masks.ndim != 2 or (n_features is not None and masks.shape[1] != n_features):
        raise ValueError(f"masks: shape {masks.shape}, expected (m, {columns})")
    return masks


def checked_samples(masks: Any, values: Any, n_features: int | None = None) -> tuple[Masks, Floats]:
    """Masks bool (m, n) and their values as finite float64 (m,), m >= 1; ValueError otherwise."""
    masks = checked_masks(masks, n_features)
    try:
        values = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"values: expected real numbers ({len(masks)},): {error}") from None
    if values.shape != (len(masks),):
        raise ValueError(f"values: shape {values.shape}, expected ({len(masks)},), one per mask")
    if len(values) == 0:
        raise ValueError(f"masks: shape {masks.shape}, expected at least one mask")
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ValueError(f"values: {bad} of {len(values)} are NaN or infinite, expected finite")
    return masks, values


def _frozen(array: Any, name: str, shapes: list[tuple[int, ...]]) -> Floats:
    copy = np.array(array, dtype=np.float64)
    if copy.shape not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(f"{name}: shape {copy.shape}, expected {expected}")
    if not np.isfinite(copy).all():
        raise ValueError(f"{name}: expected finite numbers")
    copy.flags.writeable = False
    return copy
