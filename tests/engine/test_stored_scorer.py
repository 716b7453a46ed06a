"""A scorer with a store behind it: what is asked, what is not, and in which order it is kept."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spex_engine.backends.base import ScoredTarget, Scorer, Scores
from spex_engine.store import Store, StoreError
from spex_engine.stored_scorer import StoredScorer

N = 4
ALL = np.array(list(itertools.product([False, True], repeat=N)))  # row i is i in binary


def number(mask: np.ndarray) -> int:
    return int(mask @ 2 ** np.arange(N)[::-1])


class FakeScorer:
    """Scores mask i as (i, -i / 4); the last segment changes nothing unless ``apart``."""

    tier = "T1"
    scale = "token"
    n_segments = N
    targets = ()

    def __init__(self, portion: int = 3, apart: bool = True, failing: tuple[int, ...] = ()) -> None:
        self.notes: tuple[str, ...] = ("asked politely",)
        self.portion, self.apart, self.failing = portion, apart, set(failing)
        self.asked: list[int] = []
        self.closed = 0
        self.stops: list[object] = []

    def addresses(self, masks: np.ndarray) -> list[bytes]:
        numbers = (number(mask) if self.apart else number(mask) // 2 for mask in masks)
        return [hashlib.sha256(bytes([n])).digest() for n in numbers]

    def score(self, masks, should_stop) -> Iterator[tuple[np.ndarray, Scores]]:
        self.stops.append(should_stop)
        try:
            order = np.arange(len(masks))[::-1]  # the last comes first
            for start in range(0, len(masks), self.portion):
                if should_stop():
                    return
                rows = order[start : start + self.portion]
                yield rows, self.scores([number(masks[row]) for row in rows])
        finally:
            self.closed += 1

    def scores(self, numbers: list[int]) -> Scores:
        self.asked += numbers
        values = np.array([[n, -n / 4] for n in numbers], float)
        values[[n in self.failing for n in numbers], 1] = np.nan
        return Scores(values, np.array([n + 10 for n in numbers]), values < -2)


class AnsweringScorer(FakeScorer):
    """T3: says the number as a text, of which the scores are how often a letter occurs."""

    tier = "T3"
    scale = "token"

    def __init__(self, letter: str = "1") -> None:
        super().__init__()
        self.letter = letter

    def scores(self, numbers: list[int]) -> Scores:
        self.asked += numbers
        answers = tuple((f"secret {n:b}", f"secret {n}") for n in numbers)
        return Scores(self.read(answers), np.array([n + 10 for n in numbers]), answers=answers)

    def read(self, answers: tuple[tuple[str, ...], ...]) -> np.ndarray:
        return np.array([[said.count(self.letter) for said in pair] for pair in answers], float)


class RereadingScorer(AnsweringScorer):
    def read_answers(self, answers: tuple[tuple[str, ...], ...]) -> Scores:
        return Scores(self.read(answers), np.zeros(len(answers), np.int64))


class RepeatingScorer(FakeScorer):
    """Repetition k of mask i scores i + k / 4, but what ``failing`` has as (i, k)."""

    tier = "T3"

    def __init__(self, repeats: int, failing: tuple[tuple[int, int], ...] = (), apart=True) -> None:
        super().__init__(portion=2, apart=apart)
        self.repeats = repeats
        self.failed = failing
        self.reached = 1000  # so many are asked for, then the money is spent

    def repetition_addresses(self, masks, numbers):
        each = zip(super().addresses(masks), numbers, strict=True)
        return [hashlib.sha256(address + bytes([k])).digest() for address, k in each]

    def repetitions(self, masks, numbers, should_stop):
        wanted = [(number(mask), int(k)) for mask, k in zip(masks, numbers, strict=True)]
        for start in range(0, len(wanted), self.portion):
            rows = np.arange(start, min(start + self.portion, len(wanted), self.reached))
            if not len(rows):
                return
            now = [wanted[row] for row in rows]
            self.asked += now
            values = [[np.nan if one in self.failed else one[0] + one[1] / 4] for one in now]
            texts = tuple((f"{n} {k}",) for n, k in now)
            yield rows, Scores(np.array(values), np.ones(len(now), np.int64), answers=texts)

    def score(self, masks, should_stop):
        raise AssertionError("asked for whole rows")


class FailingStore(Store):
    """One whose disk gives out."""

    reading = writing = True

    def get(self, addresses):
        if not self.reading:
            raise StoreError("The disk is gone.")
        return super().get(addresses)

    def put(self, evaluations):
        if not self.writing:
            raise StoreError("The disk is full.")
        super().put(evaluations)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(tmp_path / "s.sqlite3")) as opened:
        yield opened


def tables(width: int) -> st.SearchStrategy[np.ndarray]:
    """Scores of all masks, of that width; NaN, infinite, -0.0 and whatever else there is."""
    return arrays(np.float64, (len(ALL), width), elements=st.floats(width=64))


def never() -> bool:
    return False


def collect(scorer: Scorer, masks: np.ndarray) -> tuple[dict[int, list[float]], list[list[int]]]:
    """The scores of each row, and the rows of each portion."""
    found: dict[int, list[float]] = {}
    portions = []
    for rows, scores in scorer.score(masks, never):
        portions.append(rows.tolist())
        assert len(rows) == len(scores.values) == len(scores.input_tokens)
        for row, values in zip(rows, scores.values, strict=True):
            assert row not in found
            found[int(row)] = values.tolist()
    return found, portions


def expected(numbers: range | list[int]) -> dict[int, list[float]]:
    return {row: [n, -n / 4] for row, n in enumerate(numbers)}


def counts(scorer: StoredScorer) -> tuple[int, int, int, int]:
    return scorer.computed, scorer.reused, scorer.failed, scorer.input_tokens


class TestReuse:
    def test_a_second_run_asks_for_nothing(self, store: Store):
        first = StoredScorer(FakeScorer(), store)
        assert collect(first, ALL)[0] == expected(range(16))
        assert counts(first) == (16, 0, 0, sum(range(10, 26)))
        inner = FakeScorer()
        second = StoredScorer(inner, store)
        found, portions = collect(second, ALL)
        assert found == expected(range(16))
        assert len(portions) == 1
        assert inner.asked == inner.stops == []
        assert counts(second) == (0, 16, 0, 0)

    def test_what_is_known_comes_first_and_whole_then_the_rest_as_it_comes(self, store: Store):
        collect(StoredScorer(FakeScorer(), store), ALL[[1, 4, 9]])
        inner = FakeScorer(portion=2)
        stored = StoredScorer(inner, store)
        found, portions = collect(stored, ALL[[9, 2, 4, 3, 1, 5]])
        assert found == expected([9, 2, 4, 3, 1, 5])
        assert portions == [[0, 2, 4], [5, 3], [1]]
        assert inner.asked == [5, 3, 2]
        assert counts(stored) == (3, 3, 0, 15 + 13 + 12)

    def test_all_that_a_score_is_made_of_comes_back(self, store: Store):
        collect(StoredScorer(FakeScorer(), store), ALL)
        ((_, again),) = StoredScorer(FakeScorer(), store).score(ALL[::-1], never)
        assert again.values[:, 0].tolist() == list(range(15, -1, -1))
        assert again.censored.tolist() == [[False, n > 8] for n in range(15, -1, -1)]
        assert again.input_tokens.tolist() == list(range(25, 9, -1))
        assert again.answers is None

    def test_masks_that_come_to_the_same_are_asked_once(self, store: Store):
        inner = FakeScorer(apart=False)
        stored = StoredScorer(inner, store)
        found, portions = collect(stored, ALL)
        assert sorted(inner.asked) == list(range(0, 16, 2))
        assert found == expected([n // 2 * 2 for n in range(16)])
        assert portions[0] == [14, 15, 12, 13, 10, 11]
        assert counts(stored) == (8, 0, 0, sum(range(10, 26, 2)))
        again = StoredScorer(FakeScorer(apart=False), store)
        assert collect(again, ALL)[0] == found
        assert counts(again) == (0, 8, 0, 0)

    def test_without_a_store_a_run_remembers(self):
        inner = FakeScorer()
        stored = StoredScorer(inner, None)
        collect(stored, ALL[:4])
        found, portions = collect(stored, ALL[:6])
        assert found == expected(range(6))
        assert portions == [[0, 1, 2, 3], [5, 4]]
        assert sorted(inner.asked) == list(range(6))
        assert counts(stored) == (6, 0, 0, sum(range(10, 16)))

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.lists(st.integers(0, 15), max_size=20), min_size=1, max_size=4),
        st.integers(1, 5),
        st.booleans(),
    )
    def test_any_order_of_questions(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        questions: list[list[int]],
        portion: int,
        apart: bool,
    ):
        path = tmp_path_factory.mktemp("s") / "s.sqlite3"
        asked, distinct = [], set()
        for numbers in questions:  # each a run of its own
            inner = FakeScorer(portion, apart)
            with contextlib.closing(Store(path)) as store:
                stored = StoredScorer(inner, store)
                found, _ = collect(stored, ALL[numbers])
            assert found.keys() == set(range(len(numbers)))
            for row, n in enumerate(numbers):
                assert inner.addresses(ALL[[n]]) == inner.addresses(ALL[[int(found[row][0])]])
            assert stored.computed + stored.reused == len(set(inner.addresses(ALL[numbers])))
            asked += inner.addresses(ALL[inner.asked])
            distinct |= set(inner.addresses(ALL[numbers]))
        assert len(asked) == len(set(asked)) == len(distinct)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 40).flatmap(tables), st.none() | st.integers(0, 2**40))
    def test_any_scores_come_back_bit_for_bit_but_failures_never(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        values: np.ndarray,
        censored: int | None,
    ):
        bits = np.array([censored or 0]).view(np.uint8)
        pattern = np.resize(np.unpackbits(bits).astype(bool), values.shape)

        class Given(FakeScorer):
            def scores(self, numbers):
                self.asked += numbers
                return Scores(
                    values[numbers],
                    np.array(numbers),
                    None if censored is None else pattern[numbers],
                )

        failed = np.isnan(values).any(axis=1)
        with contextlib.closing(Store(tmp_path_factory.mktemp("s") / "s.sqlite3")) as store:
            list(StoredScorer(Given(), store).score(ALL, never))
            again = Given()
            portions = list(StoredScorer(again, store).score(ALL, never))
        assert sorted(again.asked) == np.flatnonzero(failed).tolist()
        if not failed.all():
            rows, scores = portions[0]
            assert rows.tolist() == np.flatnonzero(~failed).tolist()
            assert scores.values.tobytes() == values[rows].tobytes()
            assert (scores.censored is None) == (censored is None)
            assert censored is None or (scores.censored == pattern[rows]).all()

    def test_no_masks_and_empty_portions(self, store: Store):
        class Idle(FakeScorer):
            def score(self, masks, should_stop):
                yield np.array([], np.intp), self.scores([])
                yield from super().score(masks, should_stop)

            def scores(self, numbers):
                values = np.reshape([[n, 0.0] for n in numbers], (len(numbers), 2))
                return Scores(values, np.zeros(len(numbers), np.int64))

        stored = StoredScorer(Idle(), store)
        assert collect(stored, ALL[:0]) == ({}, [])
        assert collect(stored, ALL[:1]) == ({0: [0, 0]}, [[], [0]])


class TestOrder:
    def test_stored_before_it_is_handed_on(self, store: Store, tmp_path: Path):
        inner = FakeScorer()
        stored = StoredScorer(inner, store)
        with contextlib.closing(Store(tmp_path / "s.sqlite3")) as other:
            seen = 0
            for rows, _ in stored.score(ALL, never):
                seen += len(rows)
                assert len(other.get(inner.addresses(ALL[rows]))) == len(rows)
                assert other.stats().evaluations == seen == stored.computed

    def test_closing_gives_up_what_is_in_flight(self, store: Store):
        inner = FakeScorer()
        portions = StoredScorer(inner, store).score(ALL, never)
        next(portions)
        assert inner.closed == 0
        portions.close()
        assert inner.closed == 1
        assert len(inner.asked) == 3
        assert store.stats().evaluations == 3

    def test_an_iterator_that_cannot_be_closed(self, store: Store):
        class Listing(FakeScorer):
            def score(self, masks, should_stop):
                return iter(list(super().score(masks, should_stop)))

        assert collect(StoredScorer(Listing(), store), ALL)[0] == expected(range(16))

    def test_stopping_is_the_scorers_matter(self, store: Store):
        collect(StoredScorer(FakeScorer(), store), ALL[:2])
        inner = FakeScorer()
        stored = StoredScorer(inner, store)

        def stop() -> bool:
            return len(inner.asked) >= 3

        rows = [row for portion, _ in stored.score(ALL, stop) for row in portion]
        assert sorted(rows) == [0, 1, 13, 14, 15]
        assert inner.stops == [stop]

    def test_what_fails_leaves_what_came_before(self, store: Store):
        class Breaking(FakeScorer):
            def score(self, masks, should_stop):
                yield from itertools.islice(super().score(masks, should_stop), 2)
                raise RuntimeError("endpoint down")

        stored = StoredScorer(Breaking(), store)
        with pytest.raises(RuntimeError, match="endpoint down"):
            list(stored.score(ALL, never))
        assert store.stats().evaluations == stored.computed == 6


class TestFailures:
    def test_nan_is_handed_on_counted_and_asked_again(self, store: Store):
        inner = FakeScorer(failing=(2, 5))
        stored = StoredScorer(inner, store)
        found, _ = collect(stored, ALL)
        assert [row for row, values in found.items() if np.isnan(values).any()] == [5, 2]
        assert counts(stored) == (14, 0, 2, sum(range(10, 26)))
        assert store.stats().evaluations == 14
        inner.failing, inner.asked = set(), []
        assert collect(stored, ALL)[0] == expected(range(16))
        assert inner.asked == [5, 2]
        assert counts(stored)[:3] == (16, 0, 2)
        assert store.stats().evaluations == 16

    @pytest.mark.parametrize("way", ["reading", "writing"])
    def test_a_store_that_gives_out_loses_no_value(self, tmp_path: Path, way: str):
        with contextlib.closing(FailingStore(tmp_path / "s.sqlite3")) as store:
            inner = FakeScorer()
            stored = StoredScorer(inner, store)
            collect(stored, ALL[:3])
            assert stored.notes == ("asked politely",)
            setattr(store, way, False)
            assert collect(stored, ALL[:9])[0] == expected(range(9))
            setattr(store, way, True)
            assert collect(stored, ALL)[0] == expected(range(16))
            assert sorted(inner.asked) == list(range(16))
            assert stored.computed == 16
            assert store.stats().evaluations == 3  # it was not tried again
            said = [note for note in stored.notes if "without the evaluation store" in note]
            assert len(said) == 1
            assert "nothing is lost" in said[0]
            assert "The disk is" in said[0]

    def test_notes_of_the_store_and_of_the_scorer_are_passed_on(self, tmp_path: Path):
        (tmp_path / "s.sqlite3").write_bytes(b"no database" * 100)
        with contextlib.closing(Store(tmp_path / "s.sqlite3")) as store:
            inner = FakeScorer()
            stored = StoredScorer(inner, store)
            assert "was damaged" in stored.notes[1]
            inner.notes += ("the endpoint was slow",)
            collect(stored, ALL)
            assert stored.notes[:2] == ("asked politely", "the endpoint was slow")


class TestAnswers:
    def text_in(self, store: Store) -> bool:
        files = store.path.parent.glob("s.sqlite3*")
        return any(b"secret" in file.read_bytes() for file in files)

    def test_kept_and_said_so(self, store: Store):
        stored = StoredScorer(AnsweringScorer(), store)
        ((_, first),) = stored.score(ALL[5:7], never)
        assert "the model's answers are kept in the evaluation store, as text" in stored.notes
        assert self.text_in(store)
        ((rows, again),) = StoredScorer(AnsweringScorer(), store).score(ALL[5:7], never)
        assert rows.tolist() == [0, 1]
        assert again.answers == (("secret 101", "secret 5"), ("secret 110", "secret 6"))
        assert again.values.tolist() == first.values[::-1].tolist() == [[2, 0], [2, 0]]

    def test_not_kept_where_it_is_not_wanted(self, store: Store):
        collect(StoredScorer(AnsweringScorer(), store, keep_answers=False), ALL)
        assert not self.text_in(store)
        inner = AnsweringScorer()
        ((_, again),) = StoredScorer(inner, store).score(ALL, never)
        assert inner.asked == []
        assert again.answers is None

    def test_read_again_by_another_reference(self, store: Store):
        collect(StoredScorer(RereadingScorer("1"), store), ALL)
        inner = RereadingScorer("0")
        stored = StoredScorer(inner, store)
        ((_, scores),) = stored.score(ALL, never)
        zeros = [[f"{n:b}".count("0"), str(n).count("0")] for n in range(16)]
        assert scores.values.tolist() == zeros
        assert scores.input_tokens.tolist() == list(range(10, 26))
        assert inner.asked == []
        assert counts(stored) == (0, 16, 0, 0)

    def test_scores_that_cannot_be_read_again_are_not_kept(self, store: Store):
        stored = StoredScorer(RereadingScorer(), store, keep_answers=False)
        first, _ = collect(stored, ALL)
        assert any("not kept: the next run pays" in note for note in stored.notes)
        assert store.stats().evaluations == 0
        assert collect(stored, ALL)[0] == first  # from memory
        assert stored.computed == 16

    def test_an_entry_without_answers_is_none_to_one_that_reads_them(self, store: Store):
        collect(StoredScorer(AnsweringScorer(), store, keep_answers=False), ALL)
        inner = RereadingScorer()
        collect(StoredScorer(inner, store), ALL)
        assert sorted(inner.asked) == list(range(16))

    def test_answers_that_can_no_longer_be_read_are_asked_for_again(self, store: Store):
        class Picky(RereadingScorer):
            def read_answers(self, answers):
                scores = super().read_answers(answers)
                scores.values[0] = np.nan
                return scores

        collect(StoredScorer(RereadingScorer(), store), ALL)
        inner = Picky()
        found, _ = collect(StoredScorer(inner, store), ALL)
        assert len(inner.asked) == 1
        assert len(found) == 16


class TestRepetitions:
    def run(self, store: Store | None, scorer: RepeatingScorer, masks=ALL):
        stored = StoredScorer(scorer, store)
        scorer.asked = []
        return stored, collect(stored, masks)[0], scorer.asked

    def test_more_cost_only_the_new_ones_and_fewer_nothing(self, store: Store):
        stored, found, asked = self.run(store, RepeatingScorer(3))
        assert asked == [(n, k) for n in range(16) for k in range(3)]  # mask by mask
        assert found == {n: [n, n + 1 / 4, n + 2 / 4] for n in range(16)}
        assert counts(stored) == (16, 0, 0, 48)
        assert store.stats().evaluations == 48
        stored, found, asked = self.run(store, RepeatingScorer(4))
        assert asked == [(n, 3) for n in range(16)]
        assert found == {n: [n, n + 1 / 4, n + 2 / 4, n + 3 / 4] for n in range(16)}
        assert counts(stored) == (16, 0, 0, 16)
        stored, found, asked = self.run(store, RepeatingScorer(2))
        assert asked == []
        assert found == {n: [n, n + 1 / 4] for n in range(16)}
        assert counts(stored) == (0, 16, 0, 0)

    def test_a_mask_counts_that_has_one_score(self, store: Store):
        failing = ((2, 1), (5, 0), (5, 1), (5, 2))
        stored, found, _ = self.run(store, RepeatingScorer(3, failing))
        assert np.isnan(found[2]).tolist() == [False, True, False]
        assert np.isnan(found[5]).all()
        assert counts(stored) == (15, 0, 1, 48)
        assert store.stats().evaluations == 44
        stored, found, asked = self.run(store, RepeatingScorer(3))
        assert asked == [(2, 1), (5, 0), (5, 1), (5, 2)]
        assert not any(np.isnan(values).any() for values in found.values())
        assert counts(stored) == (2, 14, 0, 4)

    def test_what_comes_before_the_end_is_kept_and_handed_on(self, store: Store):
        scorer = RepeatingScorer(3)
        scorer.reached = 8
        stored, found, _ = self.run(store, scorer)
        assert {n: np.isfinite(values).tolist() for n, values in found.items()} == {
            0: [True] * 3,
            1: [True] * 3,
            2: [True, True, False],
        }
        assert counts(stored) == (3, 0, 0, 8)
        assert store.stats().evaluations == 8

    def test_what_is_interrupted_keeps_every_repetition(self, store: Store):
        scorer = RepeatingScorer(3)
        portions = StoredScorer(scorer, store).score(ALL, never)
        next(portions)
        portions.close()
        assert len(scorer.asked) == store.stats().evaluations == 4  # mask 0, and one of mask 1
        assert self.run(store, RepeatingScorer(3))[2][0] == (1, 1)

    def test_masks_that_come_to_the_same_and_masks_that_come_again(self):
        scorer = RepeatingScorer(2, apart=False)
        stored = StoredScorer(scorer, None)
        first = collect(stored, ALL)[0]
        assert first == {n: [n // 2 * 2, n // 2 * 2 + 1 / 4] for n in range(16)}
        assert collect(stored, ALL)[0] == first
        assert len(scorer.asked) == 16
        assert counts(stored) == (8, 0, 0, 16)


def test_rows_of_another_width_are_none(store: Store):
    """As a store may have them whose scorer has another idea of the answer's tokens."""
    target = ScoredTarget("a b", 0, ((0, 1), (1, 3)))

    class Wider(FakeScorer):
        targets = (ScoredTarget("abc", 0, ((0, 1), (1, 2), (2, 3))),)

        def scores(self, numbers):
            two = super().scores(numbers)
            return Scores(np.column_stack([two.values, two.values[:, 0]]), two.input_tokens)

    class Told(FakeScorer):
        targets = (target,)

    collect(StoredScorer(Wider(), store), ALL[:4])
    inner = Told()
    stored = StoredScorer(inner, store)
    assert collect(stored, ALL[:6])[0] == expected(range(6))
    assert sorted(inner.asked) == list(range(6))
    assert counts(stored)[:3] == (6, 0, 0)
