"""The simulators' faults, and the truth that is written about them."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from devices.model import SECOND_NS
from simulators.faults import Fault, Truth, TruthWriter, read_truth
from simulators.fleet import messages
from simulators.scenario import Group, Machine
from simulators.signals import Gauge, Schedule

STARTED_NS = 1_764_000_000 * SECOND_NS
SHAPE = Gauge(level=50.0, noise=0.2, decimals=3)
LENGTH = 400


def run(*faults: Fault, rate_hz: float = 4.0, count: int = LENGTH):
    """Times and values that a device of one channel sends, and the truths it tells."""
    group = Group(channel={"temperature": SHAPE}, rate_hz=rate_hz)
    machine = Machine("press", group, Schedule(rate_hz, 0.1), faults, ())
    truths: list[Truth] = []
    end_ns = STARTED_NS + int(machine.schedule.offsets_ns(np.array([count]))[0])
    stream = itertools.takewhile(
        lambda message: message.time_ns < end_ns, messages(machine, 0, "t/{channel}", 1, STARTED_NS, truths.append)
    )
    return {message.time_ns: message.samples[0][1] for message in stream}, truths


def fault(kind: str, **more) -> Fault:
    return Fault(**{"kind": kind, "device": "press", "channel": "temperature", "at_s": 20.0, "for_s": 10.0, **more})


@pytest.mark.parametrize("kind", ["spike", "drift", "stuck", "noise", "overheating"])
@pytest.mark.parametrize("more", [{}, {"every_s": 30.0}, {"for_s": 40.0}])
def test_the_signal_differs_from_a_healthy_one_exactly_where_the_truth_says(kind, more):
    healthy, nothing = run()
    faulty, truths = run(fault(kind, magnitude=5.0, **more))
    assert nothing == []
    told = {time for truth in truths for time in healthy if truth.start_ns <= time <= truth.end_ns}
    differing = {time for time in healthy if healthy[time] != faulty[time]}
    assert differing <= told
    # A stuck value is the healthy one at its first sample.
    kept = {truth.start_ns for truth in truths} if kind == "stuck" else set()
    assert told - kept == differing


def test_a_spike_is_one_sample_off_by_its_magnitude():
    healthy, _ = run()
    faulty, (truth,) = run(fault("spike", magnitude=-7.0))
    assert truth.start_ns == truth.end_ns
    assert faulty[truth.start_ns] - healthy[truth.start_ns] == pytest.approx(-7.0)


def test_a_drift_runs_away_by_its_magnitude_a_second():
    healthy, _ = run()
    faulty, (truth,) = run(fault("drift", magnitude=0.5))
    assert faulty[truth.end_ns] - healthy[truth.end_ns] == pytest.approx(5.0, abs=0.01)


def test_a_stuck_channel_repeats_one_reading():
    faulty, (truth,) = run(fault("stuck"))
    assert len({value for time, value in faulty.items() if truth.start_ns <= time <= truth.end_ns}) == 1


def test_a_dropout_sends_nothing_from_its_start_to_its_end():
    healthy, _ = run()
    faulty, (truth,) = run(fault("dropout"))
    assert healthy.keys() - faulty.keys() == {t for t in healthy if truth.start_ns <= t <= truth.end_ns}
    assert truth.end_ns - truth.start_ns == pytest.approx(10 * SECOND_NS, abs=SECOND_NS)


def test_an_overheating_reaches_its_magnitude_and_returns():
    healthy, _ = run()
    faulty, (truth,) = run(fault("overheating", magnitude=40.0))
    rise = [faulty[time] - healthy[time] for time in sorted(healthy) if truth.start_ns <= time <= truth.end_ns]
    assert max(rise) == pytest.approx(40.0)
    assert 0 < rise[0] < 5
    assert 0 < rise[-1] < 5


def test_a_noise_burst_is_louder_by_its_magnitude():
    healthy, _ = run(count=4000)
    faulty, (truth,) = run(fault("noise", magnitude=8.0, for_s=900.0), count=4000)
    extra = [faulty[time] - healthy[time] for time in healthy if truth.start_ns <= time <= truth.end_ns]
    assert np.std(extra) == pytest.approx(8.0 * 0.2, rel=0.1)


def test_a_fault_comes_again_and_each_time_is_told_once():
    _, truths = run(fault("spike", magnitude=5.0, every_s=25.0))
    starts_s = [(truth.start_ns - STARTED_NS) / SECOND_NS for truth in truths]
    assert starts_s == pytest.approx([20.1, 45.1, 70.1, 95.1, 120.1][: len(starts_s)])
    assert len(starts_s) >= 4


def test_the_alarm_is_due_so_long_after_the_first_sample():
    _, (truth,) = run(fault("stuck", within_s=4.5))
    assert truth.alarm
    assert truth.by_ns == truth.start_ns + 4_500_000_000
    _, (truth,) = run(fault("noise", alarm=False))
    assert not truth.alarm


def test_a_file_of_truths_gives_back_what_was_written_and_leaves_out_half_a_line(tmp_path):
    _, truths = run(fault("spike", magnitude=5.0, every_s=25.0))
    writer = TruthWriter(tmp_path / "truth.jsonl")
    for truth in truths:
        writer.write(truth)
    writer.close()
    path = tmp_path / "truth.jsonl"
    assert read_truth(path) == truths
    path.write_bytes(path.read_bytes() + msgspec.json.encode(truths[0])[:30])
    assert read_truth(path) == truths
