"""How many threads linear algebra takes while something is fitted.

Matrices here are mid-sized: a second thread gains little on them and, on a busy machine, costs
more than it gains (measured: twice the time on two virtual cores). Models keep their threads: only
BLAS is limited, and only while a fit runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController

_LARGE = 3000  # samples from which matrices are large enough for all cores

# the limit is the process's: of fits that overlap the first one sets it, the last one lifts it
_lock = Lock()
_limits: list[Any] = []  # the limit that is set, once for each fit under it


@contextmanager
def for_fit(n_samples: int) -> Iterator[None]:
    """Within this context, BLAS has one thread for so many samples, or as many as it had."""
    if n_samples >= _LARGE:
        yield
        return
    with _lock:
        _limits.append(_limits[-1] if _limits else _controller().limit(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            limit = _limits.pop()
            if not _limits:
                limit.restore_original_limits()


@cache
def _controller() -> ThreadpoolController:
    """Of the libraries loaded by now, numpy's and scipy's among them: looking them up takes ms."""
    import scipy.linalg  # noqa: F401  (loads the library to be limited)

    return ThreadpoolController()
