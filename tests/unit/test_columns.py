"""Arrays to bytes and back: the smallest exponent, every bit, and no column that is not of its length."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest

from devices.errors import FrameError
from devices.model import Floats
from devices.wire import telemetry_pb2 as pb
from devices.wire.columns import (
    FLOAT,
    Groups,
    pack_decimals,
    pack_floats,
    pack_ints,
    pack_texts,
    pack_times,
    take_minus_zeros,
    to_decimals,
    unpack_decimals,
    unpack_floats,
    unpack_ints,
    unpack_texts,
    unpack_times,
)


def groups(*counts: int) -> Groups:
    return Groups(np.array(counts, dtype=np.int64))


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


def bits(values: Sequence[float] | Floats) -> list[bytes]:
    return [struct.pack("<d", value) for value in values]


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ([0, 0, 0], 0),
        ([7], 2),
        ([7, 7, 7, 7], 2),
        ([-1, 0, 1, 127, -128], 1 + 5),
        ([-1, 0, 1, 128], 1 + 4 * 2),
        ([1 << 40, 0], 1 + 2 * 6),
        ([-(1 << 63), (1 << 63) - 1, 0], 1 + 3 * 8),
        ([-(1 << 63)] * 5, 1 + 8),
    ],
)
def test_integers_take_the_narrowest_width_that_holds_them(values: list[int], size: int) -> None:
    column = pack_ints(np.array(values, dtype=np.int64))
    assert len(column) == size
    assert unpack_ints(column, len(values), "c").tolist() == values


@pytest.mark.parametrize("width", range(1, 9))
def test_integers_of_every_width_come_back(width: int) -> None:
    top = (1 << (8 * width - 1)) - 1
    values = [top, -top - 1, 0, -1, 1, top // 3]
    column = pack_ints(np.array(values, dtype=np.int64))
    assert column[0] == width
    assert unpack_ints(column, len(values), "c").tolist() == values


def test_an_absent_column_reads_as_zeros() -> None:
    assert unpack_ints(b"", 3, "c").tolist() == [0, 0, 0]
    assert unpack_floats(b"", 2, "c").tolist() == [0.0, 0.0]
    assert unpack_texts(pb.Texts(), 2, "c", 10) == ["", ""]


@pytest.mark.parametrize(
    ("column", "n", "reason"),
    [
        (b"\x01\x00\x00", 3, "truncated"),
        (b"\x01\x00\x00\x00\x00", 3, "malformed"),
        (b"\x02\x00\x00\x00", 2, "truncated"),
        (b"\x00", 3, "malformed"),
        (b"\x09" + bytes(27), 3, "malformed"),
        (b"\x80", 3, "malformed"),
        (b"\x81", 3, "truncated"),
        (b"\x81\x01\x01", 3, "malformed"),
        (b"\x01", 100_000_000, "truncated"),
    ],
)
def test_a_column_of_integers_that_is_not_of_its_length_is_refused(column: bytes, n: int, reason: str) -> None:
    with pytest.raises(FrameError) as caught:
        unpack_ints(column, n, "c")
    assert caught.value.reason == reason


def test_floats_keep_every_bit() -> None:
    values = floats(0.0, -0.0, 5e-324, -2.2250738585072014e-308, 1.7976931348623157e308, float("inf"), 0.1)
    values = np.append(values, np.array([0x7FF8_0000_0000_0001], dtype=np.uint64).view(np.float64))
    back = unpack_floats(pack_floats(values), len(values), "c")
    assert back.tobytes() == values.tobytes()


def test_a_column_of_floats_that_is_not_of_its_length_is_refused() -> None:
    column = pack_floats(floats(1.5, 2.5))
    for n, reason in ((1, "malformed"), (3, "truncated"), (100_000_000, "truncated")):
        with pytest.raises(FrameError) as caught:
            unpack_floats(column, n, "c")
        assert caught.value.reason == reason


def test_texts_of_any_script_come_back() -> None:
    texts = ["", "press-001", "Förderpumpe", "温度", "a\x00b\n", "👩‍🔧", ""]
    assert unpack_texts(pack_texts(texts), len(texts), "c", 64) == texts


@pytest.mark.parametrize(
    ("column", "n", "reason"),
    [
        (pb.Texts(utf8=b"ab", characters=pack_ints(np.array([1]))), 1, "malformed"),
        (pb.Texts(utf8=b"ab", characters=pack_ints(np.array([3, -1]))), 2, "malformed"),
        (pb.Texts(utf8=b"ab", characters=pack_ints(np.array([1 << 62] * 4 + [2]))), 5, "malformed"),
        (pb.Texts(utf8=b"\xff\xfe", characters=pack_ints(np.array([1, 1]))), 2, "malformed"),
        (pb.Texts(utf8=b"\xed\xa0\x80", characters=pack_ints(np.array([1]))), 1, "malformed"),
        (pb.Texts(utf8=b"ab" * 20, characters=pack_ints(np.array([40]))), 1, "oversize"),
        (pb.Texts(utf8="é".encode() * 20, characters=pack_ints(np.array([20]))), 1, "oversize"),
    ],
)
def test_texts_that_do_not_add_up_are_refused(column: pb.Texts, n: int, reason: str) -> None:
    with pytest.raises(FrameError) as caught:
        unpack_texts(column, n, "c", 32)
    assert caught.value.reason == reason


# ---------------------------------------------------------------- decimals


@pytest.mark.parametrize(
    ("values", "exponent"),
    [
        ((0.0,), 0),
        ((23.0, -4.0), 0),
        ((23.5, 1.0), 1),
        ((0.001, 1000.25), 3),
        ((0.1 + 0.2,), FLOAT),
        ((1e-9,), 9),
        ((1e-10,), FLOAT),
        ((2.0**53, 2.0**53 + 2), 0),
        ((2.0**64, -(2.0**62)), FLOAT),
        ((-(2.0**63),), 0),
        ((1e300, 1.0), FLOAT),
        ((5e-324,), FLOAT),
        ((-0.0,), FLOAT),
        ((float("nan"),), FLOAT),
        ((float("inf"),), FLOAT),
        ((123456789012.345,), 3),
    ],
)
def test_the_exponent_is_the_smallest_that_gives_back_every_bit(values: tuple[float, ...], exponent: int) -> None:
    exponents, _ = to_decimals(floats(*values)[None, :], groups(len(values)))
    assert exponents.tolist() == [exponent]


def test_the_exponent_is_found_where_only_one_row_of_a_long_series_needs_it() -> None:
    values = np.round(np.arange(1000) * 0.1, 1)
    values[501] = 7.123
    exponents, _ = to_decimals(values[None, :], groups(1000))
    assert exponents.tolist() == [3]


def test_one_series_of_full_doubles_does_not_spoil_the_others() -> None:
    good = np.round(np.linspace(20, 21, 400), 2)
    wild = np.sin(np.arange(400) * 0.37)
    column = pack_decimals(np.concatenate([good, wild, good]), groups(400, 400, 400))
    assert unpack_ints(column.exponent, 3, "e").tolist() == [2, FLOAT, 2]
    assert len(column.float) == 8 * 400
    assert len(column.step) <= 1 + 800


def test_minus_zeros_do_not_cost_a_series_its_exponent() -> None:
    values = floats(-0.1, -0.0, 0.0, 0.1, -0.0)
    column = pack_decimals(values, groups(2, 3))
    assert unpack_ints(column.exponent, 2, "e").tolist() == [1, 1]
    assert column.minus_zeros == 2
    assert bits(unpack_decimals(column, groups(2, 3), "v")) == bits(values)


def test_taking_minus_zeros_leaves_the_callers_values_alone() -> None:
    values = floats(1.0, -0.0)
    plain, places = take_minus_zeros(values)
    assert bits(values) == bits([1.0, -0.0])
    assert bits(plain) == bits([1.0, 0.0])
    assert places.tolist() == [1]


@pytest.mark.parametrize(
    "values",
    [
        (1e300, -1e300, 1e300, 5e-324),
        (2.0**62, -(2.0**62), 2.0**62, -(2.0**62)),
        (-(2.0**63), 0.0, -(2.0**63), 2.0**53),
        (float("nan"), 1.0, float("-inf"), -0.0),
        (0.1, 0.2, 0.30000000000000004, 1e-320),
    ],
)
def test_values_beyond_all_measure_come_back_bit_for_bit(values: tuple[float, ...]) -> None:
    for cut in (groups(4), groups(1, 3), groups(1, 1, 1, 1)):
        column = pack_decimals(floats(*values), cut)
        assert bits(unpack_decimals(column, cut, "v")) == bits(values)


@pytest.mark.parametrize(
    "change",
    [
        {"exponent": pack_ints(np.array([10, 1]))},
        {"exponent": pack_ints(np.array([-1, 1]))},
        {"exponent": pack_ints(np.array([14, 1]))},
        {"first": pack_ints(np.array([1, 2, 3]))},
        {"step": b"\x01"},
        {"exponent": pack_ints(np.array([FLOAT, 1])), "float": bytes(7)},
        {"minus_zeros": 5},
        {"minus_zeros": 100_000_000},
        {"minus_zeros": 1, "minus_zero": pack_ints(np.array([4]))},
        {"minus_zeros": 1, "minus_zero": pack_ints(np.array([-1]))},
    ],
)
def test_decimals_that_contradict_themselves_are_refused(change: dict[str, object]) -> None:
    column = pack_decimals(floats(0.5, 1.5, 2.5, 7.5), groups(1, 3))
    for name, value in change.items():
        setattr(column, name, value)
    with pytest.raises(FrameError):
        unpack_decimals(column, groups(1, 3), "v")


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([1_700_000_000_000_000_000, 1_700_000_010_000_000_000], 3),
        ([1_700_000_000_250_000_000, 1_700_000_001_000_000_000], 2),
        ([1_700_000_000_000_001_000], 1),
        ([1_700_000_000_000_000_001, 1_700_000_000_000_000_002], 0),
        ([0, 0], 3),
        ([-3_000_000_000, -1_000_000_000], 3),
        ([-1, 2**63 - 2], 0),
    ],
)
def test_times_use_the_largest_unit_that_divides_them(times: list[int], unit: int) -> None:
    cut = groups(len(times))
    column = pack_times(np.array(times, dtype=np.int64), cut)
    assert unpack_ints(column.unit, 1, "u").tolist() == [unit]
    assert unpack_times(column, cut).tolist() == times


def test_a_steady_clock_costs_nothing_a_row() -> None:
    times = np.concatenate([np.arange(500) * 1_000_000_000, 77 + np.arange(500) * 250_000_000])
    column = pack_times(times, groups(500, 500))
    assert column.rest == b""
    assert column.ByteSize() < 40
    assert unpack_times(column, groups(500, 500)).tolist() == times.tolist()


@pytest.mark.parametrize(
    "column",
    [
        pb.Times(unit=pack_ints(np.array([4]))),
        pb.Times(unit=pack_ints(np.array([-1]))),
        pb.Times(rest=pack_ints(np.array([0, -1, 0]))),
        pb.Times(unit=pack_ints(np.array([3])), first=pack_ints(np.array([10_000_000_000]))),
        pb.Times(unit=pack_ints(np.array([3])), step=pack_ints(np.array([9_000_000_000]))),
        pb.Times(step=pack_ints(np.array([(1 << 63) - 1]))),
        pb.Times(unit=pack_ints(np.array([1])), first=pack_ints(np.array([-(1 << 63)]))),
        pb.Times(first=pack_ints(np.array([1, 2]))),
    ],
)
def test_times_that_fall_or_leave_64_bits_are_refused(column: pb.Times) -> None:
    with pytest.raises(FrameError):
        unpack_times(column, groups(3))
