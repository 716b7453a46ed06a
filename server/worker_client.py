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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

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
LOG_SECONDS = 1.0  # that a dead worker's log is waited for: a child of its may hold it open
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerError(Exception):
    """The request failed. ``code`` is one of wire's; the message is for the user."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _KilledError(Exception):
    """The worker was killed to cancel another request; this one may be asked again."""


class WorkerClient:
    """One worker process at a time, started when it is first needed.

    threads: how many the worker may use; background: whether it should give way to an editor.
    ``interpreter`` may be changed: the next request that finds no other running is asked there.
    """

    def __init__(
        self, interpreter: str = sys.executable, threads: int = 1, background: bool = True
    ) -> None:
        self.interpreter = interpreter
        self.threads = threads
        self.background = background
        self.handshake: wire.Handshake | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._runs_in = interpreter  # the interpreter of the process
        self._killed = False  # the process, by a cancel
        self._starting = asyncio.Lock()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._progress: dict[int, Callable[[wire.Progress], None]] = {}
        self._secrets: dict[str, str | None] = {}  # by origin
        self._last_words: collections.deque[str] = collections.deque(maxlen=20)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def state(self) -> Literal["stopped", "starting", "ready", "busy"]:
        if self._starting.locked():
            return "starting"
        if self._process is None:
            return "stopped"
        return "busy" if self._progress else "ready"

    async def explain(
        self, request: wire.ExplainRequest, on_progress: Callable[[wire.Progress], None]
    ) -> wire.ExplainResult:
        """Raises WorkerError; cancelling the awaiting task stops the run within a second."""
        is_heard = is_retry = False

        def heard(progress: wire.Progress) -> None:
            nonlocal is_heard
            is_heard = True
            on_progress(progress)

        while True:
            await self._start()
            try:
                answer = await self._explain(request, heard)
            except _KilledError:
                continue
            except WorkerError as error:
                # a process that dies before it took the request up did not die of it
                if error.code != wire.WORKER_DIED or is_heard or is_retry:
                    raise
                is_retry = True
                continue
            return _read_as(wire.ExplainResult, answer)

    async def ask(self, method: str, params: Any, kind: type[wire.T]) -> wire.T:
        """The answer to one of wire's messages that need no progress; raises WorkerError."""
        answer = await self._plain(method, params)
        return _read_as(kind, answer)

    async def recall(self, request: wire.ExplainRequest) -> wire.ExplainResult | None:
        """What an earlier run of the same request found, if that was kept; raises WorkerError."""
        answer = await self._plain(wire.RECALL, wire.to_json(request))
        return None if answer is None else _read_as(wire.ExplainResult, answer)

    async def hand_over(self, origin: str, key: str | None) -> None:
        """The key for the addresses of ``origin``, None: there is none; kept in memory alone.

        A worker that takes the place of another gets it too.
        """
        if self._secrets.get(origin) != key:
            self._secrets[origin] = key
            await self._plain(wire.SECRET, {"origin": origin, "key": key})

    async def _plain(self, method: str, params: Any) -> Any:
        while True:
            await self._start()
            id_, answer = self._ask(method, params)
            try:
                return await asyncio.shield(answer)
            except _KilledError:
                continue
            finally:
                self._waiting.pop(id_, None)

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
        if self._reader is not None:
            await asyncio.wait([self._reader])

    async def _start(self) -> None:
        async with self._starting:
            if self._process is not None:
                is_wanted = self._runs_in == self.interpreter or self._progress
                if is_wanted and not _is_gone(self._process):
                    return
                await self.close()
            self._last_words.clear()
            self._runs_in = self.interpreter
            self._process = await self._spawn()
            self._reader = asyncio.create_task(self._read(self._process))
            _, answer = self._ask(wire.HANDSHAKE, {"protocol": wire.PROTOCOL_VERSION})
            try:
                self.handshake = _read_as(
                    wire.Handshake, await asyncio.wait_for(answer, START_SECONDS)
                )
                for origin, key in self._secrets.items():
                    self._ask(wire.SECRET, {"origin": origin, "key": key})
            except TimeoutError:
                await self.close()
                raise WorkerError(
                    wire.WORKER_DIED, f"The worker did not answer within {START_SECONDS:.0f} s."
                ) from None
            except BaseException:  # a worker that was not greeted is of no use to the next request
                await self.close()
                raise

    async def _spawn(self) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                self._runs_in,
                "-P",
                "-c",
                BOOTSTRAP,
                str(ENGINE),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                # A folder only we write to: from / or a shared one, the Hub's name in "hf:tmp/x"
                # would mean a folder that anybody may have made.
                cwd=ENGINE,
                env=self._environment(),
                limit=LINE_LIMIT,
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise WorkerError(
                wire.WORKER_DIED,
                f"The Python interpreter {self._runs_in!r} cannot be started ({reason}): "
                "choose another one (setting spex.interpreter).",
            ) from None

    def _environment(self) -> dict[str, str]:
        threads = dict.fromkeys(THREAD_VARIABLES, str(self.threads))
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        nice = {"SPEX_BACKGROUND": "1"} if self.background else {}
        return {**os.environ, **threads, **quiet, **nice, "PYTHONSAFEPATH": "1"}

    async def _explain(
        self, request: wire.ExplainRequest, on_progress: Callable[[wire.Progress], None]
    ) -> Any:
        id_, answer = self._ask(wire.EXPLAIN, wire.to_json(request))
        self._progress[id_] = on_progress
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            await self._cancel(id_, answer)
            raise
        finally:
            self._progress.pop(id_, None)
            self._waiting.pop(id_, None)

    def _ask(self, method: str, params: Any) -> tuple[int, asyncio.Future[Any]]:
        """The request's id, and its answer to come."""
        id_ = next(self._ids)
        self._send({"id": id_, "method": method, "params": params})
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[id_] = answer
        return id_, answer

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        line = json.dumps({"jsonrpc": "2.0", **message}, allow_nan=False)
        self._process.stdin.write(line.encode() + b"\n")

    async def _cancel(self, id_: int, answer: asyncio.Future[Any]) -> None:
        """Ask the worker to stop the run; kill it if it does not answer at once."""
        if not answer.done():
            self._send({"method": wire.CANCEL, "params": {"id": id_}})
            await asyncio.wait([answer], timeout=CANCEL_SECONDS)
        if answer.done():
            answer.exception()  # has been dealt with: it was cancelled
            return
        logger.info("the worker did not stop in time and is killed")
        answer.cancel()
        self._killed = True
        await self.close()

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
        await asyncio.wait([log], timeout=LOG_SECONDS)
        log.cancel()
        self._process = None
        killed, self._killed = self._killed, False
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(
                    _KilledError() if killed else WorkerError(wire.WORKER_DIED, self._epitaph(code))
                )
                answer.exception()  # nobody may be waiting any more
        self._waiting.clear()

    def _receive(self, message: dict[str, Any]) -> None:
        if message.get("method") == wire.PROGRESS:
            progress = wire.from_json(wire.Progress, message["params"])
            if progress.id in self._progress:
                self._progress[progress.id](progress)
            return
        answer = self._waiting.pop(message["id"], None)
        if answer is None or answer.done():
            return
        if "error" in message:
            answer.set_exception(WorkerError(message["error"]["code"], message["error"]["message"]))
        else:
            answer.set_result(message["result"])

    async def _keep_log(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            text = line.decode(errors="replace").rstrip()
            self._last_words.append(text)
            logger.info("worker: %s", text)

    def _epitaph(self, code: int) -> str:
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        last = f" Its last words: {self._last_words[-1]}" if self._last_words else ""
        if self._starting.locked():
            return (
                f"{self._runs_in} did not start as a worker ({how}).{last} It must be Python 3.11 "
                "or later: choose another interpreter (setting spex.interpreter)."
            )
        return (
            f"The model process ended unexpectedly ({how}).{last} "
            "Run it again: a new process starts by itself."
        )


def _is_gone(process: asyncio.subprocess.Process) -> bool:
    """Whether it has ended, also where its reader has not noticed yet."""
    assert process.stdout is not None
    return process.returncode is not None or process.stdout.at_eof()


def _read_as(kind: type[wire.T], answer: Any) -> wire.T:
    try:
        return wire.from_json(kind, answer)
    except wire.InputError as error:
        raise WorkerError(wire.INTERNAL, f"The worker's answer cannot be read: {error}.") from None
