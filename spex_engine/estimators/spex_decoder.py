"""From the bins of a coded design to the supports that explain them: SPEX's message passing.

As in SPEX (arXiv 2502.13870): a bin that holds one support spells it out in the signs
of its delays; what is found is subtracted from the bins of the other groups, where more bins then
hold only one. Where this goes further than the paper: what every bin spells out and all supports
of low order or of influential features compete by likelihood over all groups at once, against the
price of having been picked among so many; hard decisions go first, and Chase's candidates come
where these lead no further; found coefficients are estimated jointly; and what later turns out
superfluous is dropped again. It knows bins, not masks or values.

Supports are positions (k, t) padded with n. A support has at most t members, so its BCH parity
word (one uint64) identifies it: words are what is compared and what signs are read from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from spex_engine.coded_design import CodedDesign
from spex_engine.codes.bch import BCH, SIGNS, Positions, Words
from spex_engine.estimators import spex_prior
from spex_engine.fourier import Floats

Bools = npt.NDArray[np.bool_]

_MAX_ROUNDS = 100
_N_PATTERNS = 64  # Chase: sets of bits flipped in each bin
_MARGIN = 2.0  # nats above the price: on noise alone one false find in two to eight runs (measured)
_ROUNDING = 1e-20  # of the largest bin energy
_QUARTILE = -0.6745  # of the standard normal
_BLOCK = 1 << 12  # candidates judged at once: what is computed of them then stays in cache


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
    ranks = spex_prior.no_ranks(code.n_message)
    listed = spex_prior.listed(ranks, code.t, order if soft else 0)
    pool = _Terms.of(coded, level, listed)
    found, coefficients = pool.take(np.zeros(0, np.intp)), np.zeros(0)
    proposed, n_patterns = pool.words, 1  # Chase costs more: when hard decisions lead no further
    floor = _ROUNDING * float(np.mean(transform**2, axis=1).max(initial=0.0)) + 1e-300
    residual, seen = transform, np.full_like(transform, np.inf)
    ranked_at = -1  # how many were found when features were ranked last
    for _ in range(_MAX_ROUNDS):
        bins = _worth_decoding(residual, seen, floor)
        seen[bins] = residual[bins]
        decoded, at = _candidates(code, residual[bins], n_patterns)
        fresh = _Terms.of(coded, level, decoded)
        consistent = (fresh.bins == bins[at][:, None]).any(axis=1) & (fresh.sizes <= order)
        fresh = fresh.take(np.flatnonzero(consistent)).but(proposed)
        proposed, pool = np.concatenate([proposed, fresh.words]), pool.joined(fresh)
        worth = _gains(pool, residual, None, floor) - spex_prior.prices(
            pool.supports, pool.sizes, ranks
        )
        chosen = (worth > _MARGIN) & _best_in_its_bins(pool.bins, worth)
        if not chosen.any():
            if not soft or len(found.words) == ranked_at:
                break
            if n_patterns == 1:
                n_patterns, seen[:] = _N_PATTERNS, np.inf
                continue
            ranked_at = len(found.words)
            ranks = spex_prior.ranks(code.n_message, found.supports, coefficients)
            listed = spex_prior.listed(ranks, code.t, order)
            fresh = _Terms.of(coded, level, listed).but(proposed)
            proposed, pool = np.concatenate([proposed, fresh.words]), pool.joined(fresh)
            continue
        found = found.joined(pool.take(np.flatnonzero(chosen)))
        pool = pool.take(np.flatnonzero(~chosen))
        kept = np.zeros(len(found.words), np.bool_)
        while not kept.all():
            coefficients = _estimates(found, transform)
            residual = transform - _image(found, coefficients, transform.shape)
            gains = _gains(found, residual, coefficients, floor)
            kept = gains > spex_prior.prices(found.supports, found.sizes, ranks)
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
            supports=self.supports.take(rows, axis=0),
            words=self.words.take(rows),
            sizes=self.sizes.take(rows),
            bins=self.bins.take(rows, axis=0),
        )

    def joined(self, other: _Terms) -> _Terms:
        return replace(
            self,
            supports=np.concatenate([self.supports, other.supports]),
            words=np.concatenate([self.words, other.words]),
            sizes=np.concatenate([self.sizes, other.sizes]),
            bins=np.concatenate([self.bins, other.bins]),
        )

    def but(self, known: Words) -> _Terms:
        """Each once, without those whose words are among the distinct ``known``."""
        words, first = np.unique(self.words, return_index=True)
        return self.take(first[np.isin(words, known, assume_unique=True, invert=True)])

    def signs(self) -> Floats:
        """The signs that each support has at each delay, +-1 (k, P + 1); the first is always +1."""
        octets = self.words.astype("<u8").view(np.uint8).reshape(-1, 8)
        signs = np.ones((len(self.words), 1 + self.code.n_parity))
        parities = SIGNS.take(octets, axis=0).reshape(len(signs), -1)
        signs[:, 1:] = parities[:, : self.code.n_parity]
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


def _candidates(code: BCH, bins: Floats, n_patterns: int) -> tuple[Positions, npt.NDArray[np.intp]]:
    """Supports decoded from bins (r, P + 1) as if each held one, and the row of each, (k, t), (k,).

    A bit is whether a delay's sign differs from that of delay zero. Soft: Chase's second algorithm
    (1972) with the patterns of least total reliability |U| among the 2t least reliable signs.
    Delay zero is one of them: with its sign flipped, every bit is.
    """
    bits = (bins[:, 1:] < 0) ^ (bins[:, :1] < 0)
    octets = np.zeros((len(bins), 8), np.uint8)
    packed = np.packbits(bits, axis=1, bitorder="little")
    octets[:, : packed.shape[1]] = packed
    words = octets.view("<u8").astype(np.uint64)  # (r, 1)
    if n_patterns > 1:
        depth = min(2 * code.t, bins.shape[1])
        n_patterns = min(n_patterns, 2**depth)
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
    n_delays = residual.shape[1]
    parts = [np.zeros(0)]
    power = np.einsum("rp,rp->r", residual, residual) / n_delays
    sums = _partial_sums(residual)
    for start in range(0, len(terms.words), _BLOCK):
        words = terms.words[start : start + _BLOCK].view(np.int64)
        bins = np.ascontiguousarray(terms.bins[start : start + _BLOCK].T)  # (C, block)
        match = residual[:, 0].take(bins)
        for i, table in enumerate(sums):
            match += table.take(16 * bins + (words >> 4 * i & 15))
        match /= n_delays
        energy = power.take(bins)
        if own is not None:
            back = own[start : start + _BLOCK]
            energy = energy + back * (2 * match + back)
            match = match + back
        precision = 1 / (np.maximum(energy - match**2, 0) + floor)
        value = np.sum(precision * match, axis=0) / precision.sum(axis=0)
        left = np.maximum(energy - value * (2 * match - value), 0)
        parts.append(n_delays / 2 * np.log((energy + floor) / (left + floor)).sum(axis=0))
    return np.concatenate(parts)


def _partial_sums(residual: Floats) -> Floats:
    """For each 4 delays after the first, what they add to a match: by bin and their 4 signs.

    (P / 4 rounded up, bins * 16): each sign pattern once for a bin, and not for each term in it.
    """
    n_bins, n_delays = residual.shape
    padded = np.zeros((n_bins, -(-(n_delays - 1) // 4) * 4))
    padded[:, : n_delays - 1] = residual[:, 1:]
    fours = padded.reshape(n_bins, -1, 4).transpose(1, 0, 2)
    sums: Floats = fours @ SIGNS[:16, :4].T
    return sums.reshape(len(fours), -1)


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
