"""What the benchmarks share: a pinned process, rows that are kept as they come, and cells apart.

Knows nothing of what is measured. A benchmark is a function from `Rows` to nothing: it asks for one
row after the other, and a row whose key is in the results file already is not measured again, so
that a run may be stopped and taken up.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
RESULTS = REPO / "build" / "benchmarks"
GAMES = REPO.parent / "shared" / "games"  # recorded games live beside the repository

Row = dict[str, Any]

_PINNED = "SPEX_BENCHMARK_PINNED"
_ONE_THREAD = ("OMP", "OPENBLAS", "MKL", "NUMBA", "NUMEXPR", "VECLIB_MAXIMUM")


@dataclass
class Rows:
    """A results file: one JSON object a line, appended as they are measured."""

    path: Path
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, fresh: bool = False) -> Rows:
        """The rows of ``path``, which need not exist; none of them where ``fresh``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        return cls(path, read(path))

    def measure(self, key: Row, measurement: Callable[[], Row]) -> Row:
        """The row with that key, measured and written now where it is not there yet."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        return self.add({**key, **measurement()})

    def add(self, row: Row) -> Row:
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{name}={_short(value)}" for name, value in row.items()), flush=True)
        return row


def read(path: Path) -> list[Row]:
    """The rows of a results file; none where it does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def arguments(
    name: str, description: str | None, more: Callable[[argparse.ArgumentParser], object] = id
) -> argparse.Namespace:
    """The arguments all benchmarks take and ``more``, in a process pinned to one core.

    ``rows`` of the result is the results file, opened.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="where the rows are kept")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--quick", action="store_true", help="a part of it, for a first look")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="Spex alone")
    parser.add_argument("--games", type=Path, default=GAMES, help="folder of the recorded games")
    parser.add_argument("--core", type=int, help="the processor core to stay on (default: last)")
    more(parser)
    parsed = parser.parse_args()
    pin(parsed.core)
    folder = RESULTS / "quick" if parsed.quick else RESULTS
    parsed.rows = Rows.open(parsed.results or folder / f"{name}.jsonl", parsed.fresh)
    return parsed


def pin(core: int | None = None) -> None:
    """Stay on one core with one thread, all libraries alike, by starting this script anew.

    Thread pools are sized when numpy is loaded, so that variables set by then come too late. The
    core is for those who count cores instead of reading variables (``n_jobs=-1``).
    """
    if os.environ.get(_PINNED):
        return
    if hasattr(os, "sched_setaffinity"):  # Linux only; elsewhere the variables must do
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(allowed) if core is None else core})
    os.environ.update({f"{library}_NUM_THREADS": "1" for library in _ONE_THREAD})
    os.environ[_PINNED] = "1"
    os.execv(sys.executable, [sys.executable, *sys.argv])


def apart(function: Callable[..., Row], *values: Any) -> Row:
    """What a function of this folder returns, called in a process of its own.

    Its ``peak_mib`` is the most memory that this process ever held: of the interpreter, the
    libraries and the measurement, and of nothing measured before. Values and rows are JSON.
    """
    call = json.dumps([function.__module__, function.__name__, values])
    if function.__module__ == "__main__":
        call = json.dumps([Path(sys.argv[0]).stem, function.__name__, values])
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), call], capture_output=True, text=True, cwd=REPO
    )
    if done.returncode:
        raise RuntimeError(f"{call} failed:\n{done.stderr}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def peak_mib() -> float:
    """The most memory this process ever held, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start with what the parent had held
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _main() -> None:
    module, name, values = json.loads(sys.argv[1])
    row = getattr(__import__(module), name)(*values)
    print(json.dumps({**row, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    _main()
