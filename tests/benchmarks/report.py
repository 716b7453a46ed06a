"""From the rows the benchmarks kept to the tables and plots of docs/benchmarks.md.

    python tests/benchmarks/report.py [--results FOLDER] [--print]

Measures nothing. Each table stands in the document between its two markers and is replaced there;
a benchmark without rows leaves its table as it is. With ``--print`` the tables go to the terminal,
and neither document nor plots are touched.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import bars
import bench
import model_bars
from bench import Row
from recorded import compared

DOCUMENT = bench.REPO / "docs" / "benchmarks.md"
PLOTS = bench.REPO / "docs" / "benchmarks"

Table = Callable[[list[Row]], str]


# ---- the tables --------------------------------------------------------------------------------


def spex_peers(rows: list[Row]) -> str:
    """Medians of the draws; how many times the seconds of Spex with the same decoding."""
    lines = []
    for n, b, method in _distinct(rows, "n", "b", "method"):
        of = _where(rows, n=n, b=b, method=method)
        seconds = _median(of, "seconds")
        ours = _where(rows, n=n, b=b, method=f"spex {method.split()[-1]}")
        ratio = f"{seconds / _median(ours, 'seconds'):.0f}x" if ours else ""
        lines.append(
            [
                n, b, _median(of, "calls"), method, f"{seconds:.3g}",
                "" if method.startswith("spex") else ratio,
                f"{_median(of, 'r2'):.5f}", f"{_median(of, 'recall'):.2f}",
                f"{_median(of, 'precision'):.2f}",
                f"{max(row['peak_mib'] for row in of):.0f}" if "peak_mib" in of[0] else "",
            ]
        )  # fmt: skip
    lines.sort(key=lambda line: (line[0], line[1]))
    figures = ("seconds", "times ours", "R²", "recall", "precision", "peak MiB")
    return _markdown(["n", "b", "calls", "method", *figures], lines)


def recorded_r2(rows: list[Row]) -> str:
    return _pivot(_ordered(compared(rows)), ("game", "calls"), "r2", statistics.fmean, "{:.3f}")


def recorded_seconds(rows: list[Row]) -> str:
    timed = [row for row in _ordered(compared(rows)) if row["timed"]]
    return _pivot(timed, ("game", "calls"), "seconds", statistics.median, "{:.3g}")


def gp_and_ridge(rows: list[Row]) -> str:
    """Mean R2 of the Gaussian process less that of ridge regression, on the same draws."""
    rows = [row for row in rows if row["method"] in ("gp", "ridge")]
    lines: dict[str, list[str]] = {}
    calls = sorted({row["calls"] for row in rows})
    for game in sorted({row["game"] for row in rows}):
        gains = [bars.mean_gain(_where(rows, game=game, calls=m), "gp", "ridge") for m in calls]
        lines[game] = ["" if gain is None else f"{gain:+.3f}" for gain in gains]
    return _markdown(["game", *calls], [[game, *cells] for game, cells in lines.items()])


def synthetic_r2(rows: list[Row]) -> str:
    return _pivot(_with(rows, "game"), ("game", "calls"), "r2", statistics.median, "{:.3f}")


def synthetic_seconds(rows: list[Row]) -> str:
    return _pivot(_with(rows, "game"), ("game", "calls"), "seconds", statistics.median, "{:.3g}")


def synthetic_recall(rows: list[Row]) -> str:
    known = _with(rows, "recall")
    return _pivot(known, ("game", "calls"), "recall", statistics.median, "{:.2f}")


def indices_k_sii(rows: list[Row]) -> str:
    of = _with(rows, "indices")
    return _pivot(of, ("indices", "calls"), "k-SII", statistics.median, "{:.3f}")


def indices_fbii(rows: list[Row]) -> str:
    of = _with(rows, "FBII")
    return _pivot(of, ("indices", "calls"), "FBII", statistics.median, "{:.3f}")


def error_bars(rows: list[Row]) -> str:
    lines = []
    for kind, calls in _distinct(rows, "kind", "calls"):
        of = _where(rows, kind=kind, calls=calls)
        shares = []
        for group in ("largest", "random"):
            each = [row[f"{group}_covered"] / row[group] for row in of]
            error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else math.nan
            shares.append(f"{100 * statistics.fmean(each):.1f}% ± {100 * error:.1f}")
            shares.append(f"{100 * bars.share(of, f'{group}_listed', group):.1f}%")
        lines.append([kind, len(of), calls, *shares, f"{_median(of, 'r2'):.3f}"])
    shares_of = ("largest covered", "largest listed", "random covered", "random listed")
    return _markdown(["games", "runs", "calls", *shares_of, "R²"], lines)


def chosen_masks(rows: list[Row]) -> str:
    """Mean R2 with chosen and with drawn masks, by calls, and by how much the first is better."""
    calls = sorted({row["calls"] for row in rows})
    lines: list[list[object]] = []
    for game in sorted({row["game"] for row in rows}):
        line: list[object] = [game]
        for m in calls:
            of = _where(rows, game=game, calls=m)
            gain = bars.mean_gain(of, "chosen", "drawn")
            mean = statistics.fmean(row["r2"] for row in _where(of, method="chosen"))
            line.append(f"{mean:.3f} ({gain:+.3f})" if gain is not None else "")
        lines.append(line)
    return _markdown(["game", *(f"{m:,} calls" for m in calls)], lines)


def scale(rows: list[Row]) -> str:
    def cell(of: list[Row]) -> str:
        if of[0]["seconds"] is None:
            return "budget too small"
        return f"{_median(of, 'seconds'):.2g} s, {max(r['peak_mib'] for r in of):.0f} MiB"

    methods = _order(rows)
    lines = [
        [n, calls, *(_cell(_where(rows, n=n, calls=calls, method=m), cell) for m in methods)]
        for n, calls in sorted(_distinct(rows, "n", "calls"))
    ]
    return _markdown(["n", "calls", *methods], lines)


def methods(rows: list[Row]) -> str:
    def cell(of: list[Row]) -> str:
        if of[0]["r2"] is None:
            return "budget too small" if "budget" in of[0]["why"] else "failed"
        return f"{_median(of, 'r2'):.2f} ({_median(of, 'seconds'):.1f})"

    names = _order(rows)
    lines = [
        [g, calls, *(_cell(_where(rows, game=g, calls=calls, method=m), cell) for m in names)]
        for g, calls in _distinct(rows, "game", "calls")
    ]
    return _markdown(["game", "calls", *names], lines)


def endpoint(rows: list[Row]) -> str:
    """Medians of the runs, ours and the peer's, and the worst of what may not happen at all."""
    lines = []
    for cap, faults, who in _distinct(rows, "cap", "faults", "who"):
        of = _where(rows, cap=cap, faults=faults, who=who)
        shown = [f"{_median(of, 'seconds'):.2f}", f"{_median(of, 'share'):.3f}"]
        counts = [sum(row[key] for row in of) for key in ("refused", "lost", "again")]
        lines.append([cap, f"{100 * faults:.0f}%", who, len(of), *shown, *counts])
    lines.sort(key=lambda line: (line[1], line[0]))
    figures = ("runs", "seconds", "share of the ideal", "refused", "lost", "asked again")
    return _markdown(["in flight at most", "faults", "who", *figures], lines)


def local_backend(rows: list[Row]) -> str:
    figures = (
        "ours, /s",
        "ContextCite's way, /s",
        "ratio",
        "tokens a mask (of)",
        "forwarded",
        "apart",
    )
    return _markdown(
        ["masks", "threads", *figures],
        [
            [
                row["case"], row["threads"], f"{row['ours']:.1f}", f"{row['peer']:.1f}",
                f"{row['ratio']:.2f}x", f"{row['tokens']:.0f} ({row['whole']:.0f})",
                f"{100 * row['forwarded']:.0f}%", f"{row['apart']:.0e}",
            ]
            for row in rows
        ],
    )  # fmt: skip


def local_memory(rows: list[Row]) -> str:
    keys = ("vocabulary", "masks", "model_mib", "loaded_mib", "peak_mib", "beyond_mib")
    figures = ("vocabulary", "masks", "model", "before", "most", "most less the model")
    return _markdown(figures, [[round(row[key]) for key in keys] for row in rows])


def store_kill(rows: list[Row]) -> str:
    keys = list(rows[0])
    return _markdown(keys, [[row[key] for key in keys] for row in rows])


TABLES: dict[str, dict[str, Table]] = {  # of each results file
    "spex_peers": {"spex-peers": spex_peers},
    "recorded": {
        "recorded-r2": recorded_r2,
        "recorded-seconds": recorded_seconds,
        "gp-and-ridge": gp_and_ridge,
    },
    "synthetic": {
        "synthetic-r2": synthetic_r2,
        "synthetic-seconds": synthetic_seconds,
        "synthetic-recall": synthetic_recall,
        "indices-k-sii": indices_k_sii,
        "indices-fbii": indices_fbii,
    },
    "error_bars": {"error-bars": error_bars},
    "chosen_masks": {"chosen-masks": chosen_masks},
    "scale": {"scale": scale},
    "methods": {"methods": methods},
    "local_backend": {"local-backend": local_backend},
    "local_memory": {"local-memory": local_memory},
    "endpoint": {"endpoint": endpoint},
    "store_kill": {"store-kill": store_kill},
}


def tables(results: dict[str, list[Row]]) -> dict[str, str]:
    """Every table that there are rows for, and the bars, by the name of its markers."""
    found = {
        marker: table(results[name])
        for name, of in TABLES.items()
        if results.get(name)
        for marker, table in of.items()
    }
    for marker, judge in (("bars", bars.judge), ("model-bars", model_bars.judge)):
        judged = [
            [bar.what, bar.demanded, bar.measured, "yes" if bar.met else "**no**"]
            for bar in judge(results)
        ]
        if judged:
            found[marker] = _markdown(["what", "bar", "measured", "met"], judged)
    return found


def into(text: str, found: dict[str, str]) -> str:
    """The document with these tables between their markers. ValueError where markers lack."""
    for marker, table in found.items():
        begin, end = f"<!-- begin {marker} -->\n", f"<!-- end {marker} -->"
        if begin not in text or end not in text:
            raise ValueError(f"{DOCUMENT.name}: no markers for table {marker!r}")
        head, rest = text.split(begin, 1)
        text = head + begin + table + end + rest.split(end, 1)[1]
    return text


# ---- how they are made -------------------------------------------------------------------------

METHODS = ("linear", "gp", "proxyspex", "spex", "auto")  # ours, first and in this order


def _order(rows: Iterable[Row]) -> list[str]:
    names = list(dict.fromkeys(row["method"] for row in rows))
    return sorted(names, key=lambda m: METHODS.index(m) if m in METHODS else len(METHODS))


def _pivot(
    rows: list[Row],
    lines: tuple[str, str],
    value: str,
    middle: Callable[[Sequence[float]], float],
    form: str,
) -> str:
    """Lines by two keys, a column a method; "–" where a method could not run at all."""

    def cell(of: list[Row]) -> str:
        known = [row[value] for row in of if row.get(value) is not None]
        return form.format(middle(known)) if known else "–"

    names, shown = _order(rows), []
    for at in _distinct(rows, *lines):
        of = _where(rows, **dict(zip(lines, at, strict=True)))
        shown.append([*at, *(_cell(_where(of, method=name), cell) for name in names)])
    return _markdown([*lines, *names], shown)


def _ordered(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["game"], row["calls"]))


def _cell(rows: list[Row], cell: Callable[[list[Row]], str]) -> str:
    return cell(rows) if rows else ""


def _where(rows: Iterable[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def _with(rows: Iterable[Row], key: str) -> list[Row]:
    return [row for row in rows if key in row]


def _distinct(rows: Iterable[Row], *keys: str) -> list[tuple]:
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))


def _median(rows: Iterable[Row], key: str) -> float:
    known = [row[key] for row in rows if row[key] is not None]
    return statistics.median(known) if known else math.nan


def _markdown(head: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    rule = "|" + "---|" * len(head)
    return "\n".join([_line(head), rule, *(_line(line) for line in lines)]) + "\n"


def _line(cells: Sequence[object]) -> str:
    shown = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
    return re.sub(r"  +", " ", f"| {' | '.join(shown)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables and plots of docs/benchmarks.md")
    parser.add_argument("--results", type=Path, default=bench.RESULTS, metavar="FOLDER")
    parser.add_argument("--print", action="store_true", help="to the terminal")
    given = parser.parse_args()
    results = {name: bench.read(given.results / f"{name}.jsonl") for name in TABLES}
    found = tables(results)
    if given.print:
        print("\n".join(f"{marker}\n\n{table}" for marker, table in found.items()))
        return
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(into(text, found), encoding="utf-8")
    import plots

    plots.draw(results, PLOTS)


if __name__ == "__main__":
    main()
