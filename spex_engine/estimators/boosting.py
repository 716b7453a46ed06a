"""Boosted trees on kept-or-dropped features: grown step by step, stopped early.

The one module that loads LightGBM, and only inside the functions that use it: beside torch it is a
second OpenMP runtime, which some systems bear badly. Knows samples and trees, not what is made of
them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from spex_engine.estimators import linear
from spex_engine.estimators.tree_fourier import NO_TREES, Trees, read_trees, with_additive
from spex_engine.fourier import Floats, Masks, characters

if TYPE_CHECKING:
    import lightgbm

_STEP, _PATIENCE, _MAX_TREES = 10, 4, 300  # trees; steps without better predictions; trees
_ENTRIES_PER_THREAD = 1 << 18  # with fewer, threads wait for each other more than they work
_SETTINGS = {
    "objective": "regression",
    "metric": "l2",
    "learning_rate": 0.2,
    "min_data_in_leaf": 3,  # the default, 20, leaves small samples without interactions
    "max_bin": 2,
    "min_data_in_bin": 1,
    "feature_pre_filter": False,
    "use_missing": False,
    "boost_from_average": False,
    "force_row_wise": True,
    "deterministic": True,
    "verbosity": -1,
}


def require_lightgbm() -> None:
    """ValueError that says what to do where LightGBM is not installed or cannot be loaded."""
    try:
        import lightgbm  # noqa: F401  (whether it loads is the question)
    except ImportError as error:
        raise ValueError(
            f"method: 'proxyspex' needs LightGBM ({error}): pip install lightgbm"
        ) from None
    except OSError as error:
        raise ValueError(
            f"method: 'proxyspex' needs LightGBM, whose library does not load ({error}): "
            "apt-get install libgomp1 on Debian or Ubuntu, brew install libomp on macOS"
        ) from None


@dataclass(frozen=True, slots=True)
class Growth:
    """How trees are grown: on a linear fit or on the mean, how deep, on which share of samples."""

    from_linear: bool
    depth: int
    leaves: int
    share: float


@dataclass(frozen=True, eq=False)
class Part:
    """Samples to fit, and others to judge the fit by, as arrays and as LightGBM has them.

    ``linear`` float (1 + n,): the ridge regression of order 1, constant first. ``weights`` and
    ``test_weights``: what each sample counts for; None: the same.
    """

    masks: Masks
    values: Floats
    test_masks: Masks
    test_values: Floats
    linear: Floats
    data: lightgbm.Dataset
    test_data: lightgbm.Dataset | None
    weights: Floats | None = None
    test_weights: Floats | None = None

    @classmethod
    def of(
        cls,
        masks: Masks,
        values: Floats,
        test: npt.NDArray[np.bool_],
        weights: Floats | None = None,
    ) -> Part:
        """``values`` float (m,) in units of about their deviation; ``test`` bool (m,)."""
        import lightgbm

        settings = {**_SETTINGS, "num_threads": _threads(masks.size)}
        counts, test_counts = (None, None) if weights is None else (weights[~test], weights[test])
        data = lightgbm.Dataset(masks[~test].astype(np.float32), weight=counts, params=settings)
        test_data = None
        if test.any():
            test_data = data.create_valid(
                masks[test].astype(np.float32), weight=test_counts, params=settings
            )
        singles = [(i,) for i in range(masks.shape[1])]
        additive, _ = linear.ridge(characters(masks[~test], singles), values[~test], counts)
        return cls(
            masks[~test],
            values[~test],
            masks[test],
            values[test],
            additive,
            data,
            test_data,
            counts,
            test_counts,
        )


@dataclass(frozen=True, eq=False)
class Boosting:
    """Trees that grow on what ``start`` float (1 + n,) leaves of a part's values.

    A part has one labelled data set: a second boosting of it must wait until this one is grown.
    """

    start: Floats
    booster: lightgbm.Booster
    n_test: float  # test samples, by what they count for

    @classmethod
    def of(cls, part: Part, growth: Growth, order: int, seed: int) -> Boosting:
        """Nothing grown yet; no path will ask more than ``order`` features."""
        import lightgbm

        depth = min(growth.depth, order)
        settings = {
            **_SETTINGS,
            "max_depth": depth,
            "num_leaves": min(growth.leaves, 1 << depth),
            "bagging_fraction": growth.share,
            "bagging_freq": int(growth.share < 1),
            "num_threads": _threads(part.masks.size),
            "seed": seed % (1 << 31),  # it takes an int32
        }
        start = part.linear
        if not growth.from_linear:
            mean = np.average(part.values, weights=part.weights)
            start = np.concatenate([[mean], np.zeros(part.masks.shape[1])])
        part.data.set_label(part.values - _additive(part.masks, start))
        booster = lightgbm.Booster(settings, part.data)
        if part.test_data is not None:
            part.test_data.set_label(part.test_values - _additive(part.test_masks, start))
            booster.add_valid(part.test_data, "test")
        counts = part.test_weights
        return cls(start, booster, len(part.test_values) if counts is None else float(counts.sum()))

    def grow(self, n_trees: int) -> None:
        for _ in range(n_trees):
            self.booster.update()

    def error(self) -> float:
        """The sum of squared errors on the part's test samples."""
        ((_, _, error, *_),) = self.booster.eval_valid()
        return float(error) * self.n_test

    def trees(self, n_trees: int) -> Trees:
        """The start and the first ``n_trees`` trees."""
        trees = NO_TREES
        if n_trees:
            trees = read_trees(self.booster.model_to_string(num_iteration=n_trees))
        return with_additive(trees, float(self.start[0]), self.start[1:])


def early_stopped(boostings: Sequence[Boosting]) -> int:
    """The number of trees that predict the test samples of all parts best; grows them beyond it."""
    best, best_at, n_trees = np.inf, 0, 0
    while n_trees <= min(_MAX_TREES, best_at + _PATIENCE * _STEP):
        error = sum(boosting.error() for boosting in boostings)
        if error < best:
            best, best_at = error, n_trees
        for boosting in boostings:
            boosting.grow(_STEP)
        n_trees += _STEP
    return best_at


def _additive(masks: Masks, start: Floats) -> Floats:
    """``start_0 + sum_i start_(1+i) chi_i`` on masks (m, n): float (m,)."""
    values: Floats = start.sum() - 2.0 * (masks @ start[1:])
    return values


def _threads(n_entries: int) -> int:
    """How many threads pay for so many entries of masks, of those that this process may have."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        available = int(asked)
    elif hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    return min(available, 1 + n_entries // _ENTRIES_PER_THREAD)
