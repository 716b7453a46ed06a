"""Markdown prompts: the body, the lines' roles, and what `fixed:` names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.prompts import FORMATS, parse
from server.prompts.markdown import read_lines


def with_fixed(entries: str, body: str) -> str:
    return f"---\nfixed: {entries}\n---\n{body}"


def fixed(text: str) -> list[str]:
    (message,) = parse(text, "a.md").messages
    return [text[start:end] for start, end in message.fixed]


def kinds(text: str) -> list[str]:
    return [line.kind for line in read_lines(text, 0, len(text))]


@pytest.mark.parametrize("name", ["a.md", "a.prompt.md", "a.txt", "AGENTS.md", "", "/x/y.unknown"])
def test_any_file_is_one_user_message(name):
    document = parse("\n  Hello.\r\n\r\n", name)
    (message,) = document.messages
    assert document.format == "markdown"
    assert (message.role, document.text[message.start : message.end]) == ("user", "Hello.")


def test_the_registry_ends_with_a_format_that_accepts_everything():
    assert FORMATS[-1].accepts("anything", "")


def test_the_example():
    text = (
        '---\nmodel: demo\nfixed: ["Question:*", "Answer:*"]\n---\n'
        "Bob works with Anna.\nAnna lives in Paris.\nCarla lives in Rome.\n"
        "Question: Where does the colleague of Bob live?\nAnswer:\n"
    )
    document = parse(text, "two-facts.prompt.md")
    (message,) = document.messages
    assert document.settings.model == "demo"
    assert document.problems == ()
    assert text[message.start : message.end].startswith("Bob works")
    assert text[message.start : message.end].endswith("Answer:")
    assert fixed(text) == ["Question: Where does the colleague of Bob live?", "Answer:"]


@pytest.mark.parametrize("text", ["", "\ufeff", " \n\t\r\n", "---\nmodel: x\n---\n", "---\n---"])
def test_an_empty_body(text):
    (message,) = parse(text, "a.md").messages
    assert message.start == message.end == len(text)


# ---- fixed: lines -----------------------------------------------------------------------------


def test_a_glob_matches_whole_stripped_lines():
    text = with_fixed('["Q*[?]", "[AB]?"]', "  Q: why?  \nQ: so\r\n A.\r\nAB.\nxQ?")
    assert fixed(text) == ["Q: why?", "A."]


def test_an_entry_without_glob_matches_the_start_of_a_line():
    assert fixed(with_fixed("Answer", "Answer: x\nThe Answer\nAnswers")) == ["Answer: x", "Answers"]


def test_matching_is_case_sensitive_and_no_regular_expression():
    assert fixed(with_fixed("['answer', 'x|y', 'a.c*', '(a+)+$']", "Answer\nx\nabcd")) == []


def test_an_entry_that_matches_nothing_is_a_warning_at_its_place():
    text = with_fixed('["Answer:*", "# Task"]', "Body.")
    problems = parse(text, "a.md").problems
    assert [(p.code, p.severity, text[p.start : p.end]) for p in problems] == [
        ("fixed-unmatched", "warning", '"Answer:*"'),
        ("fixed-unmatched", "warning", '"# Task"'),
    ]
    assert [p.message.rpartition("matches ")[2] for p in problems] == [
        "no line of the prompt",
        "no heading of the prompt",
    ]


def test_the_same_line_named_twice_is_fixed_once():
    assert fixed(with_fixed("['A*', 'A', '*b']", "Ab\nc")) == ["Ab"]


def test_lines_inside_a_code_block_can_be_fixed():
    assert fixed(with_fixed("x = 1", "```\nx = 1\n```")) == ["x = 1"]


# ---- fixed: sections --------------------------------------------------------------------------

OUTLINE = "# A\na\n\n## B\nb\n\n### C\nc\n\n## D ##\nd\n\n# E\ne\n"


@pytest.mark.parametrize(
    ("entry", "section"),
    [
        ("# A", "# A\na\n\n## B\nb\n\n### C\nc\n\n## D ##\nd"),
        ("## B", "## B\nb\n\n### C\nc"),
        ("### C", "### C\nc"),
        ("## D", "## D ##\nd"),
        ("#E", "# E\ne"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_heading_names_its_section(entry, section, newline):
    text = with_fixed(f"'{entry}'", OUTLINE).replace("\n", newline)
    assert fixed(text) == [section.replace("\n", newline)]


@pytest.mark.parametrize("entry", ["## A", "# B", "# a", "# A*", "#", "####### A"])
def test_level_and_title_must_be_the_headings(entry):
    assert fixed(with_fixed(f"'{entry}'", OUTLINE)) == []


def test_nested_and_repeated_sections():
    assert fixed(with_fixed("['## B', '# A']", "# A\n## B\nb\n# C\n# A\nx")) == [
        "# A\n## B\nb",
        "# A\nx",
    ]


def test_headings_in_code_blocks_are_none():
    body = "# A\n```python\n# A\n# B\n```\nmore\n~~~\n```\n# C\n~~~\n# D"
    assert fixed(with_fixed("'# A'", body)) == [body.removesuffix("\n# D")]
    assert fixed(with_fixed("'# B'", body)) == []


def test_a_heading_that_ends_the_file():
    assert fixed(with_fixed("'# A'", "x\n# A\n\n")) == ["# A"]


# ---- lines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("", "blank"),
        (" \t\u2028", "blank"),
        ("# Title", "heading"),
        ("   ###### Title", "heading"),
        ("#", "heading"),
        ("    # Title", "prose"),
        ("\t# Title", "prose"),
        ("#hash", "prose"),
        ("####### seven", "prose"),
        ("- item", "item"),
        ("    * nested", "item"),
        ("+ item", "item"),
        ("• item", "item"),
        ("1. item", "item"),
        ("12) item", "item"),
        ("(a) item", "item"),
        ("B. Rome", "item"),
        ("1.", "item"),
        ("1984. A novel", "prose"),
        ("-item", "prose"),
        ("*emphasis* here", "prose"),
        ("1.5 times", "prose"),
        ("| a | b |", "row"),
        ("|---|", "mark"),
        ("---", "mark"),
        ("* * *", "mark"),
        ('"""', "mark"),
        ("<example>", "mark"),
        ("</example>", "mark"),
        ('<doc id="1">', "mark"),
        ("<!-- note -->", "mark"),
        ("<a> and <b>", "prose"),
        ("a < b", "prose"),
        ("```python", "fence"),
        ("~~~", "fence"),
        ("- ```", "fence"),
        ("> ```", "fence"),
        ("```inline```", "prose"),
        ("``", "mark"),
        ("答え", "prose"),
    ],
)
def test_kinds_of_lines(line, kind):
    assert kinds(line) == [kind]


def test_code_blocks():
    assert kinds("a\n```\n\n# b\n~~~\n```x\n````  \nc") == [
        "prose", "fence", "code", "code", "code", "code", "code", "prose",
    ]  # fmt: skip
    assert kinds("````\n```\n````\na") == ["fence", "code", "code", "prose"]
    assert kinds("> ```\n> a\n> ```\nb") == ["fence", "code", "code", "prose"]
    assert kinds("- ```\n  a\n  ```\nb") == ["fence", "code", "code", "prose"]
    assert kinds("```\na\n\nb") == ["fence", "code", "code", "code"]


# ---- any text ---------------------------------------------------------------------------------

ATOMS = ["---\n", "fixed: ", "model: x\n", "[a, '#', '# H']", "a", "*", "# H\n", "## H\n", "```\n"]
ATOMS += ["\n", "\r\n", "\r", " ", "\t", "\u2028", "\x00", "\ud800", "😀", "\ufeff", "&a", "- "]


@settings(max_examples=250, deadline=None)
@given(
    st.one_of(
        st.lists(st.sampled_from(ATOMS), max_size=30).map("".join),
        st.text(st.characters(exclude_categories=()), max_size=40),
        st.lists(st.sampled_from(ATOMS), max_size=25).map(
            lambda atoms: with_fixed("['a', '# H', '*', '## H']", "".join(atoms))
        ),
    )
)
def test_parsing_never_raises_and_its_spans_are_sound(text):
    document = parse(text, "a.md")
    (message,) = document.messages
    body = text[message.start : message.end]
    assert document.text == text
    assert body == body.strip()
    assert text[message.end :].strip() == ""
    before = message.start
    for start, end in message.fixed:
        assert before <= start < end <= message.end
        assert text[start:end] == text[start:end].strip()
        before = end + 1  # disjoint, and touching ones are one
    for problem in document.problems:
        assert 0 <= problem.start < problem.end <= len(text)
