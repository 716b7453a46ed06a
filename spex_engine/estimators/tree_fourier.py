"""The exact Walsh-Fourier spectrum of an ensemble of decision trees on kept-or-dropped features.

Knows trees as arrays, and LightGBM's text form of them; not how they were grown. A leaf whose path
asks d features is a function of these alone, not zero on one of their 2^d masks. All leaves of the
ensemble that were reached by the same features are therefore one table of 2^d values, and its
Walsh-Hadamard transform is their share of the spectrum. The sum is what the recursion over the
nodes of each tree arrives at (Gorji, Amrollahi & Krause, arXiv 2410.06300).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from spex_engine.fourier import Floats, Masks, Support
from spex_engine.walsh import fwht

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trees:
    """The trees of an ensemble; its value is the sum of theirs.

    ``features`` int (s,): what each split asks. ``dropped`` and ``kept`` int (s,): where a dropped
    and a kept feature lead, which is a split, or leaf ``-1 - child`` of ``leaves`` float (l,).
    ``roots`` int (t,): the same for each tree.
    """

    features: Integers
    dropped: Integers
    kept: Integers
    leaves: Floats
    roots: Integers


_NONE = np.zeros(0, dtype=np.int64)
NO_TREES = Trees(_NONE, _NONE, _NONE, np.zeros(0), _NONE)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Coefficients float (k,) of k distinct supports, rows of int (k, width).

    A row holds features, strictly increasing, then -1 to the end. The first is the constant.
    """

    supports: Integers
    coefficients: Floats

    def top(self, k: int) -> tuple[list[Support], Floats]:
        """The k largest terms but the constant, strongest first, and their coefficients (k,).

        Ties stay in order; what is zero is left out.
        """
        size = np.abs(self.coefficients[1:])
        at = 1 + np.argsort(-size, kind="stable")[: min(k, np.count_nonzero(size))]
        supports = [tuple(i for i in row if i >= 0) for row in self.supports[at].tolist()]
        return supports, self.coefficients[at]


_FIELDS = ("split_feature", "left_child", "right_child", "threshold", "leaf_value")


def read_trees(text: str) -> Trees:
    """The trees in what LightGBM's ``Booster.model_to_string()`` returns.

    Reading it takes a fraction of what ``dump_model()`` does. ValueError where a split does not
    part 0 from 1.
    """
    fields: dict[str, list[str]] = {name: [] for name in _FIELDS}
    for tree in text.partition("\nend of trees")[0].split("\nTree=")[1:]:
        for line in tree.splitlines():
            name, _, written = line.partition("=")
            if name in fields:
                fields[name].append(written)
    words = {name: " ".join(lines).split() for name, lines in fields.items()}
    features, low, high = (np.array(words[name], dtype=np.int64) for name in _FIELDS[:3])
    thresholds, leaves = (np.array(words[name], dtype=np.float64) for name in _FIELDS[3:])
    if not ((thresholds >= 0) & (thresholds < 1)).all():
        raise ValueError("text: a split does not part 0 from 1, expected trees of 0/1 features")
    n_leaves = np.array([line.count(" ") + 1 for line in fields["leaf_value"]], dtype=np.int64)
    n_splits = n_leaves - 1
    first_split, first_leaf = np.cumsum(n_splits) - n_splits, np.cumsum(n_leaves) - n_leaves
    # children are numbered within their tree; low is where value <= threshold leads
    split, leaf = np.repeat(first_split, n_splits), np.repeat(first_leaf, n_splits)
    dropped, kept = (np.where(child < 0, child - leaf, child + split) for child in (low, high))
    roots = np.where(n_splits > 0, first_split, -1 - first_leaf)
    return Trees(features, dropped, kept, leaves, roots)


def mean(ensembles: Sequence[Trees]) -> Trees:
    """An ensemble whose value is the mean of theirs."""
    n_splits = np.cumsum([0, *(len(trees.features) for trees in ensembles)])
    n_leaves = np.cumsum([0, *(len(trees.leaves) for trees in ensembles)])

    def moved(children: list[Integers]) -> Integers:
        return np.concatenate(
            [
                np.where(child < 0, child - leaf, child + split)
                for child, split, leaf in zip(children, n_splits[:-1], n_leaves[:-1], strict=True)
            ]
        )

    return Trees(
        np.concatenate([trees.features for trees in ensembles]),
        moved([trees.dropped for trees in ensembles]),
        moved([trees.kept for trees in ensembles]),
        np.concatenate([trees.leaves for trees in ensembles]) / len(ensembles),
        moved([trees.roots for trees in ensembles]),
    )


def with_additive(trees: Trees, constant: float, slopes: Floats) -> Trees:
    """The ensemble plus ``constant + sum_i slopes_i chi_i``: one more leaf and n stumps."""
    stumps = np.arange(len(slopes), dtype=np.int64)
    leaf = -1 - (len(trees.leaves) + 2 * stumps)  # of the dropped side; the kept one's is next
    last = np.array([-1 - len(trees.leaves) - 2 * len(slopes)])
    return Trees(
        np.concatenate([trees.features, stumps]),
        np.concatenate([trees.dropped, leaf]),
        np.concatenate([trees.kept, leaf - 1]),
        np.concatenate([trees.leaves, np.column_stack([slopes, -slopes]).reshape(-1), [constant]]),
        np.concatenate([trees.roots, len(trees.features) + stumps, last]),
    )


def spectrum(trees: Trees, n_features: int, max_order: int | None = None) -> Spectrum:
    """All coefficients of supports of up to ``max_order`` (None: any) features, the constant first.

    Exact: nothing is left out as small, and no two supports are ever taken for one. Memory grows
    as 2^depth. ValueError where a path asks a feature twice.
    """
    found: dict[int, list[tuple[Integers, Floats]]] = {0: []}
    for asked, kept, values in _paths(trees):
        depth = asked.shape[1]
        keys, first = _keys(asked, n_features)
        bits = np.int64(1) << np.arange(depth, dtype=np.int64)
        table = np.bincount((keys << depth) + kept @ bits, values, len(first) << depth)
        shares = np.asarray(fwht(table.reshape(-1, 1 << depth)), dtype=np.float64)
        for size in range(min(depth, depth if max_order is None else max_order) + 1):
            chosen = np.array(list(combinations(range(depth), size)), dtype=np.intp)
            terms = asked[first][:, chosen].reshape(len(first) * len(chosen), size)
            some = shares[:, bits[chosen].sum(axis=1)]
            found.setdefault(size, []).append(_summed([terms], [some.reshape(-1)], n_features))
    width = max(found)
    constant = sum(float(share.sum()) for _, share in found.pop(0))
    supports, coefficients = [np.full((1, width), -1)], [np.array([constant])]
    for size, parts in sorted(found.items()):
        terms, sums = _summed([p[0] for p in parts], [p[1] for p in parts], n_features)
        supports.append(np.pad(terms, ((0, 0), (0, width - size)), constant_values=-1))
        coefficients.append(sums)
    return Spectrum(np.concatenate(supports), np.concatenate(coefficients))


def _paths(trees: Trees) -> list[tuple[Integers, Masks, Floats]]:
    """Of each depth that has leaves: features asked, increasing, int (l, depth); which of them are
    kept, bool (l, depth); the values (l,). All trees go down together, a depth at a time.
    """
    found = []
    at = trees.roots
    asked = np.zeros((len(at), 0), dtype=np.int64)
    kept = np.zeros((len(at), 0), dtype=np.bool_)
    while len(at):
        leaf = at < 0
        if leaf.any():
            order = np.argsort(asked[leaf], axis=1)
            features = np.take_along_axis(asked[leaf], order, axis=1)
            if (features[:, 1:] == features[:, :-1]).any():
                raise ValueError("trees: a path asks a feature twice, expected each once")
            sides = np.take_along_axis(kept[leaf], order, axis=1)
            found.append((features, sides, trees.leaves[-1 - at[leaf]]))
        at, asked, kept = at[~leaf], asked[~leaf], kept[~leaf]
        asked = np.tile(np.column_stack([asked, trees.features[at]]), (2, 1))
        side = np.repeat([False, True], len(at))
        kept = np.column_stack([np.tile(kept, (2, 1)), side])
        at = np.concatenate([trees.dropped[at], trees.kept[at]])
    return found


def _summed(
    terms: list[Integers], values: list[Floats], n_features: int
) -> tuple[Integers, Floats]:
    """The distinct rows of all terms (k, size), in lexicographic order, with their values' sums."""
    rows = np.concatenate(terms)
    keys, first = _keys(rows, n_features)
    sums = np.bincount(keys, np.concatenate(values), len(first))
    return rows[first], sums.astype(np.float64, copy=False)


def _keys(rows: Integers, n_features: int) -> tuple[Integers, Integers]:
    """For rows (k, size) of features: the rank (k,) of each row among the distinct ones, in
    lexicographic order, and where each distinct one is first found.
    """
    keys, largest = np.zeros(len(rows), dtype=np.int64), 0
    for column in rows.T:
        if largest >= np.iinfo(np.int64).max // n_features:
            # the next digit would not fit: ranks are as good as keys, and small
            keys = np.unique(keys, return_inverse=True)[1].reshape(-1)
            largest = len(keys)
        keys = keys * n_features + column
        largest = largest * n_features + n_features
    _, first, ranks = np.unique(keys, return_index=True, return_inverse=True)
    return ranks.reshape(-1).astype(np.int64, copy=False), first.astype(np.int64, copy=False)
