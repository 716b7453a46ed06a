"""The methods of Spex, behind the same face as the peers."""

from __future__ import annotations

import time
from functools import lru_cache

import numpy as np
from answers import Answer, Play, Timed

import spex_engine as spex
from spex_engine.estimators import ESTIMATORS, PLANS
from spex_engine.fourier import Floats, Masks

METHODS = tuple(m for m in ("linear", "gp", "proxyspex", "spex", "auto") if m in ESTIMATORS)
OF_SAMPLES = tuple(m for m in METHODS if m not in PLANS)  # those that fit samples one already has


def fitted(method: str, masks: Masks, values: Floats, seed: int) -> Answer:
    warm_up(method)
    started = time.perf_counter()
    f = spex.fit(masks, values, method=method, seed=seed)
    return Answer(f, time.perf_counter() - started, len(values))


def explained(method: str, game: Play, n: int, calls: int, seed: int) -> Answer:
    """Masks of its own choice, at most ``calls``. ValueError where these are too few."""
    warm_up(method)
    timed = Timed(game)
    started = time.perf_counter()
    e = spex.explain(timed, n, budget=calls, method=method, seed=seed)
    return Answer(e.fourier, time.perf_counter() - started - timed.seconds, timed.calls)


@lru_cache
def warm_up(method: str) -> None:
    """Load what the method loads at first use, as the peers' are."""
    if method in OF_SAMPLES:
        masks = np.random.default_rng(0).random((40, 4)) < 0.5
        spex.fit(masks, masks.sum(axis=1, dtype=np.float64), method=method)
