"""BCH codes against published generators, polynomial division and all error patterns."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_engine.codes.bch import BCH, bch, generator_polynomial
from spex_engine.codes.gf2m import DEGREES, field


def remainder(dividend: int, divisor: int) -> int:
    """Of polynomials over GF(2), bit i the coefficient of x^i."""
    while dividend.bit_length() >= divisor.bit_length():
        dividend ^= divisor << (dividend.bit_length() - divisor.bit_length())
    return dividend


def padded(supports: list[tuple[int, ...]], code: BCH) -> np.ndarray:
    rows = [[*s, *[code.n_message] * (code.t - len(s))] for s in supports]
    return np.array(rows, dtype=np.int16).reshape(-1, code.t)


def patterns(code: BCH) -> tuple[np.ndarray, np.ndarray]:
    """Every set of at most t errors: parity words received, and the messages they stand for."""
    supports, words = [], []
    length = code.n_message + code.n_parity
    generator = generator_polynomial(code.field.m, code.t)
    for size in range(code.t + 1):
        for errors in combinations(range(length), size):
            supports.append(tuple(e - code.n_parity for e in errors if e >= code.n_parity))
            words.append(remainder(sum(1 << e for e in errors), generator))
    return np.array(words, np.uint64), padded(supports, code)


# (m, t) and the generator in octal, as tabulated by Lin & Costello, Error Control Coding
@pytest.mark.parametrize(
    ("m", "t", "octal"),
    [
        (3, 1, "13"),
        (4, 1, "23"),
        (4, 2, "721"),
        (4, 3, "2467"),
        (5, 2, "3551"),
        (5, 3, "107657"),
        (5, 5, "5423325"),
        (6, 2, "12471"),
        (6, 4, "166623567"),
        (6, 5, "1033500423"),
    ],
)
def test_published_generators(m: int, t: int, octal: str) -> None:
    assert generator_polynomial(m, t) == int(octal, 8)


@pytest.mark.parametrize(
    ("m", "t"), [(m, t) for m in DEGREES for t in (1, 2, 3, 5) if 2 * t < 2**m]
)
def test_generators_have_the_roots_they_must(m: int, t: int) -> None:
    gf = field(m)
    generator = generator_polynomial(m, t)
    exponents = np.array([i for i in range(generator.bit_length()) if generator >> i & 1])
    for j in range(1, 2 * t + 1):
        assert np.bitwise_xor.reduce(gf.exponential(exponents * j)) == 0
    assert remainder((1 << gf.order) | 1, generator) == 0


@pytest.mark.parametrize(("n", "t"), [(1, 1), (11, 5), (64, 5), (92, 5), (93, 5), (200, 3)])
def test_parity_is_the_remainder(n: int, t: int) -> None:
    code = bch(n, t)
    generator = generator_polynomial(code.field.m, t)
    expected = [remainder(1 << (code.n_parity + i), generator) for i in range(n)]
    assert code.parity.tolist() == [*expected, 0]
    assert code.encode(padded([(), (0,)], code)).tolist() == [0, expected[0]]


@pytest.mark.parametrize(
    ("n", "m", "n_parity"),
    [(11, 5, 20), (36, 6, 27), (64, 7, 35), (92, 7, 35), (215, 8, 40), (1000, 11, 55)],
)
def test_parity_lengths_of_the_paper(n: int, m: int, n_parity: int) -> None:
    code = bch(n, 5)
    assert (code.field.m, code.n_parity) == (m, n_parity)


@pytest.mark.parametrize(
    ("n", "t"), [(1, 1), (4, 1), (3, 1), (7, 2), (5, 2), (5, 3), (3, 3), (1, 3), (16, 3), (21, 2)]
)
def test_every_error_pattern_within_reach(n: int, t: int) -> None:
    code = bch(n, t)
    words, expected = patterns(code)
    messages, rows = code.decode(words)
    np.testing.assert_array_equal(rows, np.arange(len(words)))
    np.testing.assert_array_equal(messages, expected)


@pytest.mark.parametrize(("n", "t"), [(7, 2), (5, 2), (4, 2), (5, 3), (2, 3), (6, 1)])
def test_every_word_there_is(n: int, t: int) -> None:
    """Within reach or beyond it: a table of coset leaders knows."""
    code = bch(n, t)
    words, expected = patterns(code)
    table = dict(zip(words.tolist(), expected.tolist(), strict=True))
    every = np.arange(2**code.n_parity, dtype=np.uint64)
    messages, rows = code.decode(every)
    assert dict(zip(rows.tolist(), messages.tolist(), strict=True)) == table
    assert (np.diff(rows) > 0).all()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 1992), t=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_random_errors_in_large_codes(n: int, t: int, seed: int) -> None:
    code = bch(n, t)
    rng = np.random.default_rng(seed)
    supports, flips = [], np.zeros(50, np.uint64)
    for row in range(50):
        size = rng.integers(0, t + 1)
        errors = rng.choice(n + code.n_parity, min(size, n + code.n_parity), replace=False)
        supports.append(tuple(sorted((errors[errors >= code.n_parity] - code.n_parity).tolist())))
        flips[row] = sum(1 << int(e) for e in errors if e < code.n_parity)
    expected = padded(supports, code)
    messages, rows = code.decode(code.encode(expected) ^ flips)
    np.testing.assert_array_equal(rows, np.arange(50))
    np.testing.assert_array_equal(messages, expected)


@pytest.mark.parametrize(("n", "t"), [(64, 5), (64, 3), (1000, 5)])
def test_what_is_decoded_from_random_words_is_within_reach(n: int, t: int) -> None:
    code = bch(n, t)
    words = np.random.default_rng(0).integers(0, 2**code.n_parity, 20_000, dtype=np.uint64)
    messages, rows = code.decode(words)
    flips = [int(w).bit_count() for w in words[rows] ^ code.encode(messages)]
    assert (np.array(flips) + (messages < n).sum(axis=1) <= t).all()
    assert 0 < len(rows) < 20_000 / 10


def test_nothing_to_decode() -> None:
    messages, rows = bch(20, 3).decode(np.zeros(0, np.uint64))
    assert messages.shape == (0, 3)
    assert rows.shape == (0,)


def test_codes_are_cached() -> None:
    assert bch(64, 5) is bch(64, 5)


@pytest.mark.parametrize(
    ("n", "t", "message"),
    [
        (0, 1, "n_message: 0, t: 1, expected 1 or more"),
        (5, 0, "n_message: 5, t: 0, expected 1 or more"),
        (1993, 5, "n_message: 1993, t: 5: no code of at most 64 parity bits and length 2047"),
        (1000, 6, "n_message: 1000, t: 6: no code"),
    ],
)
def test_codes_that_there_are_not(n: int, t: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bch(n, t)
