"""Frames and dead letters of a store that was found damaged, taken over into the one that follows it.

The file that was set aside is opened read-only, and its tables read by ranges of their key; a range that cannot be read
is halved, until single rows are left out. A frame is taken if it has its digest. It enters the new outbox as it is: its
bytes bear the old epoch and seq, and its points the keys that they always had, so that one that had arrived before
changes nothing. Only the envelope (correlation data, which brings the receipt back) is of the new epoch. A dead letter
is taken as it can be read: it is there to be looked at, and what is replayed of it is decoded once more.

It answers for no samples (`Custody.none`): the ledger that counted them is lost with the file, and the new one begins
at nothing. Live frames become backlog, and none is merged (edge/room.py), since its series are not in the new table.

What a crash leaves: what the last commit had, and the name of the file in `meta`; the next start goes through it
again, and passes over what is there. A file that has been gone through is marked (edge/storefile.py), and not before.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from devices.errors import StoreError
from devices.model import Lane
from devices.wire.topics import digest
from edge.custody import Commit, Custody, DeadLetter, OutboxRow
from edge.seal import Sealed
from edge.store import Store
from edge.storefile import SCHEMA_VERSION, is_damage, mark_salvaged

log = logging.getLogger("forebay.salvage")

ROWS_AT_ONCE = 256
COMMIT_BYTES = 1 << 20
FAILURES_MAX = 20_000
"""Ranges that could not be read: some seconds of trying. Then the rest is given up."""


def salvage(store: Store) -> None:
    """Take over what can be read of the files in whose place the store was made, if that has not been done."""
    to_salvage = store.to_salvage()
    if not to_salvage:
        return
    left = []
    try:
        for aside in to_salvage:
            if _take_over(store, aside):
                mark_salvaged(aside)
            else:
                left.append(aside)
        store.is_salvaged(but_for=left)
    except StoreError as error:
        log.error("%s: the frames of %s that are left are taken over at the next start", error, aside)


def _take_over(store: Store, aside: Path) -> bool:
    """Whether nothing is left in it that could be read. Raises StoreError."""
    is_done = True
    taking = _Taking(store)
    try:
        with closing(sqlite3.connect(f"file:{quote(str(aside))}?mode=ro", uri=True, isolation_level=None)) as db:
            schema = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
            if schema and int(schema[0]) > SCHEMA_VERSION:
                log.warning("%s is a newer program's, which will take its frames over", aside)
                return False
            for leaf, lane, created_ns, frame in _frames(db):
                taking.frame(leaf, lane, created_ns, frame)
            for letter in _letters(db):
                taking.letter(letter)
    except sqlite3.Error as error:
        log.error("not all of %s can be read: %s", aside, error)
        is_done = is_damage(error) or not aside.exists()
    taking.commit()
    log.warning(
        "%d frames of %s were taken over and will be sent, and %d dead letters; what it held beside them is not",
        taking.frames,
        aside,
        taking.letters,
    )
    return is_done


class _Taking:
    """What is not in the new store yet, in commits of limited size."""

    def __init__(self, store: Store) -> None:
        self.frames = self.letters = 0
        self._store = store
        self._known = {row.digest for row in store.outbox()}
        self._known_letters = {(letter.at_ns, digest(letter.payload)) for letter in store.dead_letters()}
        self._next_seq = store.next_seq()
        self._commit, self._size_bytes = Commit(), 0

    def frame(self, leaf: str, lane: Lane, created_ns: int, frame: bytes) -> None:
        if digest(frame) not in self._known:
            self._commit.frames.append(taken_over(self._next_seq + self.frames, leaf, lane, created_ns, frame))
            self.frames += 1
            self._grow(len(frame))

    def letter(self, letter: DeadLetter) -> None:
        if (letter.at_ns, digest(letter.payload)) not in self._known_letters:
            self._commit.dead_letters.append(letter)
            self.letters += 1
            self._grow(len(letter.payload))

    def _grow(self, size_bytes: int) -> None:
        self._size_bytes += size_bytes
        if self._size_bytes >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Raises StoreError."""
        self._store.commit(self._commit)
        self._commit, self._size_bytes = Commit(), 0


def taken_over(seq: int, leaf: str, lane: Lane, created_ns: int, frame: bytes) -> Sealed:
    """A frame of an earlier store, as one that this store sends under `seq`."""
    lane = Lane.BACKFILL if lane == Lane.LIVE else lane
    return OutboxRow(seq, lane, leaf, created_ns, digest(frame), Custody.none().pack(), len(frame)), frame


def _frames(db: sqlite3.Connection) -> Iterator[tuple[str, Lane, int, bytes]]:
    """(leaf, lane, created_ns, frame) of all that have their digest, oldest first. Raises sqlite3.Error."""
    for _, lane, leaf, created_ns, told, frame in _rows(db, "outbox", "seq, lane, leaf, created_ns, digest, frame"):
        if isinstance(frame, bytes) and told == digest(frame) and lane in list(Lane):
            yield str(leaf), Lane(lane), int(created_ns), frame


def _letters(db: sqlite3.Connection) -> Iterator[DeadLetter]:
    """All that can be read, oldest first. Raises sqlite3.Error."""
    known = {row[1] for row in db.execute("PRAGMA table_info(deadletter)")}
    columns = "id, at_ns, source, reason, detail, payload" + (", topic, bytes" if "topic" in known else ", '', 0")
    for _, at_ns, source, reason, detail, payload, topic, size_bytes in _rows(db, "deadletter", columns):
        if isinstance(at_ns, int) and isinstance(payload, bytes) and isinstance(size_bytes, int):
            yield DeadLetter(at_ns, str(source), str(reason), str(detail), payload, str(topic), size_bytes)


def _rows(db: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """What can be read of a table, in order of its key, the first of the columns. Raises sqlite3.Error."""
    key = columns.partition(",")[0]
    last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    failures = 0
    ranges = [(0, int(last[0]) + 1 if last else 0)]
    while ranges:
        first, end = ranges.pop()
        try:
            rows = db.execute(
                f"SELECT {columns} FROM {table} WHERE {key} >= ? AND {key} < ? ORDER BY {key} LIMIT ?",
                (first, end, ROWS_AT_ONCE),
            ).fetchall()
        except sqlite3.DatabaseError as error:
            failures += 1
            if failures > FAILURES_MAX:
                raise
            if failures == 1:
                log.error("rows of the table %s are left out where it is damaged: %s", table, error)
            if end - first > 1:
                middle = (first + end) // 2
                ranges += [(middle, end), (first, middle)]
            continue
        yield from rows
        if len(rows) == ROWS_AT_ONCE:
            ranges.append((rows[-1][0] + 1, end))
