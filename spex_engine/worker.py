"""The process that owns the model: JSON-RPC 2.0 over stdio, one object per line.

It answers while a run goes on (the run has a thread of its own), runs one request at a time, and
ends itself when its parent is gone, which closes stdin. Standard output is the protocol's alone:
descriptor 1 is set aside before any library can print. It must not know files or editors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from spex_engine import __version__, wire

PACKAGES = (
    *("numpy", "scipy", "lightgbm", "tokenizers", "safetensors"),
    *("torch", "transformers", "openai", "tiktoken", "ray"),
)


class Worker:
    """Answers requests read from ``source`` on ``sink``; see wire.py for the messages."""

    def __init__(self, source: IO[str], sink: IO[str]) -> None:
        self.source = source
        self.sink = sink
        self.writing = threading.Lock()
        self.jobs = ThreadPoolExecutor(max_workers=1)
        self.asides = ThreadPoolExecutor(max_workers=1)  # what need not wait for a run
        self.runs: dict[int, Future[None]] = {}  # those not answered yet
        self.cancelled: set[int] = set()
        self.models: dict[str, Any] = {}
        self.loading = threading.Lock()
        self.secrets: dict[str, str] = {}  # keys by origin; they leave this process for it alone

    def serve(self) -> None:
        """Until shutdown, or the end of ``source``."""
        asides: dict[str, Callable[[Any], Any]] = {
            wire.RECALL: self._recall,
            wire.ESTIMATE: self._estimate,
            wire.EXAMINE: self._examine,
            wire.CACHE: self._cache,
        }
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
            elif method == wire.SECRET:
                self._answer(id_, lambda params=params: self._keep_secret(params))
            elif method in asides:
                call = asides[method]
                self.asides.submit(self._answer, id_, lambda call=call, params=params: call(params))
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
        from spex_engine.recall import keep

        def on_progress(done: int, total: int, text: str) -> None:
            progress = wire.Progress(id_, done, total, text)
            self._send({"method": wire.PROGRESS, "params": wire.to_json(progress)})

        request = wire.from_json(wire.ExplainRequest, params)
        store, notes = _open_store(request.access)
        try:
            result = explain_prompt(
                request, on_progress, lambda: id_ in self.cancelled, self._open_model, store
            )
            notes += keep(store, request, result)
        finally:
            if store is not None:
                store.close()
        return dataclasses.replace(result, notes=(*notes, *result.notes))

    def _open_model(self, request: wire.ExplainRequest) -> Any:
        """The model of the last run stays loaded; only one does."""
        from spex_engine.backends import open_model, stays_loaded

        uri = request.model
        with self.loading:
            if uri in self.models:
                return self.models[uri]
            model = open_model(uri, request.access, self.secrets)
            if stays_loaded(uri):
                self.models = {uri: model}
            return model

    def _recall(self, params: Any) -> wire.ExplainResult | None:
        from spex_engine.recall import recall

        request = wire.from_json(wire.ExplainRequest, params)
        store, _ = _open_store(request.access)
        if store is None:
            return None
        with contextlib.closing(store):
            return recall(store, request)

    def _estimate(self, params: Any) -> wire.Estimate:
        from spex_engine.estimate import estimate

        return estimate(wire.from_json(wire.ExplainRequest, params), self._open_model)

    def _examine(self, params: Any) -> wire.ModelReport:
        request = wire.from_json(wire.ExplainRequest, params)
        scorer = self._open_model(request).open(request.prompt, request.question, lambda: False)
        return wire.ModelReport(request.model, scorer.tier, scorer.notes)

    def _cache(self, params: Any) -> wire.CacheStats:
        from spex_engine.store import Store, StoreError

        try:
            with contextlib.closing(Store()) as store:
                if params.get("action") == "clear":
                    store.clear()
                found = store.stats()
                return wire.CacheStats(
                    path=found.path,
                    evaluations=found.evaluations,
                    with_answers=found.with_answers,
                    explanations=found.explanations,
                    size=found.on_disk,
                    limit=found.limit,
                    oldest=found.oldest,
                    notes=store.notes,
                )
        except StoreError as error:
            raise wire.ModelError(str(error)) from error

    def _keep_secret(self, params: Any) -> None:
        origin, key = params.get("origin"), params.get("key")
        if not isinstance(origin, str) or not isinstance(key, str | None):
            raise wire.InputError("secret: expected an origin, text, and a key, text or null")
        self.secrets.pop(origin, None)
        if key is not None:
            self.secrets[origin] = key

    def _fail(self, id_: int | None, code: int, message: str) -> None:
        self._send({"id": id_, "error": {"code": code, "message": message}})

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps({"jsonrpc": "2.0", **message}, allow_nan=False)
        with self.writing:
            self.sink.write(line + "\n")
            self.sink.flush()


def _open_store(access: wire.Access) -> tuple[Any, tuple[str, ...]]:
    """The evaluation store, and what to say of it; None where it is not wanted or not to be had."""
    if not access.store:
        return None, ()
    from spex_engine.store import Store, StoreError

    try:
        store = Store()
    except StoreError as error:
        return None, (f"evaluations are not kept: {error}",)
    return store, ()  # it says the rest itself


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
