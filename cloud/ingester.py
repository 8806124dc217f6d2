"""START HERE: receive -> decode -> validate -> encode -> write -> receipt.

    session ──▶ on_messages ──▶ alarms ─────▶ writer ──┐
                    │           all others ─▶ writers ─┼─▶ decode, admit, encode ─▶ sink.write ─▶ receipts, PUBACKs
                    └── pause: the queue is full, or the sink is failing

The ingester keeps nothing: each frame stays at its edge until the sink has stored it and the receipt, which
bears the frame's correlation data, has come back. So it may be killed at any point, and what it had not
receipted is sent again and written again, which changes nothing.

Writers pull. While all of them wait for the sink, frames gather in the queue, and the next write takes them
together: batches grow with the load, and without load nothing waits. Alarms have a writer and a connection of
their own. A sink that is busy or lets nobody in is asked again with full jitter, for ever, and meanwhile the
socket is left unread. What can be stored of a batch is stored; what cannot is named in the receipts.

What is done with a message:

    under a topic that is not ours, or without         acknowledged, counted, no receipt: nobody waits for one
    correlation data (but a will is stored)
    its digest is not that of its correlation data     acknowledged, counted, no receipt: damaged on its way, and
                                                       the edge will send it again
    made in the future: its edge's clock or ours is    the same: were it ours, refusals would empty every outbox
    wrong
    cannot be decoded or admitted                      receipt `refused(reason)`, acknowledged
    everything else                                    stored, receipt, acknowledged
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import structlog

from cloud.batch import Batch, Piece
from cloud.config import Limits
from cloud.lines import Lines, encode
from cloud.metrics import IngestMetrics
from cloud.sinks import Sink
from cloud.validate import ClockDoubt, admit
from devices.errors import BadLines, BatchTooLarge, ForebayError, FrameError, SinkBusy, SinkError, SinkRefused
from devices.wire import topics
from devices.wire.frame import AlarmBody, Frame, decode
from devices.wire.receipt import Receipt, Rejected, encode_receipt
from devices.wire.receive import Inbound

log = structlog.get_logger("forebay.ingester")

RETRY_FIRST_S: Final = 0.25


class Link(Protocol):
    """What the ingester needs of `devices.wire.session.Session`."""

    def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> int | None: ...

    def acknowledge(self, packet_ids: Sequence[int], connection: int) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


@dataclass(slots=True, eq=False)
class Delivery:
    """One message, from its arrival until it is settled: until the broker may forget it."""

    topic: str
    payload: bytes
    correlation: bytes | None
    packet_id: int
    connection: int
    arrived_s: float
    """By the loop's clock."""
    gateway: str = ""
    leaf: str = ""
    frame: Frame | None = None
    settled: bool = False


def backoff_s(failures: int, most_s: float, asked_s: float | None, rand: float) -> float:
    """How long to leave a failing sink alone. Full jitter: `rand` is uniform in [0, 1).

    `asked_s`: what the sink asked for (Retry-After); the jitter is put on top of it, lest all come back at once.
    """
    ceiling_s = min(most_s, RETRY_FIRST_S * 2.0 ** min(failures, 20))
    return (asked_s or 0.0) + rand * ceiling_s


class Ingester:
    """Order of calls: `open`, then `run` in a task, with the callbacks given to a session; `drain` to end."""

    def __init__(
        self,
        sink: Sink,
        limits: Limits,
        metrics: IngestMetrics,
        now_ns: Callable[[], int],
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.link: Link
        """Set before the first message: a session takes the callbacks when it is made."""
        self.trouble = ""
        """What the sink said when it last took nothing; "" when it does."""
        self._sink = sink
        self._limits = limits
        self._frame_limits = limits.of_frames()
        self._metrics = metrics
        self._now_ns = now_ns
        self._rand = rand
        self._alarms: deque[Delivery] = deque()
        self._others: deque[Delivery] = deque()
        self._arrived = {True: asyncio.Event(), False: asyncio.Event()}
        """By whether it is the alarms' queue."""
        self._unacknowledged: deque[Delivery] = deque()
        """Of the present connection, in order of receipt, which is that of PUBACKs."""
        self._unsettled = 0
        self._unsettled_bytes = 0
        self._paused = False
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    # -- from the session -----------------------------------------------------------------------------

    def on_messages(self, inbound: Inbound) -> None:
        now_s = asyncio.get_running_loop().time()
        size_bytes = sum(map(len, inbound.payloads))
        self._metrics.received_bytes.inc(size_bytes)
        self._unsettled += len(inbound)
        self._unsettled_bytes += size_bytes
        self._idle.clear()
        rows = zip(inbound.topics, inbound.payloads, inbound.correlations, inbound.packet_ids, strict=True)
        for topic, payload, correlation, packet_id in rows:
            delivery = Delivery(topic, payload, correlation, packet_id, inbound.connection, now_s)
            if packet_id:
                self._unacknowledged.append(delivery)
            self._enqueue(delivery)
        self._regulate()

    def on_connect(self, session_present: bool) -> None:
        self._metrics.connected.set(1)

    def on_disconnect(self, error: ForebayError) -> None:
        """What is in work is stored and receipted all the same; its PUBACKs went with the connection."""
        self._metrics.connected.set(0)
        self._unacknowledged.clear()

    # -- life -------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the sink, however long that takes. Only then are frames worth asking for."""
        await self._insist(self._sink.open)

    async def run(self) -> None:
        """Write what arrives, until cancelled."""
        async with asyncio.TaskGroup() as writers:
            writers.create_task(self._writer(alarms=True), name="alarm writer")
            for number in range(self._limits.connections):
                writers.create_task(self._writer(alarms=False), name=f"writer {number}")

    async def drain(self) -> None:
        """Read no more, and return once everything that came is settled. The caller bounds the wait."""
        self._draining = True
        self._regulate()
        await self._idle.wait()

    # -- the path of one frame ----------------------------------------------------------------------------

    def _enqueue(self, delivery: Delivery) -> None:
        try:
            delivery.gateway, delivery.leaf = topics.parse(delivery.topic)
        except FrameError as error:
            self._ignore(delivery, error.reason)
            return
        self._metrics.received_frames.labels(delivery.leaf).inc()
        alarms = delivery.leaf == "alarm"
        (self._alarms if alarms else self._others).append(delivery)
        self._arrived[alarms].set()

    async def _writer(self, *, alarms: bool) -> None:
        queue, arrived = self._alarms if alarms else self._others, self._arrived[alarms]
        while True:
            while not queue:
                arrived.clear()
                await arrived.wait()
            batch, deliveries = await self._next_batch(queue)
            for body, first in batch.bodies(self._limits.batch_size):
                await self._store(batch, body, first)
            self._receipt(batch, deliveries)

    async def _next_batch(self, queue: deque[Delivery]) -> tuple[Batch, list[Delivery]]:
        """As many frames as are there, up to the limits of a batch. Those that are refused are done with here."""
        batch, deliveries = Batch(), []
        last_lines = last_bytes = 0  # the next frame will be about as large
        while (
            queue
            and len(batch) + last_lines <= self._limits.batch_lines
            and batch.size_bytes + last_bytes <= self._limits.batch_size
        ):
            delivery = queue.popleft()
            prepared = self._prepare(delivery)
            if prepared is not None:
                lines, rejected = prepared
                batch.add(lines, rejected)
                deliveries.append(delivery)
                last_lines, last_bytes = len(lines), len(lines.body)
            await asyncio.sleep(0)  # one frame is some ms of work: let the socket and the alarms have their turn
        return batch, deliveries

    def _prepare(self, delivery: Delivery) -> tuple[Lines, list[Rejected]] | None:
        """The lines of a frame and what of it was rejected; None when it is refused or ignored, and settled."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        if not self._may_be_answered(delivery):
            return None
        try:
            frame = decode(delivery.payload, self._frame_limits)
            now_ns = self._now_ns()
            admitted = admit(frame, delivery.gateway, now_ns=now_ns, max_ahead_ns=self._limits.max_ahead.ns)
            lines = encode(admitted.frame, now_ns)
        except ClockDoubt as error:
            self._ignore(delivery, error.reason, str(error))
            return None
        except FrameError as error:
            self._refuse(delivery, error.reason, str(error))
            return None
        except Exception as error:
            # A frame that finds a fault of ours must neither stop the others nor come back for ever.
            log.exception("a frame could not be prepared; please report this", gateway=delivery.gateway)
            self._refuse(delivery, "internal", f"{type(error).__name__}: {error}")
            return None
        delivery.frame = frame
        self._metrics.stage_s.labels("wait").observe(begun_s - delivery.arrived_s)
        self._metrics.stage_s.labels("prepare").observe(loop.time() - begun_s)
        return lines, admitted.rejected

    def _may_be_answered(self, delivery: Delivery) -> bool:
        """Whether a receipt would be right: False, and settled, for what was damaged or is not from an edge.

        A damaged frame must not be refused: its edge would put away a good one. It will send it again.
        """
        if delivery.correlation is None:
            if delivery.leaf == "state":
                return True  # the gateway's will, which its broker sends
            return self._ignore(delivery, "correlation")
        try:
            told = topics.parse_correlation(delivery.correlation)
        except FrameError as error:
            return self._ignore(delivery, error.reason)
        return told.digest == topics.digest(delivery.payload) or self._ignore(delivery, "damaged")

    async def _store(self, batch: Batch, body: bytes, first: int) -> None:
        """Write a body, however long that takes; what the sink will never take is rejected in `batch`."""
        try:
            await self._write(body)
        except (BadLines, BatchTooLarge) as error:
            await self._sift(batch, batch.newest_first(body, first), error)

    async def _sift(self, batch: Batch, piece: Piece, error: SinkError) -> None:
        """Store what can be stored of a piece that was refused, newest first."""
        if len(piece.lines) == 1:
            batch.reject(piece, str(error))
            return
        for half in piece.halves():
            if batch.is_expired(half):
                batch.reject(half, "older than the sink's retention")
                continue
            try:
                await self._write(half.body)
            except (BadLines, BatchTooLarge) as worse:
                await self._sift(batch, half, worse)

    async def _write(self, body: bytes) -> None:
        begun_s = asyncio.get_running_loop().time()
        await self._insist(lambda: self._sink.write(body))
        self._metrics.stage_s.labels("write").observe(asyncio.get_running_loop().time() - begun_s)
        self._metrics.written_bytes.inc(len(body))

    async def _insist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Call the sink until it answers. BadLines and BatchTooLarge are answers, too."""
        failures = 0
        while True:
            try:
                await call()
            except (SinkBusy, SinkRefused) as error:
                failures += 1
                self._sink_fails(error)
                asked_s = error.retry_after_s if isinstance(error, SinkBusy) else None
                await asyncio.sleep(backoff_s(failures, self._limits.retry_most.s, asked_s, self._rand()))
            except SinkError as error:
                self._sink_answers("bad" if isinstance(error, BadLines) else "too_large")
                raise
            else:
                self._sink_answers("stored")
                return

    # -- the sink's state, and whether the socket is read ----------------------------------------------------

    def _sink_fails(self, error: SinkBusy | SinkRefused) -> None:
        refused = isinstance(error, SinkRefused)
        self._metrics.sink_answers.labels("refused" if refused else "busy").inc()
        if str(error) != self.trouble:
            log.log(
                logging.ERROR if refused else logging.WARNING,
                "the sink refuses everything: nothing is stored until this is put right"
                if refused
                else "the sink is busy",
                error=str(error),
            )
        self.trouble = str(error)
        self._metrics.sink_failing.set(1)
        self._regulate()

    def _sink_answers(self, answer: str) -> None:
        self._metrics.sink_answers.labels(answer).inc()
        if self.trouble:
            log.info("the sink is back")
            self.trouble = ""
            self._metrics.sink_failing.set(0)
            self._regulate()

    def _regulate(self) -> None:
        """Read or do not read. Between half full and full it stays as it is, so that it does not flutter."""
        limit = int(self._limits.queue_size)
        stop = self._draining or bool(self.trouble) or self._unsettled_bytes >= limit
        go = not stop and self._unsettled_bytes <= limit // 2
        if stop and not self._paused:
            self._paused = True
            self.link.pause()
        elif go and self._paused:
            self._paused = False
            self.link.resume()
        self._metrics.reading.set(not self._paused)
        self._metrics.unsettled_bytes.set(self._unsettled_bytes)

    # -- answers ---------------------------------------------------------------------------------------------

    def _receipt(self, batch: Batch, deliveries: list[Delivery]) -> None:
        """The sink has answered for every line of these: tell the edges, then the broker."""
        now_ns = self._now_ns()
        for place, delivery in enumerate(deliveries):
            rejected = batch.rejected(place)
            self._send(delivery, Receipt(rejected=rejected))
            for one in rejected:
                self._metrics.rejected_points.labels(one.reason).inc(one.count)
            if rejected:
                log.warning(
                    "points were rejected",
                    gateway=delivery.gateway,
                    points=sum(one.count for one in rejected),
                    series=len(rejected),
                    first=rejected[0].detail,
                )
            self._observe(delivery, now_ns)
        self._metrics.stored_lines.inc(len(batch) - batch.refused)
        self._settle(deliveries)

    def _refuse(self, delivery: Delivery, reason: str, why: str) -> None:
        log.warning("a frame was refused", gateway=delivery.gateway, leaf=delivery.leaf, reason=reason, why=why)
        self._metrics.refused_frames.labels(reason).inc()
        self._send(delivery, Receipt(refused=reason))
        self._settle([delivery])

    def _ignore(self, delivery: Delivery, reason: str, why: str = "") -> Literal[False]:
        more = {"why": why} if why else {}
        log.warning("a message was ignored", topic=delivery.topic[:120], reason=reason, **more)
        self._metrics.ignored_messages.labels(reason).inc()
        self._settle([delivery])
        return False

    def _send(self, delivery: Delivery, receipt: Receipt) -> None:
        if delivery.correlation is None:
            return
        topic = topics.topic(delivery.gateway, "receipt")
        if self.link.publish(topic, encode_receipt(receipt), correlation=delivery.correlation) is None:
            self._metrics.unsent_receipts.inc()

    def _settle(self, deliveries: list[Delivery]) -> None:
        """Done with these: PUBACK those at the head of the connection's order."""
        self._unsettled -= len(deliveries)
        for delivery in deliveries:
            delivery.settled = True
            self._unsettled_bytes -= len(delivery.payload)
        waiting, ready = self._unacknowledged, []
        while waiting and waiting[0].settled:
            ready.append(waiting.popleft())
        if ready:
            self.link.acknowledge([delivery.packet_id for delivery in ready], ready[0].connection)
        if self._unsettled == 0:
            self._idle.set()
        self._regulate()

    def _observe(self, delivery: Delivery, now_ns: int) -> None:
        frame = delivery.frame
        assert frame is not None
        self._metrics.stored_frames.labels(delivery.leaf).inc()
        if delivery.correlation is not None:  # a will was made when its gateway connected
            self._metrics.lag_s.labels(delivery.leaf).observe((now_ns - frame.header.created_ns) / 1e9)
        if isinstance(frame.body, AlarmBody):
            for alarm in frame.body.alarms:
                self._metrics.alarm_latency_s.observe((now_ns - alarm.arrived_ns) / 1e9)
