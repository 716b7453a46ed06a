"""The JSON result of DESIGN.md's contract, version 1. Pure; it must not know files or LSP."""

from __future__ import annotations

from typing import Any

from server.explained import Explained
from server.text import Text


def result_json(explained: Explained, file: str) -> dict[str, Any]:
    """``start`` and ``end`` are code-point offsets into the file, ``line`` counts from 1."""
    result, request = explained.result, explained.plan.request
    text = Text(explained.plan.document.text)
    return {
        "version": 1,
        "file": file,
        "model": result.model,
        "target": {"text": result.target.text, "value": result.target.value},
        "tier": result.tier,
        "method": result.method,
        "index": result.index,
        "seed": result.seed,
        "settings": {
            "method": request.method,
            "order": result.order,
            "budget": result.budget,
            "segments": explained.plan.segmentation.kind,
            "unit": result.unit,
            "noise": result.noise,  # standard deviation of a value that is measured again
            "notes": list(explained.notes),  # what was chosen for this run, and why
        },
        "segments": [
            {
                "index": segment.index,
                "start": segment.start,
                "end": segment.end,
                "line": text.line_of(segment.start) + 1,
                "text": segment.text,
                "effect": effect.effect,
                "stderr": effect.stderr,
                "removal": effect.removal,
            }
            for segment, effect in zip(explained.segments, result.segments, strict=True)
        ],
        "interactions": [
            {
                "segments": list(interaction.segments),
                "value": interaction.value,
                "stderr": interaction.stderr,
                "kind": interaction.kind,
                "verified": interaction.verified,
            }
            for interaction in result.interactions
        ],
        "findings": [],  # insights are not there yet
        "faithfulness": {
            "r2": result.faithfulness.r2,
            "how": result.faithfulness.how,
            "n_test": result.faithfulness.n_test,
        },
        "evaluations": {
            "requested": result.evaluations.requested,
            "computed": result.evaluations.computed,
            "cached": result.evaluations.cached,
            "failed": result.evaluations.failed,
        },
        "tokens": {"input": result.input_tokens},
        "seconds": result.seconds,
    }
