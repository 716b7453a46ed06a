"""What a loaded transformers model's scores depend on, as bytes that another process finds again.

Reads no weights: a model from the Hub is known by its commit, a folder by the headers of its files
of weights and by when these were written. It must not know prompts or scores.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from spex_engine.backends.hf_loading import LoadedModel

_SCORING = 1  # to be raised when the same ids come to other scores


def fingerprint(loaded: LoadedModel) -> bytes:
    """32 bytes: equal where scores are, up to rounding."""
    model, tokenizer = loaded.model, loaded.tokenizer
    versions = [metadata.version(name).split(".")[:2] for name in ("torch", "transformers")]
    ran = {
        "scoring": _SCORING,
        "versions": versions,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "attention": str(model.config._attn_implementation),
        "template": tokenizer.chat_template,
        "begins": [tokenizer.bos_token_id, tokenizer.eos_token_id],
    }
    found = hashlib.blake2b(digest_size=32)
    parts = (
        json.dumps(ran, sort_keys=True).encode(),
        tokenizer.backend_tokenizer.to_str().encode(),
        *_weights(loaded),
    )
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.digest()


def _weights(loaded: LoadedModel) -> list[bytes]:
    folder = Path(loaded.name).expanduser()
    if not folder.is_dir():
        return [loaded.name.encode(), _commit(loaded).encode()]
    found = [(folder / "config.json").read_bytes()]
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = file.read(8)
            header += file.read(min(int.from_bytes(header, "little"), 2**26))
            written = os.fstat(file.fileno())
        found.append(f"{path.name} {written.st_size} {written.st_mtime_ns}".encode() + header)
    return found


def _commit(loaded: LoadedModel) -> str:
    """Of the Hub's repository; where transformers does not say, by where the client keeps it."""
    import huggingface_hub

    commit: Any = getattr(loaded.model.config, "_commit_hash", None)
    if commit is None:
        kept = huggingface_hub.try_to_load_from_cache(loaded.name, "config.json")
        commit = Path(str(kept)).parent.name
    return str(commit)
