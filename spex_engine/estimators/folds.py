"""Folds for cross-validation that do not leak between paired masks.

A mask and its complement agree in every character of even order. Were one of them in the training
part and the other in the test part, every fit of even order would look better than it is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spex_engine.fourier import Masks


def paired_folds(masks: Masks, n_folds: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """The fold of each mask, int (m,) in 0..n_folds-1; masks (m, n) and complements share one."""
    first = masks[:, :1] if masks.shape[1] else np.zeros((len(masks), 1), dtype=np.bool_)
    packed = np.packbits(masks ^ first, axis=1)  # the same for a mask and its complement
    _, pair = np.unique(packed, axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    order = rng.permutation(int(pair.max()) + 1)
    folds: npt.NDArray[np.intp] = order[pair] % n_folds
    return folds
