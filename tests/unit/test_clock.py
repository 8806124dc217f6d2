"""Ticks go on, whatever the system's clock does."""

from __future__ import annotations

from devices.model import SECOND_NS
from edge.clock import Clock


class Clocks:
    def __init__(self) -> None:
        self.wall_ns = 1_000 * SECOND_NS
        self.passed_ns = 0

    def pass_by(self, seconds: int) -> None:
        self.wall_ns += seconds * SECOND_NS
        self.passed_ns += seconds * SECOND_NS


def test_ticks_follow_the_clock_while_it_goes_forward() -> None:
    clocks = Clocks()
    clock = Clock(lambda: clocks.wall_ns, lambda: clocks.passed_ns)
    assert clock.tick_ns() == clocks.wall_ns
    clocks.pass_by(3)
    assert clock.tick_ns() == clocks.wall_ns
    clocks.wall_ns += 86_400 * SECOND_NS
    assert clock.tick_ns() == clocks.wall_ns


def test_a_clock_that_steps_back_neither_turns_ticks_back_nor_stops_them() -> None:
    clocks = Clocks()
    clock = Clock(lambda: clocks.wall_ns, lambda: clocks.passed_ns)
    last_ns = clock.tick_ns()
    clocks.wall_ns -= 600 * SECOND_NS
    for _ in range(300):
        clocks.pass_by(1)
        assert clock.tick_ns() == last_ns + SECOND_NS
        last_ns += SECOND_NS
    clocks.wall_ns += 10_000 * SECOND_NS
    assert clock.tick_ns() == clocks.wall_ns


def test_two_ticks_at_one_moment_are_apart() -> None:
    clock = Clock(lambda: 5, lambda: 5)
    assert clock.tick_ns() < clock.tick_ns() < clock.tick_ns()


def test_ticks_go_on_after_those_before_a_restart() -> None:
    clocks = Clocks()
    clock = Clock(lambda: clocks.wall_ns, lambda: clocks.passed_ns)
    clock.resume(clocks.wall_ns + 50)
    clocks.pass_by(0)
    assert clock.tick_ns() == clocks.wall_ns + 51
