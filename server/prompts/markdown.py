"""Markdown and plain text prompts: the body is one user message, sent as it stands.

Reads the lines' roles (heading, list item, fenced code, ...) from the source itself, because no
Markdown parser gives offsets inside a line, and marks what ``fixed:`` names. Only what prompts are
cut by is read: setext headings, indented code and tables without a leading bar count as prose. It
must not know segments, LSP or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from server.prompts.document import DocumentMessage, Problem, PromptDocument, PromptFormat
from server.text import Span, line_spans, strip_span

if TYPE_CHECKING:
    from server.prompts.front_matter import FixedEntry

LineKind = Literal["blank", "heading", "item", "row", "fence", "code", "mark", "prose"]

_HEADING = re.compile(r"(#{1,6})(?:[ \t]+|\Z)")
_ITEM = re.compile(r"(?:[-*+•]|\(?(?:[0-9]{1,3}|[A-Za-z])[.)])(?:[ \t]+|\Z)")
_FENCE = re.compile(r"`{3,}+(?=[^`]*\Z)|~{3,}+")
_TAG = re.compile(r"</?[A-Za-z!][^<>]*>")


@dataclass(frozen=True, slots=True)
class Line:
    """A line without surrounding whitespace.

    ``fence`` opens a code block and ``code`` continues it, its closing fence included; ``mark`` is
    a lone tag, or has no letter or digit (a rule, a row of quotes); ``row`` is a table's.
    """

    start: int
    end: int
    kind: LineKind
    content: int  # where the text after a heading's or list item's marker starts
    level: int = 0  # of a heading, 1 to 6


def parse(text: str) -> PromptDocument:
    """Read a file with optional front matter; never raises, whatever the text."""
    # Here, because it loads PyYAML: a server is to answer before it has seen a file.
    from server.prompts.front_matter import read_front_matter

    front = read_front_matter(text)
    start, end = strip_span(text, front.body, len(text))
    fixed, problems = _fixed_spans(text, start, end, front.fixed)
    return PromptDocument(
        format="markdown",
        text=text,
        messages=(DocumentMessage("user", start, end, fixed),),
        settings=front.settings,
        problems=front.problems + problems,
        is_ours=front.is_ours,
    )


FORMAT = PromptFormat(name="markdown", accepts=lambda path_name, text: True, parse=parse)


def read_lines(text: str, start: int, end: int) -> Iterator[Line]:
    """The Markdown lines of ``text[start:end]``, which starts at a line's start or its text."""
    fence = ""  # what opened the code block that we are in
    for span in line_spans(text, start, end):
        line = _read_line(text, span.start, *strip_span(text, span.start, span.end))
        if fence:
            bare = text[line.start : line.end].lstrip("> \t")
            if len(bare) >= len(fence) and not bare.strip(fence[0]):
                fence = ""
            line = Line(line.start, line.end, "code", line.start)
        elif line.kind == "fence":
            opened = _FENCE.match(text, line.content, line.end)
            fence = opened.group() if opened else ""
        yield line


def _read_line(text: str, line_start: int, start: int, end: int) -> Line:
    if start == end:
        return Line(start, end, "blank", start)
    heading = _HEADING.match(text, start, end)
    if heading and len(text[line_start:start].expandtabs(4)) < 4:
        return Line(start, end, "heading", heading.end(), len(heading.group(1)))
    item = _ITEM.match(text, start, end)
    content = item.end() if item else start
    inner = end - len(text[content:end].lstrip("> \t"))
    if _FENCE.match(text, inner, end):
        return Line(start, end, "fence", inner)
    if _TAG.fullmatch(text, start, end) or not any(map(str.isalnum, text[start:end])):
        return Line(start, end, "mark", start)
    if item:
        return Line(start, end, "item", content)
    return Line(start, end, "row" if text[start] == "|" else "prose", start)


# ---- what `fixed:` names ----------------------------------------------------------------------


def _fixed_spans(
    text: str, start: int, end: int, entries: Sequence[FixedEntry]
) -> tuple[tuple[Span, ...], tuple[Problem, ...]]:
    """The union of what the entries name, and a warning for each entry that names nothing."""
    if not entries:
        return (), ()
    lines = tuple(read_lines(text, start, end))
    spans: list[Span] = []
    problems = []
    for entry in entries:
        matches = _sections if entry.text.startswith("#") else _matching_lines
        found = list(matches(text, lines, entry.text))
        spans += found
        if not found:
            what = "heading" if entry.text.startswith("#") else "line"
            message = f'fixed: "{entry.text}" matches no {what} of the prompt'
            problem = Problem(entry.start, entry.end, "fixed-unmatched", message, "warning")
            problems.append(problem)
    return _union(spans), tuple(problems)


def _sections(text: str, lines: Sequence[Line], entry: str) -> Iterator[Span]:
    """Each heading of that level and title, with all up to the next of the same or higher level."""
    title = entry.lstrip("#")
    level = len(entry) - len(title)
    title = _without_closing_hashes(title)
    section: Span | None = None
    for line in lines:
        if section is not None and 0 < line.level <= level:
            yield section
            section = None
        if line.level == level and _without_closing_hashes(text[line.content : line.end]) == title:
            section = line.start, line.end
        elif section is not None and line.start < line.end:
            section = section[0], line.end
    if section is not None:
        yield section


def _without_closing_hashes(title: str) -> str:
    title = title.strip()
    bare = title.rstrip("#")
    return bare.rstrip() if bare != title and (not bare or bare[-1].isspace()) else title


def _matching_lines(text: str, lines: Sequence[Line], entry: str) -> Iterator[Span]:
    """Each line that the glob matches as a whole, or that starts with a text that is no glob."""
    pattern = entry if any(char in entry for char in "*?[") else entry + "*"
    for line in lines:
        if line.start < line.end and fnmatchcase(text[line.start : line.end], pattern):
            yield line.start, line.end


def _union(spans: list[Span]) -> tuple[Span, ...]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)
