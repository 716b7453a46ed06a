"""Every method on the recorded games: R2 on the last 600 rows, and seconds, by the calls spent.

    python tests/benchmarks/recorded.py [--quick] [--import-authors FILE]

Draw k samples the rows ``default_rng(k).permutation(pool)[:calls]``; all methods get the same ones.
The Gaussian process and ridge regression meet on more draws, because a small difference is to be
told from none. ContextCite's LASSO penalty is meant for logits: values that are none (cosines) are
given to it at deviation 1. A row is ``timed`` where it was measured here, on a pinned core; rows of
the authors' ProxySPEX can be imported for their R2, and are timed for the first draw in any case.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import bench
import games
import ours
from answers import Answer

from spex_engine import SparseFourier
from spex_engine.fourier import Floats, Masks

AUTHORS = "authors proxyspex"
PEERS = (AUTHORS, "shapiq proxyspex", "contextcite lasso", "ridge")

Fit = Callable[[Masks, Floats, int], Answer]  # of samples and a seed


@dataclass(frozen=True)
class Plan:
    calls: tuple[int, ...] = (125, 250, 500, 1000, 2000)
    draws: int = 5
    ridge_calls: tuple[int, ...] = (32, 64, 125, 250, 500)  # gp beside ridge, on more draws
    ridge_draws: int = 20
    timed_calls: tuple[int, ...] = (500, 1000)  # the authors' ProxySPEX on the first draw
    shapiq_draws: int = 3
    authors_draws: int = 5
    n_games: int | None = None


FULL = Plan()
QUICK = Plan((125,), 1, (64,), 2, (125,), 1, n_games=2)
TINY = Plan((40,), 1, (40,), 2, (), 1, n_games=1)


def run(rows: bench.Rows, pools: list[games.Recorded], plan: Plan, with_peers: bool) -> None:
    fits: dict[str, Fit] = {m: partial(ours.fitted, m) for m in ours.OF_SAMPLES}
    if with_peers:
        fits |= _peers()
    for pool in pools[: plan.n_games]:
        for calls in sorted({*plan.calls, *plan.ridge_calls}):
            if calls > pool.pool:
                continue
            for draw in range(plan.ridge_draws if calls < pool.pool else 1):
                for method, fit in fits.items():
                    if _wanted(plan, method, calls, draw):
                        key = {"game": pool.name, "calls": calls, "draw": draw, "method": method}
                        if method == AUTHORS and draw == 0 and calls in plan.timed_calls:
                            key["timed"] = True
                        rows.measure(key, lambda key=key, fit=fit, pool=pool: _row(key, fit, pool))


def _wanted(plan: Plan, method: str, calls: int, draw: int) -> bool:
    if method in ("gp", "ridge") and calls in plan.ridge_calls:
        return True
    slow = {AUTHORS: plan.authors_draws, "shapiq proxyspex": plan.shapiq_draws}
    return calls in plan.calls and draw < slow.get(method, plan.draws)


def _row(key: bench.Row, fit: Fit, pool: games.Recorded) -> bench.Row:
    masks, values = pool.samples(key["calls"], key["draw"])
    scale = 1.0
    if key["method"] == "contextcite lasso" and not pool.is_logit:
        scale = float(values.std())
    answer = fit(masks, values / scale, key["draw"])
    f = answer.f
    if scale != 1.0:
        f = SparseFourier(f.n_features, f.method, f.supports, f.coefficients * scale)
    found = {"r2": pool.score(f), "seconds": answer.seconds, "terms": len(f.supports)}
    return {**found, "timed": True}


def _peers() -> dict[str, Fit]:
    import peers

    found: tuple[Fit, ...] = (
        peers.authors_proxyspex,
        peers.shapiq_proxyspex,
        lambda masks, values, _: peers.contextcite_lasso(masks, values),
        lambda masks, values, _: peers.ridge(masks, values),
    )
    return dict(zip(PEERS, found, strict=True))


def compared(rows: list[bench.Row]) -> list[bench.Row]:
    """Of the rows, those of the calls that all methods got, and of the first draws."""
    calls = {row["calls"] for row in rows if row["method"] == "linear"}
    return [row for row in rows if row["calls"] in calls and row["draw"] < FULL.draws]


def import_authors(rows: bench.Rows, path: Path) -> None:
    """Rows of the authors' ProxySPEX measured elsewhere: game, m, k, r2, sec, terms."""
    have = {(r["game"], r["calls"], r["draw"]) for r in rows.rows if r["method"] == AUTHORS}
    for row in bench.read(path):
        key = {"game": row["game"], "calls": row["m"], "draw": row["k"], "method": AUTHORS}
        if (row["game"], row["m"], row["k"]) not in have:
            found = {"r2": row["r2"], "seconds": row["sec"], "terms": row["terms"]}
            rows.add({**key, **found, "timed": False})


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--import-authors", type=Path, metavar="FILE")
        parser.add_argument("--authors-draws", type=int, default=FULL.authors_draws, metavar="N")

    given = bench.arguments("recorded", __doc__, more)
    if given.import_authors:
        import_authors(given.rows, given.import_authors)
    pools = games.recorded(given.games)
    plan = QUICK if given.quick else replace(FULL, authors_draws=given.authors_draws)
    run(given.rows, pools, plan, given.peers)


if __name__ == "__main__":
    main()
