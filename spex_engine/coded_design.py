"""Coded sampling: masks whose values, transformed, hash every coefficient into a few bins.

For C groups, each with its own random ``M_c`` in {0,1}^(n x b) and delays ``d_p``, the masks are
``M_c l + d_p`` (mod 2) for all l in {0,1}^b. The transform of their values over l is

    U_{c,p}[j] = 2^-b sum_l f(M_c l + d_p) (-1)^<j,l> = sum_{k: M_c' k = j} F(k) (-1)^<d_p,k>

(SPEX, arXiv 2502.13870): the coefficients fall into bins, and within a bin the delays
spell out which support fell there. ``d_0`` is zero and the others are the parities of a BCH code,
so that the signs of a bin with one support of at most t features are its parity word. It knows
masks and values; how bins are decoded is not its business.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from spex_engine.codes.bch import BCH, Positions, bch
from spex_engine.designs import Design, anchor_masks, uniform_masks
from spex_engine.fourier import Floats, Masks
from spex_engine.walsh import fwht

MIN_LEVEL = 3  # 8 bins to a group: below, next to everything collides
_GROUPS = (3, 4, 5)  # two leave a collision in one no second chance; more add little
_MAX_ERRORS = 5  # the order beyond which language shows nothing worth its calls
_EARLY = 3.0  # after a share x of the coded masks, x^(1/3) of the others have come
_MIN_TEST, _ENOUGH_TEST, _MAX_TEST = 32, 64, 256


@dataclass(frozen=True, eq=False)
class CodedDesign:
    """What to ask for, and where in it the samples of each transform are.

    ``design``: distinct masks, full and empty first, then ordered so that the samples of every
    smaller b are a prefix, one of its ``rounds``; uniform and leave-one-out masks that filled the
    budget between them.
    ``hashes`` int64 (n + 1, C): row i of ``M_c`` packed, bit j for column j; the last row is zero.
    ``rows`` (C, P + 1, 2^b): the row of the masks for group, delay and l.
    """

    design: Design
    code: BCH
    hashes: npt.NDArray[np.int64]
    rows: npt.NDArray[np.intp]

    @property
    def level(self) -> int:
        """b: there are 2^b bins to a group."""
        return int(self.rows.shape[2]).bit_length() - 1

    def complete_level(self, asked: int) -> int | None:
        """The largest b, at least 3, whose samples are all among the first ``asked`` masks."""
        complete = [
            level
            for level in range(MIN_LEVEL, self.level + 1)
            if self.rows[:, :, : 2**level].max() < asked
        ]
        return complete[-1] if complete else None

    def transform(self, values: Floats, level: int) -> Floats:
        """``U`` at a smaller b, float (C * 2^level, P + 1): bins by delays; values as finite."""
        n_groups, n_delays, _ = self.rows.shape
        bins = np.asarray(fwht(values[self.rows[:, :, : 2**level]]), dtype=np.float64)
        return np.ascontiguousarray(bins.transpose(0, 2, 1)).reshape(n_groups << level, n_delays)

    def bins(self, supports: Positions, level: int) -> npt.NDArray[np.int64]:
        """The row of `transform` that each support falls into in each group, (k, C).

        ``supports`` (k, t): positions, padded with n.
        """
        hashed = np.zeros((len(supports), len(self.rows)), dtype=np.int64)
        for members in supports.T:
            hashed ^= self.hashes.take(members, axis=0)
        hashed &= (1 << level) - 1
        return hashed + (np.arange(len(self.rows)) << level)


def draw_coded(n_features: int, budget: int, seed: int = 0) -> CodedDesign:
    """The coded design for ``budget`` distinct masks in all, equal for equal arguments.

    t is the largest, up to 5, that fits with b = 3 (on language-like games more orders beat more
    bins at every budget), and C and b then give the most bins that fit, so that nearly any budget
    is used up. What the code leaves over goes to a held-out test of uniform masks, the
    leave-one-out masks and uniform masks. ValueError where the budget is too small, naming the
    least one.
    """
    n_groups, level, code = _parameters(n_features, budget)
    rng = np.random.default_rng(seed)
    matrices = np.stack([_full_rank(n_features, level, rng) for _ in range(n_groups)])
    indices = np.arange(2**level)
    shifts = (indices[:, None] >> np.arange(level)) & 1  # (2^b, b)
    cosets = (matrices @ shifts.T & 1).astype(np.bool_)  # (C, n, 2^b)
    bits = np.arange(code.n_parity, dtype=np.uint64)
    parity = (code.parity[:-1, None] >> bits & np.uint64(1)).astype(np.bool_)  # (n, P)
    delays = np.concatenate([np.zeros((1, n_features), np.bool_), parity.T])
    # l slowest: the samples of every smaller b come first
    coded = cosets.transpose(2, 0, 1)[:, :, None, :] ^ delays
    masks, rows = _distinct(
        np.concatenate([anchor_masks(n_features, 2), coded.reshape(-1, n_features)])
    )
    hashes = np.zeros((n_features + 1, n_groups), dtype=np.int64)
    hashes[:-1] = (matrices << np.arange(level)).sum(axis=2).T
    design, moved = _fill_up(masks, budget, rng)
    at = moved[rows[2:]].reshape(2**level, n_groups, len(delays)).transpose(1, 2, 0)
    complete = tuple(int(at[:, :, : 2**b].max()) + 1 for b in range(MIN_LEVEL, level + 1))
    return CodedDesign(replace(design, rounds=complete), code, hashes, at)


def least_budget(n_features: int) -> int:
    """The fewest distinct masks that a coded design makes do with, its held-out ones included.

    ValueError where there is no code for so many features.
    """
    least = _size(_codes(n_features)[-1], _GROUPS[0], MIN_LEVEL) + _MIN_TEST
    return min(least, 2**n_features) if n_features < least.bit_length() else least


def _codes(n_features: int) -> list[BCH]:
    """Those for so many features, from the largest t to the smallest."""
    codes = []
    for t in range(min(n_features, _MAX_ERRORS), 1, -1):
        with suppress(ValueError):  # no code for so many features: perhaps with a smaller t
            codes.append(bch(n_features, t))
    if not codes:
        raise ValueError(f"n_features: {n_features}, more than method 'spex' has codes for")
    return codes


def _parameters(n_features: int, budget: int) -> tuple[int, int, BCH]:
    """C, b and the code."""
    codes = _codes(n_features)
    room = budget - min(max(budget // 100, _MIN_TEST), _ENOUGH_TEST)
    for code in codes:
        fitting = [
            (groups << level, groups, level)
            for groups in _GROUPS
            for level in range(MIN_LEVEL, min(n_features, budget.bit_length()) + 1)
            if _size(code, groups, level) <= room
        ]
        if fitting:
            _, groups, level = max(fitting)
            return groups, level, code
    least = least_budget(n_features)
    raise ValueError(
        f"budget: {budget}, expected at least {least} for method 'spex' with {n_features} features"
    )


def _size(code: BCH, n_groups: int, level: int) -> int:
    """Distinct masks at most: l = 0 gives the same ones in every group; and the full one."""
    return int((n_groups * (2**level - 1) + 1) * (code.n_parity + 1) + 1)


def _full_rank(n: int, b: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A uniform matrix {0,1}^(n x b) of rank b over GF(2); b <= n."""
    while True:
        matrix = rng.integers(0, 2, size=(n, b))
        basis: list[int] = []
        for packed in (matrix << np.arange(b)).sum(axis=1).tolist():
            for vector in basis:
                packed = min(packed, packed ^ vector)
            if packed:
                basis.append(packed)
        if len(basis) == b:
            return matrix


def _distinct(masks: Masks) -> tuple[Masks, npt.NDArray[np.intp]]:
    """The distinct masks, in the order of their first appearance, and the row of each one given."""
    packed = np.packbits(masks, axis=1)
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return masks[first[order]], rank[inverse.ravel()]


def _fill_up(
    masks: Masks, budget: int, rng: np.random.Generator
) -> tuple[Design, npt.NDArray[np.intp]]:
    """The masks, with others between them up to the budget, and where each has gone."""
    n = masks.shape[1]
    spare = budget - len(masks)
    n_test = min(spare, _ENOUGH_TEST)
    alone = anchor_masks(n, budget)[2:]
    taken, _ = _distinct(np.concatenate([masks, alone]))
    extra = taken[len(masks) :] if n_test + len(taken) <= budget else taken[:0]
    others = uniform_masks(n, spare - len(extra), np.concatenate([masks, extra]), rng)
    n_test = min(len(others), max(n_test, min(len(others) // 2, _MAX_TEST)))
    added = np.concatenate([extra, others])
    held_out = np.arange(len(added)) >= len(added) - n_test
    mixed = rng.permutation(len(added))
    ranks = np.concatenate([(np.arange(k) + 0.5) / max(1, k) for k in (len(masks), len(added))])
    ranks[len(masks) :] **= _EARLY  # they can be judged by, and fitted, before a code is complete
    ranks[:2] = -1  # the full and the empty prompt stay first
    order = np.argsort(ranks, kind="stable")
    moved = np.empty_like(order)
    moved[order] = np.arange(len(order))
    kept_out = np.concatenate([np.zeros(len(masks), np.bool_), held_out[mixed]])
    return (
        Design(np.concatenate([masks, added[mixed]])[order], kept_out[order]),
        moved[: len(masks)],
    )
