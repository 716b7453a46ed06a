"""The bars that the engine was built against (issue 3), judged on the rows of the benchmarks.

Knows rows and bars. A bar whose rows are not all there yet is judged on those that are, and says on
how many; one without any is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bench import Row

AUTHORS = "authors proxyspex"
UNPREDICTABLE = 0.1  # R2: where no method reaches it, there is nothing to choose between
SINGLE = ("linear", "gp", "proxyspex", "spex")
_ALL_BUT_ONE = "all games but one"
_FEWER_CALLS = (  # the Gaussian process's, the authors' ProxySPEX's, and what is demanded
    (500, 1000, _ALL_BUT_ONE),
    (1000, 2000, "all games"),
    (250, 1000, "the aim: all games"),
    (500, 2000, "the aim: all games"),
)
SPEX_SECONDS = {64: 1.5, 128: 3.0, 256: 5.0, 1000: 10.0}


@dataclass(frozen=True, slots=True)
class Bar:
    what: str
    demanded: str
    measured: str
    met: bool


def judge(results: dict[str, list[Row]]) -> list[Bar]:
    """All bars that there are rows for."""
    recorded, synthetic = results.get("recorded", []), results.get("synthetic", [])
    return [
        *_spex(results.get("spex_peers", [])),
        *_proxyspex(recorded),
        *_gp(recorded),
        *_ridge(recorded),
        *_gp_seconds(results.get("scale", [])),
        *_error_bars(results.get("error_bars", [])),
        *_auto([*recorded, *synthetic, *results.get("methods", [])]),
        *_scale(results.get("scale", [])),
    ]


def mean_gain(rows: list[Row], method: str, other: str) -> float | None:
    """Mean R2 of one method less the other's, on the draws both have; None where there is none."""
    mine, theirs = _by_draw(rows, method), _by_draw(rows, other)
    both = mine.keys() & theirs.keys()
    return statistics.fmean(mine[k] - theirs[k] for k in both) if both else None


def share(rows: Iterable[Row], part: str, whole: str) -> float:
    rows = list(rows)
    return sum(row[part] for row in rows) / sum(row[whole] for row in rows)


def _spex(rows: list[Row]) -> Iterator[Bar]:
    for n, b in dict.fromkeys((row["n"], row["b"]) for row in rows):
        if n not in SPEX_SECONDS:
            continue
        of = [row for row in rows if (row["n"], row["b"]) == (n, b)]
        ours = _median(of, "spex soft", "seconds")
        theirs = _median(of, "authors soft", "seconds")
        name = f"SPEX soft, n={n}, b={b}"
        most = SPEX_SECONDS[n]
        if ours is None:
            continue
        if theirs is None:
            peak = max(r["peak_mib"] for r in of if r["method"] == "spex soft")
            shown = f"{ours:.2f} s, {peak:.0f} MiB"
            yield Bar(name, f"{most} s, 2,048 MiB", shown, ours <= most and peak <= 2048)
            continue
        shown = f"{theirs / ours:.0f}x ({theirs:.1f} s / {ours:.2f} s)"
        met = theirs >= 100 * ours and ours <= most
        yield Bar(f"{name}: speed", f"100x the authors', at most {most} s", shown, met)
        for figure in ("recall", "r2"):
            mine, other = _median(of, "spex soft", figure), _median(of, "authors soft", figure)
            assert mine is not None
            assert other is not None
            shown = f"{mine:.5f} / {other:.5f}"
            yield Bar(f"{name}: {figure}", "at least the authors'", shown, mine >= other)


def _proxyspex(rows: list[Row]) -> Iterator[Bar]:
    cells = list(_cells(rows))
    gains = [g for _, of in cells if (g := mean_gain(of, "proxyspex", AUTHORS)) is not None]
    if not gains:
        return
    won = sum(gain >= 0 for gain in gains)
    shown = f"{won} of {len(gains)} games and budgets, least {min(gains):+.3f}"
    yield Bar("ProxySPEX: R²", "at least the authors' everywhere", shown, won == len(gains))
    ratios = []
    for _, of in cells:
        timed = [row for row in of if row["timed"]]
        ours, theirs = _median(timed, "proxyspex", "seconds"), _median(timed, AUTHORS, "seconds")
        if ours is not None and theirs is not None:
            ratios.append(theirs / ours)
    if ratios:
        shown = f"{min(ratios):.0f}x to {max(ratios):.0f}x"
        yield Bar("ProxySPEX: speed", "10x the authors'", shown, min(ratios) >= 10)


def _gp(rows: list[Row]) -> Iterator[Bar]:
    cells = dict(_cells(rows))
    same = {at: g for at, of in cells.items() if (g := mean_gain(of, "gp", AUTHORS)) is not None}
    if same:
        worst = min(same, key=lambda at: same[at])
        shown = f"{sum(g > 0 for g in same.values())} of {len(same)}, least {same[worst]:+.3f}"
        met = same[worst] > 0
        yield Bar("GP: R² at the same calls", "above the authors' ProxySPEX", shown, met)
    for calls, theirs, demanded in _FEWER_CALLS:
        gains = []
        for game in dict.fromkeys(game for game, _ in cells):
            mine = _by_draw(cells.get((game, calls), []), "gp")
            other = _by_draw(cells.get((game, theirs), []), AUTHORS)
            mine = {k: score for k, score in mine.items() if k < 5}
            if mine and other:
                gains.append(statistics.fmean(mine.values()) - statistics.fmean(other.values()))
        if gains:
            won = sum(gain >= 0 for gain in gains)
            shown = f"{won} of {len(gains)}, least {min(gains):+.3f}"
            what = f"GP with {calls} calls at least the authors' ProxySPEX with {theirs:,}"
            lost = len(gains) - won
            yield Bar(what, demanded, shown, lost <= (1 if demanded == _ALL_BUT_ONE else 0))


def _ridge(rows: list[Row]) -> Iterator[Bar]:
    for many in (True, False):
        gains = [
            gain
            for (game, calls), of in _cells(rows)
            if (calls >= 2 * _n_features(game)) == many
            and (gain := mean_gain(of, "gp", "ridge")) is not None
        ]
        if gains:
            least = -0.01 if many else -0.03
            what = f"GP less ridge, {'m >= 2n' if many else 'm < 2n'}"
            met = min(gains) >= least
            yield Bar(what, f"{least} at least", f"least {min(gains):+.3f}", met)


def _gp_seconds(rows: list[Row]) -> Iterator[Bar]:
    for calls, most in ((500, 1.0), (1000, 4.0)):
        of = [row for row in rows if (row["n"], row["calls"]) == (96, calls)]
        if (seconds := _median(of, "gp", "seconds")) is not None:
            shown = f"{seconds:.2f} s"
            yield Bar(f"GP fit, n=96, {calls} calls", f"{most} s", shown, seconds <= most)


def _error_bars(rows: list[Row]) -> Iterator[Bar]:
    for kind, calls in dict.fromkeys((row["kind"], row["calls"]) for row in rows):
        if kind == "sparse":  # what the prior does not claim to fit: in the table, and no bar
            continue
        of = [row for row in rows if (row["kind"], row["calls"]) == (kind, calls)]
        for group in ("largest", "random"):
            covered = share(of, f"{group}_covered", group)
            what = f"GP 90% intervals, {kind}, {calls} calls, {group}"
            yield Bar(what, "80-97%", f"{100 * covered:.1f}%", 0.80 <= covered <= 0.97)


def _auto(rows: list[Row]) -> Iterator[Bar]:
    gaps: dict[tuple[str, int], float] = {}
    for at, of in _cells([row for row in rows if "game" in row]):
        auto = _by_draw(of, "auto")
        single = [scores for method in SINGLE if (scores := _by_draw(of, method))]
        alike = [s for s in single if auto.keys() <= s.keys()]
        if auto and alike:
            best = max(statistics.fmean(s[k] for k in auto) for s in alike)
            if best >= UNPREDICTABLE:
                gaps[at] = statistics.fmean(auto.values()) - best
    if gaps:
        worst = min(gaps, key=lambda at: gaps[at])
        within = sum(gap >= -0.02 for gap in gaps.values())
        shown = f"{within} of {len(gaps)}, least {gaps[worst]:+.3f} ({worst[0]}, {worst[1]} calls)"
        yield Bar(
            "auto beside the best single method", "within 0.02 R²", shown, gaps[worst] >= -0.02
        )


def _scale(rows: list[Row]) -> Iterator[Bar]:
    for row in rows:
        if (row["n"], row["calls"]) == (1000, 4000) and row["seconds"] is not None:
            shown = f"{row['seconds']:.1f} s, {row['peak_mib']:.0f} MiB"
            met = row["seconds"] <= 60 and row["peak_mib"] <= 4096
            yield Bar(f"{row['method']}, n=1000, 4,000 calls", "60 s, 4,096 MiB", shown, met)


def _cells(rows: list[Row]) -> Iterator[tuple[tuple[str, int], list[Row]]]:
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["game"], row["calls"]), []).append(row)
    yield from found.items()


def _by_draw(rows: list[Row], method: str) -> dict[int, float]:
    return {r["draw"]: r["r2"] for r in rows if r["method"] == method and r["r2"] is not None}


def _median(rows: list[Row], method: str, key: str) -> float | None:
    known = [r[key] for r in rows if r["method"] == method and r.get(key) is not None]
    return statistics.median(known) if known else None


def _n_features(game: str) -> int:
    return int(game.rpartition("_n")[2])
