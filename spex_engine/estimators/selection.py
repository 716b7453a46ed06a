"""Method "auto": look at the samples and choose the estimator and the order that predict best.

Knows samples only, and the other estimators. The reason for a choice is part of the choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spex_engine.estimators import exact, linear
from spex_engine.fourier import Floats, Masks, SparseFourier

_TERMS_PER_SAMPLE = 8  # beyond this a LASSO finds too little to be worth its time
_MAX_ENTRIES = 1 << 24  # samples x characters: a second or so of fitting
_JUDGES = 100  # held-out samples wanted before an order is believed


@dataclass(frozen=True, slots=True)
class Choice:
    """An estimator's name, the order to give it, and why, for people to read."""

    method: str
    max_order: int | None
    why: str


def choose(masks: Masks, values: Floats, *, max_order: int | None = None, seed: int = 0) -> Choice:
    """The choice for masks bool (m, n) and finite values (m,).

    Exact where every mask is there. Otherwise the order, up to ``max_order`` (None: 2), whose
    regression predicts samples kept from it best; the lower one where their R2 agree to 1e-6.
    """
    if exact.is_complete(masks):
        return Choice("exact", max_order, "exact: every mask was measured")
    m, n = masks.shape
    wanted = min(n, 2 if max_order is None else max_order)
    orders = [order for order in range(1, wanted + 1) if order == 1 or _sensible(m, n, order)]
    if len(orders) == 1:
        if wanted < 2:
            return Choice("linear", 1, "linear, order 1: no higher order was asked for")
        terms = linear.n_characters(n, 2)
        return Choice(
            "linear",
            1,
            f"linear, order 1: with pairs there are {terms} terms, too many for {m} masks",
        )
    scores = _held_out_scores(masks, values, orders, seed)
    best = max(orders, key=lambda order: (round(scores[order], 6), -order))
    compared = ", ".join(f"order {order}: {scores[order]:.2f}" for order in orders)
    return Choice("linear", best, f"linear, order {best}: best held-out R2 ({compared})")


def fit(
    masks: Masks, values: Floats, *, max_order: int | None = None, seed: int = 0
) -> SparseFourier:
    """The chosen estimator's fit; ``method`` of the result tells which one it was."""
    choice = choose(masks, values, max_order=max_order, seed=seed)
    chosen = exact.fit if choice.method == "exact" else linear.fit
    return chosen(masks, values, max_order=choice.max_order, seed=seed)


def _sensible(m: int, n: int, order: int) -> bool:
    terms = linear.n_characters(n, order)
    return m >= 2 * (n + 1) and m * terms <= _MAX_ENTRIES and terms <= _TERMS_PER_SAMPLE * m


def _held_out_scores(
    masks: Masks, values: Floats, orders: list[int], seed: int
) -> dict[int, float]:
    """R2 of each order on a fifth of the samples; on more fifths while those are few."""
    m = len(values)
    parts = np.random.default_rng(seed).permutation(m) % 5
    n_rounds = min(5, -(-5 * _JUDGES // m))
    total = 0.0
    errors = dict.fromkeys(orders, 0.0)
    for part in range(n_rounds):
        test, train = parts == part, parts != part
        total += float(np.sum((values[test] - values[train].mean()) ** 2))
        for order in orders:
            f = linear.fit(masks[train], values[train], max_order=order, seed=seed)
            errors[order] += float(np.sum((values[test] - f.predict(masks[test])) ** 2))
    if total == 0.0:  # nothing varies, so nothing is better than nothing
        return dict.fromkeys(orders, 0.0)
    return {order: 1.0 - error / total for order, error in errors.items()}
