"""Any Hugging Face causal language model, by name or local folder, run by transformers.

Turns prompts into tokens with the model's own tokenizer and chat template, and scores targets
teacher-forced, one forward pass a batch. It knows one loaded model; how loading fails, how text
becomes segments and how batches are cut is for hf_loading, rendering and batching. It must not
know masks, estimators or files. Importing it loads neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import FIXED, Ids, TokenisedPrompt
from spex_engine.backends.batching import BatchSize, OutOfMemoryError, score_rows
from spex_engine.backends.hf_loading import LoadedModel, is_out_of_memory, load_causal_lm
from spex_engine.backends.rendering import render_chat, render_plain
from spex_engine.backends.tokens import (
    check_context,
    continuation,
    right_padded,
    tokenise_pieces,
)
from spex_engine.wire import InputError, ModelError, Prompt

# Beside a vocabulary of 150 000 the logits are the largest thing in memory: half a GiB in float32.
_MAX_LOGITS = 2**27


def load(
    name_or_path: str, *, device: str | None = None, dtype: str | None = None
) -> TransformersBackend:
    """The model of a hub name or local folder, on the best device; ModelError says why not.

    device: a torch device such as "cuda:1". dtype: "float32", "bfloat16" or "float16"; None: the
    checkpoint's own on accelerators, float32 on the processor.
    """
    return TransformersBackend(load_causal_lm(name_or_path, device, dtype))


class TransformersBackend:
    """A loaded causal language model as a Backend (see ``spex_engine.backends.base``)."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.uri = f"hf:{loaded.name}"
        self.context_length = _context_length(loaded.model.config)
        self._name = loaded.name
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer
        self._has_template = bool(loaded.tokenizer.chat_template)
        self._vocabulary = int(loaded.model.config.get_text_config().vocab_size)
        self._end_ids = _end_ids(loaded)
        self._begin = np.array([] if self._has_template else _begin_ids(loaded), dtype=np.int64)
        self._batch_size = BatchSize()

    def tokenise(self, prompt: Prompt) -> TokenisedPrompt:
        """The prompt in the model's chat template, or as plain text where it has none.

        Raises InputError where it is empty, refused by the template or longer than the context,
        ModelError where the template rewrites its text.
        """
        if not any(message.text.strip() for message in prompt.messages):
            raise InputError("The prompt is empty; write something to explain.")
        if self._has_template:
            rendered = render_chat(prompt.messages, self._apply_template)
        else:
            rendered = render_plain(prompt.messages)
        tokenised = tokenise_pieces(rendered.pieces, self._encode, prompt.n_segments)
        begun = dataclasses.replace(
            tokenised,
            ids=np.concatenate([self._begin, tokenised.ids]),
            segments=np.concatenate([np.full_like(self._begin, FIXED), tokenised.segments]),
            notes=rendered.notes,
        )
        check_context(len(begun.ids) + 1, self.context_length, self.uri)
        return begun

    def tokenise_target(self, prompt: TokenisedPrompt, text: str) -> Ids:
        """The ids of ``text`` as it would continue ``prompt``; int (T,), T >= 1.

        After plain text that does not end in a blank, a space comes first; where a chat answer
        begins is for the template alone to say. Raises InputError where the target is blank or no
        longer fits the context.
        """
        begin = self._begin.tolist()
        ids = continuation(prompt, text, self._encode, begin, space=not self._has_template)
        check_context(len(prompt.ids) + len(ids), self.context_length, self.uri)
        return ids

    def greedy(self, prompt: TokenisedPrompt, max_tokens: int = 32) -> Ids:
        """The model's most likely answer, token by token, without the end token; int (T,).

        Raises InputError where it is empty: there is then nothing to explain.
        """
        import torch
        import transformers

        configure: Any = transformers.GenerationConfig
        n = len(prompt.ids)
        if self.context_length is not None:
            max_tokens = min(max_tokens, self.context_length - n)
        # The checkpoint's own settings may hold sampling or a repetition penalty, with which the
        # answer would not be the one that the scored probabilities make most likely.
        self._model.generation_config = configure(
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=self._end_ids or None,
            pad_token_id=self._end_ids[0] if self._end_ids else 0,
        )
        ids = torch.from_numpy(prompt.ids)[None].to(self._model.device)
        try:
            with torch.inference_mode():
                output = self._model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ModelError(
                f"Not enough memory for {self._name} to answer a prompt of {n} tokens; shorten "
                "it, use a smaller model, or close what else uses the device."
            ) from error
        answer: Ids = output[0, n:].cpu().numpy().astype(np.int64)
        ended = np.isin(answer, self._end_ids)
        answer = answer[: int(ended.argmax())] if ended.any() else answer
        if len(answer) == 0:
            raise InputError(
                f"{self._name} answers this prompt with nothing; give a target to explain."
            )
        return answer

    def decode(self, ids: Ids) -> str:
        text: str = self._tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
        return text

    def target_logprobs(
        self,
        rows: Sequence[Ids],
        target: Ids,
        should_stop: Callable[[], bool] | None = None,
    ) -> NDArray[np.float64]:
        """log p(target token | row, target tokens before it), nats; float (len(rows), T).

        An empty row is scored after the token that begins a text. Rows not reached before
        ``should_stop`` said so are NaN. Raises InputError where a row and the target are longer
        than the context, ModelError where a single row does not fit into memory.
        """
        if len(target) == 0:
            raise ValueError("target: expected int (T,) with T >= 1, got an empty array")
        rows = [row if len(row) else self._text_start() for row in rows]
        longest = max(map(len, rows), default=0)
        check_context(longest + len(target), self.context_length, self.uri)
        return score_rows(
            rows,
            len(target),
            lambda batch: self._score(batch, target),
            self._batch_size,
            max_rows=max(1, _MAX_LOGITS // (len(target) * self._vocabulary)),
            should_stop=should_stop,
        )

    def _score(self, rows: Sequence[Ids], target: Ids) -> NDArray[np.float64]:
        import torch

        try:
            return self._forward(rows, target)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only out here does the error no longer hold on to the tensors of the failed pass.
        torch.cuda.empty_cache()
        raise OutOfMemoryError

    def _forward(self, rows: Sequence[Ids], target: Ids) -> NDArray[np.float64]:
        """One forward pass over all rows, padded on the right; float (len(rows), T).

        Under right padding every real token keeps its place, whether a model counts positions
        itself or takes them from the mask, and no real token attends to the padding behind it:
        any id will do as padding.
        """
        import torch

        ids, predicting = right_padded(rows, target)
        attended = np.arange(ids.shape[1]) <= predicting[:, -1:]
        device = self._model.device
        places = torch.from_numpy(predicting).to(device)
        wanted = torch.from_numpy(target).to(device)[:, None]
        with torch.inference_mode():
            logits = self._logits_at(
                places,
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=torch.from_numpy(attended.astype(np.int64)).to(device),
            )
            # Row by row: a float32 copy of all logits would be the largest thing in memory.
            found = [row.float().log_softmax(-1).gather(-1, wanted)[:, 0] for row in logits]
            scores: NDArray[np.float64] = torch.stack(found).cpu().numpy().astype(np.float64)
        return scores

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
            logits = self._model(**inputs, use_cache=False).logits
        finally:
            if hook is not None:
                hook.remove()
        return logits if picked else pick(logits)

    def _apply_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        text: str = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        return text

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids without any that stand for no text, and each one's [start, end) in characters."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets: list[tuple[int, int]] = []
        reached = 0
        for start, end in encoded["offset_mapping"]:
            if start == end:  # a blank that the tokenizer trims off: back to the token before it
                start = min(reached, max(end - 1, 0))
            offsets.append((start, end))
            reached = max(reached, end)
        return encoded["input_ids"], offsets

    def _text_start(self) -> Ids:
        begin = self._tokenizer.bos_token_id
        if begin is None and not self._end_ids:
            raise ModelError(
                f"{self._name} has no token that begins a text, so the empty prompt cannot be "
                "scored; keep a part of the prompt fixed."
            )
        return np.array([self._end_ids[0] if begin is None else begin], dtype=np.int64)


def _context_length(config: Any) -> int | None:
    text_config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        length = getattr(text_config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return None


def _begin_ids(loaded: LoadedModel) -> list[int]:
    """What the tokenizer puts before a plain text; chat templates write their own."""
    encoded = loaded.tokenizer("a", return_special_tokens_mask=True)
    text_start = encoded["special_tokens_mask"].index(0)
    begin: list[int] = encoded["input_ids"][:text_start]
    return begin


def _end_ids(loaded: LoadedModel) -> list[int]:
    """All tokens that end an answer; chat models have several, named in different places."""
    ends: dict[int, None] = {}
    generation = getattr(loaded.model, "generation_config", None)
    for holder in (loaded.tokenizer, generation, loaded.model.config.get_text_config()):
        named = getattr(holder, "eos_token_id", None)
        for end in named if isinstance(named, list | tuple) else [named]:
            if end is not None:
                ends[int(end)] = None
    return list(ends)
