"""What OpenAI's models cost, as published on a day that is named; settings override it."""

from __future__ import annotations

import re

from spex_engine.backends.openai.budget import NOTHING, Prices
from spex_engine.wire import Access, InputError

AS_OF = "June 2026"
# US dollars per million tokens of input and of output, without discounts.
_PUBLISHED = {
    "gpt-5.5": (5.0, 30.0),
    "gpt-5.5-pro": (30.0, 180.0),
    "gpt-5.4": (2.5, 15.0),
    "gpt-5.4-pro": (30.0, 180.0),
    "gpt-5.4-mini": (0.75, 4.5),
    "gpt-5.4-nano": (0.2, 1.25),
    "gpt-5.2": (1.75, 14.0),
    "gpt-5.1": (1.25, 10.0),
    "gpt-5": (1.25, 10.0),
    "gpt-5-mini": (0.25, 2.0),
    "gpt-5-nano": (0.05, 0.4),
    "gpt-4.1": (2.0, 8.0),
    "gpt-4.1-mini": (0.4, 1.6),
    "gpt-4.1-nano": (0.1, 0.4),
    "gpt-4o": (2.5, 10.0),
    "gpt-4o-mini": (0.15, 0.6),
    "gpt-3.5-turbo": (0.5, 1.5),
    "o3": (2.0, 8.0),
    "o4-mini": (1.1, 4.4),
}
_VERSION = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4}|latest)$")


def prices(model: str, access: Access) -> Prices:
    """Those of the settings; else the published ones of the model's family; else unknown.

    InputError where they are unknown and somebody has set a limit on the cost.
    """
    published = _PUBLISHED.get(_VERSION.sub("", model), (None, None))
    given = (access.input_price, access.output_price)
    found = Prices(*(b if a is None else a for a, b in zip(given, published, strict=True)))
    if found.of(NOTHING) is None and access.max_cost not in (None, Access().max_cost):
        raise InputError(
            f"The price of {model} is not known, so that a limit of {access.max_cost:g} on the "
            "cost cannot be kept. Set inputPrice and outputPrice (per million tokens, 0 for a "
            "server of your own), or leave maxCost out."
        )
    return found
