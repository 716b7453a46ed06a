"""Who may import whom (DESIGN.md), read from the source; and what a running server has loaded."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
SERVER = sorted((REPO / "server").rglob("*.py"))
ENGINE = sorted((REPO / "spex_engine").rglob("*.py"))
SERVER_MAY = {"server", "pygls", "lsprotocol", "yaml", "spex_engine.wire"}
HEAVY = ("numpy", "scipy", "torch", "transformers", "tokenizers", "safetensors", "rich")


def name(path: Path) -> str:
    return str(path.relative_to(REPO))


def imported(source: str) -> Iterator[str]:
    """Every module that a file imports, wherever in it; ``from a import b`` may mean ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def foreign(path: Path, allowed: set[str]) -> list[str]:
    """What a file imports that is neither the standard library's nor ``allowed``."""
    return [
        module
        for module in imported(path.read_text())
        if module.partition(".")[0] not in sys.stdlib_module_names
        and not any(f"{module}.".startswith(f"{package}.") for package in allowed)
    ]


def test_imports_are_found_and_judged(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import json, numpy.linalg\nfrom spex_engine import wire, walsh\n"
        "from spex_engine.wire import Piece\nfrom spex_engine.wired import x\n"
        "def f():\n    from torch import nn\n    importlib.import_module('rich')\n"
    )
    found = {"numpy.linalg", "spex_engine.walsh", "spex_engine.wired.x", "torch.nn", "rich"}
    assert set(foreign(path, SERVER_MAY)) == found


@pytest.mark.parametrize("path", SERVER, ids=name)
def test_the_server_is_light(path):
    terminal = {"rich"} if path.name == "terminal.py" else set()
    assert foreign(path, SERVER_MAY | terminal) == []


@pytest.mark.parametrize("path", ENGINE, ids=name)
def test_the_engine_does_not_know_the_server(path):
    assert [m for m in imported(path.read_text()) if m.partition(".")[0] == "server"] == []


def test_the_wire_is_standard_library_only():
    assert foreign(REPO / "spex_engine" / "wire.py", set()) == []


LOADED = """
import json, sys
from server.app import make_server

class Client:  # in place of a pipe
    def write(self, data): pass
    def close(self): pass

server = make_server()
protocol = server.protocol
protocol.set_writer(Client())

def send(method, params, id=None):
    message = {"jsonrpc": "2.0", "method": method, "params": params}
    message |= {} if id is None else {"id": id}
    protocol.handle_message(json.loads(json.dumps(message), object_hook=protocol.structure_message))

uri = "file:///a.prompt.md"
send("initialize", {"capabilities": {}, "processId": None, "rootUri": None}, 1)
send("initialized", {})
item = {"uri": uri, "languageId": "markdown", "version": 1,
        "text": "---\\nbudget: 9\\n---\\nSay hello."}
send("textDocument/didOpen", {"textDocument": item})
at = {"line": 3, "character": 1}
send("textDocument/hover", {"textDocument": {"uri": uri}, "position": at}, 2)
assert uri in server.documents
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_a_server_at_work_has_loaded_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.append({str(REPO)!r})\n{LOADED}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert "server" in loaded
    assert [package for package in HEAVY if package in loaded] == []
