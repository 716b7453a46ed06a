"""The granularity ladder: what the segments are, and that the pieces are the prompt."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.prompts import DocumentMessage, PromptDocument, PromptSettings, parse
from server.segments import Segment, segment, to_prompt
from spex_engine.wire import InputError

EXAMPLE = """---
model: demo
fixed: ["Question:*", "Answer:*"]
---
Bob works with Anna.
Anna lives in Paris.
Carla lives in Rome.
Question: Where does the colleague of Bob live?
Answer:
"""


def cut(text: str, kind: str = "sentence") -> list[str]:
    return [item.text for item in segment(parse(text, "a.md"), kind).segments]


def pieces(text: str, kind: str) -> list[tuple[str, int | None]]:
    document = parse(text, "a.md")
    (message,) = to_prompt(document, segment(document, kind).segments).messages
    return [(piece.text, piece.segment) for piece in message.pieces]


# ---- sentences: punctuation -------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentences",
    [
        ["One.", "Two!", "Three?", "Four…", "Five"],
        ["What?!", "Really...", "Yes."],
        ['He said "no."', "She left."],
        ["(A note.)", "**Bold.**", "`x`.", "“Quoted.”", "It's."],
        ["Costs 3.14 or 1,000.50 euro.", "Version v1.2.3 of foo.py and .NET."],
        ["See https://a.b/c.d?x=1!y and a@b.org.", "Next."],
        ["Use tools, e.g. hammers, i.e. E.g. these.", "Next."],
        ["Mr. Smith met Dr. Jones and Prof. X vs. St. Paul.", "Next."],
        ["Pens, etc. and ink (paper, etc.) too, says Acme Inc. here.", "Next."],
        ["Pens, ink, etc.", "The next."],
        ["See No. 5, Fig. 3, eq. 2 and p. 7.", "Next."],
        ["The answer is no.", "Then stop."],
        ["By J. R. R. Tolkien of the U.S. Army.", "Next."],
        ["So did I.", "Next."],
        ["It takes 5 ms.", "Next."],
        ["Ends in 3.", "Then 4."],
        ["مرحبا؟", "नमस्ते।", "آخر۔"],
        ["A wink 😀.", "Next 😀!", "Last"],
        ["A dot .", "Next"],
    ],
)
def test_sentences_on_a_line(sentences):
    assert cut(" ".join(sentences)) == sentences
    assert cut("\r\n".join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["我住在巴黎。", "他住在罗马！", "真的吗？", "没有结尾"],
        ["「はい。」", "彼は言った。", "えっ！？", "そう。"],
    ],
)
def test_full_width_enders_need_no_space(sentences):
    assert cut("".join(sentences)) == sentences


# ---- sentences: lines and blocks --------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "sentences",
    [
        ["A sentence\nover two lines.", "Next one\nends"],
        ["Ends here.\n", "Next."],
        ["A paragraph\n\n", "Another\n \t\n", "Third"],
        ["Bob works for Acme Inc.\n", "anna lives in Rome etc.\n", "the end"],
        ["It was Plan B.\n", "Next."],
        ["Greet Dr.\nJones."],
        ["No separator\u2028here\x85or\vhere\fis a line."],
        ["# A title. With a dot\n", "Text.", "More\n", "## Next"],
        ["Intro\n", "- One. \n", "- Two\n  goes on.", "And on\n", "* 3\n", "1. Four.\n", "2) Five"],
        ["A. Paris\n", "B. Rome\n", "(c) Athens"],
        ["- \n", "Text"],
        ["| a | b |\n", "|---|---|\n", "| 1. | 2. |\n", "Text"],
        ["Text:\n", "```py\nx = 1.\n\n# y! z\n```\n", "After.", "More"],
        ["```\na\n```\n", "```\nb\n```"],
        ["1. Run:\n", "   ```\n   a. b.\n   ```\n", "2. Stop"],
        ["Open:\n", "~~~\nnever. closed.\n\n# x"],
        ["Before\n", "---\n", "After\n", '"""\n', "Quoted.\n", '"""'],
        ["<rules>\n", "Be brief.\n", "</rules>\n", "Be <b>kind</b>."],
    ],
)
def test_sentences_over_lines(sentences, newline):
    text = ""
    for sentence in sentences:
        text += sentence if not text or text.endswith("\n") else " " + sentence
    expected = [sentence.strip().replace("\n", newline) for sentence in sentences]
    assert cut(text.replace("\n", newline)) == expected


# ---- lines, words, fixed text -----------------------------------------------------------------


def test_lines():
    assert cut(" a b. c \r\n\r\n\td\u2028e\n \nf", "line") == ["a b. c", "d\u2028e", "f"]


def test_words_keep_their_punctuation():
    assert cut("Hi, (dear) “you”!\n— 😀 x.y", "word") == [
        "Hi,", "(dear)", "“you”!", "—", "😀", "x.y",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["sentence", "line"])
def test_the_example_has_three_segments(kind):
    document = parse(EXAMPLE, "two-facts.prompt.md")
    facts = segment(document, kind).segments
    assert [fact.text for fact in facts] == EXAMPLE.splitlines()[4:7]
    assert [fact.index for fact in facts] == [0, 1, 2]
    assert all(EXAMPLE[fact.start : fact.end] == fact.text for fact in facts)


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_front_matter_is_in_no_segment(start):
    assert cut(start + "---\ntarget: One. Two.\n---\nThree. Four.") == ["Three.", "Four."]


def test_fixed_text_interrupts_a_sentence_and_a_code_block():
    assert cut("---\nfixed: b\n---\na\nb\nc d.\ne") == ["a", "c d.", "e"]
    assert cut("---\nfixed: b\n---\n```\na.\nb\nc. d.\n```\nEnd. F") == [
        "```\na.", "c. d.\n```", "End.", "F",
    ]  # fmt: skip


def test_fixed_ranges_anywhere():
    text = "One two. Three."
    message = DocumentMessage("user", 0, len(text), fixed=((1, 3), (4, 5), (7, 11)))
    document = PromptDocument("test", text, (message,), PromptSettings(), ())
    words = segment(document, "word").segments
    assert [(w.start, w.text) for w in words] == [(0, "O"), (5, "wo"), (11, "ree.")]
    assert [s.text for s in segment(document, "sentence").segments] == ["O", "wo", "ree."]
    joined = to_prompt(document, words).messages[0].pieces
    assert [(p.text, p.segment) for p in joined] == [
        ("O", 0), ("ne t", None), ("wo", 1), (". Th", None), ("ree.", 2),
    ]  # fmt: skip


def test_an_unknown_kind():
    with pytest.raises(InputError, match="auto, sentence, line, word, got 'token'"):
        segment(parse("a", "a.md"), "token")


# ---- auto -------------------------------------------------------------------------------------


def auto(text: str, budget: int = 1024) -> tuple[str, int, str | None]:
    result = segment(parse(text, "a.md"), "auto", budget)
    return result.kind, len(result.segments), result.note


def test_auto_takes_sentences():
    assert auto("One a. Two b. Three c.") == ("sentence", 3, None)
    assert auto(EXAMPLE) == ("sentence", 3, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One sentence", ("word", 2, "1 sentence would be few to compare: cut into 2 words")),
        ("One a. Two b.", ("sentence", 2, None)),
        ("我。", ("sentence", 1, None)),
        ("Word", ("sentence", 1, None)),
        ("", ("sentence", 0, None)),
    ],
)
def test_auto_cuts_a_single_sentence_into_words(text, expected):
    assert auto(text) == expected


def test_auto_cuts_few_sentences_into_lines_where_words_are_too_many():
    text = "a b c\nd e f\ng h i"
    assert auto(text, budget=36)[:2] == ("word", 9)
    assert auto(text, budget=35)[:2] == ("line", 3)
    assert auto(text, budget=11) == ("sentence", 1, None)


def test_auto_cuts_many_sentences_into_lines():
    text = "\n".join(["One. Two. Three."] * 4)
    assert auto(text, budget=48) == ("sentence", 12, None)
    assert auto(text, budget=47) == (
        "line", 4, "12 sentences are many for a budget of 47 calls: cut into 4 lines",
    )  # fmt: skip
    kind, count, note = auto("\n".join(["One."] * 12), budget=47)
    assert (kind, count) == ("sentence", 12)
    assert note is not None
    assert "raise it" in note


# ---- the prompt -------------------------------------------------------------------------------


def test_whitespace_goes_with_what_follows_it():
    assert pieces(EXAMPLE, "sentence") == [
        ("Bob works with Anna.", 0),
        ("\nAnna lives in Paris.", 1),
        ("\nCarla lives in Rome.", 2),
        ("\nQuestion: Where does the colleague of Bob live?\nAnswer:", None),
    ]


def test_fixed_text_between_before_and_after():
    text = "---\nfixed: F\n---\n F1\r\n\r\nF2\n a b\n\nF3\n c\nF4 \n"
    assert pieces(text, "word") == [
        ("F1\r\n\r\nF2", None),
        ("\n a", 0),
        (" b", 1),
        ("\n\nF3", None),
        ("\n c", 2),
        ("\nF4", None),
    ]


def test_segments_left_out_are_fixed_and_the_rest_is_numbered_anew():
    document = parse("a b c d", "a.md")
    chosen = segment(document, "word").segments[1:3]
    prompt = to_prompt(document, chosen)
    assert prompt.n_segments == 2
    assert [(p.text, p.segment) for p in prompt.messages[0].pieces] == [
        ("a", None), (" b", 0), (" c", 1), (" d", None),
    ]  # fmt: skip


def test_several_messages():
    text = "Be brief.\n--\nHi. You.\n--\n"
    messages = (
        DocumentMessage("system", 0, 9),
        DocumentMessage("user", 13, 21, fixed=((13, 16),)),
        DocumentMessage("assistant", 25, 25),
    )
    document = PromptDocument("test", text, messages, PromptSettings(), ())
    prompt = to_prompt(document, segment(document, "sentence").segments)
    assert [
        (message.role, [(piece.text, piece.segment) for piece in message.pieces])
        for message in prompt.messages
    ] == [
        ("system", [("Be brief.", 0)]),
        ("user", [("Hi.", None), (" You.", 1)]),
        ("assistant", []),
    ]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [("", "write its text"), ("---\nfixed: '*'\n---\nAll.", 'take an entry out of "fixed:"')],
)
def test_nothing_to_explain(text, remedy):
    document = parse(text, "a.md")
    with pytest.raises(InputError, match=remedy):
        to_prompt(document, segment(document).segments)


# ---- any text ---------------------------------------------------------------------------------

ATOMS = ["a", "Bob", "e.g", ".", ". ", "! ", "。", "...", '"', ")", "# ", "- ", "1. ", "|", "<b>"]
ATOMS += [" ", "\t", "\n", "\r\n", "\r", "\n\n", "```\n", "~~~", "---"]
ATOMS += ["\u2028", "\x85", "\x00", "\ud800", "😀"]
texts = st.one_of(
    st.lists(st.sampled_from(ATOMS), max_size=40).map("".join),
    st.text(st.characters(exclude_categories=()), max_size=40),
)
front_matters = st.sampled_from(
    ["", "\ufeff", "---\nfixed: ['a*', '# a', '*.', '|*']\n---\n", "---\r\nmodel: x\r\n---\r\n"]
)


@settings(max_examples=300, deadline=None)
@given(front_matters, texts, st.sampled_from(["auto", "sentence", "line", "word"]))
def test_segments_and_pieces_of_any_text(front_matter, body, kind):
    text = front_matter + body
    document = parse(text, "a.md")
    (message,) = document.messages
    result = segment(document, kind, budget=16)
    assert result.kind == kind or kind == "auto"

    owner: list[int | None] = [None] * len(text)
    before = message.start
    for number, item in enumerate(result.segments):
        assert item == Segment(number, item.start, item.end, text[item.start : item.end])
        assert before <= item.start < item.end <= message.end
        assert item.text == item.text.strip()
        owner[item.start : item.end] = [number] * (item.end - item.start)
        before = item.end
    is_fixed = [any(start <= at < end for start, end in message.fixed) for at in range(len(text))]
    for at in range(message.start, message.end):
        assert owner[at] is None if is_fixed[at] else owner[at] is not None or text[at].isspace()

    if not result.segments:
        with pytest.raises(InputError):
            to_prompt(document, result.segments)
        return
    prompt = to_prompt(document, result.segments)
    assert prompt.n_segments == len(result.segments)
    (sent,) = prompt.messages
    assert sent.text == text[message.start : message.end]
    numbers = [piece.segment for piece in sent.pieces]
    assert [number for number in numbers if number is not None] == list(range(prompt.n_segments))
    assert (None, None) not in pairwise(numbers)
    for piece in sent.pieces:
        assert piece.text
        if piece.segment is not None:
            assert piece.text.lstrip() == result.segments[piece.segment].text
