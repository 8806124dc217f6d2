"""Sizes, durations and rates as people write them: "64 KiB", "250 ms", "64 KiB/s".

A number without its unit is how gateways get a buffer of 10 bytes or a timeout of 10 hours, so a
duration or a rate must bear one; a size may be a plain number of bytes. `str()` gives the shortest
form in whole units, and reading that again gives the same quantity.

    Duration  ns ("nanoseconds"), us, ms, s, min, h, d
    Size      B, KiB, MiB, GiB, TiB (1024), kB, MB, GB, TB (1000)
    Rate      a size per second: "64 KiB/s"

The three are types of their own, so that a field's type says how its text is read (`devices.tables`),
and so that nobody sleeps for `250_000_000` because a duration was taken for a number of seconds.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Final

_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([A-Za-z]+(?:/s)?)?")
_MAX: Final = 2**63 - 1

DURATION_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "min": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
SIZE_UNITS: Final = {
    "B": 1,
    "kB": 1_000,
    "MB": 1_000_000,
    "GB": 1_000_000_000,
    "TB": 1_000_000_000_000,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
RATE_UNITS: Final = {f"{unit}/s": factor for unit, factor in SIZE_UNITS.items()}


@functools.total_ordering
class Duration:
    """A span of time, never negative, in whole nanoseconds."""

    __slots__ = ("ns",)
    ns: int

    def __init__(self, ns: int) -> None:
        if not 0 <= ns <= _MAX:
            raise ValueError(f"a duration lies between 0 and {_MAX} ns, not {ns}")
        self.ns = ns

    @property
    def s(self) -> float:
        """Seconds, as the event loop wants them."""
        return self.ns / 1e9

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read "250 ms"; ValueError says what is wrong."""
        return cls(_parse(text, DURATION_UNITS, "duration", "10 s"))

    def __str__(self) -> str:
        return _format(self.ns, DURATION_UNITS, "s")

    def __repr__(self) -> str:
        return f"Duration({self!s})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and self.ns == other.ns

    def __lt__(self, other: Duration) -> bool:
        return self.ns < other.ns

    def __hash__(self) -> int:
        return hash((Duration, self.ns))


class Size(int):
    """A number of bytes, never negative."""

    __slots__ = ()

    def __new__(cls, size_bytes: int) -> Size:
        if not 0 <= size_bytes <= _MAX:
            raise ValueError(f"a size lies between 0 and {_MAX} bytes, not {size_bytes}")
        return super().__new__(cls, size_bytes)

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read "64 KiB"; ValueError says what is wrong."""
        return cls(_parse(text, SIZE_UNITS, "size", "64 KiB"))

    def __str__(self) -> str:
        return _format(int(self), SIZE_UNITS, "B")

    def __repr__(self) -> str:
        return f"Size({self!s})"


class Rate(int):
    """Bytes per second, never negative."""

    __slots__ = ()

    def __new__(cls, bytes_per_s: int) -> Rate:
        if not 0 <= bytes_per_s <= _MAX:
            raise ValueError(f"a rate lies between 0 and {_MAX} bytes/s, not {bytes_per_s}")
        return super().__new__(cls, bytes_per_s)

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read "64 KiB/s"; ValueError says what is wrong."""
        return cls(_parse(text, RATE_UNITS, "rate", "64 KiB/s"))

    def __str__(self) -> str:
        return _format(int(self), RATE_UNITS, "B/s")

    def __repr__(self) -> str:
        return f"Rate({self!s})"


def from_toml(kind: type[Any], value: object) -> Duration | Size | Rate:
    """A quantity from what stands in a TOML file. ValueError says what is wrong.

    A plain number is taken for a size (bytes), and for nothing else.
    """
    if isinstance(value, str):
        if kind is Duration:
            return Duration.parse(value)
        if kind is Rate:
            return Rate.parse(value)
        if kind is Size:
            return Size.parse(value)
    if kind is Size and isinstance(value, int) and not isinstance(value, bool):
        return Size(value)
    example = {Duration: '"10 s"', Rate: '"64 KiB/s"', Size: '"64 KiB"'}.get(kind)
    if example is None:
        raise TypeError(f"{kind.__name__} is not a type that a configuration can hold")
    raise ValueError(f"expected a {kind.__name__.lower()} with its unit, such as {example}, not {value!r}")


def _parse(text: str, units: dict[str, int], what: str, example: str) -> int:
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a {what}; write a number and its unit, such as {example!r}")
    number, unit = match.groups()
    if unit not in units:
        missing = "has no unit" if unit is None else f"has the unknown unit {unit!r}"
        raise ValueError(f"{text!r} {missing}; a {what} is written in {', '.join(units)}, such as {example!r}")
    whole, _, fraction = number.partition(".")
    scale: int = 10 ** len(fraction)
    count, finer = divmod(int(whole + fraction) * units[unit], scale)
    if count > _MAX:
        raise ValueError(f"{text!r} is too large")
    if finer:
        raise ValueError(f"{text!r} is finer than one {next(iter(units))}")
    return count


def _format(count: int, units: dict[str, int], zero_unit: str) -> str:
    """The form with the smallest whole number: 1 MiB, not 1024 KiB; 90 s, not 1.5 min."""
    if count == 0:
        return f"0 {zero_unit}"
    unit = max((unit for unit, factor in units.items() if count % factor == 0), key=units.__getitem__)
    return f"{count // units[unit]} {unit}"
