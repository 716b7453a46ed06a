"""Seconds and memory of a fit against the number of features and of calls.

    python tests/benchmarks/scale.py [--quick]

Language-like games; every cell in a process of its own, so that ``peak_mib`` (interpreter and
libraries included) is that cell's. ``seconds`` is the fit alone, with the values there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import bench
import games
import ours

from spex_engine.estimators import PLANS

METHODS = tuple(method for method in ours.METHODS if method != "auto")


@dataclass(frozen=True)
class Plan:
    features: tuple[int, ...] = (64, 250, 1000)
    calls: tuple[int, ...] = (500, 1000, 2000, 4000)
    gp_features: int = 96  # where the Gaussian process has a bar of its own
    gp_calls: tuple[int, ...] = (500, 1000)
    gp_draws: int = 3
    beyond: tuple[int, int] = (64, 10_000)  # n, calls: more than the process takes at once
    methods: tuple[str, ...] = METHODS


FULL = Plan()
QUICK = Plan((64, 250), (500,), gp_calls=(500,), gp_draws=1, beyond=(64, 500))
TINY = Plan(
    (8,), (64,), gp_features=8, gp_calls=(64,), gp_draws=1, beyond=(8, 64), methods=("linear", "gp")
)


def cell(method: str, n: int, calls: int, draw: int) -> bench.Row:
    game = games.language(n, 300 + draw)
    if method in PLANS:
        try:
            plan = PLANS[method](n, calls, seed=draw)
        except ValueError as error:
            return {"seconds": None, "why": str(error)}
        values = game.noisy(draw)(plan.design.masks)
        started = time.perf_counter()
        f, _ = plan.fit(values)
        return {"seconds": time.perf_counter() - started, "r2": game.score(f)}
    answer = ours.fitted(method, *game.samples(calls, draw), draw)
    return {"seconds": answer.seconds, "r2": game.score(answer.f)}


def run(rows: bench.Rows, plan: Plan) -> None:
    cells = [(m, n, calls, 0) for n in plan.features for calls in plan.calls for m in plan.methods]
    cells += [(m, *plan.beyond, 0) for m in plan.methods]
    cells += [
        ("gp", plan.gp_features, calls, draw)
        for calls in plan.gp_calls
        for draw in range(plan.gp_draws)
    ]
    for method, n, calls, draw in cells:
        key = {"method": method, "n": n, "calls": calls, "draw": draw}
        values = method, n, calls, draw
        rows.measure(key, lambda values=values: bench.apart(cell, *values))


def main() -> None:
    given = bench.arguments("scale", __doc__)
    run(given.rows, QUICK if given.quick else FULL)


if __name__ == "__main__":
    main()
