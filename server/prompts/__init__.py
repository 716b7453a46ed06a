"""The prompt formats the server reads: the registry and the one way in.

A format is one module here and one line in FORMATS. It must not know segments, LSP or models.
"""

from __future__ import annotations

from server.prompts import markdown
from server.prompts.document import (
    MAX_BUDGET,
    SEGMENT_KINDS,
    DocumentMessage,
    Problem,
    PromptDocument,
    PromptFormat,
    PromptSettings,
    SegmentKind,
    segment_kind,
)

__all__ = [
    "FORMATS",
    "MAX_BUDGET",
    "SEGMENT_KINDS",
    "DocumentMessage",
    "Problem",
    "PromptDocument",
    "PromptFormat",
    "PromptSettings",
    "SegmentKind",
    "parse",
    "segment_kind",
]

# The first that accepts a file reads it; markdown comes last, it accepts everything.
FORMATS: tuple[PromptFormat, ...] = (markdown.FORMAT,)


def parse(text: str, path_name: str) -> PromptDocument:
    """Read a prompt file. ``path_name`` is its path or name; never raises, see ``problems``."""
    form = next(form for form in FORMATS if form.accepts(path_name, text))
    return form.parse(text)
