"""The process that owns the model: JSON-RPC 2.0 over stdio, one object per line.

It answers while a run goes on (the run has a thread of its own), runs one request at a time, and
ends itself when its parent is gone, which closes stdin. Standard output is the protocol's alone:
descriptor 1 is set aside before any library can print. It must not know files or editors.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from spex_engine import __version__, wire

PACKAGES = ("numpy", "scipy", "tokenizers", "safetensors", "torch", "transformers", "openai")


class Worker:
    """Answers requests read from ``source`` on ``sink``; see wire.py for the messages."""

    def __init__(self, source: IO[str], sink: IO[str]) -> None:
        self.source = source
        self.sink = sink
        self.writing = threading.Lock()
        self.jobs = ThreadPoolExecutor(max_workers=1)
        self.runs: dict[int, Future[None]] = {}  # those not answered yet
        self.cancelled: set[int] = set()
        self.backends: dict[str, Any] = {}

    def serve(self) -> None:
        """Until shutdown, or the end of ``source``."""
        for line in self.source:
            try:
                method, params, id_ = _read_message(line)
            except (ValueError, RecursionError) as error:
                print(f"a line that is no message: {error}", file=sys.stderr, flush=True)
                self._fail(None, wire.MALFORMED, f"This line is no message: {error}.")
                continue
            if method == wire.CANCEL:
                self._cancel(params.get("id"))
            elif id_ is None:
                print(f"an unknown notification: {method!r}", file=sys.stderr, flush=True)
            elif method == wire.HANDSHAKE:
                self._answer(id_, lambda params=params: handshake(params))
            elif method == wire.EXPLAIN:
                self._start(id_, params)
            elif method == wire.SHUTDOWN:
                self._answer(id_, lambda: None)
                return
            else:
                self._fail(id_, wire.BAD_INPUT, f"unknown method {method!r}")

    def _start(self, id_: int, params: Any) -> None:
        run = self.jobs.submit(self._answer, id_, lambda: self._explain(id_, params))
        self.runs[id_] = run
        run.add_done_callback(lambda _: self._forget(id_))

    def _cancel(self, id_: Any) -> None:
        run = self.runs.get(id_)
        if run is None:
            return
        self.cancelled.add(id_)
        if run.cancel():  # it still waits for another: nobody else would answer until that ends
            self._fail(id_, wire.CANCELLED, "cancelled")

    def _forget(self, id_: int) -> None:
        self.runs.pop(id_, None)
        self.cancelled.discard(id_)

    def _answer(self, id_: int, call: Any) -> None:
        try:
            self._send({"id": id_, "result": wire.to_json(call())})
        except wire.InputError as error:
            self._fail(id_, wire.BAD_INPUT, str(error))
        except wire.ModelError as error:
            self._fail(id_, wire.MODEL_ERROR, str(error))
        except wire.StoppedError:
            self._fail(id_, wire.CANCELLED, "cancelled")
        except ImportError as error:
            traceback.print_exc()
            reason = str(error).strip().partition("\n")[0]
            self._fail(
                id_,
                wire.MODEL_ERROR,
                f"{sys.executable} cannot run the engine ({reason}): install spex-lsp there, or "
                "choose another interpreter (setting spex.interpreter).",
            )
        except Exception as error:
            traceback.print_exc()
            self._fail(id_, wire.INTERNAL, f"{type(error).__name__}: {error}")

    def _explain(self, id_: int, params: Any) -> wire.ExplainResult:
        from spex_engine.explain_prompt import explain_prompt

        def on_progress(done: int, total: int, text: str) -> None:
            progress = wire.Progress(id_, done, total, text)
            self._send({"method": wire.PROGRESS, "params": wire.to_json(progress)})

        request = wire.from_json(wire.ExplainRequest, params)
        return explain_prompt(
            request, on_progress, lambda: id_ in self.cancelled, self._open_backend
        )

    def _open_backend(self, uri: str) -> Any:
        """The model of the last run stays loaded; only one does."""
        from spex_engine.backends import open_backend

        if uri not in self.backends:
            self.backends.clear()
            self.backends[uri] = open_backend(uri)
        return self.backends[uri]

    def _fail(self, id_: int | None, code: int, message: str) -> None:
        self._send({"id": id_, "error": {"code": code, "message": message}})

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps({"jsonrpc": "2.0", **message}, allow_nan=False)
        with self.writing:
            self.sink.write(line + "\n")
            self.sink.flush()


def _read_message(line: str) -> tuple[str, dict[str, Any], int | None]:
    """Method, params and id (None: a notification) of a line; ValueError where it is no message."""
    message = json.loads(line)
    if not isinstance(message, dict) or not isinstance(message.get("method"), str):
        raise ValueError("expected an object with a method")
    params, id_ = message.get("params") or {}, message.get("id")
    if not isinstance(params, dict) or not isinstance(id_, int | None):
        raise ValueError("expected params to be an object and id a whole number")
    return message["method"], params, id_


def handshake(params: Any) -> wire.Handshake:
    """What this worker is. InputError where the server speaks another protocol version."""
    theirs = params.get("protocol")
    if theirs != wire.PROTOCOL_VERSION:
        raise wire.InputError(
            f"The worker speaks protocol {wire.PROTOCOL_VERSION}, the server {theirs}: "
            "restart the server."
        )
    return wire.Handshake(
        protocol=wire.PROTOCOL_VERSION,
        engine=__version__,
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Serve on the real stdin and stdout, and leave at once, whatever still runs."""
    if os.environ.get("SPEX_BACKGROUND") and hasattr(os, "nice"):
        os.nice(5)  # an editor waits beside us
    sink = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    source = os.fdopen(os.dup(0), "r", encoding="utf-8", errors="replace", newline="\n")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 0
    try:
        Worker(source, sink).serve()
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    except BaseException:  # os._exit would end without a word
        traceback.print_exc()
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)
