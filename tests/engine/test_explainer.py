"""The loop: what is asked of the game, what is reported, and when it ends."""

from collections.abc import Iterator
from itertools import combinations, count
from itertools import pairwise as successive

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spex_engine as spex
from spex_engine import Explanation, SparseFourier, explain, fitting, interactions
from spex_engine.designs import draw_design
from spex_engine.evaluation import Samples
from spex_engine.judging import Fitted
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


def rough(masks: np.ndarray) -> np.ndarray:
    """Numbers that no fit can predict, the same for the same mask."""
    return np.sin(1e4 * (masks @ np.sqrt(np.arange(2.0, masks.shape[1] + 2.0))))


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
        38,
    )
    assert e.near_full == Faithfulness(
        pytest.approx(1.0), "masks that lack 1 to 3 features, held out from the fit", 19
    )
    assert e.evaluations == Evaluations(requested=300, computed=300, cached=0, failed=0)
    assert len(e.notes) == 1
    assert e.notes[0].startswith("linear of order 2: best of the cross-validated R2")
    strongest = interactions(e.fourier, "BII")[0]
    assert strongest.members == (0, 1)
    assert strongest.value == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("budget", "n_test", "n_near"),
    [
        (2, 0, 0),
        (63, 0, 0),
        (64, 16, 0),
        (255, 38, 0),
        (256, 32, 16),
        (512, 64, 32),
        (3000, 256, 64),
    ],
)
def test_how_many_are_held_out(budget: int, n_test: int, n_near: int) -> None:
    e = explain(rough, 30, budget=budget, method="linear")
    assert e.faithfulness.n_test == n_test
    assert (e.near_full.n_test if e.near_full else 0) == n_near
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
    game = Recorder(rough)
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
        np.testing.assert_array_equal(s.values, rough(s.masks))
    fits = {id(s.fourier) for s in seen}
    assert len(fits) == 4  # at 64, 128, 256 and 512: renewed when the samples have doubled


def fits_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of values that each fit from now on is made of."""
    sizes: list[int] = []
    original = fitting.Task.fit

    def counted(task: fitting.Task, samples: Samples, last: bool = True) -> Fitted:
        sizes.append(len(samples.values))
        return original(task, samples, last)

    monkeypatch.setattr(fitting.Task, "fit", counted)
    return sizes


def test_nobody_listens_nothing_is_fitted_that_could_not_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = fits_made(monkeypatch)
    explain(rough, 16, budget=1024, method="linear")
    assert sizes == [256, 512, 1024]  # 32 uniform masks are held out of the first 256
    sizes.clear()
    explain(pairwise, 9, budget=512)
    assert sizes == [512]


@pytest.mark.parametrize("game", [pairwise, rough])
def test_listening_changes_nothing(game: object) -> None:
    seen: list[Explanation] = []
    alone = explain(game, 20, budget=700, method="linear", max_order=2)
    heard = explain(game, 20, 700, "linear", 2, on_progress=seen.append)
    assert len(seen) > 3
    np.testing.assert_array_equal(alone.masks, heard.masks)
    assert alone.fourier.to_dict() == heard.fourier.to_dict()
    assert (alone.notes, alone.converged) == (heard.notes, heard.converged)


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
    game = Recorder(lambda masks: pairwise(masks) + 0.5 * rough(masks), failing_third)
    e = explain(game, 16, budget=400)
    failed = e.evaluations.failed
    assert failed > 20
    assert e.evaluations.computed == len(e.values) == 400 - failed
    assert np.isfinite(e.values).all()
    assert f"{failed} of 400 evaluations failed and were left out" in e.notes
    assert e.faithfulness.r2 == pytest.approx(0.98, abs=0.01)  # of noise, the same everywhere
    assert e.faithfulness.n_test < 50


@pytest.mark.parametrize(("n", "n_test"), [(5, 0), (8, 32)])
def test_failures_turn_enumeration_into_regression(n: int, n_test: int) -> None:
    e = explain(Recorder(pairwise, lambda masks: ~masks.any(axis=1)), n, method="exact")
    assert e.fourier.method == "linear"
    assert e.evaluations.failed == 1
    assert e.notes[-2:] == (
        f"1 of {2**n} evaluations failed and were left out",
        "not every mask was measured, so this is a regression, not exact",
    )
    assert e.faithfulness.n_test == pytest.approx(n_test, abs=2)
    assert not e.converged
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
    monkeypatch.setattr("spex_engine.fitting.MAX_SAMPLES", 50)
    monkeypatch.setattr("spex_engine.estimators.spectral_gp.MAX_SAMPLES", 50)
    e = explain(pairwise, 12, budget=120, method="gp")
    assert e.notes == ("gp fits 50 of the 88 samples, drawn at random",)
    assert explain(pairwise, 12, budget=63, method="gp").notes == ()


# ---- values that come in any order -------------------------------------------------------------


class Scattered:
    """Evaluates a game with everything in flight: bursts of a random order, some masks lost."""

    def __init__(self, game: object, lost: float = 0.0, failed: float = 0.0) -> None:
        self.game, self.lost, self.failed = game, lost, failed
        self.rng = np.random.default_rng(0)
        self.asked: list[bytes] = []
        self.given = self.open = 0

    def evaluate(self, masks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self.asked.extend(mask.tobytes() for mask in masks)
        self.open += 1
        try:
            values = self.game(masks)
            values[self.rng.random(len(masks)) < self.failed] = np.nan
            order = self.rng.permutation(len(masks))
            order = order[self.rng.random(len(masks)) >= self.lost]
            while len(order):
                burst, order = np.split(order, [self.rng.integers(0, 20)])
                self.given += len(burst)
                yield burst, values[burst]
        finally:
            self.open -= 1


@pytest.mark.parametrize(
    ("method", "n", "budget"),
    [("auto", 16, 200), ("exact", 7, 128), ("spex", 30, 700), ("linear", 40, 300)],
)
def test_the_order_of_arrival_changes_nothing(method: str, n: int, budget: int) -> None:
    game = Scattered(pairwise)
    e = explain(game, n, budget=budget, method=method)
    plain = explain(pairwise, n, budget=budget, method=method)
    assert game.open == 0
    np.testing.assert_array_equal(e.masks, plain.masks)
    np.testing.assert_array_equal(e.values, pairwise(e.masks))
    assert e.fourier.to_dict() == plain.fourier.to_dict()
    assert (e.evaluations, e.notes, e.converged) == (
        plain.evaluations,
        plain.notes,
        plain.converged,
    )


@pytest.mark.parametrize("method", ["auto", "spex"])
def test_what_never_comes_has_failed(method: str) -> None:
    game = Scattered(pairwise, lost=0.05, failed=0.05)
    seen: list[Explanation] = []
    e = explain(game, 30, budget=700, method=method, on_progress=seen.append)
    done = [s.evaluations.computed + s.evaluations.failed for s in seen]
    assert all(less < more for less, more in successive(done))
    assert done[-1] == e.evaluations.requested
    assert e.evaluations.failed == pytest.approx(0.0975 * done[-1], rel=0.5)
    assert e.evaluations.computed == len(e.values)
    np.testing.assert_array_equal(e.values, pairwise(e.masks))
    assert interactions(e.fourier, "BII")[0].members == (0, 1)


@pytest.mark.parametrize(("method", "budget", "enough"), [("auto", 450, 300), ("spex", 4000, 1500)])
def test_stop_with_evaluations_in_flight(method: str, budget: int, enough: int) -> None:
    """What did not come is neither there nor failed, nor is a plan told that it is."""
    game = Scattered(lambda masks: both(masks) + masks[:, 5] + 0.3 * rough(masks))
    e = explain(game, 30, budget, method, should_stop=lambda: game.given >= enough)
    assert game.open == 0
    assert len(game.asked) > e.evaluations.computed == len(e.values) == game.given
    assert e.evaluations == Evaluations(budget, game.given, cached=0, failed=0)
    assert e.notes[-1] == f"{game.given} of {budget} evaluations were made"
    assert not any("failed" in note for note in e.notes)
    assert not e.converged
    found = {i.members: i.value for i in interactions(e.fourier, "BII")}
    assert found[0, 1] == pytest.approx(1.0, abs=0.3)
    if method == "auto":  # the fit is of all that is there, not of the last round
        design = draw_design(30, budget, 56, seed=0, n_near=28)
        held_out = {mask.tobytes() for mask in design.masks[design.held_out]}
        assert e.near_full is not None
        judged = e.faithfulness.n_test + e.near_full.n_test
        assert judged == sum(mask.tobytes() in held_out for mask in e.masks)


def test_an_exception_of_a_callback_closes_the_evaluator() -> None:
    game = Scattered(rough)

    def on_progress(explanation: Explanation) -> None:
        if explanation.evaluations.computed > 190:  # the round ends at 256
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:  # holds the frames, and what they hold
        explain(game, 20, 1000, "linear", on_progress=on_progress)
    assert game.open == 0
    assert caught.tb is not None


# ---- convergence -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "max_order", "most"), [("linear", 2, 384), ("auto", None, 384), ("spex", None, 2304)]
)
def test_an_easy_game_ends_early_and_right(method: str, max_order: int | None, most: int) -> None:
    truth = SparseFourier(
        24, "truth", ((), (1,), (5,), (2, 9), (5, 20)), np.array([0.5, -1.0, 0.4, 0.7, -0.6])
    )
    rng = np.random.default_rng(0)
    game = Recorder(lambda masks: truth.predict(masks) + 0.01 * rng.normal(size=len(masks)))
    seen: list[Explanation] = []
    e = explain(game, 24, 4096, method, max_order, on_progress=seen.append)
    asked = len(game.asked)
    assert asked <= most
    assert e.converged
    assert e.evaluations == Evaluations(asked, asked, cached=0, failed=0)
    assert e.notes[-1] == f"converged after {asked} of 4096 evaluations"
    assert e is seen[-1]
    assert not any(s.converged for s in seen[:-1])
    found = spex.recovery(e.fourier, truth)
    assert (found.precision, found.recall) == (1.0, 1.0)
    assert found.error < 0.02


def test_a_hard_game_is_given_the_whole_budget() -> None:
    e = explain(rough, 20, 1024, "linear")
    assert e.evaluations.requested == 1024
    assert not e.converged


def test_values_that_never_vary_are_no_reason_to_stop() -> None:
    """All of twenty together: nearly every mask says that nothing matters."""
    e = explain(lambda masks: masks.all(axis=1).astype(float), 20, 1024, "linear")
    assert e.faithfulness.r2 == 1.0
    assert e.evaluations.requested == 1024
    assert not e.converged


@pytest.mark.parametrize("method", ["auto", "exact", "linear"])
def test_where_every_mask_is_measured_nothing_ends_early(method: str) -> None:
    e = explain(pairwise, 9, 512, method, 2)
    assert e.evaluations.computed == 512
    assert e.converged


def test_the_criterion_is_the_answer_at_the_end_too() -> None:
    assert explain(pairwise, 16, 384).converged  # 256, then 384
    assert explain(pairwise, 16, 384).evaluations.computed == 384
    assert not explain(pairwise, 16, 256).converged  # one round alone shows no change


# ---- the budget --------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 60),
    budget=st.integers(2, 700),
    method=st.sampled_from(["linear", "gp", "auto", "spex", "exact"]),
    lost=st.sampled_from([0.0, 0.3]),
    smooth=st.booleans(),
)
def test_the_budget_is_never_exceeded(
    n: int, budget: int, method: str, lost: float, smooth: bool
) -> None:
    budget = min(budget, 150) if method in ("gp", "auto") else budget  # in time
    game = Scattered((lambda masks: 1.0 * masks.sum(axis=1)) if smooth else rough, lost=lost)
    try:
        e = explain(game, n, budget, method)
    except ValueError as error:
        assert str(error).startswith(("budget: ", "game: all"))  # noqa: PT017
        assert not game.asked or lost
        return
    assert len(set(game.asked)) == len(game.asked) <= budget
    assert e.evaluations.requested == len(game.asked)
    assert e.evaluations.computed + e.evaluations.failed == len(game.asked)


@pytest.mark.parametrize("method", ["linear", "gp", "auto"])
@pytest.mark.parametrize("budget", [2, 3, 10, 70])
def test_a_budget_under_the_number_of_features(method: str, budget: int) -> None:
    """Too few masks to tell 100 features apart; what was measured is predicted, no more."""
    e = explain(lambda masks: 2.0 * masks[:, 7], 100, budget, method)
    assert e.evaluations.computed == budget
    assert len(interactions(e.fourier, "BV", 1)) == 100
    assert np.isfinite(e.fourier.coefficients).all()
    assert not e.converged


# ---- near the full prompt ----------------------------------------------------------------------


def test_a_fit_that_is_wrong_near_the_full_prompt_is_said_to_be() -> None:
    """Ten features of which eight are needed together: half-empty prompts know nothing of them."""

    def game(masks: np.ndarray) -> np.ndarray:
        return masks[:, 12] + 5.0 * masks[:, :8].all(axis=1)

    e = explain(game, 20, 512, "linear", 2)
    assert e.near_full is not None
    assert e.near_full.r2 is not None
    assert e.near_full.r2 < 0.0
    (note,) = (note for note in e.notes if note.startswith("near the full prompt the fit is worse"))
    assert f"R2 {e.near_full.r2:.2f} where 1 to 3 segments are dropped" in note
    good = explain(pairwise, 20, 512, "linear", 2)
    assert good.near_full is not None
    assert good.near_full.r2 == pytest.approx(1.0)
    assert good.notes == ("converged after 384 of 512 evaluations",)


def test_a_small_error_near_the_full_prompt_is_no_news() -> None:
    """Two that do the same: near the full prompt hardly anything changes, and R2 is hopeless."""

    def game(masks: np.ndarray) -> np.ndarray:
        return 10.0 * (masks[:, 0] | masks[:, 1]) + 0.01 * rough(masks)

    e = explain(game, 20, 512, "linear", 2)
    assert e.near_full is not None
    assert e.near_full.r2 is not None
    assert e.faithfulness.r2 == pytest.approx(1.0, abs=1e-3)
    assert not any(note.startswith("near the full") for note in e.notes)


# ---- repeated and unfit samples ----------------------------------------------------------------


def test_fit_takes_masks_twice_but_no_missing_values() -> None:
    masks = np.random.default_rng(0).random((200, 8)) < 0.5
    twice = np.concatenate([masks, masks])
    f = spex.fit(twice, np.concatenate([pairwise(masks) + 0.1, pairwise(masks) - 0.1]))
    assert interactions(f, "BII")[0].value == pytest.approx(3.0, abs=0.1)
    with pytest.raises(ValueError, match="values: 1 of 200 are NaN or infinite"):
        spex.fit(masks, np.where(np.arange(200) == 5, np.nan, 1.0))
    with pytest.raises(ValueError, match=r"masks: got int64, expected a bool array \(m, n\)"):
        spex.fit(masks.astype(int), pairwise(masks))
    with pytest.raises(ValueError, match=r"masks: shape \(8,\), expected \(m, n\)"):
        spex.fit(masks[0], pairwise(masks[:1]))


def test_the_interactions_of_every_pair_are_as_the_games() -> None:
    e = explain(pairwise, 10, 1024)
    found = {i.members: i.value for i in interactions(e.fourier, "BII", 2)}
    for pair in combinations(range(10), 2):
        assert found.get(pair, 0.0) == pytest.approx(3.0 if pair == (0, 1) else 0.0, abs=1e-9)
