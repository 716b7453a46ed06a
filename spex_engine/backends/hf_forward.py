"""A batch of rows through a transformers model: padded, continued from kept states, read off.

Knows torch, one model and how transformers hands over attention masks, positions and cached keys
and values; it must not know tokenizers, prompts or how batches are chosen. Importing it loads
neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.batching import OutOfMemoryError, Run, padded
from spex_engine.backends.causal import Ids
from spex_engine.backends.hf_loading import is_out_of_memory

# Beside a vocabulary of 150 000 the logits are the largest thing in memory: a quarter GiB.
_MAX_LOGITS = 2**26
_PROCESSOR_BYTES = 2**27  # of states held between passes, and as many within one
_TRIED = 16  # tokens of a row that prefixes are tried on
_TOLERANCE = 1e-3  # of what scores differ by with what is read, in float32


class HfForward:
    """Log-probabilities of a causal language model (see ``batching.ForwardPass``).

    Rows are padded on the right: every real token keeps its place, whether a model counts
    positions itself or takes them from the mask, and no real token attends to the padding behind
    it. What a row continues from is padded on the left, so that it ends where the row goes on:
    distances, by which models with sliding windows or biases go, stay what they are.
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self.shares = True
        self._why_not_shared = ""
        self.overhead = _overhead(model)
        self.max_logits = max(1, _MAX_LOGITS // int(config.vocab_size))
        self.kept_tokens = self.past_tokens = 1
        self._model = model
        self._window = _smallest_window(config)
        self._verified = 0
        self.verify(0)

    def verify(self, longest: int) -> None:
        """Tries prefixes on random rows, and never uses them again where scores come out wrong.

        That is so with models that carry other states than keys and values, place tokens without
        being told where, or keep them in ways of their own. Windows of attention that rows are
        longer than show only in rows that long.
        """
        beyond = self._window is not None and longest > self._window
        length = min(self._window + 16, longest) if beyond and self._window is not None else _TRIED
        if not self.shares or length <= self._verified:
            return
        self._verified = length
        try:
            self._why_not_shared = self._why_not(length)
        except Exception as error:  # whatever a model raises that has no such cache
            self._why_not_shared = f"it cannot go on from kept states ({type(error).__name__})"
        self.shares = not self._why_not_shared

    def notes(self) -> tuple[str, ...]:
        """What the user should know about how rows are read."""
        if not self._why_not_shared:
            return ()
        return (
            "what masked prompts have in common is read anew for each, which takes longer, since "
            f"this model does not allow otherwise: {self._why_not_shared}",
        )

    def _why_not(self, length: int) -> str:
        """Why rows that continue others score otherwise than whole; empty where they do not."""
        import torch

        config = self._model.config.get_text_config()
        vocabulary = int(config.vocab_size)
        random = np.random.default_rng(0)
        trunk, other = random.integers(vocabulary // 8, vocabulary // 2, (2, length))
        long = np.append(trunk[:-4], other[:4])
        short = np.append(trunk[: length // 2], other[: length // 3])
        wanted = random.integers(0, vocabulary, (1, 2))

        def run(ids: Ids, start: int = 0, past: Any = None, keep: int = 0) -> Run:
            return Run(ids, start, past, keep, len(ids) - 2 + np.arange(2), wanted)

        whole, (kept, _, _) = self._forward([run(trunk, keep=length - 4), run(long), run(short)])
        # Beside a row that continues none, and one that ends before the padding does.
        continued, _ = self._forward(
            [run(trunk), run(long, length - 4, kept), run(short, length // 2, kept)]
        )
        a_token = sum(side.nbytes for pair in kept for side in pair) / (length - 4)
        self.kept_tokens = self.past_tokens = max(1, int(_free_bytes(self._model) / a_token))
        off = float(np.abs(np.array(continued) - np.array(whole)).max())
        depends = float(np.abs(whole[0] - whole[1]).max())  # on what is read; little if untrained
        rounding = 16 * float(torch.finfo(self._model.dtype).eps)
        if off <= max(_TOLERANCE, rounding) * depends:
            return ""
        return f"with states kept, scores are {off:.2g} nats off"

    def __call__(self, runs: Sequence[Run]) -> tuple[list[NDArray[np.float64]], list[Any]]:
        import torch

        try:
            return self._forward(runs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only out here does the error no longer hold on to the tensors of the failed pass.
        torch.cuda.empty_cache()
        raise OutOfMemoryError

    def _forward(self, runs: Sequence[Run]) -> tuple[list[NDArray[np.float64]], list[Any]]:
        import torch

        device = self._model.device
        past = max(run.start for run in runs)
        ids, places = padded(runs)
        width = ids.shape[1]
        attended = np.zeros((len(runs), past + width), dtype=np.int64)
        for i, run in enumerate(runs):
            attended[i, past - run.start : past - run.start + len(run.ids)] = 1
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids).to(device),
            "attention_mask": torch.from_numpy(attended).to(device),
        }
        keeps = any(run.keep for run in runs)
        with torch.inference_mode():
            if past:
                # Those of the padding stay within the row: the model may know no more.
                spans = np.array([[run.start, len(run.ids) - 1] for run in runs])
                positions = np.minimum(spans[:, :1] + np.arange(width), spans[:, 1:])
                inputs["position_ids"] = torch.from_numpy(positions).to(device)
            if past or keeps:
                inputs["past_key_values"] = _cache([(run.past, run.start) for run in runs], past)
            logits = self._logits_at(
                torch.from_numpy(places).to(device), use_cache=past > 0 or keeps, **inputs
            )
            scores = [_scores(row, run) for row, run in zip(logits, runs, strict=True)]
            states = [
                _kept(inputs["past_key_values"], i, past - run.start, run.keep)
                if run.keep
                else None
                for i, run in enumerate(runs)
            ]
        return scores, states

    def _logits_at(self, places: Any, **inputs: Any) -> Any:
        """The logits at these places of each row, (b, T) -> (b, T, vocabulary), and no others.

        The hidden states are picked on their way into the output layer. Unlike logits_to_keep,
        which takes a set of places per row only in the newest transformers, that works with
        every version and model, and what a model does to its logits (scaling, capping) still
        happens. Where the output layer is not called so, all logits are computed and picked.
        """
        import torch

        def pick(states: Any) -> Any:
            return torch.take_along_dim(states, places[..., None], dim=1)

        picked = False

        def before_output(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            nonlocal picked
            if arguments and arguments[0].shape[:-1] == inputs["input_ids"].shape:
                picked = True
                return (pick(arguments[0]), *arguments[1:])
            return None

        layer = self._model.get_output_embeddings()
        hook = layer.register_forward_pre_hook(before_output) if layer is not None else None
        try:
            logits = self._model(**inputs).logits
        finally:
            if hook is not None:
                hook.remove()
        return logits if picked else pick(logits)


def _scores(logits: Any, run: Run) -> NDArray[np.float64]:
    """log p of what is wanted of one row: a float32 copy of all rows would be large."""
    import torch

    wanted = torch.from_numpy(np.ascontiguousarray(run.wanted.T)).to(logits.device)  # (t, w)
    found = logits[: len(run.places)].float().log_softmax(-1).gather(-1, wanted)
    scores: NDArray[np.float64] = found.T.cpu().numpy().astype(np.float64)
    return scores


def _cache(pasts: Sequence[tuple[Any, int]], longest: int) -> Any:
    """The first so many tokens' states of each, padded on the left, as a cache to continue from."""
    import transformers

    cache: Any = transformers.DynamicCache()
    if not longest:
        return cache
    example = next(states for states, _ in pasts if states is not None)
    for layer, pair in enumerate(example):
        both = []
        for side, like in enumerate(pair):
            heads, _, size = like.shape
            joined = like.new_zeros((len(pasts), heads, longest, size))
            for i, (states, length) in enumerate(pasts):
                if length:
                    joined[i, :, longest - length :] = states[layer][side][:, :length]
            both.append(joined)
        cache.update(*both, layer)
    return cache


def _kept(cache: Any, row: int, start: int, length: int) -> list[tuple[Any, Any]]:
    """(keys, values) of each layer, (heads, length, size), of a row that starts at ``start``."""
    part = slice(start, start + length)
    return [
        (layer.keys[row, :, part].clone(), layer.values[row, :, part].clone())
        for layer in cache.layers
    ]


def _overhead(model: Any) -> float:
    """What a forward pass costs beside its tokens, in tokens: weights read, kernels started.

    On processors measured, whatever the size of the model: its weights are read at a fixed share
    of the speed of its arithmetic. On accelerators estimated: some 10 ms of starting kernels at
    400 TFLOP/s.
    """
    if model.device.type == "cpu":
        return 64.0
    n_weights: int = sum(weights.numel() for weights in model.parameters())
    return 128.0 + 2e12 / n_weights


def _free_bytes(model: Any) -> int:
    """For states held between passes, and as much again for those within one."""
    import torch

    if model.device.type != "cuda":
        return _PROCESSOR_BYTES
    free, _ = torch.cuda.mem_get_info(model.device)
    return int(free) // 8


def _smallest_window(config: Any) -> int | None:
    """The fewest tokens that any layer attends to, where that is bounded."""
    named = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in named if isinstance(size, int) and size > 0), default=None)
