"""The transformers backend on three real architectures, made small here and loaded from disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from spex_engine.backends.causal import FIXED
from spex_engine.backends.hf_identity import fingerprint
from spex_engine.backends.hf_loading import load_causal_lm
from spex_engine.backends.rendering import SYSTEM_MERGED
from spex_engine.backends.transformers import TransformersBackend, load
from spex_engine.wire import InputError, Message, ModelError, Piece, Prompt, Question

torch.set_num_threads(1)

CORPUS = [
    "Bob works with Anna. Anna lives in Paris. Carl likes tea and music.",
    "Question: Where does the colleague of Bob live? Answer: Paris",
    "You are a helpful assistant. Answer in one word, please.",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CONTEXT = 256


def make_tokenizer(special: list[str], bos: str | None = None, add_bos: bool = False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    else:  # trims blanks off the offsets, as GPT-2 and Qwen do
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[-1], bos_token=bos
    )


def save(folder: Path, config, tokenizer) -> Path:
    torch.manual_seed(0)
    config.vocab_size = len(tokenizer)
    config.initializer_range = 0.3  # so that what the model says depends on what it reads
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config.repetition_penalty = 1.3  # which a plain greedy answer must ignore
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    tokenizer = make_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHATML
    return save(tmp_path_factory.mktemp("llama"), transformers.LlamaConfig(**LLAMA), tokenizer)


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory) -> Path:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT)
    return save(tmp_path_factory.mktemp("gpt2"), config, make_tokenizer(["<|endoftext|>"]))


@pytest.fixture(scope="session")
def gemma_folder(tmp_path_factory) -> Path:
    special = ["<bos>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = make_tokenizer(special, bos="<bos>", add_bos=True)
    tokenizer.chat_template = GEMMA
    # Capped logits and a sliding window: what happens after the output layer must not be lost.
    config = transformers.Gemma2Config(
        **LLAMA, head_dim=8, final_logit_softcapping=3.0, sliding_window=16, bos_token_id=0
    )
    return save(tmp_path_factory.mktemp("gemma"), config, tokenizer)


@pytest.fixture(scope="session")
def llama(llama_folder) -> TransformersBackend:
    return load(str(llama_folder), device="cpu")


@pytest.fixture(scope="session")
def gpt2(gpt2_folder) -> TransformersBackend:
    return load(str(gpt2_folder), device="cpu")


@pytest.fixture(scope="session")
def gemma(gemma_folder) -> TransformersBackend:
    return load(str(gemma_folder), device="cpu")


@pytest.fixture(params=["llama", "gpt2", "gemma"])
def backend(request) -> TransformersBackend:
    return request.getfixturevalue(request.param)


@dataclass
class Plain:
    """The oracle: transformers used directly, one row at a time."""

    folder: Path

    def __post_init__(self) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(self.folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)

    def logprobs(self, row, target):
        with torch.inference_mode():
            logits = self.model(torch.tensor([[*row, *target]])).logits[0].double()
        predicting = logits[len(row) - 1 : len(row) + len(target) - 1].log_softmax(-1)
        return predicting[torch.arange(len(target)), torch.tensor(target)].numpy()


def scored(backend: TransformersBackend, rows, *targets) -> np.ndarray:
    """The scores of all rows in their order; each comes exactly once."""
    found = np.full((len(rows), sum(map(len, targets))), np.nan)
    seen: list[int] = []
    for reached, scores in backend.logprobs(rows, targets):
        assert scores.dtype == np.float64
        found[reached] = scores
        seen += reached.tolist()
    assert sorted(seen) == list(range(len(rows)))
    return found


def folder_of(backend: TransformersBackend) -> Path:
    return Path(backend.uri.removeprefix("hf:"))


def prompt(*messages: tuple[str, list[str]], fixed: str = "") -> Prompt:
    """Every string a segment of its own; ``fixed`` ends the last message."""
    built, n = [], 0
    for role, texts in messages:
        built.append(Message(role, tuple(Piece(text, n + i) for i, text in enumerate(texts))))
        n += len(texts)
    if fixed:
        built[-1] = Message(built[-1].role, (*built[-1].pieces, Piece(fixed)))
    return Prompt(tuple(built), n)


FACTS = prompt(
    ("user", ["Bob works with Anna. ", "Anna lives in Paris. ", "Carl likes tea. "]),
    fixed="Question: Where does Bob live? Answer:",
)


def texts_by_segment(backend, tokenised) -> dict[int, str]:
    return {
        segment: backend.decode(tokenised.ids[tokenised.segments == segment])
        for segment in [FIXED, *range(tokenised.n_segments)]
    }


# ---- tokenising ---------------------------------------------------------------------------------


def test_chat_template_once_and_fixed(llama, llama_folder):
    chat = prompt(("system", ["Answer in one word, please."]), ("user", ["Anna ", "lives"]))
    tokenised = llama.tokenise(chat)
    plain = Plain(llama_folder)
    expected = plain.tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "Answer in one word, please."},
            {"role": "user", "content": "Anna lives"},
        ],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    assert tokenised.ids.tolist() == expected
    assert tokenised.ids.dtype == tokenised.segments.dtype == np.int64
    texts = texts_by_segment(llama, tokenised)
    assert texts[0] == "Answer in one word, please."
    assert texts[1] + texts[2] == "Anna lives"
    assert texts[2] == " lives"  # a token goes with its first visible character
    assert texts[FIXED].startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")
    assert texts[FIXED].endswith("<|im_start|>assistant\n")
    assert tokenised.notes == ()


def test_contents_that_also_occur_in_the_template(llama):
    chat = prompt(("system", ["system"]), ("user", ["user"]), ("assistant", ["s"]), ("user", ["u"]))
    tokenised = llama.tokenise(chat)
    texts = texts_by_segment(llama, tokenised)
    assert [texts[i] for i in range(4)] == ["system", "user", "s", "u"]
    assert texts[FIXED].count("<|im_start|>user\n<|im_end|>") == 2


def test_refused_system_message_is_merged_and_said(gemma):
    chat = prompt(("system", ["One word. "]), ("user", ["  Where is ", "Anna? "]))
    tokenised = gemma.tokenise(chat)
    assert tokenised.notes == (SYSTEM_MERGED,)
    assert tokenised.text.startswith("<bos><start_of_turn>user\nOne word. \n\n  Where is Anna?<end")
    texts = texts_by_segment(gemma, tokenised)
    assert (texts[0].strip(), texts[1].strip(), texts[2]) == ("One word.", "Where is", " Anna?")


def test_bos_only_once(gemma):
    tokenised = gemma.tokenise(prompt(("user", [" trimmed by the template "])))
    assert tokenised.ids.tolist().count(0) == 1
    assert tokenised.segments[0] == FIXED
    assert texts_by_segment(gemma, tokenised)[0] == "trimmed by the template"
    assert tokenised.notes == ()


def test_plain_text_keeps_the_tokenizers_own_bos(tmp_path):
    tokenizer = make_tokenizer(["<bos>", "<eos>"], bos="<bos>", add_bos=True)
    save(tmp_path, transformers.LlamaConfig(**LLAMA), tokenizer)
    backend = load(str(tmp_path), device="cpu")
    tokenised = backend.tokenise(FACTS)
    assert tokenised.ids.tolist() == tokenizer(FACTS.messages[0].text)["input_ids"]
    assert tokenised.ids.tolist().count(0) == 1
    assert tokenised.segments[0] == FIXED
    assert backend.decode(backend.tokenise_target(tokenised, "Paris")) == " Paris"


def test_messages_without_a_template_are_joined(gpt2, gpt2_folder):
    tokenised = gpt2.tokenise(prompt(("system", ["One."]), ("user", ["Two."])))
    assert tokenised.text == "One.\n\nTwo."
    assert tokenised.ids.tolist() == Plain(gpt2_folder).tokenizer("One.\n\nTwo.")["input_ids"]
    assert texts_by_segment(gpt2, tokenised) == {FIXED: "\n\n", 0: "One.", 1: "Two."}


def test_tokens_of_one_character_stay_together(backend):
    tokenised = backend.tokenise(prompt(("user", ["tea ", "🦜🏽é ", "  \n", "中文 ", "music"])))
    texts = texts_by_segment(backend, tokenised)
    assert [texts[i].strip() for i in range(5)] == ["tea", "🦜🏽é", "", "中文", "music"]
    assert texts[2] == "  \n"  # the offsets of its spaces are trimmed to nothing


def test_masking_drops_ids_and_nothing_else(backend):
    tokenised = backend.tokenise(FACTS)
    for mask in np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=bool):
        kept = [s == FIXED or mask[s] for s in tokenised.segments]
        assert tokenised.masked(mask).tolist() == tokenised.ids[kept].tolist()


def test_empty_prompt(llama):
    with pytest.raises(InputError, match="prompt is empty"):
        llama.tokenise(prompt(("user", ["  "])))


def test_prompt_longer_than_the_context(backend):
    with pytest.raises(InputError, match=rf"(?s)\d+ tokens.*{CONTEXT}.*shorten"):
        backend.tokenise(prompt(("user", ["Anna lives in Paris. " * 90])))
    assert backend.context_length == CONTEXT


# ---- the target ---------------------------------------------------------------------------------


def test_plain_target_continues_after_a_space(gpt2, gpt2_folder):
    tokenised = gpt2.tokenise(FACTS)
    ids = gpt2.tokenise_target(tokenised, "Paris")
    whole = Plain(gpt2_folder).tokenizer(tokenised.text + " Paris")["input_ids"]
    assert [*tokenised.ids, *ids] == whole
    assert gpt2.decode(ids) == " Paris"
    assert gpt2.decode(gpt2.tokenise_target(tokenised, "\nParis")) == "\nParis"


def test_chat_target_starts_where_the_template_ends(llama):
    assert llama.decode(llama.tokenise_target(llama.tokenise(FACTS), "Paris")) == "Paris"


def test_target_that_would_grow_into_the_prompt_stands_alone(gpt2):
    tokenised = gpt2.tokenise(prompt(("user", ["Anna lives in "])))
    ids = gpt2.tokenise_target(tokenised, "Paris")  # "in" + " Paris" if encoded together
    assert gpt2.decode(ids) == "Paris"


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_target(backend, text):
    with pytest.raises(InputError, match="target is empty"):
        backend.tokenise_target(backend.tokenise(FACTS), text)


def test_target_longer_than_the_context(backend):
    with pytest.raises(InputError, match=str(CONTEXT)):
        backend.tokenise_target(backend.tokenise(FACTS), "Paris " * 300)


def test_greedy_is_the_most_likely_token_each_time(backend):
    tokenised = backend.tokenise(FACTS)
    model = Plain(folder_of(backend)).model
    ids = tokenised.ids.tolist()
    for _ in range(6):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = ids[len(tokenised.ids) :]
    answer = backend.greedy(tokenised, max_tokens=6)
    assert answer.tolist() == expected[: len(answer)]
    assert len(answer) == 6 or expected[len(answer)] in backend._end_ids


def test_greedy_stops_before_any_of_the_end_tokens(gpt2_folder, tmp_path):
    backend = load(str(gpt2_folder), device="cpu")
    tokenised = backend.tokenise(FACTS)
    answer = backend.greedy(tokenised, max_tokens=8)
    later = next(i for i, token in enumerate(answer) if i and token not in answer[:i])

    def ending_with(token: int) -> TransformersBackend:
        plain = Plain(gpt2_folder)
        plain.model.generation_config.eos_token_id = [0, token]
        plain.model.save_pretrained(tmp_path)
        plain.tokenizer.save_pretrained(tmp_path)
        return load(str(tmp_path), device="cpu")

    shortened = ending_with(int(answer[later])).greedy(tokenised, max_tokens=8)
    assert shortened.tolist() == answer[:later].tolist()
    silent = ending_with(int(answer[0]))
    assert silent.greedy(tokenised).shape == (0,)
    with pytest.raises(ModelError, match=r"answers this prompt with nothing.*as the target"):
        silent.open(FACTS, Question(), lambda: False)


def test_greedy_keeps_within_the_context(gpt2):
    tokenised = gpt2.tokenise(prompt(("user", ["tea " * 125])))
    room = CONTEXT - len(tokenised.ids)
    assert 0 < len(gpt2.greedy(tokenised, max_tokens=CONTEXT)) <= room


# ---- scoring ------------------------------------------------------------------------------------


def rows_of_all_masks(tokenised) -> list[np.ndarray]:
    n = tokenised.n_segments
    masks = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1
    return [tokenised.masked(mask) for mask in masks]


@pytest.mark.parametrize("target_text", ["Paris", " in Paris, with Anna.", "é"])
def test_same_as_one_row_at_a_time(backend, target_text):
    tokenised = backend.tokenise(FACTS)
    target = backend.tokenise_target(tokenised, target_text)
    rows = rows_of_all_masks(tokenised)
    plain = Plain(folder_of(backend))
    expected = np.array([plain.logprobs(row.tolist(), target.tolist()) for row in rows])
    assert np.ptp(expected[:, 0]) > 0.1  # the masks matter
    for tokens in (0, 100, 10_000):  # one row at a time, a few, all at once
        backend._batch_size.tokens = tokens
        found = scored(backend, rows, target)
        assert found.shape == (8, len(target))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_output_layer_sees_the_target_alone(backend):
    tokenised = backend.tokenise(FACTS)
    target = backend.tokenise_target(tokenised, "Paris")
    widths = []
    layer = backend._model.get_output_embeddings()
    hook = layer.register_forward_hook(lambda _, given, __: widths.append(given[0].shape[1]))
    scored(backend, rows_of_all_masks(tokenised), target)
    hook.remove()
    assert set(widths) == {len(target)}


def test_without_a_known_output_layer(backend, monkeypatch):
    tokenised = backend.tokenise(FACTS)
    target = backend.tokenise_target(tokenised, "in Paris")
    rows = rows_of_all_masks(tokenised)
    expected = scored(backend, rows, target)
    monkeypatch.setattr(backend._model, "get_output_embeddings", lambda: None)
    np.testing.assert_allclose(scored(backend, rows, target), expected, atol=1e-5)


def test_empty_row_follows_the_start_of_a_text(gpt2, gpt2_folder):
    tokenised = gpt2.tokenise(prompt(("user", ["Anna lives"])))
    target = gpt2.tokenise_target(tokenised, "Paris")
    empty = tokenised.masked(np.array([False]))
    assert len(empty) == 0
    end_of_text = gpt2._tokenizer.eos_token_id
    expected = Plain(gpt2_folder).logprobs([end_of_text], target.tolist())
    np.testing.assert_allclose(scored(gpt2, [empty], target)[0], expected, atol=1e-5)


def test_no_rows_and_no_target(backend):
    target = np.array([5, 6])
    assert scored(backend, [], target).shape == (0, 2)
    for targets in ([], [target[:0]], [target, target[:0]]):
        with pytest.raises(ValueError, match=r"targets: expected int \(T,\)"):
            scored(backend, [target], *targets)


def test_row_longer_than_the_context(backend):
    with pytest.raises(InputError, match=str(CONTEXT)):
        scored(backend, [np.ones(CONTEXT, dtype=np.int64)], np.array([5]))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_batches_are_halved_when_memory_is_short(llama_folder, monkeypatch, error):
    backend = load(str(llama_folder), device="cpu")
    tokenised = backend.tokenise(FACTS)
    target = backend.tokenise_target(tokenised, "Paris")
    rows = rows_of_all_masks(tokenised)
    expected = scored(backend, rows, target)
    real, tried, fits = backend._model.forward, [], 3

    def forward(*args, input_ids, **kwargs):
        tried.append(len(input_ids))
        if len(input_ids) > fits:
            raise error
        return real(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(backend._model, "forward", forward)
    backend._batch_size.tokens = 10_000
    np.testing.assert_allclose(scored(backend, rows, target), expected, atol=1e-5)
    too_many = [at for at, count in enumerate(tried) if count > fits]
    assert len(too_many) == 2  # 7 or 8 rows, half of them, and then what fits
    tried.clear()
    np.testing.assert_allclose(scored(backend, rows, target), expected, atol=1e-5)
    assert max(tried) <= fits  # remembered
    fits = 0
    with pytest.raises(ModelError, match=r"single row of \d+ tokens.*shorten"):
        scored(backend, rows, target)
    with pytest.raises(ModelError, match="Not enough memory"):
        backend.greedy(tokenised)


def test_other_errors_are_not_taken_for_short_memory(llama, monkeypatch):
    def forward(*args, **kwargs):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(llama._model, "forward", forward)
    with pytest.raises(RuntimeError, match="multiplied"):
        scored(llama, [np.array([5])], np.array([6]))
    with pytest.raises(RuntimeError, match="multiplied"):
        llama.greedy(llama.tokenise(FACTS))


# ---- what rows share ----------------------------------------------------------------------------


def long_prompt(n: int = 12) -> Prompt:
    random = np.random.default_rng(3)
    words = ["Anna", "Bob", "Carl", "tea", "music", "Paris", "likes", "works", "with", "lives"]
    texts = [f"{' '.join(random.choice(words, 4))}. " for _ in range(n)]
    pieces = [Piece("You are a helpful assistant. " * 3)]
    pieces += [Piece(text, i) for i, text in enumerate(texts)]
    return Prompt((Message("user", (*pieces, Piece("Where does Bob live?"))),), n)


class Reads:
    """Counts the tokens that a backend's model is given, and the rows continued from others."""

    def __init__(self, backend: TransformersBackend, monkeypatch) -> None:
        self.tokens = self.continued = 0
        self._pass = backend._pass
        monkeypatch.setattr(backend, "_pass", self)

    def __getattr__(self, name):
        return getattr(self._pass, name)

    def __call__(self, runs):
        self.tokens += sum(len(run.ids) - run.start for run in runs)
        self.continued += sum(run.start > 0 for run in runs)
        return self._pass(runs)


def assert_as_plain(backend: TransformersBackend, targets: list[str], atol: float = 1e-5) -> int:
    """That all is scored as one row at a time; how many tokens that takes."""
    tokenised = backend.tokenise(long_prompt())
    ids = [backend.tokenise_target(tokenised, text) for text in targets]
    random = np.random.default_rng(4)
    masks = np.concatenate([random.random((20, 12)) < 0.5, ~np.eye(12, dtype=bool)])
    rows = [tokenised.masked(mask) for mask in masks]
    plain = Plain(folder_of(backend))
    expected = [
        np.concatenate([plain.logprobs(row.tolist(), target.tolist()) for target in ids])
        for row in rows
    ]
    assert np.std(expected, axis=0).min() > 100 * atol  # the masks matter
    for tokens in (0, 300, 10_000):
        backend._batch_size.tokens = tokens
        np.testing.assert_allclose(scored(backend, rows, *ids), expected, atol=atol)
    return 3 * sum(len(row) + len(target) - 1 for row in rows for target in ids)


def test_what_masks_and_targets_share_is_read_once(backend, monkeypatch):
    reads = Reads(backend, monkeypatch)
    whole = assert_as_plain(backend, ["Paris", "in Paris, with Anna", "tea"])
    assert backend._pass.shares
    assert reads.continued > 100
    assert reads.tokens < 0.3 * whole
    assert backend.tokenise(long_prompt()).notes == ()


def test_rows_up_to_the_end_of_the_context(gpt2, gpt2_folder):
    """Padding must not be placed beyond it, where the model knows no position."""
    random = np.random.default_rng(0)
    trunk = random.integers(1, 300, CONTEXT - 2)
    rows = [trunk, np.append(trunk[:200], trunk[:45]), np.append(trunk[:120], trunk[:70])]
    target = np.array([7, 8])
    gpt2._batch_size.tokens = 10_000
    plain = Plain(gpt2_folder)
    expected = [plain.logprobs(row.tolist(), target.tolist()) for row in rows]
    np.testing.assert_allclose(scored(gpt2, rows, target), expected, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_windows_shorter_than_the_prompt(tmp_path, monkeypatch, implementation):
    config = transformers.MistralConfig(**LLAMA, sliding_window=9)
    folder = save(tmp_path, config, make_tokenizer(["<|endoftext|>"]))
    backend = load(str(reconfigure(folder, attn_implementation=implementation)), device="cpu")
    reads = Reads(backend, monkeypatch)
    assert_as_plain(backend, ["Paris", "in Paris"])
    assert reads.continued > 100


def test_a_window_is_tried_once_a_prompt_is_longer(tmp_path, monkeypatch):
    """Kept states of a model that got its window wrong would not show in shorter rows."""
    folder = save(
        tmp_path,
        transformers.MistralConfig(**LLAMA, sliding_window=60),
        make_tokenizer(["<|endoftext|>"]),
    )
    backend = load(str(folder), device="cpu")
    real = backend._model.forward

    def forward(*args, past_key_values=None, attention_mask=None, **kwargs):
        if past_key_values is not None and past_key_values.get_seq_length() > 60:
            attention_mask = attention_mask.clone()
            attention_mask[:, 60:] = 0
        return real(*args, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(backend._model, "forward", forward)
    assert backend.tokenise(FACTS).notes == ()
    (note,) = backend.tokenise(long_prompt()).notes
    assert "with states kept, scores are" in note
    assert_as_plain(backend, ["Paris"])


def test_a_recurrent_model_reads_every_row_whole(tmp_path, monkeypatch):
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4)
    backend = load(str(save(tmp_path, config, make_tokenizer(["<|endoftext|>"]))), device="cpu")
    assert not backend._pass.shares
    reads = Reads(backend, monkeypatch)
    assert_as_plain(backend, ["Paris"], atol=1e-4)
    assert reads.continued == 0
    (note,) = backend.tokenise(long_prompt()).notes
    assert note.startswith("what masked prompts have in common is read anew for each")


@pytest.mark.parametrize("kind", ["bloom", "opt", "qwen3_next"])
def test_other_ways_to_place_tokens(tmp_path, kind):
    """Biases by distance, positions from the mask, states of other kinds: shared or not, right."""
    configs = {
        "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4),
        "opt": lambda: transformers.OPTConfig(
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            word_embed_proj_dim=32,
        ),
        "qwen3_next": lambda: transformers.Qwen3NextConfig(
            **LLAMA,
            head_dim=8,
            linear_num_value_heads=2,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            layer_types=["linear_attention", "full_attention"],
            num_experts=0,
            mlp_only_layers=[0, 1],
        ),
    }
    tokenizer = make_tokenizer(["<|endoftext|>"])
    backend = load(str(save(tmp_path, configs[kind](), tokenizer)), device="cpu")
    assert_as_plain(backend, ["Paris", "tea"], atol=1e-4)
    assert backend._pass.shares == (backend.tokenise(FACTS).notes == ())


def test_half_precision_is_shared_too(llama_folder, tmp_path):
    plain = Plain(llama_folder)
    plain.model.to(torch.bfloat16).save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    backend = load(str(tmp_path), device="cpu", dtype="bfloat16")
    assert backend._pass.shares
    masks = np.random.default_rng(0).random((20, 3)) < 0.5
    noises = [
        model.open(FACTS, Question(target="Paris"), lambda: False).noise_floor(
            masks, lambda scores: scores.values.mean(axis=1)
        )
        for model in (backend, load(str(llama_folder), device="cpu"))
    ]
    assert 0 <= noises[1] < 1e-5 < noises[0] < 0.1


# ---- what scores depend on ----------------------------------------------------------------------


def test_a_second_load_is_known_by_the_same_bytes(llama, llama_folder):
    assert load(str(llama_folder), device="cpu").fingerprint == llama.fingerprint
    assert len(llama.fingerprint) == 32


def test_a_moved_folder_is_the_same_model(llama, llama_folder, tmp_path):
    shutil.copytree(llama_folder, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    assert load(str(tmp_path), device="cpu").fingerprint == llama.fingerprint


def rewrite_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    before = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before + 1, before + 1))


def rewrite_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


def rewrite_tokenizer(folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(whole))


@pytest.mark.parametrize(
    "change",
    [
        rewrite_weights,
        rewrite_template,
        rewrite_tokenizer,
        lambda folder: reconfigure(folder, rms_norm_eps=1e-3),
        lambda folder: reconfigure(folder, attn_implementation="eager"),
    ],
)
def test_what_changes_scores_changes_the_bytes(llama_folder, tmp_path, change):
    shutil.copytree(llama_folder, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    before = load(str(tmp_path), device="cpu").fingerprint
    change(tmp_path)
    assert load(str(tmp_path), device="cpu").fingerprint != before


def test_the_type_of_numbers_and_the_versions_are_part_of_the_bytes(llama, monkeypatch):
    loaded = load_causal_lm(folder_of(llama).as_posix(), device="cpu", dtype="bfloat16")
    assert fingerprint(loaded) != llama.fingerprint
    loaded = load_causal_lm(folder_of(llama).as_posix(), device="cpu", dtype=None)
    assert fingerprint(loaded) == llama.fingerprint
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: f"{real(name)}.1")
    assert fingerprint(loaded) == llama.fingerprint  # what is behind the second point
    monkeypatch.setattr(metadata, "version", lambda name: f"1{real(name)}")
    assert fingerprint(loaded) != llama.fingerprint


def test_a_model_from_the_hub_is_known_by_its_commit(llama_folder, tmp_path, monkeypatch):
    """As the Hub's client keeps it on disk; nothing is fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path), raising=False)
    found = []
    for commit in ("a" * 40, "b" * 40):
        kept = tmp_path / "models--owner--tiny"
        shutil.copytree(llama_folder, kept / "snapshots" / commit)
        (kept / "refs").mkdir(exist_ok=True)
        (kept / "refs" / "main").write_text(commit)
        found += [load("owner/tiny", device="cpu").fingerprint for _ in range(2)]
    assert found[0] == found[1] != found[2] == found[3]


# ---- the whole way ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_game_on_a_chat_model(name, request):
    backend = request.getfixturevalue(name)
    chat = prompt(
        ("system", ["Answer in one word, please."]),
        ("user", ["Bob works with Anna. ", "Anna lives in Paris. ", "🦜 likes tea. "]),
        fixed="Where does Bob live?",
    )
    scorer = backend.open(chat, Question(), lambda: False)
    (target,) = scorer.targets
    masks = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]], dtype=bool)
    found = np.full((4, len(target.spans)), np.nan)
    for rows, scores in scorer.score(masks, lambda: False):
        found[rows] = scores.values
    plain, tokenised = Plain(folder_of(backend)), backend.tokenise(chat)
    ids = backend.greedy(tokenised).tolist()
    expected = [plain.logprobs(tokenised.masked(mask).tolist(), ids) for mask in masks]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert target.own
    assert target.text == backend.decode(np.array(ids)).strip()


# ---- loading ------------------------------------------------------------------------------------


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, spex_engine.backends, spex_engine.backends.transformers\n"
        "assert not {'torch', 'transformers', 'tokenizers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_loading_and_answering_print_nothing(llama_folder, capfd):
    backend = load(str(llama_folder), device="cpu")
    backend.greedy(backend.tokenise(FACTS), max_tokens=3)
    assert capfd.readouterr() == ("", "")


def test_loaded_for_measuring(llama):
    assert not llama._model.training
    assert llama._model.dtype == torch.float32


@pytest.mark.parametrize(("given", "loaded"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_half_precision_is_for_accelerators_unless_asked_for(llama_folder, tmp_path, given, loaded):
    plain = Plain(llama_folder)
    plain.model.to(torch.bfloat16).save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    backend = load(str(tmp_path), device="cpu", dtype=given)
    assert backend._model.dtype == loaded
    tokenised = backend.tokenise(FACTS)
    target = backend.tokenise_target(tokenised, "Paris")
    # Loaded afresh: .to() has rounded what is kept in float32 beside the weights.
    plain.model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=loaded).eval()
    expected = plain.logprobs(tokenised.ids.tolist(), target.tolist())
    found = scored(backend, [tokenised.ids], target)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5 if given is None else 0.05)


def config_only(folder: Path, **config) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def copied(folder: Path, to: Path, **config) -> Path:
    """A copy of the model with other entries in its config."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return reconfigure(to, **config)


def reconfigure(folder: Path, **config) -> Path:
    return config_only(folder, **json.loads((folder / "config.json").read_text()) | config)


def said(name: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(str(name), device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_such_folder(tmp_path):
    assert "There is no folder" in said(tmp_path / "gone")
    assert "There is no folder" in said("./gone")
    assert "There is no folder" in said("a/b/c")


def test_folder_that_is_no_model(tmp_path):
    assert "no config.json" in said(tmp_path)


def test_folder_without_weights(tmp_path):
    assert "no weights" in said(config_only(tmp_path, model_type="llama"))


def test_config_without_a_model_type(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert "model_type" in said(config_only(tmp_path))


def test_config_that_is_no_json(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text("{")
    assert "not a valid JSON file" in said(tmp_path)


def test_pickled_weights_alone(llama_folder, tmp_path, monkeypatch):
    plain = Plain(llama_folder)
    plain.model.config.save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    torch.save(plain.model.state_dict(), tmp_path / "pytorch_model.bin")
    message = said(tmp_path)
    assert "pickled" in message
    command = message.partition('python -c "')[2].partition('"')[0]
    monkeypatch.chdir(tmp_path)
    exec(command)  # what the message tells the user to run
    assert load(str(tmp_path / "converted"), device="cpu").context_length == CONTEXT


def test_pickled_weights_beside_other_safetensors(llama_folder, tmp_path):
    plain = Plain(llama_folder)
    plain.model.config.save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    torch.save(plain.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "adapter.safetensors").touch()
    assert "pickled" in said(tmp_path)


def test_damaged_weights(llama_folder, tmp_path):
    Plain(llama_folder).tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    assert "could not be loaded" in said(tmp_path)


def test_code_of_its_own(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    message = said(config_only(tmp_path, model_type="evil", auto_map=auto_map))
    assert "does not execute" in message


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("wish", ["evil/kernel", {"": "evil/kernel"}, "evil/kernel@main:attend"])
def test_attention_code_from_the_hub(llama_folder, tmp_path, monkeypatch, key, wish):
    def fetched(*args, **kwargs):
        raise AssertionError("it was asked for")

    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetched)
    message = said(copied(llama_folder, tmp_path, **{key: wish}))
    assert "which Spex does not execute; remove attn_implementation" in message


@pytest.mark.parametrize("wish", ["flash_attention_2", "paged|sdpa", "eager", "sdpa"])
def test_the_attention_is_always_a_built_in_one(llama_folder, tmp_path, wish):
    folder = copied(llama_folder, tmp_path, attn_implementation=wish)
    model = load_causal_lm(str(folder), device="cpu", dtype=None).model
    assert model.config._attn_implementation == ("eager" if wish == "eager" else "sdpa")


def test_an_adapter(llama_folder, tmp_path):
    folder = copied(llama_folder, tmp_path)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    assert "is an adapter, whose base model may come from anywhere" in said(folder)


def test_unknown_architecture(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert "pip install --upgrade" in said(config_only(tmp_path, model_type="from_the_future"))


def test_no_tokenizer(llama_folder, tmp_path):
    Plain(llama_folder).model.save_pretrained(tmp_path)
    assert "without a tokenizer" in said(tmp_path)


def test_slow_tokenizer(llama_folder, monkeypatch):
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "is_fast", False)
    assert "slow tokenizer" in said(llama_folder)


def bert_config() -> transformers.BertConfig:
    return transformers.BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )


def test_masked_language_model(tmp_path):
    save(tmp_path, bert_config(), make_tokenizer(["<eos>"]))
    assert "depends on the tokens after it" in said(tmp_path)


def test_weights_without_a_language_model_head(tmp_path):
    config = transformers.LlamaConfig(**LLAMA)
    tokenizer = make_tokenizer(["<eos>"])
    config.vocab_size = len(tokenizer)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "lack lm_head.weight" in said(tmp_path)


def test_encoder_decoder(tmp_path):
    config = transformers.T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    tokenizer = make_tokenizer(["<eos>"])
    config.vocab_size = len(tokenizer)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "is not a causal language model" in said(tmp_path)


def test_unknown_name_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be reached" in said("no-such-owner/no-such-model")


def test_unknown_name_online(monkeypatch):
    class RepositoryNotFoundError(OSError):
        """As huggingface_hub names it."""

    def from_pretrained(*args, **kwargs):
        raise OSError("no-such-model is not a local folder") from RepositoryNotFoundError()

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    assert "has no model no-such-model; check the spelling" in said("no-such-model")


def test_malformed_name():
    assert "check the spelling" in said("not a name")


def test_libraries_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'spex-lsp[local]'" in said("any")


def test_every_message_is_one_sentence_with_advice(tmp_path):
    # Folders in order of how much of a model they hold.
    messages = [said(tmp_path), said(config_only(tmp_path, model_type="llama"))]
    (tmp_path / "model.safetensors").touch()
    messages.append(said(tmp_path))
    assert all(a != b for a, b in pairwise(messages))
    assert all(";" in message and message.endswith(".") for message in messages)
