"""The account finds what is lost or doubled, and asks only for what Forebay answers for."""

from __future__ import annotations

import numpy as np
import pytest

from devices.model import SECOND_NS
from simulators.chaos.account import EXPOSED_S, account, ledger_balances
from simulators.chaos.load import RAW_DEVICE, SERIAL_DEVICE, WINDOW_S
from simulators.chaos.run import is_at_rest
from simulators.chaos.world import Acknowledged, Away
from simulators.records import RecordedSeries, SeriesRecord
from simulators.stored import StoredSeries

START_NS = 1_700_000_000 * SECOND_NS
STEP_NS = SECOND_NS // 2
COUNT = 40
EXPOSED_NS = round(EXPOSED_S * SECOND_NS)


def record(device: str = "press-001", channel: str = "temperature") -> SeriesRecord:
    """40 samples in 20 s, all of which the sensors' broker took."""
    times_ns = START_NS + np.arange(COUNT, dtype=np.int64) * STEP_NS
    return SeriesRecord(
        RecordedSeries(device, channel, "Cel", "gauge", 2.0, 2),
        time_ns=times_ns,
        sent_ns=times_ns.copy(),
        value=np.arange(COUNT, dtype=np.float64),
        taken=np.ones(COUNT, np.bool_),
        unheard=np.zeros(COUNT, np.bool_),
        spoiled=0,
        payload_bytes=0,
    )


def acknowledged(one: SeriesRecord, which=slice(None)) -> Acknowledged:
    heard = Acknowledged()
    topic = f"plant/{one.series.device}/{one.series.channel}"
    heard.times_ms[topic] = set((one.time_ns[which] // 1_000_000).tolist())
    return heard


class Sink:
    """Summaries of windows of WINDOW_S."""

    def __init__(self, one: SeriesRecord, stored=slice(None)) -> None:
        times_ns, values = one.time_ns[stored], one.value[stored]
        starts_ns = times_ns // (WINDOW_S * SECOND_NS) * WINDOW_S * SECOND_NS
        windows = [values[starts_ns == start] for start in np.unique(starts_ns)]
        self._key = one.series.device, one.series.channel
        self.found = StoredSeries(
            time_ns=np.unique(starts_ns),
            span_ms=np.full(len(windows), WINDOW_S * 1000, np.int64),
            count=np.array([len(w) for w in windows], np.int64),
            mean=np.array([w.mean() for w in windows]),
            min=np.array([w.min() for w in windows]),
            max=np.array([w.max() for w in windows]),
            first=np.array([w[0] for w in windows]),
            last=np.array([w[-1] for w in windows]),
            raw_ns=np.empty(0, np.int64),
            change_ns=np.empty(0, np.int64),
            change=np.empty(0),
        )

    def series(self):
        return {self._key: self.found}


def test_nothing_is_wrong_where_nothing_is():
    one = record()
    found = account([one], acknowledged(one), [], Sink(one))
    assert (found.produced, found.acknowledged, found.stored) == (COUNT, COUNT, COUNT)
    assert (found.missing, found.doubled, found.altered, found.troubled) == (0, 0, 0, [])


def test_an_acknowledged_sample_that_is_not_in_the_sink_is_missing():
    one = record()
    found = account([one], acknowledged(one), [], Sink(one, np.arange(COUNT) != 17))
    assert (found.missing, found.doubled) == (1, 0)
    assert [(loss.device, loss.lost) for loss in found.troubled] == [("press-001", 1)]


def test_what_is_too_much_does_not_make_up_for_what_is_missing():
    one = record()
    sink = Sink(one, np.arange(COUNT) != 17)
    sink.found.count[0] += 1
    found = account([one], acknowledged(one), [], sink)
    assert (found.missing, found.doubled) == (1, 1)


def test_a_changed_mean_is_altered():
    one = record()
    sink = Sink(one)
    sink.found.mean[3] += 0.5
    assert account([one], acknowledged(one), [], sink).altered > 0


def test_what_the_sensors_broker_forgot_is_no_loss_of_forebay():
    one = record()
    reached = np.arange(COUNT) < 30
    found = account([one], acknowledged(one, reached), [], Sink(one, reached))
    assert (found.missing, found.undelivered, found.acknowledged) == (0, 10, 30)


def test_a_line_sent_shortly_before_a_kill_is_exposed_and_one_before_that_is_not():
    one = record(SERIAL_DEVICE, "weight")
    kill = Away("kill", START_NS + 10 * SECOND_NS, START_NS + 12 * SECOND_NS)
    lost = (one.time_ns >= kill.begun_ns - EXPOSED_NS) & (one.time_ns <= kill.ended_ns)
    found = account([one], Acknowledged(), [kill], Sink(one, ~lost))
    assert (found.missing, found.serial_exposed) == (0, int(lost.sum()))
    earlier = lost | (one.time_ns == kill.begun_ns - EXPOSED_NS - STEP_NS)
    assert account([one], Acknowledged(), [kill], Sink(one, ~earlier)).missing == 1


def test_what_lay_on_the_line_of_an_edge_that_was_stopped_is_exposed_when_the_cable_is_pulled():
    one = record(SERIAL_DEVICE, "weight")
    stop = Away("stop", START_NS + 4 * SECOND_NS, START_NS + 9 * SECOND_NS)
    pull = Away("cable", START_NS + 8 * SECOND_NS, START_NS + 8 * SECOND_NS)
    found = account([one], Acknowledged(), [stop, pull], Sink(one))
    assert found.serial_exposed == 9 + EXPOSED_NS // STEP_NS
    assert account([one], Acknowledged(), [stop], Sink(one)).serial_exposed == 0


def test_raw_points_count_as_they_are():
    one = record(f"{RAW_DEVICE}-001", "current")
    sink = Sink(one, slice(0))
    sink.found.raw_ns = one.time_ns[1:]
    found = account([one], acknowledged(one), [], sink)
    assert (found.stored, found.missing) == (COUNT - 1, 1)


BALANCED = {
    "produced": 10, "stored": 7, "waiting": 0, "rejected": {"duplicate": 2}, "dropped": {"overrun": 1}, "imbalance": 0,
}  # fmt: skip


def test_a_ledger_that_adds_up_and_agrees_with_the_sink_balances():
    assert ledger_balances({"ledger": BALANCED}, 7)


@pytest.mark.parametrize("wrong", [{"imbalance": 1}, {"waiting": 1}, {"produced": 11}, {"stored": 6}])
def test_a_ledger_that_does_not_add_up_does_not_balance(wrong):
    assert not ledger_balances({"ledger": BALANCED | wrong}, 7)


def test_a_ledger_that_disagrees_with_the_sink_does_not_balance():
    assert not ledger_balances({"ledger": BALANCED}, 6)
    assert not ledger_balances({}, 0)


AT_REST = {
    "link": {"connected": True},
    "sources": {"plant": {"state": "open"}},
    "ledger": {"waiting": 0},
    "store": {"outbox_frames": 0},
}


@pytest.mark.parametrize(
    "unrest",
    [
        {"link": {"connected": False}},
        {"sources": {"plant": {"state": "failed"}}},
        {"ledger": {"waiting": 1}},
        {"store": {"outbox_frames": 1}},
    ],
)
def test_the_edge_is_at_rest_when_nothing_waits(unrest):
    assert is_at_rest(AT_REST)
    assert not is_at_rest(AT_REST | unrest)
    assert not is_at_rest({})
