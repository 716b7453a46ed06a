"""How fast an endpoint may be asked: what its headers say, and what its refusals teach.

`Bucket` follows the x-ratelimit headers, `Window` finds how many requests may be in flight where no
header says so. Times are seconds of the caller's clock. Knows no endpoint and sends nothing.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

LONGEST_WAIT = 600.0  # seconds that an endpoint may ask us to wait
_MOST_PATIENCE = 64
_LARGEST_STEP = 8

_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)?")
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}


def duration(text: str | None) -> float | None:
    """Seconds of "6m0s", "20ms", "1.5" or "2h"; None where it is no duration."""
    text = (text or "").strip()
    if not text or not re.fullmatch(rf"(?:{_PARTS.pattern})+", text):
        return None
    return sum(float(n) * _SECONDS.get(unit or "s", 0.0) for n, unit in _PARTS.findall(text))


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait by retry-after-ms or retry-after (seconds or a date); None: not said.

    now: seconds since the epoch, for dates.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None:
        return max(0.0, seconds)
    try:
        date = email.utils.parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return max(0.0, date.timestamp() - (time.time() if now is None else now))


@dataclass
class Bucket:
    """A token bucket as the server keeps it: what is left, and when it is full again."""

    name: str  # "requests" or "tokens"
    level: float = float("inf")
    rate: float = 0.0  # regained a second
    heard: float = 0.0  # when
    full_at: float = 0.0

    def hear(self, headers: Mapping[str, str], in_flight: float, now: float) -> None:
        """Take over what an answer says. in_flight: what was sent and not yet answered.

        The server may have counted that already; to subtract it again errs on the safe side, until
        the next answer says what is left.
        """
        remaining = _number(headers.get(f"x-ratelimit-remaining-{self.name}"))
        reset = duration(headers.get(f"x-ratelimit-reset-{self.name}"))
        limit = _number(headers.get(f"x-ratelimit-limit-{self.name}"))
        if remaining is None or reset is None:
            return
        self.level = remaining - in_flight
        self.heard = now
        self.full_at = now + reset
        self.rate = (limit - remaining) / reset if limit is not None and reset > 0 else 0.0

    def take(self, amount: float) -> None:
        self.level -= amount

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` may be sent; at most until the bucket is full."""
        if self.level + self.rate * (now - self.heard) >= amount:
            return 0.0
        until_full = self.full_at - now
        if until_full <= 0 or until_full > LONGEST_WAIT:  # a longer wait is the server's to demand
            return 0.0
        if self.rate <= 0:
            return until_full
        return min(until_full, self.heard + (amount - self.level) / self.rate - now)


class Window:
    """How many requests may be in flight, where only refusals tell.

    A server that allows L at once refuses what is above L: each refusal takes one place away, at
    most half of them in a round, so that the window is at L after one burst. A round of ``size``
    answers that took nothing away lets it grow by a step, which doubles as long as that goes well;
    each time that the growth itself is refused, twice as many rounds must pass before the next.

    Some endpoints refuse a few requests whatever their number. An eighth of a round takes nothing
    away; in a round after growth, as many as there were before it.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = most
        self._floor = max(1, most // 2)
        self._left = most  # answers until the round ends
        self._refused = 0  # in this round
        self._tolerated = 0
        self._shrank = False
        self._grew = False  # at the end of the last round
        self._step = 1
        self._calm = 0  # rounds
        self._patience = 1  # rounds

    def answered(self, refused: bool) -> None:
        if refused:
            self._refused += 1
            if self._refused > self._tolerated:
                self._shrank = True
                self.size = max(self.size - 1, self._floor)
        self._left -= 1
        if self._left <= 0:
            self._end_round()

    def _end_round(self) -> None:
        if self._shrank:
            self._calm, self._step = 0, 1
            if self._grew:
                self._patience = min(2 * self._patience, _MOST_PATIENCE)
        else:
            self._calm += 1
            if self._grew:
                self._patience, self._step = 1, min(2 * self._step, _LARGEST_STEP)
        self._grew = self._calm >= self._patience and self.size < self.most
        if self._grew:
            self._calm = 0
            self.size = min(self.size + self._step, self.most)
        rounds = 2 if self._grew else 1  # half of the answers are to what was sent before it grew
        self._tolerated = rounds * self._refused if self._grew else self.size // 8
        self._floor = max(1, self.size // 2)
        self._left = rounds * self.size
        self._refused, self._shrank = 0, False


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None
