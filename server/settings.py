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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.prompts import MAX_BUDGET, PromptSettings, segment_kind
from spex_engine.wire import Access, InputError, Question

logger = logging.getLogger(__name__)

METHODS = ("auto", "exact", "linear", "gp", "spex", "proxyspex")
INDICES = (
    *("Moebius", "CoMoebius", "SV", "BV", "SII", "k-SII"),
    *("BII", "STII", "FSII", "FBII", "Fourier"),
)
VALUES = ("auto", "mean", "sum", "logit", "probability", "margin", "similarity")
NUMBERS = {  # from, to
    "budget": (2, MAX_BUDGET),
    "order": (1, 1000),
    "seed": (0, 2**32 - 1),
    "concurrency": (1, 1024),
    "maxCalls": (1, 10**9),
    "maxTokens": (1, 10**12),
    "repeats": (1, 100),
}
AMOUNTS = ("maxCost", "inputPrice", "outputPrice")
LISTS = ("contrast", "choices", "baseUrls")
FLAGS = ("store", "keepAnswers")
# settings that say how a model may be asked, and their names in the engine
ACCESS = {
    "baseUrls": "base_urls",
    "apiVersion": "api_version",
    "concurrency": "concurrency",
    "maxCalls": "max_calls",
    "maxTokens": "max_tokens",
    "maxCost": "max_cost",
    "inputPrice": "input_price",
    "outputPrice": "output_price",
    "repeats": "repeats",
    "store": "store",
    "keepAnswers": "keep_answers",
}
_HUB_NAME = re.compile(r"hf:[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Settings:
    """The section ``spex`` of the client's settings; the fields are its keys, but for ``access``,
    whose fields are (``ACCESS``)."""

    model: str = "demo"
    target: str | None = None  # None: the model's own answer
    contrast: tuple[str, ...] | None = None  # two answers: the first against the second
    choices: tuple[str, ...] = ()  # all answers there are
    span: str | None = None  # the part of the answer that counts
    value: str = "auto"
    segments: str = "auto"
    budget: int = 1024  # model calls
    method: str = "auto"
    index: str = "FBII"
    order: int = 3
    seed: int = 0
    interpreter: str = sys.executable  # of the worker
    access: Access = field(default_factory=Access)

    @property
    def question(self) -> Question:
        """InputError where target and contrast say different things."""
        if self.contrast is None:
            return Question(self.target, None, self.choices, self.span, self.value)
        if self.target not in (None, self.contrast[0]) or self.choices:
            raise InputError(
                "contrast: names both answers itself; leave out target and choices beside it."
            )
        target, other = self.contrast
        return Question(target, other, (), self.span, self.value)


DEFAULTS = Settings()
_OWN = tuple(f.name for f in dataclasses.fields(Settings) if f.name != "access")
KEYS = (*_OWN, *ACCESS)
REQUEST_KEYS = tuple(key for key in _OWN if key != "interpreter")  # what one run may say


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
    return replaced(over, good), tuple(problems)


def replaced(settings: Settings, said: Mapping[str, Any]) -> Settings:
    """``settings`` with the checked values of ``said`` by their keys.

    Who says a target says it against a contrast that lies below, and the other way round.
    """
    own = {key: value for key, value in said.items() if key not in ACCESS}
    if own.get("target") is not None:
        own = {"contrast": None, **own}
    elif own.get("contrast") is not None:
        own = {"target": None, "choices": (), **own}
    access = {ACCESS[key]: value for key, value in said.items() if key in ACCESS}
    return dataclasses.replace(
        settings, **own, access=dataclasses.replace(settings.access, **access)
    )


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
        return getattr(DEFAULTS.access, ACCESS[key]) if key in ACCESS else getattr(DEFAULTS, key)
    if key in FLAGS:
        if not isinstance(value, bool):
            raise InputError(f"{key}: expected true or false, got {value!r}")
        return value
    if key in AMOUNTS:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e12:
            raise InputError(f"{key}: expected a number from 0, got {value!r}")
        return float(value)
    if key in LISTS:
        return _texts(key, value)
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
    for name, choices in (("method", METHODS), ("index", INDICES), ("value", VALUES)):
        if key == name and value not in choices:
            raise InputError(f"{key}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def _texts(key: str, value: Any) -> tuple[str, ...]:
    """A list of texts; a single text is a list of one."""
    texts = [value] if isinstance(value, str) else value
    fits = isinstance(texts, list | tuple) and all(isinstance(t, str) and t.strip() for t in texts)
    if not fits or (key == "contrast" and len(texts) != 2):
        wanted = "two answers" if key == "contrast" else "a list of texts"
        raise InputError(f"{key}: expected {wanted}, got {value!r}")
    return tuple(texts)


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
    return replaced(settings, wishes)
