"""Events become records with an identity and a sentence; silence becomes an alarm."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from devices.model import SECOND_NS, Alarm, SeriesSpec
from edge.alarms import Alarms, AlarmsState
from edge.kernels.detect import EVENT_DTYPE

DETECTORS = ["range", "stuck", "rate", "zscore", "backwards"]
FILTERS: dict[str, dict[str, Any]] = {
    "range": {"low": 0.0, "high": 80.0},
    "stuck": {"after_s": 60.0},
    "rate": {"max_per_s": 1.0},
    "zscore": {},
    "backwards": {},
}


def spec(channel: str = "bearing_temperature", every_s: float = 0, device: str = "pump1") -> SeriesSpec:
    return SeriesSpec(device, channel, "temperature", "°C", expect_every_ns=round(every_s * SECOND_NS), filters=FILTERS)


def event(detector: str, is_open: bool, time_ns: int, value: float, low: float, high: float, score: float) -> Any:
    row = np.zeros(1, EVENT_DTYPE)
    row[0] = (0, 0, DETECTORS.index(detector), is_open, time_ns, value, low, high, score)
    return row


def alarms(*specs: SeriesSpec) -> Alarms:
    made = Alarms()
    for index, each in enumerate(specs):
        made.add_series(index, each)
    return made


def told(records: list[Alarm]) -> list[tuple[int, str, str]]:
    return [(alarm.series, alarm.detector, alarm.state) for alarm in records]


def seen(*seconds: float) -> Any:
    return np.array([round(s * SECOND_NS) for s in seconds], np.int64)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            event("zscore", True, 7, 91.3, 58.02, 64.51, 2.5),
            "pump1 bearing_temperature is 91.3 °C; expected 58.0 to 64.5 °C "
            "(robust z-score, 2.5 times the alarm's threshold).",
        ),
        (
            event("range", True, 7, 91.3, 0, 80, 1.28),
            "pump1 bearing_temperature is 91.3 °C; allowed is 0 to 80 °C.",
        ),
        (
            event("range", True, 7, 91.3, -math.inf, 80, 1.28),
            "pump1 bearing_temperature is 91.3 °C; allowed is at most 80 °C.",
        ),
        (
            event("stuck", True, 7, 20.5, math.nan, math.nan, 1.1),
            "pump1 bearing_temperature has stood at 20.5 °C for 66 s; it should have moved by now.",
        ),
        (
            event("rate", True, 7, 30, 19, 21, 10),
            "pump1 bearing_temperature went to 30 °C; from the value before, 19.0 to 21.0 °C could be reached "
            "in that time.",
        ),
        (
            event("backwards", True, 7, 1, 2, math.nan, 1.5),
            "pump1 bearing_temperature is 1 °C; expected at least 2 °C (backwards, 1.5 times the alarm's threshold).",
        ),
    ],
)
def test_an_opening_says_what_is_wrong_in_a_sentence(row: Any, sentence: str) -> None:
    (alarm,) = alarms(spec()).records(row, DETECTORS, arrived_ns=9)
    assert alarm.reason == sentence
    assert (alarm.state, alarm.time_ns, alarm.arrived_ns, alarm.severity) == ("open", 7, 9, "warning")


@pytest.mark.parametrize(("low", "high"), [(1e300, 1.7e308), (-1.7e308, 1.7e308), (5.0, 5.0), (0.0, 1e-300)])
def test_no_band_is_too_odd_for_a_sentence(low: float, high: float) -> None:
    (alarm,) = alarms(spec()).records(event("zscore", True, 7, 1e9, low, high, 2), DETECTORS, 0)
    assert len(alarm.reason) < 200


def test_opening_and_closing_share_an_identity() -> None:
    keeper = alarms(spec())
    (opened,) = keeper.records(event("range", True, 5 * SECOND_NS, 91.3, 0, 80, 1.28), DETECTORS, 1)
    assert keeper.open_count() == 1
    (closed,) = keeper.records(event("range", False, 65 * SECOND_NS, 61.2, 0, 80, 0.5), DETECTORS, 2)
    assert opened.id == closed.id == f"pump1/bearing_temperature/range/{5 * SECOND_NS}"
    assert closed.reason == "pump1 bearing_temperature is normal again: 61.2 °C, after 60 s."
    assert keeper.open_count() == 0


def test_a_channel_that_is_overdue_is_silent_until_a_sample_comes() -> None:
    keeper = alarms(spec("flow", 5))
    assert keeper.tick(104 * SECOND_NS, seen(100)) == []
    (opened,) = keeper.tick(106 * SECOND_NS, seen(100))
    assert (opened.detector, opened.state, opened.score) == ("silent", "open", 1.2)
    assert opened.reason == "pump1 flow has sent nothing for 6 s; a sample is expected every 5 s."
    assert keeper.tick(107 * SECOND_NS, seen(100)) == []
    (closed,) = keeper.tick(131 * SECOND_NS, seen(130))
    assert (closed.id, closed.state) == (opened.id, "closed")
    assert closed.reason == "pump1 flow sends again, after 25 s."


def test_a_device_that_dies_is_one_alarm_and_not_one_each() -> None:
    keeper = alarms(spec("flow", 1), spec("pressure", 1), spec("level", 1), spec("note"))
    last = seen(100.0, 100.3, 100.6, 0)
    assert keeper.tick(round(101.2e9), last) == [], "flow alone is overdue, but nobody else was heard since"
    (opened,) = keeper.tick(102 * SECOND_NS, last)
    assert told([opened]) == [(0, "device_silent", "open")]
    assert opened.reason.startswith("pump1 has sent nothing for 1.4 s, on none of its 3 channels")
    back = keeper.tick(103 * SECOND_NS, seen(100.0, 102.9, 102.9, 0))
    assert told(back) == [(0, "device_silent", "closed"), (0, "silent", "open")]


def test_a_channel_is_silent_alone_when_its_device_is_heard() -> None:
    keeper = alarms(spec("flow", 1), spec("pressure", 1))
    assert told(keeper.tick(round(101.2e9), seen(100.0, 101.1))) == [(0, "silent", "open")]
    assert told(keeper.tick(round(103.0e9), seen(100.0, 101.1))) == [
        (0, "silent", "closed"),
        (0, "device_silent", "open"),
    ]


def test_a_channel_does_not_wait_for_a_slow_sibling() -> None:
    keeper = alarms(spec("flow", 1), spec("level", 3600))
    assert keeper.tick(round(101.5e9), seen(100.0, 99.0)) == []
    assert told(keeper.tick(round(102.1e9), seen(100.0, 99.0))) == [(0, "silent", "open")]


def test_a_channel_that_was_never_heard_counts_from_the_first_tick() -> None:
    keeper = alarms(spec("flow", 5))
    assert keeper.tick(100 * SECOND_NS, seen()) == []
    assert keeper.tick(105 * SECOND_NS, seen(0)) == []
    assert told(keeper.tick(106 * SECOND_NS, seen(0))) == [(0, "silent", "open")]


def test_times_of_silence_strictly_increase() -> None:
    keeper = alarms(spec("flow", 5))
    times = []
    for last in (100, 106, 100, 106):
        times += [alarm.time_ns for alarm in keeper.tick(106 * SECOND_NS, seen(last))]
    assert times == [106 * SECOND_NS, 106 * SECOND_NS + 1, 106 * SECOND_NS + 2, 106 * SECOND_NS + 3]


def test_a_detector_that_no_longer_runs_closes_its_alarm() -> None:
    keeper = alarms(spec("flow", 5))
    keeper.records(event("range", True, 5, 91.3, 0, 80, 1.28), DETECTORS, 1)
    keeper.tick(100 * SECOND_NS, seen(1))
    quiet = msgspec.structs.replace(spec("flow"), filters={})
    assert told(keeper.add_series(0, quiet, 200 * SECOND_NS)) == [(0, "range", "closed"), (0, "silent", "closed")]
    assert keeper.open_count() == 0


def test_a_snapshot_goes_on_as_if_nothing_had_happened() -> None:
    keeper, second = alarms(spec("flow", 5)), alarms(spec("flow", 5))
    keeper.records(event("range", True, 5, 91.3, 0, 80, 1.28), DETECTORS, 1)
    keeper.tick(100 * SECOND_NS, seen(0))
    second.restore(msgspec.json.decode(msgspec.json.encode(keeper.snapshot()), type=AlarmsState))
    closing = event("range", False, 4, 61.2, 0, 80, 0.5)
    assert keeper.records(closing, DETECTORS, 2)[0] == second.records(closing, DETECTORS, 2)[0]
    assert told(second.tick(106 * SECOND_NS, seen(0))) == told(keeper.tick(106 * SECOND_NS, seen(0))) != []
