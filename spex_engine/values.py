"""What is measured: from a model's raw scores to one value for each mask.

Knows scores, the columns of each target and the question asked of them; it must not know how masks
are chosen, who made the scores or what is made of the values. docs/method.md says which value is
good for what.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import ScoredTarget, Scorer, ShouldStop, Tier
from spex_engine.evaluation import Portion
from spex_engine.measured import (
    NEAREST,
    ValueFunction,
    against,
    less,
    level,
    log_odds,
    probability,
    share,
)
from spex_engine.wire import InputError, Question

__all__ = ["VALUES", "TargetGame", "ValueFunction", "value_function"]

VALUES = ("auto", "mean", "sum", "logit", "probability", "margin", "similarity")


def value_function(
    tier: Tier,
    targets: tuple[ScoredTarget, ...],
    question: Question,
    scale: str = "token",
) -> ValueFunction:
    """What ``question`` asks of the scores of ``targets``, the first of which is explained.

    "auto" is, of an answer alone, "mean"; of one in contrast to another "sum"; of one among choices
    "margin"; of regenerated answers "similarity". Of an answer alone:

    - "mean": the mean log-probability of its tokens. The sum is unbounded below in the length: a
      few masks under which each token of a long answer is unlikely would dominate every fit, and
      answers of different lengths could not be compared. But a mean hides the few tokens that
      decide: ``question.span`` picks them.
    - "sum": the log-probability of the answer, for what must add up.
    - "logit": ``log p - log(1 - p)`` of the whole answer, which does not flatten where p is near 1.
      There 1 - p is lost to rounding: beyond 16.6, what float32 scores can tell, it is cut off.
      Below nothing is, since log p is known to all its digits.
    - "probability": p. Easy to read, but flat near 0 and 1, where it shows effects of nothing and,
      on the way there, interactions that log p has not; of long answers it is 0 everywhere.

    In contrast: "sum" (or "margin") is ``log p(target) - log p(contrast)``, from which what lowers
    every answer alike cancels out, tokens that both begin with too. A longer answer is less likely
    whatever the prompt says: that moves the value, hardly its changes; "mean" compares per token.
    "probability" is the target's share of the two. Among choices: "margin" is ``log p(target) - log
    sum p(others)``, the log-odds of the choice, which is smooth where the best of the others
    changes; "probability" is the target's share. A choice that another begins with has that one's
    probability within its own.

    ``question.span`` is the part of the target's text that counts, where it first occurs: all
    tokens that overlap it, given what stands before them.

    Log-probabilities that are only known to be at most so much make a value a bound, in either
    direction; where its ends are 0.001 from each other it is a value, where both are open NaN.

    ``scale``: what scores are, where it is not of tokens: "log-probability" of a label, a "number",
    or a "similarity". InputError where the question does not fit: says what to change.
    """
    if question.value not in VALUES:
        raise InputError(f"value: {question.value!r} is none: choose one of {', '.join(VALUES)}.")
    if tier == "T3":
        return _of_repetitions(targets[0], question)
    if question.span is not None and len(targets) > 1:
        raise InputError(
            "span: a part of the answer counts only for an answer alone: leave out the contrast or "
            "the choices, or make them as short as the part that decides."
        )
    if question.span is not None and scale != "token":
        raise InputError(
            "span: this model says nothing of a part of an answer, only of the whole: leave the "
            "span out."
        )
    if scale in ("number", "similarity"):
        return _of_numbers(targets, question, scale)
    columns = tuple(np.arange(t.first, t.first + len(t.spans)) for t in targets)
    if question.contrast is not None:
        return _contrasted(columns, question, scale)
    if question.choices:
        return _chosen(columns, question)
    return _alone(tier, targets[0], columns[0], question, scale)


def _alone(
    tier: Tier,
    target: ScoredTarget,
    columns: NDArray[np.intp],
    question: Question,
    scale: str,
) -> ValueFunction:
    of = "the answer"
    if question.span is not None:
        columns, of = columns[_overlapping(target, question.span)], repr(question.span)
    elif target.spans[-1][1] < len(target.text.rstrip()):  # T2: the endpoint says no more of it
        of = "the answer's first token" if len(columns) == 1 else "the answer's first tokens"
    name = question.value
    if name == "auto":
        name = "logit" if scale == "log-probability" else "mean"
    lowest, highest = -np.inf, 0.0
    if name == "mean" and scale == "token" and (len(columns) > 1 or tier == "T1"):
        unit, how, read = "nats per target token", f"mean log-probability per token of {of}", level
    elif name in ("mean", "sum"):
        unit, how, read = "nats", f"log-probability of {of}", level
    elif name == "logit":
        unit, how, read = "nats (log-odds)", f"log-odds of {of}", log_odds
        highest = NEAREST
    elif name == "probability":
        unit, how, read = "probability", f"probability of {of}", probability
        lowest, highest = 0.0, 1.0
    elif name == "margin":
        raise _unfit(name, "an answer alone", "give choices or a contrast, or choose mean or sum")
    else:
        instead = "choose mean, sum, logit or probability"
        raise _unfit(name, "a model that gives log-probabilities", instead)
    return ValueFunction(unit, how, read, lowest, highest, (columns,), name == "mean")


def _contrasted(
    columns: tuple[NDArray[np.intp], ...], question: Question, scale: str
) -> ValueFunction:
    name = "sum" if question.value in ("auto", "margin") else question.value
    if name == "probability":
        how = "probability of the answer, of the two"
        return ValueFunction("probability", how, share, 0.0, 1.0, columns, per_token=False)
    if name not in ("sum", "mean"):
        raise _unfit(name, "a contrast of two answers", "choose sum, mean or probability")
    per_token = name == "mean" and scale == "token"  # a label has one score
    unit = "nats per token" if per_token else "nats (log-odds)"
    how = "log-probability of the answer less that of the contrast"
    return ValueFunction(
        unit,
        f"{how}, each per token" if per_token else how,
        against,
        -np.inf,
        np.inf,
        columns,
        per_token,
    )


def _chosen(columns: tuple[NDArray[np.intp], ...], question: Question) -> ValueFunction:
    if len(columns) < 2:
        raise InputError("choices: the target is the only one: give two or more.")
    if question.value == "probability":
        how = "probability of the answer among the choices"
        return ValueFunction("probability", how, share, 0.0, 1.0, columns, per_token=False)
    if question.value not in ("auto", "margin"):
        raise _unfit(question.value, "an answer among choices", "choose margin or probability")
    how = "log-odds of the answer among the choices"
    return ValueFunction("nats (log-odds)", how, against, -np.inf, np.inf, columns, per_token=False)


def _of_repetitions(target: ScoredTarget, question: Question) -> ValueFunction:
    """T3: the mean over what was regenerated for a mask, and its variance."""
    asked = "answers that are regenerated and compared"
    why, other = "this endpoint gives no log-probabilities: its", "use a model that gives them"
    if question.value == "similarity":  # of an endpoint that may well give them
        why, other = "for value similarity", "choose another value"
    why += " answers are regenerated and compared with one target"
    if question.contrast is not None:
        raise InputError(f"contrast: {why}: leave the contrast out, or {other}.")
    if question.choices:
        raise InputError(f"choices: {why}: leave the choices out, or {other}.")
    if question.span is not None:
        raise InputError(
            f"span: {why}, as a whole: leave the span out, or give the part that counts as the "
            "target."
        )
    if question.value not in ("auto", "similarity"):
        raise _unfit(question.value, asked, "choose auto or similarity")
    how = f"mean similarity of regenerated answers to {target.text!r}"
    every = np.arange(max(1, len(target.spans)))
    return ValueFunction("similarity (0 to 1)", how, level, 0.0, 1.0, (every,), per_token=None)


def _of_numbers(targets: tuple[ScoredTarget, ...], question: Question, scale: str) -> ValueFunction:
    """What an encoder says beside log-probabilities: the one of the target, less a contrast's."""
    fits = ("auto", "similarity") if scale == "similarity" else ("auto",)
    if question.value not in fits:
        raise _unfit(question.value, f"a {scale}", f"choose {' or '.join(fits)}")
    if len(targets) > 2:
        raise InputError("choices: this model compares with texts: give one target or a contrast.")
    columns = tuple(np.arange(t.first, t.first + 1) for t in targets)
    what = "similarity to the target" if scale == "similarity" else "what the model says"
    how, read = (what, level) if len(targets) == 1 else (f"{what} less the contrast's", less)
    unit = "cosine similarity" if scale == "similarity" else "the model's own unit"
    return ValueFunction(unit, how, read, -np.inf, np.inf, columns, per_token=False)


def _unfit(name: str, asked: str, instead: str) -> InputError:
    return InputError(f"value: {name} does not fit {asked}: {instead}.")


def _overlapping(target: ScoredTarget, span: str) -> NDArray[np.intp]:
    """Which columns of the target stand for the first occurrence of ``span`` in its text."""
    start = target.text.find(span) if span.strip() else -1
    if start < 0:
        raise InputError(
            f"span: {span!r} does not occur in the answer {target.text!r}: give a part of it, "
            "letter by letter."
        )
    end = start + len(span)
    found = [i for i, (first, last) in enumerate(target.spans) if first < end and last > start]
    if not found:
        raise InputError(
            f"span: this model says nothing of {span!r} within the answer {target.text!r}: leave "
            "the span out, or use a model that scores every token."
        )
    return np.array(found, dtype=np.intp)


class TargetGame:
    """The evaluator (`evaluation.Evaluator`) whose values are read off a scorer's scores."""

    def __init__(
        self, scorer: Scorer, function: ValueFunction, should_stop: ShouldStop = lambda: False
    ) -> None:
        self._scorer = scorer
        self._function = function
        self._should_stop = should_stop

    def evaluate(self, masks: NDArray[np.bool_]) -> Iterator[Portion]:
        """Values of masks, bool (m, n), as they come; NaN where the model failed."""
        expected = self._scorer.n_segments
        if masks.ndim != 2 or masks.shape[1] != expected or masks.dtype != np.bool_:
            raise ValueError(
                f"masks: expected bool (m, {expected}), got {masks.dtype} {masks.shape}"
            )
        for rows, scores in self._scorer.score(masks, self._should_stop):
            found = self._function(scores)
            yield Portion(rows, found.values, found.variances, found.censored)
