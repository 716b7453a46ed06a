"""Every index against its definition, computed on all masks of random games."""

import time
from itertools import chain, combinations, permutations, product
from math import comb, factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_engine import Interaction, SparseFourier, indices, interactions
from spex_engine.designs import enumerate_masks

Set = frozenset[int]
N = 5
GROUPS = ((3, 0), (1,), (2, 4))


def subsets(members: Set, largest: int | None = None) -> list[Set]:
    sizes = range((len(members) if largest is None else largest) + 1)
    return [frozenset(c) for c in chain(*(combinations(sorted(members), s) for s in sizes))]


ALL = frozenset(range(N))


def sparse(seed: int, n: int = N, k: int = 20) -> SparseFourier:
    rng = np.random.default_rng(seed)
    everything = [tuple(sorted(s)) for s in subsets(frozenset(range(n)))]
    chosen = rng.permutation(len(everything))[:k]
    return SparseFourier(n, "test", tuple(everything[i] for i in chosen), rng.normal(size=k))


def game(f: SparseFourier) -> dict[Set, float]:
    masks = enumerate_masks(f.n_features)
    kept = [frozenset(np.flatnonzero(mask).tolist()) for mask in masks]
    return dict(zip(kept, f.predict(masks).tolist(), strict=True))


def derivative(v: dict[Set, float], t: Set, s: Set) -> float:
    return sum((-1) ** (len(t) - len(part)) * v[s | part] for part in subsets(t))


def mean_gain(v: dict[Set, float], orders: list[tuple[int, ...]], i: int) -> float:
    gains = []
    for order in orders:
        before = frozenset(order[: order.index(i)])
        gains.append(v[before | {i}] - v[before])
    return float(np.mean(gains))


def shapley(v: dict[Set, float], t: Set, _order: int) -> float:
    return mean_gain(v, list(permutations(range(N))), *t)


def owen(v: dict[Set, float], t: Set, _order: int) -> float:
    orders = [
        tuple(chain(*inner))
        for outer in permutations(GROUPS)
        for inner in product(*(permutations(group) for group in outer))
    ]
    return mean_gain(v, orders, *t)


def banzhaf(v: dict[Set, float], t: Set, _order: int) -> float:
    return float(np.mean([derivative(v, t, s) for s in subsets(ALL - t)]))


def sii(v: dict[Set, float], t: Set, _order: int = 0) -> float:
    k = len(t)
    return sum(
        factorial(N - len(s) - k) * factorial(len(s)) / factorial(N - k + 1) * derivative(v, t, s)
        for s in subsets(ALL - t)
    )


BERNOULLI = (1, -1 / 2, 1 / 6, 0, -1 / 30)


def k_sii(v: dict[Set, float], t: Set, order: int) -> float:
    """The recursion of Bordt & von Luxburg 2023, definition 5: order by order."""
    if len(t) == order:
        return sii(v, t)
    more = [r for r in subsets(ALL - t) if len(r) == order - len(t)]
    return k_sii(v, t, order - 1) + BERNOULLI[order - len(t)] * sum(sii(v, t | r) for r in more)


def stii(v: dict[Set, float], t: Set, order: int) -> float:
    if len(t) < order:
        return derivative(v, t, frozenset())
    return sum(order / N * derivative(v, t, s) / comb(N - 1, len(s)) for s in subsets(ALL - t))


def moebius(v: dict[Set, float], t: Set, _order: int) -> float:
    return derivative(v, t, frozenset())


def co_moebius(v: dict[Set, float], t: Set, _order: int) -> float:
    return sum((-1) ** len(dropped) * v[ALL - dropped] for dropped in subsets(t))


def fourier_coefficient(v: dict[Set, float], t: Set, _order: int) -> float:
    return float(np.mean([value * (-1) ** len(t & kept) for kept, value in v.items()]))


def faith(v: dict[Set, float], t: Set, order: int, shapley_kernel: bool) -> float:
    """Coefficient of t in the best fit by interactions of at most that order.

    Banzhaf: all masks count alike. Shapley: weight (n-1) / (C(n,s) s (n-s)), and the empty and the
    full mask must be met exactly (Lagrange multipliers).
    """
    terms = subsets(ALL, order)
    kept = list(v)
    design = np.array([[float(term <= mask) for term in terms] for mask in kept])
    values = np.array([v[mask] for mask in kept])
    if not shapley_kernel:
        return float(np.linalg.lstsq(design, values, rcond=None)[0][terms.index(t)])
    ends = np.array([len(mask) in (0, N) for mask in kept])
    weight = np.array([(N - 1) / (comb(N, s) * s * (N - s)) for s in map(len, kept) if 0 < s < N])
    inner, fixed = design[~ends], design[ends]
    system = np.block([[inner.T @ (weight[:, None] * inner), fixed.T], [fixed, np.zeros((2, 2))]])
    right = np.concatenate([inner.T @ (weight * values[~ends]), values[ends]])
    return float(np.linalg.lstsq(system, right, rcond=None)[0][terms.index(t)])


def fbii(v: dict[Set, float], t: Set, order: int) -> float:
    return faith(v, t, order, shapley_kernel=False)


def fsii(v: dict[Set, float], t: Set, order: int) -> float:
    return faith(v, t, order, shapley_kernel=True)


DEFINITIONS = {
    "Moebius": moebius, "CoMoebius": co_moebius, "SV": shapley, "BV": banzhaf, "SII": sii,
    "k-SII": k_sii, "BII": banzhaf, "STII": stii, "FSII": fsii, "FBII": fbii,
    "Fourier": fourier_coefficient, "Owen": owen,
}  # fmt: skip


def test_every_index_has_a_definition_here() -> None:
    assert set(DEFINITIONS) == set(indices.INDICES)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("index", DEFINITIONS)
def test_equals_the_definition(index: str, order: int) -> None:
    f = sparse(seed=order)
    v = game(f)
    groups = GROUPS if index == "Owen" else None
    found = {i.members: i.value for i in interactions(f, index, order, groups)}
    largest = 1 if index in ("SV", "BV", "Owen") else order
    assert max(map(len, found)) <= largest
    for t in subsets(ALL, largest)[1:]:
        expected = DEFINITIONS[index](v, t, order)
        assert found.get(tuple(sorted(t)), 0.0) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("index", sorted(set(DEFINITIONS) - {"Owen"}))
@given(seed=st.integers(0, 1000), order=st.integers(1, 4))
@settings(max_examples=10)
def test_linear_in_the_function(index: str, seed: int, order: int) -> None:
    f, g = sparse(seed), sparse(seed + 1)
    total = f.to_dict()
    for support, coefficient in g.to_dict().items():
        total[support] = total.get(support, 0.0) + coefficient
    h = SparseFourier(N, "test", tuple(total), np.array(list(total.values())))
    of_f, of_g, of_h = (
        {i.members: i.value for i in interactions(x, index, order)} for x in (f, g, h)
    )
    for members in of_f.keys() | of_g.keys() | of_h.keys():
        expected = of_f.get(members, 0.0) + of_g.get(members, 0.0)
        assert of_h.get(members, 0.0) == pytest.approx(expected, abs=1e-10)


@given(seed=st.integers(0, 1000), order=st.integers(1, 5))
@settings(max_examples=30)
@pytest.mark.parametrize("index", ["k-SII", "STII", "FSII", "SV"])
def test_efficient_indices_add_up(index: str, seed: int, order: int) -> None:
    f = sparse(seed)
    v = game(f)
    total = sum(i.value for i in interactions(f, index, order))
    assert total == pytest.approx(v[ALL] - v[frozenset()], abs=1e-10)


@given(seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_owen_is_shapley_where_groups_say_nothing(seed: int) -> None:
    f = sparse(seed, n=6, k=40)
    shapley_values = {i.members: i.value for i in interactions(f, "SV")}
    for groups in ([range(6)], [[i] for i in range(6)]):
        for i in interactions(f, "Owen", groups=groups):
            assert i.value == pytest.approx(shapley_values[i.members], abs=1e-12)


@pytest.mark.parametrize("index", DEFINITIONS)
@pytest.mark.parametrize("dense", [True, False])
def test_errors_go_through_the_same_map(
    index: str, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indices, "_CHUNK", 64)  # several blocks
    groups = GROUPS if index == "Owen" else None
    f = sparse(seed=7)
    k = len(f.supports)
    root = np.random.default_rng(0).normal(size=(k, 3 if dense else 1))
    covariance = root @ root.T if dense else root[:, 0] ** 2
    full = covariance if dense else np.diag(covariance)
    noisy = SparseFourier(N, "test", f.supports, f.coefficients, covariance)
    found = interactions(noisy, index, 3, groups)
    columns = []
    for j in range(k):
        unit = SparseFourier(N, "test", (f.supports[j],), np.ones(1))
        columns.append({i.members: i.value for i in interactions(unit, index, 3, groups)})
    for i in found:
        row = np.array([column.get(i.members, 0.0) for column in columns])
        assert i.stderr == pytest.approx(np.sqrt(max(0.0, row @ full @ row)), abs=1e-7)


def test_no_covariance_no_errors() -> None:
    assert {i.stderr for i in interactions(sparse(0), "SII", 3)} == {None}


def test_strongest_first_and_ties_in_order() -> None:
    f = SparseFourier(4, "t", ((), (0, 3), (2,), (1,), (0,)), np.array([9, 0.5, 1, -1, 0.25]))
    found = interactions(f, "Fourier", 2)
    assert [i.members for i in found] == [(1,), (2,), (0, 3), (0,), (3,)]
    assert found[0] == Interaction((1,), -1.0, None)


def test_singletons_are_always_listed_and_untouched_sets_never() -> None:
    f = SparseFourier(5, "t", ((), (1, 3)), np.array([1.0, 2.0]), np.array([1.0, 0.0]))
    assert [(i.members, i.value, i.stderr) for i in interactions(f, "BII", 3)] == [
        ((1, 3), 8.0, 0.0),
        *(((i,), 0.0, 0.0) for i in range(5)),
    ]


def test_a_zero_with_an_error_bar_is_listed() -> None:
    zero = SparseFourier(2, "t", ((0, 1),), np.zeros(1), np.array([0.25]))
    assert Interaction((0, 1), 0.0, 2.0) in interactions(zero, "BII")
    assert len(interactions(SparseFourier(2, "t", ((0, 1),), np.zeros(1)), "BII")) == 2


def test_nothing_to_map() -> None:
    empty = SparseFourier(2, "t", (), np.zeros(0), np.zeros((0, 0)))
    assert [i.members for i in interactions(empty, "FSII", 3)] == [(0,), (1,)]
    assert interactions(SparseFourier(0, "t", ((),), np.ones(1))) == ()


def test_many_large_supports_are_fast() -> None:
    rng = np.random.default_rng(0)
    supports = {
        tuple(sorted(rng.choice(64, size, replace=False).tolist()))
        for size in rng.integers(1, 9, size=2000)
    }
    f = SparseFourier(64, "t", tuple(supports), rng.normal(size=len(supports)))
    started = time.process_time()
    assert len(interactions(f, "FSII", 3)) > 10_000
    assert time.process_time() - started < 2.0  # 0.1 s here; a loop over subsets takes 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Shapley",), "index: 'Shapley', expected one of Moebius, "),
        (("FBII", 0), "order: 0, expected an integer of 1 or more"),
        (("FBII", 1.5), "order: 1.5"),
        (("FBII", True), "order: True"),
        (("Owen",), "groups: None, expected disjoint sequences"),
        (("SV", 1, [[0, 1]]), r"groups: .* 0\.\.4 exactly once"),
        (("Owen", 1, [[0, 1], [1, 2, 3, 4]]), r"groups: .* 0\.\.4 exactly once"),
        (("Owen", 1, [[0, 1], [3, 4]]), r"groups: .* 0\.\.4 exactly once"),
        (("Owen", 1, [[0, 1, 2], [3, 4, 5]]), r"groups: .* 0\.\.4 exactly once"),
    ],
)
def test_unfit_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interactions(sparse(0), *arguments)


@pytest.mark.parametrize("index", ["Owen", "FBII"])
@pytest.mark.parametrize("groups", [5, [["a"], [0]], [[0.5]]])
def test_groups_that_are_none_at_all(groups: object, index: str) -> None:
    f = SparseFourier(2, "truth", ((0, 1),), np.ones(1))
    with pytest.raises(ValueError, match=r"groups: .*expected sequences of feature numbers"):
        interactions(f, index=index, groups=groups)  # type: ignore[arg-type]


def test_an_explanation_is_no_function() -> None:
    with pytest.raises(ValueError, match=r"f: dict, expected a SparseFourier"):
        interactions({(0,): 1.0})  # type: ignore[arg-type]
