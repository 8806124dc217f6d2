"""The month's budget: what may still go, and which month it is while the clock is wrong."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from devices.model import SECOND_NS
from edge.budget import RATE_FROM_S, MonthBudget, Stage, month

DAY_S = 86_400.0


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


class Life:
    """A budget of 1 MB on a socket that is looked at."""

    def __init__(self, starts: int = 1, stored: bytes = b"", max_bytes: int = 1_000_000) -> None:
        self.budget = MonthBudget(max_bytes, starts, stored)
        self.now_s = self.passed = 0.0

    def spend(self, at: str, size_bytes: int, after_s: float = 1.0) -> Stage:
        self.now_s += after_s
        self.passed += size_bytes
        return self.budget.look(ns(at), self.now_s, 0, int(self.passed))


@pytest.mark.parametrize(
    ("at", "starts", "begin", "end"),
    [
        ("2026-11-24T12:00:00", 1, "2026-11-01", "2026-12-01"),
        ("2026-12-31T23:59:59", 1, "2026-12-01", "2027-01-01"),
        ("2027-01-01T00:00:00", 1, "2027-01-01", "2027-02-01"),
        ("2027-01-09T23:59:59", 10, "2026-12-10", "2027-01-10"),
        ("2027-01-10T00:00:00", 10, "2027-01-10", "2027-02-10"),
        ("2028-03-01T00:00:00", 28, "2028-02-28", "2028-03-28"),
    ],
)
def test_a_month_begins_on_its_day(at: str, starts: int, begin: str, end: str) -> None:
    assert month(ns(at), starts) == (ns(begin), ns(end))


def test_a_tenth_is_kept_for_alarms_and_then_they_wait_too() -> None:
    life = Life()
    assert life.spend("2026-11-24", 899_000) == Stage.FREE
    assert life.budget.may(500, urgent=False)
    assert not life.budget.may(1000, urgent=False)
    assert life.spend("2026-11-24", 1_000) == Stage.ALARMS_ONLY
    assert life.budget.may(1000, urgent=True)
    assert "kept for alarms" in life.budget.sentence()
    assert life.spend("2026-11-24", 99_000) == Stage.ALARMS_ONLY
    assert not life.budget.may(1000, urgent=True)
    assert life.spend("2026-11-24", 1_000) == Stage.SPENT
    assert "until 2026-12-01" in life.budget.sentence()
    assert life.spend("2026-12-01", 100) == Stage.FREE


def test_what_is_on_its_way_counts_before_the_socket_has_it() -> None:
    life = Life()
    life.spend("2026-11-24", 0)
    for _ in range(8):
        assert life.budget.may(100_000, urgent=False)
        life.budget.published(100_000)
    assert not life.budget.may(100_000, urgent=False)
    life.spend("2026-11-24", 800_000)
    assert life.budget.may(90_000, urgent=False)


def test_a_restart_goes_on_with_the_count() -> None:
    life = Life()
    life.spend("2026-11-24", 400)
    row = life.budget.row()
    life.budget.kept(row)
    life.spend("2026-11-24", 900)
    assert life.budget.row() == b""
    assert life.budget.row(last=True)
    life.spend("2026-11-24", 100)
    again = Life(stored=life.budget.row())
    again.spend("2026-11-25", 50)
    assert again.budget.spent_bytes == 1450


@pytest.mark.parametrize("wrong", ["1970-01-01", "2040-06-05"])
def test_a_clock_that_was_wrong_for_a_while_gives_nothing_away(wrong: str) -> None:
    life = Life()
    life.spend("2026-11-24", 500_000)
    life.spend(wrong, 1_000)
    life = Life(stored=life.budget.row(last=True))
    life.spend(wrong, 2_000)
    life.spend("2026-11-24", 4_000)
    assert life.budget.spent_bytes == 507_000
    life.spend("2026-12-01", 10)
    assert life.budget.spent_bytes == 10 or life.budget.spent_bytes == 0


def test_a_clock_that_was_a_month_ahead_does_not_take_from_the_month_that_comes() -> None:
    life = Life()
    life.spend("2026-11-24", 500_000)
    life.spend("2026-12-05", 1_000)
    life.spend("2026-11-25", 0)
    life.spend("2026-12-01", 0)
    assert life.budget.spent_bytes == 0


def test_windows_lengthen_only_while_the_month_would_not_last() -> None:
    life = Life(max_bytes=30_000_000)  # 1 MB a day, 900 kB of which are for all
    at = "2026-11-01"
    assert life.spend(at, 0) == Stage.FREE
    a_minute = 1_000_000 / 1440
    assert life.spend(at, int(2 * a_minute), 60) == Stage.FREE  # too early to tell
    stages = [life.spend(at, int(2 * a_minute), 60) for _ in range(int(RATE_FROM_S) // 60)]
    assert stages[-1] == Stage.SAVING
    assert "ten into one" in life.budget.sentence()
    for _ in range(120):  # merged it lasts; unmerged it would not
        assert life.spend(at, int(a_minute / 5), 60) == Stage.SAVING
    stages = [life.spend(at, int(a_minute / 20), 60) for _ in range(120)]
    assert stages[-1] == Stage.FREE
