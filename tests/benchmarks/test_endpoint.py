"""The endpoint benchmark runs, on few calls, and its count of repeated requests counts them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)  # as it is for a script of this folder


def test_it_runs(tmp_path):
    bench, endpoint = (importlib.import_module(name) for name in ("bench", "endpoint"))
    rows = bench.Rows.open(tmp_path / "endpoint.jsonl")
    endpoint.run(rows, endpoint.Plan(calls=24, latency=0.01, allowed=4, runs=1))
    assert [(row["who"], row["cap"], row["faults"]) for row in rows.rows] == [
        (who, cap, faults)
        for cap, faults in ((4, 0.0), (8, 0.0), (4, endpoint.FAULTS))
        for who in ("spex", "peer")
    ]
    for row in rows.rows:
        if row["who"] == "spex":
            assert (row["lost"], row["again"]) == (0, 0)
            assert row["requests"] == 24 + row["refused"] + row["faulty"]
    assert rows.rows[2]["refused"] > 0


def entry(prompt: str, started: float, ended: float, status: int | None = 200) -> dict:
    return {"body": {"prompt": prompt}, "started": started, "ended": ended, "status": status}


def test_what_counts_as_requested_again():
    again = importlib.import_module("endpoint").requested_again
    assert again([entry("a", 0, 1), entry("b", 2, 3)]) == 0
    assert again([entry("a", 0, 1, None), entry("a", 2, 3), entry("a", 2.5, 3)]) == 0
    assert again([entry("a", 0, 1), entry("a", 2, 3, None)]) == 1
