"""The group view against the game in which a group's features are kept or dropped together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spex_engine import SparseFourier, indices, interactions
from spex_engine.designs import enumerate_masks
from spex_engine.estimators import exact
from spex_engine.groups import group_view

Groups = list[list[int]]


@st.composite
def functions(draw: st.DrawFn) -> tuple[SparseFourier, Groups]:
    """A sparse function of 1 to 7 features and a partition of them, empty groups among it."""
    n = draw(st.integers(1, 7))
    codes = draw(st.lists(st.integers(0, 2**n - 1), unique=True, max_size=12))
    supports = tuple(tuple(i for i in range(n) if code >> i & 1) for code in codes)
    sizes = st.floats(-10, 10)
    coefficients = draw(st.lists(sizes, min_size=len(codes), max_size=len(codes)))
    owners = draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n))
    groups = [[i for i in range(n) if owners[i] == group] for group in range(max(owners) + 1)]
    return SparseFourier(n, "test", supports, np.array(coefficients)), groups


def spread(masks: np.ndarray, groups: Groups, n: int) -> np.ndarray:
    """The masks of features that masks of groups stand for."""
    features = np.zeros((len(masks), n), dtype=np.bool_)
    for number, group in enumerate(groups):
        features[:, group] = masks[:, [number]]
    return features


@given(functions())
def test_equals_the_function_on_whole_groups(drawn: tuple[SparseFourier, Groups]) -> None:
    f, groups = drawn
    view = group_view(f, groups)
    masks = enumerate_masks(len(groups))
    assert view.n_features == len(groups)
    expected = f.predict(spread(masks, groups, f.n_features))
    np.testing.assert_allclose(view.predict(masks), expected, atol=1e-12)


@given(functions(), st.sampled_from(sorted(set(indices.INDICES) - {"Owen"})), st.integers(1, 3))
def test_indices_are_those_of_the_quotient_game(
    drawn: tuple[SparseFourier, Groups], index: str, order: int
) -> None:
    """The quotient game measured on all its masks and transformed, nothing folded."""
    f, groups = drawn
    masks = enumerate_masks(len(groups))
    measured = exact.fit(masks, f.predict(spread(masks, groups, f.n_features)))
    expected = {i.members: i.value for i in interactions(measured, index, order)}
    found = {i.members: i.value for i in interactions(f, index, order, groups)}
    for members in found.keys() | expected.keys():
        assert found.get(members, 0.0) == pytest.approx(expected.get(members, 0.0), abs=1e-9)


@given(functions(), st.integers(0, 1000), st.booleans())
def test_errors_go_through_the_same_map(
    drawn: tuple[SparseFourier, Groups], seed: int, dense: bool
) -> None:
    """Against the dense matrix, found by folding one coefficient at a time."""
    f, groups = drawn
    k = len(f.supports)
    root = np.random.default_rng(seed).normal(size=(k, k))
    covariance = root @ root.T if dense else root[:, 0] ** 2 if k else np.zeros(0)
    noisy = SparseFourier(f.n_features, "test", f.supports, f.coefficients, covariance)
    view = group_view(noisy, groups)
    matrix = np.zeros((len(view.supports), k))
    for column, support in enumerate(f.supports):
        unit = SparseFourier(f.n_features, "test", (support,), np.ones(1))
        (reached,) = group_view(unit, groups).supports
        matrix[view.supports.index(reached), column] = 1.0
    expected = matrix @ (covariance if dense else np.diag(covariance)) @ matrix.T
    assert view.covariance is not None
    assert view.covariance.ndim == (2 if dense else 1)
    full = view.covariance if dense else np.diag(view.covariance)
    np.testing.assert_allclose(full, expected, atol=1e-10)


def test_a_pair_inside_one_group_becomes_a_constant() -> None:
    supports = ((), (0,), (0, 1), (1, 2), (3,))
    f = SparseFourier(4, "gp", supports, np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.arange(5.0))
    view = group_view(f, [[3], [0, 1], [2]])
    assert (view.n_features, view.method) == (3, "gp")
    assert view.supports == ((), (1,), (1, 2), (0,))
    assert view.coefficients.tolist() == [4.0, 2.0, 4.0, 5.0]
    assert view.covariance is not None
    assert view.covariance.tolist() == [2.0, 1.0, 3.0, 4.0]


def test_groups_of_one_change_nothing_but_the_numbers() -> None:
    f = SparseFourier(3, "test", ((), (0, 2), (1,)), np.array([1.0, 2.0, 3.0]))
    assert group_view(f, [[0], [1], [2]]).to_dict() == f.to_dict()
    assert group_view(f, [[2], [1], [0]]).to_dict() == f.to_dict()
    assert group_view(f, [[1], [0], [2]]).to_dict() == {(): 1.0, (1, 2): 2.0, (0,): 3.0}


def test_no_features_no_groups() -> None:
    assert group_view(SparseFourier(0, "test", ((),), np.ones(1)), []).to_dict() == {(): 1.0}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, r"groups: None, expected sequences of feature numbers"),
        ([0, 1, 2], r"groups: \[0, 1, 2\], expected sequences of feature numbers"),
        ([["a"], [0]], r"groups: .*expected sequences of feature numbers"),
        ([[0], [1]], r"groups: \[\(0,\), \(1,\)\], expected each of the features 0\.\.2"),
        ([[0, 1], [1, 2]], r"groups: .* 0\.\.2 exactly once"),
        ([[0, 1], [2, -1]], r"groups: .* 0\.\.2 exactly once"),
    ],
)
def test_unfit_groups(groups: object, message: str) -> None:
    f = SparseFourier(3, "test", ((0,),), np.ones(1))
    with pytest.raises(ValueError, match=message):
        group_view(f, groups)  # type: ignore[arg-type]


def test_an_explanation_is_no_function() -> None:
    with pytest.raises(ValueError, match=r"f: dict, expected a SparseFourier"):
        group_view({(0,): 1.0}, [[0]])  # type: ignore[arg-type]
