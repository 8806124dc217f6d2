"""From what the operators give out to frames: self-describing messages with the table of their series.

Each frame knows how many samples of which series it is answerable for (`Custody`): the counts of its
summaries, or its raw samples. Alarms, state changes, ledger and inventory are copies, and answer for none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.model import Alarm, Lane, SampleBatch, SeriesSpec
from devices.wire.frame import (
    AlarmBody,
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

Sealed: TypeAlias = tuple[OutboxRow, bytes]


class Sealer:
    """Makes frames for one gateway and epoch, numbered in one sequence."""

    def __init__(self, gateway: str, epoch: int, next_seq: int, specs: list[SeriesSpec]) -> None:
        self._gateway = gateway
        self.epoch = epoch
        self._next_seq = next_seq
        self._specs = specs
        self._wire: dict[int, tuple[SeriesSpec, WireSeries]] = {}

    def closed(self, closed: Closed, now_ns: int) -> Iterator[Sealed]:
        """Frames of summaries and state changes, then of raw samples."""
        yield from self._summaries(closed.summaries, Lane.LIVE, now_ns)
        for rows in _parts(closed.changes):
            table, local, _ = self._table(rows["series"], None)
            yield self._seal(Lane.LIVE, "data", now_ns, table, ChangeBody(_renumbered(rows, local)), Custody.none())
        for start in range(0, len(closed.raw), ROWS_MAX):
            yield self._raw(closed.raw.take(np.arange(start, min(start + ROWS_MAX, len(closed.raw)))), now_ns)

    def backlog(self, summaries: NDArray[Any], now_ns: int) -> Iterator[Sealed]:
        """Frames of summaries that were merged: they go up after what is live."""
        return self._summaries(summaries, Lane.BACKFILL, now_ns)

    def _summaries(self, summaries: NDArray[Any], lane: Lane, now_ns: int) -> Iterator[Sealed]:
        for rows in _parts(summaries):
            table, local, custody = self._table(rows["series"], rows["count"])
            yield self._seal(lane, "data", now_ns, table, SummaryBody(_renumbered(rows, local)), custody)

    def _raw(self, batch: SampleBatch, now_ns: int) -> Sealed:
        table, local, custody = self._table(batch.series, np.ones(len(batch), np.int64))
        body = RawBody(SampleBatch(local, batch.time_ns, batch.value, batch.quality))
        return self._seal(Lane.RAW, "raw", now_ns, table, body, custody)

    def alarms(self, alarms: list[Alarm], now_ns: int) -> Iterator[Sealed]:
        """Frames of alarms, for the lane that goes first."""
        for start in range(0, len(alarms), ALARMS_MAX):
            part = alarms[start : start + ALARMS_MAX]
            table, local, _ = self._table(np.array([alarm.series for alarm in part], np.int32), None)
            renumbered = [
                msgspec.structs.replace(alarm, series=index) for alarm, index in zip(part, local.tolist(), strict=True)
            ]
            yield self._seal(Lane.ALARM, "alarm", now_ns, table, AlarmBody(renumbered), Custody.none())

    def ledger(self, ledger: Ledger, now_ns: int) -> Sealed:
        return self._seal(Lane.LIVE, "ledger", now_ns, [], ledger, Custody.none())

    def state(self, body: Inventory | Heartbeat, now_ns: int) -> Sealed:
        return self._seal(Lane.LIVE, "state", now_ns, [], body, Custody.none())

    def take_seq(self) -> int:
        """A number that no frame has had, and none will have but the one that it is taken for."""
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        return seq

    def _seal(self, lane: Lane, leaf: str, now_ns: int, table: list[WireSeries], body: Any, custody: Custody) -> Sealed:
        seq = self.take_seq()
        frame = encode(Frame(Header(self._gateway, self.epoch, seq, lane, now_ns), table, body))
        return OutboxRow(seq, lane, leaf, now_ns, digest(frame), custody.pack(), len(frame)), frame

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


def _parts(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """In parts that fit a frame."""
    for start in range(0, len(rows), ROWS_MAX):
        yield rows[start : start + ROWS_MAX]


def _renumbered(rows: NDArray[Any], local: NDArray[np.int32]) -> NDArray[Any]:
    rows["series"] = local
    return rows


def will(gateway: str) -> bytes:
    """What the broker says for a gateway whose link is gone: a heartbeat without a time, and without a receipt."""
    return encode(Frame(Header(gateway, 0, 1, Lane.LIVE, 0), [], Heartbeat(0, "", "")))
