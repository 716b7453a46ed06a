"""SPEX: sparse Fourier recovery from coded samples (arXiv 2502.13870, ICML 2025).

Puts the three steps together: the coded design says what to ask for, the decoder finds which
supports matter, and a ridge regression on all measured samples says how much. It samples its own
masks, so it is a plan for `explain` and no estimator of samples one already has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spex_engine.coded_design import CodedDesign, draw_coded
from spex_engine.codes.bch import Positions
from spex_engine.designs import Design
from spex_engine.estimators import linear, selection
from spex_engine.estimators.spex_decoder import decode
from spex_engine.fourier import Floats, Masks, SparseFourier, Support

_MAX_MISSING = 0.2  # of a transform's samples: with more of them filled in, bins are mostly guesses
_SAMPLES_PER_TERM = 4  # with fewer, features that were not found stay out of the regression
_CHUNK = 4096  # samples whose characters are held at once


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
    masks: Masks, values: Floats, *, max_order: int | None = None, seed: int = 0
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
    sums, gram, moments = np.zeros(p), np.zeros((p, p)), np.zeros(p)
    for rows, part in _blocks(masks, supports):
        sums += part.sum(axis=1, dtype=np.float64)
        gram += part @ part.T  # float32 is exact: integers up to the length of a chunk
        moments += part @ (values[rows] - offset)
    means = sums / m

    def residual_sum(slopes: Floats) -> float:
        return sum(
            float(np.sum((values[rows] - offset - slopes @ part + slopes @ means) ** 2))
            for rows, part in _blocks(masks, supports)
        )

    coefficients, covariance = linear.solve_ridge(
        m,
        means,
        offset,
        gram - m * np.outer(means, means),
        moments,
        float(np.sum((values - offset) ** 2)),
        residual_sum,
    )
    terms: list[Support] = [tuple(i for i in row if i < n) for row in supports.tolist()]
    return SparseFourier(n, "spex", ((), *terms), coefficients, covariance)


def _blocks(masks: Masks, supports: Positions) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Characters of padded supports (k, t), +-1 as (k, chunk), and the samples they are of."""
    for start in range(0, len(masks), _CHUNK):
        rows = slice(start, min(start + _CHUNK, len(masks)))
        kept = np.zeros((masks.shape[1] + 1, rows.stop - start), dtype=np.bool_)
        kept[:-1] = masks[rows].T
        odd = np.zeros((len(supports), kept.shape[1]), dtype=np.bool_)
        for members in supports.T:
            odd ^= kept[members]
        yield rows, np.float32(1) - np.float32(2) * odd
