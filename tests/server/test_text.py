"""Offsets and the three position encodings, against str.encode and a naive line splitter."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text import Text, line_spans, strip_span

ENCODINGS = ("utf-8", "utf-16", "utf-32")
CODECS = {"utf-8": ("utf-8", 1), "utf-16": ("utf-16-le", 2), "utf-32": ("utf-32-le", 4)}

ATOMS = ["\r\n", "\n", "\r", "\u2028", "\x85", "\v", "\f", "a", "é", "。", "😀", "\ud83d", "\ude00"]
texts = st.one_of(
    st.lists(st.sampled_from(ATOMS), max_size=24).map("".join),
    st.text(st.characters(exclude_categories=()), max_size=24),
)
encodings = st.sampled_from(ENCODINGS)
any_int = st.one_of(st.integers(-3, 40), st.sampled_from([2**31 - 1, 2**32]))


def units(text: str, encoding: str) -> int:
    codec, size = CODECS[encoding]
    return len(text.encode(codec, "surrogatepass")) // size


def naive_lines(text: str) -> list[tuple[int, int]]:
    """(start, end without terminator) of each line, character by character."""
    lines, start, at = [], 0, 0
    while at < len(text):
        if text[at] in "\r\n":
            lines.append((start, at))
            at += 1 + (text[at : at + 2] == "\r\n")
            start = at
        else:
            at += 1
    return [*lines, (start, len(text))]


def naive_position(text: str, offset: int, encoding: str) -> tuple[int, int]:
    number, (start, end) = [
        (number, line) for number, line in enumerate(naive_lines(text)) if line[0] <= offset
    ][-1]
    return number, units(text[start : min(offset, end)], encoding)


@settings(max_examples=150, deadline=None)
@given(texts, encodings)
def test_every_offset_has_the_position_that_encoding_its_line_gives(text, encoding):
    snapshot = Text(text)
    for offset in range(len(text) + 1):
        position = naive_position(text, offset, encoding)
        assert snapshot.position_at(offset, encoding) == position
        assert snapshot.line_of(offset) == position[0]
        is_inside_terminator = text[offset - 1 : offset + 1] == "\r\n" and offset > 0
        assert snapshot.offset_at(*position, encoding) == offset - is_inside_terminator


@settings(max_examples=150, deadline=None)
@given(texts, encodings, any_int, any_int)
def test_every_position_saturates_and_rounds_down_to_a_code_point(text, encoding, line, character):
    lines = naive_lines(text)
    if line < 0:
        expected = 0
    elif line >= len(lines):
        expected = len(text)
    else:
        start, end = lines[line]
        inside = [
            offset
            for offset in range(start, end + 1)
            if units(text[start:offset], encoding) <= max(character, 0)
        ]
        expected = max(inside)
    assert Text(text).offset_at(line, character, encoding) == expected


@settings(max_examples=50, deadline=None)
@given(texts, encodings, any_int)
def test_offsets_outside_the_text_saturate(text, encoding, offset):
    snapshot = Text(text)
    clamped = min(max(offset, 0), len(text))
    assert snapshot.position_at(offset, encoding) == snapshot.position_at(clamped, encoding)


@settings(max_examples=50, deadline=None)
@given(texts)
def test_lines_are_those_of_the_protocol(text):
    snapshot = Text(text)
    spans = [snapshot.line_span(line) for line in range(snapshot.line_count)]
    assert spans == naive_lines(text)


@settings(max_examples=50, deadline=None)
@given(texts, st.integers(0, 24), st.integers(0, 24))
def test_strip_span_strips_as_str_does(text, start, length):
    start, end = min(start, len(text)), min(start + length, len(text))
    left, right = strip_span(text, start, end)
    assert start <= left <= right <= end
    assert text[left:right] == text[start:end].strip()


def test_empty_text_is_one_empty_line():
    snapshot = Text("")
    assert snapshot.line_count == 1
    assert snapshot.position_at(7, "utf-16") == (0, 0)
    assert snapshot.offset_at(3, 3, "utf-8") == 0


@pytest.mark.parametrize(
    ("encoding", "characters"),
    [("utf-8", [0, 1, 3, 6, 10]), ("utf-16", [0, 1, 2, 3, 5]), ("utf-32", [0, 1, 2, 3, 4])],
)
def test_widths(encoding, characters):
    snapshot = Text("first\naé。😀\r\nlast")
    for column, character in enumerate(characters):
        assert snapshot.position_at(6 + column, encoding) == (1, character)
        assert snapshot.offset_at(1, character, encoding) == 6 + column


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c"])
def test_other_separators_do_not_end_a_line(separator):
    snapshot = Text(f"a{separator}b\nc")
    assert snapshot.line_count == 2
    assert snapshot.position_at(2, "utf-16") == (0, 2)


def test_a_column_past_the_end_stays_before_the_terminator():
    snapshot = Text("ab\r\ncd\n")
    assert snapshot.offset_at(0, 99, "utf-16") == 2
    assert snapshot.offset_at(1, 99, "utf-16") == 6
    assert snapshot.offset_at(2, 99, "utf-16") == 7


def test_the_middle_of_a_code_point_is_its_start():
    assert Text("a😀b").offset_at(0, 2, "utf-16") == 1
    assert [Text("a😀b").offset_at(0, c, "utf-8") for c in range(7)] == [0, 1, 1, 1, 1, 2, 3]


def test_two_lone_surrogates_stay_two_code_points():
    snapshot = Text("\ud83d" + "\ude00x")
    assert snapshot.position_at(2, "utf-16") == (0, 2)
    assert snapshot.position_at(2, "utf-8") == (0, 6)
    assert snapshot.offset_at(0, 1, "utf-16") == 1


def test_snapshots_are_equal_by_their_text():
    first, second = Text("aé"), Text("aé")
    first.position_at(1, "utf-8")
    assert first == second
    assert hash(first) == hash(second)


def test_line_spans_of_a_part():
    assert list(line_spans("ab\ncd\r\nef", 1, 8)) == [(1, 2, 3), (3, 5, 7), (7, 8, 8)]
