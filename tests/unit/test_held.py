"""Samples that come while the clock is not trusted: held by the pump, in the store and over crashes, and then stamped.

A real store, as in test_pump.py; the clocks are the test's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.model import SECOND_NS, Quality, SampleBatch, SeriesSpec
from edge import journal
from edge.clock import Anchor, Clock
from edge.custody import BIRTH_UNKNOWN_NS
from edge.held import Step
from edge.identity import BEHIND_JOURNAL, HELD, RELEASED
from edge.operators import Operators
from edge.recovery import recover
from tests.unit.test_clock import NOW_NS, YEAR_NS, Clocks
from tests.unit.test_pump import MIB, Gateway, series, until
from tests.unit.test_pump import tell as tell

DAY_NS = 86_400 * SECOND_NS
NOT_BEFORE_NS = NOW_NS - YEAR_NS


class Machine:
    """One that boots, with the time it believes; the link is one sink for all of its lives."""

    def __init__(self, tell: Callable[..., Gateway]) -> None:
        self.clocks = Clocks(0)
        self.boots = 1
        self.points: dict[tuple[str, int], tuple[Any, ...]] = {}
        self.raw: dict[tuple[str, int], float] = {}
        self.alarms: list[str] = []
        self.sent = 0
        self._tell = tell

    def boot(self, wall_ns: int) -> None:
        self.boots += 1
        self.clocks = Clocks(wall_ns)

    def live(self, story: Callable[[Gateway], Any], **settings: Any) -> Gateway:
        clock: Clock = self.clocks.clock(NOT_BEFORE_NS, not_before_ns=NOT_BEFORE_NS, boot=f"boot{self.boots}")

        async def told(gateway: Gateway) -> None:
            gateway.link.points, gateway.link.raw, gateway.link.alarms = self.points, self.raw, self.alarms
            gateway.connect()
            await story(gateway)

        gateway = self._tell(told, clock=clock, **settings)
        gateway.balance()
        assert gateway.link.doubles == 0
        return gateway

    async def send(self, gateway: Gateway, count: int, times: int = 1, value: float = 1.0, time_ns: int = 0) -> None:
        """`times` times, a second apart, a sample of each of `count` series; by default without a time of their own."""
        for _ in range(times):
            self.clocks.pass_by(1)
            before = gateway.feed.acknowledged
            batch = SampleBatch(
                np.arange(count, dtype=np.int32),
                np.full(count, time_ns),
                np.full(count, value + self.sent),
                np.zeros(count, np.uint8),
            )
            gateway.feed.put(batch, gateway.clock.now_ns())
            await until(lambda: gateway.feed.acknowledged > before)  # noqa: B023
            gateway.balance()
            self.sent += count

    def times_s(self, since_ns: int) -> list[float]:
        return sorted((time_ns - since_ns) / SECOND_NS for _, time_ns in self.raw)


@pytest.fixture
def machine(tell: Callable[..., Gateway]) -> Machine:
    return Machine(tell)


def test_samples_are_held_until_the_clock_is_set_and_then_get_their_true_times(machine: Machine) -> None:
    async def story(gateway: Gateway) -> None:
        series(gateway, 2, report="raw")
        await machine.send(gateway, 2, 10)
        assert gateway.operators.held.samples == 20
        assert gateway.totals()["waiting"] == gateway.totals()["produced"] == 20
        machine.clocks.wall_ns = NOW_NS
        await until(lambda: gateway.clock.trusted)
        await machine.send(gateway, 2, 5)
        await until(lambda: gateway.link.samples() == 30)

    gateway = machine.live(story)
    assert gateway.operators.held.samples == 0
    assert machine.times_s(NOW_NS) == sorted([*map(float, range(-9, 6))] * 2)


def test_the_journal_keeps_what_is_held_over_a_crash_of_the_daemon(machine: Machine) -> None:
    async def before(gateway: Gateway) -> None:
        series(gateway, 2, report="raw")
        await machine.send(gateway, 2, 5)

    async def after(gateway: Gateway) -> None:
        assert gateway.operators.held.samples == 10
        await machine.send(gateway, 2, 5)
        machine.clocks.wall_ns = NOW_NS
        await until(lambda: gateway.link.samples() == 20)

    machine.live(before, crash=True)
    machine.clocks.pass_by(100)
    machine.live(after)
    assert machine.times_s(NOW_NS) == sorted([*map(float, [*range(-109, -104), *range(-4, 1)])] * 2)


@pytest.mark.parametrize("crash", [True, False], ids=["replayed", "from a snapshot"])
def test_a_restart_after_the_clock_was_set_releases_what_the_life_before_held(machine: Machine, crash: bool) -> None:
    async def before(gateway: Gateway) -> None:
        series(gateway, 2, report="raw")
        await machine.send(gateway, 2, 5)

    async def after(gateway: Gateway) -> None:
        await until(lambda: gateway.link.samples() == 10)

    machine.live(before, crash=crash, stop_within_s=0.2)
    machine.clocks.pass_by(100)
    machine.clocks.wall_ns = NOW_NS
    machine.live(after)
    assert machine.times_s(NOW_NS) == sorted([*map(float, range(-104, -99))] * 2)


def test_a_boot_that_ends_untrusted_keeps_its_estimates_with_their_quality(machine: Machine) -> None:
    async def trusted(gateway: Gateway) -> None:
        series(gateway, 1, report="raw")
        await machine.send(gateway, 1, 3)

    async def untrusted(gateway: Gateway) -> None:
        await machine.send(gateway, 1, 3)
        assert gateway.operators.held.samples == 3

    async def later(gateway: Gateway) -> None:
        await until(lambda: gateway.link.samples() == 6)
        await machine.send(gateway, 1, 1)
        await until(lambda: gateway.link.samples() == 7)

    machine.clocks.wall_ns = NOW_NS
    machine.live(trusted, stop_within_s=5)
    machine.boot(0)
    machine.live(untrusted, crash=True)
    machine.boot(NOW_NS + 30 * DAY_NS)
    gateway = machine.live(later)
    assert machine.times_s(NOW_NS)[:6] == pytest.approx([1, 2, 3, 4, 5, 6], abs=1e-3)
    assert machine.times_s(NOW_NS + 30 * DAY_NS)[6] == 1
    store = recover(gateway.recovered.store.path, 8 * MIB, gateway.pump.history).store
    quality = np.concatenate([journal.decode(data or b"").batch.quality for _, data in store.blocks(0)])
    assert np.count_nonzero(quality & Quality.CLOCK) == 3
    store.close()


def test_what_has_its_own_time_is_not_held_and_not_the_future(machine: Machine) -> None:
    async def story(gateway: Gateway) -> None:
        series(gateway, 1, report="raw")
        await machine.send(gateway, 1, time_ns=NOW_NS)
        await until(lambda: gateway.link.samples() == 1)
        await machine.send(gateway, 1, time_ns=NOW_NS + 300 * YEAR_NS // 2)
        assert gateway.totals()["rejected"] == 1

    machine.live(story)
    assert machine.times_s(NOW_NS) == [0.0]


def test_alarms_are_raised_at_once_and_say_that_their_time_is_an_estimate(machine: Machine) -> None:
    reasons: list[str] = []

    async def story(gateway: Gateway) -> None:
        sealed = gateway.pump.committer._sealer.alarms

        def alarms(alarms: list[Any], now_ns: int) -> Any:
            reasons.extend(alarm.reason for alarm in alarms)
            return sealed(alarms, now_ns)

        gateway.pump.committer._sealer.alarms = alarms  # type: ignore[method-assign]
        series(gateway, 1, report="raw", filters={"range": {"low": -1e6, "high": 1e6}}, off_delay_ns=0)
        await machine.send(gateway, 1, 3)
        await machine.send(gateway, 1, 1, value=1e7)
        await until(lambda: machine.alarms == ["open"])
        assert gateway.operators.held.samples == 4
        machine.clocks.wall_ns = NOW_NS
        await until(lambda: gateway.link.samples() == 4)
        await machine.send(gateway, 1, 1)
        await until(lambda: machine.alarms == ["open", "closed"])

    machine.live(story)
    assert "not set" in reasons[0]
    assert "not set" not in reasons[1]


def test_nobody_was_silent_or_stuck_while_the_clock_went_over_to_the_true_time(machine: Machine) -> None:
    async def story(gateway: Gateway) -> None:
        stuck = {"stuck": {"after_s": 3600.0, "tolerance": 1e9}}
        series(gateway, 2, report="raw", expect_every_ns=60 * SECOND_NS, filters=stuck)
        await machine.send(gateway, 2, 5)
        machine.clocks.wall_ns = NOW_NS
        await until(lambda: gateway.clock.trusted)
        await machine.send(gateway, 2, 5)
        await until(lambda: gateway.link.samples() == 20)

    machine.live(story)
    assert machine.alarms == []


def test_where_too_much_is_held_the_older_half_keeps_estimates(machine: Machine) -> None:
    async def story(gateway: Gateway) -> None:
        series(gateway, 10, report="raw")
        for _ in range(8):
            await machine.send(gateway, 10, 5)
            await until(lambda: gateway.operators.held.samples <= 100)
        machine.clocks.wall_ns = NOW_NS
        await until(lambda: gateway.link.samples() == 400)

    machine.live(story, max_held=100)
    true = [time for time in machine.times_s(NOW_NS) if time > -DAY_NS / SECOND_NS]
    assert 50 <= len(true) <= 100
    assert true == sorted(float(s) for s in range(1 - len(true) // 10, 1) for _ in range(10))
    assert all(time_ns >= NOT_BEFORE_NS for _, time_ns in machine.raw)


@pytest.mark.parametrize("years", [-30, 9])
def test_a_leap_and_back_while_it_runs_leaves_no_trace(machine: Machine, years: int) -> None:
    async def story(gateway: Gateway) -> None:
        series(gateway, 2, report="raw")
        await machine.send(gateway, 2, 3)
        machine.clocks.wall_ns += years * YEAR_NS
        await machine.send(gateway, 2, 3)
        assert gateway.operators.held.samples == 6
        machine.clocks.wall_ns -= years * YEAR_NS
        await until(lambda: gateway.clock.trusted)
        await machine.send(gateway, 2, 3)
        await until(lambda: gateway.link.samples() == 18)

    machine.clocks.wall_ns = NOW_NS
    machine.live(story)
    assert machine.times_s(NOW_NS) == sorted([*map(float, range(1, 10))] * 2)


def test_a_clock_that_was_years_ahead_and_is_set_right_takes_no_series_along(machine: Machine) -> None:
    async def wrong(gateway: Gateway) -> None:
        series(gateway, 2)
        await machine.send(gateway, 2, 3)

    async def right(gateway: Gateway) -> None:
        machine.clocks.synchronised = True
        await until(lambda: gateway.clock.trusted)
        await machine.send(gateway, 2, 12)
        await until(lambda: gateway.link.samples() >= 28)

    machine.clocks.wall_ns = NOW_NS + 9 * YEAR_NS
    machine.live(wrong, stop_within_s=0.2)
    machine.clocks.pass_by(10)
    machine.clocks.wall_ns = NOW_NS
    machine.live(right)
    late_ns = [time_ns for _, time_ns in machine.points if time_ns > NOW_NS + YEAR_NS]
    assert len(machine.points) > len(late_ns)
    assert sum(int(machine.points[key][2]) for key in machine.points if key[1] < NOW_NS + YEAR_NS) == 24


def test_a_leap_ahead_does_not_empty_the_journal(machine: Machine) -> None:
    async def story(gateway: Gateway) -> None:
        series(gateway, 2)
        gateway.pump.committer.replay._due_s = 0.0
        await machine.send(gateway, 2, 10)
        await until(lambda: gateway.pump.committer.replay.snapshot_block > 0)
        machine.clocks.wall_ns += 9 * YEAR_NS
        await machine.send(gateway, 2, 10)
        assert gateway.pump.committer.committed.journal_floor_ns == 0

    machine.clocks.wall_ns = NOW_NS
    machine.live(story)


def test_replay_brings_held_and_released_samples_to_the_same_state_bit_for_bit() -> None:
    def fresh() -> Operators:
        operators = Operators(lambda *_: (np.empty(0, np.int64), np.empty(0)))
        for i in range(3):
            settings: dict[str, Any] = {"filters": {"stuck": {"after_s": 60.0}}, "expect_every_ns": 5 * SECOND_NS}
            operators.set_series(i, SeriesSpec("d", f"c{i}", "q", "", report="raw" if i else "summary", **settings))
        return operators

    live, again = fresh(), fresh()
    rng = np.random.default_rng(1)
    blocks = []
    for at_s in range(0, 40, 10):
        arrived_ns = NOW_NS + (at_s + np.arange(30) // 3) * SECOND_NS
        series = rng.integers(0, 3, 30).astype(np.int32)
        batch = SampleBatch(series, arrived_ns, rng.normal(size=30).round(1), np.zeros(30, np.uint8))
        verdict = np.full(30, HELD, np.uint8)
        anchor = Anchor("boot", 5, False)
        live.held.anchor = anchor
        batch.time_ns = live.held.stamp(series, arrived_ns, live.admission.last_ns)
        live.samples(batch, arrived_ns, verdict)
        live.tick(NOW_NS + (at_s + 10) * SECOND_NS)
        blocks.append(journal.Block(batch, verdict, [(30, live.last_tick_ns)], series=3, anchor=anchor))
    middle_ns, newest_ns = live.held.middle_ns(), live.held.newest_ns()
    year_ns = NOW_NS + YEAR_NS
    for step in (Step(0, middle_ns), Step(YEAR_NS, newest_ns, year_ns, year_ns + 40 * SECOND_NS)):
        released = live.step(step)
        arrived_ns = released.time_ns + step.by_ns
        released.time_ns = np.zeros(len(released), np.int64)
        verdict = live.admission.admit(released, arrived_ns, NOW_NS)
        verdict[:] = RELEASED
        live.samples(released, arrived_ns, verdict)
        live.tick(live.last_tick_ns + 50 * SECOND_NS)
        blocks.append(journal.Block(released, verdict, [(len(released), live.last_tick_ns)], series=3, step=step))
    live.take()
    for at, block in enumerate(blocks):
        if at == 2:  # a snapshot in between
            state, again = again.snapshot(), fresh()
            again.restore(state)
        again.replay(journal.decode(journal.encode(block)))
    again.take()
    assert live.ledger.produced.sum() == again.ledger.produced.sum() == 120
    for name, array in live.snapshot().items():
        assert repr(array.tolist()) == repr(again.snapshot()[name].tolist()), name


def test_a_device_whose_samples_go_raw_is_not_silent() -> None:
    operators = Operators(lambda *_: (np.empty(0, np.int64), np.empty(0)))
    operators.set_series(0, SeriesSpec("d", "c", "q", "", expect_every_ns=5 * SECOND_NS))
    behind = np.full(1, BEHIND_JOURNAL, np.uint8)
    for at_s in range(60):
        assert operators.tick(NOW_NS + at_s * SECOND_NS) == []
        batch = SampleBatch(np.zeros(1, np.int32), np.array([at_s + 1]), np.ones(1), np.zeros(1, np.uint8))
        assert operators.samples(batch, np.array([NOW_NS]), behind) == []
    assert [alarm.detector for alarm in operators.tick(NOW_NS + 90 * SECOND_NS)] == ["silent"]


def test_a_store_made_at_a_boot_with_a_wrong_clock_writes_no_window_that_the_one_before_it_may_have_written(
    machine: Machine, tmp_path: Path
) -> None:
    in_window_ns = [NOW_NS + 3 * SECOND_NS + i for i in range(4)]
    born_ns: list[int] = []

    async def one(gateway: Gateway) -> None:
        series(gateway, 2, max_ahead_ns=0)
        machine.clocks.pass_by(10)
        await machine.send(gateway, 2, time_ns=in_window_ns[0])
        await machine.send(gateway, 2, time_ns=NOW_NS + 9 * SECOND_NS)
        await until(lambda: ("c1", NOW_NS + 3 * SECOND_NS) in machine.points)

    async def unset(gateway: Gateway) -> None:
        series(gateway, 2, max_ahead_ns=0)
        await machine.send(gateway, 2, time_ns=in_window_ns[1])
        born_ns.append(gateway.recovered.store.born_ns)

    async def set_right(gateway: Gateway) -> None:
        await machine.send(gateway, 2, time_ns=in_window_ns[2])
        born_ns.append(gateway.recovered.store.born_ns)
        machine.clocks.wall_ns = NOW_NS + 100 * SECOND_NS
        await until(lambda: gateway.clock.trusted)
        await machine.send(gateway, 2, time_ns=in_window_ns[3])
        born_ns.append(gateway.recovered.store.born_ns)
        for _ in range(4):
            await machine.send(gateway, 2, time_ns=machine.clocks.wall_ns)
        await until(lambda: ("c1", NOW_NS + 103 * SECOND_NS) in machine.points)

    machine.clocks.wall_ns = NOW_NS
    machine.live(one)
    (tmp_path / "store" / "edge.db").write_bytes(b"not a store")
    machine.boot(0)
    machine.live(unset, crash=True)
    machine.live(set_right, crash=True)
    again = recover(tmp_path / "store" / "edge.db", 8 * MIB, lambda *_: (np.empty(0, np.int64), np.empty(0)))
    assert born_ns[:2] == [BIRTH_UNKNOWN_NS] * 2
    assert again.store.born_ns == born_ns[2] >= NOW_NS + 100 * SECOND_NS
    again.store.close()
    assert {time_ns for _, time_ns in machine.raw} == set(in_window_ns[1:])
    assert min(time_ns for _, time_ns in machine.points if time_ns > NOW_NS + 9 * SECOND_NS) >= born_ns[2]
