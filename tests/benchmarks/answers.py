"""What a method found, and in what time: the one form in which ours and the peers' are compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spex_engine import SparseFourier
from spex_engine.fourier import Floats

Play = Callable[[npt.NDArray[np.generic]], Floats]  # any 0/1 matrix


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found, the seconds it took without the game's own, and the calls made."""

    f: SparseFourier
    seconds: float
    calls: int


@dataclass(eq=False)
class Timed:
    """A game that knows how often it was asked and how long that took."""

    play: Play
    calls: int = 0
    seconds: float = 0.0

    def __call__(self, masks: npt.NDArray[np.generic]) -> Floats:
        started = time.perf_counter()
        values = self.play(masks)
        self.seconds += time.perf_counter() - started
        self.calls += len(values)
        return values
