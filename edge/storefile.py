"""The store's file as a file: made, opened, brought up to date, set aside. What is in it, edge/store.py says.

Made. A new file is filled to its limit under the name `NAME.new`, emptied again, synced, and only then renamed: it
never has to grow. SQLite is told not to go beyond (`max_page_count`, at every open, since it forgets it); the WAL is
written to its share at every open and keeps its size. So on a disk that is full later, deleting and inserting still
work.

Opened. A file of this schema version that an earlier program made gets the columns that it lacks; one of a newer
version is not touched. What a crash has left of a snapshot goes.

Set aside. A file that is damaged or newer than this program is renamed whole, with what SQLite keeps beside it, and
reported; the daemon goes on with an empty one. Beside a file whose frames were taken over (edge/salvage.py) lies an
empty file `NAME.aside-*.salvaged`; of those only the newest are kept, since a disk may damage one after another.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devices.errors import StoreCorrupt, StoreError
from devices.quantities import Size
from edge.custody import BIRTH_UNKNOWN_NS

log = logging.getLogger("forebay.store")

SCHEMA_VERSION = 1

ASIDE = ".aside-"
ASIDE_MAX = 3
"""Files set aside that are kept, for whoever wants to know what was wrong; more only where frames wait in them."""
SALVAGED = ".salvaged"
PAGE_BYTES = 4096
CACHE_PAGES = 512
WAL_SHARE = 8
"""One part in so many of `max_size` is the WAL's."""
WAL_BYTES_MIN = 1 << 20
WAL_BYTES_MAX = 32 << 20

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE series (id INTEGER PRIMARY KEY, spec BLOB NOT NULL);
CREATE TABLE journal (id INTEGER PRIMARY KEY AUTOINCREMENT, samples INTEGER NOT NULL, first_ns INTEGER NOT NULL,
    last_ns INTEGER NOT NULL, high_ns INTEGER NOT NULL, crc INTEGER NOT NULL, block BLOB NOT NULL);
CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, lane INTEGER NOT NULL, leaf TEXT NOT NULL,
    created_ns INTEGER NOT NULL, digest BLOB NOT NULL, custody BLOB NOT NULL, frame BLOB NOT NULL);
CREATE TABLE lane (lane INTEGER PRIMARY KEY, send_limit INTEGER NOT NULL);
CREATE TABLE snapshot (id INTEGER NOT NULL, part TEXT NOT NULL, piece INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (id, part, piece));
CREATE TABLE unconfirmed (source TEXT PRIMARY KEY, messages BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE deadletter (id INTEGER PRIMARY KEY AUTOINCREMENT, at_ns INTEGER NOT NULL, source TEXT NOT NULL,
    reason TEXT NOT NULL, detail TEXT NOT NULL, payload BLOB NOT NULL, topic TEXT NOT NULL DEFAULT '',
    bytes INTEGER NOT NULL DEFAULT 0);
"""


# -- making ------------------------------------------------------------------------------------------


def make_folder(path: Path) -> None:
    """The folder in which the file is to lie. Raises StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the store's folder {path.parent}: {error.strerror}; set [store] path to a folder that "
            "this user may write"
        ) from None


def make(path: Path, max_size_bytes: int) -> None:
    """Make a new file, filled to its limit and emptied again, so that it never has to grow. Raises StoreError."""
    new = path.with_name(path.name + ".new")
    # Looked for, not told: a crash may come between setting aside and this.
    aside = _all_aside(path)
    to_salvage = [each for each in aside if not _beside(each, SALVAGED).exists()]
    meta: dict[str, int | bytes] = {
        "schema": SCHEMA_VERSION,
        "epoch": secrets.token_bytes(8),
        "born": (BIRTH_UNKNOWN_NS if aside else 0).to_bytes(8, "big"),
        "salvage": packed_names(to_salvage),
    }
    try:
        for leftover in (new, _beside(new, "-wal"), _beside(new, "-shm"), _beside(new, "-journal")):
            leftover.unlink(missing_ok=True)
        _fill(new, max_size_bytes - _wal_share(max_size_bytes), meta)
        with open(new, "rb") as made:
            os.fsync(made.fileno())
        new.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (sqlite3.Error, OSError) as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        if getattr(error, "errno", 0) == errno.EROFS:
            what = (
                f"the file system of {path.parent} is read-only: mount it for writing, and look why it is not (dmesg)"
            )
        elif not os.access(path.parent, os.W_OK):
            what = f"this user may not write to {path.parent}: set [store] path to a folder of its own"
        else:
            what = f"{error}: free the space, or set [store] path and max_size to what the disk holds"
        raise StoreError(f"cannot make the store {path} of {Size(max_size_bytes)}: {what}") from error


def _fill(new: Path, file_bytes: int, meta: dict[str, int | bytes]) -> None:
    """Raises sqlite3.Error."""
    db = sqlite3.connect(new, isolation_level=None)
    try:
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.executescript(_SCHEMA)
        db.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
        db.execute("CREATE TABLE fill (data BLOB)")
        piece = 64 * PAGE_BYTES
        db.execute("BEGIN")
        for _ in range(max((file_bytes - 64 * PAGE_BYTES) // piece - 1, 0)):
            db.execute("INSERT INTO fill VALUES (zeroblob(?))", (piece - 64,))
        db.execute("DELETE FROM fill")
        db.execute("DROP TABLE fill")
        db.execute("COMMIT")
    finally:
        db.close()


# -- opening -----------------------------------------------------------------------------------------


@contextmanager
def opening(path: Path, max_size_bytes: int) -> Iterator[sqlite3.Connection]:
    """A connection to a file that exists, for whoever looks into it first; closed again if that fails.

    Raises StoreCorrupt where the file cannot be used (it is to be set aside), and StoreError.
    """
    wal_bytes = _wal_share(max_size_bytes)
    # The store's thread is not the one that opens it; it is still used from one thread at a time.
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
    try:
        _configure(db, wal_bytes)
        version = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        if version is None or int(version[0]) > SCHEMA_VERSION:
            raise StoreCorrupt(
                f"its schema version is {version and int(version[0])}, this program knows up to {SCHEMA_VERSION}"
            )
        _grow_wal(db, wal_bytes)
        _add_columns(db)
        db.execute(f"PRAGMA max_page_count = {(max_size_bytes - wal_bytes) // PAGE_BYTES}")
        db.execute("DELETE FROM snapshot WHERE id <> coalesce((SELECT max(id) FROM snapshot WHERE part = ''), -1)")
        yield db
    except sqlite3.Error as error:
        db.close()
        raise _cannot_open(path, error) from error
    except BaseException:
        db.close()
        raise


def _wal_share(max_size_bytes: int) -> int:
    return min(max(max_size_bytes // WAL_SHARE, WAL_BYTES_MIN), WAL_BYTES_MAX)


def _configure(db: sqlite3.Connection, wal_bytes: int) -> None:
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    # Checkpointed at a quarter of its share: a commit that falls due then still fits.
    db.execute(f"PRAGMA wal_autocheckpoint = {wal_bytes // PAGE_BYTES // 4}")
    db.execute(f"PRAGMA cache_size = {CACHE_PAGES}")
    # Debian's SQLite overwrites what is deleted: each page of a freed block would be written once more.
    db.execute("PRAGMA secure_delete = OFF")


def _grow_wal(db: sqlite3.Connection, wal_bytes: int) -> None:
    """Write the WAL to its share: SQLite removes it at a clean end, and a disk may be full later.

    What is rolled back has passed through the WAL all the same, where it is larger than the cache. To be done before
    the file's own limit is set: a file that is full has no room for what never comes to it.
    """
    db.execute("PRAGMA cache_size = 16")
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("CREATE TABLE fill (data BLOB)")  # with rowid, so that the zeros are never in memory at once
        db.execute("INSERT INTO fill VALUES (zeroblob(?))", (wal_bytes - (wal_bytes >> 4),))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
            raise
        log.warning("the store's log cannot have its full size: %s (the disk is full)", error)
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
        db.execute(f"PRAGMA cache_size = {CACHE_PAGES}")


def _add_columns(db: sqlite3.Connection) -> None:
    """What dead letters have learnt to say within this schema version; a program that knows less leaves it out."""
    known = {row[1] for row in db.execute("PRAGMA table_info(deadletter)")}
    for column in ("topic TEXT NOT NULL DEFAULT ''", "bytes INTEGER NOT NULL DEFAULT 0"):
        if known and column.split()[0] not in known:
            db.execute(f"ALTER TABLE deadletter ADD COLUMN {column}")


def _cannot_open(path: Path, error: sqlite3.Error) -> StoreError:
    """StoreCorrupt only where the file itself is bad: what the disk or its rights forbid does not condemn it."""
    if is_damage(error):
        return StoreCorrupt(str(error))
    if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
        return StoreError(f"{path} is in use by another process: is a forebay-edge already running on it?")
    return StoreError(f"cannot open the store {path}: {error}; check that this user may write it, and the disk")


def is_damage(error: sqlite3.Error) -> bool:
    """The file is no store, or no longer one: damaged pages, missing tables."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT)


# -- setting aside -----------------------------------------------------------------------------------


def set_aside(path: Path, why: str) -> Path:
    """Move a file that cannot be used, and what SQLite keeps beside it, out of the way."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = path.with_name(f"{path.name}{ASIDE}{stamp}-{secrets.token_hex(2)}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        if _beside(path, suffix).exists():
            _beside(path, suffix).rename(_beside(aside, suffix))
    log.error("the store %s cannot be used (%s): set aside as %s, beginning with an empty one", path, why, aside)
    for old in _all_aside(path)[:-ASIDE_MAX]:
        if _beside(old, SALVAGED).exists():
            log.warning("%s is removed: its frames were taken over, and %d newer ones are kept", old, ASIDE_MAX)
            for suffix in ("-wal", "-shm", "", SALVAGED):
                _beside(old, suffix).unlink(missing_ok=True)
    return aside


def mark_salvaged(aside: Path) -> None:
    """Nothing is left in this file that could be taken over: it need not be kept for ever."""
    try:
        _beside(aside, SALVAGED).touch()
    except OSError as error:
        log.warning("%s is kept for ever: cannot note that its frames were taken over: %s", aside, error)


def packed_names(paths: list[Path]) -> bytes:
    """As meta `salvage` has them."""
    return "\n".join(path.name for path in paths).encode()


def unpacked_names(path: Path, packed: bytes) -> list[Path]:
    """Files beside the store at `path`."""
    return [path.with_name(name) for name in packed.decode().splitlines()]


def _all_aside(path: Path) -> list[Path]:
    """All files that were set aside, and not what lies beside them; oldest first."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}{ASIDE}*-{'[0-9a-f]' * 4}"))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
