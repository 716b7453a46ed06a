"""The group view: what was found out about features, read as a function of groups of them.

Knows sparse coefficients and a partition of the features; not which index is read from the result,
nor what a group is to a person. Where all features of a group are kept or dropped together, its
sign counts once for each of them, so that a character keeps the groups that hold an odd number of
its features: ``chi_S`` becomes ``chi_T``. That is exact and needs no new measurement.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from spex_engine.fourier import SparseFourier, Support

Ints = npt.NDArray[np.int64]


def group_view(f: SparseFourier, groups: Sequence[Sequence[int]]) -> SparseFourier:
    """``f`` as a function of which groups are kept: its features are the numbers of the groups.

    ``groups``: disjoint sequences of features that cover all of them; an empty one is a feature
    that nothing depends on. Coefficients that fall together add up, and their covariance goes
    through the same map; terms are in the order in which ``f`` first reaches them. ValueError for
    unfit groups.
    """
    if not isinstance(f, SparseFourier):
        raise ValueError(f"f: {type(f).__name__}, expected a SparseFourier (explanation.fourier)")
    group_of = checked_groups(groups, f.n_features).tolist()
    row_of: dict[Support, int] = {}
    rows = np.empty(len(f.supports), dtype=np.int64)
    for column, support in enumerate(f.supports):
        odd: set[int] = set()
        for feature in support:
            odd ^= {group_of[feature]}
        rows[column] = row_of.setdefault(tuple(sorted(odd)), len(row_of))
    shape = len(row_of), len(f.supports)
    fold = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=shape)
    covariance = f.covariance
    if covariance is not None:
        # each term goes to one row: independent errors stay so, and their variances add up
        covariance = fold @ covariance if covariance.ndim == 1 else fold @ (fold @ covariance).T
    coefficients = fold @ f.coefficients
    return SparseFourier(len(groups), f.method, tuple(row_of), coefficients, covariance)


def checked_groups(groups: Sequence[Sequence[int]], n_features: int) -> Ints:
    """The group of each feature, int (n,); ValueError unless each is in exactly one group."""
    try:
        members = [operator.index(i) for group in groups for i in group]
    except TypeError:
        raise ValueError(f"groups: {groups!r}, expected sequences of feature numbers") from None
    if sorted(members) != list(range(n_features)):
        raise ValueError(
            f"groups: {[tuple(group) for group in groups]}, expected each of the features "
            f"0..{n_features - 1} exactly once"
        )
    group_of = np.zeros(n_features, dtype=np.int64)
    for number, group in enumerate(groups):
        group_of[list(group)] = number
    return group_of
