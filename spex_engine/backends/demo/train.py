"""Trains the embedded model from nothing: ``python -m spex_engine.backends.demo.train --out DIR``.

Needs the extra ``local`` (torch, transformers). Seeded, checkpointed (``--resume``), about an hour
on two CPU cores. Writes config.json, model.safetensors, the tokenizer and accuracy.json, the
accuracy per kind of note on combinations never trained on.

What makes a model this small learn two hops in minutes (questions alone stay at chance for
thousands of steps) is supervision of attention, during training only: one head of each of the
first three layers is told where to look. Layer 0: from a fact's object back to its subject, and
from the end of a question to the person in it; layer 1: from there to the colleague or friend;
layer 2: on to the home; where there is nothing to be found, to where it stands. The weight of this
loss falls to zero halfway, and the finished model is a plain Llama.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from spex_engine.backends.demo import notes
from spex_engine.backends.demo.training_data import (
    END,
    Writer,
    make_batch,
    make_runs,
    make_tokenizer,
)

CONTEXT = 1024
WIDTH, LAYERS, HEADS = 128, 4, 4
SMOOTHING = 0.01  # keeps the log-probability of a wrong city bounded, near log(0.01 / 50)


def attention(block: torch.Tensor) -> torch.Tensor:
    """Additive mask (size, 1, L, L): causal; a question sees the note and itself only."""
    length = block.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = block[:, :, None] == block[:, None, :]
    note = (block == 0)[:, None, :]
    allowed = causal & (same | note)
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]


def spread(target: torch.Tensor, over: torch.Tensor, n_vocab: int, smoothing: float) -> Any:
    """Target distributions (N, n_vocab): ``target`` smoothed over ``over``; all of it where -1."""
    known = target >= 0
    even = torch.zeros(n_vocab).index_fill_(0, over, 1 / len(over))
    weight = torch.where(known, 1 - smoothing, 0.0)
    onehot = functional.one_hot(target.clamp(min=0), n_vocab).float()
    return weight[:, None] * onehot + (1 - weight[:, None]) * even


class Losses:
    """The training losses of one batch of notes, and how often the answer was right."""

    def __init__(self, model: LlamaForCausalLM, writer: Writer) -> None:
        self.model = model
        self.end = writer.end
        self.cities = torch.tensor(sorted(writer.cities.values()))

    def notes(
        self, batch: dict[str, torch.Tensor], aux: float
    ) -> tuple[torch.Tensor, float, float]:
        out = self.model.model(
            input_ids=batch["ids"],
            position_ids=batch["position"],
            attention_mask=attention(batch["block"]),
            output_attentions=aux > 0,
            use_cache=False,
        )
        rows = torch.arange(len(batch["ids"]))[:, None]
        last = out.last_hidden_state
        logits = self.model.lm_head(last[rows, batch["answer_at"]]).flatten(0, 1)
        answer = batch["answer"].flatten()
        n_vocab = logits.shape[-1]
        wanted = spread(answer, self.cities, n_vocab, SMOOTHING)
        loss = functional.cross_entropy(logits, wanted)
        after = self.model.lm_head(last[rows, batch["answer_at"] + 1]).flatten(0, 1)
        loss = loss + 0.1 * functional.cross_entropy(after, torch.full_like(answer, self.end))
        if aux > 0:
            for weights, look in zip(out.attentions[:3], batch["look"], strict=True):
                told = look.any(-1)
                seen = (weights[:, 0] * look).sum(-1)[told]
                loss = loss - aux * seen.clamp(min=1e-6).log().mean()
        known = answer >= 0
        right = (logits.argmax(-1) == answer)[known].float().mean().item()
        spare = logits.detach()[~known].log_softmax(-1)[:, self.cities]
        excess = (-spare.mean(-1) - math.log(len(self.cities))).mean().item()
        return loss, right, excess

    def runs(self, ids: torch.Tensor) -> torch.Tensor:
        """The mean loss on the second half of runs said twice."""
        half = ids.shape[1] // 2
        hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden[:, half:-1])
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, half + 1 :].flatten())


def make_model(n_vocab: int, end: int) -> LlamaForCausalLM:
    """Words start out large beside what the layers add: else a city's name drowns in the stream."""
    config = LlamaConfig(
        vocab_size=n_vocab,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # the one that shows the weights to be supervised
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    return model


def evaluate(model: LlamaForCausalLM, writer: Writer, n: int, seed: int) -> dict[str, Any]:
    """Accuracy per kind on combinations never trained on, whole and with what is needed removed.

    ``without`` removes one sentence of every way to the answer; chance is 1 / number of cities.
    """
    report: dict[str, Any] = {"n_per_kind": n, "chance": 1 / len(notes.CITIES), "kinds": {}}
    model.train(False)
    for kind in notes.KINDS:
        rng = Random(f"{seed} {kind}")
        tally: dict[str, list[float]] = {"with": [], "p_with": [], "without": [], "p_without": []}
        for _ in range(n):
            note = notes.make_note(kind, rng, n_sentences=rng.randint(3, 8))
            gone = {rng.choice(sorted(way)) for way in note.needed}
            rest = set(range(len(note.sentences))) - gone
            for name, text in (("with", note.text()), ("without", note.text(rest))):
                with torch.inference_mode():
                    ids = torch.tensor([writer.tokenizer.encode(text).ids])
                    logp = model(ids).logits[0, -1].log_softmax(-1)
                token = writer.cities[note.answer]
                tally[name].append(float(logp.argmax().item() == token))
                tally[f"p_{name}"].append(math.exp(logp[token].item()))
        report["kinds"][kind] = {name: round(float(np.mean(v)), 4) for name, v in tally.items()}
    model.train()
    return report


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    import transformers

    library: Any = transformers  # whose constructors have no types
    model.generation_config = library.GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
    )
    model.save_pretrained(out)
    wrapped = library.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone


def train(
    out: Path,
    steps: int,
    seed: int,
    resume: bool,
    threads: int,
    rate: float,
    checkpoint_every: int = 500,
    n_evaluated: int = 400,
) -> None:
    """Trains up to step ``steps`` and saves; ``resume`` goes on from the last checkpoint in out."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    writer = Writer(tokenizer)
    model = make_model(tokenizer.get_vocab_size(), writer.end)
    losses = Losses(model, writer)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    first, people, seconds, accuracy = 0, 3, 0.0, 0.0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, people, seconds = state["step"], state["people"], state["seconds"]
        accuracy = state["accuracy"]
    started = time.perf_counter() - seconds
    for step in range(first, steps):
        rng = Random(f"{seed} {step}")  # so that a resumed run sees the same batches
        done = step / steps
        for group in optimizer.param_groups:
            group["lr"] = (
                rate * min(1, step / 200) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
            )
        aux = max(0.0, min(1.0, 2 - 4 * done))
        loss, right, excess = losses.notes(make_batch(rng, writer, 32, people), aux)
        runs = losses.runs(make_runs(rng, writer, 24, 24)) if aux else torch.zeros(())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss + runs)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        accuracy = 0.98 * accuracy + 0.02 * right
        if accuracy > 0.9 and people < 6:
            people, accuracy = people + 1, 0.6
        if step % 50 == 0:
            spent = time.perf_counter() - started
            print(
                f"{step:6d} {spent:7.0f}s people {people} loss {loss.item():.3f} aux {aux:.2f} "
                f"runs {runs.item():.3f} "
                f"right {right:.3f} (mean {accuracy:.3f}) excess when unknown {excess:.3f}",
                flush=True,
            )
        if step and step % checkpoint_every == 0:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "people": people,
                "accuracy": accuracy,
                "seconds": time.perf_counter() - started,
            }
            torch.save(state, written := out / "checkpoint.new")
            written.replace(checkpoint)  # so that a kill in between leaves the last one whole
    seconds = time.perf_counter() - started
    report = evaluate(model, writer, n_evaluated, seed=1)
    report["training"] = {
        "steps": steps,
        "seed": seed,
        "seconds": round(seconds),
        "threads": threads,
    }
    report["parameters"] = sum(p.numel() for p in model.parameters())
    save(model, tokenizer, out)
    (out / "accuracy.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args()
    train(options.out, options.steps, options.seed, options.resume, options.threads, options.rate)


if __name__ == "__main__":
    main()
