"""What all tests share: a cache folder of their own, and on CI a skipped test is a failed run."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before numpy is loaded: on small matrices a second thread gains little, and on a busy machine it
# costs ten times the time.
for library in ("OPENBLAS", "OMP"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
# Before any fixture: what those of a module start must not find the user's own cache.
os.environ["SPEX_CACHE_DIR"] = tempfile.mkdtemp(prefix="spex-tests-")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of each test its own: nothing is known from before."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SPEX_CACHE_DIR", str(folder))
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_sep("!", f"{len(skipped)} tests SKIPPED: see the reasons above")


def pytest_sessionfinish(session: pytest.Session) -> None:
    shutil.rmtree(os.environ["SPEX_CACHE_DIR"], ignore_errors=True)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("SPEX_TESTS_NEVER_SKIP") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
