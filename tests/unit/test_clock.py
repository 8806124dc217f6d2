"""When the clock is believed, and that ticks go on whatever it does."""

from __future__ import annotations

import pytest

from devices.errors import ConfigError
from devices.model import SECOND_NS
from devices.tables import convert
from edge.clock import LATE_NS, PATIENCE_NS, Clock, kernel_is_synchronised, system_clock
from edge.config import ClockConfig

NOW_NS = 1_700_000_000 * SECOND_NS
YEAR_NS = 365 * 86_400 * SECOND_NS


class Clocks:
    """The system's clock, what passes, and whether something synchronises it."""

    def __init__(self, wall_ns: int = NOW_NS) -> None:
        self.wall_ns = wall_ns
        self.passed_ns = 0
        self.synchronised = False

    def pass_by(self, seconds: float) -> None:
        self.wall_ns += round(seconds * SECOND_NS)
        self.passed_ns += round(seconds * SECOND_NS)

    def clock(self, trust_after_ns: int | None = 0, *, not_before_ns: int = 0, boot: str = "boot1") -> Clock:
        return Clock(
            lambda: self.wall_ns,
            lambda: self.passed_ns,
            synchronised=lambda: self.synchronised,
            boot=boot,
            trust_after_ns=trust_after_ns,
            not_before_ns=not_before_ns,
        )


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def test_ticks_follow_the_clock_while_it_goes_forward(clocks: Clocks) -> None:
    clock = clocks.clock()
    assert clock.tick_ns() == clocks.wall_ns
    clocks.pass_by(3)
    assert clock.tick_ns() == clocks.wall_ns
    clocks.wall_ns += 500 * SECOND_NS
    assert clock.tick_ns() == clocks.wall_ns


def test_a_clock_that_steps_back_neither_turns_ticks_back_nor_stops_them(clocks: Clocks) -> None:
    clock = clocks.clock()
    last_ns = clock.tick_ns()
    clocks.wall_ns -= 400 * SECOND_NS
    for _ in range(300):
        clocks.pass_by(1)
        assert clock.tick_ns() == last_ns + SECOND_NS
        last_ns += SECOND_NS
    clocks.wall_ns += 500 * SECOND_NS
    assert clock.tick_ns() == clocks.wall_ns


def test_a_clock_that_drifts_is_followed(clocks: Clocks) -> None:
    clock = clocks.clock()
    for _ in range(100):
        clocks.pass_by(100)
        clocks.wall_ns += 60 * SECOND_NS  # far more than any quartz
        assert clock.now_ns() == clocks.wall_ns
    assert clock.trusted


def test_two_ticks_at_one_moment_are_apart() -> None:
    clock = Clock(lambda: 5, lambda: 5)
    assert clock.tick_ns() < clock.tick_ns() < clock.tick_ns()


def test_ticks_go_on_after_those_before_a_restart(clocks: Clocks) -> None:
    clock = clocks.clock()
    clock.resume(clocks.wall_ns + 50)
    clocks.pass_by(0)
    assert clock.tick_ns() == clocks.wall_ns + 51


@pytest.mark.parametrize("years", [-50, -1, 1, 10])
def test_a_leap_is_not_followed_and_once_undone_nothing_has_changed(clocks: Clocks, years: int) -> None:
    clock = clocks.clock()
    clocks.wall_ns += years * YEAR_NS
    clocks.pass_by(5)
    assert clock.now_ns() == NOW_NS + 5 * SECOND_NS
    assert not clock.trusted
    assert clock.why == "leap"
    assert clock.ground().startswith(
        "it leapt, and nobody has synchronised it since; samples without a time of their own"
    )
    assert not clock.may_step()
    assert clock.ahead_ns() == years * YEAR_NS
    clocks.wall_ns -= years * YEAR_NS
    clocks.pass_by(5)
    assert clock.may_step()
    assert clock.step() == 0
    assert clock.trusted
    assert clock.why == "came back"
    assert clock.ground() == "it leapt, and has come back"
    assert clock.now_ns() == clocks.wall_ns


def test_a_leap_that_lasts_is_believed_and_one_after_the_other_is_not(clocks: Clocks) -> None:
    clock = clocks.clock()
    clock.now_ns()
    for _ in range(10):
        clocks.wall_ns += YEAR_NS
        clocks.pass_by(PATIENCE_NS / SECOND_NS / 2)
        clock.now_ns()
        assert not clock.may_step()
    clocks.pass_by(PATIENCE_NS / SECOND_NS)
    assert clock.may_step()
    assert clock.step() == 10 * YEAR_NS
    assert clock.why == "stood"


@pytest.mark.parametrize("years", [-5, 5])
def test_a_leap_that_a_synchronised_clock_makes_is_followed_at_once(clocks: Clocks, years: int) -> None:
    clock = clocks.clock()
    clocks.synchronised = True
    clocks.wall_ns += years * YEAR_NS
    assert clock.now_ns() == clocks.wall_ns
    assert clock.trusted


def test_a_machine_without_ntp_whose_clock_is_plausible_is_trusted_from_the_start(clocks: Clocks) -> None:
    clock = clocks.clock(NOW_NS - YEAR_NS, not_before_ns=NOW_NS - 2 * YEAR_NS)
    clock.resume(NOW_NS - 3600 * SECOND_NS)
    assert clock.trusted
    clock.resume(NOW_NS + 60 * SECOND_NS)
    assert clock.trusted, "a step of a minute over a restart is no doubt"


def test_a_boot_in_1970_goes_on_from_the_last_tick_until_the_clock_is_set() -> None:
    clocks = Clocks(0)
    clock = clocks.clock(NOW_NS - YEAR_NS, not_before_ns=NOW_NS - 2 * YEAR_NS)
    assert clock.now_ns() == NOW_NS - YEAR_NS, "of a new store: no earlier than this"
    clock.resume(NOW_NS)
    assert not clock.trusted
    clocks.synchronised = True
    clocks.pass_by(60)
    assert clock.now_ns() == NOW_NS + 60 * SECOND_NS + 1
    assert not clock.may_step(), "a synchronised clock in 1970 is wrong all the same"
    clocks.synchronised = False
    clocks.wall_ns = NOW_NS + YEAR_NS
    assert clock.may_step()
    assert clock.step() == YEAR_NS - 60 * SECOND_NS - 1
    assert clock.now_ns() == NOW_NS + YEAR_NS


def test_a_boot_at_the_time_of_the_last_shutdown_waits_for_ntp_where_only_that_is_believed(clocks: Clocks) -> None:
    clock = clocks.clock(None)
    clock.resume(NOW_NS - SECOND_NS)
    assert not clock.trusted
    assert clock.why == "not synchronised"
    clocks.pass_by(7 * 86_400)
    assert not clock.may_step()
    clocks.wall_ns += YEAR_NS
    assert not clock.may_step()
    clocks.synchronised = True
    assert clock.may_step()
    assert clock.step() == YEAR_NS
    clocks.synchronised = False
    clocks.pass_by(86_400)
    assert clock.now_ns() == clocks.wall_ns
    assert clock.trusted, "once set it is right, also when the link to its source is gone"


def test_a_clock_before_the_last_tick_is_believed_when_it_is_synchronised(clocks: Clocks) -> None:
    clock = clocks.clock()
    clock.resume(NOW_NS + YEAR_NS)
    assert clock.why == "before last tick"
    clocks.pass_by(86_400)
    assert not clock.may_step()
    clocks.synchronised = True
    assert clock.may_step()
    assert clock.step() < 0
    assert clock.now_ns() == clocks.wall_ns
    assert clock.tick_ns() > NOW_NS + YEAR_NS


def test_while_it_is_not_trusted_no_time_of_the_next_years_is_the_future(clocks: Clocks) -> None:
    clock = clocks.clock()
    assert clock.latest_ns() == NOW_NS
    clocks.wall_ns += YEAR_NS
    assert clock.latest_ns() == NOW_NS + LATE_NS


def test_an_estimate_goes_on_over_a_restart_within_one_boot(clocks: Clocks) -> None:
    clocks.wall_ns = 0
    first = clocks.clock(NOW_NS)
    anchor = first.anchor()
    clocks.pass_by(3600)
    again, other = clocks.clock(NOW_NS), clocks.clock(NOW_NS, boot="boot2")
    assert again.go_on(anchor)
    assert again.now_ns() == first.now_ns() == NOW_NS + 3600 * SECOND_NS
    assert not other.go_on(anchor)
    clocks.wall_ns = NOW_NS + YEAR_NS
    restarted = clocks.clock(NOW_NS)
    assert restarted.trusted
    assert restarted.go_on(anchor)
    assert restarted.may_step()


def test_the_kernel_says_whether_the_clock_is_synchronised() -> None:
    assert kernel_is_synchronised() in (True, False)
    assert system_clock(ClockConfig().trust_after_ns).trusted, "the machine that runs this test has a clock"


@pytest.mark.parametrize("text", ["2026", "tomorrow", "2026-13-01", ""])
def test_a_date_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="trust_after"):
        convert({"trust_after": text}, ClockConfig, "edge.toml [clock]", ConfigError)
    assert ClockConfig("never").trust_after_ns is None
    assert ClockConfig("2026-03-01").trust_after_ns == 1_772_323_200 * SECOND_NS
