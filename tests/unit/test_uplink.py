"""The uplink: what is published and when, which receipts count, and what happens when the link goes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from devices.errors import LinkLost, StoreError
from devices.model import Lane
from devices.wire.receipt import Receipt, encode_receipt
from devices.wire.receive import Inbound
from devices.wire.topics import correlation, digest
from edge import twins
from edge import uplink as uplink_module
from edge.custody import Custody, OutboxRow
from edge.outbox import Outbox
from edge.uplink import PUBACK_NOBODY_LISTENS, Uplink

EPOCH = 77
GATEWAY = "g1"


class FakeLink:
    """A session that writes down what is published."""

    def __init__(self) -> None:
        self.connected = True
        self.bytes_in = self.bytes_out = 0
        self.broker_max_packet_bytes = 1 << 28
        self.published: list[tuple[str, bytes, bytes | None]] = []

    def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> int | None:
        if not self.connected:
            return None
        self.published.append((topic, payload, correlation))
        return len(self.published)

    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in self.published]


class World:
    """An uplink over a link, and the frames that a store would hold."""

    def __init__(self, *, timeout_s: float = 100.0, rate: float = 0.0, window_bytes: int = 1 << 20) -> None:
        self.link = FakeLink()
        self.stored: dict[int, bytes] = {}
        self.store_error: StoreError | None = None
        self.uplink = Uplink(
            GATEWAY,
            EPOCH,
            Outbox([], {}, window_bytes),
            self.read,
            receipt_timeout_s=timeout_s,
            max_rate_bytes_per_s=rate,
            random_source=random.Random(1),
        )
        self.uplink.link = self.link

    async def read(self, seqs: list[int]) -> dict[int, bytes]:
        if self.store_error is not None:
            raise self.store_error
        return {seq: self.stored[seq] for seq in seqs if seq in self.stored}

    def commit(self, *frames: tuple[int, bytes], lane: Lane = Lane.LIVE, removed: tuple[int, ...] = ()) -> None:
        """As the pump does: plan, make durable, tell."""
        leaf = "alarm" if lane == Lane.ALARM else "data"
        custody = Custody.none().pack()
        rows = [(OutboxRow(seq, lane, leaf, 0, digest(f), custody, len(f)), f) for seq, f in frames]
        self.stored |= dict(frames)
        to_backfill, self.uplink.reopened = self.uplink.reopened, False
        limits = self.uplink.plan_limits([row for row, _ in rows], to_backfill)
        self.uplink.committed(rows, limits, list(removed), to_backfill)

    def receive(self, *receipts: tuple[bytes | None, bytes]) -> None:
        n = len(receipts)
        self.uplink.on_messages(
            Inbound(
                topics=["forebay/v1/g1/receipt"] * n,
                payloads=[payload for _, payload in receipts],
                packet_ids=[0] * n,
                dups=[False] * n,
                correlations=[data for data, _ in receipts],
                connection=1,
                session_present=False,
            )
        )


STORED = encode_receipt(Receipt())


def run(story: Callable[[World], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Tell a story beside a running uplink."""

    async def told() -> None:
        world = World(**options)
        task = asyncio.create_task(world.uplink.run())
        try:
            async with asyncio.timeout(10):
                await story(world)
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(told())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  it is another task that gets there
        await asyncio.sleep(0.001)


async def quiet() -> None:
    """Let everything happen that would happen."""
    for _ in range(20):
        await asyncio.sleep(0.001)


def test_a_frame_is_published_with_its_identity_and_goes_after_its_receipt() -> None:
    async def story(world: World) -> None:
        world.commit((5, b"frame"))
        await until(lambda: bool(world.link.published))
        assert world.link.published == [("forebay/v1/g1/data", b"frame", correlation(EPOCH, 5, b"frame"))]
        world.receive((correlation(EPOCH, 5, b"frame"), STORED))
        (answer,) = world.uplink.take_answers()
        assert (answer.row.seq, answer.receipt) == (5, Receipt())
        assert world.uplink.take_answers() == []
        world.commit(removed=(5,))
        assert len(world.uplink.outbox) == 0

    run(story)


def test_a_receipt_counts_only_if_epoch_seq_and_digest_are_those_of_a_frame_that_is_here() -> None:
    async def story(world: World) -> None:
        world.commit((5, b"frame"))
        world.receive(
            (correlation(EPOCH + 1, 5, b"frame"), STORED),
            (correlation(EPOCH, 6, b"frame"), STORED),
            (correlation(EPOCH, 5, b"another"), STORED),
            (correlation(EPOCH, 5, b"frame")[:-1], STORED),
            (None, STORED),
            (correlation(EPOCH, 5, b"frame"), b"no receipt"),
        )
        assert world.uplink.take_answers() == []
        assert not world.uplink.answered.is_set() or world.uplink.reopened
        assert world.uplink.outbox.find(5) is not None

    run(story)


def test_a_receipt_that_comes_twice_counts_once() -> None:
    async def story(world: World) -> None:
        world.commit((5, b"frame"))
        told = correlation(EPOCH, 5, b"frame"), STORED
        world.receive(told, told)
        assert len(world.uplink.take_answers()) == 1
        world.receive(told)  # before the commit that removes it
        assert world.uplink.take_answers() == []
        world.commit(removed=(5,))
        world.receive(told)  # and after
        assert world.uplink.take_answers() == []
        assert world.uplink.frames_receipted == 1

    run(story)


def test_a_frame_without_a_receipt_is_sent_again_and_one_with_a_receipt_is_not() -> None:
    async def story(world: World) -> None:
        world.commit((1, b"one"), (2, b"two"))
        await until(lambda: len(world.link.published) == 2)
        world.receive((correlation(EPOCH, 2, b"two"), STORED))
        await until(lambda: world.link.payloads().count(b"one") >= 3)
        assert world.link.payloads().count(b"two") == 1

    run(story, timeout_s=0.01)


def test_an_answered_frame_that_is_still_in_the_store_does_not_keep_the_uplink_busy() -> None:
    async def story(world: World) -> None:
        world.commit((1, b"one"))
        await until(lambda: bool(world.link.published))
        world.receive((correlation(EPOCH, 1, b"one"), STORED))
        world.uplink.on_connect(False)
        await quiet()
        assert world.uplink.outbox.next_due_s() == float("inf")
        assert len(world.link.published) == 1

    run(story)


def test_while_the_link_is_down_frames_are_held_and_after_it_new_ones_go_before_the_backlog() -> None:
    async def story(world: World) -> None:
        world.link.connected = False
        world.uplink.on_disconnect(LinkLost("gone"))
        world.commit((1, b"old"), (2, b"older"))
        world.commit((3, b"alarm"), lane=Lane.ALARM)
        await quiet()
        assert world.link.published == []
        assert world.uplink.outbox.has_held("data")
        world.link.connected = True
        world.uplink.on_connect(False)
        assert world.uplink.answered.is_set()
        world.commit((4, b"new"))
        await until(lambda: len(world.link.published) == 3)
        assert world.link.payloads() == [b"alarm", b"new", b"old"]

    run(story)


def test_what_was_on_its_way_when_the_link_went_is_sent_again() -> None:
    async def story(world: World) -> None:
        world.commit((1, b"one"))
        await until(lambda: len(world.link.published) == 1)
        world.link.connected = False
        world.uplink.on_disconnect(LinkLost("gone"))
        await quiet()
        assert len(world.link.published) == 1
        world.link.connected = True
        world.uplink.on_connect(False)
        await until(lambda: len(world.link.published) == 2)

    run(story)


def test_while_nobody_listens_one_frame_is_tried_and_all_are_sent_once_somebody_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uplink_module, "NOBODY_LISTENS_S", (0.02, 0.04))

    async def story(world: World) -> None:
        world.commit((1, b"a long frame"), (2, b"short"))
        await until(lambda: len(world.link.published) == 2)
        for mid in (1, 2):
            world.uplink.on_published(mid, PUBACK_NOBODY_LISTENS)
        assert (world.uplink.nobody_listens, world.uplink.is_open) == (True, False)
        world.commit((3, b"three"))
        for mid in (3, 4, 5):
            await until(lambda mid=mid: len(world.link.published) == mid)  # type: ignore[misc]
            assert world.link.payloads()[-1] == b"short"
            world.uplink.on_published(mid, PUBACK_NOBODY_LISTENS)
        assert world.uplink.outbox.has_held("data")
        await until(lambda: len(world.link.published) == 6)
        world.uplink.on_published(6, 0)
        assert (world.uplink.is_open, world.uplink.reopened) == (True, True)
        world.commit((4, b"new"))
        await until(lambda: {b"a long frame", b"three", b"new"} <= set(world.link.payloads()[6:]))

    run(story)


def test_a_broker_that_refuses_is_told_and_the_frame_kept() -> None:
    async def story(world: World) -> None:
        world.commit((1, b"one"))
        await until(lambda: len(world.link.published) == 1)
        world.uplink.on_published(1, 0x87)
        assert "0x87" in world.uplink.refusal
        assert world.uplink.outbox.find(1) is not None

    run(story)


def test_a_puback_frees_nothing() -> None:
    async def story(world: World) -> None:
        world.commit((1, b"one"))
        await until(lambda: len(world.link.published) == 1)
        world.uplink.on_published(1, 0)
        world.uplink.on_published(999, PUBACK_NOBODY_LISTENS)
        await quiet()
        assert world.uplink.take_answers() == []
        assert world.uplink.is_open
        assert len(world.uplink.outbox) == 1

    run(story)


def test_an_alarm_does_not_wait_for_the_budget() -> None:
    async def story(world: World) -> None:
        world.commit((1, b"x" * 1000))
        await until(lambda: len(world.link.published) == 1)
        world.commit((2, b"y" * 1000))
        world.commit((3, b"alarm"), lane=Lane.ALARM)
        await until(lambda: len(world.link.published) == 2)
        assert world.link.payloads()[-1] == b"alarm"

    run(story, rate=1000.0)


def test_a_store_that_cannot_be_read_for_a_while_does_not_end_the_uplink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink_module, "STORE_RETRY_S", 0.01)
    monkeypatch.setattr(uplink_module, "CACHE_BYTES", 0)

    async def story(world: World) -> None:
        world.store_error = StoreError("I/O error")
        world.commit((1, b"one"))
        await quiet()
        assert world.link.published == []
        world.store_error = None
        await until(lambda: world.link.payloads() == [b"one"])

    run(story)


def test_receipts_let_the_next_of_a_window_go_with_the_commit_that_removes_them() -> None:
    async def story(world: World) -> None:
        world.commit(*((seq, b"%03d" % seq * 100) for seq in range(1, 8)))
        await until(lambda: len(world.link.published) == 3)
        for seq in (1, 2, 3):
            world.receive((correlation(EPOCH, seq, b"%03d" % seq * 100), STORED))
        world.uplink.take_answers()
        world.commit(removed=(1, 2, 3))
        await until(lambda: len(world.link.published) == 6)

    run(story, window_bytes=1000)


def test_an_alarm_passes_the_frames_that_the_broker_has_not_taken() -> None:
    async def story(world: World) -> None:
        large = {seq: bytes([seq]) * 10_000 for seq in range(1, 6)}
        world.commit(*large.items())
        await until(lambda: len(world.link.published) == 1)
        await quiet()
        world.commit((9, b"alarm"), lane=Lane.ALARM)
        await until(lambda: len(world.link.published) == 2)
        for mid in range(1, 6):
            world.uplink.on_published(mid, 0)
            await quiet()
        await until(lambda: len(world.link.published) == 6)
        assert world.link.payloads() == [large[1], b"alarm", *(large[seq] for seq in range(2, 6))]

    run(story)


@pytest.mark.parametrize(
    ("epoch", "frame"), [(EPOCH + 1, b"any"), (EPOCH, b"another frame under this number")], ids=["epoch", "digest"]
)
def test_receipts_for_frames_of_another_gateway_of_our_name_are_told(
    epoch: int, frame: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(twins, "GAP_S", 0.0)

    async def story(world: World) -> None:
        world.commit((1, b"one"), (2, b"two"), (3, b"three"))
        await until(lambda: len(world.link.published) == 3)
        for seq in (1, 2, 3):
            assert not world.uplink.twins.sentence(asyncio.get_running_loop().time())
            world.receive((correlation(epoch, seq, frame), STORED))
        assert "another gateway is called g1" in world.uplink.twins.sentence(asyncio.get_running_loop().time())
        assert world.uplink.take_answers() == []

    run(story)
    assert caplog.text.count("another gateway is called g1") == 1


def test_a_second_receipt_for_a_frame_of_ours_is_no_sign_of_another_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "GAP_S", 0.0)

    async def story(world: World) -> None:
        for seq in (1, 2, 3, 4):
            world.commit((seq, b"one"))
            await until(lambda seq=seq: len(world.link.published) == seq)  # type: ignore[misc]
            world.receive(*[(correlation(EPOCH, seq, b"one"), STORED)] * 2)
            world.commit(removed=(seq,))
            world.receive((correlation(EPOCH, seq, b"one"), STORED))
        assert not world.uplink.twins.sentence(asyncio.get_running_loop().time())

    run(story)
