"""Tier T1: the log-probability of each token of given answers, told by the endpoint.

Either the prompt goes as token ids of the server's own making, or as text (messages or one string)
whose last tokens are then the answer's. Only these are read. It must not know how it was found out
that the endpoint can do so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Scale, ScoredTarget, Scores, ShouldStop, Tier
from spex_engine.backends.causal import Ids, TokenisedPrompt
from spex_engine.backends.openai.alignment import Span, trailing_spans
from spex_engine.backends.openai.asking import Connection
from spex_engine.backends.openai.failures import Failure
from spex_engine.backends.openai.messages import Answer, canonical, masked_messages, masked_text
from spex_engine.backends.openai.prompt_tokens import PromptTokens, Way, of_chat, of_text
from spex_engine.backends.openai.rows import (
    Problems,
    Row,
    Rows,
    afterwards,
    digest,
    scores_as_they_come,
    together,
)
from spex_engine.backends.openai.server_tokens import ServerTokens
from spex_engine.wire import ModelError, Prompt

_UNFIT = "the answer's tokens are others after what is left of the prompt"


class TokenScorer:
    """Answers scored after prompts of token ids (see `base.Scorer`)."""

    tier: Tier = "T1"
    scale: Scale = "token"

    def __init__(
        self,
        connection: Connection,
        way: Way,
        server: ServerTokens,
        prompt: Prompt,
        answers: Sequence[Answer],
        notes: tuple[str, ...],
    ) -> None:
        self._connection = connection
        self._way: Way = way
        self._prompt: TokenisedPrompt = server.tokenise(prompt)
        found = [server.answer(self._prompt, answer.written) for answer in answers]
        self._ids = [ids for ids, _ in found]
        self._blank: Ids | None = None
        if not len(self._prompt.masked(np.zeros(prompt.n_segments, dtype=np.bool_))):
            self._blank = server.blank()
        self.n_segments = prompt.n_segments
        self.targets = _side_by_side(answers, [spans for _, spans in found])
        self._notes = (*notes, *self._prompt.notes)
        self._problems = Problems()

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._notes, *self._problems.notes(), *afterwards(self._connection))

    def addresses(self, masks: NDArray[np.bool_]) -> list[bytes]:
        asked = [*_asked(self._connection, "token ids"), *(_bytes(ids) for ids in self._ids)]
        return [digest([*asked, _bytes(self._kept(mask))]) for mask in masks]

    def score(
        self, masks: NDArray[np.bool_], should_stop: ShouldStop
    ) -> Iterator[tuple[Rows, Scores]]:
        async def ask(row: int) -> Row:
            kept = self._kept(masks[row]).tolist()
            values: list[float] = []
            read = 0
            asked = [of_text(self._connection, self._way, [*kept, *i.tolist()]) for i in self._ids]
            for ids, told in zip(self._ids, await together(asked), strict=True):
                fits = len(told.logprobs) == len(kept) + len(ids)
                values += told.logprobs[len(kept) :] if fits else [np.nan] * len(ids)
                read += told.cost.input_tokens
            return Row(values, read)

        width = sum(map(len, self._ids))
        yield from scores_as_they_come(
            self._connection, self.addresses(masks), ask, width, self._problems, should_stop
        )

    def _kept(self, mask: NDArray[np.bool_]) -> Ids:
        kept = self._prompt.masked(mask)
        return kept if len(kept) or self._blank is None else self._blank


@dataclass(frozen=True)
class _Tokens:
    """An answer's tokens after the full prompt, which they must be after every mask."""

    texts: tuple[str, ...]
    spans: tuple[Span, ...]


class TextScorer:
    """Answers scored at the end of text (see `base.Scorer`); chat: as messages, in the template.

    The segments' text is dropped and what is left is tokenised anew by the server. Where that
    changes the answer's own tokens the mask has no score.
    """

    tier: Tier = "T1"
    scale: Scale = "token"

    def __init__(
        self,
        connection: Connection,
        way: Way | None,
        prompt: Prompt,
        answers: Sequence[Answer],
        notes: tuple[str, ...],
        should_stop: ShouldStop,
    ) -> None:
        """way: how completions tell the prompt's log-probabilities; None: by chat."""
        self.n_segments = prompt.n_segments
        self._connection = connection
        self._way = way
        self._prompt = prompt
        self._texts = [answer.written for answer in answers]
        full = np.ones(prompt.n_segments, dtype=np.bool_)
        self._tokens = []
        for text in self._texts:
            told = connection.loop.run(self._told(full, text), should_stop)
            self._tokens.append(_tokens(told, *self._ends(full, text), text))
        self.targets = _side_by_side(answers, [tokens.spans for tokens in self._tokens])
        self._notes = notes
        self._problems = Problems(why_unfit=_UNFIT)

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._notes, *self._problems.notes(), *afterwards(self._connection))

    def addresses(self, masks: NDArray[np.bool_]) -> list[bytes]:
        kind = "chat" if self._way is None else "text"
        asked = [*_asked(self._connection, kind), *(text.encode() for text in self._texts)]
        for tokens in self._tokens:  # after the full prompt: others there are other columns
            spelt = _spelling(tokens.texts)
            asked += [
                str(len(spelt)).encode(),
                *(text.encode("utf-8", "replace") for text in spelt),
            ]
        found = []
        for mask in masks:
            if self._way is None:
                sent = canonical(masked_messages(self._prompt, mask))
            else:
                sent = masked_text(self._prompt, mask).encode("utf-8", "replace")
            found.append(digest([*asked, sent]))
        return found

    def score(
        self, masks: NDArray[np.bool_], should_stop: ShouldStop
    ) -> Iterator[tuple[Rows, Scores]]:
        async def ask(row: int) -> Row:
            values: list[float] = []
            read = 0
            asked = [self._told(masks[row], text) for text in self._texts]
            for tokens, told in zip(self._tokens, await together(asked), strict=True):
                n = len(tokens.texts)
                fits = _spelling(told.texts[-n:]) == _spelling(tokens.texts)
                values += told.logprobs[-n:] if fits else [np.nan] * n
                read += told.cost.input_tokens
            return Row(values, read)

        width = sum(len(tokens.texts) for tokens in self._tokens)
        yield from scores_as_they_come(
            self._connection, self.addresses(masks), ask, width, self._problems, should_stop
        )

    async def _told(self, mask: NDArray[np.bool_], text: str) -> PromptTokens:
        if self._way is None:
            messages = masked_messages(self._prompt, mask)
            return await of_chat(self._connection, messages, text.rstrip())
        before, after = self._ends(mask, text)
        return await of_text(self._connection, self._way, before + after)

    def _ends(self, mask: NDArray[np.bool_], text: str) -> tuple[str, str]:
        """What is known to stand before the answer, and the answer with the blank it needs."""
        if self._way is None:
            return "", text.strip()
        before = masked_text(self._prompt, mask)
        apart = before[-1:].isspace() or text[:1].isspace()
        return before, text if apart else f" {text}"


def _tokens(told: PromptTokens, before: str, answer: str, written: str) -> _Tokens:
    """The answer's tokens among the full prompt's. ModelError where they are not to be found."""
    spans = trailing_spans(told.texts, before + answer, len(before))
    if spans is None:
        raise ModelError(
            f"The endpoint's tokens do not end in the answer {answer.strip()!r}, so it cannot be "
            "scored; give the answer as the model would write it."
        )
    merged = before[spans[0][0] : len(before)]
    if merged.strip():
        raise ModelError(
            f"The answer's first token also holds the end of the prompt ({merged!r}); end the "
            "prompt with a new line, or begin the answer with a blank."
        )
    numbers = told.logprobs[-len(spans) :]
    if np.isnan(numbers).any():
        raise Failure("logprobs", "The endpoint told no log-probability of the answer's tokens.")
    begins = len(before) + len(answer) - len(written)
    clipped = tuple((max(start - begins, 0), max(end - begins, 0)) for start, end in spans)
    return _Tokens(told.texts[-len(spans) :], clipped)


def _spelling(texts: Sequence[str]) -> list[str]:
    """The tokens without the blank before them, which belongs to the prompt's end."""
    return [texts[0].lstrip(), *texts[1:]] if texts else []


def _side_by_side(
    answers: Sequence[Answer], spans: Sequence[Sequence[Span]]
) -> tuple[ScoredTarget, ...]:
    targets: list[ScoredTarget] = []
    reached = 0
    for answer, places in zip(answers, spans, strict=True):
        before = len(answer.written) - len(answer.written.lstrip())
        before -= len(answer.text) - len(answer.text.lstrip())  # a given one is kept as it is
        shown = len(answer.text)
        within = tuple(
            (min(max(start - before, 0), shown), min(max(end - before, 0), shown))
            for start, end in places
        )
        targets.append(ScoredTarget(answer.text, reached, within, answer.own))
        reached += len(places)
    return tuple(targets)


def _asked(connection: Connection, kind: str) -> list[bytes]:
    named = ("openai", "T1", kind, connection.model, *sorted(connection.urls))
    return [part.encode() for part in named]


def _bytes(ids: Ids) -> bytes:
    return ids.astype("<i8").tobytes()
