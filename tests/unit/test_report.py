"""What the gateway says of itself: soon where it is news, and never twice where nobody can hear it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from devices.model import SECOND_NS, Int64s, SeriesSpec
from devices.wire.frame import FrameLimits, Heartbeat, Inventory, Ledger, decode
from edge.custody import Usage
from edge.operators import Operators
from edge.outbox import Outbox
from edge.report import Reporter
from edge.seal import Sealed, Sealer

T0_NS = 1_700_000_000 * SECOND_NS
SPEC = SeriesSpec("pump1", "flow", "flow", "l/s", profile="acme@1")


class Gateway:
    """A reporter over real parts, with a heartbeat each 60 s and a ledger each 30 s."""

    def __init__(self, heartbeat_s: int = 60) -> None:
        self.operators = Operators(lambda series, times_ns: (np.empty(0, np.int64), np.empty(0)))
        self.outbox = Outbox([], {}, 1 << 20)
        sealer = Sealer("g1", 7, 1, self.operators.specs)
        self.reporter = Reporter(
            sealer,
            self.operators,
            self.outbox,
            self.waiting,
            lambda: Usage(1000, 5000, 10, T0_NS),
            heartbeat_ns=heartbeat_s * SECOND_NS,
            ledger_ns=30 * SECOND_NS,
            config_digest="digest",
            outage_budget_s=lambda: 7200.5,
        )

    def waiting(self) -> Int64s:
        return np.zeros(len(self.operators.specs), np.int64)

    def add(self, spec: SeriesSpec) -> None:
        self.operators.set_series(len(self.operators.specs), spec)

    def said(self, second: int, *, sent: bool = True, final: bool = False) -> list[Any]:
        frames: list[Sealed] = self.reporter.due(T0_NS + second * SECOND_NS, final)
        rows = [row for row, _ in frames]
        self.outbox.committed(rows, self.outbox.plan_limits(rows) if sent else {}, [])
        return [decode(frame, FrameLimits()).body for _, frame in frames]


def kinds(bodies: list[Any]) -> list[type]:
    return [type(body) for body in bodies]


def test_a_new_series_is_in_an_inventory_within_seconds() -> None:
    gateway = Gateway()
    gateway.said(0)
    gateway.add(SPEC)
    heard = [(second, body) for second in range(1, 30) for body in gateway.said(second) if isinstance(body, Inventory)]
    ((second, inventory),) = heard
    assert second <= 11
    assert [(device.name, device.profile, device.channels) for device in inventory.devices] == [
        ("pump1", "acme@1", ["flow"])
    ]


def test_heartbeat_and_ledger_come_when_they_are_due() -> None:
    gateway = Gateway()
    gateway.add(SPEC)
    heard = {}
    for second in range(121):
        gateway.operators.ledger.produced[0] += 1
        heard[second] = kinds(gateway.said(second))
    assert [second for second, said in heard.items() if Heartbeat in said] == [0, 60, 120]
    assert [second for second, said in heard.items() if Ledger in said] == [0, 30, 60, 90, 120]


def test_a_ledger_in_which_nothing_has_changed_is_not_sent() -> None:
    gateway = Gateway()
    gateway.add(SPEC)
    heard = {}
    for second in range(121):
        gateway.operators.ledger.produced[0] += second == 40
        heard[second] = kinds(gateway.said(second))
    assert [second for second, said in heard.items() if Ledger in said] == [0, 60]


def test_after_a_connect_heartbeats_come_at_once_and_then_ever_more_rarely() -> None:
    gateway = Gateway(heartbeat_s=1800)

    def beats(first: int, last: int) -> list[int]:
        return [second - first for second in range(first, last) if Heartbeat in kinds(gateway.said(second))]

    beats(0, 4000)
    gateway.reporter.connected()
    assert beats(4000, 9000) == [0, 60, 180, 420, 900, 1860, 3660]


def test_the_heartbeat_says_how_long_the_link_may_be_away() -> None:
    (heartbeat,) = (body for body in Gateway().said(0) if isinstance(body, Heartbeat))
    assert heartbeat.outage_budget_s == 7200.5


@pytest.mark.parametrize("seconds", [600])
def test_an_outage_leaves_one_of_each(seconds: int) -> None:
    gateway = Gateway()
    for second in range(seconds):
        gateway.said(second, sent=False)
    leaves = sorted(row.leaf for row in gateway.outbox.held())
    assert leaves == ["ledger", "state", "state"]


def test_the_last_account_is_given_whether_or_not_it_is_due() -> None:
    gateway = Gateway()
    gateway.said(0)
    assert kinds(gateway.said(1, final=True)) == [Ledger]
