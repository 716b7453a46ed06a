"""The embedded model in numpy, against transformers loading the very same files unchanged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import spex_engine
from spex_engine.backends.causal import FIXED
from spex_engine.backends.demo import notes
from spex_engine.backends.demo.model import WEIGHTS, Array, DemoBackend, Llama, load
from spex_engine.wire import InputError, Message, ModelError, Piece, Prompt, Question

torch.set_num_threads(1)  # more are slower on rows this short

ROOT = Path(spex_engine.__file__).parents[1]


@pytest.fixture(scope="module")
def demo() -> DemoBackend:
    return load()


@pytest.fixture(scope="module")
def oracle():
    return AutoModelForCausalLM.from_pretrained(WEIGHTS).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS)


def a_prompt(note: notes.Note) -> Prompt:
    """A note as the server cuts it: a sentence with the line break before it is a piece."""
    sentences = [f"\n{s.text}" if i else s.text for i, s in enumerate(note.sentences)]
    question = Piece(f"\nQuestion: {note.question.text}\nAnswer:")
    pieces = (*(Piece(text, i) for i, text in enumerate(sentences)), question)
    return Prompt((Message("user", pieces),), len(sentences))


def some_notes(n: int, n_sentences: int = 6) -> list[notes.Note]:
    rng = Random(11)
    return [notes.make_note(notes.KINDS[i % 5], rng, n_sentences) for i in range(n)]


def scored(demo: DemoBackend, rows, *targets) -> np.ndarray:
    found = np.full((len(rows), sum(map(len, targets))), np.nan)
    for reached, scores in demo.logprobs(rows, targets):
        found[reached] = scores
    return found


# ---- the files -------------------------------------------------------------------------------


def test_the_weights_are_small_and_carry_no_code() -> None:
    files = [path for path in WEIGHTS.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert not [path for path in WEIGHTS.iterdir() if path.is_dir()]


def test_the_architecture_is_public_and_of_the_size_that_was_asked(oracle) -> None:
    assert type(oracle).__name__ == "LlamaForCausalLM"
    assert 500_000 <= sum(p.numel() for p in oracle.parameters()) <= 3_000_000


# ---- the same as transformers ----------------------------------------------------------------

SPECIAL = "<|end|>"  # the tokenizer's own word for the end: must be the same in both, too


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example("Bob works with Anna.\n\nAnna lives in Paris.\r\nQuestion: Where?\n")
@example("👩‍👩‍👧 東京 \x00\x07\x1b[31m \ufeff\u202e ﷽ e\u0301")
@example("   \n \n\n\t x\n")
@example(f"text {SPECIAL} text")
def test_the_same_token_ids_for_any_text(demo: DemoBackend, tokenizer, text: str) -> None:
    ids, offsets = demo._encode(text)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(offsets) == len(ids)
    assert all(0 <= start <= end <= len(text) for start, end in offsets)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_every_text_can_be_read_back(demo: DemoBackend, text: str) -> None:
    """All but blanks: the tokenizer adds some, so that a word is the same token anywhere."""
    ids, _ = demo._encode(text)
    said = demo.decode(np.array(ids)).replace(SPECIAL, "")
    assert "".join(said.split()) == "".join(text.replace(SPECIAL, "").split())


def both(demo: DemoBackend, oracle, ids: Array) -> tuple[Array, Array]:
    """log p of every token at every position of ``ids``, int (1, L): ours and transformers'."""
    with torch.inference_mode():
        theirs = oracle(torch.tensor(ids)).logits.log_softmax(-1).numpy()
    return demo.model.logprobs(demo.model.hidden(ids)), theirs


def test_the_same_logprobs_of_every_token_at_every_position(demo: DemoBackend) -> None:
    """In double precision: there the two are the same function, and rounding hides nothing."""
    oracle = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float64).eval()
    config = json.loads((WEIGHTS / "config.json").read_text())
    weights = {name: w.astype(np.float64) for name, w in demo.model.weights.items()}
    exact = DemoBackend(Llama(config, weights), demo.tokenizer, demo.end, b"")
    for note in some_notes(20):
        ours, theirs = both(exact, oracle, np.array([demo._encode(note.text())[0]]))
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_the_same_logprobs_of_every_answer(demo: DemoBackend, oracle) -> None:
    """As both are run, in single precision.

    Within the note, a token of log p -16 now and then differs by 2e-4, and by as much between
    transformers' own single and double precision.
    """
    for note in some_notes(100):
        ours, theirs = both(demo, oracle, np.array([demo._encode(note.text())[0]]))
        np.testing.assert_allclose(ours[0, -1], theirs[0, -1], atol=1e-4, rtol=0)
        np.testing.assert_allclose(ours, theirs, atol=5e-4, rtol=0)


def test_the_same_logprobs_up_to_the_end_of_the_context(demo: DemoBackend, oracle) -> None:
    rng = np.random.default_rng(0)
    n_vocab = len(demo.model.weights["model.embed_tokens.weight"])
    ours, theirs = both(demo, oracle, rng.integers(0, n_vocab, (1, demo.model.context_length)))
    np.testing.assert_allclose(ours, theirs, atol=5e-4, rtol=0)


def test_the_same_greedy_answer_as_generate(demo: DemoBackend, oracle) -> None:
    for note in some_notes(10):
        prompt = demo.tokenise(a_prompt(note))
        with torch.inference_mode():
            out = oracle.generate(
                torch.tensor(prompt.ids[None]), max_new_tokens=8, do_sample=False
            )[0, len(prompt.ids) :].tolist()
        ours = demo.greedy(prompt, 8).tolist()
        assert [token for token in out if token != demo.end] == ours


def test_the_greedy_answer_stops_where_it_is_told_to(demo: DemoBackend) -> None:
    text = "the train was late and the weather is mild " * 3  # no question: it rambles on
    prompt = demo.tokenise(Prompt((Message("user", (Piece(text, 0),)),), 1))
    assert len(demo.greedy(prompt, 3)) <= 3


def test_logprobs_of_a_target_of_several_tokens(demo: DemoBackend, oracle) -> None:
    note = some_notes(1)[0]
    prompt = demo.tokenise(a_prompt(note))
    target = demo.tokenise_target(prompt, "Paris and Rome.")
    assert len(target) > 2
    ids = torch.tensor([[*prompt.ids, *target]])
    with torch.inference_mode():
        logp = oracle(ids).logits[0].log_softmax(-1)
    at = len(prompt.ids) - 1
    theirs = [logp[at + t, token].item() for t, token in enumerate(target)]
    (ours,) = scored(demo, [prompt.ids], target)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


# ---- batches ---------------------------------------------------------------------------------


def test_batches_padding_and_repeats_change_no_value(demo: DemoBackend) -> None:
    prompt = demo.tokenise(a_prompt(some_notes(3)[2]))
    target = demo.tokenise_target(prompt, "Paris")
    rng = np.random.default_rng(1)
    rows = [prompt.masked(mask) for mask in rng.random((40, 6)) < 0.5]
    rows += rows[:5]
    together = scored(demo, rows, target)
    assert {len(row) for row in rows} != {len(rows[0])}  # or nothing would be padded
    alone = [scored(demo, [row], target)[0] for row in rows]
    np.testing.assert_allclose(together, alone, atol=2e-5, rtol=0)
    np.testing.assert_array_equal(together[40:], together[:5])


def test_a_prompt_with_nothing_left_can_be_scored(demo: DemoBackend) -> None:
    prompt = demo.tokenise(Prompt((Message("user", (Piece("Anna lives in Paris.", 0),)),), 1))
    target = demo.tokenise_target(prompt, "Paris")
    rows = [prompt.masked(np.array([kept])) for kept in (True, False)]
    assert len(rows[1]) == 0
    assert np.isfinite(scored(demo, rows, target)).all()


def test_equal_runs_give_equal_bits(demo: DemoBackend) -> None:
    prompt = demo.tokenise(a_prompt(some_notes(3)[2]))
    targets = [demo.tokenise_target(prompt, text) for text in ("Paris", "Rome and Paris.", "Rome")]
    rows = [prompt.masked(mask) for mask in np.random.default_rng(2).random((60, 6)) < 0.5]
    first = scored(demo, rows, *targets)
    np.testing.assert_array_equal(scored(demo, rows, *targets), first)
    np.testing.assert_allclose(
        first, np.hstack([scored(demo, rows, target) for target in targets]), atol=1e-4, rtol=0
    )


def test_its_noise_floor_is_far_below_its_values(demo: DemoBackend) -> None:
    scorer = demo.open(a_prompt(some_notes(1)[0]), Question(target="Paris"), lambda: False)
    masks = np.random.default_rng(0).random((30, scorer.n_segments)) < 0.5
    noise = scorer.noise_floor(masks, lambda scores: scores.values.mean(axis=1))
    assert noise is not None
    assert 0 <= noise < 1e-4


# ---- pieces ----------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"])
def test_a_dropped_sentence_leaves_the_others_token_for_token(
    demo: DemoBackend, newline: str
) -> None:
    """The line break before a word is put beside a blank; the segments must not shift by it."""
    sentences = ("Bob works with Anna.", "Anna lives in Paris.", "David likes tea.")
    pieces = [Piece(f"{newline if i else ''}{text}", i) for i, text in enumerate(sentences)]
    question = Piece(f"{newline}Question: Where does Anna live?\nAnswer:")
    prompt = demo.tokenise(Prompt((Message("user", (*pieces, question)),), 3))
    assert set(prompt.segments.tolist()) == {FIXED, 0, 1, 2}
    for dropped in range(3):
        kept = np.arange(3) != dropped
        said = demo.decode(prompt.masked(kept))
        for i, sentence in enumerate(sentences):
            assert (sentence in said) == kept[i]
        assert said.endswith("live?\n Answer:")
    tokens_alone = len(demo._encode(sentences[0])[0])
    assert (prompt.segments == 0).sum() == tokens_alone


def test_messages_are_a_line_apart(demo: DemoBackend) -> None:
    messages = (
        Message("system", (Piece("Anna lives in Paris.", 0),)),
        Message("user", (Piece("Where does Anna live?", 1),)),
    )
    prompt = demo.tokenise(Prompt(messages, 2))
    assert prompt.text == "Anna lives in Paris.\nWhere does Anna live?"


def test_a_prompt_beyond_the_context(demo: DemoBackend) -> None:
    long = Prompt((Message("user", (Piece("Anna lives in Paris. " * 300, 0),)),), 1)
    said = r"1,\d\d\d tokens long, but demo has room for 1,024: shorten the prompt"
    with pytest.raises(InputError, match=said):
        demo.tokenise(long)


def test_a_target_that_no_longer_fits(demo: DemoBackend) -> None:
    prompt = demo.tokenise(Prompt((Message("user", (Piece("tea " * 1000, 0),)),), 1))
    with pytest.raises(InputError, match="has room for 1,024"):
        demo.tokenise_target(prompt, "tea " * 1000)


# ---- missing and damaged files ---------------------------------------------------------------


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def lose(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def configure(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config = {k: v for k, v in (config | changes).items() if v is not None}
        (folder / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lose("model.safetensors"),
        lose("config.json"),
        lose("tokenizer.json"),
        cut_short,
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        configure(rope_parameters=None),
        configure(num_hidden_layers=5),  # a layer that the weights do not have
        configure(hidden_size=64),
        configure(eos_token_id=None),
    ],
)
def test_missing_or_damaged_files(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(WEIGHTS, folder)
    damage(folder)
    with pytest.raises(ModelError, match=r"cannot be read .*Install spex-lsp again") as raised:
        load(folder)
    assert str(folder) in str(raised.value)


# ---- what it costs ---------------------------------------------------------------------------


def test_explaining_with_it_imports_no_torch() -> None:
    code = """
import sys
from spex_engine.backends.demo.model import load
from spex_engine.explain_prompt import explain_prompt
from spex_engine.wire import *
pieces = (Piece("Anna lives in Paris.", 0), Piece("\\nQuestion: Where does Anna live?\\nAnswer:"))
request = ExplainRequest(Prompt((Message("user", pieces),), 1))
result = explain_prompt(request, lambda *_: None, lambda: False, lambda _: load())
assert result.evaluations.computed == 2
print(sorted({"torch", "transformers", "server", "huggingface_hub"} & set(sys.modules)))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
