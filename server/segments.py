"""The granularity ladder: a PromptDocument cut into the segments that are kept or dropped.

Sentences, lines or words, each with its exact place in the file, and the Prompt for the worker made
of them. It must not know LSP, files or models, nor how a format is written.

``auto`` takes sentences, except that
- a single sentence becomes words, if these are more and at most a quarter of the budget, or else
  lines, under the same condition: one segment has nothing to interact with;
- more sentences than a quarter of the budget become lines, if these are fewer: a segment's effect
  needs a few calls.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from server.prompts.document import SEGMENT_KINDS, DocumentMessage, PromptDocument, SegmentKind
from server.sentences import sentence_spans
from server.text import Span, line_spans, strip_span
from spex_engine.wire import InputError, Message, Piece, Prompt

MIN_SEGMENTS = 2
CALLS_PER_SEGMENT = 4

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Segment:
    """``text == file[start:end]``, in code points; no surrounding whitespace, never empty."""

    index: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Segmentation:
    kind: SegmentKind  # the one used, never "auto"
    segments: tuple[Segment, ...]  # in reading order; all text but whitespace and fixed ranges
    note: str | None = None  # what a person should know about the choice


def segment(
    document: PromptDocument, kind: SegmentKind = "auto", budget: int = 1024
) -> Segmentation:
    """Cut a document; ``budget`` (model calls) matters to ``auto`` alone. InputError: no such kind.

    A sentence, line or word that fixed text interrupts becomes several segments.
    """
    if kind == "auto":
        return _choose(document, budget)
    if kind not in _SPANS:
        raise InputError(f"segments: expected one of {', '.join(SEGMENT_KINDS)}, got {kind!r}")
    return Segmentation(kind, _cut(document, kind))


def _choose(document: PromptDocument, budget: int) -> Segmentation:
    limit = budget // CALLS_PER_SEGMENT
    sentences = _cut(document, "sentence")
    count = len(sentences)
    if MIN_SEGMENTS <= count <= limit or count == 0:
        return Segmentation("sentence", sentences)
    if count < MIN_SEGMENTS:
        for kind in ("word", "line"):
            finer = _cut(document, kind)
            if count < len(finer) <= limit:
                few = f"{_counted(count, 'sentence')} would be few to compare"
                return Segmentation(kind, finer, f"{few}: cut into {_counted(len(finer), kind)}")
        return Segmentation("sentence", sentences)
    lines = _cut(document, "line")
    many = f"{_counted(count, 'sentence')} are many for a budget of {budget} calls"
    if len(lines) < count:
        note = f"{many}: cut into {_counted(len(lines), 'line')}"
        return Segmentation("line", lines, note)
    return Segmentation("sentence", sentences, f"{many}: raise it, or fix text with fixed:")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _cut(document: PromptDocument, kind: SegmentKind) -> tuple[Segment, ...]:
    spans = (
        span
        for message in document.messages
        for span in _unfixed(document.text, _SPANS[kind](document.text, message), message.fixed)
    )
    return tuple(
        Segment(index, start, end, document.text[start:end])
        for index, (start, end) in enumerate(spans)
    )


def _line_spans(text: str, message: DocumentMessage) -> Iterator[Span]:
    for line in line_spans(text, message.start, message.end):
        yield strip_span(text, line.start, line.end)


def _word_spans(text: str, message: DocumentMessage) -> Iterator[Span]:
    return (word.span() for word in _WORD.finditer(text, message.start, message.end))


def _sentence_spans(text: str, message: DocumentMessage) -> Iterator[Span]:
    return sentence_spans(text, message.start, message.end)


_SPANS: Mapping[SegmentKind, Callable[[str, DocumentMessage], Iterator[Span]]] = MappingProxyType(
    {"sentence": _sentence_spans, "line": _line_spans, "word": _word_spans}
)


def _unfixed(text: str, spans: Iterator[Span], fixed: Sequence[Span]) -> Iterator[Span]:
    """The spans minus the fixed ranges; both in order and disjoint. What is left is tight."""
    passed = 0  # fixed ranges that end before the span at hand
    for start, end in spans:
        while passed < len(fixed) and fixed[passed][1] <= start:
            passed += 1
        at = passed
        while start < end:
            hole_start, hole_end = fixed[at] if at < len(fixed) else (end, end)
            left = strip_span(text, start, max(start, min(hole_start, end)))
            if left[0] < left[1]:
                yield left
            start = max(start, hole_end)
            at += 1


def to_prompt(document: PromptDocument, segments: Sequence[Segment]) -> Prompt:
    """The prompt in pieces that join to the messages' exact text.

    ``segments`` are in reading order and are numbered by their place in the sequence; all other
    text is fixed. Whitespace goes with what follows it, so that a dropped line takes its own line
    break along and the others keep theirs. InputError: there is no segment.
    """
    if not segments:
        raise InputError(_why_empty(document))
    messages = []
    upcoming = deque(enumerate(segments))
    for message in document.messages:
        pieces: list[Piece] = []
        at = message.start
        while upcoming and upcoming[0][1].end <= message.end:
            number, current = upcoming.popleft()
            fixed_start, fixed_end = strip_span(document.text, at, current.start)
            if fixed_start < fixed_end:
                pieces.append(Piece(document.text[at:fixed_end]))
                at = fixed_end
            pieces.append(Piece(document.text[at : current.end], number))
            at = current.end
        if at < message.end:
            pieces.append(Piece(document.text[at : message.end]))
        messages.append(Message(message.role, tuple(pieces)))
    return Prompt(tuple(messages), len(segments))


def _why_empty(document: PromptDocument) -> str:
    if all(message.start == message.end for message in document.messages):
        return "the prompt is empty: write its text (below the front matter, if there is any)"
    return (
        "nothing is left to explain, all of the prompt is fixed text: "
        'take an entry out of "fixed:", or select other text'
    )
