"""A workspace with modules named like ours and like what we import: none of them ever runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spex_engine.wire import PROTOCOL_VERSION

SECONDS = 120.0
TRAPS = (
    *("json.py", "yaml.py", "numpy.py", "asyncio.py", "typing.py", "site.py", "pygls.py"),
    *("sitecustomize.py", "usercustomize.py", "tokenizers.py", "safetensors.py", "rich.py"),
    *("server/__init__.py", "server/__main__.py", "server/app.py"),
    *("spex_engine/__init__.py", "spex_engine/wire.py", "spex_engine/worker.py"),
)


@pytest.fixture
def workspace(tmp_path: Path, example: str) -> Path:
    folder = tmp_path / "workspace"
    for trap in TRAPS:
        path = folder / trap
        path.parent.mkdir(parents=True, exist_ok=True)
        marker = folder / f"RAN-{trap.replace('/', '-')}"
        path.write_text(f"open({str(marker)!r}, 'w').close()\n")
    (folder / "two.prompt.md").write_text(example)
    return folder


@pytest.fixture
def sprung(workspace: Path):
    """The traps that ran."""
    return lambda: sorted(path.name for path in workspace.glob("RAN-*"))


@pytest.fixture
def script(tmp_path: Path) -> str:
    """The console script ``spex``; where it is not installed, as pip would write it."""
    installed = Path(sys.executable).with_name("spex")
    if installed.exists():
        return str(installed)
    written = tmp_path / "bin" / "spex"
    written.parent.mkdir()
    written.write_text(
        f"#!{sys.executable}\nimport sys\nfrom server.__main__ import main\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    written.chmod(0o755)
    return str(written)


def test_the_traps_work(workspace, sprung, environment):
    """Started without -P, Python does run what lies around."""
    unsafe = {key: value for key, value in environment.items() if key != "PYTHONSAFEPATH"}
    subprocess.run([sys.executable, "-m", "server"], cwd=workspace, env=unsafe, timeout=SECONDS)
    assert "RAN-server-__init__.py" in sprung()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("by", ["module", "script"])
async def test_an_editor_in_a_hostile_workspace(
    start_editor, workspace, sprung, script, example, by
):
    module = (sys.executable, "-P", "-m", "server", "--stdio")
    command = module if by == "module" else (script, "--stdio")
    editor = await start_editor(command=command, cwd=workspace)
    uri = (workspace / "two.prompt.md").as_uri()
    editor.open(uri, example)
    assert await editor.explained(uri)
    assert "How sure" in (await editor.hover(uri, 4)).contents.value
    assert sprung() == []


@pytest.mark.parametrize("by", ["module", "script"])
@pytest.mark.parametrize("python_path", [None, ""], ids=["", "empty PYTHONPATH"])
def test_a_terminal_in_a_hostile_workspace(workspace, sprung, script, environment, by, python_path):
    if python_path is not None and "PYTHONPATH" not in environment:
        environment = {**environment, "PYTHONPATH": python_path}
    command = [sys.executable, "-P", "-m", "server"] if by == "module" else [script]
    done = subprocess.run(
        [*command, "explain", "two.prompt.md", "--format", "json"],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["segments"]) == 6
    assert sprung() == []


def test_the_worker_takes_nothing_from_a_path_that_means_the_current_folder(
    workspace, sprung, environment
):
    """An empty entry of PYTHONPATH is the folder a process starts in: the worker has its own."""
    code = (
        "import os, asyncio; from server.worker_client import WorkerClient\n"
        "os.environ['PYTHONPATH'] = ':' + os.environ.get('PYTHONPATH', '')\n"
        "async def main():\n"
        "    worker = WorkerClient(); hello = await worker.hello(); await worker.close()\n"
        "    print(hello.protocol)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.stdout == f"{PROTOCOL_VERSION}\n", done.stderr
    assert sprung() == []
