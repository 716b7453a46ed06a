"""Finished explanations, kept and found again: the same request has the same answer.

Knows requests, results and the store's text under a key. It must not know models: what an
explanation rests on is the request and the files it names, so that looking one up loads nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from spex_engine import __version__
from spex_engine.store import Store, StoreError
from spex_engine.wire import ExplainRequest, ExplainResult, InputError, from_json, to_json

_FORMAT = 1  # of what is kept; another is another key


def keep(store: Store | None, request: ExplainRequest, result: ExplainResult) -> tuple[str, ...]:
    """Keeps ``result`` for `recall`, and says what went wrong if something did.

    A partial result is not kept, and no text that a model wrote where that is not wanted.
    """
    counts = result.evaluations
    partial = counts.computed + counts.cached < counts.requested
    if store is None or partial or (result.target.own and not request.access.keep_answers):
        return ()
    try:
        store.put_explanation(_key(request), json.dumps(to_json(result), allow_nan=False))
    except StoreError as error:
        return (f"this explanation is not kept: {error}",)
    return ()


def recall(store: Store, request: ExplainRequest) -> ExplainResult | None:
    """The explanation that an earlier run of the same request made; None where there is none."""
    text = store.get_explanation(_key(request))
    if text is None:
        return None
    try:
        return from_json(ExplainResult, json.loads(text))
    except (ValueError, InputError):  # of a version that had other fields
        return None


def _key(request: ExplainRequest) -> bytes:
    """Of all that changes a result; what was pinned does not, nor what a run may cost."""
    access = request.access
    asked = dataclasses.replace(
        request, question=dataclasses.replace(request.question, pinned=None)
    )
    content = {
        **to_json(asked),
        "access": [sorted(access.base_urls), access.api_version, access.repeats],
        "elsewhere": _elsewhere(request),
        "version": [__version__, _FORMAT],
    }
    written = json.dumps(content, sort_keys=True).encode()
    return hashlib.blake2b(b"explanation" + written, digest_size=32).digest()


def _elsewhere(request: ExplainRequest) -> object:
    """What the request leaves to its surroundings: a folder's files, the usual endpoint."""
    scheme, _, name = request.model.partition(":")
    if scheme == "openai":
        return None if request.access.base_urls else os.environ.get("OPENAI_BASE_URL")
    folder = Path(name)
    if not (folder.is_absolute() and folder.is_dir()):
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    stats = [(path.name, path.stat()) for path in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
