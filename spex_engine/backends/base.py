"""What every kind of model is to the rest of the engine: something that scores masks of a prompt.

A model opens a prompt with a question (what is measured of its answer) and gives a scorer, which
turns masks into scores as they come. Scores are raw: a log-probability of each target token, of
each label, or how alike each regenerated answer is. What is stored is these; what is made of them
is for `spex_engine.values`. Nothing here knows designs, estimators, files or editors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from spex_engine.wire import Prompt, Question

Tier = Literal["T1", "T2", "T3"]
# what a score is: of a token of the answer; of a label among all there are, as a classifier has it;
# a number that is the model's own; how like a text the prompt is
Scale = Literal["token", "log-probability", "number", "similarity"]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model said of k masks.

    values: float (k, w), a column for each target token (T1, nats), each label (T2, nats) or each
    repetition (T3, 0..1); NaN where it failed. censored: bool (k, w), True where the true value is
    at most the given one (a label that was not among those listed); None: nowhere. input_tokens:
    int (k,), read by the model. answers: for T3, what was regenerated, one tuple of w texts a mask;
    None for the other tiers.
    """

    values: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    censored: NDArray[np.bool_] | None = None
    answers: tuple[tuple[str, ...], ...] | None = None


@dataclass(frozen=True)
class ScoredTarget:
    """An answer whose scores are a run of columns: ``first`` to ``first + len(spans)``.

    spans: of each column, [start, end) in ``text``, so that a part of the answer can be picked.
    """

    text: str
    first: int
    spans: tuple[tuple[int, int], ...]
    own: bool = False  # the model's own answer to the full prompt, not one that was given


class Scorer(Protocol):
    """One prompt and one question on one model."""

    @property
    def tier(self) -> Tier: ...

    @property
    def scale(self) -> Scale: ...

    @property
    def n_segments(self) -> int: ...

    @property
    def targets(self) -> tuple[ScoredTarget, ...]:
        """The target, then what it is compared with."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how the model was asked; it may grow during a run."""
        ...

    def addresses(self, masks: NDArray[np.bool_]) -> list[bytes]:
        """What each mask, bool (m, n), asks of the model, as 32 bytes; no model is called.

        Equal addresses mean equal scores, now and in another process: model, what it reads, what is
        scored and how. Masks that come to the same text share one.
        """
        ...

    def score(
        self, masks: NDArray[np.bool_], should_stop: ShouldStop
    ) -> Iterator[tuple[NDArray[np.intp], Scores]]:
        """Portions (rows of the masks, their scores) as they come, in any order, each row once.

        A row that is never yielded was not reached or could not be paid for; one that failed has
        NaN. should_stop is asked often. Closing the iterator gives up what is in flight.
        """
        ...


@runtime_checkable
class MeasuresNoise(Protocol):
    """A scorer that can say how much its scores depend on what they must not depend on."""

    def noise_floor(
        self, masks: NDArray[np.bool_], value: Callable[[Scores], NDArray[np.float64]]
    ) -> float | None:
        """Standard deviation of the value of the same mask, scored anew in other company.

        masks: bool (m, n), of which a few are taken. value: scores of k masks to float (k,). None
        where it cannot be told.
        """
        ...


class Model(Protocol):
    """A model that is loaded, or an endpoint that answers."""

    uri: str

    def open(self, prompt: Prompt, question: Question, should_stop: ShouldStop) -> Scorer:
        """May ask the model for its own answer. InputError or ModelError say what to do."""
        ...
