"""Virtual days of faults, in which no promise is broken; and bugs that would break one, each of which is found."""

from __future__ import annotations

import pytest

from tests.world.bugs import BUGS, climate_for
from tests.world.world import Violation, run

SEEDS = range(1, 17)
DAYS = 0.5
BUG_SEEDS = range(1, 17)
BUG_DAYS = 0.25


@pytest.mark.parametrize("seed", SEEDS)
def test_a_world_keeps_all_promises(seed: int) -> None:
    outcome = run(seed, DAYS)
    assert outcome.counts["stored"] > 0


def test_a_seed_runs_the_same_each_time() -> None:
    assert run(4, 0.1) == run(4, 0.1)


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_found(name: str) -> None:
    """Within four days."""
    bug = BUGS[name]
    with bug.patch():
        for seed in BUG_SEEDS:
            try:
                run(seed, BUG_DAYS, climate_for(bug, seed, BUG_DAYS))
            except Violation as violation:
                if bug.found in str(violation).splitlines()[0]:
                    return
    pytest.fail(f"not found in {len(BUG_SEEDS) * BUG_DAYS:g} days")
