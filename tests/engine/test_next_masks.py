"""The Gaussian process's next masks, against the posterior that each would lead to."""

import itertools

import numpy as np
import pytest

import spex_engine as spex
from spex_engine import fitting
from spex_engine.designs import enumerate_masks
from spex_engine.estimators.next_masks import next_masks
from spex_engine.estimators.spectral_gp import Posterior
from spex_engine.fourier import Floats, Masks, characters


@pytest.fixture
def posterior() -> Posterior:
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, (14, 5)).astype(np.bool_)
    values = masks[:, 0] * masks[:, 1] - 0.5 * masks[:, 2] + 0.1 * rng.normal(size=14)
    found = Posterior.of(masks, values)
    assert found is not None
    return found


def variance_left(posterior: Posterior, masks: Masks) -> float:
    """Oracle: the total variance of all coefficients but the constant once these are known too, by
    the normal equations, where no coefficient contradicts the prior."""
    every = [s for size in range(6) for s in itertools.combinations(range(5), size)]
    seen = characters(np.concatenate([posterior.masks, masks]), every)
    prior = posterior.prior_variances(every)
    covariance = np.linalg.inv(np.diag(1 / prior) + seen.T @ seen / posterior.prior.noise)
    return float(np.trace(covariance[1:, 1:]))


def test_each_mask_lowers_the_variance_most(
    posterior: Posterior, monkeypatch: pytest.MonkeyPatch
) -> None:
    certain = np.zeros_like(posterior.prior.uncertainty)
    object.__setattr__(posterior.prior, "uncertainty", certain)
    monkeypatch.setattr(
        "spex_engine.estimators.spectral_gp._wider", lambda means, *_: np.ones_like(means)
    )
    candidates = enumerate_masks(5)
    chosen = next_masks(posterior, candidates, 3, max_order=5)
    for k in range(3):
        left = [variance_left(posterior, [*chosen[:k], mask]) for mask in candidates]
        assert variance_left(posterior, chosen[: k + 1]) == pytest.approx(min(left), rel=1e-6)
    assert len(np.unique(chosen, axis=0)) == 3


def test_too_few_candidates(posterior: Posterior) -> None:
    with pytest.raises(ValueError, match=r"count: 5, expected 0\.\.4"):
        next_masks(posterior, enumerate_masks(2).repeat(3, axis=1)[:, :5], 5, 5)


def phrases(masks: Masks) -> Floats:
    kept = masks.astype(np.float64)
    values: Floats = np.tanh(
        kept[:, :3].prod(axis=1)
        + kept[:, 4] * kept[:, 9]
        - kept[:, 7]
        + 0.5 * kept[:, 11:14].max(1)
    )
    return values


@pytest.mark.parametrize("method", ["gp", "auto"])
def test_chosen_masks_teach_more_than_drawn_ones(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unseen = np.random.default_rng(99).integers(0, 2, (1000, 24)).astype(np.bool_)

    def score() -> float:
        runs = [spex.explain(phrases, 24, 192, method, seed=seed) for seed in range(3)]
        assert all(e.evaluations.requested <= 192 for e in runs)
        return float(np.mean([spex.r2(e.fourier, unseen, phrases(unseen)) for e in runs]))

    chosen = score()
    monkeypatch.setattr(fitting, "_MOST_TO_CHOOSE_BY", 0)
    assert chosen > score()


def test_the_same_seed_asks_for_the_same_masks() -> None:
    runs = [spex.explain(phrases, 24, 256, "gp", seed=3) for _ in range(2)]
    np.testing.assert_array_equal(runs[0].masks, runs[1].masks)
