"""How many threads linear algebra takes while something is fitted.

Matrices here are mid-sized: a second thread gains little on them and, on a busy machine, costs
more than it gains (measured: twice the time on two virtual cores). Models keep their threads: only
BLAS is limited, and only while a fit runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

from threadpoolctl import ThreadpoolController

_LARGE = 3000  # samples from which matrices are large enough for all cores


def for_fit(n_samples: int) -> AbstractContextManager[object]:
    """Within this context, BLAS has one thread for so many samples, or as many as it had."""
    if n_samples >= _LARGE:
        return nullcontext()
    limited: AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return limited


@cache
def _controller() -> ThreadpoolController:
    """Of the libraries loaded by now, numpy's and scipy's among them: looking them up takes ms."""
    import scipy.linalg  # noqa: F401  (loads the library to be limited)

    return ThreadpoolController()
