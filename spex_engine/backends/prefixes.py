"""Which rows of token ids should continue from which others, so that what they share is read once.

The rows of one prompt form a trie. In it every row but the first continues another one, after the
tokens that both begin with; whether that pays is weighed in tokens: those not read again against
the copies of kept states and the passes that must wait for others. Knows token ids alone; it must
not know models, masks or batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.causal import Ids

Ints = NDArray[np.int64]

# Keeping a row's states and handing them on, in tokens read: for each use, and for each token of
# them. Measured on a processor; a token's states are some ten thousand times less work to copy
# than to compute.
_COST_OF_USE = 4.0
_COST_OF_COPY = 0.01


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Row i continues row ``parents[i]`` (-1: none) after its first ``shared[i]`` tokens."""

    parents: Ints
    shared: Ints

    def depths(self) -> Ints:
        """How many rows each one has to wait for, int (k,)."""
        depths = np.full(len(self.parents), -1, dtype=np.int64)
        depths[self.parents < 0] = 0
        while (open_ := np.flatnonzero(depths < 0)).size:
            above = depths[self.parents[open_]]
            depths[open_[above >= 0]] = above[above >= 0] + 1
        return depths


def no_prefixes(n_rows: int) -> Prefixes:
    return Prefixes(np.full(n_rows, -1, dtype=np.int64), np.zeros(n_rows, dtype=np.int64))


def share_prefixes(rows: Sequence[Ids], limits: Sequence[int], overhead: float) -> Prefixes:
    """Who continues whom, so that the whole takes least.

    limits: how many tokens of each row may come from another one (fewer than it has). overhead:
    what a forward pass costs beside its tokens, in tokens.
    """
    whole = prefix_trie(rows, limits)
    depths = whole.depths()
    deepest = int(depths.max(initial=0))
    # A step deeper is one more pass that cannot be filled with the work that waits for it.
    plans = [_pruned(whole, depth, rows) for depth in range(deepest + 1)]
    costs = [_cost(plan, rows) + overhead * depth for depth, plan in enumerate(plans)]
    return plans[int(np.argmin(costs))]


def prefix_trie(rows: Sequence[Ids], limits: Sequence[int]) -> Prefixes:
    """All that can be shared: together the rows read each edge of their trie once.

    Where paths part, the row with most others behind it goes on and the others continue it, so
    that none waits for more than log2 of their number (heavy paths; Sleator and Tarjan 1983).
    """
    found = no_prefixes(len(rows))
    # Big-endian bytes sort as the ids do, and Python compares them at memory speed.
    order = sorted(range(len(rows)), key=lambda i: rows[i].astype(">u4").tobytes())
    common = np.array([_common(rows[a], rows[b]) for a, b in pairwise(order)], dtype=np.int64)
    # Neighbours that share most are joined first; each group is led by the row that goes on.
    group = list(range(len(order)))
    leader = list(order)
    size = [1] * len(order)

    def group_of(place: int) -> int:
        while group[place] != place:
            group[place] = group[group[place]]
            place = group[place]
        return place

    for place in np.argsort(-common, kind="stable"):
        if common[place] == 0:
            break
        larger, smaller = group_of(int(place)), group_of(int(place) + 1)
        if size[larger] < size[smaller]:
            larger, smaller = smaller, larger
        row = leader[smaller]
        shared = min(int(common[place]), limits[row])
        if shared > 0:
            found.parents[row], found.shared[row] = leader[larger], shared
        group[smaller] = larger
        size[larger] += size[smaller]
    return found


def _common(a: Ids, b: Ids) -> int:
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def _pruned(whole: Prefixes, deepest: int, rows: Sequence[Ids]) -> Prefixes:
    """Without steps below ``deepest``, and without rows kept for less than that costs.

    What continued a row that is no longer kept continues the one before it.
    """
    parents, shared = whole.parents.tolist(), whole.shared.tolist()
    depths = whole.depths()
    children: list[list[int]] = [[] for _ in rows]
    for row, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(row)
    for row in np.argsort(-depths, kind="stable").tolist():  # from the leaves up
        below = children[row]
        if not below:
            continue
        instead = [min(shared[child], shared[row]) for child in below]
        saved = sum(shared[child] for child in below) - sum(instead)
        uses = 1 + instead.count(0)
        copied = max(shared[child] for child in below) + saved
        if depths[row] < deepest and saved > _COST_OF_USE * uses + _COST_OF_COPY * copied:
            continue
        above = parents[row]
        for child, length in zip(below, instead, strict=True):
            parents[child], shared[child] = above, length
        if above >= 0:
            children[above] += below
        children[row] = []
    return Prefixes(np.array(parents, dtype=np.int64), np.array(shared, dtype=np.int64))


def _cost(plan: Prefixes, rows: Sequence[Ids]) -> float:
    read = sum(map(len, rows)) - int(plan.shared.sum())
    used = _COST_OF_USE * int((plan.parents >= 0).sum())
    return read + used + _COST_OF_COPY * int(plan.shared.sum())
