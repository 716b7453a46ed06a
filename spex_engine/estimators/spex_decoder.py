"""From the bins of a coded design to the supports that explain them: SPEX's message passing.

As in SPEX (arXiv 2502.13870): a bin that holds one support spells it out in the signs
of its delays; what is found is subtracted from the bins of the other groups, where more bins then
hold only one. Where this goes further than the paper: the Chase candidates of every bin and all
supports of low order or of influential features compete by likelihood over all groups at once,
against the price of having been picked among so many; found coefficients are estimated jointly;
and what later turns out superfluous is dropped again. It knows bins, not masks or values.

Supports are positions (k, t) padded with n. A support has at most t members, so its BCH parity
word (one uint64) identifies it: words are what is compared and what signs are read from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from spex_engine.coded_design import CodedDesign
from spex_engine.codes.bch import BCH, Positions, Words
from spex_engine.fourier import Floats

Bools = npt.NDArray[np.bool_]

_MAX_ROUNDS = 100
_N_PATTERNS = 64  # Chase: sets of bits flipped in each bin
_MAX_LISTED = 10_000  # supports of each order that compete without having been decoded
_MARGIN = 2.0  # nats above the price: on noise alone one false find in two to eight runs (measured)
_ROUNDING = 1e-20  # of the largest bin energy
_QUARTILE = -0.6745  # of the standard normal
_BLOCK = 1 << 21  # numbers gathered from bins at once


def decode(
    coded: CodedDesign,
    transform: Floats,
    level: int,
    *,
    max_order: int | None = None,
    soft: bool = True,
) -> Positions:
    """The supports found in ``transform`` (C * 2^level, P + 1) of ``coded``, (k, t).

    Of at most t and ``max_order`` features, in order of their finding; among them maybe the empty
    one. ``soft`` False decodes only the hard decisions of every bin, and lists no low orders.
    """
    code = coded.code
    order = code.t if max_order is None else min(max_order, code.t)
    ranks = np.full(code.n_message + 1, code.n_message)
    ranks[-1] = 0
    pool = _Terms.of(coded, level, _listed(code, ranks, order if soft else 0))
    found, coefficients = pool.take(np.zeros(0, np.intp)), np.zeros(0)
    dropped = np.zeros(0, np.uint64)
    floor = _ROUNDING * float(np.mean(transform**2, axis=1).max(initial=0.0)) + 1e-300
    residual, seen = transform, np.full_like(transform, np.inf)
    ranked_at = -1  # how many were found when features were ranked last
    for _ in range(_MAX_ROUNDS):
        bins = _worth_decoding(residual, seen, floor)
        seen[bins] = residual[bins]
        decoded, at = _candidates(code, residual[bins], soft)
        fresh = _Terms.of(coded, level, decoded)
        consistent = (fresh.bins == bins[at][:, None]).any(axis=1) & (fresh.sizes <= order)
        pool = pool.with_new(fresh.take(np.flatnonzero(consistent)))
        known = np.isin(pool.words, np.concatenate([found.words, dropped]))
        open_ = pool.take(np.flatnonzero(~known))
        worth = _gains(open_, residual, None, floor) - _prices(open_, ranks)
        chosen = np.flatnonzero((worth > _MARGIN) & _best_in_its_bins(open_.bins, worth))
        if len(chosen) == 0:
            if not soft or len(found.words) == ranked_at:
                break
            ranked_at = len(found.words)
            ranks = _ranks(found, coefficients)
            pool = pool.with_new(_Terms.of(coded, level, _listed(code, ranks, order)))
            continue
        found = found.joined(open_.take(chosen))
        kept = np.zeros(len(found.words), np.bool_)
        while not kept.all():
            coefficients = _estimates(found, transform)
            residual = transform - _image(found, coefficients, transform.shape)
            kept = _gains(found, residual, coefficients, floor) > _prices(found, ranks)
            dropped = np.concatenate([dropped, found.words[~kept]])
            found, coefficients = found.take(np.flatnonzero(kept)), coefficients[kept]
    return found.supports


@dataclass(frozen=True, eq=False)
class _Terms:
    """Supports (k, t), their parity words (k,), sizes (k,) and bins (k, C)."""

    code: BCH
    supports: Positions
    words: Words
    sizes: npt.NDArray[np.intp]
    bins: npt.NDArray[np.int64]

    @staticmethod
    def of(coded: CodedDesign, level: int, supports: Positions) -> _Terms:
        words = coded.code.encode(supports)
        sizes = (supports < coded.code.n_message).sum(axis=1)
        return _Terms(coded.code, supports, words, sizes, coded.bins(supports, level))

    def take(self, rows: npt.NDArray[np.intp]) -> _Terms:
        return replace(
            self,
            supports=self.supports[rows],
            words=self.words[rows],
            sizes=self.sizes[rows],
            bins=self.bins[rows],
        )

    def joined(self, other: _Terms) -> _Terms:
        return replace(
            self,
            supports=np.concatenate([self.supports, other.supports]),
            words=np.concatenate([self.words, other.words]),
            sizes=np.concatenate([self.sizes, other.sizes]),
            bins=np.concatenate([self.bins, other.bins]),
        )

    def with_new(self, other: _Terms) -> _Terms:
        both = self.joined(other)
        _, first = np.unique(both.words, return_index=True)
        return both.take(np.sort(first)) if len(first) < len(both.words) else both

    def signs(self) -> Floats:
        """The signs that each support has at each delay, +-1 (k, P + 1); the first is always +1."""
        octets = self.words.astype("<u8").view(np.uint8).reshape(-1, 8)
        bits = np.unpackbits(octets, axis=1, count=self.code.n_parity, bitorder="little")
        signs = np.ones((len(self.words), 1 + self.code.n_parity))
        signs[:, 1:] -= 2.0 * bits
        return signs


def _worth_decoding(residual: Floats, seen: Floats, floor: float) -> npt.NDArray[np.intp]:
    """Bins with more energy than noise has, that have changed since they were last decoded.

    The noise level is read off the lower quartile of all bins, which holds where a quarter of them
    is empty and is too high otherwise: then the fuller bins go first, and it falls as they empty.
    """
    delays = residual.shape[1]
    energy = np.mean(residual**2, axis=1)
    spread = 2 / (9 * delays)  # Wilson & Hilferty: chi-square quantiles from normal ones
    quartile = (1 - spread + _QUARTILE * spread**0.5) ** 3
    noise = max(float(np.quantile(energy, 0.25)) / quartile, floor)
    changed = np.mean((residual - seen) ** 2, axis=1) > 0.02 * energy
    return np.flatnonzero((energy > noise * (1 + (2 / delays) ** 0.5)) & changed)


def _candidates(code: BCH, bins: Floats, soft: bool) -> tuple[Positions, npt.NDArray[np.intp]]:
    """Supports decoded from bins (r, P + 1) as if each held one, and the row of each, (k, t), (k,).

    A bit is whether a delay's sign differs from that of delay zero. Soft: Chase's second algorithm
    (1972) with the patterns of least total reliability |U| among the 2t least reliable signs.
    Delay zero is one of them: with its sign flipped, every bit is.
    """
    n_patterns = 1
    bits = (bins[:, 1:] < 0) ^ (bins[:, :1] < 0)
    octets = np.zeros((len(bins), 8), np.uint8)
    packed = np.packbits(bits, axis=1, bitorder="little")
    octets[:, : packed.shape[1]] = packed
    words = octets.view("<u8").astype(np.uint64)  # (r, 1)
    if soft:
        depth = min(2 * code.t, bins.shape[1])
        n_patterns = min(_N_PATTERNS, 2**depth)
        reliability = np.abs(bins)
        weakest = np.argpartition(reliability, depth - 1, axis=1)[:, :depth]
        every = np.uint64(2**code.n_parity - 1)
        flips = np.concatenate([[every], np.uint64(1) << np.arange(code.n_parity, dtype=np.uint64)])
        costs, words = np.zeros((len(bins), 1)), words
        for i in range(depth):  # by doubling: all 2^depth patterns
            column = weakest[:, i, None]
            costs = np.hstack([costs, costs + np.take_along_axis(reliability, column, axis=1)])
            words = np.hstack([words, words ^ flips[column]])
        cheapest = np.argpartition(costs, n_patterns - 1, axis=1)[:, :n_patterns]
        words = np.take_along_axis(words, cheapest, axis=1)
    supports, rows = code.decode(words.ravel())
    return supports, rows // n_patterns


def _gains(terms: _Terms, residual: Floats, own: Floats | None, floor: float) -> Floats:
    """Log-likelihood that each term adds to bins that are otherwise as in ``residual``, (k,).

    Every bin's noise is Gaussian of unknown variance, other supports in it included, so that a bin
    contributes ``(P + 1) / 2 ln(energy without / energy with)``; the coefficient is common to the
    groups, weighted by the bins' precision. ``own``: what of each term is already subtracted.
    """
    delays = residual.shape[1]
    block = max(1, _BLOCK // (terms.bins.shape[1] * delays))
    parts = [np.zeros(0)]
    power = np.einsum("rp,rp->r", residual, residual) / delays
    for start in range(0, len(terms.words), block):
        some = terms.take(np.arange(start, min(start + block, len(terms.words))))
        signs = some.signs()
        match = np.stack(
            [np.einsum("kp,kp->k", residual[column], signs) for column in some.bins.T], axis=1
        )
        match /= delays
        energy = power[some.bins]
        if own is not None:
            back = own[start : start + block, None]
            energy = energy + back * (2 * match + back)
            match = match + back
        precision = 1 / (np.maximum(energy - match**2, 0) + floor)
        value = np.sum(precision * match, axis=1, keepdims=True) / precision.sum(axis=1)[:, None]
        left = np.maximum(energy - value * (2 * match - value), 0)
        parts.append(delays / 2 * np.log((energy + floor) / (left + floor)).sum(axis=1))
    return np.concatenate(parts)


def _best_in_its_bins(bins: npt.NDArray[np.int64], worth: Floats) -> Bools:
    """Whether each candidate is the best one in all of its bins: the others can wait a round."""
    best = np.full(int(bins.max(initial=0)) + 1, -np.inf)
    np.maximum.at(best, bins.ravel(), np.repeat(worth, bins.shape[1]))
    return np.asarray((worth[:, None] >= best[bins]).all(axis=1))


def _estimates(terms: _Terms, transform: Floats) -> Floats:
    """Least-squares coefficients (k,) of the terms together; two terms meet only in shared bins."""
    signs = terms.signs()
    moments = np.zeros(len(signs))
    shared = np.zeros((len(signs), len(signs)))
    for column in terms.bins.T:
        moments += np.einsum("kp,kp->k", transform[column], signs)
        shared += column[:, None] == column
    gram = shared * (signs @ signs.T)
    # more terms than bins can tell apart have no unique answer: the smallest one
    gram[np.diag_indices_from(gram)] *= 1 + 1e-12
    return np.asarray(np.linalg.solve(gram, moments), dtype=np.float64)


def _image(terms: _Terms, coefficients: Floats, shape: tuple[int, ...]) -> Floats:
    """What the terms contribute to every bin, (bins, P + 1)."""
    image = np.zeros(shape)
    contributions = coefficients[:, None] * terms.signs()
    for column in terms.bins.T:
        np.add.at(image, column, contributions)
    return image


def _ranks(found: _Terms, coefficients: Floats) -> npt.NDArray[np.intp]:
    """Features from 1, the most influential, to n, which all without influence share: (n + 1,).

    Influence is ``sum_{S with i} F(S)^2`` over what was found. The last is 0, for the padding.
    """
    n = found.code.n_message
    influence = np.bincount(
        found.supports.ravel(),
        weights=np.repeat(coefficients**2, found.code.t),
        minlength=n + 1,
    )
    ranks = np.zeros(n + 1, dtype=np.intp)
    ranks[np.argsort(-influence[:n], kind="stable")] = np.arange(1, n + 1)
    ranks[:n][influence[:n] == 0] = n
    return ranks


def _prices(terms: _Terms, ranks: npt.NDArray[np.intp]) -> Floats:
    """What naming each support costs, in nats (k,): -ln of its prior up to a common factor.

    ``ln C(n, d)`` names any of its order d. Naming the rank r of its least influential member
    first, by a 1 / r prior, and then the support among the ``C(r, d)``, costs ``ln C(r, d)`` and
    the normalisation: less where influential features interact, as they do in language
    (heredity: Bien, Taylor & Tibshirani 2013).
    """
    n = terms.code.n_message
    least = ranks[terms.supports].max(axis=1)
    by_order = _log_comb(n, terms.sizes)
    by_rank = _log_comb(least, terms.sizes) + np.log(np.maximum(terms.sizes, 1) * (1 + np.log(n)))
    return np.asarray(np.minimum(by_order, by_rank), dtype=np.float64)


def _listed(code: BCH, ranks: npt.NDArray[np.intp], max_order: int) -> Positions:
    """All supports among the most influential features, as many for each order as can be listed.

    All features for order 1. Features that share the last rank compete only where all can.
    """
    n = code.n_message
    ordered = np.argsort(ranks[:n], kind="stable")
    rows = [np.full((1, code.t), n, np.int16)]
    for order in range(1, max_order + 1):
        top = n
        while order > 1 and comb(top, order) > _MAX_LISTED:
            top -= 1
        if top < n:
            top = min(top, int(np.count_nonzero(ranks[:n] < n)))
        listed = np.array(list(combinations(range(top), order)), np.intp).reshape(-1, order)
        rows.append(np.full((len(listed), code.t), n, np.int16))
        rows[-1][:, :order] = np.sort(ordered[listed], axis=1)
    return np.concatenate(rows)


def _log_comb(n: npt.NDArray[np.intp] | int, k: npt.NDArray[np.intp]) -> Floats:
    """``ln C(n, k)``, broadcast, for 0 <= k <= n < 2048: what BCH codes have positions for."""
    logs: Floats = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 2048)))])
    return logs[n] - logs[k] - logs[n - k]
