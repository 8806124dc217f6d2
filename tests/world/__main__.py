"""./task simulate DAYS [--seed S]: virtual days of faults in two processes, until one breaks a promise.

Each seed is a world of its own, with a climate of its own: most live for a day, every twentieth for a week. A
violation is printed with the last events before it; `--seed S` with the same number of days shows it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.world.world import Outcome, Violation, run

PROCESSES = 2
WEEK_EVERY = 20


def days_of(seed: int) -> float:
    """How long the world of a seed lives."""
    return 7.0 if seed % WEEK_EVERY == 0 else 1.0


def worlds(first: int, days: float) -> Iterator[tuple[int, float]]:
    """(seed, days) until all days are used."""
    for seed in itertools.count(first):
        if days <= 0:
            return
        yield seed, min(days_of(seed), days)
        days -= days_of(seed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./task simulate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("days", type=float, metavar="DAYS")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default 1)")
    arguments = parser.parse_args()
    begun_s = time.perf_counter()
    totals: Counter[str] = Counter()
    done_days, bad = 0.0, 0
    with ProcessPoolExecutor(PROCESSES) as pool:
        for outcome in pool.map(_one, *zip(*worlds(arguments.seed, arguments.days), strict=True)):
            if isinstance(outcome, str):
                bad += 1
                print(outcome, flush=True)
                continue
            done_days += outcome.days
            totals.update(outcome.counts)
            print(
                f"seed {outcome.seed}: {outcome.days:g} d, {outcome.events} events, {outcome.digest}", file=sys.stderr
            )
    took_s = time.perf_counter() - begun_s
    told = {"days": done_days, "violations": bad, "days_per_minute": round(done_days / took_s * 60, 1), **totals}
    print(json.dumps(told))
    return 1 if bad else 0


def _one(seed: int, days: float) -> Outcome | str:
    try:
        return run(seed, days)
    except Violation as violation:
        return str(violation)


if __name__ == "__main__":
    sys.exit(main())
