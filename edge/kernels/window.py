"""The windowing passes: event-time tumbling windows of every series over one batch.

A series has OPEN slots for open windows, one for the supplement of late samples, and one for quiet windows that
`report = "on_change"` holds back. Window [start, end) closes when the watermark, newest time seen - lateness,
has reached its end, or when a tick finds the series idle. Windows of a series close in order of time, each once.

- A sample is late when its window has closed. It goes to the supplement, which holds samples of one window:
  it closes at the next tick, or when a late sample of another window comes.
- Sum and sum of squares are kept as mean and second moment about it (Welford 1962; merged by Chan, Golub and
  LeVeque 1979), the mean as distance from the first value, so a level of 1e9 costs no digits. Of equal times the
  first to come is first and last.
- Counters: `increase` is the sum of the steps in order of time. The step over a border belongs to the window of the
  later sample. A fall is a wrap where the register's `counter_wrap` makes it a step of at most half its range, else a
  reset, and the counter ran from 0. A sample that comes out of order within its window is taken to lie on the way
  between its neighbours, a late one too (its supplement has increase 0): exact unless the counter was reset
  between those neighbours.
- States: a change is a sample whose value differs from the one before it in time. An out-of-order one that
  differs from what was known around it is a change, and the newest known sample is a second one, back; one that is
  older than the last known change is left out.
- NaN and infinities, and every sample of a series that reports raw, leave everything as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from devices.model import CHANGE_DTYPE, SUMMARY_DTYPE, Kind
from edge.kernels import entry, jit

OPEN = 4
"""Open windows of a series. Config keeps lateness within two windows, so that three can be open."""
SUPPLEMENT = OPEN
HELD = OPEN + 1
SLOTS = OPEN + 2
ROWS_PER_SAMPLE = 2 * OPEN + 4
"""Most summaries that one sample (or one series at a tick) can close."""
CHANGES_PER_SAMPLE = 2

COUNTER, STATE_KIND = int(Kind.COUNTER), int(Kind.STATE)
SUMMARY, ON_CHANGE, RAW = 0, 1, 2
REPORTS = {"summary": SUMMARY, "on_change": ON_CHANGE, "raw": RAW}
NEVER_NS = np.iinfo(np.int64).min
EVER_NS = np.iinfo(np.int64).max

PARAMS = np.dtype(
    [
        ("kind", np.uint8),
        ("report", np.uint8),
        ("lateness_ns", np.int64),
        ("idle_close_ns", np.int64),
        ("heartbeat_ns", np.int64),
        ("tolerance", np.float64),
        ("counter_wrap", np.float64),
    ],
    align=True,
)
"""One record a series: what its profile says, less the window size, which changes at a boundary."""

STATE = np.dtype(
    [
        ("window_ns", np.int64),
        ("next_window_ns", np.int64),  # in use from switch_ns on
        ("switch_ns", np.int64),  # EVER_NS: no change is pending
        ("newest_ns", np.int64),  # largest time seen; NEVER_NS at first
        ("touched_ns", np.int64),  # last tick known when the last sample came; NEVER_NS: none yet
        ("closed_ns", np.int64),  # windows that end here or before are closed; NEVER_NS at first
        ("earliest_ns", np.int64),  # earliest end of an open window; EVER_NS: none is open
        ("current", np.int32),  # slot of the last sample
        ("holding", np.uint8),  # 1: the supplement or the held slot is in use
        ("has_total", np.uint8),
        ("has_level", np.uint8),
        ("has_sent", np.uint8),
        ("supplements", np.int64),  # made so far
        ("late", np.int64),  # samples that came after their window had closed
        ("total", np.float64),  # counters: last value of the last closed window
        ("level", np.float64),  # states: the value at level_ns
        ("level_ns", np.int64),  # states: newest time seen
        ("change_ns", np.int64),  # states: time of the last change
        ("sent", np.float64),  # on_change: `last` of the last summary sent
        ("sent_ns", np.int64),  # on_change: end of the last summary sent
    ],
    align=True,
)

SLOT = np.dtype(
    [
        ("start_ns", np.int64),
        ("end_ns", np.int64),
        ("count", np.int64),  # 0: free
        ("origin", np.float64),  # the value that came first
        ("mean", np.float64),  # as distance from the origin
        ("moment", np.float64),  # sum of (x - mean)^2
        ("min", np.float64),
        ("max", np.float64),
        ("first", np.float64),
        ("first_ns", np.int64),
        ("last", np.float64),
        ("last_ns", np.int64),
        ("increase", np.float64),
    ],
    align=True,
)


@jit
def counted(before: float, after: float, wrap: float) -> float:
    """What a counter ran between two readings, `before` the earlier in time."""
    if after >= before:
        return after - before
    wrapped = wrap - before + after
    if wrap > 0.0 and 0.0 <= wrapped <= 0.5 * wrap:
        return wrapped
    return max(after, 0.0)


@jit
def begin(slot: Any, start_ns: int, end_ns: int, time_ns: int, value: float) -> None:
    """The first sample of a window."""
    slot.start_ns = start_ns
    slot.end_ns = end_ns
    slot.count = 1
    slot.origin = slot.min = slot.max = slot.first = slot.last = value
    slot.first_ns = slot.last_ns = time_ns
    slot.mean = slot.moment = slot.increase = 0.0


@jit
def add(slot: Any, time_ns: int, value: float, wrap: float) -> None:
    """One more sample of a window."""
    slot.count += 1
    offset = value - slot.origin
    delta = offset - slot.mean
    if abs(delta) == np.inf:
        share = 1.0 / slot.count
        slot.mean = (slot.origin + slot.mean) * (1.0 - share) + value * share - slot.origin
        slot.moment = np.inf
    else:
        slot.mean += delta / slot.count
        slot.moment += delta * (offset - slot.mean)
    slot.min = min(slot.min, value)
    slot.max = max(slot.max, value)
    if time_ns > slot.last_ns:
        if wrap >= 0.0:
            slot.increase += counted(slot.last, value, wrap)
        slot.last = value
        slot.last_ns = time_ns
    elif time_ns < slot.first_ns:
        if wrap >= 0.0:
            slot.increase += counted(value, slot.first, wrap)
        slot.first = value
        slot.first_ns = time_ns


@jit
def merge(into: Any, slot: Any) -> None:
    """Append the window `slot` to `into`, which holds an earlier span or nothing."""
    if into.count == 0:
        into.start_ns = slot.start_ns
        into.end_ns = slot.end_ns
        into.count = slot.count
        into.origin = slot.origin
        into.mean = slot.mean
        into.moment = slot.moment
        into.min = slot.min
        into.max = slot.max
        into.first = slot.first
        into.first_ns = slot.first_ns
        into.last = slot.last
        into.last_ns = slot.last_ns
        into.increase = slot.increase
        return
    count = into.count + slot.count
    delta = slot.origin - into.origin + slot.mean - into.mean
    share = slot.count / count
    if abs(delta) == np.inf:
        mean = (into.origin + into.mean) * (1.0 - share) + (slot.origin + slot.mean) * share
        into.mean = mean - into.origin
    else:
        into.mean += delta * share
    into.moment += slot.moment + delta * delta * share * into.count
    into.count = count
    into.end_ns = slot.end_ns
    into.min = min(into.min, slot.min)
    into.max = max(into.max, slot.max)
    into.last = slot.last
    into.last_ns = slot.last_ns
    into.increase += slot.increase


@jit
def write(slot: Any, series: int, time_ns: int, kind: int, row: Any) -> None:
    """Make the summary of a slot and free the slot."""
    row.series = series
    row.time_ns = time_ns
    row.span_ns = slot.end_ns - slot.start_ns
    row.count = slot.count
    row.mean = min(max(slot.origin + slot.mean, slot.min), slot.max)
    row.min = slot.min
    row.max = slot.max
    row.stddev = np.sqrt(slot.moment / slot.count)
    row.first = slot.first
    row.last = slot.last
    row.increase = slot.increase if kind == COUNTER else np.nan
    slot.count = 0


@jit
def write_supplement(own: Any, slots: Any, series: int, kind: int, row: Any) -> None:
    own.supplements += 1
    slot = slots[series, SUPPLEMENT]
    write(slot, series, slot.start_ns + own.supplements, kind, row)


@jit
def write_sent(own: Any, slot: Any, series: int, kind: int, row: Any) -> None:
    """As `write`, and remember what was sent, for `on_change`."""
    own.has_sent = 1
    own.sent = slot.last
    own.sent_ns = slot.end_ns
    write(slot, series, slot.start_ns, kind, row)


@jit
def close(own: Any, params: Any, slots: Any, series: int, slot: Any, rows: Any, made: int) -> int:
    """Close one window, the oldest that is open; -> summaries made so far."""
    own.closed_ns = max(own.closed_ns, slot.end_ns)
    if params.kind == COUNTER:
        if own.has_total:
            slot.increase += counted(own.total, slot.first, params.counter_wrap)
        own.total = slot.last
        own.has_total = 1
    if params.report != ON_CHANGE:
        write(slot, series, slot.start_ns, params.kind, rows[made])
        return made + 1
    held = slots[series, HELD]
    near = params.tolerance
    if (
        own.has_sent
        and abs(slot.last - own.sent) <= near
        and own.sent - slot.min <= near
        and slot.max - own.sent <= near
    ):
        merge(held, slot)
        slot.count = 0
        own.holding = 1
        if held.end_ns - own.sent_ns < params.heartbeat_ns:
            return made
        write_sent(own, held, series, params.kind, rows[made])
        return made + 1
    if held.count > 0:
        write_sent(own, held, series, params.kind, rows[made])
        made += 1
    write_sent(own, slot, series, params.kind, rows[made])
    return made + 1


@jit
def close_until(own: Any, params: Any, slots: Any, series: int, limit_ns: int, rows: Any, made: int) -> int:
    """Close all open windows that end at limit_ns or before, in order of time."""
    while own.earliest_ns <= limit_ns:
        oldest = 0
        following = EVER_NS
        for k in range(OPEN):
            slot = slots[series, k]
            if slot.count == 0:
                continue
            if slot.end_ns == own.earliest_ns:
                oldest = k
            else:
                following = min(following, slot.end_ns)
        made = close(own, params, slots, series, slots[series, oldest], rows, made)
        own.earliest_ns = following
    return made


@jit
def note_level(own: Any, series: int, time_ns: int, value: float, changes: Any, made: int) -> int:
    """One sample of a state; -> changes made so far."""
    if own.has_level and (value == own.level or time_ns <= own.change_ns or time_ns == own.level_ns):
        if time_ns > own.level_ns:
            own.level_ns = time_ns
        return made
    row = changes[made]
    row.series = series
    row.time_ns = time_ns
    row.value = value
    made += 1
    if own.has_level and time_ns < own.level_ns:
        row = changes[made]
        row.series = series
        row.time_ns = own.level_ns
        row.value = own.level
        made += 1
        own.change_ns = own.level_ns
        return made
    own.has_level = 1
    own.level = value
    own.level_ns = own.change_ns = time_ns
    return made


def fold(
    series: Any,
    time_ns: Any,
    value: Any,
    start: int,
    tick_ns: int,
    params: Any,
    state: Any,
    slots: Any,
    rows: Any,
    changes: Any,
) -> tuple[int, int, int]:
    """Put samples [start:] into their windows; -> (samples done, summaries written, changes written).

    series int32[n], time_ns int64[n], value float64[n]; tick_ns: the last tick (NEVER_NS: none yet); params
    PARAMS[s]; state STATE[s]; slots SLOT[s, SLOTS]; rows SUMMARY_DTYPE[r], r >= ROWS_PER_SAMPLE; changes
    CHANGE_DTYPE[c], c >= CHANGES_PER_SAMPLE. Stops early when `rows` or `changes` may not hold those of another sample.
    """
    n = len(series)
    rows_full = len(rows) - ROWS_PER_SAMPLE
    changes_full = len(changes) - CHANGES_PER_SAMPLE
    made = 0
    changed = 0
    for i in range(start, n):
        if made > rows_full or changed > changes_full:
            return i, made, changed
        s = series[i]
        p = params[s]
        v = value[i]
        if p.report == RAW or not np.isfinite(v):
            continue
        t = time_ns[i]
        own = state[s]
        own.touched_ns = tick_ns
        if p.kind == STATE_KIND:
            changed = note_level(own, s, t, v, changes, changed)
        wrap = p.counter_wrap if p.kind == COUNTER else -1.0
        if t > own.newest_ns:
            own.newest_ns = t
            if t - p.lateness_ns >= own.earliest_ns:
                made = close_until(own, p, slots, s, t - p.lateness_ns, rows, made)

        slot = slots[s, own.current]
        if slot.count > 0 and slot.start_ns <= t < slot.end_ns:
            add(slot, t, v, wrap)
            continue
        found = -1
        free = -1
        for k in range(OPEN):
            slot = slots[s, k]
            if slot.count == 0:
                free = k
            elif slot.start_ns <= t < slot.end_ns:
                found = k
        if found >= 0:
            own.current = found
            add(slots[s, found], t, v, wrap)
            continue

        if t >= own.switch_ns and own.closed_ns >= own.switch_ns:
            own.window_ns = own.next_window_ns
            own.switch_ns = EVER_NS
        window = own.window_ns if t < own.switch_ns else own.next_window_ns
        begins = t - t % window
        ends = begins + window
        late = ends <= own.closed_ns or ends <= own.newest_ns - p.lateness_ns
        if free < 0 and not late:
            late = ends < own.earliest_ns
            if not late:
                made = close_until(own, p, slots, s, own.earliest_ns, rows, made)
                for k in range(OPEN):
                    if slots[s, k].count == 0:
                        free = k
        if late:
            own.late += 1
            own.holding = 1
            slot = slots[s, SUPPLEMENT]
            if slot.count > 0 and slot.start_ns == begins and slot.end_ns == ends:
                add(slot, t, v, -1.0)
                continue
            if slot.count > 0:
                write_supplement(own, slots, s, p.kind, rows[made])
                made += 1
            begin(slot, begins, ends, t, v)
            continue
        begin(slots[s, free], begins, ends, t, v)
        own.current = free
        own.earliest_ns = min(own.earliest_ns, ends)
    return n, made, changed


def sweep(now_ns: int, start: int, count: int, params: Any, state: Any, slots: Any, rows: Any) -> tuple[int, int]:
    """A tick over series [start:count]: close supplements, idle windows, and what idle series hold back;
    -> (series done, summaries written). Arrays and stopping as for `fold`."""
    full = len(rows) - ROWS_PER_SAMPLE
    made = 0
    for s in range(start, count):
        if made > full:
            return s, made
        own = state[s]
        if own.earliest_ns == EVER_NS and own.holding == 0:
            continue
        p = params[s]
        if own.touched_ns == NEVER_NS:
            own.touched_ns = now_ns
        if own.holding and slots[s, SUPPLEMENT].count > 0:
            write_supplement(own, slots, s, p.kind, rows[made])
            made += 1
        held = slots[s, HELD]
        idle = False
        if now_ns - own.touched_ns >= p.idle_close_ns:
            made = close_until(own, p, slots, s, now_ns - p.lateness_ns, rows, made)
            idle = True
        if held.count > 0 and (p.report != ON_CHANGE or (idle and now_ns - own.sent_ns >= p.heartbeat_ns)):
            write_sent(own, held, s, p.kind, rows[made])
            made += 1
        own.holding = 1 if held.count > 0 else 0
    return count, made


def close_one(limit_ns: int, series: int, params: Any, state: Any, slots: Any, rows: Any) -> int:
    """Close the windows of one series that end at limit_ns or before; -> summaries written."""
    return close_until(state[series], params[series], slots, series, limit_ns, rows, 0)


TABLES = (PARAMS, STATE, (SLOT, 2), SUMMARY_DTYPE)

FOLD = (fold, 3, (np.int32, np.int64, np.float64, int, int, *TABLES, CHANGE_DTYPE))
SWEEP = (sweep, 2, (int, int, int, *TABLES))
CLOSE_ONE = (close_one, 1, (int, int, *TABLES))

fold_entry = entry(*FOLD)
sweep_entry = entry(*SWEEP)
close_one_entry = entry(*CLOSE_ONE)
