"""One fit of what a run has measured so far, judged on what was held out from it.

Knows the design, the method and the values there are. It does not know where values come from,
how many are still to come, or who asks for the fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spex_engine.convergence import Evidence
from spex_engine.designs import NEAR, Design
from spex_engine.estimators import ESTIMATORS, PLANS, Plan
from spex_engine.estimators.selection import choose
from spex_engine.estimators.spectral_gp import MAX_SAMPLES
from spex_engine.faithfulness import r2
from spex_engine.fourier import Floats, Masks, SparseFourier
from spex_engine.wire import Faithfulness

_FEWEST_OTHERS = 32  # samples to fit before those of special masks can be spared
_WORSE = 0.2  # R2 near the full prompt so much below the other is said,
_MATERIAL = 0.1  # if the error there is more than this share of how values vary over all masks
_NEAR_HOW = f"masks that lack 1 to {NEAR} features, held out from the fit"

Rows = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fit, how it was judged, and what to say about it.

    ``evidence``: None where no uniform masks were held out, or their values do not vary, so that
    predicting them shows nothing. ``exact``: every mask was measured and transformed.
    """

    fourier: SparseFourier
    faithfulness: Faithfulness
    notes: tuple[str, ...] = ()
    near_full: Faithfulness | None = None
    evidence: Evidence | None = None
    exact: bool = False


@dataclass(frozen=True, eq=False)
class Task:
    """What a fit is made of and stays the same during a run."""

    design: Design
    method: str
    max_order: int | None
    seed: int
    exact: bool  # every mask is to be measured and transformed, nothing estimated
    plan: Plan | None = None  # of a method that samples its own masks

    def fit(self, values: Floats) -> Fitted:
        """The fit of the values (j,) of the first j masks of the design, NaN where there is none.

        Held-out masks are kept from it and used to judge it, unless there are no others.
        """
        known = np.isfinite(values)
        masks = self.design.masks[: len(values)]
        if not known.any():
            nothing = SparseFourier(masks.shape[1], self.method, (), np.zeros(0))
            return Fitted(nothing, Faithfulness(None, "nothing was measured", 0))
        if self.exact and known.all() and len(values) == len(self.design.masks):
            fourier = ESTIMATORS["exact"](masks, values, max_order=self.max_order)
            score = r2(fourier, masks, values)
            judged = Faithfulness(_number(score), "every mask was measured", len(values))
            why = f"every mask fits the budget, so {self.method} had nothing to decode: exact"
            return Fitted(fourier, judged, (why,) if self.method in PLANS else (), exact=True)
        held_out = self.design.held_out[: len(values)]
        train, test = known & ~held_out, known & held_out
        if self.plan is not None and train.any():
            fourier, notes = self.plan.fit(values)
            return self._judged(fourier, notes, values, test)
        if not train.any():  # all but held-out ones failed: rather a fit than a judgement
            train, test = test, train
        train = self._without_anchors(train)
        method, max_order, notes = self.method, self.max_order, ()
        if self.exact or self.plan is not None:  # what it was to do cannot be done
            method = "auto"
        if method == "auto":
            choice = choose(masks[train], values[train], max_order=self.max_order, seed=self.seed)
            method, max_order, notes = choice.method, choice.max_order, (choice.why,)
        if method == "gp" and train.sum() > MAX_SAMPLES:
            notes += (f"gp fits {MAX_SAMPLES} of the {train.sum()} samples, drawn at random",)
        fourier = ESTIMATORS[method](
            masks[train], values[train], max_order=max_order, seed=self.seed
        )
        return self._judged(fourier, notes, values, test)

    def _without_anchors(self, train: Rows) -> Rows:
        """The samples to fit but full, empty and leave-one-out masks, if enough others are there.

        A fit speaks of the mean over all masks, where such masks hardly ever occur; a handful of
        them would pull a regression into a corner that it cannot follow.
        """
        others = train.copy()
        others[: self.design.n_anchors] = False
        n = self.design.masks.shape[1]
        return others if others.sum() >= max(_FEWEST_OTHERS, 4 * n) else train

    def _judged(
        self, fourier: SparseFourier, notes: tuple[str, ...], values: Floats, test: Rows
    ) -> Fitted:
        near = np.zeros(len(self.design.masks), np.bool_)
        near[list(self.design.near_full)] = True
        near = near[: len(values)]
        masks = self.design.masks[: len(values)]
        uniform, close = test & ~near, test & near
        judged = _judge(fourier, masks[uniform], values[uniform])
        evidence = local = None
        if judged.r2 is not None and np.ptp(values[uniform]) > 0:
            evidence = Evidence(fourier, judged.r2, judged.n_test)
        if close.any():
            local = _score(fourier, masks[close], values[close], _NEAR_HOW)
            if judged.r2 is not None and local.r2 is not None and local.r2 < judged.r2 - _WORSE:
                errors = values[close] - fourier.predict(masks[close])
                typical = float(np.sqrt(np.mean(errors**2)))
                if typical > _MATERIAL * float(np.std(values[uniform])):
                    notes += (_near_note(local.r2, float(np.std(values[close])), typical),)
        return Fitted(fourier, judged, notes, local, evidence)


def _near_note(score: float, spread: float, error: float) -> str:
    return (
        f"near the full prompt the fit is worse: R2 {score:.2f} where 1 to {NEAR} segments are "
        f"dropped, values there vary by {spread:.2g} and the fit misses them by {error:.2g}"
    )


def _judge(fourier: SparseFourier, masks: Masks, values: Floats) -> Faithfulness:
    if len(values) == 0:
        return Faithfulness(None, "too few evaluations to hold any out", 0)
    return _score(fourier, masks, values, "uniform masks held out from the fit")


def _score(fourier: SparseFourier, masks: Masks, values: Floats, how: str) -> Faithfulness:
    score = _number(r2(fourier, masks, values))
    if score is None:
        how += ", which all have the same value"
    return Faithfulness(score, how, len(values))


def _number(score: float) -> float | None:
    return score if np.isfinite(score) else None
