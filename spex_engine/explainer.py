"""The anytime loop: ask for masks, fit, judge, report, stop.

Knows the game only as something that evaluates masks, and puts designs, fits and the criterion of
convergence together. It does not know what a feature is, where values come from, or whether they
were cached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from spex_engine import threads
from spex_engine.convergence import ENOUGH_TEST, Evidence, settled
from spex_engine.designs import Design
from spex_engine.estimators import estimator
from spex_engine.evaluation import (
    CHUNK,
    Collected,
    Evaluator,
    Game,
    Samples,
    arrivals,
    as_evaluator,
)
from spex_engine.first_task import checked_identities, first_task, test_sizes
from spex_engine.fitting import Task
from spex_engine.fourier import Floats, Masks, SparseFourier, checked_samples
from spex_engine.judging import Fitted
from spex_engine.wire import Evaluations, Faithfulness

_GROWTH = 2.0  # of the masks asked for, from one round to the next
_CHOOSING = 1.25  # growth from one choice of masks to the next
_CONFIRMING = 1.5  # growth where one more good fit would be enough


@dataclass(frozen=True, eq=False)
class Explanation:
    """What is known about a game after some of its masks were measured.

    ``faithfulness`` is judged on uniform masks, half of whose features are dropped; ``near_full``
    on masks that lack 1 to 3 features, None where none were held out. ``masks`` bool (m, n) and
    ``values`` float (m,): every value measured, held-out ones included and failed ones not, in the
    order of the design. ``evaluations``: ``requested`` is what the whole run asks for (less than
    the budget where it converged before), ``computed`` and ``failed`` what it has so far (their
    sum is the progress), and ``cached`` is 0: the engine does not know. ``notes``: what a person
    should know about this result. ``seconds``: since the start. ``converged``: the run is over,
    and every mask was measured or the fit no longer changed (`convergence.settled`).
    ``variances`` float (m,), of the noise of each value, and ``censored`` int8 (m,), -1 or 1 where
    the true value is at most or at least the one that is there: None where no value has such. A
    variance that is not known is the mean of those that are.
    """

    fourier: SparseFourier
    faithfulness: Faithfulness
    evaluations: Evaluations
    notes: tuple[str, ...]
    seconds: float
    converged: bool
    masks: Masks
    values: Floats
    near_full: Faithfulness | None = None
    variances: Floats | None = None
    censored: npt.NDArray[np.int8] | None = None


def explain(
    game: Game | Evaluator,
    n_features: int,
    budget: int = 1024,
    method: str = "auto",
    max_order: int | None = None,
    seed: int = 0,
    on_progress: Callable[[Explanation], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    identities: Sequence[bytes] | None = None,
) -> Explanation:
    """Explain ``game``, which maps masks bool (m, n) to values float (m,), within ``budget`` masks.

    ``game`` is a function, asked for up to 64 masks at once, or an `evaluation.Evaluator`, asked
    for whole rounds or their parts. The budget bounds the distinct masks asked for, full, empty and
    held-out ones included; each is asked for once. A value that is NaN (or infinite) is an
    evaluation that failed: left out and counted. All 2**n masks are measured where they fit the
    budget ("auto", "spex") or are demanded ("exact"). Otherwise, from a budget of 64, 15% of the
    masks (16 or more) are held out from the fit to judge it; from 256 it is 1/8 uniform ones (up to
    256) and 1/16 near-full ones (up to 64). "spex" samples masks of its own, with at least 32 held
    out; without identities
    "auto" begins with them from 1.5 times the least budget of "spex", and goes over to uniform ones
    where these first ones show that no code is needed. After the first ones, "gp" and "auto"
    choose the masks to fit by what they would tell (`estimators.next_masks`), up to 1500 samples.

    The masks are asked for in rounds, each about as large as all before it together; where masks
    are chosen, a round has several parts, each chosen by what is known by then. The run ends
    before the budget is spent where two fits in a row say the same and say it well
    (`convergence.settled`), unless every mask is to be measured.

    ``identities``: one for each feature, distinct, such as a hash of its text. Masks are then drawn
    by these (`hashed_masks`), and none is chosen by what is known: after an edit of one feature, a
    run on the same seed asks again for nearly every mask that leaves it out, whose values need not
    be measured anew. "auto" then begins with no coded masks, for which that holds only of edits in
    place.

    ``max_order`` None leaves the order to the method. ``on_progress`` gets an Explanation after
    each round, with a new fit, and after each 64 values within one, with the last fit; it changes
    nothing in the result. The last one is the one returned. ``should_stop`` is asked before the
    first mask of a round and between arrivals of values: once true, what was measured is
    explained, with ``converged`` False, and not reported as progress. With nothing measured that
    is the zero function.

    ValueError for unfit arguments, a game that returns another shape, and a run in which every
    evaluation failed. Exceptions of ``game`` and of the callbacks pass through unchanged.
    """
    started = time.perf_counter()
    evaluator = as_evaluator(game)
    n, budget = _integer("n_features", n_features, 0), _integer("budget", budget, 2)
    seed = _integer("seed", seed, 0)
    max_order = None if max_order is None else _integer("max_order", max_order, 1)
    estimator(method)  # an unknown name is worth no evaluation
    every = n < budget.bit_length()  # 2**n <= budget
    task = first_task(n, budget, every, method, max_order, seed, checked_identities(identities, n))
    design, size = task.design, len(task.design.masks)
    stop = _Stop(should_stop)
    seen = Collected(size)
    values, done = seen.values, seen.done
    asked = reported = round_end = fitted_at = 0
    fitted: Fitted | None = None
    quick = False  # whether a better fit of the same values could be had
    before: Evidence | None = None  # of the round before, where it may count
    converged = False
    while asked < size and not converged:
        if asked == round_end:
            round_end = _round_end(asked, size, design.rounds, before is not None and before.good)
        end = _whole(asked * _CHOOSING, round_end) if task.chooses(asked) else round_end
        if asked:
            with threads.for_fit(asked):
                task = task.revised(seen.first(asked), end, *test_sizes(size))
            design = task.design
        with closing(arrivals(evaluator, design.masks[asked:end], stop)) as portions:
            for portion in portions:
                seen.add(asked, portion)
                n_done = int(done.sum())
                if on_progress and fitted and reported + CHUNK <= n_done < round_end:
                    on_progress(_explanation(task, fitted, seen, started))
                    reported = n_done
        if stop.said:
            break
        done[asked:end] = True  # what never came has failed
        asked = end
        if asked < round_end:
            continue
        reported = asked
        if np.isnan(values[:asked]).all():
            continue
        counts = not every and (not design.rounds or asked >= design.rounds[0])
        could_settle = counts and _n_test(design, seen.first(size)) >= ENOUGH_TEST
        if on_progress or could_settle or asked == size:
            with threads.for_fit(asked):
                fitted, fitted_at = task.fit(seen.first(asked), last=asked == size), asked
            quick = asked < size
            after = fitted.evidence if counts else None
            converged = before is not None and after is not None and settled(before, after)
            before = after
            if on_progress and asked < size and not converged:
                on_progress(_explanation(task, fitted, seen, started))
    if asked == size and np.isnan(values).all():
        raise ValueError(f"game: all {size} evaluations failed (NaN), nothing to explain")
    if fitted is None or (stop.said and (quick or done[fitted_at:].any())):
        usable = _usable(design, done)
        with threads.for_fit(usable):
            fitted = task.fit(seen.first(usable))
    if every and np.isfinite(values).all():
        converged = True
    explanation = _explanation(task, fitted, seen, started, converged)
    if on_progress and not stop.said:
        on_progress(explanation)
    return explanation


def fit(masks: Masks, values: npt.ArrayLike, method: str = "auto", seed: int = 0) -> SparseFourier:
    """The coefficients of a function from samples one already has.

    ``masks`` bool (m, n), repeated ones allowed; ``values`` finite float (m,). ValueError for other
    shapes, values that are not finite, an unknown method, or samples the method cannot use.
    """
    chosen = estimator(method)
    masks, measured = checked_samples(masks, values)
    seed = _integer("seed", seed, 0)
    with threads.for_fit(len(masks)):
        return chosen(masks, measured, seed=seed)


class _Stop:
    """``should_stop``, which is not asked again once it has said so."""

    def __init__(self, should_stop: Callable[[], bool] | None) -> None:
        self.ask = should_stop
        self.said = False

    def __call__(self) -> bool:
        if self.ask is not None and not self.said:
            self.said = bool(self.ask())
        return self.said


def _round_end(asked: int, size: int, rounds: tuple[int, ...], confirming: bool) -> int:
    """How many masks are to be asked for by the end of the next round."""
    end = asked * (_CONFIRMING if confirming else _GROWTH)
    following = next((r for r in rounds if r > asked), size)
    if rounds:  # nothing is gained between them, but before the first there is something to show
        end = min(end, following) if asked < rounds[0] else following
    return _whole(end, size)


def _whole(wanted: float, most: int) -> int:
    """As many masks as are wanted at least, in whole chunks, at least one."""
    return min(most, max(1, ceil(wanted / CHUNK)) * CHUNK)


def _n_test(design: Design, samples: Samples) -> int:
    """Uniform held-out masks with a value that is no mere bound."""
    there = design.held_out & np.isfinite(samples.values)
    if samples.censored is not None:
        there &= samples.censored == 0
    there[list(design.near_full)] = False
    return int(there.sum())


def _usable(design: Design, done: npt.NDArray[np.bool_]) -> int:
    """The length of the prefix to fit: up to the last mask done.

    It ends short of what completes a round of the design while any mask of it is awaited: to a
    plan, samples that have not come yet would be failed ones, and perhaps too many of them.
    """
    last = int(np.flatnonzero(done)[-1]) + 1 if done.any() else 0
    return min([last, *(end - 1 for end in design.rounds if not done[:end].all())])


def _explanation(
    task: Task,
    fitted: Fitted,
    seen: Collected,
    started: float,
    converged: bool = False,
) -> Explanation:
    values, done, samples = seen.values, seen.done, seen.first(len(seen.values))
    known = np.isfinite(values)
    size, n_done, n_known = len(values), int(done.sum()), int(known.sum())
    notes = list(fitted.notes)
    if n_known < n_done:
        notes.append(f"{n_done - n_known} of {n_done} evaluations failed and were left out")
        if task.exact and n_done == size:
            notes.append("not every mask was measured, so this is a regression, not exact")
    if n_done < size and converged:
        notes.append(f"converged after {n_done} of {size} evaluations")
    elif n_done < size:
        notes.append(f"{n_done} of {size} evaluations were made")
    return Explanation(
        fourier=fitted.fourier,
        faithfulness=fitted.faithfulness,
        evaluations=Evaluations(
            n_done if converged else size, n_known, cached=0, failed=n_done - n_known
        ),
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
        converged=converged,
        masks=task.design.masks[known],
        values=values[known],
        near_full=fitted.near_full,
        variances=None if samples.variances is None else samples.variances[known],
        censored=None if samples.censored is None else samples.censored[known],
    )


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}: {value!r}, expected an integer of {least} or more")
    return int(value)
