"""SPEX: sparse Fourier recovery from coded samples (arXiv 2502.13870, ICML 2025).

Puts the three steps together: the coded design says what to ask for, the decoder finds which
supports matter, and a ridge regression on all measured samples says how much. It samples its own
masks, so it is a plan for `explain` and no estimator of samples one already has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from spex_engine.coded_design import CodedDesign, draw_coded
from spex_engine.codes.bch import SIGNS, Positions
from spex_engine.designs import Design
from spex_engine.estimators import linear, selection
from spex_engine.estimators.spex_decoder import decode
from spex_engine.fourier import Floats, Masks, SparseFourier, Support

Octets = npt.NDArray[np.uint8]
_Float = TypeVar("_Float", np.float32, np.float64)

_MAX_MISSING = 0.2  # of a transform's samples: with more of them filled in, bins are mostly guesses
_SAMPLES_PER_TERM = 4  # with fewer, features that were not found stay out of the regression
_CHUNK = 1 << 21  # characters held at once
_SIGNS = SIGNS.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Plan:
    """The masks SPEX asks for, and the fit of their values. Get it from `plan`."""

    coded: CodedDesign
    max_order: int | None
    soft: bool = True

    @property
    def design(self) -> Design:
        return self.coded.design

    def fit(self, values: Floats) -> tuple[SparseFourier, tuple[str, ...]]:
        """The function that explains the first values of the design, and what to know about it.

        ``values`` float (j,), j up to the size of the design, NaN where the evaluation failed; at
        least one that is not held out is there. Decodes the largest part of the code whose samples
        have all been asked for. Where some of these failed, supports are found with a fit in their
        place, twice; where more than a fifth did, or no part is complete, none are looked for. The
        coefficients come from measured values only. Held-out ones are never looked at.
        """
        masks, held_out = self.design.masks[: len(values)], self.design.held_out[: len(values)]
        train = np.isfinite(values) & ~held_out
        level = self.coded.complete_level(len(values))
        if level is None:
            f = linear.fit(masks[train], values[train], max_order=1)
            return f, ("spex decodes nothing before its first transforms are complete: linear",)
        needed = np.unique(self.coded.rows[:, :, : 2**level])
        failed = needed[~train[needed]]
        if len(failed) > _MAX_MISSING * len(needed):
            f = selection.fit(masks[train], values[train], max_order=self.max_order)
            share = f"{len(failed)} of {len(needed)}"
            return f, (f"{share} coded evaluations failed, too many to decode: a regression",)
        notes: tuple[str, ...] = ()
        filled = np.where(train, values, 0.0)
        if len(failed):
            notes = (
                f"{len(failed)} of {len(needed)} coded evaluations failed: interactions were "
                "looked for with a fit in their place, and estimated without them",
            )
            f = linear.fit(masks[train], values[train], max_order=1)
            filled[failed] = f.predict(masks[failed])
            f = self._regression(filled, level, masks[train], values[train])
            filled[failed] = f.predict(masks[failed])
        return self._regression(filled, level, masks[train], values[train]), notes

    def _regression(
        self, filled: Floats, level: int, masks: Masks, values: Floats
    ) -> SparseFourier:
        transform = self.coded.transform(filled - values.mean(), level)
        supports = decode(self.coded, transform, level, max_order=self.max_order, soft=self.soft)
        return _refit(masks, values, supports)


def plan(n_features: int, budget: int, *, max_order: int | None = None, seed: int = 0) -> Plan:
    """What SPEX asks for within ``budget`` distinct masks. ValueError where that is too small."""
    return Plan(draw_coded(n_features, budget, seed), max_order)


def fit(
    masks: Masks,
    values: Floats,
    *,
    max_order: int | None = None,
    seed: int = 0,
    variances: Floats | None = None,
) -> SparseFourier:
    """Always ValueError: other masks than its own say nothing to SPEX."""
    raise ValueError("method: 'spex' samples its own masks, so it is for explain() and not fit()")


def _refit(masks: Masks, values: Floats, supports: Positions) -> SparseFourier:
    """Ridge regression on the constant, the supports and, where there are samples for it, features.

    The supports are taken as given: the covariance does not know that they were chosen.
    """
    m, n = masks.shape
    alone = np.full((n, supports.shape[1]), n, supports.dtype)
    alone[:, 0] = np.arange(n)
    sizes = (supports < n).sum(axis=1)
    if m >= _SAMPLES_PER_TERM * (n + np.count_nonzero(sizes > 1)):
        supports = np.concatenate([alone, supports[sizes > 1]])
    else:
        supports = supports[sizes > 0]
    supports = supports[np.lexsort([*supports.T[::-1], (supports < n).sum(axis=1)])]
    p = len(supports)
    offset = float(values.mean())
    target = values - offset
    parities = _parities(masks, supports)
    # counts of samples: float32 is exact up to 2^24 of them
    sums, gram = np.zeros(p, np.float32), np.zeros((p, p), np.float32)
    moments = np.zeros(p)
    for _, part in _characters(parities, m, _SIGNS):
        sums += part.sum(axis=1)
        gram += part @ part.T
    for rows, part in _characters(parities, m, SIGNS):
        moments += part @ target[rows]
    means = sums.astype(np.float64) / m

    def residual_sum(slopes: Floats) -> float:
        return sum(
            float(np.sum((target[rows] - slopes @ part + slopes @ means) ** 2))
            for rows, part in _characters(parities, m, SIGNS)
        )

    coefficients, covariance = linear.solve_ridge(
        m,
        means,
        offset,
        gram - m * np.outer(means, means),
        moments,
        float(np.sum(target**2)),
        residual_sum,
    )
    terms: list[Support] = [tuple(i for i in row if i < n) for row in supports.tolist()]
    return SparseFourier(n, "spex", ((), *terms), coefficients, covariance)


def _parities(masks: Masks, supports: Positions) -> Octets:
    """Whether each mask keeps an odd number of each padded support (k, t), bits as (k, m / 8)."""
    m, n = masks.shape
    kept = np.zeros((n + 1, -(-m // 8)), np.uint8)
    for rows, octets in _chunks(m, n):
        kept[:-1, octets] = np.packbits(masks[rows].T.copy(), axis=1, bitorder="little")
    odd = np.zeros((len(supports), kept.shape[1]), np.uint8)
    for members in supports.T:
        odd ^= kept[members]
    return odd


def _characters(
    parities: Octets, m: int, signs: npt.NDArray[_Float]
) -> Iterator[tuple[slice, npt.NDArray[_Float]]]:
    """Characters +-1 as (k, chunk), of the type of ``signs``, and the samples they are of."""
    k = len(parities)
    for rows, octets in _chunks(m, k):
        characters = signs.take(parities[:, octets], axis=0).reshape(k, -1)
        yield rows, characters[:, : rows.stop - rows.start]


def _chunks(m: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Samples of at most _CHUNK entries of ``width`` each, and the octets that their bits fill."""
    size = max(1, _CHUNK // (8 * max(1, width)))
    for start in range(0, -(-m // 8), size):
        yield slice(8 * start, min(8 * (start + size), m)), slice(start, start + size)
