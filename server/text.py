"""One immutable text and the three ways editors count in it.

Inside the server every place in a file is a code-point offset; this module turns offsets into
the (line, character) positions of an LSP position encoding and back. Lines end at LF, CR LF and CR
only, as the protocol says: pygls and ``str.splitlines`` also break at U+2028, U+0085, VT and FF,
which occur in pasted prompts. It must not know LSP types, prompts or segments.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple

Encoding = Literal["utf-8", "utf-16", "utf-32"]
Span = tuple[int, int]  # [start, end) in code points of the file

_LINE_BREAK = re.compile(r"\r\n|\n|\r")


class LineSpan(NamedTuple):
    """One line: ``[start, end)`` without its terminator; ``following`` starts the next line."""

    start: int
    end: int
    following: int


def line_spans(text: str, start: int, end: int) -> Iterator[LineSpan]:
    """The lines of ``text[start:end]``, the last one also if it is empty."""
    for terminator in _LINE_BREAK.finditer(text, start, end):
        yield LineSpan(start, terminator.start(), terminator.end())
        start = terminator.end()
    yield LineSpan(start, end, end)


def strip_span(text: str, start: int, end: int) -> Span:
    """``[start, end)`` without surrounding whitespace; an empty span at ``end`` if all is blank."""
    left = text[start:end].lstrip()
    start = end - len(left)
    return start, start + len(left.rstrip())


@dataclass(frozen=True)
class Text:
    """A snapshot of a document. Offsets count code points, lines and characters start at 0.

    Every conversion saturates: a place outside the text becomes the nearest place inside it.
    """

    text: str
    # (encoding, line) -> units before each code point; filled for non-ASCII lines when asked
    _units: dict[tuple[Encoding, int], array[int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def _lines(self) -> tuple[LineSpan, ...]:
        return tuple(line_spans(self.text, 0, len(self.text)))

    @cached_property
    def _line_starts(self) -> list[int]:
        return [line.start for line in self._lines]

    @property
    def line_count(self) -> int:
        """At least 1: text that ends with a line terminator has an empty last line."""
        return len(self._lines)

    def line_of(self, offset: int) -> int:
        """The line that holds ``offset``; a line's terminator belongs to it."""
        return max(bisect_right(self._line_starts, offset) - 1, 0)

    def line_span(self, line: int) -> Span:
        """Start and end offset of a line without its terminator. IndexError: no such line."""
        return self._lines[line].start, self._lines[line].end

    def offset_at(self, line: int, character: int, encoding: Encoding) -> int:
        """The offset of a position counted in ``encoding``'s units.

        Past a line's end: the line's end, before its terminator. Past the last line: the end of
        the text. Inside a code point (a surrogate pair, a UTF-8 sequence): that code point's start.
        """
        if line < 0:
            return 0
        if line >= len(self._lines):
            return len(self.text)
        start, end, _ = self._lines[line]
        character = max(character, 0)
        units = self._units_before(line, encoding)
        if units is None:
            return min(start + character, end)
        return start + bisect_right(units, character) - 1

    def position_at(self, offset: int, encoding: Encoding) -> tuple[int, int]:
        """(line, character) of an offset; between ``\\r`` and ``\\n`` it is the line's end."""
        line = self.line_of(offset)
        start, end, _ = self._lines[line]
        column = min(max(offset, start), end) - start
        units = self._units_before(line, encoding)
        return line, column if units is None else units[column]

    def _units_before(self, line: int, encoding: Encoding) -> array[int] | None:
        """Units before each code point of a line, and in all of it; None: one per code point."""
        if encoding == "utf-32" or self.text.isascii():
            return None
        units = self._units.get((encoding, line))
        if units is None:
            start, end, _ = self._lines[line]
            content = self.text[start:end]
            if content.isascii():
                return None
            widths = map(_utf8_width if encoding == "utf-8" else _utf16_width, content)
            units = array("I", accumulate(widths, initial=0))
            self._units[encoding, line] = units
        return units


def _utf8_width(char: str) -> int:
    # a lone surrogate counts as 3: what editors that keep one in their buffer send
    return 1 if char < "\x80" else 2 if char < "\u0800" else 3 if char < "\U00010000" else 4


def _utf16_width(char: str) -> int:
    return 1 if char < "\U00010000" else 2
