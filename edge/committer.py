"""The commits, one after the other: when the next is due, what it takes along, and that the store takes it.

    gathering (`pending`) ─▶ begin: room is made, a snapshot copied ─▶ under way ─▶ durable: sources acknowledged
                                                                         ▲    │             and the uplink told
                                                              try again ─┘◀───┘ the store is full, or fails

A commit runs beside the pump, on the store's own thread; the one after it gathers meanwhile. One that fails is
tried until the store takes it, with what has been receipted since. Where it waits for room that only
receipts make (policy `block`), a relief goes first: a commit that only takes out.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

import msgspec
from numpy.typing import NDArray

from devices.errors import StoreCorrupt, StoreError, StoreFull
from devices.model import Alarm, Lane
from edge import degrade
from edge.clock import Clock
from edge.custody import Commit, Committed
from edge.metrics import Histogram
from edge.operators import Operators
from edge.outage import Growth, Journal, budget_s, row_pages_bytes
from edge.pending import SAMPLES_MAX, Pending
from edge.receipts import Receipts
from edge.registry import Registry
from edge.replay import Replay
from edge.room import Room
from edge.seal import Sealer
from edge.uplink import Uplink

log = logging.getLogger("forebay.pump")

COMMIT_GAP_S = 0.05
COMMIT_BURST = 10
"""Commits that cannot wait (alarms, receipts of a backlog, a source that has stopped) are so far apart on average,
which spares the disk, and follow at once while they are few."""
LENGTHEN_S = 300.0
LENGTHEN_TENS = 5
"""What is merged to spare the month's budget was held for this many times ten of the shortest windows, and so long at
least: at both ends of it a window that is not whole is merged."""
STORE_RETRY_S = 1.0
STORE_FULL_RETRY_S = 0.1
UNTRUSTED = " The gateway's clock is not set: the time of this alarm is an estimate."


class CommitPort(Protocol):
    """What is asked of the store."""

    async def commit(self, commit: Commit) -> Committed: ...


class Committer:
    """Order of calls: `start`; then `begin` for each commit, which waits for the one before; at last `end`."""

    def __init__(
        self,
        operators: Operators,
        registry: Registry,
        store: CommitPort,
        uplink: Uplink,
        sealer: Sealer,
        clock: Clock,
        room: Room,
        receipts: Receipts,
        replay: Replay,
        wake: asyncio.Event,
        *,
        committed: Committed,
        commit_delay_s: float,
    ) -> None:
        """`wake`: set when a commit has ended."""
        self._operators = operators
        self._registry = registry
        self._store = store
        self._uplink = uplink
        self._sealer = sealer
        self._clock = clock
        self._room = room
        self._receipts = receipts
        self.replay = replay
        self._wake = wake
        self.committed = committed
        """How the last one left the store."""
        self._commit_delay_s = commit_delay_s

        self.pending = Pending()
        """What gathers for the next one."""
        self.soon = False
        """The next one does not wait for `commit_delay`."""
        self.is_ending = False
        """No other may follow: each keeps what the month's budget has spent."""
        self.try_until_s = float("inf")
        """Loop time from which a commit that fails is not tried again."""
        self._under_way = Pending()
        """Handed to the store, until it is durable."""
        self._relief = Pending()
        """What goes before it where there is no room for it."""
        self._task: asyncio.Task[None] | None = None
        self._last_s = 0.0
        self._credit_s = 0.0
        """Each commit moves it on by its share of time; how far it is ahead says how many there were lately."""
        self._lengthen_s = 0.0
        """From then on what was held to spare the month's budget is merged, and goes."""
        self._frames_growth, self._journal_growth = Growth(), Growth()

        self.commits = 0
        self.store_error = ""
        self.commit_seconds = Histogram()
        self.arrival_to_commit_seconds = Histogram()

    def follow(self, before: Committer) -> None:
        """Go on where another has ended."""
        self.pending = before.pending  # a dead letter may have come back since its last commit began
        self._lengthen_s = before._lengthen_s
        self.replay.follow(before.replay)
        self.committed, self.commits = before.committed, before.commits
        self.commit_seconds = before.commit_seconds
        self.arrival_to_commit_seconds = before.arrival_to_commit_seconds

    # -- what gathers --------------------------------------------------------------------------------

    def raise_alarms(self, pending: Pending, alarms: list[Alarm]) -> None:
        """Alarms that open or close go at once."""
        if alarms:
            if not self._clock.trusted:
                alarms = [msgspec.structs.replace(alarm, reason=alarm.reason + UNTRUSTED) for alarm in alarms]
            pending.frames += self._sealer.alarms(alarms, self._clock.now_ns())
            self.soon = True
            for alarm in alarms:
                log.warning("alarm %s: %s", alarm.state, alarm.reason)

    def unfinished(self) -> tuple[Pending, ...]:
        """All that is not durable yet."""
        return self.pending, self._under_way, self._relief

    def journal_floor_ns(self) -> int:
        """Before it the journal may know nothing."""
        return max(self.committed.journal_floor_ns, self._room.journal_floor_ns)

    # -- one commit ----------------------------------------------------------------------------------

    def start(self, now_s: float) -> None:
        """The first shows that the store can be written: then we are ready."""
        self._last_s, self.soon = now_s, True
        self.replay.begin(now_s)

    def due_s(self, *, hurry: bool) -> float:
        """The loop time from which the next may begin; infinity when none is needed, or one is under way. `hurry`:
        somebody waits for it."""
        pending = self.pending
        if pending.samples >= SAMPLES_MAX:
            return 0.0
        if self.is_under_way or not (pending.is_worth_it() or self.soon):
            return float("inf")
        frees_window = bool(pending.removed) and self._uplink.outbox.has_held()
        if self.soon or frees_window or hurry:
            return min(self._credit_s - COMMIT_BURST * COMMIT_GAP_S, self._last_s + self._commit_delay_s)
        return self._last_s + self._commit_delay_s

    async def begin(self, *, last: bool = False) -> None:
        """Hand what is pending to the store's thread; wait first for the commit that is under way."""
        loop = asyncio.get_running_loop()
        await self.end()
        if last:
            await self.replay.written()
        pending, self.pending = self.pending, Pending()
        self._under_way = pending
        self.soon = False
        self._last_s = loop.time()
        self._credit_s = max(self._credit_s, loop.time()) + COMMIT_GAP_S
        self.replay.samples += pending.samples
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
        self._task = loop.create_task(self._commit(pending, state), name="commit")
        self._task.add_done_callback(lambda _: self._wake.set())

    @property
    def is_under_way(self) -> bool:
        return self._task is not None

    @property
    def has_ended(self) -> bool:
        """The one that was under way: `end` does not wait."""
        return self._task is not None and self._task.done()

    async def end(self) -> None:
        """Wait for the commit that is under way, if there is one. Raises what it raised."""
        if self._task is not None:
            task = self._task
            await task
            self._task = None

    async def _commit(self, pending: Pending, state: dict[str, NDArray[Any]] | None) -> None:
        """Until it is durable; then the sources are acknowledged and the uplink may send."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        while True:
            commit = self._built(pending)
            commit.month = self._uplink.month_row(last=self.is_ending)
            try:
                if self._room.refuses(commit, pending, self.committed.usage):
                    raise StoreFull("the store is full: the commit waits until receipts have made room")
                self.committed = await self._store.commit(commit)
                break
            except StoreCorrupt:
                raise  # no attempt will help: the daemon begins again with another file
            except StoreError as error:
                state = None  # what follows is not in it
                self.replay.discard(loop.time())
                await self._try_again(pending, error)
        self._under_way = Pending()
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
            self.replay.write(self.committed.block_id, state)

    def _built(self, pending: Pending) -> Commit:
        """What the store is to do, the send limits included."""
        commit = pending.build()
        commit.send_limits = self._uplink.plan_limits([row for row, _ in commit.frames], pending.to_backfill)
        commit.to_backfill_above = self._uplink.outbox.live_limit() if pending.to_backfill else None
        return commit

    def _snapshot_is_due(self, now_s: float) -> bool:
        limit_bytes, changed = self.committed.usage.limit_bytes, bool(self._registry.changed)
        return self.replay.is_due(now_s, limit_bytes, is_asked=self._room.wants_snapshot, changed=changed)

    def _change_over(self, pending: Pending, now_s: float) -> dict[str, NDArray[Any]]:
        """Let changed settings count from the end of this block on, and take a snapshot there."""
        changed = self._registry.take_changed()
        for index, spec in changed.items():
            self.raise_alarms(pending, self._operators.set_series(index, spec))
        pending.changed = list(changed.items())
        pending.sealed = True
        pending.frames += self._sealer.closed(self._operators.take(), self._clock.now_ns())
        return self.replay.take(now_s, changed)

    # -- where there is no room ----------------------------------------------------------------------

    async def _try_again(self, pending: Pending, error: StoreError) -> None:
        """After a commit that failed: wait, and see whether receipts, or giving something up, make room."""
        if asyncio.get_running_loop().time() >= self.try_until_s:
            raise error
        self._note(error)
        await asyncio.sleep(STORE_FULL_RETRY_S if isinstance(error, StoreFull) else STORE_RETRY_S)
        pending.take_removals(self.pending)
        self._receipts.take(pending)
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
        await self._room.make(pending, usage, now_ns, self.replay.snapshot_block, is_full=is_full)

    def is_to_lengthen(self, now_s: float) -> bool:
        """Near the month's limit: what was held for a while is to be merged by now."""
        return self._uplink.saves and now_s >= self._lengthen_s

    async def _lengthen(self, pending: Pending, now_s: float) -> None:
        """Near the month's limit (edge/budget.py) what was held for a while is merged, and goes."""
        if not self.is_to_lengthen(now_s):
            return
        if await self._room.lengthen(pending, self._clock.now_ns()):
            self.soon = True
            return
        self._uplink.release = True
        windows_ns = [spec.window_ns for spec in self._operators.specs if spec.channel]
        self._lengthen_s = now_s + max(LENGTHEN_TENS * degrade.FACTOR * min(windows_ns, default=0) / 1e9, LENGTHEN_S)

    # -- how long the store lasts (edge/outage.py) ---------------------------------------------------

    def _measure(self, commit: Commit, now_s: float) -> None:
        """What has grown with a commit; what was merged is no growth."""
        block_bytes = row_pages_bytes(len(commit.block)) if commit.block else 0
        self.replay.fresh_bytes += block_bytes
        self._journal_growth.add(now_s, block_bytes)
        made = [(row, frame) for row, frame in commit.frames if row.lane != Lane.BACKFILL]
        frames_bytes = sum(row_pages_bytes(len(frame) + len(row.packed_custody)) for row, frame in made)
        self._frames_growth.add(now_s, frames_bytes)

    def outage_budget_s(self) -> float:
        """How long the link may be away before something is merged, dropped, or waits; NaN: not known yet."""
        now_s, replay = asyncio.get_running_loop().time(), self.replay
        per_s, each_s = self._journal_growth.per_s(now_s), replay.snapshot_each_s(now_s)
        journal = Journal(replay.fresh_bytes, per_s, each_s, self._room.keep)
        return budget_s(self.committed.usage, self._frames_growth.per_s(now_s), journal)
