"""Masks drawn by what each segment is, so that most of them outlive an edit of the prompt.

Every segment has an identity, bytes that stay while its text does, wherever it stands. A mask whose
value is known from before is worth as much as one that is asked for anew, so a design should hold
as many masks as it can whose segments are all unchanged. It knows identities, not what they are of.

Bits that are hashed for each mask and segment would not do: after an edit the new bit equals the
old one half of the time, so that of the masks that leave the segment out half are lost. Instead a
mask is drawn if the hash of what it *keeps* says so: then those that leave a segment out are drawn
or not whatever its text may be, and all of them outlive its edit. With few segments the hash of
each mask is looked at; with many it is linear over GF(2), so that the masks with a given hash are
the solutions of linear equations (n equations for n segments: one mask, on the average).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spex_engine.fourier import Masks

Words = npt.NDArray[np.uint64]

MAX_SOLVED = 200  # segments; beyond, the equations cost seconds, and bits are hashed one by one
_ENTRIES = 1 << 20  # of the matrices that are solved together
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class HashedMasks:
    """Streams of masks, each fixed by its number, the seed and the identities alone.

    ``keys`` uint64 (n,): a hash of each identity.
    """

    keys: Words
    seed: int

    @classmethod
    def of(cls, identities: Sequence[bytes], seed: int) -> HashedMasks:
        digests = [hashlib.blake2b(i, digest_size=8).digest() for i in identities]
        return cls(np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64), seed)

    def ordered(self, masks: Masks, stream: int) -> Masks:
        """``masks``, all there are in binary counting order (2^n, n), in the order of hashes."""
        hashes = np.zeros(1, np.uint64)
        for key in self.keys:
            hashes = np.concatenate([hashes, hashes ^ key])
        return masks[np.argsort(_mixed(hashes ^ self._salts(stream, 0, 1)), kind="stable")]

    def uniform(self, count: int, stream: int) -> Iterator[Masks]:
        """Batches of about ``count`` uniform masks, not all of them distinct, without end."""
        n = len(self.keys)
        size = count if n > MAX_SOLVED else max(1, min(count, _ENTRIES // (n * n)))
        start = 0
        while True:
            rows = slice(start, start + size)
            yield self._bits(stream, rows) if n > MAX_SOLVED else self._solutions(stream, rows)
            start += size

    def near_full(self, count: int, most: int, stream: int) -> Iterator[Masks]:
        """Batches of masks that lack 1 to ``most`` features, each number as likely as the others.

        Those that lack a feature stay, but for the few in which another takes its place.
        """
        start = 0
        while True:
            hashes = self._hashes(stream, slice(start, start + count), 1)[:, :, 0]
            sizes = self._salts(stream + 1, start, count) % np.uint64(most) + np.uint64(1)
            yield hashes.argsort(axis=1).argsort(axis=1) >= sizes[:, None].astype(np.intp)
            start += count

    def _bits(self, stream: int, rows: slice) -> Masks:
        highest: Masks = self._hashes(stream, rows, 1)[:, :, 0] >> np.uint64(63) == 1
        return highest

    def _solutions(self, stream: int, rows: slice) -> Masks:
        """For each row all masks x with ``sum_i x_i key_i = c`` over GF(2), keys of n bits."""
        n = len(self.keys)
        words = -(-n // 64)
        hashes = self._hashes(stream, rows, words)  # (g, n, words)
        sides = _mixed(self._word_salts(stream, rows, words) + _GOLDEN)[:, None, :]
        equations = _unpacked(np.concatenate([hashes, sides], axis=1))[:, :, :n]
        return _solved(equations.transpose(0, 2, 1))

    def _hashes(self, stream: int, rows: slice, words: int) -> Words:
        """Of each row and segment, (rows, n, words)."""
        salts = self._word_salts(stream, rows, words)
        return _mixed(self.keys[None, :, None] ^ salts[:, None, :])

    def _word_salts(self, stream: int, rows: slice, words: int) -> Words:
        """(rows, words); the first words are the same however many there are."""
        salts = self._salts(stream, rows.start, rows.stop - rows.start)
        return _mixed(salts[:, None] + np.arange(words, dtype=np.uint64) * _GOLDEN)

    def _salts(self, stream: int, start: int, count: int) -> Words:
        named = hashlib.blake2b(f"{self.seed} {stream}".encode(), digest_size=8).digest()
        first = np.frombuffer(named, dtype="<u8").astype(np.uint64)
        return _mixed(first + np.arange(start, start + count, dtype=np.uint64) * _GOLDEN)


def _mixed(words: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): every bit depends on every other."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _unpacked(words: Words) -> Masks:
    """The bits of words (..., w), lowest first, (..., 64 w)."""
    octets = np.ascontiguousarray(words, dtype="<u8").view(np.uint8)
    return np.unpackbits(octets, axis=-1, bitorder="little").view(np.bool_)


def _packed(bits: Masks) -> Words:
    """Words (..., w) of bits (..., k), k <= 64 w."""
    spare = -bits.shape[-1] % 64
    padded = np.concatenate([bits, np.zeros((*bits.shape[:-1], spare), np.bool_)], axis=-1)
    octets = np.packbits(padded, axis=-1, bitorder="little")
    return octets.view("<u8").astype(np.uint64)


def _solved(equations: Masks) -> Masks:
    """All solutions over GF(2) of systems (g, n, n + 1), right side last, one after the other.

    Gauss-Jordan elimination of all systems at once.
    """
    systems, n = equations.shape[:2]
    rows = _packed(equations)
    pivots = np.full((systems, n), -1)  # the row that determines each unknown
    used = np.zeros((systems, n), np.bool_)
    for unknown in range(n):
        word, place = divmod(unknown, 64)
        there = rows[:, :, word] >> np.uint64(place) & np.uint64(1) == 1
        able = there & ~used
        found = np.flatnonzero(able.any(axis=1))
        at = able[found].argmax(axis=1)
        pivots[found, unknown] = at
        used[found, at] = True
        there[found, at] = False
        cleared = there[found, :, None] * rows[found, at][:, None, :]
        rows[found] ^= cleared
    reduced = _unpacked(rows)[:, :, : n + 1]
    solvable = ~(reduced[:, :, n] & ~used).any(axis=1)
    open_ = pivots < 0
    masks, owners = [np.zeros((0, n), np.bool_)], [np.zeros(0, np.intp)]
    for n_open in np.unique(open_.sum(axis=1)[solvable]).tolist():
        these = np.flatnonzero(solvable & (open_.sum(axis=1) == n_open))
        unknowns = np.nonzero(open_[these])[1].reshape(len(these), n_open)
        # each determined unknown is its row's right side and the open unknowns in that row
        determined = reduced[these[:, None], pivots[these]]  # (k, n, n + 1)
        for choice in range(2**n_open):
            x = determined[:, :, n].copy()
            x[open_[these]] = False
            for j in range(n_open):
                if choice >> j & 1:
                    column = np.take_along_axis(determined, unknowns[:, j, None, None], axis=2)
                    x ^= column[:, :, 0] & ~open_[these]
                    x[np.arange(len(these)), unknowns[:, j]] = True
            masks.append(x)
            owners.append(these)
    order = np.argsort(np.concatenate(owners), kind="stable")
    return np.concatenate(masks)[order]
