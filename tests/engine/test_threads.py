"""BLAS has one thread while something small is fitted, and what it had afterwards."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import spex_engine as spex
from spex_engine import fitting, threads


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_small_fits_take_one_thread_and_give_back_what_there_was() -> None:
    with threadpool_limits(2, user_api="blas"):
        with threads.for_fit(1000):
            assert blas_threads() == {1}
        assert blas_threads() == {2}
        with threads.for_fit(5000):
            assert blas_threads() == {2}


def test_fits_that_overlap_give_back_what_there_was() -> None:
    with threadpool_limits(2, user_api="blas"):
        one, two = threads.for_fit(100), threads.for_fit(100)
        one.__enter__()
        two.__enter__()
        one.__exit__(None, None, None)
        assert blas_threads() == {1}
        two.__exit__(None, None, None)
        assert blas_threads() == {2}


def test_fits_are_limited_and_games_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}
    original = fitting.choose

    def choose(*args: object, **named: object) -> object:
        seen["fit"] = blas_threads()
        return original(*args, **named)

    def game(masks: np.ndarray) -> np.ndarray:
        seen["game"] = blas_threads()
        return masks.sum(axis=1) * 1.0

    monkeypatch.setattr(fitting, "choose", choose)
    with threadpool_limits(2, user_api="blas"):
        spex.explain(game, 20, 100)
    assert seen == {"fit": {1}, "game": {2}}
