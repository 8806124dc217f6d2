"""Events -> alarms: who opened, since when, in a sentence; and the alarm for silence, from ticks.

Each opening and closing becomes one `Alarm`; `id` joins the two and is the same on replay:
device/channel/detector/time of opening. Their times strictly increase per (series, detector).

Silence (`expect_every`) is judged at ticks, by when samples arrived:

    all expected channels of a device are overdue, and it has two or more  ->  one `device_silent`, on the first of them
    otherwise, each channel that is overdue                                ->  `silent`

A device that dies takes its channels along one after the other. So a channel alone raises `silent` once another one
of its device has been heard after it was overdue, or when it is overdue for the second time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.model import SECOND_NS, Alarm, Int64s, SeriesSpec
from edge.kernels.stuck import StuckOptions

SILENT = "silent"
DEVICE_SILENT = "device_silent"


class OpenAlarm(msgspec.Struct, frozen=True):
    """What is remembered of an alarm that is open."""

    id: str
    time_ns: int
    severity: str


class AlarmsState(msgspec.Struct):
    """The snapshot of `Alarms`: plain data."""

    open: list[tuple[int, str, OpenAlarm]]
    last_ns: list[tuple[int, str, int]]
    """Time of the last record of a silence, by series and detector."""
    known_ns: list[tuple[int, int]]
    """First tick that knew an expected series."""


class Alarms:
    """Keeps the open alarms, and makes a record of each opening and closing."""

    VERSION = 1

    def __init__(self) -> None:
        self._specs: dict[int, SeriesSpec] = {}
        self._open: dict[tuple[int, str], OpenAlarm] = {}
        self._last_ns: dict[tuple[int, str], int] = {}
        self._known_ns: dict[int, int] = {}
        self._stale = False
        """Series have come or changed: who is expected is found anew at the next tick, once for all of them."""
        self._devices: dict[str, list[int]] = {}
        self._expected: Int64s = np.empty(0, np.int64)
        self._every_ns: Int64s = np.empty(0, np.int64)

    def add_series(self, index: int, spec: SeriesSpec, now_ns: int = 0) -> list[Alarm]:
        """Add a series, or change one; -> the closings of its alarms whose detector no longer runs."""
        self._specs[index] = spec
        self._stale = True
        closed = []
        for series, detector in [key for key in self._open if key[0] == index]:
            runs = spec.expect_every_ns > 0 if detector in (SILENT, DEVICE_SILENT) else detector in spec.filters
            if not runs:
                reason = f"{_name(spec)} is no longer watched for this: its configuration was changed."
                closed.append(self._close(series, detector, now_ns, now_ns, reason))
        return closed

    def _find_expected(self) -> None:
        self._stale = False
        expected = [index for index in sorted(self._specs) if self._specs[index].expect_every_ns > 0]
        self._devices = {}
        for index in expected:
            self._devices.setdefault(self._specs[index].device, []).append(index)
        self._expected = np.array(expected, np.int64)
        self._every_ns = np.array([self._specs[index].expect_every_ns for index in expected], np.int64)

    def open_count(self) -> int:
        return len(self._open)

    def away(self, span_ns: int) -> None:
        """Nobody listened for so long: who was never heard was not silent in that time."""
        self._known_ns = {index: known_ns + span_ns for index, known_ns in self._known_ns.items()}

    def known_count(self) -> int:
        """How many expected series were first known at some tick."""
        return len(self._known_ns)

    def records(self, events: NDArray[Any], detectors: Sequence[str], arrived_ns: int) -> list[Alarm]:
        """One Alarm an event of `Filters.run`, whose `detectors` names them; arrived_ns: of the batch."""
        alarms = []
        for event in events:
            series, detector = int(event["series"]), detectors[event["detector"]]
            value, low, high = float(event["value"]), float(event["low"]), float(event["high"])
            score, time_ns = float(event["score"]), int(event["time_ns"])
            if event["open"]:
                reason = _why(self._specs[series], detector, value, low, high, score)
                alarm = self._opened(series, detector, time_ns, arrived_ns, reason, value, low, high, score)
            else:
                reason = self._normal_again(series, detector, time_ns, value)
                alarm = self._close(series, detector, time_ns, arrived_ns, reason, value, low, high, score)
            alarms.append(alarm)
        return alarms

    def tick(self, now_ns: int, last_seen: Int64s) -> list[Alarm]:
        """The openings and closings of silence. last_seen int64[series]: when each last got a sample, by the clock of
        now_ns; 0: never, then silence counts from the first tick that knew the series."""
        if self._stale:
            self._find_expected()
        if not len(self._expected):
            return []
        seen = np.zeros(len(self._expected), np.int64)
        within = self._expected < len(last_seen)
        seen[within] = last_seen[self._expected[within]]
        for index in [i for i in self._known_ns if i < len(last_seen) and last_seen[i]]:
            del self._known_ns[index]  # heard since: replay, which knows a series a little earlier, agrees from here on
        for row in np.flatnonzero(seen == 0):
            seen[row] = self._known_ns.setdefault(int(self._expected[row]), now_ns)
        overdue = now_ns - seen > self._every_ns
        if not overdue.any() and not any(detector in (SILENT, DEVICE_SILENT) for _, detector in self._open):
            return []
        seen_of = dict(zip(self._expected.tolist(), seen.tolist(), strict=True))
        overdue_of = dict(zip(self._expected.tolist(), overdue.tolist(), strict=True))
        alarms: list[Alarm] = []
        for members in self._devices.values():
            alarms += self._device_tick(members, now_ns, seen_of, overdue_of)
        return alarms

    def _device_tick(
        self, members: list[int], now_ns: int, seen_ns: dict[int, int], overdue: dict[int, bool]
    ) -> list[Alarm]:
        """Silence of one device: close what no longer holds, then open what does."""
        alarms = []
        whole = len(members) > 1 and all(overdue[index] for index in members)
        if (members[0], DEVICE_SILENT) in self._open and not whole:
            reason = f"{self._specs[members[0]].device} sends again{self._after(members[0], DEVICE_SILENT, now_ns)}."
            alarms.append(self._close(members[0], DEVICE_SILENT, now_ns, now_ns, reason))
        for index in members:
            if (index, SILENT) in self._open and (whole or not overdue[index]):
                name = _name(self._specs[index])
                again = f"{name} sends again{self._after(index, SILENT, now_ns)}."
                reason = f"{name} is now part of the alarm for the whole device." if whole else again
                alarms.append(self._close(index, SILENT, now_ns, now_ns, reason))
        if whole:
            if (members[0], DEVICE_SILENT) not in self._open:
                alarms.append(self._device_silent(members, now_ns, max(seen_ns[index] for index in members)))
            return alarms
        for index in members:
            if overdue[index] and (index, SILENT) not in self._open:
                every_ns = self._specs[index].expect_every_ns
                due_ns = seen_ns[index] + every_ns
                others = [seen_ns[other] for other in members if other != index]
                if not others or max(others) > due_ns or now_ns - due_ns > every_ns:
                    alarms.append(self._silent(index, now_ns, now_ns - seen_ns[index]))
        return alarms

    def _silent(self, index: int, now_ns: int, silence_ns: int) -> Alarm:
        spec = self._specs[index]
        reason = (
            f"{_name(spec)} has sent nothing for {_span(silence_ns)}; "
            f"a sample is expected every {_span(spec.expect_every_ns)}."
        )
        return self._opened(index, SILENT, now_ns, now_ns, reason, score=silence_ns / spec.expect_every_ns)

    def _device_silent(self, members: list[int], now_ns: int, heard_ns: int) -> Alarm:
        spec = self._specs[members[0]]
        silence_ns = now_ns - heard_ns
        reason = (
            f"{spec.device} has sent nothing for {_span(silence_ns)}, on none of its {len(members)} channels that are "
            f"expected regularly ({spec.channel} every {_span(spec.expect_every_ns)})."
        )
        score = silence_ns / max(self._specs[index].expect_every_ns for index in members)
        return self._opened(members[0], DEVICE_SILENT, now_ns, now_ns, reason, score=max(1.0, score))

    def _opened(
        self,
        series: int,
        detector: str,
        time_ns: int,
        arrived_ns: int,
        reason: str,
        value: float = math.nan,
        low: float = math.nan,
        high: float = math.nan,
        score: float = 1.0,
    ) -> Alarm:
        spec = self._specs[series]
        time_ns = self._later(series, detector, time_ns)
        alarm_id = f"{spec.device}/{spec.channel}/{detector}/{time_ns}"
        self._open[series, detector] = OpenAlarm(alarm_id, time_ns, spec.severity)
        return Alarm(
            alarm_id, series, detector, "open", spec.severity, time_ns, arrived_ns, value, low, high, score, reason
        )

    def _close(
        self,
        series: int,
        detector: str,
        time_ns: int,
        arrived_ns: int,
        reason: str,
        value: float = math.nan,
        low: float = math.nan,
        high: float = math.nan,
        score: float = 0.0,
    ) -> Alarm:
        opened = self._open.pop((series, detector))
        time_ns = self._later(series, detector, time_ns)
        return Alarm(
            opened.id,
            series,
            detector,
            "closed",
            opened.severity,
            time_ns,
            arrived_ns,
            value,
            low,
            high,
            score,
            reason,
        )

    def _later(self, series: int, detector: str, time_ns: int) -> int:
        """Strictly after the record before it of the same series and detector."""
        time_ns = max(time_ns, self._last_ns.get((series, detector), time_ns - 1) + 1)
        self._last_ns[series, detector] = time_ns
        return time_ns

    def _normal_again(self, series: int, detector: str, time_ns: int, value: float) -> str:
        spec = self._specs[series]
        if detector == "stuck":
            return f"{_name(spec)} moves again: {_reading(value, spec)}{self._after(series, detector, time_ns)}."
        return f"{_name(spec)} is normal again: {_reading(value, spec)}{self._after(series, detector, time_ns)}."

    def _after(self, series: int, detector: str, now_ns: int) -> str:
        return f", after {_span(now_ns - self._open[series, detector].time_ns)}"

    def snapshot(self) -> AlarmsState:
        """A copy of all that is remembered."""
        return AlarmsState(
            [(series, detector, alarm) for (series, detector), alarm in self._open.items()],
            [(series, detector, last_ns) for (series, detector), last_ns in self._last_ns.items()],
            list(self._known_ns.items()),
        )

    def restore(self, saved: AlarmsState) -> None:
        """Go on from a snapshot, after `add_series` was called for its series."""
        self._open = {(series, detector): alarm for series, detector, alarm in saved.open}
        self._last_ns = {(series, detector): last_ns for series, detector, last_ns in saved.last_ns}
        self._known_ns = dict(saved.known_ns)


def _name(spec: SeriesSpec) -> str:
    return f"{spec.device} {spec.channel}"


def _number(value: float) -> str:
    return f"{value:.6g}"


def _reading(value: float, spec: SeriesSpec) -> str:
    return f"{_number(value)} {spec.unit}".rstrip()


def _span(span_ns: int) -> str:
    """A duration in the largest unit that leaves at least 2 of it."""
    seconds = max(span_ns, 0) / SECOND_NS
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _band(low: float, high: float, spec: SeriesSpec) -> str:
    """The expected band in words; "" where there is none."""
    if math.isfinite(low) and math.isfinite(high):
        if not 1e-9 < high - low < 1e9 or max(-low, high) > 1e12:
            return f"{_number(low)} to {_reading(high, spec)}"
        digits = max(0, math.ceil(1 - math.log10(high - low)))
        return f"{low:.{digits}f} to {high:.{digits}f} {spec.unit}".rstrip()
    if math.isfinite(high):
        return f"at most {_reading(high, spec)}"
    if math.isfinite(low):
        return f"at least {_reading(low, spec)}"
    return ""


def _why(spec: SeriesSpec, detector: str, value: float, low: float, high: float, score: float) -> str:
    """The sentence of an opening."""
    name, reading, band = _name(spec), _reading(value, spec), _band(low, high, spec)
    if detector == "stuck":
        span = _span(round(score * msgspec.convert(spec.filters["stuck"], StuckOptions).after_s * SECOND_NS))
        return f"{name} has stood at {reading} for {span}; it should have moved by now."
    if detector == "range":
        return f"{name} is {reading}; allowed is {band}."
    if detector == "rate":
        return f"{name} went to {reading}; from the value before, {band} could be reached in that time."
    if detector == "zscore":
        return f"{name} is {reading}; expected {band} (robust z-score, {score:.3g} times the alarm's threshold)."
    expected = f"; expected {band}" if band else ""
    return f"{name} is {reading}{expected} ({detector}, {score:.3g} times the alarm's threshold)."
