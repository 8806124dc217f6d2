"""The store: one transaction a commit, bounded, and never in the way of a start."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.errors import ConfigError, StoreError, StoreFull
from devices.model import SECOND_NS, Lane, SeriesSpec
from edge import contents
from edge.custody import BIRTH_UNKNOWN_NS, BuriedFrame, Commit, Custody, DeadLetter, OutboxRow
from edge.retention import Keep, is_needed
from edge.store import DEAD_LETTERS_MAX, Store

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edge.db"


def frame(store: Store, seq: int, lane: Lane = Lane.LIVE, payload: bytes = b"frame") -> tuple[OutboxRow, bytes]:
    custody = Custody(np.array([0, 3], np.int32), np.array([5, 7], np.int64))
    return OutboxRow(seq, lane, "data", 1000 + seq, b"digest-8", custody.pack(), len(payload)), payload


def write_snapshot(store: Store, after_block: int, state: dict[str, Any], changed: dict[int, SeriesSpec]) -> None:
    for _ in store.snapshot_steps(after_block, state, changed):
        pass


def reopened(store: Store, size: int = 8 * MIB) -> Store:
    store.close()
    return Store.open(store.path, size)


def test_what_was_committed_is_there_after_a_restart(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    spec = SeriesSpec("pump1", "flow", "flow", "l/s")
    store.commit(
        Commit(
            new_series=[(0, spec)],
            block=b"block",
            samples=3,
            first_ns=10,
            last_ns=20,
            frames=[frame(store, 1), frame(store, 2, Lane.ALARM)],
            send_limits={Lane.ALARM: 2},
            unconfirmed={"plant": b"ids"},
        )
    )
    epoch = store.epoch
    store = reopened(store)
    assert store.epoch == epoch
    assert store.series() == [spec]
    assert list(store.blocks(0)) == [(1, b"block")]
    rows = store.outbox()
    assert [(row.seq, row.lane, row.leaf, row.digest, row.size_bytes) for row in rows] == [
        (1, Lane.LIVE, "data", b"digest-8", 5),
        (2, Lane.ALARM, "data", b"digest-8", 5),
    ]
    assert rows[0].custody.series.tolist() == [0, 3]
    assert rows[0].custody.samples.tolist() == [5, 7]
    assert store.send_limits() == {Lane.ALARM: 2}
    assert store.unconfirmed() == {"plant": b"ids"}
    assert store.frames([1, 2, 9]) == {1: b"frame", 2: b"frame"}
    store.close()


def test_a_sequence_number_is_never_given_twice_however_empty_the_outbox_is(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    store.commit(Commit(frames=[frame(store, 1), frame(store, 2)]))
    store.commit(Commit(removed=[1, 2]))
    assert store.outbox() == []
    store = reopened(store)
    assert store.next_seq() == 3
    store.close()


def test_a_full_store_changes_nothing_and_works_again_when_room_was_made(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    with pytest.raises(StoreFull):
        for _ in range(100):
            store.commit(Commit(block=os.urandom(MIB // 4), samples=1, first_ns=1, last_ns=1))
    last = store.last_block()
    usage = store.usage()
    with pytest.raises(StoreFull):
        store.commit(Commit(block=os.urandom(MIB), frames=[frame(store, 1)]))
    assert store.last_block() == last
    assert store.outbox() == []
    assert store.usage() == usage
    store.commit(Commit(trim_journal_to=last - 3))
    store.commit(Commit(block=os.urandom(MIB), samples=1, first_ns=1, last_ns=1))
    assert [block for block, _ in store.blocks(0)] == [last - 2, last - 1, last, last + 1]
    store.close()


def test_file_and_log_together_stay_within_the_limit(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    for round_ in range(200):
        store.commit(
            Commit(
                block=os.urandom(100_000),
                samples=1,
                first_ns=1,
                last_ns=1,
                trim_journal_to=max(store.last_block() - 9, 0),
            )
        )
        if round_ % 20 == 0:
            assert sum(p.stat().st_size for p in path.parent.iterdir()) <= 8 * MIB
    store.close()


def test_the_file_has_its_full_size_from_the_start(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    size = path.stat().st_size
    assert size > 6 * MIB
    with pytest.raises(StoreFull):
        for _ in range(100):
            store.commit(Commit(block=os.urandom(MIB // 4)))
    assert path.stat().st_size <= 8 * MIB
    store.close()


def test_the_log_has_its_full_size_from_the_start_however_small(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    assert path.with_name("edge.db-wal").stat().st_size > 0.85 * MIB
    store.close()


def test_a_damaged_file_is_set_aside_whole_and_the_start_goes_on(path: Path) -> None:
    Store.open(path, 8 * MIB).close()
    damaged = b"no database" * 1000
    path.write_bytes(damaged)
    store = Store.open(path, 8 * MIB)
    assert Path(store.set_aside).read_bytes() == damaged
    assert store.next_seq() == 1
    store.close()


def test_a_file_of_a_newer_version_is_set_aside_whole(path: Path) -> None:
    Store.open(path, 8 * MIB).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = 99 WHERE key = 'schema'")
    db.close()
    store = Store.open(path, 8 * MIB)
    assert store.set_aside
    assert sqlite3.connect(store.set_aside).execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == (99,)
    store.close()


def test_a_second_daemon_on_one_store_is_told_so(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    store.commit(Commit(block=b"x"))
    with pytest.raises(StoreError, match="already running"):
        Store.open(path, 8 * MIB)
    store.close()


def test_a_store_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"\[store\] path"):
        Store.open(tmp_path / "file" / "edge.db", 8 * MIB)


def test_a_damaged_block_is_found(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    store.commit(Commit(block=b"good", samples=1, first_ns=1, last_ns=1))
    store.commit(Commit(block=b"fine", samples=1, first_ns=1, last_ns=1))
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE journal SET block = x'00' WHERE id = 2")
    db.close()
    store = Store.open(path, 8 * MIB)
    assert list(store.blocks(0)) == [(1, b"good"), (2, None)]
    store.close()


def test_a_full_store_is_opened_again_with_all_that_it_holds(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    seq = 0
    with pytest.raises(StoreFull):
        while True:
            seq += 1
            store.commit(Commit(frames=[frame(store, seq, payload=os.urandom(50_000))]))
    store = reopened(store)
    assert store.set_aside == ""
    assert len(store.outbox()) == seq - 1
    store.close()


def test_a_file_that_may_not_be_written_is_left_where_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(path, 8 * MIB).close()
    connect = sqlite3.connect

    def read_only(_path: Path, **options: Any) -> sqlite3.Connection:
        return connect(f"file:{path}?mode=ro", uri=True, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(StoreError, match="may write"):
        Store.open(path, 8 * MIB)
    assert [p.name for p in path.parent.iterdir() if "aside" in p.name] == []


def test_live_frames_that_come_with_the_change_stay_live(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    store.commit(Commit(frames=[frame(store, 1), frame(store, 2)]))
    store.commit(Commit(frames=[frame(store, 3)], to_backfill_above=1))
    assert [row.lane for row in store.outbox()] == [Lane.LIVE, Lane.BACKFILL, Lane.LIVE]
    store.close()


def test_commits_go_between_the_pieces_of_a_snapshot(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    state = {"rows": np.frombuffer(os.urandom(2 * MIB), np.uint8)}
    store.commit(Commit(block=b"1"))
    steps = 0
    for _ in store.snapshot_steps(1, state, {}):
        store.commit(Commit(block=b"more"))
        assert store.read_snapshot()[0] == 0
        steps += 1
    assert steps > 4
    assert store.read_snapshot()[0] == 1
    assert store.last_block() == steps + 1
    store.close()


def test_how_far_the_journal_reached_is_known_after_all_of_it_was_trimmed(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    store.commit(Commit(block=b"1", samples=1, first_ns=19, last_ns=19))
    store.commit(Commit(trim_journal_to=1))
    store = reopened(store)
    store.commit(Commit(block=b"2"))
    store.commit(Commit(trim_journal_to=2))
    assert store.journal_floor_ns() == 19
    store.close()


def test_a_young_journal_asks_for_no_room_whatever_its_first_blocks_hold(path: Path) -> None:
    keep = Keep(64 * MIB, 3600 * SECOND_NS)
    store = Store.open(path, 8 * MIB)
    now_ns = 1_700_000_000 * SECOND_NS

    def asks_for_room() -> bool:
        return is_needed(store.usage(), keep, min(now_ns, store.committed().high_ns))

    store.commit(Commit(block=b"ticks alone"))
    assert not asks_for_room()
    for second in range(3):
        at_ns = now_ns + second * SECOND_NS
        store.commit(Commit(block=b"samples", samples=1, first_ns=at_ns, last_ns=at_ns))
        assert not asks_for_room()
        assert store.usage().journal_from_ns == now_ns
        store = reopened(store)
    store.commit(Commit(trim_journal_to=store.last_block()))
    assert store.usage().journal_from_ns == now_ns + 2 * SECOND_NS
    now_ns += 2 * 3600 * SECOND_NS
    store.commit(Commit(block=b"after a pause", samples=1, first_ns=now_ns, last_ns=now_ns))
    assert not asks_for_room()
    now_ns += 2 * 3600 * SECOND_NS
    store.commit(Commit(block=b"and another", samples=1, first_ns=now_ns, last_ns=now_ns))
    assert asks_for_room()
    store.close()


def test_a_store_that_follows_one_set_aside_is_born_when_a_commit_says_so(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    assert store.born_ns == 0
    store.close()
    path.write_bytes(b"not a store" * 1000)
    store = reopened(Store.open(path, 8 * MIB))
    assert store.born_ns == BIRTH_UNKNOWN_NS
    store.commit(Commit(block=b"held", samples=1, first_ns=1, last_ns=1))
    store = reopened(store)
    assert store.born_ns == BIRTH_UNKNOWN_NS
    with pytest.raises(StoreFull):
        store.commit(Commit(block=os.urandom(8 * MIB), born_ns=76))
    store = reopened(store)
    assert store.born_ns == BIRTH_UNKNOWN_NS
    store.commit(Commit(born_ns=77))
    assert store.born_ns == 77
    store.commit(Commit(block=b"a window opens", samples=1, first_ns=99, last_ns=99))
    store = reopened(store)
    assert store.born_ns == 77
    store.close()


def test_a_crash_between_setting_aside_and_making_leaves_a_store_that_knows_what_it_follows(path: Path) -> None:
    path.with_name("edge.db.aside-20260101T000000-0a1b").write_bytes(b"not a store")
    store = Store.open(path, 8 * MIB)
    assert store.set_aside == ""
    assert store.born_ns == BIRTH_UNKNOWN_NS
    assert [aside.name for aside in store.to_salvage()] == ["edge.db.aside-20260101T000000-0a1b"]
    store.close()


def test_what_a_crash_left_of_a_snapshot_is_removed_at_the_next_open(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    store.commit(Commit(block=b"1"))
    used = store.usage().used_bytes
    next(store.snapshot_steps(1, {"rows": np.frombuffer(os.urandom(2 * MIB), np.uint8)}, {}))
    assert store.usage().used_bytes > used
    store = reopened(store)
    assert store.usage().used_bytes == used
    store.close()


def test_a_snapshot_for_which_there_is_no_room_leaves_the_last_one(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    store.commit(Commit(block=b"1"))
    write_snapshot(store, 1, {"rows": np.arange(3)}, {})
    used = store.usage().used_bytes
    store.commit(Commit(block=b"2"))
    with pytest.raises(StoreFull):
        write_snapshot(store, 2, {"rows": np.frombuffer(os.urandom(16 * MIB), np.uint8)}, {})
    assert store.read_snapshot()[0] == 1
    assert store.usage().used_bytes <= used + 2 * 4096
    store.close()


def test_a_snapshot_counts_only_whole(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    rows = np.zeros(5000, np.dtype([("a", np.int32), ("b", np.float64)], align=True))
    rows["b"] = np.arange(5000)
    state = {"rows": rows, "empty": np.empty(0), "wide": np.arange(12).reshape(4, 3)}
    store.commit(Commit(block=b"1"))
    write_snapshot(store, 1, state, {})
    store.commit(Commit(block=b"2"))
    write_snapshot(store, 2, {"rows": rows[:1]}, {})
    store._db.execute("DELETE FROM snapshot WHERE part = ''")  # as after a crash before the closing row
    assert store.read_snapshot() == (0, {})
    store.commit(Commit(block=b"3"))
    write_snapshot(store, 3, state, {0: SeriesSpec("d", "c", "q", "")})
    store = reopened(store)
    block, found = store.read_snapshot()
    assert block == 3
    assert found.keys() == state.keys()
    for part, array in state.items():
        np.testing.assert_array_equal(found[part], array)
    assert store.series() == [SeriesSpec("d", "c", "q", "")]
    store.close()


def test_blocks_around_old_times_are_found_by_bisection(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(path, 8 * MIB)
    spans = [(0, 9), (10, 19), (5, 12), (20, 29), (3, 4), (30, 39)]
    for i, (first, last) in enumerate(spans):
        store.commit(Commit(block=str(i).encode(), samples=1, first_ns=first, last_ns=last))
    for bytes_at_once in (1, 3, 1000):
        monkeypatch.setattr(contents, "BLOCKS_BYTES", bytes_at_once)
        for times in [[t] for t in range(45)] + [[t, u] for t in range(45) for u in range(t + 1, 45)]:
            expected = [i for i, (first, last) in enumerate(spans) if any(first <= t <= last for t in times)]
            found: list[tuple[int, bytes]] = []
            while part := store.blocks_around(np.array(times), found[-1][0] if found else 0):
                assert len(part) <= bytes_at_once
                found += part
            assert found == [(i + 1, str(i).encode()) for i in expected]
    assert store.committed().high_ns == 39
    store.commit(Commit(trim_journal_to=3))
    assert store.committed().journal_floor_ns == 19
    assert reopened(store).journal_floor_ns() == 19


def test_dead_letters_are_bounded_and_hold_whole_frames(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    store.commit(Commit(frames=[frame(store, 1, payload=b"whole frame")]))
    store.commit(Commit(removed=[1], buried=[BuriedFrame(1, 77, "refused", "version")]))
    assert store.dead_letters() == [DeadLetter(77, "uplink", "refused", "version", b"whole frame", size_bytes=11, id=1)]
    for start in range(0, 2 * DEAD_LETTERS_MAX, 100):
        letters = [DeadLetter(i, "plant", "malformed", "", b"x" * 900) for i in range(start, start + 100)]
        store.commit(Commit(dead_letters=letters))
    kept = store.dead_letters()
    assert len(kept) == DEAD_LETTERS_MAX
    assert kept[0].at_ns == 2 * DEAD_LETTERS_MAX - 1
    assert {len(letter.payload) for letter in kept} == {900}
    store.close()


def test_live_frames_above_a_limit_become_backlog(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    store.commit(Commit(frames=[frame(store, 1), frame(store, 2), frame(store, 3, Lane.ALARM)]))
    store.commit(Commit(to_backfill_above=1))
    assert [row.lane for row in store.outbox()] == [Lane.LIVE, Lane.BACKFILL, Lane.ALARM]
    store.close()


def test_the_frames_of_a_gateway_are_not_sent_under_another_name(path: Path) -> None:
    store = Store.open(path, 8 * MIB)
    store.belong_to("g1")
    store.commit(Commit(frames=[frame(store, 1)]))
    store = reopened(store)
    store.belong_to("g1")
    with pytest.raises(ConfigError, match=r"1 frames of gateway 'g1' wait in .* gateway = \"g1\""):
        store.belong_to("g2")
    store.commit(Commit(removed=[1]))
    store.belong_to("g2")
    store = reopened(store)
    store.belong_to("g2")
    store.close()


def test_a_file_system_that_is_read_only_is_an_error_with_a_sentence(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file system could be mounted so here without being root: only the answer of the system is another."""

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(StoreError, match="is read-only: mount it for writing"):
        Store.open(path, 8 * MIB)
