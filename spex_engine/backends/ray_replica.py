"""One copy of a model on a node of a Ray cluster: what runs at the far end of `backends.ray`.

It answers packed masks with scores and keeps the prompts that it has been asked about. It must not
know Ray, the pool that it is part of, or that it may be ended at any moment.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Scale, ScoredTarget, Scorer, Scores, Tier
from spex_engine.backends.hf_loading import LoadedModel
from spex_engine.wire import Prompt, Question

Asked = tuple[Prompt, Question]

_KEPT = 4  # prompts held at once
_SAMPLED = 512  # numbers of each weight, about


@dataclass(frozen=True)
class Loaded:
    """fingerprint: of the files here, see hf_identity. likeness: equal where the models are."""

    fingerprint: bytes
    likeness: bytes


@dataclass(frozen=True)
class Opened:
    """A scorer as seen from afar. mark: of its targets, to tell that all copies agree on them."""

    tier: Tier
    scale: Scale
    n_segments: int
    targets: tuple[ScoredTarget, ...]
    notes: tuple[str, ...]
    mark: bytes


@dataclass(frozen=True, eq=False)
class Answer:
    """rows: int (k,), of the masks that were sent; mark: as in Opened."""

    rows: NDArray[np.intp]
    scores: Scores
    mark: bytes


class Replica:
    """The model, loaded; every method can be asked of any copy, in any order, again."""

    def __init__(self) -> None:
        self._model: Any = None
        self._scorers: dict[bytes, Scorer] = {}
        self._given_up: set[int] = set()

    def node(self) -> str:
        """The name of the machine, for people."""
        return socket.gethostname()

    def load(self, name_or_path: str) -> Loaded:
        """Loads the model as `backends.transformers.load` does."""
        from spex_engine.backends.hf_loading import load_causal_lm
        from spex_engine.backends.transformers import TransformersBackend

        loaded = load_causal_lm(name_or_path, None, None)
        self._model = TransformersBackend(loaded)
        return Loaded(self._model.fingerprint, likeness(loaded))

    def go_by(self, fingerprint: bytes) -> None:
        """From now on addresses are as on the node of that fingerprint, which has a like model."""
        self._model.fingerprint = fingerprint

    def open(self, key: bytes, asked: Asked) -> Opened:
        """key: what the scorer of ``asked`` is kept under."""
        scorer = self._scorer(key, asked, lambda: False)
        return Opened(
            scorer.tier,
            scorer.scale,
            scorer.n_segments,
            scorer.targets,
            scorer.notes,
            _mark(scorer),
        )

    def addresses(self, key: bytes, asked: Asked, packed: NDArray[np.uint8]) -> list[bytes]:
        scorer = self._scorer(key, asked, lambda: False)
        return scorer.addresses(unpack(packed, scorer.n_segments))

    def score(self, key: bytes, asked: Asked, packed: NDArray[np.uint8], run: int) -> Answer:
        """packed: the masks as `pack` made them. run: the number to give up by."""
        scorer = self._scorer(key, asked, lambda: run in self._given_up)
        masks = unpack(packed, scorer.n_segments)
        portions = list(scorer.score(masks, lambda: run in self._given_up))
        return Answer(*_joined(portions), _mark(scorer))

    def give_up(self, run: int) -> None:
        """Ends what is under way of this run at the next batch, and what is still to come."""
        self._given_up.add(run)

    def _scorer(self, key: bytes, asked: Asked, should_stop: Callable[[], bool]) -> Scorer:
        scorer = self._scorers.pop(key, None)
        if scorer is None:
            scorer = self._model.open(*asked, should_stop)
        self._scorers[key] = scorer  # the last one asked for is the last to go
        for old in list(self._scorers)[:-_KEPT]:
            del self._scorers[old]
        return scorer


def pack(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """bool (m, n) as bits, uint8 (m, ceil(n / 8))."""
    return np.packbits(masks, axis=1)


def unpack(packed: NDArray[np.uint8], n: int) -> NDArray[np.bool_]:
    return np.unpackbits(packed, axis=1, count=n).astype(bool)


def likeness(loaded: LoadedModel) -> bytes:
    """32 bytes that copies of one model share, whenever and wherever their files were written.

    Of each weight it takes some hundred numbers: enough to tell models, versions of one, and types
    of numbers apart in no time.
    """
    import torch
    import transformers

    config = loaded.model.config.to_dict()
    config.pop("_name_or_path", None)
    found = hashlib.blake2b(digest_size=32)
    for part in (
        *(library.__version__.rpartition(".")[0] for library in (torch, transformers)),
        loaded.model.device.type,
        json.dumps(config, sort_keys=True, default=str),
        loaded.tokenizer.backend_tokenizer.to_str(),
        str(loaded.tokenizer.chat_template),
    ):
        found.update(part.encode() + b"\0")
    for name, weight in sorted(loaded.model.state_dict().items()):
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}\0".encode())
        flat = weight.detach().reshape(-1)
        found.update(flat[:: max(1, len(flat) // _SAMPLED)].float().cpu().numpy().tobytes())
    return found.digest()


def _mark(scorer: Scorer) -> bytes:
    agreed = repr((scorer.tier, scorer.scale, scorer.n_segments, scorer.targets))
    return hashlib.blake2b(agreed.encode(), digest_size=16).digest()


def _joined(
    portions: list[tuple[NDArray[np.intp], Scores]],
) -> tuple[NDArray[np.intp], Scores]:
    if not portions:
        nothing = np.empty(0, dtype=np.int64)
        return nothing.astype(np.intp), Scores(np.empty((0, 0)), nothing)
    scores = [found for _, found in portions]
    censored = [s.censored for s in scores if s.censored is not None]
    return np.concatenate([rows for rows, _ in portions]), Scores(
        np.concatenate([s.values for s in scores]),
        np.concatenate([s.input_tokens for s in scores]),
        np.concatenate(censored) if censored else None,
    )
