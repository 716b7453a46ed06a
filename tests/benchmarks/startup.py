"""Start to ``initialize`` answered, and memory then, beside a bare pygls server in the same run.

    python tests/benchmarks/startup.py [--rounds 20]

The peer is pygls with one feature, the least a server can be. Rounds alternate, after one warm-up
each, so that both meet the same machine; the figures are medians. Prints a Markdown table.
Bars (issue 2): time at most 1.3x, memory at most 25 MB above.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

BARE = """
from lsprotocol import types
from pygls.lsp.server import LanguageServer

server = LanguageServer("bare", "1")

@server.feature(types.TEXT_DOCUMENT_HOVER)
def hover(params: types.HoverParams):
    return None

server.start_io()
"""
COMMANDS = {
    "bare pygls": [sys.executable, "-P", "-c", BARE],
    "spex": [sys.executable, "-P", "-m", "server", "--stdio"],
}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"processId": os.getpid(), "rootUri": None, "capabilities": {}},
}


def measure(command: list[str]) -> tuple[float, float]:
    """(seconds from the start to the answer, resident memory in MB then)."""
    body = json.dumps(INITIALIZE).encode()
    started = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        process.stdin.flush()
        length = 0
        while (line := process.stdout.readline()) != b"\r\n":
            assert line, "the server ended"
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        answer = json.loads(process.stdout.read(length))
        seconds = time.perf_counter() - started
        assert "capabilities" in answer["result"], answer
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        process.kill()
    return seconds, int(found[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Start-up benchmark")
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    for command in COMMANDS.values():
        measure(command)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            seen[name].append(measure(command))
    median = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in seen.items()
    }
    print("| server | start to initialize answered, ms | resident memory, MB |")
    print("|---|---|---|")
    for name, (seconds, memory) in median.items():
        print(f"| {name} | {1000 * seconds:.0f} | {memory:.1f} |")
    bare, spex = median["bare pygls"], median["spex"]
    print(f"| ratio / difference | {spex[0] / bare[0]:.2f}x | {spex[1] - bare[1]:+.1f} |")


if __name__ == "__main__":
    main()
