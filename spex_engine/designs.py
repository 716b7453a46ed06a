"""Which masks to ask for.

Knows the number of features, how many masks may be asked for, and a seed. It does not know the
game or who fits the values. The order matters: a run may be stopped anywhere, so every prefix of a
design is itself a usable design.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from spex_engine.fourier import Masks
from spex_engine.hashed_masks import HashedMasks

MAX_ENUMERATED = 26  # features: 2**26 masks take 1.7 GB, more is a mistake and no plan
NEAR = 3  # a mask without so many features is still near the full one
_REDRAWN = 2  # stream of random numbers for masks drawn anew
_HASHED_TEST, _HASHED_FIT, _HASHED_NEAR = 0, 1, 2  # streams of hashes
_PAIRED = 4  # times the features: so many masks to fit come in pairs
_EARLY = 1.5  # after a share x of the other masks, x^(2/3) of the held-out ones have come


@dataclass(frozen=True, eq=False)
class Design:
    """Distinct masks in the order to ask for them, and which of them to keep from the fit.

    The first ``n_anchors`` are of interest for themselves, and no draw from the uniform measure.
    ``near_full``: rows of those held-out masks that lack 1 to 3 features; the other held-out ones
    are uniform. ``rounds``: lengths of prefixes that say more than any shorter one, if only some
    do; a fit is worth its time there.
    """

    masks: Masks  # (m, n)
    held_out: Masks  # (m,)
    n_anchors: int = 0
    near_full: tuple[int, ...] = ()
    rounds: tuple[int, ...] = ()


def enumerate_masks(n_features: int) -> Masks:
    """All masks, bool (2**n, n), in binary counting order: row r keeps i where bit i of r is 1."""
    if not 0 <= n_features <= MAX_ENUMERATED:
        raise ValueError(f"n_features: {n_features}, expected 0..{MAX_ENUMERATED} to enumerate")
    codes = np.arange(2**n_features, dtype="<u4").view(np.uint8).reshape(-1, 4)
    return np.unpackbits(codes, axis=1, count=n_features, bitorder="little").astype(np.bool_)


def draw_design(
    n_features: int,
    size: int,
    n_test: int = 0,
    seed: int = 0,
    n_near: int = 0,
    identities: Sequence[bytes] | None = None,
) -> Design:
    """``size`` distinct masks, ``n_test`` uniform and ``n_near`` near-full of them held out.

    Full and empty come first, then each feature left out alone where ``size >= 4 n`` (beside n of
    them, fewer random masks would say little), then uniform masks. Of those to fit the first 4 n
    are each followed by their complement: pairing makes characters of odd and even order orthogonal
    in the sample, which is worth most while effects of single features are what is learnt; later,
    masks of their own say more about the rest. Held-out ones are spread among these, denser
    at the start. ``size`` may be up to 2**n: then the design is every mask. ValueError for sizes
    that cannot be had.

    With ``identities``, n distinct ones, what is drawn outlives edits (`hashed_masks`): after one
    segment's identity has changed, uniform masks that leave it out are drawn again, all but the
    last few. Then no masks come in pairs: what outlives an edit has no complement that does.
    """
    if size < 1 or (n_features < size.bit_length() and size > 2**n_features):
        raise ValueError(f"size: {size}, expected 1..2**{n_features}")
    anchors = anchor_masks(n_features, size)[:size]
    spare = size - len(anchors)
    for name, count, most in (("n_test", n_test, spare), ("n_near", n_near, spare - n_test)):
        if not 0 <= count <= most:
            raise ValueError(f"{name}: {count}, expected 0..{most}")
    if identities is not None:
        return _hashed_design(anchors, HashedMasks.of(identities, seed), size, n_test, n_near)
    rng = np.random.default_rng(seed)
    near = near_full_masks(n_features, n_near, anchors, rng)
    taken = {mask.tobytes() for mask in (*anchors, *near)}
    test = _take(n_test, taken, _candidates(n_features, size, rng, paired=False), n_features)
    n_paired = min(spare - n_test - n_near, _PAIRED * n_features)
    paired = _take(n_paired, taken, _candidates(n_features, size, rng, paired=True), n_features)
    rest = spare - n_test - n_near - n_paired
    single = _take(rest, taken, _candidates(n_features, size, rng, paired=False), n_features)
    return _spread(
        Design(anchors, np.zeros(len(anchors), np.bool_), len(anchors)),
        np.concatenate([paired, single]),
        test,
        near,
    )


def redraw(design: Design, asked: int, n_test: int, n_near: int, seed: int) -> Design:
    """A design of equal size with the same first ``asked`` masks, and the others drawn anew.

    They are the leave-one-out masks that are still missing where ``size >= 4 n``, held out for
    their nearness, and uniform masks, so many of them held out that there are ``n_test`` uniform
    and ``n_near`` near-full ones in all; fewer where there is no room.
    ``seed`` may be that of the design: what it draws here is not drawn there.
    """
    size, n = design.masks.shape
    near_before = tuple(row for row in design.near_full if row < asked)
    kept = Design(design.masks[:asked], design.held_out[:asked], design.n_anchors, near_before)
    rng = np.random.default_rng([seed, asked, _REDRAWN])
    taken = {mask.tobytes() for mask in kept.masks}
    spare = size - asked
    near = [mask for mask in anchor_masks(n, size)[2:] if mask.tobytes() not in taken][:spare]
    wanted = min(spare, max(len(near), n_near - len(near_before))) - len(near)
    alone = np.array(near, dtype=np.bool_).reshape(len(near), n)
    more = near_full_masks(n, wanted, np.concatenate([kept.masks, alone]), rng)
    near_full = np.concatenate([alone, more])
    taken |= {mask.tobytes() for mask in near_full}
    spare -= len(near_full)
    there = int(kept.held_out.sum()) - len(near_before)
    uniform = _candidates(n, size, rng, paired=False)
    test = _take(min(spare, max(0, n_test - there)), taken, uniform, n)
    train = _take(spare - len(test), taken, _candidates(n, size, rng, paired=False), n)
    return _spread(kept, train, test, near_full)


def _hashed_design(
    anchors: Masks, hashed: HashedMasks, size: int, n_test: int, n_near: int
) -> Design:
    """``size`` masks: ``anchors``, then hashed ones, so many of them held out."""
    n = anchors.shape[1]

    def uniform(stream: int) -> Iterator[Masks]:
        if _are_few(n, size):
            return iter([hashed.ordered(enumerate_masks(n), stream)])
        return hashed.uniform(size, stream)

    most = _most_dropped(n, n_near, anchors)
    taken = {mask.tobytes() for mask in anchors}
    near = _take(n_near, taken, hashed.near_full(n_near, most, _HASHED_NEAR), n)
    test = _take(n_test, taken, uniform(_HASHED_TEST), n)
    train = _take(size - len(anchors) - n_test - n_near, taken, uniform(_HASHED_FIT), n)
    first = Design(anchors, np.zeros(len(anchors), np.bool_), len(anchors))
    return _spread(first, train, test, near)


def _spread(first: Design, train: Masks, test: Masks, near: Masks) -> Design:
    """The design ``first`` and then masks to fit with held-out ones among them."""
    # stable, by relative rank: any stretch of the design holds its share of all kinds, but a run
    # that could end early needs enough to be judged on by then
    kinds, powers = (train, test, near), (1.0, _EARLY, _EARLY)
    ranks = np.concatenate(
        [
            ((np.arange(len(k)) + 0.5) / max(1, len(k))) ** p
            for k, p in zip(kinds, powers, strict=True)
        ]
    )
    order = np.argsort(ranks, kind="stable")
    kind = np.repeat(np.arange(len(kinds)), [len(k) for k in kinds])[order]
    return Design(
        np.concatenate([first.masks, np.concatenate(kinds)[order]]),
        np.concatenate([first.held_out, kind > 0]),
        first.n_anchors,
        (*first.near_full, *(len(first.masks) + np.flatnonzero(kind == 2)).tolist()),
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


def near_full_masks(n_features: int, count: int, besides: Masks, rng: np.random.Generator) -> Masks:
    """``count`` distinct masks that lack 1 to 3 features and are not among ``besides``.

    ``besides`` are distinct too. How many are dropped is drawn first, each number as likely as the
    others, and then which; never all of them. ValueError where there are not that many.
    """
    most = _most_dropped(n_features, count, besides)

    def batches() -> Iterator[Masks]:
        while True:
            sizes = rng.integers(1, most + 1, size=(count, 1))
            yield rng.random((count, n_features)).argsort(axis=1) >= sizes

    return _take(count, {mask.tobytes() for mask in besides}, batches(), n_features)


def _most_dropped(n_features: int, count: int, besides: Masks) -> int:
    """By a near-full mask. ValueError where there are not ``count`` of them beside others."""
    most = min(NEAR, n_features - 1)
    dropped = n_features - besides.sum(axis=1)
    there = sum(comb(n_features, size) for size in range(1, most + 1))
    free = there - int(np.count_nonzero((dropped >= 1) & (dropped <= most)))
    if not 0 <= count <= free:
        raise ValueError(f"count: {count}, expected 0..{free}")
    return most


def _are_few(n_features: int, size: int) -> bool:
    """Whether drawing ``size`` masks would mostly repeat itself, so that all are looked at."""
    return n_features <= MAX_ENUMERATED and 2**n_features <= 4 * size


def _candidates(
    n_features: int, size: int, rng: np.random.Generator, *, paired: bool
) -> Iterator[Masks]:
    """Batches of uniform masks; every mask once where drawing would mostly repeat itself."""
    if _are_few(n_features, size):
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
