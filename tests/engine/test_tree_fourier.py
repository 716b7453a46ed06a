"""The spectrum of trees, against what the trees say of every mask and against the recursion."""

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_engine import SparseFourier
from spex_engine.designs import enumerate_masks
from spex_engine.estimators.tree_fourier import (
    NO_TREES,
    Spectrum,
    Trees,
    mean,
    read_trees,
    spectrum,
    with_additive,
)


def grown(n: int, seed: int, n_trees: int = 15, **changes: float) -> lightgbm.Booster:
    rng = np.random.default_rng(seed)
    masks = rng.random((80, n)) < 0.5
    data = lightgbm.Dataset(masks.astype(np.float32), rng.normal(size=80))
    parameters = {"min_data_in_leaf": 2, "verbosity": -1, "num_threads": 1, "seed": seed}
    return lightgbm.train({**parameters, "num_leaves": 9, **changes}, data, n_trees)


def function(found: Spectrum, n: int) -> SparseFourier:
    """It also says whether supports are distinct and increasing."""
    supports, coefficients = found.top(len(found.coefficients))
    assert (found.supports[0] == -1).all()
    everything = np.concatenate([found.coefficients[:1], coefficients])
    return SparseFourier(n, "trees", ((), *supports), everything)


def recursive(trees: Trees, node: int) -> dict[frozenset[int], float]:
    """Node by node, as Gorji et al. have it: (L + R) / 2 without the feature, (L - R) / 2 with."""
    if node < 0:
        return {frozenset(): float(trees.leaves[-1 - node])}
    total: dict[frozenset[int], float] = {}
    for child, sign in ((trees.dropped[node], 1), (trees.kept[node], -1)):
        for support, value in recursive(trees, int(child)).items():
            total[support] = total.get(support, 0.0) + value / 2
            more = support | {int(trees.features[node])}
            total[more] = total.get(more, 0.0) + sign * value / 2
    return total


@given(
    n=st.integers(1, 10),
    seed=st.integers(0, 1000),
    leaves=st.integers(2, 40),
    depth=st.integers(-1, 6),
)
@settings(max_examples=25, deadline=None)
def test_the_spectrum_is_the_booster(n: int, seed: int, leaves: int, depth: int) -> None:
    booster = grown(n, seed, num_leaves=leaves, max_depth=depth)
    f = function(spectrum(read_trees(booster.model_to_string()), n), n)
    masks = enumerate_masks(n)
    expected = booster.predict(masks.astype(np.float32))
    np.testing.assert_allclose(f.predict(masks), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [6, 40, 1000])
def test_the_spectrum_is_that_of_the_recursion(n: int) -> None:
    trees = read_trees(grown(n, n, num_leaves=12).model_to_string())
    expected: dict[frozenset[int], float] = {}
    for root in trees.roots.tolist():
        for support, value in recursive(trees, root).items():
            expected[support] = expected.get(support, 0.0) + value
    found = function(spectrum(trees, n), n).to_dict()
    for support, value in expected.items():
        assert found.pop(tuple(sorted(support)), 0.0) == pytest.approx(value, abs=1e-14)
    assert not found


@pytest.mark.parametrize("order", [0, 1, 3])
def test_an_order_truncates(order: int) -> None:
    trees = read_trees(grown(8, 1).model_to_string())
    everything = function(spectrum(trees, 8), 8).to_dict()
    kept = function(spectrum(trees, 8, order), 8).to_dict()
    assert kept == {s: c for s, c in everything.items() if len(s) <= order}


def test_the_first_trees_only() -> None:
    booster = grown(7, 2)
    f = function(spectrum(read_trees(booster.model_to_string(num_iteration=4)), 7), 7)
    masks = enumerate_masks(7)
    expected = booster.predict(masks.astype(np.float32), num_iteration=4)
    np.testing.assert_allclose(f.predict(masks), expected, rtol=0, atol=1e-12)


def path(features: list[int], value: float) -> Trees:
    """One tree that is ``value`` where all features are kept and 0 elsewhere."""
    d = len(features)
    following = [i + 1 if i + 1 < d else -1 - d for i in range(d)]
    return Trees(
        np.array(features),
        -1 - np.arange(d),
        np.array(following),
        np.array([0.0] * d + [value]),
        np.array([0]),
    )


def test_supports_too_long_for_one_number_are_told_apart() -> None:
    """12 features of 2000 are more than an int64 can number; each coefficient is +-value / 2^12."""
    n = 2000
    rng = np.random.default_rng(0)
    features = [rng.permutation(n)[:12].tolist() for _ in range(3)]
    features.append([*features[0][:11], (features[0][11] + 1) % n])
    assert len(set(features[3])) == 12
    both = spectrum(mean([path(asked, 4.0) for asked in features]), n)
    found = function(both, n).to_dict()
    shared = 2**11
    assert len(found) == 4 * 2**12 - 2 - shared  # the constant is in all, 2^11 in two
    expected = dict.fromkeys(found, 0.0)
    for asked in features:
        for bits in enumerate_masks(12):
            support = tuple(sorted(np.array(asked)[bits].tolist()))
            expected[support] += (-1.0) ** len(support) / 2**12
    assert found == expected


def test_a_start_is_added() -> None:
    trees = read_trees(grown(5, 3).model_to_string())
    slopes = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    without = function(spectrum(trees, 5), 5).to_dict()
    found = function(spectrum(with_additive(trees, 7.0, slopes), 5), 5).to_dict()
    for support, coefficient in found.items():
        more = 7.0 if not support else slopes[support[0]] if len(support) == 1 else 0.0
        assert coefficient == pytest.approx(without.get(support, 0.0) + more, abs=1e-14)
    alone = function(spectrum(with_additive(NO_TREES, 7.0, slopes), 5), 5).to_dict()
    assert alone == {(): 7.0, (0,): 1.0, (1,): -2.0, (2,): 0.5, (4,): 3.0}


def test_the_mean_of_ensembles() -> None:
    boosters = [grown(6, seed, n_trees=seed) for seed in (3, 9)]
    ensembles = [read_trees(booster.model_to_string()) for booster in boosters]
    ensembles.append(with_additive(NO_TREES, 1.0, np.zeros(6)))
    masks = enumerate_masks(6)
    predicted = [booster.predict(masks.astype(np.float32)) for booster in boosters]
    f = function(spectrum(mean(ensembles), 6), 6)
    expected = (predicted[0] + predicted[1] + 1.0) / 3
    np.testing.assert_allclose(f.predict(masks), expected, rtol=0, atol=1e-12)


def test_trees_without_splits_and_no_trees() -> None:
    data = lightgbm.Dataset(np.eye(20, 3, dtype=np.float32), np.full(20, 0.25))
    booster = lightgbm.train({"verbosity": -1, "num_threads": 1}, data, 1)
    assert function(spectrum(read_trees(booster.model_to_string()), 3), 3).to_dict() == {(): 0.25}
    assert function(spectrum(read_trees("tree\nversion=v4\n"), 3), 3).to_dict() == {(): 0.0}


def test_the_largest_terms_come_first() -> None:
    found = Spectrum(np.array([[-1], [0], [1], [2], [3]]), np.array([9.0, 1.0, -3.0, 0.0, 3.0]))
    supports, coefficients = found.top(2)
    assert (supports, coefficients.tolist()) == ([(1,), (3,)], [-3.0, 3.0])
    assert found.top(9)[0] == [(1,), (3,), (0,)]


def test_trees_of_other_features_are_refused() -> None:
    rng = np.random.default_rng(0)
    data = lightgbm.Dataset(rng.normal(size=(60, 2)), rng.normal(size=60))
    booster = lightgbm.train({"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 2}, data, 3)
    with pytest.raises(ValueError, match="a split does not part 0 from 1"):
        read_trees(booster.model_to_string())
    with pytest.raises(ValueError, match="a path asks a feature twice"):
        spectrum(path([1, 0, 1], 1.0), 2)
