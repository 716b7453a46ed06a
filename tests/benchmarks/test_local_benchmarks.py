"""The benchmarks of local models run, on the smallest case, so that they do not rot unseen."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["local_backend", "local_memory"])
def test_it_runs_and_its_values_are_right(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HERE)  # as it is for a script of this folder
    bench, module = importlib.import_module("bench"), importlib.import_module(name)
    rows = bench.Rows.open(tmp_path / "rows.jsonl")
    module.run(rows, module.TINY)
    found = bench.read(rows.path)
    assert found
    for row in found:
        if name == "local_backend":
            assert row["apart"] < 1e-4 < row["spread"]
            assert 0 < row["tokens"] < row["whole"]
        else:
            assert row["scored"] == row["masks"]
            assert row["beyond_mib"] > 0
