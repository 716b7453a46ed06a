"""Memory of scoring long prompts beside a large vocabulary on a local model.

    python tests/benchmarks/local_memory.py [--quick]

A process of its own makes a model with a vocabulary of 150,000, and scores 64 masks of a prompt of
2,000 tokens. ``beyond_mib``: the most memory that process ever held (interpreter and libraries
included), less the model's weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import bench
import local_backend
from local_backend import Case, Shape

LONG = Case("long prompt", tokens=2000, preamble=0, segments=50, masks=64)
LARGE_VOCABULARY = Shape(num_hidden_layers=2, vocab_size=150_000)


@dataclass(frozen=True)
class Plan:
    case: Case = LONG
    shape: Shape = LARGE_VOCABULARY


FULL = Plan()
QUICK = Plan(replace(LONG, masks=8))
TINY = Plan(replace(LONG, tokens=60, segments=6, masks=8), local_backend.TINY.shape)


def cell(shape: dict[str, Any], case: dict[str, Any]) -> bench.Row:
    import torch

    torch.set_num_threads(1)
    given = Shape(**shape)
    backend = local_backend.make_backend(given)
    model: Any = backend._model
    weights = sum(part.numel() * part.element_size() for part in model.parameters()) / 2**20
    before = bench.peak_mib()
    scorer, masks = local_backend.open_case(backend, Case(**case), given.vocab_size)
    scored = sum(len(rows) for rows, _ in scorer.score(masks, lambda: False))
    return {"scored": scored, "model_mib": weights, "loaded_mib": before}


def run(rows: bench.Rows, plan: Plan) -> None:
    key = {"case": plan.case.name, "vocabulary": plan.shape.vocab_size, "masks": plan.case.masks}

    def measured() -> bench.Row:
        row = bench.apart(cell, asdict(plan.shape), asdict(plan.case))
        return {**row, "beyond_mib": row["peak_mib"] - row["model_mib"]}

    rows.measure(key, measured)


def main() -> None:
    given = bench.arguments("local_memory", __doc__)
    run(given.rows, QUICK if given.quick else FULL)


if __name__ == "__main__":
    main()
