"""Two gateways with one name: what tells them from a store that this one followed."""

from __future__ import annotations

from edge.twins import EPOCHS_MAX, GAP_S, KNOWN_S, RISES_MIN, Twins


def test_a_gateway_that_goes_on_sending_under_our_name_is_recognised() -> None:
    twins = Twins("g1")
    told = [twins.answered(5, seq, seq * GAP_S) for seq in range(RISES_MIN)]
    assert told == [False, False, True]
    assert "another gateway is called g1" in twins.sentence(RISES_MIN * GAP_S)


def test_the_last_frames_of_a_store_before_this_are_no_gateway() -> None:
    twins = Twins("g1")
    at_once = [twins.answered(5, seq, 0.0) for seq in range(1000)]
    sent_again = [twins.answered(5, seq, 10 * GAP_S) for seq in (0, 0, 0)]
    assert not any(at_once + sent_again)
    assert twins.sentence(10 * GAP_S) == ""


def test_it_is_said_once_an_hour_while_it_goes_on() -> None:
    twins = Twins("g1")
    said = [minute for minute in range(150) if twins.answered(5, minute, minute * GAP_S)]
    assert said == [RISES_MIN - 1, RISES_MIN - 1 + KNOWN_S / GAP_S, RISES_MIN - 1 + 2 * KNOWN_S / GAP_S]


def test_it_is_shown_no_longer_once_nothing_has_come_for_an_hour() -> None:
    twins = Twins("g1")
    for minute in range(RISES_MIN):
        twins.answered(5, minute, minute * GAP_S)
    last_s = (RISES_MIN - 1) * GAP_S
    assert twins.sentence(last_s + KNOWN_S - 1)
    assert twins.sentence(last_s + KNOWN_S) == ""


def test_epochs_that_anyone_may_make_up_take_no_memory_and_hide_no_gateway() -> None:
    twins = Twins("g1")
    for made_up in range(100):
        twins.answered(made_up, 1, 0.0)
    assert len(twins._seen) == EPOCHS_MAX
    assert [twins.answered(500, seq, seq * GAP_S) for seq in range(RISES_MIN)][-1]
