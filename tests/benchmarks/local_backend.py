"""Evaluations a second on a local model, beside the way ContextCite runs them.

    python tests/benchmarks/local_backend.py [--quick]

A model shaped as Qwen2.5 with random weights, on the processor; every cell in a process of its own,
where ours and the peer take turns, so that what else the machine does slows both. The peer: rows
padded on the left, 16 to a batch in the order given, logits of every token, log-softmax, gather.
A second is one of the processor's where there is one thread, else one of the clock's. ``apart``:
the largest
difference between the two in a token's log-probability; ``spread``: the standard deviation of one
token's between masks. ``forwarded``: tokens really put through the model each second, padding not
counted, as a part of what its plain forward pass does at its best size of batch, with as many
logits a row.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import bench
import numpy as np

PEER_BATCH = 16
TARGET_TOKENS = 8


@dataclass(frozen=True)
class Shape:
    """A model: by default 61 M parameters, of which 27% are the (tied) output layer."""

    hidden_size: int = 512
    intermediate_size: int = 2784
    num_hidden_layers: int = 9
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    vocab_size: int = 32_128


@dataclass(frozen=True)
class Case:
    """masks: how many; drops: 0 for each segment kept with p = 1/2, else 1 to so many dropped."""

    name: str
    tokens: int
    preamble: int
    segments: int
    masks: int
    drops: int = 0


@dataclass(frozen=True)
class Plan:
    cases: tuple[Case, ...]
    threads: tuple[int, ...] = (1, 2)
    turns: int = 3  # of each, in one cell
    plain_batches: tuple[int, ...] = (1, 2, 4, 8)
    shape: Shape = Shape()


PREAMBLE = Case("half preamble", 400, 200, 20, 128)
NO_PREAMBLE = Case("no preamble", 400, 0, 40, 128)
NEAR_FULL = Case("near-full", 200, 0, 64, 512, drops=3)
FULL = Plan((PREAMBLE, NO_PREAMBLE, NEAR_FULL))
QUICK = Plan((PREAMBLE, NO_PREAMBLE, NEAR_FULL), threads=(1,), turns=2)
TINY = Plan(
    (Case("half preamble", 40, 20, 5, 20), Case("near-full", 40, 0, 10, 20, drops=3)),
    threads=(1,),
    turns=1,
    plain_batches=(1, 2),
    shape=Shape(32, 48, 2, 4, 2, 400),
)


def make_backend(shape: Shape) -> Any:
    """A random model whose tokens are the words w0, w1, ..."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from spex_engine.backends.hf_loading import LoadedModel
    from spex_engine.backends.transformers import TransformersBackend

    config = transformers.Qwen2Config(
        **asdict(shape),
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        initializer_range=0.04,  # so that what the model says depends on what it reads
    )
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    words = {f"w{i}": i for i in range(shape.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0")
    with tempfile.TemporaryDirectory() as folder:  # what it is known by
        model.save_pretrained(folder)
        return TransformersBackend(LoadedModel(folder, model, fast))


def open_case(backend: Any, case: Case, vocabulary: int) -> tuple[Any, np.ndarray]:
    """Its prompt on a backend, as a scorer of masks; and the masks."""
    from spex_engine.wire import Message, Piece, Prompt, Question

    random = np.random.default_rng(7)

    def words(n: int) -> str:
        return "".join(f"w{i} " for i in random.integers(1, vocabulary, n))

    cuts = np.linspace(0, case.tokens - case.preamble, case.segments + 1).astype(int)
    pieces = [Piece(words(case.preamble))] if case.preamble else []
    pieces += [Piece(words(int(n)), i) for i, n in enumerate(np.diff(cuts))]
    question = Question(target=words(TARGET_TOKENS).strip())
    prompt = Prompt((Message("user", tuple(pieces)),), case.segments)
    masks = random.random((case.masks, case.segments)) < 0.5
    if case.drops:
        masks = np.ones_like(masks)
        for mask in masks:
            dropped = random.integers(1, case.drops + 1)
            mask[random.choice(case.segments, dropped, replace=False)] = False
    return backend.open(prompt, question, lambda: False), masks


def as_context_cite(model: Any, rows: list[np.ndarray], target: np.ndarray) -> np.ndarray:
    """Log-probabilities (k, T) as context_citer.py of context-cite computes them."""
    import torch

    found = []
    for at in range(0, len(rows), PEER_BATCH):
        batch = [np.concatenate([row, target]) for row in rows[at : at + PEER_BATCH]]
        longest = max(map(len, batch))
        ids = np.zeros((len(batch), longest), dtype=np.int64)
        attended = np.zeros_like(ids)
        for i, row in enumerate(batch):
            ids[i, longest - len(row) :] = row
            attended[i, longest - len(row) :] = 1
        with torch.no_grad():
            logits = model(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(attended)
            ).logits
            wanted = torch.from_numpy(np.tile(target, (len(batch), 1)))[..., None]
            logprobs = logits[:, -(len(target) + 1) : -1].log_softmax(-1)
            found.append(logprobs.gather(-1, wanted)[..., 0].numpy())
    return np.concatenate(found)


@dataclass(frozen=True)
class Clock:
    """With one thread the processor's time, which leaves out what else the machine does."""

    threads: int

    def __call__(self) -> float:
        return time.process_time() if self.threads == 1 else time.perf_counter()

    def seconds(self, work: Callable[[], Any]) -> float:
        started = self()
        work()
        return self() - started


def plain_pass(model: Any, length: int, batch: int) -> None:
    """The model's own forward pass, with as many logits of each row as a target needs."""
    import torch

    ids = torch.randint(1, model.config.vocab_size, (batch, length))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False, logits_to_keep=TARGET_TOKENS)


def cell(plan: dict[str, Any], case: dict[str, Any], threads: int) -> bench.Row:
    if threads > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    import torch

    torch.set_num_threads(threads)
    clock = Clock(threads)
    given, shape, turns = Case(**case), Shape(**plan["shape"]), plan["turns"]
    backend = make_backend(shape)
    scorer, masks = open_case(backend, given, shape.vocab_size)
    model: Any = backend._model
    rows = [scorer._prompt.masked(mask) for mask in masks]
    length = round(np.mean([len(row) for row in rows]))
    peers = [rows[at : at + PEER_BATCH] for at in range(0, turns * PEER_BATCH, PEER_BATCH)]
    target = scorer._ids[0]
    forwarded = Counted(backend)
    for _ in scorer.score(masks[:8], lambda: False):
        pass  # learns how large a batch may be
    as_context_cite(model, peers[0][:2], target)
    forwarded.tokens = 0
    ours = np.full((len(masks), TARGET_TOKENS), np.nan)
    theirs: list[np.ndarray] = []
    portions = scorer.score(masks, lambda: False)
    took, peer, done = 0.0, 0.0, 0
    plain = dict.fromkeys(plan["plain_batches"], 0.0)
    for turn in range(turns):
        started = clock()
        while done < len(masks) * (turn + 1) / turns:
            reached, scores = next(portions)
            ours[reached] = scores.values
            done += len(reached)
        took += clock() - started
        batch = peers[turn]
        peer += clock.seconds(
            lambda batch=batch: theirs.append(as_context_cite(model, batch, target))
        )
        for size in plain:
            plain[size] += clock.seconds(lambda size=size: plain_pass(model, length, size))
    best = max(turns * length * size / spent for size, spent in plain.items())
    compared = np.concatenate(theirs)
    return {
        "ours": len(masks) / took,
        "peer": len(compared) / peer,
        "ratio": len(masks) / took / (len(compared) / peer),
        "forwarded": forwarded.tokens / took / best,
        "tokens": forwarded.tokens / len(masks),
        "whole": float(length + TARGET_TOKENS - 1),
        "batch": backend._batch_size.tokens,
        "apart": float(np.abs(ours[: len(compared)] - compared).max()),
        "spread": float(ours.std(axis=0).mean()),
    }


class Counted:
    """The tokens that a backend puts through its model, padding not counted."""

    def __init__(self, backend: Any) -> None:
        self.tokens = 0
        self._pass = backend._pass
        backend._pass = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pass, name)

    def __call__(self, runs: Any) -> Any:
        self.tokens += sum(len(run.ids) - run.start for run in runs)
        return self._pass(runs)


def run(rows: bench.Rows, plan: Plan) -> None:
    for threads in plan.threads:
        for case in plan.cases:
            key = {"case": case.name, "threads": threads}
            values = asdict(plan), asdict(case), threads
            rows.measure(key, lambda values=values: bench.apart(cell, *values))


def main() -> None:
    given = bench.arguments("local_backend", __doc__)
    run(given.rows, QUICK if given.quick else FULL)


if __name__ == "__main__":
    main()
