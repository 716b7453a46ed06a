"""Tier T3, and how alike two answers are."""

from __future__ import annotations

from contextlib import closing
from itertools import count

import numpy as np
import openai_dialects as dialects
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_stub import Reply, Stub, error

from spex_engine.backends.openai import load
from spex_engine.backends.openai.capabilities import forget
from spex_engine.backends.openai.similarity import similarity
from spex_engine.explain_prompt import explain_prompt
from spex_engine.store import Store
from spex_engine.wire import Access, ExplainRequest, Message, ModelError, Piece, Prompt, Question

PROMPT = Prompt((Message("user", (Piece("Bob likes red.", 0), Piece(" What is it?"))),), 1)
OWN = Question()
MASKS = np.array([[True], [False]])


def test_known_likenesses() -> None:
    assert similarity("Paris.", " paris") == 1
    assert similarity("It is Paris", "Paris") == pytest.approx(2 * 1 / (3 + 1))
    assert similarity("the cat the dog", "the dog") == pytest.approx(2 * 2 / (4 + 2))
    assert similarity("Rome", "Paris") == 0
    assert similarity("巴黎很大", "巴黎") == pytest.approx(2 * 2 / (4 + 2))
    assert similarity("", "") == similarity("!", "!") == 1
    assert similarity("", "Paris") == similarity("?", "!") == 0


@given(st.text(max_size=40), st.text(max_size=40))
def test_likeness_is_symmetric_and_within_its_bounds(one: str, other: str) -> None:
    assert 0 <= similarity(one, other) <= 1
    assert similarity(one, other) == similarity(other, one)
    assert similarity(one, one) == 1


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch):
    """Opens a question at a server that answers in turn from a list, once segments are dropped."""
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    endings = []

    def opened(
        answers: list[str | Reply],
        question: Question = OWN,
        prompt: Prompt = PROMPT,
        **access,
    ):
        forget()
        turn = count()

        def chat(body, headers):
            said, ended = "It is red", "stop"
            if body["messages"][-1]["content"] == " What is it?":
                answer = answers[next(turn) % len(answers)]
                if isinstance(answer, Reply):
                    return answer
                said = answer
                ended = "stop" if said else "length"
            message = {"role": "assistant", "content": said}
            choice = {"index": 0, "message": message, "finish_reason": ended}
            return {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "stub",
                "choices": [choice],
                "usage": dialects.usage(10, 3),
            }

        stub = Stub({"/v1/chat/completions": chat, "/v1/completions": lambda *_: Reply(404, {})})
        stub.start()
        model = load("stub", Access(base_urls=(stub.url,), concurrency=1, **access))
        endings.extend([model.close, stub.stop])
        return model.open(prompt, question, lambda: False), stub

    yield opened
    for end in endings:
        end()


def gathered(scorer):
    return {
        int(row): (scores.values[i], scores.answers[i], scores.input_tokens[i])
        for rows, scores in scorer.score(MASKS, lambda: False)
        for i, row in enumerate(rows)
    }


def test_repetitions_are_columns_and_answers_are_kept(served) -> None:
    scorer, stub = served(["It is red", "blue", "red"])
    assert scorer.tier == "T3"
    probes = len(stub.log)
    found = gathered(scorer)
    assert scorer.targets[0].text == "It is red"
    assert scorer.targets[0].own
    assert len(scorer.targets[0].spans) == 3
    np.testing.assert_allclose(found[0][0], [1, 1, 1])
    np.testing.assert_allclose(found[1][0], [1, 0, 2 * 1 / (1 + 3)])
    assert found[1][1] == ("It is red", "blue", "red")
    assert found[1][2] == 30  # read three times
    sampled = stub.log[probes:]
    assert len(sampled) == 6
    assert all("temperature" not in entry.body for entry in sampled)
    assert all(entry.body["max_tokens"] == 32 for entry in sampled)
    assert stub.log[probes - 1].body["temperature"] == 0  # the own answer


def test_kept_answers_are_read_against_another_reference(served) -> None:
    scorer, _ = served(["blue"])
    other, stub = served(["blue"], Question("blue"))
    before = len(stub.log)
    read = other.read_answers((("It is red", "blue", "Blue!"),))
    np.testing.assert_allclose(read.values, [[0, 1, 1]])
    assert len(stub.log) == before
    asked, again = scorer.addresses(MASKS), other.addresses(MASKS)
    assert len({*asked}) == 2
    assert len({*again}) == 2


def test_addresses_do_not_depend_on_the_reference(served) -> None:
    scorer, stub = served(["blue"])
    model = load("stub", Access(base_urls=(stub.url,)))
    other = model.open(PROMPT, Question("something else"), lambda: False)
    assert scorer.addresses(MASKS) == other.addresses(MASKS)
    access = Access(base_urls=(stub.url,), repeats=4)
    more = load("stub", access)
    another = more.open(PROMPT, Question("something else"), lambda: False)
    assert scorer.addresses(MASKS) != another.addresses(MASKS)  # rows of other widths
    numbers = np.array([0, 2])
    one_by_one = scorer.repetition_addresses(MASKS, numbers)
    assert one_by_one == another.repetition_addresses(MASKS, numbers)
    assert one_by_one != scorer.repetition_addresses(MASKS, np.array([1, 2]))
    model.close()
    more.close()


def test_one_repetition_that_fails_is_nan_alone(served) -> None:
    scorer, _ = served(["red", error(400, "flagged"), "red"])
    found = gathered(scorer)
    assert np.isnan(found[1][0]).tolist() == [False, True, False]


def test_a_mask_all_of_whose_repetitions_fail(served) -> None:
    scorer, _ = served([error(400, "flagged")])
    found = [(rows, scores) for rows, scores in scorer.score(MASKS, lambda: False)]
    values = {int(rows[0]): scores.values[0] for rows, scores in found}
    assert np.isfinite(values[0]).all()
    assert np.isnan(values[1]).all()
    assert any("flagged" in note for note in scorer.notes)


def test_an_answer_that_was_cut_off_before_it_began_is_none(served) -> None:
    """It is not one that is unlike the reference: the model was still thinking."""
    scorer, _ = served(["", "red", ""])
    found = gathered(scorer)
    assert np.isnan(found[1][0]).tolist() == [True, False, True]
    assert found[1][0][1] == pytest.approx(2 / 4)
    said = "repetitions without a score: 2 (the model wrote nothing within 32 tokens"
    assert any(said in note for note in scorer.notes)


def test_an_own_answer_that_was_cut_off_before_it_began(served) -> None:
    with pytest.raises(ModelError, match="wrote nothing within 64 tokens, as a model that thinks"):
        served([""], prompt=Prompt((Message("user", (Piece(" What is it?"),)),), 0))


def test_masks_are_answered_one_after_the_other(monkeypatch) -> None:
    """A spent budget leaves at most one mask of which some repetitions are missing, and that one
    has what there is."""
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    forget()
    prompt = Prompt((Message("user", tuple(Piece(f"F{i}. ", i) for i in range(6))),), 6)
    every = np.array(list(np.ndindex(*[2] * 6)), dtype=bool)
    with Stub() as stub:
        access = Access(base_urls=(stub.url,), repeats=3, max_calls=62)
        model = load("stub", access)
        scorer = model.open(prompt, OWN, lambda: False)
        left = 62 - len(stub.log)
        values = {
            int(row): scores.values[i]
            for rows, scores in scorer.score(every, lambda: False)
            for i, row in enumerate(rows)
        }
        model.close()
        assert len(stub.log) == 62
    counts = sorted(np.isfinite(of_mask).sum() for of_mask in values.values())
    assert counts == [*([left % 3] if left % 3 else []), *[3] * (left // 3)]


def test_repetitions_are_paid_for_once(served) -> None:
    """More of them cost only the new ones, fewer nothing, and those that failed are asked again."""
    refused = error(400, "flagged")
    _, stub = served(["blue", refused, "red", "red", "red"])

    def explained(repeats: int, store: Store):
        access = Access(base_urls=(stub.url,), concurrency=1, repeats=repeats)
        request = ExplainRequest(PROMPT, "openai:stub", Question("It is red"), access)
        asked = len(stub.log)
        result = explain_prompt(
            request, lambda *_: None, lambda: False, lambda _: load("stub", access), store
        )
        return len(stub.log) - asked, result

    with closing(Store()) as store:
        asked, first = explained(3, store)
        assert (asked, first.evaluations.computed, first.evaluations.failed) == (6, 2, 0)
        assert any("repetitions that failed: 1, the last one" in note for note in first.notes)
        assert store.stats().evaluations == 5
        asked, again = explained(3, store)  # the one that failed
        assert (asked, again.evaluations.computed, again.evaluations.cached) == (1, 1, 1)
        assert explained(4, store)[0] == 2
        asked, fewer = explained(2, store)
        assert (asked, fewer.evaluations.computed, fewer.evaluations.cached) == (0, 0, 2)


def test_what_was_answered_before_is_not_asked_again(served) -> None:
    """Not even where another answer is explained: what is kept is read against that one."""
    _, stub = served(["blue", "red"])
    access = Access(base_urls=(stub.url,), concurrency=1)

    def explained(target: str, store: Store):
        request = ExplainRequest(PROMPT, "openai:stub", Question(target), access)
        asked = len(stub.log)
        result = explain_prompt(
            request, lambda *_: None, lambda: False, lambda _: load("stub", access), store
        )
        return result, len(stub.log) - asked

    with closing(Store()) as store:
        first, asked = explained("It is red", store)
        assert (first.tier, asked) == ("T3", 2 * 3)
        other, asked = explained("Is it blue", store)
        assert asked == 0
    assert first.segments[0].removal == pytest.approx((2 * 0 + 2 / 4) / 3 - 1)
    assert other.target.value == pytest.approx(4 / 6)
    assert other.evaluations.cached == 2
