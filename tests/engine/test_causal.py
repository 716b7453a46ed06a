"""A causal model's scorer: which answers are scored, where their tokens lie, what masks come to."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from spex_engine.backends.base import MeasuresNoise
from spex_engine.backends.causal import (
    FIXED,
    CausalScorer,
    TokenisedPrompt,
    open_causal,
    token_spans,
)
from spex_engine.backends.tokens import continuation, tokenise_pieces
from spex_engine.wire import InputError, Message, ModelError, Piece, Prompt, Question

PROMPT = Prompt((Message("user", (Piece("ab ", 0), Piece("cd ", 1), Piece("?"))),), 2)


def byte_level(vocabulary: int = 300) -> Tokenizer:
    """As GPT-2's: a character outside ASCII is several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the colleague of the colleague lives in Paris é é 中文"], trainer
    )
    return tokenizer


BYTES = byte_level()


@dataclass
class Toy:
    """Characters as tokens; scores are sums of what was read, plus noise where it is told to."""

    answer: str = " yes "
    uri: str = "toy"
    context_length: int | None = None
    fingerprint: bytes = b"toy"
    noise: float = 0.0
    asked: list[int] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def tokenise(self, prompt: Prompt) -> TokenisedPrompt:
        return tokenise_pieces(prompt.messages[0].pieces, self._encode, prompt.n_segments)

    def tokenise_target(self, prompt: TokenisedPrompt, text: str) -> np.ndarray:
        return continuation(prompt, text, self._encode)

    def greedy(self, prompt: TokenisedPrompt, max_tokens: int = 32) -> np.ndarray:
        return np.array(self._encode(self.answer)[0], dtype=np.int64)

    def decode(self, ids: np.ndarray) -> str:
        return "".join(map(chr, ids))

    def logprobs(self, rows, targets, should_stop=None):
        self.asked.append(len(rows))
        for i, row in enumerate(rows):
            scores = [-float(row.sum()) - token for target in targets for token in target]
            yield np.array([i]), np.array([scores]) + self.noise * self.random.normal()

    def _encode(self, text: str):
        return [ord(char) for char in text], [(i, i + 1) for i in range(len(text))]


def opened(model: Toy, **question) -> CausalScorer:
    return open_causal(model, PROMPT, Question(**question), lambda: False)


def masks(*rows: tuple[int, ...]) -> np.ndarray:
    return np.array(rows, dtype=bool)


# ---- which answers ---------------------------------------------------------------------------


def test_the_models_own_answer():
    scorer = opened(Toy())
    (target,) = scorer.targets
    assert (target.text, target.first, target.own) == ("yes", 0, True)
    assert target.spans == ((0, 0), (0, 1), (1, 2), (2, 3), (2, 3))  # its blanks are scored too
    assert scorer.notes == ()


def test_a_given_answer():
    (target,) = opened(Toy(), target="no").targets
    assert (target.text, target.own) == ("no", False)
    assert target.spans == ((0, 0), (0, 1), (1, 2))  # the blank after the question mark


def test_the_same_answer_as_before_is_its_own_still():
    scorer = opened(Toy(), pinned="yes")
    assert scorer.targets == opened(Toy()).targets
    assert scorer.notes == ()


@pytest.mark.parametrize("answer", [" no", ""])
def test_an_answer_that_has_changed_stays_pinned_and_that_is_said(answer):
    scorer = opened(Toy(answer), pinned="yes")
    (target,) = scorer.targets
    assert (target.text, target.own) == ("yes", True)
    (note,) = scorer.notes
    assert f"is now {answer.strip()!r}; explained is its earlier one, 'yes'" in note


def test_a_given_answer_is_not_pinned():
    scorer = opened(Toy(), target="no", pinned="yes")
    assert [target.text for target in scorer.targets] == ["no"]
    assert scorer.notes == ()


def test_no_answer_at_all():
    with pytest.raises(ModelError, match=r"answers this prompt with nothing.*as the target"):
        opened(Toy(""))


def test_a_contrast_is_scored_beside_the_target():
    scorer = opened(Toy(), target="no", contrast="maybe")
    assert [(t.text, t.first, len(t.spans)) for t in scorer.targets] == [
        ("no", 0, 3),
        ("maybe", 3, 6),
    ]
    assert not any(target.own for target in scorer.targets)
    with pytest.raises(InputError, match="contrasted with itself"):
        opened(Toy(), target="no", contrast=" no")


def test_choices_are_scored_beside_the_target():
    scorer = opened(Toy(), target="no", choices=("no", "yes", "yes ", "maybe"))
    assert [target.text for target in scorer.targets] == ["no", "yes", "maybe"]
    assert not any(target.own for target in scorer.targets)
    with pytest.raises(InputError, match=r"'yes' is not among the choices \('no', 'maybe'\)"):
        opened(Toy(), target="yes", choices=("no", "maybe"))


def test_without_a_target_the_likeliest_choice_is_explained():
    toy = Toy()
    prompt, choices = toy.tokenise(PROMPT), ("no", "yes", "maybe")
    sums = {
        choice: float(scores.sum())
        for choice in choices
        for _, scores in toy.logprobs([prompt.ids], [toy.tokenise_target(prompt, choice)])
    }
    likeliest = max(choices, key=lambda choice: sums[choice])
    scorer = opened(toy, choices=choices)
    assert scorer.targets[0].text == likeliest
    assert [target.own for target in scorer.targets] == [True, False, False]
    assert {target.text for target in scorer.targets} == set(choices)
    other = next(choice for choice in choices if choice != likeliest)
    pinned = opened(toy, choices=choices, pinned=other)
    assert (pinned.targets[0].text, len(pinned.notes)) == (other, 1)
    gone = opened(toy, choices=choices, pinned="never")  # no choice any more
    assert (gone.targets[0].text, gone.notes) == (likeliest, ())


# ---- where its tokens lie --------------------------------------------------------------------


def spans_of(tokenizer: Tokenizer, written: str, text: str) -> tuple[tuple[int, int], ...]:
    ids = np.array(tokenizer.encode(written).ids)
    return token_spans(lambda part: tokenizer.decode(part.tolist()), ids, text)


def assert_covering(spans: tuple[tuple[int, int], ...], text: str) -> None:
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    for (start, end), (next_start, next_end) in pairwise(spans):
        assert start <= next_start <= end <= next_end  # ascending, nothing left out between


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80))
@example("the colleague of the colleague lives in Paris 👩‍👩‍👧 and likes 東京 \ufffd\ufffd é" * 3)
@example("the colleague of the colleague lives in Paris 👩‍👩‍👧 and likes 東京 é" * 3)
@example("\ufffd")
def test_spans_are_those_of_the_tokenizer(written):
    text = written.strip() or written
    spans = spans_of(BYTES, written, text)
    assert_covering(spans, text)
    shift = written.find(text)
    for (start, end), (true_start, true_end) in zip(
        spans, BYTES.encode(written).offsets, strict=True
    ):
        if "\ufffd" in written:  # nobody can tell it from a part of a character
            continue
        # The tokenizer's own: a character's bytes all have that character.
        inside = [i - shift for i in range(true_start, true_end) if 0 <= i - shift < len(text)]
        assert inside == list(range(start, end)) or not inside


def test_a_long_target_takes_no_longer_a_token():
    longest = 0

    def decode(ids: np.ndarray) -> str:
        nonlocal longest
        if len(ids) < len(whole):
            longest = max(longest, len(ids))
        text: str = BYTES.decode(ids.tolist())
        return text

    text = "Paris é " * 300
    whole = np.array(BYTES.encode(text).ids)
    assert_covering(token_spans(decode, whole, text), text)
    assert longest < 40


@given(st.lists(st.sampled_from(["the", "Paris", "lives"]), min_size=1, max_size=60))
def test_spans_where_decoding_drops_the_first_blank(words):
    """As with SentencePiece's tokenizers, whose words begin with a blank."""
    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "▁Paris": 1, "▁lives": 2}, unk_token="▁the"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    text = " ".join(words)
    spans = spans_of(tokenizer, text, text)
    assert [text[start:end].strip() for start, end in spans] == words


@given(st.lists(st.sampled_from(["the", "Paris", ".", "?"]), min_size=1, max_size=60))
def test_spans_where_decoding_puts_blanks_that_were_not_there(words):
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "Paris": 1, ".": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = "".join(words)
    ids = np.array([tokenizer.token_to_id(word) for word in words])
    spans = token_spans(lambda part: tokenizer.decode(part.tolist()), ids, text)
    assert [text[start:end] for start, end in spans] == words


# ---- masks -----------------------------------------------------------------------------------


def test_rows_scores_and_tokens_read():
    model = Toy()
    scorer = opened(model, target="no", contrast="x")
    found = dict(
        (int(rows[0]), scores)
        for rows, scores in scorer.score(masks((1, 1), (0, 1)), lambda: False)
    )
    assert found[0].values.shape == (1, 5)
    assert found[0].input_tokens.tolist() == [7 + 3 + 7 + 2]
    assert found[1].input_tokens.tolist() == [4 + 3 + 4 + 2]
    assert found[1].values[0, 0] == -sum(map(ord, "cd ?")) - ord(" ")


def test_addresses_are_of_what_is_read_and_asked():
    scorer = opened(Toy(), target="no")
    first = scorer.addresses(masks((1, 1), (0, 1), (1, 1)))
    assert all(len(address) == 32 for address in first)
    assert first[0] == first[2] != first[1]
    assert opened(Toy(), target="no").addresses(masks((1, 1)))[0] == first[0]
    for other in (
        opened(Toy(), target="yes"),
        opened(Toy(), target="no", contrast="x"),
        opened(Toy(fingerprint=b"other"), target="no"),
    ):
        assert other.addresses(masks((1, 1)))[0] != first[0]


def test_masks_that_leave_the_same_text_share_an_address():
    """Neither how a prompt is cut into segments nor their number is part of it."""
    other = Prompt((Message("user", (Piece("ab c", 0), Piece("d ?"))),), 1)
    whole = open_causal(Toy(), other, Question(target="no"), lambda: False)
    assert whole.addresses(masks((1,))) == opened(Toy(), target="no").addresses(masks((1, 1)))


def test_addresses_tell_targets_apart_by_where_they_end():
    prompt = Toy().tokenise(PROMPT)
    ids = [np.array([1, 2]), np.array([3])], [np.array([1]), np.array([2, 3])]
    first, second = (CausalScorer(Toy(), prompt, targets, ()) for targets in ids)
    assert first.addresses(masks((1, 1))) != second.addresses(masks((1, 1)))


def test_masked_keeps_what_is_fixed():
    prompt = TokenisedPrompt(np.arange(5), np.array([FIXED, 0, 0, 1, FIXED]), 2)
    assert prompt.masked(np.array([False, True])).tolist() == [0, 3, 4]
    assert prompt.masked(np.array([False, False])).tolist() == [0, 4]


# ---- noise -----------------------------------------------------------------------------------


def test_the_noise_floor_is_the_deviation_of_values_scored_anew():
    model = Toy(noise=0.5)
    scorer = opened(model, target="no")
    assert isinstance(scorer, MeasuresNoise)
    many = np.random.default_rng(0).random((100, 2)) < 0.5
    found = [scorer.noise_floor(many, lambda s: s.values.mean(axis=1)) for _ in range(400)]
    # The noise of one evaluation is the same for each of its tokens.
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(0.5, rel=0.1)
    assert sum(model.asked) <= 400 * 12  # cheap
    assert {1, 2, 4} == set(model.asked)  # alone, and in two other companies


def test_no_noise_and_nothing_to_tell_it_from():
    scorer = opened(Toy(), target="no")
    assert scorer.noise_floor(masks((1, 1), (1, 0)), lambda s: s.values.mean(axis=1)) == 0.0
    assert scorer.noise_floor(masks((1, 1)), lambda s: s.values.mean(axis=1)) == 0.0
    assert scorer.noise_floor(np.ones((0, 2), bool), lambda s: s.values.mean(axis=1)) is None
    nothing = scorer.noise_floor(masks((1, 1)), lambda s: np.full(len(s.values), np.nan))
    assert nothing is None
