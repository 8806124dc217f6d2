"""Nanoseconds a sample of filters and windows.

    python -m benchmarks.kernels [--json FILE]

Series sample at 1 Hz, one after the other, with the default filters (z-score, and limits) and windows of 10 s;
summaries are taken and settled every 4,096 samples, as for a commit. Ticks are apart: they come by the clock. Times
are the best of some runs, since a shared machine only ever adds to them. Beside it: numpy.copy of the same columns,
and River's cheapest comparable detector (`anomaly.GaussianScorer`, learnt and asked once a sample), where River is
installed (`pip install river`; Forebay does not need it). Figures of the JSON file:

    ns_per_sample_256                     1,000 series, batches of 256
    ns_per_sample_B_S                     batches of B, S series
    filters_ns_256, windows_ns_256        its two parts
    settle_ns_per_row, tick_ns_per_series what rounding a summary costs, and what a tick over an open window
    copy_ns_256                           numpy.copy of the three columns
    external_ns_256                       one filter in a pass of its own (`generic_pass`), called from Python
    river_ns, ratio_river                 River, and how often ours goes into it; left out without River
    first_import_s, next_import_s         compiling the kernels, and loading what was compiled
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import harness
from devices.model import SECOND_NS, SUMMARY_DTYPE, SampleBatch, SeriesSpec
from edge.filters import Filters
from edge.kernels import backend, detect
from edge.kernels.settle import settle_entry
from edge.windows import Windows

TAKE_SAMPLES = 4_096
BATCHES = (1, 16, 256, 4096)
SERIES = (1, 1_000, 100_000)
FILTERS: dict[str, dict[str, Any]] = {"zscore": {}, "range": {"low": -100.0, "high": 100.0}}


def spec(index: int) -> SeriesSpec:
    return SeriesSpec(f"device-{index // 10}", f"channel-{index % 10}", "temperature", "°C", filters=FILTERS)


def operators(series: int) -> tuple[Filters, Windows]:
    filters, windows = Filters(), Windows()
    for index in range(series):
        filters.add_series(index, spec(index))
        windows.add_series(index, spec(index))
    return filters, windows


def batches(size: int, series: int, samples: int) -> list[SampleBatch]:
    """A stream of so many samples, the series in turn, with readings of two decimals."""
    rng = np.random.default_rng(3)
    place = np.arange(samples)
    column_series = (place % series).astype(np.int32)
    time_ns = (place // series) * SECOND_NS + column_series
    value = np.round(20.0 + rng.normal(0.0, 0.5, samples), 2)
    quality = np.zeros(samples, np.uint8)
    parts = [slice(begin, begin + size) for begin in range(0, samples, size)]
    return [SampleBatch(column_series[part], time_ns[part], value[part], quality[part]) for part in parts]


def best(runs: int, work: Callable[[], Callable[[], object]]) -> float:
    """Seconds of the fastest run; `work()` makes ready, outside of the time, and gives what is timed."""
    times = []
    for _ in range(runs):
        ready = work()
        gc.disable()
        began = time.perf_counter()
        ready()
        times.append(time.perf_counter() - began)
        gc.enable()
    return min(times)


class Spine:
    """What the pump does with a stream, over so many series: filters, windows, and a take each TAKE_SAMPLES."""

    def __init__(self, series: int, *, detecting: bool = True, folding: bool = True) -> None:
        self._filters, self._windows = operators(series)
        self._blank = self._filters.snapshot(), self._windows.snapshot()
        self._detecting, self._folding = detecting, folding

    def ns(self, runs: int, stream: list[SampleBatch], untimed: list[SampleBatch]) -> float:
        """Nanoseconds a sample of `stream`, after `untimed` has touched every state once."""

        def work() -> Callable[[], object]:
            self._filters.restore(self._blank[0])
            self._windows.restore(self._blank[1])
            self._run(untimed)
            return lambda: self._run(stream)

        return best(runs, work) / sum(map(len, stream)) * 1e9

    def _run(self, stream: list[SampleBatch]) -> None:
        since = 0
        for batch in stream:
            if self._detecting:
                self._filters.run(batch)
            if self._folding:
                self._windows.run(batch)
                since += len(batch)
                if since >= TAKE_SAMPLES:
                    since = 0
                    self._windows.take()


def tick_ns(series: int = 1_000, ticks: int = 100) -> float:
    """Nanoseconds a series of a tick that closes nothing, while every series has an open window."""
    _, windows = operators(series)
    windows.run(batches(series, series, series)[0])

    def tick_all() -> None:
        for _ in range(ticks):
            windows.tick(0)

    return best(5, lambda: tick_all) / series / ticks * 1e9


def settle_ns(rows: int = 10_000) -> float:
    made = np.zeros(rows, SUMMARY_DTYPE)
    rng = np.random.default_rng(3)
    for name in ("first", "last", "min", "max"):
        made[name] = np.round(rng.normal(20.0, 0.5, rows), 2)
    made["mean"] = made["stddev"] = rng.normal(20.0, 0.5, rows)
    return best(20, lambda: lambda: settle_entry(made)) / rows * 1e9


def external_ns(stream: list[SampleBatch], series: int) -> float:
    """The z-score as if it came from another package: in a pass of its own."""
    zscore = detect.FUSED[detect.ZSCORE]
    call = detect.generic_pass(zscore, detect.DETECTORS)
    params_dtype, state_dtype = detect.generic_dtypes(zscore)
    params = np.zeros(series, params_dtype)
    params["enabled"] = 1
    params["filter"] = zscore.params_of(zscore.Options(), spec(0))
    events = np.zeros(64, detect.EVENT_DTYPE)

    def work() -> Callable[[], object]:
        state = np.zeros(series, state_dtype)
        return lambda: [call(b.series, b.time_ns, b.value, 0, params, state, events) for b in stream]

    return best(5, work) / sum(map(len, stream)) * 1e9


def river_ns(samples: int) -> float | None:
    """River's cheapest detector of the kind, one sample at a time, which is how it works; None without River."""
    if importlib.util.find_spec("river") is None:
        return None
    anomaly = importlib.import_module("river.anomaly")
    values = np.round(np.random.default_rng(3).normal(20.0, 0.5, samples), 2).tolist()

    def work() -> Callable[[], object]:
        scorer = anomaly.GaussianScorer(window_size=None, grace_period=100)

        def ready() -> None:
            for value in values:
                scorer.score_one(None, value)
                scorer.learn_one(None, value)

        return ready

    return best(3, work) / samples * 1e9


def import_s() -> tuple[float, float]:
    """Seconds until a new process has compiled the kernels, and until the next one has loaded them."""
    with tempfile.TemporaryDirectory() as folder:
        timed = (
            "import time, pathlib, edge.kernels as k; began = time.perf_counter(); "
            f"k.cache_folders = lambda: [pathlib.Path({folder!r})]; "
            "import edge.kernels.detect, edge.kernels.window, edge.kernels.settle; print(time.perf_counter() - began)"
        )
        times = [
            float(subprocess.run([sys.executable, "-c", timed], capture_output=True, check=True, text=True).stdout)
            for _ in range(2)
        ]
    return times[0], times[1]


def run(quick: bool = False) -> dict[str, float]:
    """The figures that the module's docstring names. quick: fewer samples, up to 1,000 series, no compiling."""
    figures: dict[str, float] = {}
    runs = 3 if quick else 5
    for series in SERIES[:2] if quick else SERIES:
        spine = Spine(series)
        for size in BATCHES:
            samples = max(20 * series, min(size * 2_000, 20_000 if quick else 400_000))
            stream = batches(size, series, samples)
            untimed = -(-2 * series // size)
            figures[f"ns_per_sample_{size}_{series}"] = spine.ns(runs, stream[untimed:], stream[:untimed])
    figures["ns_per_sample_256"] = figures["ns_per_sample_256_1000"]

    stream = batches(256, 1_000, 20_480 if quick else 204_800)
    total = sum(map(len, stream))
    figures["filters_ns_256"] = Spine(1_000, folding=False).ns(runs, stream[8:], stream[:8])
    figures["windows_ns_256"] = Spine(1_000, detecting=False).ns(runs, stream[8:], stream[:8])
    copying_s = best(5, lambda: lambda: [(np.copy(b.series), np.copy(b.time_ns), np.copy(b.value)) for b in stream])
    figures["copy_ns_256"] = copying_s / total * 1e9
    figures["settle_ns_per_row"] = settle_ns()
    figures["tick_ns_per_series"] = tick_ns()
    if not quick:
        figures["external_ns_256"] = external_ns(stream, 1_000)
        if backend == "numba":
            figures["first_import_s"], figures["next_import_s"] = import_s()
    river = river_ns(2_000 if quick else 50_000)
    if river is not None:
        figures["river_ns"] = river
        figures["ratio_river"] = river / figures["ns_per_sample_256"]
    return figures


def main() -> None:
    options = harness.parser(__doc__).parse_args()
    figures = run()
    head = ("series", *(f"batch {size:,}" for size in BATCHES))
    rows = [(f"{n:,}", *(figures[f"ns_per_sample_{size}_{n}"] for size in BATCHES)) for n in SERIES]
    harness.report(f"Kernels ({backend}): ns a sample, filters and windows", [head, *rows], figures, options.json)
    if "river_ns" not in figures:
        print("river: not installed, so not measured (pip install river)")


if __name__ == "__main__":
    main()
