"""Model URIs, and the messages for those that name nothing."""

from __future__ import annotations

import pytest

from spex_engine.backends import open_backend
from spex_engine.wire import InputError, ModelError


def test_demo(monkeypatch):
    opened = object()
    monkeypatch.setattr("spex_engine.backends.demo.model.load", lambda: opened)
    assert open_backend("demo") is opened


@pytest.mark.parametrize("name", ["owner/model", "C:\\models\\small", "./folder"])
def test_hugging_face(monkeypatch, name):
    monkeypatch.setattr("spex_engine.backends.transformers.load", lambda given: given)
    assert open_backend(f"hf:{name}") == name


def test_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        open_backend(f"hf:{tmp_path}")


@pytest.mark.parametrize("uri", ["hf:", "hf:  "])
def test_no_name(uri):
    with pytest.raises(InputError, match="hf:NAME_OR_PATH"):
        open_backend(uri)


@pytest.mark.parametrize("uri", ["openai:gpt-x", "encoder:bert", "ray+hf:gpt2"])
def test_not_in_this_version(uri):
    with pytest.raises(InputError, match=r"not in this version.*demo or hf:NAME_OR_PATH"):
        open_backend(uri)


@pytest.mark.parametrize("uri", ["", "gpt2", "demo:small", "hf", "openai", "ollama:x", ":x"])
def test_unknown(uri):
    with pytest.raises(InputError, match="demo or hf:NAME_OR_PATH"):
        open_backend(uri)
