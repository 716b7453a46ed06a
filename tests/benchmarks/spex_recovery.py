"""How fast SPEX decodes, and how much it finds, on sparse functions with noise.

Run as ``python tests/benchmarks/spex_recovery.py``. For each size: 50 terms of order 1 to 4 with
coefficients of size 0.5 to 1.5 and either sign, noise of standard deviation 0.3 on every value,
and the number of calls that SPEX (arXiv 2502.13870) makes with C = 3, t = 5 and the b given. The
time is that of the design and the fit, without the game's own. ``recall``: true terms found with
more than 0.25; ``false``: interactions of any size found that are not there. Medians of the draws.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import numpy as np

from spex_engine import SparseFourier, r2
from spex_engine.codes.bch import bch
from spex_engine.estimators import spex

NOISE = 0.3


def sparse_function(
    n: int, n_terms: int, max_order: int, rng: np.random.Generator
) -> SparseFourier:
    supports: set[tuple[int, ...]] = set()
    while len(supports) < n_terms:
        order = int(rng.integers(1, max_order + 1))
        supports.add(tuple(sorted(rng.choice(n, order, replace=False).tolist())))
    sizes = rng.uniform(0.5, 1.5, n_terms) * rng.choice([-1.0, 1.0], n_terms)
    return SparseFourier(n, "truth", tuple(sorted(supports)), sizes)


def measure(n: int, b: int, seed: int, soft: bool) -> tuple[float, float, float, float, int]:
    rng = np.random.default_rng(seed)
    truth = sparse_function(n, 50, 4, rng)
    budget = 3 * 2**b * (bch(n, 5).n_parity + 1)
    started = time.perf_counter()
    plan = spex.plan(n, budget, seed=seed)
    planned = time.perf_counter() - started
    masks = plan.design.masks
    values = truth.predict(masks) + NOISE * rng.normal(size=len(masks))
    started = time.perf_counter()
    f, _ = spex.Plan(plan.coded, plan.max_order, soft).fit(values)
    fitted = time.perf_counter() - started
    test = rng.random((1000, n)) < 0.5
    found = {s for s, coefficient in f.to_dict().items() if abs(coefficient) > 0.25}
    recall = len(found & set(truth.supports)) / len(truth.supports)
    false = len({s for s in f.supports if len(s) > 1} - set(truth.supports))
    return planned, fitted, r2(f, test, truth.predict(test)), recall, false


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--hard", action="store_true", help="hard decisions only")
    arguments = parser.parse_args()
    print("   n  b   calls  design s   fit s      R2  recall  false  peak MiB")
    for n, b in [(64, 6), (128, 7), (256, 7), (1000, 8)]:
        draws = [measure(n, b, seed, not arguments.hard) for seed in range(arguments.draws)]
        planned, fitted, score, recall, false = map(statistics.median, zip(*draws, strict=True))
        calls = 3 * 2**b * (bch(n, 5).n_parity + 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{n:4d} {b:2d} {calls:7d} {planned:9.2f} {fitted:7.2f} {score:7.5f} "
            f"{recall:7.2f} {false:6.0f} {peak:9.0f}"
        )


if __name__ == "__main__":
    main()
