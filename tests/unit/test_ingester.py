"""The ingester between a link and a sink that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

import cloud.ingester
from cloud.config import Limits
from cloud.ingester import Ingester
from cloud.metrics import IngestMetrics
from cloud.patience import PATIENCE, backoff_s
from devices.errors import BadLines, BatchTooLarge, LinkLost, SinkBusy, SinkRefused
from devices.model import CHANGE_DTYPE, Alarm, Lane
from devices.quantities import Duration, Size
from devices.wire import telemetry_pb2 as pb
from devices.wire.frame import AlarmBody, BodyKind, ChangeBody, Frame, Header, Heartbeat, WireSeries, encode
from devices.wire.receipt import Receipt, Rejected, decode_receipt
from devices.wire.receive import Inbound
from devices.wire.topics import correlation, topic

NOW = 1_763_980_000_000_000_000
QUICK = Limits(retry_most=Duration.parse("1 ms"))
TABLE = [WireSeries("d", "a", "temperature", ""), WireSeries("d", "b", "pressure", "")]


class FakeLink:
    """Writes down what it is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.connected = True

    def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> int | None:
        self.events.append(("receipt", topic, correlation, decode_receipt(payload)))
        return 1 if self.connected else None

    def acknowledge(self, packet_ids: Sequence[int], connection: int) -> None:
        self.events.append(("puback", list(packet_ids), connection))

    def pause(self) -> None:
        self.events.append(("pause",))

    def resume(self) -> None:
        self.events.append(("resume",))

    def told(self, kind: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == kind]

    @property
    def receipts(self) -> list[Receipt]:
        return [receipt for _, _, receipt in self.told("receipt")]

    @property
    def acknowledged(self) -> list[int]:
        return [packet_id for ids, _ in self.told("puback") for packet_id in ids]


class FakeSink:
    """Asks `answer` about each body; a body is stored when that returns."""

    Options: ClassVar[type[msgspec.Struct]] = msgspec.Struct

    def __init__(self, answer: Callable[[bytes], Awaitable[None]] | None = None) -> None:
        self.stored: set[bytes] = set()
        self.bodies: list[bytes] = []
        self._answer = answer

    async def open(self) -> None:
        pass

    async def write(self, lines: bytes) -> None:
        self.bodies.append(lines)
        if self._answer is not None:
            await self._answer(lines)
        self.stored |= set(lines.split(b"\n")[:-1])

    async def close(self) -> None:
        pass


class Stand:
    """An ingester whose link and sink are fakes."""

    def __init__(self, sink: FakeSink, limits: Limits = QUICK, now_ns: int = NOW) -> None:
        self.link, self.sink, self.metrics = FakeLink(), sink, IngestMetrics()
        self.ingester = Ingester(sink, limits, self.metrics, lambda: now_ns, lambda: 0.5)
        self.ingester.link = self.link
        self._ids = iter(range(1, 1000))

    def receive(self, *messages: tuple[str, bytes, bytes | None], connection: int = 1) -> None:
        inbound = Inbound(connection, False)
        for name, payload, data in messages:
            inbound.topics.append(name)
            inbound.payloads.append(payload)
            inbound.packet_ids.append(next(self._ids))
            inbound.dups.append(False)
            inbound.correlations.append(data)
        self.ingester.on_messages(inbound)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"forebay_ingest_{name}", labels) or 0.0


def run(stand: Stand, story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        writing = asyncio.create_task(stand.ingester.run())
        try:
            async with asyncio.timeout(10):
                await story()
        finally:
            writing.cancel()
            await asyncio.wait([writing])

    asyncio.run(whole())


def changes(*times: int, series: int = 0) -> ChangeBody:
    rows = np.zeros(len(times), CHANGE_DTYPE)
    rows["series"], rows["time_ns"], rows["value"] = series, times, 1.0
    return ChangeBody(rows)


def message(
    body: BodyKind, seq: int = 1, *, leaf: str = "data", gateway: str = "g1", under: str = "g1"
) -> tuple[str, bytes, bytes | None]:
    payload = encode(Frame(Header(gateway, 7, seq, Lane.LIVE, NOW), TABLE, body))
    return topic(under, leaf), payload, correlation(7, seq, payload)


def alarm(time_ns: int = NOW) -> AlarmBody:
    return AlarmBody([Alarm("i", 0, "range", "open", "info", time_ns, time_ns, 9.0, 0.0, 5.0, 2.0, "too high")])


async def until(ready: Callable[[], bool]) -> None:
    while not ready():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def test_the_receipt_comes_after_the_sinks_answer_and_the_puback_after_the_receipt() -> None:
    answered = asyncio.Event()

    async def answer(_: bytes) -> None:
        await answered.wait()

    stand = Stand(FakeSink(answer))
    sent = message(changes(NOW))

    async def story() -> None:
        stand.receive(sent)
        await until(lambda: bool(stand.sink.bodies))
        await asyncio.sleep(0.01)
        assert stand.link.events == []
        answered.set()
        await stand.ingester.drain()
        assert [event for event in stand.link.events if event != ("pause",)] == [
            ("receipt", "forebay/v1/g1/receipt", sent[2], Receipt()),
            ("puback", [1], 1),
        ]

    run(stand, story)
    assert stand.count("stored_frames_total", leaf="data") == 1


def test_pubacks_go_in_the_order_of_receipt_though_later_frames_are_stored_first() -> None:
    first = asyncio.Event()

    async def answer(body: bytes) -> None:
        if b"temperature" in body:
            await first.wait()

    stand = Stand(FakeSink(answer))

    async def story() -> None:
        stand.receive(message(changes(NOW), 1))
        await until(lambda: bool(stand.sink.bodies))
        stand.receive(message(changes(NOW, series=1), 2), message(alarm(), 3, leaf="alarm"))
        await until(lambda: len(stand.link.receipts) == 2)
        assert stand.link.acknowledged == []
        first.set()
        await stand.ingester.drain()
        assert stand.link.acknowledged == [1, 2, 3]

    run(stand, story)


def test_an_alarm_is_stored_while_all_other_writes_hang() -> None:
    async def answer(body: bytes) -> None:
        if not body.startswith(b"alarm"):
            await asyncio.Event().wait()

    stand = Stand(FakeSink(answer))

    async def story() -> None:
        stand.receive(*(message(changes(NOW + n), n + 1) for n in range(20)))
        await until(lambda: len(stand.sink.bodies) == QUICK.connections)
        stand.receive(message(alarm(), 99, leaf="alarm"))
        await until(lambda: bool(stand.link.receipts))

    run(stand, story)
    assert stand.count("alarm_latency_seconds_count") == 1


def test_frames_that_wait_are_written_together() -> None:
    first = asyncio.Event()

    async def answer(_: bytes) -> None:
        await first.wait()

    stand = Stand(FakeSink(answer), Limits(connections=1))

    async def story() -> None:
        stand.receive(message(changes(NOW), 1))
        await until(lambda: bool(stand.sink.bodies))
        stand.receive(*(message(changes(NOW + n), n) for n in range(2, 50)))
        first.set()
        await stand.ingester.drain()

    run(stand, story)
    assert [body.count(b"\n") for body in stand.sink.bodies] == [1, 48]
    assert len(stand.link.receipts) == 49


@pytest.mark.parametrize("failure", [SinkBusy("503"), SinkBusy("429", 0.001), SinkRefused("401")])
def test_a_failing_sink_is_asked_again_and_meanwhile_nothing_is_read(failure: Exception) -> None:
    failures = [failure] * 3

    async def answer(_: bytes) -> None:
        if failures:
            raise failures.pop()

    stand = Stand(FakeSink(answer))

    async def story() -> None:
        stand.receive(message(changes(NOW)))
        await until(lambda: bool(stand.link.receipts))
        assert [event[0] for event in stand.link.events] == ["pause", "resume", "receipt", "puback"]
        assert stand.ingester.sink.trouble == ""

    run(stand, story)
    assert len(stand.sink.bodies) == 4


def test_reading_stops_when_the_queue_is_full_and_goes_on_when_it_is_half_empty() -> None:
    ready = asyncio.Event()

    async def answer(_: bytes) -> None:
        await ready.wait()

    sent = [message(changes(NOW + n), n + 1) for n in range(8)]
    size = sum(len(payload) for _, payload, _ in sent)
    stand = Stand(FakeSink(answer), Limits(queue_size=Size(size), frame_size=Size(size), batch_lines=1))

    async def story() -> None:
        stand.receive(*sent[:7])
        assert stand.link.told("pause") == []
        stand.receive(sent[7])
        assert stand.link.told("pause") == [()]
        ready.set()
        await until(lambda: bool(stand.link.told("resume")))
        before = stand.link.events[: stand.link.events.index(("resume",))]
        assert [event[0] for event in before].count("receipt") in (4, 5)

    run(stand, story)


def test_bad_lines_are_named_and_all_others_stored() -> None:
    async def answer(body: bytes) -> None:
        if b"pressure" in body:
            raise BadLines("field type conflict")

    stand = Stand(FakeSink(answer), Limits(connections=1))
    mixed = ChangeBody(np.concatenate([changes(*range(1, 40)).rows, changes(5, 6, series=1).rows]))

    async def story() -> None:
        stand.receive(message(changes(NOW), 1), message(mixed, 2), message(changes(NOW + 1), 3))
        await stand.ingester.drain()

    run(stand, story)
    assert stand.link.receipts == [
        Receipt(),
        Receipt(rejected=[Rejected(1, "sink", 2, "field type conflict")]),
        Receipt(),
    ]
    assert len(stand.sink.stored) == 41
    assert stand.link.acknowledged == [1, 2, 3]
    assert stand.count("stored_lines_total") == 41
    assert stand.count("rejected_points_total", reason="sink") == 2


def test_a_frame_beyond_the_retention_costs_a_few_writes_and_not_two_a_line() -> None:
    async def answer(body: bytes) -> None:
        if any(int(line.split()[-1]) < 500 for line in body.split(b"\n")[:-1]):
            raise BadLines("partial write: points beyond retention policy dropped=1")

    stand = Stand(FakeSink(answer))

    async def story() -> None:
        stand.receive(message(changes(*range(1000))))
        await stand.ingester.drain()

    run(stand, story)
    ((told,),) = [receipt.rejected for receipt in stand.link.receipts]
    assert (told.series, told.count) == (0, 500)
    assert len(stand.sink.stored) == 500
    assert len(stand.sink.bodies) < 30


def test_a_batch_that_is_too_large_is_split_and_a_line_that_is_too_large_rejected() -> None:
    async def answer(body: bytes) -> None:
        if len(body) > 200 or b"pressure" in body:
            raise BatchTooLarge("413")

    stand = Stand(FakeSink(answer))
    mixed = ChangeBody(np.concatenate([changes(*range(1, 40)).rows, changes(5, series=1).rows]))

    async def story() -> None:
        stand.receive(message(mixed))
        await stand.ingester.drain()

    run(stand, story)
    assert stand.link.receipts == [Receipt(rejected=[Rejected(1, "sink", 1, "413")])]
    assert len(stand.sink.stored) == 39


def test_a_sink_that_fails_while_bad_lines_are_sought_makes_no_line_bad() -> None:
    calls = iter(range(1000))

    async def answer(body: bytes) -> None:
        if next(calls) % 2:
            raise SinkBusy("503")
        if b"pressure" in body:
            raise BadLines("conflict")

    stand = Stand(FakeSink(answer))
    mixed = ChangeBody(np.concatenate([changes(*range(1, 9)).rows, changes(5, series=1).rows]))

    async def story() -> None:
        stand.receive(message(mixed))
        await until(lambda: bool(stand.link.receipts))

    run(stand, story)
    assert stand.link.receipts == [Receipt(rejected=[Rejected(1, "sink", 1, "conflict")])]
    assert len(stand.sink.stored) == 8


def test_a_gateway_whose_lines_are_refused_holds_up_nobody_else() -> None:
    """Each of its lines takes some writes to find; the others' do not wait for them, nor do PUBACKs."""
    many = asyncio.Event()

    async def answer(body: bytes) -> None:
        if b"gateway=bad" in body:
            if body.count(b"\n") == 1:
                await many.wait()
            raise BadLines("conflict")

    stand = Stand(FakeSink(answer))
    bad = message(changes(*range(1, 20)), gateway="bad", under="bad")
    good = [message(changes(NOW + n), n) for n in range(1, 4)]

    async def story() -> None:
        stand.receive(bad, good[0])
        await until(lambda: len(stand.link.receipts) == 1)
        stand.receive(bad, good[1])
        alarms = AlarmBody([*alarm(1).alarms, *alarm(2).alarms])
        stand.receive(message(alarms, leaf="alarm", gateway="bad", under="bad"), good[2])
        await until(lambda: len(stand.link.receipts) == 3)
        await until(lambda: stand.link.acknowledged == [1, 2, 3, 4, 5, 6])
        assert [data for _, data, _ in stand.link.told("receipt")] == [data for _, _, data in good]
        many.set()
        await stand.ingester.drain()

    run(stand, story)
    assert [sum(one.count for one in receipt.rejected) for receipt in stand.link.receipts[3:]] == [19, 19, 2]


def test_more_of_a_suspect_than_its_queue_takes_gets_no_answer_and_comes_again() -> None:
    never = asyncio.Event()

    async def answer(body: bytes) -> None:
        if b"gateway=bad" in body:
            if body.count(b"\n") == 1:
                await never.wait()
            raise BadLines("conflict")

    limits = Limits(retry_most=Duration.parse("1 ms"), queue_size=Size.parse("1 MiB"))
    stand = Stand(FakeSink(answer), limits)
    bad = message(changes(*np.random.default_rng(1).integers(1, NOW, 2000)), gateway="bad", under="bad")
    frames = int(limits.queue_size) // len(bad[1])

    async def story() -> None:
        stand.receive(bad)
        await until(lambda: len(stand.sink.bodies) > 1)
        for _ in range(frames):
            stand.receive(bad)
        stand.receive(message(changes(NOW)))
        await until(lambda: len(stand.link.receipts) == 1)

    run(stand, story)
    ignored = stand.count("ignored_messages_total", reason="suspect")
    assert 0.7 * frames < ignored < 0.8 * frames
    assert len(stand.link.acknowledged) == frames + 2


def test_lines_that_a_living_sink_never_answers_for_hold_up_nobody_else() -> None:
    """A damaged shard: 500 for one series, for ever, and in whatever batch it is."""
    asked = 0

    async def answer(body: bytes) -> None:
        nonlocal asked
        if b"gateway=bad" in body:
            asked += 1
            raise SinkBusy("500", maybe_the_body=True)

    stand = Stand(FakeSink(answer))
    bad = message(changes(1), gateway="bad", under="bad")
    good = [message(changes(NOW + n), n) for n in range(1, 4)]

    async def story() -> None:
        stand.receive(bad, good[0])
        await until(lambda: len(stand.link.receipts) == 1)
        stand.receive(bad, good[1], bad, good[2])
        await until(lambda: len(stand.link.receipts) == 3)
        await stand.ingester.drain()

    run(stand, story)
    assert stand.count("ignored_messages_total", reason="busy") == 3
    assert stand.link.acknowledged == [1, 2, 3, 4, 5, 6]
    assert asked <= 8 * PATIENCE


def test_a_frame_of_a_newer_version_gets_no_answer() -> None:
    stand = Stand(FakeSink())
    name, payload, _ = message(changes(NOW))
    newer = pb.Frame.FromString(payload)
    newer.version += 1
    payload = newer.SerializeToString()

    async def story() -> None:
        stand.receive((name, payload, correlation(7, 1, payload)))
        await stand.ingester.drain()

    run(stand, story)
    assert stand.link.receipts == []
    assert stand.count("ignored_messages_total", reason="version") == 1


def poison() -> list[tuple[tuple[str, bytes, bytes | None], str]]:
    name, good, _ = message(changes(NOW))
    return [
        ((name, b"", correlation(7, 1, b"")), "version"),
        ((name, b"\xff\xfe nonsense", correlation(7, 1, b"\xff\xfe nonsense")), "malformed"),
        ((name, good[:-3], correlation(7, 1, good[:-3])), "malformed"),
        (message(changes(NOW), under="g2"), "gateway"),
        (message(Heartbeat(NOW * 2, "", "")), "future"),
    ]


@pytest.mark.parametrize(("bad", "reason"), poison())
def test_a_poisonous_frame_is_refused_with_its_reason_and_acknowledged_and_the_others_are_stored(
    bad: tuple[str, bytes, bytes | None], reason: str
) -> None:
    stand = Stand(FakeSink())

    async def story() -> None:
        stand.receive(message(changes(NOW), 1), bad, message(changes(NOW + 1), 2))
        await stand.ingester.drain()

    run(stand, story)
    assert sorted(receipt.refused for receipt in stand.link.receipts) == ["", "", reason]
    assert {data for _, data, receipt in stand.link.told("receipt") if receipt.refused} == {bad[2]}
    assert stand.link.acknowledged == [1, 2, 3]
    assert len(stand.sink.stored) == 2


def test_a_frame_from_the_future_gets_no_answer_since_the_wrong_clock_may_be_ours() -> None:
    stand = Stand(FakeSink(), now_ns=NOW - 3 * 86_400 * 10**9)

    async def story() -> None:
        stand.receive(message(changes(NOW), 1))
        await stand.ingester.drain()

    run(stand, story)
    assert stand.link.receipts == []
    assert stand.link.acknowledged == [1]
    assert stand.count("ignored_messages_total", reason="clock") == 1


def test_a_frame_that_finds_a_fault_of_ours_is_refused_and_the_next_one_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = cloud.ingester.encode

    def faulty(frame: Frame, ingested_ns: int) -> Any:
        if frame.header.seq == 1:
            raise ZeroDivisionError("ours")
        return honest(frame, ingested_ns)

    monkeypatch.setattr(cloud.ingester, "encode", faulty)
    stand = Stand(FakeSink())

    async def story() -> None:
        stand.receive(message(changes(NOW), 1), message(changes(NOW), 2))
        await stand.ingester.drain()

    run(stand, story)
    assert sorted(receipt.refused for receipt in stand.link.receipts) == ["", "internal"]


def ignored() -> list[tuple[str, bytes, bytes | None]]:
    name, payload, data = message(changes(NOW))
    assert data is not None
    return [
        (name, payload, None),
        (name, payload, data[:-1]),
        (name, payload[:-1] + b"x", data),
        (name, payload, data[:-1] + b"x"),
        ("forebay/v1/g1/unknown", payload, data),
        ("forebay/v1/g 1/data", payload, data),
        ("elsewhere", payload, data),
    ]


@pytest.mark.parametrize("odd", ignored())
def test_what_was_damaged_or_is_not_from_an_edge_gets_no_receipt_and_is_acknowledged(
    odd: tuple[str, bytes, bytes | None],
) -> None:
    stand = Stand(FakeSink())

    async def story() -> None:
        stand.receive(odd, message(changes(NOW), 2))
        await stand.ingester.drain()

    run(stand, story)
    assert stand.link.receipts == [Receipt()]
    assert stand.link.acknowledged == [1, 2]
    assert len(stand.sink.stored) == 1


def test_a_will_is_stored_and_nobody_gets_a_receipt() -> None:
    stand = Stand(FakeSink())
    name, payload, _ = message(Heartbeat(0, "", ""), leaf="state")

    async def story() -> None:
        stand.receive((name, payload, None))
        await stand.ingester.drain()

    run(stand, story)
    assert stand.sink.stored == {b'gateway,gateway=g1 state="lost" %d' % NOW}
    assert stand.link.receipts == []
    assert stand.link.acknowledged == [1]


def test_a_frame_of_which_nothing_is_admitted_is_receipted_without_a_write() -> None:
    stand = Stand(FakeSink())

    async def story() -> None:
        stand.receive(message(changes(-5, series=1)))
        await stand.ingester.drain()

    run(stand, story)
    assert stand.sink.bodies == []
    assert [one.reason for one in stand.link.receipts[0].rejected] == ["sink"]


def test_after_a_reconnect_old_frames_are_receipted_and_only_new_ones_acknowledged() -> None:
    ready = asyncio.Event()

    async def answer(_: bytes) -> None:
        await ready.wait()

    stand = Stand(FakeSink(answer))

    async def story() -> None:
        stand.receive(message(changes(NOW), 1))
        await until(lambda: bool(stand.sink.bodies))
        stand.ingester.on_disconnect(LinkLost("gone"))
        stand.ingester.on_connect(False)
        stand.receive(message(changes(NOW), 1), connection=2)
        ready.set()
        await stand.ingester.drain()

    run(stand, story)
    assert len(stand.link.receipts) == 2
    assert stand.link.told("puback") == [([2], 2)]


def test_a_receipt_without_a_connection_is_counted() -> None:
    stand = Stand(FakeSink())
    stand.link.connected = False

    async def story() -> None:
        stand.receive(message(changes(NOW)))
        await stand.ingester.drain()

    run(stand, story)
    assert stand.count("unsent_receipts_total") == 1


def test_draining_reads_no_more_and_waits_for_what_has_come() -> None:
    ready = asyncio.Event()

    async def answer(_: bytes) -> None:
        await ready.wait()

    stand = Stand(FakeSink(answer))

    async def story() -> None:
        stand.receive(message(changes(NOW)))
        draining = asyncio.create_task(stand.ingester.drain())
        await until(lambda: bool(stand.link.told("pause")))
        assert not draining.done()
        ready.set()
        await draining
        assert stand.link.acknowledged == [1]
        assert stand.link.told("resume") == []

    run(stand, story)


def test_waits_grow_to_their_limit_with_full_jitter_and_heed_the_sinks_own_wish() -> None:
    assert [backoff_s(n, 30.0, None, 1.0) for n in (1, 2, 3, 10, 10_000)] == [0.5, 1.0, 2.0, 30.0, 30.0]
    assert backoff_s(5, 30.0, None, 0.0) == 0.0
    assert backoff_s(1, 30.0, 7.0, 0.5) == 7.25
    assert backoff_s(1, 30.0, 3600.0, 0.0) == 30.0
