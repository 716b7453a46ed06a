"""Where requests go and with which key: addresses checked, keys found, clients of the SDK made.

Addresses come from trusted settings or the environment, keys from the server's secret store or the
environment. A key is sent to the address it was found for and nowhere else: not in the clear over a
public network, not after a redirect, not into a log.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from spex_engine.wire import Access, InputError, ModelError

OPENAI = "https://api.openai.com/v1"
_OPENAI_HOST = "api.openai.com"  # and what is below it: its regions
_CONNECT_WITHIN = 10.0  # seconds

_AZURE_HOSTS = (".openai.azure.com", ".cognitiveservices.azure.com")
_UNREADABLE = "A base_url cannot be read. Write it as https://host/v1."
_AZURE_V1 = "/openai/v1"
_PRIVATE = (".local", ".internal", ".lan", ".home.arpa")  # RFC 6762, RFC 8375, and usage
_LABEL = re.compile(r"[a-z][a-z0-9-]*")  # a name without dots; a bare number would be an address
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_PROXY = re.compile(r"(https?|socks5h?)://", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
# The SDK logs requests at DEBUG, prompts included; the transports log headers.
_TALKATIVE = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")


class Secret:
    """A key that shows itself only to who asks for it by name."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a key is not written down")


@dataclass(frozen=True)
class Address:
    """One endpoint. azure: it is spoken to by Azure's own paths, which need an api_version.

    proxy: the environment variable that names the proxy on the way; None: there is none.
    """

    url: str
    key: Secret | None  # None: a server of this machine that needs none
    azure: bool = False
    api_version: str | None = None
    proxy: str | None = None

    @property
    def secret(self) -> str | None:
        return None if self.key is None else self.key.reveal()


def addresses(access: Access, secrets: Mapping[str, str] | None = None) -> tuple[Address, ...]:
    """The endpoints of ``access`` with their keys; secrets: from `origin` to key.

    Without base URLs it is OPENAI_BASE_URL or OpenAI itself. InputError: the address cannot be
    used; ModelError: there is no key for it.
    """
    default = None if access.base_urls else os.environ.get("OPENAI_BASE_URL") or OPENAI
    urls = access.base_urls if default is None else (default,)
    return tuple(_address(url, access.api_version, secrets or {}, default) for url in urls)


def origin(url: str) -> str:
    """scheme://host:port, which is what a key belongs to."""
    parts = _checked(url)
    host = str(parts.hostname)
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{parts.port or _PORTS[parts.scheme]}"


def is_here(url: str) -> bool:
    """Whether an address is of this machine: nothing that goes there leaves it."""
    return _is_loopback(str(_checked(url).hostname))


def key_for(url: str, secrets: Mapping[str, str], default: str | None = None) -> Secret | None:
    """The key of an address: the server's secret, else the environment's; None: it needs none.

    default: the address of OPENAI_BASE_URL where that is what is used, for which OPENAI_API_KEY is
    then meant; otherwise that is for OpenAI alone.
    """
    parts = _checked(url)
    host = str(parts.hostname)
    names = ["SPEX_API_KEY"]
    if host.endswith(_AZURE_HOSTS):
        names.append("AZURE_OPENAI_API_KEY")
    in_the_clear = parts.scheme == "http" and not _is_loopback(host)
    if is_openai(url) or (url == default and not in_the_clear):
        names.append("OPENAI_API_KEY")
    given = {origin(place): key for place, key in secrets.items()}
    keys = [given.get(origin(url)), *map(os.environ.get, names)]
    key = next((key.strip() for key in keys if key and key.strip()), None)
    if key is not None:
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"The key for {url} has characters that no key has. Enter it again.")
        return Secret(key)
    if _is_near(host):
        return None
    said = f"There is no key for {url}. Set {' or '.join(names)}."
    if "OPENAI_API_KEY" not in names and os.environ.get("OPENAI_API_KEY"):
        said += " OPENAI_API_KEY is sent to OpenAI alone."
    raise ModelError(said)


def is_openai(url: str) -> bool:
    """Of OpenAI itself, whose environment variables are meant for it."""
    parts = _checked(url)
    host = str(parts.hostname)
    return parts.scheme == "https" and (host == _OPENAI_HOST or host.endswith(f".{_OPENAI_HOST}"))


def make_client(address: Address, answer_within: float) -> Any:
    """An AsyncOpenAI or AsyncAzureOpenAI that neither retries nor follows redirects by itself.

    answer_within: seconds without a byte of an answer. InputError, ModelError: the address, or what
    the environment says of the way to it, cannot be used.
    """
    try:
        import openai
    except ImportError:
        raise ModelError(
            "Models behind an endpoint need the openai package. Install it: pip install "
            "'spex-lsp[openai]'."
        ) from None
    quieten()
    options: dict[str, Any] = {
        "base_url": address.url,
        "api_key": address.secret or "none",  # the SDK wants one
        "max_retries": 0,
        "timeout": openai.Timeout(answer_within, connect=_CONNECT_WITHIN),
        "http_client": _transport(openai, str(urlsplit(address.url).hostname)),
    }
    make: Any = openai.AsyncOpenAI
    if address.azure:
        make = functools.partial(openai.AsyncAzureOpenAI, api_version=address.api_version)
    elif address.api_version is not None:
        options["default_query"] = {"api-version": address.api_version}
    try:
        client = make(**options)
    except Exception as error:  # httpx's or httpx2's own kind, which cannot be named here
        if type(error).__name__ != "InvalidURL":  # of whichever httpx the SDK brings
            raise
        raise InputError(_UNREADABLE) from None
    if not is_openai(address.url):
        # What the SDK reads from the environment is of the OpenAI account, or another key.
        client.organization = client.project = client.admin_api_key = None
        client._custom_headers = {}
        client._azure_ad_token = None
    return client


def quieten() -> None:
    """Keep prompts and headers out of every log, whatever OPENAI_LOG says."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def _address(
    url: str, api_version: str | None, secrets: Mapping[str, str], default: str | None
) -> Address:
    parts = _checked(url)
    host = str(parts.hostname)
    if parts.scheme == "http" and not _is_near(host):
        raise InputError(f"With {url} the key would travel in the clear. Use https://.")
    key = key_for(url, secrets, default)
    url = url.rstrip("/")
    on_azure = host.endswith(_AZURE_HOSTS)
    api_version = api_version or (os.environ.get("OPENAI_API_VERSION") if on_azure else None)
    azure = (on_azure or api_version is not None) and not url.endswith(_AZURE_V1)
    if azure and api_version is None:
        raise InputError(
            f"{url} is an Azure endpoint. Set apiVersion (such as 2024-10-21), or use its address "
            f"that ends in {_AZURE_V1}."
        )
    if azure and not parts.path.strip("/"):
        url += "/openai"
    return Address(url, key, azure, api_version, _proxy_variable(parts.scheme, host))


def _checked(url: str) -> SplitResult:
    """The parts of a base URL; InputError where it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InputError(_UNREADABLE) from None
    if parts.username is not None or parts.password is not None:  # not quoted: it may be a secret
        raise InputError("A base_url holds a name or password. Take it out and set SPEX_API_KEY.")
    # what is no address may hold a password all the same
    shown = "A base_url" if "@" in url else f"base_url {re.split('[?#]', url)[0]!r}"
    if parts.scheme not in _PORTS or not parts.hostname:
        raise InputError(f"{shown} is no web address. Write it as https://host/v1.")
    if "?" in url or "#" in url:
        raise InputError(f"{shown} goes on with ? or #. Leave that out.")
    if any(c.isspace() or not c.isprintable() or c == "\\" for c in url):
        raise InputError(f"{shown} has characters that no address has. Correct it.")
    return parts


def _transport(openai: Any, host: str) -> Any:
    """An HTTP client; ModelError where what the environment says of proxies cannot be followed."""
    try:
        # The SDK's own class, for it may bring httpx or httpx2. It reads the proxies and the
        # certificates of the environment, but a proxy cannot reach our loopback.
        return openai.DefaultAsyncHttpxClient(
            follow_redirects=False, mounts={_pattern(host): None} if _is_loopback(host) else None
        )
    except OSError:  # ssl.SSLError is one
        names = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
        if not names:
            raise
        raise ModelError(
            f"{names[0]} is set, but no certificates can be read there. Correct or unset it."
        ) from None
    except Exception as error:  # what a proxy that cannot be used raises depends on the proxy
        proxies = {n: os.environ[n] for n in os.environ if n.lower() in _PROXIES and os.environ[n]}
        if not proxies:
            raise
        socks = [n for n, proxy in proxies.items() if proxy.lower().startswith("socks")]
        if isinstance(error, ImportError) and socks:
            raise ModelError(
                f"{socks[0]} names a SOCKS proxy, which needs the socksio package. Install it (pip "
                f"install socksio), or unset {socks[0]}."
            ) from None
        odd = [n for n, p in proxies.items() if "://" in p and not _PROXY.match(p)] or proxies
        raise ModelError(
            f"{', '.join(odd)}: no proxy that can be used. Write it as http://host:port, or unset "
            "it."
        ) from None


def _proxy_variable(scheme: str, host: str) -> str | None:
    """The environment variable whose proxy requests to that host go through."""
    from urllib.request import proxy_bypass

    if _is_loopback(host) or proxy_bypass(host):
        return None
    names = [n for proxy in (f"{scheme}_proxy", "all_proxy") for n in (proxy, proxy.upper())]
    return next((name for name in names if os.environ.get(name)), None)


def _pattern(host: str) -> str:
    """All addresses of a host, as httpx writes them."""
    return f"all://[{host}]" if ":" in host else f"all://{host}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_near(host: str) -> bool:
    """Of this machine or a private network: a numeric address, or a name that only it can know."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return _is_loopback(host) or host.endswith(_PRIVATE) or bool(_LABEL.fullmatch(host))
