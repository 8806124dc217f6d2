"""The edge's one file: journal, outbox, dead letters, snapshots and the table of series.

    StoreThread ───────────▶ Store, here: what is written ──┬──▶ one SQLite file: made, opened, set aside
    (edge/storethread.py)    Contents: what is read back ───┘    (edge/storefile.py)
                             (edge/contents.py)

Layout (SQLite, version in `meta`)

  meta        key, value                     schema, epoch, gateway, born: when it followed one set aside,
                                             salvage: the names of those that nothing was taken over from yet
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
  a new file    a trusted clock        no birth                            goes on to send all samples raw, until then
  two commits   the salvage's end      some frames of it, meta `salvage`   it is gone through again (edge/salvage.py)

A file that follows one set aside does not know what the other has published. It opens no window that began before
its birth (edge/entry.py): such samples go raw, where writing them twice changes nothing. Its birth is the first time
that a trusted clock tells; the first commit with a sample that went into a window has it.

The file and its WAL never grow beyond `max_size`. When the file is full a commit raises StoreFull and changes
nothing; what must go first is decided in edge/retention.py.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from devices.errors import ConfigError, StoreCorrupt, StoreError, StoreFull
from devices.model import Lane, SeriesSpec
from edge import snapshot, storefile
from edge.contents import Contents
from edge.custody import Commit, Committed, LettersKept, Usage
from edge.storefile import PAGE_BYTES, is_damage
from edge.wear import Wear, written_bytes

log = logging.getLogger("forebay.store")

SNAPSHOT_TRANSACTION_BYTES = 256 << 10
FULL_FROM_BYTES = 1 << 20
"""SQLite says "full" of the disk as well: of the file only where it has less room than this and what is added."""
FILTERS_MAX = 64
"""Of earlier configurations, remembered for each session at a broker."""
DEAD_LETTERS_MAX = 1000
DEAD_LETTERS_BYTES_MAX = 1 << 20
"""Unless the configuration says otherwise."""


class Store(Contents):
    """The file, used from one thread. Every method that writes may raise StoreError."""

    def __init__(self, connection: sqlite3.Connection, path: Path, began_bytes: int) -> None:
        """`began_bytes`: written to the disk by this process before it opened the file."""
        super().__init__(connection, path)
        self.dead_letters_bytes = DEAD_LETTERS_BYTES_MAX
        """Of payloads; when full the oldest go."""
        self.letters = self._count_letters(gone=0)
        self.set_aside: str = ""
        """Where the file that was found damaged lies now; "" when none was."""
        self.epoch = int.from_bytes(self._meta("epoch"), "big")
        self.born_ns = int.from_bytes(self._meta("born"), "big")
        """UTC at which it followed a file that was set aside; 0: it followed none; BIRTH_UNKNOWN_NS: not known yet."""
        self.wear = Wear(self._meta("wear"), began_bytes)
        self._journal_bytes = self._one("SELECT sum(length(block)) FROM journal", default=0)
        # Where all of the journal has been trimmed, it reached as far as what has left it.
        last_high = "SELECT high_ns FROM journal ORDER BY id DESC LIMIT 1"
        self._high_ns = self._one(last_high, default=self.journal_floor_ns())
        self._journal_from_ns = self._oldest_ns()

    @classmethod
    def open(cls, path: Path, max_size_bytes: int) -> Store:
        """Open the file, or make it. Raises StoreError only where nothing can be written at all."""
        storefile.make_folder(path)
        if not path.exists():
            storefile.make(path, max_size_bytes)
            return cls._open_existing(path, max_size_bytes)
        try:
            return cls._open_existing(path, max_size_bytes)
        except StoreCorrupt as error:
            return cls.anew(path, max_size_bytes, str(error))

    @classmethod
    def anew(cls, path: Path, max_size_bytes: int, why: str) -> Store:
        """Set a file that cannot be used aside, and begin with an empty one."""
        aside = str(storefile.set_aside(path, why))
        storefile.make(path, max_size_bytes)
        store = cls._open_existing(path, max_size_bytes)
        store.set_aside = aside
        return store

    @classmethod
    def _open_existing(cls, path: Path, max_size_bytes: int) -> Store:
        began_bytes = written_bytes()
        with storefile.opening(path, max_size_bytes) as db:
            return cls(db, path, began_bytes)

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
                self._delete("deadletter", "id", commit.replayed)
                letters = self._count_letters(letters.gone)
            if commit.removed:
                self._delete("outbox", "seq", commit.removed)
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
                self._set_meta("month", commit.month)
            if commit.born_ns not in (0, self.born_ns):
                self._set_meta("born", commit.born_ns.to_bytes(8, "big"))
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
        self.born_ns = commit.born_ns or self.born_ns
        return self.committed()

    def committed(self) -> Committed:
        """What stands now."""
        return Committed(self.last_block(), self.usage(), self._high_ns, self.journal_floor_ns())

    def usage(self) -> Usage:
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return Usage(
            pages * PAGE_BYTES, self._pragma("max_page_count") * PAGE_BYTES, self._journal_bytes, self._journal_from_ns
        )

    def _oldest_ns(self) -> int:
        """How far back the journal reaches; blocks from before the first sample reach nowhere, and an empty one only
        to where it ended."""
        return self._one("SELECT high_ns FROM journal WHERE high_ns > 0 ORDER BY id LIMIT 1", default=self._high_ns)

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
        self._set_meta("journal_floor", floor_ns.to_bytes(8, "big", signed=True))
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

    # -- snapshots -----------------------------------------------------------------------------------

    def snapshot_steps(
        self, after_block: int, state: dict[str, NDArray[Any]], changed: dict[int, SeriesSpec]
    ) -> Iterator[None]:
        """Store the operators' state as it was after journal block `after_block`; the one before goes with the last
        step. `changed`: settings of series that count in this state.

        Each step is a transaction of limited size: the WAL stays within its share, and commits go in between.
        The closing row makes the snapshot whole. Raises StoreError; what was written is removed then.
        """
        rows: list[tuple[int, str, int, bytes]] = []
        size_bytes = 0
        try:
            for part, piece, data in snapshot.pieces(state):
                rows.append((after_block, part, piece, data))
                size_bytes += len(data)
                if size_bytes > SNAPSHOT_TRANSACTION_BYTES:
                    self._db.execute("BEGIN IMMEDIATE")
                    self._insert_pieces(rows)
                    self._db.execute("COMMIT")
                    rows, size_bytes = [], 0
                    yield
            self._db.execute("BEGIN IMMEDIATE")
            self._insert_pieces([*rows, (after_block, "", 0, b"")])
            self._insert_series(list(changed.items()))
            self._db.execute("DELETE FROM snapshot WHERE id <> ?", (after_block,))
            self._set_meta("wear", self.wear.pack())
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            failed = self._failed(error, "the snapshot", SNAPSHOT_TRANSACTION_BYTES)
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("DELETE FROM snapshot WHERE id = ?", (after_block,))
            raise failed from error

    def _insert_pieces(self, rows: list[tuple[int, str, int, bytes]]) -> None:
        self._db.executemany("INSERT INTO snapshot VALUES (?, ?, ?, ?)", rows)

    # -- notes ---------------------------------------------------------------------------------------

    def belong_to(self, gateway: str) -> None:
        """Note whose store it is. ConfigError: another gateway's frames wait in it, and bear its name."""
        owner = self._meta("gateway").decode()
        if owner == gateway:
            return
        waiting = len(self.outbox()) if owner else 0
        if waiting:
            raise ConfigError(
                f"{waiting} frames of gateway {owner!r} wait in {self.path}, and nobody takes them from {gateway!r}: "
                f'write gateway = "{owner}" until they are sent (`forebay-edge status` shows them), or name another '
                "[store] path"
            )
        self._set_meta("gateway", gateway.encode())

    def subscribed(self, session_name: str, filters: list[str]) -> list[str]:
        """Note what a broker's session is about to be asked for; which other filters it may have from earlier
        configurations. Those are remembered on: the broker may come back as it was before it was told to forget them.
        """
        key = f"filters {session_name}"
        known = [name for name in self._meta(key).decode("utf-8", "replace").split("\0") if name]
        others = [name for name in known if name not in filters][-FILTERS_MAX:]
        if others + filters != known:
            try:
                self._set_meta(key, "\0".join(others + filters).encode())
            except sqlite3.Error as error:
                log.warning("%s", self._failed(error, f"the note of what is asked for at {session_name}", 0))
        return others

    def is_salvaged(self, but_for: list[Path]) -> None:
        """What could be taken over has been, `but_for` what is in these files. Raises StoreError."""
        try:
            self._set_meta("salvage", storefile.packed_names(but_for))
        except sqlite3.Error as error:
            raise self._failed(error, "the end of the salvage", 0) from error

    # -- small ---------------------------------------------------------------------------------------

    def _set_meta(self, key: str, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _delete(self, table: str, key: str, ids: list[int]) -> None:
        self._db.execute(
            f"DELETE FROM {table} WHERE {key} IN (SELECT value FROM json_each(?))",
            (msgspec.json.encode(ids).decode(),),
        )

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

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
