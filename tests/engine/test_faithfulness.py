import math

import numpy as np
import pytest

from spex_engine import SparseFourier, r2

MASKS = np.array([[False, False], [True, False], [False, True], [True, True]])


def constant(value: float) -> SparseFourier:
    return SparseFourier(2, "t", ((),), np.array([value]))


def test_definition() -> None:
    f = SparseFourier(2, "t", ((0,),), np.array([-1.0]))  # predicts -1, 1, -1, 1
    values = np.array([-1.0, 2.0, -1.0, 0.0])
    assert r2(f, MASKS, values) == pytest.approx(1 - 2.0 / 6.0)
    assert r2(f, MASKS, [-1, 1, -1, 1]) == 1.0
    assert r2(constant(0.0), MASKS, values) == 0.0
    assert r2(constant(10.0), MASKS, values) < -10


def test_values_without_variation() -> None:
    assert r2(constant(0.1), MASKS, [0.1] * 4) == 1.0
    assert r2(constant(0.1 + 1e-16), MASKS, [0.1] * 4) == 1.0
    assert math.isnan(r2(constant(0.2), MASKS, [0.1] * 4))
    assert r2(constant(0.0), MASKS[:1], [0.0]) == 1.0


def test_unfit_input() -> None:
    with pytest.raises(ValueError, match=r"masks: shape \(4, 1\), expected \(m, 2\)"):
        r2(constant(0.0), MASKS[:, :1], np.zeros(4))
    with pytest.raises(ValueError, match=r"values: shape \(3,\), expected \(4,\)"):
        r2(constant(0.0), MASKS, np.zeros(3))
    with pytest.raises(ValueError, match="at least one mask"):
        r2(constant(0.0), MASKS[:0], [])
    with pytest.raises(ValueError, match="values: 1 of 4 are NaN"):
        r2(constant(0.0), MASKS, [0, 1, 2, np.nan])
