"""Hover: what the segment under the cursor does, with whom, and how sure that is."""

from __future__ import annotations

import re

from lsprotocol import types

from server.explained import Explained, plus_minus, quote
from server.features.diagnostics import lsp_range
from server.text import Encoding, Text

MAX_PARTNERS = 5
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
    lines = _lines(explained, at, text, stale)
    if markdown:
        value = "\n\n".join(lines)
        content = types.MarkupContent(types.MarkupKind.Markdown, value)
    else:
        value = "\n".join(_plain(line) for line in lines)
        content = types.MarkupContent(types.MarkupKind.PlainText, value)
    return types.Hover(content, lsp_range(text, places[at], encoding))


def escape(text: str) -> str:
    """Prompt text as Markdown that shows it and does nothing else."""
    return _MARKDOWN.sub(r"\\\1", text)


def _plain(markdown: str) -> str:
    """Our own Markdown (bold, escapes) as plain text."""
    return re.sub(r"\\(.)", r"\1", re.sub(r"(?<!\\)\*\*", "", markdown))


def _lines(explained: Explained, index: int, text: Text, stale: bool) -> list[str]:
    result = explained.result
    effect = result.segments[index]
    places = explained.places(text.text)
    answer = escape(quote(result.target.text))
    verb = "raises" if effect.effect > 0 else "lowers"
    lines = []
    if stale:
        lines.append("**Stale:** the prompt has changed since; run *Explain prompt* again.")
    lines.append(
        f"**{escape(plus_minus(effect.effect, effect.stderr))}** {result.unit}: on average "
        f"keeping this {verb} the answer {answer}."
    )
    if effect.removal is not None:
        removal = escape(f"{effect.removal:+.2f}")
        lines.append(f"Removing it alone changes the answer's score by **{removal}**.")
        if abs(effect.effect) > 0.1 and effect.removal * effect.effect > 0:
            lines.append("The two disagree: what it does depends on what else is there.")
    partners = explained.partners(index)
    for partner in partners[:MAX_PARTNERS]:
        others = []
        for other in partner.segments:
            if other == index:
                continue
            where = f" (line {text.line_of(places[other][0]) + 1})" if other in places else ""
            others.append(f"{escape(quote(explained.segments[other].text))}{where}")
        value = escape(plus_minus(partner.value, partner.stderr))
        lines.append(f"**{partner.kind} {value}** with {' and '.join(others)}")
    if not partners:
        lines.append("No notable interaction with another segment.")
    elif len(partners) > MAX_PARTNERS:
        lines.append(f"and {len(partners) - MAX_PARTNERS} more")
    faithfulness = result.faithfulness
    sure = f"{faithfulness.how}, {result.evaluations.computed:,} model calls, {result.model}"
    if faithfulness.r2 is not None:
        sure = f"R² {faithfulness.r2:.2f} ({sure})"
    lines.append(escape(f"How sure: {sure}, {result.method}, tier {result.tier}"))
    return lines
