"""From a file's text to the worker's request: what is asked, and whose word counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.planning import make_plan, problems_of
from server.prompts import parse
from server.settings import Settings
from spex_engine import wire
from spex_engine.wire import Access, ExplainRequest, InputError

BODY = "Bob works with Anna.\nAnna lives in Paris.\nDavid likes tea.\n\nQuestion: where?\n"
FRONT = (
    "---\nmodel: hf:gpt2\ntarget: Rome\nbudget: 200\nsegments: line\nfixed: ['Question:*']\n---\n"
)


def test_the_file_says_and_the_rest_are_settings() -> None:
    request = make_plan(FRONT + BODY, None, Settings(seed=4, order=2)).request
    assert (request.model, request.question.target, request.budget) == ("hf:gpt2", "Rome", 200)
    assert (request.seed, request.order, request.method, request.index) == (4, 2, "auto", "FBII")


def test_what_a_command_says_wins_over_the_file() -> None:
    said = {"model": "demo", "target": "Oslo", "budget": 64, "segments": "word"}
    plan = make_plan(FRONT + BODY, None, Settings(), said)
    request = plan.request
    assert (request.model, request.question.target, request.budget) == ("demo", "Oslo", 64)
    assert plan.segmentation.kind == "word"


@pytest.mark.parametrize("wish", ["GPT-4o", "hf:/etc", "openai:gpt-5", "hf:./../x"])
def test_a_file_s_forbidden_model_is_reported_and_not_used(wish: str) -> None:
    path = Path("/tmp/a.md")
    text = FRONT.replace("hf:gpt2", wish).replace("budget: 200", "budget: many") + BODY
    assert make_plan(text, path, Settings(model="hf:mine")).request.model == "hf:mine"
    assert make_plan(text, path, Settings(), {"model": "hf:said"}).request.model == "hf:said"
    refused, budget = problems_of(parse(text, "a.md"), path)
    assert (refused.code, refused.severity) == ("model-refused", "warning")
    assert text[refused.start : refused.end] == wish
    assert f"may not choose the model '{wish}', so it is not used" in refused.message
    assert "Choose it in the settings or with --model." in refused.message
    assert budget.code == "front-matter-value"


def test_a_model_that_a_file_may_choose_is_no_problem() -> None:
    for text in (FRONT + BODY, BODY, "---\nmodel: [a]\n---\n" + BODY):
        document = parse(text, "a.md")
        assert problems_of(document, Path("/tmp/a.md")) == document.problems


def test_the_settings_may_name_any_model() -> None:
    assert make_plan(BODY, None, Settings(model="hf:/models/mine")).request.model == (
        "hf:/models/mine"
    )


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_the_pieces_are_the_file_s_body_and_the_segments_stand_in_it(
    newline: str, start: str
) -> None:
    text = start + (FRONT + "🎉 " + BODY).replace("\n", newline)
    plan = make_plan(text, None, Settings())
    (message,) = plan.request.prompt.messages
    assert message.text == text[text.index("🎉") :].strip()
    assert [segment.text for segment in plan.segmentation.segments] == [
        "🎉 Bob works with Anna.",
        "Anna lives in Paris.",
        "David likes tea.",
    ]
    for segment in plan.segmentation.segments:
        assert text[segment.start : segment.end] == segment.text
    fixed = "".join(piece.text for piece in message.pieces if piece.segment is None)
    assert fixed.strip() == "Question: where?"


def test_the_same_text_gives_the_same_plan_and_it_crosses_the_border_unchanged() -> None:
    plan = make_plan(FRONT + BODY, None, Settings())
    assert make_plan(FRONT + BODY, None, Settings()) == plan
    assert wire.from_json(ExplainRequest, wire.to_json(plan.request)) == plan.request


@pytest.mark.parametrize("text", ["", " \n\t\n", "\ufeff", "---\nmodel: demo\n---\n"])
def test_an_empty_prompt_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        make_plan(text, None, Settings())


def test_a_prompt_of_fixed_text_alone_is_refused() -> None:
    with pytest.raises(InputError, match="all of the prompt is fixed text"):
        make_plan("---\nfixed: '*'\n---\nBob.\nAnna.\n", None, Settings())


def test_problems_of_the_file_do_not_stop_the_plan() -> None:
    plan = make_plan("---\nbudget: many\n---\nBob is here. Anna too.\n", None, Settings())
    assert [problem.code for problem in plan.document.problems] == ["front-matter-value"]
    assert plan.request.budget == 1024


def test_addresses_are_for_endpoints_alone() -> None:
    """They may be set for all files, of which some choose a model on this machine."""
    settings = Settings(access=Access(("http://127.0.0.1:1/v1",), concurrency=3))
    local = make_plan("Anna.\nBob.\n", None, settings).request.access
    assert local == Access(concurrency=3)
    remote = make_plan("Anna.\nBob.\n", None, settings, {"model": "openai:x"}).request.access
    assert remote == settings.access
    # who names one for this run is told that it is of no use
    said = {"baseUrls": ("http://127.0.0.1:2/v1",)}
    assert make_plan("Anna.\nBob.\n", None, settings, said).request.access.base_urls
