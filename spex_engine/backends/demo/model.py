"""The embedded model in numpy: a small Llama that runs without torch.

The forward pass of a Llama decoder (Touvron et al. 2023, arXiv 2302.13971: RMS normalisation,
rotary positions, SwiGLU), for batches of right-padded rows: attention is causal,
so padding on the right cannot reach the positions that are read. The same files load through
transformers' AutoModelForCausalLM. It must not know masks' designs, estimators, files or editors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import ShouldStop
from spex_engine.backends.batching import BatchSize, Run, padded, score_rows
from spex_engine.backends.causal import CausalScorer, Ids, TokenisedPrompt, open_causal
from spex_engine.backends.tokens import check_context, continuation, tokenise_pieces
from spex_engine.wire import ModelError, Piece, Prompt, Question

Array = NDArray[np.float32]
WEIGHTS = Path(__file__).parent / "weights"
TOKENS_PER_BATCH = 2048  # about 50 ms, so that a run stops soon


class Llama:
    """The decoder: token ids in, log-probabilities out. Weights as numpy arrays, float32."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Array]) -> None:
        self.weights = weights
        self.n_layers: int = config["num_hidden_layers"]
        self.n_heads: int = config["num_attention_heads"]
        self.eps: float = config["rms_norm_eps"]
        self.context_length: int = config["max_position_embeddings"]
        head = config["hidden_size"] // self.n_heads
        base: float = config["rope_parameters"]["rope_theta"]
        # rounded as transformers rounds it: at position 1,000 more digits would be a difference
        half = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
        frequency = np.float32(1) / np.float32(base) ** half
        angle = np.arange(self.context_length, dtype=np.float32)[:, None] * np.tile(frequency, 2)
        self.cos: Array = np.cos(angle)
        self.sin: Array = np.sin(angle)

    def hidden(self, ids: Ids) -> Array:
        """The last layer's normalised states; ids int (B, L) -> float (B, L, D)."""
        w = self.weights
        x: Array = w["model.embed_tokens.weight"][ids]
        batch, length, width = x.shape
        causal = np.triu(np.full((length, length), -np.inf, dtype=np.float32), 1)
        heads = (batch, length, self.n_heads, width // self.n_heads)
        for layer in range(self.n_layers):
            name = f"model.layers.{layer}"
            y = self._norm(x, w[f"{name}.input_layernorm.weight"])
            q, k, v = (
                (y @ w[f"{name}.self_attn.{part}_proj.weight"].T).reshape(heads).swapaxes(1, 2)
                for part in "qkv"
            )
            q, k = self._rotate(q), self._rotate(k)
            scores: Array = q @ k.swapaxes(2, 3) * np.float32(heads[-1] ** -0.5) + causal
            scores -= scores.max(-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(-1, keepdims=True)
            mixed: Array = (scores @ v).swapaxes(1, 2).reshape(x.shape)
            x = x + mixed @ w[f"{name}.self_attn.o_proj.weight"].T
            y = self._norm(x, w[f"{name}.post_attention_layernorm.weight"])
            gate = y @ w[f"{name}.mlp.gate_proj.weight"].T
            up = y @ w[f"{name}.mlp.up_proj.weight"].T
            active: Array = gate / (1 + np.exp(-gate)) * up
            x = x + active @ w[f"{name}.mlp.down_proj.weight"].T
        return self._norm(x, w["model.norm.weight"])

    def logprobs(self, hidden: Array) -> Array:
        """log p of every token, nats; float (..., D) -> float (..., vocabulary)."""
        logits: Array = hidden @ self.weights["lm_head.weight"].T
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        return logits

    def _norm(self, x: Array, weight: Array) -> Array:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.eps))
        normalised: Array = x / scale * weight
        return normalised

    def _rotate(self, x: Array) -> Array:
        length, half = x.shape[2], x.shape[3] // 2
        turned: Array = np.concatenate([-x[..., half:], x[..., :half]], -1)
        rotated: Array = x * self.cos[:length] + turned * self.sin[:length]
        return rotated


class DemoPass:
    """A batch of rows through the embedded model (see ``batching.ForwardPass``).

    It shares no prefixes: its rows are short.
    """

    shares = False
    overhead = 64.0
    kept_tokens = past_tokens = 0
    max_logits = TOKENS_PER_BATCH

    def __init__(self, model: Llama) -> None:
        self._model = model

    def __call__(self, runs: Sequence[Run]) -> tuple[list[NDArray[np.float64]], list[None]]:
        ids, places = padded(runs)
        states = self._model.hidden(ids)[np.arange(len(runs))[:, None], places]
        logprobs = self._model.logprobs(states).astype(np.float64)
        found = [
            row[np.arange(len(run.places)), run.wanted]
            for row, run in zip(logprobs, runs, strict=True)
        ]
        return found, [None] * len(runs)


class DemoBackend:
    """The embedded model as a Model and a CausalModel (backends/base.py, backends/causal.py)."""

    uri = "demo"

    def __init__(self, model: Llama, tokenizer: Any, end: int, fingerprint: bytes) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.end = end
        self.fingerprint = fingerprint
        self.context_length: int | None = model.context_length
        self.batch_size = BatchSize(tokens=TOKENS_PER_BATCH, adapts=False)

    def open(self, prompt: Prompt, question: Question, should_stop: ShouldStop) -> CausalScorer:
        return open_causal(self, prompt, question, should_stop)

    def tokenise(self, prompt: Prompt) -> TokenisedPrompt:
        """The messages' texts, a line apart: this model knows no chat roles."""
        pieces: list[Piece] = []
        for message in prompt.messages:
            pieces += [Piece("\n")] if pieces else []
            pieces += message.pieces
        tokenised = tokenise_pieces(pieces, self._encode, prompt.n_segments)
        check_context(len(tokenised.ids) + 1, self.context_length, self.uri)
        return tokenised

    def tokenise_target(self, prompt: TokenisedPrompt, text: str) -> Ids:
        ids = continuation(prompt, text, self._encode)
        check_context(len(prompt.ids) + len(ids), self.context_length, self.uri)
        return ids

    def greedy(self, prompt: TokenisedPrompt, max_tokens: int = 32) -> Ids:
        ids = list(prompt.ids)
        while len(ids) < min(len(prompt.ids) + max_tokens, self.model.context_length):
            hidden = self.model.hidden(np.array([ids]))
            token = int(self.model.logprobs(hidden[0, -1]).argmax())
            if token == self.end:
                break
            ids.append(token)
        return np.array(ids[len(prompt.ids) :], dtype=np.int64)

    def decode(self, ids: Ids) -> str:
        text: str = self.tokenizer.decode(ids.tolist())
        return text

    def logprobs(
        self,
        rows: Sequence[Ids],
        targets: Sequence[Ids],
        should_stop: ShouldStop | None = None,
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64]]]:
        rows = [row if len(row) else np.array([self.end]) for row in rows]  # a first token to be
        return score_rows(rows, targets, DemoPass(self.model), self.batch_size, should_stop)

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets


@cache
def load(folder: Path = WEIGHTS) -> DemoBackend:
    """The embedded model. Raises ModelError where its files are missing or damaged."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = Llama(config, load_file(folder / "model.safetensors"))
        files = ("config.json", "tokenizer.json", "model.safetensors")
        contents = [hashlib.blake2b((folder / name).read_bytes()).digest() for name in files]
        fingerprint = hashlib.blake2b(b"demo" + b"".join(contents), digest_size=32).digest()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        last = tokenizer.get_vocab_size() - 1
        model.logprobs(model.hidden(np.array([[last]])))  # all parts are there and fit together
        return DemoBackend(model, tokenizer, config["eos_token_id"], fingerprint)
    except Exception as error:
        raise ModelError(
            f"The embedded model's files in {folder} cannot be read ({error}). "
            "Install spex-lsp again."
        ) from error
