"""Figures are rounded to what the readings can carry, and not further."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from devices.model import SUMMARY_DTYPE
from edge.kernels.settle import settle_entry


def settled(readings: list[float], mean: float, stddev: float) -> tuple[float, float]:
    rows = np.zeros(1, SUMMARY_DTYPE)
    rows[0] = (0, 0, 1, 4, mean, min(readings), max(readings), stddev, readings[0], readings[-1], math.nan)
    before: Any = rows.copy()
    settle_entry(rows)
    for name in SUMMARY_DTYPE.names or ():
        if name not in ("mean", "stddev"):
            assert rows[name].tobytes() == before[name].tobytes()
    return float(rows["mean"][0]), float(rows["stddev"][0])


def shown(value: float) -> int:
    """Decimals of the shortest text that reads as this number."""
    return max(0, -int(Decimal(repr(value)).normalize().as_tuple().exponent))


@given(
    st.integers(0, 6).flatmap(lambda d: st.lists(st.integers(-(10**8), 10**8).map(lambda i: i / 10**d), min_size=1)),
    st.floats(0, 1),
    st.floats(0, 1e6),
)
def test_decimal_readings_settle_within_the_stated_error(readings: list[float], at: float, stddev: float) -> None:
    mean = min(readings) + at * (max(readings) - min(readings))
    d = max(shown(value) for value in (readings[0], readings[-1], min(readings), max(readings)))
    got_mean, got_stddev = settled(readings, mean, stddev)
    for got, exact, digits in ((got_mean, mean, d + 3), (got_stddev, stddev, d + 2)):
        half = Decimal(10) ** -digits / 2 + 2 * Decimal(math.ulp(exact))
        assert abs(Decimal(got) - Decimal(exact)) <= half
    assert shown(got_mean) <= d + 3
    assert shown(got_stddev) <= d + 2
    assert min(readings) <= got_mean <= max(readings)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e300))
def test_readings_with_more_decimals_leave_the_figures_alone(reading: float, stddev: float) -> None:
    got = settled([reading, math.pi], reading, stddev)
    assert got == (reading, stddev)


def test_what_a_double_cannot_hold_stays() -> None:
    assert settled([1e15, 1e15 + 2], 1e15 + 0.125, 0.123456) == (1e15 + 0.125, 0.12)
