"""Explaining a file without an editor: what ``spex explain`` and ``spex doctor`` do.

The same planning and the same worker as the language server's. Its own part is reading the file,
choosing the output, and turning failures into exit codes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from server import terminal
from server.explained import Explained, printable
from server.planning import Plan, make_plan, problems_of
from server.prompts import parse
from server.result_json import result_json
from server.settings import REQUEST_KEYS, Settings
from server.text import Text
from server.worker_client import WorkerClient, WorkerError
from spex_engine import wire

DONE, USAGE, MODEL, INTERRUPTED = 0, 2, 3, 130
MAX_BYTES = 2_000_000
READY_WITH = "pip install 'spex-lsp[local]'"


def explain_file(options: argparse.Namespace) -> int:
    """The exit code of ``spex explain``."""
    try:
        plan = _plan(options)
        if options.output is not None:
            _check_writable(Path(options.output))
        explained = asyncio.run(_explain(plan, options.file))
        _write(explained, options)
    except wire.InputError as error:
        return _fail(USAGE, str(error))
    except WorkerError as error:
        return _fail(USAGE if error.code == wire.BAD_INPUT else MODEL, str(error))
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")
    return DONE


def doctor() -> int:
    """What is installed, and whether the worker starts and the embedded model answers."""
    try:
        hello, demo = asyncio.run(_examine())
        local = all(hello.packages[name] for name in ("torch", "transformers"))
        with _standard_output() as out:
            print(f"interpreter  {sys.executable} (Python {hello.python})", file=out)
            print(f"engine       {hello.engine}, worker protocol {hello.protocol}", file=out)
            for name, version in hello.packages.items():
                print(f"{name:<12} {version or 'not installed'}", file=out)
            print(f"models       demo: {demo or 'ready'}", file=out)
            print(f"             hf: {'ready' if local else READY_WITH}", file=out)
    except wire.InputError as error:
        return _fail(USAGE, str(error))
    except WorkerError as error:
        return _fail(MODEL, str(error))
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")
    return DONE if demo is None else _fail(MODEL, f"The embedded model does not work: {demo}")


async def _examine() -> tuple[wire.Handshake, str | None]:
    """What the worker is, and why the embedded model fails; None: it has explained a prompt."""
    worker = _worker("demo")
    settings = Settings(target="Paris", segments="line", budget=4)
    plan = make_plan("Anna lives in Paris.\nWhere does Anna live?", None, settings)
    try:
        hello = await worker.hello()
        try:
            await worker.explain(plan.request, lambda _: None)
        except WorkerError as error:
            return hello, str(error)
        return hello, None
    finally:
        await worker.close()


def _plan(options: argparse.Namespace) -> Plan:
    path = Path(options.file)
    text = _read(path)
    has_model = options.model is not None  # then the file's own wish does not matter
    document = parse(text, path.name)
    problems = document.problems if has_model else problems_of(document, path.resolve())
    for problem in problems:  # first of all: they may be why it fails
        line = Text(text).line_of(problem.start) + 1
        _say(f"{path}:{line}: {problem.severity}: {problem.message}")
    said = {key: getattr(options, key) for key in REQUEST_KEYS if getattr(options, key) is not None}
    if str(said.get("model", "")).startswith("hf:"):
        folder = Path(said["model"].removeprefix("hf:"))
        if folder.is_dir():  # the worker runs in another folder
            said["model"] = f"hf:{folder.resolve()}"
    return make_plan(text, path.resolve(), Settings(), said)


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


def _check_writable(path: Path) -> None:
    """Before anything is spent on a result that could not be kept."""
    if path.is_dir():
        raise wire.InputError(f"{path} cannot be written: Is a directory.")
    if not path.parent.is_dir():
        raise wire.InputError(f"{path} cannot be written: {path.parent} is no folder.")


def _worker(model: str) -> WorkerClient:
    # The embedded model's matrices are too small to share: threads would wait for each other.
    threads = 1 if model == "demo" else os.cpu_count() or 1
    return WorkerClient(threads=threads, background=False)


async def _explain(plan: Plan, name: str) -> Explained:
    worker = _worker(plan.request.model)
    try:
        with terminal.progress_bar(f"Explaining {Path(name).name}") as on_progress:
            result = await worker.explain(plan.request, on_progress)
    finally:
        await worker.close()
    return Explained(plan, result)


def _write(explained: Explained, options: argparse.Namespace) -> None:
    if options.output is None:
        with _standard_output() as out:
            _render(explained, options, out)
        return
    try:
        with open(options.output, "w", encoding="utf-8", errors="backslashreplace") as out:
            _render(explained, options, out)
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


@contextlib.contextmanager
def _standard_output() -> Iterator[TextIO]:
    """Standard output, whatever its encoding, also where the reader leaves early (``| head``)."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")
    try:
        yield out
        out.flush()
    except OSError as error:
        # what is still in the buffer must not fail a second time when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        if not isinstance(error, BrokenPipeError):
            raise wire.InputError(f"Standard output cannot be written: {error.strerror}.") from None


def _fail(code: int, message: str) -> int:
    _say(f"spex: {message}")
    return code


def _say(message: str) -> None:
    """On standard error; the message may quote a file, which must not drive the terminal."""
    print(printable(message), file=sys.stderr)
