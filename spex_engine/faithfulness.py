"""How far a fitted function can be trusted: measures of it against measured values or the truth.

Knows fitted functions, masks and values. Which masks are fair to judge on (ones the fit has not
seen) is for the caller to know. All expectations are over the masks given: `r2` on uniform masks
speaks of half-empty inputs, on masks that lack a feature or two of the input as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spex_engine.fourier import Floats, Masks, SparseFourier, checked_samples
from spex_engine.indices import interactions

_BEAM = 64  # ways to drop r features that are kept in mind to drop one more
_CLEAR = 0.1  # of the strongest: an effect below has no sign worth speaking of


def r2(f: SparseFourier, masks: Masks, values: npt.ArrayLike) -> float:
    """``1 - sum (v - f(x))^2 / sum (v - mean v)^2`` over masks bool (m, n), values float (m,).

    At most 1, which is perfect; 0 is no better than the mean of these values; there is no lower
    bound. Where all values are the same, no variation is there to explain: 1.0 if every one is
    predicted (to 1e-9 relative), else nan. ValueError for other shapes, no masks, or values that
    are not finite.
    """
    masks, measured = checked_samples(masks, values, f.n_features)
    predicted = f.predict(masks)
    if np.ptp(measured) == 0.0:
        exact = np.allclose(predicted, measured, rtol=1e-9, atol=1e-300)
        return 1.0 if exact else math.nan
    errors = np.sum((measured - predicted) ** 2)
    return float(1.0 - errors / np.sum((measured - measured.mean()) ** 2))


# ---- removal -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RemovalCurve:
    """What dropping the r features that a fit deems decisive really does, for r = 0..R.

    ``masks`` bool (R + 1, n), full first; ``values`` float (R + 1,), measured, nan where that
    failed. ``change`` is ``|v(1) - v(S_r)|``, in the unit of the values, and ``relative`` is
    ``Rem(r) = change / |v(1)|`` (SPEX, arXiv 2502.13870), nan where ``v(1)`` is zero: of use where
    zero means something, which it does not for a log-probability.
    """

    masks: Masks
    values: Floats

    @property
    def change(self) -> Floats:
        change: Floats = np.abs(self.values[0] - self.values)
        return change

    @property
    def relative(self) -> Floats:
        whole = abs(float(self.values[0]))
        return self.change / whole if whole > 0 else np.full(len(self.values), np.nan)

    @property
    def area(self) -> float:
        """Mean of ``change`` over r = 1..R, those that failed left out; nan where none is there.

        The higher, the better the fit knows what the values at the full mask rest on.
        """
        there = self.change[1:][np.isfinite(self.change[1:])]
        return float(there.mean()) if len(there) else math.nan


def removal_masks(f: SparseFourier, most: int | None = None) -> Masks:
    """For r = 0..most (None: all n) the mask without those r features that change ``f`` most.

    bool (most + 1, n). It maximises ``|f(1) - f(S)|`` over the masks S that lack r features by a
    beam search: the 64 best ways to drop r features, in each direction, are each tried with every
    further one. That is every way for r = 1, and for r = 2 with 64 features or fewer, so that a
    pair of which either would do is found though neither alone matters.
    """
    n = f.n_features
    most = n if most is None else most
    if isinstance(most, bool) or not isinstance(most, int | np.integer) or not 0 <= most <= n:
        raise ValueError(f"most: {most!r}, expected an integer 0..{n}")
    full = np.ones((1, n), np.bool_)
    whole = float(f.predict(full)[0])
    found, beams = [full[0]], [full, full]
    for _ in range(most):
        ends = []
        for i, sign in enumerate((1.0, -1.0)):
            masks = _with_one_dropped(beams[i])
            falls = sign * (whole - f.predict(masks))
            beams[i] = masks[np.argsort(-falls, kind="stable")[:_BEAM]]
            ends.append((float(falls.max()), beams[i][0]))
        found.append(max(ends, key=lambda end: end[0])[1])
    return np.array(found)


def removal_curve(
    f: SparseFourier, game: Callable[[Masks], npt.ArrayLike], most: int | None = None
) -> RemovalCurve:
    """The curve of `removal_masks`, with ``game`` asked once for their values, float (most + 1,).

    NaN in the game's values is an evaluation that failed. ValueError for another shape.
    """
    masks = removal_masks(f, most)
    values = np.array(game(masks.copy()), dtype=np.float64)
    if values.shape != (len(masks),):
        raise ValueError(f"game: returned shape {values.shape}, expected ({len(masks)},)")
    return RemovalCurve(masks, np.where(np.isfinite(values), values, np.nan))


def _with_one_dropped(masks: Masks) -> Masks:
    """Every distinct mask that lacks one feature more than one of ``masks``."""
    parents, features = np.nonzero(masks)
    children = masks[parents]
    children[np.arange(len(children)), features] = False
    return np.unique(children, axis=0)


# ---- against the truth -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recovery:
    """How much of a known function was found.

    Of the k strongest supports of the truth and of the fit (the constant aside): ``recall`` is the
    share of the former that is among the latter, ``precision`` the share of the latter that is
    among the former, ``f1`` their harmonic mean. ``error`` is
    ``sqrt(sum_S (F(S) - G(S))^2 / sum_S G(S)^2)`` over all supports but the constant; by
    Parseval, ``1 - error^2`` is the R2 over all masks of the fit shifted to the right mean.
    """

    precision: float
    recall: float
    f1: float
    error: float


def recovery(f: SparseFourier, truth: SparseFourier, k: int | None = None) -> Recovery:
    """What ``f`` recovered of ``truth``; k None is every support of the truth.

    Coefficients that are exactly zero are none. Where nothing is to be found, recall is 1, and
    precision is 1 only if nothing was; where nothing was found, precision is 1 too. ``error`` is
    nan for a constant truth. ValueError where the two do not have the same number of features.
    """
    if f.n_features != truth.n_features:
        raise ValueError(f"f: {f.n_features} features, expected {truth.n_features} as in truth")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1):
        raise ValueError(f"k: {k!r}, expected an integer of 1 or more")
    fitted, known = _without_constant(f), _without_constant(truth)
    k = max(1, len(known)) if k is None else int(k)
    wanted, got = (sorted(c, key=lambda s: (-abs(c[s]), s))[:k] for c in (known, fitted))
    hits = len(set(wanted) & set(got))
    precision = hits / len(got) if got else 1.0
    recall = hits / len(wanted) if wanted else 1.0
    f1 = 2 * precision * recall / (precision + recall) if hits or not wanted else 0.0
    missed = sum((fitted.get(s, 0.0) - known.get(s, 0.0)) ** 2 for s in {*fitted, *known})
    size = sum(c**2 for c in known.values())
    return Recovery(precision, recall, f1, math.sqrt(missed / size) if size else math.nan)


def _without_constant(f: SparseFourier) -> dict[tuple[int, ...], float]:
    return {support: c for support, c in f.to_dict().items() if support and c != 0.0}


# ---- noise -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """What repeated evaluations show: the ``variance`` of the noise of one, and the R2 it allows.

    ``highest_r2`` is the R2 of the true function on values with that noise: 0 where all is noise,
    nan where nothing varies at all.
    """

    variance: float
    highest_r2: float


def noise_floor(repeats: npt.ArrayLike) -> NoiseFloor:
    """From the values of m masks evaluated r times each, float (m, r), NaN where one failed.

    One-way analysis of variance: the noise is the mean square within masks,
    ``s^2 = sum_ij (v_ij - v_i)^2 / (N - m)``; the variance between masks
    ``t^2 = (mean square between - s^2) / r0``, 0 if negative, with
    ``r0 = (N - sum r_i^2 / N) / (m - 1)`` (Searle, Casella & McCulloch 1992, section 3.6); and the
    highest R2 is ``t^2 / (t^2 + s^2)``. ValueError for other shapes, fewer than two masks with
    values, or no mask with two.
    """
    try:
        values = np.asarray(repeats, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"repeats: expected real numbers (m, r): {error}") from None
    if values.ndim != 2:
        raise ValueError(f"repeats: shape {values.shape}, expected (m, r)")
    known = np.isfinite(values)
    counts = known.sum(axis=1)
    values, known, counts = values[counts > 0], known[counts > 0], counts[counts > 0]
    m, total = len(counts), int(counts.sum())
    if m < 2 or total == m:
        raise ValueError(
            f"repeats: {m} masks with {total} values, expected two masks or more, one of them twice"
        )
    filled = np.where(known, values, 0.0)
    means = filled.sum(axis=1) / counts
    mean = filled.sum() / total
    within = float(np.sum(np.where(known, values - means[:, None], 0.0) ** 2)) / (total - m)
    between = float(np.sum(counts * (means - mean) ** 2)) / (m - 1)
    typical = (total - float(np.sum(counts**2)) / total) / (m - 1)
    signal = max(0.0, (between - within) / typical)
    whole = signal + within
    return NoiseFloor(within, signal / whole if whole > 0 else math.nan)


# ---- the two readings of a feature -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """What one feature does among half of the others, and what it does when all are there.

    ``overall`` is its Banzhaf value, ``E[v(x with i) - v(x without i)]`` over uniform masks;
    ``near_full`` is ``v(1) - v(1 without i)``, ``measured`` or else predicted. ``disagree``: they
    have different signs, and both are clear: more than a tenth of the strongest of all readings.
    """

    feature: int
    overall: float
    near_full: float
    measured: bool
    disagree: bool


def readings(f: SparseFourier, masks: Masks, values: npt.ArrayLike) -> tuple[Reading, ...]:
    """Both readings of every feature, in order, from a fit and the samples there are.

    ``masks`` bool (m, n), ``values`` finite float (m,), as in an Explanation. Without the full
    mask among them, or the one that lacks only the feature, the fit takes their place, both.
    """
    masks, measured = checked_samples(masks, values, f.n_features)
    known: dict[Any, float] = {
        m.tobytes(): v for m, v in zip(masks, measured.tolist(), strict=True)
    }
    n = f.n_features
    full, without = np.ones(n, np.bool_), ~np.eye(n, dtype=np.bool_)
    predicted = (f.predict(full[None, :]) - f.predict(without)).tolist()
    whole = known.get(full.tobytes())
    found = []
    for effect in interactions(f, "BV", 1):
        (i,) = effect.members
        alone = known.get(without[i].tobytes())
        if whole is None or alone is None:
            found.append((i, effect.value, predicted[i], False))
        else:
            found.append((i, effect.value, whole - alone, True))
    clear = _CLEAR * max((abs(v) for reading in found for v in reading[1:3]), default=0.0)
    return tuple(
        Reading(i, overall, near, seen, overall * near < 0 and min(abs(overall), abs(near)) > clear)
        for i, overall, near, seen in sorted(found)
    )
