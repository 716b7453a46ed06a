import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spex_engine.walsh import fwht, inverse_fwht

finite = st.floats(-1e6, 1e6)
batches = st.integers(0, 6).flatmap(
    lambda b: st.integers(1, 3).flatmap(lambda k: arrays(np.float64, (k, 2**b), elements=finite))
)


def walsh_matrix(b: int) -> np.ndarray:
    """(-1)^popcount(s & x), entry by entry."""
    return np.array([[(-1) ** (s & x).bit_count() for x in range(2**b)] for s in range(2**b)])


@given(batches)
def test_equals_the_definition(values: np.ndarray) -> None:
    b = values.shape[-1].bit_length() - 1
    scale = max(1.0, np.abs(values).max())
    expected = values @ walsh_matrix(b).T / 2**b
    np.testing.assert_allclose(fwht(values), expected, rtol=0, atol=1e-13 * scale)


@given(batches)
def test_inverse_undoes_forward_and_leaves_the_input(values: np.ndarray) -> None:
    before = values.copy()
    scale = max(1.0, np.abs(values).max())
    np.testing.assert_allclose(inverse_fwht(fwht(values)), values, rtol=0, atol=1e-12 * scale)
    np.testing.assert_array_equal(values, before)


@given(batches)
def test_parseval(values: np.ndarray) -> None:
    energy = np.mean(values**2, axis=-1)
    np.testing.assert_allclose(np.sum(fwht(values) ** 2, axis=-1), energy, rtol=1e-9, atol=1e-300)


def test_batches_over_leading_axes() -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, 16))
    expected = [[fwht(row) for row in block] for block in values]
    np.testing.assert_array_equal(fwht(values), expected)
    strided = np.moveaxis(values, 0, 1)
    np.testing.assert_array_equal(fwht(strided), np.moveaxis(fwht(values), 0, 1))


@pytest.mark.parametrize(
    ("given_type", "expected"),
    [("f4", "f4"), ("f8", "f8"), ("i8", "f8"), ("?", "f8"), ("f2", "f8")],
)
def test_types(given_type: str, expected: str) -> None:
    assert fwht(np.ones(4, dtype=given_type)).dtype == np.dtype(expected)


@pytest.mark.parametrize("transform", [fwht, inverse_fwht])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (8, 6)])
def test_other_lengths(transform: object, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape .*, expected \(\.\.\., 2\*\*b\)"):
        transform(np.ones(shape))  # type: ignore[operator]


def test_complex_input() -> None:
    with pytest.raises(ValueError, match="values: dtype complex128, expected real"):
        fwht(np.ones(4, dtype=complex))
