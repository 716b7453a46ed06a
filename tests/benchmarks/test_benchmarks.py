"""Every benchmark runs, without peers and on the smallest case, so that none rots unseen."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from spex_engine import SparseFourier

HERE = Path(__file__).parent
SPEX_ALONE = (
    "spex_peers", "synthetic", "error_bars", "scale", "recorded", "chosen_masks", "methods",
)  # fmt: skip
MODELS = ("local_backend", "local_memory", "endpoint", "store_kill")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)  # as it is for a script of this folder


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def toy() -> SparseFourier:
    """A smooth function of 6 features."""
    return SparseFourier(6, "truth", ((), (0,), (1, 2), (3,)), np.array([1.0, 2.0, 1.0, 0.5]))


def run(name: str, path: Path) -> list[dict]:
    bench, games, module = load("bench"), load("games"), load(name)
    rows = bench.Rows.open(path / f"{name}.jsonl")
    if name in ("recorded", "chosen_masks"):
        masks = np.random.default_rng(0).random((700, 6)) < 0.5
        pool = games.Recorded("toy_n6", masks, toy().predict(masks))
        module.run(rows, [pool], module.TINY, *([False] if name == "recorded" else []))
    elif name == "error_bars":
        module.run(rows, module.TINY, None)
    elif name == "synthetic":
        module.run(rows, module.tiny(), False)
    elif name == "scale":
        module.run(rows, module.TINY)
    elif name == "endpoint":
        module.run(rows, module.Plan(calls=24, latency=0.01, allowed=4, runs=1))
    elif name == "store_kill":
        for row in module.measure(2, 100, 0.001, 0, path):
            rows.add(row)
    elif name in MODELS:
        module.run(rows, module.TINY)
    else:
        module.run(rows, module.TINY, False)
    return bench.read(rows.path)


def test_every_benchmark_runs_and_is_reported(tmp_path: Path) -> None:
    results = {name: run(name, tmp_path) for name in (*SPEX_ALONE, *MODELS)}
    assert all(results.values())
    scores = [row["r2"] for rows in results.values() for row in rows if row.get("r2") is not None]
    assert max(scores) > 0.99
    report = load("report")
    found = report.tables(results)
    assert set(found) == {
        "bars",
        "model-bars",
        *(marker for of in report.TABLES.values() for marker in of),
    }
    for table in found.values():
        lines = table.splitlines()
        assert len(lines) > 2, table
        assert len({line.count("|") for line in lines}) == 1, table
    load("plots").draw(results, tmp_path)
    assert (tmp_path / "recorded.svg").read_text().startswith("<?xml")
    assert (tmp_path / "scale.svg").read_text().startswith("<?xml")


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    bench = load("bench")
    rows = bench.Rows.open(tmp_path / "rows.jsonl")
    assert rows.measure({"n": 1}, lambda: {"r2": 0.5}) == {"n": 1, "r2": 0.5}
    again = bench.Rows.open(tmp_path / "rows.jsonl")
    assert again.measure({"n": 1}, lambda: pytest.fail("measured again")) == {"n": 1, "r2": 0.5}
    assert bench.Rows.open(tmp_path / "rows.jsonl", fresh=True).rows == []


def test_the_document_has_a_place_for_every_table() -> None:
    report = load("report")
    markers = ["bars", *(marker for of in report.TABLES.values() for marker in of)]
    filled = report.into(report.DOCUMENT.read_text(encoding="utf-8"), dict.fromkeys(markers, "T\n"))
    assert filled.count("-->\nT\n<!-- end") == len(markers)
    with pytest.raises(ValueError, match="no markers for table 'other'"):
        report.into("", {"other": ""})


def test_authors_rows_are_imported_once(tmp_path: Path) -> None:
    bench, recorded = load("bench"), load("recorded")
    theirs = {"game": "toy_n6", "n": 6, "m": 500, "k": 2, "r2": 0.5, "sec": 9.0, "terms": 7}
    (tmp_path / "authors.jsonl").write_text(json.dumps(theirs) + "\n")
    rows = bench.Rows.open(tmp_path / "recorded.jsonl")
    for _ in range(2):
        recorded.import_authors(rows, tmp_path / "authors.jsonl")
    (row,) = bench.read(rows.path)
    assert (row["calls"], row["draw"], row["timed"]) == (500, 2, False)


def test_bars_compare_the_same_draws() -> None:
    bars = load("bars")
    scores = {("gp", 0): 0.9, ("gp", 1): 0.5, ("ridge", 0): 0.8}
    rows = [{"method": m, "draw": k, "r2": r2} for (m, k), r2 in scores.items()]
    assert bars.mean_gain(rows, "gp", "ridge") == pytest.approx(0.1)
    assert bars.mean_gain(rows, "gp", "linear") is None


def test_the_peers_forms_become_ours() -> None:
    peers = load("peers")
    masks = np.random.default_rng(0).random((50, 4)) < 0.5
    moebius = {(): 2.0, (1,): -1.0, (0, 2, 3): 4.0}
    f = peers._fourier(4, "peer", peers._from_moebius(moebius))
    expected = 2.0 - masks[:, 1] + 4.0 * masks[:, [0, 2, 3]].all(axis=1)
    np.testing.assert_allclose(f.predict(masks), expected, atol=1e-12)
    slopes = np.array([1.0, -2.0, 0.5, 0.0])
    linear = peers._from_slopes("peer", 3.0, slopes)
    np.testing.assert_allclose(linear.predict(masks), 3.0 + masks @ slopes, atol=1e-12)


def test_simulated_games_are_what_they_say() -> None:
    games = load("games")
    first, again, other = (games.sparse(8, seed).truth.to_dict() for seed in (1, 1, 2))
    assert first == again != other
    game = games.language(8, 0)
    assert game.score(game.exact()) == pytest.approx(1.0)
    masks, values = game.samples(30, 0)
    assert np.abs(values - game.value(masks)).max() > 0
    np.testing.assert_array_equal(game.noisy(3)(masks), game.noisy(3)(masks.astype(int)))


def test_the_start_of_the_server_is_measured() -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "startup.py"), "--rounds", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| ratio / difference |" in done.stdout


def test_a_benchmark_starts_itself_anew_on_one_core(tmp_path: Path) -> None:
    script = tmp_path / "shown.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "import bench\n"
        "given = bench.arguments('shown', None)\n"
        "cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1\n"
        "print(os.environ['OPENBLAS_NUM_THREADS'], cores, given.peers, given.rows.path.name)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), "--no-peers", "--results", str(tmp_path / "rows.jsonl")],
        capture_output=True,
        text=True,
        env={"PATH": ""},
    )
    assert done.stdout == "1 1 False rows.jsonl\n", done.stderr
