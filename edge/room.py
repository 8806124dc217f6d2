"""Makes room where the store fills: what edge/retention.py plans is taken out of journal and outbox.

All of it becomes part of a commit that is about to be built: the journal's blocks and the frames go, and what
was merged comes, with one transaction.
"""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np

from devices.errors import FrameError
from devices.model import DROP_POLICIES
from devices.wire.frame import FrameLimits, SummaryBody
from devices.wire.frame import decode as decode_frame
from edge import degrade, retention
from edge.custody import Commit, JournalRow, OutboxRow, Usage
from edge.kernels.settle import settle_entry
from edge.ledger import Deltas
from edge.operators import Operators
from edge.outage import PAGE_BYTES, row_pages_bytes
from edge.outbox import Outbox
from edge.pending import Pending
from edge.seal import Sealer

log = logging.getLogger("forebay.room")

RESERVE = 1 / 32
RESERVE_BYTES_MIN = 4 * PAGE_BYTES
"""Of the limit, which under the policy `block` only commits may use that take frames out: without it a file full to its
last page could not note the receipts that empty it."""
MERGE_GAIN_MIN = 0.2
"""Merging that frees less than this part is not worth a longer window."""


class ReadablePort(Protocol):
    """What is read of the store."""

    async def oldest_blocks(self) -> list[JournalRow]: ...

    async def frames(self, seqs: list[int]) -> dict[int, bytes]: ...


class Room:
    """Keeps the store below its limit, by the policy `when_full`."""

    def __init__(
        self,
        store: ReadablePort,
        outbox: Outbox,
        sealer: Sealer,
        operators: Operators,
        *,
        when_full: str,
        keep: retention.Keep,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._sealer = sealer
        self._operators = operators
        self._when_full = when_full
        self.keep = keep
        self._cannot_merge: set[int] = set()
        self._lengthen_to = 0
        """Frames up to this seq are merged before they go; 0: no such round is under way."""
        self.blocked = False
        self.merged_windows = 0
        """Windows that went into longer ones, since the process started."""
        """Policy `block`: nothing is taken in until receipts have made room."""
        self.wants_snapshot = False
        """The journal could be trimmed further after a new one."""
        self.journal_floor_ns = 0
        """Before it the journal may know nothing, once all that was planned is done."""

    async def make(self, pending: Pending, usage: Usage, now_ns: int, snapshot_block: int, *, is_full: bool) -> None:
        """Let go with this commit what the plan names. `is_full`: a commit has just failed for want of room, though
        this one was to trim what it has planned until now: more is needed.

        Raises StoreError where the store cannot be read.
        """
        if is_full:
            usage = usage._replace(used_bytes=usage.limit_bytes)
        if not retention.is_needed(usage, self.keep, now_ns):
            return
        plan = retention.plan(
            usage,
            now_ns,
            await self._store.oldest_blocks(),
            self.keep,
            snapshot_block,
            self._outbox.staying() if usage.used_bytes > usage.limit_bytes * retention.START else [],
            {row.seq for row in self._outbox.held()},
            self._when_full,
            self._cannot_merge,
            urgent=is_full,
            planned_bytes=pending.trim_bytes if is_full else 0,
        )
        self.wants_snapshot = plan.want_snapshot
        if plan.full and not self.blocked:
            log.error("the store is full: sources are not acknowledged until receipts make room")
        self.blocked = self.blocked or plan.full
        if plan.merge:
            await self._merge(pending, plan.merge, now_ns, "the store fills")
        if plan.drop:
            self._drop(pending, plan.drop)
        if plan.trim_journal_to > pending.trim_journal_to:
            pending.trim_journal_to, pending.trim_bytes = plan.trim_journal_to, plan.trim_bytes
            self.journal_floor_ns = max(self.journal_floor_ns, plan.trim_journal_ns)

    async def lengthen(self, pending: Pending, now_ns: int) -> bool:
        """Near the month's limit: merge once what is held, a part with each commit; whether there is more.

        Raises StoreError where the store cannot be read.
        """
        held = sorted(self._outbox.held(), key=lambda row: row.seq)
        if not self._lengthen_to and held:
            self._lengthen_to = held[-1].seq  # what is merged comes after it, and is not merged again
        seqs = {row.seq for row in held if row.seq <= self._lengthen_to}
        rows = retention.mergeable(held, seqs - self._cannot_merge)
        if not rows:
            self._lengthen_to = 0
            return False
        await self._merge(pending, rows, now_ns, "to spare the month's budget")
        return True

    @property
    def blocks(self) -> bool:
        """Whether sources wait when the store is full: nothing is given up."""
        return self._when_full == "block"

    def refuses(self, commit: Commit, pending: Pending, usage: Usage) -> bool:
        """Policy `block`: whether it would take of the reserve, though blocks and merged frames go with it. Where no
        frame is left there is no receipt to wait for, nor to keep the reserve for."""
        if not self.blocks or not len(self._outbox):
            return False
        reserve_bytes = max(usage.limit_bytes * RESERVE, RESERVE_BYTES_MIN)
        rows = [len(frame) + len(row.packed_custody) for row, frame in commit.frames]
        gone = [row.size_bytes + len(row.packed_custody) for row in pending.merged]
        brought_bytes = row_pages_bytes(len(commit.block)) + sum(map(row_pages_bytes, rows))
        freed_bytes = pending.trim_bytes + sum(map(row_pages_bytes, gone))
        return usage.used_bytes + brought_bytes - freed_bytes > usage.limit_bytes - reserve_bytes

    def look(self, usage: Usage) -> None:
        """After a commit: whether sources may go on."""
        if self.blocked and usage.used_bytes < usage.limit_bytes * retention.AIM:
            self.blocked = False
            log.warning("the store has room again: sources are read and acknowledged")

    async def _merge(self, pending: Pending, rows: list[OutboxRow], now_ns: int, why: str) -> None:
        """Replace frames of summaries that were never published by fewer, with longer windows."""
        frames = await self._store.frames([row.seq for row in rows])
        self._cannot_merge.update(row.seq for row in rows)  # those of them that go do not come back
        before, summaries = [], []
        for row in rows:
            try:
                body = decode_frame(frames[row.seq], FrameLimits()).body
            except (KeyError, FrameError) as error:
                log.error("frame %d cannot be read back to be merged: %s", row.seq, error)
                continue
            if isinstance(body, SummaryBody) and len(row.custody.series):  # else of an older store (edge/salvage.py)
                body.rows["series"] = row.custody.series[body.rows["series"]]
                before.append(row)
                summaries.append(body.rows)
        if not before:
            return
        window_ns = np.array([spec.window_ns for spec in self._operators.specs], np.int64)
        merged = degrade.merge(np.concatenate(summaries), window_ns)
        settle_entry(merged)
        after = list(self._sealer.backlog(merged, now_ns))
        gain = 1 - sum(row.size_bytes for row, _ in after) / sum(row.size_bytes for row in before)
        if gain < MERGE_GAIN_MIN:
            return
        self.merged_windows += sum(map(len, summaries))
        pending.merged += [self._outbox.leave(row.seq) for row in before]
        pending.frames += after
        self._cannot_merge.intersection_update(row.seq for row in self._outbox.held())
        log.info("%s: merged the windows of %d frames into %d", why, len(before), len(after))

    def _drop(self, pending: Pending, rows: list[OutboxRow]) -> None:
        held = {row.seq for row in self._outbox.held()}
        total = 0
        for row in rows:
            is_held = row.seq in held
            policy = DROP_POLICIES.index("drop_oldest" if is_held else "unconfirmed")
            pending.removed.append(self._outbox.leave(row.seq) if is_held else self._outbox.give_up(row.seq))
            custody = row.custody
            counts = [
                (s, policy, n) for s, n in zip(custody.series.tolist(), custody.samples.tolist(), strict=True) if n
            ]
            total += sum(n for _, _, n in counts)
            pending.count(self._operators, Deltas(dropped=counts))
        log.error("the store is full: dropped the %d oldest frames (%d samples)", len(rows), total)
