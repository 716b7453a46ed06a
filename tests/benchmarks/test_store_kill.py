"""Five kills: what the benchmark shows of twenty."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.mark.parametrize("pause", [0.001, 0.0])
def test_nothing_acknowledged_is_lost_or_paid_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)  # as it is for a script of this folder
    rows = importlib.import_module("store_kill").measure(
        kills=3 if pause else 2,
        n_values=150 if pause else 800,
        pause=pause,
        seed=5,
        folder=tmp_path,
    )
    values = 150 if pause else 800
    assert sum(row["acknowledged"] for row in rows) > 0
    for row in rows:
        assert row["lost"] == row["wrong"] == row["paid twice"] == row["missing"] == 0
        assert row["acknowledged"] <= row["in the store"] <= values
        assert row["rerun reused"] == row["in the store"]
        assert row["rerun computed"] == row["asked"] == values - row["rerun reused"]
