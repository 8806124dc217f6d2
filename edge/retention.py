"""When the store fills: what goes first (design §5). Pure: from what there is to what should go.

Working starts at 90 % of the limit, so that there is room to work in, and aims at 85 %:

1. raw blocks of the journal, oldest first, never past the last snapshot (recovery needs what follows it);
2. then, by policy:
   `degrade`       summaries that were never published are merged, oldest first, into windows ten times
                   longer (edge/degrade.py); only when nothing is left to merge, as `drop_oldest`
   `drop_oldest`   frames go, oldest first: those never published, then those without a receipt; alarms last
   `block`         nothing: sources are no longer acknowledged nor polled until receipts make room
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from devices.model import Lane
from edge.custody import JournalRow, OutboxRow, Usage

START = 0.90
AIM = 0.85
TRIM_BYTES_PER_COMMIT = 4 << 20
"""More is trimmed in the commits that follow: a freed page costs a little of the WAL."""
MERGE_FRAMES = 64
"""Merged with one commit: some 300 KB, and 20 ms of CPU."""


@dataclass(slots=True)
class Plan:
    """What the next commit should free."""

    trim_journal_to: int = 0
    drop: list[OutboxRow] = field(default_factory=list)
    merge: list[OutboxRow] = field(default_factory=list)
    want_snapshot: bool = False
    """The journal could be trimmed further after a new snapshot."""
    full: bool = False
    """Nothing more can go under the policy `block`."""


def is_needed(usage: Usage, journal_keep_bytes: int) -> bool:
    """Whether `plan` would find anything to do."""
    return usage.used_bytes > usage.limit_bytes * START or usage.journal_bytes > journal_keep_bytes


def plan(
    usage: Usage,
    journal: Iterable[JournalRow],
    journal_keep_bytes: int,
    snapshot_block: int,
    outbox: Sequence[OutboxRow],
    held: set[int],
    when_full: str,
    cannot_merge: set[int],
) -> Plan:
    """What should go now.

    `journal`: its oldest blocks, oldest first; `snapshot_block`: the last that the last whole snapshot
    covers; `held`: seqs of frames that were never published; `cannot_merge`: those that merging makes no
    smaller.
    """
    result = Plan()
    excess = usage.used_bytes - int(usage.limit_bytes * AIM) if usage.used_bytes > usage.limit_bytes * START else 0
    beyond_keep = usage.journal_bytes - journal_keep_bytes
    freed = 0
    for block in journal:
        if freed >= max(excess, beyond_keep) or freed >= TRIM_BYTES_PER_COMMIT:
            break
        if block.id > snapshot_block:
            result.want_snapshot = True
            break
        result.trim_journal_to = block.id
        freed += block.size_bytes
    if not excess or freed >= excess or freed >= TRIM_BYTES_PER_COMMIT or result.want_snapshot:
        return result
    if when_full == "block":
        result.full = usage.used_bytes > usage.limit_bytes * START
        return result
    if when_full == "degrade":
        result.merge = [
            row for row in outbox if row.leaf == "data" and row.seq in held and row.seq not in cannot_merge
        ][:MERGE_FRAMES]
        if len(result.merge) > 1:
            return result
    for row in sorted(outbox, key=lambda row: _value(row, row.seq in held)):
        if freed >= excess:
            break
        result.drop.append(row)
        freed += row.size_bytes
    return result


def _value(row: OutboxRow, held: bool) -> tuple[int, int, int]:
    """Least valuable first."""
    return (1 if row.lane == Lane.ALARM else 0, 0 if held else 1, row.seq)
