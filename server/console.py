"""What every command shares: exit codes, failures in one line, and a standard output that holds.

Results go to standard output, messages to standard error. It must not know what the commands do.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from server.explained import printable
from server.worker_client import WorkerError
from spex_engine import wire

DONE, USAGE, MODEL, INTERRUPTED = 0, 2, 3, 130


def ended(command: Callable[[], int]) -> int:
    """The exit code of a command that may fail in any of the ways there are."""
    try:
        return command()
    except wire.InputError as error:
        return fail(USAGE, str(error))
    except WorkerError as error:
        return fail(USAGE if error.code == wire.BAD_INPUT else MODEL, str(error))
    except KeyboardInterrupt:
        return fail(INTERRUPTED, "interrupted")


@contextlib.contextmanager
def standard_output() -> Iterator[TextIO]:
    """Standard output, whatever its encoding, also where the reader leaves early (``| head``)."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")
    try:
        yield out
        out.flush()
    except OSError as error:
        # what is still in the buffer must not fail a second time when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        if not isinstance(error, BrokenPipeError):
            raise wire.InputError(f"Standard output cannot be written: {error.strerror}.") from None


def fail(code: int, message: str) -> int:
    say(f"spex: {message}")
    return code


def say(message: str) -> None:
    """On standard error; the message may quote a file, which must not drive the terminal."""
    print(printable(message), file=sys.stderr)
