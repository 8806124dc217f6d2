"""Arrays to bytes and back, exactly: the columns of a frame (docs/wire.md, docs/decisions/0004-columns.md).

A column does not say how long it is. Its length comes from a count that has been checked against a
limit; a column whose bytes do not fit that length is refused before memory is taken for it. A
column without bytes holds zeros, so that a field which an older writer did not know reads as 0.

    ints      ""                        all zero
              w, w planes of n bytes    n integers (zigzag: 0, -1, 1, -2 -> 0, 1, 2, 3) of w = 1..8 bytes;
                                        plane 0 has the lowest byte of each
              0x80 | w, w bytes         n times the same integer
    floats    ""                        all 0.0
              8 planes of n bytes       n float64
    texts     UTF-8 of all of them, and ints: the number of characters of each

Byte planes put like with like: the high bytes of neighbours are nearly always equal, which the
frame's zstd then turns into almost nothing.

Rows stand in groups, one a series. Integers of a group are sent as the first, and the differences
from row to row; the firsts have a column of their own, since they are large where differences are
small. All arithmetic is modulo 2^64 and so always has an inverse. Every function works on all groups
at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from devices.errors import FrameError
from devices.model import Floats, Int64s
from devices.wire import telemetry_pb2 as pb

MAX_EXPONENT = 9
"""10^9 is far below 2^53, so that a division by it is one correctly rounded operation."""
FLOAT = 15
"""In place of an exponent: the values of this group are not decimals with few places."""

_CONSTANT = 0x80
_MINUS_ZERO_BITS = np.int64(-(2**63))
_POWERS = np.array([10.0**e for e in range(MAX_EXPONENT + 1)] + [1.0] * (FLOAT - MAX_EXPONENT))
_INT_POWERS = _POWERS.astype(np.int64)
_UNITS_NS = np.array([1, 1_000, 1_000_000, 1_000_000_000], dtype=np.int64)
_LEGAL_EXPONENT = np.array([False, *(e <= MAX_EXPONENT or e == FLOAT for e in range(FLOAT + 1)), False])
"""By exponent + 1; what lies outside is clipped to either end."""
_FROM_ZIGZAG = np.fromiter(((z >> 1) ^ -(z & 1) for z in range(1 << 16)), np.int16, 1 << 16)
"""For integers of one and two bytes; mostly they are small, and so is the part of it that is read."""
_BEYOND = np.int64(2**63 - 1)
_FEW_ROWS, _FEW_GROUPS = 4, 256

_Scalar = TypeVar("_Scalar", bound=np.generic)


class Groups:
    """Rows 0..n-1 cut into g groups of `counts` rows each (int64[g], none of them 0)."""

    def __init__(self, counts: Int64s) -> None:
        self.counts = counts
        self.ends: Int64s = counts.cumsum()
        """int64[g]: the row after the last of each group."""
        self.starts: Int64s = self.ends - counts
        self.n = int(self.ends[-1]) if len(counts) else 0
        self.alone = self.n == len(counts)
        """Each group has one row, as in most frames of a live gateway."""

    def __len__(self) -> int:
        return len(self.counts)

    def spread(self, per_group: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """One value a group -> that value for each of its rows."""
        return per_group if self.alone else per_group.repeat(self.counts)

    def every(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """bool[g]: true for all rows of the group."""
        return rows if self.alone else np.logical_and.reduceat(rows, self.starts)

    def kept(self, groups: NDArray[np.bool_]) -> tuple[Groups, NDArray[np.bool_]]:
        """Those groups alone, and bool[n]: the rows that are theirs."""
        return Groups(self.counts[groups]), self.spread(groups)


# ---------------------------------------------------------------- ints, floats, texts


def pack_ints(values: Int64s) -> bytes:
    """int64[n] -> a column; see the module's docstring."""
    n = len(values)
    zigzag = ((values << 1) ^ (values >> 63)).view(np.uint64)
    top = int(zigzag.max()) if n else 0
    if top == 0:
        return b""
    width = (top.bit_length() + 7) // 8
    if int(zigzag.min()) == top:
        return bytes([_CONSTANT | width]) + top.to_bytes(width, "little")
    planes = zigzag.astype("<u8", copy=False).view(np.uint8).reshape(n, 8)[:, :width]
    return bytes([width]) + planes.T.tobytes()


def unpack_ints(column: bytes, n: int, what: str) -> Int64s:
    """A column -> int64[n]. FrameError if it is not one of length n; `what` names it there."""
    if not column:
        return np.zeros(n, dtype=np.int64)
    width = column[0] & ~_CONSTANT
    constant = bool(column[0] & _CONSTANT)
    if not 1 <= width <= 8:
        raise FrameError(f"column {what}: integers of {width} bytes; 1 to 8 are possible", "malformed")
    _expect_bytes(column, 1 + width * (1 if constant else n), what)
    if constant:
        zigzag = int.from_bytes(column[1:], "little")
        same = np.empty(n, dtype=np.int64)
        same.fill((zigzag >> 1) ^ -(zigzag & 1))
        return same
    planes = np.frombuffer(column, dtype=np.uint8, offset=1)
    if width <= 2:
        short = planes if width == 1 else planes[n:].astype(np.uint16) << 8 | planes[:n]
        return _FROM_ZIGZAG.take(short).astype(np.int64)
    planes = planes.reshape(width, n)
    if width > 4:
        rows = np.zeros((n, 8), dtype=np.uint8)
        rows[:, :width] = planes.T
        wide = rows.view("<u8").reshape(n).astype(np.uint64, copy=False)
        return ((wide >> 1) ^ -(wide & 1)).view(np.int64)
    joined = planes[width - 1].astype(np.uint32)  # several times faster than in 64 bits
    for plane in range(width - 2, -1, -1):
        joined <<= 8
        joined |= planes[plane]
    ints: Int64s = ((joined >> 1) ^ -(joined & 1)).view(np.int32).astype(np.int64)
    return ints


def pack_floats(values: Floats) -> bytes:
    """float64[n] -> a column that keeps every bit."""
    raw = np.ascontiguousarray(values, dtype="<f8").view(np.uint8)
    return raw.reshape(len(values), 8).T.tobytes() if raw.any() else b""


def unpack_floats(column: bytes, n: int, what: str) -> Floats:
    """A column -> float64[n]. FrameError if it is not one of length n."""
    if not column:
        return np.zeros(n)
    _expect_bytes(column, 8 * n, what)
    planes = np.frombuffer(column, dtype=np.uint8).reshape(8, n)
    return np.ascontiguousarray(planes.T).view("<f8").reshape(n).astype(np.float64, copy=False)


def pack_texts(texts: Sequence[str]) -> pb.Texts:
    """Texts -> a column. UnicodeEncodeError (a ValueError) if one holds half of a surrogate pair."""
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    return pb.Texts(utf8="".join(texts).encode(), characters=pack_ints(lengths))


def unpack_texts(column: pb.Texts, n: int, what: str, max_bytes: int) -> list[str]:
    """A column -> n texts of at most `max_bytes` bytes of UTF-8 each; FrameError otherwise."""
    lengths: list[int] = unpack_ints(column.characters, n, what).tolist()
    try:
        joined = column.utf8.decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"column {what}: {error}", "malformed") from None
    longest = max(lengths, default=0)
    if min(lengths, default=0) < 0 or sum(lengths) != len(joined):
        raise FrameError(f"column {what}: lengths do not add up to the {len(joined)} characters sent", "malformed")
    ends = list(accumulate(lengths))
    texts = [joined[end - length : end] for length, end in zip(lengths, ends, strict=True)]
    if longest > max_bytes or (4 * longest > max_bytes and any(len(text.encode()) > max_bytes for text in texts)):
        raise FrameError(f"column {what}: a text is longer than {max_bytes} bytes", "oversize")
    return texts


def _expect_bytes(column: bytes, expected: int, what: str) -> None:
    if len(column) < expected:
        raise FrameError(f"column {what} ends early: {len(column)} of {expected} bytes", "truncated")
    if len(column) > expected:
        raise FrameError(f"column {what} is longer than its rows: {len(column)} for {expected} bytes", "malformed")


def expect_counts(counts: Int64s, what: str, limit: int) -> int:
    """The sum of counts, none of which may be below 0; FrameError if it is more than `limit`."""
    if len(counts) and int(counts.min()) < 0:
        raise FrameError(f"{what}: a count below 0", "malformed")
    if len(counts) and int(counts.max()) > limit:  # so that the sum cannot wrap
        raise FrameError(f"{what}: a count of {int(counts.max())}; at most {limit}", "oversize")
    total = int(counts.sum())
    if total > limit:
        raise FrameError(f"{what}: {total} in all; at most {limit}", "oversize")
    return total


def pack_differences(values: Int64s) -> bytes:
    """Like `pack_ints`, of each value less the one before (the first: less 0)."""
    differences = values.copy()
    differences[1:] -= values[:-1]
    return pack_ints(differences)


def unpack_differences(column: bytes, n: int, what: str) -> Int64s:
    """The inverse of `pack_differences`."""
    values: Int64s = unpack_ints(column, n, what).cumsum()
    return values


# ---------------------------------------------------------------- times


def pack_times(time_ns: Int64s, groups: Groups) -> pb.Times:
    """int64[n], ascending within each group -> columns; each group in the largest unit that divides it."""
    if not groups.n:
        return pb.Times()
    unit = _largest_units(time_ns, groups)
    firsts, steps = split_firsts(time_ns // _spread_units(unit, groups), groups)
    steps[groups.starts] = _BEYOND
    smallest = np.minimum.reduceat(steps, groups.starts)
    smallest[groups.counts == 1] = 0
    steps -= groups.spread(smallest)
    steps[groups.starts] = 0
    return pb.Times(
        unit=pack_ints(unit), first=pack_differences(firsts), step=pack_ints(smallest), rest=pack_ints(steps)
    )


def unpack_times(column: pb.Times, groups: Groups) -> Int64s:
    """Columns -> int64[n]. FrameError unless times are sorted within each group."""
    g = len(groups)
    if not groups.n:
        return np.empty(0, dtype=np.int64)
    unit = unpack_ints(column.unit, g, "time.unit")
    if int(unit.min()) < 0 or int(unit.max()) >= len(_UNITS_NS):
        raise FrameError(f"time.unit: units are 0 to {len(_UNITS_NS) - 1}", "malformed")
    firsts = unpack_differences(column.first, g, "time.first")
    steps = unpack_ints(column.rest, groups.n, "time.rest")
    steps += groups.spread(unpack_ints(column.step, g, "time.step"))
    ticks = join_firsts(firsts, steps, groups)
    expect_sorted(ticks, groups)
    each_ns = _spread_units(unit, groups)
    limit = _BEYOND // each_ns  # sorted within a group, so that any beyond it is found, and 0 is within it
    if (ticks > limit).any() or (ticks < -limit).any():
        raise FrameError("time: beyond what 64 bits of nanoseconds hold", "malformed")
    return ticks * each_ns


def expect_sorted(times: Int64s, groups: Groups) -> None:
    """FrameError unless int64[n] never falls within a group. (A sum that wrapped has fallen.)"""
    if groups.alone:
        return
    falls = times[1:] < times[:-1]
    falls[groups.starts[1:] - 1] = False
    if falls.any():
        raise FrameError("time: not sorted within a series", "malformed")


def largest_unit(spans_ns: Int64s) -> int:
    """The largest k of 3, 2, 1, 0 such that 10^(3k) ns divides all of them."""
    return int(_largest_units(spans_ns, Groups(np.array([len(spans_ns)])))[0]) if len(spans_ns) else 0


def unit_ns(unit: int) -> int:
    """The nanoseconds of a unit on the wire; FrameError if there is no such unit."""
    if not 0 <= unit < len(_UNITS_NS):
        raise FrameError(f"unit {unit}: units are 0 to {len(_UNITS_NS) - 1}", "malformed")
    return int(_UNITS_NS[unit])


def _largest_units(time_ns: Int64s, groups: Groups) -> Int64s:
    unit = np.zeros(len(groups), dtype=np.int64)
    firsts, lasts = time_ns[groups.starts], time_ns[groups.ends - 1]
    for k in range(len(_UNITS_NS) - 1, 0, -1):
        candidates = (unit == 0) & (firsts % _UNITS_NS[k] == 0) & (lasts % _UNITS_NS[k] == 0)
        if candidates.any():
            divides = groups.every(time_ns // _UNITS_NS[k] * _UNITS_NS[k] == time_ns)
            unit[candidates & divides] = k
        if unit.all():
            break
    return unit


def _spread_units(unit: Int64s, groups: Groups) -> Int64s | np.int64:
    # Division by a scalar is several times faster, and one unit for all is the usual case.
    if (unit == unit[0]).all():
        return np.int64(_UNITS_NS[unit[0]])
    return groups.spread(_UNITS_NS[unit])


# ---------------------------------------------------------------- differences within groups


def split_firsts(ints: Int64s, groups: Groups) -> tuple[Int64s, Int64s]:
    """int64[n] -> the first of each group int64[g], and each row less the one before int64[n], 0 for firsts."""
    steps = np.empty(groups.n, dtype=np.int64)
    np.subtract(ints[1:], ints[:-1], out=steps[1:])
    steps[groups.starts] = 0
    return ints[groups.starts], steps


def join_firsts(firsts: Int64s, steps: Int64s, groups: Groups) -> Int64s:
    """The inverse of `split_firsts`; uses up `steps`, in which the firsts' own count for nothing."""
    if groups.alone:
        return firsts
    steps[groups.starts] = 0
    lasts = firsts + np.add.reduceat(steps, groups.starts)
    steps[groups.starts] = firsts
    steps[groups.starts[1:]] -= lasts[:-1]
    joined: Int64s = steps.cumsum()
    return joined


# ---------------------------------------------------------------- decimals


def to_decimals(values: Floats, groups: Groups, at_least: Int64s | None = None) -> tuple[Int64s, Int64s]:
    """Find for each group the smallest exponent e in 0..9 for which all values are round(v * 10^e) / 10^e.

    values: float64[k, n]; the k columns of a group share its exponent. The equality is one of bits, so
    -0.0 is never met (see `take_minus_zeros`). at_least: int64[g], exponents to begin with.

    Returns exponents int64[g] (FLOAT where there is none) and integers int64[k, n] (without meaning for
    groups that have none). If 10^e does for a value, so does every higher power while the integer stays
    below 2^53: a few rows of a group therefore give a lower bound, and all rows then decide.
    """
    exponents = _fit_few(values, groups)
    if at_least is not None:
        exponents = np.maximum(exponents, at_least)
    return _raise_until_exact(values, groups, exponents)


def _fit_few(values: Floats, groups: Groups) -> Int64s:
    """int64[g]: the smallest exponents that may do, by a few rows of each group; all are tried at once."""
    few = _FEW_ROWS if len(groups) <= _FEW_GROUPS else 1
    places = groups.starts[:, None] + np.arange(few) * (groups.counts[:, None] - 1) // max(few - 1, 1)
    sample = values[:, places, None]
    with np.errstate(invalid="ignore", over="ignore"):
        back = np.rint(sample * _POWERS[: MAX_EXPONENT + 1]) / _POWERS[: MAX_EXPONENT + 1]
    exact = (back == sample).all(axis=(0, 2))
    return np.where(exact.any(axis=1), exact.argmax(axis=1), FLOAT)


def _raise_until_exact(values: Floats, groups: Groups, exponents: Int64s) -> tuple[Int64s, Int64s]:
    bits = values.view(np.int64)
    with np.errstate(invalid="ignore", over="ignore"):  # what overflows is then not equal
        while True:
            power = groups.spread(_POWERS[exponents])
            ints = np.rint(values * power).astype(np.int64)
            exact = ((ints / power).view(np.int64) == bits).all(axis=0)
            if exact.all():
                return exponents, ints
            exponents = exponents + (~groups.every(exact) & (exponents != FLOAT))
            exponents[exponents == MAX_EXPONENT + 1] = FLOAT
            if np.all((exponents == FLOAT) | groups.every(exact)):
                return exponents, ints


def from_decimals(ints: Int64s, exponents: Int64s, groups: Groups) -> Floats:
    """int64[..., n] and exponents int64[g] -> float64[..., n]; rows of groups with FLOAT have no meaning."""
    values: Floats = ints / groups.spread(_POWERS.take(exponents))
    return values


def ten_to_the(exponents: Int64s) -> Int64s:
    """10^e as integers, 1 for FLOAT."""
    return _INT_POWERS.take(exponents)


def take_minus_zeros(values: Floats) -> tuple[Floats, Int64s]:
    """Replace -0.0 by 0.0; returns the values (a copy where needed) and the places, ascending."""
    found = values.view(np.int64) == _MINUS_ZERO_BITS
    if not found.any():
        return values, np.empty(0, dtype=np.int64)
    return np.where(found, 0.0, values), np.flatnonzero(found)


def put_minus_zeros(values: Floats, column: bytes, count: int) -> None:
    """The inverse of `take_minus_zeros`, in place on float64[n]."""
    if not count:
        return
    if count > len(values):
        raise FrameError(f"minus_zeros: {count} places in {len(values)} values", "malformed")
    places = unpack_differences(column, count, "minus_zero")
    if int(places.min()) < 0 or int(places.max()) >= len(values):
        raise FrameError(f"minus_zero: a place outside of {len(values)} values", "malformed")
    values[places] = -0.0


def unpack_exponents(column: bytes, groups: Groups, what: str) -> Int64s:
    """A column of exponents -> int64[g], each 0..9 or FLOAT."""
    exponents = unpack_ints(column, len(groups), what)
    if not _LEGAL_EXPONENT.take(exponents + 1, mode="clip").all():
        raise FrameError(f"column {what}: exponents are 0 to {MAX_EXPONENT}, or {FLOAT}", "malformed")
    return exponents


def pack_decimals(values: Floats, groups: Groups) -> pb.Decimals:
    """float64[n] -> columns that give back every bit."""
    if not groups.n:
        return pb.Decimals()
    plain, places = take_minus_zeros(values)
    exponents, ints = to_decimals(plain[None, :], groups)
    column = pack_split(ints[0], plain, exponents, groups)
    column.minus_zeros = len(places)
    column.minus_zero = pack_differences(places)
    return column


def unpack_decimals(column: pb.Decimals, groups: Groups, what: str) -> Floats:
    """The inverse of `pack_decimals`; FrameError if the columns do not fit the groups."""
    if not groups.n:
        return np.empty(0)
    exponents = unpack_exponents(column.exponent, groups, what)
    _, values = unpack_split(column, exponents, groups, what)
    put_minus_zeros(values, column.minus_zero, column.minus_zeros)
    return values


def pack_split(ints: Int64s, values: Floats, exponents: Int64s, groups: Groups) -> pb.Decimals:
    """Groups with an exponent as integers and their differences, the others as floats."""
    column = pb.Decimals(exponent=pack_ints(exponents))
    decimal = exponents != FLOAT
    if not decimal.all():
        groups, rows = groups.kept(decimal)
        column.float = pack_floats(values[~rows])
        ints = ints[rows]
    if groups.n:
        firsts, steps = split_firsts(ints, groups)
        column.first = pack_ints(firsts)
        column.step = pack_ints(steps)
    return column


def unpack_split(column: pb.Decimals, exponents: Int64s, groups: Groups, what: str) -> tuple[Int64s, Floats]:
    """The inverse of `pack_split`: integers int64[n] (0 for rows of floats) and values float64[n]."""
    decimal = exponents != FLOAT
    if decimal.all():
        ints = _unpack_integers(column, groups, what)
        return ints, from_decimals(ints, exponents, groups)
    inner, rows = groups.kept(decimal)
    ints = np.zeros(groups.n, dtype=np.int64)
    if inner.n:
        ints[rows] = _unpack_integers(column, inner, what)
    values = from_decimals(ints, exponents, groups)
    values[~rows] = unpack_floats(column.float, groups.n - inner.n, f"{what}.float")
    return ints, values


def _unpack_integers(column: pb.Decimals, groups: Groups, what: str) -> Int64s:
    firsts = unpack_ints(column.first, len(groups), f"{what}.first")
    steps = unpack_ints(column.step, groups.n, f"{what}.step")
    return join_firsts(firsts, steps, groups)
