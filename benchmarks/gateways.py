"""Some of the gateways of `benchmarks/fleet.py`, on the event loop of a process of its own.

Session, uplink, outbox, pace and sealer are the product's own; in the place of pump and store stand a dictionary
of frames and a commit of nothing 50 ms after there is something to commit. `Gateway.made` and `Gateway.alarms` are
its record, against which the database is held at the end.

    parent                               child (`carry`)
      │ ───────── spawn ───────────────▶   makes the backlog
      │ ◀──────── Progress, twice a second: ready, connected, what is left of the backlog
      │ ───────── END ─────────────────▶   makes nothing new, waits for its last receipts
      │ ◀──────── Tally
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.model import CHANGE_DTYPE, SECOND_NS, SUMMARY_DTYPE, Alarm, Lane, SampleBatch, SeriesSpec
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions
from devices.wire.topics import parse_correlation, topic
from edge.config import UplinkConfig
from edge.custody import OutboxRow
from edge.operators import Closed
from edge.outbox import Outbox
from edge.seal import Sealed, Sealer, will
from edge.uplink import PUBACK_NOBODY_LISTENS, Uplink

WINDOW_S, FRAME_S = 10, 60
ALARM_EVERY_S = 60.0
COMMIT_GAP_S = 0.05
LAG_EVERY_S = 0.05
PROGRESS_EVERY_S = 0.5
LAST_RECEIPTS_S = 90.0
"""Longer than the longest wait for a receipt that is asked for once more."""
END = "end"


@dataclass(frozen=True)
class Plan:
    """What every gateway has and does."""

    broker: str
    series: int
    backlog_s: int
    """Seconds of windows of 10 s, in frames of a minute."""
    max_rate: int
    """Bytes a second."""
    alarm_every_s: float = ALARM_EVERY_S
    """On average."""


@dataclass
class Progress:
    backlog: int
    """Frames without a receipt."""
    connected: int
    alarm_s: list[float]
    """Of the alarms since the last one."""


@dataclass
class Tally:
    """What the gateways of one process have to say at the end: by name, or all together."""

    points: dict[str, int] = field(default_factory=dict)
    """Summaries made."""
    alarms: dict[str, int] = field(default_factory=dict)
    sent_bytes: dict[str, int] = field(default_factory=dict)
    alarm_s: list[float] = field(default_factory=list)
    live_s: list[float] = field(default_factory=list)
    lag_s: list[float] = field(default_factory=list)
    """How much later than asked the event loop woke up: what the bench itself adds to a latency."""
    backlog_bytes: int = 0
    frames: int = 0
    publications: int = 0
    thrown_away: int = 0
    """Publications that the broker answered with 0x10: no ingester was back yet."""
    waiting: int = 0
    """Frames that have no receipt even now."""


class Gateway:
    """The uplink of one gateway, over frames in memory."""

    def __init__(self, number: int, plan: Plan) -> None:
        self.name = f"gateway-{number:04}"
        self.made = self.alarms = self.sent_bytes = self.backlog_bytes = self.thrown_away = 0
        self.live_s: list[float] = []
        self.alarm_s: list[float] = []
        """From the making to the receipt, of what was made while the way was open."""
        self.frames: dict[int, bytes] = {}
        self.sent: dict[int, int] = {}
        """Frame -> how often it was published."""
        self.backlog: set[int] = set()
        self.plan = plan
        self._rng = random.Random(number)
        self._specs = [SeriesSpec(f"press-{n // 5}", f"c{n % 5}", "temperature", "°C") for n in range(plan.series)]
        epoch = 1_000_000 + number
        self._sealer = Sealer(self.name, epoch, 1, self._specs)
        self._new: list[Sealed] = []
        self._made_open: set[int] = set()
        self._window = 0
        """The next one, counted from the epoch of time."""
        options = UplinkConfig(plan.broker)
        self.uplink = Uplink(
            self.name,
            epoch,
            Outbox([], {}, options.window_bytes),
            self._read,
            receipt_timeout_s=options.receipt_timeout.s,
            max_rate_bytes_per_s=plan.max_rate,
        )
        self.session = Session(
            SessionOptions(
                broker=plan.broker,
                client_id=f"forebay-{self.name}",
                keepalive_s=int(options.keepalive.s),
                clean_start=True,
                session_expiry_s=0,
                will=(topic(self.name, "state"), will(self.name)),
            ),
            on_messages=self._on_messages,
            on_connect=self.uplink.on_connect,
            on_disconnect=self.uplink.on_disconnect,
            on_published=self._on_published,
        )
        self.session.subscribe([(topic(self.name, "receipt"), 1)])
        link: Any = self
        self.uplink.link = link

    # -- what the uplink asks ------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self.session.connected

    def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> int | None:
        mid = self.session.publish(topic, payload, correlation=correlation)
        if mid is not None and correlation is not None:
            seq = parse_correlation(correlation).seq
            self.sent[seq] = self.sent.get(seq, 0) + 1
            self.sent_bytes += len(payload)
        return mid

    async def _read(self, seqs: list[int]) -> dict[int, bytes]:
        return {seq: self.frames[seq] for seq in seqs if seq in self.frames}

    def _on_published(self, mid: int, reason: int) -> None:
        self.thrown_away += reason == PUBACK_NOBODY_LISTENS
        self.uplink.on_published(mid, reason)

    def _on_messages(self, inbound: Inbound) -> None:
        self.uplink.on_messages(inbound)
        self.session.acknowledge(inbound.packet_ids, inbound.connection)

    # -- in the pump's place -------------------------------------------------------------------------

    def make_backlog(self) -> None:
        now_ns = time.time_ns()
        self._window = now_ns // SECOND_NS // WINDOW_S - self.plan.backlog_s // WINDOW_S
        for _ in range(0, self.plan.backlog_s, FRAME_S):
            self._new += self._sealer.backlog(self._windows(FRAME_S // WINDOW_S), now_ns)
        self.backlog = {row.seq for row, _ in self._new}
        self.backlog_bytes = sum(len(frame) for _, frame in self._new)

    def _windows(self, windows: int) -> NDArray[Any]:
        n = len(self._specs) * windows
        rows = np.zeros(n, SUMMARY_DTYPE)
        rows["series"] = np.arange(n) // windows
        rows["time_ns"] = (self._window + np.arange(n) % windows) * WINDOW_S * SECOND_NS
        rows["span_ns"], rows["count"], rows["increase"] = WINDOW_S * SECOND_NS, WINDOW_S, np.nan
        middle = np.array([round(61 + self._rng.gauss(0, 3), 3) for _ in range(n)])
        rows["mean"], rows["stddev"], rows["min"], rows["max"] = middle, 0.125, middle - 0.5, middle + 0.5
        rows["first"] = rows["last"] = middle
        self._window += windows
        self.made += n
        return rows

    async def live(self) -> None:
        """One window of each series every 10 s."""
        await asyncio.sleep(self._rng.random() * WINDOW_S)
        while True:
            closed = Closed(self._windows(1), np.empty(0, CHANGE_DTYPE), SampleBatch.empty())
            self._seal(self._sealer.closed(closed, time.time_ns()))
            await asyncio.sleep(WINDOW_S)

    async def alarming(self) -> None:
        why = "press-0 c0 is 140 °C, above its limit of 100 °C"
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / self.plan.alarm_every_s))
            now_ns = time.time_ns()
            name = f"press-0/c0/range/{now_ns}"
            alarm = Alarm(name, 0, "range", "open", "warning", now_ns, now_ns, 140.0, 0.0, 100.0, 1.8, why)
            self._seal(self._sealer.alarms([alarm], now_ns))
            self.alarms += 1

    def _seal(self, sealed: Iterable[Sealed]) -> None:
        made = list(sealed)
        self._new += made
        if self.uplink.is_open:
            self._made_open.update(row.seq for row, _ in made)
        self.uplink.answered.set()

    async def committing(self) -> None:
        """Take receipts, raise send limits, let new frames go: what a commit does, without the disk."""
        uplink = self.uplink
        uplink.answered.set()
        while True:
            await uplink.answered.wait()
            uplink.answered.clear()
            now_ns = time.time_ns()
            answers = uplink.take_answers()
            for answer in answers:
                self._receipted(answer.row, (now_ns - answer.row.created_ns) / 1e9)
            new, self._new = self._new, []
            to_backfill, uplink.reopened = uplink.reopened, False
            limits = uplink.plan_limits([row for row, _ in new], to_backfill)
            self.frames |= {row.seq: frame for row, frame in new}
            uplink.committed(new, limits, [answer.row.seq for answer in answers], to_backfill)
            await asyncio.sleep(COMMIT_GAP_S)

    def _receipted(self, row: OutboxRow, latency_s: float) -> None:
        self.frames.pop(row.seq, None)
        self.backlog.discard(row.seq)
        if row.seq in self._made_open and row.lane in (Lane.ALARM, Lane.LIVE):
            self._made_open.discard(row.seq)
            (self.alarm_s if row.lane == Lane.ALARM else self.live_s).append(latency_s)

    def waiting(self) -> int:
        """Frames without a receipt."""
        return len(self.uplink.outbox.staying()) + len(self._new)


def carry(numbers: range, plan: Plan, parent: Connection) -> None:
    """The whole life of a child: gateways of these numbers, until the parent says END."""
    # Where the kernel shares the processor out by sessions (autogroup), all gateways together would count as one
    # program among those that run: on a busy machine their loops came 5 s late.
    os.setsid()
    logging.disable(logging.CRITICAL)  # a thousand gateways say a thousand times that there is no broker
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gateways = []
    for number in numbers:
        gateways.append(Gateway(number, plan))
        gateways[-1].make_backlog()
    parent.send(asyncio.run(_carry(gateways, parent)))


async def _carry(gateways: list[Gateway], parent: Connection) -> Tally:
    lag_s: list[float] = []
    started = asyncio.ensure_future
    links = [started(work) for g in gateways for work in (g.session.run(), g.uplink.run(), g.committing())]
    making = [started(work) for g in gateways for work in (g.live(), g.alarming())]
    links.append(started(_lagging(lag_s)))
    told = 0
    while not parent.poll():
        alarm_s = [one for g in gateways for one in g.alarm_s]
        parent.send(
            Progress(
                sum(len(g.backlog) for g in gateways),
                sum(g.connected for g in gateways),
                alarm_s[told:],
            )
        )
        told = len(alarm_s)
        await asyncio.sleep(PROGRESS_EVERY_S)
    await _end(making)
    for _ in range(round(LAST_RECEIPTS_S / COMMIT_GAP_S)):
        if not any(g.waiting() for g in gateways):
            break
        await asyncio.sleep(COMMIT_GAP_S)
    await _end(links)
    return Tally(
        points={g.name: g.made for g in gateways},
        alarms={g.name: g.alarms for g in gateways},
        sent_bytes={g.name: g.sent_bytes for g in gateways},
        alarm_s=[one for g in gateways for one in g.alarm_s],
        live_s=[one for g in gateways for one in g.live_s],
        lag_s=lag_s,
        backlog_bytes=sum(g.backlog_bytes for g in gateways),
        frames=sum(len(g.sent) for g in gateways),
        publications=sum(sum(g.sent.values()) for g in gateways),
        thrown_away=sum(g.thrown_away for g in gateways),
        waiting=sum(g.waiting() for g in gateways),
    )


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(ended, asyncio.CancelledError | None):
            raise ended


async def _lagging(lag_s: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        asked_s = loop.time() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        lag_s.append(loop.time() - asked_s)
