"""The language server: wiring only.

Holds the open documents and their last explanation, and connects LSP messages to planning, jobs
and features. What a message means is decided in the modules it calls.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlparse

from lsprotocol import types
from pygls import uris
from pygls.exceptions import JsonRpcInvalidParams
from pygls.lsp.server import LanguageServer

from server import VERSION
from server.capabilities import Capabilities, capabilities_of
from server.explained import Explained
from server.features.diagnostics import interaction_diagnostics, problem_diagnostics
from server.features.explain import ShownRun
from server.features.hover import hover
from server.jobs import Jobs
from server.planning import Plan, make_plan, problems_of
from server.prompts import parse
from server.settings import Settings, check_request, read_settings, workspace_model
from server.text import Encoding, Text
from server.worker_client import WorkerClient
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
        self.documents: dict[str, Document] = {}  # what the client touched last comes last
        self.initial = Settings()  # as the client said when it started us
        self.settings = self.initial
        self.root: Path | None = None  # of the workspace
        self.takes = Capabilities()
        self.shut_down = False
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
        parsed = replace(parsed, problems=problems_of(parsed, document.path))
        found = problem_diagnostics(parsed, document.text, self.encoding)
        if document.explained is not None:
            found += interaction_diagnostics(
                document.explained, document.text, uri, self.encoding, self.takes
            )
        self.text_document_publish_diagnostics(
            types.PublishDiagnosticsParams(uri, found, document.version)
        )

    def show(self, uri: str, explained: Explained) -> None:
        """Take over a finished explanation, unless its document was closed meanwhile."""
        if uri in self.documents:
            self.documents[uri] = replace(self.documents[uri], explained=explained)
            self.publish(uri)

    def restore(self, uri: str, explained: Explained) -> None:
        """Take over an explanation of an earlier session, unless things have moved on."""
        document = self.documents.get(uri)
        same = document is not None and document.text.text == explained.plan.document.text
        if same and document is not None and document.explained is None:
            self.show(uri, explained)

    def touch(self, uri: str) -> None:
        """The client is at this document now."""
        if uri in self.documents:
            self.documents[uri] = self.documents.pop(uri)

    def say(self, kind: types.MessageType, message: str) -> None:
        self.window_show_message(types.ShowMessageParams(kind, message))


def make_server() -> SpexServer:
    server = SpexServer()
    _documents(server)
    _commands(server)

    @server.feature(types.INITIALIZE)
    def initialize(ls: SpexServer, params: types.InitializeParams) -> None:
        ls.takes = capabilities_of(params.capabilities)
        folders = params.workspace_folders
        root = folders[0].uri if folders else params.root_uri
        name = uris.to_fs_path(root) if root and root.startswith("file:") else None
        ls.root = Path(name) if name else None
        options = params.initialization_options
        if isinstance(options, dict) and "spex" in options:
            options = options["spex"]
        _configure(ls, options)
        ls.initial = ls.settings

    @server.feature(types.WORKSPACE_DID_CHANGE_CONFIGURATION)
    def configuration(ls: SpexServer, params: types.DidChangeConfigurationParams) -> None:
        settings = params.settings
        if isinstance(settings, dict) and settings.get("spex") is not None:
            _configure(ls, settings["spex"])

    @server.feature(types.TEXT_DOCUMENT_HOVER)
    def show_hover(ls: SpexServer, params: types.HoverParams) -> types.Hover | None:
        ls.touch(params.text_document.uri)
        document = ls.documents.get(params.text_document.uri)
        if document is None or document.explained is None:
            return None
        at = document.text.offset_at(params.position.line, params.position.character, ls.encoding)
        return hover(document.explained, document.text, at, ls.encoding, ls.takes.markdown)

    @server.feature(types.WINDOW_WORK_DONE_PROGRESS_CANCEL)
    def cancel_progress(ls: SpexServer, params: types.WorkDoneProgressCancelParams) -> None:
        cancel = ls.progress_cancels.get(params.token)
        if cancel is not None:
            cancel()

    @server.feature(types.SHUTDOWN)
    async def shutdown(ls: SpexServer, *_: Any) -> None:
        ls.shut_down = True
        await ls.jobs.close()

    return server


def _configure(ls: SpexServer, section: Any) -> None:
    """Take over the section ``spex``, over what the client said when it started us."""
    ls.settings, problems = read_settings(section, ls.initial)
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
        ls.touch(item.uri)
        ls.publish(item.uri)
        ls.jobs.recall(
            lambda: _plan(ls, item.uri) if item.uri in ls.documents else None,
            lambda found: ls.restore(item.uri, found),
        )

    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def changed(ls: SpexServer, params: types.DidChangeTextDocumentParams) -> None:
        uri, version = params.text_document.uri, params.text_document.version
        document = ls.documents.get(uri)
        if document is None or not params.content_changes:
            return
        text = Text(params.content_changes[-1].text)
        ls.documents[uri] = replace(document, version=version, text=text)
        ls.touch(uri)
        ls.publish(uri)

    @server.feature(types.TEXT_DOCUMENT_DID_SAVE)
    def saved(ls: SpexServer, params: types.DidSaveTextDocumentParams) -> None:
        ls.touch(params.text_document.uri)
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
            plan = _plan(ls, document.uri, check_request(options))
        except wire.InputError as error:
            raise JsonRpcInvalidParams(message=str(error)) from None
        job = ls.jobs.start(document.uri, plan, ShownRun(ls, document.uri, document.name))
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
        ls.jobs.cancel(document.uri)
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


def _plan(ls: SpexServer, uri: str, said: Mapping[str, Any] | None = None) -> Plan:
    """What a run of an open document asks; the answer that was explained before stays the target.

    InputError as of `make_plan`.
    """
    document = ls.documents[uri]
    plan = make_plan(document.text.text, document.path, ls.settings, said)
    request = replace(plan.request, model=workspace_model(plan.request.model, ls.root))
    before = None if document.explained is None else document.explained.result
    if before is not None and before.target.own and before.model == request.model:
        question = replace(request.question, pinned=before.target.text)
        request = replace(request, question=question)
    return replace(plan, request=request)


def _options(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if not arguments or arguments[0] is None:
        return {}
    if len(arguments) > 1 or not isinstance(arguments[0], dict):
        raise JsonRpcInvalidParams(
            message='expected no argument or one object such as {"uri": "file:///prompt.md"}'
        )
    return dict(arguments[0])


def _document(ls: SpexServer, uri: Any) -> Document:
    """The document of ``uri``; without one, the one that the client touched last."""
    if uri is None:
        if not ls.documents:
            raise JsonRpcInvalidParams(message="no document is open: open a prompt first")
        return next(reversed(ls.documents.values()))
    if not isinstance(uri, str):
        raise JsonRpcInvalidParams(message=f"uri: expected text, got {uri!r}")
    if uri not in ls.documents:
        raise JsonRpcInvalidParams(message=f"{uri} is not open: open it first")
    return ls.documents[uri]
