"""What can go wrong with a request, and what an endpoint's refusals mean: sentences for the user.

Reads the SDK's exceptions by their status and body (`connections` reads those that have none). What
a server said is quoted in part, on one line, and never with the key in it. Knows neither prompts
nor retries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from spex_engine.backends.openai.rates import LONGEST_WAIT, retry_after
from spex_engine.wire import ModelError

Kind = Literal[
    "key", "forbidden", "model", "quota", "down", "dns", "tls", "not_openai", "redirect", "budget",
    "rate", "timeout", "server", "context", "logprobs", "request",
]  # fmt: skip
FATAL: frozenset[Kind] = frozenset(
    ("key", "forbidden", "model", "quota", "down", "dns", "tls", "not_openai", "redirect", "budget")
)
# what may lie in the one endpoint of several that is not set up as the others are
MEMBER: frozenset[Kind] = FATAL - {"down", "dns", "budget"}
PASSING: frozenset[Kind] = frozenset({"rate", "timeout", "server", "down", "dns"})

_QUOTED = 200  # characters of a server's text
_USERINFO = re.compile(r"(?<=//)[^\s/?#]*@")  # of an address: it may hold a password

# OpenAI and Azure; vLLM; SGLang; llama.cpp; TGI and Together; Mistral
_CONTEXT = re.compile(
    r"context_length_exceeded|maximum context length|context (length|size|window)"
    r"|maximum model length|max_model_len|exceed_context_size|exceeds? the (maximum|available)"
    r"|inputs?`? tokens \+ `?max_new_tokens|too long",
    re.IGNORECASE,
)
_LOGPROBS = re.compile(r"log_?-?prob|\becho\b", re.IGNORECASE)
_QUOTA = re.compile(
    r"insufficient_quota|billing|exceeded your current quota|insufficient (balance|credit|funds)",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"request too large", re.IGNORECASE)  # for the tokens of a minute
_NO_MODEL = re.compile(
    r"model_not_found|DeploymentNotFound|deployment.*(not|n't) exist"
    r"|model\b.*(not found|(not|n't) exist|unknown)|(unknown|no such) model",
    re.IGNORECASE | re.DOTALL,
)


class Failure(ModelError):  # noqa: N818 - it is yielded as a result more often than raised
    """A request that had no answer. ``str`` of it is for the user.

    status: what HTTP said, None where nothing came. wait: seconds that the endpoint asks for before
    the next request. reached: False where the request cannot have reached the endpoint. fatal:
    every later request would fail alike; None: as the kind says.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        status: int | None = None,
        wait: float | None = None,
        reached: bool = True,
        fatal: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.wait = wait
        self.reached = reached
        self.fatal = kind in FATAL if fatal is None else fatal

    @property
    def passing(self) -> bool:
        """The same request may succeed later."""
        return self.kind in PASSING


def none_left(failures: Sequence[Failure]) -> Failure:
    """Of a request that each endpoint refused; how such a request fails where there is but one."""
    # what is missing for this request (an optional part of the protocol) before what always is
    first = min(failures, key=lambda failure: failure.kind not in ("model", "not_openai"))
    if len(failures) == 1:
        first.fatal = True
        return first
    message = "None of the endpoints can be used. " + " ".join(map(str, failures))
    return Failure(first.kind, message, status=first.status, fatal=True)


def not_openai(url: str, status: int | None = None) -> Failure:
    """What answers is no server of OpenAI's protocol, or its address is not all of it."""
    return Failure(
        "not_openai",
        f"{url} does not answer as an OpenAI-compatible endpoint. Correct base_url: it usually "
        "ends in /v1.",
        status=status,
    )


def quote(text: str, key: str | None = None) -> str:
    """A server's text for a message: without the key or a password, on one line, cut."""
    if key:
        text = text.replace(key, "[key]")
    text = _USERINFO.sub("", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _QUOTED else text[: _QUOTED - 1] + "…"


def of_status(error: Exception, status: int, url: str, model: str, key: str | None) -> Failure:
    """What an answer with an HTTP status other than 200 says. key: what to remove from quotes."""
    body: Any = getattr(error, "body", None)
    headers: Any = getattr(getattr(error, "response", None), "headers", {})
    said = _said(body, error)
    code = str(body.get("code") or "") if isinstance(body, dict) else ""
    param = str(body.get("param") or "") if isinstance(body, dict) else ""
    whole = f"{code} {param} {said}"
    quoted = quote(said, key)
    wait = retry_after(headers)

    def failure(kind: Kind, message: str) -> Failure:
        return Failure(kind, message, status=status, wait=wait)

    if 300 <= status < 400:
        to = quote(str(headers.get("location", "another address")), key)
        return failure(
            "redirect",
            f"{url} redirects to {to}, and keys are not sent on. If you trust it, set base_url to "
            "that address.",
        )
    if status == 401 and key is None:
        return failure("key", f"{url} wants a key ({quoted}). Set SPEX_API_KEY.")
    if status == 401:
        return failure(
            "key",
            f"{url} does not accept the key ({quoted}). Check the key, and that it belongs to this "
            "endpoint.",
        )
    if status == 403:
        return failure(
            "forbidden",
            f"{url} denies access to {model} ({quoted}). Ask for access with the provider, or "
            "choose another model.",
        )
    if status in (402, 429) and (status == 402 or _QUOTA.search(whole)):
        return failure(
            "quota",
            f"The account at {url} has no quota left ({quoted}). Check its plan and billing; "
            "waiting does not help.",
        )
    if status == 429 and _TOO_LARGE.search(whole):
        return failure(
            "context",
            f"One request is more than {url} allows at a time ({quoted}). Shorten the prompt, or "
            "have the account's limit raised.",
        )
    if status == 429 and wait is not None and wait > LONGEST_WAIT:
        return failure(
            "rate",
            f"{url} asks to wait {wait / 60:.0f} minutes before the next request ({quoted}). Try "
            "again then, or use another endpoint.",
        )
    if status == 429:
        return failure(
            "rate",
            f"{url} keeps refusing requests as too many ({quoted}). Lower the concurrency, or try "
            "again later.",
        )
    if status in (400, 404, 422) and _NO_MODEL.search(whole):
        return failure(
            "model",
            f"{url} has no model {model!r} ({quoted}). Choose a model that it serves.",
        )
    if status == 413 or (status in (400, 422) and _CONTEXT.search(whole)):
        return failure(
            "context",
            f"The prompt is too long for {model} ({quoted}). Shorten it, or choose a model with a "
            "longer context.",
        )
    if status in (400, 422) and _LOGPROBS.search(whole):
        return failure(
            "logprobs",
            f"{url} gives no log-probabilities for {model} ({quoted}). Choose a model or a server "
            "that gives them.",
        )
    if status == 405 or (status == 404 and (not said or not _is_openai_error(body))):
        return not_openai(url, status)
    if status == 408:
        return failure(
            "timeout",
            f"{url} took too long to answer ({quoted}). Lower the concurrency, or ask a faster "
            "model.",
        )
    if status == 409 or status >= 500:
        return failure(
            "server",
            f"{url} failed with error {status} ({quoted}). Try again later, or look at the "
            "server's log.",
        )
    return failure(
        "request",
        f"{url} refused a request with error {status} ({quoted}). Check that the server and the "
        "model support it.",
    )


def _is_openai_error(body: Any) -> bool:
    return isinstance(body, dict) and isinstance(body.get("message"), str)


def _said(body: Any, error: Exception) -> str:
    """The server's own words, wherever it put them; HTML pages say nothing."""
    if isinstance(body, dict):
        for name in ("message", "detail", "error"):
            if body.get(name):
                return str(body[name])
        return ""
    text = body if isinstance(body, str) else str(error) if body is None else ""
    return "" if text.lstrip()[:1] == "<" else text
