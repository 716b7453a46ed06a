"""Which masks to ask for.

Knows the number of features, how many masks may be asked for, and a seed. It does not know the
game or who fits the values. The order matters: a run may be stopped anywhere, so every prefix of a
design is itself a usable design.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spex_engine.fourier import Masks

MAX_ENUMERATED = 26  # features: 2**26 masks take 1.7 GB, more is a mistake and no plan


@dataclass(frozen=True, eq=False)
class Design:
    """Distinct masks in the order to ask for them, and which of them to keep from the fit.

    The first ``n_anchors`` are of interest for themselves, and no draw from the uniform measure.
    """

    masks: Masks  # (m, n)
    held_out: Masks  # (m,)
    n_anchors: int = 0


def enumerate_masks(n_features: int) -> Masks:
    """All masks, bool (2**n, n), in binary counting order: row r keeps i where bit i of r is 1."""
    if not 0 <= n_features <= MAX_ENUMERATED:
        raise ValueError(f"n_features: {n_features}, expected 0..{MAX_ENUMERATED} to enumerate")
    codes = np.arange(2**n_features, dtype="<u4").view(np.uint8).reshape(-1, 4)
    return np.unpackbits(codes, axis=1, count=n_features, bitorder="little").astype(np.bool_)


def draw_design(n_features: int, size: int, n_test: int = 0, seed: int = 0) -> Design:
    """``size`` distinct masks, of which ``n_test`` are uniform ones held out, evenly spread.

    Full and empty come first, then each feature left out alone where ``size >= 4 n`` (beside n of
    them, fewer random masks would say little), then uniform masks, each followed by its complement:
    pairing makes characters of odd and even order orthogonal in the sample. ``size`` may be up to
    2**n: then the design is every mask. ValueError for sizes that cannot be had.
    """
    if size < 1 or (n_features < size.bit_length() and size > 2**n_features):
        raise ValueError(f"size: {size}, expected 1..2**{n_features}")
    anchors = anchor_masks(n_features, size)[:size]
    if not 0 <= n_test <= size - len(anchors):
        raise ValueError(f"n_test: {n_test}, expected 0..{size - len(anchors)}")
    rng = np.random.default_rng(seed)
    taken = {mask.tobytes() for mask in anchors}
    n_paired = size - len(anchors) - n_test
    test = _take(n_test, taken, _candidates(n_features, size, rng, paired=False), n_features)
    train = _take(n_paired, taken, _candidates(n_features, size, rng, paired=True), n_features)
    # stable, by relative rank: any stretch of the design holds its share of both kinds
    ranks = np.concatenate([(np.arange(k) + 0.5) / max(1, k) for k in (len(train), len(test))])
    order = np.argsort(ranks, kind="stable")
    held_out = np.concatenate([np.zeros(len(train), np.bool_), np.ones(len(test), np.bool_)])[order]
    return Design(
        np.concatenate([anchors, np.concatenate([train, test])[order]]),
        np.concatenate([np.zeros(len(anchors), np.bool_), held_out]),
        len(anchors),
    )


def anchor_masks(n_features: int, size: int) -> Masks:
    """Full, empty and, where ``size >= 4 n``, every leave-one-out mask; distinct, in that order."""
    ends = np.array([[True], [False]]).repeat(n_features, axis=1)
    if n_features == 0:
        return ends[:1]
    if n_features == 1 or size < 4 * n_features:  # leaving out the only feature is the empty mask
        return ends
    return np.concatenate([ends, ~np.eye(n_features, dtype=np.bool_)])


def uniform_masks(n_features: int, count: int, besides: Masks, rng: np.random.Generator) -> Masks:
    """``count`` distinct uniform masks that are not among ``besides``, which are distinct too.

    ValueError where there are not that many.
    """
    if n_features < (len(besides) + count).bit_length() and len(besides) + count > 2**n_features:
        raise ValueError(f"count: {count}, expected 0..{2**n_features - len(besides)}")
    taken = {mask.tobytes() for mask in besides}
    batches = _candidates(n_features, len(besides) + count, rng, paired=False)
    return _take(count, taken, batches, n_features)


def _candidates(
    n_features: int, size: int, rng: np.random.Generator, *, paired: bool
) -> Iterator[Masks]:
    """Batches of uniform masks; every mask once where drawing would mostly repeat itself."""
    if n_features <= MAX_ENUMERATED and 2**n_features <= 4 * size:
        masks = enumerate_masks(n_features)
        if paired:
            half = rng.permutation(masks[: len(masks) // 2])
            flip = rng.integers(0, 2, size=(len(half), 1)).astype(np.bool_)
            yield _with_complements(half ^ flip)
        else:
            yield rng.permutation(masks)
        return
    while True:
        drawn = rng.integers(0, 2, size=(size, n_features), dtype=np.uint8).astype(np.bool_)
        yield _with_complements(drawn) if paired else drawn


def _with_complements(masks: Masks) -> Masks:
    return np.stack([masks, ~masks], axis=1).reshape(-1, masks.shape[1])


def _take(count: int, taken: set[bytes], batches: Iterator[Masks], n_features: int) -> Masks:
    """The first ``count`` masks of the batches not taken yet; they are taken now."""
    chosen: list[Masks] = []
    while len(chosen) < count:
        for mask in next(batches):
            key = mask.tobytes()
            if key not in taken:
                taken.add(key)
                chosen.append(mask)
                if len(chosen) == count:
                    break
    return np.array(chosen, dtype=np.bool_).reshape(count, n_features)
