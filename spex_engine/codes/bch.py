"""Primitive narrow-sense binary BCH codes, shortened to a message length, decoded in batches.

What coded sampling needs of them: the parity of every message bit, so that a few parities identify
any support of at most t features, and a decoder that takes many noisy parity words at once. It
knows bits and error patterns, not masks, coefficients or where a word came from.

Position i of a codeword is the coefficient of x^i: 0..n_parity-1 are parity bits, and message bit
i is position ``n_parity + i`` (Lin & Costello, Error Control Coding, 2nd ed., chapter 6).
Words are packed into one uint64, bit i for parity i, hence at most 64 parity bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from spex_engine.codes.gf2m import DEGREES, Elements, Field, field

Words = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int16]

MAX_PARITY = 64
# +-1 for the bits of each octet, lowest first, -1 where set: (256, 8)
SIGNS = 1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], 1, bitorder="little")
_BATCH = 1 << 14  # rows decoded at a time: their tables then stay in cache


@dataclass(frozen=True, eq=False)
class BCH:
    """A code of ``n_message`` message bits that corrects any ``t`` errors. Get it from `bch`.

    ``parity`` uint64 (n_message + 1,): the parity word of each message bit alone; the last is 0,
    so that lists of positions can be padded with ``n_message``. ``syndromes`` int16
    (n_parity, t): the odd power sums S_1, S_3, ..., S_{2t-1} of each parity position.
    """

    field: Field
    n_message: int
    n_parity: int
    t: int
    parity: Words
    syndromes: Elements

    def encode(self, supports: Positions) -> Words:
        """Parity words (r,) of messages given as positions (r, s), padded with ``n_message``.

        No two messages of at most t bits have the same word: the distance is at least 2t + 1.
        """
        words = np.zeros(len(supports), np.uint64)
        for members in supports.T:
            words ^= self.parity.take(members)
        return words

    def decode(self, words: Words) -> tuple[Positions, npt.NDArray[np.intp]]:
        """The messages within reach: of at most t errors, in message and parity bits together.

        ``words`` uint64 (r,) are parity words as received, the message bits received as zeros, so
        that errors in the message part are the message itself. Returns the messages as sorted
        positions (k, t), padded with ``n_message``, and the rows (k,) they were decoded from, in
        order; the other rows have no codeword within t errors.
        """
        found, rows = [np.zeros((0, self.t), np.int16)], [np.zeros(0, np.intp)]
        for start in range(0, len(words), _BATCH):
            messages, at = self._decode(words[start : start + _BATCH])
            found.append(messages)
            rows.append(at + start)
        return np.concatenate(found), np.concatenate(rows)

    def _decode(self, words: Words) -> tuple[Positions, npt.NDArray[np.intp]]:
        locator, degree = self._locators(self._power_sums(words))
        kept = np.flatnonzero(degree <= self.t)
        kept = kept[self._splits(locator[:, kept], degree[kept])]
        # roots are the inverses of alpha^position; only positions the shortened code has count
        length = self.n_message + self.n_parity
        logs = self.field.log[locator[:, kept]].astype(np.intp)  # (t + 1, k)
        values = np.zeros((len(kept), length), dtype=np.int16)
        steps = np.arange(length)
        for power, log in enumerate(logs):
            exponents = log[:, None] + (-power * steps) % self.field.order
            values ^= self.field.power.take(exponents)
        roots = values == 0
        complete = roots.sum(axis=1) == degree[kept]
        roots = roots[complete, self.n_parity :]
        messages = np.full((len(roots), self.t), self.n_message, dtype=np.int16)
        row, position = np.nonzero(roots)
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        messages[row, rank] = position
        return messages, kept[complete]

    @cached_property
    def _syndromes_by_octet(self) -> list[Elements]:
        """For each 8 parity positions: the XOR of the syndromes of those set, (t, 256)."""
        tables = []
        for start in range(0, self.n_parity, 8):
            table = np.zeros((self.t, 256), dtype=np.int16)
            for bit, syndromes in enumerate(self.syndromes[start : start + 8]):
                table[:, 1 << bit : 2 << bit] = table[:, : 1 << bit] ^ syndromes[:, None]
            tables.append(table)
        return tables

    def _power_sums(self, words: Words) -> Elements:
        """S_1 .. S_2t of each word, (2t, r): linear over GF(2) in the bits, and S_2j = S_j^2."""
        sums = np.zeros((2 * self.t, len(words)), dtype=np.int16)
        octets = words.astype("<u8").view(np.uint8).reshape(-1, 8)
        for at, table in enumerate(self._syndromes_by_octet):
            sums[0::2] ^= table.take(octets[:, at], axis=1)
        for j in range(1, self.t + 1):
            sums[2 * j - 1] = self.field.multiply(sums[j - 1], sums[j - 1])
        return sums

    def _locators(self, sums: Elements) -> tuple[Elements, Elements]:
        """Error locators (t + 1, r), lowest coefficient first, and their formal degrees (r,).

        Berlekamp-Massey on all rows at once, without inversions, in the t steps that binary codes
        need: every second discrepancy is zero by S_2j = S_j^2.
        """
        multiply, t = self.field.multiply, self.t
        n_rows = sums.shape[1]
        locator = np.zeros((t + 1, n_rows), dtype=np.int16)
        shifted = np.zeros_like(locator)  # the last locator before the degree grew, times x^age
        locator[0] = shifted[1] = 1
        scale = np.ones(n_rows, dtype=np.int16)  # the discrepancy it had then
        degree = np.zeros(n_rows, dtype=np.int16)
        for step in range(t):
            first = max(0, 2 * step - t)
            window = sums[first : 2 * step + 1][::-1]  # S_{2 step + 1}, and down from there
            products = multiply(locator[: len(window)], window)
            discrepancy = np.bitwise_xor.reduce(products, axis=0)
            grows = (discrepancy != 0) & (degree <= step)
            updated = multiply(scale, locator) ^ multiply(discrepancy, shifted)
            shifted[2:] = np.where(grows, locator, shifted)[:-2]
            shifted[:2] = 0
            scale = np.where(grows, discrepancy, scale)
            degree = np.where(grows, 2 * step + 1 - degree, degree).astype(np.int16)
            locator = updated
        return locator, degree

    def _splits(self, locator: Elements, degree: Elements) -> npt.NDArray[np.bool_]:
        """Whether each locator (t + 1, r) has as many distinct roots in the field as its degree.

        It does where it divides ``x^(2^m) - x``, hence where m squarings of x modulo it give x.
        Most words beyond reach fail here, long before their roots are searched for.
        """
        multiply = self.field.multiply
        fits: npt.NDArray[np.bool_] = (locator[degree, np.arange(len(degree))] != 0) & (
            locator[0] != 0
        )
        for size in range(2, self.t + 1):
            rows = np.flatnonzero(fits & (degree == size))
            if len(rows) == 0:
                continue
            # monic, so that x^size = sum of monic[i] x^i
            monic = multiply(locator[:size, rows], self.field.inverse(locator[size, rows]))
            powers = [monic]  # x^size, x^(size + 1), ... modulo the locator
            for _ in range(size - 2):
                last = powers[-1]
                powers.append(multiply(last[-1], monic))
                powers[-1][1:] ^= last[:-1]
            element = np.zeros_like(monic)
            element[1] = 1
            for _ in range(self.field.m):
                squares = multiply(element, element)
                element = np.zeros_like(monic)
                low = (size + 1) // 2
                element[0 : 2 * low : 2] = squares[:low]
                for i in range(low, size):
                    element ^= multiply(squares[i], powers[2 * i - size])
            element[1] ^= 1
            fits[rows] = (element == 0).all(axis=0)
        return fits


@cache
def bch(n_message: int, t: int) -> BCH:
    """The shortest primitive narrow-sense BCH code for ``t`` errors in ``n_message`` bits.

    Of length ``2^m - 1`` for the least m from 3 that has room, shortened to the message bits
    asked for. ValueError where no m up to 11 has room, or 64 parity bits are too few.
    """
    if n_message < 1 or t < 1:
        raise ValueError(f"n_message: {n_message}, t: {t}, expected 1 or more")
    for m in DEGREES:
        gf = field(m)
        if 2 * t < gf.order:
            generator = generator_polynomial(m, t)
            n_parity = generator.bit_length() - 1
            if n_message + n_parity <= gf.order:
                break
    else:
        n_parity = MAX_PARITY + 1  # no field is large enough
    if n_parity > MAX_PARITY:
        raise ValueError(
            f"n_message: {n_message}, t: {t}: no code of at most {MAX_PARITY} parity bits and "
            f"length {2 ** DEGREES[-1] - 1}"
        )
    parity = np.zeros(n_message + 1, dtype=np.uint64)
    remainder = generator ^ (1 << n_parity)  # x^n_parity modulo the generator
    for i in range(n_message):
        parity[i] = remainder
        remainder <<= 1
        if remainder >> n_parity:
            remainder ^= generator
    odd = np.arange(1, 2 * t, 2)
    syndromes = gf.exponential(np.arange(n_parity)[:, None] * odd)
    parity.flags.writeable = syndromes.flags.writeable = False
    return BCH(gf, n_message, n_parity, t, parity, syndromes)


@cache
def generator_polynomial(m: int, t: int) -> int:
    """The product of the distinct minimal polynomials of alpha, alpha^3, ..., alpha^(2t-1).

    Bit i is the coefficient of x^i. The polynomials are over GF(2), by conjugates: the roots of a
    minimal polynomial are alpha^(j 2^i).
    """
    gf = field(m)
    generator, seen = 1, set[int]()
    for j in range(1, 2 * t, 2):
        conjugates = {j * 2**i % gf.order for i in range(m)}
        if conjugates <= seen:
            continue
        seen |= conjugates
        minimal = np.ones(1, dtype=np.int16)
        for exponent in conjugates:
            times_x = np.append(np.zeros(1, np.int16), minimal)
            times_root = np.append(gf.multiply(minimal, gf.exponential(exponent)), np.int16(0))
            minimal = times_x ^ times_root
        product = 0
        for i, coefficient in enumerate(minimal.tolist()):
            product ^= (generator << i) * coefficient
        generator = product
    return generator
