import numpy as np
import pytest

from spex_engine import SparseFourier, fourier
from spex_engine.fourier import characters, checked_samples


def example(covariance: np.ndarray | None = None) -> SparseFourier:
    supports = ((), (0,), (1, 2), (0, 1, 2))
    return SparseFourier(3, "test", supports, np.array([4.0, -1.0, 2.0, 0.5]), covariance)


def test_predict_is_the_sum_of_signed_coefficients() -> None:
    f = example()
    masks = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], dtype=bool)
    expected = [
        sum(c * (-1) ** sum(int(mask[i]) for i in s) for s, c in f.to_dict().items())
        for mask in masks
    ]
    np.testing.assert_allclose(f.predict(masks), expected, rtol=0, atol=1e-15)


def test_predict_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.random.default_rng(0).random((50, 3)) < 0.5
    whole = example().predict(masks)
    monkeypatch.setattr(fourier, "_CHUNK", 12)
    np.testing.assert_array_equal(example().predict(masks), whole)


def test_predict_without_masks_terms_or_features() -> None:
    assert example().predict(np.zeros((0, 3), bool)).shape == (0,)
    nothing = SparseFourier(2, "test", (), np.zeros(0))
    np.testing.assert_array_equal(nothing.predict(np.ones((3, 2), bool)), np.zeros(3))
    constant = SparseFourier(0, "test", ((),), np.array([2.5]))
    np.testing.assert_array_equal(constant.predict(np.ones((2, 0), bool)), [2.5, 2.5])


def test_characters() -> None:
    signs = characters(np.array([[True, True], [True, False]]), [(), (0,), (1,), (0, 1)])
    np.testing.assert_array_equal(signs, [[1, -1, -1, 1], [1, -1, 1, -1]])


def test_top_keeps_the_strongest_and_their_covariance() -> None:
    square = np.diag([1.0, 2.0, 3.0, 4.0])
    square[1, 2] = square[2, 1] = 0.5
    top = example(square).top(3)
    assert top.supports == ((), (1, 2), (0,))
    assert top.coefficients.tolist() == [4.0, 2.0, -1.0]
    assert top.covariance is not None
    assert top.covariance.tolist() == [[1.0, 0, 0], [0, 3.0, 0.5], [0, 0.5, 2.0]]
    variances = example(np.arange(4.0)).top(2).covariance
    assert variances is not None
    assert variances.tolist() == [0.0, 2.0]
    assert example().top(0).supports == ()
    assert len(example().top(9).supports) == 4
    with pytest.raises(ValueError, match="k: -1"):
        example().top(-1)


def test_top_breaks_ties_by_size_then_members() -> None:
    f = SparseFourier(3, "test", ((0, 1), (2,), (0,), ()), np.array([1.0, -1.0, 1.0, 1.0]))
    assert f.top(4).supports == ((), (0,), (2,), (0, 1))


def test_arrays_are_read_only_copies() -> None:
    coefficients = np.ones(1)
    f = SparseFourier(1, "test", ((0,),), coefficients)
    coefficients[0] = 9
    assert f.coefficients[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        f.coefficients[0] = 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, (), []), "n_features: -1"),
        ((2.0, (), []), "n_features: 2.0, expected an integer"),
        ((2, ((1, 0),), [1.0]), r"supports: \(1, 0\), expected strictly increasing"),
        ((2, ((0, 0),), [1.0]), r"supports: \(0, 0\), expected strictly increasing"),
        ((2, ((2,),), [1.0]), r"supports: \(2,\), expected features 0\.\.1"),
        ((2, ((-1,),), [1.0]), r"supports: \(-1,\), expected features 0\.\.1"),
        ((2, ((0,), (0,)), [1.0, 2.0]), "given twice"),
        ((2, ((0,),), [1.0, 2.0]), r"coefficients: shape \(2,\), expected \(1,\)"),
        ((2, ((0,),), [np.nan]), "coefficients: expected finite"),
        ((2, ((0,),), [1.0], [1.0, 2.0]), r"covariance: shape \(2,\), expected \(1,\) or \(1, 1\)"),
        ((2, ((0,),), [1.0], [-1.0]), "covariance: a variance is negative"),
        ((2, ((0,), (1,)), [1.0, 1.0], [[1, 2], [0, 1]]), "covariance: not symmetric"),
    ],
)
def test_what_does_not_fit_together(arguments: tuple, message: str) -> None:
    n, supports, coefficients, *covariance = arguments
    with pytest.raises(ValueError, match=message):
        SparseFourier(n, "test", supports, coefficients, *covariance)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([[True] * 3], r"masks: got list, expected a bool array \(m, 3\)"),
        (np.ones((2, 3), int), r"masks: got int64, expected a bool array \(m, 3\)"),
        (np.ones((2, 4), bool), r"masks: shape \(2, 4\), expected \(m, 3\)"),
        (np.ones(3, bool), r"masks: shape \(3,\), expected \(m, 3\)"),
    ],
)
def test_predict_on_unfit_masks(masks: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example().predict(masks)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"values: shape \(1,\), expected \(2,\), one per mask"),
        ([1.0, np.nan], "values: 1 of 2 are NaN or infinite"),
        (["a", "b"], r"values: expected real numbers \(2,\)"),
    ],
)
def test_unfit_values(values: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_samples(np.ones((2, 3), bool), values)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match=r"masks: shape \(0, 3\), expected at least one mask"):
        checked_samples(np.ones((0, 3), bool), [])
