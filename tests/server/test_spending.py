"""What a run takes, in words, who must agree to it, and whom it needs keys for."""

from __future__ import annotations

import pytest

from server.spending import in_words, may_cost, needs_consent, origins
from spex_engine.backends.openai.clients import origin
from spex_engine.wire import Access, Estimate, ExplainRequest, Message, Piece, Prompt

PROMPT = Prompt((Message("user", (Piece("a", 0),)),), 1)
HOSTED = Estimate(1031, 354_817, 12_345, 0.213, 32.0, "https://api.openai.com")


@pytest.mark.parametrize(
    ("model", "may"),
    [("demo", False), ("hf:gpt2", False), ("encoder:x", False), ("openai:x", True)],
)
def test_only_endpoints_may_cost(model: str, may: bool) -> None:
    assert may_cost(ExplainRequest(PROMPT, model)) is may


@pytest.mark.parametrize(
    ("asks", "cost", "needed"),
    [
        ("https://api.openai.com", 0.2, True),
        ("https://api.openai.com", None, True),  # nobody knows
        ("https://gpu.example.org", 0.0, False),  # prices were set to nothing
        (None, None, False),  # on this machine
    ],
)
def test_who_is_paid_needs_consent(asks: str | None, cost: float | None, needed: bool) -> None:
    assert needs_consent(Estimate(1, 1, 1, cost, None, asks)) is needed


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (
            HOSTED,
            "https://api.openai.com: at most 1,031 calls, about 350,000 input and 12,000 output "
            "tokens, about $0.21, about 32 seconds.",
        ),
        (
            Estimate(1, 7, 0, None, None, "https://x.org"),
            "https://x.org: at most 1 call, about 7 input tokens, at a price that is not known.",
        ),
        (
            Estimate(64, 990, 0, 0.0, 0.4, None),
            "at most 64 calls, about 990 input tokens, no money, about a second.",
        ),
        (
            Estimate(64, 995, 0, 0.0, 600.0, None),
            "at most 64 calls, about 1,000 input tokens, no money, about 10 minutes.",
        ),
        (
            Estimate(9, 0, 0, 0.0, 7200.0, None),
            "at most 9 calls, about 0 input tokens, no money, about 2.0 hours.",
        ),
        (
            Estimate(9, 10, 0, 0.0004, None, None),
            "at most 9 calls, about 10 input tokens, less than $0.01.",
        ),
    ],
)
def test_in_words(estimate: Estimate, said: str) -> None:
    assert in_words(estimate) == said


def test_a_key_is_handed_over_for_what_the_worker_calls_its_address() -> None:
    for url in ("https://X.org/v1", "http://127.0.0.1:8000/v1", "http://[::1]/v1"):
        assert origins(Access((url,))) == (origin(url),)


def test_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert origins(Access()) == ("https://api.openai.com:443",)
    pool = ("http://10.0.0.1:8000/v1", "HTTP://10.0.0.1:8000/v2", "https://key@Host.org/v1")
    assert origins(Access(pool)) == ("http://10.0.0.1:8000", "https://host.org:443")
    assert origins(Access(("not an address", "http://[::1]:1/v1", "http://x:y/"))) == (
        "http://[::1]:1",
    )
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1234/v1")
    assert origins(Access()) == ("http://127.0.0.1:1234",)
    assert origins(Access(("https://x.org",))) == ("https://x.org:443",)
