"""Endpoints from a terminal: consent before money, budgets kept, what is known costs nothing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.openai_stub import Stub
from tests.server.endpoint_stub import ELSEWHERE, PROMPT, chat_stub

REPO = Path(__file__).parents[2]
SECONDS = 120


@pytest.fixture
def stub() -> Iterator[Stub]:
    with chat_stub() as running:
        yield running


def spex(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    unwanted = ("OPENAI_API_KEY", "SPEX_API_KEY", "OPENAI_BASE_URL")
    ours = {name: value for name, value in os.environ.items() if name not in unwanted}
    return subprocess.run(
        [sys.executable, "-P", "-m", "server", *map(str, arguments)],
        cwd=REPO,
        env={**ours, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
    )


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "endpoint.prompt.md"
    path.write_text(PROMPT)
    return path


def test_an_endpoint_is_explained_and_the_second_time_costs_nothing(prompt, stub):
    asked = ("explain", prompt, "--model", "openai:tiny", "--base-url", stub.url)
    asked += ("--choices", "Paris", "Rome", "--format", "json")
    first = spex(*asked)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert result["tier"] == "T2"
    assert result["target"]["text"] == "Paris"
    effects = [segment["effect"] for segment in result["segments"]]
    # the margin is the log-odds of Paris: log 9 with the first line, -log 9 without
    assert effects == pytest.approx([2 * math.log(9), 0, 0], abs=1e-6)
    assert result["evaluations"] == {"requested": 8, "computed": 8, "cached": 0, "failed": 0}
    before = len(stub.log)
    again = spex(*asked)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["evaluations"]["cached"] == 8
    assert [s["effect"] for s in json.loads(again.stdout)["segments"]] == effects
    assert len(stub.log) - before < before  # the probe and the answer alone


def test_nothing_that_costs_money_runs_without_consent(prompt):
    ran = spex("explain", prompt, "--model", "openai:gpt-4.1", "--base-url", ELSEWHERE)
    assert ran.returncode == 2
    assert "models.invalid: at most" in ran.stderr
    assert "about $" in ran.stderr
    assert "add --yes" in ran.stderr
    assert ran.stdout == ""


def test_an_estimate_asks_nobody(prompt, stub):
    ran = spex("estimate", prompt, "--model", "openai:gpt-4.1", "--base-url", stub.url)
    assert ran.returncode == 0, ran.stderr
    assert "at most" in ran.stdout
    assert "tokens" in ran.stdout
    assert stub.log == []
    found = json.loads(
        spex(
            *("estimate", prompt, "--model", "openai:gpt-4.1", "--base-url", ELSEWHERE),
            *("--format", "json", "--input-price", "1", "--output-price", "4"),
        ).stdout
    )
    assert found["asks"] == "models.invalid"
    tokens = found["input_tokens"] + 4 * found["output_tokens"]
    assert found["cost"] == pytest.approx(tokens / 1e6)


def test_an_estimate_of_the_embedded_model(prompt):
    found = json.loads(spex("estimate", prompt, "--format", "json").stdout)
    assert (found["calls"], found["cost"], found["asks"]) == (8, 0.0, None)
    assert found["seconds"] > 0
    assert 8 * 5 < found["input_tokens"] < 8 * 25


def test_no_key_is_said(prompt):
    ran = spex("explain", prompt, "--model", "openai:x", "--base-url", ELSEWHERE, "--yes")
    assert ran.returncode == 3
    assert "There is no key for https://models.invalid" in ran.stderr
    assert "SPEX_API_KEY" in ran.stderr


def test_a_budget_of_calls_is_kept_and_what_there_is_is_shown(prompt, stub):
    text = "---\nsegments: word\n---\n" + PROMPT.split("---\n")[2]
    prompt.write_text(text)
    ran = spex(
        *("explain", prompt, "--model", "openai:tiny", "--base-url", stub.url, "--budget", "256"),
        *("--choices", "Paris", "Rome", "--max-calls", "60", "--format", "json"),
    )
    assert ran.returncode == 0, ran.stderr
    assert len(stub.log) <= 60
    result = json.loads(ran.stdout)
    assert 0 < result["evaluations"]["computed"] < 60
    assert any("60" in note for note in result["settings"]["notes"])


def test_doctor_says_what_the_endpoint_can_score(stub):
    ran = spex("doctor", "--model", "openai:tiny", "--base-url", stub.url)
    assert ran.returncode == 0, ran.stderr
    assert "openai:tiny: tier T2" in ran.stdout


def test_the_cache(prompt, cache_folder):
    empty = spex("cache", "stats")
    assert empty.returncode == 0, empty.stderr
    assert "evaluations   0\n" in empty.stdout
    assert str(cache_folder) in empty.stdout
    assert spex("explain", prompt).returncode == 0
    assert "evaluations   8\n" in spex("cache", "stats").stdout
    cleared = spex("cache", "clear")
    assert "evaluations   0\n" in cleared.stdout
    assert spex("cache", "empty").returncode == 2
