"""START HERE: receive -> decode -> validate -> encode -> write -> receipt.

    session ──▶ on_messages ──▶ alarms ─────▶ writer ──┐
                    │           all others ─▶ writers ─┼─▶ decode, admit, encode ─▶ sink.write ─▶ receipts, PUBACKs
                    │           suspects ───▶ writer ──┘                               │
                    │              ▲   of whom the sink has refused lines ─────────────┘
                    └── pause: the queue is full, or the sink is failing

The ingester keeps nothing: each frame stays at its edge until the sink has stored it and the receipt, which
bears the frame's correlation data, has come back. So it may be killed at any point, and what it had not
receipted is sent again and written again, which changes nothing.

Writers pull. While all of them wait for the sink, frames gather in the queue, and the next write takes them
together: batches grow with the load, and without load nothing waits. Alarms have a writer and a connection of
their own. A sink that is busy or lets nobody in is asked again with full jitter, for ever, and meanwhile the
socket is left unread. What can be stored of a batch is stored; what cannot is named in the receipts.

To find a line that the sink refuses takes some writes for each, and some servers answer the lines of one series
with 500 for ever: a gateway with such lines is a *suspect*, and is written apart, so that only it waits. What is
more than the suspects' queue takes goes unanswered, and comes again when its edge's patience is over.

What is done with a message:

    under a topic that is not ours, or without         acknowledged, counted, no receipt: nobody waits for one
    correlation data (but a will is stored)
    its digest is not that of its correlation data     acknowledged, counted, no receipt: damaged on its way, and
                                                       the edge will send it again
    a suspect's, and their queue is full, or its own   the same
    lines do not pass though the sink answers
    made in the future: its edge's clock or ours is    the same: were it ours, refusals would empty every outbox
    wrong; or of a newer version than we know          the same: another ingester, or a later one, can read it
    cannot be decoded or admitted                      receipt `refused(reason)`, acknowledged
    everything else                                    stored, receipt, acknowledged
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Literal, Protocol

import structlog

from cloud.batch import Batch, Piece
from cloud.config import Limits
from cloud.delivery import Delivery, Queue
from cloud.lines import Lines, encode
from cloud.metrics import IngestMetrics
from cloud.patience import PatientSink
from cloud.sinks import Sink
from cloud.validate import admit
from devices.errors import BadLines, BatchTooLarge, ForebayError, FrameError, NotForUs, SinkBusy, SinkError
from devices.wire import topics
from devices.wire.frame import AlarmBody, decode
from devices.wire.receipt import Receipt, Rejected, encode_receipt
from devices.wire.receive import Inbound

log = structlog.get_logger("forebay.ingester")

PUBACK_REFUSED: Final = 0x80
SUSPECT_S: Final = 300.0
"""A gateway is suspect for so long after lines of it did not pass."""
SUSPECTS_SHARE: Final = 1 / 4
"""Of `queue_size`, for the frames of suspects: the rest is for those who wait for nothing but the sink."""


class Link(Protocol):
    """What the ingester needs of `devices.wire.session.Session`."""

    def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> int | None: ...

    def acknowledge(self, packet_ids: Sequence[int], connection: int) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


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
        self.sink = PatientSink(sink, limits.retry_most.s, metrics, self._regulate, rand)
        self._limits = limits
        self._frame_limits = limits.of_frames()
        self._metrics = metrics
        self._now_ns = now_ns
        self._alarms, self._others, self._suspects = Queue(), Queue(), Queue()
        self._suspect_until_s: dict[str, float] = {}
        """By gateway."""
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
        await self.sink.open()

    async def run(self) -> None:
        """Write what arrives, until cancelled."""
        async with asyncio.TaskGroup() as writers:
            writers.create_task(self._writer(self._alarms), name="alarm writer")
            writers.create_task(self._writer(self._suspects), name="suspects' writer")
            for number in range(self._limits.connections):
                writers.create_task(self._writer(self._others), name=f"writer {number}")

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
        if delivery.leaf == "alarm":
            self._alarms.put(delivery)
        elif self._suspect_until_s.get(delivery.gateway, 0.0) > delivery.arrived_s:
            self._put_apart(delivery)
        else:
            self._others.put(delivery)

    async def _writer(self, queue: Queue) -> None:
        while True:
            await queue.wait()
            batch, deliveries = await self._next_batch(queue)
            if queue is self._suspects:
                await self._store_apart(batch, deliveries)
            else:
                await self._store_or_part(queue, batch, deliveries)

    async def _next_batch(self, queue: Queue) -> tuple[Batch, list[Delivery]]:
        """As many frames as are there, up to the limits of a batch. Those that are refused are done with here."""
        batch, deliveries = Batch(), []
        last_lines = last_bytes = 0  # the next frame will be about as large
        while (
            queue
            and len(batch) + last_lines <= self._limits.batch_lines
            and batch.size_bytes + last_bytes <= self._limits.batch_size
        ):
            delivery = queue.take()
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
        except NotForUs as error:
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

    async def _store(self, batch: Batch, on_bad: Callable[[Batch, Piece, SinkError], Awaitable[None]]) -> None:
        """Write a batch, however long that takes; SinkBusy when it is only these lines that do not pass."""
        for body, first in batch.bodies(self._limits.batch_size):
            try:
                await self.sink.write(body)
            except (BadLines, BatchTooLarge) as error:
                await on_bad(batch, batch.newest_first(body, first), error)

    async def _store_or_part(self, queue: Queue, batch: Batch, deliveries: list[Delivery]) -> None:
        """Store a batch, or all of it but those gateways whose lines do not pass: they go to the suspects."""
        try:
            await self._store(batch, self._sift_if_too_large)
        except (BadLines, SinkBusy) as error:
            by_gateway: dict[str, list[int]] = {}
            for place, delivery in enumerate(deliveries):
                by_gateway.setdefault(delivery.gateway, []).append(place)
            if len(by_gateway) > 1:
                for places in by_gateway.values():
                    await self._store_or_part(queue, batch.only(places), [deliveries[place] for place in places])
            elif isinstance(error, BadLines) or self._others_pass(deliveries):
                self._suspect(deliveries)
                for delivery in deliveries:
                    self._put_apart(delivery)
            else:
                self._put_last(queue, deliveries)
        else:
            self._receipt(batch, deliveries)

    async def _store_apart(self, batch: Batch, deliveries: list[Delivery]) -> None:
        """Store what can be stored of suspects, line by line where it must be."""
        try:
            await self._store(batch, self._sift)
        except SinkBusy:
            if self._others_pass(deliveries):
                self._metrics.ignored_messages.labels("busy").inc(len(deliveries))
                self._settle(deliveries)
            else:
                self._put_last(self._suspects, deliveries)
        else:
            self._suspect(d for place, d in enumerate(deliveries) if batch.rejected(place))
            self._receipt(batch, deliveries)

    def _others_pass(self, deliveries: list[Delivery]) -> bool:
        """Whether the sink has answered for anything else since it did not answer for these."""
        return any(d.answers_before is not None and d.answers_before < self.sink.answers for d in deliveries)

    def _put_last(self, queue: Queue, deliveries: list[Delivery]) -> None:
        """Try all else first: if that passes, it is these that do not."""
        for delivery in deliveries:
            if delivery.answers_before is None:
                delivery.answers_before = self.sink.answers
            queue.put(delivery)

    def _suspect(self, deliveries: Iterable[Delivery]) -> None:
        """Lines of these did not pass."""
        now_s = asyncio.get_running_loop().time()
        for gateway in {delivery.gateway for delivery in deliveries}:
            if self._suspect_until_s.get(gateway, 0.0) <= now_s:
                log.warning("lines of a gateway do not pass: it is written apart for now", gateway=gateway)
            self._suspect_until_s[gateway] = now_s + SUSPECT_S
        self._suspect_until_s = {name: until_s for name, until_s in self._suspect_until_s.items() if until_s > now_s}

    def _put_apart(self, delivery: Delivery) -> None:
        """To be written by the suspects' writer; without an answer, and to come again, where that has enough to do.

        Its PUBACK does not wait, since those of all that came later would wait with it: its edge keeps it.
        """
        most_bytes = int(self._limits.queue_size) * SUSPECTS_SHARE
        if self._suspects and self._suspects.size_bytes + len(delivery.payload) > most_bytes:
            self._metrics.ignored_messages.labels("suspect").inc()
            self._settle([delivery])
        else:
            self._suspects.put(delivery)
            self._let_broker_forget([delivery])

    async def _sift_if_too_large(self, batch: Batch, piece: Piece, error: SinkError) -> None:
        if isinstance(error, BadLines):
            raise error
        await self._sift(batch, piece, error)

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
                await self.sink.write(half.body)
            except (BadLines, BatchTooLarge) as worse:
                await self._sift(batch, half, worse)

    # -- whether the socket is read -----------------------------------------------------------------------

    def _regulate(self) -> None:
        """Read or do not read. Between half full and full it stays as it is, so that it does not flutter."""
        limit = int(self._limits.queue_size)
        stop = self._draining or self.sink.takes_nothing or self._unsettled_bytes >= limit
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

    def on_published(self, mid: int, reason: int) -> None:
        """The broker's answer to a receipt. When it refuses one, or nobody hears it, the edge sends the frame again."""
        if reason >= PUBACK_REFUSED:
            self._metrics.unsent_receipts.inc()
            log.error("the broker refuses receipts: its access list, quota or size limit", reason=hex(reason))

    def _send(self, delivery: Delivery, receipt: Receipt) -> None:
        if delivery.correlation is None:
            return
        topic = topics.topic(delivery.gateway, "receipt")
        if self.link.publish(topic, encode_receipt(receipt), correlation=delivery.correlation) is None:
            self._metrics.unsent_receipts.inc()

    def _settle(self, deliveries: list[Delivery]) -> None:
        """Done with these."""
        self._unsettled -= len(deliveries)
        self._unsettled_bytes -= sum(len(delivery.payload) for delivery in deliveries)
        self._let_broker_forget(deliveries)
        if self._unsettled == 0:
            self._idle.set()
        self._regulate()

    def _let_broker_forget(self, deliveries: list[Delivery]) -> None:
        """PUBACK these, once they are at the head of the connection's order."""
        for delivery in deliveries:
            delivery.forgettable = True
        waiting, ready = self._unacknowledged, []
        while waiting and waiting[0].forgettable:
            ready.append(waiting.popleft())
        if ready:
            self.link.acknowledge([delivery.packet_id for delivery in ready], ready[0].connection)

    def _observe(self, delivery: Delivery, now_ns: int) -> None:
        frame = delivery.frame
        assert frame is not None
        self._metrics.stored_frames.labels(delivery.leaf).inc()
        if delivery.correlation is not None:  # a will was made when its gateway connected
            self._metrics.lag_s.labels(delivery.leaf).observe((now_ns - frame.header.created_ns) / 1e9)
        if isinstance(frame.body, AlarmBody):
            for alarm in frame.body.alarms:
                self._metrics.alarm_latency_s.observe((now_ns - alarm.arrived_ns) / 1e9)
