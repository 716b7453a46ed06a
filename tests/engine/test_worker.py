"""The worker's side of the protocol: in memory, and as a process of its own."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spex_engine import explain_prompt, wire
from spex_engine.worker import Worker

REPO = Path(__file__).parents[2]
SECONDS = 120.0
PROMPT = wire.Prompt((wire.Message("user", (wire.Piece("Hello.", 0),)),), 1)


def line(**message: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", **message}) + "\n"


HELLO = line(id=1, method=wire.HANDSHAKE, params={"protocol": wire.PROTOCOL_VERSION})


def explain(id_: int) -> str:
    params = wire.to_json(wire.ExplainRequest(PROMPT))
    return line(id=id_, method=wire.EXPLAIN, params=params)


def answers(source: Any) -> list[dict[str, Any]]:
    """All that a worker in memory says to the lines of ``source``."""
    sink = io.StringIO()
    worker = Worker(source, sink)
    worker.serve()
    worker.jobs.shutdown()
    return [json.loads(said) for said in sink.getvalue().splitlines()]


@pytest.mark.parametrize(
    "malformed",
    [
        "\n",
        "no JSON\n",
        "[" * 100_000 + "\n",
        "5\n",
        "{}\n",
        line(method=5),
        line(id="one", method=wire.HANDSHAKE),
        line(id=1, method=wire.HANDSHAKE, params=[1]),
    ],
    ids=lambda text: text[:30].strip() or "empty",
)
def test_a_malformed_line_is_reported_and_the_next_one_is_read(malformed, capsys):
    refused, hello = answers(io.StringIO(malformed + HELLO))
    assert refused["id"] is None
    assert refused["error"]["code"] == wire.MALFORMED
    assert "no message" in capsys.readouterr().err
    assert hello["result"]["protocol"] == wire.PROTOCOL_VERSION


def test_unknown_methods_and_notifications(capsys):
    (refused,) = answers(io.StringIO(line(method="ping") + line(id=7, method="ping")))
    assert (refused["id"], refused["error"]["code"]) == (7, wire.BAD_INPUT)
    assert "unknown method 'ping'" in refused["error"]["message"]
    assert "unknown notification: 'ping'" in capsys.readouterr().err


def test_cancelling_what_is_not_there_is_no_error():
    lines = line(method=wire.CANCEL, params={"id": 5}) + line(method=wire.CANCEL) + HELLO
    (hello,) = answers(io.StringIO(lines))
    assert hello["id"] == 1


def test_a_request_that_does_not_fit_is_refused():
    (refused,) = answers(io.StringIO(line(id=3, method=wire.EXPLAIN, params={"prompt": 5})))
    assert (refused["id"], refused["error"]["code"]) == (3, wire.BAD_INPUT)
    assert "ExplainRequest.prompt: expected an object" in refused["error"]["message"]


def test_a_result_that_json_cannot_hold_is_answered_all_the_same(monkeypatch):
    monkeypatch.setattr(explain_prompt, "explain_prompt", lambda *_: wire.Target("x", math.nan))
    (failed,) = answers(io.StringIO(explain(2)))
    assert (failed["id"], failed["error"]["code"]) == (2, wire.INTERNAL)


def test_a_missing_package_is_named_with_what_to_do(monkeypatch):
    def fail(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'safetensors'\nand much more")

    monkeypatch.setattr(explain_prompt, "explain_prompt", fail)
    (failed,) = answers(io.StringIO(explain(2)))
    assert failed["error"]["code"] == wire.MODEL_ERROR
    assert failed["error"]["message"].startswith(
        f"{sys.executable} cannot run the engine (No module named 'safetensors'): install"
    )


def test_a_cancel_reaches_the_run_and_those_that_wait(monkeypatch):
    begun, cancelled = threading.Event(), threading.Event()

    def run(request: Any, on_progress: Any, should_stop: Any, *_: Any) -> Any:
        begun.set()
        assert cancelled.wait(SECONDS)
        assert should_stop()
        raise wire.StoppedError

    monkeypatch.setattr(explain_prompt, "explain_prompt", run)

    def source() -> Iterator[str]:
        yield explain(1)
        assert begun.wait(SECONDS)
        yield explain(2)
        yield line(method=wire.CANCEL, params={"id": 2})
        yield HELLO.replace('"id": 1', '"id": 3')
        yield line(method=wire.CANCEL, params={"id": 1})
        cancelled.set()

    said = answers(source())
    # the one that waits is answered at once, not when the run before it ends
    assert [answer["id"] for answer in said] == [2, 3, 1]
    assert [said[i]["error"]["code"] for i in (0, 2)] == [wire.CANCELLED, wire.CANCELLED]


# ---- as a process -----------------------------------------------------------------------------

NOISY = """
import os, sys
from spex_engine import worker
quiet = worker.handshake
def noisy(params):
    print("from Python")
    os.write(1, b"from C\\n")
    os.system("echo from a child")
    assert sys.stdin.read() == ""  # nor can anything eat the messages
    return quiet(params)
worker.handshake = noisy
worker.main()
"""


def run_worker(code: str, lines: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        input=lines,
        capture_output=True,
        timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )


def test_standard_output_is_the_protocols_alone():
    done = run_worker(NOISY, HELLO.encode())
    (hello,) = [json.loads(said) for said in done.stdout.splitlines()]
    assert hello["id"] == 1
    assert "result" in hello
    for printed in (b"from Python", b"from C", b"from a child"):
        assert printed in done.stderr
    assert done.returncode == 0


def test_the_process_ends_with_its_input_and_on_shutdown():
    code = "from spex_engine.worker import main; main()"
    assert run_worker(code, b"").returncode == 0
    done = run_worker(code, line(id=1, method=wire.SHUTDOWN).encode() + HELLO.encode())
    assert [json.loads(said) for said in done.stdout.splitlines()] == [
        {"jsonrpc": "2.0", "id": 1, "result": None}
    ]
    assert done.returncode == 0


def test_bytes_that_are_no_text_do_not_end_it():
    code = "from spex_engine.worker import main; main()"
    done = run_worker(code, b"\xff\xfe\n" + HELLO.encode())
    assert [json.loads(said)["id"] for said in done.stdout.splitlines()] == [None, 1]


def test_a_defect_of_the_loop_leaves_its_traceback():
    code = "from spex_engine import worker\nworker.Worker.serve = lambda self: 1 / 0\nworker.main()"
    done = run_worker(code, b"")
    assert b"ZeroDivisionError" in done.stderr
    assert done.returncode == 1
