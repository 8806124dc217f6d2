"""The outbox: which frames may go, which are on their way, and which hold up others."""

from __future__ import annotations

import numpy as np
import pytest

from devices.model import Lane
from edge.budget import TokenBucket
from edge.custody import Custody, OutboxRow
from edge.outbox import SENDS_BEFORE_SLOW, Outbox

WINDOW = 1000


def row(seq: int, size: int = 100, lane: Lane = Lane.LIVE) -> OutboxRow:
    return OutboxRow(seq, lane, "data", seq, bytes([seq % 256]) * 8, Custody.none().pack(), size)


def commit(outbox: Outbox, *rows: OutboxRow, gone: tuple[int, ...] = (), to_backfill: bool = False) -> dict[Lane, int]:
    for seq in gone:
        outbox.leave(seq)
    limits = outbox.plan_limits(rows, to_backfill)
    outbox.committed(rows, limits, gone, to_backfill)
    return limits


def due(outbox: Outbox, now_s: float = 0.0) -> list[int]:
    return [flight.row.seq for flight in outbox.due(now_s)]


def test_only_frames_within_the_window_may_go() -> None:
    outbox = Outbox([], {}, WINDOW)
    limits = commit(outbox, *(row(seq) for seq in range(1, 16)))
    assert limits == {Lane.LIVE: 10}
    assert due(outbox) == list(range(1, 11))
    assert [r.seq for r in outbox.held()] == list(range(11, 16))


def test_a_receipt_lets_the_next_go() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, *(row(seq) for seq in range(1, 16)))
    assert commit(outbox, gone=(1, 2, 3)) == {Lane.LIVE: 13}
    assert due(outbox) == list(range(4, 14))


def test_a_frame_larger_than_the_window_goes_alone() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, row(1, size=5000), row(2))
    assert due(outbox) == [1]
    commit(outbox, gone=(1,))
    assert due(outbox) == [2]


def test_a_backlog_never_stands_before_an_alarm() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, *(row(seq) for seq in range(1, 100)))
    commit(outbox, row(100, lane=Lane.ALARM))
    assert due(outbox)[0] == 100


def test_the_backlog_of_an_outage_follows_what_is_made_after_it() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, *(row(seq) for seq in range(1, 31)))
    limits = commit(outbox, row(31), gone=tuple(range(1, 11)), to_backfill=True)
    assert limits == {Lane.LIVE: 31, Lane.BACKFILL: 11}
    assert due(outbox) == [31, 11]


def publish(outbox: Outbox, now_s: float) -> list[int]:
    """Publish what is due; its numbers."""
    flights = outbox.due(now_s)
    for flight in flights:
        outbox.published(flight, now_s, 10.0, 0.5)
    return [flight.row.seq for flight in flights]


def receipt(outbox: Outbox, seqs: list[int], now_s: float) -> None:
    for seq in seqs:
        outbox.receipted(seq, now_s)
    outbox.committed((), outbox.plan_limits(()), seqs)


def test_more_of_a_backlog_goes_at_once_for_each_receipt_that_comes_soon() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, *(row(seq, lane=Lane.BACKFILL) for seq in range(1, 100)))
    at_once = []
    for turn in range(6):
        at_once.append(publish(outbox, float(turn)))
        receipt(outbox, at_once[-1], turn + 0.1)
    assert [len(seqs) for seqs in at_once] == [1, 1, 2, 4, 8, 10]


def test_half_as_much_of_a_backlog_goes_at_once_when_receipts_come_late() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, *(row(seq, lane=Lane.BACKFILL) for seq in range(1, 100)))
    for turn in range(5):
        receipt(outbox, publish(outbox, float(turn)), turn + 0.1)
    late = publish(outbox, 5.0)
    assert len(late) == 10
    receipt(outbox, late, 9.0)
    assert len(publish(outbox, 9.0)) == 5


def test_a_new_link_begins_with_one_frame_of_the_backlog() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, *(row(seq, lane=Lane.BACKFILL) for seq in range(1, 100)))
    for turn in range(5):
        receipt(outbox, publish(outbox, float(turn)), turn + 0.1)
    outbox.link_lost()
    receipt(outbox, publish(outbox, 5.0), 9.0)
    assert len(publish(outbox, 9.0)) == 1


def test_where_receipts_take_long_a_frame_is_published_again_later() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, row(1), row(2))
    (first, second) = outbox.due(0.0)
    outbox.published(first, 0.0, 10.0, 0.5)
    outbox.receipted(1, 9.0)
    outbox.published(second, 9.0, 10.0, 0.5)
    assert due(outbox, 9.0 + 26) == []
    assert due(outbox, 9.0 + 28) == [2]


def test_a_send_limit_never_falls() -> None:
    """Frames that were merged have high numbers; live ones that become backlog after them have lower ones."""
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, *(row(seq) for seq in range(1, 13)))
    assert commit(outbox, row(50, lane=Lane.BACKFILL)) == {Lane.BACKFILL: 50}
    limits = commit(outbox, to_backfill=True)
    assert limits == {}
    assert outbox.held() == []
    assert due(outbox) == [*range(1, 11), 50, 11, 12]
    rows = [row(seq) for seq in range(1, 11)] + [row(seq, lane=Lane.BACKFILL) for seq in (11, 12, 50)]
    again = Outbox(rows, {Lane.LIVE: 10, Lane.BACKFILL: 50}, WINDOW)
    assert again.held() == []


def test_what_leaves_frees_its_window_at_once_and_is_nobodys_choice_any_more() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, *(row(seq) for seq in range(1, 12)))
    outbox.leave(1)
    assert outbox.find(1) is None
    assert [r.seq for r in outbox.staying()] == list(range(2, 12))
    assert due(outbox) == list(range(2, 11))
    assert outbox.plan_limits([]) == {Lane.LIVE: 11}
    assert len(outbox) == 11
    outbox.committed([], {}, [1])
    assert (len(outbox), outbox.size_bytes) == (10, 1000)


def test_samples_that_wait_are_counted_by_series() -> None:
    custody = Custody(np.array([0, 200], np.int32), np.array([5, 7], np.int64)).pack()
    rows = [OutboxRow(seq, Lane.LIVE, "data", 0, b"", custody, 10) for seq in (1, 2)]
    outbox = Outbox(rows, {}, WINDOW)
    assert (outbox.samples[0], outbox.samples[200]) == (10, 14)
    outbox.leave(1)
    outbox.committed([], {}, [1])
    assert (outbox.samples[0], outbox.samples[200]) == (5, 7)


def test_a_frame_that_is_not_receipted_is_sent_again_later_and_later() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, row(1))
    waits = []
    now_s = 0.0
    for _ in range(8):
        (flight,) = outbox.due(now_s)
        outbox.published(flight, now_s, timeout_s=10, jitter=0.5)
        waits.append(outbox.next_due_s() - now_s)
        assert outbox.due(now_s) == []
        now_s = outbox.next_due_s()
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]


def test_a_frame_that_never_gets_its_receipt_does_not_hold_up_the_others() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, row(1, size=900), row(2, size=900))
    assert due(outbox) == [1]
    now_s = 0.0
    for _ in range(SENDS_BEFORE_SLOW + 1):
        (flight,) = outbox.due(now_s)
        outbox.receipts += 1
        outbox.published(flight, now_s, timeout_s=10, jitter=0.5)
        now_s = outbox.next_due_s()
    assert outbox.slow() == [1]
    commit(outbox)
    assert due(outbox) == [2]


def test_no_frame_is_slow_while_nothing_is_receipted() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, row(1))
    now_s = 0.0
    for _ in range(20):
        (flight,) = outbox.due(now_s)
        outbox.published(flight, now_s, timeout_s=10, jitter=0.5)
        now_s = outbox.next_due_s()
    assert outbox.slow() == []


def test_while_nothing_is_receipted_one_frame_of_each_lane_goes_on_asking() -> None:
    """What the broker has twice need not fill its queue."""
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, row(1), row(2), row(3), row(4, lane=Lane.ALARM), row(5, lane=Lane.ALARM))
    sent: list[int] = []
    now_s = 0.0
    while now_s < 3600:
        sent += publish(outbox, now_s)
        now_s = outbox.next_due_s()
    times = [sent.count(seq) for seq in (1, 2, 3)]
    assert sum(times) < 30, "all of them would be 48"
    assert max(times) - min(times) <= 1, "each in turn, since one may be what nobody takes"
    outbox.receipted(1, now_s)
    assert due(outbox, now_s + 59) == []
    assert set(due(outbox, now_s + 301)) == {2, 3, 4, 5}


def test_after_a_lost_link_everything_unreceipted_is_due_again() -> None:
    outbox = Outbox([], {}, WINDOW)
    commit(outbox, row(1), row(2))
    for flight in outbox.due(0.0):
        outbox.published(flight, 0.0, timeout_s=10, jitter=0.5)
    assert due(outbox) == []
    outbox.link_lost()
    assert due(outbox) == [1, 2]


def test_a_restart_knows_what_may_have_been_published() -> None:
    outbox = Outbox([row(1), row(2), row(3)], {Lane.LIVE: 2}, WINDOW)
    assert due(outbox) == [1, 2]
    assert [r.seq for r in outbox.held()] == [3]
    assert outbox.size_bytes == 300


@pytest.mark.parametrize("rate", [1000, 50_000])
def test_a_token_bucket_holds_its_rate_over_any_longer_time(rate: int) -> None:
    bucket = TokenBucket(rate)
    rng = np.random.default_rng(1)
    now_s, sent = 0.0, 0
    bucket.wait_s(0, now_s)
    while now_s < 60:
        size = int(rng.integers(1, rate))
        wait_s = bucket.wait_s(size, now_s)
        if wait_s:
            now_s += wait_s
        else:
            sent += size
    assert 0.9 * rate * 60 <= sent <= rate * 61


def test_without_a_rate_nothing_waits() -> None:
    assert TokenBucket(0).wait_s(1 << 30, 0.0) == 0.0
