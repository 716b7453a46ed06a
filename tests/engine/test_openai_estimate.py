"""What a run will cost, counted without a request; tokens, prices and the hosts that are asked."""

from __future__ import annotations

import base64
import socket
from pathlib import Path

import numpy as np
import pytest

from spex_engine.backends.openai.asking import THINKING
from spex_engine.backends.openai.estimate import ANSWER, PROBES, estimate
from spex_engine.backends.openai.messages import masked_text
from spex_engine.backends.openai.prices import AS_OF, prices
from spex_engine.backends.openai.tokens import token_count, vocabulary_path
from spex_engine.wire import (
    Access,
    InputError,
    Message,
    Piece,
    Prompt,
    Question,
    from_json,
    to_json,
)
from spex_engine.wire import Estimate as Wire

FIXED = "What is the answer?\n"
TEXTS = [f"Fact number {i} is of no interest to anyone at all. " for i in range(10)]
PIECES = (Piece(FIXED), *(Piece(text, i) for i, text in enumerate(TEXTS)))
PROMPT = Prompt((Message("user", PIECES),), len(TEXTS))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any connection is a failure, and tiktoken's cache is an empty folder."""

    def refuse(*args: object) -> None:
        raise AssertionError("an estimate asks nobody")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    token_count.cache_clear()


def test_half_of_the_segments_are_read_on_average() -> None:
    found = estimate("gpt-4o", PROMPT, Question("Yes", contrast="No"), Access(), 1000, "T2")
    rng = np.random.default_rng(0)
    drawn = rng.random((1000, len(TEXTS))) < 0.5
    count = token_count("gpt-4o").count
    read = sum(count(masked_text(PROMPT, mask)) for mask in drawn)
    assert found.calls == 1000 + PROBES + 2
    assert read < found.input_tokens < 1.3 * read  # what stands around messages comes to it
    assert found.output_tokens < 1000 + PROBES * 16 + ANSWER + 1
    assert found.asks == "api.openai.com"


def test_regenerated_answers_multiply() -> None:
    once = estimate("gpt-4o", PROMPT, Question("Yes"), Access(repeats=1), 100)
    thrice = estimate("gpt-4o", PROMPT, Question("Yes"), Access(repeats=3), 100)
    assert thrice.calls - PROBES - 1 == 3 * (once.calls - PROBES - 1)
    assert thrice.input_tokens > 2.5 * once.input_tokens
    assert any("3 times" in note for note in thrice.notes)
    scored = estimate("gpt-4o", PROMPT, Question("Yes"), Access(), 100, "T1")
    assert scored.calls - PROBES - 1 == 100


@pytest.mark.parametrize(
    ("question", "calls"),
    [
        (Question("Yes"), 3),  # regenerated
        (Question(value="similarity"), 3),
        (Question("Yes", contrast="No"), 2),
        (Question(choices=("Yes", "No", "Both")), 3),
        (Question("Yes, surely", span="Yes"), 1),  # cannot be regenerated
        (Question("Yes", value="logit"), 1),
    ],
)
def test_the_dearest_way_is_estimated(question, calls) -> None:
    """All answers of each mask, by an endpoint that scores them, or all repetitions."""
    few, many = (estimate("m", PROMPT, question, Access(), masks) for masks in (100, 300))
    assert many.calls - few.calls == 200 * calls


def test_answers_are_bounded_by_what_is_asked_for() -> None:
    """As the tier itself asks: twice as long as the answer, in steps, after what is thought."""
    no_limit = Access(max_tokens=None, max_cost=None)
    few, many = (
        [estimate(model, PROMPT, Question("Yes"), no_limit, n) for model in ("gpt-4o", "o3")]
        for n in (10, 20)
    )
    plain, thinking = (
        more.output_tokens - less.output_tokens for less, more in zip(few, many, strict=True)
    )
    assert plain == 10 * 3 * 32
    assert thinking == 10 * 3 * (32 + THINKING)
    assert any("may think for 2,048 tokens" in note for note in few[1].notes)
    assert not any("think" in note for note in few[0].notes)


@pytest.mark.parametrize(
    ("model", "thinks"),
    [
        *(("o1-preview", True), ("o4-mini", True), ("gpt-5", True), ("openai/gpt-5.1", True)),
        *(("gpt-5.1-chat-latest", False), ("gpt-4.1", False), ("olmo", False)),
    ],
)
def test_models_that_think(model, thinks) -> None:
    found = estimate(model, PROMPT, Question("Yes"), Access(), 10)
    assert any("may think" in note for note in found.notes) == thinks


@pytest.mark.parametrize(
    ("limit", "reached"),
    [
        ({"max_calls": 100}, "maxCalls (100 of 3,031 calls)"),
        ({"max_tokens": 10_000}, "maxTokens (10,000 of"),
        ({"max_cost": 0.01}, "maxCost ($0.01 of $"),
    ],
)
def test_no_more_than_the_limits_allow(limit, reached) -> None:
    free = {"max_calls": None, "max_tokens": None, "max_cost": None}
    whole = estimate("gpt-4o", PROMPT, Question("Yes"), Access(**free), 1000)
    found = estimate("gpt-4o", PROMPT, Question("Yes"), Access(**{**free, **limit}), 1000)
    assert not any("it may end at" in note for note in whole.notes)
    assert any(reached in note for note in found.notes)
    assert found.calls == limit.get("max_calls", whole.calls)
    tokens = found.input_tokens + found.output_tokens
    assert tokens <= limit.get("max_tokens", tokens)
    assert found.cost is not None
    assert whole.cost is not None
    assert found.cost <= limit.get("max_cost", whole.cost)
    if "max_calls" in limit:  # fewer calls cost less
        assert found.cost < whole.cost / 20


def test_a_question_that_the_run_would_refuse() -> None:
    with pytest.raises(InputError, match="choices: for value similarity"):
        estimate("m", PROMPT, Question("a", choices=("a", "b"), value="similarity"), Access(), 8)
    with pytest.raises(InputError, match="limit of 2 on the cost cannot be kept"):
        estimate("m", PROMPT, Question("a"), Access(max_cost=2.0), 8)


def test_money_is_counted_by_published_prices_unless_settings_say_otherwise() -> None:
    found = estimate("gpt-4o-mini-2024-07-18", PROMPT, Question("Yes"), Access(), 100)
    expected = (found.input_tokens * 0.15 + found.output_tokens * 0.6) / 1e6
    assert found.cost == pytest.approx(expected)
    assert any(AS_OF in note for note in found.notes)
    own = Access(input_price=10.0, output_price=0.0)
    given = estimate("gpt-4o-mini", PROMPT, Question("Yes"), own, 100)
    assert given.cost == pytest.approx(given.input_tokens * 10 / 1e6)
    assert not any(AS_OF in note for note in given.notes)


def test_an_unknown_price_is_said() -> None:
    found = estimate("my-model", PROMPT, Question("Yes"), Access(), 100)
    assert found.cost is None
    assert any("no limit on the cost" in note for note in found.notes)
    assert prices("gpt-5.9-ultra", Access()).input is None  # no family's price but its own
    assert prices("gpt-4o-latest", Access()).input == 2.5


def test_whom_the_prompt_is_sent_to() -> None:
    def asks(*urls: str) -> str | None:
        return estimate("m", PROMPT, Question("Yes"), Access(base_urls=urls), 8).asks

    assert asks("http://127.0.0.1:8000/v1", "http://localhost:1/v1", "http://[::1]:2/v1") is None
    assert asks("https://b.example/v1", "https://a.example/v1") == "a.example, b.example"


def test_it_crosses_a_process_border() -> None:
    found = estimate("gpt-4o", PROMPT, Question(), Access(), 64)
    assert from_json(Wire, to_json(found)) == found


def test_without_its_vocabulary_tokens_are_approximate_and_that_is_said() -> None:
    counting = token_count("gpt-4o")
    assert counting.note is not None
    assert str(vocabulary_path("o200k_base")) in counting.note
    assert counting.count("four" * 25) == 25
    assert counting.most("four" * 25) == 100
    assert "not known" in (token_count("my-model").note or "")
    found = estimate("gpt-4o", PROMPT, Question("Yes"), Access(), 8)
    assert any("approximate" in note for note in found.notes)


def test_with_its_vocabulary_tokens_are_tiktokens(tmp_path: Path) -> None:
    """A vocabulary of single bytes under the name of the real one: tiktoken refuses it by hash."""
    lines = [base64.b64encode(bytes([i])) + b" " + str(i).encode() for i in range(256)]
    path = vocabulary_path("o200k_base")
    assert path is not None
    assert path.parent == tmp_path
    path.write_bytes(b"\n".join(lines))
    counting = token_count("gpt-4o")
    assert "cannot be used" in (counting.note or "")


def test_tiktoken_counts_where_it_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tiktoken

    ranks = {bytes([i]): i for i in range(256)}
    ranks[b"four"] = 256
    for i, pair in enumerate((b"fo", b"ur")):
        ranks[pair] = 257 + i
    encoding = tiktoken.Encoding("tiny", pat_str=".+", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    path = vocabulary_path("o200k_base")
    assert path is not None
    path.write_bytes(b"")
    counting = token_count("gpt-4o")
    assert counting.note is None
    assert counting.count("four<|endoftext|>") == counting.most("four<|endoftext|>")
    assert counting.count("abc") == 3
