"""Explaining a file without an editor: what ``spex explain`` and the other commands do.

The same planning and the same worker as the language server's. Its own part is reading the file,
choosing the output, and turning failures into exit codes.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from server import terminal
from server.console import DONE, INTERRUPTED, ended, fail, say, standard_output
from server.explained import Explained, printable
from server.planning import Plan, make_plan, problems_of
from server.prompts import parse
from server.result_json import result_json
from server.settings import ACCESS, REQUEST_KEYS, Settings, check
from server.spending import in_words, may_cost, needs_consent
from server.text import Text
from server.worker_client import WorkerClient
from spex_engine import wire

MAX_BYTES = 2_000_000


def explain_file(options: argparse.Namespace) -> int:
    """The exit code of ``spex explain``."""
    return ended(lambda: _explain_file(options))


def estimate_file(options: argparse.Namespace) -> int:
    """The exit code of ``spex estimate``."""
    return ended(lambda: _estimate_file(options))


def _explain_file(options: argparse.Namespace) -> int:
    plan = _plan(options)
    if options.output is not None:
        _check_writable(Path(options.output), Path(options.file))
    if may_cost(plan.request) and not options.yes:
        estimate = _estimate(plan)
        if needs_consent(estimate) and not _consent(estimate):
            return fail(INTERRUPTED, "nothing was asked of the model")
    _write(asyncio.run(_explain(plan, options.file)), options)
    return DONE


def _estimate_file(options: argparse.Namespace) -> int:
    estimate = _estimate(_plan(options))
    with standard_output() as out:
        if options.format == "json":
            print(json.dumps(wire.to_json(estimate), indent=2), file=out)
            return DONE
        print(printable(in_words(estimate)), file=out)
        for note in estimate.notes:
            print(f"note: {printable(note)}", file=out)
    return DONE


async def ask_worker(model: str, method: str, params: Any, kind: type[wire.T]) -> wire.T:
    """One question to a worker of its own."""
    worker = worker_for(model)
    try:
        return await worker.ask(method, params, kind)
    finally:
        await worker.close()


def said_by(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that flags gave, checked."""
    given = {key: getattr(options, key, None) for key in (*REQUEST_KEYS, *ACCESS)}
    said = {key: check(key, value) for key, value in given.items() if value is not None}
    for scheme in ("hf:", "encoder:", "ray+hf:"):
        name = str(said.get("model", "")).removeprefix(scheme)
        if name != said.get("model", "") and Path(name).is_dir():  # the worker runs elsewhere
            said["model"] = f"{scheme}{Path(name).resolve()}"
    return said


def _plan(options: argparse.Namespace) -> Plan:
    path = Path(options.file)
    text = _read(path)
    has_model = options.model is not None  # then the file's own wish does not matter
    document = parse(text, path.name)
    problems = document.problems if has_model else problems_of(document, path.resolve())
    for problem in problems:  # first of all: they may be why it fails
        line = Text(text).line_of(problem.start) + 1
        say(f"{path}:{line}: {problem.severity}: {problem.message}")
    return make_plan(text, path.resolve(), Settings(), said_by(options))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # a pipe or device does not tell its size
    except OSError as error:
        raise wire.InputError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_BYTES:
        raise wire.InputError(f"{path} is too large: a prompt file may have {MAX_BYTES:,} bytes.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise wire.InputError(f"{path}:{line}: this is not UTF-8: save it as UTF-8.") from None


def _estimate(plan: Plan) -> wire.Estimate:
    request = wire.to_json(plan.request)
    return asyncio.run(ask_worker(plan.request.model, wire.ESTIMATE, request, wire.Estimate))


def _check_writable(path: Path, prompt: Path) -> None:
    """Before anything is spent on a result that could not be kept."""
    if path.exists() and path.samefile(prompt):
        raise wire.InputError(f"{path} is the prompt itself: write the result elsewhere.")
    if path.is_dir():
        raise wire.InputError(f"{path} cannot be written: Is a directory.")
    if not path.parent.is_dir():
        raise wire.InputError(f"{path} cannot be written: {path.parent} is no folder.")


def worker_for(model: str) -> WorkerClient:
    # The embedded model's matrices are too small to share: threads would wait for each other.
    threads = 1 if model == "demo" else os.cpu_count() or 1
    return WorkerClient(threads=threads, background=False)


async def _explain(plan: Plan, name: str) -> Explained:
    worker = worker_for(plan.request.model)
    try:
        with terminal.progress_bar(f"Explaining {Path(name).name}") as on_progress:
            result = await worker.explain(plan.request, on_progress)
    finally:
        await worker.close()
    return Explained(plan, result)


def _consent(estimate: wire.Estimate) -> bool:
    """Whether the person at the terminal agrees to what a run will take."""
    said = in_words(estimate)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise wire.InputError(f"{said} Nobody can be asked here: add --yes to agree to that.")
    say(said)
    for note in estimate.notes:
        say(f"note: {note}")
    print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _write(explained: Explained, options: argparse.Namespace) -> None:
    if options.output is None:
        with standard_output() as out:
            _render(explained, options, out)
        return
    # in memory first, so that an earlier result is not lost to one that cannot be shown
    content = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    _render(explained, options, content)
    content.flush()
    try:
        Path(options.output).write_bytes(content.buffer.getvalue())
    except OSError as error:
        raise wire.InputError(f"{options.output} cannot be written: {error.strerror}.") from None


def _render(explained: Explained, options: argparse.Namespace, out: TextIO) -> None:
    if options.format == "text":
        terminal.show(explained, options.file, out)
        return
    result = result_json(explained, options.file)
    text = json.dumps(result, indent=2, ensure_ascii=False)
    try:
        text.encode(out.encoding)
    except UnicodeEncodeError:  # JSON has its own way to write what the output cannot
        text = json.dumps(result, indent=2)
    out.write(text + "\n")
