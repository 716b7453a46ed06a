"""What crosses a process border: plain frozen values, message names and error codes.

Imported by the server (which must not load numpy) and by the worker, so it uses the standard
library only and knows neither files, editors nor models.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

PROTOCOL_VERSION = 2

# ---- messages of the worker protocol (JSON-RPC 2.0, one object per line) ---------------------
HANDSHAKE = "handshake"  # request {"protocol"} -> Handshake
EXPLAIN = "explain"  # request ExplainRequest -> ExplainResult
RECALL = "recall"  # request ExplainRequest -> ExplainResult of an earlier run, or null
ESTIMATE = "estimate"  # request ExplainRequest -> Estimate; asks no model
EXAMINE = "examine"  # request ExplainRequest -> ModelReport: what its model can do
CACHE = "cache"  # request {"action": "stats" or "clear"} -> CacheStats
SECRET = "secret"  # request {"origin", "key"} -> null; kept in memory only
PROGRESS = "progress"  # notification Progress
CANCEL = "cancel"  # notification {"id"}: the request of that id ends with CANCELLED
SHUTDOWN = "shutdown"  # request -> null, then the worker ends

# ---- error codes ------------------------------------------------------------------------------
MALFORMED = -32700  # what was sent is no message; the id is null
INTERNAL = -32603  # a defect of ours: the message carries the exception
BAD_INPUT = 1  # the request cannot be carried out as asked; the message says what to change
MODEL_ERROR = 2  # the model is missing, unfit or failed; the message says what to do
CANCELLED = 3
WORKER_DIED = 4  # never sent: what the client reports when the process is gone


class InputError(ValueError):
    """What was asked for cannot be done as asked. The message says what to change."""


class ModelError(RuntimeError):
    """The model cannot be had or cannot do it. The message says what to do."""


class StoppedError(Exception):
    """The run was cancelled before it had a result."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of prompt text that is kept or dropped as a whole."""

    text: str
    segment: int | None = None  # the segment it belongs to; None: fixed, never dropped


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. A plain-text prompt is a single ``user`` message."""

    role: str
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt cut into pieces; segments are numbered 0..n_segments-1 in reading order."""

    messages: tuple[Message, ...]
    n_segments: int


@dataclass(frozen=True, slots=True)
class Handshake:
    protocol: int
    engine: str  # version of spex_engine
    python: str
    packages: dict[str, str | None]  # name -> version, None where it is not installed


@dataclass(frozen=True, slots=True)
class Question:
    """What is measured of the model's answer; `spex_engine.values` says what each value means."""

    target: str | None = None  # None: the model's own greedy answer to the full prompt
    contrast: str | None = None  # an answer that the target is compared with
    choices: tuple[str, ...] = ()  # all answers there are; the target is one of them
    span: str | None = None  # the part of the target that counts; None: all of it
    value: str = "auto"  # one of values.VALUES
    pinned: str | None = None  # the own answer of an earlier run, kept though it may have changed


@dataclass(frozen=True, slots=True)
class Access:
    """How a model may be asked, and what that may cost. From trusted settings only; no keys."""

    base_urls: tuple[str, ...] = ()  # of endpoints that serve the same model; (): the SDK's default
    api_version: str | None = None  # Azure endpoints need one
    concurrency: int = 32  # the most requests in flight
    max_calls: int | None = None  # beside the budget of masks: probes and repetitions count too
    max_tokens: int | None = 2_000_000  # input and output together
    max_cost: float | None = 5.0  # US dollars
    input_price: float | None = None  # per million tokens; None: what is known of the model
    output_price: float | None = None
    repeats: int = 3  # answers regenerated for each mask, where nothing better can be had (T3)
    store: bool = True  # whether evaluations are kept and reused
    keep_answers: bool = True  # whether regenerated answers may be kept with them


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    prompt: Prompt
    model: str = "demo"
    question: Question = Question()
    access: Access = Access()
    method: str = "auto"
    index: str = "FBII"
    order: int = 3
    budget: int = 1024
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    text: str
    value: float  # of the full prompt, in the value's own unit
    own: bool = False  # the model's own answer, not one that was given


@dataclass(frozen=True, slots=True)
class SegmentEffect:
    index: int
    effect: float  # Banzhaf value
    stderr: float | None
    removal: float | None  # f(all but this) - f(all), as measured; None: not measured


@dataclass(frozen=True, slots=True)
class SegmentInteraction:
    segments: tuple[int, ...]
    value: float
    stderr: float | None
    kind: str  # synergy | redundancy | conflict
    verified: bool | None = None


@dataclass(frozen=True, slots=True)
class Faithfulness:
    r2: float | None  # of predictions on masks the fit has not seen; None: none were left
    how: str
    n_test: int


@dataclass(frozen=True, slots=True)
class Evaluations:
    requested: int
    computed: int
    cached: int
    failed: int


@dataclass(frozen=True, slots=True)
class Progress:
    id: int  # of the explain request
    done: int  # evaluations so far
    total: int
    message: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run is expected to take at most, before anything is spent."""

    calls: int
    input_tokens: int
    output_tokens: int
    cost: float | None  # US dollars; None: the prices are not known
    seconds: float | None  # None: nobody knows
    asks: str | None  # whom the prompt is sent to, where it leaves this machine
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What a model or endpoint turned out to be able to do."""

    model: str
    tier: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CacheStats:
    path: str
    evaluations: int
    with_answers: int  # of the evaluations: they hold text that a model wrote
    explanations: int
    size: int  # bytes
    limit: int  # bytes
    oldest: float | None  # use of any entry, seconds since the epoch
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExplainResult:
    model: str
    target: Target
    unit: str
    tier: str
    method: str
    index: str
    order: int
    fitted_order: int  # the most segments that any fitted term joins
    seed: int
    budget: int
    segments: tuple[SegmentEffect, ...]
    interactions: tuple[SegmentInteraction, ...]
    faithfulness: Faithfulness
    evaluations: Evaluations
    input_tokens: int
    seconds: float
    notes: tuple[str, ...]
    noise: float | None = None  # standard deviation of a value that is measured again; None: no say


T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A wire value as plain JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(kind: type[T], value: Any) -> T:
    """Plain JSON types as the wire value ``kind``; InputError where they do not fit it."""
    return typing.cast(T, _read(kind, value, kind.__name__))


def _read(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        (kind,) = (option for option in options if option is not type(None))
        return _read(kind, value, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected an object, got {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        unknown = value.keys() - hints.keys()
        if unknown:
            raise InputError(f"{where}: unknown field {sorted(unknown)[0]!r}")
        fields = {name: _read(hints[name], value[name], f"{where}.{name}") for name in value}
        make: Any = kind
        try:
            return make(**fields)
        except TypeError as error:
            raise InputError(f"{where}: {error}") from None
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected an array, got {type(value).__name__}")
        (item_kind, _) = typing.get_args(kind)
        return tuple(_read(item_kind, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected an object, got {type(value).__name__}")
        item_kind = typing.get_args(kind)[1]
        return {key: _read(item_kind, item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where}: expected {kind.__name__}, got {type(value).__name__}")
    return value
