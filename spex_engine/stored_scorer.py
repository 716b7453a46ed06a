"""A scorer that asks for nothing twice: it takes what the store has, and keeps the rest there.

Knows scorers and the store; it must not know models, prompts or what is made of the scores. A
portion is in the store before it is handed on, so that whatever was seen of a run is there for the
next one. Without a store, or when the store fails, it still asks for nothing twice in one run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Scorer, Scores, ShouldStop
from spex_engine.backends.repetitions import Portion, Repeats, Rows, in_rows, one_by_one
from spex_engine.store import Evaluation, Store, StoreError


@runtime_checkable
class ReadsAnswers(Protocol):
    """A scorer whose scores are read off answers, so that its addresses say only what was asked."""

    def read_answers(self, answers: tuple[tuple[str, ...], ...]) -> Scores:
        """Scores of k answered masks, as `score` would give them; no model is called."""
        ...


class StoredScorer:
    """A scorer around another, with the evaluations of earlier runs.

    Addresses are counted, each once: computed: scored by the model; failed: asked of it in vain;
    reused: known from an earlier run. input_tokens: read by the model for all of these. notes: the
    scorer's, the store's, and why the store was given up, if it was. A row with NaN is never kept.
    Repetitions (`repetitions.Repeats`) are kept and reused one by one, each as soon as it has come;
    their mask is computed where any of them was, and failed where none has a score.
    keep_answers: whether texts that a model wrote may be stored. Without them, scores that are
    read off answers are not stored at all, for the next run may compare with another text.
    """

    def __init__(self, scorer: Scorer, store: Store | None, keep_answers: bool = True) -> None:
        self.tier = scorer.tier
        self.scale = scorer.scale
        self.n_segments = scorer.n_segments
        self.targets = scorer.targets
        self.notes: tuple[str, ...] = ()
        self.computed = self.reused = self.failed = self.input_tokens = 0
        self._scorer = scorer
        self._store = store
        self._keep_answers = keep_answers
        answers = scorer.tier == "T3"
        self._reader = scorer if answers and isinstance(scorer, ReadsAnswers) else None
        self._repeats = scorer if isinstance(scorer, Repeats) else None
        self._width = 1 if self._repeats is not None else _width(scorer)
        self._own_notes: tuple[str, ...] = ()
        if store is not None and answers and keep_answers:
            self._own_notes = ("the model's answers are kept in the evaluation store, as text",)
        elif store is not None and self._reader is not None:
            self._own_notes = ("the model's answers are not kept: the next run pays for its own",)
        self._known: dict[bytes, Evaluation] = {}  # in this run
        self._asked: set[bytes] = set()  # of these, repetitions that the model has scored
        self._counted: set[bytes] = set()  # masks of which there is a repetition
        self._gather_notes()

    def addresses(self, masks: NDArray[np.bool_]) -> list[bytes]:
        return self._scorer.addresses(masks)

    def score(self, masks: NDArray[np.bool_], should_stop: ShouldStop) -> Iterator[Portion]:
        """First all rows that are known, as one portion; then the others as the scorer has them.

        Rows that share an address come together. input_tokens of a row that is known are those
        that were read when it was scored.
        """
        scorer = self._repeats
        if scorer is None:
            yield from self._portions(
                self._scorer.addresses(masks),
                lambda rows: self._scorer.score(masks[rows], should_stop),
            )
            return
        each, numbers = one_by_one(masks, scorer.repeats)
        addresses = scorer.repetition_addresses(each, numbers)
        portions = self._portions(
            addresses, lambda rows: scorer.repetitions(each[rows], numbers[rows], should_stop)
        )
        whole = self._scorer.addresses(masks)
        with closing(portions):
            for rows, scores in in_rows(portions, len(masks), scorer.repeats):
                self._count(rows, scores, whole, addresses)
                yield rows, scores

    def _portions(
        self, addresses: Sequence[bytes], ask: Callable[[Rows], Iterator[Portion]]
    ) -> Generator[Portion, None, None]:
        places: dict[bytes, list[int]] = {}
        for row, address in enumerate(addresses):
            places.setdefault(address, []).append(row)
        self._recall([address for address in places if address not in self._known])
        known = {address: rows for address, rows in places.items() if address in self._known}
        if known:
            yield _spread(known.values(), _together([self._known[address] for address in known]))
        asked = [address for address in places if address not in known]
        if asked:
            yield from self._ask(asked, [places[address] for address in asked], ask)

    def _ask(
        self,
        asked: Sequence[bytes],
        places: Sequence[list[int]],
        ask: Callable[[Rows], Iterator[Portion]],
    ) -> Iterator[Portion]:
        source = ask(np.array([rows[0] for rows in places], dtype=np.intp))
        try:
            for rows, scores in source:
                self._keep([asked[row] for row in rows], scores)
                self._gather_notes()
                yield _spread([places[row] for row in rows], scores)
        finally:
            close = getattr(source, "close", None)  # generators have it, other iterators need not
            if close is not None:
                close()
            self._gather_notes()

    def _recall(self, addresses: Sequence[bytes]) -> None:
        if self._store is None or not addresses:
            return
        try:
            found = self._store.get(addresses)
        except StoreError as error:
            self._give_up(error)
            return
        if self._reader is not None:
            found = _read_again(self._reader, found)
        # a row of another width is of something else, and the only one that could be told from it
        found = {a: e for a, e in found.items() if self._width in (None, len(e.values))}
        self._known |= found
        if self._repeats is None:
            self.reused += len(found)
        self._gather_notes()

    def _keep(self, addresses: Sequence[bytes], scores: Scores) -> None:
        """Counts a portion and keeps what is whole: in memory, and in the store."""
        new = {
            address: evaluation
            for address, evaluation in zip(addresses, _apart(scores), strict=True)
            if not np.isnan(evaluation.values).any()
        }
        if self._repeats is None:
            self.computed += len(new)
            self.failed += len(addresses) - len(new)
        else:
            self._asked |= new.keys()
        self.input_tokens += int(scores.input_tokens.sum())
        self._known |= new
        kept = new if self._keep_answers else self._without_answers(new)
        if self._store is not None and kept:
            try:
                self._store.put(kept)
            except StoreError as error:
                self._give_up(error)

    def _count(
        self, rows: Rows, scores: Scores, masks: Sequence[bytes], repetitions: Sequence[bytes]
    ) -> None:
        """Counts masks, of whose addresses and repetitions' addresses these are all."""
        each = len(repetitions) // len(masks)
        failed = set()
        for row, values in zip(rows, scores.values, strict=True):
            if masks[row] in self._counted:
                continue
            if np.isnan(values).all():
                failed.add(masks[row])
                continue
            self._counted.add(masks[row])
            if self._asked.isdisjoint(repetitions[row * each : (row + 1) * each]):
                self.reused += 1
            else:
                self.computed += 1
        self.failed += len(failed)

    def _without_answers(self, new: dict[bytes, Evaluation]) -> dict[bytes, Evaluation]:
        if self._reader is not None:
            return {}
        return {
            address: Evaluation(found.values, found.input_tokens, found.censored)
            for address, found in new.items()
        }

    def _give_up(self, error: StoreError) -> None:
        of_store = self._store.notes if self._store is not None else ()
        self._store = None
        self._own_notes += (
            *of_store,
            "the run went on without the evaluation store: nothing is lost, but what was computed "
            f"from there on is not kept for the next run. {error}",
        )
        self._gather_notes()

    def _gather_notes(self) -> None:
        of_store = self._store.notes if self._store is not None else ()
        self.notes = (*self._scorer.notes, *of_store, *self._own_notes)


def _width(scorer: Scorer) -> int | None:
    """Columns of the scorer's rows; None where it says nothing of them."""
    return max((target.first + len(target.spans) for target in scorer.targets), default=None)


def _read_again(scorer: ReadsAnswers, found: dict[bytes, Evaluation]) -> dict[bytes, Evaluation]:
    """The evaluations as ``scorer`` reads their answers; those it cannot read are left out."""
    answered = {
        address: (evaluation, evaluation.answers)
        for address, evaluation in found.items()
        if evaluation.answers is not None
    }
    if not answered:
        return {}
    scores = scorer.read_answers(tuple(answers for _, answers in answered.values()))
    read = {}
    for (address, (evaluation, answers)), anew in zip(
        answered.items(), _apart(scores), strict=True
    ):
        if not np.isnan(anew.values).any():
            read[address] = Evaluation(anew.values, evaluation.input_tokens, anew.censored, answers)
    return read


def _apart(scores: Scores) -> Iterator[Evaluation]:
    """The rows of ``scores``; copies, for the scorer may use its arrays again."""
    for row, values in enumerate(scores.values):
        yield Evaluation(
            np.array(values, dtype=np.float64),
            int(scores.input_tokens[row]),
            None if scores.censored is None else scores.censored[row].copy(),
            None if scores.answers is None else tuple(scores.answers[row]),
        )


def _together(evaluations: Sequence[Evaluation]) -> Scores:
    """The inverse of `_apart`."""
    values = np.stack([evaluation.values for evaluation in evaluations])
    censored = None
    if any(evaluation.censored is not None for evaluation in evaluations):
        nowhere = np.zeros(values.shape[1], np.bool_)
        censored = np.stack(
            [nowhere if one.censored is None else one.censored for one in evaluations]
        )
    answers = tuple(one.answers for one in evaluations if one.answers is not None)
    return Scores(
        values,
        np.array([evaluation.input_tokens for evaluation in evaluations], dtype=np.int64),
        censored,
        answers if len(answers) == len(evaluations) else None,
    )


def _spread(places: Iterable[list[int]], scores: Scores) -> Portion:
    """The scores, row by row, at each of the rows that have them."""
    places = list(places)
    index = np.array([i for i, rows in enumerate(places) for _ in rows], dtype=np.intp)
    return np.array([row for rows in places for row in rows], dtype=np.intp), Scores(
        scores.values[index],
        scores.input_tokens[index],
        None if scores.censored is None else scores.censored[index],
        None if scores.answers is None else tuple(scores.answers[i] for i in index),
    )
