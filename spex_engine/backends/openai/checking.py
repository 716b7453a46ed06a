"""Whether a question can be answered at all in the tiers that an endpoint may have.

Asked before anything is paid for. What fits is for `spex_engine.values` to say, of stand-ins for
the answers that are not known yet. It must not know endpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from spex_engine.backends.base import ScoredTarget, Tier
from spex_engine.backends.causal import compared_answers
from spex_engine.values import value_function
from spex_engine.wire import InputError, Question


def check_question(question: Question, tiers: Sequence[Tier]) -> None:
    """InputError where no tier can answer it; the first tier's, for that is the most it could."""
    texts = _texts(question)
    targets = tuple(ScoredTarget(text, i, ((0, len(text)),)) for i, text in enumerate(texts))
    if question.target is None and question.span is not None and len(targets) == 1:
        # whether it is a part of the own answer is seen when that is known
        targets = (dataclasses.replace(targets[0], text=question.span, spans=((0, 1),)),)
    refusals = []
    for tier in tiers:
        try:
            value_function(tier, targets, question)
        except InputError as refusal:
            refusals.append(refusal)
        else:
            return
    if refusals:
        raise refusals[0]


def _texts(question: Question) -> list[str]:
    """As many answers as are going to be scored; the own answer is one of the choices, if any."""
    if question.target is not None:
        return [question.target, *compared_answers(question, question.target)]
    if question.contrast is not None:
        return ["", question.contrast]
    return list(dict.fromkeys(choice.strip() for choice in question.choices)) or [""]
