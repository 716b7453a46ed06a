"""Serves one editor on a loopback address.

pygls' own way reads whatever connects and ends with the first that leaves: a web page that posts
to the port would be obeyed, a port scan would end the server. Here a connection counts once it
opens as the protocol does, and any other is dropped. It must not know what the messages mean.
"""

from __future__ import annotations

import asyncio
import logging
import threading

from pygls.io_ import run_async
from pygls.lsp.server import LanguageServer

logger = logging.getLogger(__name__)

HEADERS = (b"content-length:", b"content-type:")  # what a message may open with


class _Begun:
    """A stream whose first line has been read already."""

    def __init__(self, first: bytes, stream: asyncio.StreamReader) -> None:
        self.first = first
        self.stream = stream

    async def readline(self) -> bytes:
        first, self.first = self.first, b""
        return first or await self.stream.readline()

    async def readexactly(self, n: int) -> bytes:
        return await self.stream.readexactly(n)


def serve_tcp(server: LanguageServer, host: str, port: int) -> None:
    """Until the one editor that is served leaves. OSError where one cannot listen there."""
    asyncio.run(_serve(server, host, port))


async def _serve(server: LanguageServer, host: str, port: int) -> None:
    is_taken = False
    left = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal is_taken
        try:
            first = await reader.readline()
        except (OSError, ValueError):  # reset, or a line without end
            first = b""
        if is_taken or not first.lower().startswith(HEADERS):
            logger.warning("a connection that %s is dropped", _why(is_taken))
            writer.close()
            return
        is_taken = True
        server.protocol.set_writer(writer)
        try:
            await run_async(
                stop_event=threading.Event(),
                reader=_Begun(first, reader),
                protocol=server.protocol,
                logger=logger,
                error_handler=server.report_server_error,
            )
        except (OSError, asyncio.IncompleteReadError) as error:
            logger.info("the editor is gone: %s", error)
        finally:
            left.set()

    listening = await asyncio.start_server(connected, host, port)
    await left.wait()
    listening.close()
    server.shutdown()  # type: ignore[no-untyped-call]


def _why(is_taken: bool) -> str:
    return "comes while an editor is served" if is_taken else "does not speak the protocol"
