"""What a run will take, before anything is spent.

An endpoint is not asked: its tokens are counted and its prices looked up. A model on this machine
costs nothing but time, so it is loaded and a few masks are timed. It must not know files.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from spex_engine.backends import named
from spex_engine.backends.base import Model
from spex_engine.wire import Estimate, ExplainRequest

_TIMED = 8  # masks
_SEED = 0


def estimate(request: ExplainRequest, open_model: Callable[[ExplainRequest], Model]) -> Estimate:
    """The most that explaining ``request`` takes; InputError and ModelError as of the run itself.

    A run that converges before its budget is spent, or finds evaluations in the store, takes less.
    """
    masks = min(request.budget, 2**request.prompt.n_segments)
    scheme, name = named(request.model)
    if scheme == "openai":
        from spex_engine.backends.openai.estimate import estimate as of_endpoint

        return of_endpoint(name, request.prompt, request.question, request.access, masks)
    scorer = open_model(request).open(request.prompt, request.question, lambda: False)
    rng = np.random.default_rng(_SEED)
    drawn = rng.random((_TIMED, request.prompt.n_segments)) < 0.5
    started = time.perf_counter()
    read = [scores.input_tokens for _, scores in scorer.score(drawn, lambda: False)]
    seconds = (time.perf_counter() - started) / _TIMED * masks
    tokens = float(np.concatenate(read).mean()) * masks if read else 0.0
    note = f"the time is that of {_TIMED} masks, without the fit"
    return Estimate(masks, round(tokens), 0, 0.0, seconds, None, (note,))
