"""Whether the Gaussian process's error bars are true: how often 90% intervals hold the coefficient.

    python tests/benchmarks/error_bars.py [--quick]

Judged on the 50 largest true coefficients and on 50 random ones of order at most 3, each counted
apart, the constant left out. The interval of each is that of the posterior, whether or not the fit
lists it among the coefficients that matter; how many of them it lists is counted too.
Samples are uniform; where said so, those that `explain` chose itself, held-out ones included.
Games: language-like ones that can be enumerated, with noise; sparse ones without hierarchy, which
the prior does not expect; and the recorded game of which every mask is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import bench
import games
import numpy as np

import spex_engine as spex
from spex_engine.estimators import spectral_gp

NINETY = 1.6448536269514722  # deviations to either side
LARGEST, RANDOM, MOST = 50, 50, 3


@dataclass(frozen=True)
class Plan:
    n_language: int = 20
    n_sparse: int = 10
    recorded_draws: int = 10
    recorded_calls: tuple[int, ...] = (250, 500, 1000)
    language_calls: int = 400
    sparse_calls: int = 1000


FULL = Plan()
QUICK = Plan(n_language=4, n_sparse=2, recorded_draws=1, recorded_calls=(250,), sparse_calls=400)
TINY = Plan(n_language=1, n_sparse=1, recorded_draws=0, language_calls=60, sparse_calls=60)


def run(rows: bench.Rows, plan: Plan, whole: games.Game | None) -> None:
    """``whole``: the recorded game of which every mask is known."""
    for seed in range(plan.n_language):
        game = games.language(10 + seed % 4, 200 + seed)
        _measure(rows, "language", game, plan.language_calls, seed)
        _measure(rows, "language, chosen masks", game, plan.language_calls, seed)
    for seed in range(plan.n_sparse):
        _measure(rows, "sparse", games.sparse(24, 200 + seed), plan.sparse_calls, seed)
    if whole is not None:
        for calls in plan.recorded_calls:
            for draw in range(plan.recorded_draws):
                _measure(rows, "recorded", whole, calls, draw)


def _measure(rows: bench.Rows, kind: str, game: games.Game, calls: int, draw: int) -> None:
    key = {"kind": kind, "game": game.name, "calls": calls, "draw": draw, "method": "gp"}
    rows.measure(key, lambda: counted(game, calls, draw, kind.endswith("chosen masks")))


def counted(game: games.Game, calls: int, draw: int, chosen: bool) -> bench.Row:
    masks, values = game.samples(calls, draw)
    if chosen:
        e = spex.explain(game.noisy(draw), game.n, calls, "gp", seed=draw)
        masks, values = e.masks, e.values
    posterior = spectral_gp.Posterior.of(masks, values)
    assert posterior is not None  # the values vary
    f = spectral_gp.fit(masks, values)
    truth = game.truth if game.truth is not None else game.exact()
    true = {s: coefficient for s, coefficient in truth.to_dict().items() if s}
    low = [s for size in range(1, MOST + 1) for s in combinations(range(game.n), size)]
    drawn = np.random.default_rng([draw, 6]).permutation(len(low))[:RANDOM]
    judged = {
        "largest": sorted(true, key=lambda s: -abs(true[s]))[:LARGEST],
        "random": [low[i] for i in drawn.tolist()],
    }
    row: bench.Row = {"r2": game.score(f)}
    for group, supports in judged.items():
        means, covariance = posterior.coefficients(supports)
        half = NINETY * np.sqrt(np.diagonal(covariance))
        errors = np.abs(means - [true.get(s, 0.0) for s in supports])
        row[group] = len(supports)
        row[f"{group}_covered"] = int(np.count_nonzero(errors <= half))
        row[f"{group}_listed"] = len(set(supports) & set(f.supports))
    return row


def main() -> None:
    given = bench.arguments("error_bars", __doc__)
    run(given.rows, QUICK if given.quick else FULL, games.enumerated(given.games))


if __name__ == "__main__":
    main()
