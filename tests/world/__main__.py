"""./task simulate DAYS [--seed S]: virtual days of faults in two processes, and the account of each world.

Each seed is a world of its own, with a climate of its own: most live for two days, every twentieth for two weeks
(many.py). A violation is printed with the last events before it; it is the same each time its seed runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping

from tests.world.many import processes, run_all, worlds


def main() -> int:
    parser = argparse.ArgumentParser(prog="./task simulate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("days", type=float, metavar="DAYS")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default 1)")
    arguments = parser.parse_args()
    begun_s = time.perf_counter()
    totals: Counter[str] = Counter()
    done_days, bad, run_worlds = 0.0, 0, 0
    with processes() as pool:
        for outcome in run_all(worlds(arguments.seed, arguments.days), pool):
            if isinstance(outcome, str):
                bad += 1
                print(f"{outcome}\n", flush=True)
                continue
            run_worlds += 1
            done_days += outcome.days
            totals.update(outcome.counts)
            print(
                f"seed {outcome.seed}: {outcome.days:g} d, {outcome.events} events, {outcome.digest}", file=sys.stderr
            )
    for line in table(run_worlds, bad, done_days, time.perf_counter() - begun_s, totals):
        print(line)
    return 1 if bad else 0


def table(good: int, bad: int, days: float, took_s: float, totals: Mapping[str, int]) -> Iterator[str]:
    """What came of the worlds, for people: how many broke a rule, and what the others went through."""
    pace = f"{days:g} days in {took_s:.0f} s, {days / took_s * 60:.1f} a minute"
    yield f"worlds: {good + bad}, of them with a violation: {bad}; {pace}"
    if bad:
        yield "above: each violation with the last events before it; ./task simulate 2 --seed S repeats that of seed S"
    if not good:
        return
    width = max(len(name) for name in totals)
    yield ""
    yield f"{'without one' if bad else 'in them':{width}}  {'in all':>12}  {'a day':>10}"
    yield from (f"{name:{width}}  {count:12,}  {count / days:10,.1f}" for name, count in totals.items())


if __name__ == "__main__":
    sys.exit(main())
