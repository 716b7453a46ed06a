"""From messages to the pieces of the one string that the model reads, chat template included.

Pure functions on text: the template comes in as a function, and which model or tokenizer it
belongs to is not known here. The string is rendered once and never marked inside; what the
template wrote around the messages becomes fixed pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spex_engine.wire import InputError, Message, ModelError, Piece

ChatTemplate = Callable[[Sequence[Mapping[str, str]]], str]
SYSTEM_MERGED = (
    "This model's chat template takes no system message: its text was put at the start of the "
    "user message that follows it."
)


@dataclass(frozen=True)
class Rendered:
    """The pieces whose joined text the model reads, and what the user should know about it."""

    pieces: tuple[Piece, ...]
    notes: tuple[str, ...] = ()


def render_plain(messages: Sequence[Message]) -> Rendered:
    """The messages' texts, an empty line apart, for models without a chat template."""
    pieces: list[Piece] = []
    for message in messages:
        pieces += [Piece("\n\n")] if pieces else []
        pieces += message.pieces
    return Rendered(tuple(pieces))


def render_chat(messages: Sequence[Message], template: ChatTemplate) -> Rendered:
    """The messages in the model's chat template; a system message it has no place for is merged.

    template turns ``[{"role", "content"}]`` into the string, and may raise anything at all: it is
    a program that came with the model. Raises InputError where it refuses the messages and
    ModelError where it rewrites them, so that their pieces cannot be found again.
    """
    try:
        return Rendered(_render(messages, template))
    except (InputError, ModelError):
        if all(message.role != "system" for message in messages):
            raise
    return Rendered(_render(_merge_system(messages), template), (SYSTEM_MERGED,))


def _render(messages: Sequence[Message], template: ChatTemplate) -> tuple[Piece, ...]:
    text = _apply(template, messages)
    found: list[tuple[int, tuple[Piece, ...]]] = []
    for i, message in enumerate(messages):
        content = message.text
        if not content.strip():
            continue
        # Searching for the content would find the message "user" in the template's own header.
        # Its place is where the string begins to differ once this content begins differently.
        other = next(c for c in "xyz" if c not in (content[0], content.lstrip()[0]))
        altered = Message(message.role, (Piece(other), *message.pieces))
        place = _common_prefix(text, _apply(template, [*messages[:i], altered, *messages[i + 1 :]]))
        for kept in (content, content.rstrip(), content.lstrip(), content.strip()):
            if text.startswith(kept, place):
                start = content.index(kept)
                found.append((place, _clip(message.pieces, start, start + len(kept))))
                break
        else:
            raise ModelError(
                f"The chat template rewrites the text of message {i + 1} ({message.role}), so its "
                "segments cannot be found again; use a model whose template leaves text as it is."
            )
    pieces: list[Piece] = []
    reached = 0
    for place, clipped in sorted(found, key=lambda located: located[0]):
        pieces += [Piece(text[reached:place]), *clipped]
        reached = place + sum(len(piece.text) for piece in clipped)
    return (*pieces, Piece(text[reached:]))


def _apply(template: ChatTemplate, messages: Sequence[Message]) -> str:
    try:
        return template([{"role": m.role, "content": m.text} for m in messages])
    except Exception as error:
        roles = ", ".join(message.role for message in messages)
        raise InputError(
            f"The model's chat template refuses these messages ({roles}): {error}; change their "
            "roles or order, or use another model."
        ) from error


def _merge_system(messages: Sequence[Message]) -> list[Message]:
    merged: list[Message] = []
    pending: list[Piece] = []
    for message in messages:
        if message.role == "system":
            pending += [*message.pieces, Piece("\n\n")]
        elif message.role == "user" and pending:
            merged.append(Message("user", (*pending, *message.pieces)))
            pending = []
        else:
            merged.append(message)
    if pending:
        merged.append(Message("user", tuple(pending[:-1])))
    return merged


def _clip(pieces: Sequence[Piece], start: int, end: int) -> tuple[Piece, ...]:
    """What of the pieces lies in [start, end) of their joined text."""
    clipped = []
    at = 0
    for piece in pieces:
        text = piece.text[max(start - at, 0) : max(end - at, 0)]
        clipped.append(Piece(text, piece.segment))
        at += len(piece.text)
    return tuple(clipped)


def _common_prefix(a: str, b: str) -> int:
    n = min(len(a), len(b))
    differs: NDArray[np.bool_] = _code_points(a[:n]) != _code_points(b[:n])
    return int(differs.argmax()) if differs.any() else n


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
