"""Which interactions are worth showing, and where segments stand after the text was edited."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from server.explained import plus_minus, printable, quote
from server.result_json import result_json
from spex_engine.wire import Question
from tests.server.results import explained, interaction

TEXT = "Bob works with Anna.\nAnna lives in Paris.\nDavid likes tea.\n"


# ---- places after edits ----------------------------------------------------------------------


def stands(old: str, new: str) -> dict[int, str]:
    return {i: new[a:b] for i, (a, b) in explained(old).places(new).items()}


def test_nothing_moves_in_the_same_text() -> None:
    found = explained(TEXT)
    assert found.places(TEXT) == {s.index: (s.start, s.end) for s in found.segments}


def test_segments_move_with_the_text_around_them() -> None:
    assert explained(TEXT).places("# Title\n" + TEXT) == {0: (8, 28), 1: (29, 49), 2: (50, 66)}
    assert stands(TEXT, TEXT.replace("Paris", "Rome")).keys() == {0, 2}
    assert stands(TEXT, TEXT.replace("Anna lives in Paris.\n", "")).keys() == {0, 2}
    assert stands(TEXT, TEXT + "More.").keys() == {0, 1, 2}
    assert stands(TEXT, "") == {}


def test_typing_inside_a_segment_loses_that_one_only() -> None:
    assert stands(TEXT, TEXT.replace("lives", "lived")).keys() == {0, 2}


def test_an_edit_between_two_segments_loses_none() -> None:
    assert stands(TEXT, TEXT.replace("\nAnna lives", "\n\n\nAnna lives")).keys() == {0, 1, 2}


WORDS = st.text("ab é🎉\r\n.", min_size=1, max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.data(), WORDS)
@example(None, "aa aa aa")
def test_places_are_the_very_same_text_after_any_edits(data, old: str) -> None:
    """Several edits one after the other, among many equal letters, which mislead most easily."""
    assume(old.strip())
    found = explained(old, segments="word")
    new = old
    for _ in range(data.draw(st.integers(1, 3)) if data else 0):
        start = data.draw(st.integers(0, len(new)))
        end = data.draw(st.integers(start, len(new)))
        new = new[:start] + data.draw(st.text("ab \n🎉", max_size=4)) + new[end:]
    places = found.places(new)
    for segment in found.segments:
        if segment.index in places:
            start, end = places[segment.index]
            assert new[start:end] == segment.text
    spans = [places[i] for i in sorted(places)]
    assert all(first[1] <= second[0] for first, second in pairwise(spans))


@settings(max_examples=200, deadline=None)
@given(st.data(), WORDS)
def test_what_an_edit_touched_is_never_mapped_and_all_else_is(data, old: str) -> None:
    """The new text has a letter that the old one has not, so that it is clear what was edited."""
    assume(old.strip())
    found = explained(old, segments="word")
    start = data.draw(st.integers(0, len(old)))
    end = data.draw(st.integers(start, len(old)))
    new = old[:start] + "Z" + old[end:]
    untouched = {s.index for s in found.segments if s.end <= start or s.start >= end}
    assert found.places(new).keys() == untouched


# ---- what is notable -------------------------------------------------------------------------


def test_weak_and_unsure_interactions_are_not_notable() -> None:
    strong = interaction(0, 1, value=2.0)
    fair = interaction(1, 2, value=-0.3)
    weak = interaction(0, 2, value=0.1)
    unsure = interaction(0, 1, 2, value=0.9, stderr=0.5)
    unknown = interaction(0, 2, value=0.8, stderr=None)
    found = explained(TEXT, interactions=[strong, unsure, unknown, fair, weak])
    assert found.notable == (strong, unknown, fair)


def test_beside_strong_effects_small_interactions_are_not_notable() -> None:
    assert explained(TEXT, [3.0, 2.0], [interaction(0, 1, value=0.05)]).notable == ()
    assert len(explained(TEXT, [0.3, 0.2], [interaction(0, 1, value=0.05)]).notable) == 1


def test_rounding_is_not_notable() -> None:
    assert explained(TEXT, interactions=[interaction(0, 1, value=1e-7)]).notable == ()
    assert explained(TEXT).notable == ()


def test_partners_keep_the_order_of_strength() -> None:
    strong, fair = interaction(0, 1, value=2.0), interaction(1, 2, value=-1.0)
    found = explained(TEXT, interactions=[strong, fair])
    assert found.partners(1) == (strong, fair)
    assert found.partners(2) == (fair,)


# ---- words -----------------------------------------------------------------------------------


def test_quotes_are_one_line_of_bounded_length() -> None:
    assert quote("two\n  lines\r\n") == "“two lines”"
    assert quote("x" * 60) == f"“{'x' * 60}”"
    assert quote("x" * 61) == f"“{'x' * 59}…”"
    assert quote("word " * 20, 11) == "“word word…”"


@given(st.text(max_size=80))
def test_printed_text_cannot_drive_a_terminal(text: str) -> None:
    line = printable(text)
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in line)
    assert not set(line) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\ufeff")
    assert not any(0xD800 <= ord(c) < 0xE000 for c in line)


def test_ordinary_text_is_printed_as_it_is() -> None:
    for text in ("Grüße, 東京! “x” — ½", "👩‍👩‍👧 👍🏽 ❤️", "می‌خواهم", "[red]<b>*_`"):
        assert printable(text) == text


@pytest.mark.parametrize(
    ("value", "stderr", "shown"),
    [
        (1.849, 0.021, "+1.85 ± 0.02"),
        (-2.0, None, "-2.00"),
        (-0.001, 0.0, "+0.00 ± 0.00"),  # never -0.00
    ],
)
def test_plus_minus(value: float, stderr: float | None, shown: str) -> None:
    assert plus_minus(value, stderr) == shown


def test_notes_say_first_how_the_prompt_was_cut() -> None:
    found = explained("One sentence of a few words.", segments="auto", notes=("from the engine",))
    cut, engine = found.notes
    assert cut.startswith("1 sentence would be few to compare: cut into 6 words")
    assert engine == "from the engine"
    assert result_json(found, "a.md")["settings"]["notes"] == [cut, engine]


def test_what_chance_may_do_among_many_sets_is_not_notable() -> None:
    """3 standard errors are much for one pair, and little for the largest of 1,225."""
    few, many = "A a. B b. C c.", " ".join(f"Word {i} is here." for i in range(50))
    chance = interaction(0, 1, value=0.3, stderr=0.1)
    assert explained(few, [1.0], [chance]).notable == (chance,)
    assert explained(many, [1.0], [chance]).notable == ()
    sure = interaction(0, 1, value=0.3, stderr=0.05)
    assert explained(many, [1.0], [sure]).notable == (sure,)


@pytest.mark.parametrize(
    ("r2", "doubted"), [(0.2, True), (-3.0, True), (0.5, False), (None, False)]
)
def test_a_fit_that_explains_little_is_doubted(r2: float | None, doubted: bool) -> None:
    assert (explained("A a. B b.", r2=r2).doubt is not None) == doubted


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"index": "SV"}, "The index SV values single segments only."),
        ({"order": 1}, "Order 1 asks for single segments only."),
        ({"fitted_order": 1}, "No interaction was fitted"),
        ({}, "No notable interaction between segments."),
    ],
)
def test_why_there_is_nothing_to_show(result: dict[str, Any], said: str) -> None:
    assert explained("A a. B b.", **result).nothing.startswith(said)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question(), "“Paris”"),
        (Question("Paris", "Rome"), "“Paris” rather than “Rome”"),
        (Question("Paris", choices=("Paris", "Rome", "Oslo")), "“Paris” among 3 choices"),
        (Question("Paris", span="Par"), "“Par” of “Paris”"),
    ],
)
def test_what_is_asked_of_the_answer_is_said_with_it(question: Question, said: str) -> None:
    found = explained("Anna. Bob.")
    request = dataclasses.replace(found.plan.request, question=question)
    asked = dataclasses.replace(found, plan=dataclasses.replace(found.plan, request=request))
    assert asked.answer() == said
