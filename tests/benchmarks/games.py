"""The games that benchmarks are played on: recorded ones, and simulated ones of three kinds.

A game is a function of masks; where its coefficients are known they come with it. Nothing here
knows of methods, and no generator here was used while any of them was developed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spex_engine import SparseFourier, r2
from spex_engine.designs import enumerate_masks
from spex_engine.estimators import exact
from spex_engine.fourier import Floats, Masks

N_TEST = 600  # the last rows of a recorded game
MOST_ENUMERATED = 13


@dataclass(frozen=True, eq=False)
class Game:
    """``value`` without noise, and the deviation of the noise that a player meets on top of it."""

    name: str
    n: int
    value: Callable[[Masks], Floats]
    noise: float = 0.0
    truth: SparseFourier | None = None

    def samples(self, m: int, seed: int) -> tuple[Masks, Floats]:
        """m uniform masks and their values with noise."""
        rng = np.random.default_rng([seed, 1])
        masks = rng.random((m, self.n)) < 0.5
        return masks, self.value(masks) + self.noise * rng.normal(size=m)

    def noisy(self, seed: int) -> Callable[[npt.NDArray[np.generic]], Floats]:
        """The game as a player meets it, any 0/1 matrix; the same noise in the same order."""
        rng = np.random.default_rng([seed, 2])

        def play(masks: npt.NDArray[np.generic]) -> Floats:
            values = self.value(np.asarray(masks).astype(np.bool_))
            return values + self.noise * rng.normal(size=len(values))

        return play

    def score(self, f: SparseFourier, m: int = 2000) -> float:
        """R2 against the game without noise on uniform masks that no method has seen."""
        masks = np.random.default_rng(987654321).random((m, self.n)) < 0.5
        return r2(f, masks, self.value(masks))

    def exact(self) -> SparseFourier:
        """Every coefficient of a game small enough to enumerate."""
        if self.n > MOST_ENUMERATED:
            raise ValueError(f"n: {self.n}, expected at most {MOST_ENUMERATED} to enumerate")
        masks = enumerate_masks(self.n)
        return exact.fit(masks, self.value(masks))


@dataclass(frozen=True, eq=False)
class Recorded:
    """Uniform masks of a text and a real model's values: a pool to sample from, and test rows."""

    name: str
    masks: Masks
    values: Floats

    @property
    def n(self) -> int:
        return self.masks.shape[1]

    @property
    def pool(self) -> int:
        return len(self.values) - N_TEST

    @property
    def is_logit(self) -> bool:
        """Whether the values are logits; else they are cosines, of a much smaller spread."""
        return "similarity" not in self.name

    def samples(self, m: int, draw: int) -> tuple[Masks, Floats]:
        rows = np.random.default_rng(draw).permutation(self.pool)[:m]
        return self.masks[rows], self.values[rows]

    def score(self, f: SparseFourier) -> float:
        return r2(f, self.masks[-N_TEST:], self.values[-N_TEST:])


def recorded(folder: Path) -> list[Recorded]:
    """All recorded games of the folder, by name. SystemExit where there are none."""
    paths = sorted(folder.glob("dev_*.npz"))
    if not paths:
        raise SystemExit(f"no recorded games in {folder}: say where they are with --games FOLDER")
    return [_read(path, path.stem.removeprefix("dev_")) for path in paths]


def enumerated(folder: Path) -> Game:
    """The recorded game of which every mask was measured."""
    (path,) = folder.glob("full_*.npz")
    whole = _read(path, path.stem.removeprefix("full_"))
    weights = 1 << np.arange(whole.n)
    return Game(f"recorded {whole.name}", whole.n, lambda masks: whole.values[masks @ weights])


def _read(path: Path, name: str) -> Recorded:
    with np.load(path) as file:
        n = int(file["n"])
        masks = np.unpackbits(file["masks"], axis=1)[:, :n].astype(np.bool_)
        return Recorded(name, masks, file["values"].astype(np.float64))


def sparse(n: int, seed: int, n_terms: int = 50, max_order: int = 4, noise: float = 0.3) -> Game:
    """Terms on random features, orders 1 to ``max_order`` alike, sizes 0.5 to 1.5, either sign.

    No hierarchy: what SPEX is made for, and what a regression from low orders upwards is not.
    """
    rng = np.random.default_rng([seed, 3])
    supports: set[tuple[int, ...]] = set()
    while len(supports) < n_terms:
        order = int(rng.integers(1, max_order + 1))
        supports.add(tuple(sorted(rng.choice(n, order, replace=False).tolist())))
    sizes = rng.uniform(0.5, 1.5, n_terms) * rng.choice([-1.0, 1.0], n_terms)
    truth = SparseFourier(n, "truth", tuple(sorted(supports)), sizes)
    return Game(f"sparse n={n}", n, truth.predict, noise, truth)


def language(n: int, seed: int) -> Game:
    """What a model does with a text, simplified: a few words matter, phrases and doubles more.

    Effects of single words with heavy tails; phrases of neighbours that count only whole (AND);
    doubles far apart of which one is enough (OR); lists of which some number is enough (threshold);
    all of it through a squashing function, because a probability has ends. Noise: a tenth of the
    deviation of the values.
    """
    rng = np.random.default_rng([seed, 4])
    effects = rng.standard_t(3, n) * (rng.random(n) < 0.5) * 0.4
    terms: list[tuple[Floats, int, float]] = []  # members as 0/1 (n,), how many needed, size
    for kind in rng.permutation(np.resize(["and", "or", "threshold"], max(3, n // 4))):
        size = int(rng.integers(2, 5)) if kind != "threshold" else int(rng.integers(4, 7))
        if kind == "and":
            start = int(rng.integers(0, n - size + 1))
            members = np.arange(start, start + size)
        else:
            members = rng.choice(n, size, replace=False)
        needed = {"and": size, "or": 1, "threshold": size // 2 + 1}[str(kind)]
        row = np.zeros(n)
        row[members] = 1.0
        terms.append((row, needed, float(rng.normal() * 1.5)))
    rows = np.array([row for row, _, _ in terms])
    least = np.array([needed for _, needed, _ in terms])
    sizes = np.array([size for _, _, size in terms])
    some = rng.random((4096, n)) < 0.5

    def logit(masks: Masks) -> Floats:
        kept = masks.astype(np.float64)
        return kept @ effects + (kept @ rows.T >= least) @ sizes

    centre, spread = float(logit(some).mean()), float(logit(some).std())

    def value(masks: Masks) -> Floats:
        squashed: Floats = np.tanh((logit(masks) - centre) / (1.5 * spread))
        return squashed

    return Game(f"language n={n}", n, value, 0.1 * float(value(some).std()))


def parity(n: int, seed: int, order: int = 3) -> Game:
    """A single character and nothing below it: no single feature gives it away."""
    rng = np.random.default_rng([seed, 5])
    support = tuple(sorted(rng.choice(n, order, replace=False).tolist()))
    truth = SparseFourier(n, "truth", (support,), np.ones(1))
    return Game(f"parity of {order}, n={n}", n, truth.predict, 0.1, truth)
