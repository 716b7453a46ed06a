"""One evaluation as the store keeps it: numbers as bytes, answers as JSON.

Knows the columns of a row, not the database. Floats are little-endian float64, so that a store
means the same on every machine, and come back bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Row = tuple[bytes, bytes | None, int, str | None]  # scores, censored, input_tokens, answers


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model said of one mask: a row of `spex_engine.backends.base.Scores`.

    values: float (w,), never NaN. censored: bool (w,) or None. answers: w texts or None.
    """

    values: NDArray[np.float64]
    input_tokens: int
    censored: NDArray[np.bool_] | None = None
    answers: tuple[str, ...] | None = None


def to_row(evaluation: Evaluation) -> Row:
    """ValueError for NaN: what failed may be asked again."""
    if np.isnan(evaluation.values).any():
        raise ValueError("evaluation: expected scores, got NaN, which stands for a failure")
    bits, answers = evaluation.censored, evaluation.answers
    return (
        evaluation.values.astype("<f8").tobytes(),
        None if bits is None else np.packbits(bits).tobytes(),
        int(evaluation.input_tokens),
        None if answers is None else json.dumps(answers),
    )


def from_row(
    scores: bytes, censored: bytes | None, input_tokens: int, answers: str | None
) -> Evaluation:
    values = np.frombuffer(scores, "<f8").astype(np.float64)
    bits = None
    if censored is not None:
        packed = np.frombuffer(censored, np.uint8)
        bits = np.unpackbits(packed, count=len(values)).astype(np.bool_)
    texts = None if answers is None else tuple(json.loads(answers))
    return Evaluation(values, input_tokens, bits, texts)
