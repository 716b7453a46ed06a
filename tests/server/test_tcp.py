"""``--tcp``: who is served, who is dropped, and when it ends."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

SECONDS = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


@pytest.fixture
def served(environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = free_port()
    command = [sys.executable, "-P", "-m", "server", "--tcp", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    yield process, port
    process.kill()
    process.wait()


def connect(port: int) -> socket.socket:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def message(method: str, id_: int | None = None, **params: object) -> bytes:
    body = {"jsonrpc": "2.0", "method": method, "params": params or None}
    text = json.dumps(body if id_ is None else {**body, "id": id_}).encode()
    return b"Content-Length: %d\r\n\r\n%b" % (len(text), text)


HELLO = message("initialize", 1, capabilities={}, processId=None, rootUri=None)
REQUESTS = {
    "GET": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "POST": b"POST / HTTP/1.1\r\nHost: localhost\r\n" + HELLO,  # as a web page may send it
    "nothing": b"",
    "a line without end": b"x" * 2**20,
}


def answer(editor: socket.socket) -> bytes:
    return editor.recv(65536)


def is_dropped(other: socket.socket) -> bool:
    try:
        return other.recv(65536) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", REQUESTS.values(), ids=REQUESTS)
def test_what_is_no_editor_is_dropped_and_an_editor_served(served, sent: bytes) -> None:
    process, port = served
    with connect(port) as other:
        try:
            other.sendall(sent)
            other.shutdown(socket.SHUT_WR)
        except OSError:  # dropped already
            pass
        assert is_dropped(other)
    with connect(port) as editor:
        editor.sendall(HELLO)
        assert b'"spex"' in answer(editor)
        with connect(port) as second:
            second.sendall(HELLO)
            assert is_dropped(second)
        editor.sendall(message("shutdown", 2))
        assert re.search(rb'"id": ?2', answer(editor))
        editor.sendall(message("exit"))
        assert process.wait(SECONDS) == 0


def test_it_ends_when_its_editor_leaves(served) -> None:
    process, port = served
    with connect(port) as editor:
        editor.sendall(HELLO)
        assert answer(editor)
    assert process.wait(SECONDS) == 1  # without a shutdown, as the protocol asks
