"""Starts, asks, watches and ends the worker process (spex_engine/worker.py).

The worker runs in the interpreter that the user chose, with the engine loaded by path from the
server's own copy, in a neutral folder, and never with the workspace on ``sys.path``. When it dies,
whoever waits is told so, and the next request starts another. It must not know LSP or prompts.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spex_engine import wire

logger = logging.getLogger(__name__)

ENGINE = Path(wire.__file__).parent
# Loads the engine by path, under its own name, and leaves sys.path alone.
BOOTSTRAP = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "spex_engine", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]]
)
engine = importlib.util.module_from_spec(spec)
sys.modules["spex_engine"] = engine
spec.loader.exec_module(engine)
from spex_engine.worker import main
main()
"""
LINE_LIMIT = 64 * 2**20
START_SECONDS = 60.0
CANCEL_SECONDS = 0.5  # after that the worker is killed
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerError(Exception):
    """The request failed. ``code`` is one of wire's; the message is for the user."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class WorkerClient:
    """One worker process at a time, started when it is first needed.

    threads: how many the worker may use; background: whether it should give way to an editor.
    """

    def __init__(
        self, interpreter: str = sys.executable, threads: int = 1, background: bool = True
    ) -> None:
        self.interpreter = interpreter
        self.threads = threads
        self.background = background
        self.state = "stopped"  # stopped | starting | ready | busy
        self.handshake: wire.Handshake | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._progress: dict[int, Callable[[wire.Progress], None]] = {}
        self._last_words: collections.deque[str] = collections.deque(maxlen=20)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def explain(
        self, request: wire.ExplainRequest, on_progress: Callable[[wire.Progress], None]
    ) -> wire.ExplainResult:
        """Raises WorkerError; cancelling the awaiting task stops the run within a second."""
        await self._start()
        id_ = next(self._ids)
        self._progress[id_] = on_progress
        self.state = "busy"
        try:
            answer = await self._ask(id_, wire.EXPLAIN, wire.to_json(request))
        except asyncio.CancelledError:
            await self._cancel(id_)
            raise
        finally:
            self._progress.pop(id_, None)
            if self.state == "busy":
                self.state = "ready"
        return wire.from_json(wire.ExplainResult, answer)

    async def hello(self) -> wire.Handshake:
        """Starts the worker where none runs, and says what it is."""
        await self._start()
        assert self.handshake is not None
        return self.handshake

    async def close(self) -> None:
        """Ends the worker, whatever it does."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._reader is not None:
            await self._reader

    async def _start(self) -> None:
        async with self._starting:
            if self._process is not None:
                return
            self.state = "starting"
            self._last_words.clear()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    self.interpreter,
                    "-P",
                    "-c",
                    BOOTSTRAP,
                    str(ENGINE),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    cwd=tempfile.gettempdir() if os.name == "nt" else "/",
                    env=self._environment(),
                    limit=LINE_LIMIT,
                )
            except OSError as error:
                self.state = "stopped"
                raise WorkerError(
                    wire.WORKER_DIED,
                    f"The Python interpreter {self.interpreter!r} cannot be started "
                    f"({error.strerror}): choose another one (setting spex.interpreter).",
                ) from None
            self._reader = asyncio.create_task(self._read(self._process))
            asked = self._ask(next(self._ids), wire.HANDSHAKE, {"protocol": wire.PROTOCOL_VERSION})
            try:
                answer = await asyncio.wait_for(asked, START_SECONDS)
            except TimeoutError:
                await self.close()
                raise WorkerError(
                    wire.WORKER_DIED, f"The worker did not answer within {START_SECONDS:.0f} s."
                ) from None
            except asyncio.CancelledError:
                await self.close()
                raise
            self.handshake = wire.from_json(wire.Handshake, answer)
            self.state = "ready"

    def _environment(self) -> dict[str, str]:
        threads = dict.fromkeys(THREAD_VARIABLES, str(self.threads))
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        nice = {"SPEX_BACKGROUND": "1"} if self.background else {}
        return {**os.environ, **threads, **quiet, **nice, "PYTHONSAFEPATH": "1"}

    async def _ask(self, id_: int, method: str, params: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[id_] = future
        try:
            self._send({"id": id_, "method": method, "params": params})
            return await asyncio.shield(future)
        finally:
            if future.done():
                self._waiting.pop(id_, None)

    def _send(self, message: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            raise WorkerError(wire.WORKER_DIED, self._epitaph(None))
        line = json.dumps({"jsonrpc": "2.0", **message}, allow_nan=False)
        self._process.stdin.write(line.encode() + b"\n")

    async def _cancel(self, id_: int) -> None:
        """Ask the worker to stop the run; kill it if it does not answer at once."""
        future = self._waiting.get(id_)
        if future is None or self._process is None:
            return
        self._send({"method": wire.CANCEL, "params": {"id": id_}})
        _, pending = await asyncio.wait([future], timeout=CANCEL_SECONDS)
        self._waiting.pop(id_, None)
        if pending:
            logger.info("the worker did not stop in time and is killed")
            future.cancel()
            await self.close()
        else:
            future.exception()  # has been dealt with: it was cancelled

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Hands answers and progress to whoever waits, until the worker is gone."""
        assert process.stdout is not None
        assert process.stderr is not None
        log = asyncio.create_task(self._keep_log(process.stderr))
        try:
            async for line in process.stdout:
                self._receive(json.loads(line))
        except Exception:
            logger.exception("the worker broke the protocol and is killed")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        code = await process.wait()
        await log
        self._process = None
        self.state = "stopped"
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(WorkerError(wire.WORKER_DIED, self._epitaph(code)))
                future.exception()  # nobody may be waiting any more
        self._waiting.clear()

    def _receive(self, message: dict[str, Any]) -> None:
        if message.get("method") == wire.PROGRESS:
            progress = wire.from_json(wire.Progress, message["params"])
            if progress.id in self._progress:
                self._progress[progress.id](progress)
            return
        future = self._waiting.get(message["id"])
        if future is None or future.done():
            return
        if "error" in message:
            future.set_exception(WorkerError(message["error"]["code"], message["error"]["message"]))
        else:
            future.set_result(message["result"])

    async def _keep_log(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            text = line.decode(errors="replace").rstrip()
            self._last_words.append(text)
            logger.info("worker: %s", text)

    def _epitaph(self, code: int | None) -> str:
        missing = next((w for w in self._last_words if w.startswith("ModuleNotFoundError")), None)
        if missing is not None:
            return (
                f"{self.interpreter} cannot run the engine ({missing}): install spex-lsp there, "
                "or choose another interpreter (setting spex.interpreter)."
            )
        how = f"exit code {code}" if code is None or code >= 0 else f"signal {-code}"
        last = f" Its last words: {self._last_words[-1]}" if self._last_words else ""
        return (
            f"The model process ended unexpectedly ({how}).{last} "
            "Run it again: a new process starts by itself."
        )
