"""A damaged store: its frames are sent all the same, and each as it was."""

from __future__ import annotations

import os
import sqlite3
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.errors import StoreCorrupt
from devices.model import Lane
from devices.wire.topics import digest
from edge.custody import BIRTH_UNKNOWN_NS, BuriedFrame, Commit, Custody, DeadLetter, OutboxRow
from edge.recovery import Recovered, recover
from edge.store import Store
from edge.storefile import PAGE_BYTES, set_aside

MIB = 1 << 20
FRAMES = 400


def no_history(series: int, times_ns: Any) -> tuple[Any, Any]:
    return np.empty(0, np.int64), np.empty(0)


def row(seq: int, frame: bytes, lane: Lane = Lane.LIVE) -> tuple[OutboxRow, bytes]:
    custody = Custody(np.array([0], np.int32), np.array([5], np.int64)).pack()
    return OutboxRow(seq, lane, "data", 1000 + seq, digest(frame), custody, len(frame)), frame


def lane_of(seq: int) -> Lane:
    return (Lane.ALARM, Lane.LIVE, Lane.RAW)[seq % 3]


@pytest.fixture
def frames() -> dict[int, bytes]:
    return {seq: os.urandom(3000) for seq in range(1, FRAMES + 1)}


@pytest.fixture
def path(tmp_path: Path, frames: dict[int, bytes]) -> Path:
    """A store with a full outbox, as a kill leaves it: part of it in the WAL."""
    path = tmp_path / "edge.db"
    store = Store.open(path, 8 * MIB)
    for first in range(1, FRAMES, 20):
        store.commit(Commit(frames=[row(seq, frames[seq], lane_of(seq)) for seq in range(first, first + 20)]))
    store.commit(Commit(removed=[7, 8, 9]))
    copies = {each: each.read_bytes() for each in tmp_path.iterdir()}
    store.close()
    for each, data in copies.items():
        each.write_bytes(data)
    return path


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is set aside in a second of its own, so that their names say which is newer."""
    seconds, real = count(), time.gmtime
    monkeypatch.setattr(time, "gmtime", lambda: real(next(seconds)))


def sent(recovered: Recovered) -> dict[bytes, Lane]:
    store = recovered.store
    found = store.frames([row.seq for row in recovered.outbox])
    assert all(digest(found[row.seq]) == row.digest for row in recovered.outbox)
    assert not any(row.custody.samples.any() for row in recovered.outbox)
    return {found[row.seq]: row.lane for row in recovered.outbox}


def test_all_frames_of_a_file_found_damaged_while_it_was_in_use_are_taken_over(
    path: Path, frames: dict[int, bytes]
) -> None:
    aside = set_aside(path, "found damaged")
    recovered = recover(path, 8 * MIB, no_history)
    expected = {
        frame: Lane.BACKFILL if lane_of(seq) == Lane.LIVE else lane_of(seq)
        for seq, frame in frames.items()
        if seq not in (7, 8, 9)
    }
    assert sent(recovered) == expected
    assert recovered.store.to_salvage() == []
    assert recovered.store.born_ns == BIRTH_UNKNOWN_NS
    recovered.store.close()
    assert aside.exists()
    again = recover(path, 8 * MIB, no_history)
    assert sent(again) == expected
    again.store.close()


def test_where_pages_are_destroyed_the_other_frames_are_taken_over(path: Path, frames: dict[int, bytes]) -> None:
    store = Store.open(path, 8 * MIB)  # brings the WAL into the file
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA writable_schema = ON")
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'outbox'").fetchone()[0]
    db.close()
    rng = np.random.default_rng(4)
    with open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        pages = file.tell() // PAGE_BYTES
        in_use = [page for page in range(20, pages) if page != root - 1 and _is_used(path, page)]
        for page in rng.choice(in_use, 30, replace=False):
            file.seek(int(page) * PAGE_BYTES)
            file.write(b"\xa5" * PAGE_BYTES)
    set_aside(path, "found damaged")
    recovered = recover(path, 8 * MIB, no_history)
    kept = sent(recovered)
    assert kept.keys() <= set(frames.values())
    assert 0.5 * FRAMES < len(kept) < FRAMES - 3
    recovered.store.close()


def _is_used(path: Path, page: int) -> bool:
    with open(path, "rb") as file:
        file.seek(page * PAGE_BYTES)
        return any(file.read(PAGE_BYTES))


def test_a_frame_whose_bytes_have_changed_is_left_out(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE outbox SET frame = x'00' WHERE seq = 10")
    db.close()
    set_aside(path, "found damaged")
    recovered = recover(path, 8 * MIB, no_history)
    assert len(recovered.outbox) == FRAMES - 4
    recovered.store.close()


def test_a_crash_in_the_middle_neither_loses_nor_repeats_a_frame(path: Path, frames: dict[int, bytes]) -> None:
    set_aside(path, "found damaged")
    store = Store.open(path, 8 * MIB)
    store.commit(Commit(frames=[row(seq, frames[seq]) for seq in (1, 2)]))
    store.close()
    recovered = recover(path, 8 * MIB, no_history)
    assert len(recovered.outbox) == FRAMES - 3
    assert sorted(row.seq for row in recovered.outbox) == list(range(1, FRAMES - 2))
    recovered.store.close()


@pytest.mark.parametrize("had_topics", [True, False], ids=["of this program", "of one that kept no topics"])
def test_dead_letters_are_taken_over_once_and_in_order(path: Path, frames: dict[int, bytes], had_topics: bool) -> None:
    garbage = DeadLetter(76, "plant", "malformed", "no number", b"?" * 300, "plant/fan", 2000)
    store = Store.open(path, 8 * MIB)
    store.commit(Commit(dead_letters=[garbage], buried=[BuriedFrame(10, 77, "refused", "version")], removed=[10]))
    store.close()
    if not had_topics:
        with sqlite3.connect(path) as db:
            db.execute("ALTER TABLE deadletter DROP COLUMN topic")
            db.execute("ALTER TABLE deadletter DROP COLUMN bytes")
        db.close()
        garbage = garbage._replace(topic="", size_bytes=0)
    refused = DeadLetter(77, "uplink", "refused", "version", frames[10], size_bytes=3000 if had_topics else 0)
    aside = set_aside(path, "found damaged")
    store = Store.open(path, 8 * MIB)
    store.commit(Commit(dead_letters=[garbage]))  # as after a crash in the middle
    store.close()
    recovered = recover(path, 8 * MIB, no_history)
    kept = recovered.store.dead_letters()
    assert [letter._replace(id=0) for letter in kept] == [refused, garbage]
    assert len(recovered.outbox) == FRAMES - 4
    assert recovered.store.to_salvage() == []
    assert aside.with_name(aside.name + ".salvaged").exists()
    recovered.store.close()


def test_a_file_that_is_no_database_costs_no_start_and_is_tried_once(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    recovered = recover(path, 8 * MIB, no_history)
    assert recovered.outbox == []
    assert recovered.store.to_salvage() == []
    recovered.store.close()


def test_a_newer_programs_file_is_left_to_it(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = 99 WHERE key = 'schema'")
    db.close()
    recovered = recover(path, 8 * MIB, no_history)
    assert recovered.store.set_aside
    assert recovered.outbox == []
    assert [str(aside) for aside in recovered.store.to_salvage()] == [recovered.store.set_aside]
    recovered.store.close()


def test_a_disk_that_damages_file_after_file_leaves_the_newest_three_and_each_frame(
    path: Path, in_order: None, caplog: pytest.LogCaptureFixture
) -> None:
    made = []
    for _ in range(6):
        made.append(set_aside(path, "found damaged"))
        recovered = recover(path, 8 * MIB, no_history)
        assert len(recovered.outbox) == FRAMES - 3
        recovered.store.close()
    assert [aside.exists() for aside in made] == [False] * 3 + [True] * 3
    assert not [each for aside in made[:3] for each in path.parent.glob(f"{aside.name}*")]
    assert caplog.text.count("is removed: its frames were taken over") == 3


def test_a_file_whose_frames_were_not_taken_over_is_never_removed(path: Path, in_order: None) -> None:
    """Those whose salvage never began: each was set aside before the one after it was opened."""
    full = [set_aside(path, "found damaged")]
    for _ in range(5):
        Store.open(path, 8 * MIB).close()
        full.append(set_aside(path, "found damaged"))
    assert all(aside.exists() for aside in full)
    recovered = recover(path, 8 * MIB, no_history)
    assert len(recovered.outbox) == FRAMES - 3
    assert recovered.store.to_salvage() == []
    recovered.store.close()
    set_aside(path, "found damaged")
    assert sum(aside.exists() for aside in full) == 2


def test_damage_that_a_commit_meets_is_told_from_a_disk_that_fails(path: Path) -> None:
    Store.open(path, 8 * MIB).close()
    store = Store.open(path, 8 * MIB)
    with open(path, "r+b") as file:
        for page in range(3, 1000):
            file.seek(page * PAGE_BYTES)
            file.write(b"\xa5" * PAGE_BYTES)
    with pytest.raises(StoreCorrupt, match="damaged"):
        for seq in range(1, FRAMES, 7):
            store.commit(Commit(removed=[seq]))
    store.close()
