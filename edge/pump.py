"""START HERE: the path of one sample through the edge.

    intake ─▶ admission ─▶ filters, windows, alarms ─▶ frames ─▶ one commit ─▶ sources acknowledged
                                                                    └────────▶ uplink ─▶ receipts ─┐
                                                                 the next commit ◀─────────────────┘

One loop, which sleeps until there is something to do. A turn takes what has arrived and runs it through
the operators at once, so that a fault is seen at once. A commit follows at the latest `commit_delay` or
4,096 samples after the last, and immediately for an alarm. It runs on the store's own thread while the
next samples are taken in: batches grow with the load. Only then are the sources acknowledged.

What is not committed is held in a `Pending`, from which the commit is built anew at each attempt: a store
that is full or fails for a while changes nothing in what will be stored, only when.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from devices.errors import StoreError, StoreFull
from devices.model import DROP_POLICIES, REJECT_REASONS, Alarm, Bytes, Floats, Int64s, SampleBatch, SeriesSpec
from devices.wire.frame import FrameLimits, SummaryBody
from devices.wire.frame import decode as decode_frame
from edge import degrade, journal, retention
from edge.clock import TICK_S, Clock
from edge.custody import BuriedFrame, Commit, Committed, DeadLetter, JournalRow, OutboxRow
from edge.identity import ACCEPTED, BEHIND_JOURNAL
from edge.intake import Drained, Intake
from edge.kernels.settle import settle_entry
from edge.ledger import Deltas
from edge.metrics import Histogram
from edge.operators import Operators
from edge.redelivery import Unconfirmed
from edge.registry import Registry
from edge.seal import Sealed, Sealer
from edge.uplink import Uplink

log = logging.getLogger("forebay.pump")

SAMPLES_AHEAD = 4096
"""The pump runs ahead of the store by at most this; without the wait the store's thread never gets the GIL."""
RECENT_SAMPLES = 65_536
"""Samples kept in memory to answer whether one that is out of order was there before."""
SNAPSHOT_SAMPLES = 500_000
SNAPSHOT_S = 600.0
STORE_RETRY_S = 1.0
MERGE_GAIN_MIN = 0.2
"""Merging that frees less than this part is not worth a longer window."""


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


@dataclass(slots=True)
class Pending:
    """What the next commit will make durable."""

    batches: list[SampleBatch] = field(default_factory=list)
    verdicts: list[Bytes] = field(default_factory=list)
    samples: int = 0
    ticks: list[tuple[int, int]] = field(default_factory=list)
    deltas: Deltas = field(default_factory=Deltas)
    sealed: bool = False
    """What has closed goes into frames with this commit; decided by a tick, done when the commit begins."""
    frames: list[Sealed] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    """Frames that leave the outbox: receipted, refused or dropped."""
    buried: list[BuriedFrame] = field(default_factory=list)
    trim_journal_to: int = 0
    dead_letters: list[DeadLetter] = field(default_factory=list)
    new_series: list[tuple[int, SeriesSpec]] = field(default_factory=list)
    to_backfill_above: int | None = None
    settles: list[Callable[[], None]] = field(default_factory=list)
    repeating: dict[str, Unconfirmed] = field(default_factory=dict)
    unconfirmed: dict[str, bytes] = field(default_factory=dict)
    oldest_arrival_ns: int = 0

    def is_worth_it(self) -> bool:
        """False: only ticks without consequences, which the next block may as well hold."""
        return bool(
            self.batches
            or self.sealed
            or self.frames
            or self.removed
            or self.dead_letters
            or self.new_series
            or self.deltas
            or self.settles
            or self.to_backfill_above is not None
        )

    def block(self) -> journal.Block:
        if not self.batches:
            return journal.Block(SampleBatch.empty(), np.empty(0, np.uint8), self.ticks, self.deltas, self.sealed)
        batch, verdict = SampleBatch.concat(self.batches), np.concatenate(self.verdicts)
        return journal.Block(batch, verdict, self.ticks, self.deltas, self.sealed)


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
        snapshot_block: int,
        commit_delay_s: float,
        when_full: str,
        journal_keep_bytes: int,
    ) -> None:
        self._operators = operators
        self._registry = registry
        self._intake = intake
        self._store = store
        self._uplink = uplink
        self._sealer = sealer
        self._clock = clock
        self._commit_delay_s = commit_delay_s
        self._when_full = when_full
        self._journal_keep_bytes = journal_keep_bytes

        self._wake = asyncio.Event()
        intake.ready = uplink.answered = self._wake
        self._pending = Pending()
        self._committing = Pending()
        """Handed to the store, until it is durable."""
        self._commit_now = False
        self._commit_task: asyncio.Task[None] | None = None
        self._last_commit_s = 0.0
        self._next_tick_s = 0.0
        self._stop_by_s: float | None = None
        self._final_sent = False
        self._recent: deque[tuple[SampleBatch, Bytes]] = deque()
        self._recent_samples = 0
        self._forgotten_ns = committed.high_ns
        """The highest time that `_recent` does not hold."""
        self._cannot_merge: set[int] = set()
        self._samples_since_snapshot = SNAPSHOT_SAMPLES
        self._snapshot_due_s = 0.0
        self._snapshot_block = snapshot_block

        self.reporter: Reporter
        """Set by the daemon: it asks the pump for what is waiting."""
        self.committed = committed
        self.commits = 0
        self.samples = 0
        self.store_error = ""
        self.blocked = False
        self.commit_seconds = Histogram()
        self.arrival_to_commit_seconds = Histogram()
        self.created_to_receipt_seconds = Histogram()

    # -- the loop ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn until stopped and done."""
        loop = asyncio.get_running_loop()
        self._last_commit_s = self._next_tick_s = loop.time()
        self._snapshot_due_s = loop.time() + SNAPSHOT_S
        while not self._is_done(loop.time()):
            await self._sleep(loop)
            self._turn(loop.time())
            if self._commit_is_due(loop.time()):
                await self._begin_commit(loop)
        await self._begin_commit(loop, last=True)
        if self._commit_task:
            await self._commit_task

    def stop(self, within_s: float) -> None:
        """Take in what the intake holds, send what can be sent within this time, and end."""
        self._stop_by_s = asyncio.get_running_loop().time() + within_s
        self._wake.set()

    async def _sleep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until woken, or the next deadline. The loop's other tasks get their turn in any case."""
        deadline_s = self._next_tick_s
        if self._pending.is_worth_it() and self._commit_task is None:
            deadline_s = min(deadline_s, self._last_commit_s + self._commit_delay_s)
        alarm_clock = loop.call_at(deadline_s, self._wake.set)
        try:
            await asyncio.sleep(0)
            await self._wake.wait()
        finally:
            alarm_clock.cancel()
        self._wake.clear()

    def _turn(self, now_s: float) -> None:
        """Take in what has happened since the last turn: receipts, samples, the tick."""
        self._take_answers(self._pending)
        if self._uplink.reconnected:
            self._uplink.reconnected = False
            self._pending.to_backfill_above = self._uplink.outbox.live_limit()
        room = SAMPLES_AHEAD - self._pending.samples
        if room > 0 and not self.blocked:
            self._take_samples(self._intake.drain(room))
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + TICK_S
            self._tick()

    def _take_samples(self, drained: Drained) -> None:
        pending = self._pending
        for (account, reason), count in drained.rejects.items():
            series = account if isinstance(account, int) else self._registry.device_account(account)
            self._account(pending, Deltas(rejected=[(series, REJECT_REASONS.index(reason), count)]))
        pending.dead_letters += drained.dead_letters
        pending.settles += drained.settles
        pending.repeating |= drained.repeating
        batch = drained.batch
        if not len(batch):
            return
        now_ns = self._clock.now_ns()
        verdict = self._operators.admission.admit(
            batch, drained.arrived_ns, now_ns, journal_floor_ns=self.committed.journal_floor_ns
        )
        alarms = self._operators.samples(batch, drained.arrived_ns, verdict)
        if not pending.batches:
            pending.oldest_arrival_ns = int(drained.arrived_ns[0])
        pending.batches.append(batch)
        pending.verdicts.append(verdict)
        pending.samples += len(batch)
        self.samples += len(batch)
        self._remember(batch, verdict)
        self._raise(alarms)

    def _tick(self) -> None:
        tick_ns = self._clock.tick_ns()
        pending = self._pending
        if not pending.is_worth_it():
            pending.ticks.clear()  # nothing came of them, and this one stands for them
        pending.ticks.append((pending.samples, tick_ns))
        self._raise(self._operators.tick(tick_ns))
        pending.sealed = pending.sealed or self._operators.has_closed()
        pending.frames += self.reporter.due(tick_ns, final=False)

    def _raise(self, alarms: list[Alarm]) -> None:
        if alarms:
            self._pending.frames.append(self._sealer.alarms(alarms, self._clock.now_ns()))
            self._commit_now = True
            for alarm in alarms:
                log.warning("alarm %s: %s", alarm.state, alarm.reason)

    # -- the account ---------------------------------------------------------------------------------

    def _account(self, pending: Pending, deltas: Deltas) -> None:
        """Count now, and again when the block is replayed."""
        self._operators.apply(deltas)
        pending.deltas.extend(deltas)

    def waiting(self) -> Int64s:
        """int64[series]: accepted samples that have no receipt yet, wherever they are."""
        counts = self._operators.open_samples()
        leaving: set[int] = set()
        for pending in (self._pending, self._committing):
            leaving.update(pending.removed)
            for row, _ in pending.frames:
                counts[row.custody.series] += row.custody.samples
        for row in self._uplink.outbox.rows():
            if row.seq not in leaving:
                counts[row.custody.series] += row.custody.samples
        return counts

    # -- receipts ------------------------------------------------------------------------------------

    def _take_answers(self, pending: Pending) -> None:
        """Receipts end the custody of their frames: with the next commit they go."""
        for row, receipt in self._uplink.take_answers():
            pending.removed.append(row.seq)
            self.created_to_receipt_seconds.observe((self._clock.now_ns() - row.created_ns) / 1e9)
            if receipt.refused:
                self._refused(pending, row, receipt.refused)
                continue
            stored = row.custody.samples.copy()
            for bad in receipt.rejected:
                self._rejected_by_sink(pending, row, stored, bad)
            counts = [(int(s), 0, int(n)) for s, n in zip(row.custody.series, stored, strict=True) if n]
            self._account(pending, Deltas(stored=counts))

    def _refused(self, pending: Pending, row: OutboxRow, why: str) -> None:
        log.error("the cloud refused frame %d (%s): kept as a dead letter", row.seq, why)
        code = REJECT_REASONS.index("refused")
        counts = [(int(s), code, int(n)) for s, n in zip(row.custody.series, row.custody.samples, strict=True) if n]
        self._account(pending, Deltas(refused=counts))
        pending.dead_letters.append(
            DeadLetter(self._clock.now_ns(), "uplink", "refused", f"frame {row.seq}: {why}", b"")
        )

    def _rejected_by_sink(self, pending: Pending, row: OutboxRow, stored: Int64s, bad: Any) -> None:
        """`bad.series` is an index into the frame's table, as is the place in the custody."""
        log.error("the sink rejected %d samples of frame %d: %s: %s", bad.count, row.seq, bad.reason, bad.detail)
        pending.buried.append(BuriedFrame(row.seq, self._clock.now_ns(), "sink", f"{bad.reason}: {bad.detail}"))
        if bad.series >= len(stored):
            return  # a frame that answers for no samples
        count = min(bad.count, int(stored[bad.series]))
        stored[bad.series] -= count
        series = int(row.custody.series[bad.series])
        self._account(pending, Deltas(refused=[(series, REJECT_REASONS.index("sink"), count)]))

    # -- the commit ----------------------------------------------------------------------------------

    def _commit_is_due(self, now_s: float) -> bool:
        pending = self._pending
        full = pending.samples >= SAMPLES_AHEAD or (self._intake.waiting_samples > 0 and not self.blocked)
        if self._commit_task is not None:
            return full
        if self._commit_now or full:
            return True
        if pending.removed and self._uplink.outbox.waits_for_window():
            return True
        return pending.is_worth_it() and now_s >= self._last_commit_s + self._commit_delay_s

    async def _begin_commit(self, loop: asyncio.AbstractEventLoop, last: bool = False) -> None:
        """Hand what is pending to the store's thread; wait first for the commit that is under way."""
        if self._commit_task is not None:
            await self._commit_task
        pending, self._pending = self._pending, Pending()
        pending.new_series = self._registry.take_new()
        pending.unconfirmed = {name: messages.state() for name, messages in pending.repeating.items()}
        self._committing = pending
        self._commit_now = False
        self._last_commit_s = loop.time()
        self._samples_since_snapshot += pending.samples
        await self._make_room(pending)
        changed = self._registry.take_changed()
        take_snapshot = bool(last or changed or self._snapshot_is_due(loop.time()))
        if pending.sealed or take_snapshot:
            # A frame costs less a byte the more it holds: therefore once a tick, not with every commit.
            pending.frames += self._sealer.closed(self._operators.take(), self._clock.now_ns())
            pending.sealed = True
        state = None
        if take_snapshot:
            for index, spec in changed.items():
                self._raise(self._operators.set_series(index, spec))
            state = self._operators.snapshot()
            self._samples_since_snapshot = 0
            self._snapshot_due_s = loop.time() + SNAPSHOT_S
        self._commit_task = loop.create_task(self._commit(pending, state, changed), name="commit")
        self._commit_task.add_done_callback(self._commit_ended)

    def _commit_ended(self, task: asyncio.Task[None]) -> None:
        self._commit_task = None
        self._wake.set()

    async def _commit(
        self, pending: Pending, state: dict[str, NDArray[Any]] | None, changed: dict[int, SeriesSpec]
    ) -> None:
        """Until it is durable; then the sources are acknowledged and the uplink may send."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        while True:
            commit = self._build(pending)
            try:
                self.committed = await self._store.commit(commit)
                break
            except StoreError as error:
                await self._store_failed(error)
                if state is not None:  # what follows is not in it
                    state, self._snapshot_due_s = None, 0.0
                    self._registry.changed = changed | self._registry.changed
                self._take_answers(pending)
                await self._make_room(pending)
        self._committing = Pending()
        self.store_error, self.blocked = "", False
        self.commits += 1
        for settle in pending.settles:
            settle()
        if commit.to_backfill_above is not None:
            self._uplink.outbox.to_backfill(commit.to_backfill_above)
        self._uplink.committed(commit.frames, commit.send_limits, commit.removed)
        self.commit_seconds.observe(loop.time() - begun_s)
        if pending.batches:
            self.arrival_to_commit_seconds.observe((self._clock.now_ns() - pending.oldest_arrival_ns) / 1e9)
        if state is not None:
            await self._write_snapshot(state, changed)

    def _build(self, pending: Pending) -> Commit:
        """What the store is to do."""
        commit = Commit(
            new_series=pending.new_series,
            frames=pending.frames,
            removed=pending.removed,
            buried=pending.buried,
            to_backfill_above=pending.to_backfill_above,
            send_limits=self._uplink.outbox.plan_limits([row for row, _ in pending.frames]),
            dead_letters=pending.dead_letters,
            trim_journal_to=pending.trim_journal_to,
            unconfirmed=pending.unconfirmed,
        )
        if pending.batches or pending.ticks or pending.deltas or pending.sealed:
            block = pending.block()
            commit.block = journal.encode(block)
            commit.samples = len(block.batch)
            if commit.samples:
                commit.first_ns, commit.last_ns = int(block.batch.time_ns.min()), int(block.batch.time_ns.max())
        return commit

    async def _store_failed(self, error: StoreError) -> None:
        if str(error) != self.store_error:
            log.error("%s; nothing is acknowledged until it works again", error)
        self.store_error = str(error)
        await asyncio.sleep(STORE_RETRY_S if not isinstance(error, StoreFull) else STORE_RETRY_S / 10)

    async def _make_room(self, pending: Pending) -> None:
        """Where the store fills, let go what the plan names."""
        usage = self.committed.usage
        full = bool(self.store_error)
        if not (full or retention.is_needed(usage, self._journal_keep_bytes)):
            return
        outbox = self._uplink.outbox
        gone = set(pending.removed)
        plan = retention.plan(
            usage._replace(used_bytes=usage.limit_bytes) if full else usage,
            await self._store.oldest_blocks(),
            self._journal_keep_bytes,
            self._snapshot_block,
            [row for row in outbox.rows() if row.seq not in gone],
            {row.seq for row in outbox.held()},
            self._when_full,
            self._cannot_merge,
        )
        if plan.want_snapshot:
            self._snapshot_due_s = 0.0
        if plan.full and not self.blocked:
            log.error("the store is full: sources are not acknowledged until receipts make room")
        self.blocked = plan.full
        if plan.merge:
            await self._merge(pending, plan.merge)
        if plan.drop:
            self._drop(pending, plan.drop)
        pending.trim_journal_to = max(pending.trim_journal_to, plan.trim_journal_to)

    async def _merge(self, pending: Pending, rows: list[OutboxRow]) -> None:
        """Replace frames of summaries that were never published by fewer, with longer windows."""
        frames = await self._store.frames([row.seq for row in rows])
        window_ns = np.array([spec.window_ns for spec in self._operators.specs], np.int64)
        summaries = []
        for row in rows:
            body = decode_frame(frames[row.seq], FrameLimits()).body
            if isinstance(body, SummaryBody):
                body.rows["series"] = row.custody.series[body.rows["series"]]
                summaries.append((row, body.rows))
        before = [row for row, _ in summaries]
        if not before:
            self._cannot_merge.update(row.seq for row in rows)
            return
        merged = degrade.merge(np.concatenate([part for _, part in summaries]), window_ns)
        settle_entry(merged)
        after = list(self._sealer.backlog(merged, self._clock.now_ns()))
        gain = 1 - sum(row.size_bytes for row, _ in after) / sum(row.size_bytes for row in before)
        self._cannot_merge.update(row.seq for row in rows)  # those of them that go do not come back
        if gain < MERGE_GAIN_MIN:
            return
        pending.removed += [row.seq for row in before]
        pending.frames += after
        log.warning("the store fills: merged the windows of %d frames into %d", len(before), len(after))

    def _drop(self, pending: Pending, rows: list[OutboxRow]) -> None:
        code = DROP_POLICIES.index("drop_oldest")
        total = 0
        for row in rows:
            pending.removed.append(row.seq)
            counts = [(int(s), code, int(n)) for s, n in zip(row.custody.series, row.custody.samples, strict=True) if n]
            total += sum(n for _, _, n in counts)
            self._account(pending, Deltas(dropped=counts))
        log.error("the store is full: dropped the %d oldest frames (%d samples)", len(rows), total)

    # -- snapshots -----------------------------------------------------------------------------------

    def _snapshot_is_due(self, now_s: float) -> bool:
        return self._samples_since_snapshot >= SNAPSHOT_SAMPLES or now_s >= self._snapshot_due_s

    async def _write_snapshot(self, state: dict[str, NDArray[Any]], changed: dict[int, SeriesSpec]) -> None:
        block_id = self.committed.block_id
        try:
            await self._store.write_snapshot(block_id, state, changed)
            self._snapshot_block = block_id
        except StoreError as error:
            log.warning("%s; the journal is kept from the last snapshot on", error)

    # -- what was there before -----------------------------------------------------------------------

    def _remember(self, batch: SampleBatch, verdict: Bytes) -> None:
        self._recent.append((batch, verdict))
        self._recent_samples += len(batch)
        while self._recent_samples > RECENT_SAMPLES:
            old, _ = self._recent.popleft()
            self._recent_samples -= len(old)
            self._forgotten_ns = max(self._forgotten_ns, int(old.time_ns.max()))

    def history(self, series: int, lo_ns: int, hi_ns: int) -> tuple[Int64s, Floats]:
        """Times and values of a series' accepted samples in a span: from memory, or else from the journal."""
        parts = list(self._recent)
        if lo_ns <= self._forgotten_ns:
            blocks = [journal.decode(data) for data in self._store.blocks_between(lo_ns, hi_ns)]
            parts += [(block.batch, block.verdict) for block in blocks]
        times, values = [np.empty(0, np.int64)], [np.empty(0)]
        for batch, verdict in parts:
            at = batch.time_ns
            found = (batch.series == series) & (at >= lo_ns) & (at <= hi_ns)
            found &= (verdict == ACCEPTED) | (verdict == BEHIND_JOURNAL)
            times.append(at[found])
            values.append(batch.value[found])
        return np.concatenate(times), np.concatenate(values)

    def _is_done(self, now_s: float) -> bool:
        """After `stop`: everything sent and answered, the final account included, or no time left."""
        if self._stop_by_s is None:
            return False
        if now_s >= self._stop_by_s:
            return True
        if self._pending.is_worth_it() or self._commit_task or len(self._uplink.outbox):
            return False
        if not self._final_sent:
            self._final_sent = True
            self._pending.frames += self.reporter.due(self._clock.now_ns(), final=True)
            self._commit_now = True
            self._wake.set()
            return False
        return True
