"""Fuzz targets: frames and receipts, as a peer sends them.

`frame` is fed payloads as they come from the broker. Few changes to one get past zstd, so `body` is fed what
lies inside, and packs it into a frame that is right otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from devices.errors import FrameError
from devices.wire import telemetry_pb2 as pb
from devices.wire.frame import BodyKind, ChangeBody, Frame, FrameLimits, RawBody, SummaryBody, decode, encode
from devices.wire.receipt import Receipt, Rejected, decode_receipt, encode_receipt
from tests.fuzz.documented import expect_documented

VECTORS = Path(__file__).parents[1] / "vectors" / "frames"
GATEWAY = "g1"
REASONS = frozenset(("version", "truncated", "oversize", "malformed", "series", "name", "nonfinite"))
"""Of FrameError; devices.wire.frame documents them."""

TRUE = FrameLimits()
SMALL = FrameLimits(rows=64, series=16)
"""Claims above these are found as well, and cost microseconds where 65,536 rows cost milliseconds."""
AGAIN = FrameLimits(frame_bytes=1 << 26, body_bytes=1 << 27)
"""For what we write ourselves: another writer's columns may have been shorter."""
FULL_SIZE = 0xFF
"""An input with this first byte is held against the true limits."""

_compressor = zstandard.ZstdCompressor(level=1)


def frame(data: bytes) -> None:
    """A payload gives FrameError with a documented reason, or a frame that survives being written again."""
    expect_round_trip(decoded(data, TRUE))


def body(data: bytes) -> None:
    """As `frame`, for the bytes of a Body behind one byte that chooses the limits."""
    expect_round_trip(decoded(packed(data[1:]), limits_of(data, SMALL)))


def receipt(data: bytes) -> None:
    """A receipt gives FrameError with a documented reason, or one that survives being written again."""
    try:
        read = decode_receipt(data[1:], limits_of(data, SMALL))
    except FrameError as refused:
        expect_documented(refused, REASONS)
        return
    assert decode_receipt(encode_receipt(read), AGAIN) == read


def limits_of(data: bytes, small: FrameLimits) -> FrameLimits:
    return TRUE if data[:1] == bytes([FULL_SIZE]) else small


def packed(body_bytes: bytes) -> bytes:
    """The payload of a frame whose body unpacks to these bytes."""
    return pb.Frame(
        version=1,
        gateway=GATEWAY,
        epoch=7,
        seq=1,
        lane=1,
        created_ns=1_780_000_000_000_000_000,
        body_bytes=len(body_bytes),
        body=_compressor.compress(body_bytes),
    ).SerializeToString()


def decoded(payload: bytes, limits: FrameLimits) -> Frame | None:
    """The frame; None where it is refused as documented."""
    try:
        return decode(payload, limits)
    except FrameError as refused:
        expect_documented(refused, REASONS)
        return None


def expect_round_trip(read: Frame | None) -> None:
    """What was decoded can be encoded, and gives the same frame and the same bytes again."""
    if read is None:
        return
    written = encode(read)
    again = decode(written, AGAIN)
    assert content(again) == content(read), "decode(encode(frame)) is another frame"
    assert encode(again) == written, "the same frame gives other bytes"


def content(read: Frame) -> bytes:
    """Every bit of a frame, in a form that can be compared: NaN equals itself, and -0.0 is not 0.0.

    Rows are put into the order of their series: that of shapes is the writer's, and not kept.
    """
    return msgspec.msgpack.encode((read.header, list(read.series), _columns(read.body)))


def _columns(body_read: BodyKind) -> object:
    match body_read:
        case RawBody():
            batch = body_read.samples
            return _bits(batch.series, batch.time_ns, batch.value, batch.quality)
        case SummaryBody() | ChangeBody():
            rows = body_read.rows
            return _bits(*(rows[name] for name in rows.dtype.names or ()))
        case _:
            return body_read


def _bits(series: NDArray[Any], *columns: NDArray[Any]) -> list[bytes]:
    order = np.argsort(series, kind="stable")
    return [column[order].tobytes() for column in (series, *columns)]


# ---------------------------------------------------------------- seeds


def payload_seeds() -> Iterator[bytes]:
    """Every golden frame."""
    for path in sorted(VECTORS.glob("*/*.bin")):
        yield path.read_bytes()


def body_seeds() -> Iterator[bytes]:
    """The body of every golden frame, to be held against small limits, and against the true ones."""
    for payload in payload_seeds():
        unpacked = zstandard.ZstdDecompressor().decompress(pb.Frame.FromString(payload).body)
        yield b"\0" + unpacked
        yield bytes([FULL_SIZE]) + unpacked


def receipt_seeds() -> Iterator[bytes]:
    rejected = [Rejected(0, "sink", 3, "field type conflict"), Rejected(5, "future", 1), Rejected(70_000, "sink", 1)]
    for one in (Receipt(), Receipt(refused="oversize"), Receipt(rejected=rejected), Receipt("é", rejected[:1] * 200)):
        yield b"\0" + encode_receipt(one)
        yield bytes([FULL_SIZE]) + encode_receipt(one)
