"""The peers, all behind one face: what they found as a SparseFourier, and the seconds it took.

One function a peer. Seconds are of the method alone: the game's own are taken out, and what is
compiled or cached at first use is warmed up by the caller with a smaller task. Packages are loaded
where they are used. Peers draw from numpy's global state, so that is seeded before each.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from answers import Answer, Play, Timed

from spex_engine import SparseFourier
from spex_engine.fourier import Floats, Masks, Support

# ---- spectralexplain: the authors' SPEX and ProxySPEX ------------------------------------------


def authors_spex(game: Play, n: int, b: int, seed: int, soft: bool = True, t: int = 5) -> Answer:
    """Its own masks, 3 groups of 2^b by BCH delays; the seconds are those of `support_recovery`.

    Drawing masks and transforming values is not counted.
    """
    from spectralexplain import sampling_strategy, support_recovery

    np.random.seed(seed)
    timed = Timed(game)
    signal, _ = sampling_strategy(timed, b, b, n, sample_save_dir=None, t=t)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = support_recovery("soft" if soft else "hard", signal, b, t=t)
    seconds = time.perf_counter() - started
    terms = {_members(key): float(np.real(value)) for key, value in found.items()}
    return Answer(_fourier(n, "authors-spex", terms), seconds, timed.calls)


def authors_proxyspex(masks: Masks, values: Floats, seed: int) -> Answer:
    from spectralexplain.utils import proxy_spex

    np.random.seed(seed)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = proxy_spex((masks.astype(int), values), max_order=5)
    seconds = time.perf_counter() - started
    terms = {_members(key): float(value) for key, value in found.items()}
    return Answer(_fourier(masks.shape[1], "authors-proxyspex", terms), seconds, len(values))


# ---- shapiq ------------------------------------------------------------------------------------


def shapiq_spex(game: Play, n: int, budget: int, seed: int) -> Answer:
    from shapiq import SPEX

    np.random.seed(seed)
    return _shapiq(SPEX(n=n, index="FBII", random_state=seed), game, n, budget)


def shapiq_proxyspex(masks: Masks, values: Floats, seed: int) -> Answer:
    """On given samples: they take the place of what its sampler would have drawn."""
    from shapiq import ProxySPEX

    np.random.seed(seed)
    peer = ProxySPEX(n=masks.shape[1], index="FBII", random_state=seed)
    peer._uniform_sampler = _Given(masks)
    return _shapiq(peer, lambda _: values, masks.shape[1], len(values))


@dataclass(frozen=True, eq=False)
class _Given:
    coalitions_matrix: Masks

    def sample(self, budget: int) -> None:
        assert budget == len(self.coalitions_matrix)


def _shapiq(peer: Any, game: Play, n: int, budget: int) -> Answer:
    """FBII of order n is the Moebius transform, and so the whole function that was found."""
    timed = Timed(game)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = peer.approximate(budget, timed)
    seconds = time.perf_counter() - started - timed.seconds
    moebius = {members: float(found.values[at]) for members, at in _lookup(found).items()}
    return Answer(_fourier(n, "shapiq", _from_moebius(moebius)), seconds, timed.calls)


def shapiq_index(
    name: str, game: Play, n: int, budget: int, seed: int
) -> tuple[dict[Support, float], float]:
    """Order-2 k-SII of "KernelSHAPIQ" or "SVARMIQ", which estimate an index and no function."""
    import shapiq

    np.random.seed(seed)
    peer = getattr(shapiq, name)(n=n, max_order=2, index="k-SII", random_state=seed)
    timed = Timed(game)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = peer.approximate(budget, timed)
    seconds = time.perf_counter() - started - timed.seconds
    values = {members: float(found.values[at]) for members, at in _lookup(found).items()}
    return {members: value for members, value in values.items() if members}, seconds


def _lookup(found: Any) -> Mapping[Support, int]:
    return {tuple(int(i) for i in key): at for key, at in found.interaction_lookup.items()}


# ---- scikit-learn ------------------------------------------------------------------------------


def contextcite_lasso(masks: Masks, values: Floats) -> Answer:
    """The surrogate of ContextCite (arXiv 2409.00729): a LASSO of 0.01 on standardised masks."""
    from sklearn.linear_model import Lasso
    from sklearn.preprocessing import StandardScaler

    started = time.perf_counter()
    scaler = StandardScaler().fit(masks.astype(np.float64))
    model = Lasso(alpha=0.01, random_state=0).fit(scaler.transform(masks), values)
    slopes = model.coef_ / scaler.scale_
    constant = float(model.intercept_ - slopes @ scaler.mean_)
    f = _from_slopes("contextcite-lasso", constant, slopes)
    return Answer(f, time.perf_counter() - started, len(values))


def ridge(masks: Masks, values: Floats) -> Answer:
    """Linear regression with the penalty of leave-one-out cross-validation, as LIME-like peers."""
    from sklearn.linear_model import RidgeCV

    started = time.perf_counter()
    model = RidgeCV(alphas=np.logspace(-3, 4, 50)).fit(masks.astype(np.float64), values)
    f = _from_slopes("ridge", float(model.intercept_), model.coef_)
    return Answer(f, time.perf_counter() - started, len(values))


# ---- from their forms to ours ------------------------------------------------------------------


def _members(key: Any) -> Support:
    return tuple(int(i) for i in np.flatnonzero(key))


def _fourier(n: int, method: str, terms: Mapping[Support, float]) -> SparseFourier:
    return SparseFourier(n, method, tuple(terms), np.array(list(terms.values())))


def _from_moebius(moebius: Mapping[Support, float]) -> dict[Support, float]:
    """An AND of T is 2^-|T| times the sum of all characters inside it with sign (-1)^|S|."""
    terms: dict[Support, float] = {}
    for members, value in moebius.items():
        for size in range(len(members) + 1):
            share = value * (-1) ** size / 2 ** len(members)
            for part in combinations(members, size):
                terms[part] = terms.get(part, 0.0) + share
    return terms


def _from_slopes(method: str, constant: float, slopes: Floats) -> SparseFourier:
    """Of a linear function of kept (1) and dropped (0): x_i = (1 - chi_i) / 2."""
    terms: dict[Support, float] = {(): constant + float(slopes.sum()) / 2}
    terms |= {(i,): -slope / 2 for i, slope in enumerate(slopes.tolist())}
    return _fourier(len(slopes), method, terms)
