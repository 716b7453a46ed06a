"""SPEX on sparse functions whose coefficients are known, from the design to the explanation."""

from itertools import combinations, count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spex_engine as spex
from spex_engine import Explanation, SparseFourier, explain, interactions
from spex_engine.coded_design import draw_coded
from spex_engine.codes.bch import SIGNS, bch
from spex_engine.estimators import spex as method
from spex_engine.estimators import spex_decoder, spex_prior
from spex_engine.fourier import characters


def sparse(n: int, n_terms: int, max_order: int = 4, seed: int = 0) -> SparseFourier:
    rng = np.random.default_rng(seed)
    supports: set[tuple[int, ...]] = {()}
    while len(supports) <= n_terms:
        size = int(rng.integers(1, max_order + 1))
        supports.add(tuple(sorted(rng.choice(n, size, replace=False).tolist())))
    sizes = rng.uniform(0.5, 1.5, len(supports)) * rng.choice([-1.0, 1.0], len(supports))
    return SparseFourier(n, "truth", tuple(sorted(supports)), sizes)


def noisy(f: SparseFourier, masks: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    return f.predict(masks) + noise * np.random.default_rng(seed).normal(size=len(masks))


def strong(f: SparseFourier, least: float = 0.25) -> set[tuple[int, ...]]:
    return {s for s, coefficient in f.to_dict().items() if abs(coefficient) > least}


# ---- the design --------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(n=st.integers(10, 150), budget=st.integers(600, 3000), seed=st.integers(0, 99))
def test_any_budget_is_used_up_by_distinct_masks(n: int, budget: int, seed: int) -> None:
    budget = min(budget, 2**n - 1)
    design = draw_coded(n, budget, seed).design
    assert design.masks.shape == (budget, n)
    assert len({mask.tobytes() for mask in design.masks}) == budget
    assert design.masks[0].all()
    assert not design.masks[1].any()
    assert 32 <= design.held_out.sum() <= 256
    assert not design.held_out[:2].any()


@pytest.mark.parametrize(
    ("n", "budget", "groups", "level", "t"),
    [
        (64, 6912, 3, 6, 5),  # the calls of the paper's C = 3, b = 6, t = 5
        (128, 15744, 3, 7, 5),
        (1000, 43008, 3, 8, 5),
        (64, 9500, 4, 6, 5),
        (64, 900, 3, 3, 5),
        (64, 800, 3, 3, 4),
        (64, 400, 3, 3, 2),
    ],
)
def test_groups_bins_and_order_fit_the_budget(
    n: int, budget: int, groups: int, level: int, t: int
) -> None:
    coded = draw_coded(n, budget)
    assert coded.rows.shape == (groups, bch(n, t).n_parity + 1, 2**level)
    assert coded.level == level
    assert coded.code is bch(n, t)


def test_leave_one_out_masks_where_there_is_room() -> None:
    alone = {mask.tobytes() for mask in ~np.eye(64, dtype=bool)}
    roomy = draw_coded(64, 1000).design
    assert alone <= {mask.tobytes() for mask in roomy.masks[~roomy.held_out]}
    assert not alone & {mask.tobytes() for mask in draw_coded(64, 6912).design.masks}


@pytest.mark.parametrize("level", [3, 4])
def test_transform_is_what_falls_into_bins(level: int) -> None:
    """U_c,p[j] = sum of F(k) (-1)^<d_p,k> over the k with M_c' k = j, straight from the masks."""
    coded = draw_coded(20, 2000)
    f = sparse(20, 30)
    padded = np.full((len(f.supports), coded.code.t), 20, np.int16)
    for row, support in zip(padded, f.supports, strict=True):
        row[: len(support)] = support
    bins = coded.bins(padded, level)
    expected = np.zeros((len(coded.rows) << level, coded.rows.shape[1]))
    delays = characters(coded.design.masks[coded.rows[0, :, 0]], f.supports)
    for term, coefficient in enumerate(f.coefficients):
        for at in bins[term]:
            expected[at] += coefficient * delays[:, term]
    values = f.predict(coded.design.masks)
    np.testing.assert_allclose(coded.transform(values, level), expected, atol=1e-12)


def test_prefixes_complete_smaller_levels() -> None:
    coded = draw_coded(64, 6912)
    asked = [
        np.flatnonzero([coded.complete_level(j) == level for j in range(0, 6913, 16)])
        for level in (3, 4, 5, 6)
    ]
    starts = [16 * int(at[0]) for at in asked]
    np.testing.assert_allclose(starts, [6912 / 8, 6912 / 4, 6912 / 2, 6912], rtol=0.06)
    assert coded.complete_level(500) is None
    for level, end in zip((3, 4, 5, 6), coded.design.rounds, strict=True):
        assert coded.complete_level(end) == level
        assert coded.complete_level(end - 1) == (level - 1 if level > 3 else None)


@pytest.mark.parametrize(("n", "least"), [(64, 363), (10, 275), (9, 275), (8, 256), (1000, 495)])
def test_the_least_budget_is_named_and_is_enough(n: int, least: int) -> None:
    message = f"budget: 30, expected at least {least} for method 'spex' with {n} features"
    with pytest.raises(ValueError, match=message):
        draw_coded(n, 30)
    if least < 2**n:
        assert len(draw_coded(n, least).design.masks) == least
        with pytest.raises(ValueError, match=f"budget: {least - 1}"):
            draw_coded(n, least - 1)


def test_more_features_than_there_are_codes_for() -> None:
    with pytest.raises(ValueError, match="n_features: 3000, more than method 'spex' has codes for"):
        explain(lambda masks: masks.sum(axis=1), 3000, 5000, "spex")


# ---- recovery ----------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize(
    ("n", "budget", "terms"), [(32, 700, 20), (64, 1001, 30), (64, 6912, 150), (128, 3333, 50)]
)
def test_sparse_functions_are_recovered(n: int, budget: int, terms: int, noise: float) -> None:
    truth = sparse(n, terms)
    plan = method.plan(n, budget)
    f, notes = plan.fit(noisy(truth, plan.design.masks, noise))
    assert notes == ()
    assert strong(f) == set(truth.supports)
    found = f.to_dict()
    false = {s: found[s] for s in f.supports if len(s) > 1 and s not in truth.supports}
    assert len(false) <= (5 if noise else 0)
    assert all(abs(coefficient) < 0.1 for coefficient in false.values())
    for support, coefficient in truth.to_dict().items():
        assert found[support] == pytest.approx(coefficient, abs=1e-8 + noise * 6 / budget**0.5)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_a_lone_parity_of_any_order_up_to_t(order: int) -> None:
    support = tuple(range(0, 10 * order, 10))
    f, _ = method.plan(64, 900).fit(
        noisy(
            SparseFourier(64, "truth", (support,), np.ones(1)), draw_coded(64, 900).design.masks, 1
        )
    )
    assert strong(f) == {support}


def test_a_parity_beyond_t_is_not_mistaken_for_another() -> None:
    beyond = SparseFourier(64, "truth", ((1, 2, 3, 4, 5, 6, 7),), np.ones(1))
    e = explain(beyond.predict, 64, 900, "spex")
    assert strong(e.fourier, 0.5) == set()
    assert e.faithfulness.r2 is not None
    assert e.faithfulness.r2 < 0.3


def test_soft_decoding_hears_through_more_noise() -> None:
    truth = sparse(64, 40, max_order=5)
    plan = method.plan(64, 2000)
    values = noisy(truth, plan.design.masks, 2.0)
    missed = [
        len(set(truth.supports) - set(method.Plan(plan.coded, None, soft).fit(values)[0].supports))
        for soft in (True, False)
    ]
    assert missed[0] <= 5
    assert missed[1] >= 15


def test_hard_decoding_needs_no_lists() -> None:
    truth = sparse(64, 60)
    plan = method.plan(64, 6912)
    f, _ = method.Plan(plan.coded, None, soft=False).fit(noisy(truth, plan.design.masks, 0.3))
    assert strong(f) == set(truth.supports)


def test_noise_alone_has_no_interactions() -> None:
    found = 0
    for seed in range(5):
        plan = method.plan(40, 1200, seed=seed)
        f, _ = plan.fit(np.random.default_rng(seed).normal(size=1200))
        found += sum(len(s) > 1 for s in f.supports)
    assert found <= 5


def test_error_bars_cover() -> None:
    within = []
    for seed in range(10):
        truth = sparse(32, 20, seed=seed)
        plan = method.plan(32, 700, seed=seed)
        f, _ = plan.fit(noisy(truth, plan.design.masks, 1.0, seed))
        assert f.covariance is not None
        stderr = dict(zip(f.supports, np.sqrt(np.diagonal(f.covariance)), strict=True))
        found = f.to_dict()
        within += [
            abs(found[s] - c) < 2 * stderr[s] for s, c in truth.to_dict().items() if s in found
        ]
    assert 0.9 < np.mean(within) < 0.99


def test_offset_and_scale_change_nothing_else() -> None:
    truth = sparse(40, 25)
    plan = method.plan(40, 1000)
    values = noisy(truth, plan.design.masks, 0.3)
    near, _ = plan.fit(values)
    far, _ = plan.fit(1e-3 * values + 1e3)
    assert near.supports == far.supports
    np.testing.assert_allclose(far.coefficients[1:], 1e-3 * near.coefficients[1:], rtol=1e-5)


def test_constant_values() -> None:
    f, _ = method.plan(30, 600).fit(np.full(600, 0.1))
    np.testing.assert_allclose(f.predict(np.eye(30, dtype=bool)), 0.1, rtol=1e-12)


def test_a_function_that_is_not_sparse_ends_in_time() -> None:
    plan = method.plan(64, 2500)
    masks = plan.design.masks
    curved = np.tanh(masks @ np.random.default_rng(0).normal(size=64) / 2)
    f, _ = plan.fit(curved)
    test = np.random.default_rng(1).random((500, 64)) < 0.5
    expected = np.tanh(test @ np.random.default_rng(0).normal(size=64) / 2)
    assert spex.r2(f, test, expected) > 0.5


def test_max_order_bounds_what_is_found() -> None:
    truth = sparse(32, 20)
    e = explain(truth.predict, 32, 1000, "spex", max_order=2)
    assert max(map(len, e.fourier.supports)) == 2
    assert {s for s in truth.supports if len(s) == 2} <= set(e.fourier.supports)


def test_few_samples_leave_features_out_that_were_not_found() -> None:
    truth = SparseFourier(400, "truth", ((3,), (5, 9)), np.array([2.0, 2.0]))
    f, _ = method.plan(400, 600).fit(noisy(truth, draw_coded(400, 600).design.masks, 0.1))
    assert {(), (3,), (5, 9)} <= set(f.supports)
    assert len(f.supports) < 20


def test_influential_features_cost_less() -> None:
    """The prior of `prices` sums to at most one over the supports of each order, for each way."""
    n = 12
    ranks = np.array([*range(1, n + 1), 0])
    listed = spex_prior.listed(ranks, 5, 4)
    sizes = (listed < n).sum(axis=1)
    prices = spex_prior.prices(listed, sizes, ranks)
    for order in range(5):
        assert np.exp(-prices[sizes == order]).sum() <= 2
    pairs = sizes == 2
    assert prices[pairs][0] < prices[pairs][-1]


def test_influence_ranks_features() -> None:
    found = np.array([[0, 2, 4], [2, 4, 4], [4, 4, 4]], np.int16)  # (0, 2), (2,), () of 4 features
    ranks = spex_prior.ranks(4, found, np.array([1.0, -2.0, 9.0]))
    assert ranks.tolist() == [2, 4, 1, 4, 0]
    assert spex_prior.no_ranks(3).tolist() == [3, 3, 3, 0]


def test_lists_are_all_supports_of_the_most_influential() -> None:
    def read(ranks: np.ndarray, max_order: int) -> list[tuple[int, ...]]:
        n = len(ranks) - 1
        return [tuple(i for i in row if i < n) for row in spex_prior.listed(ranks, 4, max_order)]

    some = spex_prior.no_ranks(9)
    every = [s for order in range(5) for s in combinations(range(9), order)]
    assert read(some, 4) == every
    many = spex_prior.no_ranks(200)
    assert read(many, 2) == [(), *((i,) for i in range(200))]  # 19,900 pairs are too many
    many[[150, 7, 30]] = 1, 2, 3
    assert read(many, 3)[201:] == [(7, 30), (7, 150), (30, 150), (7, 30, 150)]


@pytest.mark.parametrize("subtracted", [False, True])
def test_gains_are_likelihood_ratios(subtracted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every term alone, from the signs that its delays have, bin by bin."""
    monkeypatch.setattr(spex_decoder, "_BLOCK", 7)
    coded, rng = draw_coded(24, 1500), np.random.default_rng(0)
    listed = spex_prior.listed(spex_prior.no_ranks(24), coded.code.t, 2)[::11]
    terms = spex_decoder._Terms.of(coded, 3, listed)
    supports = [tuple(i for i in row if i < 24) for row in listed.tolist()]
    signs = characters(coded.design.masks[coded.rows[0, :, 0]], supports).T
    residual = rng.normal(size=(len(coded.rows) << 3, coded.rows.shape[1]))
    own = rng.normal(size=len(listed)) if subtracted else None
    gains = spex_decoder._gains(terms, residual, own, 1e-20)
    for k, at in enumerate(terms.bins):
        without = residual[at] + (0.0 if own is None else own[k] * signs[k])
        energy = np.mean(without**2, axis=1)
        alone = np.mean(without * signs[k], axis=1)  # each group's own estimate
        precision = 1 / np.mean((without - alone[:, None] * signs[k]) ** 2, axis=1)
        value = np.average(alone, weights=precision)
        left = np.mean((without - value * signs[k]) ** 2, axis=1)
        expected = signs.shape[1] / 2 * np.log(energy / left).sum()
        assert gains[k] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("m", [1, 8, 21, 64])
def test_characters_from_packed_parities(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "_CHUNK", 48)
    masks = np.random.default_rng(m).random((m, 6)) < 0.5
    padded = np.array([[6, 6, 6], [2, 6, 6], [0, 5, 6], [1, 3, 4]], np.int16)
    parts = list(method._characters(method._parities(masks, padded), m, SIGNS))
    assert [rows.start for rows, _ in parts] == list(range(0, m, 8))
    together = np.concatenate([part for _, part in parts], axis=1)
    np.testing.assert_array_equal(together.T, characters(masks, [(), (2,), (0, 5), (1, 3, 4)]))


# ---- through explain ---------------------------------------------------------------------------


def test_explain() -> None:
    truth = sparse(64, 30)
    asked: list[bytes] = []

    def game(masks: np.ndarray) -> np.ndarray:
        asked.extend(mask.tobytes() for mask in masks)
        return truth.predict(masks)

    e = explain(game, 64, budget=1000, method="spex")
    assert len(set(asked)) == len(asked) == e.evaluations.requested == 1000
    assert e.fourier.method == "spex"
    assert e.faithfulness.r2 == pytest.approx(1.0)
    assert e.faithfulness.how == "uniform masks held out from the fit"
    assert e.faithfulness.n_test >= 32
    assert not e.converged  # one complete level shows no change
    assert e.notes == ()
    strongest = interactions(e.fourier, "BII", 4)[0]
    assert strongest.stderr is not None


def test_seed_is_all_there_is_to_chance() -> None:
    truth = sparse(24, 10)
    first, second, third = (explain(truth.predict, 24, 600, "spex", seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.masks, second.masks)
    np.testing.assert_array_equal(first.fourier.coefficients, second.fourier.coefficients)
    assert (first.masks != third.masks).any()


def test_held_out_values_are_never_looked_at() -> None:
    plan = method.plan(32, 700)
    values = noisy(sparse(32, 20), plan.design.masks, 0.3)
    spoilt = np.where(plan.design.held_out, 1e9, values)
    first, second = plan.fit(values)[0], plan.fit(spoilt)[0]
    np.testing.assert_array_equal(first.coefficients, second.coefficients)


def test_every_mask_measured_needs_no_code() -> None:
    truth = sparse(8, 10)
    e = explain(truth.predict, 8, 256, "spex")
    assert e.fourier.method == "exact"
    assert e.faithfulness.r2 == 1.0
    assert e.notes == ("every mask fits the budget, so spex had nothing to decode: exact",)


def test_too_small_a_budget_costs_no_evaluation() -> None:
    def game(masks: np.ndarray) -> np.ndarray:
        raise AssertionError

    with pytest.raises(ValueError, match="budget: 300, expected at least 363 for method 'spex'"):
        explain(game, 64, 300, "spex")


def test_fit_has_other_masks_than_its_own() -> None:
    with pytest.raises(ValueError, match=r"'spex' samples its own masks, so it is for explain\(\)"):
        spex.fit(np.ones((4, 3), bool), np.zeros(4), method="spex")


def test_progress_gets_better() -> None:
    truth = sparse(64, 25)
    seen: list[Explanation] = []
    e = explain(truth.predict, 64, 2048, "spex", on_progress=seen.append)
    assert seen[-1] is e
    assert {s.fourier.method for s in seen} == {"linear", "spex"}
    assert "spex decodes nothing before its first transforms are complete: linear" in seen[0].notes
    half = next(s for s in seen if s.fourier.method == "spex")
    assert half.evaluations.computed <= 1200
    assert half.faithfulness.r2 is not None
    assert half.faithfulness.r2 > 0.99


def test_stopped_early() -> None:
    truth, polls = sparse(64, 25), count()
    e = explain(truth.predict, 64, 4096, "spex", should_stop=lambda: next(polls) >= 24)
    assert not e.converged
    assert e.fourier.method == "spex"
    assert strong(e.fourier) == set(truth.supports)
    assert e.notes == ("1536 of 4096 evaluations were made",)


def test_a_run_converges_where_a_level_is_complete() -> None:
    truth = sparse(64, 10)
    rounds = method.plan(64, 8192).design.rounds
    e = explain(truth.predict, 64, 8192, "spex")
    assert e.converged
    assert strong(e.fourier) == set(truth.supports)
    assert e.evaluations.requested in [-(-end // 64) * 64 for end in rounds[1:-1]]


def test_nothing_converges_before_two_levels_are_complete() -> None:
    """Not even what a straight line explains: no interaction could have been found yet."""
    assert len(method.plan(64, 2048).design.rounds) == 2  # the second takes the whole budget
    e = explain(lambda masks: masks @ np.linspace(-1.0, 2.0, 64), 64, 2048, "spex")
    assert e.evaluations.requested == 2048


@pytest.mark.parametrize("share", [0.001, 0.1])
def test_failed_evaluations_are_left_out(share: float) -> None:
    truth, rng = sparse(64, 30), np.random.default_rng(0)

    def game(masks: np.ndarray) -> np.ndarray:
        return np.where(rng.random(len(masks)) < share, np.nan, truth.predict(masks))

    e = explain(game, 64, 2000, "spex")
    assert e.evaluations.failed > 0
    assert strong(e.fourier) == set(truth.supports)
    assert e.fourier.to_dict()[truth.supports[1]] == pytest.approx(truth.coefficients[1], abs=1e-6)
    assert "coded evaluations failed: interactions were looked for with a fit" in e.notes[0]
    assert e.notes[1].endswith("evaluations failed and were left out")


def test_too_many_failures_to_decode() -> None:
    truth, rng = sparse(30, 10), np.random.default_rng(0)
    e = explain(
        lambda masks: np.where(rng.random(len(masks)) < 0.4, np.nan, truth.predict(masks)),
        30,
        700,
        "spex",
    )
    assert e.fourier.method in {"linear", "gp", "proxyspex"}
    assert e.notes[0].endswith("coded evaluations failed, too many to decode: a regression")


def test_only_held_out_masks_survive() -> None:
    design = draw_coded(30, 700).design
    good = {mask.tobytes() for mask in design.masks[design.held_out]}

    def game(masks: np.ndarray) -> np.ndarray:
        return np.array([1.0 if mask.tobytes() in good else np.nan for mask in masks])

    e = explain(game, 30, 700, "spex")
    assert e.evaluations.computed == design.held_out.sum()
    assert e.faithfulness.r2 is None


def test_nothing_measured() -> None:
    e = explain(lambda masks: masks.sum(axis=1), 30, 700, "spex", should_stop=lambda: True)
    assert e.fourier.supports == ()
    with pytest.raises(ValueError, match="all 700 evaluations failed"):
        explain(lambda masks: np.full(len(masks), np.nan), 30, 700, "spex")
