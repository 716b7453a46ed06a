"""``spex explain`` and its kin as a user runs them: real processes, pipes and terminals."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server import VERSION
from server.terminal import show
from server.text import Text
from tests.server.results import explained

REPO = Path(__file__).parents[2]
EXAMPLE = REPO / "examples" / "two-facts.prompt.md"
SPEX = (sys.executable, "-P", "-m", "server")
QUESTION = "Question: Where does Anna live?\nAnswer:\n"
PROMPT = f"Anna lives in Paris.\nDavid likes tea.\nThe train was late.\n{QUESTION}"
FRONT = "---\nfixed: ['Question:*', 'Answer:*']\n---\n"
SECONDS = 120  # nothing here takes so long; a machine may be busy
SLOW = ("--budget", "5000", "--segments", "word")  # of long_prompt: seconds of work
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environment(**changes: str) -> dict[str, str]:
    """Ours, without what changes colours, widths and encodings."""
    unwanted = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONIOENCODING", "LC_ALL")
    ours = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**ours, "TERM": "xterm-256color", **changes}


def spex(*arguments: str | Path, cwd: Path = REPO, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SPEX, *map(str, arguments)],
        cwd=cwd,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
    )


class Terminal:
    """A run with its output, and all messages, on a pseudo-terminal of ``columns``."""

    def __init__(self, *arguments: str | Path, columns: int = 80, **env: str) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            [*SPEX, *map(str, arguments)],
            cwd=REPO,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            # as in a terminal: a test run in the background has inherited that it is ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(theirs)
        self.raw = b""

    def read(self, until: Callable[[str], object] = lambda shown: False) -> str:
        """All that is shown, to the end or as soon as ``until`` is true of it."""
        deadline = time.monotonic() + SECONDS
        while not until(self.shown):
            assert time.monotonic() < deadline, self.shown
            if not select.select([self.ours], [], [], 1)[0]:
                continue
            try:
                new = os.read(self.ours, 65536)
            except OSError:  # the other side is closed
                new = b""
            if not new:
                break
            self.raw += new
        return self.shown

    @property
    def shown(self) -> str:
        return self.raw.decode(errors="replace").replace("\r\n", "\n")

    def finish(self) -> int:
        self.read()
        return self.process.wait(SECONDS)

    def result(self) -> list[str]:
        """What is left on the screen after the progress bar: lines without colours."""
        *_, after = ANSI.sub("", self.shown).rpartition("\r")
        return [line.rstrip() for line in after.splitlines()]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.ours)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def run(*arguments: str | Path, columns: int = 80, **env: str) -> Terminal:
        opened.append(Terminal(*arguments, columns=columns, **env))
        return opened[-1]

    yield run
    for one in opened:
        one.close()


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "a.md"
    path.write_text(FRONT + PROMPT, encoding="utf-8")
    return path


@pytest.fixture
def long_prompt(tmp_path: Path) -> Path:
    path = tmp_path / "long.md"
    path.write_text("The train was late. " * 60, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    ran = spex("explain", "examples/two-facts.prompt.md", "--format", "json", "--no-store")
    assert (ran.returncode, ran.stderr) == (0, "")
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


# ---- JSON: the contract ----------------------------------------------------------------------

NUMBER, OPTIONAL = (int, float), (int, float, type(None))
CONTRACT: dict[str, Any] = {
    "version": int,
    "file": str,
    "model": str,
    "target": {"text": str, "value": NUMBER},
    "tier": str,
    "method": str,
    "index": str,
    "seed": int,
    "settings": {
        "method": str,
        "order": int,
        "budget": int,
        "segments": str,
        "unit": str,
        "noise": OPTIONAL,
        "notes": [str],
    },
    "segments": [
        {
            "index": int,
            "start": int,
            "end": int,
            "line": int,
            "text": str,
            "effect": NUMBER,
            "stderr": OPTIONAL,
            "removal": OPTIONAL,
        }
    ],
    "interactions": [
        {
            "segments": [int],
            "value": NUMBER,
            "stderr": OPTIONAL,
            "kind": str,
            "verified": (bool, type(None)),
        }
    ],
    "findings": [],
    "faithfulness": {"r2": OPTIONAL, "how": str, "n_test": int},
    "evaluations": {"requested": int, "computed": int, "cached": int, "failed": int},
    "tokens": {"input": int},
    "seconds": NUMBER,
}


def conforms(value: Any, shape: Any, where: str = "$") -> None:
    if isinstance(shape, dict):
        assert value.keys() == shape.keys(), where
        for key in shape:
            conforms(value[key], shape[key], f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        assert shape or not value, where
        for item in value:
            conforms(item, shape[0], f"{where}[]")
    else:
        assert isinstance(value, shape), where
        assert not isinstance(value, bool) or shape == (bool, type(None)), where


def test_json_is_the_contract(example: dict[str, Any]) -> None:
    conforms(example, CONTRACT)
    assert (example["version"], example["model"], example["tier"]) == (1, "demo", "T1")
    assert example["file"] == "examples/two-facts.prompt.md"
    assert example["evaluations"] == {"requested": 64, "computed": 64, "cached": 0, "failed": 0}
    assert [s["index"] for s in example["segments"]] == list(range(6))


def test_json_kinds_follow_from_the_numbers(example: dict[str, Any]) -> None:
    effects = [segment["effect"] for segment in example["segments"]]
    values = [abs(interaction["value"]) for interaction in example["interactions"]]
    assert values == sorted(values, reverse=True)
    for interaction in example["interactions"]:
        assert len(interaction["segments"]) >= 2
        kind = "conflict"
        if interaction["value"] > 0:
            kind = "synergy"
        elif all(effects[member] > 0 for member in interaction["segments"]):
            kind = "redundancy"
        assert interaction["kind"] == kind


def places_are_right(result: dict[str, Any], text: str) -> None:
    assert result["segments"]
    for segment in result["segments"]:
        assert text[segment["start"] : segment["end"]] == segment["text"]
        assert segment["line"] == Text(text).line_of(segment["start"]) + 1


def test_json_places_are_code_points_of_the_file(example: dict[str, Any]) -> None:
    places_are_right(example, EXAMPLE.read_text(encoding="utf-8"))
    assert [s["line"] for s in example["segments"]] == [5, 6, 7, 8, 9, 10]


def test_json_places_with_bom_crlf_and_emoji(tmp_path: Path) -> None:
    text = "\ufeff" + (FRONT + "🎉 é Bob 東京.\n" + PROMPT).replace("\n", "\r\n")
    path = tmp_path / "ünï 🎉.md"
    path.write_bytes(text.encode())
    ran = spex("explain", path.name, "--format", "json", cwd=tmp_path)
    result = json.loads(ran.stdout)
    places_are_right(result, text)
    assert [s["line"] for s in result["segments"]] == [4, 5, 6, 7]
    assert result["segments"][0]["text"] == "🎉 é Bob 東京."
    assert result["file"] == path.name
    assert "東京" in ran.stdout  # readable, not escaped


# ---- flags -----------------------------------------------------------------------------------


def test_flags_are_obeyed_and_the_same_seed_gives_the_same_result(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("Anna lives in Paris. " * 2 + "\nWhere does Anna live?")
    flags = {
        "--model": "demo",
        "--target": "Rome",
        "--segments": "words",
        "--budget": "80",
        "--method": "linear",
        "--index": "SII",
        "--order": "2",
    }
    given = [part for flag in flags.items() for part in flag]

    def result(seed: int) -> dict[str, Any]:
        ran = spex("explain", path, *given, "--seed", str(seed), "--format", "json", "--no-store")
        assert ran.returncode == 0, ran.stderr
        parsed: dict[str, Any] = json.loads(ran.stdout)
        assert parsed.pop("seconds") > 0
        assert 0 <= parsed["settings"].pop("noise") < 1e-5  # rounding: who shares a batch
        return parsed

    first = result(3)
    assert first["target"]["text"] == "Rome"
    assert first["settings"] == {
        "notes": [],
        "method": "linear",
        "order": 2,
        "budget": 80,
        "segments": "word",
        "unit": "nats per target token",
    }
    assert (first["method"], first["index"], first["seed"]) == ("linear", "SII", 3)
    assert [s["text"] for s in first["segments"]] == ["Anna", "lives", "in", "Paris."] * 2 + (
        ["Where", "does", "Anna", "live?"]
    )
    assert first["evaluations"]["requested"] == 80
    assert result(3) == first
    assert result(4)["segments"] != first["segments"]


def test_the_order_bounds_the_interactions(prompt: Path) -> None:
    for order in (1, 2, 3):
        ran = spex("explain", prompt, "--order", str(order), "--format", "json")
        found = json.loads(ran.stdout)["interactions"]
        assert {len(i["segments"]) for i in found} == set(range(2, order + 1))


def test_output_goes_to_a_file_and_nothing_to_the_screen(prompt: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    ran = spex("explain", prompt, "--output", out, FORCE_COLOR="1")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    text = out.read_text(encoding="utf-8")
    assert "Anna lives in Paris." in text
    assert "\x1b" not in text
    out = tmp_path / "out.json"
    spex("explain", prompt, "--output", out, "--format", "json")
    conforms(json.loads(out.read_text(encoding="utf-8")), CONTRACT)


def test_how_the_prompt_was_cut_is_noted(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("Anna lives in Paris.")
    ran = spex("explain", tmp_path / "a.md", "--target", "Paris")
    assert "note: 1 sentence would be few to compare: cut into 4 words" in ran.stdout


# ---- text in a pipe --------------------------------------------------------------------------


def test_in_a_pipe_the_text_is_plain_and_each_row_is_one_line(tmp_path: Path) -> None:
    sentence = f"Anna {'very ' * 50}often lives in Paris."
    (tmp_path / "a.md").write_text(f"{FRONT}{sentence}\n{PROMPT}", encoding="utf-8")
    ran = spex("explain", tmp_path / "a.md")
    assert ran.returncode == 0
    assert ran.stderr == ""  # no progress bar
    assert "\x1b" not in ran.stdout
    assert "\r" not in ran.stdout
    lines = ran.stdout.splitlines()
    assert [line for line in lines if sentence in line]
    assert all(line == line.rstrip() for line in lines)
    assert [line.split() for line in lines if line.startswith("line ")] == [
        ["line", "effect", "removed", "#", "prompt"]
    ]
    assert any(
        re.search(r"fixed +Question: Where does Anna live\? Answer:$", line) for line in lines
    )
    assert any(line.startswith("R² 1.000 (every mask was measured)") for line in lines)
    assert any(line.startswith("16 model calls, ") for line in lines)


def test_colours_in_a_pipe_only_where_they_are_demanded(prompt: Path) -> None:
    ran = spex("explain", prompt, FORCE_COLOR="1")
    assert "\x1b[" in ran.stdout
    assert ran.stderr == ""  # and still no progress bar


def test_a_reader_that_leaves_early_is_no_error(prompt: Path) -> None:
    process = subprocess.Popen(
        [*SPEX, "explain", str(prompt)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, b"")


def test_doctor_whose_reader_leaves_early() -> None:
    command = " ".join(SPEX)
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} doctor | true"],
        env=environment(),
        capture_output=True,
        timeout=SECONDS,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_in_one_line(prompt: Path) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [*SPEX, "explain", str(prompt)],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=SECONDS,
        )
    assert ran.returncode == 2
    assert ran.stderr == "spex: Standard output cannot be written: No space left on device.\n"


@pytest.mark.parametrize("form", ["text", "json"])
def test_output_that_is_not_utf_8_loses_nothing(tmp_path: Path, form: str) -> None:
    (tmp_path / "a.md").write_text(f"{FRONT}東京 🎉.\n{PROMPT}", encoding="utf-8")
    ran = spex("explain", tmp_path / "a.md", "--format", form, LANG="C", PYTHONIOENCODING="ascii")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.isascii()
    if form == "json":
        assert json.loads(ran.stdout)["segments"][0]["text"] == "東京 🎉."
    else:
        assert r"\u6771\u4eac" in ran.stdout


def test_a_name_and_a_target_that_are_no_text(tmp_path: Path) -> None:
    """Linux takes any bytes for a file's name, and a shell any for an argument."""
    path = os.fsencode(tmp_path) + b"/\xff.md"
    with open(path, "w") as file:
        file.write(FRONT + PROMPT)
    for form in ("json", "text"):
        ran = subprocess.run(
            [*SPEX, "explain", path, "--target", b"Par\xffis", "--format", form],
            env=environment(),
            capture_output=True,
            timeout=SECONDS,
        )
        assert (ran.returncode, ran.stderr) == (0, b"")
    assert "Anna lives in Paris." in ran.stdout.decode()


# ---- text on a terminal ----------------------------------------------------------------------


def test_a_terminal_gets_colours_and_a_progress_bar_that_goes_away(prompt: Path, terminal) -> None:
    run = terminal("explain", prompt)
    assert run.finish() == 0
    assert "Explaining a.md" in run.shown
    assert re.search(r"\b8/8 calls", ANSI.sub("", run.shown))
    assert re.search(r"\x1b\[[0-9;]*48;[25];", run.shown)  # a background
    assert run.shown.count("\x1b[?25l") == run.shown.count("\x1b[?25h")  # the cursor is back
    assert run.result()[0].startswith(str(prompt)[:20])


def test_the_bar_is_on_the_terminal_also_while_the_result_goes_elsewhere(
    prompt: Path, tmp_path: Path, terminal
) -> None:
    out = tmp_path / "out.json"
    run = terminal("explain", prompt, "--format", "json", "--output", out)
    assert run.finish() == 0
    assert "Explaining a.md" in run.shown
    assert "Anna lives" not in run.shown
    conforms(json.loads(out.read_text(encoding="utf-8")), CONTRACT)


def test_no_color_is_respected(prompt: Path, terminal) -> None:
    run = terminal("explain", prompt, NO_COLOR="1")
    assert run.finish() == 0
    assert not re.search(r"\x1b\[[0-9;]*(?:[34]8;[25]|\b[349][0-7]\b)[0-9;]*m", run.shown)
    assert any("Anna lives in Paris." in line for line in run.result())


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_s_width_is_kept_to(terminal, columns: int) -> None:
    run = terminal("explain", "examples/two-facts.prompt.md", columns=columns)
    assert run.finish() == 0
    lines = run.result()
    assert max(map(len, lines)) <= columns
    for sentence in ("Bob works with Anna.", "Anna lives in Paris."):
        row = re.compile(rf" *\d+ +[+-]\d\.\d\d ± \d\.\d\d +[+-]\d\.\d\d +\d  {sentence}")
        assert len([line for line in lines if row.fullmatch(line)]) == 1
    assert any(line.startswith("synergy") and "#1 × #3" in line for line in lines)


ATTACKS = (
    "\x1b]0;pwned\x07",  # the window's title
    "\x1b[2J",  # clears the screen
    "\x1b]8;;https://evil.example\x1b\\",  # a link
    "\x9b2J",  # the same in one byte
    "\x07\x08\x00\x7f\x0c\x0b",
    "\u202e\u2066",  # turns the line around
)


def test_a_prompt_cannot_drive_the_terminal(tmp_path: Path, terminal) -> None:
    hostile = "".join(f"Part {i} {attack} end.\n" for i, attack in enumerate(ATTACKS))
    markup = "[bold red]Not red[/] [link=https://evil.example]no link[/link] :smile: [/]."
    path = tmp_path / "[red]a[bold]\x1b[2J.md"
    path.write_text(
        f'---\nfixed: ["\\e[2J\\u202e*", "Question:*", "Answer:*"]\nbudget: "\\e]0;x\\a"\n---\n'
        f"{hostile}{markup}\n{PROMPT}",
        encoding="utf-8",
    )
    run = terminal(
        "explain",
        path,
        "--segments",
        "line",
        "--budget",
        "64",
        "--target",
        "Pa\x1b[2Jris",
        columns=200,
    )
    assert run.finish() == 0
    for attack in ATTACKS:
        assert attack not in run.shown
    # What is left after colours, cursor and erasing of the bar's own line is text alone.
    allowed = re.sub(r"\x1b\[(?:[0-9;]*m|\?25[lh]|2K|1A)|[\r\n]", "", run.shown)
    assert allowed.isprintable()
    assert any(markup in line for line in run.result())
    assert "Explaining [red]a[bold]" in run.shown
    assert run.shown.count("�") > 10


def test_messages_cannot_drive_the_terminal_either(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J.md"
    path.write_text('---\nmodel: "\\e[2Jx"\nfixed: ["\\e[2J"]\n---\nBob is here.\n')
    for arguments in ([path], [path, "--model", "demo"], [tmp_path / "no\x1b[2J"]):
        ran = spex("explain", *arguments)
        assert "\x1b" not in ran.stderr + ran.stdout
    assert ran.returncode == 2


# ---- what goes wrong -------------------------------------------------------------------------


def fails(code: int, *arguments: str | Path, **options: Any) -> str:
    """The one line that is said, without ``spex: ``."""
    ran = spex("explain", *arguments, **options)
    assert (ran.returncode, ran.stdout) == (code, ""), ran.stderr
    line, end = ran.stderr[:-1], ran.stderr[-1:]
    assert end == "\n"
    assert "\n" not in line, ran.stderr
    assert line.startswith("spex: ")
    return line.removeprefix("spex: ")


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.md"
    assert fails(2, path) == f"{path} cannot be read: No such file or directory."


def test_a_folder(tmp_path: Path) -> None:
    assert fails(2, tmp_path) == f"{tmp_path} cannot be read: Is a directory."


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes("Bob.\nGrüße.\n".encode("latin-1"))
    assert fails(2, path) == f"{path}:2: this is not UTF-8: save it as UTF-8."


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"x" * 2_000_001)
    assert "is too large: a prompt file may have 2,000,000 bytes" in fails(2, path)
    assert "is too large" in fails(2, "/dev/zero")  # whose size nobody knows


@pytest.mark.parametrize("text", ["", "\n \n", "---\nmodel: demo\n---\n"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.md").write_text(text)
    assert fails(2, tmp_path / "a.md").startswith("the prompt is empty")


def test_a_prompt_of_fixed_text_alone(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\nfixed: '*'\n---\nBob is here.\n")
    assert "all of the prompt is fixed text" in fails(2, tmp_path / "a.md")


def test_a_prompt_beyond_the_context(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("Anna lives in Paris. " * 2000)
    assert "demo has room for 1,024" in fails(2, tmp_path / "a.md", "--segments", "line")


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        ("gpt", 2, "No kind of model is called 'gpt'; use demo, hf:NAME_OR_PATH, openai:NAME"),
        ("openai:", 2, "openai: names no model; write openai:NAME."),
        ("hf:./empty", 3, "empty"),
    ],
)
def test_a_model_that_cannot_be_had(
    prompt: Path, tmp_path: Path, model: str, code: int, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    assert said in fails(code, prompt, "--model", model, cwd=tmp_path, HF_HUB_OFFLINE="1")


def test_a_method_that_does_not_fit(prompt: Path) -> None:
    said = fails(2, prompt, "--method", "exact", "--budget", "4")
    assert said.startswith("method: exact asks for every subset of 3 segments")


def test_an_output_that_cannot_be_written_is_refused_before_the_run(
    prompt: Path, tmp_path: Path
) -> None:
    assert fails(2, prompt, "--output", tmp_path).endswith("cannot be written: Is a directory.")
    lost = tmp_path / "none" / "out.txt"
    assert f"{lost} cannot be written" in fails(2, prompt, "--output", lost)


def test_the_prompt_is_not_overwritten_by_its_own_result(prompt: Path) -> None:
    before = prompt.read_bytes()
    said = fails(2, prompt, "--output", prompt.parent / "." / prompt.name)
    assert "is the prompt itself: write the result elsewhere" in said
    assert prompt.read_bytes() == before


def test_problems_in_front_matter_are_said_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(f"---\r\nbudget: many\r\nfixed: ['Nope:*']\r\n---\r\n{PROMPT}", newline="")
    ran = spex("explain", path)
    assert ran.returncode == 0
    first, second = ran.stderr.splitlines()
    assert first.startswith(f"{path}:2: error: budget: expected a whole number")
    assert second == f'{path}:3: warning: fixed: "Nope:*" matches no line of the prompt'


def test_problems_in_front_matter_are_said_also_where_the_run_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("---\nbudget: many\n---\n\n")
    ran = spex("explain", path)
    assert ran.returncode == 2
    problem, failure = ran.stderr.splitlines()
    assert problem.startswith(f"{path}:2: error: budget")
    assert failure.startswith("spex: the prompt is empty")


def test_a_model_that_a_file_may_not_choose_is_said_and_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(f"---\nmodel: GPT-4o\n---\n{PROMPT}")
    ran = spex("explain", path, "--format", "json")
    assert ran.returncode == 0
    (said,) = ran.stderr.splitlines()
    assert said.startswith(f"{path}:2: warning: A prompt file may not choose the model 'GPT-4o'")
    assert json.loads(ran.stdout)["model"] == "demo"
    ran = spex("explain", path, "--model", "demo")  # then what the file wishes does not matter
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--budget", "1"],
            "argument --budget: budget: expected a whole number from 2 to 1,000,000, got 1",
        ),
        (["--budget", "many"], "argument --budget: expected a whole number, got 'many'"),
        (
            ["--order", "0"],
            "argument --order: order: expected a whole number from 1 to 1,000, got 0",
        ),
        (["--seed", "-1"], "argument --seed"),
        (["--segments", "page"], "expected auto, sentence, line or word, got 'page'"),
        (["--method", "best"], "argument --method: method: expected one of auto, exact, linear"),
        (["--stdio"], "unrecognized arguments: --stdio"),
        (["--index", "Owen"], "argument --index: invalid choice: 'Owen'"),
        (["--target", " "], "argument --target: target: expected text, got ' '"),
        (["--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["--what"], "unrecognized arguments: --what"),
    ],
)
def test_bad_flags(prompt: Path, flags: list[str], said: str) -> None:
    ran = spex("explain", prompt, *flags)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


# ---- interrupted -----------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for line in listed for child in line.split()]


def is_gone(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def under_way(run: Terminal) -> list[int]:
    """The run's own processes, once the model has been asked."""
    run.read(until=lambda shown: re.search(r"[1-9]\d*/5000", ANSI.sub("", shown)))
    found = children(run.process.pid)
    assert found
    return found


@pytest.mark.parametrize("whom", ["the group, as Ctrl-C does", "the process alone"])
def test_an_interrupt_ends_it_at_once_and_leaves_nothing_behind(
    long_prompt: Path, terminal, whom: str
) -> None:
    run = terminal("explain", long_prompt, *SLOW)
    workers = under_way(run)
    started = time.monotonic()
    kill = os.killpg if whom.startswith("the group") else os.kill
    kill(run.process.pid, signal.SIGINT)
    assert run.finish() == 130
    assert time.monotonic() - started < 5
    assert "Traceback" not in run.shown
    assert run.result()[-1] == "spex: interrupted"
    assert run.shown.count("\x1b[?25l") == run.shown.count("\x1b[?25h")
    assert all(is_gone(worker) for worker in workers)


def test_a_killed_run_leaves_no_worker_behind(long_prompt: Path, terminal) -> None:
    run = terminal("explain", long_prompt, *SLOW)
    workers = under_way(run)
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 10
    while not all(is_gone(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_worker_is_said_in_one_line(long_prompt: Path, terminal) -> None:
    run = terminal("explain", long_prompt, *SLOW)
    (worker,) = under_way(run)
    assert "Explaining long.md: asking the model" in ANSI.sub("", run.shown)
    os.kill(worker, signal.SIGKILL)
    assert run.finish() == 3
    assert "Traceback" not in run.shown
    assert any("ended unexpectedly (signal 9)" in line for line in run.result())


# ---- the other commands ----------------------------------------------------------------------


def test_version() -> None:
    ran = spex("--version")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"spex {VERSION}\n", "")


def test_doctor() -> None:
    ran = spex("doctor")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert sys.executable in ran.stdout
    assert re.search(r"^numpy +\d+\.", ran.stdout, re.MULTILINE)
    assert re.search(r"^models +demo: ready$", ran.stdout, re.MULTILINE)


@pytest.mark.parametrize("why", ["no weights", "no packages"])
def test_doctor_where_the_embedded_model_does_not_work(why: str, tmp_path: Path) -> None:
    """A copy of the code, without what the model needs."""
    for package in ("server", "spex_engine"):
        shutil.copytree(REPO / package, tmp_path / package)
    if why == "no weights":
        (tmp_path / "spex_engine/backends/demo/weights/model.safetensors").unlink()
    else:
        (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')")
    ran = spex("doctor", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert ran.returncode == 3
    assert "demo: ready" not in ran.stdout
    assert "models       demo: " in ran.stdout
    assert "spex: The embedded model does not work: " in ran.stderr


@pytest.mark.parametrize("way", [("--stdio",), ("--tcp", "127.0.0.1:0")])
def test_serving_with_a_command_is_a_usage_error(way: tuple[str, ...]) -> None:
    ran = spex(*way, "doctor")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "--stdio and --tcp serve an editor: leave them out of doctor" in ran.stderr


def test_no_command_is_a_usage_error() -> None:
    ran = spex()
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "say --stdio (or --tcp HOST:PORT) to serve an editor, or a command" in ran.stderr


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("0.0.0.0:1", "'0.0.0.0' is no loopback address"),
        ("192.168.0.1:80", "'192.168.0.1' is no loopback address"),
        ("[::]:80", "'::' is no loopback address"),
        ("127.0.0.1", "expected HOST:PORT, got '127.0.0.1'"),
        (":80", "expected HOST:PORT, got ':80'"),
        ("localhost:many", "expected HOST:PORT, got 'localhost:many'"),
        ("localhost:70000", "expected HOST:PORT, got 'localhost:70000'"),
    ],
)
def test_only_loopback_is_served(address: str, said: str) -> None:
    ran = spex("--tcp", address)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert said in ran.stderr


def test_an_address_in_use_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = spex("--tcp", f"127.0.0.1:{taken.getsockname()[1]}")
    assert ran.returncode == 2
    assert "spex: cannot listen there" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_log_that_cannot_be_written(prompt: Path, tmp_path: Path) -> None:
    ran = spex("--log-file", tmp_path / "none" / "log", "explain", prompt)
    assert ran.returncode == 2
    assert ran.stderr.startswith("spex: cannot write the log: ")


def test_a_poor_fit_is_said_before_the_numbers() -> None:
    out = io.StringIO()
    show(explained("A a. B b.", [1.0], r2=0.2), "a.md", out)
    assert out.getvalue().splitlines()[1] == (
        "The fit explains little of the answer (R² 0.20): do not rely on it."
    )
