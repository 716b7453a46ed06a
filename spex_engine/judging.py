"""How well a fit predicts what was held out from it, and what to say about that.

Knows a design, values and a fitted function, not how it was fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from spex_engine.convergence import Evidence
from spex_engine.designs import NEAR, Design
from spex_engine.faithfulness import r2
from spex_engine.fourier import Floats, Masks, SparseFourier
from spex_engine.wire import Faithfulness

_WORSE = 0.2  # R2 near the full prompt so much below the other is said,
_MATERIAL = 0.1  # if the error there is more than this share of how values vary over all masks
_NEAR_HOW = f"masks that lack 1 to {NEAR} features, held out from the fit"

Rows = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fit, how it was overall, and what to say about it.

    ``evidence``: None where no uniform masks were held out, or their values do not vary, so that
    predicting them shows nothing. ``exact``: every mask was measured and transformed.
    """

    fourier: SparseFourier
    faithfulness: Faithfulness
    notes: tuple[str, ...] = ()
    near_full: Faithfulness | None = None
    evidence: Evidence | None = None
    exact: bool = False


def judged(
    design: Design,
    fourier: SparseFourier,
    notes: tuple[str, ...],
    values: Floats,
    test: Rows,
    variances: Floats | None = None,
) -> Fitted:
    """``fourier`` by how it predicts ``values`` (j,) where ``test`` bool (j,) is true.

    Nothing predicts values whose noise has ``variances`` (j,) better than that allows, which is
    said.
    """
    near = _near_full(design, len(values))
    masks = design.masks[: len(values)]
    noise = np.zeros(len(values)) if variances is None else variances
    uniform, close = test & ~near, test & near
    overall = _judge(fourier, masks[uniform], values[uniform], noise[uniform])
    evidence = local = None
    if overall.r2 is not None and np.ptp(values[uniform]) > 0:
        evidence = Evidence(fourier, overall.r2, overall.n_test)
    if close.any():
        local = _score(fourier, masks[close], values[close], noise[close], _NEAR_HOW)
        if overall.r2 is not None and local.r2 is not None and local.r2 < overall.r2 - _WORSE:
            errors = values[close] - fourier.predict(masks[close])
            beyond_noise = float(np.mean(errors**2) - noise[close].mean())
            typical = np.sqrt(max(0.0, beyond_noise)).item()
            if typical > _MATERIAL * float(np.std(values[uniform])):
                notes += (_near_note(local.r2, float(np.std(values[close])), typical),)
    return Fitted(fourier, overall, notes, local, evidence)


def without_bounds(design: Design, fitted: Fitted, bounds: Rows) -> Fitted:
    """``fitted``, judged without those held out of which ``bounds`` bool (j,) says that only a
    bound is known: says so.
    """
    near = _near_full(design, len(bounds))
    overall, local = fitted.faithfulness, fitted.near_full
    if (bounds & ~near).any():
        overall = _without(overall)
    if (bounds & near).any():
        local = _without(local or Faithfulness(None, _NEAR_HOW, 0))
    return replace(fitted, faithfulness=overall, near_full=local)


def _without(judgement: Faithfulness) -> Faithfulness:
    how = f"{judgement.how}, those that are only bounds left out"
    if judgement.n_test == 0:
        how = "all values that were held out from the fit are only bounds, which can judge nothing"
    return replace(judgement, how=how)


def _near_full(design: Design, count: int) -> Rows:
    """Which of the first ``count`` masks are held out near the full prompt."""
    near = np.zeros(len(design.masks), np.bool_)
    near[list(design.near_full)] = True
    return near[:count]


def _near_note(score: float, spread: float, error: float) -> str:
    return (
        f"near the full prompt the fit is worse: R2 {score:.2f} where 1 to {NEAR} segments are "
        f"dropped, values there vary by {spread:.2g} and the fit misses them by {error:.2g}"
    )


def _judge(fourier: SparseFourier, masks: Masks, values: Floats, noise: Floats) -> Faithfulness:
    if len(values) == 0:
        return Faithfulness(None, "too few evaluations to hold any out", 0)
    return _score(fourier, masks, values, noise, "uniform masks held out from the fit")


def _score(
    fourier: SparseFourier, masks: Masks, values: Floats, noise: Floats, how: str
) -> Faithfulness:
    """R2 on noisy values is at most the share of how they vary that is no ``noise``, (k,)."""
    score = finite(r2(fourier, masks, values))
    if score is None:
        how += ", which all have the same value"
    elif noise.any() and np.ptp(values) > 0:
        highest = max(0.0, 1.0 - float(noise.mean() / values.var()))
        how += f", whose noise allows R2 {highest:.2f} at most"
    return Faithfulness(score, how, len(values))


def finite(score: float) -> float | None:
    """The score; None where there is none."""
    return score if np.isfinite(score) else None
