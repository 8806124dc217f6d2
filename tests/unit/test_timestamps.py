from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.codecs.timestamps import TimeFormat, parser
from devices.errors import DecodeError

NOON = 1_731_405_912


@pytest.mark.parametrize(
    ("form", "written", "time_ns"),
    [
        ("auto", NOON, NOON * 10**9),
        ("auto", NOON * 10**3 + 123, NOON * 10**9 + 123_000_000),
        ("auto", NOON * 10**6 + 123_456, NOON * 10**9 + 123_456_000),
        ("auto", NOON * 10**9 + 123_456_789, NOON * 10**9 + 123_456_789),
        ("auto", NOON + 0.123456, NOON * 10**9 + 123_456_000),
        ("auto", NOON * 1e3 + 0.25, NOON * 10**9 + 250_000),
        ("auto", 1.0, 10**9),
        ("auto", "2024-11-12T10:05:12Z", NOON * 10**9),
        ("s", NOON, NOON * 10**9),
        ("s", NOON + 0.5, NOON * 10**9 + 500_000_000),
        ("ms", NOON, NOON * 10**6),
        ("us", NOON, NOON * 10**3),
        ("ns", NOON, NOON),
        ("iso8601", "2024-11-12T10:05:12", NOON * 10**9),
        ("iso8601", "2024-11-12 10:05:12+00:00", NOON * 10**9),
        ("iso8601", "2024-11-12T11:05:12+01:00", NOON * 10**9),
        ("iso8601", "2024-11-12T04:35:12-0530", NOON * 10**9),
        ("iso8601", "20241112T100512Z", NOON * 10**9),
        ("iso8601", "2024-11-12T10:05Z", (NOON - 12) * 10**9),
        ("iso8601", "2024-11-12T10:05:12.1234567891Z", NOON * 10**9 + 123_456_789),
        ("iso8601", "2024-11-12T10:05:12,5Z", NOON * 10**9 + 500_000_000),
    ],
)
def test_a_time_is_read(form: TimeFormat, written: float | str, time_ns: int) -> None:
    assert parser(form)(written) == time_ns


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("auto", 0),
        ("auto", -1),
        ("auto", 0.0),
        ("auto", 2**63),
        ("auto", 10**400),
        ("auto", float("nan")),
        ("auto", float("inf")),
        ("auto", float("-inf")),
        ("auto", True),
        ("auto", "yesterday"),
        ("auto", "1731405912"),
        ("s", "2024-11-12T10:05:12Z"),
        ("s", 10**10),
        ("s", 1e300),
        ("ms", False),
        ("iso8601", NOON),
        ("iso8601", "2024-11-12"),
        ("iso8601", "2024-02-30T10:05:12Z"),
        ("iso8601", "2024-11-12T10:05:60Z"),
        ("iso8601", "1969-12-31T23:59:59Z"),
        ("iso8601", "1970-01-01T00:00:00Z"),
        ("iso8601", "9999-12-31T23:59:59Z"),
        ("iso8601", "0001-01-01T00:00:00+23:00"),
        ("iso8601", "２０２４-11-12T10:05:12Z"),
        ("iso8601", "2024-11-12T10:05:12" + "0" * 100),
    ],
)
def test_what_is_no_time_is_refused(form: TimeFormat, written: float | str) -> None:
    with pytest.raises(DecodeError) as caught:
        parser(form)(written)
    assert caught.value.reason == "malformed"
    assert len(str(caught.value)) < 200


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)),
    st.integers(-14 * 60, 14 * 60),
)
def test_any_iso_8601_time_is_read_as_python_writes_it(moment: datetime, offset_min: int) -> None:
    moment = moment.replace(tzinfo=UTC)
    shifted = moment + timedelta(minutes=offset_min)
    sign = "-" if offset_min < 0 else "+"
    text = f"{shifted:%Y-%m-%dT%H:%M:%S.%f}{sign}{abs(offset_min) // 60:02}:{abs(offset_min) % 60:02}"
    expected_ns = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1_000
    assert parser("iso8601")(text) == expected_ns


@given(st.integers(10**9, 9 * 10**9), st.sampled_from([1, 10**3, 10**6, 10**9]))
def test_whole_numbers_of_this_age_find_their_unit(seconds: int, per_s: int) -> None:
    assert parser("auto")(seconds * per_s) == seconds * 10**9


@given(st.floats(1e9, 4e9))
def test_fractions_of_seconds_are_kept_to_the_microsecond(seconds: float) -> None:
    time_ns = parser("auto")(seconds)
    assert time_ns % 1_000 == 0
    assert abs(time_ns - int(seconds) * 10**9 - (seconds % 1) * 1e9) < 1_000
