"""The plots of docs/benchmarks.md, as SVG: R2 against calls, and seconds and memory against size.

Colours are those of Okabe and Ito, which people of all kinds of colour vision tell apart; ours are
solid lines with filled marks, the peers' broken ones with hollow marks, and every line has a mark
of its own.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib
from bench import Row
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from recorded import compared

STYLES = {  # colour, mark, ours
    "gp": ("#0072B2", "o", True),
    "proxyspex": ("#D55E00", "s", True),
    "auto": ("#000000", "D", True),
    "linear": ("#009E73", "^", True),
    "spex": ("#CC79A7", "v", True),
    "authors proxyspex": ("#D55E00", "s", False),
    "shapiq proxyspex": ("#E69F00", "X", False),
    "contextcite lasso": ("#56B4E9", "^", False),
    "ridge": ("#777777", "P", False),
}
LABELS = {
    "authors proxyspex": "ProxySPEX (authors)",
    "shapiq proxyspex": "ProxySPEX (shapiq)",
    "contextcite lasso": "LASSO (ContextCite)",
    "ridge": "RidgeCV (scikit-learn)",
}


def draw(results: dict[str, list[Row]], folder: Path) -> None:
    """Every plot that there are rows for, into ``folder``. Equal rows give equal files."""
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "spex", "font.size": 9, "svg.fonttype": "path"})
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in (("recorded", recorded), ("scale", scale)):
        if results.get(name):
            figure = plot(results[name])
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            pyplot.close(figure)


def recorded(rows: list[Row]) -> Figure:
    """R2 against calls, a panel a game: means of the first five draws."""
    rows = compared(rows)
    games = sorted({row["game"] for row in rows})
    columns = min(3, len(games))
    lines = -(-len(games) // columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(3.6 * columns, 2.9 * lines + 0.7),
        squeeze=False,
        layout="constrained",
    )
    for axis, game in zip(axes.flat, games, strict=False):
        of = [row for row in rows if row["game"] == game]
        for method in STYLES:
            points = _points([r for r in of if r["method"] == method], "calls", "r2")
            _line(axis, method, points)
        scores = [row["r2"] for row in of]
        axis.set_ylim(max(min(scores) - 0.02, 0.3), 1.0)
        _calls(axis, sorted({row["calls"] for row in of}))
        axis.set_title(game, fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("R² on unseen masks")
    for axis in axes.flat[len(games) :]:
        axis.axis("off")
    _legend(figure, axes.flat[0])
    return figure


def scale(rows: list[Row]) -> Figure:
    """Seconds and memory: against features with most calls, and against calls with most features.

    The Gaussian process's own cells, at a number of features that no other method has, are left to
    the table.
    """
    shared = {(r["n"], r["calls"]) for r in rows if r["method"] == "linear"}
    rows = [r for r in rows if (r["n"], r["calls"]) in shared and r["seconds"] is not None]
    sizes = sorted({r["n"] for r in rows})
    grid = [r for r in rows if r["calls"] in {s["calls"] for s in rows if s["n"] == sizes[-1]}]
    calls = max(r["calls"] for r in grid)
    figure, axes = pyplot.subplots(2, 2, figsize=(8.4, 6.2), sharey="row", layout="constrained")
    for line, (value, name) in enumerate((("seconds", "fit, s"), ("peak_mib", "memory, MiB"))):
        for method in STYLES:
            of = [r for r in grid if r["method"] == method]
            by_n = _points([r for r in of if r["calls"] == calls], "n", value)
            by_calls = _points([r for r in of if r["n"] == sizes[-1]], "calls", value)
            _line(axes[line, 0], method, by_n)
            _line(axes[line, 1], method, by_calls)
        axes[line, 0].set_ylabel(name)
        for axis in axes[line]:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1,) if value == "seconds" else (1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        _calls(axes[line, 0], sizes, "features")
        _calls(axes[line, 1], sorted({r["calls"] for r in grid}))
    axes[0, 0].set_title(f"{calls:,} calls", fontsize=9)
    axes[0, 1].set_title(f"{sizes[-1]:,} features", fontsize=9)
    _legend(figure, axes[0, 1])
    return figure


def _points(rows: list[Row], across: str, up: str) -> list[tuple[float, float]]:
    by: dict[float, list[float]] = {}
    for row in rows:
        by.setdefault(row[across], []).append(row[up])
    return [(x, statistics.fmean(values)) for x, values in sorted(by.items())]


def _line(axis: Axes, method: str, points: list[tuple[float, float]]) -> None:
    if not points:
        return
    colour, mark, ours = STYLES[method]
    axis.plot(
        *zip(*points, strict=True),
        color=colour,
        marker=mark,
        markersize=5,
        markerfacecolor=colour if ours else "white",
        linestyle="-" if ours else "--",
        linewidth=1.6 if ours else 1.1,
        label=LABELS.get(method, f"{method} (Spex)"),
    )


def _calls(axis: Axes, ticks: list[int], name: str = "calls") -> None:
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel(name)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=4, frameon=False)
