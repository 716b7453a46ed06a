"""SPEX beside the authors' SPEX and shapiq's: decoding sparse functions from noisy values.

    python tests/benchmarks/spex_peers.py [--quick] [--no-peers]

For each size: 50 terms of order 1 to 4 with coefficients of 0.5 to 1.5 and either sign, noise of
deviation 0.3 on every value, and the calls of SPEX (arXiv 2502.13870) with C = 3, t = 5 and the b
given. Each draws its own masks of the same function. ``seconds`` is decoding and regression alone:
masks and the game's values are there, and what is compiled at first use has been compiled.
``recall``: true terms found with more than 0.25; ``precision``: of the terms found with more than
0.25; ``r2``: against the function without noise, on masks none has seen. Spex also runs where the
peers would take hours (n = 1000), and each of its cells runs in a process of its own, so that
``peak_mib`` is that cell's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import bench
import games

from spex_engine import SparseFourier
from spex_engine.codes.bch import bch
from spex_engine.estimators import spex

FOUND = 0.25


@dataclass(frozen=True)
class Plan:
    sizes: tuple[tuple[int, int], ...]  # n, b
    n_terms: int = 50
    draws: int = 3
    most_for_peers: int = 256  # features


FULL = Plan(((64, 6), (128, 7), (256, 7), (1000, 8)))
QUICK = Plan(((32, 4), (1000, 8)), n_terms=15, draws=1)
TINY = Plan(((16, 3),), n_terms=5, draws=1)


def our_cell(n: int, b: int, n_terms: int, draw: int, soft: bool) -> bench.Row:
    game = games.sparse(n, draw, n_terms)
    small = spex.plan(n, n_calls(n, 3))  # what is loaded and built at first use, as for the peers
    small.fit(game.noisy(draw)(small.design.masks))
    started = time.perf_counter()
    plan = spex.plan(n, n_calls(n, b), seed=draw)
    designed = time.perf_counter()
    values = game.noisy(draw)(plan.design.masks)
    asked = time.perf_counter()
    f, _ = spex.Plan(plan.coded, plan.max_order, soft).fit(values)
    seconds = time.perf_counter() - asked
    design = {"calls": len(values), "design_seconds": designed - started}
    return {"seconds": seconds, **design, **judged(f, game)}


def n_calls(n: int, b: int) -> int:
    return 3 * 2**b * (bch(n, 5).n_parity + 1)


def judged(f: SparseFourier, game: games.Game) -> bench.Row:
    assert game.truth is not None
    true = set(game.truth.supports)
    found = {s for s, coefficient in f.to_dict().items() if s and abs(coefficient) > FOUND}
    return {
        "r2": game.score(f),
        "recall": len(found & true) / len(true),
        "precision": len(found & true) / len(found) if found else None,
        "terms": len(f.supports),
    }


def run(rows: bench.Rows, plan: Plan, with_peers: bool) -> None:
    for n, b in plan.sizes:
        for draw in range(plan.draws):
            for soft in (True, False):
                key = {"n": n, "b": b, "method": f"spex {_name(soft)}", "draw": draw}
                cell = n, b, plan.n_terms, draw, soft
                rows.measure(key, lambda cell=cell: bench.apart(our_cell, *cell))
    if with_peers:
        for n, b in plan.sizes:
            if n <= plan.most_for_peers:
                _run_peers(rows, plan, n, b)


def _run_peers(rows: bench.Rows, plan: Plan, n: int, b: int) -> None:
    import peers

    warm = False
    for draw in range(plan.draws):
        game = games.sparse(n, draw, plan.n_terms)

        def measured(method: str, draw: int = draw, game: games.Game = game) -> bench.Row:
            nonlocal warm
            if not warm:  # compiles, and builds the code of this length
                few = games.sparse(n, 99, n_terms=5).noisy(0)
                peers.authors_spex(few, n, 3, 0)
                peers.authors_spex(few, n, 3, 0, soft=False)
                warm = True
            play = game.noisy(draw)
            if method == "shapiq soft":
                answer = peers.shapiq_spex(play, n, n_calls(n, b) + 1, draw)
            else:
                answer = peers.authors_spex(play, n, b, draw, soft=method.endswith("soft"))
            return {"seconds": answer.seconds, "calls": answer.calls, **judged(answer.f, game)}

        for method in ("authors hard", "authors soft", "shapiq soft"):
            key = {"n": n, "b": b, "method": method, "draw": draw}
            rows.measure(key, lambda method=method, measured=measured: measured(method))


def _name(soft: bool) -> str:
    return "soft" if soft else "hard"


def main() -> None:
    given = bench.arguments("spex_peers", __doc__)
    run(given.rows, QUICK if given.quick else FULL, given.peers)


if __name__ == "__main__":
    main()
