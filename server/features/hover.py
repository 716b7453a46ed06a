"""Hover: what the segment under the cursor does, with whom, and how sure that is."""

from __future__ import annotations

import re
from collections.abc import Callable

from lsprotocol import types

from server.explained import LEAST, Explained, plus_minus, printable, quote, signed
from server.features.diagnostics import lsp_range
from server.text import Encoding, Text

MAX_PARTNERS = 5
CLEAR = 0.1  # in the value's unit: smaller effects are not worth a contradiction
APART = 0.25  # of the larger: effect and removal this unlike say different things
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~&$:@=\"'])")


def hover(
    explained: Explained, text: Text, offset: int, encoding: Encoding, markdown: bool
) -> types.Hover | None:
    """None where no explained segment stands at ``offset`` (code points into ``text``)."""
    places = explained.places(text.text)
    at = next((i for i, (start, end) in places.items() if start <= offset < end), None)
    if at is None:
        return None
    stale = text.text != explained.plan.document.text
    if markdown:
        value = "\n\n".join(_lines(explained, at, text, stale, escape, lambda said: f"**{said}**"))
        content = types.MarkupContent(types.MarkupKind.Markdown, value)
    else:
        value = "\n".join(_lines(explained, at, text, stale, _as_it_is, _as_it_is))
        content = types.MarkupContent(types.MarkupKind.PlainText, value)
    return types.Hover(content, lsp_range(text, places[at], encoding))


def escape(text: str) -> str:
    """Prompt text as Markdown that shows it and does nothing else."""
    return _MARKDOWN.sub(r"\\\1", text)


def _as_it_is(text: str) -> str:
    return text


def _lines(
    explained: Explained,
    index: int,
    text: Text,
    stale: bool,
    verbatim: Callable[[str], str],
    bold: Callable[[str], str],
) -> list[str]:
    """``verbatim`` makes any text safe to show, ``bold`` sets safe text in bold."""
    result = explained.result
    effect = result.segments[index]
    places = explained.places(text.text)
    lines = []
    if stale:
        lines.append(f"{bold('Stale:')} the prompt has changed since; run Explain prompt again.")
    if explained.doubt:
        lines.append(bold(verbatim(f"{explained.doubt}.")))
    value = bold(verbatim(plus_minus(effect.effect, effect.stderr)))
    lines.append(
        f"{value} {verbatim(result.unit)}: on average keeping this {_verb(effect.effect)} the "
        f"answer {verbatim(explained.answer())}."
    )
    if effect.removal is not None:
        removal = bold(verbatim(signed(effect.removal)))
        lines.append(f"Removing it alone changes the answer's score by {removal}.")
        if _disagree(effect.effect, effect.removal):
            lines.append("The two disagree: what it does depends on what else is there.")
    partners = explained.partners(index)
    for partner in partners[:MAX_PARTNERS]:
        others = []
        for other in partner.segments:
            if other == index:
                continue
            where = f" (line {text.line_of(places[other][0]) + 1})" if other in places else ""
            others.append(f"{verbatim(quote(explained.segments[other].text))}{where}")
        value = verbatim(plus_minus(partner.value, partner.stderr))
        lines.append(f"{bold(f'{partner.kind} {value}')} with {' and '.join(others)}")
    if not partners:
        lines.append(verbatim(explained.nothing))
    elif len(partners) > MAX_PARTNERS:
        lines.append(f"and {len(partners) - MAX_PARTNERS} more")
    faithfulness = result.faithfulness
    calls = f"{result.evaluations.computed:,} model calls"
    if result.evaluations.cached:
        calls += f" and {result.evaluations.cached:,} known from before"
    sure = f"{faithfulness.how}, {calls}, {result.model}"
    if faithfulness.r2 is not None:
        sure = f"R² {faithfulness.r2:.2f} ({sure})"
    lines.append(verbatim(printable(f"How sure: {sure}, {result.method}, tier {result.tier}")))
    lines += [verbatim(printable(f"Note: {note}")) for note in explained.notes]
    return lines


def _verb(effect: float) -> str:
    if abs(effect) < LEAST:
        return "hardly changes"
    return "raises" if effect > 0 else "lowers"


def _disagree(effect: float, removal: float) -> bool:
    """Whether keeping on average and dropping from the full prompt tell different stories."""
    less, more = sorted((effect, -removal), key=abs)
    return abs(more) > CLEAR and less / more < APART
