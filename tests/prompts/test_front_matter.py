"""Front matter: what applies, what is a problem, and where the problem stands."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.prompts.document import PromptSettings
from server.prompts.front_matter import (
    MAX_CHARACTERS,
    MAX_FIXED_ENTRIES,
    MAX_FIXED_LENGTH,
    read_front_matter,
)


def fenced(yaml: str, body: str = "Body.\n") -> str:
    return f"---\n{yaml}\n---\n{body}"


def marked(text: str) -> list[tuple[str, str]]:
    """(code, the text marked) of each problem."""
    return [(p.code, text[p.start : p.end]) for p in read_front_matter(text).problems]


def fixed(text: str) -> list[str]:
    return [entry.text for entry in read_front_matter(text).fixed]


def test_all_keys():
    text = fenced('model: demo\ntarget: Paris\nsegments: line\nbudget: 64\nfixed: ["Q:*", "# A"]')
    front = read_front_matter(text)
    assert front.settings == PromptSettings("demo", "Paris", "line", 64)
    assert [(entry.text, text[entry.start : entry.end]) for entry in front.fixed] == [
        ("Q:*", '"Q:*"'),
        ("# A", '"# A"'),
    ]
    assert front.problems == ()
    assert text[front.body :] == "Body.\n"


@pytest.mark.parametrize(
    "text",
    ["", "Body.", "# Title\n", "--- \x00", "---", "----\nmodel: x\n---\n", " ---\nmodel: x\n---\n"],
)
def test_no_front_matter(text):
    front = read_front_matter(text)
    assert (front.body, front.settings, front.problems) == (0, PromptSettings(), ())


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_line_terminators_and_bom(newline, start):
    text = start + fenced("model: demo\nbudget: 1", "Body.").replace("\n", newline)
    front = read_front_matter(text)
    assert front.settings.model == "demo"
    assert text[front.body :] == "Body."
    assert marked(text) == [("front-matter-value", "1")]


def test_a_bom_is_no_body():
    assert read_front_matter("\ufeffBody.").body == 1


def test_blanks_after_a_fence_and_an_end_without_newline():
    text = "--- \nmodel: demo\n---\t"
    front = read_front_matter(text)
    assert front.settings.model == "demo"
    assert front.body == len(text)


@pytest.mark.parametrize("yaml", ["", "# only a comment", "description: x\nmode: agent"])
def test_nothing_of_ours_is_fine(yaml):
    front = read_front_matter(fenced(yaml))
    assert (front.settings, front.problems) == (PromptSettings(), ())


def test_an_empty_block():
    text = "---\n---\nBody."
    assert text[read_front_matter(text).body :] == "Body."
    assert marked(text) == []


def test_comment_lines_above_the_fence():
    text = "# Copyright\n<!-- licence -->\n\n" + fenced("model: demo")
    front = read_front_matter(text)
    assert front.settings.model == "demo"
    assert text[front.body :] == "Body.\n"


@pytest.mark.parametrize(
    "text",
    [
        "# Title\n---\nSome text.\n---\nMore.\n",
        "# Title\n---\nNote: text.\n---\nMore.\n",
        "# Title\n\n---\nmodel: never closed\n",
    ],
)
def test_a_rule_below_a_heading_is_no_front_matter(text):
    front = read_front_matter(text)
    assert (front.body, front.problems) == (0, ())


@pytest.mark.parametrize(
    "text",
    [
        "---\nBody.\n",
        "---\n\nNote: text.\n",
        "---\njust words\n---\nMore.\n",
        "---\n- a\n- b\n---\n",
    ],
)
def test_a_rule_at_the_top_is_just_a_rule(text):
    front = read_front_matter(text)
    assert (front.body, front.problems) == (0, ())


@pytest.mark.parametrize(
    ("yaml", "is_ours"),
    [
        ("model: GPT-4o", False),
        ("model: [GPT-4o, Claude]\ntarget: vscode", False),
        ("target:", False),
        ("description: x", False),
        ("model: demo", True),
        ("model: hf:/etc", True),
        ("model: openai:gpt-5", True),
        ("model: GPT-4o\nbudget: many", True),
        ("fixed: [a, b", True),
        ("{segments: line}", True),
    ],
)
def test_what_is_meant_for_us(yaml, is_ours):
    assert read_front_matter(fenced(yaml)).is_ours is is_ours


def test_where_the_model_is_said():
    text = fenced("budget: 8\nmodel: 'GPT-4o'")
    start, end = read_front_matter(text).settings.model_at
    assert text[start:end] == "'GPT-4o'"


def test_unclosed():
    text = "---\nmodel: demo\nBody.\n"
    front = read_front_matter(text)
    assert (front.body, front.settings) == (0, PromptSettings())
    assert marked(text) == [("front-matter-unclosed", "---")]
    assert front.problems[0].severity == "warning"


@pytest.mark.parametrize("written", ["yes", "42", "0x1F", "2024-01-31", "1:30", "true", "'null'"])
def test_scalars_are_text_as_written(written):
    front = read_front_matter(fenced(f"target: {written}"))
    assert front.settings.target == written.strip("'")
    assert front.problems == ()


def test_block_and_quoted_scalars():
    front = read_front_matter(fenced('target: |\n  two\n  lines\nmodel: "hf:a\\tb"'))
    assert front.settings.target == "two\nlines\n"
    assert front.settings.model == "hf:a\tb"


@pytest.mark.parametrize("written", ["Sentences", "SENTENCE", "'sentence'"])
def test_segment_kinds_in_any_case_and_number(written):
    assert read_front_matter(fenced(f"segments: {written}")).settings.segments == "sentence"


@pytest.mark.parametrize(
    ("yaml", "mark", "expected"),
    [
        ("model: [a, b]", "[a, b]", "model: expected the name of a model"),
        ("model: {a: b}", "{a: b}", "found a mapping"),
        ("model:", "model", "found nothing"),
        ("model: ~", "~", "found nothing"),
        ('target: ""', '""', "target: expected the text of an answer"),
        ("segments: paragraph", "paragraph", "one of auto, sentence, line, word"),
        ("segments: [line]", "[line]", "found a list"),
        ("budget: many", "many", "budget: expected a whole number from 2 to 1,000,000"),
        ("budget: 1", "1", 'found "1"'),
        ("budget: 1000001", "1000001", "from 2 to 1,000,000"),
        ("budget: -5", "-5", 'found "-5"'),
        ("budget: 2.5", "2.5", 'found "2.5"'),
        ('budget: "64"', '"64"', "in quotes"),
        ("budget: true", "true", 'found "true"'),
        ("budget: " + "9" * 5000, "9" * 5000, "…"),
        ("fixed: {a: b}", "{a: b}", "fixed: expected a heading or line pattern"),
        ("fixed: #Task", "fixed", "needs quotes"),
        ("fixed: [a, [b]]", "[b]", "found a list"),
        ("fixed:\n- Question: x", "Question: x", "found a mapping"),
    ],
)
def test_wrong_values(yaml, mark, expected):
    text = fenced(yaml)
    assert marked(text) == [("front-matter-value", mark)]
    assert expected in read_front_matter(text).problems[0].message


def test_good_keys_and_entries_apply_beside_bad_ones():
    text = fenced("model: demo\nbudget: none\nsegments: word\nfixed: [a, {}, b]")
    front = read_front_matter(text)
    assert front.settings == PromptSettings("demo", None, "word", None)
    assert fixed(text) == ["a", "b"]
    assert len(front.problems) == 2


def test_fixed_may_be_one_string():
    assert fixed(fenced("fixed: 'Question:*'")) == ["Question:*"]
    assert fixed(fenced("fixed: []")) == []


def test_fixed_is_bounded():
    text = fenced("fixed: [" + ", ".join("ab" for _ in range(MAX_FIXED_ENTRIES + 5)) + "]")
    assert len(fixed(text)) == MAX_FIXED_ENTRIES
    assert marked(text) == [("front-matter-value", "ab")]
    text = fenced(f"fixed: [{'a' * (MAX_FIXED_LENGTH + 1)}, b]")
    assert fixed(text) == ["b"]
    assert len(marked(text)) == 1


def test_a_key_written_twice():
    text = fenced("model: first\nmodel: second")
    assert read_front_matter(text).settings.model == "first"
    assert marked(text) == [("front-matter-duplicate", "model")]


def test_a_syntax_error_costs_its_own_key_only():
    text = fenced("model: demo\nfixed: [a, b\nbudget: 64")
    front = read_front_matter(text)
    assert (front.settings.model, front.settings.budget) == ("demo", 64)
    assert marked(text) == [("front-matter-syntax", "[a, b")]


@pytest.mark.parametrize(
    "line",
    ["argument-hint: [a] [b]", "description: one: two", "x: *y", "x: &y z", "x: " + "[" * 10_000],
)
def test_another_tools_loose_yaml_costs_nothing(line):
    front = read_front_matter(fenced(f"model: demo\n{line}\nbudget: 64"))
    assert front.settings == PromptSettings("demo", None, None, 64)
    assert front.problems == ()


def test_a_syntax_error_outside_every_key():
    text = fenced("some words\nmodel: demo")
    assert read_front_matter(text).settings.model == "demo"
    assert [code for code, _ in marked(text)] == ["front-matter-syntax"]


@pytest.mark.parametrize("yaml", ["fixed: *Question", "fixed: [*Q]", "fixed: *?", "fixed: &a"])
def test_anchors_and_aliases_are_refused_with_the_remedy(yaml):
    text = fenced("model: demo\n" + yaml)
    (problem,) = read_front_matter(text).problems
    assert problem.code == "front-matter-syntax"
    assert "needs quotes" in problem.message
    assert read_front_matter(text).settings.model == "demo"


def test_a_yaml_bomb():
    levels = ["fixed: &a [x, x, x, x, x, x, x, x]"]
    levels += [f"k{n}: &{n} [" + ", ".join(["*a"] * 9) + "]" for n in range(9)]
    front = read_front_matter(fenced("\n".join(levels)))
    assert front.fixed == ()
    assert [problem.code for problem in front.problems] == ["front-matter-syntax"]


@pytest.mark.parametrize(
    "nested", [" " + "[" * 10_000, " " + "{a: " * 3_000, "\n" + "- " * 8_000, "\n " + "? " * 8_000]
)
def test_deep_nesting(nested):
    text = fenced(f"fixed:{nested}")
    assert [code for code, _ in marked(text)] == ["front-matter-syntax"]
    assert "nested deeper" in read_front_matter(text).problems[0].message
    assert marked(fenced(nested.strip())) == []  # text between two rules


def test_too_long():
    text = fenced("model: demo\n" + "#" * MAX_CHARACTERS)
    front = read_front_matter(text)
    assert front.settings == PromptSettings()
    assert marked(text) == [("front-matter-size", "model: demo")]
    assert text[front.body :] == "Body.\n"


def test_characters_yaml_does_not_allow():
    text = fenced("budget: 8\nmodel: a\x07b")
    assert read_front_matter(text).settings == PromptSettings(budget=8)
    assert marked(text) == [("front-matter-syntax", "\x07b")]
    assert "U+0007" in read_front_matter(text).problems[0].message


@pytest.mark.parametrize(
    "yaml",
    [
        'model: "\\UFFFFFFFF"',
        'model: "\\U00110000"',
        'model: "\\ud800"',
        "model: !<%ff> x",
        "model: !!python/object/apply:os.system [x]",
        "%YAML " + "1" * 5000 + ".1",
        "%TAG ! x\n--- a",
        "--- a\n--- b",
        "model: \ud800",
        "? [a]\n: b",
        "<<: {model: x}",
    ],
)
def test_odd_yaml_does_not_raise(yaml):
    assert read_front_matter(fenced(yaml)).settings.budget is None


YAML_ATOMS = [*"[]{}:,-?*&!|>'\"%@#~`\\ \t", "\n", "\n  ", "\r\n", "\r", "\x85", "\u2028", "\ufeff"]
YAML_ATOMS += ["model", "fixed", "budget", ": ", "- ", "1", "\\U", "\x00", "\ud800", "😀", "---\n"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(YAML_ATOMS), max_size=30).map("".join))
def test_no_yaml_raises_and_every_problem_has_its_place(yaml):
    text = fenced(yaml)
    front = read_front_matter(text)
    assert 0 <= front.body <= len(text)
    for problem in front.problems:
        assert 0 <= problem.start < problem.end <= len(text)
        assert problem.message
