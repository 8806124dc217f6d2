"""One configuration after the other, over the daemon's own parts: what is under way when a pump hands over.

On virtual time, so that what comes while a commit is written comes then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from devices.model import SECOND_NS, SampleBatch, SeriesSpec
from devices.quantities import Duration, Rate, Size
from devices.wire.frame import Frame, SummaryBody
from devices.wire.receipt import Receipt
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
from edge.custody import Commit, Committed
from edge.letters import Letters
from edge.parts import History, Parts
from edge.recovery import recover
from edge.storethread import StoreThread
from simulators.virtual import Thread, VirtualLoop
from tests.unit.test_pump import T0_NS, Feed, Loopback

WINDOW_S = 10
UPLINK = UplinkConfig("mqtt://cloud", receipt_timeout=Duration.parse("1 h"))


def configured(path: Path) -> EdgeConfig:
    return EdgeConfig(
        gateway="g1",
        uplink=UPLINK,
        store=StoreConfig(str(path), Size.parse("8 MiB")),
        journal=JournalConfig(),
        clock=ClockConfig(),
        limits=LimitsConfig(),
        status=StatusConfig(),
        source={},
    )


class HeldStore(StoreThread):
    """A store whose commits wait while `held` is clear."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.held, self.waiting = asyncio.Event(), asyncio.Event()
        self.held.set()

    async def commit(self, commit: Commit) -> Committed:
        self.waiting.set()
        await self.held.wait()
        return await super().commit(commit)


class Link(Loopback):
    """One that is open, and writes down what was published."""

    def __init__(self) -> None:
        super().__init__()
        self.connected = True
        self.published: list[bytes | None] = []
        self.heard = self.published.append


class Gateway:
    """The daemon's parts, with a feed for an intake and a loopback for a link."""

    def __init__(self, path: Path) -> None:
        def elapsed_ns() -> int:
            return round(asyncio.get_running_loop().time() * 1e9)

        self.config, history = configured(path), History()
        recovered = recover(path, self.config.store.max_size, history)
        self.operators, self.file = recovered.operators, recovered.store
        thread: Any = Thread(lambda _: True, lambda: 0.001)
        self.store = HeldStore(self.file, thread)
        self.parts = Parts(self.config, recovered, history, self.store, Clock(lambda: T0_NS + elapsed_ns(), elapsed_ns))
        self.uplink = self.parts.uplink
        feed: Any = Feed()
        self.feed = feed
        self.letters = Letters(self.store, self.parts.sealer, self.feed, self.uplink)
        self.parts.registry.resolve(SeriesSpec("d", "c", "q", "", window_ns=WINDOW_S * SECOND_NS, lateness_ns=0))
        self.relink()
        self.begin()

    def relink(self) -> None:
        """A session whose link is open at once."""
        self.link = Link()
        self.link.uplink = self.uplink
        self.uplink.relink(self.link)
        self.uplink.on_connect(False)

    def begin(self, **uplink: Any) -> None:
        """Go on with these settings of the uplink."""
        told = msgspec.structs.replace(UPLINK, **uplink)
        self.config = msgspec.structs.replace(self.config, uplink=told)
        self.pump = self.letters.pump = self.parts.begin(self.config, self.feed)
        self.pumping = asyncio.ensure_future(self.pump.run())

    async def reload(self, **uplink: Any) -> None:
        self.pump.hand_over()
        await self.pumping
        self.begin(**uplink)
        await asyncio.sleep(1)

    async def last_commit(self) -> None:
        """The pump hands over, and its last commit waits for the disk."""
        self.store.held.clear()
        self.store.waiting.clear()
        self.pump.hand_over()
        await self.store.waiting.wait()

    async def hand_over_ends(self) -> None:
        self.store.held.set()
        await self.pumping

    async def read(self, seconds: int) -> None:
        """A sample each second."""
        for _ in range(seconds):
            now_ns = T0_NS + round(asyncio.get_running_loop().time() * 1e9)
            self.feed.put(SampleBatch(np.zeros(1, np.int32), np.array([now_ns]), np.ones(1), np.zeros(1, np.uint8)))
            await asyncio.sleep(1)

    def balance(self) -> None:
        assert not self.operators.ledger.imbalance(self.pump.waiting()).any()


def tell(path: Path, story: Callable[[Gateway], Coroutine[Any, Any, None]]) -> None:
    async def told() -> None:
        gateway = Gateway(path / "edge.db")
        sending = asyncio.ensure_future(gateway.uplink.run())
        await story(gateway)
        gateway.balance()
        gateway.pump.stop(0.0)
        await gateway.pumping
        sending.cancel()
        gateway.file.close()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(told())


@pytest.mark.parametrize("when", ["before", "during the last commit", "between two pumps", "after"])
def test_receipts_that_come_around_a_hand_over_count_and_nothing_goes_twice(tmp_path: Path, when: str) -> None:
    async def story(gateway: Gateway) -> None:
        link = gateway.link
        link.silent = True
        await gateway.read(6 * WINDOW_S)
        await asyncio.sleep(60)
        under_way = list(link.published)
        assert sum(row[2] for row in link.points.values()) == 6 * WINDOW_S

        def receipt(now: str) -> None:
            if now == when:
                link.silent = False
                for correlation in under_way:
                    link.receipt(correlation, Receipt())

        receipt("before")
        await gateway.last_commit()
        receipt("during the last commit")
        await gateway.hand_over_ends()
        receipt("between two pumps")
        gateway.begin()
        receipt("after")
        await asyncio.sleep(60)
        gateway.balance()
        assert int(gateway.operators.ledger.stored.sum()) == 6 * WINDOW_S
        assert len(set(link.published)) == len(link.published) > len(under_way)
        assert link.doubles == 0

    tell(tmp_path, story)


def test_a_frame_that_is_replayed_during_a_hand_over_goes_with_the_next_pump(tmp_path: Path) -> None:
    def refused(frame: Frame) -> Receipt:
        return Receipt(refused="quota") if isinstance(frame.body, SummaryBody) else Receipt()

    async def story(gateway: Gateway) -> None:
        gateway.link.answer = refused
        await gateway.read(3)
        await asyncio.sleep(60)
        letters = await gateway.letters.list()
        assert [letter["reason"] for letter in letters] == ["refused"]
        gateway.link.answer = lambda _: Receipt()
        seen = len(gateway.link.published)
        await gateway.last_commit()
        assert await gateway.letters.replay(letters[0]["id"]) == ""
        assert await gateway.letters.replay(letters[0]["id"]) == "it is being replayed already"
        await gateway.hand_over_ends()
        assert await gateway.letters.list() == letters
        gateway.begin()
        await asyncio.sleep(60)
        assert await gateway.letters.list() == []
        assert len(set(gateway.link.published[seen:]) & set(gateway.link.published[:seen])) == 1

    tell(tmp_path, story)


def test_a_reload_leaves_the_month_its_count_and_its_course(tmp_path: Path) -> None:
    """100 B/s are 260 MB a month, which is known after ten minutes."""

    async def story(gateway: Gateway) -> None:
        async def pass_bytes() -> None:
            while True:
                await asyncio.sleep(1)
                gateway.link.bytes_out += 100

        passing = asyncio.ensure_future(pass_bytes())
        uplink = gateway.uplink
        await gateway.reload(max_per_month=Size.parse("1 MB"))
        await asyncio.sleep(720)
        for wanted, stage in (
            ({"max_per_month": Size.parse("1 MB")}, Stage.SAVING),
            ({"max_per_month": Size.parse("1 MB"), "max_rate": Rate.parse("32 KiB/s")}, Stage.SAVING),
            ({"max_per_month": Size.parse("9 GB")}, Stage.FREE),
            ({"max_per_month": Size.parse("2 MB")}, Stage.SAVING),
            ({"max_per_month": Size.parse("9 GB"), "month_starts": 1}, Stage.FREE),
        ):
            await gateway.reload(**wanted)
            assert uplink.stage == stage
        assert uplink.month is not None
        spent = uplink.month.spent_bytes
        assert 72_000 < spent < 74_000

        gateway.relink()
        await gateway.reload(max_per_month=Size.parse("9 GB"))
        assert spent < uplink.month.spent_bytes < spent + 1000
        await gateway.reload()
        assert uplink.month is None
        await asyncio.sleep(600)
        await gateway.reload(max_per_month=Size.parse("9 GB"))
        assert spent < uplink.month.spent_bytes < spent + 2000
        passing.cancel()

    tell(tmp_path, story)


def test_what_waited_for_the_month_goes_once_a_reload_has_ended_its_limit(tmp_path: Path) -> None:
    async def story(gateway: Gateway) -> None:
        await gateway.reload(max_per_month=Size.parse("1 MB"))
        gateway.link.bytes_out += 950_000
        await asyncio.sleep(60)
        assert gateway.uplink.stage == Stage.ALARMS_ONLY
        await gateway.read(3 * WINDOW_S)
        await asyncio.sleep(120)
        assert gateway.link.samples() == 0
        await gateway.reload()
        await asyncio.sleep(60)
        assert gateway.link.samples() == 3 * WINDOW_S

    tell(tmp_path, story)


def test_a_link_that_stays_goes_at_the_pace_of_the_new_configuration(tmp_path: Path) -> None:
    async def story(gateway: Gateway) -> None:
        gateway.link.connected = False
        await gateway.read(600)
        gateway.link.connected = True
        gateway.uplink.on_connect(False)
        await gateway.reload(max_rate=Rate.parse("128 B/s"))
        await asyncio.sleep(5)
        assert len(gateway.uplink.outbox) > 5
        await gateway.reload(window_bytes=Size.parse("256 KiB"))
        await asyncio.sleep(5)
        assert not len(gateway.uplink.outbox)

    tell(tmp_path, story)
