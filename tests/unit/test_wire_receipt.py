"""Receipts: what the edge believes about a frame, from a peer that it need not believe."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from devices.errors import FrameError
from devices.wire import telemetry_pb2 as pb
from devices.wire.columns import pack_ints, pack_texts
from devices.wire.limits import FrameLimits
from devices.wire.receipt import Receipt, Rejected, decode_receipt, encode_receipt


@pytest.mark.parametrize(
    "receipt",
    [
        Receipt(),
        Receipt("version"),
        Receipt("", [Rejected(0, "sink", 3, 'field type conflict: "mean"\n'), Rejected(599, "sink", 1)]),
    ],
)
def test_a_receipt_comes_back(receipt: Receipt) -> None:
    assert decode_receipt(encode_receipt(receipt)) == receipt


def test_the_usual_receipt_is_two_bytes() -> None:
    assert encode_receipt(Receipt()) == b"\x08\x01"


def good() -> dict[str, Any]:
    return {
        "version": 1,
        "rows": 1,
        "series": pack_ints(np.array([3])),
        "reason": pack_texts(["sink"]),
        "count": pack_ints(np.array([2])),
        "detail": pack_texts(["no"]),
    }


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": 0}, "version"),
        ({"version": 2}, "version"),
        ({"refused": "x" * 257}, "oversize"),
        ({"rows": 100_000_000}, "oversize"),
        ({"rows": 3}, "malformed"),
        ({"series": pack_ints(np.array([-1]))}, "malformed"),
        ({"count": b""}, "malformed"),
        ({"count": b"\x01"}, "truncated"),
        ({"reason": pack_texts([""])}, "name"),
        ({"detail": pack_texts(["x" * 1025])}, "oversize"),
    ],
)
def test_a_receipt_that_is_wrong_is_refused_with_its_reason(fields: dict[str, Any], reason: str) -> None:
    payload = pb.Receipt(**(good() | fields)).SerializeToString()
    with pytest.raises(FrameError) as caught:
        decode_receipt(payload)
    assert caught.value.reason == reason


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\x12\x05ab"])
def test_bytes_that_are_no_receipt_are_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        decode_receipt(payload)


def test_a_receipt_above_the_limit_is_refused_unread() -> None:
    with pytest.raises(FrameError) as caught:
        decode_receipt(bytes(101), FrameLimits(frame_bytes=100))
    assert caught.value.reason == "oversize"


def test_a_receipt_that_claims_a_hundred_million_rejections_takes_no_memory() -> None:
    payload = pb.Receipt(**(good() | {"rows": 100_000_000})).SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            decode_receipt(payload)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
