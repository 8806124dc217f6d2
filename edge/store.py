"""The edge's one file: journal, outbox, dead letters, snapshots and the table of series.

Layout (SQLite, version in `meta`)

  meta        key, value                     schema, epoch, born: when it was made in the place of one set aside,
                                             salvage: the names of those whose frames have not been taken over
                                             (edge/salvage.py), journal_floor, month: the uplink's budget,
                                             wear: what was written to the disk (edge/wear.py),
                                             filters NAME: what a broker's session was asked for
  series      id, spec                       append-only; the int32 index of a series is its id
  journal     id, samples, first_ns, last_ns, high_ns, crc, block     a ring: what arrived lately (edge/journal.py)
  outbox      seq, lane, leaf, created_ns, digest, custody, frame     frames that await a receipt
  lane        lane, send_limit               only frames with seq <= send_limit were ever published
  snapshot    id, part, piece, data          state of the operators after journal block `id`; `part` "" makes it whole
  unconfirmed source, messages               what a source's broker may send again (edge/redelivery.py)
  deadletter  id, at_ns, source, reason, detail, payload, topic, bytes    `bytes`: of the whole message

`seq` and `journal.id` are AUTOINCREMENT: SQLite remembers the highest ever given, so that a number is
never given twice, however empty the table is.

One transaction a commit, with a small fixed number of statements. WAL mode with synchronous=FULL: when
`commit` returns, the disk has it.

What a crash leaves, by where it comes
  between ... and ...                  on the disk                         what the next start does
  arrival       the commit             nothing of it                       no source was acknowledged: each sends again
  BEGIN         the WAL's sync         frames of the WAL without their     SQLite passes over them: as before the commit
                                       closing one
  the sync      the acknowledgement    all of it                           sources that were not told send again, and
                                                                           are recognised (redelivery.py, identity.py)
  two commits   a checkpoint's end     pages in WAL and file               SQLite does the checkpoint again
  a receipt     the commit after it    the frame                           it is sent again; its points have their keys
  a send limit  the publishing         the limit                           the frame counts as published: never merged
  two pieces    a snapshot's last row  pieces without a last row           removes them; the snapshot before counts, and
                                                                           the journal reaches back to it
  a snapshot    a trim of the journal  blocks that are not needed          nothing: the next trim takes them
  damage found  the file's set aside   the damaged file                    it is opened, found damaged again, set aside
  set aside     `NAME.new` renamed     `NAME.aside-*`, maybe `NAME.new`    a new file is made; it knows of those aside
  two commits   the salvage's end      some frames of it, meta `salvage`   it is gone through again (edge/salvage.py)

Limits. The file is filled to its limit when it is made, and SQLite is told not to grow beyond it
(`max_page_count`, at every open, since SQLite forgets it); the WAL is written to its share at every open
and keeps its size. So on a disk that is full later, deleting and inserting still work. When the file itself
is full a commit raises StoreFull and changes nothing; what must go first is decided in edge/retention.py.

A file that is damaged or newer than this program is set aside whole, under a name that says so, and
reported; the daemon starts with an empty one. What the other has published it does not know, so it opens no
window that began before its birth (edge/pump.py): such samples go raw. Beside one whose frames were taken over lies
an empty file `NAME.aside-*.salvaged`; of those only the newest are kept, since a disk may damage one after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import io
import logging
import os
import secrets
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from devices.errors import StoreCorrupt, StoreError, StoreFull
from devices.model import Lane, SeriesSpec
from devices.quantities import Size
from edge.custody import Commit, Committed, DeadLetter, JournalRow, LettersKept, OutboxRow, Usage
from edge.wear import Wear, written_bytes

log = logging.getLogger("forebay.store")

T = TypeVar("T")

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
SNAPSHOT_PIECE_BYTES = 32 << 10
"""Compressed whole, the state of 1,000 series costs 18 MB of RSS for a moment; in pieces it does not show."""
SNAPSHOT_TRANSACTION_BYTES = 256 << 10
FULL_FROM_BYTES = 1 << 20
"""SQLite says "full" of the disk as well: of the file only where it has less room than this and what is added."""
FILTERS_MAX = 64
"""Of earlier configurations, remembered for each session at a broker."""
DEAD_LETTERS_MAX = 1000
DEAD_LETTERS_BYTES_MAX = 1 << 20
"""Unless the configuration says otherwise."""

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


class Store:
    """The file, used from one thread. Every method but `open` may raise StoreError."""

    def __init__(self, connection: sqlite3.Connection, path: Path, began_bytes: int) -> None:
        """`began_bytes`: written to the disk by this process before it opened the file."""
        self._db = connection
        self.path = path
        self.dead_letters_bytes = DEAD_LETTERS_BYTES_MAX
        """Of payloads; when full the oldest go."""
        self.letters = self._count_letters(gone=0)
        self.set_aside: str = ""
        """Where the file that was found damaged lies now; "" when none was."""
        self.epoch = int.from_bytes(self._meta("epoch"), "big")
        self.born_ns = int.from_bytes(self._meta("born"), "big")
        """UTC at which it followed a file that was set aside; 0: it followed none."""
        self.wear = Wear(self._meta("wear"), began_bytes)
        self._journal_bytes = self._one("SELECT sum(length(block)) FROM journal", default=0)
        # Where all of the journal has been trimmed, it reached as far as what has left it.
        last_high = "SELECT high_ns FROM journal ORDER BY id DESC LIMIT 1"
        self._high_ns = self._one(last_high, default=self.journal_floor_ns())
        self._journal_from_ns = self._oldest_ns()

    # -- opening -------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path, max_size_bytes: int) -> Store:
        """Open the file, or make it. Raises StoreError only where nothing can be written at all."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot make the store's folder {path.parent}: {error.strerror}; set [store] path to a folder that "
                "this user may write"
            ) from None
        if not path.exists():
            _make(path, max_size_bytes)
            return cls._open_existing(path, max_size_bytes)
        try:
            return cls._open_existing(path, max_size_bytes)
        except StoreCorrupt as error:
            return cls.anew(path, max_size_bytes, str(error))

    @classmethod
    def anew(cls, path: Path, max_size_bytes: int, why: str) -> Store:
        """Set a file that cannot be used aside, and begin with an empty one."""
        aside = str(set_aside(path, why))
        _make(path, max_size_bytes)
        store = cls._open_existing(path, max_size_bytes)
        store.set_aside = aside
        return store

    @classmethod
    def _open_existing(cls, path: Path, max_size_bytes: int) -> Store:
        wal_bytes, began_bytes = _wal_share(max_size_bytes), written_bytes()
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
            return cls(db, path, began_bytes)
        except sqlite3.Error as error:
            db.close()
            raise _cannot_open(path, error) from error
        except BaseException:
            db.close()
            raise

    def close(self) -> None:
        self._db.close()

    # -- the commit ----------------------------------------------------------------------------------

    def commit(self, commit: Commit) -> Committed:
        """Make everything in `commit` durable, or nothing. Raises StoreFull or StoreError."""
        db = self._db
        high_ns = max(self._high_ns, commit.last_ns) if commit.block else self._high_ns
        trimmed_bytes, letters = 0, self.letters
        try:
            db.execute("BEGIN IMMEDIATE")
            if commit.buried or commit.dead_letters:
                gone = self._insert_dead_letters(commit)
                letters = self._count_letters(letters.gone + gone)
            if commit.replayed:
                db.execute(
                    "DELETE FROM deadletter WHERE id IN (SELECT value FROM json_each(?))",
                    (msgspec.json.encode(commit.replayed).decode(),),
                )
                letters = self._count_letters(letters.gone)
            if commit.removed:
                db.execute(
                    "DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?))",
                    (msgspec.json.encode(commit.removed).decode(),),
                )
            if commit.to_backfill_above is not None:
                db.execute(
                    "UPDATE outbox SET lane = ? WHERE lane = ? AND seq > ?",
                    (Lane.BACKFILL, Lane.LIVE, commit.to_backfill_above),
                )
            if commit.trim_journal_to:
                trimmed_bytes = self._trim(commit.trim_journal_to)
            if commit.new_series:
                self._insert_series(commit.new_series)
            if commit.block:
                crc = zlib.crc32(commit.block)
                db.execute(
                    "INSERT INTO journal (samples, first_ns, last_ns, high_ns, crc, block) VALUES (?, ?, ?, ?, ?, ?)",
                    (commit.samples, commit.first_ns, commit.last_ns, high_ns, crc, commit.block),
                )
            if commit.frames:
                db.executemany(
                    "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (row.seq, row.lane, row.leaf, row.created_ns, row.digest, row.packed_custody, frame)
                        for row, frame in commit.frames
                    ],
                )
            if commit.unconfirmed:
                db.executemany("INSERT OR REPLACE INTO unconfirmed VALUES (?, ?)", list(commit.unconfirmed.items()))
            if commit.month:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('month', ?)", (commit.month,))
            if commit.send_limits:
                db.executemany("INSERT OR REPLACE INTO lane VALUES (?, ?)", list(commit.send_limits.items()))
            db.execute("COMMIT")
        except sqlite3.Error as error:
            needed_bytes = len(commit.block) + sum(len(frame) for _, frame in commit.frames)
            raise self._failed(error, "the commit", needed_bytes) from error
        self._high_ns = high_ns
        if trimmed_bytes or not self._journal_bytes or not self._journal_from_ns:
            self._journal_from_ns = self._oldest_ns()
        self._journal_bytes += len(commit.block) - trimmed_bytes
        self.letters = letters
        return self.committed()

    def committed(self) -> Committed:
        """What stands now."""
        return Committed(self.last_block(), self.usage(), self._high_ns, self.journal_floor_ns())

    def _insert_series(self, series: list[tuple[int, SeriesSpec]]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO series VALUES (?, ?)",
            [(index, msgspec.json.encode(spec)) for index, spec in series],
        )

    def _trim(self, block_id: int) -> int:
        """Delete the blocks up to this one, and return how many bytes of blocks that were."""
        size_bytes = self._one(f"SELECT sum(length(block)) FROM journal WHERE id <= {block_id}", default=0)
        highest = f"SELECT high_ns FROM journal WHERE id <= {block_id} ORDER BY id DESC LIMIT 1"
        floor_ns = max(self._one(highest, default=0), self.journal_floor_ns())
        self._db.execute("DELETE FROM journal WHERE id <= ?", (block_id,))
        self._db.execute(
            "INSERT OR REPLACE INTO meta VALUES ('journal_floor', ?)", (floor_ns.to_bytes(8, "big", signed=True),)
        )
        return size_bytes

    def _insert_dead_letters(self, commit: Commit) -> int:
        """Add to the dead letters, and let the oldest go beyond their limits: how many."""
        db = self._db
        db.executemany(
            "INSERT INTO deadletter (at_ns, source, reason, detail, payload, topic, bytes) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            [letter[:-1] for letter in commit.dead_letters],
        )
        db.executemany(
            "INSERT INTO deadletter (at_ns, source, reason, detail, payload, bytes) "
            "SELECT ?, 'uplink', ?, ?, frame, length(frame) FROM outbox WHERE seq = ?",
            [(at_ns, reason, detail, seq) for seq, at_ns, reason, detail in commit.buried],
        )
        gone = db.execute(
            "DELETE FROM deadletter WHERE id <= (SELECT max(id) FROM (SELECT id, "
            "sum(length(payload)) OVER newest AS bytes, count(*) OVER newest AS letters FROM deadletter "
            "WINDOW newest AS (ORDER BY id DESC)) WHERE bytes > ? OR letters > ?)",
            (self.dead_letters_bytes, DEAD_LETTERS_MAX),
        )
        return gone.rowcount

    def _count_letters(self, gone: int) -> LettersKept:
        query = "SELECT count(*), coalesce(sum(length(payload)), 0) FROM deadletter"
        kept, size_bytes = self._db.execute(query).fetchone()
        return LettersKept(kept, size_bytes, gone)

    # -- reading back --------------------------------------------------------------------------------

    def next_seq(self) -> int:
        return self._highest("outbox") + 1

    def last_block(self) -> int:
        return self._highest("journal")

    def _highest(self, table: str) -> int:
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return int(row[0]) if row else 0

    def series(self) -> list[SeriesSpec]:
        """The specs of all series; the index of a series is its place in the list. Raises StoreCorrupt."""
        rows = self._db.execute("SELECT spec FROM series ORDER BY id").fetchall()
        try:
            return [msgspec.json.decode(spec, type=SeriesSpec) for (spec,) in rows]
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(f"{self.path}: the table of series is damaged: {error}") from error

    def outbox(self) -> list[OutboxRow]:
        rows = self._db.execute(
            "SELECT seq, lane, leaf, created_ns, digest, custody, length(frame) FROM outbox ORDER BY seq"
        )
        return [OutboxRow(q, Lane(n), leaf, ns, d, c, size) for q, n, leaf, ns, d, c, size in rows]

    def frames(self, seqs: list[int]) -> dict[int, bytes]:
        """The bytes of frames that are still there."""
        rows = self._db.execute(
            "SELECT seq, frame FROM outbox WHERE seq IN (SELECT value FROM json_each(?))",
            (msgspec.json.encode(seqs).decode(),),
        )
        return dict(rows)

    def unconfirmed(self) -> dict[str, bytes]:
        return dict(self._db.execute("SELECT source, messages FROM unconfirmed"))

    def subscribed(self, session_name: str, filters: list[str]) -> list[str]:
        """Note what a broker's session is about to be asked for; which other filters it may have from earlier
        configurations. Those are remembered on: the broker may come back as it was before it was told to forget them.
        """
        key = f"filters {session_name}"
        known = [name for name in self._meta(key).decode("utf-8", "replace").split("\0") if name]
        others = [name for name in known if name not in filters][-FILTERS_MAX:]
        if others + filters != known:
            try:
                self._db.execute(
                    "INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, "\0".join(others + filters).encode())
                )
            except sqlite3.Error as error:
                log.warning("%s", self._failed(error, f"the note of what is asked for at {session_name}", 0))
        return others

    def month(self) -> bytes:
        """The account of the month's budget; empty when there is none."""
        return self._meta("month")

    def send_limits(self) -> dict[Lane, int]:
        return {Lane(lane): limit for lane, limit in self._db.execute("SELECT lane, send_limit FROM lane")}

    def oldest_blocks(self, limit: int = 1000) -> list[JournalRow]:
        rows = self._db.execute("SELECT id, length(block), high_ns FROM journal ORDER BY id LIMIT ?", (limit,))
        return [JournalRow(*row) for row in rows]

    def blocks(self, after: int) -> Iterator[tuple[int, bytes | None]]:
        """(id, block) of all blocks after `after`, oldest first; None for a damaged one."""
        for block_id, crc, block in self._db.execute(
            "SELECT id, crc, block FROM journal WHERE id > ? ORDER BY id", (after,)
        ):
            yield block_id, block if zlib.crc32(block) == crc else None

    def newest_blocks(self, samples: int) -> tuple[int, list[bytes | None]]:
        """The newest blocks that hold so many samples together, oldest first, None for a damaged one; before them,
        the highest time of all that is older."""
        first, held = self.last_block() + 1, 0
        for block_id, count in self._db.execute("SELECT id, samples FROM journal ORDER BY id DESC"):
            first, held = block_id, held + count
            if held >= samples:
                break
        older = f"SELECT high_ns FROM journal WHERE id < {first} ORDER BY id DESC LIMIT 1"
        return self._one(older, default=self.journal_floor_ns()), [block for _, block in self.blocks(first - 1)]

    def blocks_between(self, lo_ns: int, hi_ns: int) -> list[bytes]:
        """Blocks that may hold samples with lo_ns <= time <= hi_ns.

        `high_ns` is the running maximum of `last_ns`, so it grows with the id, and the first block that can
        matter is found by bisection: an index would cost a page with every commit.
        """
        first = self._one("SELECT min(id) FROM journal", default=0)
        last = self.last_block() + 1
        while first < last:
            middle = (first + last) // 2
            if (
                self._one(f"SELECT high_ns FROM journal WHERE id >= {middle} ORDER BY id LIMIT 1", default=lo_ns)
                < lo_ns
            ):
                first = middle + 1
            else:
                last = middle
        rows = self._db.execute(
            "SELECT block FROM journal WHERE id >= ? AND last_ns >= ? AND first_ns <= ? ORDER BY id",
            (first, lo_ns, hi_ns),
        )
        return [block for (block,) in rows]

    def to_salvage(self) -> list[Path]:
        """The files set aside whose frames have not been taken over yet (edge/salvage.py), oldest first."""
        return [self.path.with_name(name) for name in self._meta("salvage").decode().splitlines()]

    def is_salvaged(self, but_for: list[Path]) -> None:
        """What could be taken over has been, `but_for` what is in these files. Raises StoreError."""
        try:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('salvage', ?)", (_names(but_for),))
        except sqlite3.Error as error:
            raise self._failed(error, "the end of the salvage", 0) from error

    def journal_floor_ns(self) -> int:
        """The time before which the journal knows nothing for certain: the highest that has left it."""
        return int.from_bytes(self._meta("journal_floor"), "big", signed=True)

    def dead_letters(self, only: int = 0) -> list[DeadLetter]:
        """The newest first; or only the one with this id."""
        rows = self._db.execute(
            "SELECT at_ns, source, reason, detail, payload, topic, bytes, id FROM deadletter WHERE ? IN (0, id) "
            "ORDER BY id DESC",
            (only,),
        )
        return [DeadLetter(*row) for row in rows]

    def usage(self) -> Usage:
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return Usage(
            pages * PAGE_BYTES, self._pragma("max_page_count") * PAGE_BYTES, self._journal_bytes, self._journal_from_ns
        )

    def _oldest_ns(self) -> int:
        """How far back the journal reaches; blocks from before the first sample reach nowhere, and an empty one only
        to where it ended."""
        return self._one("SELECT high_ns FROM journal WHERE high_ns > 0 ORDER BY id LIMIT 1", default=self._high_ns)

    # -- snapshots -----------------------------------------------------------------------------------

    def snapshot_steps(
        self, after_block: int, state: dict[str, NDArray[Any]], changed: dict[int, SeriesSpec]
    ) -> Iterator[None]:
        """Store the operators' state as it was after journal block `after_block`; the one before goes with the last
        step. `changed`: settings of series that count in this state.

        Each step is a transaction of limited size: the WAL stays within its share, and commits go in between.
        The closing row makes the snapshot whole. Raises StoreError; what was written is removed then.
        """
        pieces: list[tuple[int, str, int, bytes]] = []
        size_bytes = 0
        try:
            for part, array in state.items():
                for piece, rows in enumerate(_pieces(array)):
                    pieces.append((after_block, part, piece, _npy(rows)))
                    size_bytes += len(pieces[-1][3])
                    if size_bytes > SNAPSHOT_TRANSACTION_BYTES:
                        self._insert_pieces(pieces)
                        pieces, size_bytes = [], 0
                        yield
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO snapshot VALUES (?, ?, ?, ?)", pieces)
            self._insert_series(list(changed.items()))
            self._db.execute("INSERT INTO snapshot VALUES (?, '', 0, x'')", (after_block,))
            self._db.execute("DELETE FROM snapshot WHERE id <> ?", (after_block,))
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('wear', ?)", (self.wear.pack(),))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            failed = self._failed(error, "the snapshot", SNAPSHOT_TRANSACTION_BYTES)
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("DELETE FROM snapshot WHERE id = ?", (after_block,))
            raise failed from error

    def _insert_pieces(self, pieces: list[tuple[int, str, int, bytes]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT INTO snapshot VALUES (?, ?, ?, ?)", pieces)
        self._db.execute("COMMIT")

    def read_snapshot(self) -> tuple[int, dict[str, NDArray[Any]]]:
        """(block id, state) of the last whole snapshot; (0, {}) when there is none. Raises StoreCorrupt."""
        head = self._db.execute("SELECT max(id) FROM snapshot WHERE part = ''").fetchone()
        if head[0] is None:
            return 0, {}
        pieces: dict[str, list[NDArray[Any]]] = {}
        for part, data in self._db.execute(
            "SELECT part, data FROM snapshot WHERE id = ? AND part <> '' ORDER BY part, piece", head
        ):
            try:
                pieces.setdefault(part, []).append(_from_npy(data))
            except (zstandard.ZstdError, ValueError) as error:
                raise StoreCorrupt(f"{self.path}: the snapshot is damaged: {error}") from error
        return int(head[0]), {part: np.concatenate(arrays) for part, arrays in pieces.items()}

    # -- small ---------------------------------------------------------------------------------------

    def _meta(self, key: str) -> bytes:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return bytes(row[0]) if row else b""

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def _one(self, query: str, default: int) -> int:
        row = self._db.execute(query).fetchone()
        return default if row is None or row[0] is None else int(row[0])

    def _failed(self, error: sqlite3.Error, what: str, needed_bytes: int) -> StoreError:
        """Roll back, and say what happened. `needed_bytes`: what was to be added, roughly."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
            usage = self.usage()
            if usage.limit_bytes - usage.used_bytes < 2 * needed_bytes + FULL_FROM_BYTES:
                return StoreFull(f"{self.path} is full: {what} changed nothing")
            # To give up frames would free nothing: the file has room, and the disk has none for the WAL.
            return StoreError(f"{self.path}: the disk is full: {what} changed nothing; free some space on it")
        if is_damage(error):
            return StoreCorrupt(f"{self.path} is damaged: {error}")
        return StoreError(f"{self.path}: {what} failed and changed nothing: {error}")


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


def _pieces(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    rows = max(SNAPSHOT_PIECE_BYTES // max(array[:1].nbytes, 1), 1)
    for start in range(0, max(len(array), 1), rows):
        yield array[start : start + rows]


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return zstandard.ZstdCompressor(1, write_checksum=True).compress(buffer.getvalue())


def _from_npy(data: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(zstandard.decompress(data)), allow_pickle=False)
    return array


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


def _add_columns(db: sqlite3.Connection) -> None:
    """What dead letters have learnt to say within this schema version; a program that knows less leaves it out."""
    known = {row[1] for row in db.execute("PRAGMA table_info(deadletter)")}
    for column in ("topic TEXT NOT NULL DEFAULT ''", "bytes INTEGER NOT NULL DEFAULT 0"):
        if known and column.split()[0] not in known:
            db.execute(f"ALTER TABLE deadletter ADD COLUMN {column}")


def _grow_wal(db: sqlite3.Connection, wal_bytes: int) -> None:
    """Write the WAL to its share: SQLite removes it at a clean end, and a disk may be full later.

    What is rolled back has passed through the WAL all the same, where it is larger than the cache. To be done before
    the file's own limit is set: a file that is full has no room for what never comes to it.
    """
    db.execute("PRAGMA cache_size = 16")
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("INSERT INTO meta VALUES ('wal', zeroblob(?))", (wal_bytes - (wal_bytes >> 4),))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
            raise
        log.warning("the store's log cannot have its full size: %s (the disk is full)", error)
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
        db.execute(f"PRAGMA cache_size = {CACHE_PAGES}")


def _make(path: Path, max_size_bytes: int) -> None:
    """Make a new file, filled to its limit and emptied again, so that it never has to grow."""
    new = path.with_name(path.name + ".new")
    for leftover in (new, _beside(new, "-wal"), _beside(new, "-shm"), _beside(new, "-journal")):
        leftover.unlink(missing_ok=True)
    wal_bytes = _wal_share(max_size_bytes)
    file_bytes = max_size_bytes - wal_bytes
    # Looked for, not told: a crash may come between setting aside and this.
    aside = _all_aside(path)
    to_salvage = [each for each in aside if not _beside(each, SALVAGED).exists()]
    born_ns = time.time_ns() if aside else 0
    try:
        db = sqlite3.connect(new, isolation_level=None)
        try:
            db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            db.execute("PRAGMA journal_mode = OFF")
            db.execute("PRAGMA synchronous = OFF")
            db.executescript(_SCHEMA)
            db.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [
                    ("schema", SCHEMA_VERSION),
                    ("epoch", secrets.token_bytes(8)),
                    ("born", born_ns.to_bytes(8, "big")),
                    ("salvage", _names(to_salvage)),
                ],
            )
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
        with open(new, "rb") as made:
            os.fsync(made.fileno())
        new.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (sqlite3.Error, OSError) as error:
        new.unlink(missing_ok=True)
        if not os.access(path.parent, os.W_OK):
            what = f"this user may not write to {path.parent}: set [store] path to a folder of its own"
        else:
            what = f"{error}: free the space, or set [store] path and max_size to what the disk holds"
        raise StoreError(f"cannot make the store {path} of {Size(max_size_bytes)}: {what}") from error


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


def _all_aside(path: Path) -> list[Path]:
    """All files that were set aside, and not what lies beside them; oldest first."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}{ASIDE}*-{'[0-9a-f]' * 4}"))


def mark_salvaged(aside: Path) -> None:
    """Nothing is left in this file that could be taken over: it need not be kept for ever."""
    try:
        _beside(aside, SALVAGED).touch()
    except OSError as error:
        log.warning("%s is kept for ever: cannot note that its frames were taken over: %s", aside, error)


def _names(paths: list[Path]) -> bytes:
    return "\n".join(path.name for path in paths).encode()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


class StoreThread:
    """The store on its own thread, for the event loop. One call at a time, in order."""

    def __init__(self, store: Store, executor: ThreadPoolExecutor) -> None:
        self._store = store
        self._executor = executor
        self._damage: StoreCorrupt | None = None
        """Found by whoever reads or writes; the next commit raises it, so that the pump ends."""

    async def commit(self, commit: Commit) -> Committed:
        if self._damage is not None:
            raise self._damage
        return await self._call(self._store.commit, commit)

    async def write_snapshot(
        self, after_block: int, state: dict[str, NDArray[Any]], changed: dict[int, SeriesSpec]
    ) -> None:
        steps = self._store.snapshot_steps(after_block, state, changed)
        while await self._call(_step, steps):
            pass

    async def oldest_blocks(self) -> list[JournalRow]:
        return await self._call(self._store.oldest_blocks)

    async def frames(self, seqs: list[int]) -> dict[int, bytes]:
        return await self._call(self._store.frames, seqs)

    def blocks_between(self, lo_ns: int, hi_ns: int) -> list[bytes]:
        """Waits for the thread: for the rare sample that is older than what is in memory."""
        try:
            return self._executor.submit(self._store.blocks_between, lo_ns, hi_ns).result()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    async def subscribed(self, session_name: str, filters: list[str]) -> list[str]:
        return await self._call(self._store.subscribed, session_name, filters)

    async def dead_letters(self, only: int = 0) -> list[DeadLetter]:
        return await self._call(self._store.dead_letters, only)

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
        except StoreCorrupt as error:
            self._damage = error
            raise
        except sqlite3.Error as error:  # of the methods that only read
            raise self._unreadable(error) from error

    def _unreadable(self, error: sqlite3.Error) -> StoreError:
        if not is_damage(error):
            return StoreError(f"{self._store.path} cannot be read: {error}")
        self._damage = StoreCorrupt(f"{self._store.path} is damaged: {error}")
        return self._damage


def _step(steps: Iterator[None]) -> bool:
    """Whether there is another."""
    return next(steps, steps) is not steps
