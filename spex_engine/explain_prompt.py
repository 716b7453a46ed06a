"""From a request to a result: open the model, fix the target, play the game, read it.

The one place where backends, value functions and the explainer meet. It must not know processes,
files or editors.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable

import numpy as np

from spex_engine.backends import open_backend
from spex_engine.backends.base import Backend
from spex_engine.estimators import estimator
from spex_engine.estimators.selection import sensible
from spex_engine.explainer import Explanation, explain
from spex_engine.fourier import Floats, Masks
from spex_engine.indices import interactions
from spex_engine.values import UNIT, TargetGame
from spex_engine.wire import (
    ExplainRequest,
    ExplainResult,
    InputError,
    ModelError,
    Piece,
    Prompt,
    SegmentEffect,
    SegmentInteraction,
    StoppedError,
    Target,
)

MAX_TARGET_TOKENS = 32
_SURROGATE = re.compile("[\ud800-\udfff]")


def explain_prompt(
    request: ExplainRequest,
    on_progress: Callable[[int, int, str], None],
    should_stop: Callable[[], bool],
    open_model: Callable[[str], Backend] = open_backend,
) -> ExplainResult:
    """Explain one prompt. ``on_progress(done, total, message)`` counts evaluations.

    Raises InputError or ModelError with a sentence that says what to do, and StoppedError when
    ``should_stop`` said so.
    """
    started = time.perf_counter()
    _check(request)
    on_progress(0, request.budget, f"loading {request.model}")
    backend = open_model(request.model)
    prompt = backend.tokenise(_encodable(request.prompt))
    if request.target is None:
        target = backend.greedy(prompt, MAX_TARGET_TOKENS)
        if len(target) == 0:
            raise ModelError(
                f"{request.model} answers this prompt with nothing at all: "
                "give the answer to be explained as the target."
            )
    else:
        target = backend.tokenise_target(prompt, _clean(request.target))
    text = request.target if request.target is not None else backend.decode(target).strip()
    game = TargetGame(backend, prompt, target, should_stop)
    # the full prompt first: where not even that can be scored, nothing else is worth asking
    whole = float(game(np.ones((1, request.prompt.n_segments), dtype=bool))[0])
    if should_stop():
        raise StoppedError
    if np.isnan(whole):
        raise ModelError(f"{request.model} could not score the full prompt: see the log.")
    explanation = explain(
        _counted(game, request, on_progress),
        request.prompt.n_segments,
        budget=request.budget,
        method=request.method,
        max_order=_max_order(request),
        seed=request.seed,
        should_stop=should_stop,
    )
    if should_stop():
        raise StoppedError
    return ExplainResult(
        model=request.model,
        target=Target(text, whole),
        unit=UNIT,
        tier="T1",
        method=explanation.fourier.method,
        index=request.index,
        order=request.order,
        fitted_order=max(map(len, explanation.fourier.supports), default=0),
        seed=request.seed,
        budget=request.budget,
        segments=_effects(explanation),
        interactions=_interactions(explanation, request.index, request.order),
        faithfulness=explanation.faithfulness,
        evaluations=explanation.evaluations,
        input_tokens=game.input_tokens,
        seconds=time.perf_counter() - started,
        notes=(*prompt.notes, *explanation.notes),
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


def _counted(
    game: TargetGame, request: ExplainRequest, on_progress: Callable[[int, int, str], None]
) -> Callable[[Masks], Floats]:
    """The game, telling ``on_progress`` how many evaluations are done.

    Not by `explain`'s own progress, which fits what is there so far: nobody would look at it.
    """
    n = request.prompt.n_segments
    total = min(request.budget, 2**n)
    done = 0
    on_progress(done, total, "asking the model")

    def play(masks: Masks) -> Floats:
        nonlocal done
        values = game(masks)
        done += len(masks)
        fitting = "fitting" if done >= total else "asking the model"
        on_progress(min(done, total), total, fitting)
        return values

    return play


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
    """The measured value of ``mask``; None where it was not measured or failed."""
    found = np.flatnonzero((explanation.masks == mask).all(axis=1))
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
