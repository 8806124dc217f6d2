"""Lanes, publishing and receipts: the outbox on its way to the cloud.

A frame is in one of these states, and this module's index (`Outbox`) is the only judge of which:

  held       above its lane's send limit: never published, may be merged or dropped by edge/retention.py
  due        at or below the limit, not on its way: published as soon as link and budget allow
  published  sent, waiting for its receipt; due again after `receipt_timeout`, doubling to 5 min, with jitter
  slow       sent five times while others were receipted: out of the window, so that it holds up nothing
  receipted  gone with the next commit

What a crash leaves: a frame is deleted by the commit that follows its receipt, so a crash in between
sends it again, which changes nothing in the cloud (design §4.2). The send limit is raised in a commit and
published from only after it, so no frame that may have been seen by the cloud is ever merged.

The window of a lane counts the bytes at or below its limit that have no receipt; alarms have a window of
their own, so a backlog never stands before an alarm.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple, Protocol

from devices.errors import ForebayError, FrameError
from devices.model import Lane
from devices.wire import topics
from devices.wire.receipt import Receipt, decode_receipt
from devices.wire.receive import Inbound
from devices.wire.topics import Correlation, parse_correlation
from edge.custody import OutboxRow

log = logging.getLogger("forebay.uplink")

SENDS_BEFORE_SLOW = 5
RECEIPT_TIMEOUT_MAX_S = 300.0
NOBODY_LISTENS_S = (1.0, 30.0)
"""Wait after PUBACK 0x10 (no ingester is subscribed): first, and at most."""
PUBACK_NOBODY_LISTENS = 0x10
CACHE_BYTES = 4 << 20
"""Frames just committed are kept in memory up to this much, so that live data need not be read back."""


class Link(Protocol):
    """What the uplink needs of a session; the simulation has one of its own."""

    @property
    def connected(self) -> bool: ...

    def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> int | None: ...


class Answer(NamedTuple):
    """A receipt that matched a frame of the outbox."""

    row: OutboxRow
    receipt: Receipt


@dataclass(slots=True)
class _Flight:
    """What is known of a frame beside its row."""

    row: OutboxRow
    sends: int = 0
    due_at_s: float = 0.0
    """Loop time from which it may be published (again)."""
    receipts_seen: int = 0
    """Receipts of the whole uplink at its last send: the frame is slow only if others got through."""
    slow: bool = False


@dataclass(slots=True)
class _LaneState:
    limit: int = 0
    below: dict[int, _Flight] = field(default_factory=dict)
    """At or below the send limit, by seq."""
    above: dict[int, OutboxRow] = field(default_factory=dict)
    """Held: above the limit, in order of seq."""
    window_bytes: int = 0


class Outbox:
    """The index of the outbox: which frames there are, and which may go. Plain decisions, no waiting."""

    def __init__(self, rows: Iterable[OutboxRow], limits: dict[Lane, int], window_bytes: int) -> None:
        self._window_limit = window_bytes
        self._lanes = {lane: _LaneState(limits.get(lane, 0)) for lane in Lane}
        self._lane_of: dict[int, Lane] = {}
        self.size_bytes = 0
        self.receipts = 0
        for row in rows:
            self._insert(row)

    def __len__(self) -> int:
        return len(self._lane_of)

    def rows(self) -> list[OutboxRow]:
        """All frames, oldest first."""
        found = [self._row(seq) for seq in self._lane_of]
        return sorted(found, key=lambda row: row.seq)

    def held(self) -> list[OutboxRow]:
        """The frames that were never published."""
        return [row for state in self._lanes.values() for row in state.above.values()]

    def has_held(self, leaf: str) -> bool:
        """Whether a frame for this topic leaf has never been published."""
        return any(row.leaf == leaf for state in self._lanes.values() for row in state.above.values())

    def slow(self) -> list[int]:
        return [seq for state in self._lanes.values() for seq, flight in state.below.items() if flight.slow]

    def _row(self, seq: int) -> OutboxRow:
        state = self._lanes[self._lane_of[seq]]
        flight = state.below.get(seq)
        return flight.row if flight else state.above[seq]

    def find(self, seq: int) -> OutboxRow | None:
        return self._row(seq) if seq in self._lane_of else None

    def _insert(self, row: OutboxRow) -> None:
        state = self._lanes[row.lane]
        self._lane_of[row.seq] = row.lane
        self.size_bytes += row.size_bytes
        if row.seq <= state.limit:
            state.below[row.seq] = _Flight(row)
            state.window_bytes += row.size_bytes
        else:
            state.above[row.seq] = row

    def remove(self, seq: int) -> None:
        lane = self._lane_of.pop(seq)
        state = self._lanes[lane]
        flight = state.below.pop(seq, None)
        row = flight.row if flight else state.above.pop(seq)
        self.size_bytes -= row.size_bytes
        if flight and not flight.slow:
            state.window_bytes -= row.size_bytes

    def plan_limits(self, new: Iterable[OutboxRow]) -> dict[Lane, int]:
        """The send limits that the windows allow, once `new` is committed; only those that change."""
        limits = {}
        for lane, state in self._lanes.items():
            limit, window = state.limit, state.window_bytes
            for row in (*state.above.values(), *(row for row in new if row.lane == lane)):
                if window and window + row.size_bytes > self._window_limit:
                    break
                limit, window = row.seq, window + row.size_bytes
            if limit != state.limit:
                limits[lane] = limit
        return limits

    def waits_for_window(self) -> bool:
        """Whether frames are held that receipts would let go."""
        return any(state.above for state in self._lanes.values())

    def committed(self, new: Iterable[OutboxRow], limits: dict[Lane, int]) -> None:
        """The commit with these frames and limits is durable."""
        for lane, limit in limits.items():
            state = self._lanes[lane]
            state.limit = limit
            for seq in list(takewhile(limit.__ge__, state.above)):
                row = state.above.pop(seq)
                state.below[seq] = _Flight(row)
                state.window_bytes += row.size_bytes
        for row in new:
            self._insert(row)

    def live_limit(self) -> int:
        return self._lanes[Lane.LIVE].limit

    def to_backfill(self, above: int) -> None:
        """Live frames above this seq are backlog: they follow what is made from now on."""
        live, backfill = self._lanes[Lane.LIVE], self._lanes[Lane.BACKFILL]
        for seq in [seq for seq in live.above if seq > above]:
            row = live.above.pop(seq)
            row.lane = Lane.BACKFILL
            self._lane_of[seq] = Lane.BACKFILL
            backfill.above[seq] = row

    def due(self, now_s: float) -> list[_Flight]:
        """What may be published now: lane by lane, oldest first."""
        return [f for state in self._lanes.values() for f in state.below.values() if f.due_at_s <= now_s]

    def next_due_s(self) -> float:
        """The loop time at which the next frame is due; infinity when none is below a limit."""
        return min((f.due_at_s for s in self._lanes.values() for f in s.below.values()), default=float("inf"))

    def published(self, flight: _Flight, now_s: float, timeout_s: float, jitter: float) -> None:
        flight.sends += 1
        wait_s = min(timeout_s * 2 ** (flight.sends - 1), RECEIPT_TIMEOUT_MAX_S)
        flight.due_at_s = now_s + wait_s * (0.75 + 0.5 * jitter)
        others_got_through = self.receipts > flight.receipts_seen
        flight.receipts_seen = self.receipts
        if flight.sends > SENDS_BEFORE_SLOW and others_got_through and not flight.slow:
            flight.slow = True
            self._lanes[flight.row.lane].window_bytes -= flight.row.size_bytes
            log.warning("frame %d has no receipt after %d sends: moved to the slow lane", flight.row.seq, flight.sends)

    def postpone(self, seq: int, until_s: float) -> None:
        """Not before then: nobody was subscribed."""
        if seq in self._lane_of and (flight := self._lanes[self._lane_of[seq]].below.get(seq)):
            flight.due_at_s = until_s

    def link_lost(self) -> None:
        """What was on its way may be lost with the link: all of it is due again."""
        for state in self._lanes.values():
            for flight in state.below.values():
                flight.due_at_s = 0.0


class TokenBucket:
    """At most `rate` bytes a second over any longer time, in bursts of up to one second's worth."""

    def __init__(self, rate_bytes_per_s: float) -> None:
        self._rate = rate_bytes_per_s
        self._tokens = rate_bytes_per_s
        self._at_s = 0.0

    def wait_s(self, size_bytes: int, now_s: float) -> float:
        """0.0, and the tokens are taken; or how long until they will be there."""
        if self._rate <= 0:
            return 0.0
        self._tokens = min(self._rate, self._tokens + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._tokens < min(size_bytes, self._rate):
            return (min(size_bytes, self._rate) - self._tokens) / self._rate
        self._tokens -= size_bytes
        return 0.0


class Uplink:
    """Publishes what is due and collects receipts, until cancelled."""

    def __init__(
        self,
        gateway: str,
        epoch: int,
        outbox: Outbox,
        read_frames: Callable[[list[int]], Awaitable[dict[int, bytes]]],
        *,
        receipt_timeout_s: float,
        max_rate_bytes_per_s: float,
        random_source: random.Random | None = None,
    ) -> None:
        self.outbox = outbox
        self.link: Link | None = None
        self.answered = asyncio.Event()
        """Set when something waits for the pump: receipts, or a backlog that is to change its lane."""
        self.nobody_listens = False
        self.reconnected = False
        """Set at each connect, until the pump has moved the backlog to its lane."""
        self._gateway = gateway
        self._epoch = epoch
        self._read_frames = read_frames
        self._receipt_timeout_s = receipt_timeout_s
        self._bucket = TokenBucket(max_rate_bytes_per_s)
        self._random = random_source or random.Random()
        self._wake = asyncio.Event()
        self._answers: dict[int, Answer] = {}
        self._settling: set[int] = set()
        """Answered and taken by the pump; their removal is not committed yet."""
        self._cache: dict[int, bytes] = {}
        self._cache_bytes = 0
        self._mids: dict[int, int] = {}
        self._quiet_s = NOBODY_LISTENS_S[0]
        self.frames_published = 0
        self.frames_receipted = 0

    # -- the pump's side -----------------------------------------------------------------------------

    def committed(self, frames: list[tuple[OutboxRow, bytes]], limits: dict[Lane, int], removed: list[int]) -> None:
        """A commit is durable: its frames and limits count from now on."""
        for seq in removed:
            self._forget(seq)
        self.outbox.committed([row for row, _ in frames], limits)
        for row, frame in frames:
            if self._cache_bytes + len(frame) <= CACHE_BYTES:
                self._cache[row.seq] = frame
                self._cache_bytes += len(frame)
        self._wake.set()

    def _forget(self, seq: int) -> None:
        self.outbox.remove(seq)
        self._settling.discard(seq)
        self._cache_bytes -= len(self._cache.pop(seq, b""))

    def take_answers(self) -> list[Answer]:
        """The receipts since the last call; their frames are to be removed by the next commit."""
        answers, self._answers = list(self._answers.values()), {}
        self._settling.update(answer.row.seq for answer in answers)
        return answers

    # -- the session's side --------------------------------------------------------------------------

    def on_connect(self, session_present: bool) -> None:
        self.outbox.link_lost()
        self._mids.clear()
        self.reconnected = True
        self.answered.set()
        self._wake.set()

    def on_disconnect(self, error: ForebayError) -> None:
        log.warning("uplink: %s", error)
        self._mids.clear()

    def on_published(self, mid: int, reason_code: int) -> None:
        """PUBACK: the broker has it. That frees nothing; but 0x10 says that no ingester is there."""
        seq = self._mids.pop(mid, None)
        if reason_code == PUBACK_NOBODY_LISTENS and seq is not None:
            self.nobody_listens = True
            until_s = asyncio.get_running_loop().time() + self._quiet_s
            self._quiet_s = min(self._quiet_s * 2, NOBODY_LISTENS_S[1])
            self.outbox.postpone(seq, until_s)
            self._wake.set()

    def on_messages(self, inbound: Inbound) -> None:
        """Receipts. One counts only if epoch, seq and digest all match a frame that is there."""
        for payload, data in zip(inbound.payloads, inbound.correlations, strict=True):
            try:
                self._receipt(parse_correlation(data or b""), payload)
            except FrameError as error:
                log.warning("a receipt that cannot be read was ignored: %s", error)

    def _receipt(self, told: Correlation, payload: bytes) -> None:
        row = self.outbox.find(told.seq)
        if row is None or told.epoch != self._epoch or told.digest != row.digest or self._is_answered(told.seq):
            return
        self._answers[told.seq] = Answer(row, decode_receipt(payload))
        self.outbox.receipts += 1
        self.frames_receipted += 1
        self.nobody_listens = False
        self._quiet_s = NOBODY_LISTENS_S[0]
        self.answered.set()

    def _is_answered(self, seq: int) -> bool:
        return seq in self._answers or seq in self._settling

    # -- publishing ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Publish what is due, as it falls due, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            wait_s = await self._publish_due(loop)
            try:
                await asyncio.wait_for(self._wake.wait(), None if wait_s == float("inf") else wait_s)
            except TimeoutError:
                continue

    async def _publish_due(self, loop: asyncio.AbstractEventLoop) -> float:
        """Publish until nothing is due, and say how long until something is."""
        link = self.link
        if link is None or not link.connected:
            return float("inf")
        due = [f for f in self.outbox.due(loop.time()) if not self._is_answered(f.row.seq)]
        for start in range(0, len(due), 16):
            frames = await self._frames([f.row.seq for f in due[start : start + 16]])
            for flight in due[start : start + 16]:
                row = flight.row
                if row.seq not in frames or self.outbox.find(row.seq) is None:
                    continue
                wait_s = self._bucket.wait_s(row.size_bytes, loop.time())
                if wait_s:
                    return wait_s
                if not self._publish(link, row, frames[row.seq]):
                    return float("inf")
                self.outbox.published(flight, loop.time(), self._receipt_timeout_s, self._random.random())
        return max(self.outbox.next_due_s() - loop.time(), 0.0)

    def _publish(self, link: Link, row: OutboxRow, frame: bytes) -> bool:
        data = topics.correlation(self._epoch, row.seq, frame)
        mid = link.publish(topics.topic(self._gateway, row.leaf), frame, correlation=data)
        if mid is None:
            return False
        self._mids[mid] = row.seq
        self.frames_published += 1
        return True

    async def _frames(self, seqs: list[int]) -> dict[int, bytes]:
        frames = {seq: self._cache[seq] for seq in seqs if seq in self._cache}
        missing = [seq for seq in seqs if seq not in frames]
        if missing:
            frames |= await self._read_frames(missing)
        return frames
