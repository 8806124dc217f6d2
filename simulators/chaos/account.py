"""The account of a run: every source's own record held against the sink, per series and stretch of time.

`score.series_score` does the arithmetic. What is asked for here is what Forebay answers for:

- over MQTT, the samples whose messages the edge acknowledged (`tap.py`). What the sensors' broker acknowledged
  and then forgot never reached it: `undelivered` counts that, and it is no loss of Forebay's;
- on the serial line, the lines that were written while cable and reader were there (`ports.py`), less those
  within EXPOSED_S before the edge was killed or the cable pulled, which nothing acknowledges: `serial_exposed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.model import SECOND_NS
from simulators.chaos.load import SERIAL_DEVICE, scenario
from simulators.chaos.world import Acknowledged, Away
from simulators.records import SeriesRecord
from simulators.score import key_of, series_score
from simulators.signals import MILLISECOND_NS
from simulators.stored import StoredSeries, StoredSink

EXPOSED_S = 0.5
"""One commit delay (0.25 s), and as much for reading and for the commit itself. To it comes the time for which the edge
waited for a processor (`Away.starved_ns`): on two cores with sixteen runnable processes a commit takes seconds."""


class SeriesLoss(msgspec.Struct):
    """One series of which something is lost, doubled or altered."""

    device: str
    channel: str
    lost: int
    doubled: int
    altered: int


class ChaosReport(msgspec.Struct):
    """What `--report FILE` holds, as JSON. Counts are samples, but where another thing is named."""

    faults: int
    kinds: dict[str, int]
    skipped: dict[str, str]
    """Kinds of fault that could not be had here, and why."""
    produced: int
    """Sent by the sensors, each counted once."""
    acknowledged: int
    """By the edge."""
    stored: int
    lost: int
    waiting: int
    """Of what is not in the sink so many are still at the edge: none, once it is at rest."""
    doubled: int
    altered: int
    """In stretches whose number is right while mean, min or max are not; and wrong changes of a state."""
    late: int
    """By the edge's ledger: behind their window."""
    rejected: dict[str, int]
    dropped: dict[str, int]
    serial_exposed: int
    undelivered: int
    """Acknowledged by the sensors' broker, which then forgot them."""
    twice: int
    """Messages that were sent again on purpose."""
    damaged: int
    """Messages that reached the edge unreadable."""
    alarms: int
    """Points of alarms in the sink."""
    ledger: dict[str, int]
    """Produced, stored and waiting, as the edge says."""
    ledger_balances: bool
    """The edge's ledger adds up, and agrees with the sink about what is stored."""
    settled: bool
    """Whether the edge came to rest within the time that it had."""
    settle_s: float
    ended_by_themselves: list[str]
    troubled: list[SeriesLoss]
    influxdb: str
    seed: int
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether everything is as promised."""
        wrong = self.lost or self.doubled or self.altered or self.ended_by_themselves
        return bool(self.settled and self.ledger_balances and not wrong)


class Account(msgspec.Struct):
    """The part of the report that comes from records and sink."""

    produced: int = 0
    acknowledged: int = 0
    stored: int = 0
    missing: int = 0
    """Lost, or on their way."""
    doubled: int = 0
    altered: int = 0
    serial_exposed: int = 0
    undelivered: int = 0
    troubled: list[SeriesLoss] = []


def account(
    records: Sequence[SeriesRecord], acknowledged: Acknowledged, away: Sequence[Away], sink: StoredSink
) -> Account:
    """Hold the records against the sink. Raises SinkUnreadable."""
    stored = sink.series()
    nothing = _nothing()
    total = Account()
    for record in records:
        asked, undelivered, exposed = _asked_for(record, acknowledged, away)
        series = stored.get(key_of(record), nothing)
        one = series_score(asked, series)
        total.produced += len(record.time_ns)
        total.acknowledged += int(asked.taken.sum())
        total.stored += one.stored
        total.missing += one.lost
        total.doubled += one.doubled
        total.altered += one.altered
        total.undelivered += undelivered
        total.serial_exposed += exposed
        if one.lost or one.doubled or one.altered:
            total.troubled.append(SeriesLoss(*key_of(record), one.lost, one.doubled, one.altered))
    return total


def _asked_for(record: SeriesRecord, acknowledged: Acknowledged, away: Sequence[Away]) -> tuple[SeriesRecord, int, int]:
    """The record with `taken` as Forebay answers for it; how many were never delivered, how many exposed."""
    if record.series.device == SERIAL_DEVICE:
        exposed = _exposed(record, away)
        return _with_taken(record, record.taken & ~exposed), 0, int(exposed.sum())
    topic = scenario().topic.format(device=record.series.device, channel=record.series.channel)
    times_ms = np.fromiter(acknowledged.times_ms.get(topic, ()), np.int64)
    taken = np.isin(record.time_ns, times_ms * MILLISECOND_NS)
    return _with_taken(record, taken), int((record.taken & ~taken).sum()), 0


def _with_taken(record: SeriesRecord, taken: NDArray[np.bool_]) -> SeriesRecord:
    return SeriesRecord(
        record.series, record.time_ns, record.sent_ns, record.value, taken,
        unheard=np.zeros(len(taken), np.bool_), spoiled=0, payload_bytes=0,
    )  # fmt: skip


def _exposed(record: SeriesRecord, away: Sequence[Away]) -> NDArray[np.bool_]:
    """Which lines of the serial device nobody need have, by when they left it.

    What is sent to an edge that is stopped lies on the line: it is lost should the line end before it is read.
    """
    exposed_ns = round(EXPOSED_S * SECOND_NS)
    exposed = np.zeros(len(record.sent_ns), np.bool_)
    for one in away:
        if one.cause == "stop":
            continue
        begun_ns, margin_ns = one.begun_ns, exposed_ns + one.starved_ns
        for stop in away:
            if stop.cause == "stop" and stop.begun_ns <= one.begun_ns <= stop.ended_ns + margin_ns:
                begun_ns = min(begun_ns, stop.begun_ns)
        exposed |= (record.sent_ns >= begun_ns - margin_ns) & (record.sent_ns <= one.ended_ns)
    return exposed


def ledger_balances(status: Mapping[str, Any], stored: int) -> bool:
    """Whether the edge's ledger adds up, with nothing waiting, and agrees with the sink about what is stored.

    `status`: the edge's `/status` after it has come to rest; `stored`: samples in the sink.
    """
    ledger = status.get("ledger")
    if not ledger:
        return False
    fates = ledger["stored"] + sum(ledger["rejected"].values()) + sum(ledger["dropped"].values())
    adds_up = ledger["imbalance"] == 0 and ledger["waiting"] == 0 and ledger["produced"] == fates
    return bool(adds_up and ledger["stored"] == stored)


def _nothing() -> StoredSeries:
    whole, real = np.empty(0, np.int64), np.empty(0)
    return StoredSeries(whole, whole, whole, real, real, real, real, real, whole, whole, real)
