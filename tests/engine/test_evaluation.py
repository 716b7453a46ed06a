"""Values that come as they like: in any order, in bursts, not at all, twice."""

from collections.abc import Iterator

import numpy as np
import pytest

from spex_engine import Evaluator
from spex_engine.evaluation import Collected, PlainGame, Portion, arrivals, as_evaluator

MASKS = np.arange(200)[:, None] >> np.arange(8) & 1 == 1


def total(masks: np.ndarray) -> np.ndarray:
    return masks.sum(axis=1).astype(float)


def never() -> bool:
    return False


class Yields:
    """An evaluator that yields what it was made with."""

    def __init__(self, *portions: object) -> None:
        self.portions = portions
        self.closed = False

    def evaluate(self, masks: np.ndarray) -> Iterator[object]:
        try:
            yield from self.portions
        finally:
            self.closed = True


def test_a_plain_function_is_asked_chunk_by_chunk() -> None:
    asked: list[int] = []

    def game(masks: np.ndarray) -> np.ndarray:
        asked.append(len(masks))
        values = total(masks)
        masks[:] = False  # a game may spoil what it was given
        return values

    values = np.full(200, np.nan)
    before = MASKS.copy()
    for number, arrived in enumerate(arrivals(PlainGame(game), MASKS, never), start=1):
        assert len(asked) == number  # the next is asked for when it is wanted
        values[arrived.rows] = arrived.values
    assert asked == [64, 64, 64, 8]
    np.testing.assert_array_equal(values, total(MASKS))
    np.testing.assert_array_equal(MASKS, before)


def test_what_can_evaluate_is_an_evaluator_and_what_can_be_called_becomes_one() -> None:
    there = Yields()
    assert isinstance(there, Evaluator)
    assert as_evaluator(there) is there
    assert as_evaluator(total) == PlainGame(total)
    with pytest.raises(ValueError, match="game: ndarray, expected a function"):
        as_evaluator(MASKS)  # type: ignore[arg-type]


def test_portions_of_any_kind_in_any_order() -> None:
    source = Yields(((2, 0), (1.0, np.inf)), ([], []), (np.array([1]), [True]), ([3], [None]))
    found = [(p.rows.tolist(), p.values.tolist()) for p in arrivals(source, MASKS, never)]
    np.testing.assert_equal(
        found, [([2, 0], [1.0, np.nan]), ([], []), ([1], [1.0]), ([3], [np.nan])]
    )
    assert source.closed


def test_stop_is_asked_first_and_then_after_every_portion() -> None:
    said = iter([False, False, True])
    source = Yields(([0], [0.0]), ([1], [0.0]), ([2], [0.0]))
    assert len(list(arrivals(source, MASKS[:5], lambda: next(said)))) == 2
    assert source.closed
    asked_nothing = Yields(5)
    assert list(arrivals(asked_nothing, MASKS, lambda: True)) == []
    assert not asked_nothing.closed  # it was never started


def test_stop_is_not_asked_once_everything_is_there_but_again_if_it_never_came() -> None:
    polls: list[int] = []

    def stop() -> bool:
        polls.append(len(polls))
        return False

    list(arrivals(Yields(([0, 1], [0.0, 0.0])), MASKS[:2], stop))
    assert len(polls) == 1
    polls.clear()
    list(arrivals(Yields(([0], [0.0])), MASKS[:2], stop))
    assert len(polls) == 3


def test_whoever_stops_listening_closes_the_evaluator() -> None:
    source = Yields(([0], [0.0]), ([1], [0.0]))
    portions = arrivals(source, MASKS, never)
    next(portions)
    assert not source.closed
    portions.close()
    assert source.closed


def test_an_iterator_need_not_be_a_generator() -> None:
    class Listed:
        def evaluate(self, masks: np.ndarray) -> Iterator[object]:
            return iter([(range(len(masks)), total(masks))])

    (portion,) = arrivals(Listed(), MASKS, never)
    np.testing.assert_array_equal(portion.values[np.argsort(portion.rows)], total(MASKS))


def test_what_is_known_of_values_beside_themselves_is_kept() -> None:
    source = Yields(
        Portion(np.array([2, 0]), np.array([1.0, 2.0]), variances=np.array([0.5, np.nan])),
        Portion(np.array([1]), np.array([3.0]), censored=np.array([-1])),
        ([3], [4.0]),
        Portion(np.array([4]), np.array([np.nan]), np.array([0.1]), np.array([1])),
    )
    collected = Collected(6)
    for portion in arrivals(source, MASKS[:6], never):
        collected.add(0, portion)
    assert collected.done.tolist() == [True] * 5 + [False]
    samples = collected.first(4)
    assert samples.values.tolist() == [2.0, 3.0, 1.0, 4.0]
    assert samples.variances is not None
    assert samples.censored is not None
    assert samples.variances.tolist() == [0.5] * 4  # unknown ones get the mean
    assert samples.censored.tolist() == [0, -1, 0, 0]
    first = collected.first(1)
    assert (first.variances, first.censored) == (None, None)


def with_variances(variances: list[object]) -> Portion:
    return Portion(np.array([0]), np.array([1.0]), variances=variances)  # type: ignore[arg-type]


def with_censored(censored: list[object]) -> Portion:
    return Portion(np.array([0]), np.array([1.0]), censored=np.array(censored))


@pytest.mark.parametrize(
    ("portion", "message"),
    [
        (5, r"yielded int, expected a Portion or pairs \(rows, values\)"),
        (([0], [1.0], [2.0]), "yielded tuple, expected a Portion or pairs"),
        (Portion([0], [1.0, 2.0]), r"values \(2,\) for rows \(1,\)"),  # type: ignore[arg-type]
        (with_variances([1.0, 2.0]), r"variances \(2,\), expected \(1,\), none below 0"),
        (with_variances([-1.0]), r"variances \(1,\), expected \(1,\), none below 0"),
        (with_variances(["x"]), r"expected real numbers \(1,\), variances of evaluate"),
        (with_censored([2]), r"censored int64 \(1,\), expected \(1,\) of -1 .*, 0 .* and 1"),
        (with_censored([True]), r"censored bool \(1,\), expected \(1,\) of -1"),
        (with_censored([0, 0]), r"censored int64 \(2,\), expected \(1,\) of -1"),
        (([0.0], [1.0]), r"rows of float64 \(1,\), expected integers"),
        (([True], [1.0]), r"rows of bool \(1,\), expected integers"),
        (([[0]], [1.0]), r"rows of int64 \(1, 1\), expected integers"),
        (([0, 1], [1.0]), r"values \(1,\) for rows \(2,\), expected one value per row"),
        (([0], ["x"]), r"expected real numbers \(1,\) of evaluate"),
        (([0], [1j]), "returned complex numbers"),
        (([200], [1.0]), r"yielded row 200, expected 0\.\.199"),
        (([3, -1], [1.0, 1.0]), r"yielded row -1, expected 0\.\.199"),
        (([4, 4], [1.0, 1.0]), "yielded row 4 twice, expected each row once"),
        (([9], [1.0]), "yielded row 9 twice"),
    ],
)
def test_what_cannot_be_right_is_named(portion: object, message: str) -> None:
    source = Yields(([9], [0.5]), portion)
    with pytest.raises(ValueError, match=f"^game: .*{message}"):
        list(arrivals(source, MASKS, never))
    assert source.closed
