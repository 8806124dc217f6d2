"""The alarm machine and the passes around the filters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import PluginError, ProfileError, StoreError
from devices.model import SECOND_NS, SampleBatch, SeriesSpec
from edge.filters import BUFFER_EVENTS, Filters
from edge.kernels.range import BELOW_ONE

# With limits -1 and 1 the score of filter `range` is |value| (a hair less at a limit itself).
LIMITS = {"range": {"low": -1.0, "high": 1.0}}


def spec(**settings_: Any) -> SeriesSpec:
    return SeriesSpec("device", "channel", "level", "", **{"filters": LIMITS, "off_delay_ns": 0, **settings_})


def batch(samples: list[tuple[int, float]], series: int = 0) -> SampleBatch:
    times, values = [t for t, _ in samples], [v for _, v in samples]
    n = len(samples)
    return SampleBatch(
        np.full(n, series, np.int32), np.array(times, np.int64), np.array(values, np.float64), np.zeros(n, np.uint8)
    )


def filters(*specs: SeriesSpec) -> Filters:
    made = Filters()
    for index, each in enumerate(specs):
        made.add_series(index, each)
    return made


def story(events: Any) -> list[tuple[bool, int]]:
    return [(bool(event["open"]), int(event["time_ns"])) for event in events]


def slow_machine(samples: list[tuple[int, float]], on_ns: int, off_ns: int, deadband: float) -> list[tuple[bool, int]]:
    """The alarm machine as its drawing says, for a score of |value|."""
    told: list[tuple[bool, int]] = []
    is_open, newest, since, last_event = False, -math.inf, None, -math.inf
    for time_ns, value in samples:
        if not math.isfinite(value):
            continue
        score = min(abs(value), BELOW_ONE) if abs(value) == 1 else abs(value)
        if time_ns <= newest:
            if not is_open and score > 1 and on_ns == 0:
                is_open, last_event = True, max(time_ns, last_event + 1)
                told.append((True, int(last_event)))
            continue
        newest = time_ns
        holds = score < 1 - deadband if is_open else score > 1
        since = (time_ns if since is None else since) if holds else None
        if since is not None and time_ns - since >= (off_ns if is_open else on_ns):
            is_open, since, last_event = not is_open, None, max(time_ns, last_event + 1)
            told.append((is_open, int(last_event)))
    return told


SAMPLES = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([0.0, 0.85, 0.95, 1.0, 1.5, -2.0, math.nan, math.inf])), max_size=80
)


@given(SAMPLES, st.sampled_from([0, 1, 5]), st.sampled_from([0, 1, 5]), st.sampled_from([0.0, 0.1]))
def test_alarms_open_and_close_after_their_delays(
    samples: list[tuple[int, float]], on_ns: int, off_ns: int, deadband: float
) -> None:
    in_order = [(i * 3 + time_ns % 3 + 1, value) for i, (time_ns, value) in enumerate(samples)]
    for series in (samples, in_order):
        real = filters(spec(on_delay_ns=on_ns, off_delay_ns=off_ns, deadband=deadband))
        assert story(real.run(batch(series))) == slow_machine(series, on_ns, off_ns, deadband)


@given(SAMPLES, st.integers(0, 3))
def test_the_times_of_events_strictly_increase(samples: list[tuple[int, float]], off_ns: int) -> None:
    events = filters(spec(off_delay_ns=off_ns)).run(batch(samples))
    assert (np.diff(events["time_ns"]) > 0).all()
    assert events["open"].tolist() == [i % 2 == 0 for i in range(len(events))]


def test_an_event_carries_its_evidence() -> None:
    (event,) = filters(spec(filters={"range": {"low": 10.0, "high": 20.0}})).run(batch([(5, 15.0), (6, 25.0)]))
    assert event["position"] == 1
    assert (event["value"], event["low"], event["high"], event["score"]) == (25.0, 10.0, 20.0, 2.0)


def test_only_a_memoryless_filter_is_asked_about_late_samples() -> None:
    both = filters(spec(filters={**LIMITS, "rate": {"max_per_s": 1e-3}}))
    events = both.run(batch([(100 * SECOND_NS, 0.0), (50 * SECOND_NS, 5.0), (101 * SECOND_NS, 0.0)]))
    assert [(both.detectors[e["detector"]], bool(e["open"]), int(e["time_ns"])) for e in events] == [
        ("range", True, 50 * SECOND_NS),
        ("range", False, 101 * SECOND_NS),
    ]


def test_a_sample_that_is_no_number_leaves_everything_as_it_was() -> None:
    one, two = (filters(spec(filters={"zscore": {}, "stuck": {}, "rate": {"max_per_s": 1}, **LIMITS})) for _ in "ab")
    samples = [(i * SECOND_NS, math.sin(i)) for i in range(200)]
    one.run(batch(samples))
    two.run(batch([each for s in samples for each in (s, (s[0] + 1, math.nan), (s[0] + 2, -math.inf))]))
    assert one.snapshot()["fused"].tobytes() == two.snapshot()["fused"].tobytes()


def test_more_events_than_the_buffer_holds_all_arrive() -> None:
    flapping = [(i, 2.0 * (i % 2)) for i in range(1, 20 * BUFFER_EVENTS)]
    events = filters(spec()).run(batch(flapping))
    assert events["position"].tolist() == list(range(len(flapping)))


def test_events_of_several_filters_come_in_order_of_samples() -> None:
    events = filters(spec(filters={**LIMITS, "rate": {"max_per_s": 1e9}})).run(batch([(1, 0.0), (2, 5.0), (3, 0.0)]))
    assert events["position"].tolist() == [1, 1, 2]
    assert events["detector"].tolist() == [0, 2, 0]


def test_settings_change_and_what_was_learnt_stays() -> None:
    changed = filters(spec(filters={"zscore": {}, **LIMITS}))
    changed.run(batch([(i * SECOND_NS, math.sin(i)) for i in range(400)]))
    before = changed.snapshot()["fused"]["zscore"].copy()
    changed.add_series(0, spec(filters={"zscore": {"threshold": 3.0}}))
    assert changed.snapshot()["fused"]["zscore"].tobytes() == before.tobytes()
    assert len(changed.run(batch([(401 * SECOND_NS, 2.0)]))) == 0, "the range is no longer watched"
    assert [bool(e["open"]) for e in changed.run(batch([(402 * SECOND_NS, 5.0)]))] == [True]


def test_a_series_that_comes_later_finds_room() -> None:
    grown = filters(spec())
    grown.run(batch([(1, 5.0)]))
    grown.add_series(1000, spec())
    assert story(grown.run(batch([(2, 0.0)]))) == [(False, 2)]
    assert story(grown.run(batch([(2, 7.0)], series=1000))) == [(True, 2)]


def test_a_snapshot_of_another_layout_is_refused() -> None:
    with pytest.raises(StoreError, match="does not fit"):
        filters(spec()).restore({"fused": np.zeros(3, [("other", np.int64)])})


def test_an_unknown_filter_and_a_wrong_option_are_named() -> None:
    with pytest.raises(PluginError, match="wizard"):
        filters(spec(filters={"wizard": {}}))
    with pytest.raises(ProfileError, match=r"treshold.*zscore of device channel"):
        filters(spec(filters={"zscore": {"treshold": 3}}))
