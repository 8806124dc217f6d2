"""How long the link may be away: what is foretold, against what then happens, with the real pump over a real store.

On virtual time, at the daemon's own pace: a frame a minute without a link, a snapshot each ten minutes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from devices.model import SECOND_NS, SampleBatch, SeriesSpec
from devices.quantities import Duration, Size
from devices.wire.frame import FrameLimits, SummaryBody, decode
from devices.wire.receipt import Receipt, encode_receipt
from devices.wire.receive import Inbound
from edge.budget import MonthBudget, Stage
from edge.clock import Clock
from edge.config import (
    ClockConfig,
    EdgeConfig,
    JournalConfig,
    LimitsConfig,
    StatusConfig,
    StoreConfig,
    UplinkConfig,
)
from edge.custody import Commit, Committed, Usage
from edge.intake import Drained
from edge.outage import LONGEST_S, Growth, Journal, budget_s, sentence
from edge.parts import History, Parts
from edge.recovery import recover
from edge.retention import Keep
from edge.storethread import StoreThread
from edge.uplink import Uplink
from simulators.virtual import Thread, VirtualLoop

MIB = 1 << 20
MINUTE_S, HOUR_S = 60.0, 3600.0
T0_NS = 1_700_000_000 * SECOND_NS
EACH_S = 5
WhenFull = Literal["degrade", "block", "drop_oldest"]


class Feed:
    """In the intake's place: a reading of each series every EACH_S, in bursts."""

    has_stopped = False

    def __init__(self, series: int, burst_s: int) -> None:
        self.ready = asyncio.Event()
        self._series, self._burst_s = series, burst_s
        self._rng = np.random.default_rng(1)
        self._waiting: list[SampleBatch] = []

    async def run(self) -> None:
        at_s = 0
        while True:
            await asyncio.sleep(self._burst_s)
            readings = self._burst_s // EACH_S
            n = self._series * readings
            times = np.repeat(T0_NS + (at_s + EACH_S * np.arange(readings)) * SECOND_NS, self._series)
            series = np.tile(np.arange(self._series, dtype=np.int32), readings)
            self._waiting.append(SampleBatch(series, times, self._rng.normal(size=n), np.zeros(n, np.uint8)))
            at_s += self._burst_s
            self.ready.set()

    def drain(self, max_samples: int) -> Drained:
        waiting = self._waiting.pop(0) if self._waiting else SampleBatch.empty()
        return Drained(waiting, waiting.time_ns.copy(), {}, [], [], {})


class Cloud:
    """Broker, ingester and sink: answers each frame, counts what passes, and keeps the spans of the windows."""

    def __init__(self) -> None:
        self.connected = False
        self.bytes_in = self.bytes_out = 0
        self.broker_max_packet_bytes = 1 << 28
        self.uplink: Uplink
        self.spans: list[tuple[float, int]] = []
        """(when they came, ns)."""
        self.samples = 0
        self.leaves: list[str] = []

    def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> int | None:
        if not self.connected:
            return None
        loop = asyncio.get_running_loop()
        self.bytes_out += len(payload) + 100
        self.leaves.append(topic.rpartition("/")[2])
        body = decode(payload, FrameLimits()).body
        if isinstance(body, SummaryBody):
            self.samples += int(body.rows["count"].sum())
            self.spans += [(loop.time(), span) for span in body.rows["span_ns"].tolist()]
        loop.call_later(0.1, self._receipt, correlation)
        return len(self.leaves)

    def _receipt(self, correlation: bytes | None) -> None:
        self.bytes_in += 100
        receipt = encode_receipt(Receipt())
        self.uplink.on_messages(
            Inbound(1, False, topics=[""], payloads=[receipt], packet_ids=[0], dups=[False], correlations=[correlation])
        )


class WatchedStore(StoreThread):
    """Notes when frames first left the outbox, and the accounts of the month that were kept."""

    first_given_up_s = math.nan
    months: list[bytes]

    async def commit(self, commit: Commit) -> Committed:
        if commit.removed and math.isnan(self.first_given_up_s):
            self.first_given_up_s = asyncio.get_running_loop().time()
        if commit.month:
            self.months.append(commit.month)
        return await super().commit(commit)


class Gateway:
    """The daemon's parts, with a feed for an intake, and this cloud."""

    def __init__(self, config: EdgeConfig, *, series: int, burst_s: int) -> None:
        def elapsed_ns() -> int:
            return round(asyncio.get_running_loop().time() * 1e9)

        self.feed, self.cloud = Feed(series, burst_s), Cloud()
        history = History()
        recovered = recover(Path(config.store.path), config.store.max_size, history)
        self.operators, self.file = recovered.operators, recovered.store
        thread: Any = Thread(lambda _: True, lambda: 0.001)
        self.store = WatchedStore(self.file, thread)
        self.store.months = []
        parts = Parts(config, recovered, history, self.store, Clock(lambda: T0_NS + elapsed_ns(), elapsed_ns))
        for i in range(series):
            parts.registry.resolve(SeriesSpec("d", f"c{i}", "q", "", window_ns=10 * SECOND_NS, lateness_ns=0))
        self.uplink, self.outbox = parts.uplink, parts.uplink.outbox
        self.uplink.link, self.cloud.uplink = self.cloud, self.uplink
        feed: Any = self.feed
        self.pump = parts.begin(config, feed)
        self.parts = parts

    def connect(self) -> None:
        self.cloud.connected = True
        self.uplink.on_connect(False)

    def balance(self) -> None:
        assert not self.operators.ledger.imbalance(self.pump.waiting()).any()


def configured(path: Path, when_full: WhenFull, keep: Keep, max_per_month: Size | None) -> EdgeConfig:
    return EdgeConfig(
        gateway="g1",
        uplink=UplinkConfig("mqtt://cloud", max_per_month=max_per_month),
        store=StoreConfig(str(path), Size(8 * MIB), when_full),
        journal=JournalConfig(Duration(keep.span_ns), Size(keep.size_bytes)),
        clock=ClockConfig(),
        limits=LimitsConfig(),
        status=StatusConfig(),
        source={},
    )


Story = Callable[[Gateway], Coroutine[Any, Any, None]]


def tell(
    path: Path,
    story: Story,
    *,
    series: int = 20,
    burst_s: int = 5,
    when_full: WhenFull = "degrade",
    keep: Keep | None = None,
    max_per_month: Size | None = None,
) -> Gateway:
    async def told() -> Gateway:
        config = configured(path / "edge.db", when_full, keep or Keep(64 * MIB, 3600 * SECOND_NS), max_per_month)
        gateway = Gateway(config, series=series, burst_s=burst_s)
        tasks = [asyncio.ensure_future(part.run()) for part in (gateway.pump, gateway.uplink, gateway.feed)]
        tasks.append(asyncio.ensure_future(story(gateway)))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        done.pop().result()
        gateway.balance()
        gateway.file.close()
        return gateway

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(told())


@pytest.mark.parametrize(
    ("when_full", "burst_s", "keep"),
    [
        ("drop_oldest", 5, Keep(1 * MIB, 3600 * SECOND_NS)),
        ("degrade", 120, Keep(64 * MIB, 600 * SECOND_NS)),
    ],
    ids=["a small journal", "samples in bursts of two minutes"],
)
def test_what_is_foretold_comes_within_a_tenth(tmp_path: Path, when_full: WhenFull, burst_s: int, keep: Keep) -> None:
    foretold: list[tuple[float, float]] = []

    async def story(gateway: Gateway) -> None:
        loop = asyncio.get_running_loop()
        gateway.connect()
        await asyncio.sleep(HOUR_S)
        gateway.cloud.connected = False
        gateway.store.first_given_up_s = math.nan
        assert math.isfinite(gateway.pump.committer.outage_budget_s())
        while math.isnan(gateway.store.first_given_up_s):
            await asyncio.sleep(20 * MINUTE_S)
            if math.isnan(gateway.store.first_given_up_s):
                foretold.append((loop.time(), gateway.pump.committer.outage_budget_s()))
                gateway.balance()
        foretold.append((gateway.store.first_given_up_s, 0.0))

    tell(tmp_path, story, series=100, burst_s=burst_s, when_full=when_full, keep=keep)
    *told, (came_s, _) = foretold
    in_good_time = [(at_s, left_s) for at_s, left_s in told[2:] if came_s - at_s > HOUR_S]
    assert len(in_good_time) >= 5
    for at_s, left_s in in_good_time:
        assert left_s == pytest.approx(came_s - at_s, rel=0.1)


def test_what_comes_in_bursts_is_measured_from_burst_to_burst() -> None:
    growth = Growth()
    for minute in range(30):
        growth.add(minute * MINUTE_S, 6000)
        growth.add(minute * MINUTE_S + 1, 600)
        if minute > 2:
            for later_s in (1.0, 30.0, 59.0):
                assert growth.per_s(minute * MINUTE_S + later_s) == pytest.approx(110, rel=0.02)


def test_a_rate_that_is_not_known_is_told_as_that() -> None:
    growth = Growth()
    growth.add(0.0, 6000)
    assert math.isnan(growth.per_s(600.0))
    usage = Usage(MIB, 8 * MIB, 0, 0)
    assert math.isnan(budget_s(usage, math.nan, Journal(0, 0.0, 600.0, Keep(MIB, 1))))
    assert sentence(math.nan, "degrade").startswith("not known yet")


def test_where_nothing_grows_the_link_may_be_away_for_long() -> None:
    growth = Growth()
    for minute in range(3):
        growth.add(minute * MINUTE_S, 100)
    assert growth.per_s(30 * 86_400) < 1e-4
    usage = Usage(MIB, 8 * MIB, 0, 0)
    assert budget_s(usage, 1e-4, Journal(0, 0.0, 600.0, Keep(MIB, 1))) == LONGEST_S


def test_the_answer_is_a_sentence() -> None:
    three_days = 3 * 86_400 + 4 * 3600 + 59
    assert sentence(three_days, "degrade") == "the link may be away for 3 d 4 h before summaries are merged"
    assert sentence(3700, "drop_oldest") == "the link may be away for 1 h 1 min before the oldest are dropped"
    assert sentence(59, "block") == "the link may be away for 0 min before sources must wait"


def test_near_the_months_limit_ten_windows_go_as_one(tmp_path: Path) -> None:
    """100 series need some 1.2 GB a month as they come; merged a tenth of that."""

    async def story(gateway: Gateway) -> None:
        gateway.connect()
        await asyncio.sleep(3 * HOUR_S)
        assert gateway.uplink.stage == Stage.SAVING
        published = gateway.outbox.held()
        assert all(row.seq > gateway.outbox.live_limit() for row in published if row.lane == 1)

    gateway = tell(tmp_path, story, series=100, max_per_month=Size(100_000_000))
    early = {span for at_s, span in gateway.cloud.spans if at_s < 500}
    late = [span for at_s, span in gateway.cloud.spans if at_s > HOUR_S]
    assert early == {10 * SECOND_NS}
    assert np.mean(np.array(late) == 100 * SECOND_NS) > 0.7
    assert max(late) == 100 * SECOND_NS
    assert gateway.cloud.samples == int(gateway.operators.ledger.stored.sum())
    assert "alarm" not in gateway.cloud.leaves


def test_once_the_month_is_spent_all_but_alarms_wait_and_nothing_is_lost(tmp_path: Path) -> None:
    max_bytes = Size(1_000_000)

    async def story(gateway: Gateway) -> None:
        gateway.connect()
        await asyncio.sleep(30 * MINUTE_S)
        assert gateway.uplink.stage == Stage.ALARMS_ONLY
        passed = gateway.cloud.bytes_in + gateway.cloud.bytes_out
        assert 0.7 * max_bytes < passed <= 0.91 * max_bytes
        kept = MonthBudget(max_bytes, 1, gateway.store.months[-1])
        assert passed - kept.spent_bytes < max_bytes / 1000 + 5000
        await asyncio.sleep(10 * MINUTE_S)
        assert gateway.cloud.bytes_in + gateway.cloud.bytes_out == passed
        assert gateway.outbox.has_held()

    tell(tmp_path, story, series=400, max_per_month=max_bytes)
