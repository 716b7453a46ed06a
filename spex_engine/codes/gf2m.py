"""The finite fields GF(2^m), m = 3..11, by tables of logarithms and powers, on whole arrays.

Elements are integers 0..2^m-1 whose bits are the coefficients of a polynomial in a primitive
element ``alpha`` (= 2), so that addition is XOR. It knows nothing of codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Elements = npt.NDArray[np.int16]

# x^m + ..., bit i the coefficient of x^i: the least primitive polynomial of each degree
_PRIMITIVE = {
    3: 0b1011,
    4: 0b10011,
    5: 0b100101,
    6: 0b1000011,
    7: 0b10000011,
    8: 0b100011101,
    9: 0b1000010001,
    10: 0b10000001001,
    11: 0b100000000101,
}
DEGREES = range(min(_PRIMITIVE), max(_PRIMITIVE) + 1)


@dataclass(frozen=True, eq=False)
class Field:
    """GF(2^m) with ``order = 2^m - 1`` non-zero elements. Get it from `field`.

    ``power`` (4 * order + 1,): ``alpha^i`` for i below ``2 * order``, and zeros from there on;
    ``log`` (2^m,): the exponent, and ``2 * order`` for zero. Sums of two logarithms then look up
    every product, those with zero included, without a case distinction.
    """

    m: int
    order: int
    power: Elements
    log: Elements

    def multiply(self, a: npt.ArrayLike, b: npt.ArrayLike) -> Elements:
        """Products of elements, broadcast: int16."""
        logs: Elements = self.log.take(np.asarray(a)) + self.log.take(np.asarray(b))
        return self.power.take(logs)

    def inverse(self, a: npt.ArrayLike) -> Elements:
        """``1 / a``, int16. ZeroDivisionError where an element is zero."""
        a = np.asarray(a)
        if (a == 0).any():
            raise ZeroDivisionError(f"a: zero has no inverse in GF(2^{self.m})")
        logs: Elements = self.order - self.log[a]
        return self.power[logs]

    def exponential(self, exponents: npt.ArrayLike) -> Elements:
        """``alpha^e`` for integers of either sign, int16."""
        logs: npt.NDArray[np.intp] = np.mod(exponents, self.order)
        return self.power[logs]


@cache
def field(m: int) -> Field:
    """GF(2^m). ValueError for m outside 3..11."""
    if m not in _PRIMITIVE:
        raise ValueError(f"m: {m}, expected {DEGREES.start}..{DEGREES.stop - 1}")
    order = 2**m - 1
    power = np.zeros(4 * order + 1, dtype=np.int16)
    log = np.full(2**m, 2 * order, dtype=np.int16)
    element = 1
    for exponent in range(order):
        power[exponent] = power[exponent + order] = element
        log[element] = exponent
        element <<= 1
        if element >> m:
            element ^= _PRIMITIVE[m]
    power.flags.writeable = log.flags.writeable = False
    return Field(m, order, power, log)
