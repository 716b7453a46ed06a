"""Where in a text its tokens stand, from the tokens' texts as servers tell them.

Servers decode each token alone, so that its text may lack a blank before it or have one too many
(SentencePiece), or be a replacement character (a token of a few bytes of one). Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int]
_BROKEN = "\ufffd"


def trailing_spans(tokens: Sequence[str], text: str, reach: int = 0) -> list[Span] | None:
    """[start, end) in ``text`` of the last tokens, as many as it takes to get from its end to
    character ``reach``; None where the tokens do not spell the text.

    Tokens that share one character have the same span. A token has the blank before it that no
    other token spells.
    """
    spans: list[Span] = []
    end = len(text)  # what is not explained yet is text[:end]
    at = len(tokens)
    while end > reach and at > 0:
        at -= 1
        token = tokens[at]
        bare = len(text[:end].rstrip()) if spans else end
        if _is_broken(token):
            count = 1
            while at > 0 and _is_broken(tokens[at - 1]):
                at -= 1
                count += 1
            start = _end_of(tokens[at - 1] if at else None, text, end)
            if start is None:
                return None
            spans += [(start, end)] * count
            end = start
        elif text.endswith(token, 0, end):
            spans.append((end - len(token), end))
            end -= len(token)
        elif bare < end and text.endswith(token, 0, bare):
            spans[-1] = (bare, spans[-1][1])  # the blank is of the token after it
            spans.append((bare - len(token), bare))
            end = bare - len(token)
        elif (own := token.lstrip()) and text.endswith(own, 0, end):
            spans.append((end - len(own), end))
            end -= len(own)
        elif spans and not own:
            spans.append((end, end + 1))  # a blank that only the tokenizer sees
        else:
            return None
    if spans and end > reach == 0 and not text[:end].strip():
        spans[-1] = (0, spans[-1][1])
        end = 0
    return spans[::-1] if end <= reach else None


def _is_broken(token: str) -> bool:
    return not token or _BROKEN in token


def _end_of(token: str | None, text: str, before: int) -> int | None:
    """Where ``token`` ends in ``text``, a character or more before ``before``; 0 for no token."""
    if token is None:
        return 0
    return next((at for at in range(before - 1, -1, -1) if text.endswith(token, 0, at)), None)
