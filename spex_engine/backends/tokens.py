"""From prompt pieces to token ids that know their segment: what every local backend shares.

Knows characters, offsets and ids; it must not know which model or tokenizer library made them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np

from spex_engine.backends.causal import FIXED, Ids, TokenisedPrompt
from spex_engine.wire import InputError, Piece

# text -> (ids, [start, end) character offsets of each), no special tokens added
Encode = Callable[[str], tuple[Sequence[int], Sequence[tuple[int, int]]]]


def token_segments(
    text: str, offsets: Sequence[tuple[int, int]], starts: Sequence[int], owners: Sequence[int]
) -> Ids:
    """The segment of each token, int (L,).

    The stretch of ``text`` from ``starts[i]`` (ascending, starts[0] == 0) belongs to
    ``owners[i]``. A token that lies across a border belongs to its first non-space character;
    tokens that share one character (bytes of an emoji) so share its segment. A token without
    characters (``start == end``, a special token) is FIXED.
    """
    segments = np.full(len(offsets), FIXED, dtype=np.int64)
    for i, (start, end) in enumerate(offsets):
        if start == end:
            continue
        blank = len(text[start:end]) - len(text[start:end].lstrip())
        first = start + blank if start + blank < end else start
        segments[i] = owners[bisect_right(starts, first) - 1]
    return segments


def tokenise_pieces(pieces: Sequence[Piece], encode: Encode, n_segments: int) -> TokenisedPrompt:
    """The pieces' joined text, encoded once."""
    text = "".join(piece.text for piece in pieces)
    starts, owners, at = [0], [FIXED], 0
    for piece in pieces:
        starts.append(at)
        owners.append(FIXED if piece.segment is None else piece.segment)
        at += len(piece.text)
    ids, offsets = encode(text)
    return TokenisedPrompt(
        ids=np.array(ids, dtype=np.int64),
        segments=token_segments(text, offsets, starts, owners),
        n_segments=n_segments,
        text=text,
    )


def continuation(
    prompt: TokenisedPrompt,
    text: str,
    encode: Encode,
    begin: Sequence[int] = (),
    space: bool = True,
) -> Ids:
    """The ids of ``text`` as it would follow ``prompt``, int (T,), T >= 1.

    Both are encoded together, so that the target gets the tokens that the model itself would
    write; where one of them reaches across the border, the target is encoded alone, since the
    prompt's own tokens must stay. begin: ids that stand before the prompt's text. space: whether
    one goes between prompt and target where neither has any. InputError for an empty target.
    """
    if not text.strip():
        raise InputError("The target is empty; give the answer whose probability to explain.")
    if space and not (prompt.text[-1:].isspace() or text[0].isspace()):
        text = f" {text}"
    n = len(prompt.ids)
    joined = [*begin, *encode(prompt.text + text)[0]]
    if joined[:n] != prompt.ids.tolist() or len(joined) == n:
        joined, n = list(encode(text)[0]), 0
    return np.array(joined[n:], dtype=np.int64)


def check_context(n_tokens: int, limit: int | None, uri: str) -> None:
    """InputError where prompt and target need more tokens than the model has room for."""
    if limit is not None and n_tokens > limit:
        raise InputError(
            f"The prompt with its target is {n_tokens:,} tokens long, but {uri} has room for "
            f"{limit:,}: shorten the prompt or choose a model with a longer context."
        )
