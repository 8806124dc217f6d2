"""Many worlds, two at a time: which seeds live how long, until so many days are done.

Most live for two days, which is the most different climates for the time; every twentieth lives for two weeks.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.world.world import Outcome, Violation, run

PROCESSES = 2
DAYS, LONG_DAYS = 2.0, 14.0
LONG_EVERY = 20


def days_of(seed: int) -> float:
    """How long the world of a seed lives."""
    return LONG_DAYS if seed % LONG_EVERY == 0 else DAYS


def worlds(first: int, days: float) -> list[tuple[int, float]]:
    """(seed, days), from the first seed on, until all days are used. A life is never cut short: it would be another."""
    used = 0.0
    lives: list[tuple[int, float]] = []
    for seed in itertools.count(first):
        if used >= days:
            return lives
        lives.append((seed, days_of(seed) if days >= DAYS else days))
        used += lives[-1][1]
    raise AssertionError("seeds never end")


def processes() -> ProcessPoolExecutor:
    """To run worlds in."""
    return ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"))


def run_all(lives: list[tuple[int, float]], pool: ProcessPoolExecutor) -> Iterator[Outcome | str]:
    """The outcome of each world, or what its violation says."""
    return pool.map(_one, *zip(*lives, strict=True))


def _one(seed: int, days: float) -> Outcome | str:
    try:
        return run(seed, days)
    except Violation as violation:
        return str(violation)
