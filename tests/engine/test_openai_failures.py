"""Each failure a user can meet has its own sentence, of what happened and what to do."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from dataclasses import replace

import pytest
from openai_stub import Faults, Reply, Stub, error

from spex_engine.backends.openai.budget import Cost
from spex_engine.backends.openai.dispatch import open_dispatcher
from spex_engine.backends.openai.failures import Failure, quote
from spex_engine.backends.openai.pool import Patience
from spex_engine.wire import Access

KEY = "sk-very-secret"
QUICK = Patience(retries=2, first=0.01, longest=0.02, first_outage=0.01, answer_within=0.3)


async def failure_at(url: str, secrets: dict[str, str] | None = None, **more) -> Failure:
    dispatcher = open_dispatcher(
        Access(base_urls=(url,), **more), "gpt-x", secrets=secrets, patience=QUICK
    )
    try:
        with pytest.raises(Failure) as raised:
            await dispatcher.request(
                lambda client: client.completions.with_raw_response.create(
                    model="gpt-x", prompt="p", max_tokens=1
                ),
                Cost(10, 1),
            )
    finally:
        await dispatcher.close()
    return raised.value


async def failure_of(reply: Reply) -> tuple[Failure, int]:
    """The failure, and how many requests were sent."""
    with Stub({"/v1/completions": lambda body, headers: reply}) as stub:
        origin = stub.url.removesuffix("/v1")
        return await failure_at(stub.url, {origin: KEY}), len(stub.log)


PAGE = "<!doctype html><html><body>Welcome to nginx</body></html>"


@pytest.mark.parametrize(
    ("reply", "kind", "says", "requests"),
    [
        (error(401, f"Incorrect API key provided: {KEY}."), "key", "not accept the key.*Check", 1),
        (error(403, "Country not supported"), "forbidden", "denies access to gpt-x.*Ask for", 1),
        (error(404, "The model `gpt-x` does not exist", code="model_not_found"), "model",
         "has no model 'gpt-x'.*Choose a model", 1),
        (error(404, "This deployment does not exist.", code="DeploymentNotFound"), "model",
         "has no model", 1),
        (error(404, 'model "gpt-x" not found, try pulling it first'), "model", "has no model", 1),
        (error(400, "This model's maximum context length is 8192 tokens. However, you requested",
               code="context_length_exceeded"), "context", "too long for gpt-x.*Shorten it", 1),
        (Reply(400, {"object": "error", "message": "The decoder prompt (length 9000) is longer than"
               " the maximum model length of 4096."}), "context", "Shorten it", 1),
        (error(400, "Requested token count exceeds the model's maximum context length of 4096"),
         "context", "Shorten it", 1),
        (error(400, "the request exceeds the available context size",
               type="exceed_context_size_error"), "context", "Shorten it", 1),
        (error(429, "Request too large for gpt-x on tokens per min: Limit 30000, Requested 40000",
               code="rate_limit_exceeded"), "context", "more than .* allows at a time.*limit", 1),
        (error(413, "Request too large"), "context", "Shorten it", 1),
        (error(400, "logprobs are not supported with this model", param="logprobs"), "logprobs",
         "no log-probabilities for gpt-x.*Choose", 1),
        (Reply(422, {"detail": "top_logprobs: extra fields not permitted"}), "logprobs",
         "Choose", 1),
        (error(429, "You exceeded your current quota", code="insufficient_quota"), "quota",
         "no quota left.*billing; waiting does not help", 1),
        (error(402, "Insufficient Balance"), "quota", "no quota left", 1),
        (error(429, "Slow down"), "rate", "keeps refusing.*Lower the concurrency", 3),
        (error(429, "Slow down", {"retry-after": "3600"}), "rate", "asks to wait 60 minutes", 1),
        (error(408, "Timeout"), "timeout", "too long to answer", 3),
        (error(500, "Oops"), "server", r"failed with error 500 \(Oops\).*Try again later", 3),
        (Reply(503, PAGE), "server", "failed with error 503", 3),
        (error(409, "Locked"), "server", "failed with error 409", 3),
        (error(400, "temperature must be positive"), "request", "error 400 .temperature must", 1),
        (Reply(404, PAGE), "not_openai", "not answer as an OpenAI.*ends in /v1", 1),
        (Reply(404, {"detail": "Not Found"}), "not_openai", "ends in /v1", 1),
        (Reply(200, PAGE), "not_openai", "ends in /v1", 1),
        (Reply(405, {"detail": "Method Not Allowed"}), "not_openai", "ends in /v1", 1),
        (Reply(307, headers={"location": "https://elsewhere.example/v1"}), "redirect",
         "redirects to https://elsewhere.example/v1, and keys are not sent on", 1),
        (Reply(200, b'{"choices": ['), "server", "could not be read", 3),
        (Reply(200, {"error": {"message": "Provider returned error", "code": 502}}), "server",
         "Provider returned error", 3),
    ],
)  # fmt: skip
async def test_what_an_endpoint_may_answer(reply, kind, says, requests):
    failure, sent = await failure_of(reply)
    assert failure.kind == kind
    assert re.search(says, str(failure)), str(failure)
    assert KEY not in str(failure)
    assert "<" not in str(failure)
    assert sent == requests
    hopeless = {"key", "forbidden", "model", "quota", "rate", "timeout", "not_openai", "redirect"}
    assert failure.fatal == (kind in hopeless)


async def test_a_server_nearby_that_wants_a_key(monkeypatch):
    for name in ("SPEX_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    reply = error(401, "Unauthorized")
    with Stub({"/v1/completions": lambda body, headers: reply}) as stub:
        failure = await failure_at(stub.url)
        assert stub.log[0].headers["authorization"] == "Bearer none"
    assert "wants a key (Unauthorized). Set SPEX_API_KEY" in str(failure)


def requesting(client):
    return client.completions.with_raw_response.create(model="gpt-x", prompt="p", max_tokens=1)


async def test_a_server_of_this_machine_may_take_its_time_for_the_first_answer():
    patience = replace(QUICK, answer_within=60.0, first_answer_within=0.1)
    with Stub(latency=0.5) as stub:  # it loads its model
        dispatcher = open_dispatcher(Access(base_urls=(stub.url,)), "gpt-x", patience=patience)
        await dispatcher.request(requesting, Cost(10, 1))
        assert len(stub.log) == 1


async def test_an_endpoint_that_never_answered_is_given_up_after_one_shorter_wait(monkeypatch):
    monkeypatch.setattr("spex_engine.backends.openai.members.is_here", lambda url: False)
    patience = replace(QUICK, answer_within=60.0, first_answer_within=0.2)
    with Stub(latency=60.0) as stub:
        dispatcher = open_dispatcher(Access(base_urls=(stub.url,)), "gpt-x", patience=patience)
        with pytest.raises(Failure) as raised:
            await dispatcher.request(requesting, Cost(10, 1))
        assert len(stub.log) == 1
        assert dispatcher.ledger.spent.calls == 1
    assert (raised.value.kind, raised.value.fatal) == ("timeout", True)
    assert re.search(r"has answered nothing for 0\.2 s\. Check base_url", str(raised.value))


async def test_one_that_has_answered_is_given_its_time_and_asked_again():
    with Stub() as stub:
        dispatcher = open_dispatcher(Access(base_urls=(stub.url,)), "gpt-x", patience=QUICK)
        await dispatcher.request(requesting, Cost(10, 1))
        stub.latency = 3.0
        with pytest.raises(Failure) as raised:
            await dispatcher.request(requesting, Cost(10, 1))
        assert len(stub.log) == 1 + 3
    assert (raised.value.kind, raised.value.fatal) == ("timeout", True)
    assert "did not answer in time. Lower the concurrency" in str(raised.value)


async def test_the_first_answer_gives_time_to_what_was_sent_before_it():
    patience = replace(QUICK, answer_within=60.0, first_answer_within=0.4)
    with Stub(latency=1.0) as stub:
        dispatcher = open_dispatcher(Access(base_urls=(stub.url,)), "gpt-x", patience=patience)
        slow = asyncio.ensure_future(dispatcher.request(requesting, Cost(10, 1)))
        while not stub.at_once:
            await asyncio.sleep(0.005)
        stub.latency = 0.0
        await dispatcher.request(requesting, Cost(10, 1))
        await slow
        assert len(stub.log) == 2


async def test_an_answer_that_never_ends_is_too_late():
    with Stub(faults=Faults(drip=1.0)) as stub:
        failure = await failure_at(stub.url)
    assert failure.kind == "timeout"


async def test_nothing_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        failure = await failure_at(f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
    assert (failure.kind, failure.fatal) == ("down", True)
    assert "Nothing answers at" in str(failure)
    assert "Start the server, or correct base_url" in str(failure)


async def test_an_unknown_host(monkeypatch):
    def unknown(host, *rest, **more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    failure = await failure_at("http://nowhere:8000/v1")
    assert failure.kind == "dns"
    assert "host of http://nowhere:8000/v1 could not be found. Check" in str(failure)


async def test_no_tls_where_it_was_expected():
    with Stub() as stub:
        url = stub.url.replace("http://", "https://")
        failure = await failure_at(url)
    assert failure.kind == "tls"
    assert "No secure connection" in str(failure)
    assert "SSL_CERT_FILE" in str(failure)


async def test_a_proxy_that_refuses(monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Stub({"CONNECT gpu-box:443": lambda body, headers: Reply(407)}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.removesuffix("/v1"))
        failure = await failure_at("https://gpu-box/v1")
    assert failure.kind == "down"
    assert "The proxy did not let" in str(failure)
    assert "HTTPS_PROXY" in str(failure)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_down_is_blamed_itself(monkeypatch, scheme):
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://me:hunter2@127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", address)
        failure = await failure_at(f"{scheme}://gpu-box/v1")
    assert failure.kind == "down"
    assert f"{scheme.upper()}_PROXY is set: nothing answers at its proxy. Correct" in str(failure)
    assert "hunter2" not in str(failure)


async def test_a_proxy_that_is_not_found_is_blamed_itself(monkeypatch):
    def unknown(host, *rest, **more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("ALL_PROXY", "http://nowhere:3128")
    failure = await failure_at("http://gpu-box/v1")
    assert failure.kind == "dns"
    assert "ALL_PROXY is set: its proxy could not be found. Correct or unset it" in str(failure)
    monkeypatch.setenv("NO_PROXY", "gpu-box")
    assert "host of http://gpu-box/v1 could not be" in str(await failure_at("http://gpu-box/v1"))


async def test_a_silent_endpoint_behind_a_proxy_names_the_proxy(monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Stub(latency=3.0) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        failure = await failure_at("http://gpu-box/v1")
    assert failure.kind == "timeout"
    assert "HTTP_PROXY is set" in str(failure)


@pytest.mark.parametrize(("outer", "kind", "calls"), [("ReadError", "down", 3),
                                                      ("ConnectError", "tls", 0)])  # fmt: skip
async def test_tls_that_breaks_in_an_answer_is_paid_for_and_tried_again(outer, kind, calls):
    import openai

    async def breaking(client):
        try:
            try:
                raise ssl.SSLError(1, "[SSL: BAD_RECORD_MAC] bad record mac")
            except ssl.SSLError as error:  # as the transport wraps it
                raise type(outer, (Exception,), {})(str(error)) from error
        except Exception as error:
            raise openai.APIConnectionError(request=None) from error

    dispatcher = open_dispatcher(
        Access(base_urls=("http://127.0.0.1:9/v1",)), "gpt-x", patience=QUICK
    )
    with pytest.raises(Failure) as raised:
        await dispatcher.request(breaking, Cost(10, 1))
    assert raised.value.kind == kind
    assert dispatcher.ledger.spent.calls == calls


async def test_a_connection_that_breaks():
    with Stub(faults=Faults(reset=1.0)) as stub:
        failure = await failure_at(stub.url)
    assert failure.kind == "down"
    assert "broke" in str(failure)


async def test_a_budget_that_is_spent():
    with Stub() as stub:
        failure = await failure_at(stub.url, max_tokens=10)
        assert not stub.log
    assert (failure.kind, failure.fatal) == ("budget", True)
    assert "Raise maxTokens" in str(failure)


def test_quotes_hold_no_password():
    quoted = quote("see https://me:hunter2@h.example/a@b or //x@y/z")
    assert quoted == "see https://h.example/a@b or //y/z"


def test_quotes_are_short_on_one_line_and_without_the_key():
    text = quote(f"one\ntwo\t\x1b[31m{KEY} three " + "x" * 500, KEY)
    assert text.startswith("one two [31m[key] three xxx")
    assert len(text) == 200
    assert text.endswith("…")
