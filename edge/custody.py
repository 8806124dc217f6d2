"""What the store holds in custody and what one commit changes: the words of pump, store, uplink and retention."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from devices.errors import FrameError, StoreCorrupt
from devices.model import Int32s, Int64s, Lane, SeriesSpec
from devices.wire.columns import pack_differences, pack_ints, unpack_differences, unpack_ints

BIRTH_UNKNOWN_NS = 1 << 62
"""The birth of a store that followed one set aside, until a trusted clock has told it: every window began before."""

_SIZES = struct.Struct("<II")


class Custody(NamedTuple):
    """The samples that a frame is answerable for: one row a series, in the order of the frame's table."""

    series: Int32s
    samples: Int64s

    def pack(self) -> bytes:
        """Some 10 bytes where the frame holds the same of every series; the outbox may hold 100,000 frames."""
        series = pack_differences(self.series.astype(np.int64))
        return _SIZES.pack(len(self.series), len(series)) + series + pack_ints(self.samples)

    @staticmethod
    def unpack(data: bytes) -> Custody:
        """Raises StoreCorrupt."""
        try:
            n, series_bytes = _SIZES.unpack_from(data)
            samples_at = _SIZES.size + series_bytes
            series = unpack_differences(data[_SIZES.size : samples_at], n, "series")
            return Custody(series.astype(np.int32), unpack_ints(data[samples_at:], n, "samples"))
        except (FrameError, struct.error) as error:
            raise StoreCorrupt(f"the custody of a frame cannot be read: {error}") from error

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
    packed_custody: bytes
    size_bytes: int

    @property
    def custody(self) -> Custody:
        return Custody.unpack(self.packed_custody)


class DeadLetter(NamedTuple):
    """What could not be decoded, validated or written."""

    at_ns: int
    source: str
    reason: str
    detail: str
    payload: bytes
    topic: str = ""
    size_bytes: int = 0
    """Of the whole message, of which `payload` may be a part; 0: not known."""
    id: int = 0
    """Given by the store."""


class LettersKept(NamedTuple):
    """How many dead letters the store has."""

    kept: int
    size_bytes: int
    """Of what is kept of them."""
    gone: int
    """Since the start: the oldest, for lack of room."""


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
    """Live frames above this seq, but for those of this commit, move to the lane `backfill`."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    replayed: list[int] = field(default_factory=list)
    """Ids of dead letters whose content is in this commit."""
    unconfirmed: dict[str, bytes] = field(default_factory=dict)
    """Source -> the messages that its broker may send again (edge/redelivery.py); replaces what was stored."""
    trim_journal_to: int = 0
    """Blocks up to this id go. Never beyond the last whole snapshot."""
    month: bytes = b""
    """The account of the month's budget (edge/budget.py); replaces what was stored, if there is one."""
    born_ns: int = 0
    """UTC at which a store that followed one set aside was born, as far as it is known; 0 says nothing."""


class JournalRow(NamedTuple):
    """A block of the journal, without its bytes."""

    id: int
    size_bytes: int
    high_ns: int
    """The highest sample time of this block and all before it."""


class Usage(NamedTuple):
    """What of the store's file is in use."""

    used_bytes: int
    limit_bytes: int
    journal_bytes: int
    journal_from_ns: int
    """How far back the journal reaches: `high_ns` of its oldest block with samples; its end, if there is none."""


class Committed(NamedTuple):
    """The state of the store after a commit."""

    block_id: int
    """The last block of the journal."""
    usage: Usage
    high_ns: int
    """The highest time that was ever in the journal."""
    journal_floor_ns: int
    """Before it the journal knows nothing for certain."""
