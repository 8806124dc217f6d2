"""How much is handed to the link before the broker has taken it."""

from __future__ import annotations

from edge.underway import AT_LEAST_BYTES, Underway


def test_a_link_that_is_slow_gets_little_at_once() -> None:
    underway = Underway()
    assert underway.may(10 * AT_LEAST_BYTES, 0.0)  # one frame, however large
    underway.sent(1, AT_LEAST_BYTES - 1000)
    assert underway.may(1000, 0.0)
    assert not underway.may(1001, 0.0)
    underway.taken(1, 100.0)
    underway.sent(2, AT_LEAST_BYTES)
    assert not underway.may(1000, 102.0)


def test_a_link_that_is_fast_gets_twice_as_much_with_each_round_trip() -> None:
    underway, seq, rounds = Underway(), 0, []
    for at in range(8):
        first = seq
        while underway.may(1000, at * 0.01):
            underway.sent(seq, 1000)
            seq += 1
        rounds.append(seq - first)
        for one in range(first, seq):
            underway.taken(one, at * 0.01 + 0.01)
    assert rounds[0] == AT_LEAST_BYTES // 1000
    assert rounds[-1] > 50 * rounds[0]


def test_a_link_that_ended_took_what_was_on_its_way_along() -> None:
    underway = Underway()
    underway.sent(1, AT_LEAST_BYTES)
    assert not underway.may(1, 0.0)
    underway.clear()
    assert underway.may(1, 0.0)
    underway.taken(1, 0.0)  # the answer of the link before
    underway.sent(2, 1)
    assert underway.may(AT_LEAST_BYTES - 1, 0.0)
