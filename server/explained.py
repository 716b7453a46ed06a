"""A finished explanation over its text: what stands where, also after an edit.

Picks the interactions worth showing and finds segments under the cursor. Plain values in, plain
values out; it must not know LSP types or the worker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from server.planning import Plan
from server.segments import Segment
from server.text import Span
from spex_engine.wire import ExplainResult, SegmentInteraction

SHARE = 0.1  # of the strongest effect or interaction: weaker ones are not worth a mark
SURE = 2.0  # standard errors that an interaction must be away from zero, at the least
FAITHFUL = 0.5  # R2 below which a fit is not to be relied on
LEAST = 1e-3  # in the value's unit: below it lies rounding
JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class Explained:
    """The result and the plan whose segments it speaks of."""

    plan: Plan
    result: ExplainResult

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.plan.segmentation.segments

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about this result: first how the prompt was cut."""
        cut = self.plan.segmentation.note
        return self.result.notes if cut is None else (cut, *self.result.notes)

    @cached_property
    def notable(self) -> tuple[SegmentInteraction, ...]:
        """The interactions to show, strongest first."""
        found = self.result.interactions
        sizes = [*(i.value for i in found), *(s.effect for s in self.result.segments)]
        least = max(LEAST, SHARE * max(map(abs, sizes), default=0.0))
        return tuple(
            i
            for i in found
            if abs(i.value) >= least
            and abs(i.value) > self._sure(len(i.segments)) * (i.stderr or 0.0)
        )

    def _sure(self, size: int) -> float:
        """Standard errors that chance hardly reaches among so many sets of ``size`` segments.

        The largest of k standard normals is about sqrt(2 log k) (Donoho & Johnstone 1994).
        """
        return max(SURE, math.sqrt(2 * math.log(math.comb(len(self.segments), size) or 1)))

    @property
    def doubt(self) -> str | None:
        """Why this result is not to be relied on; None where it is."""
        r2 = self.result.faithfulness.r2
        if r2 is None or r2 >= FAITHFUL:
            return None
        return f"The fit explains little of the answer (R² {r2:.2f}): do not rely on it"

    def answer(self, limit: int = 60) -> str:
        """The answer that is explained, and what was asked of it: “Paris” rather than “Rome”.

        ``limit``: characters of each text.
        """
        question = self.plan.request.question
        said = quote(self.result.target.text, limit)
        if question.contrast is not None:
            return f"{said} rather than {quote(question.contrast, limit)}"
        if question.choices:
            return f"{said} among {len(question.choices)} choices"
        if question.span is not None:
            return f"{quote(question.span, limit)} of {said}"
        return said

    @property
    def nothing(self) -> str:
        """What to say where there is no notable interaction, and why."""
        result = self.result
        if result.index in ("SV", "BV"):
            return f"The index {result.index} values single segments only."
        if result.order < 2:
            return "Order 1 asks for single segments only."
        if result.fitted_order < 2 <= len(self.segments):
            return "No interaction was fitted: the single segments explain as much, or calls lack."
        return "No notable interaction between segments."

    def partners(self, index: int) -> tuple[SegmentInteraction, ...]:
        """The notable interactions that segment ``index`` takes part in, strongest first."""
        return tuple(i for i in self.notable if index in i.segments)

    def places(self, text: str) -> dict[int, Span]:
        """Where each segment stands in ``text``, an edit of the text that was explained.

        Segments before and after the edited stretch move with it; those in it are left out.
        """
        old = self.plan.document.text
        if text == old:
            return {s.index: (s.start, s.end) for s in self.segments}
        before = _common(old, text)
        room = min(len(old), len(text)) - before
        after = _common(old[::-1][:room], text[::-1][:room])
        shift = len(text) - len(old)
        places = {}
        for s in self.segments:
            if s.end <= before:
                places[s.index] = (s.start, s.end)
            elif s.start >= len(old) - after:
                places[s.index] = (s.start + shift, s.end + shift)
        return places


def _common(first: str, second: str) -> int:
    """Length of the longest common prefix, by bisection: comparing slices is fast."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def printable(text: str) -> str:
    """``text`` on one line and without what could drive a terminal or turn the line around.

    Joiners stay: they make one emoji out of several, and Persian words.
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() or c in JOINERS else "\ufffd" for c in line)


def quote(text: str, limit: int = 60) -> str:
    """A segment's text on one line, cut to ``limit`` characters, in quotation marks."""
    line = printable(text)
    return f"“{line}”" if len(line) <= limit else f"“{line[: limit - 1].rstrip()}…”"


def plus_minus(value: float, stderr: float | None) -> str:
    """A signed value with its standard error, ``+1.85 ± 0.02``; without one where none is known."""
    return signed(value) if stderr is None else f"{signed(value)} ± {stderr:.2f}"


def signed(value: float) -> str:
    """``+1.85``; what rounds to zero is ``+0.00``, never ``-0.00``."""
    return f"{value:+z.2f}"
