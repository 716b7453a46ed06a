"""What a local model must be able to do, and what all of them share.

A backend turns a prompt into token ids once, and then scores a fixed target after any subset of
them. It knows token ids and log-probabilities; it must not know masks' designs, estimators,
files or editors. Segments are dropped as token ids: the joined string is never tokenised again,
so a mask can never change how its neighbours are tokenised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spex_engine.wire import Prompt

Ids = NDArray[np.int64]
FIXED = -1


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


class Backend(Protocol):
    """A causal language model that can score a given target (tier T1)."""

    uri: str
    context_length: int | None  # tokens, prompt and target together; None: no known limit

    def tokenise(self, prompt: Prompt) -> TokenisedPrompt:
        """Raises InputError where it does not fit the context."""
        ...

    def tokenise_target(self, prompt: TokenisedPrompt, text: str) -> Ids:
        """The ids of ``text`` as it would continue ``prompt``; int (T,), T >= 1."""
        ...

    def greedy(self, prompt: TokenisedPrompt, max_tokens: int = 32) -> Ids:
        """The model's own answer, without the end token; int (T,)."""
        ...

    def decode(self, ids: Ids) -> str: ...

    def target_logprobs(
        self,
        rows: Sequence[Ids],
        target: Ids,
        should_stop: Callable[[], bool] | None = None,
    ) -> NDArray[np.float64]:
        """log p(target token | row, target tokens before it), nats; float (len(rows), T).

        A row that failed, or was not reached before ``should_stop`` said so, is NaN.
        """
        ...
