"""Summaries to columns and back: what a window says about itself is mostly foreseeable.

`last` is sent as any value is. The others are integers in the same decimal exponent, beside it:

    below  = last - min                       above = max - last
    first' = first - min
    mean'  = mean  - (min + max) * 10^(em - e) / 2              in mean's own exponent em >= e
    stddev'= stddev - (max - min) * 10^(es - e) * share / 256   in stddev's own exponent es >= e

all modulo 2^64, divisions rounding down. `share` is the usual ratio of the standard deviation of
n samples to their range, by the number of bits of n: exactly 1/2 for two samples, about 0.3 for ten
of a normal distribution (the inverse of the control chart's d2). A guess that is wrong costs bytes,
never truth.

A window of one sample sends only `last` (mean = min = max = first = last, stddev = 0). The mean and
stddev of a state say nothing and are not sent: they come back as NaN. `increase` is sent for counters,
and comes back as NaN for others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.errors import FrameError
from devices.model import SUMMARY_DTYPE, Floats, Int64s, Kind
from devices.wire import telemetry_pb2 as pb
from devices.wire.columns import (
    FLOAT,
    Groups,
    expect_sorted,
    from_decimals,
    largest_unit,
    pack_decimals,
    pack_differences,
    pack_floats,
    pack_ints,
    pack_split,
    pack_times,
    put_minus_zeros,
    take_minus_zeros,
    ten_to_the,
    to_decimals,
    unit_ns,
    unpack_decimals,
    unpack_exponents,
    unpack_floats,
    unpack_ints,
    unpack_split,
    unpack_times,
)
from devices.wire.limits import FrameLimits
from devices.wire.table import Table, arrange, unpack_groups

Rows = NDArray[Any]
"""SUMMARY_DTYPE[n]."""
Mask = NDArray[np.bool_]

_MS_NS = 1_000_000
_COUNTER, _STATE = int(Kind.COUNTER), int(Kind.STATE)
"""NumPy compares with a plain int several times faster than with a member of an enum."""
_SHARE_256 = np.array([0, 0, 128, 96, 77, 64, 56, 50, 45, 42, 39, 37], dtype=np.int64)
"""Of a window of 2^(k-1) to 2^k - 1 samples; part of the format, like every number in this table."""
_SHARE_OF_COUNT = np.array([_SHARE_256[min(n.bit_length(), len(_SHARE_256) - 1)] for n in range(1025)])


def pack_summaries(rows: Rows, table: Table) -> pb.Summaries:
    """SUMMARY_DTYPE[n], in any order -> the message. ValueError if first, min, max or last is not finite."""
    order, groups, of_group, series_rows = arrange(rows["series"], rows["time_ns"], table)
    rows = rows[order]
    span_unit = largest_unit(rows["span_ns"])
    supplement = rows["time_ns"] % _MS_NS
    message = pb.Summaries(
        rows=len(rows),
        series_rows=series_rows,
        time=pack_times(rows["time_ns"] - supplement, groups),
        supplement=pack_ints(supplement),
        span_unit=span_unit,
        span=pack_ints(rows["span_ns"] // unit_ns(span_unit)),
        count=pack_ints(rows["count"]),
    )
    if len(rows):
        _pack_values(message, rows, groups, table.kind[of_group])
    return message


def _pack_values(message: pb.Summaries, rows: Rows, groups: Groups, kinds: Int64s) -> None:
    many, levels = _which(rows["count"], kinds, groups)
    plain_last, places = take_minus_zeros(np.ascontiguousarray(rows["last"]))
    if not all(np.isfinite(rows[name]).all() for name in ("last", "min", "max", "first")):
        raise ValueError("a summary's first, min, max or last is not finite; such samples are rejected before")
    names = ("min", "max", "first", "mean")
    others = np.stack([np.where(levels if name == "mean" else many, rows[name], plain_last) for name in names])
    others, other_places = take_minus_zeros(others.reshape(-1))
    low, high, first, mean = others.reshape(4, -1)
    stddev = np.where(levels, rows["stddev"], 0.0)

    exponents, (last_i, low_i, high_i, first_i) = to_decimals(np.stack([plain_last, low, high, first]), groups)
    mean_exponents, (mean_i,) = to_decimals(mean[None, :], groups, exponents)
    stddev_exponents, (stddev_i,) = to_decimals(stddev[None, :], groups, exponents)

    message.last.CopyFrom(pack_split(last_i, plain_last, exponents, groups))
    message.last.minus_zeros, message.last.minus_zero = len(places), pack_differences(places)
    message.minus_zeros, message.minus_zero = len(other_places), pack_differences(other_places)

    exact = many & groups.spread(exponents != FLOAT)
    message.below = pack_ints((last_i - low_i)[exact])
    message.above = pack_ints((high_i - last_i)[exact])
    message.first = pack_ints((first_i - low_i)[exact])
    floats = many & ~exact
    message.extreme_float = pack_floats(np.concatenate([low[floats], high[floats], first[floats]]))

    exact = levels & groups.spread(mean_exponents != FLOAT)
    middle = _middle(low_i, high_i, mean_exponents, exponents, groups)
    message.mean_exponent = pack_ints(mean_exponents)
    message.mean = pack_ints((mean_i - middle)[exact])
    message.mean_float = pack_floats(mean[levels & ~exact])

    exact = levels & groups.spread(stddev_exponents != FLOAT)
    share = _share(low_i, high_i, rows["count"], stddev_exponents, exponents, groups)
    message.stddev_exponent = pack_ints(stddev_exponents)
    message.stddev = pack_ints((stddev_i - share)[exact])
    message.stddev_float = pack_floats(stddev[levels & ~exact])

    counters, of_counters = groups.kept(kinds == _COUNTER)
    message.increase.CopyFrom(pack_decimals(rows["increase"][of_counters], counters))


def unpack_summaries(message: pb.Summaries, table: Table, limits: FrameLimits) -> Rows:
    """The message -> SUMMARY_DTYPE[n], grouped by series. FrameError for whatever is wrong with it."""
    groups, of_group = unpack_groups(message.series_rows, message.rows, table, limits)
    n = groups.n
    rows = np.zeros(n, dtype=SUMMARY_DTYPE)
    if not n:
        return rows
    supplement = unpack_ints(message.supplement, n, "supplement")
    if int(supplement.min()) < 0 or int(supplement.max()) >= _MS_NS:
        raise FrameError("supplement: 0 to 999,999 ns are possible", "malformed")
    time_ns = unpack_times(message.time, groups) + supplement
    expect_sorted(time_ns, groups)
    count = unpack_ints(message.count, n, "count")
    if int(count.min()) <= 0:
        raise FrameError("count: a window without samples", "malformed")
    rows["series"] = groups.spread(of_group)
    rows["time_ns"] = time_ns
    rows["span_ns"] = _unpack_spans(message, n)
    rows["count"] = count
    _unpack_values(message, rows, count, groups, table.kind[of_group])
    return rows


def _unpack_spans(message: pb.Summaries, n: int) -> Int64s:
    unit = unit_ns(message.span_unit)
    span = unpack_ints(message.span, n, "span")
    if int(span.min()) <= 0 or int(span.max()) > np.iinfo(np.int64).max // unit:
        raise FrameError("span: not above 0, or beyond 64 bits of nanoseconds", "malformed")
    return span * unit


def _unpack_values(message: pb.Summaries, rows: Rows, count: Int64s, groups: Groups, kinds: Int64s) -> None:
    many, levels = _which(count, kinds, groups)
    exponents = unpack_exponents(message.last.exponent, groups, "last.exponent")
    last_i, last = unpack_split(message.last, exponents, groups, "last")

    exact, n = _with_exponent(many, exponents, groups)
    ints = np.empty((3, groups.n), dtype=np.int64)
    ints[:] = last_i
    low_i, high_i, first_i = ints
    low_i[exact] -= unpack_ints(message.below, n, "below")
    high_i[exact] += unpack_ints(message.above, n, "above")
    first_i[exact] = low_i[exact] + unpack_ints(message.first, n, "first")
    values = np.empty((4, groups.n))  # min, max, first, mean
    values[:3] = from_decimals(ints, exponents, groups)
    _put_floats(values[:3], many, exact, message.extreme_float, "extreme_float")

    mean_exponents = _unpack_finer(message.mean_exponent, exponents, groups, "mean_exponent")
    exact, n = _with_exponent(levels, mean_exponents, groups)
    middle = _middle(low_i, high_i, mean_exponents, exponents, groups)
    middle[exact] += unpack_ints(message.mean, n, "mean")
    values[3] = from_decimals(middle, mean_exponents, groups)
    _put_floats(values[3:], levels, exact, message.mean_float, "mean_float")

    stddev_exponents = _unpack_finer(message.stddev_exponent, exponents, groups, "stddev_exponent")
    exact, n = _with_exponent(levels, stddev_exponents, groups)
    share = _share(low_i, high_i, count, stddev_exponents, exponents, groups)
    share[exact] += unpack_ints(message.stddev, n, "stddev")
    stddev = from_decimals(share, stddev_exponents, groups)
    _put_floats(stddev[None, :], levels, exact, message.stddev_float, "stddev_float")

    put_minus_zeros(last, message.last.minus_zero, message.last.minus_zeros)
    put_minus_zeros(values.reshape(-1), message.minus_zero, message.minus_zeros)
    if not (np.isfinite(last).all() and np.isfinite(values[:3]).all()):
        raise FrameError("first, min, max or last is not finite", "nonfinite")
    if not many.all():
        values, stddev = np.where(many, values, last), np.where(many, stddev, 0.0)
    rows["last"], rows["stddev"] = last, stddev
    rows["min"], rows["max"], rows["first"], rows["mean"] = values
    rows["increase"] = np.nan
    if (kinds == _STATE).any():
        states = groups.spread(kinds == _STATE)
        rows["mean"][states] = np.nan
        rows["stddev"][states] = np.nan
    if (kinds == _COUNTER).any():
        counters, of_counters = groups.kept(kinds == _COUNTER)
        rows["increase"][of_counters] = unpack_decimals(message.increase, counters, "increase")


def _with_exponent(wanted: Mask, exponents: Int64s, groups: Groups) -> tuple[Mask | slice, int]:
    """Those of the wanted rows that are integers of an exponent, and how many they are.

    All of them, the usual case, are a slice: several times faster than a mask.
    """
    decimal = exponents != FLOAT
    exact = wanted if decimal.all() else wanted & groups.spread(decimal)
    n = int(np.count_nonzero(exact))
    return (exact if n < groups.n else slice(None)), n


def _put_floats(values: Floats, wanted: Mask, exact: Mask | slice, column: bytes, what: str) -> None:
    """Put into float64[k, n] the wanted rows that are not integers: all of the first, all of the second ..."""
    if isinstance(exact, slice):
        unpack_floats(column, 0, what)
        return
    floats = wanted & ~exact
    n = int(np.count_nonzero(floats))
    values[:, floats] = unpack_floats(column, len(values) * n, what).reshape(len(values), n)


def _which(count: Int64s, kinds: Int64s, groups: Groups) -> tuple[Mask, Mask]:
    """bool[n] each: the windows that send more than `last`, and those that send mean and stddev too."""
    many = count > 1
    return many, many & groups.spread(kinds != _STATE)


def _unpack_finer(column: bytes, coarse: Int64s, groups: Groups, what: str) -> Int64s:
    exponents = unpack_exponents(column, groups, what)
    if (exponents < coarse).any():
        raise FrameError(f"column {what}: an exponent below that of `last`", "malformed")
    return exponents


def _middle(low: Int64s, high: Int64s, fine: Int64s, coarse: Int64s, groups: Groups) -> Int64s:
    middle: Int64s = (low + high) * groups.spread(_finer_by(fine, coarse)) >> 1
    return middle


def _share(low: Int64s, high: Int64s, count: Int64s, fine: Int64s, coarse: Int64s, groups: Groups) -> Int64s:
    of_range = _SHARE_OF_COUNT.take(count, mode="clip")
    share: Int64s = (high - low) * groups.spread(_finer_by(fine, coarse)) * of_range >> 8
    return share


def _finer_by(fine: Int64s, coarse: Int64s) -> Int64s:
    """10^(fine - coarse), 1 where there is no exponent and the integers have no meaning."""
    return ten_to_the(np.where(fine == FLOAT, 0, fine - coarse))
