"""./task simulate DAYS [--seed S]: virtual days of faults in two processes, and the account of each world.

Each seed is a world of its own, with a climate of its own: most live for two days, every twentieth for two weeks
(many.py). A violation is printed with the last events before it; it is the same each time its seed runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter

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
                print(outcome, flush=True)
                continue
            run_worlds += 1
            done_days += outcome.days
            totals.update(outcome.counts)
            print(
                f"seed {outcome.seed}: {outcome.days:g} d, {outcome.events} events, {outcome.digest}", file=sys.stderr
            )
    took_s = time.perf_counter() - begun_s
    told = {
        "days": done_days,
        "worlds": run_worlds,
        "violations": bad,
        "days_per_minute": round(done_days / took_s * 60, 1),
    }
    print(json.dumps(told | totals))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
