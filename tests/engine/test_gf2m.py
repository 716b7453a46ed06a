"""Field arithmetic against polynomials multiplied and reduced bit by bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spex_engine.codes.gf2m import DEGREES, field

# in octal, as tabulated by Lin & Costello, Error Control Coding
PRIMITIVE = {3: "13", 4: "23", 5: "45", 6: "103", 7: "203", 8: "435", 9: "1021", 10: "2011"}
PRIMITIVE[11] = "4005"

elements = st.sampled_from(list(DEGREES)).flatmap(
    lambda m: st.tuples(st.just(m), *[st.integers(0, 2**m - 1)] * 3)
)


def product(a: int, b: int, m: int) -> int:
    total = 0
    for i in range(m):
        total ^= (a << i) * (b >> i & 1)
    modulus = int(PRIMITIVE[m], 8)
    for i in reversed(range(m, 2 * m)):
        total ^= (modulus << (i - m)) * (total >> i & 1)
    return total


@given(elements)
def test_products(drawn: tuple[int, int, int, int]) -> None:
    m, a, b, c = drawn
    gf = field(m)
    assert gf.multiply(a, b) == product(a, b, m)
    assert gf.multiply(a, b ^ c) == gf.multiply(a, b) ^ gf.multiply(a, c)


@pytest.mark.parametrize("m", DEGREES)
def test_every_element_is_a_power_and_has_an_inverse(m: int) -> None:
    gf = field(m)
    everything = np.arange(1, 2**m)
    assert sorted(gf.exponential(np.arange(gf.order)).tolist()) == everything.tolist()
    assert (gf.multiply(everything, gf.inverse(everything)) == 1).all()
    assert (gf.multiply(everything, 0) == 0).all()
    assert gf.multiply(0, 0) == 0
    assert gf.exponential(-1) == gf.inverse(2)


def test_products_broadcast() -> None:
    rows, columns = np.arange(8)[:, None], np.arange(8)
    expected = [[product(a, b, 3) for b in range(8)] for a in range(8)]
    assert field(3).multiply(rows, columns).tolist() == expected


def test_tables_are_shared_and_read_only() -> None:
    assert field(5) is field(5)
    with pytest.raises(ValueError, match="read-only"):
        field(5).power[0] = 3


@pytest.mark.parametrize("m", [2, 12])
def test_other_fields(m: int) -> None:
    with pytest.raises(ValueError, match=rf"m: {m}, expected 3\.\.11"):
        field(m)


def test_zero_has_no_inverse() -> None:
    with pytest.raises(ZeroDivisionError, match=r"no inverse in GF\(2\^4\)"):
        field(4).inverse([3, 0])
