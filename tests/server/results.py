"""Hand-made explanations for tests of what is shown: no worker, no model."""

from __future__ import annotations

from collections.abc import Sequence

from server.explained import Explained
from server.planning import make_plan
from server.settings import Settings
from spex_engine.wire import (
    Evaluations,
    ExplainResult,
    Faithfulness,
    SegmentEffect,
    SegmentInteraction,
    Target,
)


def interaction(
    *segments: int, value: float = 1.0, stderr: float | None = 0.0, kind: str | None = None
) -> SegmentInteraction:
    return SegmentInteraction(
        segments, value, stderr, kind or ("synergy" if value > 0 else "redundancy")
    )


def explained(
    text: str,
    effects: Sequence[float] = (),
    interactions: Sequence[SegmentInteraction] = (),
    *,
    stderr: float | None = 0.0,
    removals: Sequence[float | None] = (),
    target: str = "Paris",
    model: str = "demo",
    r2: float | None = 1.0,
    notes: tuple[str, ...] = (),
    segments: str = "sentence",
    failed: int = 0,
    index: str = "FBII",
    order: int = 3,
    fitted_order: int = 3,
) -> Explained:
    """``text`` cut by the real planning, with numbers as given; missing effects are 0."""
    plan = make_plan(text, None, Settings(), {"segments": segments})
    n = len(plan.segmentation.segments)
    effects = [*effects, *[0.0] * (n - len(effects))]
    removals = [*removals, *[-effect for effect in effects[len(removals) :]]]
    result = ExplainResult(
        model=model,
        target=Target(target, -0.25),
        unit="nats per target token",
        tier="T1",
        method="exact",
        index=index,
        order=order,
        fitted_order=fitted_order,
        seed=0,
        budget=1024,
        segments=tuple(
            SegmentEffect(i, effect, stderr, removal)
            for i, (effect, removal) in enumerate(zip(effects, removals, strict=True))
        ),
        interactions=tuple(interactions),
        faithfulness=Faithfulness(r2, "every mask was measured", 2**n if n < 30 else 0),
        evaluations=Evaluations(2048, 2048 - failed, 0, failed),
        input_tokens=12345,
        seconds=1.25,
        notes=notes,
    )
    return Explained(plan, result)
