"""How much a model's values depend on what they must not: on which rows share a batch.

Knows something that scores masks, and what is made of the scores; it must not know models.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Scorer, Scores

_MASKS = 4  # that are scored again in every company


def noise_of_company(
    scorer: Scorer, masks: NDArray[np.bool_], value: Callable[[Scores], NDArray[np.float64]]
) -> float | None:
    """Standard deviation of the value of a mask that is scored in other company, or alone.

    masks: bool (m, n), of which a few are taken and scored together, by halves and one by one.
    value: scores of k masks to float (k,). None where it cannot be told.
    """
    if len(masks) == 0:
        return None
    few = masks[np.unique(np.linspace(0, len(masks) - 1, _MASKS).astype(int))]
    order = np.arange(len(few))
    companies = ([order], [order[::2], order[1::2]], [order[i : i + 1] for i in order])
    found = np.full((len(companies), len(few)), np.nan)
    for i, batches in enumerate(companies):
        for batch in filter(len, batches):
            for rows, scores in scorer.score(few[batch], lambda: False):
                found[i, batch[rows]] = value(scores)
    known = found[:, np.isfinite(found).all(axis=0)]
    return float(np.sqrt(known.var(axis=0, ddof=1).mean())) if known.size else None
