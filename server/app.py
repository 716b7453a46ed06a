"""The language server: wiring only.

Holds the open documents and their last explanation, and connects LSP messages to planning, jobs
and features. What a message means is decided in the modules it calls.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlparse

from lsprotocol import types
from pygls import uris
from pygls.exceptions import JsonRpcInvalidParams
from pygls.lsp.server import LanguageServer

from server import VERSION
from server.explained import Explained
from server.features.diagnostics import interaction_diagnostics, problem_diagnostics
from server.features.hover import hover
from server.jobs import Jobs
from server.planning import make_plan
from server.prompts import parse
from server.settings import Settings, check, read_settings
from server.text import Encoding, Text
from server.worker_client import WorkerClient, WorkerError
from spex_engine import wire

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """An open file as the editor last sent it, and the last explanation of it."""

    uri: str
    version: int
    text: Text
    explained: Explained | None = None

    @property
    def path(self) -> Path | None:
        """None for a document that is no file."""
        name = uris.to_fs_path(self.uri) if self.uri.startswith("file:") else None
        return Path(name) if name else None

    @property
    def name(self) -> str:
        return Path(urlparse(self.uri).path).name or self.uri


class SpexServer(LanguageServer):
    """State of one client's session."""

    def __init__(self) -> None:
        super().__init__("spex", VERSION, text_document_sync_kind=types.TextDocumentSyncKind.Full)
        self.documents: dict[str, Document] = {}
        self.settings = Settings()
        threads = max(1, (os.cpu_count() or 2) - 1)
        self.jobs = Jobs(WorkerClient(self.settings.interpreter, threads))
        self.progress_cancels: dict[str | int, Callable[[], None]] = {}

    def report_server_error(self, error: Exception, source: Any) -> None:
        """To the log: a pop-up for every malformed message would be in the user's way."""
        logger.error("%s", error, exc_info=error)

    @property
    def encoding(self) -> Encoding:
        chosen = self.server_capabilities.position_encoding
        encodings: tuple[Encoding, ...] = get_args(Encoding)
        return next((encoding for encoding in encodings if encoding == chosen), "utf-16")

    def publish(self, uri: str) -> None:
        """The diagnostics of an open document as it is now."""
        document = self.documents[uri]
        parsed = parse(document.text.text, document.name)
        found = problem_diagnostics(parsed, document.text, self.encoding)
        if document.explained is not None:
            found += interaction_diagnostics(
                document.explained, document.text, uri, self.encoding, self._takes_related
            )
        self.text_document_publish_diagnostics(
            types.PublishDiagnosticsParams(uri, found, document.version)
        )

    @property
    def _takes_related(self) -> bool:
        text_document = self.client_capabilities.text_document
        publish = text_document and text_document.publish_diagnostics
        return bool(publish and publish.related_information)

    @property
    def takes_markdown(self) -> bool:
        text_document = self.client_capabilities.text_document
        hover = text_document and text_document.hover
        return bool(
            hover and hover.content_format and types.MarkupKind.Markdown in hover.content_format
        )

    @property
    def takes_progress(self) -> bool:
        window = self.client_capabilities.window
        return bool(window and window.work_done_progress)

    def say(self, kind: types.MessageType, message: str) -> None:
        self.window_show_message(types.ShowMessageParams(kind, message))


class Run:
    """Shows one run to the client (jobs.Listener)."""

    def __init__(self, server: SpexServer, document: Document) -> None:
        self.server = server
        self.document = document
        self.token: str | None = None

    async def started(self, cancel: Callable[[], None]) -> None:
        if not self.server.takes_progress:
            return
        token = f"spex-{uuid.uuid4()}"
        try:
            await self.server.work_done_progress.create_async(token)
        except Exception as error:  # the client's refusal must not stop the run
            logger.info("the client shows no progress: %s", error)
            return
        self.token = token
        self.server.progress_cancels[token] = cancel
        self.server.work_done_progress.begin(
            token,
            types.WorkDoneProgressBegin(
                title=f"Explain {self.document.name}", cancellable=True, percentage=0
            ),
        )

    def progress(self, progress: wire.Progress) -> None:
        if self.token is None:
            return
        self.server.work_done_progress.report(
            self.token,
            types.WorkDoneProgressReport(
                message=f"{progress.message}: {progress.done:,} of {progress.total:,} calls",
                percentage=min(100, 100 * progress.done // max(1, progress.total)),
                cancellable=True,
            ),
        )

    def done(self, explained: Explained) -> None:
        found = len(explained.notable)
        self._end(f"{found} interaction{'' if found == 1 else 's'}")
        uri = self.document.uri
        if uri in self.server.documents:
            document = self.server.documents[uri]
            self.server.documents[uri] = replace(document, explained=explained)
            self.server.publish(uri)

    def failed(self, error: WorkerError) -> None:
        self._end("failed")
        self.server.say(types.MessageType.Error, str(error))

    def cancelled(self) -> None:
        self._end("cancelled")

    def _end(self, message: str) -> None:
        if self.token is None:
            return
        self.server.progress_cancels.pop(self.token, None)
        self.server.work_done_progress.end(self.token, types.WorkDoneProgressEnd(message))
        self.server.work_done_progress.tokens.pop(self.token, None)


def make_server() -> SpexServer:
    server = SpexServer()
    _documents(server)
    _commands(server)

    @server.feature(types.INITIALIZE)
    def initialize(ls: SpexServer, params: types.InitializeParams) -> None:
        _configure(ls, params.initialization_options)

    @server.feature(types.WORKSPACE_DID_CHANGE_CONFIGURATION)
    def configuration(ls: SpexServer, params: types.DidChangeConfigurationParams) -> None:
        if isinstance(params.settings, dict):
            _configure(ls, params.settings)

    @server.feature(types.TEXT_DOCUMENT_HOVER)
    def show_hover(ls: SpexServer, params: types.HoverParams) -> types.Hover | None:
        document = ls.documents.get(params.text_document.uri)
        if document is None or document.explained is None:
            return None
        at = document.text.offset_at(params.position.line, params.position.character, ls.encoding)
        return hover(document.explained, document.text, at, ls.encoding, ls.takes_markdown)

    @server.feature(types.WINDOW_WORK_DONE_PROGRESS_CANCEL)
    def cancel_progress(ls: SpexServer, params: types.WorkDoneProgressCancelParams) -> None:
        cancel = ls.progress_cancels.get(params.token)
        if cancel is not None:
            cancel()

    @server.feature(types.SHUTDOWN)
    async def shutdown(ls: SpexServer, *_: Any) -> None:
        await ls.jobs.close()

    return server


def _configure(ls: SpexServer, options: Any) -> None:
    """Take over settings; ``options`` is the section ``spex`` or an object that holds it."""
    if isinstance(options, dict) and isinstance(options.get("spex"), dict):
        options = options["spex"]
    ls.settings, problems = read_settings(options)
    ls.jobs.worker.interpreter = ls.settings.interpreter
    for problem in problems:
        logger.warning("%s", problem)
        with contextlib.suppress(Exception):  # before initialized, a client may refuse messages
            ls.say(types.MessageType.Warning, f"Spex settings: {problem}")


def _documents(server: SpexServer) -> None:
    @server.feature(types.TEXT_DOCUMENT_DID_OPEN)
    def opened(ls: SpexServer, params: types.DidOpenTextDocumentParams) -> None:
        item = params.text_document
        ls.documents[item.uri] = Document(item.uri, item.version, Text(item.text))
        ls.publish(item.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def changed(ls: SpexServer, params: types.DidChangeTextDocumentParams) -> None:
        uri, version = params.text_document.uri, params.text_document.version
        document = ls.documents.get(uri)
        if document is None or not params.content_changes:
            return
        text = Text(params.content_changes[-1].text)
        ls.documents[uri] = replace(document, version=version, text=text)
        ls.publish(uri)

    @server.feature(types.TEXT_DOCUMENT_DID_SAVE)
    def saved(ls: SpexServer, params: types.DidSaveTextDocumentParams) -> None:
        if params.text_document.uri in ls.documents:
            ls.publish(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def closed(ls: SpexServer, params: types.DidCloseTextDocumentParams) -> None:
        uri = params.text_document.uri
        ls.jobs.cancel(uri)
        document = ls.documents.pop(uri, None)
        if document is not None:
            ls.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, []))


def _commands(server: SpexServer) -> None:
    """Each takes nothing or one plain JSON object and answers at once."""

    @server.command("spex.explain")
    def explain(ls: SpexServer, *arguments: Any) -> dict[str, Any]:
        options = _options(arguments)
        document = _document(ls, options.pop("uri", None))
        try:
            said = {key: check(key, value) for key, value in options.items()}
            plan = make_plan(document.text.text, document.path, ls.settings, said)
        except wire.InputError as error:
            raise JsonRpcInvalidParams(message=str(error)) from None
        job = ls.jobs.start(document.uri, plan, Run(ls, document))
        segments = len(plan.segmentation.segments)
        return {"jobId": job.id, "uri": document.uri, "segments": segments}

    @server.command("spex.cancel")
    def cancel(ls: SpexServer, *arguments: Any) -> dict[str, Any]:
        wanted = _options(arguments).get("uri")
        which = [job.uri for job in ls.jobs.running() if wanted in (None, job.uri)]
        return {"cancelled": [uri for uri in which if ls.jobs.cancel(uri)]}

    @server.command("spex.clear")
    def clear(ls: SpexServer, *arguments: Any) -> dict[str, Any]:
        document = _document(ls, _options(arguments).get("uri"))
        ls.documents[document.uri] = replace(document, explained=None)
        ls.publish(document.uri)
        return {"uri": document.uri}

    @server.command("spex.status")
    def status(ls: SpexServer, *_: Any) -> dict[str, Any]:
        worker = ls.jobs.worker
        return {
            "version": VERSION,
            "worker": {"state": worker.state, "pid": worker.pid},
            "running": [{"jobId": job.id, "uri": job.uri} for job in ls.jobs.running()],
            "explained": [uri for uri, document in ls.documents.items() if document.explained],
            "model": ls.settings.model,
        }


def _options(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if not arguments or arguments[0] is None:
        return {}
    if len(arguments) > 1 or not isinstance(arguments[0], dict):
        raise JsonRpcInvalidParams(
            message='expected no argument or one object such as {"uri": "file:///prompt.md"}'
        )
    return dict(arguments[0])


def _document(ls: SpexServer, uri: str | None) -> Document:
    """The document of ``uri``; without one, the only one that is open."""
    if uri is None:
        if len(ls.documents) == 1:
            return next(iter(ls.documents.values()))
        raise JsonRpcInvalidParams(
            message='several or no documents are open: say which, as {"uri": "file:///prompt.md"}'
        )
    if uri not in ls.documents:
        raise JsonRpcInvalidParams(message=f"{uri} is not open: open it first")
    return ls.documents[uri]
