"""Publishing and receipts: the outbox on its way to the cloud.

    outbox.due ─▶ budget ─▶ publish ─▶ broker ─▶ ingester ─▶ sink
                              ▲                                │
       next commit ◀─ answers ◀─ receipt (epoch, seq, digest) ◀┘

Which frames there are and which may go, edge/outbox.py says; this module waits, publishes, and takes answers.

A frame, from its commit to the one that removes it:

    held ── a commit raises the send limit ──▶ due ── publish ──▶ published ── receipt ──▶ leaving ── commit ──▶ gone
      │                                         ▲                   │    │                    ▲
      │                                         ├── PUBACK 0x10 ────┤    └─ five times: slow ─┤ published again at
      │                                         ├── link lost ──────┤                         │ times, until a receipt
      │                                         └── no receipt ─────┘                         │
      └── the store fills: merged, or dropped (then published ones as well) ──────────────────┘

Any other PUBACK changes nothing in this; with 0x10, "nobody is subscribed", the broker has thrown the frame away.
What a receipt says (stored, rejected in part, refused: a dead letter), edge/receipts.py moves into the ledger. Of a
frame that was dropped after it was published the receipt may still come, and is taken.

The link, and when frames go over it:

    away ── CONNACK ──▶ open ── PUBACK 0x10 ──▶ nobody listens ── PUBACK 0, a receipt, CONNACK ──▶ open
      ▲                  │                            │
      └────── lost ──────┴────────────────────────────┘

    away              no send limit rises: what is held may be merged
    open              what is due goes, by lane, within `max_rate`, the window and the month's budget (edge/budget.py)
    nobody listens    the smallest frame of each topic now and again, 1 s to 30 s apart; all others wait

What a crash leaves, by where it comes (in the store; nothing else outlives the process). A PUBACK frees nothing.
  between ... and ...                      what is on the disk           what the next start does
  the frame's commit  its send limit       the frame, held               holds it: it may still be merged or dropped
  the send limit      the publishing       frame and limit               publishes it, as if for the second time
  the publishing      the PUBACK           the same                      publishes it again, as after a lost link
  the PUBACK          the receipt          the same                      the same: points have their keys, so that a
                                                                         second writing changes nothing (§4.2)
  the receipt         the commit after it  the same                      the same; the second receipt ends it
  the commit          -                    nothing of it                 a receipt that comes late matches no frame
  a month's bytes     the commit after     the account without them      counts at most the last commit's bytes too few
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from devices.errors import ForebayError, FrameError, StoreError
from devices.model import Lane
from devices.wire import topics
from devices.wire.receipt import Receipt, decode_receipt
from devices.wire.receive import Inbound
from devices.wire.topics import Correlation, parse_correlation
from edge.budget import MonthBudget, Stage, TokenBucket
from edge.custody import OutboxRow
from edge.outbox import Flight, Outbox
from edge.twins import Twins
from edge.underway import Underway

log = logging.getLogger("forebay.uplink")

NOBODY_LISTENS_S = (1.0, 30.0)
"""Wait after PUBACK 0x10 (no ingester is subscribed): first, and at most."""
PUBACK_NOBODY_LISTENS = 0x10
PUBACK_REFUSED = 0x80
FRAMES_AT_ONCE = 16
"""Read from the store and published before it is looked whether something more urgent has come."""
CACHE_BYTES = 4 << 20
"""Frames just committed are kept in memory up to this much, so that live data need not be read back."""
STORE_RETRY_S = 1.0
MONTH_LOOK_S = 60.0
"""How often at least the socket is looked at for the month's budget."""


class Link(Protocol):
    """What the uplink needs of a session; the simulation has one of its own."""

    @property
    def connected(self) -> bool: ...

    @property
    def bytes_in(self) -> int: ...

    @property
    def bytes_out(self) -> int: ...

    @property
    def broker_max_packet_bytes(self) -> int: ...

    def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> int | None: ...


class Answer(NamedTuple):
    """A receipt that matched a frame of the outbox."""

    row: OutboxRow
    receipt: Receipt
    was_dropped: bool = False
    """It had been published and then dropped: `unconfirmed` until now."""


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
        month: MonthBudget | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        random_source: random.Random | None = None,
    ) -> None:
        """`month`: what may be sent in a month, by `now_ns`, in UTC."""
        self.outbox = outbox
        self.link: Link | None = None
        self.answered = asyncio.Event()
        """Set when something waits for the pump: receipts, or a backlog that is to change its lane."""
        self.nobody_listens = False
        self.refusal = ""
        """Why the broker takes no frames, as a sentence; "" while it does."""
        self.reopened = False
        """The way is open again: until the pump has moved the backlog to its lane."""
        self.twins = Twins(gateway)
        self._gateway = gateway
        self._epoch = epoch
        self._read_frames = read_frames
        self._receipt_timeout_s = receipt_timeout_s
        self._bucket = TokenBucket(max_rate_bytes_per_s)
        self.month = month
        self.stage = Stage.FREE
        """What the month's budget allows."""
        self.release = False
        """What was held to be merged may go, with the next commit (edge/committer.py)."""
        self._now_ns = now_ns
        self._random = random_source or random.Random()
        self._wake = asyncio.Event()
        self._answers: list[Answer] = []
        self._cache: dict[int, bytes] = {}
        self._cache_bytes = 0
        self._mids: dict[int, int] = {}
        self._underway = Underway()
        self._quiet_s = NOBODY_LISTENS_S[0]
        self._quiet_until_s = 0.0
        self.frames_published = 0
        self.frames_receipted = 0

    # -- the pump's side -----------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether what is published now is likely to arrive; only then send limits are raised."""
        return self.link is not None and self.link.connected and not self.nobody_listens

    @property
    def flows(self) -> bool:
        """Whether everything is sent as it comes."""
        return self.is_open and self.stage == Stage.FREE

    @property
    def saves(self) -> bool:
        """Whether summaries are to be held, and merged before they go (edge/budget.py)."""
        return self.is_open and self.stage == Stage.SAVING

    def plan_limits(self, new: list[OutboxRow], to_backfill: bool) -> dict[Lane, int]:
        """The send limits for the next commit. While the way is shut frames are held, so that they may be merged;
        but one is needed to find out whether somebody listens again."""
        if not self.is_open and (not self.nobody_listens or self.outbox.has_published()):
            return {}
        limits = self.outbox.plan_limits(new, to_backfill)
        if self.stage >= Stage.ALARMS_ONLY or (self.saves and not self.release):
            return {lane: limit for lane, limit in limits.items() if lane == Lane.ALARM}
        return limits

    def month_row(self, last: bool) -> bytes:
        """What the next commit, or the last one, should keep of the month's budget; empty: nothing."""
        return self.month.row(last) if self.month is not None else b""

    def committed(
        self, frames: list[tuple[OutboxRow, bytes]], limits: dict[Lane, int], removed: list[int], to_backfill: bool
    ) -> None:
        """A commit is durable: its frames and limits count from now on."""
        self.release = False
        for seq in removed:
            self._cache_bytes -= len(self._cache.pop(seq, b""))
        self.outbox.committed([row for row, _ in frames], limits, removed, to_backfill)
        for row, frame in frames:
            if self._cache_bytes + len(frame) <= CACHE_BYTES:
                self._cache[row.seq] = frame
                self._cache_bytes += len(frame)
        self._wake.set()

    def take_answers(self) -> list[Answer]:
        """The receipts since the last call; their frames are to be removed by the next commit."""
        answers, self._answers = self._answers, []
        return answers

    # -- a reload ------------------------------------------------------------------------------------

    def adjust(
        self,
        *,
        window_bytes: int,
        receipt_timeout_s: float,
        max_rate_bytes_per_s: float,
        month: MonthBudget | None,
    ) -> None:
        """Other settings from now on; what is on its way stays on its way."""
        self.outbox.resize(window_bytes)
        self._receipt_timeout_s = receipt_timeout_s
        self._bucket.rate_bytes_per_s = max_rate_bytes_per_s
        if month is not None and month is not self.month and self.link is not None:
            month.count_from(self.link.bytes_in, self.link.bytes_out)
        self.month = month
        if month is None:
            self._enter(Stage.FREE)
        self._wake.set()

    def relink(self, link: Link) -> None:
        """Publish over this link from now on; the one before it has ended."""
        self._look_at_month(asyncio.get_running_loop().time())
        self.link = link
        if self.month is not None:
            self.month.count_from(link.bytes_in, link.bytes_out)

    # -- the session's side --------------------------------------------------------------------------

    def on_connect(self, session_present: bool) -> None:
        self.outbox.link_lost()
        self._mids.clear()
        self._underway.clear()
        self._heard()

    def on_disconnect(self, error: ForebayError) -> None:
        """The session has said why."""
        self._mids.clear()

    def on_published(self, mid: int, reason_code: int) -> None:
        """PUBACK: the broker has it. That frees nothing; but 0x10 says that no ingester is there."""
        seq = self._mids.pop(mid, None)
        if seq is None:
            return
        self._is_taken(seq)
        if reason_code == PUBACK_NOBODY_LISTENS:
            self._not_heard(seq)
        elif reason_code >= PUBACK_REFUSED:
            refusal = f"the broker refuses frames (reason {reason_code:#x}): its access list, quota or size limit"
            if refusal != self.refusal:
                log.error("%s; they are kept, and sent again later", refusal)
            self.refusal = refusal
        else:
            self.refusal = ""
            if self.nobody_listens:
                self._heard()

    def _is_taken(self, seq: int) -> None:
        self._underway.taken(seq, asyncio.get_running_loop().time())
        self._wake.set()

    def _not_heard(self, seq: int) -> None:
        self.outbox.not_sent(seq)
        if not self.nobody_listens:
            self.nobody_listens = True
            self._be_quiet(asyncio.get_running_loop().time())
            log.warning("no ingester is subscribed at the broker: frames are kept, and one is tried now and again")
        self._wake.set()

    def _be_quiet(self, now_s: float) -> None:
        self._quiet_until_s = now_s + self._quiet_s
        self._quiet_s = min(self._quiet_s * 2, NOBODY_LISTENS_S[1])

    def _heard(self) -> None:
        """Somebody listens, or may: what was thrown away is due, and the backlog may go."""
        self.nobody_listens = False
        self._quiet_s = NOBODY_LISTENS_S[0]
        self.reopened = True
        self.answered.set()
        self._wake.set()

    def on_messages(self, inbound: Inbound) -> None:
        """Receipts. One counts only if epoch, seq and digest all match a frame that is there."""
        for payload, data in zip(inbound.payloads, inbound.correlations, strict=True):
            try:
                self._receipt(parse_correlation(data or b""), payload)
            except FrameError as error:
                log.warning("a receipt that cannot be read was ignored: %s", error)

    def _receipt(self, told: Correlation, payload: bytes) -> None:
        waits = self.outbox.find(told.seq)
        row = waits or self.outbox.given_up(told.seq)
        if told.epoch != self._epoch or (row is not None and told.digest != row.digest):
            self._not_ours(told)
            return
        if row is None:
            return
        receipt = decode_receipt(payload)
        self._is_taken(told.seq)
        if waits:
            row = self.outbox.receipted(told.seq, asyncio.get_running_loop().time())
            self._answers.append(Answer(row, receipt))
        else:
            self._answers.append(Answer(self.outbox.receipted_late(told.seq), receipt, was_dropped=True))
        self.frames_receipted += 1
        if self.nobody_listens:
            self._heard()
        self.answered.set()

    def _not_ours(self, told: Correlation) -> None:
        now_s = asyncio.get_running_loop().time()
        if self.twins.answered(told.epoch, told.seq, now_s):
            log.error("%s", self.twins.sentence(now_s))

    # -- publishing ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Publish what is due, as it falls due, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            self._look_at_month(loop.time())
            wait_s = await self._publish_due(loop)
            if self.month is not None:
                wait_s = min(wait_s, MONTH_LOOK_S)
            # Not `wait_for`, which in Python 3.11 may swallow a cancellation.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wait_s == float("inf") else wait_s):
                    await self._wake.wait()

    def _look_at_month(self, now_s: float) -> None:
        if self.month is None or self.link is None:
            return
        was = self.stage
        self._enter(self.month.look(self._now_ns(), now_s, self.link.bytes_in, self.link.bytes_out))
        if self.stage != was:
            log.log(logging.WARNING if self.stage > was else logging.INFO, "%s", self.month.sentence())

    def _enter(self, stage: Stage) -> None:
        if stage != self.stage:
            self.reopened |= stage < self.stage  # what was held is backlog
            self.stage = stage
            self.answered.set()

    async def _publish_due(self, loop: asyncio.AbstractEventLoop) -> float:
        """Publish until nothing is due, or something has come that may go first; how long until something is due."""
        link = self.link
        if link is None or not link.connected:
            return float("inf")
        if self.nobody_listens and loop.time() < self._quiet_until_s:
            return self._quiet_until_s - loop.time()
        due = self.outbox.due(loop.time())
        if self.nobody_listens and due:
            # One for each topic: an ingester may be there for data, and the one for alarms not, or the other way round.
            largest_first = sorted(due, key=lambda flight: -flight.row.size_bytes)
            due = list({flight.row.leaf: flight for flight in largest_first}.values())
            self._be_quiet(loop.time())
        for start in range(0, len(due), FRAMES_AT_ONCE):
            part = due[start : start + FRAMES_AT_ONCE]
            try:
                frames = await self._frames([flight.row.seq for flight in part])
            except StoreError as error:
                log.error("%s; trying again in %g s", error, STORE_RETRY_S)
                return STORE_RETRY_S
            for flight in part:
                wait_s = self._publish(link, flight, frames, loop.time())
                if wait_s:
                    return wait_s
            if self._wake.is_set():
                return 0.0
        return max(self.outbox.next_due_s() - loop.time(), 0.0)

    def _publish(self, link: Link, flight: Flight, frames: dict[int, bytes], now_s: float) -> float:
        """Publish one frame; how long to wait with all others: 0.0, or until the budget or the link allows it."""
        row = flight.row
        if self.outbox.find(row.seq) is None:
            return 0.0  # receipted while it was read
        if row.seq not in frames:
            log.error("frame %d cannot be read back", row.seq)
            self.outbox.published(flight, now_s, self._receipt_timeout_s, self._random.random())
            return 0.0
        urgent = row.lane == Lane.ALARM
        if not urgent and not self._underway.may(row.size_bytes, now_s):
            return float("inf")  # until a PUBACK
        if self.month is not None and not self.month.may(row.size_bytes, urgent=urgent):
            return MONTH_LOOK_S
        wait_s = self._bucket.wait_s(row.size_bytes, now_s, urgent=urgent)
        if wait_s:
            return wait_s
        frame = frames[row.seq]
        data = topics.correlation(self._epoch, row.seq, frame)
        mid = link.publish(topics.topic(self._gateway, row.leaf), frame, correlation=data)
        if mid is None:
            return float("inf")
        self._mids[mid] = row.seq
        self._underway.sent(row.seq, row.size_bytes)
        self.frames_published += 1
        if self.month is not None:
            self.month.published(row.size_bytes)
        self.outbox.published(flight, now_s, self._receipt_timeout_s, self._random.random())
        return 0.0

    async def _frames(self, seqs: list[int]) -> dict[int, bytes]:
        frames = {seq: self._cache[seq] for seq in seqs if seq in self._cache}
        missing = [seq for seq in seqs if seq not in frames]
        if missing:
            frames |= await self._read_frames(missing)
        return frames
