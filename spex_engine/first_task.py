"""What a run begins with: which masks, how many of them held out, and by which method.

Knows budgets and designs, no values yet.
"""

from __future__ import annotations

from collections.abc import Sequence

from spex_engine.coded_design import least_budget
from spex_engine.designs import draw_design
from spex_engine.estimators import PLANS
from spex_engine.fitting import Task

_CODED_FROM = 1.5  # times the least budget of a code: then there is something left to look first
_MIN_BUDGET_FOR_TEST = 64  # below it every mask is worth more in the fit
_MIN_BUDGET_FOR_NEAR = 256  # below it near-full masks are
_TEST_SHARE, _MIN_TEST, _MAX_TEST = 0.15, 16, 256
_TEST_SHARE_BESIDE_NEAR, _NEAR_SHARE, _MAX_NEAR = 1 / 8, 1 / 16, 64


def first_task(
    n: int,
    budget: int,
    every: bool,
    method: str,
    max_order: int | None,
    seed: int,
    identities: tuple[bytes, ...] | None = None,
) -> Task:
    """The task for n features; ``every``: all 2^n masks fit the budget.

    The masks of a code are drawn by where features stand, not by their identities: after an
    insertion they are others. So with identities "auto" begins with none; "spex", asked for by
    name, does. ValueError where the method cannot do with the budget.
    """
    if method == "exact" and not every:
        raise ValueError(
            f"budget: {budget}, expected at least 2**{n} for method 'exact' with {n} features"
        )
    if method in PLANS and not every:
        plan = PLANS[method](n, budget, max_order=max_order, seed=seed)
        return Task(plan.design, method, max_order, seed, False, plan, identities)
    if method == "auto" and not every and identities is None and _may_be_coded(n, budget):
        plan = PLANS["spex"](n, budget, max_order=max_order, seed=seed)
        return Task(plan.design, method, max_order, seed, False, plan, identities)
    size = 2**n if every else budget
    n_test, n_near = test_sizes(size)
    design = draw_design(n, size, n_test, seed, n_near, identities)
    exact = every and method in ("auto", "exact", *PLANS)
    return Task(design, method, max_order, seed, exact, None, identities)


def checked_identities(given: Sequence[bytes] | None, n: int) -> tuple[bytes, ...] | None:
    """ValueError where ``given`` is not one distinct bytes for each of n features."""
    if given is None:
        return None
    identities = tuple(given)
    if not all(isinstance(identity, bytes) for identity in identities):
        raise ValueError(f"identities: expected {n} of type bytes")
    if len(identities) != n or len(set(identities)) != n:
        raise ValueError(
            f"identities: {len(identities)}, {len(set(identities))} of them distinct, expected {n} "
            "distinct ones"
        )
    return identities


def _may_be_coded(n: int, budget: int) -> bool:
    """Whether "auto" can afford to begin with coded masks."""
    try:
        return budget >= _CODED_FROM * least_budget(n)
    except ValueError:  # no code for so few or so many features
        return False


def test_sizes(size: int) -> tuple[int, int]:
    """How many uniform masks and how many near-full ones to hold out."""
    if size < _MIN_BUDGET_FOR_TEST:
        return 0, 0
    if size < _MIN_BUDGET_FOR_NEAR:
        return max(round(_TEST_SHARE * size), _MIN_TEST), 0
    near = min(round(_NEAR_SHARE * size), _MAX_NEAR)
    return min(round(_TEST_SHARE_BESIDE_NEAR * size), _MAX_TEST), near
