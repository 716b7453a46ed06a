"""What an endpoint's model can be asked, found out by asking it and checking what comes back.

Servers of this protocol accept fields that they then ignore, so nothing is believed: the tokens
told of a prompt must spell it, log-probabilities must be such, and must change with the text. It
knows short texts of its own and must not know prompts, masks or questions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from spex_engine.backends.base import ShouldStop
from spex_engine.backends.openai.alignment import trailing_spans
from spex_engine.backends.openai.asking import Api, Connection, Listed, Manner, Reply, ask
from spex_engine.backends.openai.failures import Failure, Kind
from spex_engine.backends.openai.prompt_tokens import (
    WAYS,
    PromptTokens,
    Way,
    of_chat,
    of_text,
)
from spex_engine.backends.openai.server_tokens import ids_of, text_of

# The same last word, likely after the one and unlikely after the other.
TEXTS = ("The capital of France is Paris", "My cat eats nothing but fish and Paris")
QUESTIONS = ("Say Paris.", "Say the number that comes after one.")
ANSWER = "Paris"
TOPS = (20, 5)  # most endpoints list up to 20 tokens, some no more than 5
ENOUGH = 16  # tokens for an answer to a question of ours
# What says that an endpoint cannot do a thing, and not that it cannot be asked at all: a missing
# path is told like a missing model, and log-probabilities can be forbidden.
_REFUSALS: frozenset[Kind] = frozenset(
    {"model", "not_openai", "server", "context", "logprobs", "request", "forbidden"}
)
_SCORES = "it scores a given answer"
_TOKENIZES = "it tells its tokens by /tokenize"
_MANNERS = (
    Manner("chat", "max_tokens"),
    Manner("chat", "max_completion_tokens"),
    Manner("chat", "max_completion_tokens", temperature=False),
    Manner("chat", "max_tokens", temperature=False),
    Manner("responses", "max_output_tokens"),
    Manner("responses", "max_output_tokens", temperature=False),
    Manner("completions", "max_tokens"),
)
T = TypeVar("T")


@dataclass(frozen=True)
class Capabilities:
    """manner: how answers are had; None: not at all. labels: how the tokens of the first place are
    had, and top: how many; None and 0: not. text: how completions tell a prompt's
    log-probabilities; None: they do not. ids: whether they do so for token ids from `/tokenize`.
    template: whether that applies a chat template. chat: whether chat tells them. doubts: sentences
    about what could not be found out; it is then taken for what the endpoint cannot do.
    """

    manner: Manner | None
    labels: Manner | None = None
    top: int = 0
    text: Way | None = None
    ids: bool = False
    template: bool = False
    chat: bool = False
    doubts: tuple[str, ...] = ()


_KEPT = 600.0  # seconds: somebody may have started another server
_found: dict[tuple[tuple[str, ...], str], tuple[float, Capabilities]] = {}


def capabilities(connection: Connection, should_stop: ShouldStop) -> Capabilities:
    """Of one model at these addresses, as found out in the last ten minutes by this process.

    What a passing failure has left in doubt is asked again next time. Failure: it cannot be asked.
    """
    key = (connection.urls, connection.model)
    when, able = _found.get(key, (-_KEPT, None))
    if able is None or time.monotonic() - when > _KEPT:
        able = connection.loop.run(_probe(connection), should_stop)
        if not able.doubts:
            _found[key] = (time.monotonic(), able)
    return able


def forget(connection: Connection | None = None) -> None:
    """Ask the endpoint anew (None: every one), for it may be another server by now."""
    if connection is None:
        _found.clear()
    else:
        _found.pop((connection.urls, connection.model), None)


async def _probe(connection: Connection) -> Capabilities:
    doubts: list[str] = []
    manner, refusal = await _manner(connection, doubts)
    text = await _text(connection, doubts)
    ids = text is not None and await _ids(connection, text, doubts)
    template = ids and await _template(connection, doubts)
    chat = manner is not None and manner.api == "chat" and await _chat(connection, doubts)
    if manner is None and text is None:
        raise refusal
    labels, top = (None, 0) if manner is None else await _labels(connection, manner, doubts)
    return Capabilities(manner, labels, top, text, ids, template, chat, tuple(doubts))


async def _manner(connection: Connection, doubts: list[str]) -> tuple[Manner | None, Failure]:
    """The first way in which an answer comes, and the first refusal."""
    refusals: list[Failure] = []
    missing: set[Api] = set()
    for manner in _MANNERS:
        if manner.api in missing:
            continue
        asked = _asked(connection, manner, QUESTIONS[0], ENOUGH)
        what = f"it writes answers by {manner.api}"
        reply = await _tried(connection, asked, doubts, what, refusals)
        if reply is not None:
            thinks = reply.cut and not reply.text.strip()
            return replace(manner, thinks=thinks), _NO_ANSWER
        if refusals[-1].kind in ("model", "not_openai"):
            missing.add(manner.api)  # how it is asked there does not matter
    return None, refusals[0] if refusals else _NO_ANSWER


_NO_ANSWER = Failure("request", "The endpoint answers neither chat nor completions.")


async def _labels(
    connection: Connection, manner: Manner, doubts: list[str]
) -> tuple[Manner | None, int]:
    """How the likeliest tokens of the first place are had, and how many of them."""
    if manner.thinks:
        return None, 0  # the first token is of the thoughts
    others = [replace(manner, api="responses", limit="max_output_tokens")]
    for way in [manner, *(others if manner.api == "chat" else [])]:
        what = f"it lists the likeliest first tokens by {way.api}"
        for top in TOPS:
            replies = [
                await _tried(connection, _asked(connection, way, question, 1, top), doubts, what)
                for question in QUESTIONS
            ]
            one, other = (reply.first if reply is not None else () for reply in replies)
            if _are_probabilities(one) and _are_probabilities(other) and one != other:
                return way, min(top, max(len(one), len(other)))
    return None, 0


def _are_probabilities(listed: tuple[Listed, ...]) -> bool:
    """Whether these can be the likeliest of all tokens. One alone may be what was written."""
    if len(listed) < 2 or not all(math.isfinite(entry.logprob) for entry in listed):
        return False
    mass = sum(math.exp(entry.logprob) for entry in listed)
    return 1e-6 < mass < 1.001 and listed[0].logprob != listed[-1].logprob


async def _text(connection: Connection, doubts: list[str]) -> Way | None:
    for way in WAYS:
        last = []
        for text in TEXTS:
            told = await _tried(connection, of_text(connection, way, text), doubts, _SCORES)
            if told is None or not _spells(told, text):
                break
            last.append(told.logprobs[-1])
        if len(last) == len(TEXTS) and _differ(last):
            return way
    return None


async def _ids(connection: Connection, way: Way, doubts: list[str]) -> bool:
    """Whether `/tokenize` gives ids that completions take, and that are turned back into text."""
    asked = ids_of(connection, {"prompt": TEXTS[0], "add_special_tokens": False})
    ids = await _tried(connection, asked, doubts, _TOKENIZES)
    if not ids or len(ids) < 2:
        return False
    text = await _tried(connection, text_of(connection, ids), doubts, _TOKENIZES)
    told = await _tried(connection, of_text(connection, way, ids), doubts, _SCORES)
    # with prompt_logprobs the first token is not named: offsets could not be found
    named = way == "echo"
    return (
        named
        and str(text).strip() == TEXTS[0]
        and told is not None
        and len(told.texts) == len(ids)
        and _spells(told, TEXTS[0])
    )


async def _template(connection: Connection, doubts: list[str]) -> bool:
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": QUESTIONS[0]}],
        "add_generation_prompt": True,
    }
    ids = await _tried(connection, ids_of(connection, asked), doubts, _TOKENIZES)
    text = await _tried(connection, text_of(connection, ids), doubts, _TOKENIZES) if ids else None
    return bool(text) and QUESTIONS[0] in str(text) and text != QUESTIONS[0]


async def _chat(connection: Connection, doubts: list[str]) -> bool:
    last = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        told = await _tried(connection, of_chat(connection, messages, ANSWER), doubts, _SCORES)
        if told is None or not _ends(told, ANSWER):
            return False
        last.append(told.logprobs[-1])
    return _differ(last)


def _spells(told: PromptTokens, text: str) -> bool:
    """Whether the tokens spell the text, and all but the first have a log-probability."""
    spans = trailing_spans(told.texts, text)
    if spans is None or len(spans) < 2:
        return False
    return not np.isnan(told.logprobs[-len(spans) + 1 :]).any()


def _ends(told: PromptTokens, text: str) -> bool:
    spans = trailing_spans(told.texts, text)
    if not spans or len(spans) == len(told.texts):
        return False
    return not np.isnan(told.logprobs[-len(spans) :]).any()


def _differ(logprobs: list[float]) -> bool:
    """Whether the last word's log-probability depends on the text before it."""
    return max(logprobs) - min(logprobs) > 1e-6


def _asked(
    connection: Connection, manner: Manner, question: str, limit: int, top: int = 0
) -> Coroutine[Any, Any, Reply]:
    messages = [{"role": "user", "content": question}]
    return ask(connection, manner, messages, limit, top=top)


async def _tried(
    connection: Connection,
    asked: Coroutine[Any, Any, T],
    doubts: list[str],
    what: str,
    refusals: list[Failure] | None = None,
) -> T | None:
    """What was asked for; None where the endpoint cannot do that, or would not say so (a doubt)."""
    try:
        return await asked
    except Failure as failure:
        slow = failure.kind == "timeout" and connection.dispatcher.pool.answered
        if failure.kind not in _REFUSALS and not slow:
            raise
        if failure.passing:
            doubt = f"could not find out whether {what}, taken for no: {failure}"
            doubts += [] if doubt in doubts else [doubt]
        if refusals is not None:
            refusals.append(failure)
        return None
