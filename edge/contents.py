"""What is in the store's file, read back: after a start all of it, later single frames, blocks and dead letters.

Nothing here writes. Every method may raise sqlite3.Error, which edge/recovery.py and edge/storethread.py judge.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.errors import StoreCorrupt
from devices.model import Int64s, Lane, SeriesSpec
from edge import snapshot
from edge.custody import DeadLetter, JournalRow, OutboxRow
from edge.storefile import unpacked_names

BLOCKS_BYTES = 4 << 20
"""Of the journal, read at once where old samples are looked for."""


class Contents:
    """Of one file, whose layout edge/store.py draws."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self.path = path

    # -- what the operators are made of again ----------------------------------------------------------

    def series(self) -> list[SeriesSpec]:
        """The specs of all series; the index of a series is its place in the list. Raises StoreCorrupt."""
        rows = self._db.execute("SELECT spec FROM series ORDER BY id").fetchall()
        try:
            return [msgspec.json.decode(spec, type=SeriesSpec) for (spec,) in rows]
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(f"{self.path}: the table of series is damaged: {error}") from error

    def read_snapshot(self) -> tuple[int, dict[str, NDArray[Any]]]:
        """(block id, state) of the last whole snapshot; (0, {}) when there is none. Raises StoreCorrupt."""
        head = self._db.execute("SELECT max(id) FROM snapshot WHERE part = ''").fetchone()
        if head[0] is None:
            return 0, {}
        rows = self._db.execute(
            "SELECT part, data FROM snapshot WHERE id = ? AND part <> '' ORDER BY part, piece", head
        ).fetchall()  # an error that holds a cursor would hold the file
        return int(head[0]), snapshot.joined(rows)

    # -- the journal -----------------------------------------------------------------------------------

    def last_block(self) -> int:
        return self._highest("journal")

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

    def blocks_around(self, times_ns: Int64s, after: int) -> list[tuple[int, bytes]]:
        """(id, block) of the next blocks after `after` that may hold a sample of one of these times, which are in
        order: as many as BLOCKS_BYTES hold, none where there is none.

        `high_ns` is the running maximum of `last_ns`, so it grows with the id, and the first block that can
        matter is found by bisection: an index would cost a page with every commit.
        """
        lo_ns, hi_ns = int(times_ns[0]), int(times_ns[-1])
        first = max(self._one("SELECT min(id) FROM journal", default=0), after + 1)
        last = self.last_block() + 1
        while first < last:
            middle = (first + last) // 2
            reached = f"SELECT high_ns FROM journal WHERE id >= {middle} ORDER BY id LIMIT 1"
            if self._one(reached, default=lo_ns) < lo_ns:
                first = middle + 1
            else:
                last = middle
        rows = self._db.execute(
            "SELECT id, first_ns, last_ns FROM journal WHERE id >= ? AND last_ns >= ? AND first_ns <= ? ORDER BY id",
            (first, lo_ns, hi_ns),
        )
        blocks: list[tuple[int, bytes]] = []
        size_bytes = 0
        for block_id, first_ns, last_ns in rows:
            if times_ns[np.searchsorted(times_ns, first_ns)] > last_ns:
                continue  # it lies between two of them
            block = self._db.execute("SELECT block FROM journal WHERE id = ?", (block_id,)).fetchone()[0]
            blocks.append((block_id, block))
            size_bytes += len(block)
            if size_bytes >= BLOCKS_BYTES:
                break
        rows.close()
        return blocks

    def journal_floor_ns(self) -> int:
        """The time before which the journal knows nothing for certain: the highest that has left it."""
        return int.from_bytes(self._meta("journal_floor"), "big", signed=True)

    # -- the outbox ------------------------------------------------------------------------------------

    def next_seq(self) -> int:
        return self._highest("outbox") + 1

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

    def send_limits(self) -> dict[Lane, int]:
        return {Lane(lane): limit for lane, limit in self._db.execute("SELECT lane, send_limit FROM lane")}

    def month(self) -> bytes:
        """The account of the month's budget; empty when there is none."""
        return self._meta("month")

    # -- the rest --------------------------------------------------------------------------------------

    def unconfirmed(self) -> dict[str, bytes]:
        return dict(self._db.execute("SELECT source, messages FROM unconfirmed"))

    def dead_letters(self, only: int = 0) -> list[DeadLetter]:
        """The newest first; or only the one with this id."""
        rows = self._db.execute(
            "SELECT at_ns, source, reason, detail, payload, topic, bytes, id FROM deadletter WHERE ? IN (0, id) "
            "ORDER BY id DESC",
            (only,),
        )
        return [DeadLetter(*row) for row in rows]

    def to_salvage(self) -> list[Path]:
        """The files set aside whose frames have not been taken over yet (edge/salvage.py), oldest first."""
        return unpacked_names(self.path, self._meta("salvage"))

    def _meta(self, key: str) -> bytes:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return bytes(row[0]) if row else b""

    def _highest(self, table: str) -> int:
        """Id that was ever given."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return int(row[0]) if row else 0

    def _one(self, query: str, default: int) -> int:
        row = self._db.execute(query).fetchone()
        return default if row is None or row[0] is None else int(row[0])
