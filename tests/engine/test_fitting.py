"""What "auto" asks for where no single feature gives anything away, and where some do."""

import numpy as np
import pytest

import spex_engine as spex
from spex_engine import SparseFourier
from spex_engine.coded_design import least_budget
from spex_engine.estimators import PLANS
from spex_engine.fourier import Floats, Masks


@pytest.mark.parametrize(
    ("n", "support"), [(24, (3, 8, 17)), (24, (0, 5, 11, 23)), (64, (9, 30, 50))]
)
def test_a_lone_parity_is_found_from_twice_the_least_budget(
    n: int, support: tuple[int, ...]
) -> None:
    truth, rng = SparseFourier(n, "truth", (support,), np.ones(1)), np.random.default_rng(0)
    budget = 2 * least_budget(n)
    e = spex.explain(
        lambda masks: truth.predict(masks) + 0.1 * rng.normal(size=len(masks)), n, budget
    )
    assert e.fourier.top(1).supports == (support,)
    assert e.faithfulness.r2 is not None
    assert e.faithfulness.r2 > 0.95
    assert e.evaluations.requested <= budget


def test_auto_says_that_a_code_was_better() -> None:
    rng = np.random.default_rng(1)
    supports = tuple({tuple(sorted(rng.choice(24, 4, replace=False).tolist())) for _ in range(6)})
    truth = SparseFourier(24, "truth", supports, rng.choice([-1.0, 1.0], len(supports)))
    e = spex.explain(truth.predict, 24, 1000)
    assert e.fourier.method == "spex"
    assert e.notes[0].startswith("spex: R2 1.00 on held-out masks, where the next best has ")
    assert set(e.fourier.top(6).supports) == set(supports)


def words(masks: Masks) -> Floats:
    kept = masks.astype(np.float64)
    values: Floats = np.tanh(kept @ np.linspace(-0.2, 0.2, 24) + kept[:, 3] * kept[:, 4])
    return values


def test_auto_goes_over_to_uniform_masks_where_no_code_is_needed() -> None:
    e = spex.explain(words, 24, 1000)
    assert e.fourier.method in {"gp", "linear"}
    alone = ~np.eye(24, dtype=np.bool_)
    asked = {mask.tobytes() for mask in e.masks}
    assert {mask.tobytes() for mask in alone} <= asked  # what removal of each is read from
    assert e.near_full is not None
    assert e.near_full.n_test >= 24
    assert e.faithfulness.r2 is not None
    assert e.faithfulness.r2 > 0.95


def test_every_code_is_kept_where_only_it_can_help() -> None:
    """Half of the budget is asked for in the order of the code, whatever was seen."""
    rng = np.random.default_rng(2)
    supports = tuple({tuple(sorted(rng.choice(24, 4, replace=False).tolist())) for _ in range(6)})
    truth = SparseFourier(24, "truth", supports, np.ones(len(supports)))
    e = spex.explain(truth.predict, 24, 700)
    coded = spex.explain(truth.predict, 24, 700, "spex")
    asked = {mask.tobytes() for mask in e.masks}
    assert {mask.tobytes() for mask in coded.masks} == asked


def test_many_failures_leave_room_for_chosen_masks() -> None:
    """Parts grow with what was asked, whatever came of it: never more than there are candidates."""
    rng = np.random.default_rng(0)
    game = lambda masks: np.where(rng.random(len(masks)) < 0.95, np.nan, words(masks[:, :24]))  # noqa: E731
    e = spex.explain(game, 30, 8000, "gp", max_order=2)
    assert e.evaluations.computed + e.evaluations.failed == e.evaluations.requested


def test_only_held_out_masks_of_a_code_survive() -> None:
    design = PLANS["spex"](12, 600).design
    good = {mask.tobytes() for mask in design.masks[design.held_out]}
    alive = lambda masks: np.array([mask.tobytes() in good for mask in masks])  # noqa: E731
    e = spex.explain(lambda masks: np.where(alive(masks), masks.sum(axis=1), np.nan), 12, 600)
    assert e.fourier.predict(design.masks[:1]) == pytest.approx(12.0, abs=1.0)
    assert e.faithfulness.r2 is None


@pytest.mark.parametrize("asked", [128, 129, 192])
def test_stopped_in_the_middle_it_makes_no_difference_who_listens(asked: int) -> None:
    def run(listen: bool) -> spex.Explanation:
        seen = 0

        def game(masks: Masks) -> Floats:
            nonlocal seen
            seen += len(masks)
            return np.sign(words(masks)) * masks[:, 1] * masks[:, 2]

        heard: list[spex.Explanation] = []
        return spex.explain(
            game,
            24,
            512,
            on_progress=heard.append if listen else None,
            should_stop=lambda: seen >= asked,
        )

    alone, heard = run(False), run(True)
    assert alone.fourier.to_dict() == heard.fourier.to_dict()
    assert (alone.notes, alone.faithfulness) == (heard.notes, heard.faithfulness)
