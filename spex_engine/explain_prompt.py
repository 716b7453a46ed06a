"""From a request to a result: open the model, fix the target, play the game, read it.

The one place where backends, value functions and the explainer meet. It must not know processes,
files or editors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from spex_engine.backends.base import MeasuresNoise, Model, Scorer, ShouldStop
from spex_engine.estimators import estimator
from spex_engine.estimators.selection import sensible
from spex_engine.evaluation import Portion
from spex_engine.explainer import Explanation, explain
from spex_engine.fourier import Masks
from spex_engine.indices import interactions
from spex_engine.store import Store
from spex_engine.stored_scorer import StoredScorer
from spex_engine.values import TargetGame, ValueFunction, value_function
from spex_engine.wire import (
    ExplainRequest,
    ExplainResult,
    InputError,
    ModelError,
    Piece,
    Prompt,
    Question,
    SegmentEffect,
    SegmentInteraction,
    StoppedError,
    Target,
)

_SURROGATE = re.compile("[\ud800-\udfff]")
_LOUD = 0.1  # of the largest effect: noise of that size is worth a word


def explain_prompt(
    request: ExplainRequest,
    on_progress: Callable[[int, int, str], None],
    should_stop: Callable[[], bool],
    open_model: Callable[[ExplainRequest], Model],
    store: Store | None = None,
) -> ExplainResult:
    """Explain one prompt. ``on_progress(done, total, message)`` counts evaluations.

    What ``store`` holds is not asked again, and what is asked is kept there. Raises InputError or
    ModelError with a sentence that says what to do, and StoppedError when ``should_stop`` said so.
    """
    started = time.perf_counter()
    _check(request)
    on_progress(0, request.budget, f"loading {request.model}")
    prompt, question = _encodable(request.prompt), _clean_question(request.question)
    scorer = open_model(request).open(prompt, question, should_stop)
    if should_stop():
        raise StoppedError
    measure = value_function(scorer.tier, scorer.targets, question, scorer.scale)
    stored = StoredScorer(scorer, store, keep_answers=request.access.keep_answers)
    game = TargetGame(stored, measure, should_stop)
    whole, bound = _full_value(game, stored, request, should_stop)
    asked = _Asked(game, stored, request, on_progress)
    explanation = explain(
        asked,
        prompt.n_segments,
        budget=request.budget,
        method=request.method,
        max_order=_max_order(request),
        seed=request.seed,
        should_stop=lambda: should_stop() or asked.exhausted,
        identities=identities(prompt),
    )
    if should_stop():
        raise StoppedError
    anew = scorer if stored.computed else None  # where all was known, nothing is asked for this
    noise, loud = _noise(anew, measure, explanation)
    target, known = scorer.targets[0], explanation.evaluations.computed
    computed = min(stored.computed, known)
    return ExplainResult(
        model=request.model,
        target=Target(target.text, whole, target.own),
        unit=measure.unit,
        tier=scorer.tier,
        method=explanation.fourier.method,
        index=request.index,
        order=request.order,
        fitted_order=max(map(len, explanation.fourier.supports), default=0),
        seed=request.seed,
        budget=request.budget,
        segments=_effects(explanation),
        interactions=_interactions(explanation, request.index, request.order),
        faithfulness=explanation.faithfulness,
        evaluations=dataclasses.replace(
            explanation.evaluations, computed=computed, cached=known - computed
        ),
        input_tokens=stored.input_tokens,
        seconds=time.perf_counter() - started,
        notes=tuple(dict.fromkeys((*stored.notes, *bound, *explanation.notes, *loud))),
        noise=noise,
    )


def identities(prompt: Prompt) -> tuple[bytes, ...]:
    """What makes each segment itself wherever it stands: its text, and its number among equals.

    Designs are drawn by these, so that an edit of one segment leaves the others' bits alone.
    """
    texts = [""] * prompt.n_segments
    for message in prompt.messages:
        for piece in message.pieces:
            if piece.segment is not None:
                texts[piece.segment] += piece.text
    seen: Counter[str] = Counter()
    found = []
    for text in map(str.strip, texts):
        seen[text] += 1
        found.append(hashlib.blake2b(f"{seen[text]}\0{text}".encode(), digest_size=16).digest())
    return tuple(found)


def _full_value(
    game: TargetGame, stored: StoredScorer, request: ExplainRequest, should_stop: ShouldStop
) -> tuple[float, tuple[str, ...]]:
    """The value of the full prompt, and what to say of it.

    Where not even that can be scored, nothing else is asked.
    """
    full = np.ones((1, request.prompt.n_segments), dtype=np.bool_)
    found = [portion for portion in game.evaluate(full) if len(portion.rows)]
    if should_stop():
        raise StoppedError
    if not found or not np.isfinite(found[0].values[0]):
        why = "; ".join(stored.notes) or "see the log"
        raise ModelError(f"{request.model} could not score the full prompt: {why.rstrip('.')}.")
    (portion,) = found
    if portion.censored is None or portion.censored[0] == 0:
        return float(portion.values[0]), ()
    side = "at most" if portion.censored[0] < 0 else "at least"
    return float(portion.values[0]), (
        f"the value of the full prompt is {side} the one shown: the endpoint lists too few tokens; "
        "so what dropping a segment alone changes is not known",
    )


def _check(request: ExplainRequest) -> None:
    """Raises InputError for what would fail only after the model was asked."""
    try:
        estimator(request.method)
    except ValueError as error:
        raise InputError(str(error)) from None
    n = request.prompt.n_segments
    if request.method == "exact" and n >= request.budget.bit_length():
        raise InputError(
            f"method: exact asks for every subset of {n} segments, 2^{n} calls, and the budget is "
            f"{request.budget:,}: use auto, cut the prompt more coarsely or raise the budget."
        )


def _max_order(request: ExplainRequest) -> int | None:
    """The order asked for; for "linear" the highest that the budget can bear, up to that.

    None, no limit, where every subset is measured: most indices then need the higher orders too.
    """
    order, n = request.order, request.prompt.n_segments
    if n < request.budget.bit_length() and request.method != "linear":
        return None
    if request.method == "linear":
        while order > 1 and not sensible(request.budget, n, order):
            order -= 1
    return order


class _Asked:
    """The game as `explain` asks it, telling ``on_progress`` how many evaluations are done.

    Not by `explain`'s own progress, which fits what is there so far: nobody would look at it.
    exhausted: the scorer ended before it had said something of every mask: it can no more.
    """

    def __init__(
        self,
        game: TargetGame,
        stored: StoredScorer,
        request: ExplainRequest,
        on_progress: Callable[[int, int, str], None],
    ) -> None:
        self.exhausted = False
        self._game = game
        self._stored = stored
        self._on_progress = on_progress
        self._done = 0
        self._total = min(request.budget, 2**request.prompt.n_segments)
        on_progress(0, self._total, "asking the model")

    def evaluate(self, masks: Masks) -> Iterator[Portion]:
        answered = 0
        for portion in self._game.evaluate(masks):
            answered += len(portion.rows)
            self._done += len(portion.rows)
            doing = "fitting" if self._done >= self._total else "asking the model"
            if self._stored.reused:
                doing += f" ({self._stored.reused:,} known from before)"
            self._on_progress(min(self._done, self._total), self._total, doing)
            yield portion
        self.exhausted = answered < len(masks)


def _noise(
    scorer: Scorer | None, measure: ValueFunction, explanation: Explanation
) -> tuple[float | None, tuple[str, ...]]:
    """The standard deviation of a value that is measured again, and what to say of it."""
    noise: float | None = None
    if isinstance(scorer, MeasuresNoise):
        noise = scorer.noise_floor(explanation.masks, lambda scores: measure(scores).values)
    elif explanation.variances is not None:
        noise = float(np.sqrt(np.mean(explanation.variances)))
    if noise is None:
        return None, ()
    largest = max((abs(i.value) for i in interactions(explanation.fourier, "BV", 1)), default=0.0)
    if noise <= _LOUD * largest:
        return noise, ()
    return noise, (
        f"a value that is measured again differs by {noise:.2g} ({measure.unit}): effects of that "
        "size are noise",
    )


def _clean_question(question: Question) -> Question:
    """The texts of a question without what no tokenizer can encode."""

    def clean(text: str | None) -> str | None:
        return None if text is None else _clean(text)

    return dataclasses.replace(
        question,
        target=clean(question.target),
        contrast=clean(question.contrast),
        choices=tuple(map(_clean, question.choices)),
        span=clean(question.span),
        pinned=clean(question.pinned),
    )


def _clean(text: str) -> str:
    """Lone surrogates, which no tokenizer can encode, as U+FFFD; the length stays."""
    return _SURROGATE.sub("\ufffd", text)


def _encodable(prompt: Prompt) -> Prompt:
    def clean(piece: Piece) -> Piece:
        return dataclasses.replace(piece, text=_clean(piece.text))

    messages = tuple(
        dataclasses.replace(m, pieces=tuple(clean(p) for p in m.pieces)) for m in prompt.messages
    )
    return dataclasses.replace(prompt, messages=messages)


def _value(explanation: Explanation, mask: np.typing.NDArray[np.bool_]) -> float | None:
    """The measured value of ``mask``; None where it failed, is only a bound, or was not asked."""
    known = (explanation.masks == mask).all(axis=1)
    if explanation.censored is not None:
        known &= explanation.censored == 0
    found = np.flatnonzero(known)
    return float(explanation.values[found[0]]) if len(found) else None


def _effects(explanation: Explanation) -> tuple[SegmentEffect, ...]:
    """Banzhaf value of every segment, and the change seen when it alone was dropped."""
    n = explanation.fourier.n_features
    full = np.ones(n, dtype=bool)
    whole = _value(explanation, full)
    effects = []
    for banzhaf in interactions(explanation.fourier, index="BV", order=1):
        (segment,) = banzhaf.members
        mask = full.copy()
        mask[segment] = False
        without = _value(explanation, mask)
        removal = None if without is None or whole is None else without - whole
        effects.append(SegmentEffect(segment, banzhaf.value, banzhaf.stderr, removal))
    return tuple(sorted(effects, key=lambda effect: effect.index))


def _interactions(
    explanation: Explanation, index: str, order: int
) -> tuple[SegmentInteraction, ...]:
    """Order two and more, strongest first, each with its kind (DESIGN.md)."""
    effect = {i.members[0]: i.value for i in interactions(explanation.fourier, index="BV", order=1)}
    try:
        found = interactions(explanation.fourier, index=index, order=order)
    except ValueError as error:
        raise InputError(str(error)) from None
    together = []
    for i in found:
        if len(i.members) < 2 or i.value == 0:
            continue
        if i.value > 0:
            kind = "synergy"
        elif all(effect[member] > 0 for member in i.members):
            kind = "redundancy"
        else:
            kind = "conflict"
        together.append(SegmentInteraction(i.members, i.value, i.stderr, kind))
    return tuple(together)
