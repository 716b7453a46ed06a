"""Explaining prompts whose interactions are known: the embedded model's notes.

The model is not perfect, and Spex explains what the model does and not what the note says: of the
generated notes, which hold combinations that the model was never trained on, a few may come out
otherwise. Each test says how many of its 100 must come out as the truth is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import spex_engine
from server.planning import make_plan
from server.settings import Settings
from spex_engine import wire
from spex_engine.backends import open_model
from spex_engine.backends.base import Model
from spex_engine.backends.demo import notes
from spex_engine.explain_prompt import explain_prompt
from spex_engine.wire import (
    ExplainRequest,
    ExplainResult,
    InputError,
    Message,
    Piece,
    Prompt,
    Question,
    SegmentInteraction,
)

torch.set_num_threads(1)

EXAMPLE = Path(spex_engine.__file__).parents[1] / "examples" / "two-facts.prompt.md"
N = 100
CLEAR = 1.0  # nats: e times likelier


def opened(request: ExplainRequest) -> Model:
    return open_model(request.model, request.access, {})


def explain(request: ExplainRequest) -> ExplainResult:
    return explain_prompt(request, lambda *_: None, lambda: False, opened)


@dataclass(frozen=True)
class Case:
    """A note and its explanation."""

    note: notes.Note
    result: ExplainResult

    @property
    def effects(self) -> list[float]:
        return [segment.effect for segment in self.result.segments]

    @property
    def strongest(self) -> SegmentInteraction:
        return self.result.interactions[0]

    def effect_of(self, relation: str) -> float:
        (place,) = (i for i, s in enumerate(self.note.sentences) if s.says[0] == relation)
        return self.effects[place]


def explained(kind: str, n_sentences: int, target: str | None = None) -> list[Case]:
    """``target`` "fact": the city that the note itself names for the person."""
    rng = Random(f"ground truth {kind}")
    cases = []
    for _ in range(N):
        note = notes.make_note(kind, rng, n_sentences)
        pieces = [Piece(f"\n{s.text}" if i else s.text, i) for i, s in enumerate(note.sentences)]
        pieces.append(Piece(f"\nQuestion: {note.question.text}\nAnswer:"))
        prompt = Prompt((Message("user", tuple(pieces)),), n_sentences)
        facts = [s.says[2] for s in note.sentences if s.says[0] == "lives"]
        said = facts[0] if target == "fact" else target
        cases.append(Case(note, explain(ExplainRequest(prompt, question=Question(said)))))
    return cases


def holds(cases: list[Case], *truths: list[bool]) -> int:
    """In how many of the 100 cases all ``truths`` hold."""
    assert all(len(truth) == len(cases) == N for truth in truths)
    return sum(all(together) for together in zip(*truths, strict=True))


# ---- an AND, beside a distractor -------------------------------------------------------------


@pytest.fixture(scope="module")
def two_facts() -> list[Case]:
    return explained("distractor", 6)


def test_the_answers_are_right(two_facts: list[Case]) -> None:
    assert (
        holds(two_facts, [case.result.target.text == case.note.answer for case in two_facts]) > 94
    )


def test_the_two_needed_facts_are_the_strongest_interaction(two_facts: list[Case]) -> None:
    pair = [set(case.strongest.segments) == case.note.needed[0] for case in two_facts]
    synergy = [case.strongest.kind == "synergy" for case in two_facts]
    strong = [case.strongest.value > 2 * CLEAR for case in two_facts]
    assert holds(two_facts, pair, synergy, strong) >= 99


def test_each_needed_fact_has_a_clear_effect_and_nothing_else_has(two_facts: list[Case]) -> None:
    needed = [min(case.effects[i] for i in case.note.needed[0]) for case in two_facts]
    others = [
        max(abs(e) for i, e in enumerate(case.effects) if i not in case.note.needed[0])
        for case in two_facts
    ]
    clear = [effect > CLEAR for effect in needed]
    alone = [other < 0.25 * effect for effect, other in zip(needed, others, strict=True)]
    assert holds(two_facts, clear, alone) >= 95


def test_the_distractor_does_nothing(two_facts: list[Case]) -> None:
    """Near zero: less than a tenth of what each needed fact does."""
    near_zero = []
    for case in two_facts:
        assert case.note.distractor is not None
        needed = min(case.effects[i] for i in case.note.needed[0])
        near_zero.append(abs(case.effects[case.note.distractor]) < 0.1 * needed)
    assert holds(two_facts, near_zero) >= 95


def test_small_prompts_are_measured_whole(two_facts: list[Case]) -> None:
    for case in two_facts:
        assert case.result.method == "exact"
        assert case.result.evaluations == wire.Evaluations(64, 64, 0, 0)
        assert case.result.faithfulness.r2 == pytest.approx(1.0)


# ---- an OR -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repeated() -> list[Case]:
    return explained("repeated", 5)


def test_a_repeated_fact_is_the_strongest_interaction_and_redundant(repeated: list[Case]) -> None:
    pair = [
        case.strongest.segments == tuple(sorted(set().union(*case.note.needed)))
        for case in repeated
    ]
    redundant = [case.strongest.kind == "redundancy" for case in repeated]
    strong = [case.strongest.value < -2 * CLEAR for case in repeated]
    assert holds(repeated, pair, redundant, strong) == 100


def test_each_of_the_two_helps_on_average_and_is_not_missed_alone(repeated: list[Case]) -> None:
    pairs = [
        [case.result.segments[i] for way in case.note.needed for i in way] for case in repeated
    ]
    helps = [all(segment.effect > CLEAR for segment in pair) for pair in pairs]
    spare = [
        all(abs(s.removal) < 0.1 * s.effect for s in pair if s.removal is not None)
        for pair in pairs
    ]
    assert all(segment.removal is not None for pair in pairs for segment in pair)
    assert holds(repeated, helps, spare) >= 95


# ---- an override -----------------------------------------------------------------------------


def test_an_order_raises_its_own_answer() -> None:
    cases = explained("override", 4)
    right = [case.result.target.text == case.note.answer for case in cases]
    raises = [case.effect_of("order") > 2 * CLEAR for case in cases]
    most = [max(case.effects) == case.effect_of("order") for case in cases]
    assert holds(cases, right, raises, most) >= 95


def test_an_order_works_against_the_fact() -> None:
    """The answer explained is what the fact says: the order takes away what the fact would add."""
    cases = explained("override", 4, target="fact")
    raises = [case.effect_of("lives") > CLEAR for case in cases]
    lowers = [case.effect_of("order") < -CLEAR for case in cases]
    conflict = [
        {case.note.sentences[i].says[0] for i in case.strongest.segments} == {"lives", "order"}
        and case.strongest.kind == "conflict"
        for case in cases
    ]
    assert holds(cases, raises, lowers, conflict) >= 95


# ---- the example that is shipped -------------------------------------------------------------


def test_the_example() -> None:
    plan = make_plan(EXAMPLE.read_text(encoding="utf-8"), EXAMPLE, Settings())
    texts = [segment.text for segment in plan.segmentation.segments]
    bob, anna, distractor = (
        texts.index(text)
        for text in ("Bob works with Anna.", "Anna lives in Paris.", "Carla lives in Rome.")
    )
    assert not any("Question" in text or "Answer" in text for text in texts)
    result = explain(plan.request)
    assert result.target.text == "Paris"
    assert result.target.value > -0.1  # sure of it
    effects = [segment.effect for segment in result.segments]
    assert min(effects[bob], effects[anna]) > CLEAR
    assert abs(effects[distractor]) < 0.1 * min(effects[bob], effects[anna])
    strongest, *others = result.interactions
    assert (strongest.segments, strongest.kind) == ((bob, anna), "synergy")
    assert strongest.value > 2 * CLEAR
    assert all(abs(other.value) < 0.1 * strongest.value for other in others)


# ---- the same path on a second architecture, with a chat template -----------------------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    """A tiny Qwen2 with random weights that depend on what is read, saved as any model is."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([EXAMPLE.read_text(encoding="utf-8")], trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[2])
    wrapped.chat_template = CHATML
    config = transformers.Qwen2Config(
        vocab_size=len(wrapped),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qwen")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


def test_the_whole_path_on_a_second_architecture(qwen: Path) -> None:
    """Plan, request as it crosses the process border, model, interactions: all as with demo."""
    text = EXAMPLE.read_text(encoding="utf-8")
    said = {"model": f"hf:{qwen}", "target": "Paris"}
    plan = make_plan(text, EXAMPLE, Settings(), said)
    request = wire.from_json(ExplainRequest, wire.to_json(plan.request))
    assert request == plan.request
    result = explain(request)

    assert (result.method, result.evaluations.computed) == ("exact", 64)
    assert wire.from_json(ExplainResult, wire.to_json(result)) == result

    # The same numbers from transformers alone: the template once, segments dropped by hand.
    tokenizer = transformers.AutoTokenizer.from_pretrained(qwen)
    model = transformers.AutoModelForCausalLM.from_pretrained(qwen).eval()
    body = text[plan.document.messages[0].start : plan.document.messages[0].end]

    def score(without: str) -> float:
        assert body.count(without) == 1 or not without
        chat = [{"role": "user", "content": body.replace(without, "") if without else body}]
        head = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(head, add_special_tokens=False)["input_ids"]
        target = tokenizer("Paris", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logp = model(torch.tensor([ids + target])).logits[0].log_softmax(-1)
        found = [logp[len(ids) - 1 + t, token].item() for t, token in enumerate(target)]
        return sum(found) / len(found)

    assert result.target.value == pytest.approx(score(""), abs=1e-4)
    for segment, effect in zip(plan.segmentation.segments[1:], result.segments[1:], strict=True):
        dropped = score(f"\n{segment.text}")
        assert effect.removal == pytest.approx(dropped - score(""), abs=1e-4)


def test_a_second_architecture_answers_for_itself(qwen: Path) -> None:
    plan = make_plan(
        EXAMPLE.read_text(encoding="utf-8"), EXAMPLE, Settings(), {"model": f"hf:{qwen}"}
    )
    result = explain(plan.request)
    assert result.target.text
    assert result.model == f"hf:{qwen}"
    assert len(result.segments) == 6


# ---- what cannot be done ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "exact", "budget": 63}, r"2\^6 calls, and the budget is 63"),
        ({"target": "\n "}, "The target is empty"),
        ({"contrast": ("Rome", "Rome ")}, "contrasted with itself"),
    ],
)
def test_unfit_requests_are_refused_before_anything_is_asked(changes, said: str) -> None:
    request = make_plan(EXAMPLE.read_text(encoding="utf-8"), EXAMPLE, Settings(), changes).request
    asked: list[int] = []
    with pytest.raises(InputError, match=said):
        explain_prompt(request, lambda done, *_: asked.append(done), lambda: False, opened)
    assert not any(asked)


def test_a_target_that_is_no_text_can_still_be_explained() -> None:
    """A lone surrogate is what a terminal makes of a broken byte; no tokenizer takes it."""
    request = make_plan(EXAMPLE.read_text(encoding="utf-8"), EXAMPLE, Settings()).request
    result = explain(replace(request, question=Question("Par\udcffis")))
    assert result.evaluations.failed == 0
