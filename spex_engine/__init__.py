"""Spex: which parts of an input act together on a model's output.

``import spex_engine as spex`` is the public API. Every export is loaded on first use (PEP 562), so
that importing the package, or ``spex_engine.wire`` alone, loads nothing but the standard library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spex_engine.evaluation import Evaluator, Portion
    from spex_engine.explainer import Explanation, explain, fit
    from spex_engine.faithfulness import noise_floor, r2, readings, recovery, removal_curve
    from spex_engine.fourier import SparseFourier
    from spex_engine.groups import group_view
    from spex_engine.indices import Interaction, interactions

__version__ = "0.1.0"

__all__ = [
    "Evaluator",
    "Explanation",
    "Interaction",
    "Portion",
    "SparseFourier",
    "__version__",
    "explain",
    "fit",
    "group_view",
    "interactions",
    "noise_floor",
    "r2",
    "readings",
    "recovery",
    "removal_curve",
]

_HOME = {
    "Evaluator": "spex_engine.evaluation",
    "Explanation": "spex_engine.explainer",
    "Interaction": "spex_engine.indices",
    "Portion": "spex_engine.evaluation",
    "SparseFourier": "spex_engine.fourier",
    "explain": "spex_engine.explainer",
    "fit": "spex_engine.explainer",
    "group_view": "spex_engine.groups",
    "interactions": "spex_engine.indices",
    "noise_floor": "spex_engine.faithfulness",
    "r2": "spex_engine.faithfulness",
    "readings": "spex_engine.faithfulness",
    "recovery": "spex_engine.faithfulness",
    "removal_curve": "spex_engine.faithfulness",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
