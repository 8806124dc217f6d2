"""Sources that stop for want of acknowledgements are told from those that go on."""

from __future__ import annotations

from edge.flow import TRIED_EVERY, Flow


def climb(flow: Flow, count: int, at_once: int = 1) -> None:
    """So many messages come, after what was there is acknowledged."""
    for start in range(0, count, at_once):
        flow.came(min(at_once, count - start))


def test_a_source_that_stands_at_one_number_again_and_again_has_stopped() -> None:
    flow = Flow()
    for _ in range(2):
        climb(flow, 20, at_once=7)
        assert not flow.has_stopped
        flow.settled(20)
    climb(flow, 19)
    assert not flow.has_stopped
    flow.came(1)
    assert flow.has_stopped
    flow.settled(5)
    assert not flow.has_stopped


def test_a_source_that_goes_past_its_number_has_not_stopped() -> None:
    flow = Flow()
    for _ in range(3):
        climb(flow, 8)
        flow.settled(8)
    climb(flow, 9)
    assert not flow.has_stopped
    flow.settled(9)
    climb(flow, 8)
    assert not flow.has_stopped
    flow.settled(8)
    climb(flow, 9)
    assert not flow.has_stopped


def test_now_and_then_a_source_may_show_that_it_goes_on() -> None:
    flow = Flow()
    stopped = []
    for _ in range(3 * TRIED_EVERY):
        climb(flow, 3)
        stopped.append(flow.has_stopped)
        flow.settled(3)
    assert stopped.count(False) == 2 + 2  # the first two, and one in each hundred


def test_a_new_connection_begins_anew() -> None:
    flow = Flow()
    for _ in range(3):
        climb(flow, 20)
        flow.settled(20)
    climb(flow, 5)
    flow.connected()
    climb(flow, 20)
    assert not flow.has_stopped
