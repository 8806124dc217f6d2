"""START HERE: the path of one sample through the edge.

    intake ─▶ admission ─▶ filters, windows, alarms ─▶ frames ─▶ one commit ─▶ sources acknowledged
                                                                    └────────▶ uplink ─▶ receipts ─┐
                                                                 the next commit ◀─────────────────┘

One loop, which sleeps until there is something to do. A turn takes what has arrived and runs it through
the operators at once, so that a fault is seen at once. A commit follows at the latest `commit_delay` or
4,096 samples after the last, and at once for an alarm. It runs on the store's own thread while the
next samples are taken in: batches grow with the load. Only then are the sources acknowledged.

What is not committed is held in a `Pending` (edge/pending.py): one that gathers, and one that is being
committed, which is tried again until the store takes it. What makes room is edge/room.py's.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.errors import StoreCorrupt, StoreError, StoreFull
from devices.model import (
    DROP_POLICIES,
    REJECT_REASONS,
    Alarm,
    Bytes,
    Floats,
    Int64s,
    Lane,
    Quality,
    SampleBatch,
    SeriesSpec,
)
from edge import degrade, journal
from edge.clock import TICK_S, Clock
from edge.custody import BuriedFrame, Commit, Committed, JournalRow, OutboxRow
from edge.held import Step
from edge.identity import ACCEPTED, BEHIND_JOURNAL, HELD, RELEASED, has_time
from edge.intake import Drained, Intake
from edge.ledger import Deltas
from edge.metrics import Histogram
from edge.operators import Operators
from edge.outage import Growth, Journal, budget_s, row_pages_bytes
from edge.pending import Pending
from edge.recent import Recent
from edge.registry import Registry
from edge.retention import Keep
from edge.room import Room
from edge.seal import ROWS_MAX, Sealed, Sealer
from edge.uplink import Uplink

log = logging.getLogger("forebay.pump")

UNCONFIRMED = DROP_POLICIES.index("unconfirmed")
SAMPLES_AHEAD = 4096
"""The pump runs ahead of the store by at most this; without the wait the store's thread never gets the GIL."""
TURN_S = 0.01
"""Turns are at least so far apart, since each costs as much as some hundred samples: at 1,000 messages/s 97 us of CPU
a sample with this, 126 us with half of it, and an alarm no sooner in the sink."""
COMMIT_GAP_S = 0.05
COMMIT_BURST = 10
"""Commits that cannot wait (alarms, receipts of a backlog, a source that has stopped) are so far apart on average,
which spares the disk, and follow at once while they are few."""
SEAL_SHUT_S = 60.0
"""While the uplink is shut frames are made this often, not with each tick: few and large ones keep better."""
LENGTHEN_S = 300.0
LENGTHEN_TENS = 5
"""What is merged to spare the month's budget was held for this many times ten of the shortest windows, and so long at
least: at both ends of it a window that is not whole is merged."""
SNAPSHOT_SAMPLES = 500_000
SNAPSHOT_S = 600.0
SNAPSHOT_SHARE = 1 / 8
"""Or once so much of the limit is journal that cannot be trimmed: a small store would find no room for a commit."""
SNAPSHOT_RETRY_S = 10.0
STORE_RETRY_S = 1.0
STORE_FULL_RETRY_S = 0.1
HELD_MAX = 100_000
UNTRUSTED = " The gateway's clock is not set: the time of this alarm is an estimate."


class StorePort(Protocol):
    """What the pump needs of the store; the simulation runs the same on virtual time."""

    async def commit(self, commit: Commit) -> Committed: ...

    async def write_snapshot(
        self, after_block: int, state: dict[str, NDArray[Any]], changed: dict[int, SeriesSpec]
    ) -> None: ...

    async def oldest_blocks(self) -> list[JournalRow]: ...

    async def frames(self, seqs: list[int]) -> dict[int, bytes]: ...

    def blocks_between(self, lo_ns: int, hi_ns: int) -> list[bytes]: ...


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
        self._store = store
        self._uplink = uplink
        self._sealer = sealer
        self._clock = clock
        self._commit_delay_s = commit_delay_s
        self._room = Room(store, uplink.outbox, sealer, operators.specs, self._account, when_full=when_full, keep=keep)

        self._wake = asyncio.Event()
        intake.ready = uplink.answered = self._wake
        self._pending = Pending()
        self._committing = Pending()
        """Handed to the store, until it is durable."""
        self._relief = Pending()
        """What goes before it where there is no room for it."""
        self._commit_task: asyncio.Task[None] | None = None
        self._commit_soon = False
        self._last_commit_s = 0.0
        self._commit_credit_s = 0.0
        """Each commit moves it on by its share of time; how far it is ahead says how many there were lately."""
        self._last_turn_s = 0.0
        self._next_tick_s = 0.0
        self._sealed_s = 0.0
        self._lengthen_s = 0.0
        """From then on what was held to spare the month's budget is merged, and goes."""
        self._stop_by_s: float | None = None
        self._handing_over = False
        self._final_sent = False
        self._recent = recent
        self._snapshot_task: asyncio.Task[None] | None = None
        self._last_snapshot_s = 0.0
        self._snapshot_due_s = 0.0
        self._snapshot_block = snapshot_block
        self._born_ns = born_ns
        self._samples_since_snapshot = SNAPSHOT_SAMPLES  # one soon after a start: the replay must not grow
        self._max_held = max_held
        self._changed = changed
        """Settings that count by now, and that only the journal has: they go with the next snapshot."""

        self.reporter: Reporter
        """Set by the daemon: it asks the pump for what is waiting."""
        self.committed = committed
        self.commits = 0
        self.samples = 0
        self.store_error = ""
        self._frames_growth, self._journal_growth = Growth(), Growth()
        self._fresh_bytes = 0
        """Of the journal, since the last snapshot."""
        self.commit_seconds = Histogram()
        self.arrival_to_commit_seconds = Histogram()
        self.created_to_receipt_seconds = Histogram()

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def blocked(self) -> bool:
        """Policy `block`: nothing is taken in until receipts have made room."""
        return self._room.blocked

    # -- the loop ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn until stopped and done. Raises StoreError if the store cannot be written when the time is over."""
        loop = asyncio.get_running_loop()
        self._last_commit_s = self._next_tick_s = self._sealed_s = loop.time()
        self._snapshot_due_s = loop.time() + SNAPSHOT_S
        self._resume()
        self._commit_soon = True  # the first shows that the store can be written: then we are ready
        while not self._is_done(loop.time()):
            await self._sleep(loop)
            if self._commit_task is not None and self._commit_task.done():
                await self._end_commit()
            self._turn(loop.time())
            if loop.time() >= self._commit_due_s():
                await self._begin_commit(loop)
        await self._begin_commit(loop, last=True)
        await self._end_commit()
        if self._snapshot_task is not None:
            await self._snapshot_task

    def bring_back(self, row: OutboxRow, frame: bytes, letter: int) -> None:
        """A frame that became a dead letter goes into the outbox again with the next commit."""
        self._pending.frames.append((row, frame))
        self._pending.replayed.append(letter)
        self._wake.set()

    def hand_over(self) -> None:
        """End with one more commit and a snapshot, whatever waits in the intake or for the cloud: another pump, which
        follows this one, goes on at once."""
        self._handing_over = True
        self._wake.set()

    def follow(self, before: Pump) -> None:
        """Go on where a pump that handed over has ended; to be called before `run`."""
        self.committed, self._recent = before.committed, before._recent
        self._snapshot_block, self._changed = before._snapshot_block, before._changed
        self._samples_since_snapshot = before._samples_since_snapshot
        self.commits, self.samples = before.commits, before.samples
        self.commit_seconds = before.commit_seconds
        self.arrival_to_commit_seconds = before.arrival_to_commit_seconds
        self.created_to_receipt_seconds = before.created_to_receipt_seconds

    def _resume(self) -> None:
        """What the life before this one has held goes on to be held, if the time in between is known."""
        held = self._operators.held
        goes_on = held.anchor is not None and held.samples > 0 and self._clock.go_on(held.anchor)
        self._pending.resumed_ns = self._clock.tick_ns()
        self._operators.resume(self._pending.resumed_ns)
        if held.samples and not goes_on:
            log.warning("%d samples that were held keep estimated times: the clock was never trusted", held.samples)
            self._release(Step(0, held.newest_ns()), Quality.CLOCK)

    def stop(self, within_s: float) -> None:
        """Take in what the intake holds, send what can be sent within this time, and end."""
        self._stop_by_s = asyncio.get_running_loop().time() + within_s
        self._wake.set()

    async def _sleep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until woken, or the next deadline."""
        alarm_clock = loop.call_at(min(self._next_tick_s, self._commit_due_s()), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            alarm_clock.cancel()
        await asyncio.sleep(max(self._last_turn_s + TURN_S - loop.time(), 0.0))
        self._wake.clear()

    def _turn(self, now_s: float) -> None:
        """Take in what has happened since the last turn: receipts, samples, the tick."""
        self._last_turn_s = now_s
        self._take_answers(self._pending)
        if self._uplink.reopened:
            self._uplink.reopened = False
            self._pending.to_backfill = self._commit_soon = True
            self.reporter.connected()
        self._mind_the_clock(now_s)
        room = SAMPLES_AHEAD - self._pending.samples
        if room > 0 and not self.blocked:
            self._take_samples(self._intake.drain(room))
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + TICK_S
            self._tick(now_s)

    def _take_samples(self, drained: Drained) -> None:
        pending = self._pending
        for (account, reason), count in drained.rejects.items():
            series = account if isinstance(account, int) else self._registry.device_account(account)
            self._account(pending, Deltas(rejected=[(series, REJECT_REASONS.index(reason), count)]))
        pending.dead_letters += drained.dead_letters
        pending.replayed += drained.replayed
        pending.settles += drained.settles
        pending.repeating |= drained.repeating
        batch = drained.batch
        if not len(batch):
            return
        stamp = batch.time_ns == 0
        if not self._clock.trusted and stamp.any():
            verdict = self._hold(batch, drained.arrived_ns, stamp)
        else:
            verdict = self._admit(batch, drained.arrived_ns)
        if self._born_ns:
            self._pass_by_windows(batch, verdict)
        alarms = self._operators.samples(batch, drained.arrived_ns, verdict)
        pending.add(batch, verdict, int(drained.arrived_ns[0]))
        self.samples += len(batch)
        self._recent.add(batch, verdict)
        self._raise(pending, alarms)

    def _admit(self, batch: SampleBatch, arrived_ns: Int64s) -> Bytes:
        floor_ns = max(self.committed.journal_floor_ns, self._room.journal_floor_ns)
        admission = self._operators.admission
        return admission.admit(batch, arrived_ns, self._clock.latest_ns(), journal_floor_ns=floor_ns)

    # -- the clock (edge/clock.py, edge/held.py) -----------------------------------------------------

    def _hold(self, batch: SampleBatch, arrived_ns: Int64s, stamp: NDArray[np.bool_]) -> Bytes:
        """While the clock is not trusted: samples to be stamped get an estimate for now, the others what they always
        get."""
        verdict = np.full(len(batch), HELD, np.uint8)
        others = batch.take(~stamp)
        verdict[~stamp] = self._admit(others, arrived_ns[~stamp])
        batch.time_ns[~stamp], batch.quality[~stamp] = others.time_ns, others.quality
        held = self._operators.held
        batch.time_ns[stamp] = held.stamp(batch.series[stamp], arrived_ns[stamp], self._operators.admission.last_ns)
        held.anchor = self._pending.anchor = self._clock.anchor()
        return verdict

    def _mind_the_clock(self, now_s: float) -> None:
        """When it can be trusted, everything that was held gets its time; when too much is held, half of that an
        estimate. Both happen at the beginning of a block."""
        held, clock = self._operators.held, self._clock
        may_step = clock.may_step()
        if not may_step and held.samples <= self._max_held:
            return
        if not self._pending.is_at_its_beginning():
            self._commit_soon = True
        elif may_step:
            by_ns = clock.step()
            self._intake.clock_stepped(by_ns)
            self._release(Step(by_ns, held.newest_ns(), clock.now_ns(), clock.tick_ns()), Quality.GOOD)
            self._next_tick_s = now_s + TICK_S
            self._tick(now_s)  # at once: who is heard from now on is heard at the new time
        else:
            log.warning("%d samples are held: the older half keeps estimated times", held.samples)
            self._release(Step(0, held.middle_ns()), Quality.CLOCK)

    def _release(self, step: Step, quality: Quality) -> None:
        """Held samples get their times, and go on as if they had just come."""
        pending = self._pending
        pending.step, self._commit_soon = step, True
        batch = self._operators.step(step)
        if not len(batch):
            return
        arrived_ns = batch.time_ns + step.by_ns
        batch.time_ns = np.zeros(len(batch), np.int64)
        batch.quality |= np.uint8(quality)
        verdict = self._admit(batch, arrived_ns)
        if self._born_ns:
            self._pass_by_windows(batch, verdict)
        verdict[verdict == ACCEPTED] = RELEASED
        self._raise(pending, self._operators.samples(batch, arrived_ns, verdict))
        pending.add(batch, verdict, self._clock.now_ns())
        self._recent.add(batch, verdict)

    def _pass_by_windows(self, batch: SampleBatch, verdict: Bytes) -> None:
        """Windows that began before the store's birth, or no further ahead of it than samples may be, may have been
        published out of the store before it. A second summary would replace the first: their samples go raw."""
        specs = self._operators.specs
        window_ns = np.array([spec.window_ns for spec in specs], np.int64)[batch.series]
        reached_ns = self._born_ns + np.array([spec.max_ahead_ns for spec in specs], np.int64)[batch.series]
        first_ns = -(-reached_ns // window_ns) * window_ns
        verdict[(verdict == ACCEPTED) & (batch.time_ns < first_ns)] = BEHIND_JOURNAL

    def _tick(self, now_s: float) -> None:
        tick_ns = self._clock.tick_ns()
        pending = self._pending
        pending.tick(tick_ns, was_idle=self._operators.tick_was_idle)
        self._raise(pending, self._operators.tick(tick_ns))
        rows = self._operators.closed_rows()
        if rows and (self._uplink.flows or rows >= ROWS_MAX or now_s >= self._sealed_s + SEAL_SHUT_S):
            # A frame costs less a byte the more it holds: therefore with a tick, not with every commit.
            pending.sealed = True
            self._sealed_s = now_s
        pending.frames += self.reporter.due(tick_ns, final=False)
        if self._uplink.saves and now_s >= self._lengthen_s and self._uplink.outbox.has_held():
            self._commit_soon = True

    def _raise(self, pending: Pending, alarms: list[Alarm]) -> None:
        if alarms:
            if not self._clock.trusted:
                alarms = [msgspec.structs.replace(alarm, reason=alarm.reason + UNTRUSTED) for alarm in alarms]
            pending.frames += self._sealer.alarms(alarms, self._clock.now_ns())
            self._commit_soon = True
            for alarm in alarms:
                log.warning("alarm %s: %s", alarm.state, alarm.reason)

    def _is_done(self, now_s: float) -> bool:
        """After `stop`: everything sent and answered, the final account included, or no time left."""
        if self._handing_over:
            return True
        if self._stop_by_s is None:
            return False
        if now_s >= self._stop_by_s:
            return True
        if self._pending.is_worth_it() or self._commit_task:
            return False
        if not self._final_sent:
            self._final_sent = True
            self._pending.sealed = self._operators.closed_rows() > 0
            self._pending.frames += self.reporter.due(self._clock.now_ns(), final=True)
            self._wake.set()
            return False
        return not len(self._uplink.outbox) or not self._uplink.flows

    # -- the account ---------------------------------------------------------------------------------

    def _account(self, pending: Pending, deltas: Deltas) -> None:
        """Count now, and again when the block is replayed."""
        self._operators.apply(deltas)
        pending.deltas.extend(deltas)

    def waiting(self) -> Int64s:
        """int64[series]: accepted samples that have no receipt yet, wherever they are."""
        counts = self._operators.open_samples()
        in_outbox = self._uplink.outbox.samples[: len(counts)]
        counts[: len(in_outbox)] += in_outbox
        for pending in (self._pending, self._committing, self._relief):
            for row, _ in pending.frames:
                np.add.at(counts, row.custody.series, row.custody.samples)
            for row in (*pending.removed, *pending.merged):
                np.subtract.at(counts, row.custody.series, row.custody.samples)
        return counts

    # -- receipts ------------------------------------------------------------------------------------

    def _take_answers(self, pending: Pending) -> None:
        """Receipts end the custody of their frames: with this commit they go. What was dropped as `unconfirmed` is
        not dropped after all."""
        for row, receipt, was_dropped in self._uplink.take_answers():
            now_ns = self._clock.now_ns()
            self.created_to_receipt_seconds.observe((now_ns - row.created_ns) / 1e9)
            custody = row.custody
            series, stored = custody.series.tolist(), custody.samples.tolist()
            if was_dropped:
                back = [(s, UNCONFIRMED, -n) for s, n in zip(series, stored, strict=True) if n]
                self._account(pending, Deltas(dropped=back))
            else:
                pending.removed.append(row)
            if receipt.refused:
                log.error("the cloud refused frame %d (%s): kept as a dead letter", row.seq, receipt.refused)
                pending.buried.append(BuriedFrame(row.seq, now_ns, "refused", receipt.refused))
                code = REJECT_REASONS.index("refused")
                refused = [(s, code, n) for s, n in zip(series, stored, strict=True) if n]
                self._account(pending, Deltas(refused=refused))
                continue
            if receipt.rejected:
                self._rejected_by_sink(pending, row, receipt.rejected, series, stored)
            self._account(pending, Deltas(stored=[(s, 0, n) for s, n in zip(series, stored, strict=True) if n]))

    def _rejected_by_sink(
        self, pending: Pending, row: OutboxRow, rejected: list[Any], series: list[int], stored: list[int]
    ) -> None:
        """Take from `stored` what the sink does not hold. `rejected[].series` is a place in the frame's table, as is
        that in the custody; alarms and state changes are copies, and count nothing."""
        for bad in rejected:
            log.error("the sink rejected %d of frame %d: %s: %s", bad.count, row.seq, bad.reason, bad.detail)
            if bad.series < len(stored):
                count = min(bad.count, stored[bad.series])
                stored[bad.series] -= count
                code = REJECT_REASONS.index(bad.reason if bad.reason in REJECT_REASONS else "sink")
                self._account(pending, Deltas(refused=[(series[bad.series], code, count)]))
        detail = "; ".join(f"{bad.count} {bad.reason}: {bad.detail}" for bad in rejected)
        pending.buried.append(BuriedFrame(row.seq, self._clock.now_ns(), "sink", detail))

    # -- the commit ----------------------------------------------------------------------------------

    def _commit_due_s(self) -> float:
        """The loop time from which the next commit may begin; infinity when none is needed, or one is under way."""
        pending = self._pending
        if pending.samples >= SAMPLES_AHEAD:
            return 0.0
        if self._commit_task is not None or not (pending.is_worth_it() or self._commit_soon):
            return float("inf")
        frees_window = bool(pending.removed) and self._uplink.outbox.has_held()
        if self._commit_soon or frees_window or self._intake.has_stopped or self._stop_by_s is not None:
            return min(self._commit_credit_s - COMMIT_BURST * COMMIT_GAP_S, self._last_commit_s + self._commit_delay_s)
        return self._last_commit_s + self._commit_delay_s

    async def _begin_commit(self, loop: asyncio.AbstractEventLoop, last: bool = False) -> None:
        """Hand what is pending to the store's thread; wait first for the commit that is under way."""
        await self._end_commit()
        if last and self._snapshot_task is not None:
            await self._snapshot_task
        pending, self._pending = self._pending, Pending()
        self._committing = pending
        self._commit_soon = False
        self._last_commit_s = loop.time()
        self._commit_credit_s = max(self._commit_credit_s, loop.time()) + COMMIT_GAP_S
        self._samples_since_snapshot += pending.samples
        try:
            await self._make_room(pending)
            await self._lengthen(pending, loop.time())
        except StoreError as error:
            self._note(error)  # the commit will find out by itself
        # From here to the commit's task nothing waits: block, series, frames and snapshot are of one moment.
        pending.new_series, pending.series = self._registry.take_new(), len(self._operators.specs)
        pending.unconfirmed = {name: messages.state() for name, messages in pending.repeating.items()}
        state = None
        if last or self._snapshot_is_due(loop.time()):
            state = self._change_over(pending, loop.time())
        elif pending.sealed:
            pending.frames += self._sealer.closed(self._operators.take(), self._clock.now_ns())
        self._commit_task = loop.create_task(self._commit(pending, state), name="commit")
        self._commit_task.add_done_callback(lambda _: self._wake.set())

    async def _end_commit(self) -> None:
        """Wait for the commit that is under way, if there is one. Raises what it raised."""
        if self._commit_task is not None:
            task = self._commit_task
            await task
            self._commit_task = None

    async def _commit(self, pending: Pending, state: dict[str, NDArray[Any]] | None) -> None:
        """Until it is durable; then the sources are acknowledged and the uplink may send."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        while True:
            commit = self._built(pending)
            commit.month = self._uplink.month_row(last=self._stop_by_s is not None or self._handing_over)
            try:
                if self._room.refuses(commit, pending, self.committed.usage):
                    raise StoreFull("the store is full: the commit waits until receipts have made room")
                self.committed = await self._store.commit(commit)
                break
            except StoreCorrupt:
                raise  # no attempt will help: the daemon begins again with another file
            except StoreError as error:
                state = None  # what follows is not in it
                self._snapshot_due_s = min(self._snapshot_due_s, loop.time() + SNAPSHOT_RETRY_S)
                await self._try_again(pending, error)
        self._committing = Pending()
        self.store_error = ""
        self.commits += 1
        for settle in pending.settles:
            settle()
        self._uplink.committed(commit.frames, commit.send_limits, commit.removed, pending.to_backfill)
        self._measure(commit, loop.time())
        if commit.month and self._uplink.month is not None:
            self._uplink.month.kept(commit.month)
        self._room.look(self.committed.usage)
        self.commit_seconds.observe(loop.time() - begun_s)
        if pending.batches:
            self.arrival_to_commit_seconds.observe((self._clock.now_ns() - pending.oldest_arrival_ns) / 1e9)
        if state is not None:
            block_id = self.committed.block_id
            self._snapshot_task = loop.create_task(self._write_snapshot(block_id, state), name="snapshot")

    def _built(self, pending: Pending) -> Commit:
        """What the store is to do, the send limits included."""
        commit = pending.build()
        commit.send_limits = self._uplink.plan_limits([row for row, _ in commit.frames], pending.to_backfill)
        commit.to_backfill_above = self._uplink.outbox.live_limit() if pending.to_backfill else None
        return commit

    async def _try_again(self, pending: Pending, error: StoreError) -> None:
        """After a commit that failed: wait, and see whether receipts, or giving something up, make room."""
        if self._stop_by_s is not None and asyncio.get_running_loop().time() >= self._stop_by_s:
            raise error
        self._note(error)
        await asyncio.sleep(STORE_FULL_RETRY_S if isinstance(error, StoreFull) else STORE_RETRY_S)
        pending.take_removals(self._pending)
        self._take_answers(pending)
        try:
            await self._make_room(pending, is_full=isinstance(error, StoreFull))
            if isinstance(error, StoreFull) and self._room.blocks:
                await self._lengthen(pending, asyncio.get_running_loop().time())
        except StoreError as unreadable:
            self._note(unreadable)
        if isinstance(error, StoreFull) and self._room.blocks:
            await self._relieve(pending)

    async def _relieve(self, pending: Pending) -> None:
        """What has been receipted leaves the store, and what is held may go, before a commit for which there is no
        room: it would wait for that, and that for it. Where there is nothing of this, the store at least tells how full
        it is by now."""
        relief = self._relief = pending.relief()
        commit = self._built(relief)
        try:
            self.committed = await self._store.commit(commit)
        except StoreCorrupt:
            raise
        except StoreError as error:
            self._note(error)
            pending.take_removals(relief)
            return
        self._relief = Pending()
        self._uplink.committed([], commit.send_limits, commit.removed, relief.to_backfill)
        self._room.look(self.committed.usage)

    def _note(self, error: StoreError) -> None:
        if str(error) != self.store_error:
            log.error("%s; nothing is acknowledged until it works again", error)
        self.store_error = str(error)

    async def _make_room(self, pending: Pending, *, is_full: bool = False) -> None:
        # By the journal's own time: a clock that leaps ahead must not empty it.
        usage, now_ns = self.committed.usage, min(self._clock.now_ns(), self.committed.high_ns)
        await self._room.make(pending, usage, now_ns, self._snapshot_block, is_full=is_full)

    async def _lengthen(self, pending: Pending, now_s: float) -> None:
        """Near the month's limit (edge/budget.py) what was held for a while is merged, and goes."""
        if not self._uplink.saves or now_s < self._lengthen_s:
            return
        if await self._room.lengthen(pending, self._clock.now_ns()):
            self._commit_soon = True
            return
        self._uplink.release = True
        windows_ns = [spec.window_ns for spec in self._operators.specs if spec.channel]
        self._lengthen_s = now_s + max(LENGTHEN_TENS * degrade.FACTOR * min(windows_ns, default=0) / 1e9, LENGTHEN_S)

    # -- how long the store lasts --------------------------------------------------------------------

    def _measure(self, commit: Commit, now_s: float) -> None:
        """What has grown with a commit; what was merged is no growth."""
        block_bytes = row_pages_bytes(len(commit.block)) if commit.block else 0
        self._fresh_bytes += block_bytes
        self._journal_growth.add(now_s, block_bytes)
        made = [(row, frame) for row, frame in commit.frames if row.lane != Lane.BACKFILL]
        frames_bytes = sum(row_pages_bytes(len(frame) + len(row.packed_custody)) for row, frame in made)
        self._frames_growth.add(now_s, frames_bytes)

    def outage_budget_s(self) -> float:
        """How long the link may be away before something is merged, dropped, or waits; NaN: not known yet."""
        now_s = asyncio.get_running_loop().time()
        since_s = max(now_s - self._last_snapshot_s, TICK_S)
        each_s = min(SNAPSHOT_S, SNAPSHOT_SAMPLES * since_s / max(self._samples_since_snapshot, 1))
        journal = Journal(self._fresh_bytes, self._journal_growth.per_s(now_s), each_s, self._room.keep)
        return budget_s(self.committed.usage, self._frames_growth.per_s(now_s), journal)

    # -- snapshots -----------------------------------------------------------------------------------

    def _snapshot_is_due(self, now_s: float) -> bool:
        if self._snapshot_task is not None and not self._snapshot_task.done():
            return False
        if self._room.wants_snapshot and now_s >= self._last_snapshot_s + SNAPSHOT_RETRY_S:
            return True
        too_much = self._fresh_bytes > self.committed.usage.limit_bytes * SNAPSHOT_SHARE
        enough = self._samples_since_snapshot >= SNAPSHOT_SAMPLES or now_s >= self._snapshot_due_s or too_much
        return enough or bool(self._registry.changed)

    def _change_over(self, pending: Pending, now_s: float) -> dict[str, NDArray[Any]]:
        """Let changed settings count from the end of this block on, and take a snapshot there."""
        changed = self._registry.take_changed()
        for index, spec in changed.items():
            self._raise(pending, self._operators.set_series(index, spec))
        self._changed |= changed
        pending.changed = list(changed.items())
        pending.sealed = True
        pending.frames += self._sealer.closed(self._operators.take(), self._clock.now_ns())
        self._samples_since_snapshot = 0
        self._last_snapshot_s, self._snapshot_due_s = now_s, now_s + SNAPSHOT_S
        return self._operators.snapshot()

    async def _write_snapshot(self, block_id: int, state: dict[str, NDArray[Any]]) -> None:
        changed = dict(self._changed)
        try:
            await self._store.write_snapshot(block_id, state, changed)
        except StoreError as error:
            log.warning("%s; the journal is kept from the last snapshot on", error)
            self._snapshot_due_s = asyncio.get_running_loop().time() + SNAPSHOT_RETRY_S
            return
        self._snapshot_block, self._fresh_bytes = block_id, 0
        self._changed = {index: spec for index, spec in self._changed.items() if changed.get(index) is not spec}

    # -- what was there before -----------------------------------------------------------------------

    def history(self, series: int, lo_ns: int, hi_ns: int) -> tuple[Int64s, Floats]:
        """Times and values of a series' accepted samples in a span: from memory, or else from the journal."""
        found = [self._recent.find(series, lo_ns, hi_ns)]
        if lo_ns <= self._recent.forgotten_ns:
            found += self._in_journal(series, lo_ns, hi_ns)
        times, values = zip(*found, strict=True)
        return np.concatenate(times), np.concatenate(values)

    def _in_journal(self, series: int, lo_ns: int, hi_ns: int) -> list[tuple[Int64s, Floats]]:
        found = []
        try:
            for data in self._store.blocks_between(lo_ns, hi_ns):
                block = journal.decode(data)
                at = block.batch.time_ns
                here = (block.batch.series == series) & (at >= lo_ns) & (at <= hi_ns)
                here &= has_time(block.verdict)
                found.append((at[here], block.batch.value[here]))
        except (StoreError, StoreCorrupt) as error:
            log.error("%s: whether an old sample was there before cannot be told", error)
        return found
