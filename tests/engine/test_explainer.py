"""The loop: what is asked of the game, what is reported, and when it ends."""

from itertools import count

import numpy as np
import pytest

import spex_engine as spex
from spex_engine import Explanation, SparseFourier, explain, explainer, interactions
from spex_engine.designs import draw_design
from spex_engine.wire import Evaluations, Faithfulness


class Recorder:
    """A game that remembers what it was asked."""

    def __init__(self, f: object, failing: object = None) -> None:
        self.f, self.failing = f, failing
        self.asked: list[bytes] = []
        self.chunks: list[int] = []

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        assert masks.dtype == np.bool_
        self.asked.extend(mask.tobytes() for mask in masks)
        self.chunks.append(len(masks))
        values = np.array(self.f(masks), dtype=float)
        if self.failing is not None:
            values[self.failing(masks)] = np.nan
        masks[:] = False  # a game may spoil what it was given
        return values


def both(masks: np.ndarray) -> np.ndarray:
    """1 where the first two features are both kept."""
    return (masks[:, 0] & masks[:, 1]).astype(float)


def pairwise(masks: np.ndarray) -> np.ndarray:
    return masks.sum(axis=1) + 3.0 * both(masks)


# ---- exact -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "exact"])
def test_exact_where_every_mask_fits(method: str) -> None:
    game = Recorder(both)
    e = explain(game, 4, budget=16, method=method)
    assert len(set(game.asked)) == len(game.asked) == 16
    assert e.fourier.method == "exact"
    assert e.fourier.to_dict() == {(): 0.25, (0,): -0.25, (1,): -0.25, (0, 1): 0.25}
    assert e.faithfulness == Faithfulness(1.0, "every mask was measured", 16)
    assert e.evaluations == Evaluations(requested=16, computed=16, cached=0, failed=0)
    assert e.converged
    assert e.notes == ()
    assert e.seconds > 0
    strongest = interactions(e.fourier, "Moebius")[0]
    assert (strongest.members, strongest.value, strongest.stderr) == ((0, 1), 1.0, 0.0)


def test_values_are_there_to_be_read() -> None:
    e = explain(Recorder(pairwise), 8, budget=100)
    np.testing.assert_array_equal(e.values, pairwise(e.masks))
    assert e.masks[0].all()
    assert not e.masks[1].any()
    np.testing.assert_array_equal(e.masks[2:10], ~np.eye(8, dtype=bool))


def test_exact_of_limited_order_is_judged_honestly() -> None:
    e = explain(both, 2, budget=4, max_order=1)
    assert e.fourier.supports == ((), (0,), (1,))
    assert e.faithfulness.r2 == pytest.approx(2 / 3)


@pytest.mark.parametrize("n", [5, 5000])
def test_exact_needs_the_budget(n: int) -> None:
    with pytest.raises(ValueError, match=rf"budget: 31, expected at least 2\*\*{n} for method 'ex"):
        explain(both, n, budget=31, method="exact")


def test_no_features() -> None:
    e = explain(lambda masks: np.full(len(masks), 2.0), 0)
    assert e.fourier.to_dict() == {(): 2.0}
    assert e.evaluations.requested == 1


def test_one_feature() -> None:
    e = explain(lambda masks: masks[:, 0] * 3.0, 1)
    assert e.fourier.to_dict() == {(): 1.5, (0,): -1.5}
    assert e.evaluations.requested == 2


@pytest.mark.parametrize("n", [3, 20])
def test_constant_game(n: int) -> None:
    e = explain(lambda masks: np.full(len(masks), 0.1), n, budget=100)
    assert e.faithfulness.r2 == 1.0
    assert all(abs(i.value) < 1e-12 for i in interactions(e.fourier))


# ---- regression --------------------------------------------------------------------------------


def test_regression_holds_masks_out_and_says_what_it_did() -> None:
    game = Recorder(pairwise)
    e = explain(game, 16, budget=300)
    assert len(set(game.asked)) == len(game.asked) == 300
    assert e.fourier.method == "linear"
    assert e.faithfulness.r2 == pytest.approx(1.0)
    assert (e.faithfulness.how, e.faithfulness.n_test) == (
        "uniform masks held out from the fit",
        45,
    )
    assert e.evaluations == Evaluations(requested=300, computed=300, cached=0, failed=0)
    assert len(e.notes) == 1
    assert e.notes[0].startswith("linear of order 2: best of the cross-validated R2")
    strongest = interactions(e.fourier, "BII")[0]
    assert strongest.members == (0, 1)
    assert strongest.value == pytest.approx(3.0)


@pytest.mark.parametrize(("budget", "n_test"), [(2, 0), (63, 0), (64, 16), (200, 30), (2000, 256)])
def test_how_many_are_held_out(budget: int, n_test: int) -> None:
    e = explain(lambda masks: masks.sum(axis=1), 30, budget=budget, method="linear")
    assert e.faithfulness.n_test == n_test
    assert e.evaluations.requested == budget
    if not n_test:
        assert e.faithfulness.how == "too few evaluations to hold any out"
        assert e.faithfulness.r2 is None


def test_held_out_masks_stay_out_of_the_fit() -> None:
    """Pure noise is never predicted on masks the fit has not seen."""
    rng = np.random.default_rng(0)
    e = explain(lambda masks: rng.normal(size=len(masks)), 50, budget=300, method="linear")
    assert e.faithfulness.r2 is not None
    assert e.faithfulness.r2 < 0.2


def test_linear_asks_no_more_than_there_is() -> None:
    game = Recorder(both)
    e = explain(game, 3, budget=1000, method="linear")
    assert len(game.asked) == 8
    assert e.fourier.method == "linear"


def test_max_order_reaches_the_estimator() -> None:
    e = explain(pairwise, 12, budget=200, method="linear", max_order=2)
    assert e.fourier.to_dict()[(0, 1)] == pytest.approx(0.75)
    assert all(len(s) < 2 for s in explain(pairwise, 12, 200, "linear").fourier.supports)


def test_seed_is_all_there_is_to_chance() -> None:
    first, second, third = (explain(pairwise, 12, budget=90, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.masks, second.masks)
    assert first.fourier.to_dict() == second.fourier.to_dict()
    assert (first.masks != third.masks).any()


# ---- progress and stop -------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "method"), [(16, "auto"), (9, "exact")])
def test_progress(n: int, method: str) -> None:
    game = Recorder(pairwise)
    seen: list[Explanation] = []
    e = explain(game, n, budget=512, method=method, on_progress=seen.append)
    assert max(game.chunks) <= 64
    assert [s.evaluations.computed for s in seen] == list(range(64, 513, 64))
    assert {s.evaluations.requested for s in seen} == {512}
    assert seen[-1] is e
    for s in seen[:-1]:
        assert not s.converged
        assert s.fourier.n_features == n
        assert f"{len(s.values)} of 512 evaluations were made" in s.notes
        np.testing.assert_array_equal(s.values, pairwise(s.masks))
    fits = {id(s.fourier) for s in seen}
    assert len(fits) == 4  # at 64, 128, 256 and 512: renewed when the samples have doubled


def test_nobody_listens_nothing_is_fitted_between(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = count()
    original = explainer._Run.fit
    monkeypatch.setattr(
        explainer._Run, "fit", lambda self, values: (next(fits), original(self, values))[1]
    )
    explain(pairwise, 16, budget=512)
    assert next(fits) == 1


@pytest.mark.parametrize("method", ["auto", "exact"])
def test_stop_keeps_what_was_measured(method: str) -> None:
    game = Recorder(pairwise)
    seen: list[Explanation] = []
    e = explain(
        game,
        9,
        budget=512,
        method=method,
        on_progress=seen.append,
        should_stop=lambda: len(game.asked) >= 128,
    )
    assert len(game.asked) == 128
    assert not e.converged
    assert e.evaluations == Evaluations(requested=512, computed=128, cached=0, failed=0)
    assert e.notes[-1] == "128 of 512 evaluations were made"
    assert e.fourier.method == "linear"
    assert e.faithfulness.r2 == pytest.approx(1.0)
    assert e.faithfulness.n_test > 10
    assert interactions(e.fourier, "BII")[0].members == (0, 1)
    assert e is not seen[-1]
    assert len(seen) == 2


def test_stop_before_anything_was_measured() -> None:
    e = explain(both, 20, should_stop=lambda: True)
    assert e.fourier.supports == ()
    assert e.faithfulness == Faithfulness(None, "nothing was measured", 0)
    assert e.evaluations == Evaluations(requested=1024, computed=0, cached=0, failed=0)
    assert e.masks.shape == (0, 20)
    assert not e.converged
    assert e.notes == ("0 of 1024 evaluations were made",)


def test_stop_is_asked_before_every_chunk() -> None:
    polls = count()
    explain(both, 20, budget=200, should_stop=lambda: next(polls) > 100)
    assert next(polls) == 4


# ---- failures ----------------------------------------------------------------------------------


def failing_third(masks: np.ndarray) -> np.ndarray:
    return masks[:, 2] & masks[:, 3] & ~masks[:, 4]


def test_failed_evaluations_are_left_out_and_counted() -> None:
    game = Recorder(pairwise, failing_third)
    e = explain(game, 16, budget=400)
    failed = e.evaluations.failed
    assert failed > 20
    assert e.evaluations.computed == len(e.values) == 400 - failed
    assert np.isfinite(e.values).all()
    assert f"{failed} of 400 evaluations failed and were left out" in e.notes
    assert e.converged
    assert e.faithfulness.r2 == pytest.approx(1.0)
    assert e.faithfulness.n_test < 60


@pytest.mark.parametrize(("n", "n_test"), [(5, 0), (8, 36)])
def test_failures_turn_enumeration_into_regression(n: int, n_test: int) -> None:
    e = explain(Recorder(pairwise, lambda masks: ~masks.any(axis=1)), n, method="exact")
    assert e.fourier.method == "linear"
    assert e.evaluations.failed == 1
    assert e.notes[-2:] == (
        f"1 of {2**n} evaluations failed and were left out",
        "not every mask was measured, so this is a regression, not exact",
    )
    assert e.faithfulness.n_test == pytest.approx(n_test, abs=2)
    assert interactions(e.fourier, "BII")[0].members == (0, 1)


def test_infinite_values_count_as_failed() -> None:
    e = explain(lambda masks: np.where(masks[:, 0], 1.0, -np.inf), 3)
    assert (e.evaluations.computed, e.evaluations.failed) == (4, 4)


def test_everything_failed() -> None:
    with pytest.raises(ValueError, match="game: all 100 evaluations failed"):
        explain(lambda masks: np.full(len(masks), np.nan), 10, budget=100)


def test_progress_waits_for_a_first_value() -> None:
    calls = count()
    seen: list[Explanation] = []
    explain(
        lambda masks: pairwise(masks) if next(calls) else np.full(len(masks), np.nan),
        16,
        budget=192,
        on_progress=seen.append,
    )
    assert [s.evaluations.computed for s in seen] == [64, 128]


def test_stopped_while_everything_failed() -> None:
    polls = count()
    e = explain(lambda masks: np.full(len(masks), np.nan), 16, should_stop=lambda: next(polls) > 0)
    assert e.evaluations.failed == 64
    assert e.faithfulness.how == "nothing was measured"


def test_only_held_out_masks_survive() -> None:
    design = draw_design(16, 100, 16, seed=0)
    good = {mask.tobytes() for mask in design.masks[design.held_out]}
    e = explain(
        Recorder(pairwise, lambda masks: [mask.tobytes() not in good for mask in masks]),
        16,
        budget=100,
    )
    assert e.evaluations.computed == 16
    assert e.faithfulness.r2 is None


def test_held_out_values_without_variation() -> None:
    ends = lambda masks: np.where(masks.all(axis=1), 1.0, 0.0)  # noqa: E731
    e = explain(ends, 20, budget=100, method="linear")
    assert e.faithfulness.r2 is None
    assert e.faithfulness.how.endswith("which all have the same value")


def test_exceptions_of_the_game_pass_through() -> None:
    def game(masks: np.ndarray) -> np.ndarray:
        raise ConnectionError("no route")

    with pytest.raises(ConnectionError, match=r"^no route$"):
        explain(game, 4)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda m: np.zeros((m, 1)), r"game: returned shape \(8, 1\) for masks \(8, 3\), expected"),
        (lambda m: np.zeros(m + 1), r"game: returned shape \(9,\)"),
        (lambda m: 1.0, r"game: returned shape \(\)"),
        (lambda m: None, r"game: returned shape \(\)"),
        (lambda m: ["x"] * m, r"game: expected real numbers \(8,\) back"),
    ],
)
def test_games_that_return_something_else(returned: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain(lambda masks: returned(len(masks)), 3)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_features": -1}, "n_features: -1, expected an integer of 0 or more"),
        ({"n_features": 2.0}, "n_features: 2.0"),
        ({"budget": 1}, "budget: 1, expected an integer of 2 or more"),
        ({"budget": 1e3}, "budget: 1000.0"),
        ({"max_order": 0}, "max_order: 0, expected an integer of 1 or more"),
        ({"seed": -1}, "seed: -1, expected an integer of 0 or more"),
        ({"seed": True}, "seed: True"),
        (
            {"method": "proxyspex"},
            "method: 'proxyspex' comes in a later version; available now: 'auto', 'exact'",
        ),
        ({"method": "x"}, "method: 'x', expected one of 'auto', 'exact', 'linear'"),
    ],
)
def test_unfit_arguments_cost_no_evaluation(arguments: dict, message: str) -> None:
    game = Recorder(both)
    with pytest.raises(ValueError, match=message):
        explain(game, **{"n_features": 4, **arguments})
    assert game.asked == []


def test_fit_is_the_same_regression() -> None:
    e = explain(pairwise, 10, budget=60)
    f = spex.fit(e.masks[12:], e.values[12:])  # without full, empty and leave-one-out masks
    assert isinstance(f, SparseFourier)
    assert f.to_dict() == e.fourier.to_dict()


def test_what_is_no_game() -> None:
    with pytest.raises(ValueError, match="game: NoneType, expected a function"):
        explain(None, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="game: returned complex numbers"):
        explain(lambda masks: masks[:, 0] * 1j, 3)


def test_samples_that_the_gaussian_process_leaves_out_are_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spex_engine.explainer.MAX_SAMPLES", 50)
    monkeypatch.setattr("spex_engine.estimators.spectral_gp.MAX_SAMPLES", 50)
    e = explain(pairwise, 12, budget=120, method="gp")
    assert e.notes == ("gp fits 50 of the 88 samples, drawn at random",)
    assert explain(pairwise, 12, budget=63, method="gp").notes == ()
