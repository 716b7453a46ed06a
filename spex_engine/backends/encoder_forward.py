"""A loaded encoder as a function: rows of token ids in, labels' log-probabilities or vectors out.

Batches, padding, pooling, and what a tokenizer puts around a text. It knows transformers' objects
and token ids; it must not know questions, targets or masks. Importing it loads no torch.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import ShouldStop
from spex_engine.backends.batching import BatchSize, OutOfMemoryError
from spex_engine.backends.causal import Ids
from spex_engine.backends.encoder_loading import LoadedEncoder
from spex_engine.backends.hf_identity import fingerprint
from spex_engine.backends.hf_loading import LoadedModel, is_out_of_memory
from spex_engine.wire import ModelError

_SCORING = 1  # to be raised when the same ids come to other numbers
_MAX_ROWS = 1024


class EncoderForward:
    """The forward passes of an encoder, in batches that fit.

    width: the numbers that come out for a row. context_length: the most tokens of a row; None: no
    limit is known. fingerprint: what the numbers depend on beside the ids.
    """

    def __init__(self, loaded: LoadedEncoder) -> None:
        self._name = loaded.name
        self._model = loaded.model
        self._n_labels = len(loaded.labels)
        self._pooling = loaded.reading.pooling
        self._padding = loaded.tokenizer.pad_token_id
        self._batch_size = BatchSize()
        self.around = Around(loaded.tokenizer)
        self.width = self._n_labels or len(self._pooling) * int(loaded.model.config.hidden_size)
        self.context_length = _context_length(loaded)
        self.fingerprint = _fingerprint(loaded)
        if getattr(loaded.model.config, "pad_token_id", None) is None:
            loaded.model.config.pad_token_id = -1  # heads that look for the last token need one
        self._pads = self._padding is not None and self._is_blind_to_padding()

    def outputs(
        self, rows: Sequence[Ids], should_stop: ShouldStop | None = None
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64]]]:
        """What the model says of each row, in portions: rows (k,), float (k, w).

        w: the labels, of which each has its log-probability in nats (a single one its number), or
        the dimensions of a vector of length 1. Rows not reached before ``should_stop`` said so
        never come. ModelError where a single row does not fit into memory.
        """
        rows = [row if len(row) else self.around.empty(self._name) for row in rows]
        same: dict[bytes, list[int]] = {}
        for i, row in enumerate(rows):
            same.setdefault(row.tobytes(), []).append(i)
        # Longest first: if memory is short, that shows before anything has been paid for.
        pending = sorted(same.values(), key=lambda places: -len(rows[places[0]]))
        size = self._batch_size
        while pending and not (should_stop is not None and should_stop()):
            width = len(rows[pending[0][0]])
            count = max(1, min(size.tokens // width, _MAX_ROWS, len(pending)))
            batch = pending[:count]
            started = time.perf_counter()
            try:
                values = self._read([rows[places[0]] for places in batch])
            except OutOfMemoryError:
                if len(batch) == 1:
                    raise ModelError(
                        f"Not enough memory to read a single row of {width} tokens; shorten the "
                        "prompt, use a smaller model, or close what else uses the device."
                    ) from None
                size.overflowed(len(batch) * width)
                continue
            size.took(len(batch) * width, time.perf_counter() - started)
            pending = pending[count:]
            yield (
                np.concatenate([np.array(places, dtype=np.intp) for places in batch]),
                np.repeat(values, [len(places) for places in batch], axis=0),
            )

    def _is_blind_to_padding(self) -> bool:
        """Whether a row comes to the same alone and beside a longer one that it is padded to."""
        short, long = (
            np.array(self.around.encode(text)[0], dtype=np.int64)
            for text in ("tea", "one two three four five six")
        )
        alone, beside = self._forward([short])[0], self._forward([short, long])[0]
        tolerance = 1e-2 * np.abs(alone).max()  # numbers of half precision differ more
        return bool((np.abs(alone - beside) <= tolerance).all())

    def _read(self, rows: Sequence[Ids]) -> NDArray[np.float64]:
        """float (b, w), see `outputs`; rows of different lengths apart where padding would show."""
        import torch

        try:
            if self._pads:
                return self._forward(rows)
            found = np.empty((len(rows), self.width))
            for _, same in itertools.groupby(range(len(rows)), lambda i: len(rows[i])):
                places = list(same)
                found[places] = self._forward([rows[i] for i in places])
            return found
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only out here does the error no longer hold on to the tensors of the failed pass.
        torch.cuda.empty_cache()
        raise OutOfMemoryError

    def _forward(self, rows: Sequence[Ids]) -> NDArray[np.float64]:
        """One forward pass over all rows, padded on the right; float (b, w)."""
        import torch

        lengths = np.array([len(row) for row in rows])
        attended = np.arange(lengths.max()) < lengths[:, None]
        inputs = {
            "input_ids": np.full(attended.shape, self._padding or 0),
            "attention_mask": attended.astype(np.int64),
        }
        inputs["input_ids"][attended] = np.concatenate(rows)
        if self.around.has_types:
            inputs["token_type_ids"] = np.zeros(attended.shape, dtype=np.int64)
            types = [self.around.types(len(row)) for row in rows]
            inputs["token_type_ids"][attended] = np.concatenate(types)
        device = self._model.device
        tensors: dict[str, Any] = {k: torch.from_numpy(v).to(device) for k, v in inputs.items()}
        with torch.inference_mode():
            output = self._model(**tensors)
            if self._n_labels:
                found = self._logprobs(output.logits.float())
            else:
                states, mask = output.last_hidden_state.float(), tensors["attention_mask"]
                parts = [_pooled(how, states, mask) for how in self._pooling]
                found = torch.nn.functional.normalize(torch.cat(parts, dim=-1).double(), dim=-1)
            values: NDArray[np.float64] = found.cpu().numpy().astype(np.float64)
        return values

    def _logprobs(self, logits: Any) -> Any:
        import torch

        if self._n_labels == 1:
            return logits
        if self._model.config.problem_type == "multi_label_classification":
            return torch.nn.functional.logsigmoid(logits.double())
        return logits.double().log_softmax(-1)


class Around:
    """What the tokenizer puts around a text, and the types of tokens that it tells apart."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        sample = tokenizer("a", return_special_tokens_mask=True)
        inside = sample["special_tokens_mask"].index(0)
        types = sample.get("token_type_ids") or [0] * len(sample["input_ids"])
        self.has_types = any(types)
        last = len(types) - 1 - sample["special_tokens_mask"][::-1].index(0)
        self._types = types[:inside], types[inside], types[last + 1 :]

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and each one's [start, end) in characters; empty for what stands around the text."""
        encoded = self._tokenizer(
            text, return_offsets_mapping=True, return_special_tokens_mask=True, truncation=False
        )
        offsets: list[tuple[int, int]] = []
        reached = 0
        for (start, end), added in zip(
            encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
        ):
            if added:
                offsets.append((0, 0))
                continue
            if start == end:  # a blank that the tokenizer trims off: back to the token before it
                start = min(reached, max(end - 1, 0))
            offsets.append((start, end))
            reached = max(reached, end)
        return encoded["input_ids"], offsets

    def types(self, length: int) -> Ids:
        """The type of each token of a row of that length; int (length,)."""
        before, inside, after = self._types
        middle = [inside] * (length - len(before) - len(after))
        return np.array([*before, *middle, *after], dtype=np.int64)

    def empty(self, name: str) -> Ids:
        """What to read in place of nothing, by a model whose tokenizer puts nothing around it."""
        for token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return np.array([token], dtype=np.int64)
        raise ModelError(
            f"{name} has no token that begins a text, so the empty prompt cannot be read; keep a "
            "part of the prompt fixed."
        )


def _pooled(how: str, states: Any, mask: Any) -> Any:
    """One vector for each row, float (b, d), as sentence-transformers' Pooling makes it.

    states: float (b, L, d). mask: int (b, L), 1 where there is a token; padding on the right.
    """
    import torch

    kept = mask[..., None].to(states.dtype)
    counts = kept.sum(1)
    if how == "cls":
        return states[:, 0]
    if how == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    if how == "max":
        return states.masked_fill(kept == 0, float("-inf")).amax(1)
    if how == "weightedmean":
        kept = kept * torch.arange(1, mask.shape[1] + 1, device=states.device)[:, None]
        return (states * kept).sum(1) / kept.sum(1)
    total = (states * kept).sum(1)
    return total / (counts.sqrt() if how == "mean_sqrt_len_tokens" else counts)


def _context_length(loaded: LoadedEncoder) -> int | None:
    """The most tokens that the model has positions for; None: no limit is known."""
    for name, table in loaded.model.named_modules():
        if name.endswith(("position_embeddings", ".wpe")) and hasattr(table, "num_embeddings"):
            # RoBERTa and its kin count positions from behind that of the padding
            return int(table.num_embeddings) - (
                0 if table.padding_idx is None else int(table.padding_idx) + 1
            )
    config = loaded.model.config
    relative = getattr(config, "relative_attention", False) or config.model_type in ("t5", "xlnet")
    length = getattr(config, "max_position_embeddings", None)
    if isinstance(length, int) and length > 0 and not relative:
        return length
    return None


def _fingerprint(loaded: LoadedEncoder) -> bytes:
    """What the model is, how its states are read, and the version of this code; 32 bytes."""
    model = fingerprint(LoadedModel(loaded.folder, loaded.model, loaded.tokenizer))
    read = repr((_SCORING, loaded.labels, loaded.reading.pooling)).encode()
    return hashlib.blake2b(model + read, digest_size=32).digest()
