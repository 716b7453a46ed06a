"""The log-probabilities of a prompt's own tokens, in each of the ways in which servers tell them.

vLLM has `prompt_logprobs` (completions and chat), the old completions protocol has `echo` with
`logprobs`, which Together answers in a field of its own. What comes back is checked by who asked:
many servers accept these fields and ignore them. It must not know masks or targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any, Literal

from spex_engine.backends.openai.asking import Connection, first, mapping, most_tokens, told
from spex_engine.backends.openai.budget import Cost
from spex_engine.backends.openai.messages import Messages
from spex_engine.backends.openai.tokens import PER_MESSAGE, token_count

Way = Literal["echo", "prompt_logprobs"]
WAYS: tuple[Way, ...] = ("echo", "prompt_logprobs")
# Not 0: vLLM computes one all the same, and to some servers 0 means no limit.
_WRITTEN = 1


@dataclass(frozen=True)
class PromptTokens:
    """texts and log-probabilities (nats) of a prompt's tokens; the first has none, nan."""

    texts: tuple[str, ...]
    logprobs: tuple[float, ...]
    cost: Cost


async def of_text(connection: Connection, way: Way, prompt: str | Sequence[int]) -> PromptTokens:
    """Of a text, or of token ids, by completions; empty where none are told. Raises Failure."""
    if isinstance(prompt, str):
        most = token_count(connection.model).most(prompt) + PER_MESSAGE
    else:
        most, prompt = len(prompt), list(prompt)
    body: dict[str, Any] = {"model": connection.model, "prompt": prompt, "max_tokens": _WRITTEN}
    body |= {"echo": True, "logprobs": 1} if way == "echo" else {}
    extra = {"prompt_logprobs": 0} if way == "prompt_logprobs" else None
    answer = await connection.dispatcher.request(
        lambda client: client.completions.with_raw_response.create(**body, extra_body=extra),
        Cost(most, _WRITTEN),
    )
    return _read(told(answer, "choices"), answer.cost)


async def of_chat(connection: Connection, messages: Messages, answer_text: str) -> PromptTokens:
    """Of messages and the answer that the model is to have begun with; Raises Failure."""
    continued = [*messages, {"role": "assistant", "content": answer_text}]
    extra = {
        "prompt_logprobs": 0,
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    answer = await connection.dispatcher.request(
        lambda client: client.chat.completions.with_raw_response.create(
            model=connection.model, messages=continued, max_tokens=_WRITTEN, extra_body=extra
        ),
        Cost(most_tokens(connection.model, continued), _WRITTEN),
    )
    return _read(told(answer, "choices"), answer.cost)


def _read(value: Mapping[str, Any], cost: Cost) -> PromptTokens:
    choice = first(value.get("choices"))
    listed = choice.get("prompt_logprobs") or value.get("prompt_logprobs")  # vLLM
    if isinstance(listed, list):
        places = [mapping(next(iter(mapping(place).values()), None)) for place in listed]
        spelt = [place.get("decoded_token") for place in places]
        return _tokens(spelt, [place.get("logprob") for place in places], cost)
    part = first(value.get("prompt"))  # Together
    logprobs = mapping((part or choice).get("logprobs"))
    texts, numbers = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if not isinstance(texts, list) or not isinstance(numbers, list):
        return PromptTokens((), (), cost)
    if not part:  # what was written follows what was read
        read = mapping(value.get("usage")).get("prompt_tokens")
        last = read if isinstance(read, int) and read > 0 else max(len(texts) - _WRITTEN, 0)
        texts, numbers = texts[:last], numbers[:last]
    return _tokens(texts, numbers, cost)


def _tokens(texts: list[Any], numbers: list[Any], cost: Cost) -> PromptTokens:
    if len(texts) != len(numbers):
        return PromptTokens((), (), cost)
    spelt = tuple(text if isinstance(text, str) else "" for text in texts)
    return PromptTokens(spelt, tuple(map(_number, numbers)), cost)


def _number(value: Any) -> float:
    usable = isinstance(value, int | float) and isfinite(value) and value <= 1e-6
    return float(value) if usable else nan
