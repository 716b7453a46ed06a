"""Requests that got no whole answer: what became of the connection, as a sentence for the user.

Reads the causes of the SDK's exceptions, by name where they are of whichever transport it brings.
Tells what cannot have reached the endpoint, which costs nothing, from what may have. Knows neither
prompts nor retries.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from spex_engine.backends.openai.failures import Failure, Kind, of_status, quote

_UNSENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}


def explain(
    error: Exception, url: str, model: str, key: str | None = None, proxy: str | None = None
) -> Failure:
    """The failure that an exception of the SDK (or of reading its answer) is.

    url: the endpoint's base URL. key: what to remove from quoted texts, None: nothing was secret.
    proxy: the environment variable that names the proxy on the way.
    """
    if isinstance(error, Failure):
        return error
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return of_status(error, status, url, model, key)
    causes = list(_causes(error))
    names = {type(cause).__name__ for cause in causes}
    reached = not names & _UNSENT
    if reached and "APITimeoutError" in names:
        return timed_out(url, None, proxy)
    if reached and isinstance(error, ValueError):
        return Failure("server", f"{url} sent an answer that could not be read. Look at its log.")
    failure = None if reached else _unsent(causes, names, url, key, proxy)
    if failure is not None:
        return failure
    why = quote(str(causes[-1]) or str(error), key)
    return Failure(
        "down",
        f"The connection to {url} broke ({why}). Check that the server still runs, and the "
        f"network.{_perhaps(proxy)}",
        reached=reached,
    )


def timed_out(url: str, first_within: float | None, proxy: str | None) -> Failure:
    """first_within: seconds that were given to an endpoint which has never answered before."""
    if first_within is None:
        said = f"{url} did not answer in time. Lower the concurrency, or ask a faster model."
    else:
        said = (
            f"{url} has answered nothing for {first_within:g} s. Check base_url; if the server is "
            "still loading the model, try again then."
        )
    return Failure("timeout", said + _perhaps(proxy))


def _unsent(
    causes: list[BaseException], names: set[str], url: str, key: str | None, proxy: str | None
) -> Failure | None:
    """No connection was made, to the endpoint or to the proxy on the way; None: it is not known
    why."""

    def failure(kind: Kind, message: str) -> Failure:
        return Failure(kind, message, reached=False)

    around = f"Correct or unset it, or name the host of {url} in NO_PROXY."
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        if proxy:
            return failure("dns", f"{proxy} is set: its proxy could not be found. {around}")
        return failure(
            "dns", f"The host of {url} could not be found. Check the network, and base_url."
        )
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        why = next(str(cause) for cause in causes if isinstance(cause, ssl.SSLError))
        return failure(
            "tls",
            f"No secure connection to {url}: {quote(why, key)}. If a company's certificate is to "
            "be trusted, set SSL_CERT_FILE to it; for a server without TLS, base_url begins with "
            f"http://.{_perhaps(proxy)}",
        )
    if "ProxyError" in names:
        why = next(str(cause) for cause in causes if type(cause).__name__ == "ProxyError")
        return failure(
            "down",
            f"The proxy did not let a request through to {url}: {quote(why, key)}. Check "
            f"{proxy or 'HTTPS_PROXY, HTTP_PROXY'} and NO_PROXY.",
        )
    if "ConnectTimeout" in names or any(isinstance(c, ConnectionRefusedError) for c in causes):
        if proxy:
            return failure("down", f"{proxy} is set: nothing answers at its proxy. {around}")
        return failure("down", f"Nothing answers at {url}. Start the server, or correct base_url.")
    return None


def _perhaps(proxy: str | None) -> str:
    return f" {proxy} is set: it may be its proxy." if proxy else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, innermost last."""
    seen: set[int] = set()
    left = [error]
    while left:
        cause = left.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            left.extend(cause.exceptions)
        left.extend(inner for inner in (cause.__cause__, cause.__context__) if inner is not None)
