"""The public API loads what is used, when it is used."""

import subprocess
import sys

import pytest

import spex_engine


@pytest.mark.parametrize("module", ["spex_engine", "spex_engine.wire"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}; import spex_engine as s; assert s.__version__ == '0.1.0'; "
        "dir(s); print(sorted({'numpy', 'scipy', 'torch'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_every_export_is_there() -> None:
    for name in spex_engine.__all__:
        assert getattr(spex_engine, name) is getattr(spex_engine, name)
        assert name in dir(spex_engine)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'shapley'"):
        spex_engine.shapley  # noqa: B018
