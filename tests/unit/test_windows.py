"""Windows beside a slow, obvious twin that keeps every sample; and each rule in an example."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import StoreError
from devices.model import SUMMARY_DTYPE, Kind, SampleBatch, SeriesSpec
from edge.windows import BUFFER_ROWS, Windows

Sample = tuple[int, float]

REPORTS = ["summary", "on_change"]
WINDOW, LATENESS, IDLE = 10, 4, 6


def spec(kind: Kind = Kind.GAUGE, **settings_: Any) -> SeriesSpec:
    times = {"window_ns": WINDOW, "lateness_ns": LATENESS, "idle_close_ns": IDLE, "heartbeat_ns": 50}
    return SeriesSpec("device", "channel", "level", "", kind, **{**times, **settings_})


def batch(samples: list[Sample], series: int = 0) -> SampleBatch:
    times, values = [t for t, _ in samples], [v for _, v in samples]
    n = len(samples)
    return SampleBatch(
        np.full(n, series, np.int32), np.array(times, np.int64), np.array(values, np.float64), np.zeros(n, np.uint8)
    )


def windows(*specs: SeriesSpec) -> Windows:
    made = Windows()
    for index, each in enumerate(specs):
        made.add_series(index, each)
    return made


def counted(before: float, after: float, wrap: float) -> float:
    if after >= before:
        return after - before
    over = wrap - before + after
    return over if wrap > 0 and 0 <= over <= wrap / 2 else max(after, 0.0)


@dataclass
class SlowWindow:
    start: int
    end: int
    samples: list[Sample]

    def row(self, time_ns: int, increase: float) -> tuple[Any, ...]:
        values = [value for _, value in self.samples]
        ordered = sorted(self.samples, key=lambda sample: sample[0])
        last = max(self.samples, key=lambda sample: sample[0])
        n = len(values)
        mean = math.fsum(value / n for value in values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / n)
        span = self.end - self.start
        return (time_ns, span, n, mean, min(values), max(values), deviation, ordered[0][1], last[1], increase)


@dataclass
class SlowWindows:
    """One series, by the rules of `edge/kernels/window.py`, with no thought for speed."""

    spec: SeriesSpec
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    open: dict[int, SlowWindow] = field(default_factory=dict)
    supplement: SlowWindow | None = None
    held: list[SlowWindow] = field(default_factory=list)
    held_increase: float = 0.0
    closed: float = -math.inf
    newest: float = -math.inf
    tick_ns: int | None = None
    touched: int | None = None
    supplements: int = 0
    late: int = 0
    total: float | None = None
    sent: tuple[float, int] | None = None

    def sample(self, time_ns: int, value: float) -> None:
        if not math.isfinite(value):
            return
        self.touched = self.tick_ns
        self.newest = max(self.newest, time_ns)
        self.close_until(self.newest - self.spec.lateness_ns)
        start = time_ns // self.spec.window_ns * self.spec.window_ns
        end = start + self.spec.window_ns
        if start in self.open:
            self.open[start].samples.append((time_ns, value))
        elif end <= self.closed or end <= self.newest - self.spec.lateness_ns:
            self.late += 1
            if self.supplement is not None and self.supplement.start != start:
                self.close_supplement()
            if self.supplement is None:
                self.supplement = SlowWindow(start, end, [])
            self.supplement.samples.append((time_ns, value))
        else:
            self.open[start] = SlowWindow(start, end, [(time_ns, value)])

    def tick(self, now_ns: int) -> None:
        self.tick_ns = now_ns
        if not self.open and not self.held and self.supplement is None:
            return
        self.touched = now_ns if self.touched is None else self.touched
        if self.supplement is not None:
            self.close_supplement()
        if now_ns - self.touched >= self.spec.idle_close_ns:
            self.close_until(now_ns - self.spec.lateness_ns)
            if self.held and self.sent and now_ns - self.sent[1] >= self.spec.heartbeat_ns:
                self.send_held()

    def close_supplement(self) -> None:
        assert self.supplement is not None
        self.supplements += 1
        increase = 0.0 if self.spec.kind == Kind.COUNTER else math.nan
        self.rows.append(self.supplement.row(self.supplement.start + self.supplements, increase))
        self.supplement = None

    def close_until(self, limit: float) -> None:
        for start in sorted(self.open):
            if self.open[start].end <= limit:
                self.close(self.open.pop(start))

    def close(self, window: SlowWindow) -> None:
        self.closed = max(self.closed, window.end)
        increase = math.nan
        if self.spec.kind == Kind.COUNTER:
            values = [value for _, value in sorted(window.samples, key=lambda sample: sample[0])]
            before = values[0] if self.total is None else self.total
            increase = math.fsum(
                counted(a, b, self.spec.counter_wrap) for a, b in zip([before, *values], values, strict=False)
            )
            self.total = values[-1]
        if self.spec.report == "on_change":
            row = window.row(0, 0)
            near = self.sent is not None and all(abs(row[i] - self.sent[0]) <= self.spec.tolerance for i in (4, 5, 8))
            if near and self.sent is not None:
                self.held.append(window)
                self.held_increase += increase
                if window.end - self.sent[1] >= self.spec.heartbeat_ns:
                    self.send_held()
                return
            if self.held:
                self.send_held()
            self.sent = (row[8], window.end)
        self.rows.append(window.row(window.start, increase))

    def send_held(self) -> None:
        whole = SlowWindow(self.held[0].start, self.held[-1].end, [s for window in self.held for s in window.samples])
        row = whole.row(whole.start, self.held_increase)
        self.rows.append(row)
        self.sent = (row[8], whole.end)
        self.held, self.held_increase = [], 0.0

    def waiting(self) -> int:
        everything = [*self.open.values(), *self.held, *([self.supplement] if self.supplement else [])]
        return sum(len(window.samples) for window in everything)


def run_both(one: SeriesSpec, actions: list[Any]) -> None:
    """An action is a tick (int) or a sample; both must make the same summaries, late counts and waiting counts."""
    real, slow = windows(one), SlowWindows(one)
    for action in actions:
        if isinstance(action, int):
            real.tick(action)
            slow.tick(action)
        else:
            real.run(batch([action]))
            slow.sample(*action)
        assert real.open_counts().tolist() == [slow.waiting()]
        assert real.late_counts().tolist() == [slow.late]
    rows = real.take()
    assert [(*tuple(row)[1:3], row["count"]) for row in rows] == [row[:3] for row in slow.rows]
    for name, place, tolerance in (("mean", 3, 6e-4), ("stddev", 6, 6e-3)):
        want = np.array([row[place] for row in slow.rows])
        size = np.array([max(abs(row[4]), abs(row[5])) for row in slow.rows])
        assert (np.abs(rows[name] - want) <= tolerance + 1e-11 * size).all()
    for name, place in (("min", 4), ("max", 5), ("first", 7), ("last", 8), ("increase", 9)):
        np.testing.assert_array_equal(rows[name], np.array([row[place] for row in slow.rows], np.float64), name)


@st.composite
def story(draw: st.DrawFn, values: st.SearchStrategy[float], disorder: int, ticks: bool = True) -> list[Any]:
    """Samples at distinct times that come up to `disorder` out of order or jump ahead, and ticks of a clock that goes
    along with them."""
    actions: list[Any] = []
    front, now, used = 0, 0, set()
    for kind, step, value in draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 14), values), max_size=70)):
        if kind == 0 and ticks:
            now = max(now, front) + step
            actions.append(now)
            continue
        front += 40 * step if kind == 1 else step // 3
        time_ns = front - (step * disorder // 14 if kind >= 5 else 0)
        if time_ns in used:
            continue
        used.add(time_ns)
        actions.append((time_ns, value))
    return actions


READINGS = st.one_of(
    st.integers(-1000, 1000).map(lambda i: i / 8),
    st.integers(0, 999).map(lambda i: 1e9 + i / 8),
    st.sampled_from([math.nan, math.inf, 0.0]),
)
SLUGGISH = st.integers(0, 2).map(lambda i: 20 + i / 2)


@given(story(READINGS, disorder=40))
def test_gauges_are_summarised_as_by_hand(actions: list[Any]) -> None:
    run_both(spec(), actions)


@given(story(READINGS, disorder=40), st.sampled_from([0, 1, 10, 20]))
def test_lateness_of_up_to_two_windows_is_kept(actions: list[Any], lateness: int) -> None:
    run_both(spec(lateness_ns=lateness), actions)


@given(story(SLUGGISH, disorder=20), st.sampled_from([0.0, 0.5]), st.sampled_from([20, 50]))
def test_on_change_holds_quiet_windows_back_and_loses_none(actions: list[Any], near: float, heartbeat: int) -> None:
    run_both(spec(report="on_change", tolerance=near, heartbeat_ns=heartbeat), actions)


@given(story(st.integers(0, 255).map(float), disorder=0), st.sampled_from([0.0, 256.0]))
def test_counters_that_reset_and_wrap_are_counted_as_by_hand(actions: list[Any], wrap: float) -> None:
    run_both(spec(Kind.COUNTER, counter_wrap=wrap), actions)


@given(story(st.just(0.0), disorder=14), st.integers(0, 3))
def test_a_counter_that_only_rises_may_come_out_of_order(actions: list[Any], slope: int) -> None:
    rising = [a if isinstance(a, int) else (a[0], 1000.0 + slope * a[0]) for a in actions]
    run_both(spec(Kind.COUNTER, lateness_ns=14), rising)


def test_the_deviation_of_values_around_a_billion_is_exact() -> None:
    rng = np.random.default_rng(5)
    values = 1e9 + rng.normal(0.0, 1e-3, 10_000)
    real = windows(spec(window_ns=100_000, lateness_ns=0))
    real.run(batch([*((i, float(value)) for i, value in enumerate(values)), (100_000, 0.0)]))
    (row,) = real.take()
    assert row["stddev"] == pytest.approx(np.std(values - 1e9), rel=1e-6)


def test_a_window_closes_when_the_watermark_reaches_its_end() -> None:
    real = windows(spec())
    real.run(batch([(3, 1.0), (13, 2.0)]))
    assert len(real.take()) == 0
    real.run(batch([(14, 3.0)]))
    assert real.take()["time_ns"].tolist() == [0]


def test_series_do_not_wait_for_each_other() -> None:
    real = windows(spec(), spec())
    real.run(batch([(3, 1.0)], series=0))
    real.run(batch([(103, 1.0), (203, 1.0)], series=1))
    assert real.take()["series"].tolist() == [1]
    assert real.open_counts().tolist() == [1, 1]


def test_late_samples_become_numbered_supplements_of_their_window() -> None:
    real = windows(spec())
    real.run(batch([(1, 1.0), (101, 1.0), (2, 5.0), (3, 7.0), (52, 9.0)]))
    real.tick(101)
    real.run(batch([(4, 8.0)]))
    real.tick(102)
    rows = real.take()
    assert rows["time_ns"].tolist() == [0, 0 + 1, 50 + 2, 0 + 3]
    assert rows["count"].tolist() == [1, 2, 1, 1]
    assert real.late_counts().tolist() == [4]


def test_idle_is_counted_from_the_tick_before_the_last_sample() -> None:
    real = windows(spec())
    real.tick(1000)
    real.run(batch([(3, 1.0)]))
    real.tick(1005)
    assert len(real.take()) == 0
    real.tick(1006)
    assert real.take()["time_ns"].tolist() == [0]


def test_a_device_whose_clock_runs_ahead_keeps_its_window_until_the_clock_has_passed_it() -> None:
    real = windows(spec())
    real.tick(100)
    real.run(batch([(155, 1.0)]))
    real.tick(163)
    assert len(real.take()) == 0
    real.tick(164)
    assert real.take()["time_ns"].tolist() == [150]


def test_more_open_windows_than_slots_close_the_oldest() -> None:
    real = windows(spec(lateness_ns=1000))
    real.run(batch([(5, 1.0), (15, 1.0), (25, 1.0), (35, 1.0), (45, 1.0), (2, 1.0)]))
    real.tick(46)
    rows = real.take()
    assert rows["time_ns"].tolist() == [0, 0 + 1]
    assert real.open_counts().tolist() == [4]


def test_the_increase_over_a_border_belongs_to_the_later_sample() -> None:
    real = windows(spec(Kind.COUNTER, lateness_ns=0))
    real.run(batch([(1, 100.0), (9, 110.0), (11, 125.0), (35, 126.0), (36, 3.0), (99, 3.0)]))
    assert real.take()["increase"].tolist() == [10.0, 15.0, 4.0]


def test_a_register_that_wraps_goes_on_counting_and_one_that_resets_starts_at_0() -> None:
    real = windows(spec(Kind.COUNTER, lateness_ns=0, counter_wrap=65536.0))
    real.run(batch([(1, 65530.0), (2, 4.0), (11, 40000.0), (12, 100.0), (99, 0.0)]))
    assert real.take()["increase"].tolist() == [10.0, 39996.0 + 25636.0]


def changes(real: Windows) -> list[tuple[int, float]]:
    return [(int(row["time_ns"]), float(row["value"])) for row in real.changes()]


def test_every_change_of_a_state_is_kept_with_its_own_time() -> None:
    real = windows(spec(Kind.STATE))
    real.run(batch([(1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0), (5, 0.0)]))
    assert changes(real) == [(1, 0.0), (3, 1.0), (5, 0.0)]
    assert changes(real) == []


def test_a_late_state_is_a_change_there_and_back_or_too_late() -> None:
    real = windows(spec(Kind.STATE))
    real.run(batch([(10, 0.0), (20, 0.0), (15, 1.0), (12, 1.0), (21, 0.0)]))
    assert changes(real) == [(10, 0.0), (15, 1.0), (20, 0.0)]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), unique_by=lambda sample: sample[0], max_size=30))
def test_the_changes_of_a_state_are_samples_and_end_with_the_newest(samples: list[tuple[int, int]]) -> None:
    real = windows(spec(Kind.STATE))
    told: list[tuple[int, float]] = []
    for i, sample in enumerate(samples):
        real.run(batch([(sample[0], float(sample[1]))]))
        told += changes(real)
        assert set(told) <= set(samples[: i + 1])
        assert [time_ns for time_ns, _ in told] == sorted({time_ns for time_ns, _ in told})
        assert told[-1][1] == max(samples[: i + 1])[1]


def test_a_series_that_reports_raw_makes_no_windows() -> None:
    real = windows(spec(report="raw"), spec(Kind.STATE, report="raw"))
    real.run(batch([(1, 1.0), (500, 1.0)]))
    real.run(batch([(1, 1.0), (500, 1.0)], series=1))
    real.tick(1000)
    assert len(real.take()) == 0
    assert changes(real) == []
    assert real.open_counts().tolist() == [0, 0]


def test_a_new_window_size_takes_effect_at_the_next_shared_boundary() -> None:
    real = windows(spec(lateness_ns=0))
    real.run(batch([(3, 1.0), (14, 1.0)]))
    real.add_series(0, spec(lateness_ns=0, window_ns=25))
    real.run(batch([(i, 1.0) for i in range(15, 201)]))
    rows = real.take()
    assert list(zip(rows["time_ns"].tolist(), rows["span_ns"].tolist(), strict=True)) == [
        (0, 10), (10, 10), (20, 10), (30, 10), (40, 10), (50, 25), (75, 25), (100, 25), (125, 25), (150, 25), (175, 25),
    ]  # fmt: skip
    assert rows["count"].sum() + real.open_counts().sum() == 2 + 186


@given(story(READINGS, disorder=20), st.data())
def test_changes_of_size_lose_no_sample_and_never_write_a_key_twice(actions: list[Any], data: st.DataObject) -> None:
    real, finite = windows(spec(window_ns=10_000, lateness_ns=4000)), 0
    for action in actions:
        if data.draw(st.integers(0, 5)) == 0:
            size, report = data.draw(st.sampled_from([4, 5, 10, 15, 30])), data.draw(st.sampled_from(REPORTS))
            real.add_series(0, spec(window_ns=size * 1000, lateness_ns=4000, report=report))
        if isinstance(action, int):
            real.tick(action * 1000)
        else:
            finite += math.isfinite(action[1])
            real.run(batch([(action[0] * 1000, action[1])]))
    rows = real.take()
    assert rows["count"].sum() + real.open_counts().sum() == finite
    assert len(set(rows["time_ns"].tolist())) == len(rows)


def test_more_summaries_than_the_buffer_holds_all_arrive() -> None:
    real = windows(spec(Kind.STATE, lateness_ns=0))
    n = 3 * BUFFER_ROWS
    real.run(batch([(i * 10, float(i % 2)) for i in range(n)]))
    assert real.take()["time_ns"].tolist() == [i * 10 for i in range(n - 1)]
    assert [time_ns for time_ns, _ in changes(real)] == [i * 10 for i in range(n)]
    many = windows(*[spec()] * n)
    for index in range(n):
        many.run(batch([(5, 1.0)], series=index))
    many.tick(100)
    many.tick(200)
    assert many.take()["series"].tolist() == list(range(n))


def test_huge_values_leave_the_extremes_right() -> None:
    real = windows(spec(lateness_ns=0))
    real.run(batch([(1, 1.7e308), (2, -1.7e308), (3, 1.7e308), (11, 1.0)]))
    (row,) = real.take()
    assert (row["min"], row["max"], row["count"]) == (-1.7e308, 1.7e308, 3)
    assert row["mean"] == pytest.approx(1.7e308 / 3)


def test_a_snapshot_of_another_layout_is_refused() -> None:
    with pytest.raises(StoreError, match="does not fit"):
        windows(spec()).restore({"state": np.zeros(1, SUMMARY_DTYPE), "slots": np.zeros(1), "tick_ns": np.zeros(1)})
