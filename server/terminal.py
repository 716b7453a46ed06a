"""What a terminal shows: the prompt coloured by effect, the interactions, and how sure it is.

The one module that uses rich; the language server never loads it. Colour is never alone: signs and
numbers say the same. Prompt text is printed as text: no markup, no control characters.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text as Rich

from server.explained import Explained, plus_minus, printable, signed
from server.text import Text
from spex_engine import wire

MAX_SHOWN = 12
MAX_WIDTH = 10_000  # of a line where no terminal's edge bounds it
# Okabe-Ito blue and vermillion, which colour-blind readers tell apart; (red, green, blue)
RAISES, LOWERS = (0, 114, 178), (213, 94, 0)
WHITE = (255, 255, 255)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[wire.Progress], None]]:
    """A bar on a terminal's standard error; nothing at all in a pipe."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("calls"),
        TimeElapsedColumn(),
    )
    # isatty, because rich also takes a pipe for a terminal where FORCE_COLOR is set
    hidden = not console.file.isatty()
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(printable(title), total=None)

        def on_progress(progress: wire.Progress) -> None:
            said = printable(f"{title}: {progress.message}")
            bar.update(task, completed=progress.done, total=progress.total, description=said)

        yield on_progress


def show(explained: Explained, file: str, out: TextIO) -> None:
    """Print the whole result to ``out``: coloured and folded on a terminal, else one row a line."""
    if out.isatty():
        Console(file=out, highlight=False).print(rendered(explained, file))
        return
    lines = io.StringIO()
    demanded = None if out is sys.stdout else False  # FORCE_COLOR means the screen, not files
    console = Console(file=lines, highlight=False, width=MAX_WIDTH, force_terminal=demanded)
    console.print(rendered(explained, file))
    out.writelines(f"{line.rstrip()}\n" for line in lines.getvalue().splitlines())


def rendered(explained: Explained, file: str) -> RenderableType:
    return Group(
        _head(explained, file),
        Rich(),
        _segments(explained),
        Rich(),
        _interactions(explained),
        Rich(),
        _foot(explained),
    )


def _head(explained: Explained, file: str) -> Rich:
    result = explained.result
    head = Rich()
    head.append(printable(file), style="bold")
    head.append(f"  on {printable(result.model)} says ")
    head.append(explained.answer(MAX_WIDTH), style="bold")
    head.append(f"  ({signed(result.target.value)} {result.unit})")
    if explained.doubt is not None:
        head.append(f"\n{explained.doubt}.", style="bold")
    return head


def _segments(explained: Explained) -> Table:
    """The prompt in reading order, every segment with its effect; fixed text is dim."""
    text = Text(explained.plan.document.text)
    effects = explained.result.segments
    largest = max((abs(e.effect) for e in effects), default=0.0) or 1.0
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("line", justify="right", style="dim")
    table.add_column("effect", justify="right", no_wrap=True)
    table.add_column("removed", justify="right", no_wrap=True)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("prompt")
    for start, end, index in _stretches(explained):
        line = str(text.line_of(start) + 1)
        words = printable(text.text[start:end])
        if index is None:
            table.add_row(line, "fixed", "", "", Rich(words), style="dim")
            continue
        effect = effects[index]
        removal = "" if effect.removal is None else signed(effect.removal)
        table.add_row(
            line,
            plus_minus(effect.effect, effect.stderr),
            removal,
            str(index + 1),
            Rich(words, style=_heat(effect.effect / largest)),
        )
    return table


def _stretches(explained: Explained) -> Iterator[tuple[int, int, int | None]]:
    """The prompt's text in order: (start, end, segment index or None for fixed text)."""
    source = explained.plan.document.text
    segments = explained.segments
    for message in explained.plan.document.messages:
        at = message.start
        for s in (*(s for s in segments if message.start <= s.start < message.end), None):
            end = message.end if s is None else s.start
            gap = source[at:end]
            if gap.strip():
                first = at + len(gap) - len(gap.lstrip())
                yield first, first + len(gap.strip()), None
            if s is not None:
                yield s.start, s.end, s.index
                at = s.end


def _interactions(explained: Explained) -> RenderableType:
    shown = explained.notable[:MAX_SHOWN]
    if not shown:
        return Rich(explained.nothing)
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("interaction", no_wrap=True)
    table.add_column(explained.result.index, justify="right", no_wrap=True)
    table.add_column("segments", no_wrap=True)
    table.add_column("between")
    for i in shown:
        members = Rich(" × ").join(Rich(printable(explained.segments[s].text)) for s in i.segments)
        numbers = " × ".join(f"#{s + 1}" for s in i.segments)
        style = _foreground(i.value)
        table.add_row(
            Rich(i.kind, style=style),
            Rich(plus_minus(i.value, i.stderr), style=style),
            numbers,
            members,
        )
    more = len(explained.notable) - len(shown)
    return Group(table, Rich(f"and {more} weaker ones (--format json has all)")) if more else table


def _foot(explained: Explained) -> Rich:
    result = explained.result
    calls = result.evaluations
    r2 = "not known" if result.faithfulness.r2 is None else f"{result.faithfulness.r2:.3f}"
    foot = Rich()
    foot.append(f"R² {r2}", style="bold")
    foot.append(f" ({result.faithfulness.how}), method {result.method}, tier {result.tier}\n")
    foot.append(f"{calls.computed:,} model calls", style="bold")
    if calls.cached:
        foot.append(f", {calls.cached:,} known from before")
    failed = f", {calls.failed:,} failed" if calls.failed else ""
    foot.append(f"{failed}, {result.input_tokens:,} input tokens, {result.seconds:.1f} s\n")
    foot.append(
        "effect: mean change when kept rather than dropped; removed: change when it alone is "
        "dropped from the full prompt",
        style="dim",
    )
    for note in explained.notes:
        foot.append(f"\nnote: {printable(note)}")
    return foot


def _heat(share: float) -> str:
    """A background for an effect, ``share`` -1..1 of the largest; black on it stays readable."""
    strength = min(1.0, abs(share)) * 0.6
    colour = RAISES if share > 0 else LOWERS
    red, green, blue = (
        round(white + (channel - white) * strength)
        for white, channel in zip(WHITE, colour, strict=True)
    )
    return f"#000000 on #{red:02x}{green:02x}{blue:02x}" if abs(share) >= 0.05 else ""


def _foreground(value: float) -> str:
    red, green, blue = RAISES if value > 0 else LOWERS
    return f"bold #{red:02x}{green:02x}{blue:02x}"
