"""From what the operators give out to frames: self-describing messages with the table of their series.

Each frame knows how many samples of which series it is answerable for (`Custody`): the counts of its
summaries, or its raw samples. Alarms, state changes, ledger and inventory are copies, and answer for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.model import Alarm, Lane, SampleBatch, SeriesSpec
from devices.wire.frame import (
    AlarmBody,
    BodyKind,
    ChangeBody,
    Frame,
    Header,
    Heartbeat,
    Inventory,
    Ledger,
    RawBody,
    SummaryBody,
    WireSeries,
    encode,
)
from devices.wire.topics import digest
from edge.custody import Custody, OutboxRow
from edge.operators import Closed

ROWS_MAX = 4096
"""Rows of one frame: some 50 KB of summaries, far below what brokers take."""

ALARMS_MAX = 512
"""Of one frame: with their sentences some 200 KB unpacked."""

SERIES_MAX = 2048
"""Of one frame: with the longest names 2 MB unpacked, half of what an ingester takes."""

FRAME_BYTES = 256 << 10
PACKET_OVERHEAD_BYTES = 1024
"""What a packet has beside its frame, at most: header, topic, properties."""

Sealed: TypeAlias = tuple[OutboxRow, bytes]
Content: TypeAlias = tuple[list[WireSeries], BodyKind, Custody]
"""The frame's table, its body, and what it is answerable for."""
Rows: TypeAlias = Any
"""What has a length and can be cut in two: an array, a list."""


class Sealer:
    """Makes frames for one gateway and epoch, numbered in one sequence."""

    def __init__(
        self,
        gateway: str,
        epoch: int,
        next_seq: int,
        specs: list[SeriesSpec],
        frame_bytes: Callable[[], int] = lambda: FRAME_BYTES,
    ) -> None:
        """`frame_bytes`: no frame of more than one row is larger; brokers and ingesters throw larger ones away."""
        self._gateway = gateway
        self.epoch = epoch
        self._frame_bytes = frame_bytes
        self._next_seq = next_seq
        self._specs = specs
        self._wire: dict[int, tuple[SeriesSpec, WireSeries]] = {}

    def closed(self, closed: Closed, now_ns: int) -> Iterator[Sealed]:
        """Frames of summaries and state changes, then of raw samples."""
        yield from self._summaries(closed.summaries, Lane.LIVE, now_ns)
        for rows in _parts(closed.changes, ROWS_MAX):
            yield from self._rows(rows, Lane.LIVE, "data", now_ns, self._changes)
        for start in range(0, len(closed.raw), ROWS_MAX):
            rows = np.arange(start, min(start + ROWS_MAX, len(closed.raw)))
            yield from self._rows(rows, Lane.RAW, "raw", now_ns, lambda part: self._raw(closed.raw.take(part)))

    def backlog(self, summaries: NDArray[Any], now_ns: int) -> Iterator[Sealed]:
        """Frames of summaries that were merged: they go up after what is live."""
        return self._summaries(summaries, Lane.BACKFILL, now_ns)

    def alarms(self, alarms: list[Alarm], now_ns: int) -> Iterator[Sealed]:
        """Frames of alarms, for the lane that goes first."""
        for part in _parts(alarms, ALARMS_MAX):
            yield from self._rows(part, Lane.ALARM, "alarm", now_ns, self._alarms)

    def ledger(self, ledger: Ledger, now_ns: int) -> Iterator[Sealed]:
        """Frames of one ledger: each of some of its accounts."""
        return self._of_the_gateway("ledger", now_ns, ledger.accounts, lambda part: Ledger(ledger.time_ns, part))

    def inventory(self, inventory: Inventory, now_ns: int) -> Iterator[Sealed]:
        """Frames of one inventory: each of some of its devices."""
        return self._of_the_gateway(
            "state", now_ns, inventory.devices, lambda part: msgspec.structs.replace(inventory, devices=part)
        )

    def heartbeat(self, heartbeat: Heartbeat, now_ns: int) -> Iterator[Sealed]:
        return self._of_the_gateway("state", now_ns, [], lambda _: heartbeat)

    # -- bodies: (the frame's table, its body, what it is answerable for) -----------------------------

    def _summaries(self, summaries: NDArray[Any], lane: Lane, now_ns: int) -> Iterator[Sealed]:
        for rows in _parts(summaries, ROWS_MAX):
            yield from self._rows(rows, lane, "data", now_ns, self._summary)

    def _summary(self, rows: NDArray[Any]) -> Content:
        table, local, custody = self._table(rows["series"], rows["count"])
        return table, SummaryBody(_renumbered(rows, local)), custody

    def _changes(self, rows: NDArray[Any]) -> Content:
        table, local, _ = self._table(rows["series"], None)
        return table, ChangeBody(_renumbered(rows, local)), Custody.none()

    def _raw(self, batch: SampleBatch) -> Content:
        table, local, custody = self._table(batch.series, np.ones(len(batch), np.int64))
        return table, RawBody(SampleBatch(local, batch.time_ns, batch.value, batch.quality)), custody

    def _alarms(self, alarms: list[Alarm]) -> Content:
        table, local, _ = self._table(np.array([alarm.series for alarm in alarms], np.int32), None)
        renumbered = [
            msgspec.structs.replace(alarm, series=index) for alarm, index in zip(alarms, local.tolist(), strict=True)
        ]
        return table, AlarmBody(renumbered), Custody.none()

    # -- frames ---------------------------------------------------------------------------------------

    def take_seq(self) -> int:
        """A number that no frame has had, and none will have but the one that it is taken for."""
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        return seq

    def _of_the_gateway(
        self, leaf: str, now_ns: int, rows: list[Any], body_of: Callable[[list[Any]], BodyKind]
    ) -> Iterator[Sealed]:
        return self._rows(rows, Lane.LIVE, leaf, now_ns, lambda part: ([], body_of(part), Custody.none()))

    def _rows(
        self, rows: Rows, lane: Lane, leaf: str, now_ns: int, content_of: Callable[[Rows], Content]
    ) -> Iterator[Sealed]:
        """All rows: in one frame, or halved until each frame is of a size that passes."""
        table, body, custody = content_of(rows)
        frame = encode(Frame(Header(self._gateway, self.epoch, self._next_seq, lane, now_ns), table, body))
        if len(rows) > 1 and (len(frame) > self._frame_bytes() or len(table) > SERIES_MAX):
            middle = len(rows) // 2
            yield from self._rows(rows[:middle], lane, leaf, now_ns, content_of)
            yield from self._rows(rows[middle:], lane, leaf, now_ns, content_of)
            return
        yield OutboxRow(self.take_seq(), lane, leaf, now_ns, digest(frame), custody.pack(), len(frame)), frame

    def _table(
        self, series: NDArray[np.int32], samples: NDArray[np.int64] | None
    ) -> tuple[list[WireSeries], NDArray[np.int32], Custody]:
        """(the frame's table, each row's index in it, samples by series of the table)."""
        used, local = np.unique(series, return_inverse=True)
        counts = np.zeros(len(used), np.int64)
        if samples is not None:
            np.add.at(counts, local, samples)
        return [self._wire_series(int(i)) for i in used], local.astype(np.int32), Custody(used, counts)

    def _wire_series(self, index: int) -> WireSeries:
        spec = self._specs[index]
        known = self._wire.get(index)
        if known is None or known[0] is not spec:
            known = spec, WireSeries(spec.device, spec.channel, spec.quantity, spec.unit, spec.kind, spec.texts)
            self._wire[index] = known
        return known[1]


def _parts(rows: Rows, most: int) -> Iterator[Rows]:
    for start in range(0, len(rows), most):
        yield rows[start : start + most]


def _renumbered(rows: NDArray[Any], local: NDArray[np.int32]) -> NDArray[Any]:
    rows = rows.copy()  # they may be halved, and numbered once more
    rows["series"] = local
    return rows


def will(gateway: str) -> bytes:
    """What the broker says for a gateway whose link is gone: a heartbeat without a time, and without a receipt."""
    return encode(Frame(Header(gateway, 0, 1, Lane.LIVE, 0), [], Heartbeat(0, "", "")))
