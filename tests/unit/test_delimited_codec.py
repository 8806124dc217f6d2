from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.codecs.delimited import DelimitedCodec, DelimitedOptions
from devices.errors import DecodeError
from devices.model import Rows

NOON_NS = 1_731_405_912 * 10**9


def decoded(line: bytes, **options: Any) -> list[tuple[str, int, float | bool | str]]:
    rows = Rows()
    DelimitedCodec(msgspec.convert({"columns": ["a", "b", "c"], **options}, DelimitedOptions)).decode(line, rows)
    return list(zip(rows.channel, rows.time_ns, rows.value, strict=True))


def test_each_column_is_a_channel() -> None:
    assert decoded(b"1, 2.5e3 ,run") == [("a", 0, 1.0), ("b", 0, 2500.0), ("c", 0, "run")]


def test_an_empty_field_is_no_reading() -> None:
    assert decoded(b"1,, ") == [("a", 0, 1.0)]


def test_a_column_without_a_name_is_not_read() -> None:
    assert decoded(b"1,2,3", columns=["a", "", "c"]) == [("a", 0, 1.0), ("c", 0, 3.0)]


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("1731405912", {}),
        ("1731405912000", {"time_format": "ms"}),
        ("1731405912000000000", {}),
        ("1731405912.0", {"time_format": "s"}),
        ("2024-11-12T10:05:12Z", {}),
        ("2024-11-12T10:05:12Z", {"time_format": "iso8601"}),
    ],
)
def test_a_column_may_hold_the_time(cell: str, options: dict[str, str]) -> None:
    assert decoded(f"{cell},5,".encode(), time="a", **options) == [("b", NOON_NS, 5.0)]


def test_a_time_in_nanoseconds_keeps_every_digit() -> None:
    assert decoded(b"1731405912123456789,5,", time="a")[0][1] == 1_731_405_912_123_456_789


def test_blanks_of_any_number_may_separate() -> None:
    assert decoded(b"  1 \t 2   3 ", delimiter=" ") == [("a", 0, 1.0), ("b", 0, 2.0), ("c", 0, 3.0)]


def test_a_decimal_comma_is_read() -> None:
    assert decoded(b"1,5;-2,25;1.5", delimiter=";", decimal=",") == [("a", 0, 1.5), ("b", 0, -2.25), ("c", 0, "1.5")]


def test_comments_are_not_data() -> None:
    assert decoded(b"# a,b,c") == []
    assert decoded(b"#1,2,3", comment="") == [("a", 0, "#1"), ("b", 0, 2.0), ("c", 0, 3.0)]


def test_a_number_is_written_as_one() -> None:
    assert decoded(b"1_000,0x10,1e400") == [("a", 0, "1_000"), ("b", 0, "0x10"), ("c", 0, float("inf"))]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, b""),
        ({}, b"1,2"),
        ({}, b"1,2,3,4"),
        ({}, b"1,2,\xff"),
        ({"time": "a"}, b",2,3"),
        ({"time": "a"}, b"soon,2,3"),
        ({"time": "a"}, b"nan,2,3"),
        ({"time": "a", "time_format": "s"}, b"2024-11-12T10:05:12Z,2,3"),
        ({"time": "c", "time_format": "iso8601"}, b"1,2,1731405912"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_whole(options: dict[str, str], line: bytes) -> None:
    rows = Rows(["before"], [1], [2.0])
    with pytest.raises(DecodeError) as caught:
        DelimitedCodec(msgspec.convert({"columns": ["a", "b", "c"], **options}, DelimitedOptions)).decode(line, rows)
    assert caught.value.reason == "malformed"
    assert len(str(caught.value)) < 200
    assert (rows.channel, rows.time_ns, rows.value) == (["before"], [1], [2.0])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"columns": []}, "at least one column"),
        ({"columns": [""]}, "at least one column"),
        ({"columns": ["a", "a"]}, "each column once"),
        ({"columns": ["a"], "delimiter": ""}, "must not be empty"),
        ({"columns": ["a"], "decimal": ","}, "must differ"),
        ({"columns": ["a"], "time": "b"}, "must be one of the columns"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=complaint):
        msgspec.convert(options, DelimitedOptions)


@given(st.lists(st.none() | st.floats(allow_nan=False), min_size=3, max_size=3))
def test_any_numbers_are_read_as_they_were_written(numbers: list[float | None]) -> None:
    line = ";".join("" if number is None else repr(number) for number in numbers).encode()
    expected = [(name, 0, number) for name, number in zip("abc", numbers, strict=True) if number is not None]
    assert decoded(line, delimiter=";") == expected
