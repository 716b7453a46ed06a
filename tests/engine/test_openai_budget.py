"""The ledger: nothing is sent that might cost more than is left."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spex_engine.backends.openai.budget import Cost, Ledger, Prices, Reservation, Spent
from spex_engine.wire import Access

AMPLE = Access(max_calls=None, max_tokens=None, max_cost=None)
PRICES = Prices(2.0, 8.0)  # per million tokens


def access(**limits) -> Access:
    return Access(**{"max_calls": None, "max_tokens": None, "max_cost": None, **limits})


def reserved(ledger: Ledger, cost: Cost) -> Reservation:
    reservation = ledger.reserve(cost)
    assert reservation is not None
    return reservation


def test_what_is_settled_counts_as_the_endpoint_says():
    ledger = Ledger(AMPLE, PRICES)
    ledger.settle(reserved(ledger, Cost(100, 50)), Cost(80, 10))
    assert ledger.spent == Spent(1, 90, pytest.approx(80 * 2e-6 + 10 * 8e-6))
    assert ledger.exhausted is None


def test_what_is_lost_counts_whole_and_what_was_never_sent_not_at_all():
    ledger = Ledger(AMPLE, PRICES)
    ledger.lost(reserved(ledger, Cost(100, 50)))
    ledger.withdraw(reserved(ledger, Cost(1000, 1000)))
    assert (ledger.spent.calls, ledger.spent.tokens) == (1, 150)
    assert ledger.in_flight == 0


def test_calls_in_flight_count():
    ledger = Ledger(access(max_calls=2))
    first = reserved(ledger, Cost(1))
    reserved(ledger, Cost(1))
    assert ledger.reserve(Cost(1)) is None
    assert ledger.exhausted is None  # they may yet be withdrawn
    assert ledger.may_fit_later(Cost(1))
    ledger.lost(first)
    ledger.withdraw(next(iter(ledger._open)))
    reserved(ledger, Cost(1))


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_calls": 1}, "limit of 1 calls is reached. Raise maxCalls"),
        ({"max_tokens": 150}, r"limit of 150 tokens .*\(100 are spent\). Raise maxTokens"),
        ({"max_cost": 0.0003}, r"limit of 0.0003 on the cost .*0.0002 is spent\). Raise maxCost"),
    ],
)
def test_the_limit_that_is_reached_is_named(limits, says):
    ledger = Ledger(access(**limits), PRICES)
    ledger.lost(reserved(ledger, Cost(100)))
    assert ledger.reserve(Cost(100)) is None
    assert re.search(says, str(ledger.exhausted))


def test_tokens_that_fit_once_others_have_cost_less():
    ledger = Ledger(access(max_tokens=150))
    first = reserved(ledger, Cost(100))
    assert ledger.reserve(Cost(100)) is None
    assert ledger.may_fit_later(Cost(100))
    ledger.settle(first, Cost(50))
    reserved(ledger, Cost(100))


def test_a_request_that_never_fits_is_refused_at_once():
    ledger = Ledger(access(max_tokens=150))
    assert ledger.reserve(Cost(100, 51)) is None
    assert not ledger.may_fit_later(Cost(100, 51))
    assert ledger.reserve(Cost(100, 50)) is not None


def test_unknown_prices_leave_money_uncounted():
    ledger = Ledger(access(max_cost=0.0))
    ledger.lost(reserved(ledger, Cost(10**9)))
    assert ledger.spent.cost is None


def test_prices_of_the_settings_come_first():
    ledger = Ledger(access(input_price=1.0), PRICES)
    assert ledger.prices == Prices(1.0, 8.0)


def test_an_endpoint_that_counts_more_is_reserved_more_from_then_on():
    ledger = Ledger(access(max_tokens=1000))
    many = [reserved(ledger, Cost(100)) for _ in range(3)]
    for reservation in many:
        ledger.settle(reservation, Cost(150))
    assert reserved(ledger, Cost(100)).cost == Cost(150)  # once, not for each of them
    assert ledger.reserve(Cost(300)) is None  # 450 + 150 + 450 are more than 1000


steps = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "lose", "withdraw"]),
        st.integers(0, 40),
        st.integers(0, 40),
        st.floats(0, 1),
    ),
    max_size=80,
)


@given(steps, st.integers(0, 20), st.integers(0, 500), st.floats(0, 0.002))
def test_no_limit_is_ever_passed(steps, calls, tokens, money):
    """Counted here, apart from the ledger: all that was let through and did not come back."""
    ledger = Ledger(access(max_calls=calls, max_tokens=tokens, max_cost=money), PRICES)
    flying: list[tuple[Reservation, Cost]] = []
    done: list[Cost] = []
    for step, read, written, share in steps:
        if step == "reserve":
            reservation = ledger.reserve(Cost(read, written))
            if reservation is not None:
                flying.append((reservation, Cost(read, written)))
        elif flying:
            reservation, most = flying.pop(0)
            actual = Cost(int(most.input_tokens * share), int(most.output_tokens * share))
            if step == "settle":
                ledger.settle(reservation, actual)
                done.append(actual)
            elif step == "lose":
                ledger.lost(reservation)
                done.append(most)
            else:
                ledger.withdraw(reservation)
        everything = [*done, *(cost for _, cost in flying)]
        assert len(everything) <= calls
        read_in_all = sum(cost.input_tokens for cost in everything)
        written_in_all = sum(cost.output_tokens for cost in everything)
        assert read_in_all + written_in_all <= tokens
        assert (read_in_all * 2 + written_in_all * 8) / 1e6 <= money
        spent = sum(cost.tokens for cost in done)
        assert (ledger.spent.calls, ledger.spent.tokens) == (len(done), spent)
