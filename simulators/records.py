"""Each simulated device's own record of what it really sent: what the account is held against.

A run's folder holds `series.jsonl` (a line a series) and `events.bin` (rows of EVENT_DTYPE, in order of
happening). A row is in the file within FLUSH_S; a record that was cut off ends with half a row, which is
left out when it is read.
"""

from __future__ import annotations

import enum
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.model import Floats, Int64s

FLUSH_S = 0.1

EVENT_DTYPE = np.dtype(
    [
        ("series", "<u4"),
        ("event", "<u2"),
        ("payload_bytes", "<u2"),  # of the message; on its first sample alone
        ("time_ns", "<i8"),  # of the sample
        ("sent_ns", "<i8"),  # UTC at which it left the device
        ("value", "<f8"),
    ]
)
_ROW = struct.Struct("<IHHqqd")
assert _ROW.size == EVENT_DTYPE.itemsize

Events: TypeAlias = NDArray[Any]
"""Rows of EVENT_DTYPE."""


class Event(enum.IntEnum):
    """What happened to a sample."""

    SENT = 1
    """It left the device."""
    TAKEN = 2
    """The sensor broker acknowledged it (PUBACK 0), or, on a serial line, the cable held until it was read."""
    SPOILED = 3
    """It left the device broken: it must be rejected."""
    UNHEARD = 4
    """Nobody was subscribed, so that the broker threw it away. It may have got through all the same, if it was
    sent before to a broker that was killed before it answered."""


class RecordedSeries(msgspec.Struct, frozen=True):
    """One line of `series.jsonl`; its place in the file is the series' number."""

    device: str
    channel: str
    unit: str
    kind: Literal["gauge", "counter", "state"]
    rate_hz: float
    decimals: int


class Recorder:
    """Writes the record: `add_series`, `begin`, `write`, `close`. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._series: IO[bytes] = (folder / "series.jsonl").open("wb")
        self._events: IO[bytes] | None = None
        self._count = 0
        self._flushed_s = 0.0

    def add_series(self, series: RecordedSeries) -> int:
        """Its number in the record."""
        self._series.write(msgspec.json.encode(series) + b"\n")
        self._series.flush()
        self._count += 1
        return self._count - 1

    def begin(self) -> None:
        """All series are there, and every device is ready to send."""
        self._events = (self._folder / "events.bin").open("wb")

    def write(
        self, event: Event, series: int, time_ns: int, value: float, *, sent_ns: int = 0, payload_bytes: int = 0
    ) -> None:
        assert self._events is not None, "nothing is written before `begin`"
        self._events.write(_ROW.pack(series, event, min(payload_bytes, 0xFFFF), time_ns, sent_ns, value))
        now_s = time.monotonic()
        if now_s - self._flushed_s > FLUSH_S:
            self.flush()
            self._flushed_s = now_s

    def flush(self) -> None:
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        self._series.close()
        if self._events is not None:
            self._events.close()


@dataclass(slots=True)
class SeriesRecord:
    """What one series sent, in order of sample time: columns of one length n."""

    series: RecordedSeries
    time_ns: Int64s
    sent_ns: Int64s
    value: Floats
    taken: NDArray[np.bool_]
    """Acknowledged: these must be in the sink."""
    unheard: NDArray[np.bool_]
    """Thrown away by the broker: as if they had not been sent."""
    spoiled: int
    """How many broken samples it sent, and somebody heard; they are in no column."""
    payload_bytes: int
    """Of all its messages, broken ones too."""


class RecordReader:
    """Reads a record, also while it is being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def is_ready(self) -> bool:
        """Whether the devices are there, their serial ports included."""
        return (self._folder / "events.bin").exists()

    def series(self) -> list[RecordedSeries]:
        lines = (self._folder / "series.jsonl").read_bytes().split(b"\n")[:-1]
        return [msgspec.json.decode(line, type=RecordedSeries) for line in lines]

    def events(self) -> Events:
        """All whole rows that are in the file by now."""
        data = (self._folder / "events.bin").read_bytes()
        whole = len(data) // EVENT_DTYPE.itemsize
        return np.frombuffer(data, EVENT_DTYPE, count=whole)

    def by_series(self) -> list[SeriesRecord]:
        """The record of each series, in order of `series.jsonl`."""
        events = self.events()
        order = np.argsort(events["series"], kind="stable")
        events = events[order]
        names = self.series()
        bounds = np.searchsorted(events["series"], np.arange(len(names) + 1))
        return [_series_record(name, events[bounds[i] : bounds[i + 1]]) for i, name in enumerate(names)]


def _series_record(series: RecordedSeries, events: Events) -> SeriesRecord:
    def times_of(event: Event) -> Int64s:
        return np.asarray(events["time_ns"][events["event"] == event], np.int64)

    sent = events[events["event"] == Event.SENT]
    sent = sent[np.argsort(sent["time_ns"], kind="stable")]
    return SeriesRecord(
        series=series,
        time_ns=sent["time_ns"],
        sent_ns=sent["sent_ns"],
        value=sent["value"],
        taken=np.isin(sent["time_ns"], times_of(Event.TAKEN)),
        unheard=np.isin(sent["time_ns"], times_of(Event.UNHEARD)),
        spoiled=len(np.setdiff1d(times_of(Event.SPOILED), times_of(Event.UNHEARD))),
        payload_bytes=int(events["payload_bytes"].sum()),
    )
