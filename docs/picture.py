"""Draws docs/explained.svg, the picture in the README, from a real run: ``make picture``."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

from rich.console import Console

from server import terminal
from server.explained import Explained
from server.planning import make_plan
from server.settings import Settings
from server.worker_client import WorkerClient

EXAMPLE = Path("examples/two-facts.prompt.md")


async def explained() -> Explained:
    plan = make_plan(EXAMPLE.read_text(encoding="utf-8"), EXAMPLE.resolve(), Settings())
    worker = WorkerClient()
    try:
        return Explained(plan, await worker.explain(plan.request, lambda progress: None))
    finally:
        await worker.close()


def main(out: Path) -> None:
    console = Console(record=True, width=96, file=io.StringIO(), force_terminal=True)
    console.print(terminal.rendered(asyncio.run(explained()), str(EXAMPLE)))
    console.save_svg(str(out), title="spex explain examples/two-facts.prompt.md")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
