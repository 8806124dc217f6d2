"""One block of the journal: what the operators were fed between two commits, so that they can be fed it again.

A block holds its samples, each with final time and verdict, its ticks with the place where they came,
what the ledger learned besides, and whether what had closed was sealed into frames. Samples are grouped
by (stretch between ticks, series), in order of arrival within a group: series do not act on each other
between ticks, so this order replays exactly, and it packs to about a fifth of the plain order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import zstandard
from google.protobuf.message import DecodeError as ProtobufError

from devices.errors import FrameError, StoreCorrupt
from devices.model import Bytes, SampleBatch, SeriesSpec
from devices.wire import columns
from devices.wire import telemetry_pb2 as pb
from edge.clock import Anchor
from edge.held import Step
from edge.ledger import Deltas

ZSTD_LEVEL = 1


@dataclass(slots=True)
class Block:
    """What one commit covers, in order of arrival within each series."""

    batch: SampleBatch
    verdict: Bytes
    ticks: list[tuple[int, int]] = field(default_factory=list)
    """(number of samples before it, its time in ns)."""
    deltas: Deltas = field(default_factory=Deltas)
    sealed: bool = False
    """What had closed by the end of the block went into frames with the same commit."""
    resumed_ns: int = 0
    """Before all else the gateway started, at this time."""
    changed: list[tuple[int, SeriesSpec]] = field(default_factory=list)
    """After the samples and ticks, and before what has closed is sealed, the configuration changed these series."""
    series: int = 0
    """How many series there were at its end."""
    step: Step | None = None
    """After `resumed_ns` and before all else, held samples were released: they are among its samples."""
    anchor: Anchor | None = None
    """Of the times of its samples that are held."""


class _Stored(msgspec.Struct, array_like=True):
    """The block's bytes: msgpack of this, in zstd."""

    samples: int
    groups: int
    tick_positions: list[int]
    tick_times_ns: list[int]
    sealed: bool
    deltas: Deltas
    resumed_ns: int
    changed: list[tuple[int, SeriesSpec]]
    known: int
    series: bytes = b""
    counts: bytes = b""
    time_firsts: bytes = b""
    time_steps: bytes = b""
    values: bytes = b""
    quality: bytes = b""
    verdict: bytes = b""
    step: Step | None = None
    anchor: Anchor | None = None


def encode(block: Block) -> bytes:
    """A block as bytes."""
    n = len(block.batch)
    positions = [position for position, _ in block.ticks]
    times_ns = [ns for _, ns in block.ticks]
    stored = _Stored(
        n, 0, positions, times_ns, block.sealed, block.deltas, block.resumed_ns, block.changed, block.series
    )
    stored.step, stored.anchor = block.step, block.anchor
    if n:
        _pack_samples(block, positions, stored)
    return zstandard.compress(msgspec.msgpack.encode(stored), ZSTD_LEVEL)


def _pack_samples(block: Block, positions: list[int], stored: _Stored) -> None:
    n = len(block.batch)
    stretch = np.searchsorted(np.array(positions, np.int64), np.arange(n), side="right")
    key = (stretch << 32) | block.batch.series
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    groups = columns.Groups(np.diff(np.append(starts, n)))
    firsts, steps = columns.split_firsts(block.batch.time_ns[order], groups)
    stored.groups = len(groups)
    stored.series = columns.pack_differences(key[starts] & 0xFFFFFFFF)
    stored.counts = columns.pack_ints(groups.counts)
    stored.time_firsts = columns.pack_differences(firsts)
    stored.time_steps = columns.pack_ints(steps)
    stored.values = columns.pack_decimals(block.batch.value[order], groups).SerializeToString()
    stored.quality = _pack_flags(block.batch.quality[order])
    stored.verdict = _pack_flags(block.verdict[order])


def decode(data: bytes) -> Block:
    """The inverse of `encode`. Raises StoreCorrupt."""
    try:
        stored = msgspec.msgpack.decode(zstandard.decompress(data), type=_Stored)
        ticks = list(zip(stored.tick_positions, stored.tick_times_ns, strict=True))
        rest = (
            ticks,
            stored.deltas,
            stored.sealed,
            stored.resumed_ns,
            stored.changed,
            stored.known,
            stored.step,
            stored.anchor,
        )
        if not stored.samples:
            return Block(SampleBatch.empty(), np.empty(0, np.uint8), *rest)
        groups = columns.Groups(columns.unpack_ints(stored.counts, stored.groups, "counts"))
        series = columns.unpack_differences(stored.series, stored.groups, "series")
        firsts = columns.unpack_differences(stored.time_firsts, stored.groups, "time")
        steps = columns.unpack_ints(stored.time_steps, groups.n, "time")
        batch = SampleBatch(
            np.repeat(series, groups.counts).astype(np.int32),
            columns.join_firsts(firsts, steps, groups),
            columns.unpack_decimals(pb.Decimals.FromString(stored.values), groups, "value"),
            _unpack_flags(stored.quality, groups.n),
        )
        return Block(batch, _unpack_flags(stored.verdict, groups.n), *rest)
    except (msgspec.MsgspecError, zstandard.ZstdError, ProtobufError, FrameError, ValueError) as error:
        raise StoreCorrupt(f"a journal block cannot be read: {error}") from error


def _pack_flags(flags: Bytes) -> bytes:
    """Nothing, where all are 0: the usual case."""
    return flags.tobytes() if flags.any() else b""


def _unpack_flags(data: bytes, n: int) -> Bytes:
    return np.frombuffer(data, np.uint8).copy() if data else np.zeros(n, np.uint8)
