"""From per-token log-probabilities to values, on a backend whose scores are written down here."""

from __future__ import annotations

import numpy as np
import pytest

from spex_engine.backends.base import FIXED, TokenisedPrompt
from spex_engine.values import TargetGame, mean_logprob

# "BOS a a b": segment 0 is a, 1 is a once more, 2 is b, 3 has no token of its own
PROMPT = TokenisedPrompt(np.array([9, 1, 1, 2]), np.array([FIXED, 0, 1, 2]), 4)
TARGET = np.array([7, 8])


class Recorder:
    """Scores a row by its sum and its length, and remembers what it was asked."""

    uri = "test"
    context_length: int | None = None

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def target_logprobs(self, rows, target, should_stop=None):
        scores = np.full((len(rows), len(target)), np.nan)
        for i, row in enumerate(rows):
            if should_stop is not None and should_stop():
                break
            self.asked.append(row.tolist())
            scores[i] = -row.sum(), -len(row)
        return scores


def masks(*rows: str) -> np.ndarray:
    return np.array([[bit == "1" for bit in row] for row in rows])


def test_mean_logprob():
    logprobs = np.array([[-1.0, -3.0], [np.nan, np.nan], [np.nan, -1.0], [0.0, 0.0]])
    np.testing.assert_array_equal(mean_logprob(logprobs), [-2.0, np.nan, np.nan, 0.0])
    assert mean_logprob(np.empty((0, 3))).shape == (0,)


def test_values_in_order():
    game = TargetGame(Recorder(), PROMPT, TARGET)
    values = game(masks("1111", "0000", "0010"))
    np.testing.assert_array_equal(values, [-(13 + 4) / 2, -(9 + 1) / 2, -(11 + 2) / 2])
    assert values.dtype == np.float64
    assert game(masks("0000")[:0]).shape == (0,)


def test_each_mask_is_paid_for_once():
    backend = Recorder()
    game = TargetGame(backend, PROMPT, TARGET)
    first = game(masks("1000", "0010", "1000"))
    again = game(masks("0010", "1000", "1110"))
    assert backend.asked == [[9, 1], [9, 2], [9, 1, 1, 2]]
    assert first[0] == first[2] == again[1]
    assert game.input_tokens == (2 + 2) + (2 + 2) + (4 + 2)


def test_tokens_of_equal_rows_are_counted_once():
    game = TargetGame(Recorder(), PROMPT, TARGET)
    values = game(masks("1000", "0100", "1001"))  # the same ids are left
    assert len(set(values)) == 1
    assert len(game.logprobs) == 3
    assert game.input_tokens == 2 + 2


def test_scores_of_each_token_are_kept():
    game = TargetGame(Recorder(), PROMPT, TARGET)
    mask = masks("0010")
    game(mask)
    np.testing.assert_array_equal(game.logprobs[mask[0].tobytes()], [-11.0, -2.0])


def test_stopped_masks_are_nan_and_may_be_asked_again():
    backend = Recorder()
    stop = False
    game = TargetGame(backend, PROMPT, TARGET, lambda: stop or len(backend.asked) == 1)
    values = game(masks("1000", "0010"))
    np.testing.assert_array_equal(np.isnan(values), [False, True])
    assert game.input_tokens == 4
    backend.asked.clear()
    assert game(masks("0010"))[0] == -(11 + 2) / 2


@pytest.mark.parametrize("wrong", [np.ones((2, 3), bool), np.ones(4, bool), np.ones((2, 4))])
def test_masks_of_another_shape_or_type(wrong):
    with pytest.raises(ValueError, match=r"masks: expected bool \(m, 4\), got"):
        TargetGame(Recorder(), PROMPT, TARGET)(wrong)
