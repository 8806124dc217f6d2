"""A receipt: the ingester's word, after the sink's, on one frame. Only this lets the edge forget it."""

from __future__ import annotations

import msgspec
import numpy as np
from google.protobuf.message import DecodeError as ProtobufError

from devices.errors import FrameError
from devices.wire import telemetry_pb2 as pb
from devices.wire.columns import pack_ints, pack_texts, unpack_ints, unpack_texts
from devices.wire.limits import FrameLimits
from devices.wire.table import unpack_names

VERSION = 1


class Rejected(msgspec.Struct, frozen=True):
    """Points of one series that the sink will never take."""

    series: int
    """Place in the frame's table."""
    reason: str
    """A word: devices.model.REJECT_REASONS."""
    count: int
    """Samples that the rejected points stand for."""
    detail: str = ""
    """What the sink said."""


class Receipt(msgspec.Struct, frozen=True):
    """Stored, less what `rejected` names; or `refused` whole, for a reason of FrameError's."""

    refused: str = ""
    rejected: list[Rejected] = []


def encode_receipt(receipt: Receipt) -> bytes:
    """The payload of a receipt."""
    rejected = receipt.rejected
    message = pb.Receipt(version=VERSION, refused=receipt.refused, rows=len(rejected))
    if rejected:
        message.series = pack_ints(np.array([one.series for one in rejected], dtype=np.int64))
        message.reason.CopyFrom(pack_texts([one.reason for one in rejected]))
        message.count = pack_ints(np.array([one.count for one in rejected], dtype=np.int64))
        message.detail.CopyFrom(pack_texts([one.detail for one in rejected]))
    return message.SerializeToString(deterministic=True)


def decode_receipt(payload: bytes, limits: FrameLimits | None = None) -> Receipt:
    """The receipt of a payload; FrameError for anything that is not right."""
    limits = limits or FrameLimits()
    if len(payload) > limits.frame_bytes:
        raise FrameError(f"receipt of {len(payload)} bytes; at most {limits.frame_bytes}", "oversize")
    try:
        message = pb.Receipt.FromString(payload)
    except ProtobufError:
        raise FrameError("not a receipt: Protobuf cannot read it", "malformed") from None
    if message.version != VERSION:
        raise FrameError(f"receipt of version {message.version}; this program reads {VERSION}", "version")
    n = message.rows
    if n > limits.rows or len(message.refused.encode()) > limits.name_bytes:
        raise FrameError(f"receipt of {n} rejections; at most {limits.rows}", "oversize")
    series = unpack_ints(message.series, n, "series")
    counts = unpack_ints(message.count, n, "count")
    if n and (int(series.min()) < 0 or int(counts.min()) < 1):
        raise FrameError("receipt: a series below 0 or a count below 1", "malformed")
    reasons = unpack_names(message.reason, n, "reason", limits)
    details = unpack_texts(message.detail, n, "detail", limits.sentence_bytes)
    rows = zip(series.tolist(), reasons, counts.tolist(), details, strict=True)
    return Receipt(message.refused, [Rejected(*row) for row in rows])
