"""Whatever rows a frame is given, it gives back, bit for bit; whatever bytes it is given, it stays calm."""

from __future__ import annotations

import math
import struct
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import zstandard
from hypothesis import example, given, settings

from devices.errors import FrameError
from devices.model import CHANGE_DTYPE, SUMMARY_DTYPE, Kind, Lane, SampleBatch
from devices.wire import telemetry_pb2 as pb
from devices.wire.columns import FLOAT, Groups, to_decimals
from devices.wire.frame import ChangeBody, Frame, FrameLimits, Header, RawBody, SummaryBody, WireSeries, decode, encode
from devices.wire.receipt import decode_receipt

VECTORS = Path(__file__).parents[1] / "vectors" / "frames"
LIMITS = FrameLimits(body_bytes=1 << 20, rows=4_096, series=1_000)
HEADER = Header("gw", 1, 1, Lane.RAW, 0)

finite = st.floats(allow_nan=False, allow_infinity=False)
decimals = st.builds(lambda i, e: i / 10**e, st.integers(-(10**7), 10**7), st.integers(0, 10))
special = st.sampled_from([0.0, -0.0, 5e-324, 2.0**53, 2.0**53 + 2, -(2.0**63), 1.7976931348623157e308, 0.1 + 0.2])
values = st.one_of(decimals, decimals, finite, special)
times = st.one_of(
    st.integers(0, 10_000).map(lambda k: 1_700_000_000_000_000_000 + k * 1_000_000_000),
    st.integers(0, 10_000).map(lambda k: 1_700_000_000_000_000_000 + k * 1_000_000),
    st.integers(-(2**61), 2**61),
)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
series = st.builds(WireSeries, names, names, names, st.text(max_size=4), st.sampled_from(Kind))
tables = st.lists(series, min_size=1, max_size=6)


def bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack("<d", value)


@st.composite
def tables_and_rows(draw: st.DrawFn, row: st.SearchStrategy[Any]) -> tuple[list[WireSeries], list[Any]]:
    table = draw(tables)
    index = st.integers(0, len(table) - 1)
    return table, draw(st.lists(st.tuples(index, times, row), max_size=40))


def smallest_exponent(column: list[float]) -> int:
    """Slow and obvious."""
    for exponent in range(10):
        scaled = [value * 10.0**exponent for value in column]
        if all(-(2**63) <= one < 2**63 for one in scaled) and all(
            bits(round(one) / 10.0**exponent) == bits(value) for one, value in zip(scaled, column, strict=True)
        ):
            return exponent
    return FLOAT


@given(st.lists(st.lists(values, min_size=1, max_size=30), min_size=1, max_size=8))
def test_the_exponents_are_those_that_a_slow_search_finds(columns: list[list[float]]) -> None:
    exponents, ints = to_decimals(
        np.array([value for column in columns for value in column])[None, :],
        Groups(np.array([len(column) for column in columns], dtype=np.int64)),
    )
    for column, exponent, rows in zip(
        columns, exponents.tolist(), np.split(ints[0], np.cumsum([len(c) for c in columns])[:-1]), strict=True
    ):
        assert exponent == smallest_exponent(column)
        if exponent != FLOAT:
            assert [bits(i / 10.0**exponent) for i in rows.tolist()] == [bits(value) for value in column]


@given(tables_and_rows(st.tuples(values, st.integers(0, 255))))
def test_raw_samples_come_back(given_: tuple[list[WireSeries], list[Any]]) -> None:
    table, rows = given_
    samples = SampleBatch(
        np.array([row[0] for row in rows], dtype=np.int32),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([row[2][0] for row in rows], dtype=np.float64),
        np.array([row[2][1] for row in rows], dtype=np.uint8),
    )
    frame = decode(encode(Frame(HEADER, table, RawBody(samples))), LIMITS)
    assert list(frame.series) == table
    assert isinstance(frame.body, RawBody)
    got = frame.body.samples
    back = zip(got.series.tolist(), got.time_ns.tolist(), got.value.tolist(), got.quality.tolist(), strict=True)
    listed = [(i, t, bits(v), q) for i, t, v, q in back]
    assert sorted(listed) == sorted((i, t, bits(v), q) for i, t, (v, q) in rows)
    assert all(a[1] <= b[1] for a, b in pairwise(listed) if a[0] == b[0])


@given(tables_and_rows(values))
def test_changes_come_back(given_: tuple[list[WireSeries], list[Any]]) -> None:
    table, rows = given_
    frame = decode(encode(Frame(HEADER, table, ChangeBody(np.array(rows, dtype=CHANGE_DTYPE)))), LIMITS)
    assert isinstance(frame.body, ChangeBody)
    back = [(i, t, bits(v)) for i, t, v in frame.body.rows.tolist()]
    assert sorted(back) == sorted((i, t, bits(v)) for i, t, v in rows)


def as_sent(row: Any, kind: Kind) -> tuple[Any, ...]:
    """What of a summary must come back."""
    i, time_ns, span, count, mean, low, high, stddev, first, last, increase = row
    if count == 1:
        mean, low, high, stddev, first = last, last, last, 0.0, last
    if kind == Kind.STATE:
        mean = stddev = math.nan
    if kind != Kind.COUNTER:
        increase = math.nan
    return (i, time_ns, span, count, *map(bits, (mean, low, high, stddev, first, last, increase)))


any_float = st.one_of(values, st.floats())
summary_values = st.tuples(
    st.integers(1, 10**12),
    st.one_of(st.integers(1, 3), st.integers(1, 2**62)),
    st.tuples(any_float, values, values, any_float, values, values, any_float),
)


@given(tables_and_rows(summary_values))
def test_summaries_come_back(given_: tuple[list[WireSeries], list[Any]]) -> None:
    table, drawn = given_
    rows = [(i, t, span, count, *fields) for i, t, (span, count, fields) in drawn]
    frame = decode(encode(Frame(HEADER, table, SummaryBody(np.array(rows, dtype=SUMMARY_DTYPE)))), LIMITS)
    assert isinstance(frame.body, SummaryBody)
    back = [(*row[:4], *map(bits, row[4:])) for row in frame.body.rows.tolist()]
    assert sorted(back) == sorted(as_sent(row, table[row[0]].kind) for row in rows)


# ---------------------------------------------------------------- hostile bytes


@cache
def payloads() -> list[bytes]:
    return [path.read_bytes() for path in sorted(VECTORS.glob("*/*.bin"))]


def stays_calm(payload: bytes) -> None:
    try:
        decode(payload, LIMITS)
    except FrameError as error:
        assert error.reason  # noqa: PT017  (whatever else is raised fails the test)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    raw = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
            case "flip" if raw:
                raw[at] = draw(st.integers(0, 255))
            case "cut":
                del raw[at : at + draw(st.integers(1, 30))]
            case "insert":
                raw[at:at] = draw(st.binary(min_size=1, max_size=12))
            case "repeat":
                raw[at:at] = raw[at : at + draw(st.integers(1, 60))]
    return bytes(raw)


@given(st.binary(max_size=200))
@example(b"\x08\x01")
def test_any_bytes_are_a_frame_or_a_frame_error(payload: bytes) -> None:
    stays_calm(payload)


@given(st.data())
def test_a_damaged_payload_is_a_frame_or_a_frame_error(data: st.DataObject) -> None:
    stays_calm(data.draw(damaged(data.draw(st.sampled_from(payloads())))))


@settings(max_examples=400)
@given(st.data())
def test_a_damaged_body_in_a_sound_wrapping_is_a_frame_or_a_frame_error(data: st.DataObject) -> None:
    frame = pb.Frame.FromString(data.draw(st.sampled_from(payloads())))
    body = data.draw(damaged(zstandard.decompress(frame.body)))
    frame.body, frame.body_bytes = zstandard.compress(body, 1), len(body)
    stays_calm(frame.SerializeToString())


@given(st.binary(max_size=100))
def test_any_bytes_are_a_receipt_or_a_frame_error(payload: bytes) -> None:
    try:
        decode_receipt(payload)
    except FrameError as error:
        assert error.reason  # noqa: PT017
