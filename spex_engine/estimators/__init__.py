"""Estimators: from measured masks to a SparseFourier. Adding one is a module and a line here.

An estimator knows samples and nothing else: not the game, the design, nor what a feature is. One
that can use no other masks than its own is a planner as well, and knows its design.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Protocol

from spex_engine.designs import Design
from spex_engine.estimators import (
    boosting,
    exact,
    linear,
    proxyspex,
    selection,
    spectral_gp,
    spex,
)
from spex_engine.fourier import Floats, Masks, SparseFourier


class Estimator(Protocol):
    """Fits masks bool (m, n) and finite values float (m,), m >= 1, up to ``max_order`` features.

    ``max_order`` None is the estimator's own choice. ``variances`` float (m,): of the noise that
    each value is known to carry beside what all have in common, in its unit squared; None: none is
    known of. Equal arguments give equal results.
    """

    def __call__(
        self,
        masks: Masks,
        values: Floats,
        *,
        max_order: int | None = None,
        seed: int = 0,
        variances: Floats | None = None,
    ) -> SparseFourier: ...


class Plan(Protocol):
    """What a method that samples its own masks brings to `explain`: the masks, and their fit."""

    @property
    def design(self) -> Design:
        """What to ask for, in an order of which every prefix may be all there is."""
        ...

    def fit(self, values: Floats) -> tuple[SparseFourier, tuple[str, ...]]:
        """A fit and notes on it, from the values (j,) of the first j masks of the design.

        NaN where an evaluation failed. At least one that is not held out is there; those that are
        held out must not be looked at.
        """
        ...


class Planner(Protocol):
    """Plans at most ``budget`` distinct masks. ValueError names the least budget if it is more."""

    def __call__(
        self, n_features: int, budget: int, *, max_order: int | None = None, seed: int = 0
    ) -> Plan: ...


ESTIMATORS: MappingProxyType[str, Estimator] = MappingProxyType(
    {
        "auto": selection.fit,
        "exact": exact.fit,
        "linear": linear.fit,
        "gp": spectral_gp.fit,
        "spex": spex.fit,
        "proxyspex": proxyspex.fit,
    }
)

# methods that bring their own design; their entry above says that they need to
PLANS: MappingProxyType[str, Planner] = MappingProxyType({"spex": spex.plan})

# what a method needs that may not be there: ValueError says how to get it
NEEDS: MappingProxyType[str, Callable[[], None]] = MappingProxyType(
    {"proxyspex": boosting.require_lightgbm}
)


def estimator(method: str) -> Estimator:
    """The estimator of that name. ValueError names those there are, or what it lacks."""
    if method not in ESTIMATORS:
        available = ", ".join(repr(name) for name in ESTIMATORS)
        raise ValueError(f"method: {method!r}, expected one of {available}")
    if method in NEEDS:
        NEEDS[method]()
    return ESTIMATORS[method]
