"""Answers of servers read: whatever shape they have, what cannot be read is left out."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from spex_engine.backends.openai.asking import Listed, _read_chat, _read_completion, _read_responses
from spex_engine.backends.openai.budget import Cost
from spex_engine.backends.openai.prompt_tokens import _read

FIELDS = (
    *("choices", "message", "content", "logprobs", "tokens", "token_logprobs", "top_logprobs"),
    *("token", "logprob", "text", "output", "type", "prompt", "prompt_logprobs", "usage"),
    *("prompt_tokens", "decoded_token", "finish_reason", "12"),
)
PLAIN = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.sampled_from(FIELDS)
JSON = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner),
    max_leaves=20,
)
COST = Cost(3, 1)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_no_answer_is_too_strange_to_be_read(value: dict[str, Any]) -> None:
    for read in (_read_chat, _read_completion, _read_responses):
        reply = read(value, COST)
        assert isinstance(reply.text, str)
        assert all(entry.logprob <= 1e-6 for entry in reply.first)
    told = _read(value, COST)
    assert len(told.texts) == len(told.logprobs)
    assert all(math.isnan(number) or number <= 1e-6 for number in told.logprobs)


def test_text_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "Paris"}]
    reply = _read_chat({"choices": [{"message": {"content": parts}}]}, COST)
    assert reply.text == "It is Paris"


def test_what_was_written_is_listed_though_no_alternative() -> None:
    """OpenAI gives the token that was sampled beside the likeliest ones."""
    told = [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -0.5}]
    content = [{"token": "c", "logprob": -9.0, "top_logprobs": told}]
    reply = _read_chat({"choices": [{"logprobs": {"content": content}}]}, COST)
    assert reply.first == (Listed("b", -0.5), Listed("a", -1.0), Listed("c", -9.0))


def test_the_first_protocol_lists_alternatives_as_a_mapping() -> None:
    logprobs = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0, "b": -2.0}]}
    reply = _read_completion({"choices": [{"text": "a", "logprobs": logprobs}]}, COST)
    assert reply.first == (Listed("a", -1.0), Listed("b", -2.0))
    assert reply.length == 1
