"""YAML from a file nobody vouches for: a mapping's values, each with its place in the file.

Nodes are composed and nothing is constructed from them. Anchors, aliases and deep nesting are
refused, no text makes it raise, and a slip in one key does not cost the others. It must not know
what the keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from server.prompts.document import Problem
from server.text import Span, line_spans, strip_span

MAX_DEPTH = 16
QUOTING_HINT = 'text that starts with "*", "&" or "#" needs quotes around it'

_KEY = re.compile(r"""(?<=[\r\n])(["']?)([A-Za-z_][\w-]*)\1[ \t]*:(?=\s|\Z)""")
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True, slots=True)
class Value:
    """A YAML value as written. Nothing is converted: in ``target: yes`` the text is ``yes``."""

    start: int
    end: int
    kind: Literal["scalar", "nothing", "list", "mapping"]
    text: str = ""  # of a scalar
    is_quoted: bool = False
    items: tuple[Value, ...] = ()  # of a list


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that is not read from an untrusted file; ``problem`` is for its author."""


class _Composer(yaml.SafeLoader):
    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        refusal = None
        if event.anchor is not None:  # an alias has its anchor's name
            refusal = f"anchors and aliases (& and *) are not read here; {QUOTING_HINT}"
        elif self._depth == MAX_DEPTH:
            refusal = f"values nested deeper than {MAX_DEPTH} levels are not read"
        if refusal is not None:
            raise _Refused(problem=refusal, problem_mark=event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


# PyYAML lets the last two out: escapes beyond Unicode, a version of thousands of digits
_UNREADABLE = (yaml.YAMLError, ValueError, OverflowError)


def _compose(source: str) -> yaml.Node | None:
    loader = _Composer(source)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def read_mapping(
    text: str, start: int, end: int, keys: Collection[str]
) -> tuple[dict[str, Value], tuple[Problem, ...]]:
    """The values of ``keys`` in the YAML ``text[start:end]``, which starts a line of the file.

    Other keys pass in silence, even where their values are no YAML.
    """
    values: dict[str, Value] = {}
    problems: list[Problem] = []
    try:
        _collect(_compose(text[start:end]), text, start, keys, values, problems)
        return values, tuple(problems)
    except _UNREADABLE as error:
        whole = _unreadable(text, start, end, error)
    is_explained = False
    for key, key_start, key_end in _blocks(text, start, end):
        try:
            block = _compose(text[key_start:key_end])
        except _UNREADABLE as error:
            is_explained = True
            if key in keys:
                problems.append(_unreadable(text, key_start, key_end, error))
        else:
            _collect(block, text, key_start, keys, values, problems)
    return values, tuple(problems if is_explained else [*problems, whole])


def top_level_keys(text: str, start: int, end: int) -> set[str]:
    """The keys of the YAML ``text[start:end]`` as far as they can be told without parsing it."""
    return {key for key, _, _ in _blocks(text, start, end)}


def _blocks(text: str, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Each top-level key with the range of its lines."""
    keys = list(_KEY.finditer(text, start, end))
    ends = [key.start() for key in keys[1:]] + [end]
    for key, key_end in zip(keys, ends, strict=True) if keys else ():
        yield key.group(2), key.start(), key_end


def _collect(
    root: yaml.Node | None,
    text: str,
    offset: int,
    keys: Collection[str],
    values: dict[str, Value],
    problems: list[Problem],
) -> None:
    """Add what ``root`` says of ``keys``, first come first kept; its YAML starts at ``offset``."""
    if root is None or root.tag == _NULL:
        return
    if not isinstance(root, yaml.MappingNode):
        span = strip_span(text, offset + root.start_mark.index, offset + root.end_mark.index)
        message = 'expected lines of "key: value"'
        problems.append(Problem(*span, "front-matter-syntax", message))
        return
    for key, node in root.value:
        if not isinstance(key, yaml.ScalarNode) or key.value not in keys:
            continue
        span = (offset + key.start_mark.index, offset + key.end_mark.index)
        if key.value in values:
            message = f"{key.value}: written twice; the first one counts"
            problems.append(Problem(*span, "front-matter-duplicate", message))
        else:
            values[key.value] = _placed(node, text, offset, span)


def _placed(node: yaml.Node, text: str, offset: int, parent: Span) -> Value:
    start, end = strip_span(text, offset + node.start_mark.index, offset + node.end_mark.index)
    if start == end:  # nothing is written: point at what should hold it
        start, end = parent
    if isinstance(node, yaml.SequenceNode):
        items = tuple(_placed(item, text, offset, (start, end)) for item in node.value)
        return Value(start, end, "list", items=items)
    if isinstance(node, yaml.MappingNode):
        return Value(start, end, "mapping")
    if node.tag == _NULL:
        return Value(start, end, "nothing")
    is_quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
    return Value(start, end, "scalar", node.value, is_quoted)


def _unreadable(text: str, start: int, end: int, error: Exception) -> Problem:
    """What to tell the author of the YAML ``text[start:end]``, and where."""
    offsets: list[int] = []
    detail = str(error)
    if isinstance(error, yaml.MarkedYAMLError):
        marks = (error.problem_mark, error.context_mark)
        offsets = [start + mark.index for mark in marks if mark is not None]
        detail = error.problem or error.context or "unknown"
    elif isinstance(error, yaml.reader.ReaderError):
        offsets = [start + error.position]
        detail = f"the character U+{ord(text[offsets[0]]):04X} is not allowed"
    message = detail if isinstance(error, _Refused) else f"this cannot be read as YAML: {detail}"
    if isinstance(error, yaml.scanner.ScannerError) and "alias" in str(error.context):
        message += f"; {QUOTING_HINT}"
    rests = [strip_span(text, at, next(line_spans(text, at, end)).end) for at in offsets]
    rests.append(strip_span(text, start, end))
    span = next((rest for rest in rests if rest[0] < rest[1]), (start, end))
    return Problem(*span, "front-matter-syntax", message)
