"""Where tokens stand in a text, given only their own texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spex_engine.backends.openai.alignment import trailing_spans

PIECES = st.lists(st.text("ab .\né", min_size=1, max_size=4), min_size=1, max_size=12)


@given(PIECES)
def test_tokens_that_spell_the_text_stand_where_they_do(pieces: list[str]) -> None:
    text = "".join(pieces)
    spans = trailing_spans(pieces, text)
    assert spans is not None
    assert [text[start:end] for start, end in spans] == pieces


@given(PIECES, st.integers(0, 11))
def test_only_the_end_need_be_known(pieces: list[str], cut: int) -> None:
    cut = min(cut, len(pieces) - 1)
    text = "".join(pieces[cut:])
    spans = trailing_spans(pieces, text)
    assert spans is not None
    assert [text[start:end] for start, end in spans] == pieces[cut:]


@pytest.mark.parametrize(
    ("tokens", "text", "spans"),
    [
        # SentencePiece, each token decoded alone
        (["<s>", "It", "is", "Paris"], "It is Paris", [(0, 2), (2, 5), (5, 11)]),
        ([" It", " is"], "It is", [(0, 2), (2, 5)]),
        (["a", "\n", " ", "b"], "a\nb", [(0, 1), (1, 2), (2, 3), (2, 3)]),
        # an emoji of four bytes between known tokens, and at either end
        (["a", "\ufffd", "\ufffd", " b"], "a😀 b", [(0, 1), (1, 2), (1, 2), (2, 4)]),
        (["\ufffd", "\ufffd", "b"], "😀b", [(0, 1), (0, 1), (1, 2)]),
        (["a", "\ufffd", "", ""], "a😀", [(0, 1), (1, 2), (1, 2), (1, 2)]),
        (["Hello", "!"], "Bye!", None),
        (["only", "the", "end"], "this is not only the end", None),
        ([], "text", None),
    ],
)
def test_what_servers_make_of_tokens(tokens, text, spans) -> None:
    assert trailing_spans(tokens, text) == spans


def test_a_token_that_reaches_over_the_border_is_one_of_the_answers() -> None:
    assert trailing_spans(["It is", ": Par", "is"], "It is: Paris", 7) == [(5, 10), (10, 12)]
