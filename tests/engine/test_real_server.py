"""A real server of OpenAI's protocol that nobody here wrote: `transformers serve`, on loopback.

It accepts logprobs, top_logprobs and echo and ignores them, which must be found out.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from spex_engine.backends.openai import load
from spex_engine.backends.openai.endpoint import MAX_ANSWER_TOKENS
from spex_engine.wire import Access, Message, ModelError, Piece, Prompt, Question

CORPUS = [
    "Bob works with Anna. Anna lives in Paris. Carl likes tea and music.",
    "Say Paris. Say the number that comes after one. Answer in one word, please.",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT = Prompt(
    (
        Message("system", (Piece("Answer in one word, please."),)),
        Message(
            "user",
            (
                Piece("Bob works with Anna. ", 0),
                Piece("Anna lives in Paris. ", 1),
                Piece("Where?"),
            ),
        ),
    ),
    2,
)


def make_model(folder: Path) -> None:
    """A Llama of random weights, and a tokenizer of bytes and a few merges."""
    import torch

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=CHATML
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=1,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def greedy_answer(folder: str) -> str:
    """The oracle: what the served model says, by transformers in this process."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": m.role, "content": m.text} for m in PROMPT.messages]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_ANSWER_TOKENS)
    written = ids[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True)).strip()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The base URL of the server and the name of its model."""
    folder = tmp_path_factory.mktemp("served")
    make_model(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options],
            stdout=output,
            stderr=output,
            cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text(errors="replace")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        else:
            pytest.fail(f"it did not start: {log.read_text(errors='replace')}")
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(30)


def test_its_answers_are_regenerated_and_compared(served: tuple[str, str]) -> None:
    url, name = served
    model = load(name, Access(base_urls=(url,), repeats=2, concurrency=2))
    try:
        scorer = model.open(PROMPT, Question(), lambda: False)
        assert scorer.tier == "T3"  # it ignores logprobs
        assert scorer.targets[0].own
        assert scorer.targets[0].text == greedy_answer(name)
        masks = np.array([[True, True], [False, True], [True, True]])
        values = np.full((3, 2), np.nan)
        answers: dict[int, tuple[str, ...]] = {}
        for rows, scores in scorer.score(masks, lambda: False):
            values[rows] = scores.values
            assert scores.answers is not None
            answers.update(zip(rows.tolist(), scores.answers, strict=True))
            assert scores.input_tokens.sum() > 0
    finally:
        model.close()
    assert np.isfinite(values).all()
    assert ((values >= 0) & (values <= 1)).all()
    assert answers[0] == answers[2]
    assert any(text for texts in answers.values() for text in texts)


def test_another_model_than_it_serves(served: tuple[str, str]) -> None:
    url, _ = served
    model = load("nobody/nothing", Access(base_urls=(url,)))
    try:
        with pytest.raises(ModelError, match=r"nobody/nothing|pinned"):
            model.open(PROMPT, Question(), lambda: False)
    finally:
        model.close()
