"""What devices write for a time, as nanoseconds UTC since the epoch.

| form      | read as |
|-----------|---------|
| `s`       | seconds since the epoch; a fraction is kept to the microsecond, which is all that a float64 holds |
| `ms`      | milliseconds since the epoch |
| `us`      | microseconds since the epoch |
| `ns`      | nanoseconds since the epoch |
| `iso8601` | "2024-11-12T10:05:12.25+01:00", to the nanosecond; without an offset it is UTC |
| `auto`    | text is ISO 8601; a number below 1e11 is seconds, below 1e14 ms, below 1e17 us, else ns |

With `auto` each unit is read right from 1973 (seconds: from 1970) to 5138. A time before 1970, or
at its first moment, comes from a device whose clock was never set: it is refused, where it would otherwise
open windows fifty years ago.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

from devices.errors import DecodeError

TimeFormat: TypeAlias = Literal["auto", "s", "ms", "us", "ns", "iso8601"]
Parser: TypeAlias = Callable[[float | str], int]
"""From what stands in the message to ns; raises DecodeError."""

_NS_PER: Final = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_MAX_NS: Final = 2**63 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ISO = re.compile(r"\d{4}-?\d\d-?\d\d[T ]\d\d:?\d\d(?::?\d\d(?:[.,](\d{1,12}))?)?(?:Z|[+-]\d\d(?::?\d\d)?)?", re.ASCII)


def parser(form: TimeFormat) -> Parser:
    """The function that reads times of this form."""
    if form == "auto":
        return _auto
    if form == "iso8601":
        return _iso8601_only
    ns_per_unit = _NS_PER[form]
    return lambda value: _number(value, ns_per_unit)


def _auto(value: float | str) -> int:
    if isinstance(value, str):
        return _iso8601(value)
    if value < 100_000_000_000:
        return _number(value, 1_000_000_000)
    if value < 100_000_000_000_000:
        return _number(value, 1_000_000)
    if value < 100_000_000_000_000_000:
        return _number(value, 1_000)
    return _number(value, 1)


def _number(value: float | str, ns_per_unit: int) -> int:
    if type(value) is int:
        time_ns = value * ns_per_unit
    elif isinstance(value, str | bool):
        raise DecodeError(f"expected a number for the time, not {str(value)[:40]!r}")
    elif -1e30 < value < 1e30:
        time_ns = round(value * (ns_per_unit / 1_000)) * 1_000
    else:
        raise DecodeError(f"{value} is no time")
    if not 0 < time_ns <= _MAX_NS:
        raise DecodeError(f"the time {str(value)[:40]} lies outside 1970 to 2262: the device's clock is not set")
    return time_ns


def _iso8601_only(value: float | str) -> int:
    if not isinstance(value, str):
        raise DecodeError(f"expected an ISO 8601 text for the time, not {str(value)[:40]}")
    return _iso8601(value)


def _iso8601(text: str) -> int:
    match = _ISO.fullmatch(text) if len(text) <= 64 else None
    if match is None:
        raise DecodeError(f"{text[:40]!r} is not an ISO 8601 time such as 2024-11-12T10:05:12Z")
    try:
        moment = datetime.fromisoformat(text)
        since = (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment) - _EPOCH
    except (ValueError, OverflowError) as error:
        raise DecodeError(f"{text!r} is not a time: {error}") from error
    fraction_ns = int((match[1] or "0").ljust(9, "0")[:9])
    time_ns = (since.days * 86_400 + since.seconds) * 1_000_000_000 + fraction_ns
    if not 0 < time_ns <= _MAX_NS:
        raise DecodeError(f"the time {text} lies outside 1970 to 2262: the device's clock is not set")
    return time_ns
