"""ProxySPEX: what it finds, how it starts and stops, and what it says where LightGBM is missing."""

import sys
from pathlib import Path

import numpy as np
import pytest

from spex_engine import SparseFourier, explain, fit
from spex_engine.designs import draw_design, enumerate_masks
from spex_engine.estimators import boosting, estimator, linear, proxyspex
from spex_engine.faithfulness import r2
from spex_engine.fourier import Masks
from spex_engine.indices import interactions


def sample(n: int, m: int, seed: int = 0) -> Masks:
    return np.random.default_rng(seed).random((m, n)) < 0.5


def planted(masks: Masks) -> np.ndarray:
    return (
        3.0 * masks[:, [1, 4]].all(axis=1)
        - 2.0 * masks[:, [2, 7, 9]].any(axis=1)
        + 1.0 * masks[:, 3]
    )


def test_planted_terms_are_recovered() -> None:
    f = proxyspex.fit(sample(20, 300), planted(sample(20, 300)))
    assert f.method == "proxyspex"
    exactly = {
        **{(): -0.5, (1,): -0.75, (4,): -0.75, (1, 4): 0.75, (3,): -0.5},
        **dict.fromkeys([(2,), (7,), (9,), (2, 7), (2, 9), (7, 9), (2, 7, 9)], 0.25),
    }
    found = f.to_dict()
    for support, coefficient in exactly.items():
        assert found.pop(support) == pytest.approx(coefficient, abs=1e-6)
    assert max(map(abs, found.values()), default=0.0) < 1e-6
    assert interactions(f, "Moebius", order=2)[0].members == (1, 4)


def test_noise_is_borne() -> None:
    masks = sample(30, 400)
    values = planted(masks)
    values = values + 0.5 * values.std() * np.random.default_rng(1).normal(size=400)
    unseen = sample(30, 1000, seed=9)
    f = proxyspex.fit(masks, values)
    assert r2(f, unseen, planted(unseen)) > 0.9
    assert r2(f, unseen, planted(unseen)) > r2(linear.fit(masks, values), unseen, planted(unseen))


def test_pure_noise_invents_nothing() -> None:
    masks = sample(40, 300)
    f = proxyspex.fit(masks, np.random.default_rng(3).normal(size=300))
    unseen = sample(40, 1000, seed=9)
    assert f.predict(unseen).std() < 0.35


def test_a_sum_needs_no_trees() -> None:
    weights = np.random.default_rng(0).normal(size=50)
    masks, unseen = sample(50, 150), sample(50, 500, seed=9)
    f = proxyspex.fit(masks, masks @ weights)
    assert r2(f, unseen, unseen @ weights) > 1 - 1e-6


def test_paired_masks_do_not_deceive_it() -> None:
    """Of even characters of order 4 nothing can be learnt here; a leak would look like much."""
    supports = tuple(
        tuple(sorted(np.random.default_rng(s).permutation(23)[:4].tolist())) for s in range(12)
    )
    game = SparseFourier(23, "even", supports, np.ones(12))
    masks = draw_design(23, 300).masks
    f = proxyspex.fit(masks, game.predict(masks))
    unseen = sample(23, 800, seed=99)
    assert r2(f, unseen, game.predict(unseen)) > -0.2


@pytest.mark.parametrize("order", [1, 2, 3])
def test_max_order(order: int) -> None:
    masks = sample(12, 200)
    f = proxyspex.fit(masks, planted(masks), max_order=order)
    assert max(map(len, f.supports)) == order


def test_equal_seeds_give_equal_fits() -> None:
    masks = sample(12, 80)
    values = planted(masks) + np.random.default_rng(0).normal(size=80)
    first, second, other = (proxyspex.fit(masks, values, seed=seed) for seed in (5, 5, 6))
    assert first.to_dict() == second.to_dict()
    assert first.to_dict() != other.to_dict()
    huge = proxyspex.fit(masks, values, seed=2**40)  # more than LightGBM takes
    assert np.isfinite(huge.coefficients).all()


def test_the_unit_of_the_values_does_not_matter() -> None:
    masks = sample(12, 100)
    values = planted(masks) + 0.3 * np.random.default_rng(0).normal(size=100)
    f, scaled = proxyspex.fit(masks, values), proxyspex.fit(masks, 1e-6 * values + 3.0)
    unseen = enumerate_masks(12)
    np.testing.assert_allclose(scaled.predict(unseen), 1e-6 * f.predict(unseen) + 3.0, atol=1e-8)


def test_error_bars_of_a_refit_are_of_the_right_size() -> None:
    """Twelve planted characters under noise: most lie within two standard errors."""
    truth = SparseFourier(
        16, "truth", ((), *((i,) for i in range(8)), (0, 1), (2, 3), (4, 5)), np.ones(12)
    )
    within = []
    for seed in range(3):
        masks = sample(16, 200, seed)
        noise = np.random.default_rng(50 + seed).normal(size=200)
        f = proxyspex.fit(masks, truth.predict(masks) + noise, seed=seed)
        if f.covariance is None:
            continue
        assert f.covariance.shape == (len(f.supports),) * 2
        errors = dict(zip(f.supports, np.sqrt(np.diagonal(f.covariance)), strict=True))
        found = f.to_dict()
        within += [abs(found[s] - 1.0) <= 2 * errors[s] for s in truth.supports]
    assert len(within) >= 24
    assert np.mean(within) > 0.75


@pytest.mark.parametrize("m", [1, 2, 9, 10, 16, 33, 64])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_few_samples(n: int, m: int) -> None:
    masks = sample(n, m, seed=m)
    values = masks[:, 0] + 0.1 * np.random.default_rng(m).normal(size=m)
    f = proxyspex.fit(masks, values)
    assert (f.n_features, f.method) == (n, "proxyspex")
    unseen = sample(n, 50, seed=99)
    assert np.abs(f.predict(unseen)).max() < 3.0


@pytest.mark.parametrize("m", [1, 5, 40])
def test_constant_values(m: int) -> None:
    f = proxyspex.fit(sample(6, m), np.full(m, 0.1))
    assert f.to_dict() == {(): pytest.approx(0.1)}


def test_no_features_at_all() -> None:
    f = proxyspex.fit(np.zeros((40, 0), bool), np.arange(40.0))
    assert f.to_dict() == {(): pytest.approx(19.5)}


def test_masks_that_repeat() -> None:
    only = proxyspex.fit(np.ones((30, 3), bool), np.arange(30.0))
    assert only.predict(np.ones((1, 3), bool)) == pytest.approx([14.5])
    masks = np.repeat(sample(6, 40), 3, axis=0)
    f = proxyspex.fit(masks, 2.0 * masks[:, :2].all(axis=1))
    assert f.to_dict()[0, 1] == pytest.approx(0.5, abs=1e-6)


def test_trees_stop_where_they_no_longer_predict_better() -> None:
    masks = sample(10, 200)
    noise = np.random.default_rng(0).normal(size=200)
    growth = boosting.Growth(from_linear=False, depth=3, leaves=7, share=1.0)

    def trees(values: np.ndarray) -> int:
        part = boosting.Part.of(masks, values, np.arange(200) < 60)
        return boosting.early_stopped([boosting.Boosting.of(part, growth, 3, 0)])

    pair = np.where(masks[:, 0] & masks[:, 1], 1.0, -1.0)
    assert trees(noise) <= 10
    assert trees(pair + 1e-3 * noise) >= 20


def test_threads_are_those_that_the_process_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [boosting._threads(size) for size in (100, 1 << 19, 1 << 30)] == [1, 3, 3]
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(boosting.os, "sched_getaffinity", lambda _: {4}, raising=False)
    assert boosting._threads(1 << 30) == 1


def test_explain_takes_it() -> None:
    e = explain(planted, 12, budget=200, method="proxyspex", max_order=3)
    assert e.fourier.method == "proxyspex"
    assert e.faithfulness.r2 is not None
    assert e.faithfulness.r2 > 0.99


# ---- LightGBM is missing -----------------------------------------------------------------------


def asked_nothing(message: str) -> None:
    asked = []
    with pytest.raises(ValueError, match=message):
        explain(lambda masks: asked.append(masks), 8, budget=64, method="proxyspex")  # type: ignore[arg-type,func-returns-value]
    assert asked == []
    with pytest.raises(ValueError, match=message):
        fit(np.ones((1, 1), bool), [1.0], method="proxyspex")
    assert estimator("linear") is linear.fit


def test_without_lightgbm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    asked_nothing(r"method: 'proxyspex' needs LightGBM \(.*\): pip install lightgbm")
    with pytest.raises(ValueError, match="needs LightGBM"):
        proxyspex.fit(sample(4, 20), np.arange(20.0))


def test_without_its_system_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lightgbm.py").write_text(
        "raise OSError('libgomp.so.1: cannot open shared object file')", encoding="utf-8"
    )
    monkeypatch.delitem(sys.modules, "lightgbm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    asked_nothing(r"\(libgomp.so.1: .*\): apt-get install libgomp1 .* brew install libomp")
