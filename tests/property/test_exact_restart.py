"""A run that crashes and recovers is, bit for bit, the run that never crashed; however the stream was cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.model import SECOND_NS, Alarm, Kind, SampleBatch, SeriesSpec
from edge import journal
from edge.operators import Operators

T0_NS = 1_700_000_000 * SECOND_NS

SPECS = [
    SeriesSpec(
        "pump1",
        "temperature",
        "temperature",
        "°C",
        window_ns=2 * SECOND_NS,
        lateness_ns=SECOND_NS,
        idle_close_ns=3 * SECOND_NS,
        expect_every_ns=4 * SECOND_NS,
        filters={"range": {"low": -50.0, "high": 50.0}},
        off_delay_ns=SECOND_NS,
    ),
    SeriesSpec("pump1", "energy", "energy", "kWh", kind=Kind.COUNTER, window_ns=SECOND_NS, lateness_ns=0),
    SeriesSpec("pump1", "running", "running", "", kind=Kind.STATE, window_ns=5 * SECOND_NS, texts={"on": 1, "off": 0}),
    SeriesSpec("pump2", "vibration", "vibration", "mm/s", report="raw", window_ns=SECOND_NS),
    SeriesSpec("pump2", "pressure", "pressure", "bar", report="on_change", tolerance=5.0, window_ns=SECOND_NS),
]


@dataclass
class Outcome:
    """All that a run gives out."""

    alarms: list[Alarm] = field(default_factory=list)
    summaries: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    raw: list[tuple[int, int, float]] = field(default_factory=list)

    def take(self, operators: Operators) -> None:
        closed = operators.take()
        # repr shows every bit of a float, and leaves the padding between fields out.
        self.summaries += [repr(row) for row in closed.summaries.tolist()]
        self.changes += [repr(row) for row in closed.changes.tolist()]
        raw = closed.raw
        self.raw += list(zip(raw.series.tolist(), raw.time_ns.tolist(), raw.value.tolist(), strict=True))


def no_history(series: int, times_ns: Any) -> tuple[Any, Any]:
    return np.empty(0, np.int64), np.empty(0)


def fresh() -> Operators:
    operators = Operators(no_history)
    for index, spec in enumerate(SPECS):
        operators.set_series(index, spec)
    return operators


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[int, int, float] | int]:
    """Samples (series, time, value) and ticks (time), in order of arrival."""
    events: list[tuple[int, int, float] | int] = []
    now_ms = 0
    for _ in range(draw(st.integers(1, 80))):
        now_ms += draw(st.integers(0, 1500))
        if draw(st.integers(0, 4)) == 0:
            events.append(T0_NS + now_ms * 1_000_000)
        else:
            late_ms = draw(st.sampled_from([0, 0, 0, 0, 700, 4000]))
            value = draw(st.sampled_from([0.0, 1.0, -3.25, 49.9, 50.1, 200.0, 1e9]))
            series = draw(st.integers(0, len(SPECS) - 1))
            events.append((series, T0_NS + (now_ms - late_ms) * 1_000_000 + len(events), value))
    return events


def batch_of(samples: list[tuple[int, int, float]]) -> SampleBatch:
    series, times, values = zip(*samples, strict=True)
    n = len(samples)
    return SampleBatch(np.array(series, np.int32), np.array(times), np.array(values), np.zeros(n, np.uint8))


def feed(operators: Operators, events: list[Any], outcome: Outcome, cuts: set[int]) -> journal.Block:
    """Feed events in batches that end at the cuts and at ticks; return the block that a commit would hold."""
    batches, verdicts, ticks = [], [], []
    run: list[tuple[int, int, float]] = []
    count = 0

    def flush() -> None:
        nonlocal count
        if run:
            batch = batch_of(run)
            verdict = operators.admission.admit(batch, batch.time_ns.copy(), now_ns=1 << 62)
            outcome.alarms += operators.samples(batch, batch.time_ns, verdict)
            batches.append(batch)
            verdicts.append(verdict)
            count += len(run)
            run.clear()

    for at, event in enumerate(events):
        if isinstance(event, int):
            flush()
            ticks.append((count, event))
            outcome.alarms += operators.tick(event)
        else:
            run.append(event)
            if at in cuts:
                flush()
    flush()
    if not batches:
        return journal.Block(SampleBatch.empty(), np.empty(0, np.uint8), ticks)
    return journal.Block(SampleBatch.concat(batches), np.concatenate(verdicts), ticks)


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert repr(array.tolist()) == repr(b[name].tolist()), name


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(stream=streams(), data=st.data())
def test_a_crash_at_any_commit_changes_nothing(stream: list[Any], data: st.DataObject) -> None:
    uncut, without = fresh(), Outcome()
    feed(uncut, stream, without, set())
    without.take(uncut)

    n = len(stream)
    cuts = data.draw(st.sets(st.integers(0, n)), label="batches end here")
    commits = sorted(data.draw(st.sets(st.integers(0, n)), label="commits") | {n})
    crashes = data.draw(st.sets(st.sampled_from(commits)), label="crashes after these commits")
    snapshots = data.draw(st.sets(st.sampled_from(commits)), label="snapshots")

    operators, crashing = fresh(), Outcome()
    snapshot: dict[str, Any] = {}
    blocks: list[bytes] = []
    start = 0
    for commit in commits:
        if commit == start and commit:
            continue
        block = feed(operators, stream[start:commit], crashing, {cut - start for cut in cuts})
        block.sealed = data.draw(st.booleans(), label="sealed") or commit in snapshots
        if block.sealed:
            crashing.take(operators)
        blocks.append(journal.encode(block))
        if commit in snapshots:
            snapshot, blocks = operators.snapshot(), []
        if commit in crashes:
            operators = fresh()
            if snapshot:
                operators.restore(snapshot)
            for stored in blocks:
                operators.replay(journal.decode(stored))
        start = commit
    crashing.take(operators)

    assert [(a.id, a.state, a.time_ns, a.value) for a in crashing.alarms] == [
        (a.id, a.state, a.time_ns, a.value) for a in without.alarms
    ]
    assert sorted(crashing.summaries) == sorted(without.summaries)
    assert crashing.changes == without.changes
    assert sorted(crashing.raw) == sorted(without.raw)
    same(operators.snapshot(), uncut.snapshot())


@settings(max_examples=100)
@given(stream=streams())
def test_every_sample_is_in_exactly_one_place(stream: list[Any]) -> None:
    operators, outcome = fresh(), Outcome()
    feed(operators, stream, outcome, set())
    summed = np.zeros(len(SPECS), np.int64)
    closed = operators.take()
    np.add.at(summed, closed.summaries["series"], closed.summaries["count"])
    np.add.at(summed, closed.raw.series, 1)
    operators.ledger.stored[: len(SPECS)] += summed
    assert not operators.ledger.imbalance(operators.open_samples()).any()
