"""START HERE: the path of one sample through the edge.

    intake ─▶ entry ─▶ filters, windows, alarms ─▶ frames ─▶ one commit ─▶ sources acknowledged
                                                                 └───────▶ uplink ─▶ receipts ─┐
                                                             the next commit ◀─────────────────┘

One loop, which sleeps until there is something to do. A turn takes what has arrived and runs it through
the operators at once, so that a fault is seen at once. A commit follows at the latest `commit_delay` or
4,096 samples after the last, and at once for an alarm. It runs on the store's own thread while the
next samples are taken in: batches grow with the load. Only then are the sources acknowledged.

This file has the loop: what a turn does, the tick, and the end. The rest in the order in which a sample meets it:

    entry.py       its time and its verdict; held while the clock is not trusted
    past.py        whether it was there before, where it comes out of order
    operators.py   filters, windows, alarms, ledger: a function of state and samples
    pending.py     all that one commit will make durable, gathered turn by turn
    committer.py   when that commit is due, and that the store takes it; then the source is acknowledged
    room.py        what goes where the store fills
    replay.py      when a snapshot is due, so that little must be replayed after a crash
    receipts.py    the cloud has its frame: with the next commit its custody ends
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from devices.model import REJECT_REASONS, Int64s, SeriesSpec
from edge.clock import TICK_S, Clock
from edge.committer import CommitPort, Committer
from edge.custody import Committed, OutboxRow
from edge.entry import Entry
from edge.intake import Drained, Intake
from edge.ledger import Deltas
from edge.operators import Operators
from edge.past import BlocksPort, Past
from edge.pending import SAMPLES_MAX
from edge.receipts import Receipts
from edge.recent import Recent
from edge.registry import Registry
from edge.replay import Replay, SnapshotPort
from edge.retention import Keep
from edge.room import ReadablePort, Room
from edge.seal import ROWS_MAX, Sealed, Sealer
from edge.uplink import Uplink

TURN_S = 0.01
"""Turns are at least so far apart, since each costs as much as some hundred samples: at 1,000 messages/s 97 us of CPU
a sample with this, 126 us with half of it, and an alarm no sooner in the sink."""
SEAL_SHUT_S = 60.0
"""While the uplink is shut frames are made this often, not with each tick: few and large ones keep better."""
HELD_MAX = 100_000


class StorePort(CommitPort, SnapshotPort, ReadablePort, BlocksPort, Protocol):
    """What the pump and its parts need of the store; the simulation runs the same on virtual time."""


class Reporter(Protocol):
    """Frames about the gateway itself, when they are due."""

    def due(self, now_ns: int, final: bool) -> list[Sealed]: ...

    def connected(self) -> None: ...


class Pump:
    """The one loop. `run` ends after `stop`, when the outbox is empty or `stop`'s time is over."""

    def __init__(
        self,
        *,
        operators: Operators,
        registry: Registry,
        intake: Intake,
        store: StorePort,
        uplink: Uplink,
        sealer: Sealer,
        clock: Clock,
        committed: Committed,
        recent: Recent,
        snapshot_block: int,
        born_ns: int,
        changed: dict[int, SeriesSpec],
        commit_delay_s: float,
        when_full: str,
        keep: Keep,
        max_held: int = HELD_MAX,
    ) -> None:
        """`born_ns`: of a store that followed one set aside (edge/store.py), else 0; `max_held`: samples that wait for
        a trusted clock (edge/held.py)."""
        self._operators = operators
        self._registry = registry
        self._intake = intake
        self._uplink = uplink
        self.clock = clock

        self._wake = asyncio.Event()
        intake.ready = uplink.answered = self._wake
        self.room = Room(store, uplink.outbox, sealer, operators, when_full=when_full, keep=keep)
        self.receipts = Receipts(operators, uplink, clock)
        self.committer = Committer(
            operators,
            registry,
            store,
            uplink,
            sealer,
            clock,
            self.room,
            self.receipts,
            Replay(operators, store, snapshot_block=snapshot_block, changed=changed),
            self._wake,
            committed=committed,
            commit_delay_s=commit_delay_s,
        )
        self.history = Past(store, recent)
        self._entry = Entry(operators, intake, clock, self.committer, self.history, born_ns=born_ns, max_held=max_held)
        self.reporter: Reporter
        """Set by the daemon: it asks the pump for what is waiting."""
        self.samples = 0

        self._last_turn_s = 0.0
        self._next_tick_s = 0.0
        self._sealed_s = 0.0
        self._stop_by_s: float | None = None
        self._handing_over = False
        self._final_sent = False

    # -- the loop ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn until stopped and done. Raises StoreError if the store cannot be written when the time is over."""
        loop, committer = asyncio.get_running_loop(), self.committer
        self._next_tick_s = self._sealed_s = loop.time()
        self._entry.resume()
        committer.start(loop.time())
        while not self._is_done(loop.time()):
            await self._sleep(loop)
            if committer.has_ended:
                await committer.end()
            self._turn(loop.time())
            if loop.time() >= self._commit_due_s():
                await committer.begin()
        await committer.begin(last=True)
        await committer.end()
        await committer.replay.written()

    async def _sleep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until woken, or the next deadline."""
        alarm_clock = loop.call_at(min(self._next_tick_s, self._commit_due_s()), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            alarm_clock.cancel()
        await asyncio.sleep(max(self._last_turn_s + TURN_S - loop.time(), 0.0))
        self._wake.clear()

    def _commit_due_s(self) -> float:
        return self.committer.due_s(hurry=self._intake.has_stopped or self._stop_by_s is not None)

    def _turn(self, now_s: float) -> None:
        """Take in what has happened since the last turn: receipts, samples, the tick."""
        self._last_turn_s = now_s
        pending = self.committer.pending
        self.receipts.take(pending)
        if self._uplink.reopened:
            self._uplink.reopened = False
            pending.to_backfill = self.committer.soon = True
            self.reporter.connected()
        if self._entry.mind_the_clock():
            self._tick(now_s)  # at once: who is heard from now on is heard at the new time
        room = SAMPLES_MAX - pending.samples
        if room > 0 and not self.room.blocked:
            self._take_samples(self._intake.drain(room))
        if now_s >= self._next_tick_s:
            self._tick(now_s)

    def _take_samples(self, drained: Drained) -> None:
        pending = self.committer.pending
        for (account, reason), count in drained.rejects.items():
            series = account if isinstance(account, int) else self._registry.device_account(account)
            pending.count(self._operators, Deltas(rejected=[(series, REJECT_REASONS.index(reason), count)]))
        pending.dead_letters += drained.dead_letters
        pending.replayed += drained.replayed
        pending.settles += drained.settles
        pending.repeating |= drained.repeating
        if len(drained.batch):
            self.samples += len(drained.batch)
            self._entry.take(drained.batch, drained.arrived_ns)

    def _tick(self, now_s: float) -> None:
        """The clock's own event: windows of silent series close, `silent` is raised, and frames are made."""
        self._next_tick_s = now_s + TICK_S
        tick_ns = self.clock.tick_ns()
        pending = self.committer.pending
        pending.tick(tick_ns, was_idle=self._operators.tick_was_idle)
        self.committer.raise_alarms(pending, self._operators.tick(tick_ns))
        rows = self._operators.closed_rows()
        if rows and (self._uplink.flows or rows >= ROWS_MAX or now_s >= self._sealed_s + SEAL_SHUT_S):
            # A frame costs less a byte the more it holds: therefore with a tick, not with every commit.
            pending.sealed = True
            self._sealed_s = now_s
        pending.frames += self.reporter.due(tick_ns, final=False)
        if self.committer.is_to_lengthen(now_s) and self._uplink.outbox.has_held():
            self.committer.soon = True

    def waiting(self) -> Int64s:
        """int64[series]: accepted samples that have no receipt yet, wherever they are."""
        counts = self._operators.open_samples()
        in_outbox = self._uplink.outbox.samples[: len(counts)]
        counts[: len(in_outbox)] += in_outbox
        for pending in self.committer.unfinished():
            pending.move_samples(counts)
        return counts

    def bring_back(self, row: OutboxRow, frame: bytes, letter: int) -> None:
        """A frame that became a dead letter goes into the outbox again with the next commit."""
        self.committer.pending.frames.append((row, frame))
        self.committer.pending.replayed.append(letter)
        self._wake.set()

    # -- the end -------------------------------------------------------------------------------------

    def stop(self, within_s: float) -> None:
        """Take in what the intake holds, send what can be sent within this time, and end."""
        self._stop_by_s = asyncio.get_running_loop().time() + within_s
        self.committer.is_ending, self.committer.try_until_s = True, self._stop_by_s
        self._wake.set()

    def hand_over(self) -> None:
        """End with one more commit and a snapshot, whatever waits in the intake or for the cloud: another pump, which
        follows this one, goes on at once."""
        self._handing_over = self.committer.is_ending = True
        self._wake.set()

    def follow(self, before: Pump) -> None:
        """Go on where a pump that handed over has ended; to be called before `run`."""
        self.committer.follow(before.committer)
        self.history.recent = before.history.recent
        self.samples = before.samples
        self.room.merged_windows = before.room.merged_windows
        self.receipts.created_to_receipt_seconds = before.receipts.created_to_receipt_seconds

    def _is_done(self, now_s: float) -> bool:
        """After `stop`: everything sent and answered, the final account included, or no time left."""
        if self._handing_over:
            return True
        if self._stop_by_s is None:
            return False
        if now_s >= self._stop_by_s:
            return True
        pending = self.committer.pending
        if pending.is_worth_it() or self.committer.is_under_way:
            return False
        if not self._final_sent:
            self._final_sent = True
            pending.sealed = self._operators.closed_rows() > 0
            pending.frames += self.reporter.due(self.clock.now_ns(), final=True)
            self._wake.set()
            return False
        return not len(self._uplink.outbox) or not self._uplink.flows
