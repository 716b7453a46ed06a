"""The anytime loop: ask for masks, fit, judge, report, stop.

Knows the game only as a function from masks to values, and puts designs, estimators and
faithfulness together. It does not know what a feature is, where values come from, or whether they
were cached.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spex_engine.designs import Design, draw_design
from spex_engine.estimators import ESTIMATORS, PLANS, Plan, estimator
from spex_engine.estimators.selection import choose
from spex_engine.estimators.spectral_gp import MAX_SAMPLES
from spex_engine.faithfulness import r2
from spex_engine.fourier import Floats, Masks, SparseFourier, checked_samples
from spex_engine.wire import Evaluations, Faithfulness

Game = Callable[[Masks], npt.ArrayLike]

_CHUNK = 64  # masks asked for at once: progress and stop come between chunks
_REFIT = 2  # growth of the samples before the next interim fit
_FEWEST_OTHERS = 32  # samples to fit before those of special masks can be spared
_MIN_BUDGET_FOR_TEST = 64  # below it every mask is worth more in the fit
_TEST_SHARE, _MIN_TEST, _MAX_TEST = 0.15, 16, 256


@dataclass(frozen=True, eq=False)
class Explanation:
    """What is known about a game after some of its masks were measured.

    ``masks`` bool (m, n) and ``values`` float (m,): every value measured, in the order asked,
    held-out ones included and failed ones not. ``evaluations``: ``requested`` is what the whole
    run asks for, ``computed`` and ``failed`` what it has so far (their sum is the progress), and
    ``cached`` is 0: the engine does not know. ``notes``: what a person should know about this
    result. ``seconds``: since the start. ``converged``: the run was not stopped early.
    """

    fourier: SparseFourier
    faithfulness: Faithfulness
    evaluations: Evaluations
    notes: tuple[str, ...]
    seconds: float
    converged: bool
    masks: Masks
    values: Floats


def explain(
    game: Game,
    n_features: int,
    budget: int = 1024,
    method: str = "auto",
    max_order: int | None = None,
    seed: int = 0,
    on_progress: Callable[[Explanation], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Explanation:
    """Explain ``game``, which maps masks bool (m, n) to values float (m,), within ``budget`` masks.

    The budget bounds the distinct masks asked for, full, empty and held-out ones included; each is
    asked for once. A value that is NaN (or infinite) is an evaluation that failed: left out and
    counted. All 2**n masks are measured where they fit the budget ("auto", "spex") or are demanded
    ("exact"). Otherwise, from a budget of 64, 15% (16 to 256) of the masks are held out from the
    fit to judge it; "spex" samples masks of its own, with at least 32 held out.

    ``max_order`` None leaves the order to the method. ``on_progress`` gets an Explanation after
    each chunk of up to 64 masks, as soon as one value is there; the fit in it is renewed whenever
    the samples have doubled, and the last one is the one returned. ``should_stop`` is asked before
    each chunk: once true, what was measured is explained, with ``converged`` False, and not
    reported as progress. With nothing measured that is the zero function.

    ValueError for unfit arguments, a game that returns another shape, and a run in which every
    evaluation failed. Exceptions of ``game`` and of the callbacks pass through unchanged.
    """
    started = time.perf_counter()
    if not callable(game):
        raise ValueError(f"game: {type(game).__name__}, expected a function from masks to values")
    n, budget = _integer("n_features", n_features, 0), _integer("budget", budget, 2)
    seed = _integer("seed", seed, 0)
    max_order = None if max_order is None else _integer("max_order", max_order, 1)
    estimator(method)  # an unknown name is worth no evaluation
    every = n < budget.bit_length()  # 2**n <= budget
    if method == "exact" and not every:
        raise ValueError(
            f"budget: {budget}, expected at least 2**{n} for method 'exact' with {n} features"
        )
    plan = None
    if method in PLANS and not every:
        plan = PLANS[method](n, budget, max_order=max_order, seed=seed)
        design = plan.design
    else:
        size = 2**n if every else budget
        design = draw_design(n, size, _test_size(n, size), seed)
    size = len(design.masks)
    exact = every and method in ("auto", "exact", *PLANS)
    run = _Run(design, method, max_order, seed, exact, plan)
    values = np.full(size, np.nan)
    asked = fitted_at = 0
    fitted: _Fitted | None = None
    while asked < size and not (should_stop is not None and should_stop()):
        chunk = slice(asked, min(asked + _CHUNK, size))
        values[chunk] = _evaluate(game, design.masks[chunk])
        asked = chunk.stop
        if on_progress is None or asked == size or np.isnan(values[:asked]).all():
            continue
        if fitted is None or asked >= _REFIT * fitted_at:
            fitted, fitted_at = run.fit(values[:asked]), asked
        on_progress(run.explanation(fitted, values[:asked], started))
    if asked == size and np.isnan(values).all():
        raise ValueError(f"game: all {size} evaluations failed (NaN), nothing to explain")
    if fitted is None or asked > fitted_at:
        fitted = run.fit(values[:asked])
    explanation = run.explanation(fitted, values[:asked], started)
    if on_progress is not None and asked == size:
        on_progress(explanation)
    return explanation


def fit(masks: Masks, values: npt.ArrayLike, method: str = "auto", seed: int = 0) -> SparseFourier:
    """The coefficients of a function from samples one already has.

    ``masks`` bool (m, n), repeated ones allowed; ``values`` finite float (m,). ValueError for other
    shapes, values that are not finite, an unknown method, or samples the method cannot use.
    """
    chosen = estimator(method)
    masks, measured = checked_samples(masks, values)
    return chosen(masks, measured, seed=_integer("seed", seed, 0))


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A fit, how it was judged, and what to say about it."""

    fourier: SparseFourier
    faithfulness: Faithfulness
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Run:
    """What is fixed during a run. ``values`` below are those of the first masks of the design."""

    design: Design
    method: str
    max_order: int | None
    seed: int
    exact: bool  # every mask is to be measured and transformed, nothing estimated
    plan: Plan | None = None  # of a method that samples its own masks

    def fit(self, values: Floats) -> _Fitted:
        known = np.isfinite(values)
        masks = self.design.masks[: len(values)]
        if not known.any():
            nothing = SparseFourier(masks.shape[1], self.method, (), np.zeros(0))
            return _Fitted(nothing, Faithfulness(None, "nothing was measured", 0), ())
        if self.exact and known.all() and len(values) == len(self.design.masks):
            fourier = ESTIMATORS["exact"](masks, values, max_order=self.max_order)
            score = r2(fourier, masks, values)
            judged = Faithfulness(_number(score), "every mask was measured", len(values))
            why = f"every mask fits the budget, so {self.method} had nothing to decode: exact"
            return _Fitted(fourier, judged, (why,) if self.method in PLANS else ())
        held_out = self.design.held_out[: len(values)]
        train, test = known & ~held_out, known & held_out
        if self.plan is not None and train.any():
            fourier, notes = self.plan.fit(values)
            return _Fitted(fourier, _judge(fourier, masks[test], values[test]), notes)
        if not train.any():  # all but held-out ones failed: rather a fit than a judgement
            train, test = test, train
        train = self._without_anchors(train)
        method, max_order, notes = self.method, self.max_order, ()
        if self.exact or self.plan is not None:  # what it was to do cannot be done
            method = "auto"
        if method == "auto":
            choice = choose(masks[train], values[train], max_order=self.max_order, seed=self.seed)
            method, max_order, notes = choice.method, choice.max_order, (choice.why,)
        if method == "gp" and train.sum() > MAX_SAMPLES:
            notes += (f"gp fits {MAX_SAMPLES} of the {train.sum()} samples, drawn at random",)
        fourier = ESTIMATORS[method](
            masks[train], values[train], max_order=max_order, seed=self.seed
        )
        return _Fitted(fourier, _judge(fourier, masks[test], values[test]), notes)

    def _without_anchors(self, train: Masks) -> Masks:
        """The samples to fit but full, empty and leave-one-out masks, if enough others are there.

        A fit speaks of the mean over all masks, where such masks hardly ever occur; a handful of
        them would pull a regression into a corner that it cannot follow.
        """
        others = train.copy()
        others[: self.design.n_anchors] = False
        n = self.design.masks.shape[1]
        return others if others.sum() >= max(_FEWEST_OTHERS, 4 * n) else train

    def explanation(self, fitted: _Fitted, values: Floats, started: float) -> Explanation:
        known = np.isfinite(values)
        requested, asked, failed = len(self.design.masks), len(values), int((~known).sum())
        notes = list(fitted.notes)
        if failed:
            notes.append(f"{failed} of {asked} evaluations failed and were left out")
            if self.exact and asked == requested:
                notes.append("not every mask was measured, so this is a regression, not exact")
        if asked < requested:
            notes.append(f"{asked} of {requested} evaluations were made")
        return Explanation(
            fourier=fitted.fourier,
            faithfulness=fitted.faithfulness,
            evaluations=Evaluations(requested, asked - failed, cached=0, failed=failed),
            notes=tuple(notes),
            seconds=time.perf_counter() - started,
            converged=asked == requested,
            masks=self.design.masks[: len(values)][known],
            values=values[known],
        )


def _judge(fourier: SparseFourier, masks: Masks, values: Floats) -> Faithfulness:
    if len(values) == 0:
        return Faithfulness(None, "too few evaluations to hold any out", 0)
    score = _number(r2(fourier, masks, values))
    how = "uniform masks held out from the fit"
    if score is None:
        how += ", which all have the same value"
    return Faithfulness(score, how, len(values))


def _number(score: float) -> float | None:
    return score if np.isfinite(score) else None


def _test_size(n_features: int, size: int) -> int:
    if size < _MIN_BUDGET_FOR_TEST:
        return 0
    return min(max(round(_TEST_SHARE * size), _MIN_TEST), _MAX_TEST)


def _evaluate(game: Game, masks: Masks) -> Floats:
    """Values float (m,), nan where the evaluation failed."""
    returned = game(masks.copy())  # the game may write into what it is given
    if np.iscomplexobj(returned):
        raise ValueError("game: returned complex numbers, expected real ones")
    try:
        values = np.array(returned, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"game: expected real numbers ({len(masks)},) back: {error}") from None
    if values.shape != (len(masks),):
        raise ValueError(
            f"game: returned shape {values.shape} for masks {masks.shape}, "
            f"expected ({len(masks)},), one value per mask"
        )
    values[~np.isfinite(values)] = np.nan
    return values


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}: {value!r}, expected an integer of {least} or more")
    return int(value)
