"""Method "auto": look at the samples and choose the estimator and the order that predict best.

Knows samples only, and the other estimators. The reason for a choice is part of the choice.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from spex_engine.estimators import boosting, exact, linear, proxyspex, spectral_gp
from spex_engine.estimators.folds import paired_folds
from spex_engine.fourier import Floats, Masks, SparseFourier, characters

_PAIRS_PER_SAMPLE = 8  # beyond this a LASSO finds too little to be worth its time
_MAX_ENTRIES = 1 << 22  # samples x characters: a second or so of fitting
_FEWEST_FOR_GP, _MOST_FOR_GP = 16, spectral_gp.MAX_SAMPLES  # samples
_FEWEST_FOR_TREES = 64
_ENOUGH = 0.9  # R2 beyond which trees, which take longest, have little to add
_FOLDS = 5
_JUDGES = 250  # held-out samples wanted before a score is believed
_SAME = 1e-3  # R2: the plainer of two that differ by less
_LUCK = 0.05  # R2 that a lead of less than a standard error may be and still count as luck


@dataclass(frozen=True, slots=True)
class Choice:
    """An estimator's name, the order to give it, and why, for people to read."""

    method: str
    max_order: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """An estimator that could be chosen, and what to call it."""

    method: str
    max_order: int | None
    name: str


def choose(
    masks: Masks,
    values: Floats,
    *,
    max_order: int | None = None,
    seed: int = 0,
    trees: bool = True,
    variances: Floats | None = None,
) -> Choice:
    """The choice for masks bool (m, n) and finite values (m,).

    Exact where every mask is there. Otherwise, of linear regression of each sensible order up to
    ``max_order`` (None: 2), the spectral Gaussian process and, where these leave more than a tenth
    unexplained, ProxySPEX, the one that predicts samples kept from it best. The Gaussian process
    stays where another is better by less than one standard error (and by less than 0.05), since on
    few samples that is mostly luck; the plainest one where R2 agree to 0.001.

    ``variances`` (m,) as estimators take them: samples then count for as much as
    `linear.noise_weights` of order 1 says, for who judges too.

    ``trees`` False: without ProxySPEX, where a quick answer is worth more than a better one.
    """
    if exact.is_complete(masks):
        return Choice("exact", max_order, "exact: every mask was measured")
    m, n = masks.shape
    wanted = min(n, 2 if max_order is None else max_order)
    candidates = [
        Candidate("linear", order, f"linear of order {order}")
        for order in range(1, wanted + 1)
        if (m * n <= linear.MAX_ENTRIES if order == 1 else sensible(m, n, order))
    ]
    if wanted > 1 and m >= _FEWEST_FOR_GP:
        candidates.append(Candidate("gp", max_order, "Gaussian process"))
    if {candidate.method for candidate in candidates} <= {"linear"} and len(candidates) < 2:
        few = "no higher order was asked for" if wanted < 2 else f"{m} masks are too few for pairs"
        return Choice("linear", 1, f"linear of order 1: {few}")
    contest = _Contest.of(masks, values, seed, variances)
    if not contest.parts:
        return Choice("linear", 1, "linear of order 1: the same mask again and again shows no more")
    for candidate in candidates:
        contest.enter(candidate)
    unexplained = max(contest.scores()) < _ENOUGH
    if trees and wanted > 1 and m >= _FEWEST_FOR_TREES and (unexplained or m > _MOST_FOR_GP):
        if why_not := _no_trees():
            contest.left_out.append(why_not)
        else:
            contest.enter(Candidate("proxyspex", max_order, "ProxySPEX"))
    return contest.winner()


def fit(
    masks: Masks,
    values: Floats,
    *,
    max_order: int | None = None,
    seed: int = 0,
    variances: Floats | None = None,
) -> SparseFourier:
    """The chosen estimator's fit; ``method`` of the result tells which one it was."""
    choice = choose(masks, values, max_order=max_order, seed=seed, variances=variances)
    return _FITS[choice.method](
        masks, values, max_order=choice.max_order, seed=seed, variances=variances
    )


def sensible(m: int, n: int, order: int) -> bool:
    """Whether m masks of n features can bear a regression on all characters up to ``order``."""
    terms = linear.n_characters(n, order)
    most = _PAIRS_PER_SAMPLE * m if order == 2 else m
    return m >= 2 * (n + 1) and m * terms <= _MAX_ENTRIES and terms <= most


@dataclass(frozen=True, eq=False)
class _Contest:
    """Squared errors of candidates on the same held-out samples.

    On a fifth of the samples; on more fifths while those are few.
    """

    masks: Masks
    values: Floats
    seed: int
    parts: list[Masks]  # which samples are held out, in turn
    spread: Floats  # squared difference of each of them from the mean of the others
    entered: list[Candidate]
    errors: list[Floats]  # of each candidate, squared
    left_out: list[str]
    variances: Floats | None
    weights: Floats  # what each sample counts for

    @classmethod
    def of(
        cls, masks: Masks, values: Floats, seed: int, variances: Floats | None = None
    ) -> _Contest:
        folds = paired_folds(masks, _FOLDS, np.random.default_rng(seed))
        n_rounds = min(_FOLDS, -(-_FOLDS * _JUDGES // len(values)))
        parts = [folds == fold for fold in range(n_rounds)]
        parts = [test for test in parts if test.any() and not test.all()]
        weights = np.ones(len(values))
        if variances is not None:
            singles = characters(masks, [(i,) for i in range(masks.shape[1])])
            weights = linear.noise_weights(singles, values, variances)
        spread = [(values[test] - values[~test].mean()) ** 2 * weights[test] for test in parts]
        total = np.concatenate([np.zeros(0), *spread])
        return cls(masks, values, seed, parts, total, [], [], [], variances, weights)

    def enter(self, candidate: Candidate) -> None:
        errors = [np.zeros(0)]
        for test in self.parts:
            fitted = _FITS[candidate.method](
                self.masks[~test],
                self.values[~test],
                max_order=candidate.max_order,
                seed=self.seed,
                variances=None if self.variances is None else self.variances[~test],
            )
            missed = self.values[test] - fitted.predict(self.masks[test])
            errors.append(missed**2 * self.weights[test])
        self.entered.append(candidate)
        self.errors.append(np.concatenate(errors))

    def scores(self) -> list[float]:
        """R2 of each candidate; 0 for all where nothing varies, so that nothing is better."""
        total = float(self.spread.sum())
        if total == 0.0:
            return [0.0] * len(self.entered)
        return [1.0 - float(errors.sum()) / total for errors in self.errors]

    def winner(self) -> Choice:
        scores = self.scores()
        best, how = max(range(len(scores)), key=lambda i: scores[i]), "best"
        methods = [candidate.method for candidate in self.entered]
        process = methods.index("gp") if "gp" in methods else best
        if scores[best] < scores[process] + _LUCK and not self._clearly_better(best, process):
            how = "best" if best == process else "as good as any"
            best = process
        best = next(i for i, score in enumerate(scores) if abs(score - scores[best]) < _SAME)
        chosen = self.entered[best]
        compared = [f"{c.name} {s:.2f}" for c, s in zip(self.entered, scores, strict=True)]
        why = f"{chosen.name}: {how} of the cross-validated R2 ({', '.join(compared)})"
        return Choice(chosen.method, chosen.max_order, "; ".join([why, *self.left_out]))

    def _clearly_better(self, one: int, other: int) -> bool:
        """Whether its squared errors are smaller by a standard error of the mean difference."""
        gains = self.errors[other] - self.errors[one]
        return float(gains.sum()) > float(gains.std() * np.sqrt(len(gains)))


def _no_trees() -> str | None:
    """Why ProxySPEX is not tried; None where it can be."""
    if sys.platform == "darwin" and "torch" in sys.modules:
        return "ProxySPEX was not tried: LightGBM and torch do not get on in one process on macOS"
    try:
        boosting.require_lightgbm()
    except ValueError as error:
        return f"ProxySPEX was not tried: {error}"
    return None


_FITS = {
    "exact": exact.fit,
    "linear": linear.fit,
    "gp": spectral_gp.fit,
    "proxyspex": proxyspex.fit,
}
