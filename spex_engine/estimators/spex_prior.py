"""What SPEX holds likely before it looks at a bin: which supports compete, and at what price.

A support of few features, or of features that have shown influence, needs less evidence than one
among all there are. It knows supports and coefficients, not bins, codes or how they were found.

Supports are positions (k, t) padded with n; ranks are as `ranks` gives them.
"""

from __future__ import annotations

from math import comb

import numpy as np
import numpy.typing as npt

from spex_engine.codes.bch import Positions
from spex_engine.fourier import Floats

Ranks = npt.NDArray[np.intp]

_MAX_LISTED = 10_000  # supports of each order that compete without having been decoded


def no_ranks(n: int) -> Ranks:
    """`ranks` where nothing has been found: all n features share the last."""
    return ranks(n, np.zeros((0, 1), np.int16), np.zeros(0))


def ranks(n: int, found: Positions, coefficients: Floats) -> Ranks:
    """Features from 1, the most influential, to n, which all without influence share: (n + 1,).

    Influence is ``sum_{S with i} F(S)^2`` over what was found. The last is 0, for the padding.
    """
    weights = np.repeat(coefficients**2, found.shape[1])
    influence = np.bincount(found.ravel(), weights, minlength=n + 1)
    ranked = np.zeros(n + 1, dtype=np.intp)
    ranked[np.argsort(-influence[:n], kind="stable")] = np.arange(1, n + 1)
    ranked[:n][influence[:n] == 0] = n
    return ranked


def prices(supports: Positions, sizes: npt.NDArray[np.intp], ranks: Ranks) -> Floats:
    """What naming each support costs, in nats (k,): -ln of its prior up to a common factor.

    ``ln C(n, d)`` names any of its order d. Naming the rank r of its least influential member
    first, by a 1 / r prior, and then the support among the ``C(r, d)``, costs ``ln C(r, d)`` and
    the normalisation: less where influential features interact, as they do in language
    (heredity: Bien, Taylor & Tibshirani 2013).
    """
    n = len(ranks) - 1
    least = ranks[supports].max(axis=1)
    by_order = _log_comb(n, sizes)
    by_rank = _log_comb(least, sizes) + np.log(np.maximum(sizes, 1) * (1 + np.log(n)))
    return np.asarray(np.minimum(by_order, by_rank), dtype=np.float64)


def listed(ranks: Ranks, t: int, max_order: int) -> Positions:
    """All supports among the most influential features, as many for each order as can be listed.

    All features for order 1. Features that share the last rank compete only where all can.
    Distinct, (k, t).
    """
    n = len(ranks) - 1
    ordered = np.argsort(ranks[:n], kind="stable")
    rows = [np.full((1, t), n, np.int16)]
    for order in range(1, max_order + 1):
        top = n
        while order > 1 and comb(top, order) > _MAX_LISTED:
            top -= 1
        if top < n:
            top = min(top, int(np.count_nonzero(ranks[:n] < n)))
        members = np.sort(ordered[:top])[_combinations(top, order)]
        rows.append(np.full((len(members), t), n, np.int16))
        rows[-1][:, :order] = members
    return np.concatenate(rows)


def _combinations(n: int, order: int) -> npt.NDArray[np.intp]:
    """All ``order`` of 0..n-1, increasing, (k, order): column by column, each row's all sequels."""
    rows = np.full((1, 1), -1)
    for _ in range(order):
        last = rows[:, -1]
        sequels = n - 1 - last
        ends = np.cumsum(sequels)
        added = np.arange(sequels.sum()) + np.repeat(last + 1 - ends + sequels, sequels)
        rows = np.column_stack([np.repeat(rows, sequels, axis=0), added])
    return rows[:, 1:]


def _log_comb(n: npt.NDArray[np.intp] | int, k: npt.NDArray[np.intp]) -> Floats:
    """``ln C(n, k)``, broadcast, for 0 <= k <= n < 2048: what BCH codes have positions for."""
    logs: Floats = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 2048)))])
    return logs[n] - logs[k] - logs[n - k]
