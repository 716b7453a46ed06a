"""The Gaussian process's next masks: chosen by what they would tell, beside drawn at random.

    python tests/benchmarks/chosen_masks.py [--quick]

On the recorded games. Both begin with the same drawn samples and add a quarter as many at a time
from the rest of the pool, up to twice as many as at first, one of them the masks that
`estimators.next_masks` names, the other the next of the draw. R2 is that of the Gaussian process
on the 600 rows kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import bench
import games
import numpy as np

from spex_engine.estimators import spectral_gp
from spex_engine.estimators.next_masks import next_masks


@dataclass(frozen=True)
class Plan:
    first: tuple[int, ...] = (64, 128, 250)
    draws: int = 5
    n_games: int | None = None


FULL = Plan()
QUICK = Plan((64,), 1, 2)
TINY = Plan((20,), 1, 1)


def run(rows: bench.Rows, pools: list[games.Recorded], plan: Plan) -> None:
    for pool in pools[: plan.n_games]:
        for first in plan.first:
            for draw in range(plan.draws):
                for method in ("drawn", "chosen"):
                    key = {"game": pool.name, "calls": 2 * first, "draw": draw, "method": method}
                    rows.measure(key, lambda key=key, pool=pool, m=first: _row(key, pool, m))


def _row(key: bench.Row, pool: games.Recorded, first: int) -> bench.Row:
    order = np.random.default_rng(key["draw"]).permutation(pool.pool)
    if key["method"] == "drawn":
        known = order[: 2 * first]
    else:
        known, left = order[:first], order[first:]
        while len(known) < 2 * first:
            count = min(max(1, len(known) // 4), 2 * first - len(known))
            posterior = spectral_gp.Posterior.of(pool.masks[known], pool.values[known])
            assert posterior is not None  # the values vary
            masks = next_masks(posterior, pool.masks[left], count, pool.n)
            chosen = {mask.tobytes() for mask in masks}
            taken = np.array([mask.tobytes() in chosen for mask in pool.masks[left]])
            taken &= np.cumsum(taken) <= count  # the pool may hold a mask twice
            known, left = np.concatenate([known, left[taken]]), left[~taken]
    f = spectral_gp.fit(pool.masks[known], pool.values[known])
    return {"r2": pool.score(f)}


def main() -> None:
    given = bench.arguments("chosen_masks", __doc__)
    run(given.rows, games.recorded(given.games), QUICK if given.quick else FULL)


if __name__ == "__main__":
    main()
