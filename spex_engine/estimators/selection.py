"""Method "auto": look at the samples and choose the estimator and the order that predict best.

Knows samples only, and the other estimators. The reason for a choice is part of the choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spex_engine.estimators import exact, linear, spectral_gp
from spex_engine.estimators.folds import paired_folds
from spex_engine.fourier import Floats, Masks, SparseFourier

_PAIRS_PER_SAMPLE = 8  # beyond this a LASSO finds too little to be worth its time
_FEWEST_FOR_GP, _MOST_FOR_GP = 16, 2000  # samples; above, its cubic cost is felt
_MAX_ENTRIES = 1 << 24  # samples x characters: a second or so of fitting
_JUDGES = 100  # held-out samples wanted before an order is believed


@dataclass(frozen=True, slots=True)
class Choice:
    """An estimator's name, the order to give it, and why, for people to read."""

    method: str
    max_order: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """An estimator that could be chosen, and what to call it."""

    method: str
    max_order: int | None
    name: str


def choose(masks: Masks, values: Floats, *, max_order: int | None = None, seed: int = 0) -> Choice:
    """The choice for masks bool (m, n) and finite values (m,).

    Exact where every mask is there. Otherwise, of linear regression of each sensible order up to
    ``max_order`` (None: 2) and the spectral Gaussian process, the one that predicts samples kept
    from it best; the plainer one where their R2 agree to 1e-6.
    """
    if exact.is_complete(masks):
        return Choice("exact", max_order, "exact: every mask was measured")
    m, n = masks.shape
    wanted = min(n, 2 if max_order is None else max_order)
    candidates = [
        Candidate("linear", order, f"linear of order {order}")
        for order in range(1, wanted + 1)
        if order == 1 or sensible(m, n, order)
    ]
    if wanted > 1 and _FEWEST_FOR_GP <= m <= _MOST_FOR_GP:
        candidates.append(Candidate("gp", max_order, "Gaussian process"))
    if len(candidates) == 1:
        few = "no higher order was asked for" if wanted < 2 else f"{m} masks are too few for pairs"
        return Choice("linear", 1, f"linear of order 1: {few}")
    scores = _held_out_scores(masks, values, candidates, seed)
    best = max(range(len(candidates)), key=lambda i: (round(scores[i], 6), -i))
    compared = ", ".join(f"{c.name} {s:.2f}" for c, s in zip(candidates, scores, strict=True))
    chosen = candidates[best]
    why = f"{chosen.name}: best of the cross-validated R2 ({compared})"
    return Choice(chosen.method, chosen.max_order, why)


def fit(
    masks: Masks, values: Floats, *, max_order: int | None = None, seed: int = 0
) -> SparseFourier:
    """The chosen estimator's fit; ``method`` of the result tells which one it was."""
    choice = choose(masks, values, max_order=max_order, seed=seed)
    return _FITS[choice.method](masks, values, max_order=choice.max_order, seed=seed)


def sensible(m: int, n: int, order: int) -> bool:
    """Whether m masks of n features can bear a regression on all characters up to ``order``."""
    terms = linear.n_characters(n, order)
    most = _PAIRS_PER_SAMPLE * m if order == 2 else m
    return m >= 2 * (n + 1) and m * terms <= _MAX_ENTRIES and terms <= most


def _held_out_scores(
    masks: Masks, values: Floats, candidates: list[Candidate], seed: int
) -> list[float]:
    """R2 of each candidate on a fifth of the samples; on more fifths while those are few."""
    parts = paired_folds(masks, 5, np.random.default_rng(seed))
    n_rounds = min(5, -(-5 * _JUDGES // len(values)))
    total = 0.0
    errors = np.zeros(len(candidates))
    for part in range(n_rounds):
        test, train = parts == part, parts != part
        if not (test.any() and train.any()):
            continue
        total += float(np.sum((values[test] - values[train].mean()) ** 2))
        for i, candidate in enumerate(candidates):
            fitted = _FITS[candidate.method]
            f = fitted(masks[train], values[train], max_order=candidate.max_order, seed=seed)
            errors[i] += float(np.sum((values[test] - f.predict(masks[test])) ** 2))
    if total == 0.0:  # nothing varies, so nothing is better than nothing
        return [0.0] * len(candidates)
    return [1.0 - error / total for error in errors.tolist()]


_FITS = {"exact": exact.fit, "linear": linear.fit, "gp": spectral_gp.fit}
