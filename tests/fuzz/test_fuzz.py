"""What a fuzzer once found stays found; and a few thousand fresh inputs for each target, every time.

./task fuzz TARGET [RUNS] searches on, for millions of inputs and guided by coverage.
"""

from __future__ import annotations

from random import Random, SystemRandom

import pytest

from tests.fuzz import memory
from tests.fuzz.mutate import mutations
from tests.fuzz.targets import FOUND, TARGETS, found

FRESH = 2000
"""Inputs a target; `client` takes the longest, half a millisecond each."""


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_and_whatever_found_something_once_is_taken_or_refused_as_documented(name: str) -> None:
    target = TARGETS[name]
    for data in target.seeds():
        target.run(data)
    for path in found(name):
        data = path.read_bytes()
        memory.forget_peak()
        before_bytes = memory.resident_bytes()
        target.run(data)
        assert memory.peak_bytes() - before_bytes < memory.LIMIT_BYTES, path


@pytest.mark.parametrize("name", TARGETS)
def test_fresh_damage_is_taken_or_refused_as_documented(name: str) -> None:
    target = TARGETS[name]
    seeds = [*target.seeds(), *(path.read_bytes() for path in found(name))]
    seed = SystemRandom().getrandbits(32)
    for data in mutations(seeds, FRESH, target.max_bytes, Random(seed)):
        try:
            target.run(data)
        except Exception as error:
            error.add_note(f"seed {seed}; the input, to be kept in {FOUND / name}: {data!r}")
            raise


def test_every_folder_of_inputs_belongs_to_a_target() -> None:
    assert {path.name for path in FOUND.iterdir()} <= set(TARGETS)


def test_damage_changes_an_input_and_keeps_to_its_limit() -> None:
    seeds = [b"one seed of some length", b"another"]
    made = list(mutations(seeds, 500, 30, Random(1)))
    assert made == list(mutations(seeds, 500, 30, Random(1)))
    assert len(set(made)) > 400
    assert all(len(data) <= 30 for data in made)
