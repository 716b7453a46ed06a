"""The spectral Gaussian process, against Bayesian regression on every character."""

import dataclasses
import itertools

import numpy as np
import pytest

from spex_engine.estimators import spectral_gp, spectral_prior
from spex_engine.estimators.spectral_gp import Posterior
from spex_engine.faithfulness import r2
from spex_engine.fourier import Floats, Masks, SparseFourier, characters
from spex_engine.indices import interactions


def all_supports(n: int) -> list[tuple[int, ...]]:
    return [s for size in range(n + 1) for s in itertools.combinations(range(n), size)]


def random_masks(m: int, n: int, seed: int = 0) -> Masks:
    return np.random.default_rng(seed).integers(0, 2, (m, n)).astype(np.bool_)


def kernel_variances(eta: Floats, n: int) -> Floats:
    """What the kernel of eta = (log theta, log v, log w) gives each of all supports."""
    theta = np.exp(eta[:n])
    constant = np.exp(eta[n]) * np.prod((1 + np.exp(-theta)) / 2)
    rho = np.tanh(theta / 2)
    return np.array([constant * np.prod(rho[list(s)]) for s in all_supports(n)])


def extra_variances(posterior: Posterior, n: int) -> Floats:
    """What pairs one and two apart have besides."""
    extra = np.zeros(len(all_supports(n)))
    for i, (support, own) in enumerate(
        zip(all_supports(n), kernel_variances(eta_of(posterior), n), strict=True)
    ):
        if len(support) == 2 and support[1] - support[0] <= 2:
            extra[i] = own * posterior.prior.closeness[support[1] - support[0] - 1]
    return extra


def regression(prior: Floats, noise: float, masks: Masks, values: Floats) -> tuple[Floats, Floats]:
    """Oracle: means and covariance of all coefficients of the Gaussian linear model with these
    prior variances, by the normal equations."""
    chi = characters(masks, all_supports(masks.shape[1]))
    covariance = np.linalg.inv(np.diag(1 / prior) + chi.T @ chi / noise)
    return covariance @ chi.T @ values / noise, covariance


def eta_of(posterior: Posterior) -> Floats:
    prior = posterior.prior
    return np.log(np.concatenate([prior.theta, [prior.variance, prior.noise]]))


def prior_of(posterior: Posterior) -> Floats:
    return kernel_variances(eta_of(posterior), 5) + extra_variances(posterior, 5)


@pytest.fixture
def small() -> tuple[Posterior, Masks, Floats]:
    masks = random_masks(23, 5, seed=1)
    rng = np.random.default_rng(2)
    values = masks[:, 0] * masks[:, 1] - 0.5 * masks[:, 2] + 0.05 * rng.normal(size=23)
    values = (values - values.mean()) / values.std()
    posterior = Posterior.of(masks, values)
    assert posterior is not None
    return posterior, masks, values


def test_posterior_is_bayesian_regression_on_all_characters(
    small: tuple[Posterior, Masks, Floats],
) -> None:
    posterior, masks, values = small
    certain = dataclasses.replace(posterior.prior, uncertainty=np.zeros((7, 7)))
    means, covariance = dataclasses.replace(posterior, prior=certain).coefficients(all_supports(5))
    prior = prior_of(posterior)
    assert extra_variances(posterior, 5).max() > 0
    np.testing.assert_allclose(posterior.prior_variances(all_supports(5)), prior)
    expected, expected_covariance = regression(prior, posterior.prior.noise, masks, values)
    wider = spectral_gp._wider(expected, np.diagonal(expected_covariance), prior_of(posterior))
    assert (wider == 1).sum() > 25  # of 32: the others are larger than their prior expects
    expected_covariance = expected_covariance * np.outer(wider, wider)
    np.testing.assert_allclose(means, expected, atol=1e-7)
    np.testing.assert_allclose(covariance, expected_covariance, atol=1e-7)


def test_what_the_parameters_leave_open_widens_the_error_bars(
    small: tuple[Posterior, Masks, Floats],
) -> None:
    """To first order: the oracle's means at parameters moved a little, and their covariance."""
    posterior, masks, values = small
    eta, extra = eta_of(posterior), extra_variances(posterior, 5)

    def means_at(eta: Floats) -> Floats:
        return regression(kernel_variances(eta, 5) + extra, np.exp(eta[-1]), masks, values)[0]

    step = 1e-4
    jacobian = np.stack(
        [(means_at(eta + step * u) - means_at(eta - step * u)) / (2 * step) for u in np.eye(7)],
        axis=1,
    )
    means, expected = regression(prior_of(posterior), np.exp(eta[-1]), masks, values)
    wider = spectral_gp._wider(means, np.diagonal(expected), prior_of(posterior))
    expected = (
        expected * np.outer(wider, wider) + jacobian @ posterior.prior.uncertainty @ jacobian.T
    )
    covariance = posterior.coefficients(all_supports(5))[1]
    np.testing.assert_allclose(covariance, expected, atol=1e-6)
    assert np.linalg.eigvalsh(posterior.prior.uncertainty)[0] > 0


def test_a_coefficient_larger_than_its_prior_has_a_wider_error_bar() -> None:
    """Simulated: the mean squared error of the shrunk mean is what the wider bar says."""
    rng = np.random.default_rng(0)
    prior, error = 1.0, 0.5
    left = prior * error / (prior + error)
    truth = 4.0  # four deviations of the prior
    seen = truth + np.sqrt(error) * rng.normal(size=4000)
    means = seen * prior / (prior + error)
    wider = spectral_gp._wider(means, np.full(4000, left), np.full(4000, prior))
    told = np.mean(left * wider**2)
    assert told == pytest.approx(np.mean((means - truth) ** 2), rel=0.1)
    as_expected = spectral_gp._wider(np.array([0.5, -1.0]), np.full(2, left), np.full(2, prior))
    np.testing.assert_array_equal(as_expected, 1.0)


def phrases(masks: Masks) -> Floats:
    """Neighbours that act together, all along the text, and nothing else."""
    values: Floats = (masks[:, :-1] & masks[:, 1:]) @ np.linspace(-1.0, 2.0, masks.shape[1] - 1)
    return values


def test_neighbours_that_act_together_are_expected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, unseen = random_masks(150, 30), random_masks(500, 30, seed=9)
    near = r2(spectral_gp.fit(masks, phrases(masks)), unseen, phrases(unseen))
    posterior = Posterior.of(masks, phrases(masks))
    assert posterior is not None
    assert posterior.prior.closeness[0] > 1.0 > posterior.prior.closeness[1]
    monkeypatch.setattr(spectral_prior, "_closeness", lambda *given: (np.zeros(2), given[2]))
    assert near > r2(spectral_gp.fit(masks, phrases(masks)), unseen, phrases(unseen)) + 0.05


def test_an_order_without_meaning_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    order = np.random.default_rng(4).permutation(30)
    masks, unseen = random_masks(300, 30), random_masks(500, 30, seed=9)
    values, truth = phrases(masks[:, order]), phrases(unseen[:, order])
    with_closeness = r2(spectral_gp.fit(masks, values), unseen, truth)
    monkeypatch.setattr(spectral_prior, "_closeness", lambda *given: (np.zeros(2), given[2]))
    assert with_closeness > r2(spectral_gp.fit(masks, values), unseen, truth) - 0.01


def test_supports_come_in_order_of_prior_variance() -> None:
    log_rho = np.log(np.random.default_rng(4).uniform(0.01, 0.9, size=6))
    for max_order in (1, 2, 6):
        costs, found = zip(*spectral_gp._by_prior(log_rho, max_order), strict=True)
        expected = [s for s in all_supports(6) if 0 < len(s) <= max_order]
        np.testing.assert_allclose(costs, [log_rho[list(s)].sum() for s in found])
        assert sorted(found) == sorted(expected)
        assert list(costs) == sorted(costs, reverse=True)
    assert list(spectral_gp._by_prior(log_rho, 0)) == []


@pytest.mark.parametrize("max_order", [1, 2, 3, 8])
def test_the_largest_coefficients_are_found(max_order: int) -> None:
    """Among all of them, as the posterior itself says; the constant is always there."""
    masks = random_masks(90, 8, seed=3)
    posterior = Posterior.of(masks, and_or_game(np.pad(masks, ((0, 0), (0, 4)))))
    assert posterior is not None
    every = [s for s in all_supports(8) if 0 < len(s) <= max_order]
    means = np.abs(posterior.coefficients(every)[0])
    largest = {every[i] for i in np.argsort(-means)[:29]}
    found = posterior.largest(30, max_order)
    assert found[0] == ()
    assert set(found[1:]) == {s for s in largest if s}
    assert len(found) == min(30, len(every) + 1)


def and_or_game(masks: Masks) -> Floats:
    """An AND, an OR and a lone effect among features that do nothing."""
    values: Floats = (
        3.0 * (masks[:, 0] & masks[:, 7]) + 2.0 * (masks[:, 3] | masks[:, 11]) - 1.0 * masks[:, 5]
    )
    return values


def test_finds_the_pairs_among_many_features() -> None:
    n = 24
    masks = random_masks(260, n)
    f = spectral_gp.fit(masks, and_or_game(masks))
    unseen = random_masks(500, n, seed=9)
    assert r2(f, unseen, and_or_game(unseen)) > 0.97
    pairs = [i for i in interactions(f, "FBII", order=2) if len(i.members) == 2]
    assert [i.members for i in pairs[:2]] == [(0, 7), (3, 11)]
    assert pairs[0].value == pytest.approx(3.0, abs=0.4)
    assert pairs[1].value == pytest.approx(-2.0, abs=0.4)


def test_error_bars_hold_the_truth() -> None:
    """Over many small noisy games, two standard errors hold about 95% of the coefficients."""
    inside = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        masks = random_masks(120, 8, seed)
        truth = SparseFourier(8, "truth", ((0,), (1,), (0, 1), (2, 3)), rng.normal(size=4))
        values = truth.predict(masks) + 0.3 * rng.normal(size=120)
        f = spectral_gp.fit(masks, values)
        assert f.covariance is not None
        known = truth.to_dict()
        for support, value, variance in zip(
            f.supports, f.coefficients, np.diagonal(f.covariance), strict=True
        ):
            if 0 < len(support) <= 2:
                inside.append(abs(value - known.get(support, 0.0)) <= 2 * np.sqrt(variance))
    assert 0.9 <= np.mean(inside) <= 1.0


def test_max_order_is_kept() -> None:
    masks = random_masks(80, 7)
    f = spectral_gp.fit(masks, and_or_game(np.pad(masks, ((0, 0), (0, 5)))), max_order=1)
    assert max(map(len, f.supports)) == 1


def test_more_samples_than_parameters_are_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relevances come from some of the samples, the posterior from all: nearly as good, and no
    matter in which order the samples come."""
    masks = random_masks(400, 12)
    values = and_or_game(masks)
    unseen = random_masks(300, 12, seed=9)
    whole = r2(spectral_gp.fit(masks, values), unseen, and_or_game(unseen))
    monkeypatch.setattr(spectral_gp, "_MAX_TUNED", 150)
    f = spectral_gp.fit(masks, values)
    assert r2(f, unseen, and_or_game(unseen)) > whole - 0.02
    order = np.lexsort(masks.T)  # sorted, the first samples would all lack the last feature
    g = spectral_gp.fit(masks[order], values[order])
    assert r2(g, unseen, and_or_game(unseen)) > whole - 0.02


def test_repeated_masks_are_as_good_as_others() -> None:
    masks = np.repeat(random_masks(60, 6), 3, axis=0)
    values = and_or_game(np.pad(masks, ((0, 0), (0, 6))))
    noisy = values + 0.01 * np.random.default_rng(0).normal(size=len(values))
    unseen = random_masks(50, 6, seed=5)
    f = spectral_gp.fit(masks, noisy)
    assert r2(f, unseen, and_or_game(np.pad(unseen, ((0, 0), (0, 6))))) > 0.99


def test_constant_values_and_no_features() -> None:
    constant = spectral_gp.fit(random_masks(20, 4), np.full(20, 2.5))
    assert constant.to_dict() == {(): 2.5}
    assert spectral_gp.fit(np.zeros((3, 0), np.bool_), np.ones(3)).to_dict() == {(): 1.0}


def test_units_and_offset_follow_the_values() -> None:
    masks = random_masks(100, 6)
    values = and_or_game(np.pad(masks, ((0, 0), (0, 6))))
    f, g = spectral_gp.fit(masks, values), spectral_gp.fit(masks, 10 * values - 7)
    unseen = random_masks(50, 6, seed=5)
    np.testing.assert_allclose(g.predict(unseen), 10 * f.predict(unseen) - 7, atol=1e-2)
