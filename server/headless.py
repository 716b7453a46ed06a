"""Explaining a file without an editor: what ``spex explain`` and ``spex doctor`` do.

The same planning and the same worker as the language server's. Its own part is reading the file,
choosing the output, and turning failures into exit codes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from server import terminal
from server.explained import Explained
from server.planning import Plan, make_plan
from server.result_json import result_json
from server.settings import Settings
from server.worker_client import WorkerClient, WorkerError
from spex_engine import wire

DONE, USAGE, MODEL, INTERRUPTED = 0, 2, 3, 130
MAX_BYTES = 2_000_000


def explain_file(options: argparse.Namespace) -> int:
    """The exit code of ``spex explain``."""
    try:
        plan = _plan(options)
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
    """What is installed, and whether the worker starts and answers."""

    async def ask() -> wire.Handshake:
        worker = _worker()
        try:
            return await worker.hello()
        finally:
            await worker.close()

    try:
        hello = asyncio.run(ask())
    except WorkerError as error:
        return _fail(MODEL, str(error))
    print(f"interpreter  {sys.executable} (Python {hello.python})")
    print(f"engine       {hello.engine}, worker protocol {hello.protocol}")
    for name, version in hello.packages.items():
        print(f"{name:<12} {version or 'not installed'}")
    print("models       demo: ready")
    local = all(hello.packages[name] for name in ("torch", "transformers"))
    print(f"             hf: {'ready' if local else 'pip install spex-lsp[local]'}")
    return DONE


def _plan(options: argparse.Namespace) -> Plan:
    path = Path(options.file)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise wire.InputError(
                f"{path} has {size:,} bytes; a prompt file may have {MAX_BYTES:,}."
            )
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
    except OSError as error:
        raise wire.InputError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise wire.InputError(f"{path} is not UTF-8 text: save it as UTF-8.") from None
    names = ("model", "target", "segments", "budget", "method", "index", "order", "seed")
    said = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if str(said.get("model", "")).startswith("hf:"):
        folder = Path(said["model"].removeprefix("hf:"))
        if folder.is_dir():  # the worker runs in another folder
            said["model"] = f"hf:{folder.resolve()}"
    plan = make_plan(text, path.resolve(), Settings(), said)
    for problem in plan.document.problems:
        line = text.count("\n", 0, problem.start) + 1
        print(f"{path}:{line}: {problem.severity}: {problem.message}", file=sys.stderr)
    return plan


def _worker() -> WorkerClient:
    return WorkerClient(threads=os.cpu_count() or 1, background=False)


async def _explain(plan: Plan, name: str) -> Explained:
    worker = _worker()
    try:
        with terminal.progress_bar(f"Explaining {Path(name).name}") as on_progress:
            result = await worker.explain(plan.request, on_progress)
    finally:
        await worker.close()
    return Explained(plan, result)


def _write(explained: Explained, options: argparse.Namespace) -> None:
    with contextlib.ExitStack() as stack:
        out: Any = sys.stdout
        if options.output is not None:
            try:
                out = stack.enter_context(open(options.output, "w", encoding="utf-8"))
            except OSError as error:
                raise wire.InputError(
                    f"{options.output} cannot be written: {error.strerror}."
                ) from None
        if options.format == "json":
            json.dump(result_json(explained, options.file), out, indent=2, ensure_ascii=False)
            out.write("\n")
        else:
            terminal.show(explained, options.file, out)


def _fail(code: int, message: str) -> int:
    print(f"spex: {message}", file=sys.stderr)
    return code
