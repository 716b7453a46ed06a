"""Servers of OpenAI's protocol as they are documented, each with the answers of one small model.

A dialect is what `openai_stub.Stub` takes as handlers. Behind all of them is the embedded model, so
that log-probabilities are real ones and can be compared with the local backend's. Sources: the
OpenAPI description in the openai SDK (OpenAI, Azure), vLLM's and SGLang's serving code, Together's
client, the issues and docs of Ollama, llama.cpp and LM Studio named in docs/endpoints.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from openai_stub import Handler, Reply, error

from spex_engine.backends.demo.model import load

Body = dict[str, Any]
Handlers = dict[str, Handler]


class Brain:
    """The embedded model as a server sees it: text in, tokens and their log-probabilities out."""

    def __init__(self, template: bool = True) -> None:
        self.demo = load()
        self.template = template
        self._encoded: dict[tuple[int, ...], str] = {}

    def encode(self, text: str) -> list[int]:
        ids = list(self.demo.tokenizer.encode(text, add_special_tokens=False).ids)
        self._encoded[tuple(ids)] = text
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text that was encoded so: this tokenizer's own decoder puts blanks after lines."""
        return self._encoded.get(tuple(ids), self.text(ids))

    def text(self, ids: Sequence[int]) -> str:
        return str(self.demo.tokenizer.decode(list(ids), skip_special_tokens=False))

    def token(self, token: int) -> str:
        return self.text([token])

    def render(self, messages: Sequence[Mapping[str, str]], generate: bool = True) -> str:
        parts = [f"{m['role'].title()}: {m['content']}" for m in messages]
        return "\n".join([*parts, "Answer:"] if generate else parts)

    def next(self, ids: Sequence[int]) -> np.ndarray:
        """log p of every token in the next place, float (V,)."""
        hidden = self.demo.model.hidden(np.array([list(ids) or [self.demo.end]]))
        return self.demo.model.logprobs(hidden[0, -1]).astype(np.float64)

    def told(self, ids: Sequence[int]) -> list[float | None]:
        """log p of every token after those before it; the first has none."""
        hidden = self.demo.model.hidden(np.array([list(ids)]))[0]
        found = self.demo.model.logprobs(hidden)
        return [None, *(float(found[i, token]) for i, token in enumerate(ids[1:]))]

    def generate(self, ids: Sequence[int], limit: int) -> list[int]:
        ids = list(ids)
        written: list[int] = []
        while len(written) < limit:
            token = int(self.next([*ids, *written]).argmax())
            if token == self.demo.end:
                break
            written.append(token)
        return written


def usage(read: int, written: int) -> Body:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def finish(body: Body, written: int) -> str:
    return "length" if written == body.get("max_tokens", 16) else "stop"


def alternatives(logprobs: np.ndarray, brain: Brain, top: int) -> list[tuple[str, float]]:
    return [(brain.token(int(i)), float(logprobs[i])) for i in np.argsort(-logprobs)[:top]]


def chat_logprobs(brain: Brain, ids: list[int], written: list[int], top: int) -> Body:
    content = []
    for i, token in enumerate(written):
        found = brain.next([*ids, *written[:i]])
        listed = [
            {"token": text, "logprob": p, "bytes": list(text.encode())}
            for text, p in alternatives(found, brain, top)
        ]
        text = brain.token(token)
        content.append(
            {
                "token": text,
                "logprob": float(found[token]),
                "bytes": list(text.encode()),
                "top_logprobs": listed,
            }
        )
    return {"content": content}


def chat_answer(
    body: Body, brain: Brain, *, most: int | None = 20, limit: str | None = None
) -> Body | Reply:
    """Chat as OpenAI answers it; most: the most alternatives it lists, None: it ignores them."""
    ids = brain.encode(brain.render(body["messages"]))
    asked = body.get("max_completion_tokens") or body.get("max_tokens") or 16
    written = brain.generate(ids, asked if limit is None else body.get(limit, 16))
    choice: Body = {
        "index": 0,
        "message": {"role": "assistant", "content": brain.text(written)},
        "finish_reason": "length" if len(written) == asked else "stop",
        "logprobs": None,
    }
    if body.get("logprobs") and most is not None:
        top = body.get("top_logprobs", 0)
        if top > most:
            return error(400, f"top_logprobs must be at most {most}", param="top_logprobs")
        choice["logprobs"] = chat_logprobs(brain, ids, written, top)
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [choice],
        "usage": usage(len(ids), len(written)),
    }


def completion(body: Body, choice: Body, read: int, written: int, **more: Any) -> Body:
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": finish(body, written), **choice}],
        "usage": usage(read, written),
        **more,
    }


def echoing(body: Body, brain: Brain) -> Body:
    """Completions with echo and logprobs over prompt and answer, as in OpenAI's first protocol."""
    prompt = body["prompt"]
    ids = brain.encode(prompt) if isinstance(prompt, str) else list(prompt)
    written = brain.generate(ids, body.get("max_tokens", 16))
    shown = [*ids, *written] if body.get("echo") else written
    choice: Body = {"text": brain.text(shown), "logprobs": None}
    if body.get("logprobs") is not None:
        told = brain.told([*ids, *written])[-len(shown) :] if shown else []
        tokens = [brain.token(token) for token in shown]
        starts = np.cumsum([0, *map(len, tokens)])[:-1].tolist()
        choice["logprobs"] = {
            "tokens": tokens,
            "token_logprobs": told,
            "text_offset": starts,
            "top_logprobs": [
                None if p is None else {token: p} for token, p in zip(tokens, told, strict=True)
            ],
        }
    return completion(body, choice, len(ids), len(written))


def prompt_logprobs(brain: Brain, ids: list[int]) -> list[Body | None]:
    """vLLM's: for each token of the prompt what it is and how likely, none for the first."""
    return [
        None
        if p is None
        else {str(token): {"logprob": p, "rank": 1, "decoded_token": brain.token(token)}}
        for token, p in zip(ids, brain.told(ids), strict=True)
    ]


def vllm(
    brain: Brain, tokenize: bool = True, chat: bool = True, continues: bool = True
) -> Handlers:
    """vLLM. tokenize: its own paths can be reached; chat: prompt_logprobs work there."""

    def completions(body: Body, headers: Mapping[str, str]) -> Body:
        answer = echoing(body, brain)
        prompt = body["prompt"]
        ids = brain.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if body.get("prompt_logprobs") is not None:
            answer["choices"][0]["prompt_logprobs"] = prompt_logprobs(brain, ids)
        return answer

    def chatting(body: Body, headers: Mapping[str, str]) -> Body | Reply:
        if not brain.template:
            return error(
                400,
                "As of transformers v4.44, default chat template is no longer allowed, so you must "
                "provide a chat template if the tokenizer does not define one.",
                type="BadRequestError",
            )
        if not body.get("continue_final_message") or not continues:
            answer = chat_answer(body, brain)
            if isinstance(answer, dict) and body.get("prompt_logprobs") is not None and chat:
                ids = brain.encode(brain.render(body["messages"]))
                answer["prompt_logprobs"] = prompt_logprobs(brain, ids)
            return answer
        *before, last = body["messages"]
        ids = brain.encode(brain.render(before) + " " + last["content"].strip())
        written = brain.generate(ids, body["max_tokens"])
        found = prompt_logprobs(brain, ids) if chat and "prompt_logprobs" in body else None
        message = {"role": "assistant", "content": brain.text(written)}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
            "prompt_logprobs": found,
            "usage": usage(len(ids), len(written)),
        }

    def tokenizing(body: Body, headers: Mapping[str, str]) -> Body | Reply:
        if "messages" in body:
            if not brain.template:
                return error(400, "no chat template")
            ids = brain.encode(brain.render(body["messages"]))
        else:
            ids = brain.encode(body["prompt"])
        return {"tokens": ids, "count": len(ids), "max_model_len": 1024, "token_strs": None}

    own: Handlers = {
        "/tokenize": tokenizing,
        "/detokenize": lambda body, headers: {"prompt": brain.decode(body["tokens"])},
    }
    return {
        "/v1/completions": completions,
        "/v1/chat/completions": chatting,
        **(own if tokenize else {}),
    }


def sglang(brain: Brain, tokenize: bool = False) -> Handlers:
    """SGLang's OpenAI routes: echo with logprobs in completions, nothing of the prompt in chat.

    tokenize: newer versions have paths of that name, for text and not for messages.
    """

    def completions(body: Body, headers: Mapping[str, str]) -> Body | Reply:
        if not body["prompt"]:
            return error(400, "Prompt cannot be empty")
        return echoing(body, brain)

    def tokenizing(body: Body, headers: Mapping[str, str]) -> Body | Reply:
        if "prompt" not in body:
            return Reply(422, {"detail": [{"loc": ["body", "prompt"], "msg": "Field required"}]})
        ids = brain.encode(body["prompt"])
        return {"tokens": ids, "count": len(ids), "max_model_len": 1024}

    own: Handlers = {
        "/tokenize": tokenizing,
        "/detokenize": lambda body, headers: {"text": brain.decode(body["tokens"])},
    }
    return {
        "/v1/completions": completions,
        "/v1/chat/completions": lambda body, headers: chat_answer(body, brain),
        **(own if tokenize else {}),
    }


def together(brain: Brain) -> Handlers:
    """Together: the prompt's tokens in a field of their own, the choice holds the answer's."""

    def completions(body: Body, headers: Mapping[str, str]) -> Body:
        ids = brain.encode(body["prompt"])
        written = brain.generate(ids, body["max_tokens"])
        choice: Body = {"text": brain.text(written), "logprobs": None}
        more: Body = {"prompt": []}
        if body.get("echo"):
            told = {
                "tokens": [brain.token(token) for token in ids],
                "token_logprobs": brain.told(ids),
            }
            logprobs = told if body.get("logprobs") else None
            more["prompt"] = [{"text": body["prompt"], "logprobs": logprobs}]
        if body.get("logprobs"):
            found = brain.told([*ids, *written])[len(ids) :]
            tokens = [brain.token(token) for token in written]
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": found}
        return completion(body, choice, len(ids), len(written), **more)

    return {
        "/v1/completions": completions,
        "/v1/chat/completions": lambda body, headers: chat_answer(body, brain, most=20),
    }


def silent_completions(brain: Brain) -> Callable[[Body, Mapping[str, str]], Body]:
    """Completions that ignore echo and logprobs: Ollama, and whoever takes any field."""

    def completions(body: Body, headers: Mapping[str, str]) -> Body:
        prompt = body["prompt"] if isinstance(body["prompt"], str) else ""
        ids = brain.encode(prompt)
        written = brain.generate(ids, body.get("max_tokens", 16))
        return completion(body, {"text": brain.text(written)}, len(ids), len(written))

    return completions


def ollama(brain: Brain) -> Handlers:
    """Ollama from 0.12.11: log-probabilities of what is written, max_completion_tokens ignored."""
    return {
        "/v1/completions": silent_completions(brain),
        "/v1/chat/completions": lambda body, headers: chat_answer(body, brain, limit="max_tokens"),
    }


def llama_cpp(brain: Brain) -> Handlers:
    """llama.cpp's server: echo is ignored, completions tell log-probabilities as chat does."""

    def completions(body: Body, headers: Mapping[str, str]) -> Body:
        ids = brain.encode(body["prompt"])
        written = brain.generate(ids, body.get("max_tokens", 16))
        found = None
        if body.get("logprobs"):
            found = chat_logprobs(brain, ids, written, body["logprobs"])
        return completion(
            body, {"text": brain.text(written), "logprobs": found}, len(ids), len(written)
        )

    return {
        "/v1/completions": completions,
        "/v1/chat/completions": lambda body, headers: chat_answer(body, brain, most=1000),
    }


def responses_answer(body: Body, brain: Brain, empty: bool = False) -> Body | Reply:
    """The Responses API; empty: LM Studio's, which lists no token whatever one includes."""
    if body["max_output_tokens"] < 16:
        return error(400, "Expected a value >= 16", param="max_output_tokens")
    ids = brain.encode(brain.render(body["input"]))
    written = brain.generate(ids, body["max_output_tokens"])
    listed: list[Body] = []
    if "message.output_text.logprobs" in body.get("include", []) and not empty:
        listed = chat_logprobs(brain, ids, written, body["top_logprobs"])["content"]
    text = {
        "type": "output_text",
        "text": brain.text(written),
        "annotations": [],
        "logprobs": listed,
    }
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
    counted = {"input_tokens": len(ids), "output_tokens": len(written)}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": body["model"],
        "status": "completed",
        "output": [{**item, "content": [text]}],
        "usage": {**counted, "total_tokens": sum(counted.values())},
    }


def lm_studio(brain: Brain) -> Handlers:
    """LM Studio: chat without log-probabilities, Responses with empty ones."""
    return {
        "/v1/completions": silent_completions(brain),
        "/v1/chat/completions": lambda body, headers: chat_answer(body, brain, most=None),
        "/v1/responses": lambda body, headers: responses_answer(body, brain, empty=True),
    }


_CHAT_FIELDS = {
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature"),
    *("logprobs", "top_logprobs"),
}


def openai(brain: Brain) -> Handlers:
    """OpenAI's chat models: unknown fields are refused, and so are completions."""

    def chat(body: Body, headers: Mapping[str, str]) -> Body | Reply:
        unknown = body.keys() - _CHAT_FIELDS
        if unknown:
            return error(400, f"Unrecognized request argument supplied: {min(unknown)}")
        return chat_answer(body, brain)

    return {
        "/v1/chat/completions": chat,
        "/v1/responses": lambda body, headers: responses_answer(body, brain),
        "/v1/completions": lambda body, headers: error(
            404,
            "This is a chat model and not supported in the v1/completions endpoint. Did you mean "
            "to use v1/chat/completions?",
            param="model",
        ),
    }


def openai_responses_only(brain: Brain) -> Handlers:
    """Models that are served by the Responses API alone."""
    return {
        **openai(brain),
        "/v1/chat/completions": lambda body, headers: error(
            404, "This model is only supported in v1/responses and not in v1/chat/completions."
        ),
    }


def openai_reasoning(brain: Brain, thinking: int = 100) -> Handlers:
    """Reasoning models: max_tokens, temperature and logprobs are refused, thoughts cost tokens."""

    def chat(body: Body, headers: Mapping[str, str]) -> Body | Reply:
        if "max_tokens" in body:
            return error(
                400,
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.",
                code="unsupported_parameter",
            )
        if "temperature" in body:
            return error(
                400,
                "Unsupported value: 'temperature' does not support 0 with this model. Only the "
                "default (1) value is supported.",
                code="unsupported_value",
            )
        if "logprobs" in body:
            return error(403, "You are not allowed to request logprobs from this model.")
        left = body["max_completion_tokens"] - thinking
        if left <= 0:
            answer = chat_answer({**body, "max_completion_tokens": 1}, brain)
            assert isinstance(answer, dict)
            answer["choices"][0] |= {
                "message": {"role": "assistant", "content": ""},
                "finish_reason": "length",
            }
            return answer
        return chat_answer({**body, "max_completion_tokens": left}, brain)

    return {
        "/v1/chat/completions": chat,
        "/v1/completions": openai(brain)["/v1/completions"],
        "/v1/responses": lambda body, headers: error(
            400, "logprobs are not supported with reasoning models."
        ),
    }


def azure(brain: Brain, deployment: str) -> Handlers:
    """Azure's own paths, which name the deployment."""
    root = f"/openai/deployments/{deployment}"
    found = openai(brain)
    return {
        f"{root}/chat/completions": found["/v1/chat/completions"],
        f"{root}/completions": lambda body, headers: error(
            400, "The completion operation does not work with the specified model."
        ),
    }


def openrouter(brain: Brain) -> Handlers:
    """OpenRouter: the provider that is asked first drops the fields, the next one does not."""
    dropped: set[str] = set()

    def chat(body: Body, headers: Mapping[str, str]) -> Body | Reply:
        text = body["messages"][-1]["content"]
        drops = not text.startswith("Say") and text not in dropped
        dropped.add(text)
        return chat_answer(body, brain, most=None if drops else 20)

    return {"/v1/chat/completions": chat, "/v1/completions": silent_completions(brain)}


def ignoring(brain: Brain) -> Handlers:
    """A server that takes every field and reads none but the messages."""
    return {
        "/v1/completions": silent_completions(brain),
        "/v1/chat/completions": lambda body, headers: chat_answer(body, brain, most=None),
        "/v1/responses": lambda body, headers: responses_answer(body, brain, empty=True),
    }


def pretending(brain: Brain) -> Handlers:
    """A server whose log-probabilities are all the same, whatever it reads."""

    def completions(body: Body, headers: Mapping[str, str]) -> Body:
        answer = echoing(body, brain)
        told = answer["choices"][0]["logprobs"]
        if told:
            told["token_logprobs"] = [0.0 for _ in told["tokens"]]
        return answer

    def chat(body: Body, headers: Mapping[str, str]) -> Body | Reply:
        answer = chat_answer(body, brain, most=20)
        assert isinstance(answer, dict)
        for token in (answer["choices"][0]["logprobs"] or {}).get("content", []):
            for listed in token["top_logprobs"]:
                listed["logprob"] = -1.0
        return answer

    return {"/v1/completions": completions, "/v1/chat/completions": chat}


def known(probabilities: Mapping[str, float]) -> Handlers:
    """Chat whose first token has these probabilities, whatever is asked but for our own probes."""

    def chat(body: Body, headers: Mapping[str, str]) -> Body:
        probing = body["messages"][-1]["content"].startswith("Say")
        shift = len(body["messages"][-1]["content"]) * 1e-3 if probing else 0.0
        listed = [
            {"token": token, "logprob": math.log(p) - shift, "bytes": None}
            for token, p in sorted(probabilities.items(), key=lambda item: -item[1])
        ][: body.get("top_logprobs", 0)]
        first = {**listed[0], "top_logprobs": listed} if listed else None
        text = max(probabilities, key=lambda token: probabilities[token])
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                    "logprobs": {"content": [first]} if first else None,
                }
            ],
            "usage": usage(20, 1),
        }

    return {
        "/v1/chat/completions": chat,
        "/v1/completions": lambda body, headers: error(404, "Not Found"),
    }
