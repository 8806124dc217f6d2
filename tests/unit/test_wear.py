"""Bytes written to the disk: added up over restarts, and the years that are left."""

from __future__ import annotations

import pytest

from edge.wear import ACCOUNT, Wear, written_bytes

HOUR_S, DAY_S = 3600.0, 86_400.0
GB, TB = 10**9, 10**12


class Machine:
    """A clock, and the kernel's account of a process."""

    def __init__(self) -> None:
        self.now_s = 1e6
        self.written = 0

    def start(self, packed: bytes = b"", since: int = 0) -> Wear:
        return Wear(packed, since, lambda: self.written, lambda: self.now_s)

    def run(self, wear: Wear, hours: float, bytes_per_day: float) -> None:
        for _ in range(round(hours * 60)):
            self.now_s += 60
            self.written += round(bytes_per_day / 1440)
            wear.look()


def test_the_opening_of_a_new_store_counts_in_the_total_and_not_in_the_rate() -> None:
    machine = Machine()
    machine.written = 30_000_000
    wear = machine.start()
    machine.run(wear, 1, 24_000_000)
    assert wear.bytes_per_day() == pytest.approx(24_000_000, rel=1e-3)
    assert wear.look().bytes == pytest.approx(31_000_000, rel=1e-3)


def test_time_and_bytes_go_on_over_restarts_and_what_an_earlier_life_of_the_process_wrote_counts_once() -> None:
    machine = Machine()
    wear = machine.start()
    machine.run(wear, 5, GB)
    packed = wear.pack()
    machine.now_s, machine.written = 0.0, 0  # another process, another boot
    wear = machine.start(packed)
    machine.run(wear, 5, GB)
    wear = machine.start(wear.pack(), since=machine.written)  # the same process
    machine.run(wear, 5, GB)
    assert wear.look().bytes == pytest.approx(GB * 15 / 24, rel=1e-3)
    assert wear.bytes_per_day() == pytest.approx(GB, rel=1e-3)


def test_the_rate_is_that_of_the_last_day() -> None:
    machine = Machine()
    wear = machine.start()
    machine.run(wear, 48, 50 * GB)
    machine.run(wear, 25, GB)
    assert wear.bytes_per_day() == pytest.approx(GB, rel=0.01)
    assert wear.look().bytes == pytest.approx(101 * GB, rel=0.01)


def test_years_are_those_of_what_is_left_of_the_disk() -> None:
    machine = Machine()
    wear = machine.start()
    assert wear.years(TB) is None
    machine.run(wear, 240, 10 * GB)
    assert wear.years(TB) == pytest.approx((1000 - 100) / 10 / 365.25, rel=0.01)
    assert wear.years(50 * GB) == 0.0


@pytest.mark.skipif(not ACCOUNT.exists(), reason="this kernel keeps no account of a process")
def test_the_kernel_says_what_this_process_wrote() -> None:
    assert 0 <= written_bytes() <= written_bytes()
