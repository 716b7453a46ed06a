"""Headers that say how fast to ask, and the window that finds it out."""

from __future__ import annotations

import random

import pytest

from spex_engine.backends.openai.rates import Bucket, Window, duration, retry_after


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360), ("20ms", 0.02), ("1.5", 1.5), ("1h2m3s", 3723), ("2m59.56s", 179.56),
        ("0s", 0), ("", None), (None, None), ("soon", None), ("1x", None),
    ],
)  # fmt: skip
def test_durations(text, seconds):
    assert duration(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "20"}, 20),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "20"}, 1.5),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:00 GMT"}, 20),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "later"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers, now=100.0) == seconds


def told(limit: int, remaining: int, reset: str) -> dict[str, str]:
    said = {"limit": str(limit), "remaining": str(remaining), "reset": reset}
    return {f"x-ratelimit-{name}-requests": value for name, value in said.items()}


def test_a_bucket_that_is_empty_makes_wait_until_it_has_enough():
    bucket = Bucket("requests")
    assert bucket.wait(1, now=0.0) == 0
    bucket.hear(told(60, 0, "60s"), in_flight=0, now=0.0)
    assert bucket.wait(1, now=0.0) == pytest.approx(1)  # regained: one a second
    assert bucket.wait(10, now=4.0) == pytest.approx(6)
    assert bucket.wait(1000, now=4.0) == pytest.approx(56)  # more than fits: when it is full


def test_what_is_in_flight_is_taken_off():
    bucket = Bucket("requests")
    bucket.hear(told(60, 10, "50s"), in_flight=10, now=0.0)
    assert bucket.wait(1, now=0.0) == pytest.approx(1)
    bucket.hear(told(60, 10, "50s"), in_flight=9, now=0.0)
    assert bucket.wait(1, now=0.0) == 0
    bucket.take(1)
    assert bucket.wait(1, now=0.0) == pytest.approx(1)


def test_without_a_limit_it_is_full_at_the_reset():
    bucket = Bucket("requests")
    headers = told(60, 0, "7s")
    del headers["x-ratelimit-limit-requests"]
    bucket.hear(headers, in_flight=0, now=0.0)
    assert bucket.wait(1, now=2.0) == pytest.approx(5)
    assert bucket.wait(1, now=7.0) == 0


@pytest.mark.parametrize("headers", [{}, {"x-ratelimit-remaining-requests": "0"}, told(9, 0, "1d")])
def test_what_says_too_little_or_asks_too_long_is_left_to_the_server(headers):
    bucket = Bucket("requests")
    bucket.hear(headers, in_flight=5, now=0.0)
    assert bucket.wait(1, now=0.0) == 0


def load(window: Window, allowed: int, rounds: int, by_chance: float = 0.0) -> list[list[bool]]:
    """Rounds of an endpoint under full load: what is above ``allowed`` is refused at once."""
    draw = random.Random(0)
    history = []
    for _ in range(rounds):
        answers: list[bool] = []
        while True:  # a refused request makes room for the next, until the window is small enough
            excess = window.size - allowed
            if excess <= 0:
                break
            answers.extend([True] * excess)
            for _ in range(excess):
                window.answered(True)
            if window.size > allowed and len(answers) > 1000:
                break
        for _ in range(min(window.size, allowed)):
            answers.append(draw.random() < by_chance)
            window.answered(answers[-1])
        history.append(answers)
    return history


@pytest.mark.parametrize("allowed", [1, 5, 32, 60])
def test_a_window_settles_at_what_is_allowed(allowed):
    window = Window(64)
    history = load(window, allowed, rounds=120)
    assert allowed <= window.size <= allowed + 1
    refused = [sum(answers) for answers in history]
    assert sum(refused[:2]) < 3 * 64
    assert sum(refused[60:]) <= 6


def test_a_window_that_nothing_refuses_stays_at_the_cap():
    window = Window(32)
    load(window, 1000, rounds=50)
    assert window.size == 32


def test_a_window_grows_again_when_more_is_allowed():
    window = Window(64)
    load(window, 8, rounds=20)
    assert window.size <= 9
    load(window, 64, rounds=100)
    assert window.size == 64


def test_refusals_by_chance_do_not_close_a_window():
    window = Window(32)
    load(window, 1000, rounds=200, by_chance=0.03)
    assert window.size >= 24


def test_refusals_of_everything_close_it():
    window = Window(32)
    for _ in range(100):
        window.answered(True)
    assert window.size == 1
