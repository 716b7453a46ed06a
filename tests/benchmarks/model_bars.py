"""The bars that models and endpoints were built against (issue 4), judged on the benchmarks' rows.

Knows rows and bars; a bar without rows is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bars import Bar
from bench import Row

_FASTER = {"half preamble": 3.0, "no preamble": 1.6, "near-full": 2.0}  # than ContextCite's way
_FORWARDED = 0.85
_EQUAL = 1e-4
_BEYOND = 1024  # MiB
_SHARE = 0.9


def judge(results: dict[str, list[Row]]) -> list[Bar]:
    """All bars that there are rows for."""
    return [
        *_local(results.get("local_backend", [])),
        *_memory(results.get("local_memory", [])),
        *_endpoint(results.get("endpoint", [])),
        *_kills(results.get("store_kill", [])),
    ]


def _local(rows: list[Row]) -> Iterator[Bar]:
    for row in rows:
        what = f"local, {row['case']}, {_threads(row)}"
        least = _FASTER.get(row["case"])
        if least is not None:
            shown = f"{row['ratio']:.2f}x ({row['ours']:.1f}/s beside {row['peer']:.1f}/s)"
            yield Bar(f"{what}: evaluations", f"{least:g}x", shown, row["ratio"] >= least)
        shown = f"{100 * row['forwarded']:.0f}%"
        yield Bar(
            f"{what}: tokens forwarded",
            "85% of the plain pass",
            shown,
            row["forwarded"] >= _FORWARDED,
        )
        yield Bar(
            f"{what}: values", "equal within 1e-4", f"{row['apart']:.0e}", row["apart"] <= _EQUAL
        )


def _memory(rows: list[Row]) -> Iterator[Bar]:
    for row in rows:
        what = f"vocabulary {row['vocabulary']:,}, {row['case']}, {row['masks']} masks: memory"
        shown = f"{row['beyond_mib']:.0f} MiB more"
        yield Bar(what, "the model and 1,024 MiB", shown, row["beyond_mib"] <= _BEYOND)


def _endpoint(rows: list[Row]) -> Iterator[Bar]:
    ours = [row for row in rows if row["who"] == "spex"]
    clean = [row["share"] for row in ours if row["cap"] == row["allowed"] and not row["faults"]]
    if clean:
        share = statistics.median(clean)
        shown = f"{100 * share:.1f}% (median of {len(clean)}: {_percents(clean)})"
        yield Bar("endpoint: throughput", "90% of the ideal", shown, share >= _SHARE)
    if ours:
        lost, again = (sum(row[key] for row in ours) for key in ("lost", "again"))
        shown = f"{lost} lost, {again} asked again, in {len(ours)} runs"
        yield Bar("endpoint, with 5% faults too: values", "nothing lost", shown, not lost + again)


def _kills(rows: list[Row]) -> Iterator[Bar]:
    if rows:
        keys = ("acknowledged", "lost", "wrong", "paid twice", "missing")
        total = {key: sum(row[key] for row in rows) for key in keys}
        shown = ", ".join(f"{value:,} {key}" for key, value in total.items())
        met = not any(total[key] for key in keys[1:])
        yield Bar(f"{len(rows)} times kill -9", "nothing lost or paid twice", shown, met)


def _threads(row: Row) -> str:
    return f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"


def _percents(shares: list[float]) -> str:
    return ", ".join(f"{100 * share:.1f}" for share in sorted(shares))
