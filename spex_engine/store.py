"""The evaluation store: what models said, kept by content, so that nothing is paid for twice.

Knows addresses, the scores under them, and finished explanations as text; it must not know masks,
prompts or models, and it holds no text of a prompt. One SQLite file in the user's cache folder
serves every process. What `put` has returned from is there after a kill -9 at any moment: a
write-ahead log that is not synced at each commit (synchronous=NORMAL) survives the death of the
process; after a loss of power the last commits may be missing, but the file is whole.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from spex_engine.store_file import (
    TABLES,
    StoreError,
    cache_folder,
    configured_limit,
    connect,
    create_file,
    delete_all,
    delete_oldest,
    explained,
    identity,
    is_busy,
    is_damage,
    move_aside,
    transaction,
)
from spex_engine.stored_rows import Evaluation, from_row, to_row

__all__ = ["CacheStats", "Evaluation", "Store", "StoreError"]

FILE_NAME = "evaluations.sqlite3"

_CHUNK = 900  # parameters of a query; old SQLite takes 999
_PATIENCE = 10.0  # seconds to wait for another process that writes
_TOUCH_AFTER = 3600 * 10**6  # microseconds; a use is noted where the last one noted is older
_KEPT = 0.9  # of the limit, once it was passed
_EVICTING = 0.1  # seconds of a write that may go into evicting down to there
_TRIMMED = 4096  # pages given back to the disk at once, at most

T = TypeVar("T")


@dataclass(frozen=True)
class CacheStats:
    """What the store holds.

    bytes: of the pages in use, which the limit bounds. on_disk: of all files; the write-ahead log
    may add some 16 MiB. oldest: the use longest ago, seconds since 1970. journal: "wal", or
    "delete" on a disk (of a network, say) that cannot have it: commits are slower, readers wait.
    """

    path: str
    evaluations: int
    with_answers: int  # of the evaluations: they hold text that a model wrote
    explanations: int
    bytes: int
    on_disk: int
    limit: int
    oldest: float | None
    journal: str


class Store:
    """Evaluations and explanations under 32-byte keys, in one file that several processes share.

    path: of the file; by default in the cache folder. limit: bytes; by default 512 MiB, or what
    SPEX_CACHE_LIMIT_MB says. Beyond it, what was used longest ago goes, down to 90%. The order of
    use is approximate: uses within an hour are one, and reading writes nothing: uses are noted
    with the next write or on closing. notes: what the user should know about how it was opened.
    StoreError, from every method, where the file cannot be used. Threads may share a store.
    """

    def __init__(self, path: Path | None = None, limit: int | None = None) -> None:
        self.path = path.absolute() if path is not None else cache_folder() / FILE_NAME
        self.limit = limit if limit is not None else configured_limit()
        self.notes: tuple[str, ...] = ()
        self._lock = threading.RLock()
        self._used: dict[str, set[bytes]] = {table: set() for table in TABLES}
        self._batch = 0  # rows to delete at once, on the way down to what is kept
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._patiently(lambda db: None)  # what is wrong with it shows now

    def get(self, addresses: Iterable[bytes]) -> dict[bytes, Evaluation]:
        """Those of the addresses that are known."""
        wanted = list(dict.fromkeys(addresses))
        found: dict[bytes, Evaluation] = {}
        long_ago = _now() - _TOUCH_AFTER
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            rows = self._read(
                "SELECT address, used_at, scores, censored, input_tokens, answers "
                f"FROM evaluations WHERE address IN ({','.join('?' * len(chunk))})",
                chunk,
            )
            for address, used_at, *row in rows:
                found[address] = from_row(*row)
                if used_at < long_ago:
                    self._was_used("evaluations", address)
        return found

    def put(self, evaluations: Mapping[bytes, Evaluation]) -> None:
        """Keeps all of them, for sure where no StoreError comes. ValueError for NaN, a failure."""
        rows = [(_key(address), *to_row(found)) for address, found in evaluations.items()]
        now = _now()
        self._write(
            "INSERT INTO evaluations (address, scores, censored, input_tokens, answers, used_at) "
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (address) DO UPDATE SET "
            "scores = excluded.scores, censored = excluded.censored, answers = excluded.answers, "
            "input_tokens = excluded.input_tokens, used_at = excluded.used_at",
            [(*row, now + i) for i, row in enumerate(rows)],
        )

    def get_explanation(self, key: bytes) -> str | None:
        """The text kept under ``key``, if it is there and whole."""
        rows = self._read("SELECT used_at, body FROM explanations WHERE address = ?", [key])
        for used_at, body in rows:
            if used_at < _now() - _TOUCH_AFTER:
                self._was_used("explanations", key)
            with contextlib.suppress(zlib.error):
                return zlib.decompress(body).decode("utf-8", "surrogatepass")
        return None

    def put_explanation(self, key: bytes, json_text: str) -> None:
        """Keeps a finished explanation, instead of an earlier one under the same key."""
        body = zlib.compress(json_text.encode("utf-8", "surrogatepass"))
        self._write(
            "INSERT INTO explanations (address, body, used_at) VALUES (?, ?, ?) "
            "ON CONFLICT (address) DO UPDATE SET body = excluded.body, used_at = excluded.used_at",
            [(_key(key), body, _now())],
        )

    def stats(self) -> CacheStats:
        ((evaluations, with_answers, explanations, oldest),) = self._read(
            "SELECT (SELECT count(*) FROM evaluations),"
            " (SELECT count(*) FROM evaluations WHERE answers IS NOT NULL),"
            " (SELECT count(*) FROM explanations),"
            " (SELECT min(used_at) FROM (SELECT min(used_at) AS used_at FROM evaluations"
            "  UNION ALL SELECT min(used_at) FROM explanations))"
        )
        ((journal,),) = self._read("PRAGMA journal_mode")
        used, _ = self._sizes()
        files = [self.path, *(Path(f"{self.path}-{end}") for end in ("wal", "shm", "journal"))]
        return CacheStats(
            path=str(self.path),
            evaluations=evaluations,
            with_answers=with_answers,
            explanations=explanations,
            bytes=used,
            on_disk=sum(file.stat().st_size for file in files if file.exists()),
            limit=self.limit,
            oldest=None if oldest is None else oldest / 1e6,
            journal=journal,
        )

    def clear(self) -> None:
        """Forgets everything and gives the space back to the disk."""
        self._patiently(lambda db: transaction(db, delete_all))
        self._patiently(lambda db: db.execute("VACUUM"))
        self._patiently(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

    def close(self) -> None:
        """Notes the uses that were not noted yet, and closes the file."""
        with self._lock:
            if any(self._used.values()):
                with contextlib.suppress(StoreError):  # the order of use is approximate anyway
                    self._patiently(lambda db: transaction(db, self._note_uses))
            self._disconnect()

    def _read(self, query: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        rows = tuple(values)
        return self._patiently(lambda db: db.execute(query, rows).fetchall())

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.executemany(statement, rows)
            self._note_uses(db)

        with self._lock:
            self._patiently(lambda db: transaction(db, work))
            for used in self._used.values():
                used.clear()
            self._evict()

    def _was_used(self, table: str, key: bytes) -> None:
        with self._lock:  # a write of another thread may be going through the set
            self._used[table].add(key)

    def _note_uses(self, db: sqlite3.Connection) -> None:
        now = _now()
        for table, keys in self._used.items():
            uses = [(now + i, key) for i, key in enumerate(keys)]
            db.executemany(f"UPDATE {table} SET used_at = ? WHERE address = ?", uses)

    def _evict(self) -> None:
        """Deletes what was used longest ago, in batches, once the limit is passed.

        Pages count, not lengths of rows, so that it is the file that is bounded: its free pages
        are used again, and those beyond the limit are given back to the disk. What does not fit is
        deleted now; the rest of the way, down to 90%, may take several writes.
        """
        used, size = self._sizes()
        if used > self.limit:
            ((count,),) = self._read(
                "SELECT (SELECT count(*) FROM evaluations) + (SELECT count(*) FROM explanations)"
            )
            self._batch = min(max(count // 64, 8), 4096)  # so long another writer waits
        until = time.monotonic() + _EVICTING
        while self._batch and (used > self.limit or time.monotonic() < until):
            gone = self._patiently(lambda db: transaction(db, self._delete_batch))
            used, size = self._sizes()
            if used <= _KEPT * self.limit or not gone:
                self._batch = 0
        if size > self.limit:
            page = self._read("PRAGMA page_size")[0][0]
            pages = min(-(-(size - self.limit) // page), _TRIMMED)
            # A script, because `execute` does not step through rows that have no columns.
            self._patiently(lambda db: db.executescript(f"PRAGMA incremental_vacuum({pages})"))

    def _delete_batch(self, db: sqlite3.Connection) -> int:
        return delete_oldest(db, self._batch)

    def _sizes(self) -> tuple[int, int]:
        """Bytes of the pages in use, and of all pages."""
        ((page, pages, free),) = self._read(
            "SELECT page_size, page_count, freelist_count "
            "FROM pragma_page_size, pragma_page_count, pragma_freelist_count"
        )
        return (pages - free) * page, pages * page

    def _patiently(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """``work`` done on the connection, once the other processes let it; else StoreError."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            with self._lock:
                try:
                    return work(self._connection())
                except (sqlite3.Error, OSError) as error:
                    if is_damage(error) and not self.notes:
                        self._start_anew()
                    elif not is_busy(error, self.path) or time.monotonic() > deadline:
                        raise explained(error, self.path) from error
            time.sleep(0.01)

    def _connection(self) -> sqlite3.Connection:
        """The open file; opened anew where it was deleted or replaced meanwhile, since what is
        written to a file that has lost its name is lost too."""
        if self._db is None or identity(self.path) != self._identity:
            self._disconnect()
            create_file(self.path)
            self._identity = identity(self.path)
            self._db = connect(self.path)
        return self._db

    def _start_anew(self) -> None:
        """Moves a damaged file aside, unless another process has done so."""
        self._disconnect()
        try:
            kept = move_aside(self.path, self._identity)
        except (sqlite3.Error, OSError) as error:
            raise explained(error, self.path) from error
        if kept is not None:
            self.notes = (
                f"the evaluation store {self.path} was damaged: it was renamed to {kept.name}, "
                "to be deleted if it is of no use, and a new one was started",
            )

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _key(address: bytes) -> bytes:
    if len(address) != 32:
        raise ValueError(f"address: expected 32 bytes, got {len(address)}")
    return address


def _now() -> int:
    """Microseconds since 1970: fine enough that rows have an order."""
    return time.time_ns() // 1000
