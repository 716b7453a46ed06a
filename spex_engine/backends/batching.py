"""Scoring many rows in few batches: the same row once, like lengths together, sizes that fit.

Knows rows of token ids and a forward pass that scores a batch of them; it must not know which
library runs the model. A batch is bounded by its padded tokens, because these, and not the number
of rows, decide what it costs in time and memory. Where the model can continue from the states of a
row it has read, what rows share is read once (see prefixes).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import ShouldStop
from spex_engine.backends.causal import Ids
from spex_engine.backends.prefixes import no_prefixes, share_prefixes
from spex_engine.wire import ModelError

_SECONDS = 0.5  # a batch should take this long: cancelling waits for the one under way
_WORTH = 4  # but hold so many times the tokens that a pass costs anyhow, however slow the model is
_GROWTH = 4  # a batch is at most so many times the last one, whose speed may mislead


class OutOfMemoryError(Exception):
    """A batch did not fit into the memory of the device."""


@dataclass(frozen=True, eq=False)
class Run:
    """One row of a batch: what is read of it, what for, and what is kept.

    ids: int (L,). start: the tokens before it are not read but continued from ``past``, what the
    forward pass kept of another run. keep: as many first tokens are to be continued from; 0: none.
    places: int (t,), the logits at places[i] are of the tokens wanted[:, i]; wanted: int (w, t).
    """

    ids: Ids
    start: int
    past: Any
    keep: int
    places: Ids
    wanted: Ids


def padded(runs: Sequence[Run]) -> tuple[Ids, Ids]:
    """What is read of the runs in one array, padded on the right with 0; and where logits are read.

    Returns ids, int (b, L), and places, int (b, t): in each row of ids those of that run, the last
    one again where others have more.
    """
    ids = np.zeros((len(runs), max(len(run.ids) - run.start for run in runs)), dtype=np.int64)
    places = np.zeros((len(runs), max(len(run.places) for run in runs)), dtype=np.int64)
    for i, run in enumerate(runs):
        ids[i, : len(run.ids) - run.start] = run.ids[run.start :]
        places[i] = run.places[-1] - run.start
        places[i, : len(run.places)] = run.places - run.start
    return ids, places


class ForwardPass(Protocol):
    """What runs the model, one batch at a time."""

    shares: bool  # whether it can continue from what it kept
    overhead: float  # what a pass costs beside its tokens, in tokens
    kept_tokens: int  # how many tokens' states may be held between passes, about
    past_tokens: int  # how many, padded, may be continued from in one batch
    max_logits: int  # how many places' logits fit

    def __call__(self, runs: Sequence[Run]) -> tuple[list[NDArray[np.float64]], list[Any]]:
        """Of each run: log p of what is wanted, float (w, t), and what it keeps of the states.

        Raises OutOfMemoryError.
        """
        ...


@dataclass
class BatchSize:
    """How many padded tokens a batch may hold; learnt from the batches before it.

    Starts at a single row. Batches over the time aimed at make it smaller, quick ones larger, and
    what once ran out of memory is never tried again. Which rows share a batch shows in the last
    bits of their scores: where ``adapts`` is False, time has no say and results repeat exactly.
    overhead: what a pass costs beside its tokens, in tokens.
    """

    tokens: int = 0
    ceiling: int | None = None
    adapts: bool = True
    overhead: float = 0.0

    def took(self, tokens: int, seconds: float) -> None:
        if not self.adapts:
            return
        fitting = int((tokens + self.overhead) * _SECONDS / max(seconds, 1e-6) - self.overhead)
        if seconds > _SECONDS:  # or something else kept the machine busy for a moment
            self.tokens = max(fitting, self.tokens // 2, int(_WORTH * self.overhead))
        else:
            self.tokens = max(self.tokens, min(fitting, _GROWTH * tokens))
        if self.ceiling is not None:
            self.tokens = min(self.tokens, self.ceiling)

    def overflowed(self, tokens: int) -> None:
        self.ceiling = tokens // 2
        self.tokens = min(self.tokens, self.ceiling)


@dataclass(frozen=True, eq=False)
class _Stem:
    """What targets have in common but for their last token; ``columns``: int (w, t), of each."""

    ids: Ids
    wanted: Ids
    columns: Ids


def score_rows(
    rows: Sequence[Ids],
    targets: Sequence[Ids],
    forward: ForwardPass,
    size: BatchSize,
    should_stop: ShouldStop | None = None,
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64]]]:
    """Scores of all targets after all rows, as they come: rows (k,), scores float (k, T).

    T is the sum of the targets' lengths; no row is empty. size: kept and improved from call to
    call. should_stop is asked before each batch; rows not reached never come. Raises ModelError
    where even a single row does not fit into memory.
    """
    same: dict[bytes, list[int]] = {}
    for i, row in enumerate(rows):
        same.setdefault(row.tobytes(), []).append(i)
    distinct = list(same.values())
    stems = _stems(targets)
    found = np.full((len(distinct), sum(map(len, targets))), np.nan)
    left = [len(stems)] * len(distinct)
    owners = [(i, stem) for i in range(len(distinct)) for stem in stems]
    work = _Work(
        [np.concatenate([rows[distinct[i][0]], stem.ids]) for i, stem in owners],
        [len(rows[distinct[i][0]]) - 1 for i, _ in owners],
        [stem.wanted for _, stem in owners],
        forward,
    )
    while work.ready:
        if should_stop is not None and should_stop():
            return
        batch = work.next_batch(size.tokens)
        read = len(batch) * max(work.unread(number) for number in batch)
        started = time.perf_counter()
        try:
            scores = work.run(batch)
        except OutOfMemoryError:
            if len(batch) > 1:
                size.overflowed(read)
            elif not work.forget():
                raise ModelError(
                    f"Not enough memory to score a single row of {read} tokens; shorten the "
                    "prompt, use a smaller model, or close what else uses the device."
                ) from None
            continue
        size.took(read, time.perf_counter() - started)
        done: list[int] = []
        for number, values in zip(batch, scores, strict=True):
            i, stem = owners[number]
            found[i, stem.columns] = values
            left[i] -= 1
            if left[i] == 0:
                done.append(i)
        if done:
            places = np.concatenate([np.array(distinct[i], dtype=np.intp) for i in done])
            yield places, np.repeat(found[done], [len(distinct[i]) for i in done], axis=0)


def _stems(targets: Sequence[Ids]) -> list[_Stem]:
    starts = np.cumsum([0, *map(len, targets)])
    together: dict[bytes, list[int]] = {}
    for j, target in enumerate(targets):
        together.setdefault(target[:-1].tobytes(), []).append(j)
    return [
        _Stem(
            targets[members[0]][:-1],
            np.array([targets[j] for j in members]),
            np.array([starts[j] + np.arange(len(targets[j])) for j in members]),
        )
        for members in together.values()
    ]


@dataclass
class _Work:
    """The rows still to be read, those that can be read now, and the states that they wait for."""

    ids: list[Ids]
    first: list[int]  # the first place whose logits are wanted
    wanted: list[Ids]
    forward: ForwardPass
    ready: list[int] = field(default_factory=list)  # longest unread part first
    kept: dict[int, Any] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._plan(self.forward.shares)

    def _plan(self, shares: bool) -> None:
        open_ = [number for number in range(len(self.ids)) if number not in self.done]
        ids = [self.ids[number] for number in open_]
        # Where the logits are wanted must be read: they are not kept.
        limits = [self.first[number] for number in open_]
        plan = (
            share_prefixes(ids, limits, self.forward.overhead) if shares else no_prefixes(len(ids))
        )
        self.start = [0] * len(self.ids)
        self.parent = [-1] * len(self.ids)
        self.depth = [0] * len(self.ids)
        self.children: list[list[int]] = [[] for _ in self.ids]
        depths = plan.depths().tolist()
        for place, number in enumerate(open_):
            above = int(plan.parents[place])
            self.start[number] = int(plan.shared[place])
            self.depth[number] = depths[place]
            if above >= 0:
                self.parent[number] = open_[above]
                self.children[open_[above]].append(number)
        self.ready = [number for number in open_ if self.parent[number] < 0]
        self.ready.sort(key=self.unread, reverse=True)

    def unread(self, number: int) -> int:
        return len(self.ids[number]) - self.start[number]

    def next_batch(self, tokens: int) -> list[int]:
        """The batch of most tokens for its cost, among rows of like length that are ready.

        Where too many states are held, from the rows that wait for most others, so that these can
        be given up.
        """
        candidates = self.ready
        if sum(self._keep(number) for number in self.kept) > self.forward.kept_tokens:
            deepest = max(self.depth[number] for number in candidates)
            candidates = [number for number in candidates if self.depth[number] == deepest]
        lengths = np.array([self.unread(number) for number in candidates])
        starts = np.array([self.start[number] for number in candidates])
        widths = np.array([self.wanted[number].shape[1] for number in candidates])
        at = np.arange(len(candidates))
        counts = np.minimum(tokens // lengths, self.forward.max_logits // widths.max())
        # Never longer than this, so that padding to the longest past does not exceed the bound.
        pasts = self.forward.past_tokens // (int(starts.max()) + lengths)
        counts = np.where(starts.max() > 0, np.minimum(counts, pasts), counts)
        counts = np.clip(counts, 1, len(candidates) - at)
        sums = np.concatenate([[0], np.cumsum(lengths)])
        gains = (sums[at + counts] - sums[at]) / (self.forward.overhead + counts * lengths)
        best = int(gains.argmax())
        return candidates[best : best + int(counts[best])]

    def run(self, batch: Sequence[int]) -> list[NDArray[np.float64]]:
        runs = [
            Run(
                self.ids[number],
                self.start[number],
                self.kept.get(self.parent[number]),
                self._keep(number),
                self.first[number] + np.arange(self.wanted[number].shape[1]),
                self.wanted[number],
            )
            for number in batch
        ]
        scores, states = self.forward(runs)
        reached = set(batch)
        self.ready = [number for number in self.ready if number not in reached]
        for number, state in zip(batch, states, strict=True):
            self.done.add(number)
            if self.children[number]:
                self.kept[number] = state
                self.ready += self.children[number]
            siblings = self.children[self.parent[number]] if self.parent[number] >= 0 else []
            if siblings and all(sibling in self.done for sibling in siblings):
                self.kept.pop(self.parent[number], None)
        self.ready.sort(key=self.unread, reverse=True)
        return scores

    def forget(self) -> bool:
        """Gives up all states held, now and for good; False where none are."""
        if not self.kept:
            return False
        self.kept.clear()
        self.forward.shares = False
        self._plan(shares=False)
        return True

    def _keep(self, number: int) -> int:
        return max((self.start[child] for child in self.children[number]), default=0)
