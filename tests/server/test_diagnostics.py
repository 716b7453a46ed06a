"""What the editor's problem list says: hand-made results, no worker, no model."""

from __future__ import annotations

from typing import Any

import pytest
from lsprotocol import types

from server.capabilities import Capabilities
from server.explained import Explained
from server.features.diagnostics import (
    MAX_SHOWN,
    interaction_diagnostics,
    lsp_range,
    problem_diagnostics,
)
from server.prompts import parse
from server.text import Text
from tests.server.results import explained, interaction

TEXT = "Bob works with Anna.\nAnna lives in Paris.\nDavid likes tea.\n"
PAIR = interaction(0, 1, value=2.5, stderr=0.25)
URI = "file:///a.md"


def shown(found: Explained, now: str | None = None, **takes: Any) -> list[types.Diagnostic]:
    text = Text(found.plan.document.text if now is None else now)
    return interaction_diagnostics(found, text, URI, "utf-16", Capabilities(**takes))


def span(diagnostic: types.Diagnostic) -> tuple[int, int, int, int]:
    at = diagnostic.range
    return at.start.line, at.start.character, at.end.line, at.end.character


def test_the_strongest_member_carries_the_mark_and_the_message_names_all() -> None:
    (diagnostic,) = shown(explained(TEXT, [1.0, 2.0], [PAIR]))
    assert span(diagnostic) == (1, 0, 1, 20)
    assert diagnostic.message == (
        "“Anna lives in Paris.” (line 2) and “Bob works with Anna.” (line 1) work together on the "
        "answer “Paris”: synergy +2.50 ± 0.25 nats per target token"
    )
    assert (diagnostic.source, diagnostic.code) == ("spex", "spex/interaction")
    assert diagnostic.severity == types.DiagnosticSeverity.Information
    assert diagnostic.data == {"segments": [0, 1], "value": 2.5, "kind": "synergy", "stale": False}


def test_a_strongly_negative_effect_is_strong() -> None:
    (diagnostic,) = shown(explained(TEXT, [1.0, -2.0], [PAIR]))
    assert diagnostic.range.start.line == 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("synergy", "work together"),
        ("redundancy", "say the same"),
        ("conflict", "work against each other"),
    ],
)
def test_each_kind_has_its_words(kind: str, words: str) -> None:
    (diagnostic,) = shown(explained(TEXT, [1, 1], [interaction(0, 1, value=2, kind=kind)]))
    assert words in diagnostic.message
    assert f": {kind} +2.00" in diagnostic.message


def test_what_lowers_the_answer_together_does_not_conflict_with_itself() -> None:
    lower = interaction(0, 1, value=-2.0, kind="conflict")
    (diagnostic,) = shown(explained(TEXT, [-1.0, -1.0], [lower]))
    assert "together work against the answer “Paris”: conflict -2.00" in diagnostic.message


def test_a_poor_fit_is_a_hint_that_says_so() -> None:
    (diagnostic,) = shown(explained(TEXT, [1.0, 2.0], [PAIR], r2=0.1))
    assert diagnostic.severity == types.DiagnosticSeverity.Hint
    assert diagnostic.message.startswith("The fit explains little of the answer (R² 0.10)")


def test_three_way_interactions_name_all_three() -> None:
    three = interaction(0, 1, 2, value=-1.0, kind="conflict")
    (diagnostic,) = shown(explained(TEXT, [0.1, 0.5, -0.7], [three]), related=True)
    assert diagnostic.message.startswith(
        "“David likes tea.” (line 3) and “Bob works with Anna.” (line 1) and "
        "“Anna lives in Paris.” (line 2) work against each other"
    )
    assert diagnostic.related_information is not None
    lines = [r.location.range.start.line for r in diagnostic.related_information]
    assert lines == [0, 1]


def test_related_information_names_the_others_with_their_effects() -> None:
    (diagnostic,) = shown(explained(TEXT, [1.0, 2.0], [PAIR]), related=True)
    assert diagnostic.related_information is not None
    (related,) = diagnostic.related_information
    assert related.location.uri == URI
    assert related.location.range.start.line == 0
    assert related.message == "“Bob works with Anna.”: effect +1.00 ± 0.00"


def test_a_client_without_related_information_gets_none() -> None:
    (diagnostic,) = shown(explained(TEXT, [1.0, 2.0], [PAIR]), related=False)
    assert diagnostic.related_information is None
    assert "Bob works with Anna." in diagnostic.message


def test_the_strongest_interactions_come_first_and_not_too_many() -> None:
    words = " ".join(f"w{i}" for i in range(30))
    many = [interaction(i, i + 1, value=20.0 - i / 2) for i in range(20)]
    diagnostics = shown(explained(words, interactions=many, segments="word"))
    values = [d.data["value"] for d in diagnostics]
    assert len(values) == MAX_SHOWN
    assert values == sorted(values, reverse=True)


def test_without_interactions_there_is_no_mark() -> None:
    assert shown(explained(TEXT, [1.0, 2.0])) == []


# ---- after an edit ---------------------------------------------------------------------------


def test_after_an_edit_marks_move_and_say_that_they_are_stale() -> None:
    found = explained(TEXT, [1.0, 2.0], [PAIR])
    (diagnostic,) = shown(found, f"# Title\n\n{TEXT}", tags=True, related=True)
    assert span(diagnostic) == (3, 0, 3, 20)
    assert diagnostic.message.startswith("Stale, the prompt has changed: “Anna lives in Paris.”")
    assert "(line 4) and “Bob works with Anna.” (line 3)" in diagnostic.message
    assert diagnostic.severity == types.DiagnosticSeverity.Hint
    assert diagnostic.tags == [types.DiagnosticTag.Unnecessary]
    assert diagnostic.data["stale"]
    assert diagnostic.related_information is not None
    assert diagnostic.related_information[0].location.range.start.line == 2


def test_a_client_without_tags_gets_none() -> None:
    (diagnostic,) = shown(explained(TEXT, [1.0, 2.0], [PAIR]), f"{TEXT}\n", tags=False)
    assert diagnostic.tags is None


def test_an_interaction_with_an_edited_member_is_shown_no_more() -> None:
    found = explained(TEXT, [1.0, 2.0], [PAIR, interaction(1, 2, value=2.0)])
    (left,) = shown(found, TEXT.replace("Bob", "Rob"))
    assert left.data["segments"] == [1, 2]


def test_undoing_the_edit_makes_it_fresh_again() -> None:
    found = explained(TEXT, [1.0, 2.0], [PAIR])
    assert shown(found, TEXT) == shown(found)


# ---- text that is not ASCII ------------------------------------------------------------------


def test_ranges_count_in_the_client_encoding() -> None:
    text = Text("🎉é Bob. 🎉 Anna.")
    start = text.text.index("Anna")
    place = (start, start + 5)
    columns = {
        encoding: lsp_range(text, place, encoding).start.character
        for encoding in ("utf-8", "utf-16", "utf-32")
    }
    assert columns == {"utf-8": 17, "utf-16": 12, "utf-32": 10}


def test_hostile_text_is_one_quoted_line_without_control_characters() -> None:
    hostile = "Do \x1b[31mthis\x07 \u202enow\x00.\nAnna lives in Paris."
    (diagnostic,) = shown(explained(hostile, [2.0, 1.0], [PAIR], target="Pa\x1b]0;x\x07ris\n\n#"))
    assert "\n" not in diagnostic.message
    assert diagnostic.message.isprintable()


def test_long_segments_are_cut() -> None:
    (diagnostic,) = shown(explained(f"{'very ' * 500}long.\nShort one.", [2.0, 1.0], [PAIR]))
    assert len(diagnostic.message) < 300


# ---- problems of the file --------------------------------------------------------------------


def test_problems_of_the_file() -> None:
    text = "---\nbudget: many\nfixed: 'Nothing:*'\n---\nBob."
    budget, fixed = problem_diagnostics(parse(text, "a.md"), Text(text), "utf-16")
    assert span(budget) == (1, 8, 1, 12)
    assert (budget.severity, budget.code) == (
        types.DiagnosticSeverity.Error,
        "spex/front-matter-value",
    )
    assert "budget: expected a whole number" in budget.message
    assert (fixed.severity, fixed.code) == (
        types.DiagnosticSeverity.Warning,
        "spex/fixed-unmatched",
    )
    assert {budget.source, fixed.source} == {"spex"}
