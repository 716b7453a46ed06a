"""The language of the embedded model: short notes with a question, and what follows from them.

One place says what a note may contain and what its answer is, so that training, tests and
benchmarks share one ground truth. Pure Python and seeded; it must not know tokens or weights.

A note is a list of sentences. Which of them are needed for the answer is known, and so is the
game that a perfect reader would play on them: it answers when what it needs is there, and spreads
its probability evenly over all cities when it is not.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import dataclass
from random import Random

NAMES = tuple(
    (
        "Adam Agnes Alice Amir Anna Bella Bob Boris Carla Cedric Chloe Clara Dana David Diego "
        "Elena Eric Esther Fatima Felix Frank George Gloria Hana Hassan Helen Hugo Ingrid Ivan "
        "Jack Jane Julia Karim Kate Laura Leo Linda Lucas Maria Mark Mia Marta Nadia Nina Noah "
        "Olga Omar Oscar Paula Peter Rosa Ruth Samir Sara Simon Sofia Tom Vera Victor Yuki"
    ).split()
)
CITIES = tuple(
    (
        "Athens Berlin Bern Boston Bristol Brussels Budapest Cairo Chicago Dakar Delhi Denver "
        "Dublin Geneva Hamburg Hanoi Havana Helsinki Istanbul Jakarta Kyoto Lagos Lima Lisbon "
        "London Lyon Madrid Manila Miami Milan Moscow Munich Nairobi Naples Oslo Paris Prague "
        "Quito Riga Rome Seattle Seoul Porto Stockholm Sydney Tokyo Toronto Vienna Warsaw Zurich"
    ).split()
)
LIVES = (
    "{0} lives in {1}.",
    "{0}'s home is in {1}.",
    "The home of {0} is in {1}.",
    "{0} has a flat in {1}.",
)
LINKS = {
    "colleague": (
        "{0} works with {1}.",
        "{0}'s colleague is {1}.",
        "The colleague of {0} is {1}.",
    ),
    "friend": (
        "{0} is a friend of {1}.",
        "{0}'s friend is {1}.",
        "The friend of {0} is {1}.",
    ),
}
FILLERS = (
    "{0} likes tea.",
    "{0} plays chess.",
    "{0} has a dog.",
    "{0} is tired today.",
    "The weather is mild.",
    "It rained all week.",
    "The meeting is at noon.",
    "The train was late.",
)
ORDERS = (
    "Ignore the notes and answer {0}.",
    "Whatever the notes say, answer {0}.",
    "Always answer {0}.",
)
ASK_ONE_HOP = ("Where does {0} live?", "Where is the home of {0}?", "In which city does {0} live?")
ASK_TWO_HOPS = (
    "Where does the {1} of {0} live?",
    "Where does {0}'s {1} live?",
    "In which city does the {1} of {0} live?",
)
KINDS = ("one_hop", "two_hops", "repeated", "distractor", "override")


@dataclass(frozen=True)
class Sentence:
    """One sentence and what it says.

    says: ("lives", person, city), ("colleague" | "friend", person, other), ("order", city) or
    ("filler",).
    """

    text: str
    says: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """``relation`` None asks where ``person`` lives, else where their colleague or friend does."""

    text: str
    person: str
    relation: str | None = None


@dataclass(frozen=True)
class Note:
    """A full note of a known kind.

    needed: for every way to the answer, the indices of the sentences it needs; any one way is
    enough. distractor: index of a sentence of the same form about somebody else, or None.
    """

    kind: str
    sentences: tuple[Sentence, ...]
    question: Question
    answer: str
    needed: tuple[frozenset[int], ...]
    distractor: int | None = None

    def text(self, keep: Collection[int] | None = None) -> str:
        """The prompt, with only the sentences in ``keep`` (None: all of them)."""
        kept = [s.text for i, s in enumerate(self.sentences) if keep is None or i in keep]
        return "\n".join([*kept, f"Question: {self.question.text}", "Answer:"])


def answer(sentences: Collection[Sentence], question: Question) -> str | None:
    """What follows from the sentences; None where nothing does."""
    says = [sentence.says for sentence in sentences]
    for fact in says:
        if fact[0] == "order":
            return fact[1]
    person: str | None = question.person
    if question.relation is not None:
        person = next((f[2] for f in says if f[:2] == (question.relation, question.person)), None)
    return next((f[2] for f in says if person is not None and f[:2] == ("lives", person)), None)


def bridge(sentences: Collection[Sentence], question: Question) -> str | None:
    """Whose home the question asks for, as far as the sentences say."""
    if question.relation is None:
        return question.person
    said = ((question.relation, question.person),)
    return next((s.says[2] for s in sentences if s.says[:2] in said), None)


def held_out(*words: str) -> bool:
    """Whether this combination of names and cities (about one in eight) is kept from training."""
    return zlib.crc32(" ".join(words).encode()) % 8 == 0


def make_note(kind: str, rng: Random, n_sentences: int = 6, only_held_out: bool = True) -> Note:
    """A note of ``kind`` (one of KINDS) with ``n_sentences`` sentences in random order.

    only_held_out: the combination that the answer rests on was never trained on.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    while True:
        person, other, stranger, third = rng.sample(NAMES, 4)
        home, elsewhere, ordered = rng.sample(CITIES, 3)
        relation = rng.choice(tuple(LINKS)) if kind in ("two_hops", "distractor") else None
        facts = [(person, home)] if relation is None else [(person, other, home), (other, home)]
        if not only_held_out or all(held_out(*fact) for fact in facts):
            break
    lives_first, lives_second = rng.sample(LIVES, 2)
    owner = person if relation is None else other
    core = [Sentence(lives_first.format(owner, home), ("lives", owner, home))]
    ways: list[list[int]] = [[0]]
    if relation is not None:
        link = rng.choice(LINKS[relation]).format(person, other)
        core.append(Sentence(link, (relation, person, other)))
        ways = [[0, 1]]
    if kind == "repeated":
        core.append(Sentence(lives_second.format(owner, home), ("lives", owner, home)))
        ways = [[0], [1]]
    if kind == "override":
        core.append(Sentence(rng.choice(ORDERS).format(ordered), ("order", ordered)))
        ways = [[1]]
    distractor = None
    if kind == "distractor":
        distractor = len(core)
        says = ("lives", stranger, elsewhere)
        core.append(Sentence(rng.choice(LIVES).format(stranger, elsewhere), says))
    fillers = rng.sample(FILLERS, min(len(FILLERS), max(0, n_sentences - len(core))))
    core += [Sentence(filler.format(third), ("filler",)) for filler in fillers]
    order = list(range(len(core)))
    rng.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    ask = rng.choice(ASK_ONE_HOP if relation is None else ASK_TWO_HOPS)
    return Note(
        kind=kind,
        sentences=tuple(core[i] for i in order),
        question=Question(ask.format(person, relation), person, relation),
        answer=ordered if kind == "override" else home,
        needed=tuple(frozenset(place[i] for i in way) for way in ways),
        distractor=None if distractor is None else place[distractor],
    )


def random_note(rng: Random, n_people: int) -> list[Sentence]:
    """Training's sentences about ``n_people`` people, before any is dropped.

    Nothing in it says two things at once, and no held-out combination follows from it.
    """
    people = rng.sample(NAMES, n_people)
    sentences: list[Sentence] = []
    home: dict[str, str] = {}
    for person in people:
        if rng.random() < 0.85:
            city = rng.choice(CITIES)
            while held_out(person, city):
                city = rng.choice(CITIES)
            home[person] = city
            templates = rng.sample(LIVES, 2 if rng.random() < 0.15 else 1)
            says = ("lives", person, city)
            sentences += [Sentence(t.format(person, city), says) for t in templates]
    for relation, templates_of in LINKS.items():
        for person in people:
            if n_people > 1 and rng.random() < 0.45:
                other = rng.choice(people)
                if other == person or (other in home and held_out(person, other, home[other])):
                    continue
                text = rng.choice(templates_of).format(person, other)
                sentences.append(Sentence(text, (relation, person, other)))
    for _ in range(rng.choice((0, 0, 1, 2))):
        sentences.append(Sentence(rng.choice(FILLERS).format(rng.choice(NAMES)), ("filler",)))
    if rng.random() < 0.12:
        city = rng.choice(CITIES)
        sentences.append(Sentence(rng.choice(ORDERS).format(city), ("order", city)))
    rng.shuffle(sentences)
    return sentences


def random_question(rng: Random, sentences: Collection[Sentence]) -> Question:
    """A question about somebody in the sentences, or now and then about a stranger."""
    said = {s.says[1] for s in sentences if s.says[0] not in ("order", "filler")}
    links = [s.says for s in sentences if s.says[0] in LINKS]
    if links and rng.random() < 0.65:
        relation, person, _ = rng.choice(links)
        return Question(rng.choice(ASK_TWO_HOPS).format(person, relation), person, relation)
    person = rng.choice(sorted(said)) if said and rng.random() < 0.9 else rng.choice(NAMES)
    if rng.random() < 0.12:
        relation = rng.choice(tuple(LINKS))
        return Question(rng.choice(ASK_TWO_HOPS).format(person, relation), person, relation)
    return Question(rng.choice(ASK_ONE_HOP).format(person), person)
