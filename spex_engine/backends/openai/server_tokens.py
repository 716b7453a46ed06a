"""The prompt as token ids, made by the server's own tokenizer and chat template.

vLLM and SGLang have `/tokenize` and `/detokenize` beside the protocol. With ids, segments are
dropped as the local models drop them: the joined text is never tokenised again, and the answer's
tokens are the same after every mask. It must not know masks, questions or tiers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spex_engine.backends.base import ShouldStop
from spex_engine.backends.causal import FIXED, Ids, TokenisedPrompt
from spex_engine.backends.openai.alignment import Span, trailing_spans
from spex_engine.backends.openai.asking import Connection, plain
from spex_engine.backends.openai.budget import Cost
from spex_engine.backends.openai.messages import EMPTY
from spex_engine.backends.openai.prompt_tokens import Way, of_text
from spex_engine.backends.rendering import render_chat, render_plain
from spex_engine.backends.tokens import continuation, tokenise_pieces
from spex_engine.wire import ModelError, Prompt

_RAW = {"X-Stainless-Raw-Response": "true"}  # how the SDK is told to give the whole response
Body = dict[str, Any]


async def ids_of(connection: Connection, body: Body) -> list[int]:
    """What `/tokenize` makes of a prompt or of messages; [] where it answers otherwise."""
    ids = (await _post(connection, "tokenize", body)).get("tokens")
    return ids if isinstance(ids, list) and all(isinstance(i, int) for i in ids) else []


async def text_of(connection: Connection, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens included."""
    body = {"tokens": list(ids), "skip_special_tokens": False}
    told = await _post(connection, "detokenize", body)
    return str(told.get("prompt", told.get("text", "")))  # vLLM, SGLang


async def _post(connection: Connection, path: str, body: Body) -> dict[str, Any]:
    def call(client: Any) -> Any:
        root = str(client.base_url).rstrip("/").removesuffix("/v1")
        return client.post(
            f"{root}/{path}",
            cast_to=object,
            body={"model": connection.model, **body},
            options={"headers": _RAW},
        )

    return plain((await connection.dispatcher.request(call, Cost(0, 0))).value)


class ServerTokens:
    """A server's tokenizer, waited for. template: whether the model has a chat template."""

    def __init__(
        self, connection: Connection, way: Way, template: bool, should_stop: ShouldStop
    ) -> None:
        self.template = template
        self._connection = connection
        self._way = way
        self._should_stop = should_stop
        self._begin: list[int] = []

    def tokenise(self, prompt: Prompt) -> TokenisedPrompt:
        """The full prompt with the segment of each token. ModelError where the server's own text
        or tokens do not fit together; Failure where it does not answer."""
        if self.template:
            rendered = render_chat(prompt.messages, self._rendered)
        else:
            rendered = render_plain(prompt.messages)
            plainly, begun = self._ids("a", False), self._ids("a", True)
            self._begin = begun[: len(begun) - len(plainly)]
        tokenised = tokenise_pieces(rendered.pieces, self._encode, prompt.n_segments)
        begin = np.array(self._begin, dtype=np.int64)
        return TokenisedPrompt(
            ids=np.concatenate([begin, tokenised.ids]),
            segments=np.concatenate([np.full_like(begin, FIXED), tokenised.segments]),
            n_segments=prompt.n_segments,
            text=tokenised.text,
            notes=rendered.notes,
        )

    def answer(self, prompt: TokenisedPrompt, text: str) -> tuple[Ids, tuple[Span, ...]]:
        """The ids of ``text`` as an answer to ``prompt``, and where in it each of them stands."""
        ids = continuation(
            prompt,
            text,
            lambda whole: (self._ids(whole, False), ()),
            self._begin,
            space=not self.template,
        )
        sent = [*prompt.ids.tolist(), *ids.tolist()]
        told = self._wait(of_text(self._connection, self._way, sent))
        apart = self.template or prompt.text[-1:].isspace() or text[0].isspace()
        spelt = prompt.text + ("" if apart else " ") + text
        spans = self._spans(told.texts, spelt, len(prompt.text), len(ids))
        before = len(spelt) - len(text)
        return ids, tuple((max(start - before, 0), max(end - before, 0)) for start, end in spans)

    def blank(self) -> Ids:
        """What stands for a prompt of which nothing is left."""
        return np.array(self._ids(EMPTY, True), dtype=np.int64)

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        body = {"messages": [dict(message) for message in messages], "add_generation_prompt": True}
        ids = self._wait(ids_of(self._connection, body))
        text: str = self._wait(text_of(self._connection, ids))
        if not ids or self._ids(text, False) != ids:
            raise ModelError(_MISFIT.format(model=self._connection.model))
        return text

    def _encode(self, text: str) -> tuple[list[int], list[Span]]:
        ids = self._ids(text, False)
        told = self._wait(of_text(self._connection, self._way, ids))
        return ids, self._spans(told.texts, text, 0, len(ids))

    def _spans(self, texts: Sequence[str], spelt: str, start: int, count: int) -> list[Span]:
        """Of the last ``count`` tokens, which spell ``spelt[start:]``; ModelError otherwise."""
        spans = trailing_spans(texts, spelt, start)
        more = count - len(spans or [])  # a blank that the tokenizer begins every text with
        if spans is None or more < 0 or "".join(texts[-count : more - count or None]).strip():
            raise ModelError(_MISFIT.format(model=self._connection.model))
        return [(start, start + 1)] * more + spans

    def _ids(self, text: str, special: bool) -> list[int]:
        asked = ids_of(self._connection, {"prompt": text, "add_special_tokens": special})
        ids: list[int] = self._wait(asked)
        return ids

    def _wait(self, coroutine: Any) -> Any:
        return self._connection.loop.run(coroutine, self._should_stop)


_MISFIT = (
    "The server's tokens of {model} do not spell its text; score answers by an endpoint without "
    "/tokenize, or report the server's version."
)
