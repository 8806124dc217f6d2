"""Frame -> line protocol, held against an encoder that makes one line after the other."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.lines import NO_SERIES, KnownKeys, Lines, encode
from cloud.sinks.parsing import Point, parse_key, parse_line
from devices.errors import FrameError
from devices.model import CHANGE_DTYPE, SUMMARY_DTYPE, Alarm, Kind, Lane, SampleBatch
from devices.wire.frame import (
    Account,
    AlarmBody,
    BodyKind,
    ChangeBody,
    Frame,
    Header,
    Heartbeat,
    Inventory,
    InventoryDevice,
    Ledger,
    RawBody,
    SummaryBody,
    WireSeries,
)

T = 1_763_980_000_000_000_000
NUMBERS = ("mean", "min", "max", "stddev", "first", "last", "increase")
TABLE = [
    WireSeries("pump1", "motor", "temperature", "°C"),
    WireSeries("pump1", "turns", "rotation", "", Kind.COUNTER),
    WireSeries("pump2", "valve", "valve", "", Kind.STATE, {"open": 1.0, "shut": 0.0}),
]


def lines_of(body: BodyKind, table: list[WireSeries] = TABLE, ingested_ns: int = T) -> Lines:
    return encode(Frame(Header("g1", 7, 1, Lane.LIVE, T - 5), table, body), ingested_ns)


def points_of(lines: Lines) -> list[Point]:
    points = [parse_line(line) for line in lines.body.decode().split("\n")[:-1]]
    assert len(points) == len(lines.series) == len(lines)
    return points


def summaries(*rows: dict[str, Any]) -> SummaryBody:
    made = np.zeros(len(rows), SUMMARY_DTYPE)
    for name in NUMBERS:
        made[name] = np.nan
    for at, row in enumerate(rows):
        for name, value in row.items():
            made[at][name] = value
    return SummaryBody(made)


def naive_summary(row: Any) -> tuple[dict[str, float], int]:
    fields = {name: float(row[name]) for name in NUMBERS if math.isfinite(row[name])}
    return fields | {"count": int(row["count"]), "span_ms": int(row["span_ns"]) // 10**6}, int(row["time_ns"])


def test_a_gauge_has_all_numbers_with_integers_marked_and_its_tags_in_the_order_of_their_names() -> None:
    row = {
        "mean": 1.5,
        "min": 1.0,
        "max": 2.0,
        "stddev": 0.5,
        "first": 1.0,
        "last": 2.0,
        "count": 2,
        "span_ns": 10**10,
        "time_ns": T,
    }
    assert lines_of(summaries(row)).body.decode() == (
        "temperature,channel=motor,device=pump1,gateway=g1,unit=°C "
        f"mean=1.5,min=1.0,max=2.0,stddev=0.5,first=1.0,last=2.0,count=2i,span_ms=10000i {T}\n"
    )


def test_an_empty_unit_is_no_tag() -> None:
    (point,) = points_of(lines_of(summaries({"series": 1, "last": 1.0, "increase": 3.0, "count": 1, "time_ns": T})))
    assert parse_key(point.key) == ("rotation", {"channel": "turns", "device": "pump1", "gateway": "g1"})
    assert point.fields["increase"] == 3.0


numbers = st.floats(allow_nan=True, allow_infinity=True)
rows = st.lists(
    st.fixed_dictionaries(
        dict.fromkeys(NUMBERS, numbers)
        | {
            "series": st.integers(0, 2),
            "time_ns": st.integers(0, 2**62),
            "span_ns": st.integers(1, 2**62),
            "count": st.integers(1, 2**62),
        }
    ),
    max_size=20,
)


@given(rows)
def test_every_summary_is_written_exactly_without_what_is_not_finite(drawn: list[dict[str, Any]]) -> None:
    body = summaries(*drawn)
    lines = lines_of(body)
    told = sorted(
        (int(series), p.time_ns, repr(sorted(p.fields.items())))
        for series, p in zip(lines.series, points_of(lines), strict=True)
    )
    expected = sorted(
        (int(row["series"]), time_ns, repr(sorted(fields.items())))
        for row in body.rows
        for fields, time_ns in [naive_summary(row)]
    )
    assert told == expected
    for series, point in zip(lines.series, points_of(lines), strict=True):
        assert parse_key(point.key)[0] == TABLE[series].quantity


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 2**62),
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(0, 3),
        )
    )
)
def test_raw_samples_keep_every_bit_and_their_quality_only_when_it_is_not_good(
    drawn: list[tuple[int, int, float, int]],
) -> None:
    series, times, values, quality = (
        (list(column) for column in zip(*drawn, strict=True)) if drawn else ([], [], [], [])
    )
    batch = SampleBatch(
        np.array(series, np.int32), np.array(times, np.int64), np.array(values, np.float64), np.array(quality, np.uint8)
    )
    lines = lines_of(RawBody(batch))
    for at, point in enumerate(points_of(lines)):
        assert parse_key(point.key)[0] == TABLE[series[at]].quantity + "_raw"
        assert point.time_ns == times[at]
        assert point.fields == {"value": values[at]} | ({"quality": quality[at]} if quality[at] else {})
        assert math.copysign(1, point.fields["value"]) == math.copysign(1, values[at])


def test_a_state_change_has_its_number_and_its_text_where_it_has_one() -> None:
    rows = np.array([(2, T, 1.0), (2, T + 1, 0.0), (2, T + 2, 5.0)], CHANGE_DTYPE)
    assert [point.fields for point in points_of(lines_of(ChangeBody(rows)))] == [
        {"state": 1.0, "text": "open"},
        {"state": 0.0, "text": "shut"},
        {"state": 5.0},
    ]


def test_an_alarm_has_its_detector_as_a_tag_and_leaves_out_a_band_that_is_not_there() -> None:
    alarm = Alarm(
        "a1",
        0,
        "zscore",
        "open",
        "warning",
        T,
        T + 1,
        90.5,
        math.nan,
        80.0,
        1.5,
        'too "hot"\nnow',
    )
    (point,) = points_of(lines_of(AlarmBody([alarm]), ingested_ns=T + 2_500_000))
    assert parse_key(point.key) == (
        "alarm",
        {"channel": "motor", "detector": "zscore", "device": "pump1", "gateway": "g1", "unit": "°C"},
    )
    assert point.time_ns == T
    assert point.fields == {
        "id": "a1",
        "state": "open",
        "severity": "warning",
        "score": 1.5,
        "value": 90.5,
        "high": 80.0,
        "reason": 'too "hot"␊now',
        "ingested_ms": (T + 2_500_000) / 1e6,
    }


def test_the_ledger_names_a_channel_only_where_it_has_one_and_counts_in_floats() -> None:
    accounts = [
        Account("pump1", "", 10, 7, 1, 2, {"future": 1}, {"drop_oldest": 1}),
        Account("pump1", "motor", 5, 4, 0, 0, {"future": 1}),
    ]
    lines = lines_of(Ledger(T, accounts))
    device, channel = points_of(lines)
    assert lines.series.tolist() == [NO_SERIES, NO_SERIES]
    assert parse_key(device.key) == ("ledger", {"device": "pump1", "gateway": "g1"})
    assert parse_key(channel.key) == ("ledger", {"channel": "motor", "device": "pump1", "gateway": "g1"})
    assert device.fields == {
        "produced": 10.0,
        "stored": 7.0,
        "waiting": 1.0,
        "late": 2.0,
        "rejected_future": 1.0,
        "dropped_drop_oldest": 1.0,
    }
    assert all(isinstance(value, float) for value in device.fields.values())


def test_an_inventory_is_a_point_of_the_gateway_and_one_of_each_channel() -> None:
    inventory = Inventory("forebay 0.1", "c0ffee", [InventoryDevice("pump1", "acme@2", ["motor", "turns"])])
    points = points_of(lines_of(inventory))
    assert [parse_key(point.key) for point in points] == [
        ("gateway", {"gateway": "g1"}),
        ("channel", {"channel": "motor", "device": "pump1", "gateway": "g1"}),
        ("channel", {"channel": "turns", "device": "pump1", "gateway": "g1"}),
    ]
    assert [point.fields for point in points] == [
        {"software": "forebay 0.1", "config_digest": "c0ffee"},
        {"profile": "acme@2"},
        {"profile": "acme@2"},
    ]
    assert {point.time_ns for point in points} == {T - 5}


def test_a_heartbeat_is_alive_at_its_own_time_and_a_will_is_lost_at_that_of_its_arrival() -> None:
    (alive,) = points_of(lines_of(Heartbeat(T - 9, "forebay 0.1", "d", 1, 2, 3, 4, 5, 6.5)))
    (lost,) = points_of(lines_of(Heartbeat(0, "forebay 0.1", "d")))
    assert (alive.time_ns, alive.fields["state"], alive.fields["outage_budget_s"]) == (T - 9, "alive", 6.5)
    assert (lost.time_ns, lost.fields) == (T, {"state": "lost"})


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.text(
    '\\,= \n"#a', min_size=1, max_size=8
)


@given(st.tuples(names, names, names, names))
def test_a_name_never_leaves_its_place_whatever_it_holds(drawn: tuple[str, str, str, str]) -> None:
    device, channel, quantity, unit = drawn
    table = [WireSeries(device, channel, quantity, unit, texts={unit: 1.0})]
    lines = lines_of(ChangeBody(np.array([(0, T, 1.0)], CHANGE_DTYPE)), table)
    (point,) = points_of(lines)
    measurement, tags = parse_key(point.key)
    assert sorted(tags) == ["channel", "device", "gateway", "unit"]
    for told, name in (
        (measurement, quantity),
        (tags["device"], device),
        (tags["channel"], channel),
        (tags["unit"], unit),
    ):
        assert len(told) == len(name)
        assert all(b == a or a in "\\#" or ord(a) < 32 or ord(a) == 127 for a, b in zip(name, told, strict=True))
    assert point.fields["state"] == 1.0
    assert len(str(point.fields["text"])) == len(unit)


def test_names_that_differ_stay_different_when_one_of_them_holds_a_newline() -> None:
    table = [WireSeries("d", name, "q", "") for name in ("a\nb", "a\\nb", "a b", "anb")]
    rows = np.zeros(4, CHANGE_DTYPE)
    rows["series"] = range(4)
    assert len({point.key for point in points_of(lines_of(ChangeBody(rows), table))}) == 4


@pytest.mark.parametrize(
    "body", [summaries(), RawBody(SampleBatch.empty()), ChangeBody(np.zeros(0, CHANGE_DTYPE)), AlarmBody([])]
)
def test_a_frame_without_rows_has_no_lines(body: BodyKind) -> None:
    lines = lines_of(body)
    assert lines.body == b""
    assert len(lines) == 0


def test_frames_of_several_gateways_with_one_table_keep_their_own_keys() -> None:
    body = summaries({"mean": 1.5, "count": 2, "time_ns": T})
    for gateway in ("g1", "g2", "g1"):
        lines = encode(Frame(Header(gateway, 7, 1, Lane.LIVE, T), TABLE, body), T)
        assert lines.body.startswith(b"temperature,channel=motor,device=pump1,gateway=%b,unit=" % gateway.encode())


@pytest.mark.parametrize("series", [3, 1_200])
def test_many_rows_are_written_like_few(series: int) -> None:
    table = [WireSeries(f"pump{n}", "motor", "temperature", "°C") for n in range(series)]
    rows = [
        {"series": n * 7 % series, "time_ns": T + n, "mean": n / 8, "last": n / 4 if n % 3 else np.nan, "count": n + 1}
        for n in range(2_000)
    ]
    body = summaries(*rows)
    lines = lines_of(body, table)
    points = {point.time_ns - T: (n, point) for n, point in zip(lines.series, points_of(lines), strict=True)}
    assert len(points) == len(rows)
    for n, row in enumerate(body.rows):
        place, point = points[n]
        assert (place, parse_key(point.key)[1]["device"]) == (row["series"], f"pump{row['series']}")
        assert (point.fields, point.time_ns) == naive_summary(row)


def test_an_inventory_that_says_nothing_of_its_gateway_has_no_line_without_fields() -> None:
    (point,) = points_of(lines_of(Inventory("", "", [InventoryDevice("pump1", "", ["motor"])])))
    assert parse_key(point.key)[0] == "channel"
    assert len(lines_of(Inventory("", "", []))) == 0


def test_what_is_remembered_of_long_names_is_bounded_by_their_size() -> None:
    def table(number: int) -> list[WireSeries]:
        return [WireSeries(f"{number}-{i}" + "d" * 240, "c" * 240, "q" * 240, "u" * 240) for i in range(100)]

    known = KnownKeys(most_bytes=1 << 20)
    tracemalloc.start()
    try:
        for number in range(100):
            known.of("g", table(number), "")
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 3 << 20  # all of them take 20 MB

    again = table(1)
    assert known.of("g", again, "") is known.of("g", again, "")
    assert known.of("g", again, "_raw") == [key.replace(b"q,", b"q_raw,") for key in known.of("g", again, "")]


def test_a_small_frame_never_becomes_lines_that_fill_the_memory() -> None:
    """One long name, named again and again, is small on the wire."""
    long = "\x01" * 256
    rows = np.zeros(1 << 16, CHANGE_DTYPE)
    rows["time_ns"] = T + np.arange(len(rows))
    with pytest.raises(FrameError, match="65536 lines whose names take") as refused:
        lines_of(ChangeBody(rows), [WireSeries(long, long, long, long)])
    assert refused.value.reason == "oversize"
    assert len(lines_of(ChangeBody(rows[:4096]), [WireSeries(long, long, long, long)])) == 4096
    assert len(lines_of(ChangeBody(rows))) == len(rows)
