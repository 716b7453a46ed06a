"""Addresses, keys and clients: which key goes where, and that it goes nowhere else."""

from __future__ import annotations

import logging
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from openai_stub import Reply, Stub, completions

from spex_engine.backends.openai.clients import Secret, addresses, key_for, make_client, origin
from spex_engine.wire import Access, InputError, ModelError

KEY = "sk-very-secret"
VARIABLES = (
    "SPEX_API_KEY", "OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "OPENAI_BASE_URL",
    "OPENAI_API_VERSION", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS",
    "OPENAI_ADMIN_KEY", "AZURE_OPENAI_AD_TOKEN", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def one(url: str, **more):
    secrets = more.pop("secrets", {})
    (address,) = addresses(Access(base_urls=(url,), **more), secrets)
    return address


def key(url: str, secrets: dict[str, str] | None = None) -> str | None:
    found = key_for(url, secrets or {})
    return None if found is None else found.reveal()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com:443"),
        ("http://LOCALHOST:8000/v1", "http://localhost:8000"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_origins(url, expected):
    assert origin(url) == expected


def test_the_servers_secret_comes_before_the_environment(monkeypatch):
    url = "https://host.example/v1"
    monkeypatch.setenv("SPEX_API_KEY", "spex")
    assert key(url) == "spex"
    secrets = {"https://host.example:443": "given", "https://other.example:443": "other"}
    assert key(url, secrets) == "given"
    assert key(url, {"https://host.example": "portless"}) == "portless"


def test_a_secret_is_for_its_origin_alone(monkeypatch):
    secrets = {"https://host.example:443": "given"}
    for url in ("https://host.example:8443/v1", "https://host.example.evil.example/v1"):
        with pytest.raises(ModelError, match="no key"):
            key_for(url, secrets)


def test_azure_has_a_variable_of_its_own(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure")
    assert key("https://me.openai.azure.com") == "azure"
    assert key("https://me.cognitiveservices.azure.com") == "azure"
    assert key("https://api.openai.com/v1") == "openai"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1", "https://API.openai.com/v1", "https://eu.api.openai.com/v1",
    ],
)  # fmt: skip
def test_openais_key_is_for_openai(url, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert key(url) == KEY
    assert key(url, {origin(url): "given"}) == "given"


@pytest.mark.parametrize(
    "url",
    [
        "https://h.example/v1", "https://api.openai.com.evil.example/v1",
        "https://evil-api.openai.com/v1", "https://me.openai.azure.com",
    ],
)  # fmt: skip
def test_openais_key_is_for_nobody_else(url, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ModelError, match=r"Set SPEX_API_KEY.*OPENAI_API_KEY is sent to OpenAI al"):
        key(url)
    monkeypatch.setenv("SPEX_API_KEY", "spex")
    assert key(url) == "spex"


@pytest.mark.parametrize(
    "url",
    [
        "http://gpu-box/v1", "http://10.0.0.7/v1", "https://10.0.0.7/v1",
        "http://127.0.0.1:8000/v1",
    ],
)  # fmt: skip
def test_openais_key_is_not_for_a_server_nearby(url, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert key(url) is None
    monkeypatch.setenv("SPEX_API_KEY", "spex")
    assert key(url) == "spex"


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://gateway.example/v1", True), ("http://127.0.0.1:4000/v1", True),
        ("https://gpu-box/v1", True), ("http://gpu-box/v1", False), ("http://10.0.0.7/v1", False),
    ],
)  # fmt: skip
def test_openais_key_goes_to_openais_base_url_but_not_in_the_clear(url, sent, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    (address,) = addresses(Access())
    assert address.secret == (KEY if sent else None)
    with pytest.raises(ModelError, match="no key"):  # set in another place, it is another's
        one("https://other.example/v1")


def test_no_key_says_which_variable_to_set():
    with pytest.raises(ModelError, match=r"no key for https://h\.example/v1\. Set SPEX_API_KEY\.$"):
        one("https://h.example/v1")
    with pytest.raises(ModelError, match="SPEX_API_KEY or OPENAI_API_KEY"):
        one("https://api.openai.com/v1")
    with pytest.raises(ModelError, match="SPEX_API_KEY or AZURE_OPENAI_API_KEY"):
        one("https://me.openai.azure.com", api_version="2024-10-21")


def test_a_blank_key_is_none(monkeypatch):
    monkeypatch.setenv("SPEX_API_KEY", " ")
    assert one("http://127.0.0.1:8000/v1").key is None


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:1/v1", "http://gpu-box/v1",
        "http://10.1.2.3/v1", "http://192.168.0.9/v1", "http://100.64.0.1/v1", "http://x.local/v1",
    ],
)  # fmt: skip
def test_a_server_nearby_needs_no_key(url):
    assert one(url).key is None


@pytest.mark.parametrize(
    "url", ["http://api.example.com/v1", "http://8.8.8.8/v1", "http://134744072/v1",
            "http://0x08080808/v1"],
)  # fmt: skip
def test_no_key_travels_in_the_clear(url, monkeypatch):
    monkeypatch.setenv("SPEX_API_KEY", KEY)
    with pytest.raises(InputError, match=r"in the clear\. Use https://") as error:
        one(url)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://me:hunter2@h.example/v1", "name or password"),
        ("https://h.example/v1?key=1", "goes on with"),
        ("https://h.example/v1#x", "goes on with"),
        ("ftp://h.example/v1", "no web address"),
        ("h.example/v1", "no web address"),
        ("https://h.example:port/v1", "cannot be read"),
        ("https://h.example/v 1", "characters"),
        ("https://h.example\\@evil.example/v1", "characters|name or password"),
        ("me:hunter2@h.example/v1", "no web address"),
        ("https:/me:hunter2@h.example/v1", "no web address"),
        ("ftp://h.example/me:hunter2@/v1", "no web address"),
        ("https://h.example/me:hunter2@/v1?a", "goes on with"),
        ("http://[::1/v1", "cannot be read"),
        ("http://[::1]:99999/v1", "cannot be read"),
    ],
)
def test_addresses_that_are_none(url, says):
    with pytest.raises(InputError, match=says) as error:
        one(url)
    assert "hunter2" not in str(error.value)


def test_a_key_with_a_line_break_is_refused_unquoted(monkeypatch):
    monkeypatch.setenv("SPEX_API_KEY", "sk-a\nsk-b")
    with pytest.raises(InputError, match="characters") as error:
        one("https://h.example/v1")
    assert "sk-a" not in str(error.value)


def test_where_no_address_is_set(monkeypatch):
    monkeypatch.setenv("SPEX_API_KEY", KEY)
    assert [a.url for a in addresses(Access())] == ["https://api.openai.com/v1"]
    monkeypatch.setenv("OPENAI_BASE_URL", "https://h.example/v1/")
    assert [a.url for a in addresses(Access())] == ["https://h.example/v1"]
    assert one("https://i.example/v1").url == "https://i.example/v1"


def test_azure_by_its_own_paths_needs_a_version(monkeypatch):
    monkeypatch.setenv("SPEX_API_KEY", KEY)
    with pytest.raises(InputError, match=r"Azure endpoint\. Set apiVersion"):
        one("https://me.openai.azure.com")
    address = one("https://me.openai.azure.com/", api_version="2024-10-21")
    assert (address.azure, address.url) == (True, "https://me.openai.azure.com/openai")
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-06-01")
    assert one("https://me.openai.azure.com").api_version == "2024-06-01"
    v1 = one("https://me.openai.azure.com/openai/v1")
    assert (v1.azure, v1.url) == (False, "https://me.openai.azure.com/openai/v1")


def test_secrets_show_themselves_to_nobody():
    secret = Secret(KEY)
    address = one("https://h.example/v1", secrets={"https://h.example:443": KEY})
    for shown in (repr(secret), str(secret), f"{secret}", repr(address), str(vars(address))):
        assert KEY not in shown
    with pytest.raises(TypeError):
        pickle.dumps(secret)


async def asked(address) -> None:
    async with make_client(address, 5.0) as client:
        await client.completions.create(model="m", prompt="p", max_tokens=1)


async def test_an_azure_request(monkeypatch):
    monkeypatch.setenv("SPEX_API_KEY", KEY)
    with Stub({"/openai/deployments/m/completions": completions}) as stub:
        await asked(one(stub.url.removesuffix("/v1"), api_version="2024-10-21"))
        (entry,) = stub.log
    assert entry.path.endswith("?api-version=2024-10-21")
    assert entry.headers["api-key"] == KEY
    assert "authorization" not in entry.headers


async def test_the_openai_account_is_named_to_openai_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project")
    with Stub() as stub:
        await asked(one(stub.url, secrets={origin(stub.url): KEY}))
        (entry,) = stub.log
    assert entry.headers["authorization"] == f"Bearer {KEY}"
    assert not {"openai-organization", "openai-project"} & entry.headers.keys()


async def test_headers_of_the_environment_are_for_openai_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Gateway: {KEY}\nAuthorization: Bearer {KEY}")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", KEY)
    with Stub({"/openai/deployments/m/completions": completions}) as stub:
        secrets = {origin(stub.url): "given"}
        await asked(one(stub.url, secrets=secrets))
        azure = one(stub.url.removesuffix("/v1"), api_version="2024-10-21", secrets=secrets)
        await asked(azure)
        first, second = (entry.headers for entry in stub.log)
    assert first["authorization"] == "Bearer given"
    assert second["api-key"] == "given"
    assert KEY not in str(first) + str(second)
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    client = make_client(one("https://api.openai.com/v1"), 5.0)
    assert client.default_headers["X-Gateway"] == KEY


def test_an_address_that_only_the_transport_cannot_read():
    with pytest.raises(InputError, match="cannot be read"):
        make_client(one("http://[::1]x/v1"), 5.0)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ALL_PROXY", "socks5://me:hunter2@127.0.0.1:1", "ALL_PROXY names a SOCKS.*pip install so"),
        ("HTTPS_PROXY", "ftp://me:hunter2@h:1", "HTTPS_PROXY: no proxy that can be used. Write"),
        ("HTTP_PROXY", "http://[::1", "HTTP_PROXY: no proxy that can be used. Write"),
        ("SSL_CERT_FILE", "/no/such/file", "SSL_CERT_FILE is set, but no certificates"),
    ],
)
def test_an_environment_that_cannot_be_followed_says_what_to_do(variable, value, says, monkeypatch):
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ModelError, match=says) as error:
        make_client(one("http://127.0.0.1:1/v1"), 5.0)
    assert "hunter2" not in str(error.value)


def test_the_proxy_that_is_wrong_is_the_one_named(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "ftp://127.0.0.1:1")
    with pytest.raises(ModelError, match=r"^HTTPS_PROXY: "):
        make_client(one("http://127.0.0.1:1/v1"), 5.0)


def test_without_the_sdk(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ModelError, match=r"pip install 'spex-lsp\[openai\]'"):
        make_client(one("http://127.0.0.1:1/v1"), 5.0)


async def test_a_redirect_does_not_get_the_key():
    import openai

    with Stub() as other, Stub() as stub:
        to = {"location": f"{other.url}/completions"}
        stub.handlers["/v1/completions"] = lambda body, headers: Reply(307, headers=to)
        with pytest.raises(openai.APIStatusError):
            await asked(one(stub.url, secrets={origin(stub.url): KEY}))
        assert not other.log


async def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(monkeypatch):
    with Stub() as proxy, Stub() as stub:
        address = proxy.url.removesuffix("/v1")
        monkeypatch.setenv("HTTP_PROXY", address)
        proxy.handlers["http://gpu-box:8000/v1/completions"] = completions
        await asked(one("http://gpu-box:8000/v1"))
        assert [entry.path for entry in proxy.log] == ["http://gpu-box:8000/v1/completions"]
        await asked(one(stub.url))
        await asked(one(stub.url.replace("127.0.0.1", "localhost")))
        assert len(proxy.log) == 1
        assert len(stub.log) == 2


async def test_no_proxy_is_heeded(monkeypatch):
    find = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: find("127.0.0.1", *rest, **more)
    )
    with Stub() as proxy, Stub() as stub:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "gpu-box")
        await asked(one(stub.url.replace("127.0.0.1", "gpu-box")))
        assert not proxy.log
        assert len(stub.log) == 1


LOGGING = f"""
import asyncio, logging, sys
sys.path[:0] = [{str(Path(__file__).parents[2])!r}, {str(Path(__file__).parent)!r}]
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
from openai_stub import Stub
from spex_engine.backends.openai.clients import addresses, make_client, origin
from spex_engine.wire import Access
async def main():
    with Stub() as stub:
        access = Access(base_urls=(stub.url,))
        (address,) = addresses(access, {{origin(stub.url): "sk-very-secret"}})
        async with make_client(address, 5.0) as client:
            await client.completions.create(model="m", prompt="my-private-prompt", max_tokens=1)
asyncio.run(main())
logging.getLogger("mine").debug("logging works")
"""


def test_neither_keys_nor_prompts_are_logged_at_any_level(monkeypatch):
    monkeypatch.setenv("OPENAI_LOG", "debug")
    done = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert "logging works" in output
    assert "sk-very-secret" not in output
    assert "my-private-prompt" not in output
    assert "openai" not in output
    assert "httpcore" not in output


def test_a_logger_that_others_have_set_is_set_back():
    logging.getLogger("openai").setLevel(logging.DEBUG)
    make_client(one("http://127.0.0.1:1/v1"), 1.0)
    assert not logging.getLogger("openai").isEnabledFor(logging.INFO)
