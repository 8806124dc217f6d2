"""The account of a run, on records and sinks made by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.model import SECOND_NS
from simulators.faults import Truth
from simulators.records import RecordedSeries, SeriesRecord
from simulators.score import AFTERMATH_NS, Seen, is_settled, score, series_score
from simulators.stored import SeriesKey, StoredAlarm, StoredSeries

T0 = 1_764_000_000 * SECOND_NS
WINDOW_S = 10


def record(
    seconds,
    *,
    device="press",
    channel="temperature",
    rate_hz=1.0,
    kind="gauge",
    untaken=(),
    unheard=(),
    spoiled=0,
    size=100,
):
    """A record of samples at the given seconds after T0, each with its second as its value."""
    seconds = np.asarray(seconds, float)
    time_ns = T0 + np.rint(seconds * SECOND_NS).astype(np.int64)
    return SeriesRecord(
        series=RecordedSeries(device, channel, "Cel", kind, rate_hz, 2),
        time_ns=time_ns,
        sent_ns=time_ns + 1_000_000,
        value=seconds.copy(),
        taken=~np.isin(seconds, [*untaken, *unheard]),
        unheard=np.isin(seconds, unheard),
        spoiled=spoiled,
        payload_bytes=size * (len(seconds) + spoiled),
    )


def stored(*windows, raw=(), changes=()):
    """A series of (start second, seconds in it, span in seconds, number of the supplement)."""
    rows = []
    for start, values, *more in windows:
        span, supplement = [*more, WINDOW_S, 0][:2] if len(more) < 2 else more
        values = np.asarray(values, float)
        edges = (values.mean(), values.min(), values.max(), values[0], values[-1])
        rows.append((T0 + start * SECOND_NS + supplement, span * 1000, len(values), *edges))
    columns = [np.array(column) for column in zip(*sorted(rows), strict=True)] if rows else [np.empty(0)] * 8
    kinds = [np.int64] * 3 + [np.float64] * 5
    columns = [column.astype(kind) for column, kind in zip(columns, kinds, strict=True)]
    return StoredSeries(
        *columns,
        raw_ns=np.array([T0 + round(s * SECOND_NS) for s in raw], np.int64),
        change_ns=np.array([T0 + second * SECOND_NS for second, _ in changes], np.int64),
        change=np.array([value for _, value in changes], float),
    )


@dataclass
class Sink:
    """A sink that holds what it is given."""

    held: dict[SeriesKey, StoredSeries] = field(default_factory=dict)
    raised: list[StoredAlarm] = field(default_factory=list)
    accounts: dict[SeriesKey, dict[str, float]] = field(default_factory=dict)

    def holds_samples(self):
        return bool(self.held)

    def series(self):
        return self.held

    def alarms(self):
        return self.raised

    def ledger(self):
        return self.accounts


def test_a_whole_series_is_neither_lost_nor_doubled():
    one = series_score(record(range(30)), stored((0, range(10)), (10, range(10, 20)), (20, range(20, 30))))
    assert one == (30, 30, 0, 0, 0)


def test_what_is_lost_in_one_window_is_not_made_up_for_by_what_is_doubled_in_another():
    doubled_window = [*range(10, 20), 19, 19, 19]
    one = series_score(record(range(30)), stored((0, range(7)), (10, doubled_window), (20, range(20, 30))))
    assert (one.produced, one.stored) == (30, 30)
    assert (one.lost, one.doubled) == (3, 3)


def test_a_missing_window_is_lost_whole():
    one = series_score(record(range(30)), stored((0, range(10)), (20, range(20, 30))))
    assert (one.lost, one.doubled) == (10, 0)


def test_a_series_that_the_sink_does_not_know_is_lost_whole():
    assert series_score(record(range(30)), stored()).lost == 30


def test_a_window_of_samples_that_were_never_sent_is_doubled():
    one = series_score(record(range(10)), stored((0, range(10)), (10, range(10, 14))))
    assert (one.lost, one.doubled) == (0, 4)


def test_supplements_count_with_their_window():
    assert series_score(record(range(10)), stored((0, range(7), 10, 0), (0, [7, 8], 10, 1), (0, [9], 10, 2))) == (
        10,
        10,
        0,
        0,
        0,
    )
    twice = series_score(record(range(10)), stored((0, range(10), 10, 0), (0, [9], 10, 1)))
    assert (twice.lost, twice.doubled) == (0, 1)


def test_a_merged_window_and_a_supplement_within_it_are_one_stretch():
    merged = stored((0, [*range(10), *range(12, 30)], 30, 0), (10, [10, 11], 10, 1))
    assert series_score(record(range(30)), merged) == (30, 30, 0, 0, 0)


def test_a_sample_that_was_not_acknowledged_may_be_stored_or_not():
    sent = record(range(10), untaken=[9])
    for values in (range(9), range(10)):
        one = series_score(sent, stored((0, values)))
        assert (one.lost, one.doubled) == (0, 0)
    assert series_score(sent, stored((0, range(8)))).lost == 1
    assert series_score(sent, stored((0, [*range(10), 9]))).doubled == 1
    assert series_score(record(range(10), untaken=[9]), stored()).lost == 9


def test_a_sample_that_nobody_heard_was_not_produced_but_may_have_got_through():
    sent = record(range(10), unheard=[0, 1])
    assert series_score(sent, stored((0, range(2, 10)))) == (8, 8, 0, 0, 0)
    assert series_score(sent, stored((0, range(10)))).doubled == 0


def test_raw_points_fill_a_gap_and_are_otherwise_copies():
    assert series_score(record(range(10)), stored((0, range(8)), raw=[8, 9])).lost == 0
    assert series_score(record(range(10)), stored((0, range(10)), raw=[8, 9])) == (10, 10, 0, 0, 0)


def test_a_series_of_raw_points_alone_is_compared_point_by_point():
    one = series_score(record(range(10)), stored(raw=[0, 1, 2, 3, 4, 5, 6, 7, 8, 8.5]))
    assert (one.stored, one.lost, one.doubled) == (10, 1, 1)


@pytest.mark.parametrize("wrong", ["mean", "min", "max"])
def test_a_summary_of_the_right_number_and_the_wrong_values_is_altered(wrong):
    held = stored((0, range(10)), (10, range(10, 20)))
    getattr(held, wrong)[1] += 0.5
    assert series_score(record(range(20)), held) == (20, 20, 0, 0, 10)


def test_a_mean_may_be_rounded_to_what_the_device_shows():
    held = stored((0, range(10)))
    held.mean[0] += 0.004
    assert series_score(record(range(10)), held).altered == 0


def test_a_change_of_a_state_that_is_missing_or_was_none_is_altered():
    sent = record(range(10), kind="state")
    sent.value[:] = [0, 0, 0, 2, 2, 2, 2, 1, 1, 1]
    held = stored((0, sent.value), changes=[(0, 0), (3, 2), (7, 1)])
    held.mean[:] = np.nan
    assert series_score(sent, held) == (10, 10, 0, 0, 0)
    held.change_ns[1] += 1
    assert series_score(sent, held).altered == 2
    assert series_score(sent, stored((0, sent.value), changes=[(0, 0), (3, 2)])).altered == 1


windows_of_counts = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=12)


@given(windows_of_counts)
def test_lost_and_doubled_are_sums_over_windows(windows):
    """Held against the definition, window by window."""
    sent = [number * WINDOW_S + i / 2 for number, (there, _) in enumerate(windows) for i in range(there)]
    held = stored(*((number * WINDOW_S, [0.0] * here) for number, (_, here) in enumerate(windows) if here))
    one = series_score(record(sent), held)
    assert one.lost == sum(max(0, there - here) for there, here in windows)
    assert one.doubled == sum(max(0, here - there) for there, here in windows)


def alarm(second, *, device="press", channel="temperature", state="open", detector="zscore"):
    time_ns = T0 + round(second * SECOND_NS)
    return StoredAlarm(f"{device}/{channel}/{time_ns}", device, channel, detector, state, time_ns, time_ns / 1e6, "")


def truth(start, end, by, *, kind="spike", device="press", channel="temperature", expected=True):
    times = (T0 + round(second * SECOND_NS) for second in (start, end))
    return Truth(kind, device, channel, *times, 5.0, expected, T0 + round(by * SECOND_NS))


def alarms(truths, raised, *, seen=(), cut=None, length=100):
    report = score([record(range(length))], truths, Sink(raised=list(raised)), seen=seen, cut=cut)
    return report.alarms


def test_an_alarm_between_start_and_deadline_is_raised_and_a_late_one_is_missed():
    one = alarms([truth(20, 20, 23)], [alarm(20)])
    assert (one.expected, one.raised, one.missed, one.false_) == (1, 1, 0, 0)
    one = alarms([truth(20, 20, 23)], [alarm(24)])
    assert (one.expected, one.raised, one.missed, one.false_) == (1, 0, 1, 0)


def test_an_alarm_of_another_channel_or_before_the_fault_is_false():
    one = alarms([truth(20, 20, 23)], [alarm(20, channel="pressure"), alarm(19)])
    assert (one.missed, one.false_) == (1, 2)


def test_the_aftermath_of_a_fault_is_explained_and_what_comes_later_is_false():
    end = 23 + AFTERMATH_NS / SECOND_NS
    one = alarms([truth(20, 22, 23)], [alarm(20), alarm(end), alarm(end + 1)])
    assert (one.raised, one.false_) == (1, 1)


def test_a_fault_that_demands_no_alarm_explains_one():
    one = alarms([truth(20, 22, 23, expected=False)], [alarm(21)])
    assert (one.expected, one.raised, one.false_) == (0, 0, 0)


def test_a_fault_whose_deadline_the_run_did_not_reach_is_not_expected():
    assert alarms([truth(98, 98, 101)], []).expected == 0
    assert alarms([truth(95, 95, 98)], []).expected == 1


def test_a_fault_of_a_whole_device_is_answered_by_any_of_its_channels():
    one = alarms([truth(20, 25, 25, kind="dropout", channel="")], [alarm(24, channel="pressure", detector="silent")])
    assert (one.raised, one.false_) == (1, 0)


def test_closings_and_alarms_of_devices_that_are_not_simulated_are_not_counted():
    one = alarms([], [alarm(20, state="closed"), alarm(20, device="host")])
    assert one.false_ == 0


def test_what_is_still_open_at_the_end_is_told_apart_from_the_silence_after_it():
    raised = [alarm(20), alarm(21, state="closed"), alarm(98), alarm(102, channel="pressure", detector="silent")]
    raised[1] = msgspec.structs.replace(raised[1], id=raised[0].id)
    one = alarms([truth(20, 20, 23), truth(98, 98, 101)], raised)
    assert (one.opened, one.still_open, one.silent) == (2, 1, 1)


def test_silence_after_the_end_of_the_run_is_no_false_alarm():
    assert alarms([], [alarm(105, detector="silent")]).false_ == 0
    assert alarms([], [alarm(95, detector="silent")]).false_ == 1


def test_latency_runs_from_the_sending_of_the_deciding_sample_to_the_sight_of_its_point():
    seen = [Seen(alarm(20), T0 + 20 * SECOND_NS + 41_000_000), Seen(alarm(30), T0 + 30 * SECOND_NS + 61_000_000)]
    latency = alarms([], [], seen=seen).latency_ms
    assert (latency.p50, latency.p99) == (pytest.approx(50.0), pytest.approx(59.8))


def test_latency_leaves_out_silence_and_what_the_outage_held_up():
    seen = [
        Seen(alarm(20), T0 + 20 * SECOND_NS + 41_000_000),
        Seen(alarm(50), T0 + 58 * SECOND_NS),
        Seen(alarm(60, detector="silent"), T0 + 99 * SECOND_NS),
        Seen(alarm(20, state="closed"), T0 + 99 * SECOND_NS),
        Seen(alarm(20.5), T0 + 99 * SECOND_NS),
    ]
    one = alarms([], [], seen=seen, cut=(T0 + 45 * SECOND_NS, T0 + 56 * SECOND_NS))
    assert (one.latency_ms.p99, one.delayed) == (pytest.approx(40.0), 1)


def test_the_account_names_what_was_rejected_and_dropped_of_simulated_devices_alone():
    accounts = {
        ("press", ""): {"produced": 20.0, "waiting": 0.0, "rejected_malformed": 3.0, "dropped_overrun": 1.0},
        ("press", "temperature"): {"rejected_malformed": 3.0},
        ("host", ""): {"rejected_future": 9.0},
    }
    report = score(
        [record(range(10), spoiled=3)], [], Sink({("press", "temperature"): stored((0, range(10)))}, [], accounts)
    )
    assert (report.produced, report.stored, report.spoiled) == (13, 10, 3)
    assert (report.rejected, report.dropped) == ({"malformed": 3}, {"overrun": 1})


def test_what_the_edge_still_holds_is_waiting_and_not_lost():
    accounts = {("press", ""): {"waiting": 4.0}}
    held = {("press", "temperature"): stored((0, range(5)))}
    report = score([record(range(10))], [], Sink(held, [], accounts))
    assert (report.lost, report.waiting) == (1, 4)


def test_a_run_is_settled_once_samples_and_rejections_are_all_there():
    sent = [record(range(10), spoiled=2)]
    some, whole = {("press", "temperature"): stored((0, range(9)))}, {("press", "temperature"): stored((0, range(10)))}
    rejected = {("press", ""): {"rejected_malformed": 1.0, "rejected_nonfinite": 1.0}}
    assert not is_settled(sent, Sink(some, [], rejected))
    assert not is_settled(sent, Sink(whole))
    assert is_settled(sent, Sink(whole, [], rejected))


def test_uplink_bytes_are_divided_by_the_number_of_points():
    fast = record(range(100), size=120)
    slow = record(range(0, 100, 10), channel="level", rate_hz=0.1, size=120)
    windows = [(start, range(start, start + 10)) for start in range(0, 100, 10)]
    held = {
        ("press", "temperature"): stored(*windows),
        ("press", "level"): stored(*((start, [start]) for start, _ in windows)),
        ("host", "cpu"): stored(*windows),
    }
    bytes_ = score([fast, slow], [], Sink(held), uplink_bytes=600).bytes
    assert (bytes_.json_in, bytes_.uplink, bytes_.ratio) == (13_200, 600, 22.0)
    assert (bytes_.ratio_fast, bytes_.ratio_slow) == (60.0, 6.0)


def test_the_report_is_the_json_that_was_promised():
    report = json.loads(msgspec.json.encode(score([record(range(10))], [], Sink())))
    assert report.keys() >= {"produced", "stored", "waiting", "rejected", "dropped", "lost", "doubled"}
    assert report.keys() >= {"alarms", "bytes", "processes", "sink", "seconds"}
    assert report["alarms"].keys() >= {"expected", "raised", "missed", "false", "latency_ms"}
    assert report["alarms"]["latency_ms"].keys() == {"p50", "p99"}
    assert report["bytes"].keys() >= {"json_in", "uplink"}
