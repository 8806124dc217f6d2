"""Lines of several frames, written in bodies and traced back to their frames."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.batch import DETAILS_BYTES, Batch, Piece
from cloud.lines import NO_SERIES, Lines
from devices.wire.receipt import Rejected


def lines_of(*times: int, series: list[int] | None = None) -> Lines:
    body = b"".join(b"m,a=\\ x v=%d.0 %d\n" % (n, time) for n, time in enumerate(times))
    return Lines(body, np.array(series or list(range(len(times))), np.int32))


def batch_of(*frames: Lines) -> Batch:
    batch = Batch()
    for frame in frames:
        batch.add(frame, [])
    return batch


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 300))
def test_bodies_are_all_lines_in_order_and_within_their_limit_or_one_line(sizes: list[int], most_bytes: int) -> None:
    frames = [lines_of(*range(100 + n)[-n:] if n else ()) for n in sizes]
    batch = batch_of(*frames)
    bodies = list(batch.bodies(most_bytes))
    assert b"".join(body for body, _ in bodies) == b"".join(frame.body for frame in frames)
    expected_first = 0
    for body, first in bodies:
        assert first == expected_first
        assert body.endswith(b"\n")
        assert len(body) <= most_bytes or body.count(b"\n") == 1
        expected_first += body.count(b"\n")
    assert expected_first == len(batch) == sum(sizes)


def test_a_refused_line_is_named_in_the_receipt_of_its_frame_alone() -> None:
    batch = batch_of(lines_of(1, 2), lines_of(), lines_of(5, 3, 4, series=[7, 8, 8]))
    ((body, first),) = batch.bodies(10_000)
    piece = batch.newest_first(body, first)
    assert piece.numbers == [2, 4, 3, 1, 0]
    newest, rest = piece.halves()
    batch.reject(newest, "it is bad")
    batch.reject(rest.halves()[0], "so is this")
    assert batch.rejected(0) == []
    assert batch.rejected(1) == []
    assert batch.rejected(2) == [Rejected(7, "sink", 1, "it is bad"), Rejected(8, "sink", 2, "it is bad")]
    assert batch.refused == 3


def test_what_was_rejected_before_stays_in_the_receipt() -> None:
    batch = Batch()
    batch.add(lines_of(1), [Rejected(0, "future", 3, "late")])
    ((body, first),) = batch.bodies(100)
    batch.reject(batch.newest_first(body, first), "bad")
    assert batch.rejected(0) == [Rejected(0, "future", 3, "late"), Rejected(0, "sink", 1, "bad")]


def test_a_line_without_a_series_counts_for_the_first() -> None:
    batch = batch_of(lines_of(1, series=[NO_SERIES]))
    ((body, first),) = batch.bodies(100)
    batch.reject(batch.newest_first(body, first), "bad")
    assert batch.rejected(0) == [Rejected(0, "sink", 1, "bad")]


@pytest.mark.parametrize(
    ("said", "expired"),
    [
        ("partial write: points beyond retention policy dropped=1", True),
        ("partial write: dropped 1 points outside retention policy of duration 1h0m0s", True),
        ("field type conflict", False),
        ('input field "mean" on measurement "water_retention" is type float', False),
        (r'input field "mean" on measurement "a\"b beyond retention policy" is type float', False),
        ('input field "mean" on measurement "beyond retention policy which is cut', False),
    ],
)
def test_only_what_is_older_than_a_line_beyond_the_retention_is_expired(said: str, expired: bool) -> None:
    batch = batch_of(lines_of(1, 2, 3, 4))
    ((body, first),) = batch.bodies(1000)
    newer, older = batch.newest_first(body, first).halves()
    third, last = older.halves()
    batch.reject(third, said)
    assert batch.is_expired(last) is expired
    assert not batch.is_expired(newer)


def test_a_long_sentence_of_the_sink_is_cut() -> None:
    batch = batch_of(lines_of(1))
    ((body, first),) = batch.bodies(100)
    batch.reject(batch.newest_first(body, first), "x" * 5000)
    assert len(batch.rejected(0)[0].detail) == 200


def test_a_receipt_for_very_many_series_says_why_for_the_first_of_them() -> None:
    batch = batch_of(lines_of(*range(1000)))
    ((body, first),) = batch.bodies(1 << 20)
    piece = batch.newest_first(body, first)
    for at in range(1000):
        batch.reject(Piece(piece.lines[at : at + 1], piece.numbers[at : at + 1]), "x" * 100)
    rejected = batch.rejected(0)
    assert [one.series for one in rejected] == list(range(999, -1, -1))
    assert [one.detail for one in rejected[:40]] == ["x" * 100] * 40
    assert sum(len(one.detail) for one in rejected) <= DETAILS_BYTES
