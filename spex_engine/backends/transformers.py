"""Any Hugging Face causal language model, by name or local folder, run by transformers.

Turns prompts into tokens with the model's own tokenizer and chat template, and scores targets
teacher-forced, one forward pass a batch. It knows one loaded model; how loading fails, how text
becomes segments and how batches are cut is for hf_loading, rendering and batching. It must not
know masks, estimators or files. Importing it loads neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import ShouldStop
from spex_engine.backends.batching import BatchSize, score_rows
from spex_engine.backends.causal import FIXED, CausalScorer, Ids, TokenisedPrompt, open_causal
from spex_engine.backends.hf_forward import HfForward
from spex_engine.backends.hf_identity import fingerprint
from spex_engine.backends.hf_loading import LoadedModel, is_out_of_memory, load_causal_lm
from spex_engine.backends.rendering import render_chat, render_plain
from spex_engine.backends.tokens import (
    check_context,
    continuation,
    tokenise_pieces,
)
from spex_engine.wire import InputError, ModelError, Prompt, Question


def load(
    name_or_path: str, *, device: str | None = None, dtype: str | None = None
) -> TransformersBackend:
    """The model of a hub name or local folder, on the best device; ModelError says why not.

    device: a torch device such as "cuda:1". dtype: "float32", "bfloat16" or "float16"; None: the
    checkpoint's own on accelerators, float32 on the processor.
    """
    return TransformersBackend(load_causal_lm(name_or_path, device, dtype))


class TransformersBackend:
    """A loaded causal language model as a Model and a CausalModel (backends/base.py, causal.py)."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.uri = f"hf:{loaded.name}"
        self.context_length = _context_length(loaded.model.config)
        self._name = loaded.name
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer
        self._has_template = bool(loaded.tokenizer.chat_template)
        self._end_ids = _end_ids(loaded)
        self._begin = np.array([] if self._has_template else _begin_ids(loaded), dtype=np.int64)
        self._pass = HfForward(loaded.model)
        self._batch_size = BatchSize(overhead=self._pass.overhead)
        self.fingerprint = fingerprint(loaded)

    def open(self, prompt: Prompt, question: Question, should_stop: ShouldStop) -> CausalScorer:
        return open_causal(self, prompt, question, should_stop)

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
        )
        check_context(len(begun.ids) + 1, self.context_length, self.uri)
        self._pass.verify(len(begun.ids))
        return dataclasses.replace(begun, notes=(*rendered.notes, *self._pass.notes()))

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
        """The model's most likely answer, token by token, without the end token; int (T,)."""
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
        return answer[: int(ended.argmax())] if ended.any() else answer

    def decode(self, ids: Ids) -> str:
        text: str = self._tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
        return text

    def logprobs(
        self,
        rows: Sequence[Ids],
        targets: Sequence[Ids],
        should_stop: ShouldStop | None = None,
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64]]]:
        """log p(target token | row, target tokens before it), nats; rows (k,), float (k, T).

        An empty row is scored after the token that begins a text. Rows not reached before
        ``should_stop`` said so never come. Raises InputError where a row and a target are longer
        than the context, ModelError where a single row does not fit into memory.
        """
        if not targets or any(len(target) == 0 for target in targets):
            raise ValueError("targets: expected int (T,) each with T >= 1, got an empty array")
        rows = [row if len(row) else self._text_start() for row in rows]
        longest = max(map(len, rows), default=0) + max(map(len, targets))
        check_context(longest, self.context_length, self.uri)
        self._pass.verify(longest)
        return score_rows(rows, targets, self._pass, self._batch_size, should_stop)

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
    whole: list[int] = loaded.tokenizer("a")["input_ids"]
    text: list[int] = loaded.tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = (at for at in range(len(whole)) if whole[at : at + len(text)] == text)
    return whole[: next(starts, 0)]


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
