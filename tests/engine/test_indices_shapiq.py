"""Every index shapiq has, against its ExactComputer: written by others, from the definitions.

shapiq runs in a process of its own. Importing it loads two compilers' worth of packages, and what
those do to threads and to numpy's global state is no business of the other tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import spex_engine as spex
from spex_engine.designs import enumerate_masks

SIZES = (1, 2, 5, 8, 10)
ORDERS = (1, 2, 3)
THEIR_NAMES = {
    "SV": "SV", "BV": "BV", "SII": "SII", "k-SII": "k-SII", "BII": "BII", "STII": "STII",
    "FSII": "FSII", "FBII": "FBII", "Moebius": "Moebius", "CoMoebius": "Co-Moebius",
}  # fmt: skip
# theirs meets the full and the empty set by a weight of 1e8, and so to some 1e-8 of the values
TOLERANCE = {"FSII": 1e-6}

ORACLE = """
import json, sys
import numpy as np
from shapiq.game_theory.exact import ExactComputer

games, names, orders = json.load(sys.stdin)
answers = {}
for values in games:
    n = len(values).bit_length() - 1
    values = np.array(values)
    computer = ExactComputer(lambda sets: values[sets.astype(int) @ 2 ** np.arange(n)], n)
    for name in names:
        for order in orders:
            if order <= (1 if name in ("SV", "BV") else n):
                found = computer(name, order)
                answers[f"{n} {name} {order}"] = [
                    [members, float(found.values[at])]
                    for members, at in found.interaction_lookup.items()
                    if 0 < len(members) <= order
                ]
json.dump(answers, sys.stdout)
"""


def values(n: int) -> np.ndarray:
    return np.random.default_rng(n).normal(size=2**n)


@pytest.fixture(scope="module")
def oracle() -> dict[str, list[tuple[list[int], float]]]:
    games = [values(n).tolist() for n in SIZES]
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", ORACLE],
        input=json.dumps([games, list(THEIR_NAMES.values()), ORDERS]),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("index", THEIR_NAMES)
@pytest.mark.parametrize("n", SIZES)
def test_equals_the_exact_computer(index: str, n: int, oracle: dict) -> None:
    f = spex.fit(enumerate_masks(n), values(n), method="exact")
    for order in range(1, (1 if index in ("SV", "BV") else min(n, max(ORDERS))) + 1):
        found = {i.members: i.value for i in spex.interactions(f, index, order)}
        theirs = {tuple(members): x for members, x in oracle[f"{n} {THEIR_NAMES[index]} {order}"]}
        assert len(theirs) >= n  # an oracle that says nothing agrees with everything
        assert set(found) <= set(theirs)
        for members, expected in theirs.items():
            tolerance = TOLERANCE.get(index, 1e-8)
            assert found.get(members, 0.0) == pytest.approx(expected, rel=0, abs=tolerance)
