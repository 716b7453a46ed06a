"""What is there: ``spex doctor`` examines the installation and models, ``spex cache`` the store."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import sys
from typing import Any

from server.console import DONE, MODEL, ended, fail, standard_output
from server.explained import printable
from server.headless import ask_worker, said_by, worker_for
from server.planning import Plan, make_plan
from server.settings import Settings, replaced
from server.worker_client import WorkerError
from spex_engine import wire

READY_WITH = "pip install 'spex-lsp[{}]'"
TIERS = {
    "T1": "the answer's own tokens are scored",
    "T2": "the first token, or labels, are scored",
    "T3": "answers are regenerated and compared",
}


def cache(options: argparse.Namespace) -> int:
    """The exit code of ``spex cache``."""
    return ended(lambda: _cache(options.action))


def doctor(options: argparse.Namespace) -> int:
    """What is installed, whether the worker starts, and what the model asked for can do."""
    return ended(lambda: _doctor(options))


def _cache(action: str) -> int:
    stats = asyncio.run(ask_worker("demo", wire.CACHE, {"action": action}, wire.CacheStats))
    with standard_output() as out:
        print(f"folder        {printable(stats.path)}", file=out)
        answers = f" ({stats.with_answers:,} with the answer)" if stats.with_answers else ""
        print(f"evaluations   {stats.evaluations:,}{answers}", file=out)
        print(f"explanations  {stats.explanations:,}", file=out)
        size, limit = stats.size / 2**20, stats.limit / 2**20
        print(f"size          {size:,.1f} MiB of at most {limit:,.0f} MiB", file=out)
        if stats.oldest is not None:
            day = datetime.date.fromtimestamp(stats.oldest).isoformat()
            print(f"oldest use    {day}", file=out)
        for note in stats.notes:
            print(f"note: {printable(note)}", file=out)
    return DONE


def _doctor(options: argparse.Namespace) -> int:
    hello, demo = asyncio.run(_examine())
    local = all(hello.packages[name] for name in ("torch", "transformers"))
    ways = {
        "demo": demo or "ready",
        "hf": "ready" if local else READY_WITH.format("local"),
        "encoder": "ready" if local else READY_WITH.format("encoder"),
        "openai": "ready" if hello.packages["openai"] else READY_WITH.format("openai"),
        "ray+hf": "ready" if local and hello.packages["ray"] else READY_WITH.format("ray"),
    }
    with standard_output() as out:
        print(f"interpreter  {sys.executable} (Python {hello.python})", file=out)
        print(f"engine       {hello.engine}, worker protocol {hello.protocol}", file=out)
        for name, version in hello.packages.items():
            print(f"{name:<12} {version or 'not installed'}", file=out)
        for i, (scheme, how) in enumerate(ways.items()):
            print(f"{'models' if i == 0 else '':<12} {scheme}: {how}", file=out)
    if demo is not None:
        return fail(MODEL, f"The embedded model does not work: {demo}")
    if options.model is not None or options.baseUrls:
        request = _example_plan(**said_by(options)).request
        report = asyncio.run(
            ask_worker(request.model, wire.EXAMINE, wire.to_json(request), wire.ModelReport)
        )
        with standard_output() as out:
            meaning = TIERS.get(report.tier, "")
            print(f"{printable(report.model)}: tier {report.tier}, {meaning}", file=out)
            for note in report.notes:
                print(f"note: {printable(note)}", file=out)
    return DONE


async def _examine() -> tuple[wire.Handshake, str | None]:
    """What the worker is, and why the embedded model fails; None: it has explained a prompt."""
    worker = worker_for("demo")
    plan = _example_plan(store=False)
    try:
        hello = await worker.hello()
        try:
            await worker.explain(plan.request, lambda _: None)
        except WorkerError as error:
            return hello, str(error)
        return hello, None
    finally:
        await worker.close()


def _example_plan(**said: Any) -> Plan:
    settings = replaced(Settings(target="Paris", segments="line", budget=4), said)
    return make_plan("Anna lives in Paris.\nWhere does Anna live?", None, settings)
