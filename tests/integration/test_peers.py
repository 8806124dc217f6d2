"""The load of `benchmarks/peers` in small, and how it is counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.peers.account import Account, Sent, compare, gathered
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.trial import Plan, run

SECOND_NS = 1_000_000_000


def test_what_one_window_lacks_another_does_not_make_up_for() -> None:
    sent = Sent(messages=400, devices=2, start_ns=3 * SECOND_NS, step_ns=SECOND_NS // 100).places(SECOND_NS)
    assert sent == Counter({(f"press-{n}", second * SECOND_NS): 50 for n in (0, 1) for second in (3, 4, 5, 6)})
    points = [("press-0", 3 * SECOND_NS, 49), ("press-0", 4 * SECOND_NS, 51)]
    points += [("press-0", 5 * SECOND_NS, 50), ("press-0", 6 * SECOND_NS, 48), ("press-0", 6 * SECOND_NS + 1, 2)]
    points += [("press-1", second * SECOND_NS, 50) for second in (3, 4, 5)]
    assert compare(sent, gathered(points, SECOND_NS)) == Account(stored=350, lost=51, doubled=1)


def test_by_the_millisecond_every_sample_is_a_place_of_its_own() -> None:
    sent = Sent(messages=1000, devices=10, start_ns=0, step_ns=200_000).places(1_000_000)
    assert set(sent.values()) == {1}
    assert len(sent) == 1000


@pytest.mark.real
def test_an_edge_that_is_killed_under_load_neither_loses_nor_doubles(tmp_path: Path) -> None:
    plan = Plan(messages=10_000, per_s=2_000.0, pause_s=(0.8, 1.5), seed=1)
    forebay = next(contender for contender in CONTENDERS if contender.key == "forebay_1s")
    outcome = run(forebay, plan, tmp_path)
    assert outcome.account == Account(stored=10_000, lost=0, doubled=0), outcome
    assert outcome.kills >= 3
    assert outcome.ended == 0
