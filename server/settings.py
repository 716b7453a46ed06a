"""Typed settings: what the client or the command line may set, checked in one place.

Precedence, strongest first: what a command or a flag says, the file's front matter, these
settings, the defaults. A prompt file is untrusted: which of its wishes count is decided here.
It must not know LSP or the worker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.prompts import MAX_BUDGET, PromptSettings, segment_kind
from spex_engine.wire import InputError

logger = logging.getLogger(__name__)

METHODS = ("auto", "exact", "linear", "gp", "spex", "proxyspex")
INDICES = (
    *("Moebius", "CoMoebius", "SV", "BV", "SII", "k-SII"),
    *("BII", "STII", "FSII", "FBII", "Fourier"),
)
NUMBERS = {"budget": (2, MAX_BUDGET), "order": (1, 1000), "seed": (0, 2**32 - 1)}  # from, to
_HUB_NAME = re.compile(r"hf:[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Settings:
    """The section ``spex`` of the client's settings; the fields are its keys."""

    model: str = "demo"
    target: str | None = None  # None: the model's own answer
    segments: str = "auto"
    budget: int = 1024  # model calls
    method: str = "auto"
    index: str = "FBII"
    order: int = 3
    seed: int = 0
    interpreter: str = sys.executable  # of the worker


DEFAULTS = Settings()
KEYS = tuple(field.name for field in dataclasses.fields(Settings))
REQUEST_KEYS = tuple(key for key in KEYS if key != "interpreter")  # what one run may say


def read_settings(section: object, over: Settings = DEFAULTS) -> tuple[Settings, tuple[str, ...]]:
    """``section`` (parsed JSON) layered over ``over``, and what is wrong in it, key by key.

    Null and wrong values leave what lies below in place. None is an empty section. Unknown keys
    may be another version's, or the client's own: they go to the log alone.
    """
    if section is None:
        return over, ()
    if not isinstance(section, Mapping):
        return over, (f"spex: expected an object, got {type(section).__name__}",)
    good: dict[str, Any] = {}
    problems = []
    for key, value in section.items():
        if key not in KEYS:
            logger.warning("spex.%s: %s", key, _unknown(KEYS))
        elif value is not None:
            try:
                good[key] = check(key, value)
            except InputError as error:
                problems.append(f"spex.{error}")
    return dataclasses.replace(over, **good), tuple(problems)


def check_request(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a command says of its one run; InputError where it is unfit or not a run's to say."""
    for key in said:
        if key not in REQUEST_KEYS:
            raise InputError(f"{key}: {_unknown(REQUEST_KEYS)}")
    return {key: check(key, value) for key, value in said.items()}


def _unknown(keys: tuple[str, ...]) -> str:
    return f"unknown setting; known are {', '.join(sorted(keys))}"


def check(key: str, value: Any) -> Any:
    """``value`` if it fits the setting ``key``; InputError says what was expected."""
    if value is None:
        return getattr(DEFAULTS, key)
    if key in NUMBERS:
        least, most = NUMBERS[key]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InputError(
                f"{key}: expected a whole number from {least} to {most:,}, got {value!r}"
            )
        return value
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{key}: expected text, got {value!r}")
    if key == "segments":
        kind = segment_kind(value)
        if kind is None:
            raise InputError(f"segments: expected auto, sentence, line or word, got {value!r}")
        return kind
    for name, choices in (("method", METHODS), ("index", INDICES)):
        if key == name and value not in choices:
            raise InputError(f"{key}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def allowed_model(wish: str, folder: Path | None) -> str:
    """The model that a prompt file may have, of what its front matter wishes for.

    The embedded model, a model of the Hub by name, or a model folder beside the file (written
    ``hf:./NAME``; ``folder`` is the file's). InputError for anything else: an endpoint or a path
    elsewhere must come from the settings or the command line.
    """
    if wish == "demo" or _HUB_NAME.fullmatch(wish):
        return wish
    if wish.startswith("hf:./") and folder is not None:
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # no path, or links in a ring
            path = (folder / wish.removeprefix("hf:")).resolve()
            if path.is_relative_to(folder.resolve()):
                return f"hf:{path}"
    raise InputError(
        f"A prompt file may not choose the model {wish!r}, so it is not used: only demo, hf:NAME "
        "from the Hub or hf:./FOLDER below the file's own folder. Choose it in the settings or "
        "with --model."
    )


def workspace_model(model: str, root: Path | None) -> str:
    """``model`` of the settings or a command, where ``hf:./NAME`` is below the workspace's root.

    The worker runs in another folder, so that it could not find it. The client is trusted.
    """
    if not model.startswith(("hf:./", "hf:../")):
        return model
    name = model.removeprefix("hf:")
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        if root is not None and (root / name).is_dir():
            return f"hf:{(root / name).resolve()}"
    where = "and no folder is open" if root is None else f"and is not in {root}"
    raise InputError(
        f"model: {name} is a relative folder {where}: give an absolute path (hf:/...) or the name "
        "of a model on the Hub."
    )


def merge(settings: Settings, front_matter: PromptSettings, folder: Path | None) -> Settings:
    """The settings, as far as the file's own front matter does not say otherwise.

    A model that the file may not choose does not count (see planning.problems_of).
    """
    wishes = {name: getattr(front_matter, name) for name in ("target", "segments", "budget")}
    wishes = {name: value for name, value in wishes.items() if value is not None}
    if front_matter.model is not None:
        with contextlib.suppress(InputError):
            wishes["model"] = allowed_model(front_matter.model, folder)
    return dataclasses.replace(settings, **wishes)
