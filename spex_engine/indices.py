"""From Fourier coefficients to interaction indices: Shapley, Banzhaf, Moebius and their kin.

Knows sparse coefficients and the definitions of the indices; not what was measured or why. Every
index here is linear in the function and blind to which feature is which, so that the coefficient of
support S reaches the member set T inside it with a weight of the two sizes alone (Owen: of the
sizes that S has in each group). One small exact table per index is all the mathematics; the rest is
one sparse linear map, and error bars go through the same map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from spex_engine.fourier import Floats, SparseFourier, Support
from spex_engine.groups import checked_groups, group_view

Ints = npt.NDArray[np.int64]

INDICES = (
    "Moebius", "CoMoebius", "SV", "BV", "SII", "k-SII", "BII", "STII", "FSII", "FBII", "Fourier",
    "Owen",
)  # fmt: skip
_FIRST_ORDER = ("SV", "BV", "Owen")
_CHUNK = 1 << 22  # covariance entries gathered at once: 32 MiB


@dataclass(frozen=True, slots=True)
class Interaction:
    """What ``members``, sorted features, do together, in the unit of the value function."""

    members: Support
    value: float
    stderr: float | None = None  # None: the coefficients carry no covariance


def interactions(
    f: SparseFourier,
    index: str = "FBII",
    order: int = 2,
    groups: Sequence[Sequence[int]] | None = None,
) -> tuple[Interaction, ...]:
    """The index of every member set of 1..order features, strongest first by |value|.

    Every single feature is listed. Larger sets are listed where some coefficient reaches them and
    the value or its standard error is not exactly zero. Ties: smaller sets first, then by members.
    SV, BV and Owen value single features and have no higher orders. STII, FSII, FBII and k-SII
    are the index *of that order*: their lower orders change with it. Standard errors come exactly
    from the covariance of the coefficients.

    With ``groups``, disjoint sequences of features that cover all of them, the members are numbers
    of groups: the index is that of `group_view`, in which a group is kept or dropped as a whole.
    Owen values are those of single features, which join in groups.

    index: Moebius, CoMoebius; SV (Shapley 1953), BV (Banzhaf 1965); SII, BII (Grabisch,
    Marichal & Roubens 2000); k-SII (Bordt & von Luxburg 2023); STII (Sundararajan et al. 2020);
    FSII, FBII (Tsai et al. 2023, eq. 16 and 13); Fourier; Owen (1977), with ``groups`` only.

    ValueError for an unknown index, an order below 1, unfit groups, and none for Owen values.
    """
    if not isinstance(f, SparseFourier):
        raise ValueError(f"f: {type(f).__name__}, expected a SparseFourier (explanation.fourier)")
    if index not in INDICES:
        raise ValueError(f"index: {index!r}, expected one of {', '.join(INDICES)}")
    if isinstance(order, bool) or not isinstance(order, int | np.integer) or order < 1:
        raise ValueError(f"order: {order!r}, expected an integer of 1 or more")
    owners = None
    if index == "Owen":
        if groups is None:
            raise ValueError("groups: None, expected disjoint sequences of features for 'Owen'")
        owners = checked_groups(groups, f.n_features)
    elif groups is not None:
        f = group_view(f, groups)
    order = int(order)
    found: list[Interaction] = []
    for size in range(1, 2 if index in _FIRST_ORDER else order + 1):
        blocks = _map(f, index, size, order) if owners is None else _owen_map(f, owners)
        found.extend(_apply(f, size, blocks))
    found.sort(key=lambda item: (-abs(item.value), len(item.members), item.members))
    return tuple(found)


# ---- the linear map: blocks of (members (e, t), support (e,), weight (e,)) ---------------------

Block = tuple[Ints, Ints, Floats]


def _by_size(f: SparseFourier) -> Iterator[tuple[int, Ints, Ints]]:
    """Supports of equal size s, s >= 1: (s, their positions (k_s,), their features (k_s, s))."""
    sizes = np.array([len(support) for support in f.supports], dtype=np.int64)
    for s in np.unique(sizes[sizes > 0]).tolist():
        at = np.flatnonzero(sizes == s)
        yield s, at, np.array([f.supports[i] for i in at.tolist()], dtype=np.int64)


def _map(f: SparseFourier, index: str, t: int, order: int) -> Iterator[Block]:
    for s, at, features in _by_size(f):
        if t > s or not (weight := _weight(index, s, t, order)):
            continue
        chosen = np.array(list(combinations(range(s), t)))
        members = features[:, chosen].reshape(-1, t)
        yield members, at.repeat(len(chosen)), np.full(len(members), float(weight))


def _owen_map(f: SparseFourier, group_of: Ints) -> Iterator[Block]:
    """Owen values of a character. Before i come a random number of the groups, and of i's own.

    Joining turns chi_S over, so i gains -2 E[(-1)^(members of S before i)]. Features of one group
    alternate in sign as they come, as do groups holding an odd number of S (even ones change
    nothing); the mean over uniform positions is one over their number where that is odd, else 0.
    """
    for s, at, features in _by_size(f):
        groups = group_of[features]
        same = (groups[:, :, None] == groups[:, None, :]).sum(axis=2)  # |S and g(i)|, (k_s, s)
        odd = same % 2 == 1
        # each group counts once: its members each add one over their number
        odd_groups = np.rint((odd / same).sum(axis=1)).astype(np.int64)[:, None]
        weight = np.where(odd & (odd_groups % 2 == 1), -2.0 / (same * np.maximum(odd_groups, 1)), 0)
        reached = weight != 0
        yield features[reached][:, None], at.repeat(s)[reached.ravel()], weight[reached]


def _apply(f: SparseFourier, t: int, blocks: Iterable[Block]) -> Iterator[Interaction]:
    """The map's interactions of size t; all n features where t is 1."""
    no_ints, no_floats = np.zeros(0, dtype=np.int64), np.zeros(0)
    parts = [(no_ints.reshape(0, t), no_ints, no_floats), *blocks]
    members = np.concatenate([part[0] for part in parts])
    support = np.concatenate([part[1] for part in parts])
    weight = np.concatenate([part[2] for part in parts])
    if t == 1:
        first, row = np.arange(f.n_features, dtype=np.int64)[:, None], members[:, 0]
    else:
        first, row = _distinct(members, f.n_features)
    count = len(first)
    values = np.bincount(row, weights=weight * f.coefficients[support], minlength=count)
    errors = _standard_errors(f.covariance, row, support, weight, count)
    listed = np.ones(count, np.bool_) if t == 1 else values != 0
    if errors is not None:
        listed |= errors > 0
    rows = first[listed].tolist()
    stderrs = [None] * len(rows) if errors is None else errors[listed].tolist()
    for item, value, stderr in zip(rows, values[listed].tolist(), stderrs, strict=True):
        yield Interaction(tuple(item), value, stderr)


def _distinct(members: Ints, n_features: int) -> tuple[Ints, Ints]:
    """Distinct rows of members (e, t), and which of them each row is (e,)."""
    row, at = members[:, 0], np.arange(len(members))
    for column in members.T[1:]:  # renumbered at every step, so that no key can overflow
        _, at, row = np.unique(row * n_features + column, return_index=True, return_inverse=True)
    return members[at], row


def _standard_errors(
    covariance: Floats | None, row: Ints, support: Ints, weight: Floats, count: int
) -> Floats | None:
    """sqrt(diag(L C L')) of the sparse map L; rows with equally many entries go together."""
    if covariance is None:
        return None
    if covariance.ndim == 1:
        return np.sqrt(np.bincount(row, weight**2 * covariance[support], minlength=count))
    order = np.argsort(row, kind="stable")
    support, weight = support[order], weight[order]
    lengths = np.bincount(row, minlength=count)
    starts = np.cumsum(lengths) - lengths
    variances = np.zeros(count)
    for length in np.unique(lengths[lengths > 0]).tolist():
        equal = np.flatnonzero(lengths == length)
        step = max(1, _CHUNK // length**2)
        for some in (equal[i : i + step] for i in range(0, len(equal), step)):
            entries = starts[some][:, None] + np.arange(length)
            s, w = support[entries], weight[entries]
            product = np.matmul(covariance[s[:, :, None], s[:, None, :]], w[:, :, None])
            variances[some] = (w * product[:, :, 0]).sum(axis=1)
    # rounding may leave a tiny negative number where the variance is zero
    return np.sqrt(np.maximum(variances, 0.0))


# ---- the weights -------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _weight(index: str, s: int, t: int, order: int) -> Fraction:
    """What a coefficient on s features adds to each t of them (1 <= t <= s)."""
    alone = Fraction((-2) ** t) if s == t else Fraction(0)
    match index:
        case "Fourier":
            return Fraction(int(s == t))
        case "BII" | "BV":
            return alone
        case "FBII":  # the best fit of that order in the uniform measure is the truncated series
            return Fraction((-2) ** t) if s <= order else Fraction(0)
        case "Moebius":
            return Fraction((-2) ** t)
        case "CoMoebius":
            return Fraction((-2) ** t if (s - t) % 2 == 0 else -((-2) ** t))
        case "SII" | "SV":  # the mean over p of the p-biased derivative: int (1-2p)^(s-t) dp
            return Fraction((-2) ** t, s - t + 1) if (s - t) % 2 == 0 else Fraction(0)
        case "k-SII":  # Bordt & von Luxburg, eq. 8, with Bernoulli numbers B_0, B_1 = -1/2, ...
            return sum(
                (
                    comb(s - t, r - t) * _bernoulli(r - t) * _weight("SII", s, r, order)
                    for r in range(t, min(order, s) + 1)
                ),
                Fraction(0),
            )
    # A unanimity game on r features reaches t of them with _share; chi_S is a sum of such games.
    return sum(
        (comb(s - t, r - t) * (-2) ** r * _share(index, r, t, order) for r in range(t, s + 1)),
        Fraction(0),
    )


def _share(index: str, r: int, t: int, order: int) -> Fraction:
    """What the unanimity game on r features gives each t of them."""
    if t > order:
        return Fraction(0)
    if index == "STII":
        return Fraction(1, comb(r, order)) if t == order else Fraction(int(r == t))
    if r <= order:  # FSII, Tsai et al. eq. 16
        return Fraction(int(r == t))
    sign = -1 if (order - t) % 2 else 1
    scale = Fraction(sign * t * comb(order, t), order + t)
    return scale * Fraction(comb(r - 1, order), comb(r + order - 1, order + t))


@lru_cache(maxsize=64)
def _bernoulli(m: int) -> Fraction:
    if m == 0:
        return Fraction(1)
    total = sum((comb(m + 1, j) * _bernoulli(j) for j in range(m)), Fraction(0))
    return -total / (m + 1)
