"""What goes when the store fills: the least valuable first, and not more than must."""

from __future__ import annotations

from devices.model import Lane
from edge.custody import Custody, JournalRow, OutboxRow, Usage
from edge.retention import Keep, Plan, is_needed, plan

LIMIT = 1000


def row(seq: int, lane: Lane = Lane.LIVE, leaf: str = "data") -> OutboxRow:
    return OutboxRow(seq, lane, leaf, seq, b"", Custody.none().pack(), 50)


def planned(
    used: int,
    *,
    policy: str = "drop_oldest",
    journal: int = 0,
    snapshot_block: int = 100,
    keep: int = 1000,
    outbox: list[OutboxRow] | None = None,
    held: set[int] | None = None,
    cannot_merge: set[int] | None = None,
    keep_ns: int = 1 << 60,
    urgent: bool = False,
    planned_bytes: int = 0,
) -> Plan:
    blocks = [JournalRow(i + 1, 10, 100 * (i + 1)) for i in range(journal)]
    return plan(
        Usage(used, LIMIT, 10 * journal, 100),
        10_000,
        blocks,
        Keep(keep, keep_ns),
        snapshot_block,
        outbox or [],
        held or set(),
        policy,
        cannot_merge or set(),
        urgent,
        planned_bytes,
    )


def test_nothing_goes_below_nine_tenths() -> None:
    assert planned(900, journal=50, outbox=[row(1)]) == Plan()


def test_the_journal_goes_first_and_only_as_much_as_must() -> None:
    assert planned(910, journal=50, outbox=[row(1)]) == Plan(trim_journal_to=6, trim_journal_ns=600, trim_bytes=60)


def test_the_journal_is_kept_within_its_own_limit_whatever_room_there_is() -> None:
    assert planned(500, journal=50, keep=450) == Plan(trim_journal_to=8, trim_journal_ns=800, trim_bytes=80)
    assert planned(500, journal=50, keep_ns=9000) == Plan(trim_journal_to=9, trim_journal_ns=900, trim_bytes=90)


def test_the_journal_is_trimmed_in_steps_not_with_every_commit() -> None:
    assert is_needed(Usage(500, LIMIT, 500, 100), Keep(450, 1 << 60), 10_000)
    assert not is_needed(Usage(500, LIMIT, 449, 100), Keep(450, 1 << 60), 10_000)
    assert is_needed(Usage(500, LIMIT, 500, 100), Keep(1000, 9000), 10_000)
    assert not is_needed(Usage(500, LIMIT, 500, 900), Keep(1000, 9000), 10_000)
    assert not is_needed(Usage(500, LIMIT, 0, 0), Keep(1000, 9000), 10_000)


def test_the_journal_is_never_trimmed_past_the_last_snapshot() -> None:
    result = planned(950, journal=50, snapshot_block=3, outbox=[row(1)])
    assert result == Plan(trim_journal_to=3, trim_journal_ns=300, trim_bytes=30, want_snapshot=True)


def test_where_a_commit_found_no_room_nothing_waits_for_a_snapshot() -> None:
    result = planned(950, journal=50, snapshot_block=3, outbox=[row(1), row(2)], held={1, 2}, urgent=True)
    assert result.trim_journal_to == 3
    assert [r.seq for r in result.drop] == [1, 2]


def test_each_attempt_of_a_commit_that_is_still_too_large_gives_more() -> None:
    outbox = [row(1), row(2), row(3), row(4)]
    first = planned(LIMIT, journal=50, outbox=outbox, urgent=True)
    assert (first.trim_bytes, first.drop) == (150, [])
    again = planned(LIMIT, journal=50, outbox=outbox, urgent=True, planned_bytes=first.trim_bytes)
    assert (again.trim_bytes, again.drop) == (300, [])
    last = planned(LIMIT, journal=50, outbox=outbox, urgent=True, planned_bytes=500)
    assert (last.trim_bytes, [r.seq for r in last.drop]) == (500, [1, 2, 3])


def test_no_snapshot_is_asked_for_where_it_would_free_next_to_nothing() -> None:
    result = planned(950, journal=5, snapshot_block=0, outbox=[row(1), row(2)], held={1, 2})
    assert not result.want_snapshot
    assert [r.seq for r in result.drop] == [1, 2]


def test_the_oldest_frames_that_were_never_published_are_dropped_then_published_ones_then_alarms() -> None:
    outbox = [row(1, Lane.ALARM), row(2), row(3), row(4), row(5, Lane.RAW)]
    result = planned(1000, outbox=outbox, held={3, 4, 5})
    assert [r.seq for r in result.drop] == [3, 4, 5]
    result = planned(1100, outbox=outbox, held={3, 4, 5})
    assert [r.seq for r in result.drop] == [3, 4, 5, 2, 1]


def test_block_drops_nothing_and_says_that_it_is_full() -> None:
    result = planned(950, policy="block", outbox=[row(1)], held={1})
    assert result == Plan(full=True)


def test_degrade_merges_what_was_never_published_and_drops_only_when_nothing_is_left_to_merge() -> None:
    outbox = [row(1), row(2), row(3), row(4, Lane.ALARM, "alarm")]
    result = planned(950, policy="degrade", outbox=outbox, held={2, 3, 4})
    assert [r.seq for r in result.merge] == [2, 3]
    assert result.drop == []
    result = planned(950, policy="degrade", outbox=outbox, held={2, 3, 4}, cannot_merge={2, 3})
    assert [r.seq for r in result.drop] == [2, 3]


def test_what_was_merged_is_merged_again_only_where_it_takes_more_room_than_what_never_was() -> None:
    live, merged = [row(5), row(6), row(7)], [row(1, Lane.BACKFILL), row(2, Lane.BACKFILL)]
    result = planned(950, policy="degrade", outbox=merged + live, held={1, 2, 5, 6, 7})
    assert [r.seq for r in result.merge] == [5, 6, 7]
    result = planned(950, policy="degrade", outbox=[*merged, row(3, Lane.BACKFILL), *live[:2]], held={1, 2, 3, 5, 6})
    assert [r.seq for r in result.merge] == [1, 2, 3]
