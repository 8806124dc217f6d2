"""./task fuzz TARGET [RUNS]: a coverage-guided fuzzer (atheris, libFuzzer) on one target.

It begins with the seeds of the target, the inputs that once found something, and what earlier runs of it
found worth keeping, in ~/.cache/forebay/fuzz (or $FOREBAY_CACHE/fuzz). An input that finds something is
written to tests/vectors/fuzz/TARGET/, where tests/fuzz/test_fuzz.py replays it ever after. At the end one line
of JSON says how many inputs ran, and how much memory they took.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import warnings
from collections import deque
from pathlib import Path

try:
    import atheris
    from atheris.import_hook import HookManager
except ImportError:
    sys.exit("the fuzzer needs atheris, which has wheels for Linux on x86-64, Python 3.11 to 3.13: pip install atheris")

PACKAGES = {"devices", "cloud", "edge", "paho"}
COMPARES_ARRAYS = {"frame", "body", "receipt", "lines", "intake"}
"""Targets in which comparisons are not traced: of each one of arrays atheris 3.0 keeps the result for ever."""

with HookManager(PACKAGES, set(), True, trace_dataflow=not COMPARES_ARRAYS.intersection(sys.argv)):
    from tests.fuzz import memory
    from tests.fuzz.targets import FOUND, TARGETS, Target, found

LOOK_EVERY = 2000
"""Inputs between two looks at the memory."""
INPUT_TIMEOUT_S = 20
UNTIL_STEADY = 50_000
"""Inputs until the baseline is taken: caches are full, and what is imported late is there."""


class Runner:
    """Runs inputs of one target, and watches the memory that they take."""

    def __init__(self, name: str, runs: int, report: Path | None) -> None:
        self._name, self._target = name, TARGETS[name]
        self._runs, self._report = runs, report
        self._inputs = 0
        self._recent: deque[bytes] = deque(maxlen=LOOK_EVERY)
        self._begun_s = time.monotonic()
        self._baseline_bytes = 0
        self._before_bytes = memory.resident_bytes()
        self._most_bytes = 0
        memory.forget_peak()

    def one(self, data: bytes) -> None:
        self._inputs += 1
        self._recent.append(data)
        self._target.run(data)
        if self._inputs % LOOK_EVERY == 0:
            self._look()
        if self._inputs == self._runs:
            self.say()

    def _look(self) -> None:
        """Every input since the last look is in the peak; more than the limit is as bad as a crash."""
        took_bytes = memory.peak_bytes() - self._before_bytes
        self._most_bytes = max(self._most_bytes, took_bytes)
        if took_bytes > memory.LIMIT_BYTES:
            self._find_greedy()
        self._before_bytes = memory.resident_bytes()
        memory.forget_peak()
        if self._inputs <= UNTIL_STEADY:
            self._baseline_bytes = self._before_bytes

    def _find_greedy(self) -> None:
        """Run the recent inputs again, one by one, and keep the one that takes too much."""
        for data in self._recent:
            before_bytes = memory.resident_bytes()
            memory.forget_peak()
            self._target.run(data)
            took_bytes = memory.peak_bytes() - before_bytes
            if took_bytes > memory.LIMIT_BYTES:
                path = FOUND / self._name / f"memory-{hashlib.sha1(data).hexdigest()[:16]}"
                path.write_bytes(data)
                raise MemoryError(f"one input takes {took_bytes >> 20} MiB: {path}")
        print(f"{LOOK_EVERY} inputs together took more than {memory.LIMIT_BYTES >> 20} MiB", file=sys.stderr)

    def say(self) -> None:
        seconds = time.monotonic() - self._begun_s
        line = json.dumps(
            {
                "target": self._name,
                "inputs": self._inputs,
                "seconds": round(seconds),
                "inputs_per_s": round(self._inputs / seconds),
                "peak_mb": round(self._most_bytes / 1e6, 1),
                "growth_mb": round((memory.resident_bytes() - self._baseline_bytes) / 1e6, 1),
            }
        )
        print(line, flush=True)
        if self._report is not None:
            with self._report.open("a") as file:
                file.write(line + "\n")


def write_seeds(target: Target, name: str, folder: Path) -> None:
    """Seeds and found inputs as files, which is how libFuzzer takes them."""
    for data in (*target.seeds(), *(path.read_bytes() for path in found(name))):
        (folder / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(prog="./task fuzz", description="Fuzz one target, with coverage to guide it.")
    parser.add_argument("target", choices=list(TARGETS), help="what tests/fuzz/targets.py describes")
    parser.add_argument("runs", nargs="?", type=int, default=1_000_000, help="inputs (default: 1,000,000)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="append the line of JSON to FILE, too")
    arguments = parser.parse_args()
    name, target = arguments.target, TARGETS[arguments.target]
    cache = Path(os.environ.get("FOREBAY_CACHE") or Path.home() / ".cache" / "forebay") / "fuzz" / name
    cache.mkdir(parents=True, exist_ok=True)
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    write_seeds(target, name, cache)
    warnings.simplefilter("error")
    runner = Runner(name, arguments.runs, arguments.report)
    options = {
        "runs": arguments.runs,
        "max_len": target.max_bytes,
        "timeout": INPUT_TIMEOUT_S,
        "rss_limit_mb": 0,  # the runner watches the memory, more closely
        "artifact_prefix": f"{FOUND / name}/",
        "print_final_stats": 1,
    }
    atheris.Setup([sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(cache)], runner.one)
    atheris.Fuzz()


main()
