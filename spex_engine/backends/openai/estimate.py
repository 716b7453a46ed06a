"""What an explanation will take of an endpoint, before anything is sent to it.

Counts the prompt's tokens and multiplies; whether the endpoint scores answers or must write them
anew is only known once it is asked, so the estimate is of the dearest way unless that is known, and
at most what the limits allow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from urllib.parse import urlsplit

import numpy as np

from spex_engine.backends.base import Tier
from spex_engine.backends.openai.asking import THINKING
from spex_engine.backends.openai.budget import Cost, Prices
from spex_engine.backends.openai.checking import check_question
from spex_engine.backends.openai.clients import OPENAI, is_here, origin
from spex_engine.backends.openai.messages import Messages, masked_messages
from spex_engine.backends.openai.prices import AS_OF, prices
from spex_engine.backends.openai.regenerated import answer_limit
from spex_engine.backends.openai.tokens import PER_MESSAGE, token_count
from spex_engine.wire import Access, Estimate, InputError, Prompt, Question

PROBES = 30  # requests that find out what an endpoint can do, at most
ANSWER = 64  # tokens of an answer that is not known yet, at most
SECONDS_A_CALL = 1.0  # of a hosted endpoint
# OpenAI's models that think before they answer, under whichever vendor's prefix
_REASONS = re.compile(r"(.*/)?(o\d|gpt-[5-9])(?!.*chat)")


def estimate(
    model: str,
    prompt: Prompt,
    question: Question,
    access: Access,
    masks: int,
    tier: Tier | None = None,
) -> Estimate:
    """Of ``masks`` evaluations; nothing is sent. tier: where it is known, from an earlier run.

    InputError where the question fits no endpoint, or a limit on the cost cannot be kept.
    """
    priced = prices(model, access)
    tiers = (tier,) if tier is not None else _tiers(question)
    counting = token_count(model)
    notes = [counting.note] if counting.note else []
    full, fixed = (
        _tokens(masked_messages(prompt, np.full(prompt.n_segments, kept)), counting.count)
        for kept in (True, False)
    )
    labels = [question.contrast] if question.contrast is not None else [*question.choices]
    answers = [text for text in (question.target, question.pinned, *labels) if text is not None]
    longest = max((counting.count(text) + 1 for text in answers), default=ANSWER)
    scored = max(len(labels) + (question.contrast is not None), 1)
    thought = THINKING if _REASONS.match(model) else 0
    a_mask = (fixed + full) / 2  # each segment is kept in half of the masks
    # calls, and tokens read and written by each of them
    takes: dict[Tier, tuple[int, float, int]] = {
        "T1": (scored * masks, a_mask + longest, 1),
        "T2": (masks, a_mask, 1),
        "T3": (access.repeats * masks, a_mask, answer_limit(longest) + thought),
    }
    dearest = max(tiers, key=lambda each: _weight(*takes[each], priced))
    calls, read, written = takes[dearest]
    if tier is None:
        notes.append(_FOR[dearest].format(repeats=access.repeats))
    if thought and dearest == "T3":
        notes.append(f"{model} may think for {thought:,} tokens before each answer")
    cost = Cost(
        round(calls * read) + PROBES * 32 + (2 + scored) * full,
        calls * written + PROBES * 16 + ANSWER + thought,
    )
    calls, cost, money, limits = _limited(calls + PROBES + scored, cost, priced, access)
    notes += limits
    notes.append(
        "a request that fails, or is answered without what was asked, is sent again and counts, "
        "within the limits that are set"
    )
    notes.append(f"seconds are those of an endpoint that takes {SECONDS_A_CALL:g} s for a call")
    if money is None:
        notes.append(
            f"the price of {model} is not known: without an input and an output price (per "
            "million tokens) no limit on the cost can be kept"
        )
    elif access.input_price is None or access.output_price is None:
        notes.append(f"prices are those published in {AS_OF}, in US dollars")
    return Estimate(
        calls,
        cost.input_tokens,
        cost.output_tokens,
        money,
        calls * SECONDS_A_CALL / max(min(access.concurrency, calls), 1),
        _asks(access),
        tuple(notes),
    )


_FOR: dict[Tier, str] = {
    "T1": "this is for an endpoint that scores whole answers, each by a call of its own; one that "
    "tells only the log-probabilities of first tokens takes one call for each mask",
    "T2": "this is for an endpoint that tells the log-probabilities of a first token",
    "T3": "this is for an endpoint that cannot score answers, where each is written anew {repeats} "
    "times; one that can takes one call for each mask",
}


def _tiers(question: Question) -> tuple[Tier, ...]:
    """Those in which an endpoint may have to answer. InputError where there is none."""
    if question.value == "similarity":
        check_question(question, ("T3",))
        return ("T3",)
    check_question(question, ("T1", "T2", "T3"))
    found: list[Tier] = ["T1", "T2"]
    try:
        check_question(question, ("T3",))
        found.append("T3")
    except InputError:  # a run on an endpoint that can do no better ends before it has begun
        pass
    return tuple(found)


def _weight(calls: int, read: float, written: int, priced: Prices) -> float:
    """What the calls cost; of unknown prices the usual relation."""
    cost = Cost(round(calls * read), calls * written)
    money = priced.of(cost)
    return float(cost.input_tokens + 4 * cost.output_tokens) if money is None else money


def _limited(
    calls: int, cost: Cost, priced: Prices, access: Access
) -> tuple[int, Cost, float | None, list[str]]:
    """The same within the limits of ``access``, and which of them end the run before."""
    reached = []
    if access.max_calls is not None and calls > access.max_calls:
        reached.append(f"maxCalls ({access.max_calls:,} of {calls:,} calls)")
        cost = _part(cost, access.max_calls / calls)
        calls = access.max_calls
    if access.max_tokens is not None and cost.tokens > access.max_tokens:
        reached.append(f"maxTokens ({access.max_tokens:,} of {cost.tokens:,} tokens)")
        cost = _part(cost, access.max_tokens / cost.tokens)
    money = priced.of(cost)
    if access.max_cost is not None and money is not None and money > access.max_cost:
        reached.append(f"maxCost (${access.max_cost:,.2f} of ${money:,.2f})")
        money = access.max_cost
    if not reached:
        return calls, cost, money, []
    return (
        *(calls, cost, money),
        [f"it may end at {', '.join(reached)}: then what was asked until there is explained"],
    )


def _part(cost: Cost, share: float) -> Cost:
    return Cost(int(cost.input_tokens * share), int(cost.output_tokens * share))


def _tokens(messages: Messages, count: Callable[[str], int]) -> int:
    return sum(count(message["content"]) + PER_MESSAGE for message in messages) + PER_MESSAGE


def _asks(access: Access) -> str | None:
    """The hosts that the prompt is sent to; None where they are this machine."""
    urls = access.base_urls or (os.environ.get("OPENAI_BASE_URL") or OPENAI,)
    away = sorted({str(urlsplit(origin(url)).hostname) for url in urls if not is_here(url)})
    return ", ".join(away) or None
