"""Any causal language model whose tokens we hold: what it must be able to do, and its scorer.

A causal model turns a prompt into token ids once, and then scores fixed targets after any subset
of them. Segments are dropped as token ids: the joined string is never tokenised again, so a mask
can never change how its neighbours are tokenised. It knows token ids and log-probabilities; it must
not know designs, estimators, files or editors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Scale, ScoredTarget, Scores, ShouldStop, Tier
from spex_engine.noise import noise_of_company
from spex_engine.wire import InputError, ModelError, Prompt, Question

Ids = NDArray[np.int64]
FIXED = -1
MAX_ANSWER_TOKENS = 32
_DECODED_AT_ONCE = 16  # tokens, at least


@dataclass(frozen=True)
class TokenisedPrompt:
    """The full prompt as the model sees it, chat template included.

    ids: int (L,). segments: int (L,), the segment that each token belongs to, FIXED (-1) for
    what is never dropped (chat template, BOS, fixed text). text: what the ids were made from, so
    that a target can be tokenised as its continuation. notes: what the user should know about
    how the prompt was put to the model.
    """

    ids: Ids
    segments: Ids
    n_segments: int
    text: str = ""
    notes: tuple[str, ...] = ()

    def masked(self, mask: NDArray[np.bool_]) -> Ids:
        """The token ids that remain under ``mask``, bool (n_segments,), True = kept."""
        keep = np.append(mask, True)  # FIXED indexes the last entry
        kept: Ids = self.ids[keep[self.segments]]
        return kept

    def addresses(self, masks: NDArray[np.bool_], *asked: bytes) -> list[bytes]:
        """32 bytes for each mask, bool (m, n): of its ids and ``asked``, all else that tells."""
        first = hashlib.blake2b(digest_size=32)
        for part in asked:
            first.update(len(part).to_bytes(8, "little") + part)
        found = []
        for mask in masks:
            address = first.copy()
            address.update(self.masked(mask).astype("<i8").tobytes())
            found.append(address.digest())
        return found


class CausalModel(Protocol):
    """A causal language model that can score given targets (tier T1)."""

    uri: str
    context_length: int | None  # tokens, prompt and target together; None: no known limit

    @property
    def fingerprint(self) -> bytes:
        """What scores depend on beside the ids: weights, type of numbers, version of the code."""
        ...

    def tokenise(self, prompt: Prompt) -> TokenisedPrompt:
        """Raises InputError where it does not fit the context."""
        ...

    def tokenise_target(self, prompt: TokenisedPrompt, text: str) -> Ids:
        """The ids of ``text`` as it would continue ``prompt``; int (T,), T >= 1."""
        ...

    def greedy(self, prompt: TokenisedPrompt, max_tokens: int = MAX_ANSWER_TOKENS) -> Ids:
        """The model's own answer, without the end token; int (T,)."""
        ...

    def decode(self, ids: Ids) -> str: ...

    def logprobs(
        self,
        rows: Sequence[Ids],
        targets: Sequence[Ids],
        should_stop: ShouldStop | None = None,
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64]]]:
        """log p(target token | row, target tokens before it), nats, in portions as they come.

        A portion is rows' numbers (k,) and float (k, T): the targets' tokens side by side, T being
        the sum of their lengths. Rows not reached before ``should_stop`` said so never come.
        """
        ...


class CausalScorer:
    """One prompt and one question on a causal model (see `base.Scorer`)."""

    tier: Tier = "T1"
    scale: Scale = "token"

    def __init__(
        self,
        model: CausalModel,
        prompt: TokenisedPrompt,
        ids: Sequence[Ids],
        targets: tuple[ScoredTarget, ...],
        notes: tuple[str, ...] = (),
    ) -> None:
        self.n_segments = prompt.n_segments
        self.targets = targets
        self.notes = (*prompt.notes, *notes)
        self._model = model
        self._prompt = prompt
        self._ids = tuple(ids)

    def addresses(self, masks: NDArray[np.bool_]) -> list[bytes]:
        ids = (target.astype("<i8").tobytes() for target in self._ids)
        return self._prompt.addresses(masks, b"T1", self._model.fingerprint, *ids)

    def score(
        self, masks: NDArray[np.bool_], should_stop: ShouldStop
    ) -> Iterator[tuple[NDArray[np.intp], Scores]]:
        rows = [self._prompt.masked(mask) for mask in masks]
        read = np.array([self._read(row) for row in rows], dtype=np.int64)
        for places, values in self._model.logprobs(rows, self._ids, should_stop):
            yield places, Scores(values, read[places])

    def noise_floor(
        self, masks: NDArray[np.bool_], value: Callable[[Scores], NDArray[np.float64]]
    ) -> float | None:
        """See `base.MeasuresNoise`: what shares a batch, or what a row continues, shows in it."""
        return noise_of_company(self, masks, value)

    def _read(self, row: Ids) -> int:
        """Tokens that the model is given for one row, as a server would bill them."""
        return sum(len(row) + len(ids) for ids in self._ids)


def open_causal(
    model: CausalModel, prompt: Prompt, question: Question, should_stop: ShouldStop
) -> CausalScorer:
    """The scorer of ``prompt`` and ``question``; asks for the model's own answer where it must."""
    tokenised = model.tokenise(prompt)
    notes: list[str] = []
    if question.target is not None:
        first = (model.tokenise_target(tokenised, question.target), question.target, False)
    else:
        own, text = _own_answer(model, tokenised, question.choices)
        first = (own, text, True)
        pinned = text if question.pinned is None else question.pinned
        if pinned != text and (not question.choices or pinned in question.choices):
            first = (model.tokenise_target(tokenised, pinned), pinned, True)
            notes.append(answer_changed(text, pinned))
        elif len(own) == 0:
            raise ModelError(
                f"{model.uri} answers this prompt with nothing at all: "
                "give the answer to be explained as the target."
            )
    others = compared_answers(question, first[1])
    found = [first, *((model.tokenise_target(tokenised, text), text, False) for text in others)]
    targets: list[ScoredTarget] = []
    reached = 0
    for ids, text, is_own in found:
        spans = token_spans(model.decode, ids, text)
        targets.append(ScoredTarget(text, reached, spans, is_own))
        reached += len(ids)
    return CausalScorer(
        model, tokenised, [ids for ids, _, _ in found], tuple(targets), tuple(notes)
    )


def _own_answer(
    model: CausalModel, prompt: TokenisedPrompt, choices: Sequence[str]
) -> tuple[Ids, str]:
    """What the model says to the full prompt: its greedy answer, or the likeliest choice."""
    if not choices:
        own = model.greedy(prompt, MAX_ANSWER_TOKENS)
        return own, model.decode(own).strip()
    ids = [model.tokenise_target(prompt, choice) for choice in choices]
    [(_, found)] = model.logprobs([prompt.ids], ids)
    ends = np.cumsum([len(tokens) for tokens in ids])[:-1]
    best = int(np.argmax([part.sum() for part in np.split(found[0], ends)]))
    return ids[best], choices[best].strip()


def answer_changed(now: str, pinned: str) -> str:
    """What to say where the answer that is explained is no longer the model's own."""
    return (
        f"the model's own answer is now {now!r}; explained is its earlier one, {pinned!r}: "
        "clear the explanation to begin with the new one"
    )


def compared_answers(question: Question, target: str) -> list[str]:
    """The answers beside the target that are to be scored; InputError where they do not fit."""
    if question.contrast is not None:
        if question.contrast.strip() == target.strip():
            raise InputError(
                f"The answer {target!r} is contrasted with itself: give two different answers."
            )
        return [question.contrast]
    choices = dict.fromkeys(choice.strip() for choice in question.choices)
    others = [choice for choice in choices if choice != target.strip()]
    if choices and len(others) == len(choices):
        listed = ", ".join(map(repr, question.choices))
        raise InputError(
            f"The answer {target!r} is not among the choices ({listed}): "
            "give one of them as the target, or add it."
        )
    return others


def token_spans(decode: Callable[[Ids], str], ids: Ids, text: str) -> tuple[tuple[int, int], ...]:
    """Where in ``text`` each token stands, [start, end) in characters; together all of it.

    Tokens that are bytes of one character share it. What the tokens have before ``text``, a blank,
    counts as its first character's. Where they do not spell ``text`` blank for blank, as with
    tokenizers that put blanks before words, what is to be seen is counted off.
    """
    whole = decode(ids)
    reached = _reached(decode, ids, whole)
    at = whole.find(text)
    if at >= 0:
        ends = [min(max(end - at, 0), len(text)) for end in reached]
    else:
        visible = [0, *(i for i, char in enumerate(text, 1) if not char.isspace())]
        seen = np.cumsum([0, *(not char.isspace() for char in whole)])
        ends = [visible[min(int(seen[end]), len(visible) - 1)] for end in reached]
    ends[-1] = len(text)
    starts = [0, *ends[:-1]]
    return tuple((min(s, max(e - 1, 0)), e) for s, e in zip(starts, ends, strict=True))


def _reached(decode: Callable[[Ids], str], ids: Ids, whole: str) -> list[int]:
    """How many characters of ``whole`` the first tokens spell, 1 to all of them; ascending.

    Decoded from one border between tokens to the next, so that long targets take no longer a token
    than short ones. Decoders drop the blank that their text begins with.
    """
    reached: list[int] = []
    token = at = 0
    for count in range(1, len(ids) + 1):
        part = decode(ids[token:count])
        dropped = bool(token) and whole[at : at + 1].isspace() and not part[:1].isspace()
        start = at + dropped
        same = _same_beginning(part, whole[start : start + len(part)])
        complete = same == len(part)
        end = min(start + same + (not complete), len(whole))
        reached.append(max(end, reached[-1] if reached else 0))
        # A part of a character decodes to U+FFFD, as that character itself does.
        clean = complete and part and part[-1] != "\ufffd"
        if clean and count - token >= _DECODED_AT_ONCE:
            token, at = count, end
    return reached


def _same_beginning(a: str, b: str) -> int:
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, min(len(a), len(b)))
