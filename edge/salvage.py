"""Frames of a store that was found damaged, taken over into the one that follows it.

The file that was set aside is opened read-only, and its outbox read by ranges of `seq`; a range that cannot be read is
halved, until single rows are left out. A frame is taken if it has its digest. It enters the new outbox as it is: its
bytes bear the old epoch and seq, and its points the keys that they always had, so that one that had arrived before
changes nothing. Only the envelope (correlation data, which brings the receipt back) is of the new epoch.

It answers for no samples (`Custody.none`): the ledger that counted them is lost with the file, and the new one begins
at nothing. Live frames become backlog, and none is merged (edge/room.py), since its series are not in the new table.

What a crash leaves: the frames of the last commit, and the name of the file in `meta`; the next start goes through it
again, and passes over what is there. A file that has been gone through is marked (edge/store.py), and not before.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from devices.errors import StoreError
from devices.model import Lane
from devices.wire.topics import digest
from edge.custody import Commit, Custody, OutboxRow
from edge.seal import Sealed
from edge.store import SCHEMA_VERSION, Store, is_damage, mark_salvaged

log = logging.getLogger("forebay.salvage")

ROWS_AT_ONCE = 256
COMMIT_BYTES = 1 << 20
FAILURES_MAX = 20_000
"""Ranges that could not be read: some seconds of trying. Then the rest is given up."""


class _OfNewerProgram(Exception):
    """Nothing of it is lost, and that program will know what to do with it."""


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
    known = {row.digest for row in store.outbox()}
    seq, taken, size_bytes = store.next_seq(), 0, 0
    commit = Commit()
    try:
        for leaf, lane, created_ns, frame in _frames(aside):
            if digest(frame) in known:
                continue
            commit.frames.append(_taken_over(seq + taken, leaf, lane, created_ns, frame))
            taken, size_bytes = taken + 1, size_bytes + len(frame)
            if size_bytes >= COMMIT_BYTES:
                store.commit(commit)
                commit, size_bytes = Commit(), 0
    except _OfNewerProgram:
        log.warning("%s is a newer program's, which will take its frames over", aside)
        return False
    except sqlite3.Error as error:
        log.error("not all frames of %s can be read: %s", aside, error)
        is_done = is_damage(error) or not aside.exists()
    store.commit(commit)
    log.warning("%d frames of %s were taken over and will be sent; what it held beside them is not", taken, aside)
    return is_done


def _taken_over(seq: int, leaf: str, lane: Lane, created_ns: int, frame: bytes) -> Sealed:
    lane = Lane.BACKFILL if lane == Lane.LIVE else lane
    return OutboxRow(seq, lane, leaf, created_ns, digest(frame), Custody.none().pack(), len(frame)), frame


def _frames(aside: Path) -> Iterator[tuple[str, Lane, int, bytes]]:
    """(leaf, lane, created_ns, frame) of all that have their digest, oldest first. Raises sqlite3.Error or
    _OfNewerProgram."""
    with closing(sqlite3.connect(f"file:{quote(str(aside))}?mode=ro", uri=True, isolation_level=None)) as db:
        schema = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        if schema and int(schema[0]) > SCHEMA_VERSION:
            raise _OfNewerProgram
        last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
        failures = 0
        ranges = [(0, int(last[0]) + 1 if last else 0)]
        while ranges:
            first, end = ranges.pop()
            try:
                rows = db.execute(
                    "SELECT seq, lane, leaf, created_ns, digest, frame FROM outbox WHERE seq >= ? AND seq < ? "
                    "ORDER BY seq LIMIT ?",
                    (first, end, ROWS_AT_ONCE),
                ).fetchall()
            except sqlite3.DatabaseError as error:
                failures += 1
                if failures > FAILURES_MAX:
                    raise
                if failures == 1:
                    log.error("%s: frames are left out where it is damaged: %s", aside, error)
                if end - first > 1:
                    middle = (first + end) // 2
                    ranges += [(middle, end), (first, middle)]
                continue
            for _, lane, leaf, created_ns, told, frame in rows:
                if isinstance(frame, bytes) and told == digest(frame) and lane in list(Lane):
                    yield str(leaf), Lane(lane), int(created_ns), frame
            if len(rows) == ROWS_AT_ONCE:
                ranges.append((rows[-1][0] + 1, end))
