"""A server of OpenAI's protocol for tests: answers by handlers, faults by seed, a log of requests.

    with Stub({"/v1/completions": handler}, latency=0.2, allowed=32) as stub: ... stub.url, stub.log

Standard library only, on 127.0.0.1 and a free port, in a thread. As a script it is a process of its
own that prints its URL and ends when its standard input does; GET /log tells what it has served.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Fault = Literal["429", "500", "hang", "reset", "garbage", "drip"]
Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """An answer other than 200 with JSON. A body of text is sent as a web page."""

    status: int = 200
    body: Body | str | bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Body, dict[str, str]], Body | Reply]


@dataclass(frozen=True)
class Faults:
    """The share of requests that meet each fault, drawn by the stub's seed in order of arrival.

    hang: no answer until the client gives up. reset: the connection is cut before an answer. drip:
    an answer that never ends, a byte at a time.
    retry_after: the header of a 429, as it is sent; None: without.
    """

    too_many: float = 0.0
    error: float = 0.0
    hang: float = 0.0
    reset: float = 0.0
    garbage: float = 0.0
    drip: float = 0.0
    retry_after: str | None = None

    def draw(self, random_: random.Random) -> Fault | None:
        shares: dict[Fault, float] = {
            "429": self.too_many,
            "500": self.error,
            "hang": self.hang,
            "reset": self.reset,
            "garbage": self.garbage,
            "drip": self.drip,
        }
        point = random_.random()
        for fault, share in shares.items():
            point -= share
            if point < 0:
                return fault
        return None


@dataclass(frozen=True)
class Rate:
    """At most ``limit`` requests at once, regained over ``per`` seconds; said in headers or not."""

    limit: int
    per: float
    headers: bool = True


@dataclass
class Entry:
    """One request; status None: none was sent, or not to its end. Times of `time.monotonic`."""

    path: str
    body: Body
    headers: dict[str, str]
    started: float
    status: int | None = None
    fault: str | None = None
    ended: float | None = None
    at_once: int = 0  # requests being served when it came, itself included


class Stub:
    """Serves from ``__enter__`` to ``__exit__``; `stop` and `start` keep the port."""

    def __init__(
        self,
        handlers: Mapping[str, Handler] | None = None,
        latency: float = 0.0,
        allowed: int | None = None,
        rate: Rate | None = None,
        faults: Faults = Faults(),
        seed: int = 0,
    ) -> None:
        self.handlers: dict[str, Handler] = {**ANSWERS, **(handlers or {})}
        self.latency = latency
        self.allowed = allowed
        self.rate = rate
        self.faults = faults
        self.log: list[Entry] = []
        self.at_once = 0
        self.connections = 0  # ever opened
        self._random = random.Random(seed)
        self._left = float(rate.limit) if rate else 0.0
        self._left_at = time.monotonic()
        self._port = 0
        self._started = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Stub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._started.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(10), "the stub did not start"

    def stop(self) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            self._thread = None

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            task = asyncio.ensure_future(self._connection(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", self._port, backlog=1024)
        self._port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; False: the connection is over."""
        head = await reader.readexactly(1)
        if head == b"\x16":  # the first of TLS, which a server without it does not understand
            await _write(writer, Reply(400))
            return False
        head += await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {
            n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines if line)
        }
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        body = json.loads(content) if content else {}
        if path == "/log":
            await _write(writer, Reply(body={"log": [asdict(entry) for entry in self.log]}))
            return True
        self.at_once += 1
        entry = Entry(path, body, headers, time.monotonic(), at_once=self.at_once)
        self.log.append(entry)
        # one who goes away while being served is noticed, as servers do
        gone = asyncio.ensure_future(reader.read(1))
        served = asyncio.ensure_future(self._reply(method, entry, writer))
        try:
            await asyncio.wait({gone, served}, return_when=asyncio.FIRST_COMPLETED)
            if not served.done():
                return False
            reply = served.result()
            if reply is None:
                return False
            await _write(writer, reply)
            entry.status = reply.status
        finally:
            self.at_once -= 1
            entry.ended = time.monotonic()
            served.cancel()
            gone.cancel()
            await asyncio.gather(gone, served, return_exceptions=True)
        return True

    async def _reply(self, method: str, entry: Entry, writer: asyncio.StreamWriter) -> Reply | None:
        fault = entry.fault = self.faults.draw(self._random)
        if self.allowed is not None and entry.at_once > self.allowed:
            return error(429, "Too many requests at once.", code="rate_limit_exceeded")
        limits = {}
        if self.rate is not None:
            limits = self._limits(self.rate)
            if self._left < 1:
                return error(429, "Rate limit reached.", limits, code="rate_limit_exceeded")
            self._left -= 1
            limits = self._limits(self.rate)
        if fault == "429":
            after = self.faults.retry_after
            return error(429, "Slow down.", {"retry-after": after} if after else {})
        if fault == "hang":
            await asyncio.sleep(3600)
        if self.latency:
            await asyncio.sleep(self.latency)
        if fault == "500":
            return error(500, "The server had an error.")
        if fault == "reset":
            writer.transport.abort()
            return None
        if fault == "garbage":
            return Reply(body=b'{"choices": [{')
        if fault == "drip":
            writer.write(b"HTTP/1.1 200 Stub\r\ncontent-type: application/json\r\n\r\n")
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.02)
        path = entry.path.partition("?")[0]
        handler = self.handlers.get(f"{method} {path}") or self.handlers.get(path)
        if handler is None:
            return Reply(404, {"detail": "Not Found"})
        answer = handler(entry.body, entry.headers)
        if not isinstance(answer, Reply):
            return Reply(body=answer, headers=limits)
        return Reply(answer.status, answer.body, {**limits, **answer.headers})

    def _limits(self, rate: Rate) -> dict[str, str]:
        now = time.monotonic()
        self._left = min(rate.limit, self._left + (now - self._left_at) * rate.limit / rate.per)
        self._left_at = now
        if not rate.headers:
            return {}
        reset = (1 - self._left / rate.limit) * rate.per
        return {
            "x-ratelimit-limit-requests": str(rate.limit),
            "x-ratelimit-remaining-requests": str(int(self._left)),
            "x-ratelimit-reset-requests": f"{reset * 1000:.0f}ms",
        }


def completions(body: Body, headers: Mapping[str, str]) -> Body:
    """Echoes the prompt as its text, so that who asked can tell what was answered."""
    return {
        "id": "cmpl-stub",
        "object": "text_completion",
        "created": 0,
        "model": body.get("model"),
        "choices": [{"index": 0, "text": body.get("prompt"), "finish_reason": "length"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8},
    }


def chat(body: Body, headers: Mapping[str, str]) -> Body:
    """Echoes the last message."""
    message = {"role": "assistant", "content": body["messages"][-1]["content"]}
    return {
        "id": "chatcmpl-stub",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }


def models(body: Body, headers: Mapping[str, str]) -> Body:
    return {"object": "list", "data": [{"id": "stub", "object": "model", "owned_by": "nobody"}]}


ANSWERS: dict[str, Handler] = {
    "/v1/completions": completions,
    "/v1/chat/completions": chat,
    "GET /v1/models": models,
}


def error(
    status: int, message: str, headers: Mapping[str, str] | None = None, **more: Any
) -> Reply:
    """An error as OpenAI words it; more: code, param, type."""
    return Reply(status, {"error": {"message": message, "type": "stub", **more}}, headers or {})


async def _write(writer: asyncio.StreamWriter, reply: Reply) -> None:
    kind = "application/json"
    if isinstance(reply.body, str):
        content, kind = reply.body.encode(), "text/html"
    else:
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
    headers = {"content-type": kind, "content-length": str(len(content)), **reply.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {reply.status} Stub\r\n{head}\r\n".encode() + content)
    await writer.drain()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--allowed", type=int)
    parser.add_argument("--faults", type=json.loads, default={}, help="fields of Faults, as JSON")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    faults = Faults(**given.faults)
    with Stub(None, given.latency, given.allowed, faults=faults, seed=given.seed) as stub:
        print(stub.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
