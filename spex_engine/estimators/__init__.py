"""Estimators: from measured masks to a SparseFourier. Adding one is a module and a line here.

An estimator knows samples and nothing else: not the game, the design, nor what a feature is.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Protocol

from spex_engine.estimators import exact, linear, selection
from spex_engine.fourier import Floats, Masks, SparseFourier


class Estimator(Protocol):
    """Fits masks bool (m, n) and finite values float (m,), m >= 1, up to ``max_order`` features.

    ``max_order`` None is the estimator's own choice. Equal arguments give equal results.
    """

    def __call__(
        self, masks: Masks, values: Floats, *, max_order: int | None = None, seed: int = 0
    ) -> SparseFourier: ...


ESTIMATORS: MappingProxyType[str, Estimator] = MappingProxyType(
    {
        "auto": selection.fit,
        "exact": exact.fit,
        "linear": linear.fit,
    }
)

ANNOUNCED = ("proxyspex", "spex", "gp")


def estimator(method: str) -> Estimator:
    """The estimator of that name. ValueError names those there are."""
    if method in ESTIMATORS:
        return ESTIMATORS[method]
    available = ", ".join(repr(name) for name in ESTIMATORS)
    if method in ANNOUNCED:
        raise ValueError(f"method: {method!r} comes in a later version; available now: {available}")
    raise ValueError(f"method: {method!r}, expected one of {available}")
