"""A small endpoint for the tests of the server: a chat model whose log-probabilities are known."""

from __future__ import annotations

import math
from typing import Any

from tests.engine.openai_stub import Stub

KEY = "sk-test-0123456789abcdef"
ELSEWHERE = "https://models.invalid/v1"  # never resolves (RFC 6761)
PROMPT = "---\nsegments: line\n---\nAnna lives in Paris.\nBob likes tea.\nWhere does Anna live?\n"


def first_token(body: dict[str, Any], _: dict[str, str]) -> dict[str, Any]:
    """A chat model that knows where Anna lives if it was told, and says its log-probabilities."""
    said = body["messages"][-1]["content"]
    paris = 0.9 if "Paris" in said else 0.1
    listed = [
        {"token": token, "logprob": math.log(p), "bytes": list(token.encode())}
        for token, p in sorted({"Paris": paris, "Rome": 1 - paris}.items(), key=lambda t: -t[1])
    ]
    entry = {**listed[0], "top_logprobs": listed if body.get("top_logprobs") else []}
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": listed[0]["token"]},
        "logprobs": {"content": [entry]} if body.get("logprobs") else None,
    }
    usage = {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [choice],
        "usage": usage,
    }


def chat_stub() -> Stub:
    return Stub({"/v1/chat/completions": first_token})
