"""YAML front matter: the settings a prompt file carries, each problem at its place in the file.

Unknown keys are other tools' business (VS Code's ``description``, ``tools`` and more) and pass in
silence. The file is untrusted: what it can cost is bounded, and no text makes this raise. It must
not know what the body means, nor who may use a setting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass

from server.prompts.document import (
    MAX_BUDGET,
    SEGMENT_KINDS,
    Problem,
    PromptSettings,
    SegmentKind,
    segment_kind,
)
from server.prompts.untrusted_yaml import QUOTING_HINT, Value, read_mapping, top_level_keys
from server.text import line_spans

MAX_CHARACTERS = 16_384
# Each entry of fixed: is matched against each line of the body.
MAX_FIXED_ENTRIES = 32
MAX_FIXED_LENGTH = 200

_OWN_KEYS = frozenset({"segments", "budget", "fixed"})  # that no other tool is known to use
_KEYS = _OWN_KEYS | {"model", "target"}
_OUR_MODEL = re.compile(r"demo\Z|(hf|openai|encoder|ray\+hf):")
_FENCE = "---"
_BUDGET = re.compile(r"[0-9]{1,9}")
_NO_SETTINGS = PromptSettings()


@dataclass(frozen=True, slots=True)
class FixedEntry:
    """One entry of ``fixed:`` and where it stands in the file."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FrontMatter:
    body: int  # offset where the body starts
    settings: PromptSettings = _NO_SETTINGS
    fixed: tuple[FixedEntry, ...] = ()
    problems: tuple[Problem, ...] = ()
    is_ours: bool = True  # False: nothing in it says that it is meant for us


def read_front_matter(text: str) -> FrontMatter:
    """The front matter of a file; without one, the body starts at once (after a BOM)."""
    origin = 1 if text.startswith("\ufeff") else 0
    opening = _opening_fence(text, origin)
    if opening is None:
        return FrontMatter(origin)
    fence, start = opening
    # Below leading comment lines "---" may as well be a Markdown rule: our own keys decide.
    is_certain = fence == origin
    for line in line_spans(text, start, len(text)):
        if text[line.start : line.end].rstrip() == _FENCE:
            keys = top_level_keys(text, start, line.start)
            if is_certain or not _KEYS.isdisjoint(keys):
                front = _read(text, start, line.start, line.following, keys)
                is_text = bool(front.problems) and not keys  # between two Markdown rules
                return FrontMatter(origin) if is_text else front
            return FrontMatter(origin)
    first_lines = min(len(text), start + MAX_CHARACTERS)
    if not is_certain or _KEYS.isdisjoint(top_level_keys(text, start, first_lines)):
        return FrontMatter(origin)  # a Markdown rule
    message = (
        'this "---" opens front matter that no second "---" line closes: '
        "the whole file is taken as the prompt"
    )
    problem = Problem(
        fence, fence + len(_FENCE), "front-matter-unclosed", message, severity="warning"
    )
    return FrontMatter(origin, problems=(problem,))


def _opening_fence(text: str, origin: int) -> tuple[int, int] | None:
    """Offsets of the opening fence and of the line below; comment lines may stand above it."""
    for line in line_spans(text, origin, len(text)):
        content = text[line.start : line.end]
        if content.rstrip() == _FENCE and line.following > line.end:
            return line.start, line.following
        content = content.strip()
        is_html_comment = content.startswith("<!--") and content.endswith("-->")
        if content and not content.startswith("#") and not is_html_comment:
            return None
    return None


def _read(text: str, start: int, end: int, body: int, keys: Set[str]) -> FrontMatter:
    """``keys``: the top-level ones, as far as they can be told without parsing."""
    if end - start > MAX_CHARACTERS:
        message = f"front matter longer than {MAX_CHARACTERS:,} characters is not read"
        first = next(line_spans(text, start, end))
        problem = Problem(first.start, first.end, "front-matter-size", message)
        return FrontMatter(body, problems=(problem,), is_ours=not _OWN_KEYS.isdisjoint(keys))
    values, unread = read_mapping(text, start, end, _KEYS)
    problems = list(unread)
    model = values.get("model")
    settings = PromptSettings(
        model=_text(values, "model", "the name of a model, such as demo", problems),
        target=_text(values, "target", "the text of an answer", problems),
        segments=_segments(values, problems),
        budget=_budget(values, problems),
        model_at=(model.start, model.end) if model else None,
    )
    fixed = _fixed(values, problems)
    problems.sort(key=lambda problem: problem.start)
    is_ours = not _OWN_KEYS.isdisjoint(keys | values.keys())
    is_ours = is_ours or _OUR_MODEL.match(settings.model or "") is not None
    return FrontMatter(body, settings, fixed, tuple(problems), is_ours)


def _wrong(key: str, value: Value, expected: str) -> Problem:
    found = {"nothing": "nothing", "list": "a list", "mapping": "a mapping"}.get(value.kind)
    if found is None:
        written = value.text if len(value.text) <= 40 else value.text[:39] + "…"
        found = f'"{written}"' + (" in quotes" if value.is_quoted else "")
    message = f"{key}: expected {expected}, found {found}"
    return Problem(value.start, value.end, "front-matter-value", message)


def _text(
    values: Mapping[str, Value], key: str, expected: str, problems: list[Problem]
) -> str | None:
    value = values.get(key)
    if value is None:
        return None
    if value.text.strip():
        return value.text
    problems.append(_wrong(key, value, expected))
    return None


def _segments(values: Mapping[str, Value], problems: list[Problem]) -> SegmentKind | None:
    value = values.get("segments")
    if value is None:
        return None
    kind = segment_kind(value.text)
    if kind is None:
        problems.append(_wrong("segments", value, "one of " + ", ".join(SEGMENT_KINDS)))
    return kind


def _budget(values: Mapping[str, Value], problems: list[Problem]) -> int | None:
    value = values.get("budget")
    if value is None:
        return None
    if not value.is_quoted and _BUDGET.fullmatch(value.text):
        budget = int(value.text)
        if 2 <= budget <= MAX_BUDGET:
            return budget
    problems.append(_wrong("budget", value, f"a whole number from 2 to {MAX_BUDGET:,}"))
    return None


def _fixed(values: Mapping[str, Value], problems: list[Problem]) -> tuple[FixedEntry, ...]:
    value = values.get("fixed")
    if value is None:
        return ()
    entries: list[FixedEntry] = []
    for item in value.items if value.kind == "list" else (value,):
        entry = item.text.strip()
        if not entry:
            problems.append(_wrong("fixed", item, f"a heading or line pattern ({QUOTING_HINT})"))
        elif len(entry) > MAX_FIXED_LENGTH:
            message = f"fixed: an entry longer than {MAX_FIXED_LENGTH} characters is not read"
            problems.append(Problem(item.start, item.end, "front-matter-value", message))
        elif len(entries) == MAX_FIXED_ENTRIES:
            message = f"fixed: more than {MAX_FIXED_ENTRIES} entries are not read"
            problems.append(Problem(item.start, item.end, "front-matter-value", message))
            break
        else:
            entries.append(FixedEntry(entry, item.start, item.end))
    return tuple(entries)
