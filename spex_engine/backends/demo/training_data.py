"""What the embedded model is trained on: its tokenizer, and batches of notes as token ids.

Knows the notes' language (notes.py) and turns it into ids, labels and places to look; it must not
know the network or how it is trained.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from spex_engine.backends.demo import notes

END = "<|end|>"
QUESTIONS = 6  # asked of one note, each blind to the others
SEPARATORS = ("\n", "\n", "\n", "", "\n\n", "\n- ")
HEADINGS = ("", "", "", "# Notes\n", "Notes:")


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE in which every word of the notes is one token; it can encode any text.

    A line break is followed by a space, so that a word is the same token at a line's start.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(Regex(r"\n(?=\S)"), "\n ")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    templates = [*notes.LIVES, *notes.FILLERS, *notes.ORDERS, *notes.ASK_ONE_HOP]
    templates += [t for many in notes.LINKS.values() for t in many]
    templates += [t.replace("{1}", r) for t in notes.ASK_TWO_HOPS for r in notes.LINKS]
    texts = [t.replace("{0}", "Anna").replace("{1}", "Bob") for t in templates]
    texts += [f" {word}" for word in (*notes.NAMES, *notes.CITIES)]
    texts += ["Question: Answer: # Notes - Notes:"]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Writer:
    """Turns sentences into token ids, and labels what each position should say."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.encode = lru_cache(maxsize=None)(self._encode)
        self.names = {name: self._word(name) for name in notes.NAMES}
        self.cities = {city: self._word(city) for city in notes.CITIES}
        self.end: int = tokenizer.get_vocab()[END]

    def _encode(self, text: str) -> tuple[int, ...]:
        if text.startswith("\n"):  # as it is inside a text: no space before the line break
            return tuple(self.tokenizer.encode(f"a{text}").ids[1:])
        return tuple(self.tokenizer.encode(text).ids)

    def _word(self, word: str) -> int:
        (token,) = self._encode(word)
        return token

    def token(self, word: str) -> int:
        return self.names[word] if word in self.names else self.cities[word]


def make_batch(rng: Random, writer: Writer, size: int, max_people: int) -> dict[str, torch.Tensor]:
    """``size`` notes, some sentences dropped, each with QUESTIONS questions.

    ids, position, block: int (size, L); block 0 is the note, k the k-th question, -1 padding.
    answer_at, answer: int (size, QUESTIONS); answer -1: spread over all cities.
    look: bool (3, size, L, L), where head 0 of the first layers should look; rows of no mark are
    free.
    """
    cities = tuple(writer.cities)
    rows = []
    looks: list[tuple[int, int, int, int]] = []
    for row in range(size):
        everything = notes.random_note(rng, rng.randint(2, max_people))
        keep = rng.choice((1.0, 1.0, 0.85, 0.7, 0.5))
        kept = [s for s in everything if rng.random() < keep]
        separator = writer.encode(rng.choice(SEPARATORS))
        ids = list(writer.encode(rng.choice(HEADINGS)))
        objects: dict[tuple[str, ...], list[int]] = {}
        headless = rng.random() < 0.2  # the first sentence dropped, the next one's separator not
        for sentence in kept:
            ids += separator if ids or headless else ()
            tokens = writer.encode(sentence.text)
            if len(sentence.says) == 3:
                subject, thing = (tokens.index(writer.token(w)) for w in sentence.says[1:])
                looks.append((0, row, len(ids) + thing, len(ids) + subject))
                objects.setdefault(sentence.says[:2], []).append(len(ids) + thing)
            ids += tokens
        n_note = len(ids)
        block, position = [0] * n_note, list(range(n_note))
        answer_at, answer = [], []
        line = rng.choice(("\n", "\n", "\n\n"))
        for k in range(1, QUESTIONS + 1):
            question = notes.random_question(rng, everything)
            said = notes.answer(kept, question)
            text = writer.encode(f"{line}Question: {question.text}\nAnswer:")
            at = len(ids) + len(text) - 1
            if rng.random() < 0.03:  # the question itself dropped: only an order can answer
                said = next((s.says[1] for s in kept if s.says[0] == "order"), None)
                text = writer.encode(f"{line}Answer:")
                at = len(ids) + len(text) - 1
            else:
                person = len(ids) + text.index(writer.names[question.person])
                looks.append((0, row, at, person))
                link = (str(question.relation), question.person)
                home = ("lives", str(notes.bridge(kept, question)))
                looks += [(1, row, at, to) for to in objects.get(link, [at])]
                looks += [(2, row, at, to) for to in objects.get(home, [at])]
            ids += (*text, writer.cities[said or rng.choice(cities)])
            answer_at.append(at)
            answer.append(writer.cities[said] if said else -1)
            block += [k] * (len(ids) - len(block))
            position += range(n_note, n_note + len(ids) - len(position))
        rows.append((ids, position, block, answer_at, answer))
    length = max(len(row[0]) for row in rows)

    def padded(column: int, fill: int) -> torch.Tensor:
        return torch.tensor([row[column] + [fill] * (length - len(row[column])) for row in rows])

    look = torch.zeros(3, size, length, length, dtype=torch.bool)
    look[tuple(torch.tensor(looks).T)] = True
    return {
        "ids": padded(0, writer.end),
        "position": padded(1, 0),
        "block": padded(2, -1),
        "answer_at": torch.tensor([row[3] for row in rows]),
        "answer": torch.tensor([row[4] for row in rows]),
        "look": look,
    }


def make_runs(rng: Random, writer: Writer, size: int, length: int) -> torch.Tensor:
    """Random names and cities, the run said twice: what teaches a model to copy what it looks at.

    int (size, 2 * length)."""
    words = [*writer.names.values(), *writer.cities.values()]
    run = torch.tensor([[rng.choice(words) for _ in range(length)] for _ in range(size)])
    return torch.cat([run, run], 1)
