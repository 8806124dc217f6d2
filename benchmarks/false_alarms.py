"""How often the default filter is wrong: false alarms on quiet simulated channels, and spikes that it finds.

    python -m benchmarks.false_alarms [--channel-days 1000] [--threshold 8]

Every channel-day is a signal of its own, seeded by its number. Signals have noise of standard deviation 1; `found` is
the share of single-sample spikes of 12 of these that open an alarm at that very sample.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from devices.model import SECOND_NS, Floats, SampleBatch, SeriesSpec
from edge.filters import Filters

DAY_S = 86_400
SPIKE = 12.0

Signal = Callable[[np.random.Generator, Floats], Floats]
"""(random numbers, seconds since the start) -> values"""


def gaussian(rng: np.random.Generator, t_s: Floats) -> Floats:
    return rng.normal(50.0, 1.0, len(t_s))


def daily(rng: np.random.Generator, t_s: Floats) -> Floats:
    """A daily cycle of 40 deviations from top to bottom."""
    return gaussian(rng, t_s) + 20.0 * np.sin(2 * np.pi * (t_s / DAY_S + rng.random()))


def rounded(rng: np.random.Generator, t_s: Floats) -> Floats:
    """The daily cycle, read by a sensor that resolves 2 deviations: most readings repeat."""
    return np.round(daily(rng, t_s) / 2.0) * 2.0


def coarse(rng: np.random.Generator, t_s: Floats) -> Floats:
    """Read by a sensor that resolves 10 deviations: it hardly ever moves."""
    return np.round(daily(rng, t_s) / 10.0) * 10.0


def _slow_noise(rng: np.random.Generator, n: int, step_s: float, correlation_s: float) -> Floats:
    """First-order autoregressive noise of deviation 1, by blocks that keep the recursion short."""
    keep = np.exp(-step_s / correlation_s)
    shocks = rng.normal(0.0, np.sqrt(1 - keep * keep), n)
    taps = keep ** np.arange(int(8 * correlation_s / step_s) + 1)
    size = 1 << (n + len(taps)).bit_length()
    noise: Floats = np.fft.irfft(np.fft.rfft(shocks, size) * np.fft.rfft(taps, size), size)[:n]
    return noise


def wandering(rng: np.random.Generator, t_s: Floats) -> Floats:
    """Half of the noise is slow: it wanders with a correlation time of 60 s."""
    slow = _slow_noise(rng, len(t_s), float(t_s[1] - t_s[0]), 60.0)
    noise: Floats = gaussian(rng, t_s) * 0.5**0.5 + slow * 0.5**0.5
    return noise


def loaded(rng: np.random.Generator, t_s: Floats) -> Floats:
    """Load steps between three levels 20 deviations apart, every 10 minutes on average."""
    changes = rng.random(len(t_s)) < (t_s[1] - t_s[0]) / 600.0
    levels = rng.integers(0, 3, len(t_s))
    at = np.maximum.accumulate(np.where(changes, np.arange(len(t_s)), 0))
    return gaussian(rng, t_s) + 20.0 * levels[at]


def loaded_slowly(rng: np.random.Generator, t_s: Floats) -> Floats:
    """The same, as a temperature follows it: with a time constant of 2 minutes."""
    level = loaded(rng, t_s) - gaussian(rng, t_s)
    step_s = float(t_s[1] - t_s[0])
    taps = np.exp(-np.arange(int(960 / step_s) + 1) * step_s / 120.0)
    size = 1 << (len(t_s) + len(taps)).bit_length()
    smooth = np.fft.irfft(np.fft.rfft(level, size) * np.fft.rfft(taps / taps.sum(), size), size)[: len(t_s)]
    return gaussian(rng, t_s) + smooth


SIGNALS: list[tuple[Signal, float, float]] = [
    (gaussian, 1.0, 300.0),
    (gaussian, 60.0, 300.0),
    (gaussian, 0.1, 300.0),
    (daily, 1.0, 300.0),
    (daily, 60.0, 300.0),
    (rounded, 1.0, 300.0),
    (coarse, 1.0, 300.0),
    (wandering, 1.0, 300.0),
    (loaded, 1.0, 300.0),
    (loaded, 1.0, 21600.0),
    (loaded_slowly, 1.0, 300.0),
    (loaded_slowly, 1.0, 21600.0),
]
"""(signal, seconds between samples, warm-up in seconds)"""


def judge(signal: Signal, step_s: float, warm_up_s: float, channel_days: int, threshold: float) -> tuple[int, int, int]:
    """-> (false alarms, spikes, spikes found)"""
    false_alarms = spikes = found = 0
    n = int(DAY_S / step_s)
    t_s: Floats = np.arange(n) * np.float64(step_s)
    time_ns = (t_s * SECOND_NS).astype(np.int64)
    options = {"threshold": threshold, "warm_up_s": warm_up_s}
    for day in range(channel_days):
        filters = Filters()
        filters.add_series(0, SeriesSpec("device", "channel", "level", "", filters={"zscore": options}))
        rng = np.random.default_rng([day, int(step_s * 1000)])
        value = signal(rng, t_s)
        at = np.arange(n // 2, n, n // 20)[1:]
        value[at] += SPIKE * np.where(rng.random(len(at)) < 0.5, -1.0, 1.0) if day % 4 == 0 else 0.0
        batch = SampleBatch(np.zeros(n, np.int32), time_ns, value, np.zeros(n, np.uint8))
        events = filters.run(batch)
        opened = events["position"][events["open"]]
        if day % 4 == 0:
            spikes += len(at)
            found += len(np.intersect1d(opened, at))
            opened = np.setdiff1d(opened, at)
        false_alarms += len(opened)
    return false_alarms, spikes, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channel-days", type=int, default=1000)
    parser.add_argument("--threshold", type=float, default=8.0)
    chosen = parser.parse_args()
    print(f"{'signal':15} {'every':>7} {'warm-up':>8} {'days':>6} {'false':>6} {'found':>7}")
    for signal, step_s, warm_up_s in SIGNALS:
        days = chosen.channel_days if step_s >= 1 else max(1, chosen.channel_days // 10)
        false_alarms, spikes, found = judge(signal, step_s, warm_up_s, days, chosen.threshold)
        share = f"{found / spikes:7.1%}"
        print(f"{signal.__name__:15} {step_s:5g} s {warm_up_s:6g} s {days:6} {false_alarms:6} {share}", flush=True)


if __name__ == "__main__":
    main()
