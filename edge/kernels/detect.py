"""The detecting passes: filters and the alarm machine over one batch.

The alarm machine of a (series, detector), in the words of ISA-18.2:

                    score >= 1 for on_delay
        normal  ──────────────────────────────▶  open
                ◀──────────────────────────────
                    score < 1 - deadband for off_delay

A delay runs from the first sample that fulfils its condition and is void at the first that does not; what decides
is always a sample, and its time is the event's (one nanosecond more than the last event's, if it is
not later than that). A late sample (its time is not after the series' newest) may open an alarm that has no
on-delay, through a memoryless filter; apart from that it is as if it had not come. So is NaN or an infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge.kernels import Filter, dispatcher, entry, entry_uncached, jit
from edge.kernels.range import RangeFilter
from edge.kernels.range import step as range_step
from edge.kernels.rate import RateFilter
from edge.kernels.rate import step as rate_step
from edge.kernels.stuck import StuckFilter
from edge.kernels.stuck import step as stuck_step
from edge.kernels.zscore import ZscoreFilter
from edge.kernels.zscore import step as zscore_step

RANGE, STUCK, RATE, ZSCORE = 0, 1, 2, 3
FUSED: tuple[type[Filter], ...] = (RangeFilter, StuckFilter, RateFilter, ZscoreFilter)
"""The filters of `detect`; the place of each is its detector index."""
DETECTORS = len(FUSED)
NEVER_NS = np.iinfo(np.int64).min

EVENT_DTYPE = np.dtype(
    [
        ("position", np.int32),  # of the sample within the batch
        ("series", np.int32),
        ("detector", np.int16),
        ("open", np.bool_),
        ("time_ns", np.int64),
        ("value", np.float64),
        ("low", np.float64),
        ("high", np.float64),
        ("score", np.float64),
    ],
    align=True,
)
"""One row an opening or closing."""

MACHINE = [("on_delay_ns", np.int64), ("off_delay_ns", np.int64), ("close_below", np.float64)]

PARAMS = np.dtype(
    [
        ("enabled", np.uint32),  # bit d: detector d runs
        *MACHINE,
        ("range", RangeFilter.params),
        ("zscore", ZscoreFilter.params),
        ("stuck", StuckFilter.params),
        ("rate", RateFilter.params),
    ],
    align=True,
)
"""One record a series: what its profile says."""

STATE = np.dtype(
    [
        ("last_ns", np.int64),  # newest time seen; NEVER_NS at first
        ("open", np.uint32),  # bit d: the alarm of detector d is open
        ("pending", np.uint32),  # bit d: its on- or off-delay is running
        ("zscore", ZscoreFilter.state),
        ("stuck", StuckFilter.state),
        ("rate", RateFilter.state),
        ("since_ns", np.int64, (DETECTORS,)),  # when that delay began
        ("event_ns", np.int64, (DETECTORS,)),  # time of the last event; NEVER_NS at first
    ],
    align=True,
)
"""One record a series: all that the fused pass remembers."""


@jit
def debounce(
    state: Any, params: Any, slot: int, late: bool, time_ns: int, value: float, score: float, events: Any, found: int
) -> bool:
    """Advance one alarm machine; on an opening or closing write time, state and score to events[found]."""
    bit = np.uint32(1 << slot)
    is_open = (state.open & bit) != 0
    if late and (is_open or score < 1.0 or params.on_delay_ns > 0):
        return False
    wanted = score < params.close_below if is_open else score >= 1.0
    if not wanted:
        state.pending &= ~bit
        return False
    if (state.pending & bit) == 0:
        state.pending |= bit
        state.since_ns[slot] = time_ns
    if time_ns - state.since_ns[slot] < (params.off_delay_ns if is_open else params.on_delay_ns):
        return False
    state.pending &= ~bit
    state.open ^= bit
    state.event_ns[slot] = max(time_ns, state.event_ns[slot] + 1)
    event = events[found]
    event.open = not is_open
    event.time_ns = state.event_ns[slot]
    event.value = value
    event.score = score
    return True


@jit
def sign(event: Any, position: int, series: int, detector: int, low: float, high: float) -> None:
    """Write the rest of an event."""
    event.position = position
    event.series = series
    event.detector = detector
    event.low = low
    event.high = high


def detect(series: Any, time_ns: Any, value: Any, start: int, params: Any, state: Any, events: Any) -> tuple[int, int]:
    """Run the four filters over samples [start:]; -> (samples done, events written).

    series int32[n], time_ns int64[n], value float64[n]; params PARAMS[s]; state STATE[s]; events EVENT_DTYPE[e]
    with e >= 4. Stops early when `events` may not hold those of another sample.
    """
    n = len(series)
    full = len(events) - DETECTORS
    found = 0
    for i in range(start, n):
        if found > full:
            return i, found
        v = value[i]
        if not np.isfinite(v):
            continue
        p = params[series[i]]
        own = state[series[i]]
        t = time_ns[i]
        late = t <= own.last_ns
        if not late:
            own.last_ns = t
        busy = own.open | own.pending
        if p.enabled & (1 << RANGE):
            score, low, high = range_step(own, p.range, t, v)
            if (score >= 1.0 or busy & (1 << RANGE)) and debounce(own, p, RANGE, late, t, v, score, events, found):
                sign(events[found], i, series[i], RANGE, low, high)
                found += 1
        if late:
            continue
        if p.enabled & (1 << ZSCORE):
            score, low, high = zscore_step(own.zscore, p.zscore, t, v)
            if (score >= 1.0 or busy & (1 << ZSCORE)) and debounce(own, p, ZSCORE, late, t, v, score, events, found):
                sign(events[found], i, series[i], ZSCORE, low, high)
                found += 1
        if p.enabled & (1 << STUCK):
            score, low, high = stuck_step(own.stuck, p.stuck, t, v)
            if (score >= 1.0 or busy & (1 << STUCK)) and debounce(own, p, STUCK, late, t, v, score, events, found):
                sign(events[found], i, series[i], STUCK, low, high)
                found += 1
        if p.enabled & (1 << RATE):
            score, low, high = rate_step(own.rate, p.rate, t, v)
            if (score >= 1.0 or busy & (1 << RATE)) and debounce(own, p, RATE, late, t, v, score, events, found):
                sign(events[found], i, series[i], RATE, low, high)
                found += 1
    return n, found


COLUMNS = (np.int32, np.int64, np.float64, int)
"""Arguments that every pass over a batch begins with: series, time_ns, value, start."""

DETECT = (detect, 2, (*COLUMNS, PARAMS, STATE, EVENT_DTYPE))
detect_entry = entry(*DETECT)


def generic_dtypes(filter_: type[Filter]) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """(params, state): the records of `generic_pass`, for one filter with detector slot 0."""
    params = np.dtype([("enabled", np.uint32), *MACHINE, ("filter", filter_.params)], align=True)
    state = np.dtype(
        [
            ("last_ns", np.int64),
            ("open", np.uint32),
            ("pending", np.uint32),
            ("since_ns", np.int64, (1,)),
            ("event_ns", np.int64, (1,)),
            ("filter", filter_.state),
        ],
        align=True,
    )
    return params, state


def generic_pass(filter_: type[Filter], detector: int) -> Any:
    """A pass like `detect`, made from one filter's own step: same arguments, same result, compiled now."""
    filter_step, machine, signed = dispatcher(filter_.step), dispatcher(debounce), dispatcher(sign)
    memoryless = filter_.memoryless

    def generic(
        series: Any, time_ns: Any, value: Any, start: int, params: Any, state: Any, events: Any
    ) -> tuple[int, int]:
        n = len(series)
        found = 0
        for i in range(start, n):
            if found >= len(events):
                return i, found
            v = value[i]
            p = params[series[i]]
            if p.enabled == 0 or not np.isfinite(v):
                continue
            own = state[series[i]]
            t = time_ns[i]
            late = t <= own.last_ns
            if not late:
                own.last_ns = t
            elif not memoryless:
                continue
            score, low, high = filter_step(own.filter, p.filter, t, v)
            if machine(own, p, 0, late, t, v, score, events, found):
                signed(events[found], i, series[i], detector, low, high)
                found += 1
        return n, found

    return entry_uncached(generic, 2, (*COLUMNS, *generic_dtypes(filter_), EVENT_DTYPE))
