"""Every dialect end to end through the real SDK: which tier is found, and what it then gives."""

from __future__ import annotations

import gc
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial

import numpy as np
import openai_dialects as dialects
import pytest
from openai_stub import Reply, Stub, error

from spex_engine.backends.base import Scorer, Scores
from spex_engine.backends.demo.model import load as load_demo
from spex_engine.backends.openai import capabilities, endpoint, load
from spex_engine.backends.openai.asking import THINKING
from spex_engine.backends.openai.capabilities import forget
from spex_engine.backends.openai.dispatch import open_dispatcher
from spex_engine.backends.openai.endpoint import EndpointModel
from spex_engine.backends.openai.estimate import PROBES
from spex_engine.backends.openai.messages import masked_text
from spex_engine.backends.openai.pool import Patience
from spex_engine.explain_prompt import explain_prompt
from spex_engine.wire import (
    Access,
    ExplainRequest,
    InputError,
    Message,
    ModelError,
    Piece,
    Prompt,
    Question,
)

BRAIN = dialects.Brain()
BASE = dialects.Brain(template=False)
ASKS = "\nWhere does Bob's colleague live? Answer:"
PROMPT = Prompt(
    (
        Message(
            "user",
            (
                Piece("Bob works with Anna.", 0),
                Piece(" Anna lives in Paris.", 1),
                Piece(" Carla lives in Rome.", 2),
                Piece(ASKS),
            ),
        ),
    ),
    3,
)
WITH_SYSTEM = Prompt((Message("system", (Piece("Be brief."),)), *PROMPT.messages), 3)
MASKS = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=bool)
OWN = Question()
IDS = "completions of token ids"
CHAT = "chat that continues them"
TEXT = "completions of text"


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    monkeypatch.setenv("OPENAI_API_KEY", "a key")


@pytest.fixture
def opened() -> Iterator:
    models: list[EndpointModel] = []
    stubs: list[Stub] = []

    def open_at(handlers, prompt=PROMPT, question=OWN, **access) -> tuple[Scorer, Stub]:
        stub = Stub(handlers)
        stub.start()
        stubs.append(stub)
        models.append(load("stub", Access(**{"base_urls": (stub.url,), **access})))
        return models[-1].open(prompt, question, lambda: False), stub

    yield open_at
    for model in models:
        model.close()
    for stub in stubs:
        stub.stop()


def scored(scorer: Scorer, masks=MASKS) -> Scores:
    """The scores of all masks in their order; NaN for rows that never came."""
    width = max(target.first + len(target.spans) for target in scorer.targets)
    values = np.full((len(masks), width), np.nan)
    censored = np.zeros((len(masks), width), dtype=bool)
    read = np.zeros(len(masks), dtype=np.int64)
    answers: list[tuple[str, ...]] = [()] * len(masks)
    for rows, scores in scorer.score(masks, lambda: False):
        values[rows], read[rows] = scores.values, scores.input_tokens
        if scores.censored is not None:
            censored[rows] = scores.censored
        for row, texts in zip(rows, scores.answers or (), strict=bool(scores.answers)):
            answers[row] = texts
    return Scores(values, read, censored, tuple(answers))


@pytest.mark.parametrize(
    ("handlers", "prompt", "tier", "said"),
    [
        (dialects.vllm(BRAIN), PROMPT, "T1", f"{IDS}, in the model's chat template"),
        (dialects.vllm(BRAIN), WITH_SYSTEM, "T1", f"{IDS}, in the model's chat template"),
        (dialects.vllm(BASE), PROMPT, "T1", f"{IDS}, without a chat template"),
        (dialects.vllm(BRAIN, tokenize=False), PROMPT, "T1", CHAT),
        (dialects.vllm(BRAIN, tokenize=False), WITH_SYSTEM, "T1", CHAT),
        (dialects.vllm(BASE, tokenize=False), PROMPT, "T1", TEXT),
        (dialects.vllm(BASE, tokenize=False), WITH_SYSTEM, "T1", TEXT),
        (dialects.vllm(BRAIN, tokenize=False, continues=False), PROMPT, "T1", f"{TEXT}, without"),
        (dialects.sglang(BRAIN), PROMPT, "T1", f"{TEXT}, without the model's chat template"),
        (dialects.sglang(BRAIN, tokenize=True), PROMPT, "T1", f"{IDS}, without a chat template"),
        (dialects.sglang(BRAIN, tokenize=True), WITH_SYSTEM, "T2", "only after text without roles"),
        (dialects.sglang(BRAIN), WITH_SYSTEM, "T2", "only after text without roles"),
        (dialects.together(BRAIN), PROMPT, "T1", f"{TEXT}, without the model's chat template"),
        (dialects.ollama(BRAIN), PROMPT, "T2", "only the first token"),
        (dialects.llama_cpp(BRAIN), PROMPT, "T2", "only the first token"),
        (dialects.openai(BRAIN), PROMPT, "T2", "only the first token"),
        (dialects.openai_responses_only(BRAIN), PROMPT, "T2", "only the first token"),
        (dialects.lm_studio(BRAIN), PROMPT, "T3", "answered 3 times"),
        (dialects.openai_reasoning(BRAIN), PROMPT, "T3", "takes no temperature"),
        (dialects.ignoring(BRAIN), PROMPT, "T3", "answered 3 times"),
        (dialects.pretending(BRAIN), PROMPT, "T3", "answered 3 times"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_an_endpoint_can_do_is_found_out(opened, handlers, prompt, tier, said) -> None:
    scorer, stub = opened(handlers, prompt)
    probes = len(stub.log)
    assert probes <= PROBES
    assert scorer.tier == tier
    assert any(said in note for note in scorer.notes), scorer.notes
    assert scorer.targets[0].text.split()[0] == "Paris"
    assert scorer.targets[0].own
    scores = scored(scorer)
    assert np.isfinite(scores.values).all()
    whole, without = scores.values[0].mean(), scores.values[1].mean()
    assert whole > without  # Bob's colleague is known no more
    np.testing.assert_array_equal(scores.values[0], scores.values[-1])  # the same mask
    assert scores.input_tokens[0] > 0
    assert scores.input_tokens[-1] == 0  # read once
    again = len(stub.log) - probes
    assert again == 5 * (3 if tier == "T3" else 1)
    assert len({*scorer.addresses(MASKS)}) == 5


def test_a_provider_that_drops_the_fields_is_asked_again(opened) -> None:
    scorer, stub = opened(dialects.openrouter(BRAIN))
    before = len(stub.log)
    assert scorer.tier == "T2"
    assert np.isfinite(scored(scorer).values).all()
    assert len(stub.log) - before == 5 + 4  # the full prompt was dropped before


def joining(body, headers):
    """Completions of a tokenizer in which a full stop and the line break after it are one token."""
    tokens = re.findall(r"\.\n|\w+|\W", body["prompt"])
    seen = ["".join(tokens[:i]) for i in range(len(tokens))]
    told = [None, *(-1 - zlib.crc32(text.encode()) / 2**32 for text in seen[1:])]
    logprobs = {"tokens": [*tokens, "!"], "token_logprobs": [*told, -1.0]}
    return dialects.completion(body, {"text": "!", "logprobs": logprobs}, len(tokens), 1)


def test_a_mask_after_which_the_answers_tokens_are_others_has_no_score(opened) -> None:
    pieces = (Piece("Bob is here."), Piece(" So is Anna", 0), Piece(" of Rome", 1))
    prompt = Prompt((Message("user", pieces),), 2)
    handlers = {"/v1/completions": joining, "/v1/chat/completions": lambda *_: Reply(404, {})}
    scorer, _ = opened(handlers, prompt, Question("\nParis"))
    scores = scored(scorer, np.array([[1, 1], [1, 0], [0, 0]], dtype=bool))
    assert np.isnan(scores.values).all(axis=1).tolist() == [False, False, True]
    assert any("tokens are others" in note for note in scorer.notes)


def test_an_answer_that_begins_within_the_prompts_last_token(opened) -> None:
    handlers = {"/v1/completions": joining, "/v1/chat/completions": lambda *_: Reply(404, {})}
    prompt = Prompt((Message("user", (Piece("Anna.", 0), Piece(" Bob."))),), 1)
    with pytest.raises(ModelError, match=r"first token also holds the end of the prompt \('\.'\)"):
        opened(handlers, prompt, Question("\nParis"))
    with pytest.raises(ModelError, match="writes no answers"):
        opened({**handlers, "/v1/completions": only_scores}, prompt)
    similar = Question("Paris", value="similarity")
    with pytest.raises(ModelError, match="can score answers but not write them"):
        opened({**handlers, "/v1/completions": only_scores}, prompt, similar)


def only_scores(body, headers):
    """Completions that refuse to write more than a token."""
    if body["max_tokens"] > 1:
        return error(400, "max_tokens must be 1")
    return joining(body, headers)


def test_a_reasoning_model_has_room_to_think(opened) -> None:
    scorer, stub = opened(dialects.openai_reasoning(BRAIN), repeats=1)
    before = len(stub.log)
    scores = scored(scorer)
    assert scores.values[0] == 1  # it got as far as the answer
    asked = [entry.body["max_completion_tokens"] for entry in stub.log[before:]]
    assert asked == [32 + THINKING] * 5


def test_tokens_that_are_not_the_texts_are_not_used(opened) -> None:
    """A server whose detokenizer alters text: segments could not be found in it."""
    handlers = dialects.vllm(BRAIN)
    own = handlers["/detokenize"]

    def altering(body, headers):
        return {"prompt": own(body, headers)["prompt"].replace("Bob", "Rob")}

    scorer, _ = opened({**handlers, "/detokenize": altering})
    assert any("do not spell its text" in note for note in scorer.notes)
    assert any(CHAT in note for note in scorer.notes)


def test_log_probabilities_of_our_own_questions_only(opened) -> None:
    handlers = dialects.openai(BRAIN)

    def chat(body, headers):
        probing = body["messages"][-1]["content"].startswith("Say")
        return dialects.chat_answer(body, BRAIN, most=20 if probing else None)

    with pytest.raises(ModelError, match="choose one that supports logprobs"):
        opened(
            {**handlers, "/v1/chat/completions": chat}, question=Question("Paris", contrast="Rome")
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: told["tokens"].__setitem__(-2, "?"), "do not end in the answer 'Paris'"),
        (lambda told: told["token_logprobs"].__setitem__(-2, None), "told no log-probability"),
    ],
)
def test_a_full_prompt_whose_answer_cannot_be_scored(opened, change, said) -> None:
    def completions(body, headers):
        answer = joining(body, headers)
        if "Paris and" not in body["prompt"] and "colleague" in body["prompt"]:
            change(answer["choices"][0]["logprobs"])
        return answer

    handlers = {"/v1/completions": completions, "/v1/chat/completions": lambda *_: Reply(404, {})}
    with pytest.raises(ModelError, match=said):
        opened(handlers, question=Question("Paris"))


def test_azure_has_paths_and_a_key_header_of_its_own(opened, monkeypatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "an azure key")
    stub = Stub(dialects.azure(BRAIN, "stub"))
    with stub:
        root = stub.url.removesuffix("/v1")
        scorer, _ = opened({}, base_urls=(root,), api_version="2024-10-21")
        assert scorer.tier == "T2"
        assert np.isfinite(scored(scorer).values).all()
        asked = stub.log[-1]
        assert asked.path == ("/openai/deployments/stub/chat/completions?api-version=2024-10-21")
        assert "api-key" in asked.headers


@pytest.mark.parametrize("tokenize", [True, False])
def test_t1_is_what_the_local_model_says(opened, tokenize: bool) -> None:
    """The embedded model behind vLLM's protocol, and in this process."""
    target = " Paris and Rome"
    scorer, _ = opened(dialects.vllm(BASE, tokenize=tokenize), question=Question(target))
    demo = load_demo()
    tokens = demo.tokenise(PROMPT)
    ids = demo.tokenise_target(tokens, target)
    remote = scored(scorer).values
    assert remote.shape == (len(MASKS), len(ids))
    compared = 0
    for mask, told in zip(MASKS, remote, strict=True):
        kept = tokens.masked(mask)
        text = masked_text(PROMPT, mask)
        if not tokenize and BASE.encode(text) != kept.tolist():
            continue  # text that is tokenised anew has other tokens
        compared += 1
        ((_, local),) = demo.logprobs([kept], [ids])
        np.testing.assert_allclose(told, local[0], rtol=1e-6, atol=1e-6)
    assert compared == (6 if tokenize else 5)
    spelt = [target[start:end].strip() for start, end in scorer.targets[0].spans]
    assert "".join(spelt) == "ParisandRome"


def test_contrast_and_choices_are_columns_beside_the_target(opened) -> None:
    handlers = dialects.vllm(BASE)
    scorer, stub = opened(handlers, question=Question("Paris", contrast="Rome and Paris"))
    before = len(stub.log)
    one, other = scorer.targets
    assert (one.first, len(one.spans)) == (0, 1)
    assert (other.first, len(other.spans)) == (1, 3)
    scores = scored(scorer)
    assert scores.values[0, 0] > scores.values[0, 1]
    assert len(stub.log) - before == 2 * 5  # one request for each answer
    alone, _ = opened(handlers, question=Question("Paris"))
    np.testing.assert_allclose(scored(alone).values[:, 0], scores.values[:, 0], atol=1e-6)


def test_the_own_answer_of_before_is_kept_and_its_change_is_said(opened) -> None:
    scorer, _ = opened(dialects.openai(BRAIN), question=Question(pinned="Rome"))
    assert scorer.targets[0].text == "Rome"
    assert scorer.targets[0].own
    assert any("Paris" in note and "Rome" in note for note in scorer.notes)
    same, _ = opened(dialects.openai(BRAIN), question=Question(pinned="Paris"))
    assert not any("earlier" in note for note in same.notes)


def test_an_address_is_of_model_endpoint_text_and_target(opened) -> None:
    handlers = dialects.vllm(BASE)
    scorer, stub = opened(handlers, question=Question("Paris"))
    model = load("stub", Access(base_urls=(stub.url,)))
    again = model.open(PROMPT, Question("Paris"), lambda: False)
    other = model.open(PROMPT, Question("Rome"), lambda: False)
    moved, _ = opened(handlers, question=Question("Paris"))  # another port
    model.close()
    found = scorer.addresses(MASKS)
    assert all(len(address) == 32 for address in found)
    assert found == again.addresses(MASKS)
    assert not {*found} & {*other.addresses(MASKS)}
    assert not {*found} & {*moved.addresses(MASKS)}


def test_an_empty_prompt_is_sent_as_a_line_break(opened) -> None:
    pieces = (Piece("Bob lives in Paris.", 0), Piece(" Anna works with Bob.", 1))
    prompt = Prompt((Message("user", pieces),), 2)
    for handlers in (dialects.openai(BRAIN), dialects.vllm(BASE), dialects.sglang(BRAIN)):
        scorer, _ = opened(handlers, prompt, Question("Cairo", contrast="Seoul"))
        scores = scored(scorer, np.array([[False, False], [True, True]]))
        assert np.isfinite(scores.values).all(), scorer.notes
        assert any("line break" in note for note in scorer.notes)


def test_similarity_asks_for_answers_even_where_they_can_be_scored(opened) -> None:
    scorer, _ = opened(dialects.vllm(BRAIN), question=Question(value="similarity"), repeats=2)
    assert scorer.tier == "T3"
    assert scored(scorer).values.shape == (len(MASKS), 2)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question(" "), "The target is empty"),
        (Question("Paris", contrast=" "), "An answer to compare with is empty"),
        (Question("Paris", contrast="Paris"), "contrasted with itself"),
        (Question("Bern", choices=("Paris", "Rome")), "not among the choices"),
        (Question("Not Paris", contrast="Not Rome"), "begin alike"),
    ],
)
def test_questions_that_cannot_be_answered(opened, question, said) -> None:
    with pytest.raises(InputError, match=said):
        opened(dialects.openai(BRAIN), question=question)


def test_an_empty_prompt_and_an_unnamed_model(opened) -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        opened(dialects.openai(BRAIN), Prompt((Message("user", (Piece(" ", 0),)),), 1))
    with pytest.raises(InputError, match="names no model"):
        load("", Access())
    with pytest.raises(InputError, match="repeats is 0"):
        load("stub", Access(repeats=0))


def test_a_model_that_says_nothing(opened) -> None:
    handlers = dialects.known({"": 0.9, "a": 0.1})
    with pytest.raises(ModelError, match="answers this prompt with nothing at all"):
        opened(handlers)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(401, "Incorrect API key provided"), "key"),
        (error(404, "The model `stub` does not exist", code="model_not_found"), "stub"),
    ],
)
def test_what_every_request_would_meet_is_raised_at_once(opened, reply, said) -> None:
    refuse = dict.fromkeys(
        ("/v1/chat/completions", "/v1/completions", "/v1/responses"), lambda *_: reply
    )
    with pytest.raises(ModelError, match=said):
        opened(refuse)


def test_nobody_is_there(opened) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ModelError, match=rf"127\.0\.0\.1:{port}"):
        opened({}, base_urls=(f"http://127.0.0.1:{port}/v1",))


def test_a_full_prompt_that_is_too_long(opened) -> None:
    handlers = dialects.openai(BRAIN)
    answer = handlers["/v1/chat/completions"]

    def chat(body, headers):
        if len(body["messages"][-1]["content"]) > 60:
            return error(400, "maximum context length is 16 tokens", code="context_length_exceeded")
        return answer(body, headers)

    with pytest.raises(ModelError, match="long"):
        opened({**handlers, "/v1/chat/completions": chat})


def test_rows_that_fail_are_nan_and_told(opened) -> None:
    handlers = dialects.openai(BRAIN)
    answer = handlers["/v1/chat/completions"]

    def chat(body, headers):
        if body["messages"][-1]["content"] == ASKS:  # the mask that keeps nothing
            return error(400, "Invalid prompt: flagged")
        return answer(body, headers)

    scorer, _ = opened({**handlers, "/v1/chat/completions": chat})
    scores = scored(scorer)
    assert np.isnan(scores.values[4]).all()
    assert np.isfinite(scores.values[[0, 1, 2, 3, 5]]).all()
    assert any("failed: 1," in note and "flagged" in note for note in scorer.notes)
    scored(scorer, MASKS[:2])  # what went wrong before is not forgotten
    assert any("failed: 1," in note for note in scorer.notes)


def test_a_key_that_is_revoked_ends_the_run_with_what_it_has(opened) -> None:
    handlers = dialects.openai(BRAIN)
    answer = handlers["/v1/chat/completions"]
    revoked = []

    def chat(body, headers):
        return error(401, "Incorrect API key provided") if revoked else answer(body, headers)

    scorer, _ = opened({**handlers, "/v1/chat/completions": chat}, concurrency=1)
    seen = []

    def run() -> None:
        for rows, _ in scorer.score(MASKS, lambda: False):
            seen.append(rows)
            revoked.append(True)

    with pytest.raises(ModelError, match="key"):
        run()
    assert seen


def test_a_spent_budget_keeps_what_was_paid_for(opened) -> None:
    scorer, stub = opened(dialects.openai(BRAIN), max_calls=12)
    many = np.array(list(np.ndindex(2, 2, 2)), dtype=bool)
    scores = scored(scorer, many)
    paid = np.isfinite(scores.values[:, 0])
    assert 0 < paid.sum() < len(many)
    assert any("not all masks were asked for" in note for note in scorer.notes)
    assert sum(entry.status == 200 for entry in stub.log) <= 12


def test_masks_are_finished_one_after_the_other(opened) -> None:
    """With two answers to each, a spent budget leaves hardly a mask of which one is missing."""
    pieces = tuple(Piece(f"Fact {i} holds. ", i) for i in range(6))
    prompt = Prompt((Message("user", pieces),), 6)
    question = Question("Paris", contrast="Rome")
    _, stub = opened(dialects.vllm(BASE), prompt, question)
    before = len(stub.log)
    scorer, stub = opened(dialects.vllm(BASE), prompt, question, max_calls=before + 41)
    opening = len(stub.log)  # nothing is known of this address
    every = np.array(list(np.ndindex(*[2] * 6)), dtype=bool)
    done = np.isfinite(scored(scorer, every).values).all(axis=1).sum()
    assert len(stub.log) == opening + 41
    assert done == 20


@pytest.mark.parametrize(
    ("prices", "here", "money"),
    [
        ({"input_price": 1e4, "output_price": 2e4}, True, ", about ${:.2f}"),
        ({"input_price": 0.0, "output_price": 0.0}, False, ""),
        ({}, False, "; their price is not known, so that no limit on the cost can be kept"),
        ({}, True, ""),
    ],
)
def test_what_was_spent_is_said(opened, monkeypatch, prices, here, money) -> None:
    monkeypatch.setattr("spex_engine.backends.openai.rows.is_here", lambda url: here)
    handlers = dialects.known({"yes": 0.6, "no": 0.4})  # 20 tokens read and 1 written by each
    question = Question("yes", contrast="no")
    scorer, stub = opened(handlers, question=question, max_cost=None, **prices)
    scored(scorer)
    asked = len(stub.log)
    told = sum(entry.status == 200 for entry in stub.log)
    cost = told * (20 * 1e4 + 2e4) / 1e6
    said = f"{asked} requests, {20 * told} input and {told} output tokens{money.format(cost)}"
    assert scorer.notes[-1].startswith(said)
    assert len(scorer.notes[-1]) == len(said) or not prices


def test_a_limit_on_the_cost_needs_prices() -> None:
    with pytest.raises(InputError, match=r"price of stub is not known.*Set inputPrice"):
        load("stub", Access(max_cost=2.0))
    load("stub", Access(max_cost=2.0, input_price=0.0, output_price=0.0)).close()
    load("stub", Access(max_cost=None)).close()


@pytest.mark.parametrize("api", ["chat/completions", "completions", "responses"])
def test_a_kind_word_is_no_answer(opened, api) -> None:
    def friendly(body, headers):
        return {"status": "ok"}

    paths = dict.fromkeys(
        (f"/v1/{each}" for each in ("chat/completions", "completions", "responses")),
        lambda *_: Reply(404, {"detail": "Not Found"}),
    )
    with pytest.raises(ModelError, match="does not answer as an OpenAI-compatible endpoint"):
        opened({**paths, "/v1/chat/completions": friendly, f"/v1/{api}": friendly})


def test_a_kind_word_in_the_middle_of_a_run_is_no_score(opened) -> None:
    handlers = dialects.known({"Paris": 0.6, "Rome": 0.4})
    own = handlers["/v1/chat/completions"]

    def chat(body, headers):
        text = body["messages"][-1]["content"]
        return own(body, headers) if "Carla" in text or "Say" in text else {"status": "ok"}

    question = Question("Paris", contrast="Rome")
    scorer, _ = opened({**handlers, "/v1/chat/completions": chat}, question=question)
    with pytest.raises(ModelError, match="does not answer as"):
        scored(scorer)


def test_what_fails_for_now_is_not_taken_for_what_cannot_be(opened, monkeypatch) -> None:
    """A server that is not well yet: its first tier is a lower one, said so and not remembered."""
    handlers = dialects.vllm(BASE, tokenize=False)
    own, failing = handlers["/v1/completions"], [True]

    def completions(body, headers):
        if failing and ("echo" in body or "prompt_logprobs" in body):
            return error(503, "warming up")
        return own(body, headers)

    hasty = Patience(retries=0, failures=1000)
    monkeypatch.setattr(endpoint, "open_dispatcher", partial(open_dispatcher, patience=hasty))
    question = Question("Paris")
    none = {"/v1/chat/completions": lambda *_: Reply(404, {})}
    scorer, stub = opened({**handlers, **none, "/v1/completions": completions}, question=question)
    assert scorer.tier == "T3"
    failing.clear()
    doubt = "could not find out whether it scores a given answer"
    assert any(doubt in note and "503 (warming up)" in note for note in scorer.notes)
    again = load("stub", Access(base_urls=(stub.url,)))
    better = again.open(PROMPT, question, lambda: False)
    assert better.tier == "T1"
    assert not any(doubt in note for note in better.notes)
    again.close()


def test_what_fails_for_now_is_not_taken_for_a_question_that_does_not_fit(
    opened, monkeypatch
) -> None:
    handlers = dialects.openai(BRAIN)
    own = handlers["/v1/chat/completions"]

    def chat(body, headers):
        return error(503, "busy") if "logprobs" in body else own(body, headers)

    hasty = Patience(retries=0, failures=1000)
    monkeypatch.setattr(endpoint, "open_dispatcher", partial(open_dispatcher, patience=hasty))
    handlers = {"/v1/chat/completions": chat, "/v1/completions": handlers["/v1/completions"]}
    said = r"cannot be asked this now: could not find out whether it lists.*503 \(busy\)"
    with pytest.raises(ModelError, match=said):
        opened(handlers, question=Question("Paris", contrast="Rome"))


def test_what_was_found_out_is_asked_again_after_a_while_and_after_a_fatal_failure(
    opened, monkeypatch
) -> None:
    handlers = dialects.openai(BRAIN)
    answer = handlers["/v1/chat/completions"]
    revoked = []

    def chat(body, headers):
        return error(401, "Incorrect API key provided") if revoked else answer(body, headers)

    question = Question("Paris", contrast="Rome")
    scorer, stub = opened({**handlers, "/v1/chat/completions": chat}, question=question)
    probed = len(stub.log)

    def requests() -> int:
        before = len(stub.log)
        model = load("stub", Access(base_urls=(stub.url,)))
        model.open(PROMPT, question, lambda: False)
        model.close()
        return len(stub.log) - before

    assert requests() == 1  # the full prompt's tokens
    with monkeypatch.context() as patched:
        patched.setattr(capabilities, "_KEPT", -1.0)
        assert requests() == probed
    revoked.append(True)
    with pytest.raises(ModelError, match="key"):
        scored(scorer)
    revoked.clear()
    assert requests() == probed


def splitting(body, headers):
    """Completions of a tokenizer in which a word has more tokens where no blank is before it."""
    text = body["prompt"]
    tokens = [
        part
        for token in re.findall(r" ?\w+|\W", text)
        for part in ([token] if token[0] == " " else [token[:2], token[2:]])
        if part
    ]
    seen = ["".join(tokens[:i]) for i in range(len(tokens))]
    told = [None, *(-1 - zlib.crc32(before.encode()) / 2**32 for before in seen[1:])]
    logprobs = {"tokens": [*tokens, "!"], "token_logprobs": [*told, -1.0]}
    return dialects.completion(body, {"text": "!", "logprobs": logprobs}, len(tokens), 1)


def test_an_address_is_of_the_answers_tokens_too(opened) -> None:
    """The same text is asked for the last mask of both, but other tokens of it are scored."""
    handlers = {"/v1/completions": splitting, "/v1/chat/completions": lambda *_: Reply(404, {})}
    _, stub = opened(handlers, question=Question("Paris"))
    found = []
    for last in ("Answer:\n", "Answer:"):
        pieces = (Piece("Anna lives here.\n", 0), Piece(last, 1))
        model = load("stub", Access(base_urls=(stub.url,)))
        prompt = Prompt((Message("user", pieces),), 2)
        scorer = model.open(prompt, Question("Paris"), lambda: False)
        found.append((len(scorer.targets[0].spans), *scorer.addresses(np.array([[True, False]]))))
        model.close()
    (two, one_address), (one, other_address) = found
    assert (two, one) == (2, 1)
    assert one_address != other_address


def test_answers_that_are_not_listed_even_for_the_full_prompt(opened) -> None:
    said = (
        r"None of the answers \('Zebra', 'Quagga'\) begins with one of the 20 likeliest.*' Paris'"
    )
    with pytest.raises(InputError, match=said):
        opened(dialects.openai(BRAIN), question=Question("Zebra", choices=("Zebra", "Quagga")))


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question("Paris", choices=("Paris", "Rome"), value="similarity"), "choices: for value"),
        (Question(contrast="Rome", value="similarity"), "contrast: for value"),
        (Question("in Paris", span="Paris", value="similarity"), "span: for value"),
        (Question("Paris", value="margin"), "margin does not fit an answer alone"),
        (Question(choices=("Paris", "Rome"), value="mean"), "mean does not fit"),
        (Question("Paris", span="Rome"), "does not occur in the answer"),
        (Question("Bern", choices=("Paris", "Rome")), "not among the choices"),
        (Question(contrast="Rome", span="Paris"), "span: a part of the answer counts only"),
    ],
)
def test_what_no_tier_can_answer_costs_nothing(opened, question, said) -> None:
    _, stub = opened(dialects.known({"Paris": 0.6, "Rome": 0.4}))
    forget()
    asked = len(stub.log)
    model = load("stub", Access(base_urls=(stub.url,)))
    with pytest.raises(InputError, match=said):
        model.open(PROMPT, question, lambda: False)
    model.close()
    assert len(stub.log) == asked


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question(choices=("Paris", "Rome")), "choices: this endpoint gives no log-prob"),
        (Question(contrast="Rome"), "contrast: this endpoint gives no log-prob"),
        (Question(span="Paris"), "span: this endpoint gives no log-prob"),
        (Question(value="sum"), "sum does not fit answers that are regenerated"),
    ],
)
def test_what_an_endpoint_of_texts_cannot_answer(opened, question, said) -> None:
    """It is refused before even the own answer is asked for."""
    _, stub = opened(dialects.lm_studio(BRAIN))
    asked = len(stub.log)
    model = load("stub", Access(base_urls=(stub.url,)))
    with pytest.raises(InputError, match=said):
        model.open(PROMPT, question, lambda: False)
    model.close()
    assert len(stub.log) == asked


def test_a_span_of_the_own_answer_is_not_known_before(opened) -> None:
    scorer, _ = opened(dialects.vllm(BRAIN), question=Question(span="Paris"))
    assert scorer.tier == "T1"


def test_a_second_run_does_not_probe_again(opened) -> None:
    _, stub = opened(dialects.vllm(BASE), question=Question("Paris"))
    probed = len(stub.log)
    model = load("stub", Access(base_urls=(stub.url,)))
    model.open(PROMPT, Question("Paris"), lambda: False)
    model.close()
    assert len(stub.log) - probed < probed / 2


def test_a_whole_explanation_through_an_endpoint(opened) -> None:
    """Each value is the embedded model's own, so that the findings must be the local run's too."""
    handlers = dialects.vllm(BASE)
    question = Question("Paris", contrast="Rome")
    _, stub = opened(handlers, question=question)
    request = ExplainRequest(PROMPT, "openai:stub", question, Access(base_urls=(stub.url,)))

    def explained(open_model):
        return explain_prompt(request, lambda *_: None, lambda: False, open_model)

    remote = explained(lambda _: load("stub", request.access))
    local = explained(lambda _: load_demo())
    assert remote.tier == local.tier == "T1"
    assert remote.target.value == pytest.approx(local.target.value, rel=1e-5)
    for one, other in zip(remote.segments, local.segments, strict=True):
        assert one.effect == pytest.approx(other.effect, abs=1e-4)
    assert remote.interactions[0].segments == local.interactions[0].segments == (0, 1)


def test_connections_end_with_the_last_who_holds_them(opened) -> None:
    _, stub = opened(dialects.openai(BRAIN))

    def loops() -> int:
        return sum(thread.name == "requests" for thread in threading.enumerate())

    before = loops()
    scorer = load("stub", Access(base_urls=(stub.url,))).open(PROMPT, OWN, lambda: False)
    gc.collect()
    assert np.isfinite(scored(scorer).values).all()  # though the model is gone
    assert loops() == before + 1
    del scorer
    gc.collect()
    for _ in range(500):
        if loops() == before:
            return
        time.sleep(0.01)
    pytest.fail("the loop still runs")
