"""What a value is made of: from scores of answers to values, and between which bounds they lie.

Knows columns of numbers, not what they were asked for: `spex_engine.values` knows that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Scores

Floats = NDArray[np.float64]

NEAREST = float(24 * np.log(2))  # log-odds that float32 scores cannot tell from certainty
_EXACT = 1e-3  # nats, or of a probability: bounds that are nearer to each other are one number


@dataclass(frozen=True, eq=False)
class Measured:
    """The values of k masks, float (k,); NaN where the model failed, or said nothing of use.

    variances: float (k,), of the noise of each value, NaN where only one repetition came; None:
    the values are not noisy. censored: int8 (k,), -1 where the true value is at most this one, 1
    where it is at least this one, 0 where it is this one; None: all are.
    """

    values: Floats
    variances: Floats | None = None
    censored: NDArray[np.int8] | None = None


@dataclass(frozen=True, eq=False)
class ValueFunction:
    """From scores to values. Get it from `value_function`.

    unit: of a value, for people. how: what it is, in a few words. read: from what each answer
    scored, float (k, 1 + others), to values (k,), never falling in the first column nor rising in
    the others; lowest and highest: what it can say at all. columns: of the target, then of each
    answer that it is compared with. per_token: whether an answer's score is the mean over its
    columns, else their sum; None: they are repetitions of one noisy score.
    """

    unit: str
    how: str
    read: Callable[[Floats], Floats]
    lowest: float
    highest: float
    columns: tuple[NDArray[np.intp], ...]
    per_token: bool | None

    def __call__(self, scores: Scores) -> Measured:
        if self.per_token is None:
            return mean_and_noise(scores.values)
        exact = self.read(self._answers(scores.values))
        if scores.censored is None or not scores.censored[:, np.concatenate(self.columns)].any():
            return Measured(exact)
        # the answer's own scores between nothing and their bounds, and the others' against it
        without = np.where(scores.censored, -np.inf, scores.values)
        at, least = self._answers(scores.values), self._answers(without)
        low = self.read(np.column_stack([least[:, :1], at[:, 1:]]))
        high = self.read(np.column_stack([at[:, :1], least[:, 1:]]))
        return self._between(low, high)

    def _answers(self, scores: Floats) -> Floats:
        """What each answer scored, float (k, answers)."""
        found = np.empty((len(scores), len(self.columns)))
        for answer, at in zip(found.T, self.columns, strict=True):
            answer[:] = scores[:, at].mean(axis=1) if self.per_token else scores[:, at].sum(axis=1)
        return found

    def _between(self, low: Floats, high: Floats) -> Measured:
        """The value that lies between two. Where both ends are open nothing was learnt: NaN."""
        with np.errstate(invalid="ignore"):
            known = (low == high) | (high - low <= _EXACT)
            middle = np.where(low == high, low, (low + high) / 2)
        above = low > self.lowest
        values = np.where(known, middle, np.where(above, low, high))
        values[~known & ~above & (high >= self.highest)] = np.nan
        sides = np.where(known | np.isnan(values), 0, np.where(above, 1, -1))
        return Measured(values, None, sides.astype(np.int8) if sides.any() else None)


def mean_and_noise(repetitions: Floats) -> Measured:
    """The mean (k,) over repetitions (k, r), and the variance of that mean's noise.

    What failed (NaN) is left out. With few repetitions each variance is itself hardly known: it is
    for the fit, which has them all, to draw them together (`fitting`).
    """
    known = np.isfinite(repetitions)
    counts = known.sum(axis=1)
    filled = np.where(known, repetitions, 0.0)
    mean = filled.sum(axis=1) / np.where(counts > 0, counts, np.nan)
    squares = (np.where(known, repetitions - mean[:, None], 0.0) ** 2).sum(axis=1)
    return Measured(mean, squares / np.where(counts > 1, (counts - 1) * counts, np.nan))


def logit(log_p: Floats) -> Floats:
    """``log p - log(1 - p)`` from log p, cut off at 16.6 (see `values.value_function`)."""
    safe = np.minimum(log_p, -np.exp(-NEAREST))
    small = safe < -np.log(2)  # which of the two is exact depends on where p is (Maechler 2012)
    rest = np.where(
        small,
        np.log1p(-np.exp(np.where(small, safe, -1.0))),
        np.log(-np.expm1(np.where(small, -1.0, safe))),
    )
    odds: Floats = np.minimum(safe - rest, NEAREST)
    return odds


def level(answers: Floats) -> Floats:
    return answers[:, 0]


def less(answers: Floats) -> Floats:
    return np.asarray(answers[:, 0] - answers[:, 1])


def log_odds(answers: Floats) -> Floats:
    return logit(answers[:, 0])


def probability(answers: Floats) -> Floats:
    return np.asarray(np.exp(answers[:, 0]))


def against(answers: Floats) -> Floats:
    return np.asarray(answers[:, 0] - np.logaddexp.reduce(answers[:, 1:], axis=1))


def share(answers: Floats) -> Floats:
    return np.asarray(np.exp(answers[:, 0] - np.logaddexp.reduce(answers, axis=1)))
