"""Runs on a prompt and on an edited one: which values need not be measured again."""

import itertools

import numpy as np
import pytest

import spex_engine as spex
from spex_engine.first_task import first_task
from spex_engine.fourier import Floats, Masks


def names(n: int) -> list[bytes]:
    return [f"segment {i}".encode() for i in range(n)]


def additive(masks: Masks) -> Floats:
    kept = masks.astype(np.float64)
    values: Floats = kept @ np.linspace(-1.0, 1.0, masks.shape[1]) + kept[:, 1] * kept[:, 2]
    return values


def hard(masks: Masks) -> Floats:
    """Every fit leaves much of it unexplained, so that the budget is spent."""
    return np.sin(3.0 * additive(masks) + 2.0)


def asked(game: object, identities: list[bytes], **how: object) -> set[tuple[bytes, ...]]:
    """What a model would have read."""
    e = spex.explain(game, len(identities), identities=identities, **how)  # type: ignore[arg-type]
    return {tuple(itertools.compress(identities, mask)) for mask in e.masks.tolist()}


@pytest.mark.parametrize(
    ("n", "budget", "method", "reused"),
    [
        (8, 256, "auto", 0.5),
        (16, 200, "linear", 0.38),
        (14, 250, "gp", 0.38),
        (14, 800, "auto", 0.43),
        (14, 600, "spex", 0.45),
    ],
)
def test_an_edit_in_place_leaves_the_masks_without_it(
    n: int, budget: int, method: str, reused: float
) -> None:
    before = names(n)
    after = [*before[:5], b"edited", *before[6:]]
    runs = [asked(hard, ids, budget=budget, method=method) for ids in (before, after)]
    assert len(runs[0] & runs[1]) >= reused * len(runs[1])


def test_auto_begins_with_no_code_which_an_insertion_would_change() -> None:
    """At a budget at which it does without identities."""
    assert first_task(60, 1024, False, "auto", None, 0).plan is not None
    before = names(60)
    after = [*before[:30], b"new", *before[30:]]
    runs = [asked(hard, ids, budget=1024, method="auto", max_order=1) for ids in (before, after)]
    assert len(runs[0] & runs[1]) >= 0.4 * len(runs[1])
    assert first_task(60, 1024, False, "spex", None, 0, tuple(before)).plan is not None


@pytest.mark.parametrize("changed", [names(15), names(13)])
def test_an_insertion_or_deletion_leaves_what_it_can(changed: list[bytes]) -> None:
    first, second = (asked(hard, ids, budget=250, method="gp") for ids in (names(14), changed))
    assert len(first & second) >= 0.33 * len(second)


def test_values_do_not_choose_the_masks() -> None:
    """Else one that changed with the edit would change all that are asked for after it."""
    for method in ("gp", "auto"):
        one, other = (
            asked(game, names(14), budget=200, method=method)
            for game in (hard, lambda masks: -(hard(masks) ** 3))
        )
        assert one == other


def test_equal_identities_and_seeds_are_equal_runs() -> None:
    one, other = (spex.explain(additive, 12, 200, seed=3, identities=names(12)) for _ in range(2))
    np.testing.assert_array_equal(one.masks, other.masks)
    assert one.fourier.to_dict() == other.fourier.to_dict()
    different = spex.explain(additive, 12, 200, seed=4, identities=names(12))
    assert {m.tobytes() for m in different.masks} != {m.tobytes() for m in one.masks}


def test_what_is_found_does_not_depend_on_identities() -> None:
    alone = spex.explain(additive, 12, 300, "linear", 2)
    named = spex.explain(additive, 12, 300, "linear", 2, identities=names(12))
    for e in (alone, named):
        assert e.fourier.to_dict()[(1, 2)] == pytest.approx(0.25, abs=1e-6)
        assert e.faithfulness.r2 == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("identities", "message"),
    [
        ([b"a", b"b"], "identities: 2, 2 of them distinct, expected 3 distinct ones"),
        ([b"a", b"b", b"a"], "identities: 3, 2 of them distinct, expected 3 distinct ones"),
        (["a", "b", "c"], "identities: expected 3 of type bytes"),
    ],
)
def test_unfit_identities_cost_no_evaluation(identities: list[bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spex.explain(lambda masks: pytest.fail(f"asked for {masks}"), 3, identities=identities)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_segments(n: int) -> None:
    e = spex.explain(lambda masks: masks.sum(axis=1), n, budget=10, identities=names(n))
    assert e.evaluations.computed == 2**n
    assert e.fourier.predict(e.masks) == pytest.approx(e.values)
