"""What requests have cost and may still cost: calls, tokens and money, counted before sending.

A request is paid for by a reservation of the most that it may cost, which becomes what it did cost
once the endpoint has answered. What timed out or was given up may have been computed all the same
and counts whole. Knows no endpoint, no clock and no thread: one event loop uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from spex_engine import wire


@dataclass(frozen=True)
class Cost:
    """Tokens of one request; before it is sent, the most that it may take."""

    input_tokens: int
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.input_tokens - other.input_tokens, self.output_tokens - other.output_tokens
        )


NOTHING = Cost(0, 0)


@dataclass(frozen=True)
class Prices:
    """Per million tokens; None: not known, and then money is not counted."""

    input: float | None = None
    output: float | None = None

    def of(self, cost: Cost) -> float | None:
        if self.input is None or self.output is None:
            return None
        return (cost.input_tokens * self.input + cost.output_tokens * self.output) / 1e6


UNKNOWN = Prices()


@dataclass(frozen=True, eq=False)
class Reservation:
    asked: Cost
    cost: Cost  # what is set aside, which is more where the endpoint has counted more before


@dataclass(frozen=True)
class Spent:
    """Settled and lost requests; cost in the currency of the prices, None: they are unknown."""

    calls: int
    tokens: int
    cost: float | None


class Ledger:
    """Never lets more be spent than ``access`` allows, what is in flight included.

    That holds as long as no request costs more than was reserved for it. Where an endpoint says it
    has counted more, all that is reserved from then on is larger by the largest such factor.
    """

    def __init__(self, access: wire.Access, prices: Prices = UNKNOWN) -> None:
        self._access = access
        self.prices = Prices(
            prices.input if access.input_price is None else access.input_price,
            prices.output if access.output_price is None else access.output_price,
        )
        self._calls = 0
        self._spent = NOTHING
        self._open: set[Reservation] = set()
        self._reserved = NOTHING
        self._input_factor = self._output_factor = Fraction(1)
        self.exhausted: str | None = None  # the first limit that refused a request, as a sentence

    @property
    def spent(self) -> Spent:
        return Spent(self._calls, self._spent.tokens, self.prices.of(self._spent))

    @property
    def spent_tokens(self) -> Cost:
        """Those of `spent`, by their kind."""
        return self._spent

    @property
    def in_flight(self) -> int:
        return len(self._open)

    def reserve(self, cost: Cost) -> Reservation | None:
        """None: nothing may be sent, for it might cost more than is left."""
        asked, cost = cost, self._enlarged(cost)
        refusal = self._refusal(self._calls + len(self._open), self._spent + self._reserved + cost)
        if refusal is not None:
            if not self.may_fit_later(asked):
                self.exhausted = self.exhausted or refusal
            return None
        reservation = Reservation(asked, cost)
        self._open.add(reservation)
        self._reserved += cost
        return reservation

    def may_fit_later(self, cost: Cost) -> bool:
        """Whether a refused request could be paid for once what is in flight has cost less."""
        return self._refusal(self._calls, self._spent + self._enlarged(cost)) is None

    def settle(self, reservation: Reservation, actual: Cost) -> None:
        """The endpoint has answered and says what it took."""
        self._close(reservation)
        self._calls += 1
        self._spent += actual
        asked = reservation.asked
        self._input_factor = max(
            self._input_factor, Fraction(actual.input_tokens, max(asked.input_tokens, 1))
        )
        self._output_factor = max(
            self._output_factor, Fraction(actual.output_tokens, max(asked.output_tokens, 1))
        )

    def lost(self, reservation: Reservation) -> None:
        """No answer came, or it was given up: spent as a whole."""
        self.settle(reservation, reservation.cost)

    def withdraw(self, reservation: Reservation) -> None:
        """It never reached the endpoint and is no call."""
        self._close(reservation)

    def _close(self, reservation: Reservation) -> None:
        self._open.remove(reservation)
        self._reserved -= reservation.cost

    def _enlarged(self, cost: Cost) -> Cost:
        return Cost(
            ceil(cost.input_tokens * self._input_factor),
            ceil(cost.output_tokens * self._output_factor),
        )

    def _refusal(self, calls: int, total: Cost) -> str | None:
        """Why one more call, with which ``total`` would be spent, is too much."""
        access = self._access
        if access.max_calls is not None and calls + 1 > access.max_calls:
            return (
                f"The limit of {access.max_calls:,} calls is reached. Raise maxCalls, "
                "or ask for fewer evaluations."
            )
        if access.max_tokens is not None and total.tokens > access.max_tokens:
            return (
                f"The limit of {access.max_tokens:,} tokens leaves no room for another request "
                f"({self._spent.tokens:,} are spent). Raise maxTokens, or ask for fewer "
                "evaluations."
            )
        money = self.prices.of(total)
        if access.max_cost is not None and money is not None and money > access.max_cost:
            return (
                f"The limit of {access.max_cost:g} on the cost leaves no room for another request "
                f"({self.prices.of(self._spent):.4g} is spent). Raise maxCost, or ask for fewer "
                "evaluations."
            )
        return None
