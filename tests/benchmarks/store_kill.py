"""kill -9 at random moments of a run: what was acknowledged is kept, and is never paid for again.

    python tests/benchmarks/store_kill.py [--kills 20] [--values 400] [--pause 0.001] [--seed 0]

A process scores masks through the evaluation store, with a scorer whose values follow from the
mask alone, and says which it was given, as a worker does. Every other time it is killed at a moment
drawn from the length of the run, and else at once when it has acknowledged a value that was drawn,
which is when a value that is not yet kept would be lost. Then the store is read: every value that
was acknowledged must be there and be right. A second process runs to the end: it may ask the
scorer for none of those. With --pause 0 most of the time goes into
writing, so that most kills strike there.
Bar (issue 4): 20 kills, nothing lost, the rerun pays only for the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bench
import numpy as np

from spex_engine.backends.base import Scores
from spex_engine.store import Store
from spex_engine.stored_scorer import StoredScorer

WIDTH = 8  # scores of a mask
BITS = 20


class SlowScorer:
    """Scores that follow from the mask, some in each portion; says what it is asked for."""

    tier = "T1"
    scale = "token"
    n_segments = BITS
    targets = ()
    notes = ()

    def __init__(self, pause: float) -> None:
        self.pause = pause  # seconds a value

    def addresses(self, masks: np.ndarray) -> list[bytes]:
        return [hashlib.sha256(mask.tobytes()).digest() for mask in masks]

    def score(self, masks, should_stop) -> Iterator[tuple[np.ndarray, Scores]]:
        addresses, start = self.addresses(masks), 0
        while start < len(masks):
            rows = np.arange(start, min(start + 1 + addresses[start][0] % 8, len(masks)))
            for row in rows:
                print("asked", addresses[row].hex(), flush=True)
                if self.pause:
                    time.sleep(self.pause)
            values = np.stack([truth(addresses[row]) for row in rows])
            yield rows, Scores(values, np.ones(len(rows), np.int64))
            start = rows[-1] + 1


def truth(address: bytes) -> np.ndarray:
    return -np.frombuffer(address, "<u4").astype(np.float64) / 7


def run(path: Path, n_values: int, pause: float) -> None:
    """What the process does that is killed."""
    masks = np.array([[i >> bit & 1 for bit in range(BITS)] for i in range(n_values)], np.bool_)
    print("ready", flush=True)
    with contextlib.closing(Store(path)) as store:
        scorer = StoredScorer(SlowScorer(pause), store)
        addresses = scorer.addresses(masks)
        for rows, _ in scorer.score(masks, lambda: False):
            for row in rows:
                print("given", addresses[row].hex(), flush=True)
        print("counts", scorer.computed, scorer.reused, flush=True)


@dataclass
class Said:
    """What a process said: what the scorer was asked for, what was acknowledged, its counts."""

    asked: list[bytes]
    given: list[bytes]
    counts: tuple[int, int] | None
    seconds: float  # from ready to its end


def watch(
    path: Path,
    n_values: int,
    pause: float,
    kill_after: float | None = None,
    kill_at: int | None = None,
) -> Said:
    """Runs the process, to its end or until it is killed: after seconds, or at the n-th value."""
    command = [sys.executable, __file__, "--run", str(path)]
    command += ["--values", str(n_values), "--pause", str(pause)]
    lines, given = [], 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        started = time.monotonic()
        killer = threading.Timer(kill_after or 0, process.kill)
        if kill_after is not None:
            killer.start()
        for line in process.stdout:
            lines.append(line)
            given += line.startswith("given")
            if given == kill_at:
                process.kill()
        seconds = time.monotonic() - started
        killer.cancel()
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]  # it was cut
    said: dict[str, list[str]] = {"asked": [], "given": [], "counts": []}
    for line in lines:
        word, rest = line.split(" ", 1)
        said[word].append(rest)
    counts = tuple(map(int, said["counts"][0].split())) if said["counts"] else None
    addresses = ([bytes.fromhex(one) for one in said[word]] for word in ("asked", "given"))
    return Said(*addresses, counts, seconds)


def measure(kills: int, n_values: int, pause: float, seed: int, folder: Path) -> list[dict]:
    """A row for each kill; the first whole run says how long a run is."""
    length = watch(folder / "whole.sqlite3", n_values, pause).seconds
    draw, rows = random.Random(seed), []
    while len(rows) < kills:
        path, moment = folder / f"{len(rows)}.sqlite3", draw.random()
        if len(rows) % 2:
            killed = watch(path, n_values, pause, kill_at=1 + int(moment * n_values))
        else:
            killed = watch(path, n_values, pause, kill_after=moment * length)
        if killed.counts is not None:  # it was over before; a quick machine can do that
            path.unlink()
            continue
        with contextlib.closing(Store(path)) as store:
            held = store.stats().evaluations
            found = store.get(killed.given)
        kept = [one for one in killed.given if one in found]
        right = [one for one in kept if (found[one].values == truth(one)).all()]
        rerun = watch(path, n_values, pause)
        assert rerun.counts is not None
        rows.append(
            {
                "killed after, ms": round(1000 * killed.seconds),
                "acknowledged": len(killed.given),
                "in the store": held,
                "lost": len(killed.given) - len(kept),
                "wrong": len(kept) - len(right),
                "rerun computed": rerun.counts[0],
                "rerun reused": rerun.counts[1],
                "asked": len(rerun.asked),
                "paid twice": len(set(rerun.asked) & set(killed.given)),
                "missing": n_values - len(set(rerun.given)),
            }
        )
    return rows


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, help="20, or 5 where --quick")
    parser.add_argument("--values", type=int, default=400)
    parser.add_argument("--pause", type=float, default=0.001, help="seconds that a value takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="be the process that is killed")


def main() -> None:
    if "--run" in sys.argv:
        parser = argparse.ArgumentParser()
        flags(parser)
        asked = parser.parse_args()
        run(asked.run, asked.values, asked.pause)
        return
    given = bench.arguments("store_kill", __doc__, flags)
    kills = given.kills or (5 if given.quick else 20)
    if len(given.rows.rows) >= kills:  # the moments follow from one seed: all or none
        return
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(kills, given.values, given.pause, given.seed, Path(folder)):
            given.rows.add(row)


if __name__ == "__main__":
    main()
