"""One fit of what a run has measured so far, judged on what was held out from it.

Knows the design, the method and the values there are. It does not know where values come from,
how many are still to come, or who asks for the fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from spex_engine.coded_design import least_budget
from spex_engine.designs import Design, redraw, uniform_masks
from spex_engine.estimators import ESTIMATORS, PLANS, Plan
from spex_engine.estimators.censored import imputed
from spex_engine.estimators.next_masks import next_masks
from spex_engine.estimators.selection import choose
from spex_engine.estimators.spectral_gp import MAX_SAMPLES, Posterior
from spex_engine.evaluation import Samples
from spex_engine.faithfulness import r2
from spex_engine.fourier import Floats, SparseFourier
from spex_engine.judging import Fitted, finite, judged, without_bounds
from spex_engine.wire import Faithfulness

_FEWEST_TO_LOOK = 100  # masks before "auto" judges whether it can do without a code,
_MOST_TO_LOOK = 300  # and after which it no longer does,
_LOOK = 0.3  # or after this share of the budget,
_FEWEST_TO_JUDGE = 12  # held-out masks to judge it on,
_PREDICTABLE = 0.4  # and the R2 there at which it can;
_RICH, _PREDICTABLE_RICH = 2.7, 0.7  # times the least budget: the more bins, the better a code does
_MOST_TO_CHOOSE_BY = 1500  # samples up to which "gp" chooses its next masks: each time costs a fit
_N_CANDIDATES = 1024  # of which it chooses them
_LUCK = 0.01  # R2 by which a code must be better on the few held-out masks
_CHOSEN = 1  # stream of random numbers for candidates
_FEWEST_FOR_RARE = 10  # features from which full, empty and leave-one-out masks are no chance draws
_FEWEST_OTHERS = 32  # samples to fit before those of special masks can be spared
_EQUALLY_NOISY = "spex lets all values count the same, though some are known to be noisier"
_NOISY = "every value is met with its noise, which the error bars show: values are noisy"

Rows = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Task:
    """What a fit is made of, the same during a run unless `revised`.

    ``plan``: of a method that samples its own masks. Method "auto" has one where the budget allows:
    then coded masks are what it asks for, until it has seen that it can do without. ``identities``:
    of the features, where what is asked for is to outlive an edit.
    """

    design: Design
    method: str
    max_order: int | None
    seed: int
    exact: bool  # every mask is to be measured and transformed, nothing estimated
    plan: Plan | None = None
    identities: tuple[bytes, ...] | None = None

    def fit(self, samples: Samples, last: bool = True) -> Fitted:
        """The fit of what is known of the first masks of the design.

        Held-out masks are kept from it and used to judge it, unless there are no others. ``last``
        False: other fits will follow, so a quick one will do.
        """
        if samples.censored is None:
            return self._fit(samples.values, _pooled(samples.variances), self.exact, last)
        known, held_out = np.isfinite(samples.values), self.design.held_out[: len(samples.values)]
        bounds = known & (samples.censored != 0)
        values, variances, told = self._with_expected(samples, samples.censored)
        values[bounds & held_out] = np.nan  # they can judge nothing
        fitted = self._fit(values, variances, False, last)
        fitted = without_bounds(self.design, fitted, bounds & held_out)
        notes, then = fitted.notes, "what is to be expected beyond took their place"
        if not told:
            then = "too few others are there to tell more of them, so bounds were taken as values"
            notes = tuple(f"{note}, with bounds taken as values" for note in notes)
        note = f"{int(bounds.sum())} of {int(known.sum())} values are only bounds: {then}"
        return replace(fitted, notes=(*notes, note))

    def _with_expected(
        self, samples: Samples, censored: npt.NDArray[np.int8]
    ) -> tuple[Floats, Floats | None, bool]:
        """Values to fit, with expected ones for bounds, their variances, and whether there are
        such: else bounds are still among the values.
        """
        values, variances = samples.values.copy(), _pooled(samples.variances)
        train = np.isfinite(values) & ~self.design.held_out[: len(values)]
        if (censored[train] != 0).any():
            filled, noise = imputed(
                self.design.masks[: len(values)][train],
                values[train],
                censored[train],
                None if variances is None else variances[train],
            )
            if np.array_equal(filled, values[train]):
                return values, variances, False
            values[train] = filled
            variances = np.zeros(len(values)) if variances is None else variances
            variances[train] = noise
        return values, variances, True

    def _fit(self, values: Floats, variances: Floats | None, exact: bool, last: bool) -> Fitted:
        known = np.isfinite(values)
        masks = self.design.masks[: len(values)]
        if not known.any():
            nothing = SparseFourier(masks.shape[1], self.method, (), np.zeros(0))
            return Fitted(nothing, Faithfulness(None, "nothing was measured", 0))
        if exact and known.all() and len(values) == len(self.design.masks):
            fourier = ESTIMATORS["exact"](
                masks, values, max_order=self.max_order, variances=variances
            )
            score = r2(fourier, masks, values)
            every = Faithfulness(finite(score), "every mask was measured", len(values))
            notes: tuple[str, ...] = ()
            if self.method in PLANS:
                notes = (
                    f"every mask fits the budget, so {self.method} had nothing to decode: exact",
                )
            if variances is not None:
                notes += (f"{_NOISY}, by {np.sqrt(variances.mean()):.2g} (standard deviation)",)
            return Fitted(fourier, every, notes, exact=True)
        held_out = self.design.held_out[: len(values)]
        train, test = known & ~held_out, known & held_out
        if self.plan is not None and self.method != "auto" and train.any():
            fourier, notes = self.plan.fit(values)
            if variances is not None:
                notes += (_EQUALLY_NOISY,)
            return judged(self.design, fourier, notes, values, test, variances)
        judgeable = bool(train.any())
        if not judgeable:  # all but held-out ones failed: rather a fit than a judgement
            train, test = test, train
        train = self._without_anchors(train)
        method, max_order = self.method, self.max_order
        notes = ()
        if self.exact or self.plan is not None:  # what it was to do cannot be done
            method = "auto"
        if method == "auto":
            choice = choose(
                masks[train],
                values[train],
                max_order=max_order,
                seed=self.seed,
                trees=last,
                variances=None if variances is None else variances[train],
            )
            method, max_order, notes = choice.method, choice.max_order, (choice.why,)
        if method == "gp" and train.sum() > MAX_SAMPLES:
            notes += (f"gp fits {MAX_SAMPLES} of the {train.sum()} samples, drawn at random",)
        fourier = ESTIMATORS[method](
            masks[train],
            values[train],
            max_order=max_order,
            seed=self.seed,
            variances=None if variances is None else variances[train],
        )
        fitted = judged(self.design, fourier, notes, values, test, variances)
        return self._or_decoded(fitted, values, test, variances) if judgeable else fitted

    def _or_decoded(
        self, other: Fitted, values: Floats, test: Rows, variances: Floats | None
    ) -> Fitted:
        """What "auto" decodes from coded masks, if it predicts held-out ones better than ``other``.

        Cross-validation cannot tell: on masks of a linear code a character may equal others, and a
        fit that took one for another is right on all of them.
        """
        complete = any(end <= len(values) for end in self.design.rounds)
        if self.plan is None or self.method != "auto" or not complete:
            return other
        fourier, notes = self.plan.fit(values)
        decoded = judged(self.design, fourier, notes, values, test, variances)
        new, old = decoded.faithfulness.r2, other.faithfulness.r2
        if fourier.method not in PLANS or new is None or old is None or new <= old + _LUCK:
            return other
        why = f"{fourier.method}: R2 {new:.2f} on held-out masks, where the next best has {old:.2f}"
        faithfulness = replace(
            decoded.faithfulness, how=f"{decoded.faithfulness.how}, which also chose the method"
        )
        notes = (f"{why}: {other.notes[0]}", *decoded.notes)
        if variances is not None:
            notes += (_EQUALLY_NOISY,)
        return replace(decoded, faithfulness=faithfulness, notes=notes)

    def chooses(self, asked: int) -> bool:
        """Whether the masks after the first ``asked`` are chosen by what is known.

        Not where they are to outlive an edit: what is chosen depends on every value before, and so
        on what was edited. Reuse gains more than choosing does (docs/method.md).
        """
        if self.identities is not None:
            return False
        size, n = self.design.masks.shape
        by_process = self.method in ("gp", "auto") and self.max_order != 1
        room = n >= (size + _N_CANDIDATES).bit_length()  # for masks that are not in the design
        few = asked <= _MOST_TO_CHOOSE_BY
        return by_process and room and few and self.plan is None and not self.exact

    def revised(self, samples: Samples, end: int, n_test: int, n_near: int) -> Task:
        """The task for what is still to be asked, once the values of the first masks are in.

        ``end``: of the masks that are asked for next. ``n_test``, ``n_near``: how many a uniform
        design of this size holds out.
        """
        values, variances = samples.values, _pooled(samples.variances)
        held_out, known = self.design.held_out[: len(values)], np.isfinite(values)
        if samples.censored is not None:
            known &= samples.censored == 0
        train, test = known & ~held_out, known & held_out
        size, n = self.design.masks.shape
        task = self
        if not train.any():
            return task
        most = min(max(_MOST_TO_LOOK, 4 * n), _LOOK * size)
        look = max(_FEWEST_TO_LOOK, n) <= len(values) <= most
        if self.method == "auto" and self.plan is not None and look:
            task = self._without_code(values, variances, train, test, n_test, n_near)
        if task.chooses(len(values)):
            task = task._informative(values, variances, train, end)
        return task

    def _without_code(
        self,
        values: Floats,
        variances: Floats | None,
        train: Rows,
        test: Rows,
        n_test: int,
        n_near: int,
    ) -> Task:
        """Coded masks are worth their strict pattern where nothing but a code finds what is there.

        Where the first ones already predict held-out masks well, "auto" goes over to uniform and
        near-full masks.
        """
        if test.sum() < _FEWEST_TO_JUDGE:
            return self
        asked = len(values)
        masks = self.design.masks[:asked]
        f = ESTIMATORS["gp"](
            masks[train],
            values[train],
            max_order=self.max_order,
            seed=self.seed,
            variances=None if variances is None else variances[train],
        )
        size, n = self.design.masks.shape
        rich = size >= _RICH * least_budget(n)
        enough = _PREDICTABLE_RICH if rich else _PREDICTABLE
        if not r2(f, masks[test], values[test]) > enough:
            return self
        design = redraw(self.design, asked, n_test, n_near, self.seed)
        return replace(self, design=design, plan=None)

    def _informative(self, values: Floats, variances: Floats | None, train: Rows, end: int) -> Task:
        """In the place of the uniform masks that would be fitted next, more informative ones."""
        asked, n = len(values), self.design.masks.shape[1]
        rows = asked + np.flatnonzero(~self.design.held_out[asked:end])
        rows = rows[rows >= self.design.n_anchors][:_N_CANDIDATES]
        if len(rows) == 0:
            return self
        train = self._without_anchors(train)
        noise = None if variances is None else variances[train]
        posterior = Posterior.of(self.design.masks[:asked][train], values[train], noise)
        if posterior is None:
            return self
        rng = np.random.default_rng([self.seed, asked, _CHOSEN])
        candidates = uniform_masks(n, _N_CANDIDATES, self.design.masks, rng)
        masks = self.design.masks.copy()
        order = n if self.max_order is None else min(n, self.max_order)
        masks[rows] = next_masks(posterior, candidates, len(rows), order)
        return replace(self, design=replace(self.design, masks=masks))

    def _without_anchors(self, train: Rows) -> Rows:
        """The samples to fit but full, empty and leave-one-out masks, if enough others are there.

        A fit speaks of the mean over all masks, where such masks hardly ever occur; a handful of
        them would pull a regression into a corner that it cannot follow.
        """
        masks, n = self.design.masks[: len(train)], self.design.masks.shape[1]
        others = train.copy()
        others[: self.design.n_anchors] = False
        if n >= _FEWEST_FOR_RARE:
            kept = masks.sum(axis=1)
            others &= (kept > 0) & (kept < n - 1)
        return others if others.sum() >= max(_FEWEST_OTHERS, 4 * n) else train


def _pooled(variances: Floats | None) -> Floats | None:
    """Noise variances (j,), each drawn half of the way to their mean.

    They are estimated from a few repetitions each: three that happen to agree do not show that a
    value has no noise.
    """
    return None if variances is None else (variances + variances.mean()) / 2
