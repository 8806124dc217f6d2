"""Faults are drawn from the seed alone, overlap, and leave each part one fault at a time."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.chaos.plan import KINDS, REST_S, draw

seeds = st.integers(0, 2**32)


@given(seeds)
def test_the_same_seed_draws_the_same_faults(seed):
    assert draw(50, seed) == draw(50, seed)
    assert draw(50, seed) != draw(50, seed + 1)


@given(seeds, st.integers(0, 200))
@settings(max_examples=30)
def test_a_part_has_one_fault_at_a_time(seed, count):
    faults = draw(count, seed)
    assert len(faults) == count
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    free_at_s: dict[str, float] = {}
    for fault in faults:
        assert fault.at_s >= free_at_s.get(fault.part, 0.0) - 0.01
        free_at_s[fault.part] = fault.at_s + fault.for_s + REST_S


def test_many_faults_are_of_every_kind_and_overlap():
    faults = draw(1000, 1)
    assert {fault.kind for fault in faults} == {kind.name for kind in KINDS}
    pairs = itertools.pairwise(faults)
    assert sum(one.at_s + one.for_s > other.at_s for one, other in pairs) > 300


@given(seeds)
def test_kinds_can_be_left_out_or_chosen(seed):
    assert not {"move", "fill"} & {fault.kind for fault in draw(60, seed, without=["move", "fill"])}
    assert {fault.kind for fault in draw(60, seed, only=["kill", "cut"])} == {"kill", "cut"}
