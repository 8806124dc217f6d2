"""Merging windows loses no count, no extreme and no part of the time line."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from devices.model import SECOND_NS, SUMMARY_DTYPE
from edge.degrade import merge

T0_NS = 1_700_000_000 * SECOND_NS
WINDOW_NS = np.array([SECOND_NS, 10 * SECOND_NS])


def summary(series: int, start_ns: int, values: list[float], span_ns: int) -> tuple[object, ...]:
    array = np.array(values)
    return (
        series,
        start_ns,
        span_ns,
        len(values),
        array.mean(),
        array.min(),
        array.max(),
        array.std(),
        values[0],
        values[-1],
        1.5,
    )


windows = st.dictionaries(
    st.tuples(st.integers(0, 1), st.integers(0, 300)),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6),
    min_size=1,
    max_size=60,
)


@given(windows=windows, times=st.integers(1, 3))
def test_a_merged_window_is_that_of_all_its_samples(windows: dict[tuple[int, int], list[float]], times: int) -> None:
    made = {(s, T0_NS + i * int(WINDOW_NS[s])): values for (s, i), values in windows.items()}
    rows = np.array([summary(s, t, v, int(WINDOW_NS[s])) for (s, t), v in made.items()], SUMMARY_DTYPE)
    for _ in range(times):
        rows = merge(rows, WINDOW_NS)
    held = 0
    for row in rows:
        start, end = row["time_ns"], row["time_ns"] + row["span_ns"]
        inside = sorted(key for key in made if key[0] == row["series"] and start <= key[1] < end)
        values = [value for key in inside for value in made[key]]
        held += len(inside)
        assert inside[0][1] == start
        assert inside[-1][1] + WINDOW_NS[row["series"]] == end
        assert row["count"] == len(values)
        assert (row["min"], row["max"]) == (min(values), max(values))
        assert (row["first"], row["last"]) == (values[0], values[-1])
        assert row["increase"] == 1.5 * len(inside)
        np.testing.assert_allclose(row["mean"], np.mean(values), rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(row["stddev"], np.std(values), rtol=1e-6, atol=1e-3)
        assert row["span_ns"] <= WINDOW_NS[row["series"]] * 10**times
    assert held == len(made)


def test_ten_windows_become_one_and_a_hundred_of_those_too() -> None:
    rows = np.array([summary(0, T0_NS + i * SECOND_NS, [1.0, 2.0], SECOND_NS) for i in range(1000)], SUMMARY_DTYPE)
    assert [len(rows), len(once := merge(rows, WINDOW_NS)), len(merge(once, WINDOW_NS))] == [1000, 100, 10]


def test_supplements_are_left_as_they_are() -> None:
    rows = np.array([summary(0, T0_NS + i, [1.0], SECOND_NS) for i in (0, 1, 2)], SUMMARY_DTYPE)
    merged = merge(rows, WINDOW_NS)
    assert sorted(merged["time_ns"].tolist()) == [T0_NS, T0_NS + 1, T0_NS + 2]
    assert (merged["span_ns"] == SECOND_NS).all()
