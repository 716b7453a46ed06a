"""Tier T3: answers written anew for each mask, and how alike they are to the one explained.

For endpoints that tell no log-probabilities. Each mask is answered several times, sampled at the
endpoint's own temperature, so that the value is the mean likeness of what the model says and the
variance over repetitions its noise; at temperature 0 repetitions would be alike and hide it. The
answers are kept with the scores and can be read again against another reference. Each repetition is
asked for alone, a mask's side by side, so that a run that ends early has few masks half done. It
must not know how likeness is measured.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Scale, ScoredTarget, Scores, ShouldStop, Tier
from spex_engine.backends.openai.asking import Connection, Manner, allowed, ask
from spex_engine.backends.openai.messages import Answer, canonical, masked_messages
from spex_engine.backends.openai.rows import Problems, Row, afterwards, digest, scores_as_they_come
from spex_engine.backends.openai.similarity import similarity
from spex_engine.backends.openai.tokens import token_count
from spex_engine.backends.repetitions import Portion, in_rows, one_by_one
from spex_engine.wire import Prompt

STEP = 32  # answers may be twice as long as the reference, in such steps, so that stored ones fit


class RegeneratingScorer:
    """How alike r regenerated answers are to the one explained: r columns (see `base.Scorer`)."""

    tier: Tier = "T3"
    scale: Scale = "token"

    def __init__(
        self,
        connection: Connection,
        manner: Manner,
        prompt: Prompt,
        answer: Answer,
        repeats: int,
        notes: tuple[str, ...],
    ) -> None:
        """answer: what regenerated ones are compared with, the reference."""
        reference = answer.text
        self.n_segments = prompt.n_segments
        spans = ((0, len(reference)),) * repeats
        self.targets: tuple[ScoredTarget, ...] = (ScoredTarget(reference, 0, spans, answer.own),)
        self._connection = connection
        self._manner = manner
        self._prompt = prompt
        self._reference = reference
        self.repeats = repeats
        self._limit = answer_limit(token_count(connection.model).count(reference))
        self._notes = (
            *notes,
            f"this endpoint tells no log-probabilities that would do: each mask is answered "
            f"{repeats} times and compared with the answer by the words they share (tier T3)",
        )
        self._problems = Problems(
            what="repetitions",
            why_unfit=f"the model wrote nothing within {allowed(manner, self._limit):,} tokens, as "
            "one that thinks for longer does: turn its thinking down, or use one that does not",
        )

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._notes, *self._problems.notes(), *afterwards(self._connection))

    def addresses(self, masks: NDArray[np.bool_]) -> list[bytes]:
        """What is asked; not what it is compared with, which `read_answers` sees to."""
        return self._addresses(masks, [f"repeats {self.repeats}"] * len(masks))

    def repetition_addresses(
        self, masks: NDArray[np.bool_], numbers: NDArray[np.intp]
    ) -> list[bytes]:
        return self._addresses(masks, [f"repetition {number}" for number in numbers])

    def _addresses(self, masks: NDArray[np.bool_], which: list[str]) -> list[bytes]:
        how = (self._manner.api, "sampled", f"limit {self._limit}")
        named = ("openai", "T3", self._connection.model, *sorted(self._connection.urls), *how)
        asked = [part.encode("utf-8", "replace") for part in named]
        sent = (canonical(masked_messages(self._prompt, mask)) for mask in masks)
        return [digest([*asked, one.encode(), each]) for one, each in zip(which, sent, strict=True)]

    def score(self, masks: NDArray[np.bool_], should_stop: ShouldStop) -> Iterator[Portion]:
        portions = self.repetitions(*one_by_one(masks, self.repeats), should_stop)
        with closing(portions):
            yield from in_rows(portions, len(masks), self.repeats)

    def repetitions(
        self, masks: NDArray[np.bool_], numbers: NDArray[np.intp], should_stop: ShouldStop
    ) -> Generator[Portion, None, None]:
        async def one(row: int) -> Row:
            return await self._answered(masks[row])

        yield from scores_as_they_come(
            self._connection,
            self.repetition_addresses(masks, numbers),
            one,
            1,
            self._problems,
            should_stop,
        )

    def read_answers(self, answers: tuple[tuple[str, ...], ...]) -> Scores:
        """Scores of answers that were kept, against this question's reference; nothing is asked."""
        values = [[similarity(text, self._reference) for text in texts] for texts in answers]
        return Scores(
            np.array(values, dtype=np.float64),
            np.zeros(len(answers), dtype=np.int64),
            answers=answers,
        )

    async def _answered(self, mask: NDArray[np.bool_]) -> Row:
        messages = masked_messages(self._prompt, mask)
        reply = await ask(self._connection, self._manner, messages, self._limit, sampled=True)
        text = reply.text.strip()
        # it was stopped before it had begun to answer, which is not an answer unlike the reference
        value = math.nan if reply.cut and not text else similarity(text, self._reference)
        return Row([value], reply.cost.input_tokens, answers=(text,))


def answer_limit(length: int) -> int:
    """The most tokens of an answer that is compared with one of ``length`` tokens."""
    return STEP * math.ceil((2 * length + 1) / STEP)
