"""What a run will take, in words, whether a person must agree first, and whom it needs keys for."""

from __future__ import annotations

import contextlib
import os
from urllib.parse import urlsplit

from spex_engine.wire import Access, Estimate, ExplainRequest

PORTS = {"http": 80, "https": 443}
OPENAI = "https://api.openai.com/v1"  # where the openai SDK goes by itself


def may_cost(request: ExplainRequest) -> bool:
    """Whether it may be somebody else's model: then an estimate comes before anything is asked."""
    return request.model.startswith("openai:")


def origins(access: Access) -> tuple[str, ...]:
    """``scheme://host:port`` of every address that may be asked, each once: what a key belongs to.

    Only what the environment and trusted settings name; a prompt file cannot. What is no address
    is left out: the worker says what is wrong with it.
    """
    found = []
    for url in access.base_urls or (os.environ.get("OPENAI_BASE_URL") or OPENAI,):
        with contextlib.suppress(ValueError, KeyError):
            parts = urlsplit(url.strip())
            host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
            found.append(f"{parts.scheme}://{host}:{parts.port or PORTS[parts.scheme]}")
    return tuple(dict.fromkeys(found))


def needs_consent(estimate: Estimate) -> bool:
    """Whether the prompt leaves this machine, and nobody has said that it costs nothing."""
    return estimate.asks is not None and estimate.cost != 0.0


def in_words(estimate: Estimate) -> str:
    """One sentence: how many calls and tokens, and what money or time they take."""
    calls = f"at most {estimate.calls:,} call{'' if estimate.calls == 1 else 's'}"
    tokens = f"about {_rounded(estimate.input_tokens)} input"
    if estimate.output_tokens:
        tokens += f" and {_rounded(estimate.output_tokens)} output"
    parts = [calls, f"{tokens} tokens"]
    if estimate.cost is not None:
        parts.append(_money(estimate.cost))
    elif estimate.asks is not None:
        parts.append("at a price that is not known")
    if estimate.seconds is not None:
        parts.append(f"about {_duration(estimate.seconds)}")
    whom = "" if estimate.asks is None else f"{estimate.asks}: "
    return f"{whom}{', '.join(parts)}."


def _money(dollars: float) -> str:
    if dollars == 0:
        return "no money"
    return f"about ${dollars:,.2f}" if dollars >= 0.01 else "less than $0.01"


def _rounded(tokens: int) -> str:
    """To two digits: it is an estimate."""
    digits = max(0, len(str(tokens)) - 2)
    return f"{round(tokens, -digits):,}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
