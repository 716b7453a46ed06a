"""Regression on characters up to a given order: ridge for effects, LASSO to find interactions.

Knows samples only. Order 1 is ridge regression with the penalty of generalised cross-validation
(Golub, Heath & Wahba 1979). From order 2 a LASSO picks among the many characters, its penalty
chosen by K-fold cross-validation, and the chosen ones are fitted again by the same ridge, because
the LASSO's own coefficients are shrunk.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np

from spex_engine.estimators.folds import paired_folds
from spex_engine.estimators.lasso import lasso_path
from spex_engine.fourier import Floats, Masks, SparseFourier, Support, characters

MAX_ENTRIES = 1 << 26  # of the matrix samples x characters: 512 MiB
_FOLDS = 5
_PENALTIES = np.geomspace(1.0, 2e-3, 32)  # of the smallest penalty that leaves nothing
_PATIENCE = 8  # penalties in a row without better predictions before a path is given up
_RIDGE = np.logspace(-12, 3, 61)  # of the largest eigenvalue
_MIN_SAMPLES = 10  # with fewer, cross-validation has nothing to say about interactions


def fit(
    masks: Masks,
    values: Floats,
    *,
    max_order: int | None = None,
    seed: int = 0,
    variances: Floats | None = None,
) -> SparseFourier:
    """The constant, every feature and, from ``max_order`` 2 (None: 1), the characters that help.

    Single features are never penalised away where there are 4 samples for each, so that each has
    an error bar; with fewer they compete with the interactions. Fewer than 10 samples choose no
    interactions. The covariance is that of `ridge`; it takes the chosen characters as given, so
    it is too small by what the choice itself was uncertain. With ``variances`` samples count by
    `noise_weights`. ValueError where there are too many
    characters for memory.
    """
    m, n = masks.shape
    order = min(n, 1 if max_order is None else max_order)
    n_terms = n_characters(n, order)
    if m * n_terms > MAX_ENTRIES:
        raise ValueError(
            f"max_order: {order} means {n_terms} characters of {n} features for {m} masks, "
            f"expected at most {MAX_ENTRIES // m}"
        )
    terms = [term for size in range(1, order + 1) for term in combinations(range(n), size)]
    columns = characters(masks, terms)
    weights = None if variances is None else noise_weights(columns[:, :n], values, variances)
    if order > 1 and m >= _MIN_SAMPLES:
        n_free, rng = n if m >= 4 * n else 0, np.random.default_rng(seed)
        chosen = _choose(masks, columns, values, n_free, rng, weights)
        terms, columns = [terms[i] for i in chosen], columns[:, chosen]
    elif order > 1:
        terms, columns = terms[:n], columns[:, :n]
    if variances is not None and order > 1:
        weights = noise_weights(columns, values, variances)
    coefficients, covariance = ridge(columns, values, weights)
    supports: tuple[Support, ...] = ((), *terms)
    return SparseFourier(n, "linear", supports, coefficients, covariance)


def n_characters(n_features: int, order: int) -> int:
    """How many non-empty supports of at most ``order`` features there are."""
    return sum(comb(n_features, size) for size in range(1, order + 1))


def noise_weights(columns: Floats, values: Floats, variances: Floats) -> Floats:
    """What each sample counts for, (m,) of mean 1, where its noise has variance ``variances`` (m,).

    ``1 / (s^2 + v_i)``, with ``s^2`` what the regression on ``columns`` leaves beside that noise:
    the solution of ``sum_i r_i^2 / (s^2 + v_i) = dof`` (Paule & Mandel 1982), for the residuals of
    an unweighted fit and then of the weighted one. At least a hundredth of the mean residual
    square: no sample is to count for all.
    """
    m, p = columns.shape
    weights = np.ones(m)
    dof = max(m - 1 - p, 0.1 * m)
    for _ in range(2):
        coefficients, _covariance = ridge(columns, values, weights)
        squares = (values - coefficients[0] - columns @ coefficients[1:]) ** 2
        least, most = 0.01 * float(squares.mean()), float(squares.sum()) / dof
        if least <= 0.0:
            return np.ones(m)
        for _ in range(40):  # halving: the sum falls with s^2
            middle = (least + most) / 2
            above = float(np.sum(squares / (middle + variances))) > dof
            least, most = (middle, most) if above else (least, middle)
        weights = 1 / (least + variances)
        weights /= weights.mean()
    return weights


def ridge(
    columns: Floats, values: Floats, weights: Floats | None = None
) -> tuple[Floats, Floats | None]:
    """Coefficients (1 + p,), constant first, of values (m,) on columns (m, p); their covariance.

    The constant is not penalised. The penalty minimises ``m RSS / dof^2`` among those that leave a
    tenth of the samples as residual degrees of freedom (where RSS and dof both go to zero, the
    criterion says nothing). The covariance is the posterior one, ``s^2 (X'X + penalty)^-1``, with
    ``s^2 = RSS / dof``: unlike the sampling covariance it does not shrink along directions that the
    samples do not determine (Wahba 1983). None where no degree of freedom is left to estimate it.
    ``weights`` (m,): what each sample counts for, whatever their mean; None: the same.
    """
    if weights is None:
        means, offset = columns.mean(axis=0), float(values.mean())
        centred, target = columns - means, values - offset
    else:
        shares = weights / weights.sum()
        means, offset = shares @ columns, float(shares @ values)
        root = np.sqrt(shares * len(values))
        centred, target = (columns - means) * root[:, None], (values - offset) * root
    return solve_ridge(
        len(values),
        means,
        offset,
        centred.T @ centred,
        centred.T @ target,
        float(target @ target),
        lambda slopes: float(np.sum((target - centred @ slopes) ** 2)),
    )


def solve_ridge(
    m: int,
    means: Floats,
    offset: float,
    gram: Floats,
    moments: Floats,
    total: float,
    residual_sum: Callable[[Floats], float],
) -> tuple[Floats, Floats | None]:
    """`ridge` from what it needs of ``m`` samples, for those whose columns are too many to hold.

    ``means`` (p,) of the columns and ``offset`` of the values; with both centred, ``gram`` (p, p)
    ``X'X``, ``moments`` (p,) ``X'y`` and ``total`` ``y'y``. ``residual_sum`` maps slopes (p,) to
    their sum of squared residuals: a second look at the samples, because a difference of moments
    loses all its digits where the fit is good.
    """
    p = len(means)
    eigenvalues, vectors = np.linalg.eigh(gram)
    scale = eigenvalues[-1] if p else 0.0
    if m < 2 or scale <= 0.0:  # one sample, no columns, or columns that never change
        known = m > 1 and p == 0
        alone = np.concatenate([[offset], np.zeros(p)])
        return alone, np.array([[total / (m - 1) / m]]) if known else None
    seen = eigenvalues > 1e-12 * scale
    eigenvalues = np.where(seen, eigenvalues, 0.0)
    rotated = np.where(seen, vectors.T @ moments, 0.0)
    least = np.divide(rotated, eigenvalues, out=np.zeros(p), where=seen)
    penalties = scale * _RIDGE[:, None]
    shrinkage = penalties / (eigenvalues + penalties)  # (l, p)
    rss = residual_sum(vectors @ least) + shrinkage**2 @ (rotated * least)
    dof = m - 1 - (1 - shrinkage).sum(axis=1)
    gcv = np.where(dof >= 0.1 * m, rss / np.maximum(dof, 1e-9) ** 2, np.inf)
    best = int(np.argmin(gcv))  # the largest penalty always leaves nearly m - 1
    inverse = 1.0 / (eigenvalues + penalties[best])
    coefficients = vectors @ (rotated * inverse)
    variance = rss[best] / dof[best]
    covariance = (vectors * (variance * inverse)) @ vectors.T
    across = -covariance @ means
    constant = variance / m - means @ across
    full = np.block([[np.array([[constant]]), across[None, :]], [across[:, None], covariance]])
    return np.concatenate([[offset - means @ coefficients], coefficients]), (full + full.T) / 2


def _choose(
    masks: Masks,
    columns: Floats,
    values: Floats,
    n_free: int,
    rng: np.random.Generator,
    weights: Floats | None,
) -> list[int]:
    """The first ``n_free`` columns, and those others that predict samples left out.

    A penalty is judged by what the refit on its active columns predicts, since the refit is what
    is returned.
    """
    m = len(columns)
    free = np.arange(n_free)
    ones = np.ones(m)
    if weights is not None:  # least squares of scaled rows
        ones = np.sqrt(weights)
        columns, values = columns * ones[:, None], values * ones
    known = np.column_stack([ones, columns[:, :n_free]])
    everything = np.column_stack([columns[:, n_free:], values])
    rest, target = _partial(known, everything, known, everything)[:2]
    largest = np.abs(rest.T @ target).max(initial=0.0) / m
    if largest <= 1e-12 * np.abs(values).max():  # free columns already say everything
        return free.tolist()
    penalties = largest * _PENALTIES
    errors = np.zeros(len(penalties))
    folds = paired_folds(masks, _FOLDS, rng)
    for fold in range(_FOLDS):
        test, train = folds == fold, folds != fold
        fitted = _partial(known[train], everything[train], known[test], everything[test])
        errors += _refit_errors(*fitted, penalties, max_active=(m - n_free) // 2)
    best = int(np.argmin(errors))
    *_, solution = lasso_path(rest, target, penalties[: best + 1])
    return [*free.tolist(), *(n_free + np.flatnonzero(solution)).tolist()]


def _partial(
    known: Floats, everything: Floats, test_known: Floats, test_everything: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """``everything``, the other columns and the values, less its regression on what is ``known``,
    the constant and the free columns; columns and values, then those of the test rows.

    By Frisch, Waugh and Lovell, regression on what is left over equals regression on everything.
    The test rows lose what the training rows' regression predicts for them.
    """
    slopes = np.linalg.lstsq(known, everything, rcond=None)[0]
    left = everything - known @ slopes
    test_left = test_everything - test_known @ slopes
    return left[:, :-1], left[:, -1], test_left[:, :-1], test_left[:, -1]


def _refit_errors(
    columns: Floats,
    target: Floats,
    test_columns: Floats,
    test_target: Floats,
    penalties: Floats,
    max_active: int,
) -> Floats:
    """Squared test error of the least-squares refit at each penalty; inf where not pursued."""
    errors = np.full(len(penalties), np.inf)
    before = np.zeros(0, dtype=np.intp)
    error = test_target @ test_target
    for i, solution in enumerate(lasso_path(columns, target, penalties)):
        active = np.flatnonzero(solution)
        if len(active) > max_active or i - int(np.argmin(errors)) > _PATIENCE:
            break
        if not np.array_equal(active, before):
            few = columns[:, active]
            gram = few.T @ few
            gram[np.diag_indices_from(gram)] += 1e-9 * len(columns)  # two columns may be equal
            missed = test_target - test_columns[:, active] @ np.linalg.solve(gram, few.T @ target)
            error = missed @ missed
        errors[i], before = error, active
    return errors
