"""The notes' ground truth: what is said to be needed is what the answer really follows from."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from spex_engine.backends.demo import notes
from spex_engine.backends.demo.notes import Note, Question, Sentence, make_note


def many(kind: str, n: int = 40, n_sentences: int = 6) -> list[Note]:
    rng = Random(f"notes {kind}")
    return [make_note(kind, rng, n_sentences) for _ in range(n)]


def subsets(note: Note) -> Iterator[frozenset[int]]:
    places = range(len(note.sentences))
    for size in range(len(note.sentences) + 1):
        yield from map(frozenset, itertools.combinations(places, size))


def said(note: Note, kept: frozenset[int]) -> str | None:
    return notes.answer([note.sentences[i] for i in sorted(kept)], note.question)


@pytest.mark.parametrize("kind", notes.KINDS)
def test_the_answer_follows_exactly_where_a_way_to_it_is_kept(kind: str) -> None:
    for note in many(kind):
        for kept in subsets(note):
            reached = any(way <= kept for way in note.needed)
            assert (said(note, kept) == note.answer) == reached


def test_without_what_is_needed_nothing_follows() -> None:
    for kind in ("one_hop", "two_hops", "repeated", "distractor"):
        for note in many(kind):
            for kept in subsets(note):
                if not any(way <= kept for way in note.needed):
                    assert said(note, kept) is None


def test_two_hops_are_an_and_of_two() -> None:
    for kind in ("two_hops", "distractor"):
        for note in many(kind):
            (way,) = note.needed
            assert len(way) == 2


def test_a_repeated_fact_is_an_or_of_two_in_other_words() -> None:
    for note in many("repeated"):
        (first,), (second,) = note.needed
        one, other = note.sentences[first], note.sentences[second]
        assert one.says == other.says
        assert one.text != other.text


def test_an_order_wins_over_the_fact_which_holds_without_it() -> None:
    for note in many("override"):
        ((order,),) = note.needed
        facts = [s.says for s in note.sentences if s.says[0] == "lives"]
        assert len(facts) == 1
        assert facts[0][2] != note.answer
        without = frozenset(range(len(note.sentences))) - {order}
        assert said(note, without) == facts[0][2]


def test_a_distractor_is_a_home_of_somebody_else_elsewhere() -> None:
    for note in many("distractor"):
        assert note.distractor is not None
        relation, stranger, city = note.sentences[note.distractor].says
        assert relation == "lives"
        assert city != note.answer
        others = {p for way in note.needed for i in way for p in note.sentences[i].says[1:]}
        assert stranger not in others | {note.question.person}


def contradictions(sentences: list[Sentence]) -> list[tuple[str, ...]]:
    """What is said twice with two different objects; two different orders."""
    said = {s.says for s in sentences if s.says != ("filler",)}
    return [about for about, n in Counter(says[:-1] for says in said).items() if n > 1]


@pytest.mark.parametrize("kind", notes.KINDS)
@pytest.mark.parametrize("n_sentences", [1, 4, 8])
def test_no_note_contradicts_itself(kind: str, n_sentences: int) -> None:
    for note in many(kind, 60, n_sentences):
        assert contradictions(list(note.sentences)) == []
        assert len({s.text for s in note.sentences}) == len(note.sentences)


def test_no_training_note_contradicts_itself() -> None:
    rng = Random(5)
    for _ in range(500):
        assert contradictions(notes.random_note(rng, rng.randint(2, 6))) == []


def test_contradictions_would_be_found() -> None:
    rome = Sentence("Anna lives in Rome.", ("lives", "Anna", "Rome"))
    oslo = Sentence("Anna lives in Oslo.", ("lives", "Anna", "Oslo"))
    assert contradictions([rome, oslo]) == [("lives", "Anna")]
    assert contradictions([rome, rome]) == []


@pytest.mark.parametrize("kind", notes.KINDS)
def test_the_number_of_sentences(kind: str) -> None:
    assert {len(note.sentences) for note in many(kind, 20, 6)} == {6}


def test_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of one_hop, .*; got 'three_hops'"):
        make_note("three_hops", Random(0))


def test_the_same_seed_the_same_notes() -> None:
    assert many("distractor") == many("distractor")
    assert make_note("repeated", Random(1)) != make_note("repeated", Random(2))


def test_every_place_in_the_note_may_hold_what_is_needed() -> None:
    """A model that looked at fixed places only must not pass."""
    assert {i for note in many("two_hops", 100) for i in note.needed[0]} == set(range(6))


# ---- held out --------------------------------------------------------------------------------


def test_one_combination_in_eight_is_held_out() -> None:
    pairs = [notes.held_out(*p) for p in itertools.product(notes.NAMES, notes.CITIES)]
    assert 0.10 < sum(pairs) / len(pairs) < 0.15


def test_no_name_or_city_is_held_out_as_a_whole() -> None:
    for name in notes.NAMES:
        assert not all(notes.held_out(name, city) for city in notes.CITIES)
    for city in notes.CITIES:
        assert any(notes.held_out(name, city) for name in notes.NAMES)


@pytest.mark.parametrize("kind", notes.KINDS)
def test_generated_notes_rest_on_held_out_combinations(kind: str) -> None:
    for note in many(kind):
        bridge = notes.bridge(note.sentences, note.question)
        (home,) = {s.says[2] for s in note.sentences if s.says[:2] == ("lives", bridge)}
        assert notes.held_out(str(bridge), home)
        if note.question.relation is not None:
            assert notes.held_out(note.question.person, str(bridge), home)


def test_no_held_out_combination_follows_from_a_training_note() -> None:
    rng = Random(3)
    for _ in range(3000):
        sentences = notes.random_note(rng, rng.randint(2, 6))
        sentences = [s for s in sentences if s.says[0] != "order"]
        for person in notes.NAMES:
            home = notes.answer(sentences, Question("", person))
            assert home is None or not notes.held_out(person, home)
            for relation in notes.LINKS:
                question = Question("", person, relation)
                home = notes.answer(sentences, question)
                other = notes.bridge(sentences, question)
                assert home is None or not notes.held_out(person, str(other), home)


# ---- the text --------------------------------------------------------------------------------


def test_the_text_of_a_note() -> None:
    sentences = (
        Sentence("Anna lives in Paris.", ("lives", "Anna", "Paris")),
        Sentence("It rained all week.", ("filler",)),
    )
    question = Question("Where does Anna live?", "Anna")
    note = Note("one_hop", sentences, question, "Paris", (frozenset({0}),))
    end = "Question: Where does Anna live?\nAnswer:"
    assert note.text() == f"Anna lives in Paris.\nIt rained all week.\n{end}"
    assert note.text({1}) == f"It rained all week.\n{end}"
    assert note.text(set()) == end


def test_names_and_cities_are_different_words() -> None:
    words = (*notes.NAMES, *notes.CITIES)
    assert len(set(words)) == len(words)
    assert (len(notes.NAMES), len(notes.CITIES)) == (60, 50)
