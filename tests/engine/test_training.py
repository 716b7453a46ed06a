"""The training script of the embedded model: what it teaches, and that a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spex_engine.backends.demo import notes, train, training_data
from spex_engine.backends.demo.model import WEIGHTS, load

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def writer() -> training_data.Writer:
    return training_data.Writer(training_data.make_tokenizer())


def a_batch(writer: training_data.Writer, seed: int, size: int = 16, people: int = 4):
    return training_data.make_batch(Random(seed), writer, size, people)


def words(writer: training_data.Writer, ids: torch.Tensor) -> str:
    return writer.tokenizer.decode(ids.tolist(), skip_special_tokens=False)


# ---- the tokenizer ---------------------------------------------------------------------------


def test_every_name_and_city_is_one_token_of_its_own(writer: training_data.Writer) -> None:
    tokens = [*writer.names.values(), *writer.cities.values()]
    assert len(set(tokens)) == len(notes.NAMES) + len(notes.CITIES)


def test_the_shipped_tokenizer_is_the_one_that_the_script_makes(
    writer: training_data.Writer,
) -> None:
    shipped = json.loads((WEIGHTS / "tokenizer.json").read_text(encoding="utf-8"))
    made = json.loads(writer.tokenizer.to_str())
    assert shipped["model"]["vocab"] == made["model"]["vocab"]
    assert shipped["model"]["merges"] == made["model"]["merges"]


def test_a_note_in_pieces_has_the_tokens_of_the_whole(writer: training_data.Writer) -> None:
    """Training joins the ids of sentences; a prompt is encoded as one text."""
    note = notes.make_note("distractor", Random(1))
    pieces = [writer.encode(s.text) for s in note.sentences]
    line = writer.encode("\n")
    joined = [token for i, piece in enumerate(pieces) for token in (line if i else ()) + piece]
    joined += writer.encode(f"\nQuestion: {note.question.text}\nAnswer:")
    assert joined == writer.tokenizer.encode(note.text()).ids


# ---- labels ----------------------------------------------------------------------------------


def recovered(text: str) -> list[notes.Sentence]:
    """The sentences of a note, read back off its text by the templates."""
    found = []
    for name in notes.NAMES:
        for city in notes.CITIES:
            if any(template.format(name, city) in text for template in notes.LIVES):
                found.append(notes.Sentence("", ("lives", name, city)))
        for relation, templates in notes.LINKS.items():
            for other in notes.NAMES:
                if any(template.format(name, other) in text for template in templates):
                    found.append(notes.Sentence("", (relation, name, other)))
    for city in notes.CITIES:
        if any(order.format(city) in text for order in notes.ORDERS):
            found.append(notes.Sentence("", ("order", city)))
    return found


def asked(text: str) -> notes.Question | None:
    """The question of ``text``; None where it was dropped."""
    for person in notes.NAMES:
        if any(ask.format(person) in text for ask in notes.ASK_ONE_HOP):
            return notes.Question("", person)
        for relation in notes.LINKS:
            if any(ask.format(person, relation) in text for ask in notes.ASK_TWO_HOPS):
                return notes.Question("", person, relation)
    return None


def test_labels_are_what_follows_from_the_text(writer: training_data.Writer) -> None:
    city_of = {token: city for city, token in writer.cities.items()}
    seen = {"known": 0, "unknown": 0, "no question": 0}
    for seed in range(4):
        batch = a_batch(writer, seed)
        for row in range(16):
            sentences = recovered(words(writer, batch["ids"][row][batch["block"][row] == 0]))
            for k in range(training_data.QUESTIONS):
                question = asked(words(writer, batch["ids"][row][batch["block"][row] == k + 1]))
                if question is None:
                    seen["no question"] += 1
                    orders = [s.says[1] for s in sentences if s.says[0] == "order"]
                    truth = orders[0] if orders else None
                else:
                    truth = notes.answer(sentences, question)
                    seen["known" if truth else "unknown"] += 1
                label = int(batch["answer"][row, k])
                assert (None if label < 0 else city_of[label]) == truth
    assert seen["known"] > 50
    assert seen["unknown"] > 50
    assert seen["no question"] > 0


def test_the_answer_stands_after_the_place_that_is_asked(writer: training_data.Writer) -> None:
    batch = a_batch(writer, 7)
    for row in range(16):
        for k in range(training_data.QUESTIONS):
            at, label = int(batch["answer_at"][row, k]), int(batch["answer"][row, k])
            assert int(batch["block"][row, at]) == k + 1
            assert words(writer, batch["ids"][row, at : at + 1]) == ":"
            assert int(batch["ids"][row, at + 1]) in writer.cities.values()
            if label >= 0:
                assert int(batch["ids"][row, at + 1]) == label


def test_a_question_sees_the_note_and_itself_alone(writer: training_data.Writer) -> None:
    batch = a_batch(writer, 8, size=2)
    block = batch["block"][0]
    open_ = train.attention(batch["block"])[0, 0] == 0
    length = len(block)
    for i in range(length):
        for j in range(length):
            allowed = j <= i and (block[j] == 0 or block[j] == block[i])
            assert bool(open_[i, j]) == bool(allowed)


def test_positions_go_on_from_the_note_in_every_question(writer: training_data.Writer) -> None:
    batch = a_batch(writer, 9)
    for row in range(16):
        block, position = batch["block"][row], batch["position"][row]
        n_note = int((block == 0).sum())
        for k in range(1, training_data.QUESTIONS + 1):
            here = position[block == k].tolist()
            assert here == list(range(n_note, n_note + len(here)))


# ---- where to look ---------------------------------------------------------------------------


def test_marks_point_from_objects_to_subjects_and_on_along_the_chain(
    writer: training_data.Writer,
) -> None:
    """Layer 0 within a sentence or question; 1 and 2 to what a right reader would go on to."""
    name_of = {token: name for name, token in writer.names.items()}
    city_of = {token: city for city, token in writer.cities.items()}
    chains = 0
    for seed in range(4):
        batch = a_batch(writer, seed)
        for row in range(16):
            ids, block = batch["ids"][row], batch["block"][row]
            sentences = recovered(words(writer, ids[block == 0]))
            links = {s.says[:2]: s.says[2] for s in sentences if len(s.says) == 3}
            asks = {int(batch["answer_at"][row, k]): k + 1 for k in range(training_data.QUESTIONS)}
            for at, to in batch["look"][0, row].nonzero().tolist():
                assert to < at
                subject = name_of[int(ids[to])]
                if at in asks:
                    question = asked(words(writer, ids[block == asks[at]]))
                    assert question is not None
                    assert question.person == subject
                else:
                    thing = name_of.get(int(ids[at])) or city_of[int(ids[at])]
                    assert thing in [o for (_, s), o in links.items() if s == subject]
            for layer in (1, 2):
                for at, to in batch["look"][layer, row].nonzero().tolist():
                    question = asked(words(writer, ids[block == asks[at]]))
                    assert question is not None
                    owner = notes.bridge(sentences, question)
                    key = (
                        (str(question.relation), question.person)
                        if layer == 1
                        else ("lives", str(owner))
                    )
                    if key in links:
                        said = name_of.get(int(ids[to])) or city_of[int(ids[to])]
                        assert said == links[key]
                        chains += layer == 2 and question.relation is not None
                    else:
                        assert to == at
    assert chains > 20


# ---- what is never taught --------------------------------------------------------------------


def test_no_held_out_combination_is_ever_an_answer(writer: training_data.Writer) -> None:
    city_of = {token: city for city, token in writer.cities.items()}
    answered = 0
    for seed in range(30):
        batch = a_batch(writer, 100 + seed, size=32, people=2 + seed % 5)
        for row in range(32):
            note = words(writer, batch["ids"][row][batch["block"][row] == 0])
            if any(order.split("{0}")[0] in note for order in notes.ORDERS):
                continue  # then the answer rests on no combination
            sentences: list[notes.Sentence] | None = None
            for k in range(training_data.QUESTIONS):
                label = int(batch["answer"][row, k])
                if label < 0:
                    continue
                question = asked(words(writer, batch["ids"][row][batch["block"][row] == k + 1]))
                assert question is not None
                answered += 1
                city = city_of[label]
                if question.relation is None:
                    assert not notes.held_out(question.person, city)
                    continue
                if sentences is None:
                    sentences = recovered(note)
                other = str(notes.bridge(sentences, question))
                assert not notes.held_out(question.person, other, city)
                assert not notes.held_out(other, city)
    assert answered > 1000


def test_what_cannot_be_known_is_spread_over_the_cities() -> None:
    cities = torch.tensor([2, 5, 7])
    wanted = train.spread(torch.tensor([5, -1]), cities, 9, smoothing=0.03)
    np.testing.assert_allclose(wanted.sum(-1), [1, 1], rtol=1e-6)
    np.testing.assert_allclose(wanted[0, [2, 5, 7]], [0.01, 0.98, 0.01], rtol=1e-5)
    np.testing.assert_allclose(wanted[1, [2, 5, 7]], [1 / 3] * 3, rtol=1e-5)


# ---- a run -----------------------------------------------------------------------------------


def run(out: Path, steps: int, resume: bool = False, **more: int) -> dict[str, torch.Tensor]:
    train.train(out, steps, 0, resume, threads=1, rate=1e-3, n_evaluated=1, **more)
    return AutoModelForCausalLM.from_pretrained(out).state_dict()


def test_two_steps_give_files_that_load_everywhere(tmp_path: Path) -> None:
    run(tmp_path, 2)
    report = json.loads((tmp_path / "accuracy.json").read_text(encoding="utf-8"))
    assert set(report["kinds"]) == set(notes.KINDS)
    assert report["training"] | {"seconds": 0} == {
        "steps": 2,
        "seed": 0,
        "seconds": 0,
        "threads": 1,
    }
    text = "Anna lives in Paris.\nQuestion: Where does Anna live?\nAnswer:"
    demo = load(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert demo._encode(text)[0] == ids
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor([ids])).logits
    ours = demo.model.logprobs(demo.model.hidden(np.array([ids])))
    np.testing.assert_allclose(ours, theirs.log_softmax(-1), atol=1e-4)


class StoppedHereError(Exception):
    pass


def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path: Path, monkeypatch) -> None:
    """The same batches, the same rate, the same curriculum: the same weights."""
    unbroken = run(tmp_path / "unbroken", 4)
    make_batch = training_data.make_batch
    steps = iter(range(3))

    def stops_at_the_fourth(*arguments):
        if next(steps, None) is None:
            raise StoppedHereError
        return make_batch(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(train, "make_batch", stops_at_the_fourth)
        with pytest.raises(StoppedHereError):
            run(tmp_path / "broken", 4, checkpoint_every=1)
    state = torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    resumed = run(tmp_path / "broken", 4, resume=True)
    assert resumed.keys() == unbroken.keys()
    for name, weights in unbroken.items():
        torch.testing.assert_close(resumed[name], weights, rtol=0, atol=1e-6)


def test_resume_without_a_checkpoint_starts_from_nothing(tmp_path: Path) -> None:
    first = run(tmp_path / "first", 1)
    again = run(tmp_path / "again", 1, resume=True)
    for name, weights in first.items():
        torch.testing.assert_close(again[name], weights, rtol=0, atol=1e-6)


def test_a_resumed_run_keeps_its_place_in_the_curriculum(tmp_path: Path) -> None:
    """Which batch comes next depends on how well the model did before it was stopped."""
    checkpoint = tmp_path / "checkpoint.pt"
    run(tmp_path, 2, checkpoint_every=1)
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"accuracy": 0.95}, checkpoint)
    run(tmp_path, 3, resume=True, checkpoint_every=1)
    assert torch.load(checkpoint, weights_only=True)["people"] == state["people"] + 1
