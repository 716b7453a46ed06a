"""The LASSO path: sparse linear regression for a falling series of penalties.

Plain numerics on columns and targets; knows neither masks nor characters. FISTA with restarts
(Beck & Teboulle 2009; O'Donoghue & Candes 2015) on the Gram matrix of the few columns that the
sequential strong rule keeps (Tibshirani et al. 2012), checked against all columns at each penalty.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spex_engine.fourier import Floats

_TOLERANCE = 1e-2  # of the penalty, in the optimality conditions
_MAX_STEPS = 1000


def lasso_path(columns: Floats, target: Floats, penalties: Floats) -> Iterator[Floats]:
    """For each penalty the minimiser b (p,) of ``|target - columns b|^2 / 2m + penalty |b|_1``.

    ``columns`` (m, p) and ``target`` (m,) without intercept, ``penalties`` falling. Each is solved
    when it is asked for, so that whoever has seen enough stops asking. The optimality conditions
    hold to 2% of the penalty: what is zero is meant, the other entries are not final digits.
    """
    m, p = columns.shape
    solution = np.zeros(p)
    correlation = columns.T @ target / m
    previous = penalties[0]
    for penalty in penalties:
        kept = (np.abs(correlation) >= 2 * penalty - previous) | (solution != 0)
        while True:
            at = np.flatnonzero(kept)
            few = columns[:, at]
            solution[at] = _fista(few.T @ few / m, few.T @ target / m, penalty, solution[at])
            correlation = columns.T @ (target - few @ solution[at]) / m
            missed = (np.abs(correlation) > (1 + 2 * _TOLERANCE) * penalty) & ~kept
            if not missed.any():
                break
            kept |= missed
        yield solution.copy()
        previous = penalty


def _fista(gram: Floats, target: Floats, penalty: float, start: Floats) -> Floats:
    """Minimiser of ``b'Gb/2 - target'b + penalty |b|_1``."""
    if len(target) == 0:
        return start
    bound = float(np.abs(gram).sum(axis=0).max())  # at least the largest eigenvalue
    if bound == 0.0:
        return np.zeros_like(start)
    solution, ahead, momentum = start, start, 1.0
    for _ in range(_MAX_STEPS):
        moved = ahead - (gram @ ahead - target) / bound
        new = np.sign(moved) * np.maximum(np.abs(moved) - penalty / bound, 0.0)
        if bound * np.abs(new - ahead).max() <= _TOLERANCE * penalty:
            return np.asarray(new, dtype=np.float64)
        step = new - solution
        if (ahead - new) @ step > 0:  # momentum points uphill: start it again
            momentum, ahead = 1.0, new
        else:
            following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + (momentum - 1) / following * step
            momentum = following
        solution = new
    return np.asarray(solution, dtype=np.float64)
