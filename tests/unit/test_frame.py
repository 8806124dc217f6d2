"""Frames: what comes back, in which order, and what of a hostile peer's is refused with which word."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zstandard

from devices.errors import FrameError
from devices.model import CHANGE_DTYPE, SUMMARY_DTYPE, Alarm, Kind, Lane, SampleBatch
from devices.wire import telemetry_pb2 as pb
from devices.wire.columns import pack_floats, pack_ints, pack_texts
from devices.wire.frame import (
    Account,
    AlarmBody,
    ChangeBody,
    Frame,
    FrameLimits,
    Header,
    Heartbeat,
    Inventory,
    InventoryDevice,
    Ledger,
    RawBody,
    SummaryBody,
    WireSeries,
    decode,
    encode,
)
from devices.wire.table import KnownTables, pack_table

LIMITS = FrameLimits()
HEADER = Header("gw-1", 0xFEDCBA9876543210, 7, Lane.RAW, 1_700_000_000_123_456_789)
TABLE = [
    WireSeries("press-1", "temperature", "temperature", "°C"),
    WireSeries("press-1", "strokes", "strokes", "", Kind.COUNTER),
    WireSeries("press-2", "temperature", "temperature", "°C"),
    WireSeries("press-2", "door", "door", "", Kind.STATE, {"open": 1.0, "shut": 0.0}),
]
T0 = 1_700_000_000_000_000_000


def batch(*rows: tuple[int, int, float]) -> SampleBatch:
    series, time_ns, value = zip(*rows, strict=True)
    return SampleBatch(
        np.array(series, np.int32), np.array(time_ns, np.int64), np.array(value), np.zeros(len(rows), np.uint8)
    )


def summary(series: int, start_ns: int, count: int = 10, **fields: float) -> Any:
    row = np.zeros((), SUMMARY_DTYPE)
    row["series"], row["time_ns"], row["span_ns"], row["count"] = series, start_ns, 10_000_000_000, count
    values = {"mean": 20.0, "min": 20.0, "max": 20.0, "first": 20.0, "last": 20.0, "increase": np.nan} | fields
    for name, value in values.items():
        row[name] = value
    return row


def summaries(*rows: Any) -> SummaryBody:
    return SummaryBody(np.stack(rows))


def alarm(series: int = 0, state: Any = "open") -> Alarm:
    nan = float("nan")
    return Alarm("a-1", series, "zscore", state, "warning", T0, T0 + 5_000, 91.5, nan, 80.25, 3.5, "too hot")


def round_trip(body: Any, table: Any = TABLE) -> Any:
    frame = decode(encode(Frame(HEADER, table, body)), LIMITS)
    assert frame.header == HEADER
    assert list(frame.series) == list(table)
    return frame.body


# ---------------------------------------------------------------- what comes back


def test_raw_samples_come_back_by_shape_series_and_time() -> None:
    body = round_trip(
        RawBody(batch((2, T0 + 2, 1.5), (0, T0 + 9, 2.5), (2, T0 + 1, 3.5), (3, T0, 1.0), (0, T0 + 1, -0.0)))
    )
    got = body.samples
    assert list(zip(got.series.tolist(), (got.time_ns - T0).tolist(), got.value.tolist(), strict=True)) == [
        (0, 1, 0.0),
        (0, 9, 2.5),
        (2, 1, 3.5),
        (2, 2, 1.5),
        (3, 0, 1.0),
    ]
    assert np.signbit(got.value).tolist() == [True, False, False, False, False]
    assert (got.series.dtype, got.time_ns.dtype, got.value.dtype, got.quality.dtype) == (
        np.int32,
        np.int64,
        np.float64,
        np.uint8,
    )


def test_quality_stays_with_its_sample() -> None:
    samples = batch((1, T0 + 1, 1.0), (0, T0, 2.0), (0, T0 - 5, 3.0))
    samples.quality[:] = [3, 1, 255]
    got = round_trip(RawBody(samples)).samples
    assert dict(zip(got.value.tolist(), got.quality.tolist(), strict=True)) == {1.0: 3, 2.0: 1, 3.0: 255}


def test_state_changes_keep_their_own_times() -> None:
    rows = np.array([(3, T0 + 1_500_000_000, 1.0), (3, T0, 0.0)], CHANGE_DTYPE)
    got = round_trip(ChangeBody(rows)).rows
    assert got.tolist() == [(3, T0, 0.0), (3, T0 + 1_500_000_000, 1.0)]


def test_a_window_of_one_sample_is_expanded_from_its_last() -> None:
    got = round_trip(summaries(summary(0, T0, 1, last=21.5, mean=0.0, min=0.0, max=0.0, first=0.0, stddev=9.0))).rows[0]
    assert [got[name] for name in ("mean", "min", "max", "first", "last")] == [21.5] * 5
    assert got["stddev"] == 0.0


def test_a_state_has_no_mean_and_a_gauge_no_increase() -> None:
    body = summaries(summary(3, T0, 4, min=0.0, max=1.0, first=0.0, last=1.0, mean=0.5, stddev=0.5), summary(0, T0))
    gauge, state = round_trip(body).rows
    assert (state["min"], state["max"], state["first"], state["last"]) == (0.0, 1.0, 0.0, 1.0)
    assert np.isnan(state["mean"])
    assert np.isnan(state["stddev"])
    assert gauge["mean"] == 20.0
    assert np.isnan(gauge["increase"])


def test_a_counter_brings_its_increase_even_from_one_sample() -> None:
    body = summaries(summary(1, T0, 1, last=500.0, increase=3.0), summary(1, T0 + 10_000_000_000, increase=12.5))
    assert round_trip(body).rows["increase"].tolist() == [3.0, 12.5]


def test_a_supplement_keeps_its_nanoseconds() -> None:
    body = summaries(summary(0, T0), summary(0, T0 + 2), summary(0, T0 + 1), summary(0, T0 + 10_000_000_000))
    assert (round_trip(body).rows["time_ns"] - T0).tolist() == [0, 1, 2, 10_000_000_000]


def test_mean_and_stddev_may_overflow_to_infinity() -> None:
    got = round_trip(summaries(summary(0, T0, 2, max=1e308, last=1e308, mean=float("inf"), stddev=float("nan")))).rows[
        0
    ]
    assert got["mean"] == float("inf")
    assert np.isnan(got["stddev"])


def test_alarms_come_back_in_order() -> None:
    got = round_trip(AlarmBody([alarm(2), alarm(0, "closed")])).alarms
    assert [(one.series, one.state) for one in got] == [(2, "open"), (0, "closed")]
    assert (got[0].value, got[0].high, got[0].score, got[0].reason) == (91.5, 80.25, 3.5, "too hot")
    assert (got[0].time_ns, got[0].arrived_ns) == (T0, T0 + 5_000)
    assert np.isnan(got[0].low)


@pytest.mark.parametrize(
    "body",
    [
        Inventory("forebay 0.1.0", "c0ffee", [InventoryDevice("a", "p@1", ["x", "y"]), InventoryDevice("b", "", [])]),
        Inventory("", "", []),
        Ledger(T0, [Account("a", "", 9, 5, 1, 2, {"future": 2}, {"overrun": 1}), Account("b", "x", 1, 1)]),
        Ledger(T0, []),
        Heartbeat(T0, "forebay 0.1.0", "beef", 1 << 40, 1 << 41, 3, 4, 5, 86_400.5),
        AlarmBody([]),
    ],
)
def test_bodies_without_rows_come_back_as_they_were(body: Any) -> None:
    assert round_trip(body, []) == body


@pytest.mark.parametrize(
    "body",
    [
        SummaryBody(np.empty(0, SUMMARY_DTYPE)),
        ChangeBody(np.empty(0, CHANGE_DTYPE)),
        RawBody(SampleBatch.empty()),
    ],
)
def test_a_frame_without_rows_is_a_frame(body: Any) -> None:
    got = round_trip(body)
    assert len(got.samples if isinstance(got, RawBody) else got.rows) == 0


@pytest.mark.parametrize("name", ["a,b =c", 'q"\\', "line\nbreak", "\x00", "温度 👩‍🔧", "$share/#/+", "é" * 128])
def test_hostile_names_come_back(name: str) -> None:
    table = [WireSeries(name, name, name, name, Kind.STATE, {name: 1.0, "": 0.0})]
    round_trip(RawBody(batch((0, T0, 1.0))), table)


def test_the_same_frame_gives_the_same_bytes() -> None:
    frame = Frame(HEADER, TABLE, RawBody(batch((0, T0, 1.5), (1, T0, 2.0))))
    assert encode(frame) == encode(frame)


@pytest.mark.parametrize(
    "body",
    [
        RawBody(batch((0, T0, float("nan")))),
        RawBody(batch((4, T0, 1.0))),
        RawBody(batch((-1, T0, 1.0))),
        ChangeBody(np.array([(0, T0, float("inf"))], CHANGE_DTYPE)),
        summaries(summary(0, T0, max=float("inf"))),
        summaries(summary(0, T0, 1, last=float("nan"))),
        summaries(summary(9, T0)),
        AlarmBody([alarm(4)]),
    ],
)
def test_what_no_decoder_would_take_is_not_encoded(body: Any) -> None:
    with pytest.raises(ValueError):
        encode(Frame(HEADER, TABLE, body))


# ---------------------------------------------------------------- what is refused


def refusal(payload: bytes, limits: FrameLimits = LIMITS) -> str:
    with pytest.raises(FrameError) as caught:
        decode(payload, limits)
    return caught.value.reason


def wrap(content: bytes | pb.Body, **header: Any) -> bytes:
    """A payload around any body, its lengths right unless told otherwise."""
    raw = content if isinstance(content, bytes) else content.SerializeToString()
    fields: dict[str, Any] = {
        "version": 1,
        "gateway": "gw-1",
        "seq": 7,
        "body_bytes": len(raw),
        "body": zstandard.compress(raw, 1),
    }
    return pb.Frame(**(fields | header)).SerializeToString()


def opened(body: Any) -> pb.Body:
    """The Body message of a frame that is right."""
    return pb.Body.FromString(zstandard.decompress(pb.Frame.FromString(encode(Frame(HEADER, TABLE, body))).body))


def raw_body() -> pb.Body:
    return opened(RawBody(batch((0, T0, 1.5), (0, T0 + 1, 2.5), (2, T0, 3.5))))


def test_what_the_helpers_build_is_accepted() -> None:
    assert isinstance(decode(wrap(raw_body()), LIMITS).body, RawBody)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"version": 0}, "version"),
        ({"version": 2}, "version"),
        ({"gateway": ""}, "name"),
        ({"gateway": "a/b"}, "name"),
        ({"gateway": "+"}, "name"),
        ({"gateway": "x" * 65}, "name"),
        ({"seq": 0}, "malformed"),
        ({"seq": 1 << 63}, "malformed"),
        ({"lane": 9}, "malformed"),
        ({"body_bytes": 5}, "malformed"),
        ({"body_bytes": (1 << 32) - 1}, "oversize"),
        ({"body": b""}, "malformed"),
        ({"body": b"not zstd at all, though long enough"}, "malformed"),
    ],
)
def test_a_header_that_is_wrong_is_refused_with_its_reason(header: dict[str, Any], reason: str) -> None:
    assert refusal(wrap(raw_body(), **header)) == reason


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\xff" * 50, b"{}", b"\x08\x01"])
def test_bytes_that_are_no_frame_are_refused(payload: bytes) -> None:
    assert refusal(payload) in ("malformed", "version", "name")


def test_every_truncation_is_refused() -> None:
    payload = encode(Frame(HEADER, TABLE, RawBody(batch((0, T0, 1.5), (2, T0, 3.25)))))
    for end in range(len(payload)):
        assert refusal(payload[:end]) in ("malformed", "truncated", "version", "name")


def test_a_payload_above_the_limit_is_refused_unread() -> None:
    assert refusal(bytes(1001), FrameLimits(frame_bytes=1000)) == "oversize"


def test_a_body_that_unpacks_to_more_than_the_limit_is_refused() -> None:
    bomb = bytes(50_000_000)
    packed = zstandard.compress(bomb, 1)
    assert refusal(wrap(bomb)) == "oversize"
    assert refusal(wrap(b"", body=packed, body_bytes=100)) == "malformed"


def test_a_body_whose_zstd_does_not_say_its_length_is_refused() -> None:
    raw = raw_body().SerializeToString()
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(raw)
    assert refusal(wrap(raw, body=packed)) == "malformed"


def test_bytes_after_the_body_are_refused() -> None:
    raw = raw_body().SerializeToString()
    assert refusal(wrap(raw, body=zstandard.compress(raw, 1) + b"more")) == "malformed"


def test_a_skippable_zstd_frame_is_refused() -> None:
    assert refusal(wrap(b"", body=b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd")) == "malformed"


@pytest.mark.parametrize(("window_log", "reason"), [(20, "accepted"), (27, "oversize"), (41, "malformed")])
def test_zstd_that_wants_a_huge_window_is_refused(window_log: int, reason: str) -> None:
    raw = raw_body().SerializeToString()
    window = bytes([(window_log - 10) << 3])
    block = ((len(raw) << 3) | 1).to_bytes(3, "little") + raw  # one, the last, not compressed
    packed = zstandard.MAGIC_NUMBER.to_bytes(4, "little") + b"\x80" + window + len(raw).to_bytes(4, "little") + block
    if reason == "accepted":
        assert isinstance(decode(wrap(raw, body=packed), LIMITS).body, RawBody)
    else:
        assert refusal(wrap(raw, body=packed)) == reason


Change = Callable[[pb.Body], None]


def changed(**fields: Any) -> Change:
    def change(body: pb.Body) -> None:
        for path, value in fields.items():
            *parents, name = path.split("__")
            message: Any = body
            for parent in parents:
                message = getattr(message, parent)
            if isinstance(value, bytes | int):
                setattr(message, name, value)
            else:
                getattr(message, name).CopyFrom(value)

    return change


def column(*values: int) -> bytes:
    return pack_ints(np.array(values, dtype=np.int64))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed(table__series=3), "malformed"),
        (changed(table__series=5), "truncated"),
        (changed(table__series=100_000_000), "oversize"),
        (changed(table__series=10_001), "oversize"),
        (changed(table__devices=100_000_000), "oversize"),
        (changed(table__shapes=5), "oversize"),
        (changed(table__series_device=column(0, 0, 1, 7)), "series"),
        (changed(table__series_device=column(-1, 0, 1, 0)), "series"),
        (changed(table__series_shape=column(0, 1, 0, 3)), "series"),
        (changed(table__device=pack_texts(["press-1", ""])), "name"),
        (changed(table__device=pack_texts(["press-1", "x" * 257])), "oversize"),
        (changed(table__device=pb.Texts(utf8=b"\xff", characters=column(1, 0))), "malformed"),
        (changed(table__kind=column(0, 1, 9)), "malformed"),
        (changed(table__mapped=column(100_000_000, 0, 0)), "oversize"),
        (changed(table__mapped=column(0, 0, -1)), "malformed"),
        (changed(raw__rows=4), "series"),
        (changed(raw__rows=100_000_000), "oversize"),
        (changed(raw__series_rows=column(2, 0, 1)), "truncated"),
        (changed(raw__series_rows=column(4, 0, -1, 0)), "malformed"),
        (changed(raw__series_rows=column(1 << 62, 1 << 62, 1 << 62, (1 << 62) + 3)), "oversize"),
        (changed(raw__quality=column(0, 0, 256)), "malformed"),
        (changed(raw__quality=b"\x01\x00"), "truncated"),
        (changed(raw__value__step=b"\x01\x00\x00"), "truncated"),
        (changed(raw__value__exponent=column(15, 15), raw__value__float=b"1"), "truncated"),
        (changed(raw__value__exponent=column(15, 15), raw__value__float=pack_floats(np.full(3, np.nan))), "nonfinite"),
        (changed(raw__time__rest=column(0, -3, 0)), "malformed"),
        (changed(raw__time__unit=column(3, 3)), "malformed"),
    ],
)
def test_a_raw_body_that_claims_what_is_not_so_is_refused_with_its_reason(change: Change, reason: str) -> None:
    body = raw_body()
    change(body)
    assert refusal(wrap(body)) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed(summaries__count=column(0, 10)), "malformed"),
        (changed(summaries__count=column(-1, 10)), "malformed"),
        (changed(summaries__span=column(10, 0)), "malformed"),
        (changed(summaries__span=column(10, -10)), "malformed"),
        (changed(summaries__span=b""), "malformed"),
        (changed(summaries__span=column(1 << 60, 1)), "malformed"),
        (changed(summaries__span_unit=4), "malformed"),
        (changed(summaries__supplement=column(0, 1_000_000)), "malformed"),
        (changed(summaries__supplement=column(-1, 0)), "malformed"),
        (changed(summaries__mean_exponent=column(10, 0)), "malformed"),
        (changed(summaries__below=column(1, 2, 3)), "malformed"),
        (changed(summaries__above=b"\x01\x00"), "truncated"),
        (changed(summaries__stddev_exponent=column(15, 15)), "accepted"),
        (changed(summaries__stddev_exponent=column(15, 15), summaries__stddev_float=b"1"), "truncated"),
        (changed(summaries__last__exponent=column(15, 15), summaries__mean_exponent=column(15, 15)), "malformed"),
        (changed(summaries__minus_zeros=9), "malformed"),
        (changed(summaries__minus_zeros=100_000_000), "malformed"),
        (changed(summaries__rows=100_000_000), "oversize"),
    ],
)
def test_summaries_that_claim_what_is_not_so_are_refused_with_their_reason(change: Change, reason: str) -> None:
    body = opened(summaries(summary(0, T0), summary(1, T0, increase=2.0)))
    change(body)
    if reason == "accepted":  # a column that is absent reads as zeros
        assert isinstance(decode(wrap(body), LIMITS).body, SummaryBody)
    else:
        assert refusal(wrap(body)) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed(alarms__rows=100_000_000), "oversize"),
        (changed(alarms__rows=2), "malformed"),
        (changed(alarms__series=column(4)), "series"),
        (changed(alarms__series=column(-1)), "series"),
        (changed(alarms__open=column(2)), "malformed"),
        (changed(alarms__id=pack_texts([""])), "name"),
        (changed(alarms__reason=pack_texts(["x" * 1025])), "oversize"),
        (changed(alarms__value=bytes(7)), "truncated"),
    ],
)
def test_alarms_that_claim_what_is_not_so_are_refused_with_their_reason(change: Change, reason: str) -> None:
    body = opened(AlarmBody([alarm(1)]))
    change(body)
    assert refusal(wrap(body)) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed(ledger__accounts=100_000_000), "oversize"),
        (changed(ledger__produced=column(-1)), "malformed"),
        (changed(ledger__rejected__account=column(1)), "malformed"),
        (changed(ledger__rejected__rows=100_000_000), "oversize"),
        (changed(ledger__device=pack_texts([""])), "name"),
    ],
)
def test_a_ledger_that_claims_what_is_not_so_is_refused_with_its_reason(change: Change, reason: str) -> None:
    body = opened(Ledger(T0, [Account("a", "", 9, 5, rejected={"future": 4})]))
    change(body)
    assert refusal(wrap(body)) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed(inventory__devices=100_000_000), "oversize"),
        (changed(inventory__channels=column(100_000_000)), "oversize"),
        (changed(inventory__channels=column(3)), "truncated"),
    ],
)
def test_an_inventory_that_claims_what_is_not_so_is_refused_with_its_reason(change: Change, reason: str) -> None:
    body = opened(Inventory("s", "d", [InventoryDevice("a", "p@1", ["x", "yy"])]))
    change(body)
    assert refusal(wrap(body)) == reason


def test_a_body_of_a_kind_from_the_future_is_refused() -> None:
    assert refusal(wrap(pb.Body())) == "malformed"
    assert refusal(wrap(b"\xfa\x01\x00")) == "malformed"


def test_a_field_that_this_version_does_not_know_is_passed_over() -> None:
    unknown = b"\xfa\x06\x03abc"
    payload = wrap(raw_body().SerializeToString() + unknown) + unknown
    assert isinstance(decode(payload, LIMITS).body, RawBody)


@pytest.mark.parametrize(
    "change",
    [
        changed(raw__rows=100_000_000, raw__series_rows=column(100_000_000, 0, 0, 0)),
        changed(table__series=100_000_000),
        changed(table__mapped=column(100_000_000, 0, 0)),
        changed(raw__value__minus_zeros=100_000_000),
    ],
)
def test_a_claim_of_a_hundred_million_takes_no_memory(change: Change) -> None:
    body = raw_body()
    change(body)
    payload = wrap(body)
    tracemalloc.start()
    try:
        refusal(payload)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_zip_bomb_takes_no_memory() -> None:
    payload = wrap(bytes(100_000_000))
    assert len(payload) < 20_000
    tracemalloc.start()
    try:
        assert refusal(payload) == "oversize"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- tables that came before


def test_a_table_that_comes_again_is_the_same_list() -> None:
    frames = [Frame(HEADER, TABLE, summaries(summary(0, T0 + k), summary(2, T0))) for k in range(2)]
    first, second = (decode(encode(frame), LIMITS) for frame in frames)
    assert first.series is second.series
    assert list(first.series) == TABLE


def test_a_table_that_was_accepted_is_still_held_against_narrower_limits() -> None:
    payload = encode(Frame(HEADER, TABLE, summaries(summary(0, T0))))
    decode(payload, LIMITS)
    with pytest.raises(FrameError) as caught:
        decode(payload, FrameLimits(series=len(TABLE) - 1))
    assert caught.value.reason == "oversize"


def test_tables_that_nobody_sends_any_more_are_forgotten() -> None:
    def message(n: int) -> pb.Table:
        return pack_table([WireSeries(f"device-{n}", "c", "q", "")])[0]

    known = KnownTables(most_bytes=10_000)
    kept, left = known.unpack(message(-1), LIMITS), known.unpack(message(-2), LIMITS)
    for n in range(100):
        assert known.unpack(message(n), LIMITS)[0][0].device == f"device-{n}"
        assert known.unpack(message(-1), LIMITS) is kept
    assert known.unpack(message(-2), LIMITS) is not left
