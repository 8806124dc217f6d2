"""Virtual days of faults, in which no promise is broken; and bugs that would break one, each of which is found."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.world.bugs import BUGS, climate_for
from tests.world.many import LONG_EVERY, processes, run_all, worlds
from tests.world.world import Violation, run

DAYS_A_TEST = 52
"""Of 20 worlds."""
TIMEOUT_S = 1800
"""They take some 90 s of CPU, in two processes: less than a minute, or many on a machine with other work."""
FIRST_SEEDS = range(1, 121, LONG_EVERY)
BUG_SEEDS = range(1, 17)
BUG_DAYS = 0.5


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with processes() as pool:
        yield pool


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("first", FIRST_SEEDS)
def test_twenty_worlds_keep_all_promises_for_52_days(first: int, pool: ProcessPoolExecutor) -> None:
    outcomes = list(run_all(worlds(first, DAYS_A_TEST), pool))
    violations = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert not violations, "\n\n".join(violations)
    assert all(outcome.counts["stored"] > 0 for outcome in outcomes if not isinstance(outcome, str))


def test_a_seed_runs_the_same_each_time() -> None:
    assert run(4, 0.5) == run(4, 0.5)


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_found(name: str) -> None:
    """Within eight days."""
    bug = BUGS[name]
    with bug.patch():
        for seed in BUG_SEEDS:
            try:
                run(seed, BUG_DAYS, climate_for(bug, seed, BUG_DAYS))
            except Violation as violation:
                if bug.found in str(violation).splitlines()[0]:
                    return
    pytest.fail(f"not found in {len(BUG_SEEDS) * BUG_DAYS:g} days")
