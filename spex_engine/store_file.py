"""The file of the evaluation store: where it is, how it is opened, and what can be wrong with it.

Knows paths, permissions, SQLite's settings and errors, and the tables; it must not know what the
rows mean. Every error a user can meet has its own sentence here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

TABLES = ("evaluations", "explanations")
SCHEMA = 1  # of the tables; a store says which it has
DEFAULT_LIMIT_MB = 512.0

_BUSY_SECONDS = 1.0  # SQLite's own patience, before ours
_JOURNAL_BYTES = 16 * 2**20  # of the write-ahead log, once it was longer
# A rowid table: rows of one time lie together, so that deleting the oldest frees whole pages.
_CREATE = (
    "CREATE TABLE evaluations (address BLOB NOT NULL UNIQUE, used_at INTEGER NOT NULL,"
    " scores BLOB NOT NULL, censored BLOB, input_tokens INTEGER NOT NULL, answers TEXT)",
    "CREATE INDEX evaluations_used ON evaluations (used_at)",
    "CREATE INDEX evaluations_answers ON evaluations (used_at) WHERE answers IS NOT NULL",
    "CREATE TABLE explanations (address BLOB NOT NULL UNIQUE, used_at INTEGER NOT NULL,"
    " body BLOB NOT NULL)",
    "CREATE INDEX explanations_used ON explanations (used_at)",
    f"PRAGMA user_version = {SCHEMA}",
)
_OTHERS_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_READ_ONLY = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
_NO_SHARED_MEMORY = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}


T = TypeVar("T")


class StoreError(RuntimeError):
    """The evaluation store cannot be used, and a run goes on without. Says what to do about it."""


def cache_folder() -> Path:
    """Where Spex keeps what it can make again: SPEX_CACHE_DIR, or the user's cache folder."""
    chosen = os.environ.get("SPEX_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("spex")


def configured_limit() -> int:
    """Bytes the store may take: SPEX_CACHE_LIMIT_MB, or 512 MiB."""
    chosen = os.environ.get("SPEX_CACHE_LIMIT_MB")
    try:
        megabytes = float(chosen) if chosen else DEFAULT_LIMIT_MB
        if not 0 < megabytes < 2**40:
            raise ValueError
    except ValueError:
        raise StoreError(
            f"SPEX_CACHE_LIMIT_MB is {chosen!r}: set it to a number of MiB above 0, or unset it."
        ) from None
    return int(megabytes * 2**20)


def create_file(path: Path) -> None:
    """An empty file that only the user can read, in a folder of the same kind, if there is none."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise
        raise StoreError(
            f"The cache folder {path.parent} cannot be created: {_reason(error)}. Set "
            "SPEX_CACHE_DIR to a folder that can."
        ) from error
    # Only a new file is opened: closing an old one would drop the locks that SQLite has on it.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def identity(path: Path) -> tuple[int, int] | None:
    """What tells the file from another that takes its name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def connect(path: Path) -> sqlite3.Connection:
    """The database, with its tables; sqlite3.Error, or StoreError where it is from a newer Spex."""
    db = sqlite3.connect(
        f"{path.as_uri()}?mode=rw",  # SQLite would create a file that others can read
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        _set_up(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _set_up(db: sqlite3.Connection, path: Path) -> None:
    if _version(db, path) == 0:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before anything else is written
    db.execute(f"PRAGMA synchronous = {'NORMAL' if _journal(db) == 'wal' else 'FULL'}")
    db.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
    if _version(db, path) == 0:
        db.execute("BEGIN IMMEDIATE")
        if _version(db, path) == 0:  # no other process was quicker
            for statement in _CREATE:
                db.execute(statement)
        db.execute("COMMIT")


def _journal(db: sqlite3.Connection) -> str:
    """The journal there is: "wal", or "delete" where shared memory cannot be had.

    That is so on many network folders. Each commit must then be synced.
    """
    try:
        (journal,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    except sqlite3.OperationalError as error:
        if _code(error) not in _NO_SHARED_MEMORY:
            raise
        (journal,) = db.execute("PRAGMA journal_mode = DELETE").fetchone()
    return str(journal)


def _version(db: sqlite3.Connection, path: Path) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA:
        raise StoreError(
            f"The evaluation store {path} was written by a newer version of Spex. Update Spex, or "
            "set SPEX_CACHE_DIR to another folder for this version."
        )
    return version


def transaction(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """All of ``work`` or none; the lock to write is had before anything is read."""
    db.execute("BEGIN IMMEDIATE")
    try:
        result = work(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite has rolled back by itself where the disk was full
            db.execute("ROLLBACK")
        raise
    return result


def delete_oldest(db: sqlite3.Connection, count: int) -> int:
    """Deletes the ``count`` rows that were used longest ago; how many there were."""
    found = db.execute(
        "SELECT used_at FROM evaluations UNION ALL SELECT used_at FROM explanations "
        "ORDER BY used_at LIMIT 1 OFFSET ?",
        (count - 1,),
    ).fetchone()
    if found is None:
        return delete_all(db)
    return sum(
        db.execute(f"DELETE FROM {table} WHERE used_at <= ?", found).rowcount for table in TABLES
    )


def delete_all(db: sqlite3.Connection) -> int:
    return sum(db.execute(f"DELETE FROM {table}").rowcount for table in TABLES)


def move_aside(path: Path, seen: tuple[int, int] | None) -> Path | None:
    """The damaged file ``seen`` under a name of its own, with its journals; never deleted.

    None where another process has done it. Of several that try at once, one does: each holds the
    lock of a second, empty database, which goes with the process however that ends.
    """
    with contextlib.closing(sqlite3.connect(f"{path}.lock", isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        if identity(path) != seen:
            return None
        name = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        kept, tried = path.with_name(name), 1
        while kept.exists():
            tried += 1
            kept = path.with_name(f"{name}-{tried}")
        # Journals first: one that stayed behind would be played into the new file.
        for end in ("-wal", "-shm", "-journal", ""):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{end}", f"{kept}{end}")
        return kept


def is_busy(error: Exception, path: Path) -> bool:
    """Whether another process is at the file, or has just moved it: it is worth while to wait."""
    code = _code(error)
    return code in _OTHERS_BUSY or (code == sqlite3.SQLITE_CANTOPEN and not path.exists())


def is_damage(error: Exception) -> bool:
    return _code(error) in _DAMAGE


def explained(error: Exception, path: Path) -> StoreError:
    """What happened and what to do about it, for an error of SQLite or of the file system."""
    code = _code(error)
    number = error.errno if isinstance(error, OSError) else None
    elsewhere = "set SPEX_CACHE_DIR to a folder"
    if code == sqlite3.SQLITE_FULL or number in _NO_SPACE:
        return StoreError(
            f"The disk of the evaluation store {path} is full. Make room (the store itself may be "
            f"deleted), or {elsewhere} on another disk."
        )
    if code in _READ_ONLY or number in _NO_RIGHT:
        return StoreError(
            f"The evaluation store {path} cannot be written. Make the file and its folder "
            f"writable, or {elsewhere} that is."
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreError(
            f"The evaluation store {path} cannot be opened. See that it is a file and its folder "
            f"writable, or {elsewhere} that is."
        )
    if code in _OTHERS_BUSY:
        return StoreError(
            f"The evaluation store {path} was locked by another process for too long. See which "
            f"process has it open, or {elsewhere} of this one's own."
        )
    return StoreError(
        f"The evaluation store {path} cannot be used: {_reason(error)}. If that stays, {elsewhere} "
        "on another disk."
    )


def _code(error: Exception) -> int | None:
    """SQLite's primary result code."""
    extended = getattr(error, "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
