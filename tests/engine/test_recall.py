"""Finished explanations: found again for the same request, and for no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from spex_engine.recall import keep, recall
from spex_engine.store import Store
from spex_engine.wire import (
    Access,
    Evaluations,
    ExplainRequest,
    ExplainResult,
    Faithfulness,
    Message,
    Piece,
    Prompt,
    Question,
    SegmentEffect,
    Target,
)

REQUEST = ExplainRequest(Prompt((Message("user", (Piece("Anna.", 0), Piece("Bob."))),), 1))
RESULT = ExplainResult(
    model="demo",
    target=Target("Paris", -0.5, own=True),
    unit="nats",
    tier="T1",
    method="exact",
    index="FBII",
    order=3,
    fitted_order=1,
    seed=0,
    budget=1024,
    segments=(SegmentEffect(0, 1.0, None, -1.0),),
    interactions=(),
    faithfulness=Faithfulness(1.0, "every mask was measured", 2),
    evaluations=Evaluations(2, 2, 0, 0),
    input_tokens=9,
    seconds=0.1,
    notes=("a note",),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "evaluations.sqlite3")
    yield opened
    opened.close()


def test_the_same_request_has_the_same_answer(store):
    assert recall(store, REQUEST) is None
    assert keep(store, REQUEST, RESULT) == ()
    assert recall(store, REQUEST) == RESULT
    pinned = dataclasses.replace(REQUEST, question=Question(pinned="Paris"))
    assert recall(store, pinned) == RESULT  # what is asked for first does not matter,
    dearer = dataclasses.replace(REQUEST, access=Access(max_cost=99.0, concurrency=1))
    assert recall(store, dearer) == RESULT  # nor what it may cost


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": Prompt((Message("user", (Piece("Anna!", 0), Piece("Bob."))),), 1)},
        {"prompt": Prompt((Message("system", (Piece("Anna.", 0), Piece("Bob."))),), 1)},
        {"model": "hf:x"},
        {"question": Question("Rome")},
        {"question": Question(span="Par")},
        {"access": Access(("http://127.0.0.1:1/v1",))},
        {"access": Access(repeats=9)},
        {"method": "gp"},
        {"order": 2},
        {"budget": 64},
        {"seed": 1},
    ],
    ids=str,
)
def test_another_request_has_none(store, change):
    keep(store, REQUEST, RESULT)
    assert recall(store, dataclasses.replace(REQUEST, **change)) is None


def test_what_a_folder_holds_is_part_of_the_request(store, tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"first")
    request = dataclasses.replace(REQUEST, model=f"hf:{tmp_path}")
    keep(store, request, RESULT)
    assert recall(store, request) == RESULT
    weights.write_bytes(b"trained further")
    assert recall(store, request) is None


def test_the_endpoint_of_the_environment_is_part_of_the_request(store, monkeypatch):
    request = dataclasses.replace(REQUEST, model="openai:x")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    keep(store, request, RESULT)
    assert recall(store, request) == RESULT
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:2/v1")
    assert recall(store, request) is None


def test_what_is_not_kept(store):
    for counts in (Evaluations(4, 2, 0, 2), Evaluations(4, 2, 1, 0)):
        partial = dataclasses.replace(RESULT, evaluations=counts)
        assert keep(store, REQUEST, partial) == ()
    unwanted = dataclasses.replace(REQUEST, access=Access(keep_answers=False))
    assert keep(store, unwanted, RESULT) == ()  # the model's own answer is text that it wrote
    assert keep(None, REQUEST, RESULT) == ()
    assert store.stats().explanations == 0
    given = dataclasses.replace(RESULT, target=Target("Paris", -0.5))
    assert keep(store, unwanted, given) == ()
    assert store.stats().explanations == 1


def test_what_cannot_be_kept_is_said(store, monkeypatch):
    from spex_engine.store import StoreError

    def full(*_: object) -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(store, "put_explanation", full)
    assert keep(store, REQUEST, RESULT) == ("this explanation is not kept: The disk is full.",)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": "demo"}', "null"])
def test_what_another_version_kept_is_not_taken_for_ours(store, monkeypatch, text):
    monkeypatch.setattr(store, "get_explanation", lambda _: text)
    assert recall(store, REQUEST) is None
