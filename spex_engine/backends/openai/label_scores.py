"""Tier T2: the log-probability that the answer begins with each of a few labels.

An endpoint that lists the likeliest tokens of the answer's first place tells it in one request.
A label that is not among them is censored: at most as likely as the least likely one listed, or as
all that is left. It must not know how the endpoint is asked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Scale, ScoredTarget, Scores, ShouldStop, Tier
from spex_engine.backends.openai.asking import Connection, Listed, Manner, ask
from spex_engine.backends.openai.failures import Failure
from spex_engine.backends.openai.messages import Answer, Messages, canonical, masked_messages
from spex_engine.backends.openai.rows import (
    Problems,
    Row,
    Rows,
    afterwards,
    digest,
    scores_as_they_come,
)
from spex_engine.wire import InputError, Prompt

FIRST_ONLY = "only the first token of the answer is measured (tier T2)"
NONE_LISTED = (
    "{model} listed no log-probabilities for the full prompt, though it did for others. Where the "
    "endpoint has several providers, choose one that supports logprobs; or ask for similarity."
)
TRIES = 3
_LEAST = 1e-10  # what is left of all probability, where rounding leaves none
_WORD = re.compile(r"\w+|\S")


@dataclass(frozen=True)
class LabelScores:
    """logprobs (nats) of each label, and whether each is only a bound from above.

    shared: probability of tokens with which several labels begin.
    """

    logprobs: tuple[float, ...]
    censored: tuple[bool, ...]
    shared: float


def label_scores(listed: Sequence[Listed], labels: Sequence[str]) -> LabelScores:
    """What the tokens listed for the first place say of each label.

    A token counts for the label that it is, or else for the one label that begins with it, with or
    without a blank before it; the probabilities of a label's tokens are added up.
    """
    mass = [0.0] * len(labels)
    shared = 0.0
    for entry in listed:
        owners = _owners(entry.token.strip(), labels)
        if len(owners) == 1:
            mass[owners[0]] += math.exp(entry.logprob)
        elif owners:
            shared += math.exp(entry.logprob)
    left = math.log(max(1 - sum(math.exp(entry.logprob) for entry in listed), _LEAST))
    bound = min([left, *(entry.logprob for entry in listed)])
    return LabelScores(
        tuple(math.log(p) if p > 0 else bound for p in mass),
        tuple(p == 0 for p in mass),
        shared,
    )


def _owners(token: str, labels: Sequence[str]) -> list[int]:
    if not token:
        return []
    same = [i for i, label in enumerate(labels) if label.strip() == token]
    return same or [i for i, label in enumerate(labels) if label.strip().startswith(token)]


def check_labels(labels: Sequence[str]) -> None:
    """InputError where two labels begin with the same word, which one token cannot tell apart."""
    begun: dict[str, str] = {}
    for label in labels:
        found = _WORD.search(label)
        if found is None:
            continue
        other = begun.setdefault(found.group(), label)
        if other != label:
            raise InputError(_SHARED.format(one=other, other=label))


_SHARED = (
    "The answers {one!r} and {other!r} begin alike, and this endpoint tells probabilities of the "
    "first token only; use answers whose first words differ."
)
_UNLISTED = (
    "None of the answers ({answers}) begins with one of the {count} likeliest first tokens for the "
    "full prompt, which are all that this endpoint tells; the likeliest are {likeliest}. Give "
    "answers that the model would begin with, or have the prompt ask for one of them."
)


class LabelScorer:
    """Labels scored by the first token of the answer (see `base.Scorer`)."""

    tier: Tier = "T2"
    scale: Scale = "token"

    def __init__(
        self,
        connection: Connection,
        manner: Manner,
        top: int,
        prompt: Prompt,
        labels: Sequence[Answer],
        notes: tuple[str, ...],
        should_stop: ShouldStop,
    ) -> None:
        """Asks the full prompt once."""
        texts = [label.text for label in labels]
        if len(texts) > 1:
            check_labels(texts)
        self.n_segments = prompt.n_segments
        self.targets = tuple(
            ScoredTarget(label.text, i, ((0, len(label.text)),), label.own)
            for i, label in enumerate(labels)
        )
        self._connection = connection
        self._manner = manner
        self._top = top
        self._prompt = prompt
        self._texts = texts
        self._notes = (*notes, FIRST_ONLY)
        self._problems = Problems(why_unfit="the endpoint listed no tokens for them")
        whole = masked_messages(prompt, np.ones(prompt.n_segments, dtype=np.bool_))
        asked = first_tokens(connection, manner, whole, top)
        listed, _ = connection.loop.run(asked, should_stop)
        if not listed:
            raise Failure("logprobs", NONE_LISTED.format(model=connection.model))
        found = label_scores(listed, texts)
        if found.shared > sum(math.exp(p) for p in found.logprobs):
            one, other = _alike(texts)
            raise InputError(_SHARED.format(one=one, other=other))
        if all(found.censored):
            answers = ", ".join(map(repr, texts))
            likeliest = ", ".join(repr(entry.token) for entry in listed[:3])
            raise InputError(
                _UNLISTED.format(answers=answers, count=len(listed), likeliest=likeliest)
            )

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._notes, *self._problems.notes(), *afterwards(self._connection))

    def addresses(self, masks: NDArray[np.bool_]) -> list[bytes]:
        how = (self._manner.api, f"temperature {self._manner.temperature}", f"top {self._top}")
        named = ("openai", "T2", self._connection.model, *sorted(self._connection.urls), *how)
        asked = [part.encode("utf-8", "replace") for part in (*named, *self._texts)]
        sent = (canonical(masked_messages(self._prompt, mask)) for mask in masks)
        return [digest([*asked, each]) for each in sent]

    def score(
        self, masks: NDArray[np.bool_], should_stop: ShouldStop
    ) -> Iterator[tuple[Rows, Scores]]:
        async def one(row: int) -> Row:
            messages = masked_messages(self._prompt, masks[row])
            listed, read = await first_tokens(self._connection, self._manner, messages, self._top)
            if not listed:
                none = [math.nan] * len(self._texts)
                return Row(none, read, [False] * len(none))
            found = label_scores(listed, self._texts)
            return Row(found.logprobs, read, found.censored)

        yield from scores_as_they_come(
            self._connection,
            self.addresses(masks),
            one,
            len(self._texts),
            self._problems,
            should_stop,
        )


async def first_tokens(
    connection: Connection, manner: Manner, messages: Messages, top: int
) -> tuple[tuple[Listed, ...], int]:
    """The tokens listed for the answer's first place, and how many were read to have them.

    Asks again where none are listed: one address may stand for several providers, of which not all
    list them. Raises Failure.
    """
    read = 0
    for _ in range(TRIES):
        reply = await ask(connection, manner, messages, 1, top=top)
        read += reply.cost.input_tokens
        if reply.first:
            return reply.first, read
    return (), read


def _alike(texts: Sequence[str]) -> tuple[str, str]:
    """The two labels that have the longest beginning in common."""
    ordered = sorted(texts)
    pairs = list(pairwise(ordered))
    return max(pairs, key=lambda pair: _common(*pair))


def _common(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
