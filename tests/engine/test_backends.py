"""Model URIs, and the messages for those that name nothing."""

from __future__ import annotations

import pytest

from spex_engine import backends
from spex_engine.wire import Access, InputError, ModelError

NO_SECRETS: dict[str, str] = {}


def open_model(uri: str, access: Access | None = None) -> object:
    return backends.open_model(uri, access or Access(), NO_SECRETS)


def test_demo(monkeypatch):
    opened = object()
    monkeypatch.setattr("spex_engine.backends.demo.model.load", lambda: opened)
    assert open_model("demo") is opened


@pytest.mark.parametrize("scheme", ["hf", "encoder", "ray+hf"])
@pytest.mark.parametrize("name", ["owner/model", "C:\\models\\small", "./folder"])
def test_by_name_or_folder(monkeypatch, scheme, name):
    module = {"hf": "transformers", "encoder": "encoder", "ray+hf": "ray"}[scheme]
    monkeypatch.setattr(f"spex_engine.backends.{module}.load", lambda given: given)
    assert open_model(f"{scheme}:{name}") == name
    assert backends.stays_loaded(f"{scheme}:{name}")


def test_endpoints_get_their_access_and_the_keys(monkeypatch):
    monkeypatch.setattr("spex_engine.backends.openai.load", lambda *given: given)
    access, secrets = Access(("http://127.0.0.1:1/v1",)), {"http://127.0.0.1:1": "k"}
    assert backends.open_model("openai:x", access, secrets) == ("x", access, secrets)
    assert not backends.stays_loaded("openai:x")  # it counts what one run spends


def test_an_address_is_for_endpoints():
    with pytest.raises(InputError, match="A base URL is for openai: models, and 'demo' is none"):
        open_model("demo", Access(("http://127.0.0.1:1/v1",)))


def test_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        open_model(f"hf:{tmp_path}")


@pytest.mark.parametrize("uri", ["hf:", "hf:  ", "encoder:", "openai: "])
def test_no_name(uri):
    with pytest.raises(InputError, match=f"{uri.strip()} names no model; write {uri.strip()}NAME"):
        open_model(uri)


@pytest.mark.parametrize("uri", ["", "gpt2", "demo:small", "hf", "openai", "ollama:x", ":x"])
def test_unknown(uri):
    with pytest.raises(InputError, match=r"use demo, hf:NAME_OR_PATH, .* or ray\+hf:NAME_OR_PATH"):
        open_model(uri)
