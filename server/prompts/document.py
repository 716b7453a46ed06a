"""What every prompt format hands over: a PromptDocument, the same for all of them.

Plain frozen values. Every start and end is a code-point offset into the file's text, end
exclusive. It must not know any format, nor segments, LSP or models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from server.text import Span

SegmentKind = Literal["auto", "sentence", "line", "word"]
MAX_BUDGET = 1_000_000  # model calls: a file must not make the worker plan until memory is full
SEGMENT_KINDS: tuple[SegmentKind, ...] = get_args(SegmentKind)


def segment_kind(name: str) -> SegmentKind | None:
    """The kind a person means by ``name`` (any case, plural accepted); None: no such kind."""
    name = name.strip().lower()
    return next((kind for kind in SEGMENT_KINDS if name in (kind, kind + "s")), None)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about the file that its author should change. It never stops the parsing."""

    start: int
    end: int
    code: str  # a diagnostic code without its "spex/"
    message: str  # one sentence or two: what is wrong, what to do
    severity: Literal["error", "warning"] = "error"


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """What the file asks for; None: it does not say. Who may ask for it is decided elsewhere."""

    model: str | None = None
    target: str | None = None
    segments: SegmentKind | None = None
    budget: int | None = None
    model_at: Span | None = field(default=None, compare=False)  # where the file says its model


@dataclass(frozen=True, slots=True)
class DocumentMessage:
    """One chat message: ``text[start:end]`` of the document, without surrounding whitespace."""

    role: str
    start: int
    end: int
    fixed: tuple[Span, ...] = ()  # never masked; in order, disjoint, tight


@dataclass(frozen=True, slots=True)
class PromptDocument:
    format: str
    text: str  # of the whole file
    messages: tuple[DocumentMessage, ...]
    settings: PromptSettings
    problems: tuple[Problem, ...]
    # False: the file need not be meant for us, so its problems should not bother its author
    is_ours: bool = True


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """One entry of the registry. ``parse`` never raises, whatever the text."""

    name: str
    accepts: Callable[[str, str], bool]  # (path_name, text) -> whether the file is of this format
    parse: Callable[[str], PromptDocument]
