"""What is measured: from per-token log-probabilities to one value for each mask.

Knows masks, a tokenised prompt and the backend's scores; it must not know how masks are chosen or
what is made of the values. A later measure (contrast, label margin) is one more function here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Backend, Ids, TokenisedPrompt

UNIT = "nats per target token"


def mean_logprob(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean log-probability per target token, nats; float (m, T) -> (m,). NaN rows stay NaN.

    The mean and not the sum, because the sum is unbounded below in the target's length: a few
    masks under which every token of a long target is unlikely would have tails heavy enough to
    dominate each fit, and values of targets of different lengths could not be compared.
    """
    mean: NDArray[np.float64] = np.asarray(logprobs, dtype=np.float64).mean(axis=1)
    return mean


class TargetGame:
    """The game whose value is how likely a fixed target is after the segments that are kept.

    Called with masks, bool (m, n), it returns their values, float (m,), in nats per target token;
    NaN where the backend failed or was stopped. Every mask is paid for once.

    logprobs: ``mask.tobytes()`` -> float (T,), the scores of each mask so far, so that any part
    of the target can be explained without asking the model again. input_tokens: tokens read by
    the model so far, target included.
    """

    def __init__(
        self,
        backend: Backend,
        prompt: TokenisedPrompt,
        target: Ids,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.prompt = prompt
        self.target = target
        self.logprobs: dict[bytes, NDArray[np.float64]] = {}
        self.input_tokens = 0
        self._backend = backend
        self._should_stop = should_stop

    def __call__(self, masks: NDArray[np.bool_]) -> NDArray[np.float64]:
        if masks.ndim != 2 or masks.shape[1] != self.prompt.n_segments or masks.dtype != np.bool_:
            raise ValueError(
                f"masks: expected bool (m, {self.prompt.n_segments}), got {masks.dtype} "
                f"{masks.shape}"
            )
        keys = [mask.tobytes() for mask in masks]
        new = {key: mask for key, mask in zip(keys, masks, strict=True) if key not in self.logprobs}
        if new:
            self._score(new)
        missing = np.full(len(self.target), np.nan)
        found = [self.logprobs.get(key, missing) for key in keys]
        return mean_logprob(np.reshape(found, (len(masks), len(self.target))))

    def _score(self, masks: dict[bytes, NDArray[np.bool_]]) -> None:
        rows = [self.prompt.masked(mask) for mask in masks.values()]
        scores = self._backend.target_logprobs(rows, self.target, self._should_stop)
        read: dict[bytes, int] = {}
        for key, row, score in zip(masks, rows, scores, strict=True):
            if not np.isnan(score).any():  # what failed may be asked again
                self.logprobs[key] = score
                read[row.tobytes()] = len(row) + len(self.target)
        self.input_tokens += sum(read.values())
