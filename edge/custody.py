"""What the store holds in custody and what one commit changes: the words of pump, store, uplink and retention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from devices.model import Int32s, Int64s, Lane, SeriesSpec


class Custody(NamedTuple):
    """The samples that a frame is answerable for: one row a series, in the order of the frame's table."""

    series: Int32s
    samples: Int64s

    def pack(self) -> bytes:
        return self.series.astype("<i4").tobytes() + self.samples.astype("<i8").tobytes()

    @staticmethod
    def unpack(data: bytes) -> Custody:
        n = len(data) // 12
        return Custody(
            np.frombuffer(data, "<i4", n).astype(np.int32), np.frombuffer(data, "<i8", n, 4 * n).astype(np.int64)
        )

    @staticmethod
    def none() -> Custody:
        return Custody(np.empty(0, np.int32), np.empty(0, np.int64))


@dataclass(slots=True)
class OutboxRow:
    """A frame of the outbox, without its bytes."""

    seq: int
    lane: Lane
    leaf: str
    created_ns: int
    digest: bytes
    custody: Custody
    size_bytes: int


class DeadLetter(NamedTuple):
    """What could not be decoded, validated or written."""

    at_ns: int
    source: str
    reason: str
    detail: str
    payload: bytes


class BuriedFrame(NamedTuple):
    """A frame of the outbox that is copied to the dead letters, since the cloud could not take all of it."""

    seq: int
    at_ns: int
    reason: str
    detail: str


@dataclass(slots=True)
class Commit:
    """All that one transaction makes durable."""

    new_series: list[tuple[int, SeriesSpec]] = field(default_factory=list)
    block: bytes = b""
    samples: int = 0
    first_ns: int = 0
    last_ns: int = 0
    frames: list[tuple[OutboxRow, bytes]] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    """Frames that leave the outbox: receipted, refused or dropped."""
    buried: list[BuriedFrame] = field(default_factory=list)
    send_limits: dict[Lane, int] = field(default_factory=dict)
    to_backfill_above: int | None = None
    """Live frames above this seq move to the lane `backfill`."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    unconfirmed: dict[str, bytes] = field(default_factory=dict)
    """Source -> the messages that its broker may send again (edge/redelivery.py); replaces what was stored."""
    trim_journal_to: int = 0
    """Blocks up to this id go. Never beyond the last whole snapshot."""


class JournalRow(NamedTuple):
    """A block of the journal, without its bytes."""

    id: int
    size_bytes: int


class Usage(NamedTuple):
    """What of the store's file is in use."""

    used_bytes: int
    limit_bytes: int
    journal_bytes: int


class Committed(NamedTuple):
    """The state of the store after a commit."""

    block_id: int
    """The last block of the journal."""
    usage: Usage
    high_ns: int
    """The highest time that was ever in the journal."""
    journal_floor_ns: int
    """Before it the journal knows nothing for certain."""
