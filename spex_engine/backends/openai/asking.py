"""One question to an endpoint by whichever of its three ways to write an answer it has.

Chat completions, Responses and plain completions, each through the SDK, read as plain dictionaries:
what servers of this protocol leave out, rename or add is met here. It must not know masks, tiers or
files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from spex_engine.backends.openai.budget import Cost
from spex_engine.backends.openai.dispatch import Answer, Dispatcher
from spex_engine.backends.openai.failures import not_openai
from spex_engine.backends.openai.loop import Loop
from spex_engine.backends.openai.messages import Messages, as_text
from spex_engine.backends.openai.tokens import PER_MESSAGE, token_count

Api = Literal["chat", "responses", "completions"]
THINKING = 2048  # tokens that a reasoning model may take before it begins to answer
LEAST_OUTPUT = 16  # what the Responses API lets one ask for


@dataclass(frozen=True)
class Manner:
    """How an endpoint's model is asked: limit is the field that bounds the length of an answer.

    temperature: whether it may be set. thinks: whether tokens are written before the answer.
    """

    api: Api = "chat"
    limit: str = "max_tokens"
    temperature: bool = True
    thinks: bool = False


@dataclass(frozen=True, eq=False)
class Connection:
    """A model at the endpoints that serve it."""

    model: str
    urls: tuple[str, ...]
    dispatcher: Dispatcher
    loop: Loop


@dataclass(frozen=True)
class Listed:
    """A token that might have been written, and its log-probability (nats)."""

    token: str
    logprob: float


@dataclass(frozen=True)
class Reply:
    """first: the tokens listed for the answer's first place, likeliest first; (): none were.

    length: tokens of the answer, None where it does not tell. cut: whether it was not finished.
    """

    text: str
    cost: Cost
    first: tuple[Listed, ...] = ()
    length: int | None = None
    cut: bool = False


async def ask(
    connection: Connection,
    manner: Manner,
    messages: Messages,
    limit: int,
    *,
    sampled: bool = False,
    top: int = 0,
) -> Reply:
    """The answer of at most ``limit`` tokens; the likeliest one, or a sampled one at the endpoint's
    own temperature. top: how many tokens to list for its first place. Raises Failure."""
    model = connection.model
    body = _body(model, manner, messages, limit, sampled, top)
    create = _METHODS[manner.api]
    most = Cost(most_tokens(model, messages), body[manner.limit])
    answer = await connection.dispatcher.request(lambda client: create(client)(**body), most)
    return _READERS[manner.api](told(answer, _HELD_IN[manner.api]), answer.cost)


def allowed(manner: Manner, limit: int) -> int:
    """How many tokens may be written for an answer of at most ``limit``."""
    return limit + (THINKING if manner.thinks else 0)


def told(answer: Answer, field: str) -> dict[str, Any]:
    """What an endpoint said, as a dictionary. Failure where the field that answers are held in is
    not there: some servers have a kind word and status 200 for any request."""
    value = plain(answer.value)
    if not isinstance(value.get(field), list):
        raise not_openai(answer.address, 200)
    return value


def most_tokens(model: str, messages: Messages) -> int:
    """At most so many tokens are read of ``messages``."""
    most = token_count(model).most
    return sum(most(message["content"]) + PER_MESSAGE for message in messages) + PER_MESSAGE


def plain(value: Any) -> dict[str, Any]:
    """An SDK object as a dictionary, unknown fields included; {} for what is none."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="python", warnings=False)
    return mapping(value)


def mapping(value: Any) -> dict[str, Any]:
    """A dictionary as it is; {} for anything else."""
    return value if isinstance(value, dict) else {}


def _body(
    model: str, manner: Manner, messages: Messages, limit: int, sampled: bool, top: int
) -> dict[str, Any]:
    limit = allowed(manner, limit)
    body: dict[str, Any] = {"model": model, manner.limit: limit}
    if manner.temperature and not sampled:
        body["temperature"] = 0
    if manner.api == "chat":
        body["messages"] = messages
        if top:
            body |= {"logprobs": True, "top_logprobs": top}
    elif manner.api == "responses":
        body |= {"input": messages, "store": False, manner.limit: max(limit, LEAST_OUTPUT)}
        if top:
            body |= {"top_logprobs": top, "include": ["message.output_text.logprobs"]}
    else:
        body["prompt"] = as_text(messages)
        if top:
            body["logprobs"] = top
    return body


_METHODS: dict[Api, Any] = {
    "chat": lambda client: client.chat.completions.with_raw_response.create,
    "responses": lambda client: client.responses.with_raw_response.create,
    "completions": lambda client: client.completions.with_raw_response.create,
}


def _read_chat(value: Mapping[str, Any], cost: Cost) -> Reply:
    choice = first(value.get("choices"))
    text = _text(mapping(choice.get("message")).get("content"))
    tokens = entries(mapping(choice.get("logprobs")).get("content"))
    return Reply(text, cost, _listed(tokens), len(tokens) or None, _is_cut(choice))


def _read_responses(value: Mapping[str, Any], cost: Cost) -> Reply:
    parts = [
        part
        for item in entries(value.get("output"))
        for part in entries(item.get("content"))
        if part.get("type") == "output_text"
    ]
    text = "".join(_text(part.get("text")) for part in parts)
    tokens = [token for part in parts for token in entries(part.get("logprobs"))]
    cut = value.get("status") == "incomplete"
    return Reply(text, cost, _listed(tokens), len(tokens) or None, cut)


def _read_completion(value: Mapping[str, Any], cost: Cost) -> Reply:
    choice = first(value.get("choices"))
    logprobs = mapping(choice.get("logprobs"))
    tokens = entries(logprobs.get("content"))  # llama.cpp answers here as in chat
    listed = _listed(tokens)
    if not listed:
        alternatives = first(logprobs.get("top_logprobs"))
        listed = _ordered([{"token": token, "logprob": p} for token, p in alternatives.items()])
    written = logprobs.get("tokens")
    length = len(tokens) or (len(written) if isinstance(written, list) else 0) or None
    return Reply(_text(choice.get("text")), cost, listed, length, _is_cut(choice))


_HELD_IN: dict[Api, str] = {"chat": "choices", "responses": "output", "completions": "choices"}
_READERS = {"chat": _read_chat, "responses": _read_responses, "completions": _read_completion}


def first(value: Any) -> dict[str, Any]:
    """The first dictionary of a list; {} where there is none."""
    return next(iter(entries(value)), {})


def entries(value: Any) -> list[dict[str, Any]]:
    """The dictionaries of a list; [] for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _is_cut(choice: Mapping[str, Any]) -> bool:
    return choice.get("finish_reason") == "length"


def _text(content: Any) -> str:
    """Text as such, or in parts, as some servers give it."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in entries(content))
    return content if isinstance(content, str) else ""


def _listed(tokens: list[dict[str, Any]]) -> tuple[Listed, ...]:
    """What might have stood in the first place: the alternatives, and what does stand there."""
    if not tokens:
        return ()
    return _ordered([tokens[0], *entries(tokens[0].get("top_logprobs"))])


def _ordered(told: list[dict[str, Any]]) -> tuple[Listed, ...]:
    # the first of equal texts counts: servers list what was written among the alternatives again
    kept: dict[str, Listed] = {}
    for entry in told:
        token, logprob = entry.get("token"), entry.get("logprob")
        if not isinstance(token, str) or not isinstance(logprob, int | float):
            continue
        if isfinite(logprob) and logprob <= 1e-6:
            kept.setdefault(token, Listed(token, float(logprob)))
    return tuple(sorted(kept.values(), key=lambda listed: -listed.logprob))
