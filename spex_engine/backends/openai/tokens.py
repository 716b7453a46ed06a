"""How many tokens a text is for an endpoint's model, as far as that can be known without asking it.

tiktoken counts for OpenAI's models where its vocabulary is on this machine; it is never downloaded
in the middle of a run, since that can hang. All else is an approximation that says so.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PER_MESSAGE = 8  # what a chat template writes around each message, and before the answer
BYTES_PER_TOKEN = 4.0  # English text; other languages and code have fewer
_FILES = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"  # as tiktoken has it


@dataclass(frozen=True)
class TokenCount:
    """count: text -> tokens, likely. most: text -> at most so many. note: what is approximate."""

    count: Callable[[str], int]
    most: Callable[[str], int]
    note: str | None = None


@cache
def token_count(model: str) -> TokenCount:
    """How to count for ``model``: by tiktoken where it can, otherwise by the length in bytes."""
    try:
        import tiktoken
    except ImportError:
        return _approximate("tiktoken is not installed: run pip install tiktoken")
    try:
        name = tiktoken.encoding_name_for_model(model)
    except KeyError:
        return _approximate(f"the tokenizer of {model} is not known")
    path = vocabulary_path(name)
    if path is None or not path.is_file():
        where = "the folder that TIKTOKEN_CACHE_DIR names" if path is None else str(path)
        return _approximate(
            f"tiktoken's vocabulary {name} is not on this machine: save {_FILES.format(name)} as "
            f"{where}"
        )
    try:
        encoding: Any = tiktoken.get_encoding(name)
    except Exception as error:  # a damaged file makes it try a download, which fails in many ways
        return _approximate(f"tiktoken's vocabulary {path} cannot be used ({type(error).__name__})")

    def count(text: str) -> int:
        return len(encoding.encode_ordinary(text))

    return TokenCount(count, count)


def vocabulary_path(name: str) -> Path | None:
    """Where tiktoken keeps the vocabulary; None where its cache is turned off."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder == "":
        return None
    root = Path(folder) if folder is not None else Path(tempfile.gettempdir()) / "data-gym-cache"
    return root / hashlib.sha1(_FILES.format(name).encode()).hexdigest()


def _approximate(why: str) -> TokenCount:
    return TokenCount(
        lambda text: math.ceil(_bytes(text) / BYTES_PER_TOKEN),
        _bytes,  # no tokenizer in use has tokens of less than a byte
        f"tokens are approximate, one for {BYTES_PER_TOKEN:g} bytes of text ({why})",
    )


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
