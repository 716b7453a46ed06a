"""What a hover says, as Markdown and as plain text: hand-made results, no worker, no model."""

from __future__ import annotations

import re

import pytest
from lsprotocol import types
from markdown_it import MarkdownIt

from server.explained import Explained
from server.features.hover import escape, hover
from server.text import Text
from tests.server.results import explained, interaction

TEXT = "Bob works with Anna.\nAnna lives in Paris.\nDavid likes tea.\n"


def content(
    found: Explained, offset: int = 0, now: str | None = None, markdown: bool = False
) -> str:
    text = Text(found.plan.document.text if now is None else now)
    shown = hover(found, text, offset, "utf-16", markdown)
    assert shown is not None
    assert isinstance(shown.contents, types.MarkupContent)
    kind = types.MarkupKind.Markdown if markdown else types.MarkupKind.PlainText
    assert shown.contents.kind == kind
    return shown.contents.value


# ---- what it says ----------------------------------------------------------------------------


def test_effect_removal_partners_and_how_sure() -> None:
    pair = interaction(0, 1, value=2.5, stderr=0.25)
    found = explained(TEXT, [1.0, 2.0], [pair], stderr=0.125, removals=[-2.0])
    assert content(found).split("\n") == [
        "+1.00 ± 0.12 nats per target token: on average keeping this raises the answer “Paris”.",
        "Removing it alone changes the answer's score by -2.00.",
        "synergy +2.50 ± 0.25 with “Anna lives in Paris.” (line 2)",
        "How sure: R² 1.00 (every mask was measured, 2,048 model calls, demo), exact, tier T1",
    ]


def test_markdown_shows_what_plain_text_says() -> None:
    pair = interaction(0, 1, value=2.5, stderr=0.25)
    found = explained(TEXT, [1.0, 2.0], [pair], removals=[-2.0])
    paragraphs = read(content(found, markdown=True))
    assert paragraphs == content(found).split("\n")


def test_the_range_is_the_segment_under_the_cursor() -> None:
    found = explained(TEXT)
    text = Text(TEXT)
    for offset, line in ((0, 0), (19, 0), (21, 1), (57, 2)):
        shown = hover(found, text, offset, "utf-16", True)
        assert shown is not None
        assert shown.range is not None
        assert (shown.range.start.line, shown.range.start.character) == (line, 0)


@pytest.mark.parametrize("offset", [20, 41, 58, 59, 1000])
def test_between_segments_and_past_the_end_there_is_no_hover(offset: int) -> None:
    assert hover(explained(TEXT), Text(TEXT), offset, "utf-16", True) is None


def test_fixed_text_has_no_hover() -> None:
    text = "---\nfixed: ['Question:*']\n---\nBob is here.\nQuestion: where?\n"
    found = explained(text)
    assert hover(found, Text(text), text.index("Question: w"), "utf-16", True) is None
    assert hover(found, Text(text), text.index("Bob"), "utf-16", True) is not None


@pytest.mark.parametrize(
    ("effect", "verb"), [(0.5, "raises"), (-0.5, "lowers"), (0.0, "hardly changes")]
)
def test_the_verb_tells_the_direction(effect: float, verb: str) -> None:
    assert f"keeping this {verb} the answer" in content(explained(TEXT, [effect]))


@pytest.mark.parametrize(
    ("effect", "removal", "disagree"),
    [
        (1.0, -2.0, False),  # one of two needed facts: twice as important in the full prompt
        (1.0, -1.0, False),
        (-1.0, 1.5, False),
        (1.0, 0.5, True),  # helps on average, stands in the way in the full prompt
        (-1.0, -0.5, True),
        (1.9, -0.02, True),  # a repeated fact: needed, but not alone
        (0.01, -2.0, True),  # nothing on average, all in the full prompt
        (0.02, 0.03, False),  # both are nothing
        (0.0, 0.0, False),
    ],
)
def test_it_says_where_effect_and_removal_disagree(
    effect: float, removal: float, disagree: bool
) -> None:
    said = content(explained(TEXT, [effect], removals=[removal]))
    assert ("The two disagree: what it does depends" in said) == disagree


def test_a_removal_that_was_not_measured_is_not_mentioned() -> None:
    said = content(explained(TEXT, [1.0], removals=[None]))
    assert "Removing" not in said
    assert "disagree" not in said


def test_partners_come_strongest_first_and_not_too_many() -> None:
    words = " ".join(f"w{i}" for i in range(9))
    many = [interaction(0, i, value=3.0 - i / 10) for i in range(1, 9)]
    said = content(explained(words, interactions=many, segments="word"))
    assert re.findall(r"with “(w\d)”", said) == ["w1", "w2", "w3", "w4", "w5"]
    assert "and 3 more" in said


def test_three_way_partners_name_both_others() -> None:
    three = interaction(0, 1, 2, value=-1.0, kind="conflict")
    said = content(explained(TEXT, interactions=[three]), offset=21)
    assert (
        "conflict -1.00 ± 0.00 with “Bob works with Anna.” (line 1) and “David likes tea.” (line 3)"
        in said
    )


def test_a_loner_is_said_to_be_one() -> None:
    found = explained(TEXT, interactions=[interaction(0, 1)])
    assert "No notable interaction between segments." in content(found, offset=42)


def test_a_poor_fit_is_said_first() -> None:
    said = content(explained(TEXT, [1.0], r2=0.22))
    assert said.startswith("The fit explains little of the answer (R² 0.22): do not rely on it.")
    assert "do not rely" not in content(explained(TEXT, [1.0], r2=0.5))


def test_unknown_errors_and_r2_are_left_out() -> None:
    said = content(explained(TEXT, [1.0], stderr=None, r2=None))
    assert said.startswith("+1.00 nats")
    assert "±" not in said
    assert "R²" not in said
    assert "How sure: every mask was measured" in said


# ---- after an edit ---------------------------------------------------------------------------


def test_after_an_edit_it_says_first_that_it_is_stale() -> None:
    found = explained(TEXT, interactions=[interaction(0, 1), interaction(0, 2)])
    now = TEXT.replace("lives", "now\nlives")
    lines = content(found, now=now).split("\n")
    assert lines[0] == "Stale: the prompt has changed since; run Explain prompt again."
    assert "synergy +1.00 ± 0.00 with “Anna lives in Paris.”" in lines  # it stands nowhere now
    assert "synergy +1.00 ± 0.00 with “David likes tea.” (line 4)" in lines
    assert hover(found, Text(now), now.index("lives"), "utf-16", True) is None


def test_fresh_results_do_not_say_stale() -> None:
    assert "Stale" not in content(explained(TEXT))


# ---- hostile text ----------------------------------------------------------------------------

HOSTILE = [
    "[run me](command:workbench.action.terminal.new) now.",
    "<img src=x onerror=alert(1)> <script>alert(1)</script> here.",
    "![pixel](https://evil.example/p.png) and https://evil.example and www.evil.example.",
    "<https://evil.example> or me@evil.example or &lt;b&gt; here.",
    "**bold** _it_ `code` ~~gone~~ $(gear) $x$ # Heading | a | b |",
    "- item + item 1. item > quote *** ___ --- ===",
    "```sh rm -rf / ``` and ``` then.",
    "back\\slash \\*\\* \\[x\\](y) end\\",
    "[ref]: https://evil.example 'title' [ref]",
]


def read(markdown: str) -> list[str]:
    """Markdown's paragraphs as their reader sees them; fails where there is anything but text."""
    parser = MarkdownIt("gfm-like", {"linkify": False, "html": True})
    paragraphs = []
    for token in parser.parse(markdown):
        assert token.type in ("paragraph_open", "paragraph_close", "inline"), token
        if token.type == "inline":
            assert token.children is not None
            kinds = {child.type for child in token.children}
            assert kinds <= {"text", "text_special", "strong_open", "strong_close"}, kinds
            paragraphs.append("".join(child.content for child in token.children))
    return paragraphs


@pytest.mark.parametrize("hostile", HOSTILE)
def test_markdown_shows_hostile_text_and_does_nothing_else(hostile: str) -> None:
    text = f"{hostile}\nAnna lives in Paris.\n"
    found = explained(
        text, interactions=[interaction(0, 1)], target=hostile, model=hostile, segments="line"
    )
    for offset in (0, text.index("Anna lives")):
        paragraphs = read(content(found, offset, markdown=True))
        assert f"the answer “{hostile[:50]}" in paragraphs[0]
        assert len(paragraphs) == 4
    assert f"with “{hostile[:50]}" in paragraphs[2]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_bare_address_is_left_that_an_editor_would_turn_into_a_link(hostile: str) -> None:
    shown = escape(hostile)
    assert not re.search(r"https?://|www\.|\w@\w|command:", shown)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_plain_text_shows_text_as_it_is(hostile: str) -> None:
    """No backslashes and no asterisks but the text's own."""
    found = explained(f"{hostile}\nAnna lives in Paris.\n", target=hostile, segments="line")
    said = content(found)
    quoted = f"“{hostile}”" if len(hostile) <= 60 else f"“{hostile[:59].rstrip()}…”"
    assert f"the answer {quoted}." in said
    ours = said.replace(quoted, "")
    assert not set("\\*_`") & set(ours)


def test_control_characters_are_not_shown() -> None:
    found = explained("Bob\x1b[31m \u202eworks\x00.\n", target="a\x07b\r\nc", model="hf:/x\n# y")
    for markdown in (False, True):
        for line in content(found, markdown=markdown).split("\n"):
            assert line.isprintable()
