"""Every method on simulated games, each within the same calls; and the indices read off them.

    python tests/benchmarks/synthetic.py [--quick] [--no-peers]

Functions: R2 against the game without noise on masks none has seen, and, where the truth is a few
terms, how many of them are found. Our methods choose their own masks (`explain`), as shapiq's SPEX
does; the others get uniform ones. Lone parities get twice the calls of SPEX's least budget.
Indices: the error of order-2 k-SII and FBII on games that can be enumerated, as a share of the
index's own mean square, beside KernelSHAP-IQ and SVARM-IQ, which estimate k-SII and no function.
``seconds``: without the game's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import bench
import games
import numpy as np
import ours
from answers import Answer

import spex_engine as spex
from spex_engine import SparseFourier
from spex_engine.estimators import PLANS
from spex_engine.fourier import Support

FOUND = 0.25

Make = Callable[[int, int], games.Game]  # of the number of features and a seed


@dataclass(frozen=True)
class Plan:
    functions: tuple[tuple[Make, int, tuple[int, ...]], ...]  # kind, n, calls
    indices: tuple[tuple[int, tuple[int, ...]], ...]  # n, calls
    draws: int = 3
    authors_draws: int = 1  # of their ProxySPEX, which takes ten times what any other does


def least_for_spex(n: int) -> int:
    """The least budget that method "spex" takes, from the error that says so."""
    try:
        PLANS["spex"](n, 2)
    except ValueError as error:
        return int(str(error).split("at least ")[1].split()[0])
    raise AssertionError("spex takes 2 calls")


def full() -> Plan:
    return Plan(
        functions=(
            (games.sparse, 32, (512, 2048)),
            (games.sparse, 64, (1024,)),
            (games.language, 16, (256, 1024)),
            (games.language, 32, (256, 1024)),
            (games.language, 64, (256, 1024)),
            (games.language, 128, (512, 2048)),
            (games.parity, 16, (2 * least_for_spex(16),)),
            (games.parity, 32, (2 * least_for_spex(32),)),
            (games.parity, 64, (2 * least_for_spex(64),)),
        ),
        indices=((10, (100, 300)), (12, (150, 600))),
    )


def quick() -> Plan:
    return Plan(
        functions=((games.language, 16, (300,)),),
        indices=((10, (100,)),),
        draws=1,
    )


def tiny() -> Plan:
    return Plan(((games.sparse, 6, (40,)),), ((6, (40,)),), draws=1)


def run(rows: bench.Rows, plan: Plan, with_peers: bool) -> None:
    methods = (*ours.METHODS, *_peers()) if with_peers else ours.METHODS
    for make, n, budgets in plan.functions:
        for calls in budgets:
            for draw in range(plan.draws):
                game = make(n, draw)
                for method in _drawn(plan, draw, methods):
                    key = {"game": game.name, "calls": calls, "draw": draw, "method": method}
                    rows.measure(key, lambda key=key, game=game: _function(game, **_asked(key)))
    estimators = ("KernelSHAPIQ", "SVARMIQ") if with_peers else ()
    for n, budgets in plan.indices:
        for calls in budgets:
            for draw in range(plan.draws):
                game = games.language(n, 100 + draw)
                for method in (*_drawn(plan, draw, methods), *estimators):
                    key = {"indices": game.name, "calls": calls, "draw": draw, "method": method}
                    rows.measure(key, lambda key=key, game=game: _indices(game, **_asked(key)))


def _drawn(plan: Plan, draw: int, methods: tuple[str, ...]) -> list[str]:
    return [m for m in methods if draw < plan.authors_draws or m != "authors proxyspex"]


def _asked(key: bench.Row) -> bench.Row:
    return {name: key[name] for name in ("calls", "draw", "method")}


def _function(game: games.Game, calls: int, draw: int, method: str) -> bench.Row:
    try:
        answer = _answer(game, calls, draw, method)
    except ValueError as error:
        return {"r2": None, "why": str(error)}
    f = answer.f
    row: bench.Row = {"r2": game.score(f), "seconds": answer.seconds, "asked": answer.calls}
    if game.truth is not None:
        large = {s for s, coefficient in f.to_dict().items() if s and abs(coefficient) > FOUND}
        true = set(game.truth.supports)
        row["recall"] = len(large & true) / len(true)
        row["precision"] = len(large & true) / len(large) if large else None
    return row


def _indices(game: games.Game, calls: int, draw: int, method: str) -> bench.Row:
    truth = game.exact()
    if method in ("KernelSHAPIQ", "SVARMIQ"):
        import peers

        found, seconds = peers.shapiq_index(method, game.noisy(draw), game.n, calls, draw)
        return {"k-SII": _error(found, _index(truth, "k-SII"), game.n), "seconds": seconds}
    try:
        answer = _answer(game, calls, draw, method)
    except ValueError as error:
        return {"k-SII": None, "why": str(error)}
    errors = {
        index: _error(_index(answer.f, index), _index(truth, index), game.n)
        for index in ("k-SII", "FBII")
    }
    return {**errors, "seconds": answer.seconds, "asked": answer.calls}


def _index(f: SparseFourier, index: str) -> dict[Support, float]:
    return {i.members: i.value for i in spex.interactions(f, index, order=2)}


def _error(found: dict[Support, float], truth: dict[Support, float], n: int) -> float:
    """Squared errors over single features and pairs, as a share of the truth's squares."""
    members = [t for size in (1, 2) for t in combinations(range(n), size)]
    a, b = (np.array([values.get(t, 0.0) for t in members]) for values in (found, truth))
    return float(np.sum((a - b) ** 2) / np.sum(b**2))


def _answer(game: games.Game, calls: int, draw: int, method: str) -> Answer:
    if method in ours.METHODS:
        return ours.explained(method, game.noisy(draw), game.n, calls, draw)
    return _peers()[method](game, calls, draw)


def _peers() -> dict[str, Callable[[games.Game, int, int], Answer]]:
    import peers

    return {
        "authors proxyspex": lambda game, calls, draw: peers.authors_proxyspex(
            *game.samples(calls, draw), draw
        ),
        "shapiq proxyspex": lambda game, calls, draw: peers.shapiq_proxyspex(
            *game.samples(calls, draw), draw
        ),
        "shapiq spex": lambda game, calls, draw: peers.shapiq_spex(
            game.noisy(draw), game.n, calls, draw
        ),
        "contextcite lasso": lambda game, calls, draw: peers.contextcite_lasso(
            *game.samples(calls, draw)
        ),
    }


def main() -> None:
    given = bench.arguments("synthetic", __doc__)
    run(given.rows, quick() if given.quick else full(), given.peers)


if __name__ == "__main__":
    main()
