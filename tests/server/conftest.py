"""A scripted editor, driving real servers with the real worker and the embedded model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from lsprotocol import types
from pygls.exceptions import JsonRpcInternalError
from pygls.protocol import default_converter
from pytest_lsp import LanguageClient

REPO = Path(__file__).parents[2]
SECONDS = 60.0  # nothing here takes so long; a machine may be busy
SERVER = (sys.executable, "-P", "-m", "server", "--stdio")
AS_IF_NEW = {"store": False}  # options: nothing is known from before, and nothing is kept
T = TypeVar("T")

EVERYTHING = types.ClientCapabilities(
    text_document=types.TextDocumentClientCapabilities(
        publish_diagnostics=types.PublishDiagnosticsClientCapabilities(
            related_information=True,
            tag_support=types.ClientDiagnosticsTagOptions(
                value_set=[types.DiagnosticTag.Unnecessary]
            ),
            version_support=True,
            data_support=True,
        ),
        hover=types.HoverClientCapabilities(content_format=[types.MarkupKind.Markdown]),
    ),
    window=types.WindowClientCapabilities(work_done_progress=True),
)


class Editor:
    """A client with one server, and all it was told, in order, as (kind, value).

    Kinds: "answer" (to a command), "create", "begin", "report" and "end" (of a progress bar),
    "diagnostics" (PublishDiagnosticsParams) and "message" (ShowMessageParams).
    """

    hello: types.InitializeResult

    def __init__(self, client: LanguageClient) -> None:
        self.client = client
        self.seen: list[tuple[str, Any]] = []
        self.open_files: set[str] = set()
        self.bars: set[str] = set()  # progress bars that have begun and not ended
        self.agrees: bool | None = True  # to progress bars; None: never answers
        self.ends = asyncio.Event()
        self._news = asyncio.Event()
        self._listen()

    def _listen(self) -> None:
        feature = self.client.feature

        @feature(types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def diagnostics(params: types.PublishDiagnosticsParams) -> None:
            self.note("diagnostics", params)

        @feature(types.WINDOW_SHOW_MESSAGE)
        def message(params: types.ShowMessageParams) -> None:
            self.note("message", params)

        @feature(types.WINDOW_WORK_DONE_PROGRESS_CREATE)
        async def create(params: types.WorkDoneProgressCreateParams) -> None:
            self.note("create", params.token)
            if self.agrees is None:
                await self.ends.wait()
            if not self.agrees:
                raise JsonRpcInternalError("no progress bars here")

        @feature(types.PROGRESS)
        def progress(params: types.ProgressParams) -> None:
            kind = params.value["kind"]
            {"begin": self.bars.add, "end": self.bars.discard}.get(kind, str)(params.token)
            self.note(kind, {"token": params.token, **params.value})

    def note(self, kind: str, value: Any) -> None:
        self.seen.append((kind, value))
        self._news.set()

    def all(self, kind: str) -> list[Any]:
        return [value for seen, value in self.seen if seen == kind]

    async def until(self, find: Callable[[], T | None]) -> T:
        """What ``find`` returns, as soon as that is something."""
        try:
            async with asyncio.timeout(SECONDS):
                while not (found := find()):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"waited in vain; what came: {self.seen}") from None
        return found

    async def told(self, kind: str, but: int = 0) -> Any:
        """The first of that kind, after ``but`` others."""
        return (await self.until(lambda: self.all(kind)[but:]))[0]

    async def under_way(self) -> None:
        """Until the model has scored some masks of a run."""
        await self.until(lambda: [r for r in self.all("report") if "asking" in r["message"]])

    @property
    def pid(self) -> int:
        assert self.client._server is not None
        return self.client._server.pid

    async def exit_code(self) -> int:
        assert self.client._server is not None
        async with asyncio.timeout(SECONDS):
            return await self.client._server.wait()

    # ---- requests and notifications

    async def command(self, name: str, *arguments: Any) -> Any:
        params = types.ExecuteCommandParams(name, list(arguments) if arguments else None)
        answer = self.client.protocol.send_request(types.WORKSPACE_EXECUTE_COMMAND, params)
        answer.add_done_callback(lambda _: self.note("answer", name))
        async with asyncio.timeout(SECONDS):
            return await asyncio.wrap_future(answer)

    async def status(self) -> Any:
        return await self.command("spex.status")

    def open(self, uri: str, text: str) -> None:
        self.open_files.add(uri)
        item = types.TextDocumentItem(uri, "markdown", 1, text)
        self.client.text_document_did_open(types.DidOpenTextDocumentParams(item))

    def change(self, uri: str, text: str, version: int = 2) -> None:
        name = types.VersionedTextDocumentIdentifier(version=version, uri=uri)
        whole = types.TextDocumentContentChangeWholeDocument(text)
        self.client.text_document_did_change(types.DidChangeTextDocumentParams(name, [whole]))

    def close(self, uri: str) -> None:
        self.open_files.discard(uri)
        params = types.DidCloseTextDocumentParams(types.TextDocumentIdentifier(uri))
        self.client.text_document_did_close(params)

    async def hover(self, uri: str, line: int, character: int = 0) -> types.Hover | None:
        params = types.HoverParams(
            types.TextDocumentIdentifier(uri), types.Position(line, character)
        )
        async with asyncio.timeout(SECONDS):
            return await self.client.text_document_hover_async(params)

    def configure(self, settings: Any) -> None:
        params = types.DidChangeConfigurationParams(settings)
        self.client.workspace_did_change_configuration(params)

    async def diagnostics_after(self, action: Callable[[], None]) -> types.PublishDiagnosticsParams:
        """The next diagnostics once ``action`` was done."""
        before = len(self.all("diagnostics"))
        action()
        return await self.told("diagnostics", but=before)

    async def explained(self, uri: str) -> list[types.Diagnostic]:
        """The diagnostics of a finished run."""
        await self.status()  # by then all that was sent before has been dealt with
        before = len(self.all("diagnostics"))
        await self.command("spex.explain", {"uri": uri})
        await self.until(lambda: self.all("message") or self.all("diagnostics")[before:])
        assert self.all("message") == []
        return interactions(self.all("diagnostics")[-1].diagnostics)


def interactions(diagnostics: Any) -> list[types.Diagnostic]:
    return [d for d in diagnostics if d.code == "spex/interaction"]


StartEditor = Callable[..., Awaitable[Editor]]


@contextlib.asynccontextmanager
async def editors(environment: dict[str, str]) -> AsyncIterator[StartEditor]:
    """Starts editors, and ends what is left of their servers."""
    started: list[LanguageClient] = []

    async def start(
        capabilities: types.ClientCapabilities = EVERYTHING,
        options: Any = None,
        command: tuple[str, ...] = SERVER,
        cwd: Path | None = None,
        root: Path | None = None,
    ) -> Editor:
        client = LanguageClient(converter_factory=default_converter)
        editor = Editor(client)
        await client.start_io(*command, env=environment, cwd=cwd)
        started.append(client)
        async with asyncio.timeout(SECONDS):
            editor.hello = await client.initialize_session(
                types.InitializeParams(
                    capabilities,
                    initialization_options=AS_IF_NEW if options is None else options,
                    root_uri=root.as_uri() if root else None,
                )
            )
        return editor

    try:
        yield start
    finally:
        for client in started:
            assert client._server is not None
            with contextlib.suppress(ProcessLookupError):
                client._server.kill()
            await client.stop()


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For processes that are to run this checkout's code, wherever they are started."""
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    bare["SPEX_CACHE_DIR"] = str(tmp_path_factory.mktemp("session_cache"))
    found = subprocess.run(
        [sys.executable, "-P", "-c", "import server; print(server.__file__)"],
        env=bare,
        cwd="/",
        capture_output=True,
        text=True,
    )
    installed = found.stdout.strip() == str(REPO / "server" / "__init__.py")
    return bare if installed else {**bare, "PYTHONPATH": str(REPO)}


@pytest_asyncio.fixture(loop_scope="module")
async def start_editor(environment: dict[str, str]) -> AsyncIterator[StartEditor]:
    """Starts servers of the test's own."""
    async with editors(environment) as start:
        yield start


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared_editor(environment: dict[str, str]) -> AsyncIterator[Editor]:
    async with editors(environment) as start:
        yield await start()


@pytest_asyncio.fixture(loop_scope="module")
async def editor(shared_editor: Editor) -> AsyncIterator[Editor]:
    """An editor with nothing open and nothing seen; its server lives as long as the module."""
    shared_editor.seen.clear()
    yield shared_editor
    shared_editor.ends.set()
    shared_editor.ends.clear()
    shared_editor.configure({"spex": {}})
    shared_editor.agrees = True
    for uri in list(shared_editor.open_files):
        shared_editor.close(uri)
    await shared_editor.until(lambda: not shared_editor.bars)
    await shared_editor.status()


@pytest.fixture(scope="session")
def everything() -> types.ClientCapabilities:
    return EVERYTHING


@pytest.fixture(scope="session")
def example() -> str:
    return (REPO / "examples" / "two-facts.prompt.md").read_text()


@pytest.fixture(scope="session")
def slow_prompt() -> str:
    """A minute of work for the embedded model."""
    notes = "\n".join(f"Guest {n} likes tea." for n in range(24))
    return f"---\nbudget: 9999\nsegments: line\ntarget: tea\n---\n{notes}"


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """An interpreter of this version that has no packages."""
    venv = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    return str(venv / "bin" / "python")


@pytest.fixture
def deaf_python(tmp_path: Path) -> str:
    """A program that starts as a worker would and never answers."""
    script = tmp_path / "deaf"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    script.chmod(0o755)
    return str(script)


@pytest.fixture(scope="session")
def gone() -> Callable[[int], Awaitable[None]]:
    """Waits for the end of a process that need not be a child."""

    async def wait(pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            async with asyncio.timeout(SECONDS):
                await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    return wait
