"""How near requests to an endpoint come to its ideal throughput, and what faults cost.

    python tests/benchmarks/endpoint.py [--calls 1000] [--latency 0.2] [--allowed 32] [--quick]

The endpoint is a stub in a process of its own that answers after ``latency`` seconds, ``allowed``
requests at once, and refuses what is above with 429. ``share`` is the ideal time, calls / allowed *
latency, over the measured. The peer is what is usually written: AsyncOpenAI with its two retries
behind a semaphore. With faults, 5% of the requests meet a 429, a 500 or no answer at all, by seed.
``lost``: calls without a value. ``again``: requests for a value that had been acknowledged by then,
from the stub's log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import bench

from spex_engine.backends.openai.budget import Cost
from spex_engine.backends.openai.dispatch import open_dispatcher
from spex_engine.backends.openai.loop import Loop
from spex_engine.backends.openai.pool import Patience
from spex_engine.wire import Access

STUB = bench.REPO / "tests" / "engine" / "openai_stub.py"
FAULTS = 0.05  # the share of requests that meet one, each kind a third
GIVE_UP = 2.0  # seconds without an answer, for both


@dataclass(frozen=True)
class Plan:
    calls: int = 1000
    latency: float = 0.2
    allowed: int = 32
    runs: int = 3
    peers: bool = True


def run(rows: bench.Rows, plan: Plan) -> None:
    """Clean with the cap at what is allowed, then twice that, then with faults; both in turn."""
    whos = ("spex", "peer") if plan.peers else ("spex",)
    with stub(Plan(latency=0.0), 0.0, 0) as url:  # so that nobody pays for importing the SDK
        _spex(url, 1, 1, 0)
    for cap, faults in ((plan.allowed, 0.0), (2 * plan.allowed, 0.0), (plan.allowed, FAULTS)):
        for draw in range(plan.runs):
            for who in whos:
                key = {"who": who, "calls": plan.calls, "latency": plan.latency, "draw": draw}
                key |= {"allowed": plan.allowed, "cap": cap, "faults": faults}
                rows.measure(key, functools.partial(cell, who, plan, cap, faults, draw))


def cell(who: str, plan: Plan, cap: int, faults: float, draw: int) -> bench.Row:
    with stub(plan, faults, draw) as url:
        ask = _spex if who == "spex" else _peer
        started = time.perf_counter()
        values = ask(url, plan.calls, cap, draw)
        seconds = time.perf_counter() - started
        origin = url.removesuffix("/v1")
        with urllib.request.urlopen(f"{origin}/log") as answer:
            log = json.load(answer)["log"]
    wrong = [i for i, value in values.items() if value != f"prompt {i}"]
    assert not wrong, f"values of other prompts: {wrong}"
    return {
        "seconds": seconds,
        "share": plan.calls / plan.allowed * plan.latency / seconds,
        "lost": plan.calls - len(values),
        "again": requested_again(log),
        "requests": len(log),
        "refused": sum(e["status"] == 429 and e["fault"] is None for e in log),
        "faulty": sum(e["fault"] is not None for e in log),
    }


def requested_again(log: list[bench.Row]) -> int:
    """Requests that began after an answer to the same prompt had been sent to its end."""
    answered: dict[str, float] = {}
    for entry in log:
        if entry["status"] == 200:
            prompt = entry["body"]["prompt"]
            answered[prompt] = min(entry["ended"], answered.get(prompt, entry["ended"]))
    return sum(e["started"] > answered.get(e["body"]["prompt"], e["started"]) for e in log)


@contextlib.contextmanager
def stub(plan: Plan, faults: float, seed: int) -> Iterator[str]:
    """The URL of an endpoint that ends with the block, on the cores this process is not on."""
    shares = dict.fromkeys(("too_many", "error", "hang"), faults / 3)
    command = [sys.executable, str(STUB), "--latency", str(plan.latency)]
    command += ["--allowed", str(plan.allowed), "--faults", json.dumps(shares)]
    command += ["--seed", str(seed)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if hasattr(os, "sched_setaffinity"):
            others = set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0)
            if others:
                os.sched_setaffinity(process.pid, others)
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def _spex(url: str, calls: int, cap: int, seed: int) -> dict[int, str]:
    access = Access(base_urls=(url,), concurrency=cap)
    dispatcher = open_dispatcher(
        access, "stub", seed=seed, patience=Patience(answer_within=GIVE_UP)
    )
    loop = Loop()

    async def value(i: int) -> str:
        answer = await dispatcher.request(
            lambda client: client.completions.with_raw_response.create(
                model="stub", prompt=f"prompt {i}", max_tokens=1
            ),
            Cost(20, 1),
        )
        return str(answer.value.choices[0].text)

    jobs = ((i, lambda i=i: value(i)) for i in range(calls))
    arrivals = loop.arrivals(jobs, 2 * cap, lambda: False)
    values = {i: got for i, got in arrivals if isinstance(got, str)}
    loop.run(dispatcher.close(), lambda: False)
    loop.close()
    return values


def _peer(url: str, calls: int, cap: int, seed: int) -> dict[int, str]:
    return asyncio.run(_usual_script(url, calls, cap))


async def _usual_script(url: str, calls: int, cap: int) -> dict[int, str]:
    import openai

    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=2, timeout=GIVE_UP)
    semaphore = asyncio.Semaphore(cap)
    values = {}

    async def value(i: int) -> None:
        async with semaphore:
            with contextlib.suppress(openai.OpenAIError):
                answer = await client.completions.create(
                    model="stub", prompt=f"prompt {i}", max_tokens=1
                )
                values[i] = answer.choices[0].text

    await asyncio.gather(*map(value, range(calls)))
    await client.close()
    return values


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=int, default=Plan.calls)
    parser.add_argument("--latency", type=float, default=Plan.latency, help="seconds")
    parser.add_argument("--allowed", type=int, default=Plan.allowed, help="requests at once")


def main() -> None:
    given = bench.arguments("endpoint", __doc__, _more)
    runs = 1 if given.quick else Plan.runs
    run(given.rows, Plan(given.calls, given.latency, given.allowed, runs, given.peers))


if __name__ == "__main__":
    main()
