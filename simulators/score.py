"""The account of a run: the simulators' own record held against what the sink holds. No counter of the edge
is asked.

**Samples** are compared per series and stretch of time: the windows of a series, its supplements and merged
windows are joined where they overlap, and in each stretch

    lost    = max(0, taken - stored)      taken:  sent, and acknowledged by the sensor broker
    doubled = max(0, stored - sent)       stored: the sum of `count` over the stretch's points

so that what is missing here never makes up for what is too much there. A raw point fills a gap in its
stretch; where nothing is missing it is a copy sent as evidence. `altered` counts what is there and wrong:
the samples of stretches whose number is right while mean, min or max are not, and the changes of a state that
are missing, or were none.

**Alarms**: each fault that demands one, and whose deadline lay within the run, must have an opening between
its start and its deadline. An opening that no fault explains, its aftermath included, is false. Latency runs
from the moment the deciding sample left its device, by the simulators' clock, until a query saw the point in
the sink: it includes up to one interval of polling. Alarms of `silent` have no deciding sample, and those
that fell while the uplink was cut are listed apart as `delayed`.

**Uplink bytes** are counted at the edge's socket, both directions. Fast and slow channels share that socket;
the bytes are divided among them by the number of summary points that they and all others have in the sink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.model import SECOND_NS, Int64s
from simulators.faults import Truth
from simulators.records import SeriesRecord
from simulators.stored import SeriesKey, StoredAlarm, StoredSeries, StoredSink

AFTERMATH_NS = 15 * SECOND_NS
"""A detector may still object to the way back to normal after a fault."""
FAST_HZ = 1.0
WINDOW_START_NS = 1_000_000
"""Windows start at whole milliseconds: what is below is the number of a supplement."""
SILENT = ("silent", "device_silent")


class SeriesScore(NamedTuple):
    """Of one series, in samples."""

    produced: int
    stored: int
    lost: int
    doubled: int
    altered: int


class Latency(msgspec.Struct):
    """In milliseconds; None where nothing was measured."""

    p50: float | None = None
    p99: float | None = None


class AlarmScore(msgspec.Struct, rename={"false_": "false"}):
    """In alarms; of `expected`, `raised` came in time and `missed` did not."""

    expected: int = 0
    raised: int = 0
    missed: int = 0
    false_: int = 0
    delayed: int = 0
    opened: int = 0
    """Of them all, from the first to the last sample; those that no fault demands, but one explains, included."""
    still_open: int = 0
    """Of these, when the account was read."""
    silent: int = 0
    """Opened after the last sample, since then nothing came any more, and still open."""
    latency_ms: Latency = msgspec.field(default_factory=Latency)


class ByteScore(msgspec.Struct):
    """`json_in`: payload bytes that the simulators sent; `uplink`: bytes at the edge's uplink socket."""

    json_in: int = 0
    uplink: int = 0
    ratio: float | None = None
    ratio_fast: float | None = None
    """Of channels of 1 Hz and faster."""
    ratio_slow: float | None = None


class ProcessScore(msgspec.Struct):
    cpu_us_per_sample: float
    rss_bytes: int
    ready_s: float
    """From the start of the process until `/readyz` said yes."""


class Report(msgspec.Struct):
    """What `--report FILE` holds, as JSON."""

    produced: int
    stored: int
    waiting: int
    rejected: dict[str, int]
    dropped: dict[str, int]
    lost: int
    doubled: int
    altered: int
    spoiled: int
    """Broken samples that were sent: so many must have been rejected."""
    alarms: AlarmScore
    bytes: ByteScore
    processes: dict[str, ProcessScore] = {}
    sink: str = ""
    seconds: float = 0.0


class Seen(NamedTuple):
    """An alarm's point, and the UTC at which a query first saw it in the sink."""

    alarm: StoredAlarm
    seen_ns: int


def score(
    records: Sequence[SeriesRecord],
    truths: Sequence[Truth],
    sink: StoredSink,
    *,
    seen: Sequence[Seen] = (),
    cut: tuple[int, int] | None = None,
    uplink_bytes: int = 0,
) -> Report:
    """The report of a run that has ended. `seen`: alarms as they became visible during the run. `cut`: UTC of
    the start and end of the uplink's outage. Raises SinkUnreadable.
    """
    stored = sink.series()
    nothing = _no_series()
    scores = [series_score(record, stored.get(key_of(record), nothing)) for record in records]
    devices = {record.series.device for record in records}
    waiting, rejected, dropped = _accounts(sink.ledger(), devices)
    missing = sum(one.lost for one in scores)
    still_waiting = min(missing, waiting)
    return Report(
        produced=sum(one.produced for one in scores) + sum(record.spoiled for record in records),
        stored=sum(one.stored for one in scores),
        waiting=still_waiting,
        rejected=rejected,
        dropped=dropped,
        lost=missing - still_waiting,
        doubled=sum(one.doubled for one in scores),
        altered=sum(one.altered for one in scores),
        spoiled=sum(record.spoiled for record in records),
        alarms=alarm_score(records, truths, sink.alarms(), seen, cut),
        bytes=byte_score(records, stored, uplink_bytes),
    )


def is_settled(records: Sequence[SeriesRecord], sink: StoredSink) -> bool:
    """Whether the sink has heard of all that was sent: the samples, and the rejection of the broken ones."""
    stored = sink.series()
    nothing = _no_series()
    if any(series_score(record, stored.get(key_of(record), nothing)).lost for record in records):
        return False
    _, rejected, _ = _accounts(sink.ledger(), {record.series.device for record in records})
    return sum(rejected.values()) >= sum(record.spoiled for record in records)


def key_of(record: SeriesRecord) -> SeriesKey:
    return record.series.device, record.series.channel


def series_score(record: SeriesRecord, stored: StoredSeries) -> SeriesScore:
    """See the module's docstring."""
    starts_ns, ends_ns, stretch = _stretches(stored)
    count = np.bincount(stretch, stored.count, len(starts_ns)).astype(np.int64)
    times_ns = record.time_ns
    sent = np.searchsorted(times_ns, ends_ns) - np.searchsorted(times_ns, starts_ns)
    taken_ns = times_ns[record.taken]
    taken = np.searchsorted(taken_ns, ends_ns) - np.searchsorted(taken_ns, starts_ns)
    raw = np.searchsorted(stored.raw_ns, ends_ns) - np.searchsorted(stored.raw_ns, starts_ns)
    filled = np.minimum(raw, np.maximum(0, taken - count))
    outside_ns = times_ns[~_inside(times_ns, starts_ns, ends_ns)]
    taken_outside = np.setdiff1d(outside_ns, times_ns[~record.taken])
    raw_outside = stored.raw_ns[~_inside(stored.raw_ns, starts_ns, ends_ns)]
    return SeriesScore(
        produced=len(times_ns) - int(record.unheard.sum()),
        stored=int(count.sum() + filled.sum()) + len(raw_outside),
        lost=int(np.maximum(0, taken - count - filled).sum()) + len(np.setdiff1d(taken_outside, raw_outside)),
        doubled=int(np.maximum(0, count - sent).sum()) + len(np.setdiff1d(raw_outside, outside_ns)),
        altered=_altered(record, stored, starts_ns, stretch, exact=(count == sent) & (taken == sent))
        + _wrong_changes(record, stored),
    )


def _stretches(stored: StoredSeries) -> tuple[Int64s, Int64s, Int64s]:
    """Starts and ends of the stretches of time that points cover, and each point's stretch."""
    if not len(stored.time_ns):
        empty = np.empty(0, np.int64)
        return empty, empty, empty
    start_ns = stored.time_ns // WINDOW_START_NS * WINDOW_START_NS
    end_ns = np.maximum.accumulate(start_ns + stored.span_ms * 1_000_000)
    begins = np.concatenate([[True], start_ns[1:] >= end_ns[:-1]])
    stretch = np.cumsum(begins) - 1
    ends_ns = end_ns[np.concatenate([begins[1:], [True]])]
    return start_ns[begins], ends_ns, stretch.astype(np.int64)


def _inside(times_ns: Int64s, starts_ns: Int64s, ends_ns: Int64s) -> NDArray[np.bool_]:
    """Which times lie in one of the stretches, which do not overlap and are in order."""
    before = np.searchsorted(starts_ns, times_ns, side="right") - 1
    found = before >= 0
    found[found] = times_ns[found] < ends_ns[before[found]]
    return np.asarray(found)


def _altered(
    record: SeriesRecord, stored: StoredSeries, starts_ns: Int64s, stretch: Int64s, *, exact: NDArray[np.bool_]
) -> int:
    """Samples in stretches whose count is right and whose mean, min or max are not."""
    altered = 0
    edge = np.concatenate([np.searchsorted(record.time_ns, starts_ns), [len(record.time_ns)]])
    tolerance = 0.5 * 10.0**-record.series.decimals
    for number in np.flatnonzero(exact).tolist():
        points = stretch == number
        size = int(stored.count[points].sum())
        values = record.value[edge[number] : edge[number] + size]
        mean = float((stored.mean[points] * stored.count[points]).sum() / size)
        same = values.min() == stored.min[points].min() and values.max() == stored.max[points].max()
        if record.series.kind != "state":  # which has no mean
            same &= bool(abs(values.mean() - mean) <= max(tolerance, 1e-9 * abs(mean)))
        altered += 0 if same else size
    return altered


def _wrong_changes(record: SeriesRecord, stored: StoredSeries) -> int:
    """Changes of a state that are missing or were none; unknown while some samples may or may not be stored."""
    if record.series.kind != "state" or not record.taken.all():
        return 0
    changed = np.concatenate([[True], np.diff(record.value) != 0])[: len(record.value)]
    sent = set(zip(record.time_ns[changed].tolist(), record.value[changed].tolist(), strict=True))
    return len(sent ^ set(zip(stored.change_ns.tolist(), stored.change.tolist(), strict=True)))


def _no_series() -> StoredSeries:
    whole, real = np.empty(0, np.int64), np.empty(0)
    return StoredSeries(whole, whole, whole, real, real, real, real, real, whole, whole, real)


def _accounts(
    ledger: dict[SeriesKey, dict[str, float]], devices: set[str]
) -> tuple[int, dict[str, int], dict[str, int]]:
    """Waiting, rejected by reason and dropped by policy of the given devices, by their last account in the sink."""
    waiting = 0
    rejected: dict[str, int] = {}
    dropped: dict[str, int] = {}
    for (device, channel), account in ledger.items():
        if channel or device not in devices:
            continue
        waiting += int(account.get("waiting", 0))
        for name, count in account.items():
            for prefix, counts in (("rejected_", rejected), ("dropped_", dropped)):
                if name.startswith(prefix) and count:
                    word = name.removeprefix(prefix)
                    counts[word] = counts.get(word, 0) + int(count)
    return waiting, rejected, dropped


def alarm_score(
    records: Sequence[SeriesRecord],
    truths: Sequence[Truth],
    alarms: Sequence[StoredAlarm],
    seen: Sequence[Seen],
    cut: tuple[int, int] | None,
) -> AlarmScore:
    """See the module's docstring."""
    ended_ns = max((int(record.sent_ns.max()) for record in records if len(record.sent_ns)), default=0)
    devices = {record.series.device for record in records}
    closed = {alarm.id for alarm in alarms if alarm.state != "open"}
    every = [alarm for alarm in alarms if alarm.state == "open" and alarm.device in devices]
    opened = [alarm for alarm in every if alarm.time_ns <= ended_ns]  # then all are silent
    expected = [truth for truth in truths if truth.alarm and truth.by_ns <= ended_ns]
    raised = sum(any(_is_of(alarm, truth, truth.by_ns) for alarm in opened) for truth in expected)
    explained = [
        any(_is_of(alarm, truth, max(truth.end_ns, truth.by_ns) + AFTERMATH_NS) for truth in truths) for alarm in opened
    ]
    prompt_ms, delayed = _latencies_ms(records, seen, cut)
    return AlarmScore(
        expected=len(expected),
        raised=raised,
        missed=len(expected) - raised,
        false_=len(opened) - sum(explained),
        delayed=delayed,
        opened=len(opened),
        still_open=sum(alarm.id not in closed for alarm in opened),
        silent=sum(alarm.id not in closed for alarm in every if alarm.time_ns > ended_ns),
        latency_ms=Latency(_percentile(prompt_ms, 50), _percentile(prompt_ms, 99)),
    )


def _is_of(alarm: StoredAlarm, truth: Truth, until_ns: int) -> bool:
    """Whether the alarm can be this fault's."""
    place = alarm.device == truth.device and (not truth.channel or alarm.channel == truth.channel)
    return place and truth.start_ns <= alarm.time_ns <= until_ns


def _latencies_ms(
    records: Sequence[SeriesRecord], seen: Sequence[Seen], cut: tuple[int, int] | None
) -> tuple[list[float], int]:
    """From sending to being seen in the sink, and how many fell into the outage."""
    by_key = {key_of(record): record for record in records}
    prompt_ms: list[float] = []
    delayed = 0
    for alarm, seen_ns in seen:
        record = by_key.get((alarm.device, alarm.channel))
        if record is None or alarm.state != "open" or alarm.detector in SILENT:
            continue
        at = int(np.searchsorted(record.time_ns, alarm.time_ns))
        if at == len(record.time_ns) or record.time_ns[at] != alarm.time_ns:
            continue
        sent_ns = int(record.sent_ns[at])
        if cut is not None and sent_ns <= cut[1] and seen_ns >= cut[0]:
            delayed += 1
        else:
            prompt_ms.append((seen_ns - sent_ns) / 1e6)
    return prompt_ms, delayed


def _percentile(values: list[float], percent: int) -> float | None:
    return round(float(np.percentile(values, percent)), 1) if values else None


def byte_score(records: Sequence[SeriesRecord], stored: dict[SeriesKey, StoredSeries], uplink_bytes: int) -> ByteScore:
    """See the module's docstring."""
    json_in = sum(record.payload_bytes for record in records)
    points = sum(len(series.time_ns) for series in stored.values())
    ratios: list[float | None] = []
    for fast in (True, False):
        some = [record for record in records if (record.series.rate_hz >= FAST_HZ) == fast]
        own = sum(len(stored[key_of(record)].time_ns) for record in some if key_of(record) in stored)
        share = uplink_bytes * own / points if points else 0.0
        ratios.append(round(sum(record.payload_bytes for record in some) / share, 1) if share else None)
    whole = round(json_in / uplink_bytes, 1) if uplink_bytes else None
    return ByteScore(json_in=json_in, uplink=uplink_bytes, ratio=whole, ratio_fast=ratios[0], ratio_slow=ratios[1])
