"""Runs that are cancelled, workers that die or never start, servers that end: no mess is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from lsprotocol import types

pytestmark = pytest.mark.asyncio(loop_scope="module")

URI = "file:///home/me/slow.prompt.md"
OTHER = "file:///home/me/two-facts.prompt.md"
SECONDS = 60.0
ATTEMPTS = 3  # at a limit on time: one of them is to keep it, whatever else the machine does


async def cancel_by_command(editor: Any) -> None:
    assert await editor.command("spex.cancel", {"uri": URI}) == {"cancelled": [URI]}


async def cancel_by_progress(editor: Any) -> None:
    token = editor.all("begin")[-1]["token"]
    params = types.WorkDoneProgressCancelParams(token)
    editor.client.window_work_done_progress_cancel(params)


async def cancel_by_closing(editor: Any) -> None:
    editor.close(URI)


async def seconds_to_cancel(
    editor: Any, prompt: str, cancel: Callable[[Any], Awaitable[None]], freeze: bool = False
) -> float:
    """How long after the cancel the client sees the run end."""
    if URI not in editor.open_files:
        editor.open(URI, prompt)
    editor.seen.clear()
    await editor.command("spex.explain", {"uri": URI})
    await editor.under_way()
    if freeze:
        os.kill((await editor.status())["worker"]["pid"], signal.SIGSTOP)
    started = time.perf_counter()
    await cancel(editor)
    ended = await editor.told("end")
    seconds = time.perf_counter() - started
    assert ended["message"] == "cancelled"
    assert (await editor.status())["running"] == []
    return seconds


async def pid_while_starting(editor: Any) -> int:
    async with asyncio.timeout(SECONDS):
        while (worker := (await editor.status())["worker"])["pid"] is None:
            pass
    assert worker["state"] == "starting"
    return int(worker["pid"])


# ---- cancelling -------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [False, True], ids=["busy worker", "frozen worker"])
@pytest.mark.parametrize("cancel", [cancel_by_command, cancel_by_progress, cancel_by_closing])
async def test_cancel_ends_a_run_in_under_a_second(editor, slow_prompt, example, cancel, freeze):
    taken = []
    while not taken or (min(taken) >= 1.0 and len(taken) < ATTEMPTS):
        taken.append(await seconds_to_cancel(editor, slow_prompt, cancel, freeze))
    assert min(taken) < 1.0, taken
    assert editor.all("message") == []
    editor.open(OTHER, example)
    assert await editor.explained(OTHER)


async def test_a_frozen_worker_is_killed(editor, slow_prompt, example, gone):
    editor.open(OTHER, example)
    await editor.explained(OTHER)
    pid = (await editor.status())["worker"]["pid"]
    await seconds_to_cancel(editor, slow_prompt, cancel_by_command, freeze=True)
    await gone(pid)
    assert (await editor.status())["worker"] == {"state": "stopped", "pid": None}


async def test_cancel_while_the_worker_starts(start_editor, example, deaf_python, gone):
    editor = await start_editor(options={"interpreter": deaf_python, "store": False})
    editor.open(URI, example)
    await editor.command("spex.explain")
    pid = await pid_while_starting(editor)
    await cancel_by_command(editor)
    assert (await editor.told("end"))["message"] == "cancelled"
    await gone(pid)
    assert (await editor.status())["worker"] == {"state": "stopped", "pid": None}
    editor.configure({"spex": {"interpreter": sys.executable}})
    assert await editor.explained(URI)


async def test_cancelling_one_run_leaves_the_others_alone(editor, slow_prompt, example):
    """The other waits for its turn, in a worker that is too busy to be asked nicely."""
    editor.open(OTHER, example)
    await editor.explained(OTHER)
    await editor.command("spex.clear", {"uri": OTHER})
    editor.open(URI, slow_prompt)
    editor.seen.clear()
    await editor.command("spex.explain", {"uri": URI})
    await editor.under_way()
    await editor.command("spex.explain", {"uri": OTHER})
    await editor.told("begin", but=1)
    os.kill((await editor.status())["worker"]["pid"], signal.SIGSTOP)
    await cancel_by_command(editor)
    await editor.told("end", but=1)
    slow, quick = (begun["token"] for begun in editor.all("begin"))
    messages = {ended["token"]: ended["message"] for ended in editor.all("end")}
    assert messages[slow] == "cancelled"
    assert "interaction" in messages[quick]
    assert editor.all("message") == []


async def test_cancelling_a_waiting_run_leaves_the_running_one_alone(editor, slow_prompt, example):
    editor.open(URI, slow_prompt)
    await editor.command("spex.explain", {"uri": URI})
    await editor.under_way()
    pid = (await editor.status())["worker"]["pid"]
    editor.open(OTHER, example)
    await editor.command("spex.explain", {"uri": OTHER})
    await editor.told("begin", but=1)
    assert await editor.command("spex.cancel", {"uri": OTHER}) == {"cancelled": [OTHER]}
    assert (await editor.told("end"))["message"] == "cancelled"
    status = await editor.status()
    assert [job["uri"] for job in status["running"]] == [URI]
    assert status["worker"] == {"state": "busy", "pid": pid}
    # no argument: all that run
    assert await editor.command("spex.cancel") == {"cancelled": [URI]}


# ---- workers that die or never start ----------------------------------------------------------


async def test_a_worker_that_is_killed_gives_a_message_and_the_next_run_works(
    editor, slow_prompt, example
):
    editor.open(URI, slow_prompt)
    await editor.command("spex.explain")
    await editor.under_way()
    killed = (await editor.status())["worker"]["pid"]
    os.kill(killed, signal.SIGKILL)
    message = await editor.told("message")
    assert message.type == types.MessageType.Error
    assert message.message.startswith("The model process ended unexpectedly (signal 9).")
    assert "Run it again: a new process starts by itself." in message.message
    assert (await editor.told("end"))["message"] == "failed"
    editor.seen.clear()
    editor.open(OTHER, example)
    assert await editor.explained(OTHER)
    assert (await editor.status())["worker"]["pid"] not in (None, killed)


async def test_an_interpreter_that_is_none(editor, example, tmp_path):
    editor.open(URI, example)
    (tmp_path / "old").write_text("#!/bin/sh\necho 'Unknown option: -P' >&2\nexit 2\n")
    (tmp_path / "chatty").write_text("#!/bin/sh\necho hello\nexec sleep 1000\n")
    for name in ("old", "chatty"):
        (tmp_path / name).chmod(0o755)
    for interpreter, reason in (
        ("/nonexistent/python", "cannot be started (No such file or directory)"),
        (str(tmp_path), "cannot be started (Permission denied)"),
        ("py\0thon", "cannot be started (embedded null byte)"),
        (str(tmp_path / "old"), "(exit code 2). Its last words: Unknown option: -P"),
        (str(tmp_path / "chatty"), "did not start as a worker (signal 9)"),
    ):
        editor.seen.clear()
        editor.configure({"spex": {"interpreter": interpreter}})
        await editor.command("spex.explain")
        message = await editor.told("message")
        assert message.type == types.MessageType.Error
        assert reason in message.message
        assert "(setting spex.interpreter)" in message.message
        assert (await editor.told("end"))["message"] == "failed"
    editor.seen.clear()
    editor.configure({"spex": {}})
    assert await editor.explained(URI)


async def test_an_interpreter_without_packages(editor, example, bare_python):
    editor.configure({"spex": {"interpreter": bare_python}})
    editor.open(URI, example)
    await editor.command("spex.explain")
    message = await editor.told("message")
    assert message.type == types.MessageType.Error
    assert message.message == (
        f"{bare_python} cannot run the engine (No module named 'numpy'): install spex-lsp there, "
        "or choose another interpreter (setting spex.interpreter)."
    )
    bare = (await editor.status())["worker"]["pid"]
    editor.seen.clear()
    editor.configure({"spex": {"interpreter": sys.executable}})  # counts from the next run on
    assert await editor.explained(URI)
    assert (await editor.status())["worker"]["pid"] != bare


# ---- the server's own end ---------------------------------------------------------------------


async def test_shutdown_and_exit_during_a_run(start_editor, slow_prompt, gone):
    editor = await start_editor()
    editor.open(URI, slow_prompt)
    await editor.command("spex.explain")
    await editor.under_way()
    worker = (await editor.status())["worker"]["pid"]
    await editor.client.shutdown_async(None)
    assert not Path(f"/proc/{worker}").exists()  # it was waited for
    assert editor.all("end")[-1]["message"] == "cancelled"
    editor.client.exit(None)
    assert await editor.exit_code() == 0


async def test_shutdown_while_the_worker_starts(start_editor, example, deaf_python):
    editor = await start_editor(options={"interpreter": deaf_python})
    editor.open(URI, example)
    await editor.command("spex.explain")
    worker = await pid_while_starting(editor)
    await editor.client.shutdown_async(None)
    assert not Path(f"/proc/{worker}").exists()
    editor.client.exit(None)
    assert await editor.exit_code() == 0


async def test_exit_without_shutdown_is_an_error_and_ends_the_worker(
    start_editor, slow_prompt, gone
):
    editor = await start_editor()
    editor.open(URI, slow_prompt)
    await editor.command("spex.explain")
    await editor.under_way()
    worker = (await editor.status())["worker"]["pid"]
    editor.client.exit(None)
    assert await editor.exit_code() == 1
    await gone(worker)


async def test_the_worker_of_a_killed_server_ends_by_itself(start_editor, slow_prompt, gone):
    editor = await start_editor()
    editor.open(URI, slow_prompt)
    await editor.command("spex.explain")
    await editor.under_way()
    worker = (await editor.status())["worker"]["pid"]
    os.kill(editor.pid, signal.SIGKILL)
    await gone(worker)
