"""From a model URI to a backend: one line in the registry for each kind of model.

Imports no backend before it is asked for, so that looking here costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from spex_engine.backends.base import Backend
from spex_engine.wire import InputError


def open_backend(uri: str) -> Backend:
    """The backend of a model URI, with its model loaded.

    Raises InputError where the URI names no kind of model there is, ModelError where the model
    cannot be had.
    """
    scheme, colon, name = uri.partition(":")
    if scheme in _LATER and colon:
        raise InputError(
            f"{scheme}: models are not in this version of Spex yet; use {_CHOICES} instead of "
            f"{uri!r}."
        )
    if scheme not in _BACKENDS or (scheme == "demo" and colon) or (scheme != "demo" and not colon):
        raise InputError(f"No kind of model is called {uri!r}; use {_CHOICES}.")
    return _BACKENDS[scheme](name.strip())


def _open_demo(_: str) -> Backend:
    from spex_engine.backends.demo.model import load

    return load()


def _open_transformers(name: str) -> Backend:
    if not name:
        raise InputError(
            "hf: names no model; write hf:NAME_OR_PATH with a name from the Hugging Face hub or "
            "a local folder."
        )
    from spex_engine.backends.transformers import load

    return load(name)


_BACKENDS: dict[str, Callable[[str], Backend]] = {"demo": _open_demo, "hf": _open_transformers}
_CHOICES = "demo or hf:NAME_OR_PATH"
_LATER = ("openai", "encoder", "ray+hf")
