"""When two fits in a row say the same."""

from dataclasses import replace

import numpy as np
import pytest

from spex_engine import SparseFourier
from spex_engine.convergence import Evidence, settled


def fit(coefficients: dict[tuple[int, ...], float], stderr: float | None = None) -> SparseFourier:
    errors = None if stderr is None else np.full(len(coefficients), stderr**2)
    values = np.array(list(coefficients.values()), dtype=float)
    return SparseFourier(8, "t", tuple(coefficients), values, errors)


# Banzhaf values -2 F(i): 2, 1; BII and, at the highest order, FBII 4 F(ij): 1.2
TERMS = {(): 5.0, (0,): -1.0, (1,): -0.5, (0, 1): 0.3}
SEEN = Evidence(fit(TERMS), 0.99, 40)


def later(changes: dict[tuple[int, ...], float], **others: object) -> Evidence:
    return replace(SEEN, fourier=fit({**TERMS, **changes}), **others)  # type: ignore[arg-type]


def test_the_same_again() -> None:
    assert settled(SEEN, SEEN)
    assert settled(SEEN, later({(): -70.0}))  # the constant is nobody's effect


@pytest.mark.parametrize(
    ("before", "after"),
    [({"r2": 0.979}, {}), ({}, {"r2": 0.979}), ({"n_test": 31}, {}), ({}, {"n_test": 31})],
)
def test_both_must_be_good(before: dict, after: dict) -> None:
    assert not settled(replace(SEEN, **before), replace(SEEN, **after))


def test_r2_must_have_stopped_changing() -> None:
    assert settled(SEEN, replace(SEEN, r2=0.9989))
    assert not settled(SEEN, replace(SEEN, r2=1.0))
    assert not settled(replace(SEEN, r2=1.0), SEEN)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({(0,): -1.09}, True),  # an effect of 2 is now 2.18: by less than a tenth of the strongest
        ({(0,): -1.13}, False),
        ({(1,): -0.41}, True),
        ({(1,): -0.37}, False),
        ({(0, 1): 0.24}, False),
        ({(0, 1): 0.26}, True),
        ({(2, 3): 0.045}, True),  # a new one of 0.18
        ({(2, 3): 0.055}, False),
        ({(2, 3, 4): 0.03}, False),  # of 0.24: eight times its coefficient
        ({(2,): 0.09}, True),
        ({(2,): 0.11}, False),
    ],
)
def test_what_leads_must_stay_within_a_tenth_of_the_strongest(changes: dict, same: bool) -> None:
    assert settled(SEEN, later(changes)) is same
    assert settled(later(changes), SEEN) is same


def test_or_within_two_joint_standard_errors() -> None:
    old, new = (Evidence(fit({(0,): c}, 0.1), 0.99, 40) for c in (-1.0, -1.27))
    assert settled(old, new)  # 0.54 apart, each +- 0.2: 2 sqrt(0.08) is 0.566
    assert not settled(old, replace(new, fourier=fit({(0,): -1.3}, 0.1)))


def test_only_ten_lead() -> None:
    ten = {(i,): -1.0 for i in range(8)} | {(0, 1): 0.3, (0, 2): 0.3}
    before = Evidence(fit(ten), 0.99, 40)
    eleventh = replace(before, fourier=fit({**ten, (0, 3): 0.29}))
    tenth = replace(before, fourier=fit({**ten, (0, 3): 0.31}))
    assert settled(before, eleventh)
    assert not settled(before, tenth)


def test_nothing_is_stable_too() -> None:
    assert settled(Evidence(fit({}), 0.99, 40), Evidence(fit({(): 1.0}), 0.99, 40))
