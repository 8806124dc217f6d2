"""Sources -> bounded batches with their acknowledgements.

    driver ─▶ Delivery ─▶ framer (streams) ─▶ codec ─▶ router ─▶ Piece ─┐
    driver ─▶ Delivery ─────────────────────▶ codec ─▶ router ─▶ Piece ─┴─▶ drain() ─▶ the pump

A delivery is decoded as soon as it comes, into one Piece of columns: its samples, what was rejected of it,
and the function that acknowledges it. `drain` joins whole pieces: what one message led to and its
acknowledgement are always in one commit, so a crash leaves both or neither.

Bounded: above `max_samples` or `max_bytes` of what is not drained every source is paused, and resumed below
half of it. What is rejected counts as bytes, so a device that babbles is slowed like one that sends.
Of each source and reason DEAD_LETTERS_A_MINUTE dead letters are kept: a device that babbles neither fills nor wears
the disk. All are counted.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import Any

import msgspec
import numpy as np

from devices.codecs.framing import FRAMINGS, Framer
from devices.drivers import Delivery, Marks, SourceStatus
from devices.errors import DecodeError
from devices.model import SECOND_NS, Floats, Int32s, Int64s, Rows, SampleBatch
from devices.profiles import Profile
from edge.custody import DeadLetter
from edge.redelivery import Unconfirmed, digests
from edge.routing import Account, Refusal, Resolve, Router, Word

log = logging.getLogger("forebay.intake")

PIECE_BYTES = 1536
"""Memory of a piece beside its payloads: counted, or many small deliveries would take unseen memory."""
DEAD_LETTERS_A_MINUTE = 5
DEAD_LETTER_BYTES = 16 << 10
"""So much of the payload is kept. A message that is whole can be replayed."""
TOPIC_CHARACTERS = 100
"""Of a topic, in an error: it may have thousands."""
WATCH_RECORDS = 64
"""Records that wait for someone who watches; while they are full, none are made."""
WATCH_BYTES = 4096
WATCH_VALUES = 50
"""Of one record: a delivery may hold thousands."""
WATCH_QUIET_S = 1.0
NOISE_SAMPLE_BYTES = 4096
NOISE = "bytes arrive, but they are not text: compare baud_rate, data_bits and parity with the device's settings"
_TEXT_BYTES = bytes(range(32, 127)) + b"\t\r\n"
RESTART_S = 5.0
"""A driver that ends or raises, against its contract, is started again after this."""

Rejects = dict[tuple[Account, str], int]
"""(series or device, reason) -> number of samples; what cannot be decoded counts as one."""


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """What the intake may hold."""

    max_samples: int = 16_384
    """Not drained: four commits of the pump."""
    max_bytes: int = 8 << 20
    """Payload bytes of what is not drained."""
    message_bytes: int = 1 << 20
    """A longer message or line is rejected as `oversize`."""
    max_routes: int = 100_000
    """Topics and keys whose series is remembered, by source."""


@dataclass(slots=True)
class Piece:
    """One delivery, decoded."""

    source: Source
    series: Int32s
    time_ns: Int64s
    """0: to be stamped with the arrival."""
    value: Floats
    arrived_ns: int
    size_bytes: int
    rejects: Rejects
    dead_letters: list[DeadLetter]
    settle: Callable[[], None] | None
    marks: Marks | None
    digests: list[int]
    replayed: int = 0
    """The dead letter that it was; 0: it comes from the driver."""


@dataclass(slots=True)
class Drained:
    """What the pump takes at once: n samples in order of arrival, and what must be committed with them."""

    batch: SampleBatch
    """`time_ns` 0: not stamped yet; `Admission.admit` does that."""
    arrived_ns: Int64s
    rejects: Rejects
    dead_letters: list[DeadLetter]
    settles: list[Callable[[], None]]
    """To be called, in this order, once the commit is durable."""
    repeating: dict[str, Unconfirmed]
    """By `Source.session`: whose `state` is to be stored with the commit, in the place of the one stored before."""
    replayed: list[int] = field(default_factory=list)
    """Dead letters that are in it."""


class Source:
    """One configured source: its driver, and everything that turns its bytes into columns."""

    def __init__(
        self,
        name: str,
        profile: Profile,
        codec: Any,
        limits: IntakeLimits,
        resolve: Resolve,
        driver: Any,
        has_sample: Callable[[int], bool],
    ) -> None:
        """`driver` is bound by the caller to deliver into the intake."""
        self.name = name
        self.driver = driver
        self._has_sample = has_sample
        self.router = Router(name, profile, resolve, getattr(driver, "origin", None), limits.max_routes)
        self.unconfirmed = Unconfirmed()
        self.last_error = ""
        """The last message that could not be decoded, as a sentence; "" once one could."""
        self.last_arrival_ns = 0
        self.samples = 0
        self.rejected = 0
        self.watchers: list[asyncio.Queue[dict[str, Any]]] = []
        self._codec = codec
        self._message_bytes = limits.message_bytes
        self._framer: Framer | None = FRAMINGS[codec.framing](limits.message_bytes) if driver.stream else None
        self._oversize = 0
        self._may_be_half = False
        """The next message of the stream may be the end of one that began before it was read."""
        self._rows = Rows()
        self._letters: dict[str, tuple[int, int]] = {}
        """Reason -> (minute, dead letters kept in it)."""

    @property
    def session(self) -> str:
        """What a sender that repeats knows us by, whatever the source is called."""
        return getattr(self.driver, "session_name", self.name)

    def attach(self) -> None:
        """From now on what the driver brings is this source's."""
        if hasattr(self.driver, "on_confirmed"):
            self.driver.on_confirmed = self.unconfirmed.confirm

    def follow(self, before: Source) -> None:
        """Go on where the source of this name was until the configuration changed; to be called before `attach`."""
        self.samples, self.rejected, self.watchers = before.samples, before.rejected, before.watchers
        self.last_arrival_ns = before.last_arrival_ns
        if self.driver is not before.driver:
            return
        self.unconfirmed = before.unconfirmed
        if self._codec.framing == before._codec.framing and self._message_bytes == before._message_bytes:
            self._framer, self._oversize = before._framer, before._oversize
            self._may_be_half = before._may_be_half
        else:
            self._may_be_half = True  # the line that is half read is cut otherwise from here on

    @property
    def status(self) -> SourceStatus:
        """The driver's own account."""
        status: SourceStatus = self.driver.status
        return status

    # -- a delivery becomes a piece ------------------------------------------------------------------

    def decode(self, delivery: Delivery) -> Piece:
        """Decode all that was delivered. Never raises for what a device sent."""
        if delivery.payloads:
            self.last_arrival_ns = delivery.arrived_ns
        size_bytes = PIECE_BYTES + sum(map(len, delivery.payloads))
        work = _Work(self, delivery.arrived_ns)
        digest: list[int] = []
        cut_short: list[tuple[str, bytes, int]] = []
        routes: list[int] = []
        payloads, topics, marks = delivery.payloads, delivery.topics, delivery.marks
        rows = self._emptied_rows()
        if topics is not None:
            fresh = None
            if marks is not None:
                digest = digests(topics, payloads)
                fresh = self.unconfirmed.fresh(marks, digest)
            if delivery.cut_short:
                fresh = fresh or [True] * len(payloads)
                cut_short = [(topics[k], payloads[k], n) for k, n in delivery.cut_short.items() if fresh[k]]
                fresh = [new and k not in delivery.cut_short for k, new in enumerate(fresh)]
            if delivery.retained:
                fresh = fresh or [True] * len(payloads)
                kept = [k for k in sorted(delivery.retained) if fresh[k]]
                routes = self._decode_retained([topics[k] for k in kept], [payloads[k] for k in kept], rows, work)
                fresh = [new and k not in delivery.retained for k, new in enumerate(fresh)]
            if fresh is not None:
                payloads = [p for p, new in zip(payloads, fresh, strict=True) if new]
                topics = [t for t, new in zip(topics, fresh, strict=True) if new]
            routes += self._decode_topics(topics, payloads, rows, work)
            for topic, beginning, length_bytes in cut_short:
                error = DecodeError(f"a message of {length_bytes} bytes, more than its source takes", "oversize")
                work.undecoded(error, beginning, self.router.topics[topic].device, topic, length_bytes)
        else:
            if self._framer is not None:
                payloads = self._frame(self._framer, delivery, work)
            self._decode_messages(payloads, rows, work)
            routes = list(map(self.router.own.__getitem__, rows.channel))
        series, time_ns, value = work.columns(rows, routes)
        self.samples += len(series)
        self.rejected += sum(work.rejects.values())
        return Piece(
            *(self, series, time_ns, value, delivery.arrived_ns, size_bytes),
            *(work.rejects, work.dead_letters, delivery.settle, marks, digest),
        )

    def _decode_topics(self, topics: list[str], payloads: list[bytes], rows: Rows, work: _Work) -> list[int]:
        """The routes of the rows. The hot path of a busy broker: one value a message."""
        decode, limit = self._codec.decode, self._message_bytes
        channels, singles, by_topic = rows.channel, self.router.singles, self.router.topics
        routes: list[int] = []
        append = routes.append
        before = len(channels)
        good = bool(topics)
        for topic, payload in zip(topics, payloads, strict=True):
            try:
                if len(payload) > limit:
                    raise _too_long(payload, limit)
                decode(payload, rows)
            except DecodeError as error:
                work.undecoded(error, payload, by_topic[topic].device, topic)
                good = False
                continue
            after = len(channels)
            if after - before == 1 and not channels[before]:
                append(singles[topic])
            else:
                routes.extend(map(by_topic[topic].__getitem__, channels[before:after]))
            before = after
        if good and self.last_error:
            self.last_error = ""
        return routes

    def _decode_retained(self, topics: list[str], payloads: list[bytes], rows: Rows, work: _Work) -> list[int]:
        """The routes of what senders had kept. It tells what was so at some time: a sample is what bears that time, and
        what is the first of its series, whose state nobody knows yet (docs/decisions/0017-retained-messages.md)."""
        routes = self._decode_topics(topics, payloads, rows, work)
        new = [time_ns != 0 or not self._is_known(route) for route, time_ns in zip(routes, rows.time_ns, strict=True)]
        rows.channel[:] = compress(rows.channel, new)
        rows.time_ns[:] = compress(rows.time_ns, new)
        rows.value[:] = compress(rows.value, new)
        return list(compress(routes, new))

    def _is_known(self, route: int) -> bool:
        """Whether a value under this route would not be the first of its series."""
        if route >= 0:
            return self._has_sample(route)
        detour = self.router.detours[-1 - route]
        return isinstance(detour, Word) and any(self._has_sample(series) for series, _ in detour.bits)

    def _decode_messages(self, messages: list[bytes], rows: Rows, work: _Work) -> None:
        decode, limit = self._codec.decode, self._message_bytes
        good = bool(messages)
        for message in messages:
            try:
                if len(message) > limit:
                    raise _too_long(message, limit)
                decode(message, rows)
            except DecodeError as error:
                if not self._may_be_half:
                    work.undecoded(error, message, self.name)
                    good = False
            self._may_be_half = False
        if good:
            self.last_error = ""

    def _frame(self, framer: Framer, delivery: Delivery, work: _Work) -> list[bytes]:
        """The messages that this piece of the stream completes."""
        if delivery.restart:
            framer.reset()
            self._may_be_half = True
        messages: list[bytes] = []
        for piece in delivery.payloads:
            messages += framer.feed(piece)
        for _ in range(framer.oversize - self._oversize):
            sample = delivery.payloads[0]
            why = "bytes come without a line end" if looks_like_text(sample) else NOISE
            work.undecoded(DecodeError(why, "oversize"), sample, self.name, size_bytes=0)
        self._oversize = framer.oversize
        return messages

    def _emptied_rows(self) -> Rows:
        """The one object that every decoding fills."""
        rows = self._rows
        rows.channel.clear()
        rows.time_ns.clear()
        rows.value.clear()
        return rows

    def may_keep_letter(self, reason: str, now_ns: int) -> bool:
        """Whether this is one of the first with this reason in this minute."""
        minute = now_ns // (60 * SECOND_NS)
        last, kept = self._letters.get(reason, (minute, 0))
        if last != minute:
            kept = 0
        self._letters[reason] = minute, kept + 1
        return kept < DEAD_LETTERS_A_MINUTE

    def decode_again(self, letter: DeadLetter) -> Piece | str:
        """A dead letter, by the codec and profile of now; or why it still cannot be taken, all of it.

        Samples without a time of their own get that of its arrival then: they come late, not now.
        """
        if len(letter.payload) != letter.size_bytes:
            return "only a part of the message was kept"
        if letter.topic and self.driver.stream:
            return f"source {self.name} is read by another kind of driver than when it came"
        work = _Work(self, letter.at_ns)
        before = self.last_error, self._may_be_half
        rows = self._emptied_rows()
        self._may_be_half = False
        if letter.topic:
            routes = self._decode_topics([letter.topic], [letter.payload], rows, work)
        else:
            self._decode_messages([letter.payload], rows, work)
            routes = list(map(self.router.own.__getitem__, rows.channel))
        series, time_ns, value = work.columns(rows, routes)
        why = self.last_error
        self.last_error, self._may_be_half = before
        if work.rejects:
            reasons = ", ".join(sorted({reason for _, reason in work.rejects}))
            return f"it is still rejected: {reasons}{f' ({why})' if why else ''}"
        time_ns[time_ns == 0] = letter.at_ns
        self.samples += len(series)
        size_bytes = PIECE_BYTES + letter.size_bytes
        return Piece(self, series, time_ns, value, letter.at_ns, size_bytes, {}, [], None, None, [], letter.id)


class _Work:
    """What decoding one delivery collects beside the rows."""

    __slots__ = ("_arrived_ns", "_source", "dead_letters", "rejects")

    def __init__(self, source: Source, arrived_ns: int) -> None:
        self._source = source
        self._arrived_ns = arrived_ns
        self.rejects: Rejects = {}
        self.dead_letters: list[DeadLetter] = []

    def undecoded(
        self, error: DecodeError, message: bytes, device: str, topic: str = "", size_bytes: int | None = None
    ) -> None:
        """A message that cannot be decoded counts as one sample of its device. `size_bytes`: of all of it, if `message`
        is only a part; 0: not known."""
        source = self._source
        self.reject(source.router.account(device), error.reason)
        detail = str(error)
        if error.reason == "malformed" and source.driver.stream and not looks_like_text(message):
            detail = f"{NOISE} ({detail})"
        source.last_error = f"{topic[:TOPIC_CHARACTERS]}: {detail}" if topic else detail
        self.letter(error.reason, detail, message, topic, len(message) if size_bytes is None else size_bytes)

    def reject(self, account: Account, reason: str) -> None:
        self.rejects[account, reason] = self.rejects.get((account, reason), 0) + 1

    def letter(self, reason: str, detail: str, payload: bytes, topic: str = "", size_bytes: int = 0) -> None:
        if self._source.may_keep_letter(reason, self._arrived_ns):
            kept = payload[:DEAD_LETTER_BYTES]
            self.dead_letters.append(
                DeadLetter(self._arrived_ns, self._source.name, reason, detail, kept, topic, size_bytes)
            )

    def columns(self, rows: Rows, routes: list[int]) -> tuple[Int32s, Int64s, Floats]:
        """The rows that are samples, as columns; the others are counted."""
        times, values = rows.time_ns, rows.value
        if not routes:
            return np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0)
        if min(routes) < 0 or str in set(map(type, values)):
            routes, times, values = self._sort_out(rows, routes)
        series = np.array(routes, np.int32)
        time_ns = np.array(times, np.int64)
        value = self._source.router.scale(series, np.array(values, np.float64))
        finite = np.isfinite(value)
        if not finite.all():
            for index in series[~finite].tolist():
                self.reject(index, "nonfinite")
            series, time_ns, value = series[finite], time_ns[finite], value[finite]
        return series, time_ns, value

    def _sort_out(self, rows: Rows, routes: list[int]) -> tuple[list[int], list[int], list[float | bool | str]]:
        """Row by row: texts become numbers, words become bits, and what has no series is counted."""
        router = self._source.router
        out_routes: list[int] = []
        out_times: list[int] = []
        out_values: list[float | bool | str] = []
        for route, time_ns, value in zip(routes, rows.time_ns, rows.value, strict=True):
            found: tuple[tuple[int, int], ...] = ((route, -1),)
            if route < 0:
                detour = router.detours[-1 - route]
                if isinstance(detour, Refusal):
                    self.reject(*detour)
                    continue
                found = detour.bits
            for series, bit in found:
                number = self._number(series, value)
                if number is None:
                    continue
                out_routes.append(series)
                out_times.append(time_ns)
                out_values.append(number if bit < 0 else _bit(number, bit))
        return out_routes, out_times, out_values

    def _number(self, series: int, value: float | bool | str) -> float | None:
        """A text by its mapping; None, and counted, where it has none."""
        if not isinstance(value, str):
            return float(value)
        number = self._source.router.texts.get(series, {}).get(value)
        if number is None:
            self.reject(series, "unmapped")
            _, channel = self._source.router.names[series]
            self.letter("unmapped", f"the text has no mapping in the profile's [channel.{channel}]", value.encode())
        return number


class Intake:
    """All sources, and what they delivered and nobody has taken yet."""

    def __init__(
        self,
        limits: IntakeLimits,
        now_ns: Callable[[], int],
        resolve: Resolve,
        *,
        has_sample: Callable[[int], bool] = lambda series: False,
        gateway: str = "",
    ) -> None:
        """`resolve` gives the index of a series, and makes it if it is new, or says why there can be none;
        `has_sample`: whether anything ever came of one."""
        self.ready = asyncio.Event()
        """Set by each delivery; who waits for it clears it before draining."""
        self.sources: dict[str, Source] = {}
        self.waiting_samples = 0
        self.waiting_bytes = 0
        self.paused = False
        """The sources were told to wait."""
        self.unconfirmed: dict[str, bytes] = {}
        """By session: what senders may repeat that no source listens to now. Stores of before have it by source."""
        self._ending = False
        self._limits = limits
        self._now_ns = now_ns
        self._resolve = resolve
        self._has_sample = has_sample
        self._gateway = gateway
        self._pieces: deque[Piece] = deque()
        self._group: asyncio.TaskGroup | None = None
        self._running: dict[str, asyncio.Task[None]] = {}

    def add(
        self, name: str, driver: type[Any], options: Any, codec: Any, profile: Profile, *, probe: bool = False
    ) -> Source:
        """Add a source: a driver's class with its options, the codec (built) and profile of what it brings."""
        source = self.build(name, driver, options, codec, profile, self._limits, probe=probe)
        self.add_built(source)
        return source

    def add_built(self, source: Source) -> None:
        """Add what `build` has made, before `run`."""
        self.sources[source.name] = source
        self._recognise(source)
        source.attach()

    def _recognise(self, source: Source) -> None:
        """Its sender may repeat what was taken from it before, perhaps by a source of another name."""
        before = self.unconfirmed.pop(source.name, None)
        before = self.unconfirmed.pop(source.session, before)
        if before is not None:
            source.unconfirmed.restore(before)

    def build(
        self,
        name: str,
        driver: type[Any],
        options: Any,
        codec: Any,
        profile: Profile,
        limits: IntakeLimits,
        *,
        probe: bool = False,
        keep_driver: bool = False,
    ) -> Source:
        """A source that is not here yet. `keep_driver`: with the driver, open as it is, of the one with its name."""
        if keep_driver:
            return Source(name, profile, codec, limits, self._resolve, self.sources[name].driver, self._has_sample)
        if getattr(options, "client_id", None) == "" and self._gateway:
            options = msgspec.structs.replace(options, client_id=f"forebay-{self._gateway}-{name}")
        built = driver(name, options, partial(self._deliver, name), self._now_ns, probe=probe)
        return Source(name, profile, codec, limits, self._resolve, built, self._has_sample)

    async def replace(self, sources: list[Source], limits: IntakeLimits) -> None:
        """Go on with these sources alone, made by `build`; to be called while nobody drains.

        A driver that stays is not touched: no byte of its port, and no message of its session, is lost. The
        others are closed. What came through them and was not drained stays, unless its sender, who has seen no
        acknowledgement, repeats it.
        """
        stay = {source.name for source in sources if self._has(source)}
        closing = [self._running.pop(name) for name in self.sources.keys() - stay]
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        self._pieces = deque(p for p in self._pieces if p.marks is None or p.source.name in stay)
        self.waiting_samples = sum(len(piece.series) for piece in self._pieces)
        self.waiting_bytes = sum(piece.size_bytes for piece in self._pieces)
        before, self.sources = self.sources, {source.name: source for source in sources}
        self._limits = limits
        self.unconfirmed |= {s.session: s.unconfirmed.state() for s in before.values() if s.name not in stay}
        for source in sources:
            if source.name in before:
                source.follow(before[source.name])
            if source.name not in stay:
                self._recognise(source)
            source.attach()
            if source.name not in stay:
                if self.paused:
                    source.driver.pause()
                self._start(source.name)

    def _has(self, source: Source) -> bool:
        return source.name in self.sources and self.sources[source.name].driver is source.driver

    async def run(self) -> None:
        """Run all drivers, those of sources that come later too, until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            for name in self.sources:
                self._start(name)
            await asyncio.Event().wait()

    def _start(self, name: str) -> None:
        assert self._group is not None
        self._running[name] = self._group.create_task(self._supervise(name), name=f"source {name}")

    async def _supervise(self, name: str) -> None:
        """A driver's `run` neither ends nor raises; one that does must not take the gateway along."""
        driver = self.sources[name].driver
        while True:
            why = "it ended"
            try:
                await driver.run()
            except Exception as error:
                log.exception("the driver of source %s failed", name)
                why = f"{type(error).__name__}: {error}"
            self.sources[name].last_error = f"the driver failed ({why}); it is started again in {RESTART_S:g} s"
            await asyncio.sleep(RESTART_S)

    # -- in ------------------------------------------------------------------------------------------

    def _deliver(self, name: str, delivery: Delivery) -> None:
        source = self.sources[name]
        if not delivery.payloads and not len(source.unconfirmed):
            return  # the sender has forgotten what it sent before, and so have we
        piece = source.decode(delivery)
        self._put(piece)
        if source.watchers and delivery.payloads:
            _show(source, delivery, piece)
        if not self.paused and (
            self.waiting_samples >= self._limits.max_samples or self.waiting_bytes >= self._limits.max_bytes
        ):
            self._pause()

    def clock_stepped(self, by_ns: int) -> None:
        """What waits was stamped before the step."""
        for piece in self._pieces:
            piece.arrived_ns += by_ns

    def _put(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self.waiting_samples += len(piece.series)
        self.waiting_bytes += piece.size_bytes
        self.ready.set()

    def replay(self, letter: DeadLetter) -> str:
        """Take in a dead letter as a new delivery, which the next commit holds in its place; why not, or ""."""
        if letter.source not in self.sources:
            return f"there is no source {letter.source} now"
        piece = self.sources[letter.source].decode_again(letter)
        if isinstance(piece, str):
            return piece
        self._put(piece)
        return ""

    def pause(self) -> None:
        """Take nothing more: the daemon ends. What is here can still be drained."""
        self._ending = True
        self._pause()

    def _pause(self) -> None:
        self.paused = True
        for source in self.sources.values():
            source.driver.pause()

    # -- out -----------------------------------------------------------------------------------------

    @property
    def has_stopped(self) -> bool:
        """A source brings no more before it is acknowledged, whatever waits at its broker."""
        return any(source.unconfirmed.flow.has_stopped for source in self.sources.values())

    def drain(self, max_samples: int) -> Drained:
        """Take whole pieces until they hold `max_samples`: at most one piece more than that."""
        pieces: list[Piece] = []
        samples = 0
        while self._pieces and samples < max_samples:
            piece = self._pieces.popleft()
            pieces.append(piece)
            samples += len(piece.series)
            self.waiting_bytes -= piece.size_bytes
        self.waiting_samples -= samples
        limits = self._limits
        has_room = self.waiting_samples <= limits.max_samples // 2 and self.waiting_bytes <= limits.max_bytes // 2
        if self.paused and has_room and not self._ending:
            self.paused = False
            for source in self.sources.values():
                source.driver.resume()
        return _join(pieces)

    # -- watching ------------------------------------------------------------------------------------

    async def watch(self, name: str) -> AsyncGenerator[dict[str, Any], None]:
        """What a source brings from now on: raw bytes, decoded values, last error; each second how it is doing.

        Raises KeyError for a source that is not there.
        """
        source = self.sources[name]
        records: asyncio.Queue[dict[str, Any]] = asyncio.Queue(WATCH_RECORDS)
        source.watchers.append(records)
        try:
            while True:
                try:
                    record = await asyncio.wait_for(records.get(), WATCH_QUIET_S)
                except TimeoutError:
                    record = {"at_ns": self._now_ns()}
                status = source.status
                yield record | {"state": status.state, "error": status.error or source.last_error}
        finally:
            source.watchers.remove(records)


def _show(source: Source, delivery: Delivery, piece: Piece) -> None:
    """One record for everybody who watches; who is too slow misses some."""
    values = [
        {"device": device, "channel": channel, "time_ns": time_ns, "value": value}
        for (device, channel), time_ns, value in zip(
            (source.router.names[index] for index in piece.series[:WATCH_VALUES].tolist()),
            piece.time_ns[:WATCH_VALUES].tolist(),
            piece.value[:WATCH_VALUES].tolist(),
            strict=True,
        )
    ]
    raw = b"".join(delivery.payloads[:WATCH_VALUES])[:WATCH_BYTES]
    record = {
        "at_ns": delivery.arrived_ns,
        "topics": delivery.topics[:WATCH_VALUES] if delivery.topics is not None else None,
        "text": raw.decode("ascii", "backslashreplace"),
        "hex": raw.hex(" "),
        "values": values,
        "rejected": {reason: count for (_, reason), count in piece.rejects.items()},
    }
    for records in source.watchers:
        if not records.full():
            records.put_nowait(record)


def _join(pieces: list[Piece]) -> Drained:
    if not pieces:
        return Drained(SampleBatch.empty(), np.empty(0, np.int64), {}, [], [], {})
    counts = [len(piece.series) for piece in pieces]
    n = sum(counts)
    batch = SampleBatch(
        np.concatenate([piece.series for piece in pieces]),
        np.concatenate([piece.time_ns for piece in pieces]),
        np.concatenate([piece.value for piece in pieces]),
        np.zeros(n, np.uint8),
    )
    drained = Drained(
        batch, np.repeat(np.array([piece.arrived_ns for piece in pieces], np.int64), counts), {}, [], [], {}
    )
    for piece in pieces:
        for key, count in piece.rejects.items():
            drained.rejects[key] = drained.rejects.get(key, 0) + count
        drained.dead_letters += piece.dead_letters
        if piece.replayed:
            drained.replayed.append(piece.replayed)
        if piece.settle is not None:
            drained.settles.append(partial(_settle, piece))
        if piece.marks is not None:
            piece.source.unconfirmed.hold(piece.marks, piece.digests)
            drained.repeating[piece.source.session] = piece.source.unconfirmed
    return drained


def _settle(piece: Piece) -> None:
    assert piece.settle is not None
    piece.settle()
    if piece.marks is not None:
        piece.source.unconfirmed.acknowledged(piece.marks, piece.digests)


def looks_like_text(data: bytes) -> bool:
    """Whether bytes are mostly characters that lines of text are made of. Noise of a wrong baud rate is not."""
    sample = data[:NOISE_SAMPLE_BYTES]
    strange = len(sample.translate(None, _TEXT_BYTES))
    return strange * 10 <= len(sample)


def _bit(number: float, bit: int) -> float:
    return float(int(number) >> bit & 1) if math.isfinite(number) else math.nan


def _too_long(message: bytes, limit: int) -> DecodeError:
    return DecodeError(f"a message of {len(message)} bytes; the limit is {limit}", "oversize")
