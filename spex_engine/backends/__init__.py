"""From a model URI to a model: one line in the registry for each kind there is.

Imports no backend before it is asked for, so that looking here costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spex_engine.backends.base import Model
from spex_engine.wire import Access, InputError


@dataclass(frozen=True)
class Kind:
    """A kind of model: how to open it by name, and what the name is."""

    open: Callable[[str, Access, Mapping[str, str]], Model]
    name: str  # what stands after the colon, for people; empty: nothing does
    stays: bool = True  # loaded from run to run; False: it counts what one run spends


def open_model(uri: str, access: Access, secrets: Mapping[str, str]) -> Model:
    """The model of a URI, loaded or connected.

    access: for endpoints, from trusted settings only. secrets: keys by the origin
    (``scheme://host:port``) that they are for. Raises InputError where the URI names no kind of
    model there is, ModelError where the model cannot be had.
    """
    scheme, name = named(uri)
    if access.base_urls and scheme != "openai":
        raise InputError(
            f"A base URL is for openai: models, and {uri!r} is none; leave it out, or use "
            "openai:NAME."
        )
    return KINDS[scheme].open(name, access, secrets)


def stays_loaded(uri: str) -> bool:
    """Whether the model of ``uri`` is worth keeping for the next run. InputError as above."""
    return KINDS[named(uri)[0]].stays


def named(uri: str) -> tuple[str, str]:
    """The scheme of a model URI, which is in ``KINDS``, and the name. InputError as above."""
    scheme, colon, name = uri.partition(":")
    kind = KINDS.get(scheme)
    if kind is None or bool(colon) != bool(kind.name):
        raise InputError(f"No kind of model is called {uri!r}; use {_CHOICES}.")
    if kind.name and not name.strip():
        raise InputError(f"{scheme}: names no model; write {scheme}:{kind.name}.")
    return scheme, name.strip()


def _demo(_: str, access: Access, secrets: Mapping[str, str]) -> Model:
    from spex_engine.backends.demo.model import load

    return load()


def _transformers(name: str, access: Access, secrets: Mapping[str, str]) -> Model:
    from spex_engine.backends.transformers import load

    return load(name)


def _openai(name: str, access: Access, secrets: Mapping[str, str]) -> Model:
    from spex_engine.backends.openai import load

    return load(name, access, secrets)


def _encoder(name: str, access: Access, secrets: Mapping[str, str]) -> Model:
    from spex_engine.backends.encoder import load

    return load(name)


def _ray(name: str, access: Access, secrets: Mapping[str, str]) -> Model:
    from spex_engine.backends.ray import load

    return load(name)


KINDS: dict[str, Kind] = {
    "demo": Kind(_demo, ""),
    "hf": Kind(_transformers, "NAME_OR_PATH"),
    "openai": Kind(_openai, "NAME", stays=False),
    "encoder": Kind(_encoder, "NAME_OR_PATH"),
    "ray+hf": Kind(_ray, "NAME_OR_PATH"),
}
_USES = [f"{scheme}:{kind.name}" if kind.name else scheme for scheme, kind in KINDS.items()]
_CHOICES = f"{', '.join(_USES[:-1])} or {_USES[-1]}"
