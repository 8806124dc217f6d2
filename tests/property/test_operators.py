"""Filters and windows are functions of state and stream: cuts change nothing, and a snapshot goes on bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from devices.model import SECOND_NS, Kind, SampleBatch, SeriesSpec
from edge.filters import Filters
from edge.windows import Windows

FILTERS: dict[str, dict[str, Any]] = {
    "range": {"low": -50.0, "high": 50.0},
    "stuck": {"after_s": 3.0},
    "rate": {"max_per_s": 20.0},
    "zscore": {"warm_up_s": 5.0, "warm_up_samples": 5, "tau_s": 10.0, "threshold": 2.0},
}


def spec(channel: str, kind: Kind = Kind.GAUGE, **settings_: Any) -> SeriesSpec:
    return SeriesSpec("pump", channel, channel, "", kind, **{"filters": FILTERS, **settings_})


SPECS = [
    spec("gauge"),
    spec("calm", report="on_change", tolerance=5.0, heartbeat_ns=30 * SECOND_NS, on_delay_ns=SECOND_NS),
    spec("total", Kind.COUNTER, counter_wrap=64.0, off_delay_ns=0),
    spec("switch", Kind.STATE, filters={}),
    spec("waveform", report="raw", deadband=0.5),
]
"""One of each sort."""

VALUES = st.one_of(
    st.integers(-60, 60).map(float),
    st.floats(-1e3, 1e3),
    st.sampled_from([math.nan, math.inf, 1e300, -1.7e308, 1e9, 20.0, 20.0, 21.0]),
)
SAMPLES = st.lists(
    st.tuples(st.integers(0, len(SPECS) - 1), st.integers(-8 * SECOND_NS, 10 * SECOND_NS), VALUES), max_size=150
)
PLACES = st.lists(st.integers(0, 150), max_size=8)


def stream(samples: list[tuple[int, int, float]]) -> SampleBatch:
    """Samples that go forward on the whole, each up to some seconds out of order."""
    n = len(samples)
    base_ns = np.arange(n, dtype=np.int64) * SECOND_NS
    return SampleBatch(
        np.array([s for s, _, _ in samples], np.int32),
        base_ns + np.array([t for _, t, _ in samples], np.int64),
        np.array([v for _, _, v in samples], np.float64),
        np.zeros(n, np.uint8),
    )


class Pair:
    """Both operators, and all that they have said."""

    def __init__(self) -> None:
        self.filters, self.windows = Filters(), Windows()
        for index, each in enumerate(SPECS):
            self.filters.add_series(index, each)
            self.windows.add_series(index, each)
        self.said: list[str] = []

    def run(self, batch: SampleBatch) -> None:
        events = self.filters.run(batch)
        events["position"] = 0  # within its batch, which is what differs
        self.windows.run(batch)
        self.said += [repr(event) for event in events.tolist()]

    def drain(self) -> None:
        self.said += [repr(row) for row in [*self.windows.take().tolist(), *self.windows.changes().tolist()]]

    def restarted(self) -> Pair:
        """Another one that goes on from this one's snapshot; what was said stays said."""
        self.drain()
        after = Pair()
        after.filters.restore(self.filters.snapshot())
        after.windows.restore(self.windows.snapshot())
        after.said = self.said
        return after

    def state(self) -> list[bytes]:
        saved = {**self.filters.snapshot(), **self.windows.snapshot()}
        return [saved[name].tobytes() for name in sorted(saved)]


def play(samples: list[tuple[int, int, float]], ticks: set[int], cuts: set[int], restarts: set[int]) -> Pair:
    """Run the stream with ticks at some places; cut it there, and at `cuts`, and start anew at `restarts`."""
    pair, whole = Pair(), stream(samples)
    places = sorted(ticks | cuts | restarts | {0, len(samples)})
    for begin, end in zip(places, [*places[1:], len(samples)], strict=True):
        if begin in restarts:
            pair = pair.restarted()
        if begin in ticks:
            pair.windows.tick(begin * SECOND_NS)
        if begin < end:
            pair.run(whole.take(np.arange(begin, min(end, len(samples)))))
    pair.drain()
    pair.said.sort()
    return pair


@given(SAMPLES, PLACES, PLACES)
def test_how_a_stream_is_cut_changes_nothing(
    samples: list[tuple[int, int, float]], ticks: list[int], cuts: list[int]
) -> None:
    whole = play(samples, set(ticks), set(), set())
    cut = play(samples, set(ticks), set(cuts), set())
    assert cut.said == whole.said
    assert cut.state() == whole.state()


@given(SAMPLES, PLACES, PLACES)
def test_a_restart_at_any_point_continues_bit_for_bit(
    samples: list[tuple[int, int, float]], ticks: list[int], restarts: list[int]
) -> None:
    straight = play(samples, set(ticks), set(), set())
    restarted = play(samples, set(ticks), set(), set(restarts))
    assert restarted.said == straight.said
    assert restarted.state() == straight.state()


@given(SAMPLES, PLACES)
def test_every_sample_is_in_one_summary_or_still_waits(samples: list[tuple[int, int, float]], ticks: list[int]) -> None:
    pair, whole = Pair(), stream(samples)
    for begin, end in zip([0, *sorted(ticks)], [*sorted(ticks), 200], strict=True):
        pair.windows.run(whole.take(np.arange(min(begin, len(whole)), min(end, len(whole)))))
        pair.windows.tick(end * SECOND_NS)
    rows = pair.windows.take()
    for index, each in enumerate(SPECS):
        finite = int(np.isfinite(whole.value[whole.series == index]).sum()) if each.report != "raw" else 0
        assert rows["count"][rows["series"] == index].sum() + pair.windows.open_counts()[index] == finite
