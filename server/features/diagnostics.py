"""Diagnostics: the strongest interactions, and what is wrong with the file itself.

One diagnostic per interaction, on its strongest member, with the others as related information
and, for clients that drop that, in the message too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lsprotocol import types

from server.capabilities import Capabilities
from server.explained import Explained, plus_minus, quote
from server.prompts import PromptDocument
from server.text import Encoding, Span, Text
from spex_engine.wire import SegmentInteraction

SOURCE = "spex"
MAX_SHOWN = 12
SEVERITIES = {
    "error": types.DiagnosticSeverity.Error,
    "warning": types.DiagnosticSeverity.Warning,
}
TOGETHER = {
    "synergy": "work together on the answer",
    "redundancy": "say the same for the answer",
    "conflict": "work against each other on the answer",
}


def lsp_range(text: Text, span: Span, encoding: Encoding) -> types.Range:
    start, end = (text.position_at(offset, encoding) for offset in span)
    return types.Range(types.Position(*start), types.Position(*end))


def problem_diagnostics(
    document: PromptDocument, text: Text, encoding: Encoding
) -> list[types.Diagnostic]:
    """What the file's author should mend; no more than information where it may not be for us."""
    information = types.DiagnosticSeverity.Information
    return [
        types.Diagnostic(
            range=lsp_range(text, (problem.start, problem.end), encoding),
            message=problem.message,
            severity=SEVERITIES[problem.severity] if document.is_ours else information,
            code=f"spex/{problem.code}",
            source=SOURCE,
        )
        for problem in document.problems
    ]


def interaction_diagnostics(
    explained: Explained, text: Text, uri: str, encoding: Encoding, takes: Capabilities
) -> list[types.Diagnostic]:
    """``text`` is what the editor shows now: where it was edited since, the marks say so."""
    places = explained.places(text.text)
    stale = text.text != explained.plan.document.text
    shown = [i for i in explained.notable if all(s in places for s in i.segments)][:MAX_SHOWN]
    return [
        types.Diagnostic(
            range=lsp_range(text, places[_strongest(explained, i)], encoding),
            message=_message(explained, i, text, places, stale),
            severity=types.DiagnosticSeverity.Hint
            if stale or explained.doubt
            else types.DiagnosticSeverity.Information,
            code="spex/interaction",
            source=SOURCE,
            tags=[types.DiagnosticTag.Unnecessary] if stale and takes.tags else None,
            related_information=list(_related(explained, i, text, places, uri, encoding))
            if takes.related
            else None,
            data={"segments": list(i.segments), "value": i.value, "kind": i.kind, "stale": stale},
        )
        for i in shown
    ]


def _strongest(explained: Explained, interaction: SegmentInteraction) -> int:
    effects = explained.result.segments
    return max(interaction.segments, key=lambda index: abs(effects[index].effect))


def _message(
    explained: Explained,
    interaction: SegmentInteraction,
    text: Text,
    places: Mapping[int, Span],
    stale: bool,
) -> str:
    first = _strongest(explained, interaction)
    names = [f"{quote(explained.segments[first].text)} (line {_line(text, places[first])})"]
    names += [
        f"{quote(explained.segments[other].text)} (line {_line(text, places[other])})"
        for other in interaction.segments
        if other != first
    ]
    result = explained.result
    message = (
        f"{' and '.join(names)} {_together(explained, interaction)} "
        f"{quote(result.target.text)}: {interaction.kind} "
        f"{plus_minus(interaction.value, interaction.stderr)} {result.unit}"
    )
    if explained.doubt:
        message = f"{explained.doubt}. {message}"
    return f"Stale, the prompt has changed: {message}" if stale else message


def _together(explained: Explained, interaction: SegmentInteraction) -> str:
    effects = [explained.result.segments[index].effect for index in interaction.segments]
    if interaction.kind == "conflict" and all(effect < 0 for effect in effects):
        return "together work against the answer"  # with each other, that is
    return TOGETHER[interaction.kind]


def _related(
    explained: Explained,
    interaction: SegmentInteraction,
    text: Text,
    places: Mapping[int, Span],
    uri: str,
    encoding: Encoding,
) -> Iterator[types.DiagnosticRelatedInformation]:
    first = _strongest(explained, interaction)
    for other in interaction.segments:
        if other == first:
            continue
        effect = explained.result.segments[other]
        yield types.DiagnosticRelatedInformation(
            location=types.Location(uri, lsp_range(text, places[other], encoding)),
            message=f"{quote(explained.segments[other].text)}: effect "
            f"{plus_minus(effect.effect, effect.stderr)}",
        )


def _line(text: Text, place: Span) -> int:
    return text.line_of(place[0]) + 1
