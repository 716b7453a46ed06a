"""Tier T2: labels read off the tokens listed for the answer's first place."""

from __future__ import annotations

import math

import numpy as np
import openai_dialects as dialects
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_stub import Stub

from spex_engine.backends.openai import load
from spex_engine.backends.openai.asking import Listed
from spex_engine.backends.openai.capabilities import forget
from spex_engine.backends.openai.label_scores import check_labels, label_scores
from spex_engine.wire import Access, InputError, Message, Piece, Prompt, Question

PROMPT = Prompt((Message("user", (Piece("It was dull.", 0), Piece(" Good or bad?"))),), 1)


def listed(**probabilities: float) -> list[Listed]:
    return [Listed(token.replace("_", " "), math.log(p)) for token, p in probabilities.items()]


def test_the_probabilities_of_a_labels_tokens_are_added_up() -> None:
    """A softmax over a known vocabulary: " good", "good" and "go" all begin "good"."""
    logits = {"good": 1.0, "_good": 2.0, "go": 0.5, "bad": 1.5, "_The": 3.0, "\n": 0.0}
    total = sum(math.exp(logit) for logit in logits.values())
    probabilities = {token: math.exp(logit) / total for token, logit in logits.items()}
    found = label_scores(listed(**probabilities), ["good", "bad"])
    good = probabilities["good"] + probabilities["_good"] + probabilities["go"]
    np.testing.assert_allclose(np.exp(found.logprobs), [good, probabilities["bad"]], rtol=1e-12)
    assert found.censored == (False, False)
    assert found.shared == 0


def test_a_label_that_is_not_listed_is_at_most_as_likely_as_what_is_left() -> None:
    found = label_scores(listed(good=0.9, other=0.07), ["good", "bad"])
    assert found.censored == (False, True)
    assert found.logprobs[1] == pytest.approx(math.log(0.03))  # 1 - 0.97 is less than 0.07
    found = label_scores(listed(good=0.3, other=0.001), ["good", "bad"])
    assert found.logprobs[1] == pytest.approx(math.log(0.001))  # the least likely one listed


@given(st.lists(st.floats(0.01, 1), min_size=4, max_size=40), st.integers(1, 20))
def test_a_censored_value_is_never_below_the_true_one(weights: list[float], top: int) -> None:
    total = sum(weights)
    entries = sorted(
        (Listed(f"t{i:02}", math.log(w / total)) for i, w in enumerate(weights)),
        key=lambda entry: -entry.logprob,
    )
    truth = {entry.token: entry.logprob for entry in entries}
    labels = [entry.token for entry in entries]
    found = label_scores(entries[:top], labels)
    for label, value, censored in zip(labels, found.logprobs, found.censored, strict=True):
        if censored:
            assert value >= truth[label] - 1e-6
        else:
            assert value == pytest.approx(truth[label])


@pytest.mark.parametrize("labels", [("Yes, sure", "Yes, no doubt"), ("not good", "not bad")])
def test_labels_that_begin_with_one_word_cannot_be_told_apart(labels) -> None:
    with pytest.raises(InputError, match="begin alike"):
        check_labels(labels)
    check_labels(("Yes", "No"))


@pytest.fixture
def scorer_of(monkeypatch: pytest.MonkeyPatch):
    """A scorer at a server whose first token has known probabilities."""
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    closing = []

    def opened(probabilities: dict[str, float], question: Question):
        forget()
        stub = Stub(dialects.known(probabilities))
        stub.start()
        model = load("stub", Access(base_urls=(stub.url,)))
        closing.extend([model.close, stub.stop])
        return model.open(PROMPT, question, lambda: False)

    yield opened
    for close in closing:
        close()


def test_choices_at_an_endpoint(scorer_of) -> None:
    probabilities = {"good": 0.5, " bad": 0.2, "bad": 0.1, "The": 0.15}
    scorer = scorer_of(probabilities, Question("bad", choices=("good", "bad", "neutral")))
    assert [target.text for target in scorer.targets] == ["bad", "good", "neutral"]
    ((rows, scores),) = scorer.score(np.array([[True], [True]]), lambda: False)
    assert rows.tolist() == [0, 1]
    assert scores.censored is not None
    np.testing.assert_array_equal(scores.censored[0], [False, False, True])
    np.testing.assert_allclose(np.exp(scores.values[0]), [0.3, 0.5, 0.05], atol=1e-9)


def test_tokens_that_many_labels_begin_with(scorer_of) -> None:
    question = Question("optional", choices=("optional", "optimal"))
    with pytest.raises(InputError, match="'optimal' and 'optional' begin alike"):
        scorer_of({"opti": 0.8, "optional": 0.1, "x": 0.1}, question)


def test_a_long_answer_is_not_measured_by_its_first_token(scorer_of) -> None:
    probabilities = {"The": 0.8, "good": 0.2}
    assert scorer_of(probabilities, Question("The film is bad")).tier == "T3"
    assert scorer_of(probabilities, Question("good")).tier == "T2"
    assert scorer_of(probabilities, Question("unheard")).tier == "T3"  # not known to be one token
