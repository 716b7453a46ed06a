"""From a prompt and a mask to what is sent: chat messages, or one text where there are no roles.

Segments are dropped as text, since the tokens of most endpoints are not ours to see. What stands
on either side of a gap may then be tokenised otherwise than in the full prompt; only a server that
tells its tokens (`tokenising`) is free of that. It must not know endpoints, scores or files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spex_engine.wire import Message, Prompt

Messages = list[dict[str, str]]
# Many servers refuse a prompt of no text; a blank would be one token with the answer.
EMPTY = "\n"
BETWEEN = "\n\n"  # messages in one text
LEFT_EMPTY = (
    "a prompt of which nothing is left is sent as a line break: endpoints refuse an empty one"
)


@dataclass(frozen=True)
class Answer:
    """An answer to score. own: it is the model's own. written: as the model would write it, with
    the blank that it begins with."""

    text: str
    own: bool
    written: str


def masked_messages(prompt: Prompt, mask: NDArray[np.bool_]) -> Messages:
    """The messages with the dropped segments' text left out; mask bool (n,), True = kept.

    A message left empty is left out; where all are, a user message of a line break remains.
    """
    found = []
    for message in prompt.messages:
        text = _kept(message, mask)
        if text.strip():
            found.append({"role": message.role, "content": text})
    return found or [{"role": "user", "content": EMPTY}]


def masked_text(prompt: Prompt, mask: NDArray[np.bool_]) -> str:
    """The same as one text, an empty line between messages; a line break where nothing is left."""
    return as_text(masked_messages(prompt, mask))


def as_text(messages: Messages) -> str:
    """The messages' texts, an empty line apart: for completions, which know no roles."""
    return BETWEEN.join(message["content"] for message in messages)


def is_plain(prompt: Prompt) -> bool:
    """Whether the prompt is one user message, which says the same without roles."""
    return len(prompt.messages) == 1 and prompt.messages[0].role == "user"


def can_be_empty(prompt: Prompt) -> bool:
    """Whether a mask can leave nothing of the prompt."""
    nothing = np.zeros(prompt.n_segments, dtype=np.bool_)
    return not any(_kept(message, nothing).strip() for message in prompt.messages)


def canonical(messages: Messages) -> bytes:
    """The messages as bytes, equal for equal messages: for addresses."""
    return json.dumps(messages, ensure_ascii=True, sort_keys=True).encode()


def _kept(message: Message, mask: NDArray[np.bool_]) -> str:
    return "".join(p.text for p in message.pieces if p.segment is None or mask[p.segment])
