"""A frame: one self-describing message of the uplink, as bytes and as values (docs/wire.md).

    payload = Frame { version, gateway, epoch, seq, lane, created_ns, body_bytes, body }
                                                                       |           |
                        length of the body unpacked, checked first ----'           '---- zstd of Body
    Body    = table of series + one of: summaries, changes, raw, alarms, inventory, ledger, heartbeat

`decode` is the one way in for bytes of a peer. It is a function of payload and limits alone (tables of
series that came before are remembered, and shared between frames: `series` is not to be changed); it either
returns a frame in which everything has been checked, or raises FrameError, whose `reason` is one of

    version     written in a way that this version does not read
    truncated   something ends before what it claims
    oversize    something claims more than a limit allows
    malformed   not what the format says
    series      a row or alarm names a series that the table does not have
    name        a name is empty, or the gateway's is not a legal one
    nonfinite   a sample, a change, or a summary's first, min, max or last is NaN or infinite

A column of NaN or infinite mean, stddev or increase is let through: sums of huge values overflow.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec
import zstandard
from google.protobuf.message import DecodeError as ProtobufError

from devices.errors import FrameError, NotForUs
from devices.model import Lane
from devices.wire import telemetry_pb2 as pb
from devices.wire.bodies import (
    Account,
    AlarmBody,
    BodyKind,
    ChangeBody,
    Heartbeat,
    Inventory,
    InventoryDevice,
    Ledger,
    RawBody,
    SummaryBody,
    pack_body,
    unpack_body,
)
from devices.wire.limits import FrameLimits
from devices.wire.table import KnownTables, WireSeries, pack_table
from devices.wire.topics import legal_gateway

__all__ = [
    "Account",
    "AlarmBody",
    "BodyKind",
    "ChangeBody",
    "Frame",
    "FrameLimits",
    "Header",
    "Heartbeat",
    "Inventory",
    "InventoryDevice",
    "Ledger",
    "RawBody",
    "SummaryBody",
    "WireSeries",
    "decode",
    "encode",
]

VERSION = 1
_LEVEL = 1
"""Of zstd. Levels 2 and 3 take no byte off these columns that would pay for their time."""
_LANES = {int(lane): lane for lane in Lane}
_tables = KnownTables()
_zstd = threading.local()  # its contexts are costly to make, and each must stay with one thread


class Header(msgspec.Struct, frozen=True):
    """Who made a frame and which of theirs it is."""

    gateway: str
    epoch: int
    """Random, 64 bits, one per store."""
    seq: int
    """1, 2, ... within the epoch."""
    lane: Lane
    created_ns: int


class Frame(msgspec.Struct, frozen=True, eq=False):
    """Rows and alarms in `body` name a series by its place in `series`."""

    header: Header
    series: Sequence[WireSeries]
    body: BodyKind


def encode(frame: Frame) -> bytes:
    """The payload of a frame. The same frame always gives the same bytes (with the same zstd).

    ValueError for what must not have come this far: values that are not finite, rows of a series that
    the table does not have, names that are not Unicode text.
    """
    body = pb.Body()
    message, table = pack_table(frame.series)
    if frame.series:
        body.table.CopyFrom(message)
    pack_body(frame.body, table, body)
    unpacked = body.SerializeToString(deterministic=True)
    header = frame.header
    return pb.Frame(
        version=VERSION,
        gateway=header.gateway,
        epoch=header.epoch,
        seq=header.seq,
        lane=header.lane,
        created_ns=header.created_ns,
        body_bytes=len(unpacked),
        body=_compressor().compress(unpacked),
    ).SerializeToString(deterministic=True)


def decode(payload: bytes, limits: FrameLimits) -> Frame:
    """The frame of a payload, checked in every part; FrameError for anything that is not right, and NotForUs where a
    later program may read it."""
    if len(payload) > limits.frame_bytes:
        raise FrameError(f"frame of {len(payload)} bytes; at most {limits.frame_bytes}", "oversize")
    try:
        message = pb.Frame.FromString(payload)
    except ProtobufError:
        raise FrameError("not a frame: Protobuf cannot read it", "malformed") from None
    header = _unpack_header(message)
    try:
        body = pb.Body.FromString(_unpack(message.body, message.body_bytes, limits))
    except ProtobufError:
        raise FrameError("the body is not a Body: Protobuf cannot read it", "malformed") from None
    series, table = _tables.unpack(body.table, limits)
    return Frame(header, series, unpack_body(body, table, limits))


def _unpack_header(message: pb.Frame) -> Header:
    if message.version > VERSION:
        raise NotForUs(
            f"frame of version {message.version}; this program reads {VERSION}: it is to be upgraded", "version"
        )
    if message.version != VERSION:
        raise FrameError(f"frame of version {message.version}; this program reads {VERSION}", "version")
    if not legal_gateway(message.gateway):
        raise FrameError(f"gateway {message.gateway[:80]!r} is not a legal name", "name")
    if not 0 < message.seq < 1 << 63:
        raise FrameError(f"seq {message.seq} is not above 0 and within 63 bits", "malformed")
    if message.lane not in _LANES:
        raise FrameError(f"lane {message.lane} is not known", "malformed")
    return Header(message.gateway, message.epoch, message.seq, _LANES[message.lane], message.created_ns)


def _unpack(packed: bytes, claimed: int, limits: FrameLimits) -> bytes:
    """Unpack zstd, after its own header has been found to claim what the frame claims."""
    if claimed > limits.body_bytes:
        raise FrameError(f"body of {claimed} bytes; at most {limits.body_bytes}", "oversize")
    try:
        parameters = zstandard.get_frame_parameters(packed)
        if parameters.content_size != claimed:
            raise FrameError("zstd's header and the frame claim different lengths of the body", "malformed")
        if parameters.dict_id or parameters.window_size > max(limits.body_bytes, 1 << 10):
            raise FrameError("zstd wants a dictionary, or a window larger than a body may be", "oversize")
        unpacked: bytes = _decompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FrameError(f"the body cannot be unpacked: {error}", "malformed") from None
    if len(unpacked) != claimed:
        raise FrameError(f"the body has {len(unpacked)} bytes, and claims {claimed}", "malformed")
    return unpacked


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_zstd, "compressor"):
        _zstd.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    compressor: zstandard.ZstdCompressor = _zstd.compressor
    return compressor


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_zstd, "decompressor"):
        _zstd.decompressor = zstandard.ZstdDecompressor()
    decompressor: zstandard.ZstdDecompressor = _zstd.decompressor
    return decompressor
