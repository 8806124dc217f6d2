"""The pump over a real store: what it promises while all goes well, when the store fails, and when it fills.

The link is a loopback that stores frames in a dictionary and receipts them; the feed stands for the intake.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from devices.errors import StoreError, StoreFull
from devices.model import DROP_POLICIES, REJECT_REASONS, SECOND_NS, Int64s, Lane, SampleBatch, SeriesSpec
from devices.quantities import Duration, Size
from devices.wire.frame import AlarmBody, FrameLimits, RawBody, SummaryBody, decode
from devices.wire.receipt import Receipt, Rejected, encode_receipt
from devices.wire.receive import Inbound
from devices.wire.topics import parse_correlation
from edge import committer as committer_module
from edge import pump as pump_module
from edge import replay as replay_module
from edge import room as room_module
from edge.budget import Stage
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
from edge.custody import Commit, Committed, Custody, OutboxRow
from edge.intake import Drained
from edge.parts import History, Parts
from edge.recovery import recover
from edge.retention import Keep
from edge.storethread import StoreThread
from edge.uplink import Uplink

MIB = 1 << 20
T0_NS = 1_700_000_000 * SECOND_NS
WINDOW_NS = SECOND_NS


class Feed:
    """In the intake's place: batches that wait, each with its acknowledgement."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.batches: deque[tuple[SampleBatch, Int64s]] = deque()
        self.acknowledged = 0
        self.has_stopped = False

    def put(self, batch: SampleBatch, arrived_ns: int = 0) -> None:
        """`arrived_ns` 0: each when its own time was."""
        arrived = np.full(len(batch), arrived_ns) if arrived_ns else batch.time_ns.copy()
        self.batches.append((batch, arrived))
        self.ready.set()

    def clock_stepped(self, by_ns: int) -> None:
        for _, arrived_ns in self.batches:
            arrived_ns += by_ns

    def drain(self, max_samples: int) -> Drained:
        if not self.batches:
            return Drained(SampleBatch.empty(), np.empty(0, np.int64), {}, [], [], {})
        batch, arrived_ns = self.batches.popleft()
        if self.batches:
            self.ready.set()
        return Drained(batch, arrived_ns, {}, [], [self.settle], {})

    def settle(self) -> None:
        self.acknowledged += 1


class Loopback:
    """A session whose other end is a sink: it keeps every point by its key, and receipts each frame."""

    def __init__(self) -> None:
        self.connected = False
        self.bytes_in = self.bytes_out = 0
        self.broker_max_packet_bytes = 1 << 28
        self.silent = False
        """No receipts."""
        self.uplink: Uplink
        self.points: dict[tuple[str, int], tuple[Any, ...]] = {}
        self.raw: dict[tuple[str, int], float] = {}
        self.alarms: list[str] = []
        self.doubles = 0
        self.publications = 0
        self.heard: Callable[[bytes | None], None] = lambda _correlation: None
        self.answer: Callable[[Any], Receipt] = lambda _frame: Receipt()

    def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> int | None:
        if not self.connected:
            return None
        self.heard(correlation)
        frame = decode(payload, FrameLimits())
        if isinstance(frame.body, SummaryBody):
            for row in frame.body.rows.tolist():
                self.keep((frame.series[row[0]].channel, row[1]), row[1:])
        elif isinstance(frame.body, RawBody):
            samples = frame.body.samples
            for s, t, v in zip(samples.series.tolist(), samples.time_ns.tolist(), samples.value.tolist(), strict=True):
                self.raw[frame.series[s].channel, t] = v
        elif isinstance(frame.body, AlarmBody):
            self.alarms += [alarm.state for alarm in frame.body.alarms]
        if not self.silent:
            asyncio.get_running_loop().call_soon(self.receipt, correlation, self.answer(frame))
        self.publications += 1
        asyncio.get_running_loop().call_soon(self.uplink.on_published, self.publications, 0)
        return self.publications

    def keep(self, key: tuple[str, int], row: tuple[Any, ...]) -> None:
        if self.points.setdefault(key, row) != row and repr(self.points[key]) != repr(row):
            self.doubles += 1

    def receipt(self, correlation: bytes | None, receipt: Receipt) -> None:
        inbound = Inbound(
            topics=[""],
            payloads=[encode_receipt(receipt)],
            packet_ids=[0],
            dups=[False],
            correlations=[correlation],
            connection=1,
            session_present=False,
        )
        self.uplink.on_messages(inbound)

    def samples(self) -> int:
        return sum(int(row[2]) for row in self.points.values()) + len(self.raw)


class FailingStore(StoreThread):
    """A store that fails as often as it is told to, before anything was written."""

    failures = 0
    full: asyncio.Event | None = None
    """Once set, the store is full until a commit has removed something; until then it takes its time."""

    async def commit(self, commit: Commit) -> Committed:
        if self.full is not None:
            await self.full.wait()
            if not commit.removed:
                raise StoreFull("no room")
            self.full = None
        if self.failures:
            self.failures -= 1
            await asyncio.sleep(0)
            raise StoreError("I/O error")
        return await super().commit(commit)


class FewHeld(ClockConfig, frozen=True):
    def __post_init__(self) -> None:
        """Fewer than a gateway may be told to hold, so that a test soon has too many."""


class Gateway:
    """The edge's parts, from a feed to a loopback, on one event loop."""

    def __init__(
        self,
        path: Path,
        executor: ThreadPoolExecutor,
        *,
        when_full: Literal["degrade", "block", "drop_oldest"],
        keep: Keep,
        window_bytes: int,
        clock: Clock | None,
        max_held: int,
    ) -> None:
        self.now_ns = T0_NS
        self.feed, self.link = Feed(), Loopback()
        config = EdgeConfig(
            gateway="g1",
            heartbeat=Duration.parse("1 min"),
            ledger=Duration.parse("1 min"),
            uplink=UplinkConfig(
                "mqtt://cloud", receipt_timeout=Duration.parse("1 min"), window_bytes=Size(window_bytes)
            ),
            store=StoreConfig(str(path), Size(8 * MIB), when_full, Duration.parse("5 ms")),
            journal=JournalConfig(Duration(keep.span_ns), Size(keep.size_bytes)),
            clock=FewHeld(max_held=max_held),
            limits=LimitsConfig(),
            status=StatusConfig(),
            source={},
        )
        history = History()
        self.recovered = recover(path, config.store.max_size, history)
        self.operators = self.recovered.operators
        self.store = FailingStore(self.recovered.store, executor)
        self.clock = clock or Clock(lambda: self.now_ns)
        parts = Parts(config, self.recovered, history, self.store, self.clock)
        self.uplink, self.registry, self.sealer = parts.uplink, parts.registry, parts.sealer
        self.uplink.link, self.link.uplink = self.link, self.uplink
        feed: Any = self.feed
        self.pump = parts.begin(config, feed)

    def balance(self) -> None:
        assert not self.operators.ledger.imbalance(self.pump.waiting()).any()

    def connect(self) -> None:
        self.link.connected = True
        self.uplink.on_connect(False)

    def totals(self) -> dict[str, int]:
        ledger = self.operators.ledger
        return {
            "produced": int(ledger.produced.sum()),
            "stored": int(ledger.stored.sum()),
            "waiting": int(self.pump.waiting().sum()),
            "rejected": int(ledger.rejected.sum()),
            "dropped": int(ledger.dropped.sum()),
        }


Story = Callable[[Gateway], Awaitable[None]]


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gateway]:
    """Run a story beside pump and uplink, at a hundred times their pace; end the pump; give the gateway."""
    for name, value in (("TICK_S", 0.01), ("TURN_S", 0.0), ("SEAL_SHUT_S", 0.02)):
        monkeypatch.setattr(pump_module, name, value)
    for name, value in (("COMMIT_GAP_S", 0.001), ("STORE_RETRY_S", 0.01), ("STORE_FULL_RETRY_S", 0.01)):
        monkeypatch.setattr(committer_module, name, value)
    monkeypatch.setattr(replay_module, "SNAPSHOT_RETRY_S", 0.01)

    def run(
        story: Story,
        *,
        when_full: str = "degrade",
        keep: Keep | None = None,
        window_bytes: int = 256 << 10,
        stop_within_s: float = 5.0,
        crash: bool = False,
        clock: Clock | None = None,
        max_held: int = 100_000,
    ) -> Gateway:
        async def told(executor: ThreadPoolExecutor) -> Gateway:
            keep_all = keep or Keep(64 * MIB, 1 << 60)
            path = tmp_path / "store" / "edge.db"
            settings: dict[str, Any] = {"when_full": when_full, "window_bytes": window_bytes, "max_held": max_held}
            gateway = Gateway(path, executor, keep=keep_all, clock=clock, **settings)
            pumping = asyncio.create_task(gateway.pump.run())
            sending = asyncio.create_task(gateway.uplink.run())
            try:
                async with asyncio.timeout(60):
                    telling = asyncio.ensure_future(story(gateway))
                    await asyncio.wait([telling, pumping], return_when=asyncio.FIRST_COMPLETED)
                    if pumping.done():
                        telling.cancel()
                        await pumping
                    await telling
                    if not crash:
                        gateway.pump.stop(stop_within_s)
                        await pumping
            finally:
                for task in (pumping, sending):
                    task.cancel()
                await asyncio.gather(pumping, sending, return_exceptions=True)
                executor.submit(gateway.recovered.store.close).result()
            return gateway

        with ThreadPoolExecutor(1) as executor:
            return asyncio.run(told(executor))

    return run


def series(gateway: Gateway, count: int, **settings: Any) -> None:
    for i in range(count):
        spec = SeriesSpec("d", f"c{i}", "q", "", window_ns=WINDOW_NS, lateness_ns=0, **settings)
        gateway.registry.resolve(spec)


def batch(count: int, times_ns: list[int], rng: np.random.Generator) -> SampleBatch:
    """A sample of each of the first `count` series at each time."""
    n = count * len(times_ns)
    return SampleBatch(
        np.tile(np.arange(count, dtype=np.int32), len(times_ns)),
        np.repeat(np.array(times_ns, np.int64), count),
        rng.normal(size=n),
        np.zeros(n, np.uint8),
    )


def given_up(gateway: Gateway, correlation: bytes | None) -> bool:
    """Whether this is a frame that was dropped, with samples."""
    row = gateway.uplink.outbox.given_up(parse_correlation(correlation or b"").seq)
    return row is not None and bool(row.custody.samples.sum())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  it is another task that gets there
        await asyncio.sleep(0.002)


def test_what_is_acknowledged_is_in_the_store_and_ends_in_the_sink(tell: Callable[..., Gateway]) -> None:
    rng = np.random.default_rng(1)

    async def story(gateway: Gateway) -> None:
        gateway.connect()
        series(gateway, 3)
        for second in range(20):
            gateway.now_ns = T0_NS + second * SECOND_NS
            gateway.feed.put(batch(3, [gateway.now_ns, gateway.now_ns + 1000], rng))
            await until(lambda: gateway.feed.acknowledged == second + 1)  # noqa: B023
            assert gateway.pump.committer.committed.block_id > 0
            gateway.balance()
        await until(lambda: gateway.link.samples() >= 3 * 2 * 19)

    gateway = tell(story)
    gateway.balance()
    assert gateway.link.doubles == 0
    assert gateway.totals() == {"produced": 120, "stored": 114, "waiting": 6, "rejected": 0, "dropped": 0}


def test_an_alarm_is_sent_with_a_commit_of_its_own(tell: Callable[..., Gateway]) -> None:
    async def story(gateway: Gateway) -> None:
        gateway.connect()
        series(gateway, 1, filters={"range": {"low": -10.0, "high": 10.0}}, off_delay_ns=0)
        gateway.pump.committer._commit_delay_s = 3600.0
        sample = SampleBatch(np.zeros(1, np.int32), np.array([T0_NS]), np.array([99.0]), np.zeros(1, np.uint8))
        gateway.feed.put(sample)
        await until(lambda: gateway.link.alarms == ["open"])
        assert gateway.feed.acknowledged == 1

    tell(story)


def test_a_store_that_fails_for_a_while_changes_nothing_but_the_time(tell: Callable[..., Gateway]) -> None:
    rng = np.random.default_rng(1)

    async def story(gateway: Gateway) -> None:
        gateway.connect()
        series(gateway, 3)
        for second in range(12):
            if second % 3 == 0:
                gateway.store.failures = 3
            gateway.now_ns = T0_NS + second * SECOND_NS
            before = gateway.feed.acknowledged
            gateway.feed.put(batch(3, [gateway.now_ns], rng))
            while gateway.feed.acknowledged == before:
                gateway.balance()
                await asyncio.sleep(0.002)
        assert gateway.pump.committer.store_error == ""

    gateway = tell(story)
    gateway.balance()
    assert gateway.feed.acknowledged == 12
    assert gateway.totals() == {"produced": 36, "stored": 33, "waiting": 3, "rejected": 0, "dropped": 0}
    assert gateway.link.samples() == 33


def test_a_store_that_never_works_again_does_not_keep_the_daemon_from_ending(tell: Callable[..., Gateway]) -> None:
    async def story(gateway: Gateway) -> None:
        series(gateway, 1)
        gateway.store.failures = 1 << 30
        gateway.feed.put(batch(1, [T0_NS], np.random.default_rng(1)))
        await until(lambda: gateway.pump.committer.store_error != "")
        assert gateway.feed.acknowledged == 0

    with pytest.raises(StoreError):
        tell(story, stop_within_s=0.05)


def test_receipts_that_come_while_the_store_is_full_make_the_room(tell: Callable[..., Gateway]) -> None:
    rng = np.random.default_rng(1)

    async def story(gateway: Gateway) -> None:
        published: list[bytes | None] = []
        gateway.link.silent = True
        gateway.link.heard = published.append
        gateway.connect()
        series(gateway, 3)
        gateway.feed.put(batch(3, [T0_NS, T0_NS + SECOND_NS], rng))
        await until(lambda: bool(published))
        gateway.store.full = asyncio.Event()
        gateway.feed.put(batch(3, [T0_NS + 2 * SECOND_NS], rng))
        await until(lambda: gateway.pump.committer._under_way.samples > 0)
        for correlation in published:
            gateway.link.receipt(correlation, Receipt())
        await until(lambda: bool(gateway.pump.committer.pending.removed))
        gateway.store.full.set()
        gateway.balance()
        await until(lambda: gateway.feed.acknowledged == 2)
        gateway.balance()
        gateway.store.full, gateway.link.silent = None, False

    gateway = tell(story, when_full="block")
    gateway.balance()


def test_what_is_merged_to_spare_the_month_is_never_out_of_a_full_store(
    tell: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policy `block`: frames that were merged leave with the commit that brings what they became, and not before."""
    rng = np.random.default_rng(1)

    async def story(gateway: Gateway) -> None:
        series(gateway, 3)
        for second in range(12):
            gateway.now_ns = T0_NS + second * SECOND_NS
            gateway.feed.put(batch(3, [gateway.now_ns], rng))
            await until(lambda: sum(r.leaf == "data" for r in gateway.uplink.outbox.held()) >= second)  # noqa: B023
        monkeypatch.setattr(room_module, "RESERVE", 1.0)  # full from here on
        gateway.uplink.stage, gateway.link.silent = Stage.SAVING, True
        gateway.connect()
        before = len(gateway.uplink.outbox.staying())
        await until(lambda: len(gateway.uplink.outbox.staying()) < before)
        await asyncio.sleep(0.1)
        gateway.balance()

    tell(story, when_full="block", crash=True)
    monkeypatch.setattr(room_module, "RESERVE", 1 / 32)

    async def look(gateway: Gateway) -> None:
        gateway.balance()
        assert gateway.totals() == {"produced": 36, "stored": 0, "waiting": 36, "rejected": 0, "dropped": 0}

    tell(look, when_full="block", crash=True)


def test_a_full_store_with_nothing_to_send_goes_on_once_a_snapshot_has_given_its_room_back(
    tell: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policy `block`: no receipt will come that would tell how much room there is by now."""
    rng = np.random.default_rng(1)

    async def story(gateway: Gateway) -> None:
        series(gateway, 3)
        gateway.connect()
        gateway.feed.put(batch(3, [T0_NS], rng))
        await until(lambda: gateway.feed.acknowledged == 1 and not len(gateway.uplink.outbox))
        usage = gateway.pump.committer.committed.usage  # as it was told while a snapshot stood beside the one before it
        committer = gateway.pump.committer
        committer.committed = committer.committed._replace(usage=usage._replace(used_bytes=usage.limit_bytes))
        gateway.feed.put(batch(3, [T0_NS + 1], rng))
        await until(lambda: gateway.feed.acknowledged == 2)
        gateway.balance()

    tell(story, when_full="block", stop_within_s=0.1)


@pytest.mark.parametrize("when_full", ["degrade", "block"])
def test_a_commit_that_needs_more_room_than_one_trim_makes_goes_once_the_journal_has_given_it(
    tell: Callable[..., Gateway], when_full: str
) -> None:
    """The link is down and frames wait: no receipt will come, but there is a journal that nothing needs any more."""
    rng = np.random.default_rng(1)
    frame_bytes = 256 << 10

    async def story(gateway: Gateway) -> None:
        replay, outbox = gateway.pump.committer.replay, gateway.uplink.outbox
        series(gateway, 250)
        for round_ in range(64):
            start_ns, gateway.now_ns = gateway.now_ns, gateway.now_ns + SECOND_NS // 10
            gateway.feed.put(batch(250, [start_ns + i * 1_000_000 for i in range(16)], rng))
            await until(lambda: gateway.feed.acknowledged > round_)  # noqa: B023
        replay._due_s = 0.0
        gateway.feed.put(batch(250, [gateway.now_ns], rng))
        await until(lambda: replay.snapshot_block >= 64)
        usage = gateway.pump.committer.committed.usage
        assert usage.journal_bytes > usage.limit_bytes / 4
        brought_bytes = usage.limit_bytes * 6 // 5 - usage.used_bytes
        rows = [
            OutboxRow(1_000_000 + i, Lane.RAW, "raw", T0_NS, bytes(8), Custody.none().pack(), frame_bytes)
            for i in range(brought_bytes // frame_bytes)
        ]
        for row in rows:
            gateway.pump.bring_back(row, rng.bytes(frame_bytes), 0)
        await until(lambda: all(outbox.find(row.seq) for row in rows))
        gateway.balance()

    tell(story, when_full=when_full, crash=True)


def test_a_failure_that_nobody_expected_ends_the_pump_and_is_not_swallowed(tell: Callable[..., Gateway]) -> None:
    async def story(gateway: Gateway) -> None:
        async def broken(_commit: Commit) -> Committed:
            raise RuntimeError("a bug")

        gateway.store.commit = broken  # type: ignore[method-assign, assignment]
        await asyncio.sleep(5)

    with pytest.raises(RuntimeError, match="a bug"):
        tell(story)


def test_receipts_move_the_account_and_refused_frames_become_dead_letters(tell: Callable[..., Gateway]) -> None:
    rng = np.random.default_rng(1)

    async def story(gateway: Gateway) -> None:
        answered = 0

        def answer(frame: Any) -> Receipt:
            nonlocal answered
            if not isinstance(frame.body, SummaryBody):
                return Receipt()
            answered += 1
            if answered == 1:
                return Receipt(refused="version")
            return Receipt(rejected=[Rejected(0, "sink", 1, "no room"), Rejected(1, "future", 1)])

        gateway.link.answer = answer
        gateway.connect()
        series(gateway, 3)
        for second in range(6):
            gateway.now_ns = T0_NS + second * SECOND_NS
            gateway.feed.put(batch(3, [gateway.now_ns], rng))
            await until(lambda: gateway.feed.acknowledged == second + 1)  # noqa: B023
            gateway.balance()
            await until(lambda: answered > 0 or second < 2)  # noqa: B023
        await until(lambda: gateway.totals()["waiting"] == 3)
        await until(lambda: len(gateway.uplink.outbox) == 0)
        letters = await gateway.store._call(gateway.recovered.store.dead_letters)
        assert {letter.reason for letter in letters} == {"refused", "sink"}
        assert all(decode(letter.payload, FrameLimits()) for letter in letters)

    gateway = tell(story)
    totals = gateway.totals()
    assert totals["produced"] == 18
    assert min(totals["rejected"], totals["stored"]) > 0
    rejected = gateway.operators.ledger.rejected.sum(axis=0)
    assert {reason for reason, n in zip(REJECT_REASONS, rejected, strict=True) if n} == {"refused", "sink", "future"}
    gateway.balance()


@pytest.mark.parametrize("when_full", ["degrade", "drop_oldest", "block"])
def test_a_long_outage_in_a_small_store(tell: Callable[..., Gateway], tmp_path: Path, when_full: str) -> None:
    """250 series fill 8 MiB several times over; then the link is back and everything drains."""
    rounds, per_round, count = 120, 16, 250
    rng = np.random.default_rng(1)
    sizes: list[int] = []
    sent = rounds * per_round * count

    async def story(gateway: Gateway) -> None:
        series(gateway, count)
        blocked = 0
        for round_ in range(rounds):
            start_ns = T0_NS + round_ * per_round * WINDOW_NS // 2
            gateway.now_ns = start_ns + per_round * WINDOW_NS // 2
            before = gateway.feed.acknowledged
            gateway.feed.put(batch(count, [start_ns + i * WINDOW_NS // 2 for i in range(per_round)], rng))
            for _ in range(100):
                if gateway.feed.acknowledged > before:
                    break
                await asyncio.sleep(0.002)
            else:
                blocked += 1
            gateway.balance()
            sizes.append(sum(p.stat().st_size for p in (tmp_path / "store").iterdir()))
            if blocked > 2:
                gateway.feed.batches.clear()
                break
        if when_full == "block":
            assert blocked, "the store was never full"
            assert gateway.pump.room.blocked
        gateway.connect()
        await until(lambda: not gateway.uplink.outbox.has_held())
        await until(lambda: gateway.totals()["waiting"] <= 2 * count)
        gateway.balance()
        assert not gateway.pump.room.blocked

    gateway = tell(story, when_full=when_full)
    gateway.balance()
    totals = gateway.totals()
    spans = [row[1] for row in gateway.link.points.values()]
    assert max(sizes) <= 8 * MIB
    assert gateway.link.doubles == 0
    assert gateway.link.samples() == totals["stored"]
    assert totals["produced"] == totals["stored"] + totals["waiting"] + totals["dropped"]
    if when_full == "block":
        assert totals["produced"] == gateway.feed.acknowledged * per_round * count < sent
    else:
        assert totals["produced"] == sent
        assert gateway.feed.acknowledged == rounds
    if when_full == "drop_oldest":
        assert gateway.operators.ledger.dropped.sum(axis=0)[DROP_POLICIES.index("drop_oldest")] == totals["dropped"] > 0
    else:
        assert totals["dropped"] == 0
    assert (max(spans) > WINDOW_NS) == (when_full == "degrade")
    assert (gateway.pump.room.merged_windows > 0) == (when_full == "degrade")


def test_frames_dropped_after_they_were_published_are_unconfirmed_until_their_receipts_come(
    tell: Callable[..., Gateway],
) -> None:
    """The cloud has them and its receipts are late: they go as `unconfirmed`, and end as `stored`."""
    rng = np.random.default_rng(1)

    async def story(gateway: Gateway) -> None:
        late: list[bytes | None] = []
        gateway.link.silent = True
        gateway.link.heard = late.append
        gateway.connect()
        series(gateway, 250)
        while sum(given_up(gateway, correlation) for correlation in late) < 2:
            start_ns, gateway.now_ns = gateway.now_ns, gateway.now_ns + 8 * WINDOW_NS
            before = gateway.feed.acknowledged
            gateway.feed.put(batch(250, [start_ns + i * WINDOW_NS // 2 for i in range(16)], rng))
            await until(lambda: gateway.feed.acknowledged > before)  # noqa: B023
            gateway.balance()
        dropped = gateway.totals()["dropped"]
        refused, *stored = [correlation for correlation in late if given_up(gateway, correlation)]
        gateway.link.receipt(stored[0], Receipt())
        gateway.link.receipt(stored[0], Receipt())
        await until(lambda: gateway.totals()["dropped"] < dropped)
        gateway.balance()
        gateway.link.receipt(refused, Receipt(refused="malformed"))
        gateway.link.silent = False
        for correlation in late:
            gateway.link.receipt(correlation, Receipt())
            gateway.balance()
        await until(lambda: len(gateway.uplink.outbox) == 0 and not gateway.totals()["dropped"])

    gateway = tell(story, when_full="drop_oldest", window_bytes=64 * MIB)
    gateway.balance()
    totals = gateway.totals()
    assert totals["stored"] + totals["rejected"] + totals["waiting"] == totals["produced"]
    assert totals["rejected"] > 0


def test_the_journal_is_kept_within_its_span(tell: Callable[..., Gateway]) -> None:
    rng = np.random.default_rng(1)

    async def story(gateway: Gateway) -> None:
        gateway.connect()
        series(gateway, 2)
        gateway.pump.committer.replay._due_s = 0.0
        for second in range(40):
            gateway.now_ns = T0_NS + second * 10 * SECOND_NS
            gateway.feed.put(batch(2, [gateway.now_ns], rng))
            await until(lambda: gateway.feed.acknowledged == second + 1)  # noqa: B023
            if second == 20:
                gateway.pump.committer.replay._due_s = 0.0
                await until(lambda: gateway.pump.committer.replay.snapshot_block > 20)
        usage = gateway.pump.committer.committed.usage
        assert gateway.now_ns - usage.journal_from_ns <= 220 * SECOND_NS
        assert gateway.pump.committer.committed.journal_floor_ns > T0_NS

    tell(story, keep=Keep(64 * MIB, 100 * SECOND_NS))


def test_a_restart_goes_on_where_the_last_commit_was(tell: Callable[..., Gateway]) -> None:
    rng = np.random.default_rng(1)
    link = Loopback()

    def step(first: int, last: int) -> Story:
        async def story(gateway: Gateway) -> None:
            gateway.link.points, gateway.link.raw = link.points, link.raw
            gateway.connect()
            series(gateway, 3)
            for second in range(first, last):
                gateway.now_ns = T0_NS + second * SECOND_NS
                before = gateway.feed.acknowledged
                gateway.feed.put(batch(3, [gateway.now_ns + i * 250_000_000 for i in range(3)], rng))
                await until(lambda: gateway.feed.acknowledged > before)  # noqa: B023
            gateway.balance()

        return story

    for crash, (first, last) in ((True, (0, 4)), (True, (4, 5)), (False, (5, 9)), (True, (9, 12)), (False, (12, 20))):
        gateway = tell(step(first, last), crash=crash)
        gateway.balance()
    assert gateway.totals() == {"produced": 180, "stored": 171, "waiting": 9, "rejected": 0, "dropped": 0}
    assert {row[2] for row in link.points.values()} == {3}
    assert link.doubles == 0


def test_windows_that_began_before_the_store_was_born_go_raw(tell: Callable[..., Gateway]) -> None:
    rng = np.random.default_rng(1)

    async def story(gateway: Gateway) -> None:
        gateway.pump._entry._born_ns = T0_NS + 10 * SECOND_NS + 1
        gateway.connect()
        series(gateway, 1, max_ahead_ns=0)
        gateway.now_ns = T0_NS + 11 * SECOND_NS + 1
        times = [T0_NS + 9 * SECOND_NS, T0_NS + 10 * SECOND_NS + 2, gateway.now_ns - 1, gateway.now_ns]
        gateway.feed.put(batch(1, times, rng))
        await until(lambda: gateway.feed.acknowledged == 1)
        gateway.now_ns += 10 * SECOND_NS
        gateway.feed.put(batch(1, [gateway.now_ns], rng))
        await until(lambda: gateway.link.samples() == 4)

    gateway = tell(story)
    gateway.balance()
    assert sorted(time_ns for _, time_ns in gateway.link.raw) == [T0_NS + 9 * SECOND_NS, T0_NS + 10 * SECOND_NS + 2]
    assert list(gateway.link.points) == [("c0", T0_NS + 11 * SECOND_NS)]


def test_lane_of_frames_after_a_restart_is_the_one_they_had(tell: Callable[..., Gateway]) -> None:
    """Live frames made with the commit that turns the backlog over are live, in memory and in the store."""
    rng = np.random.default_rng(1)

    async def story(gateway: Gateway) -> None:
        series(gateway, 3)
        gateway.link.silent = True
        for second in range(6):
            gateway.now_ns = T0_NS + second * SECOND_NS
            gateway.feed.put(batch(3, [gateway.now_ns], rng))
            await until(lambda: gateway.feed.acknowledged == second + 1)  # noqa: B023
            if second == 3:
                gateway.connect()
        outbox, store = gateway.uplink.outbox, gateway.recovered.store

        def published() -> dict[int, Lane]:
            return {flight.row.seq: flight.row.lane for flight in outbox.due(float("inf"))}

        await until(lambda: {Lane.BACKFILL, Lane.LIVE} <= set(published().values()))
        told = published()
        rows = await gateway.store._call(store.outbox)
        limits = await gateway.store._call(store.send_limits)
        lanes = {row.seq: row.lane for row in rows}
        for seq, lane in told.items():
            assert lanes[seq] == lane
            assert seq <= limits[lane]

    tell(story, crash=True)
