"""Settings from every source: what fits, what is said of what does not, and who may ask."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from server.prompts import PromptSettings
from server.settings import (
    INDICES,
    METHODS,
    VALUES,
    Settings,
    allowed_model,
    check,
    check_request,
    merge,
    read_settings,
    replaced,
    workspace_model,
)
from spex_engine.estimators import ESTIMATORS
from spex_engine.indices import INDICES as ENGINE_INDICES
from spex_engine.values import VALUES as ENGINE_VALUES
from spex_engine.wire import Access, InputError, Question


def test_the_defaults() -> None:
    assert read_settings(None) == (Settings(), ())
    assert read_settings({}) == (Settings(), ())
    default = Settings()
    assert (default.model, default.target, default.segments) == ("demo", None, "auto")
    assert (default.budget, default.method, default.index, default.order) == (
        1024,
        "auto",
        "FBII",
        3,
    )
    assert default.interpreter == sys.executable


def test_good_values_are_taken() -> None:
    section = {
        "model": "hf:gpt2",
        "target": "Paris",
        "segments": "Words",
        "budget": 64,
        "method": "linear",
        "index": "SII",
        "order": 2,
        "seed": 7,
        "interpreter": "/usr/bin/python3",
        "choices": ["Paris", "Rome"],
        "span": "Par",
        "value": "margin",
    }
    settings, problems = read_settings(section)
    assert problems == ()
    found = dataclasses.asdict(settings)
    assert found.pop("access") == dataclasses.asdict(Access())
    expected = {"segments": "word", "choices": ("Paris", "Rome"), "contrast": None}
    assert found == section | expected
    assert settings.question == Question("Paris", None, ("Paris", "Rome"), "Par", "margin")


def test_how_a_model_may_be_asked() -> None:
    section = {
        "baseUrls": "http://127.0.0.1:8000/v1",
        "apiVersion": "2024-10-21",
        "concurrency": 8,
        "maxCalls": 500,
        "maxTokens": 10_000,
        "maxCost": 2,
        "inputPrice": 0.5,
        "outputPrice": 0.0,
        "repeats": 5,
        "store": False,
        "keepAnswers": False,
    }
    settings, problems = read_settings(section)
    assert problems == ()
    assert settings.access == Access(
        ("http://127.0.0.1:8000/v1",),
        "2024-10-21",
        8,
        500,
        10_000,
        2.0,
        0.5,
        0.0,
        5,
        False,
        False,
    )
    assert read_settings({"seed": 1}, settings)[0].access == settings.access
    assert read_settings({"maxCost": None}, settings)[0].access.max_cost == 2.0


def test_a_contrast_names_both_answers() -> None:
    settings, problems = read_settings({"contrast": ["Paris", "Rome"]})
    assert (settings.question, problems) == (Question("Paris", "Rome"), ())
    # who says a target says it against the contrast below, and the other way round
    assert replaced(settings, {"target": "Oslo"}).question == Question("Oslo")
    above = replaced(Settings(target="Oslo", choices=("Oslo", "Rome")), {"contrast": ("A", "B")})
    assert above.question == Question("A", "B")
    with pytest.raises(InputError, match="names both answers itself"):
        _ = replaced(Settings(), {"target": "Oslo", "contrast": ("A", "B")}).question


def test_null_and_wrong_values_leave_what_lies_below() -> None:
    names = [field.name for field in dataclasses.fields(Settings)]
    below = Settings(budget=50, model="hf:gpt2", seed=3)
    assert read_settings(dict.fromkeys(names)) == (Settings(), ())
    assert read_settings(dict.fromkeys(names), below) == (below, ())
    settings, (problem,) = read_settings({"budget": 1, "seed": 4}, below)
    assert settings == dataclasses.replace(below, seed=4)
    assert problem.startswith("spex.budget: expected a whole number")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"budget": 1}, "spex.budget: expected a whole number from 2 to 1,000,000, got 1"),
        ({"budget": "64"}, "spex.budget: expected a whole number from 2 to 1,000,000, got '64'"),
        ({"budget": 64.0}, "spex.budget: expected a whole number from 2 to 1,000,000, got 64.0"),
        ({"order": True}, "spex.order: expected a whole number from 1 to 1,000, got True"),
        ({"seed": -1}, "spex.seed: expected a whole number from 0 to 4,294,967,295, got -1"),
        ({"model": ""}, "spex.model: expected text, got ''"),
        ({"model": ["demo"]}, "spex.model: expected text, got ['demo']"),
        ({"target": " \n"}, "spex.target: expected text, got ' \\n'"),
        ({"contrast": "Rome"}, "spex.contrast: expected two answers, got 'Rome'"),
        ({"contrast": ["a", " "]}, "spex.contrast: expected two answers, got ['a', ' ']"),
        ({"choices": [1]}, "spex.choices: expected a list of texts, got [1]"),
        ({"store": 1}, "spex.store: expected true or false, got 1"),
        ({"maxCost": -1}, "spex.maxCost: expected a number from 0, got -1"),
        ({"maxCost": True}, "spex.maxCost: expected a number from 0, got True"),
        ({"value": "max"}, f"spex.value: expected one of {', '.join(VALUES)}, got 'max'"),
        ({"segments": "page"}, "spex.segments: expected auto, sentence, line or word, got 'page'"),
        ({"method": "best"}, f"spex.method: expected one of {', '.join(METHODS)}, got 'best'"),
        ({"index": "fbii"}, f"spex.index: expected one of {', '.join(INDICES)}, got 'fbii'"),
    ],
)
def test_a_wrong_value_is_said_and_leaves_the_default(section, said: str) -> None:
    assert read_settings(section | {"seed": section.get("seed", 5)}) == (
        Settings(seed=0 if "seed" in section else 5),
        (said,),
    )


def test_an_unknown_key_goes_to_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert read_settings({"modle": "demo", "seed": 5}) == (Settings(seed=5), ())
    assert "spex.modle: unknown setting; known are apiVersion, baseUrls, " in caplog.text


def test_a_run_may_say_all_but_the_interpreter() -> None:
    assert check_request({"budget": 64, "segments": "lines"}) == {"budget": 64, "segments": "line"}
    for key in ("interpreter", "bugdet"):
        with pytest.raises(InputError, match=f"{key}: unknown setting; known are budget, choices"):
            check_request({key: "/bin/sh"})


def test_only_methods_that_there_are_are_offered() -> None:
    assert set(METHODS) == set(ESTIMATORS)
    assert VALUES == ENGINE_VALUES
    assert [check("method", method) for method in METHODS] == list(METHODS)


def test_a_relative_model_folder_is_the_workspace_s(tmp_path: Path) -> None:
    (tmp_path / "chat").mkdir()
    assert workspace_model("hf:./chat", tmp_path) == f"hf:{(tmp_path / 'chat').resolve()}"
    for model in ("demo", "hf:gpt2", "hf:/models/mine"):
        assert workspace_model(model, None) == model
    for model, root, where in (
        ("hf:./none", tmp_path, f"is not in {tmp_path}"),
        ("hf:./chat", None, "no folder is open"),
        ("hf:./\0", tmp_path, "is not in"),
    ):
        with pytest.raises(InputError, match="give an absolute path") as caught:
            workspace_model(model, root)
        assert where in str(caught.value)


@pytest.mark.parametrize("section", [[], "demo", 3])
def test_a_section_that_is_no_object(section: object) -> None:
    settings, (problem,) = read_settings(section)
    assert settings == Settings()
    assert problem == f"spex: expected an object, got {type(section).__name__}"


def test_the_indices_offered_are_the_engine_s_own() -> None:
    """All but Owen, which needs groups that no setting can give yet."""
    assert (*INDICES, "Owen") == ENGINE_INDICES
    for index in INDICES:
        assert check("index", index) == index


# ---- what a prompt file may wish for ---------------------------------------------------------


@pytest.mark.parametrize("wish", ["demo", "hf:gpt2", "hf:Qwen/Qwen2.5-0.5B", "hf:a_b/c-d.e"])
def test_a_file_may_choose_the_embedded_model_or_one_of_the_hub(wish: str) -> None:
    assert allowed_model(wish, None) == wish


def test_a_file_may_choose_a_folder_below_its_own(tmp_path: Path) -> None:
    assert allowed_model("hf:./model", tmp_path) == f"hf:{tmp_path.resolve() / 'model'}"
    assert allowed_model("hf:./a/../b", tmp_path) == f"hf:{tmp_path.resolve() / 'b'}"


@pytest.mark.parametrize(
    "wish",
    [
        "hf:/etc/model",
        "hf:../model",
        "hf:./../model",
        "hf:./a/../../model",
        "hf:~/model",
        "hf:.hidden",
        "hf:a/b/c",
        "hf:a/../../b",
        "hf:C:\\model",
        "hf:a\\b",
        "hf:",
        "hf:gpt2\n",
        "hf:./\0",
        "hf:./" + "x" * 5000 + "\0",
        "openai:gpt-5",
        "ray+hf:gpt2",
        "encoder:x",
        "demo:x",
        "http://evil.example",
        "",
    ],
)
def test_a_file_may_choose_nothing_else(tmp_path: Path, wish: str) -> None:
    with pytest.raises(InputError, match="A prompt file may not choose the model"):
        allowed_model(wish, tmp_path)


def test_a_folder_needs_a_file_beside_it() -> None:
    with pytest.raises(InputError, match="may not choose"):
        allowed_model("hf:./model", None)


def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    with pytest.raises(InputError, match="may not choose"):
        allowed_model("hf:./link", inside)


def test_links_in_a_ring_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    with pytest.raises(InputError, match="may not choose"):
        allowed_model("hf:./ring/x", tmp_path)


# ---- who wins --------------------------------------------------------------------------------


def test_the_file_wins_over_the_settings_where_it_says_something() -> None:
    settings = Settings(model="hf:gpt2", target="Rome", budget=100, seed=3)
    wishes = PromptSettings(model="demo", target="Paris", segments="word")
    merged = merge(settings, wishes, None)
    assert (merged.model, merged.target, merged.segments) == ("demo", "Paris", "word")
    assert (merged.budget, merged.seed) == (100, 3)
    assert merge(settings, PromptSettings(), None) == settings


def test_a_model_that_a_file_may_not_choose_does_not_count() -> None:
    settings = Settings(model="hf:gpt2")
    assert merge(settings, PromptSettings(model="GPT-4o", budget=9), None) == dataclasses.replace(
        settings, budget=9
    )


def test_a_file_cannot_choose_the_interpreter() -> None:
    assert "interpreter" not in {field.name for field in dataclasses.fields(PromptSettings)}
