"""Single repetitions put together to rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spex_engine.backends.base import Scores
from spex_engine.backends.repetitions import in_rows, one_by_one


def test_repetitions_of_a_mask_are_side_by_side() -> None:
    masks, numbers = one_by_one(np.array([[True, False], [False, False]]), 3)
    assert masks.tolist() == [[True, False]] * 3 + [[False, False]] * 3
    assert numbers.tolist() == [0, 1, 2, 0, 1, 2]


@given(st.data(), st.integers(1, 4), st.integers(0, 5))
def test_whole_rows_come_at_once_and_others_in_the_end(data, repeats: int, n_masks: int) -> None:
    """Against a plain dictionary of what has come so far, in any order and any portions."""
    every = list(range(n_masks * repeats))
    order = data.draw(st.permutations(every))[: data.draw(st.integers(0, len(every)))]
    size = data.draw(st.integers(1, 4))
    come: set[int] = set()

    def portions():
        for start in range(0, len(order), size):
            places = order[start : start + size]
            come.update(places)
            texts = tuple((f"said {place}",) for place in places)
            values = np.array(places, dtype=float)[:, None]
            yield np.array(places), Scores(values, np.array(places), answers=texts)

    seen: dict[int, list[float]] = {}
    for rows, scores in in_rows(portions(), n_masks, repeats):
        for i, row in enumerate(rows):
            assert row not in seen
            places = [row * repeats + k for k in range(repeats)]
            whole = set(places) <= come
            assert whole or len(come) == len(order)
            seen[int(row)] = scores.values[i].tolist()
            wanted = [place if place in come else np.nan for place in places]
            np.testing.assert_array_equal(scores.values[i], wanted)
            assert scores.input_tokens[i] == sum(place for place in places if place in come)
            assert scores.answers is not None
            assert scores.answers[i] == tuple(
                f"said {place}" if place in come else "" for place in places
            )
    assert set(seen) == {place // repeats for place in come}
