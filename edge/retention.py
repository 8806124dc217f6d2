"""When the store fills: what goes first (design §5). Pure: from what there is to what should go.

Working starts at 90 % of the limit, so that there is room to work in, and aims at 85 %:

1. raw blocks of the journal, oldest first, never past the last snapshot (recovery needs what follows it);
2. then, by policy:
   `degrade`       summaries that were never published are merged, oldest first, into windows ten times
                   longer (edge/degrade.py); only when nothing is left to merge, as `drop_oldest`
   `drop_oldest`   frames go, oldest first: those never published, then those without a receipt; alarms last
   `block`         nothing: sources are no longer acknowledged nor polled until receipts make room

The journal has bounds of its own, in bytes and in time, whatever room there is; it is trimmed in steps of a
twentieth, so that not every commit trims.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from devices.model import Lane
from edge.custody import JournalRow, OutboxRow, Usage

START = 0.90
AIM = 0.85
STEP = 0.05
"""Of the journal, trimmed at once."""
TRIM_BYTES_PER_COMMIT = 4 << 20
"""More is trimmed in the commits that follow: a freed page costs a little of the WAL."""
DROP_BYTES_PER_COMMIT = 1 << 20
"""Not more is given up than must be: the next commit may find that receipts have come."""
MERGE_BYTES = 256 << 10
"""Merged with one commit: some 20,000 rows, and 20 ms of CPU."""
SNAPSHOT_WORTH = 1 / 16
"""A snapshot is asked for when the part of the limit that could be trimmed after it is at least this."""


@dataclass(slots=True)
class Plan:
    """What the next commit should free."""

    trim_journal_to: int = 0
    trim_journal_ns: int = 0
    """What goes with it reaches up to this time."""
    trim_bytes: int = 0
    drop: list[OutboxRow] = field(default_factory=list)
    merge: list[OutboxRow] = field(default_factory=list)
    want_snapshot: bool = False
    """The journal could be trimmed further after a new snapshot."""
    full: bool = False
    """Nothing more can go under the policy `block`."""


class Keep(NamedTuple):
    """How much of the journal is kept."""

    size_bytes: int
    span_ns: int


def is_needed(usage: Usage, keep: Keep, now_ns: int) -> bool:
    """Whether `plan` would find anything to do."""
    return (
        usage.used_bytes > usage.limit_bytes * START
        or usage.journal_bytes > keep.size_bytes
        or (usage.journal_bytes > 0 and now_ns - usage.journal_from_ns > keep.span_ns * (1 + STEP))
    )


def plan(
    usage: Usage,
    now_ns: int,
    journal: Iterable[JournalRow],
    keep: Keep,
    snapshot_block: int,
    outbox: Sequence[OutboxRow],
    held: set[int],
    when_full: str,
    cannot_merge: set[int],
    urgent: bool = False,
    planned_bytes: int = 0,
) -> Plan:
    """What should go now.

    `journal`: its oldest blocks, oldest first; `snapshot_block`: the last that the last whole snapshot
    covers; `outbox`: frames that may go, oldest first; `held`: seqs of those that were never published;
    `cannot_merge`: those that merging makes no smaller; `urgent`: a commit found the store full, so nothing can
    wait for a snapshot; `planned_bytes`: though it was to trim so many, which is therefore not enough.
    """
    result = Plan()
    excess = 0
    if usage.used_bytes > usage.limit_bytes * START:
        excess = usage.used_bytes + planned_bytes - int(usage.limit_bytes * AIM)
    beyond = usage.journal_bytes - int(keep.size_bytes * (1 - STEP)) if usage.journal_bytes > keep.size_bytes else 0
    trim_most, drop_most = planned_bytes + TRIM_BYTES_PER_COMMIT, planned_bytes + DROP_BYTES_PER_COMMIT
    freed = 0
    for block in journal:
        is_old = now_ns - block.high_ns > keep.span_ns
        if (freed >= max(excess, beyond) and not is_old) or freed >= trim_most:
            break
        if block.id > snapshot_block:
            beyond_snapshot = usage.journal_bytes - freed
            result.want_snapshot = beyond_snapshot > usage.limit_bytes * SNAPSHOT_WORTH
            break
        result.trim_journal_to, result.trim_journal_ns = block.id, block.high_ns
        freed = result.trim_bytes = freed + block.size_bytes
    if not excess or freed >= excess or freed >= trim_most or (result.want_snapshot and not urgent):
        return result
    if when_full == "block":
        result.full = True
        return result
    if when_full == "degrade":
        result.merge = mergeable(outbox, held - cannot_merge)
        if result.merge:
            return result
    for row in sorted(outbox, key=lambda row: _value(row, row.seq in held)):
        if freed >= min(excess, drop_most):
            break
        result.drop.append(row)
        freed += row.size_bytes
    return result


def mergeable(outbox: Sequence[OutboxRow], may: set[int]) -> list[OutboxRow]:
    """The oldest frames that may be merged, two at least, up to MERGE_BYTES; those that never were before those that
    are merged already, unless the latter take more room: a second merging costs much resolution and frees little."""
    fine = [row for row in outbox if row.leaf == "data" and row.seq in may and row.lane == Lane.LIVE]
    merged = [row for row in outbox if row.leaf == "data" and row.seq in may and row.lane != Lane.LIVE]
    first, then = sorted((fine, merged), key=lambda rows: -sum(row.size_bytes for row in rows))
    return _oldest(first) or _oldest(then)


def _oldest(frames: list[OutboxRow]) -> list[OutboxRow]:
    rows: list[OutboxRow] = []
    size_bytes = 0
    for row in frames:
        rows.append(row)
        size_bytes += row.size_bytes
        if size_bytes >= MERGE_BYTES and len(rows) > 1:
            break
    return rows if len(rows) > 1 else []


def _value(row: OutboxRow, held: bool) -> tuple[int, int, int]:
    """Least valuable first."""
    return (1 if row.lane == Lane.ALARM else 0, 0 if held else 1, row.seq)
