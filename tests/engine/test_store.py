"""The evaluation store: what is kept, for how long, by how many at once, and what can go wrong."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_engine import store as store_module
from spex_engine import store_file
from spex_engine.store import Evaluation, Store, StoreError


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def evaluation(number: int, width: int = 3) -> Evaluation:
    return Evaluation(np.arange(width) - float(number), number)


def some(numbers: range, width: int = 3) -> dict[bytes, Evaluation]:
    return {key(number): evaluation(number, width) for number in numbers}


def same(one: Evaluation, other: Evaluation) -> bool:
    """Bit for bit: -0.0 is not 0.0."""
    assert one.values.dtype == other.values.dtype == np.float64
    return (
        one.values.tobytes() == other.values.tobytes()
        and one.input_tokens == other.input_tokens
        and one.answers == other.answers
        and (one.censored is None) == (other.censored is None)
        and (one.censored is None or one.censored.tolist() == other.censored.tolist())
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "evaluations.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(path)) as opened:
        yield opened


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with contextlib.closing(Store(tmp_path_factory.mktemp("lasting") / "s.sqlite3")) as opened:
        yield opened


@st.composite
def evaluations(draw: st.DrawFn) -> Evaluation:
    width = draw(st.integers(1, 40))
    values = draw(st.lists(st.floats(allow_nan=False), min_size=width, max_size=width))
    bits = draw(st.none() | st.lists(st.booleans(), min_size=width, max_size=width))
    answers = draw(st.none() | st.lists(st.text(), min_size=width, max_size=width))
    return Evaluation(
        np.array(values),
        draw(st.integers(0, 2**40)),
        None if bits is None else np.array(bits),
        None if answers is None else tuple(answers),
    )


class TestWhatIsKept:
    @settings(max_examples=50, deadline=None)
    @given(st.dictionaries(st.binary(min_size=32, max_size=32), evaluations(), max_size=5))
    def test_comes_back_bit_for_bit(self, lasting: Store, given: dict[bytes, Evaluation]):
        lasting.put(given)
        found = lasting.get(given)
        assert found.keys() == given.keys()
        assert all(same(found[address], given[address]) for address in given)

    def test_thousands_at_once_and_only_those_there(self, store: Store):
        store.put(some(range(3000)))
        found = store.get([key(number) for number in range(1000, 5000)] * 2)
        assert found.keys() == some(range(1000, 3000)).keys()
        assert all(same(found[key(n)], evaluation(n)) for n in range(1000, 3000))

    def test_nothing_at_all(self, store: Store):
        store.put({})
        assert store.get([]) == {}

    def test_what_came_back_can_be_written_to(self, store: Store):
        store.put(some(range(1)))
        store.get([key(0)])[key(0)].values[:] = 7
        assert same(store.get([key(0)])[key(0)], evaluation(0))

    def test_the_last_one_under_an_address(self, store: Store):
        store.put({key(0): evaluation(0)})
        store.put({key(0): Evaluation(np.ones(2), 5, np.array([True, False]), ("a", "\ud800"))})
        found = store.get([key(0)])[key(0)]
        assert found.answers == ("a", "\ud800")
        assert found.values.tolist() == [1, 1]

    def test_nan_is_refused_with_all_that_came_with_it(self, store: Store):
        with pytest.raises(ValueError, match="NaN"):
            store.put({key(0): evaluation(0), key(1): Evaluation(np.array([0.0, np.nan]), 1)})
        assert store.get([key(0)]) == {}

    @pytest.mark.parametrize("bad", [b"", b"x" * 31, b"x" * 33])
    def test_an_address_has_32_bytes(self, store: Store, bad: bytes):
        with pytest.raises(ValueError, match="32 bytes"):
            store.put({bad: evaluation(0)})
        with pytest.raises(ValueError, match="32 bytes"):
            store.put_explanation(bad, "{}")

    def test_another_process_sees_it_at_once(self, store: Store, path: Path):
        with contextlib.closing(Store(path)) as other:
            store.put(some(range(5)))
            assert len(other.get(some(range(5)))) == 5

    def test_explanations(self, store: Store):
        assert store.get_explanation(key(0)) is None
        store.put_explanation(key(0), '{"text": "old"}')
        store.put_explanation(key(0), '{"text": "né \ud800"}')
        assert store.get_explanation(key(0)) == '{"text": "né \ud800"}'
        assert store.get([key(0)]) == {}

    def test_a_damaged_explanation_is_none(self, store: Store, path: Path):
        store.put_explanation(key(0), "{}")
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE explanations SET body = x'789c00'")
        assert store.get_explanation(key(0)) is None

    def test_stats(self, store: Store, path: Path):
        before = time.time() - 1
        assert store.stats().oldest is None
        store.put({**some(range(10)), key(10): Evaluation(np.ones(1), 1, None, ("said",))})
        store.put_explanation(key(0), "{}")
        found = store.stats()
        assert (found.evaluations, found.with_answers, found.explanations) == (11, 1, 1)
        assert (found.path, found.limit, found.journal) == (str(path), 512 * 2**20, "wal")
        assert before < found.oldest < time.time() + 1
        assert 0 < found.bytes <= found.on_disk

    def test_clear_forgets_and_gives_the_space_back(self, store: Store, path: Path):
        store.put_explanation(key(0), "{}")
        empty = store.stats().bytes
        store.put(some(range(2000), width=40))
        full = store.stats().on_disk
        store.clear()
        found = store.stats()
        assert (found.evaluations, found.explanations, found.oldest) == (0, 0, None)
        assert found.bytes <= empty
        assert path.stat().st_size <= empty < full / 5
        store.put(some(range(3)))
        assert len(store.get(some(range(3)))) == 3


class TestBounded:
    def test_the_oldest_goes_and_the_file_stays_small(self, path: Path):
        limit = 400_000
        with contextlib.closing(Store(path, limit)) as store:
            for start in range(0, 6000, 50):
                store.put(some(range(start, start + 50)))
                assert store.stats().bytes <= limit
            found = [n for n in range(6000) if store.get([key(n)])]
            assert found == list(range(found[0], 6000))
            assert 500 < len(found) < 5000
            assert store.stats().bytes > 0.75 * limit
        assert path.stat().st_size <= 1.1 * limit

    def test_down_to_nine_tenths(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(store_module, "_EVICTING", 60)
        limit = 400_000
        with contextlib.closing(Store(path, limit)) as store:
            sizes = []
            for start in range(0, 6000, 10):
                store.put(some(range(start, start + 10)))
                sizes.append(store.stats().bytes)
        dropped = [after for before, after in itertools.pairwise(sizes) if after < before]
        assert dropped
        assert all(0.8 * limit < size <= 0.9 * limit for size in dropped)

    def test_little_by_little(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(store_module, "_EVICTING", 0)
        limit = 400_000
        with contextlib.closing(Store(path, limit)) as store:
            for start in range(0, 6000, 10):
                store.put(some(range(start, start + 10)))
                assert store.stats().bytes <= limit
            assert store.stats().bytes > 0.75 * limit

    def test_what_is_used_stays(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(store_module, "_TOUCH_AFTER", -1)
        with contextlib.closing(Store(path, 400_000)) as store:
            store.put(some(range(100)))
            store.put_explanation(key(0), "{}")
            for start in range(100, 6000, 50):
                assert store.get_explanation(key(0)) == "{}"
                store.get([key(number) for number in range(50)])
                store.put(some(range(start, start + 50)))
            assert len(store.get(some(range(50)))) == 50
            assert store.get(some(range(50, 100))) == {}

    def test_explanations_go_too(self, path: Path):
        random = np.random.default_rng(0)
        with contextlib.closing(Store(path, 400_000)) as store:
            store.put_explanation(key(0), random.bytes(3000).hex())
            store.put(some(range(100)))
            for number in range(1, 200):
                store.put_explanation(key(number), random.bytes(3000).hex())
            assert store.get(some(range(100))) == {}
            assert store.get_explanation(key(0)) is None
            assert store.get_explanation(key(199)) is not None
            assert store.stats().bytes <= 400_000

    def test_one_that_is_larger_than_the_limit_is_not_kept(self, path: Path):
        with contextlib.closing(Store(path, 100_000)) as store:
            store.put_explanation(key(0), np.random.default_rng(0).bytes(200_000).hex())
            assert store.get_explanation(key(0)) is None
            assert store.stats().bytes < 100_000

    def test_a_lower_limit_shrinks_the_file(self, path: Path):
        with contextlib.closing(Store(path)) as store:
            store.put(some(range(5000)))
        large = path.stat().st_size
        with contextlib.closing(Store(path, large // 4)) as store:
            store.put(some(range(5000, 5001)))
            assert len(store.get([key(5000)])) == 1
        assert path.stat().st_size <= large // 4

    def test_reading_writes_nothing_until_it_is_closed(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(store_module, "_TOUCH_AFTER", -1)
        with contextlib.closing(Store(path)) as watching:
            watching.put(some(range(10)))
            oldest = watching.stats().oldest
            reading = Store(path)
            reading.get(some(range(10)))
            assert watching.stats().oldest == oldest
            reading.close()
            assert watching.stats().oldest > oldest

    @pytest.mark.parametrize("chosen", ["many", "0", "-3", "nan", "inf"])
    def test_a_limit_that_is_none(self, path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str):
        monkeypatch.setenv("SPEX_CACHE_LIMIT_MB", chosen)
        with pytest.raises(StoreError, match=f"SPEX_CACHE_LIMIT_MB is '{chosen}': set it to"):
            Store(path)

    def test_a_limit_of_the_environment(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("SPEX_CACHE_LIMIT_MB", "1.5")
        with contextlib.closing(Store(path)) as store:
            assert store.limit == 1.5 * 2**20


class TestWhereItIs:
    def test_in_the_folder_of_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("SPEX_CACHE_DIR", str(tmp_path / "a folder #1?" / "b"))
        with contextlib.closing(Store()) as store:
            store.put(some(range(1)))
        assert store.path == tmp_path / "a folder #1?" / "b" / "evaluations.sqlite3"
        assert store.path.stat().st_size > 0

    def test_else_in_the_cache_folder_of_the_user(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.delenv("SPEX_CACHE_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        import platformdirs

        assert store_file.cache_folder() == platformdirs.user_cache_path("spex")

    def test_only_the_user_can_read_it(self, store: Store, path: Path):
        store.put(some(range(5)))
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
        assert len(list(path.parent.iterdir())) == 3  # with the write-ahead log and its index

    def test_deleted_while_it_is_open(self, store: Store, path: Path):
        store.put(some(range(5)))
        for file in path.parent.iterdir():
            file.unlink()
        path.parent.rmdir()
        assert store.get(some(range(5))) == {}
        store.put(some(range(5, 9)))
        with contextlib.closing(Store(path)) as other:
            assert other.get(some(range(9))).keys() == some(range(5, 9)).keys()


class TestWhatCanBeWrong:
    def test_from_a_newer_version(self, store: Store, path: Path):
        store.put(some(range(3)))
        store.close()
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA user_version = 99")
        before = path.read_bytes()
        with pytest.raises(StoreError, match=r"newer version of Spex. Update Spex, or set"):
            Store(path)
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        "content", [b"not a database" * 500, b"SQLite format 3\0" + b"x" * 9000]
    )
    def test_no_database(self, path: Path, content: bytes):
        path.parent.mkdir()
        path.write_bytes(content)
        with contextlib.closing(Store(path)) as store:
            store.put(some(range(3)))
            assert len(store.get(some(range(3)))) == 3
        (moved,) = path.parent.glob("*.damaged-*")
        assert moved.read_bytes() == content
        assert f"was damaged: it was renamed to {moved.name}" in store.notes[0]
        with contextlib.closing(Store(path)) as again:
            assert again.notes == ()
            assert len(again.get(some(range(3)))) == 3

    def test_damage_that_is_found_while_it_is_in_use(self, path: Path):
        with contextlib.closing(Store(path)) as store:
            store.put(some(range(3000)))
        content = bytearray(path.read_bytes())
        content[8192:] = b"\xa5" * (len(content) - 8192)
        path.write_bytes(content)
        with contextlib.closing(Store(path)) as store:
            assert store.notes == ()
            assert store.get(some(range(3000))) == {}
            assert "was damaged" in store.notes[0]
            store.put(some(range(3)))
            assert len(store.get(some(range(3000)))) == 3
        (moved,) = path.parent.glob("*.damaged-*")
        assert moved.read_bytes() == content

    def test_the_journals_of_a_damaged_file_go_with_it(self, path: Path):
        """A log that stayed behind would be played into the new file."""
        path.parent.mkdir()
        files = [Path(f"{path}{end}") for end in ("", "-wal", "-shm", "-journal")]
        for file in files:
            file.write_text(file.name)
        kept = store_file.move_aside(path, store_file.identity(path))
        assert not any(file.exists() for file in files)
        moved = [Path(f"{kept}{end}").read_text() for end in ("", "-wal", "-shm", "-journal")]
        assert moved == [file.name for file in files]

    def test_a_file_that_has_taken_its_place_is_left_alone(self, store: Store, path: Path):
        store.put(some(range(3)))
        damaged = store_file.identity(path)
        assert damaged is not None
        assert store_file.move_aside(path, (damaged[0], damaged[1] + 1)) is None
        assert len(store.get(some(range(3)))) == 3

    def test_two_damaged_within_a_second(self, path: Path):
        for _ in range(2):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no database" * 100)
            Store(path).close()
        assert len(list(path.parent.glob("*.damaged-*"))) == 2

    def test_disk_full(self, store: Store):
        store.put(some(range(100)))
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StoreError, match=r"is full\. Make room .*, or set SPEX_CACHE_DIR"):
            store.put(some(range(100, 3000)))
        assert store.get(some(range(3000))).keys() == some(range(100)).keys()
        store._db.execute("PRAGMA max_page_count = 1000000")  # there is room again
        store.put(some(range(100, 3000)))
        assert len(store.get(some(range(3000)))) == 3000

    @pytest.mark.parametrize(
        ("number", "message"),
        [
            (errno.ENOSPC, "is full. Make room"),
            (errno.EROFS, "cannot be written. Make the file and its folder writable"),
            (errno.EACCES, "cannot be written. Make the file and its folder writable"),
            (errno.EIO, "cannot be used: Input/output error. If that stays"),
        ],
    )
    def test_a_file_that_cannot_be_created(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
    ):
        def refuse(*_: object) -> int:
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr(store_file.os, "open", refuse)
        with pytest.raises(StoreError, match=message) as caught:
            Store(path)
        assert str(path) in str(caught.value)

    def test_a_file_that_cannot_be_written(
        self, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        store.put(some(range(3)))
        connect = sqlite3.connect
        monkeypatch.setattr(
            store_file.sqlite3,
            "connect",
            lambda where, **how: connect(where.replace("mode=rw", "mode=ro"), **how),
        )
        with contextlib.closing(Store(path)) as reading:
            assert len(reading.get(some(range(3)))) == 3
            with pytest.raises(StoreError, match=r"cannot be written. Make the file"):
                reading.put(some(range(3, 6)))

    def test_a_folder_that_cannot_be_created(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(
            StoreError, match=r"cannot be created: .* Set SPEX_CACHE_DIR to a folder"
        ):
            Store(tmp_path / "file" / "cache" / "evaluations.sqlite3")

    def test_a_folder_where_the_file_should_be(self, path: Path):
        path.mkdir(parents=True)
        with pytest.raises(StoreError, match=r"cannot be opened. See that it is a file"):
            Store(path)

    def test_locked_for_too_long_but_readable(
        self, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(store_module, "_PATIENCE", 0.03)
        monkeypatch.setattr(store_file, "_BUSY_SECONDS", 0.01)
        store.put(some(range(3)))
        with (
            contextlib.closing(Store(path)) as waiting,
            contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other,
        ):
            other.execute("BEGIN IMMEDIATE")
            other.execute("DELETE FROM evaluations")
            with pytest.raises(StoreError, match="was locked by another process for too long"):
                waiting.put(some(range(3, 6)))
            assert len(waiting.get(some(range(6)))) == 3
            other.execute("ROLLBACK")
            waiting.put(some(range(3, 6)))
            assert len(waiting.get(some(range(6)))) == 6

    def test_a_lock_is_waited_for(self, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(store_file, "_BUSY_SECONDS", 0.0)
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        with contextlib.closing(Store(path)) as waiting:
            timer = threading.Timer(0.05, other.execute, ("ROLLBACK",))
            timer.start()
            waiting.put(some(range(3)))
            timer.join()
            assert len(waiting.get(some(range(3)))) == 3
        other.close()

    @pytest.mark.parametrize("vfs", ["unix-dotfile", "unix-none"])
    def test_a_disk_without_shared_memory(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, vfs: str
    ):
        connect = sqlite3.connect
        monkeypatch.setattr(
            store_file.sqlite3, "connect", lambda where, **how: connect(f"{where}&vfs={vfs}", **how)
        )
        with contextlib.closing(Store(path)) as store:
            store.put(some(range(3)))
            assert len(store.get(some(range(3)))) == 3
            assert store.stats().journal == "delete"
            assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL

    def test_shared_memory_that_fails(self, path: Path):
        """As it does on some network folders: the log is asked for, and an error comes."""

        class Failing(sqlite3.Connection):
            def execute(self, query, *rest):
                if query == "PRAGMA journal_mode = WAL":
                    error = sqlite3.OperationalError("disk I/O error")
                    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMMAP
                    raise error
                return super().execute(query, *rest)

        path.parent.mkdir()
        with contextlib.closing(sqlite3.connect(path, factory=Failing)) as db:
            store_file._set_up(db, path)
            assert db.execute("PRAGMA user_version").fetchone() == (store_file.SCHEMA,)


WORKER = """
import contextlib, hashlib, sys, time
from pathlib import Path
import numpy as np
from spex_engine.store import Evaluation, Store

def key(number):
    return hashlib.sha256(str(number).encode()).digest()

def check(found, numbers):
    for number in numbers:
        if key(number) in found:
            assert found[key(number)].values.tolist() == [number, -number], number

what, path, start = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
sys.stdin.readline()  # all begin together
with contextlib.closing(Store(path)) as store:
    if what == "write":
        for first in range(start, start + 500, 5):
            numbers = range(first, first + 5)
            store.put({key(n): Evaluation(np.array([n, -n], float), n) for n in numbers})
            check(store.get(map(key, numbers)), numbers)
    elif what == "read":
        for _ in range(100):
            check(store.get(map(key, range(2000))), range(2000))
    else:
        for _ in range(5):
            time.sleep(0.02)
            store.clear()
    print(len(store.notes))
"""


def together(path: Path, what: list[tuple[str, int]]) -> list[int]:
    """Runs all at once in processes of their own; how many notes each store had."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, kind, str(path), str(start)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for kind, start in what
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in processes]
    assert [stderr for _, stderr in results] == [""] * len(what)
    return [int(stdout) for stdout, _ in results]


WRITERS = [("write", start) for start in range(0, 2000, 500)]


class TestSeveralProcesses:
    def test_all_write_and_one_reads(self, path: Path):
        together(path, [*WRITERS, ("read", 0)])
        with contextlib.closing(Store(path)) as store:
            found = store.get(map(key, range(2000)))
            assert all(found[key(n)].values.tolist() == [n, -n] for n in range(2000))

    def test_all_write_and_one_clears(self, path: Path):
        together(path, [*WRITERS, ("read", 0), ("clear", 0)])
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        with contextlib.closing(Store(path)) as store:
            assert store.stats().evaluations <= 2000

    def test_all_find_it_damaged(self, path: Path):
        path.parent.mkdir()
        path.write_bytes(b"no database" * 1000)
        notes = together(path, WRITERS)
        assert sum(notes) == 1
        assert len(list(path.parent.glob("*.damaged-*"))) == 1
        with contextlib.closing(Store(path)) as store:
            assert len(store.get(map(key, range(2000)))) == 2000

    def test_threads_share_one(self, store: Store):
        def work(start: int) -> None:
            for number in range(start, start + 100):
                store.put(some(range(number, number + 1)))
                assert len(store.get([key(number)])) == 1

        threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 400, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.get(some(range(400)))) == 400
