"""From a request to a result on the embedded model: what is reused, pinned, compared and said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from spex_engine.backends.base import ScoredTarget, Scores
from spex_engine.backends.demo.model import load
from spex_engine.explain_prompt import explain_prompt, identities
from spex_engine.store import Store
from spex_engine.wire import (
    ExplainRequest,
    ExplainResult,
    InputError,
    Message,
    ModelError,
    Piece,
    Prompt,
    Question,
)

FACTS = (
    *("Bob works with Anna.", "Carla lives in Rome.", "Anna lives in Paris.", "David likes tea."),
    *("The meeting is at noon.", "Carla plays chess.", "Emma has a dog.", "Frank sells fish."),
    *("Greta sings well.", "Henry was late.", "Ida bakes bread.", "Jack reads books."),
)
QUESTION = "\nQuestion: Where does the colleague of Bob live?\nAnswer:"


def prompt_of(facts: tuple[str, ...]) -> Prompt:
    pieces = [Piece(f"{fact}\n", i) for i, fact in enumerate(facts)]
    return Prompt((Message("user", (*pieces, Piece(QUESTION))),), len(facts))


def run(
    facts: tuple[str, ...] = FACTS, store: Store | None = None, **asked: object
) -> ExplainResult:
    request = dataclasses.replace(ExplainRequest(prompt_of(facts), budget=256), **asked)
    return explain_prompt(request, lambda *_: None, lambda: False, lambda _: load(), store)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "evaluations.sqlite3")
    yield opened
    opened.close()


# ---- what is known is not asked again ---------------------------------------------------------


def test_a_second_run_asks_nothing_and_says_the_same(store):
    first = run(store=store)
    assert first.evaluations.cached == 0
    assert first.evaluations.computed == first.evaluations.requested
    again = run(store=store)
    assert again.evaluations.computed == 0
    assert again.evaluations.cached == first.evaluations.computed
    assert again.input_tokens == 0
    assert (again.segments, again.interactions) == (first.segments, first.interactions)
    alone = run()
    assert (alone.segments, alone.interactions) == (first.segments, first.interactions)


@pytest.mark.parametrize(
    ("edited", "least"),
    [
        # a mask that leaves the edited segment out is a hit: half of them, but for those near
        # the full prompt and those that leave out another segment alone
        ((*FACTS[:3], "David likes coffee.", *FACTS[4:]), 0.42),
        # half of the masks with one more segment leave that one out
        ((*FACTS[:5], "Karl owns a boat.", *FACTS[5:]), 0.38),
        # and half of those before had left out what is deleted now
        ((*FACTS[:5], *FACTS[6:]), 0.38),
    ],
    ids=["edited", "inserted", "deleted"],
)
def test_after_an_edit_what_leaves_it_out_is_known(store, edited, least):
    before = run(store=store, question=Question("Paris"))
    after = run(edited, store, question=Question("Paris"))
    assert before.evaluations.cached == 0
    assert after.evaluations.cached >= least * after.evaluations.requested
    fresh = run(edited, question=Question("Paris"))
    # what is reused changes nothing but the last digits, which depend on who shares a batch
    effects = [segment.effect for segment in fresh.segments]
    assert [segment.effect for segment in after.segments] == pytest.approx(effects, abs=1e-6)


def test_another_span_of_the_answer_needs_no_call(store):
    target = "Paris, in France"
    whole = run(store=store, question=Question(target))
    part = run(store=store, question=Question(target, span="Paris"))
    assert part.evaluations.computed == 0
    assert part.target.value > whole.target.value
    with pytest.raises(InputError, match="Berlin"):
        run(store=store, question=Question(target, span="Berlin"))


def test_coarser_segments_need_few_calls(store):
    """Lines joined by twos: each mask of these is a mask of the lines, and may be known."""
    few = FACTS[:8]
    run(few, store, question=Question("Paris"))
    joined = tuple(f"{a}\n{b}" for a, b in zip(few[::2], few[1::2], strict=True))
    coarse = run(joined, store, question=Question("Paris"))
    assert (coarse.evaluations.requested, coarse.evaluations.computed) == (16, 0)


# ---- targets ----------------------------------------------------------------------------------


def test_a_contrast_is_the_difference_of_both_answers():
    paris, rome = (run(FACTS[:4], question=Question(city)) for city in ("Paris", "Rome"))
    both = run(FACTS[:4], question=Question("Paris", "Rome"))
    assert both.target.value == pytest.approx(paris.target.value - rome.target.value, abs=1e-6)
    for one, other, difference in zip(paris.segments, rome.segments, both.segments, strict=True):
        assert difference.effect == pytest.approx(one.effect - other.effect, abs=1e-6)
    assert both.unit.startswith("nats")


def test_a_pinned_answer_stays_and_a_change_is_said():
    own = run(FACTS[:4])
    assert (own.target.text, own.target.own) == ("Paris", True)
    moved = (*FACTS[:2], "Anna lives in Oslo.", FACTS[3])
    pinned = run(moved, question=Question(pinned="Paris"))
    assert (pinned.target.text, pinned.target.own) == ("Paris", True)
    (note,) = [note for note in pinned.notes if "own answer" in note]
    assert "'Oslo'" in note
    assert "'Paris'" in note
    same = run(FACTS[:4], question=Question(pinned="Paris"))
    assert not any("own answer" in note for note in same.notes)
    given = run(moved, question=Question("Rome", pinned="Paris"))
    assert (given.target.text, given.target.own) == ("Rome", False)


def test_the_noise_of_the_embedded_model_is_rounding():
    noise = run(FACTS[:4]).noise
    assert noise is not None
    assert 0 <= noise < 1e-5


# ---- when not all can be had ------------------------------------------------------------------


class Limited:
    """A scorer that can pay for so many masks, whose value is how many segments they keep."""

    tier, n_segments, scale = "T1", len(FACTS), "token"
    targets = (ScoredTarget("x", 0, ((0, 1),)),)
    notes: tuple[str, ...] = ()
    uri = "limited"

    def __init__(self, most: int) -> None:
        self.left = most

    def open(self, *_: object) -> Limited:
        return self

    def addresses(self, masks: np.ndarray) -> list[bytes]:
        return [mask.tobytes().ljust(32, b"\0") for mask in masks]

    def score(
        self, masks: np.ndarray, should_stop: Callable[[], bool]
    ) -> Iterator[tuple[np.ndarray, Scores]]:
        for row, mask in enumerate(masks):
            if self.left == 0:
                self.notes = ("the budget of calls is spent",)
                return
            self.left -= 1
            value = float(mask.sum()) - len(FACTS)
            yield np.array([row]), Scores(np.array([[value]]), np.array([7]))


def limited(most: int) -> ExplainResult:
    request = ExplainRequest(prompt_of(FACTS), budget=256)
    return explain_prompt(request, lambda *_: None, lambda: False, lambda _: Limited(most))


def test_what_was_paid_for_is_explained_when_the_budget_is_spent():
    result = limited(100)
    assert result.evaluations.computed == 100
    assert result.input_tokens == 700
    assert "the budget of calls is spent" in result.notes
    assert any("100 of 256" in note for note in result.notes)
    assert [s.effect for s in result.segments] == pytest.approx([1.0] * len(FACTS), abs=0.05)


def test_where_not_even_the_full_prompt_can_be_paid_for():
    with pytest.raises(ModelError, match="full prompt: the budget of calls is spent"):
        limited(0)


# ---- identities -------------------------------------------------------------------------------


def test_segments_are_what_they_say_wherever_they_stand():
    a, b, c = identities(prompt_of(("one", "two", "three")))
    assert identities(prompt_of(("zero", "one", "three"))) == (
        *identities(prompt_of(("zero",))),
        a,
        c,
    )
    assert identities(prompt_of(("two ", " one"))) == (b, a)  # blanks around it are not it
    twice = identities(prompt_of(("one", "one")))
    assert twice[0] == a
    assert twice[1] not in (a, b, c)
