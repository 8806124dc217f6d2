"""Bytes and nanoseconds of frames.

    python -m benchmarks.frames [--json FILE]

Series are made to look like machines: levels with inertia, sensor noise, the decimals of their data
sheets, counters, stamps in milliseconds that jitter by a few. Times are the best of many runs, since
a shared machine only ever adds to them. The same frame is decoded again and again, so that its table of
series is one that came before; what a new one costs is in docs/decisions/0004-columns.md. Figures of the
JSON file:

    bytes_per_sample, encode_ns, decode_ns      a raw frame of 4,096 samples of 50 series, 1 Hz
    bytes_per_sample_arrival                    the same, stamped on arrival to the nanosecond
    bytes_per_sample_float64                    the same, values with all their digits
    bytes_per_summary_600x1, _50x20             a whole frame of summaries over its rows
    encode_ns_per_summary_..., decode_ns_per_summary_...
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import harness
from devices.model import SECOND_NS, SUMMARY_DTYPE, Floats, Lane, SampleBatch
from devices.wire.frame import Frame, FrameLimits, Header, RawBody, SummaryBody, WireSeries, decode, encode

START_NS = 1_780_000_000 * SECOND_NS
WINDOW_SAMPLES = 10
RAW_ROWS = 4_096
HEADER = Header(gateway="pump-station-7", epoch=0x1F3A5C7E9B2D4F60, seq=48_211, lane=Lane.LIVE, created_ns=START_NS)

CHANNELS = (
    # channel, quantity, unit, decimals, level, drift a second, noise
    ("temperature", "temperature", "°C", 2, 61.0, 0.01, 0.03),
    ("pressure", "pressure", "bar", 3, 5.2, 0.002, 0.012),
    ("vibration", "velocity", "mm/s", 3, 2.4, 0.01, 0.15),
)
MORE_CHANNELS = (
    *CHANNELS,
    ("current", "current", "A", 1, 14.0, 0.05, 0.2),
    ("humidity", "humidity", "%", 1, 45.0, 0.02, 0.1),
)


def signal(rng: np.random.Generator, channel: tuple[Any, ...], n: int) -> Floats:
    """n readings at 1 Hz, not yet rounded."""
    _, _, _, _, level, drift, noise = channel
    level *= rng.uniform(0.8, 1.2)
    readings: Floats = level + np.cumsum(rng.normal(0, drift, n)) + rng.normal(0, noise, n)
    return readings


def raw_frame(stamps: str = "device", digits: bool = False, n: int = RAW_ROWS) -> Frame:
    """n samples of 50 series of 10 machines, in order of arrival."""
    rng = np.random.default_rng(8)
    table = [
        WireSeries(f"press-{machine + 1:03}", channel, quantity, unit)
        for machine in range(10)
        for channel, quantity, unit, *_ in MORE_CHANNELS
    ]
    rounds = -(-n // len(table))
    columns = [signal(rng, MORE_CHANNELS[i % 5], rounds) for i in range(len(table))]
    if not digits:
        columns = [np.round(values, MORE_CHANNELS[i % 5][3]) for i, values in enumerate(columns)]
    tick = START_NS + np.arange(rounds) * SECOND_NS
    jitter_ms = rng.integers(0, 4, (rounds, 10)).repeat(5, axis=1)  # one message of a machine, one stamp
    time_ns = tick[:, None] + jitter_ms * 1_000_000
    if stamps == "arrival":
        time_ns = time_ns + rng.integers(0, 1_000_000, time_ns.shape)
    return Frame(
        HEADER,
        table,
        RawBody(
            SampleBatch(
                series=np.tile(np.arange(len(table), dtype=np.int32), rounds)[:n],
                time_ns=time_ns.reshape(-1)[:n],
                value=np.stack(columns, axis=1).reshape(-1)[:n],
                quality=np.zeros(n, dtype=np.uint8),
            )
        ),
    )


def summary_frame(series: int, windows: int) -> Frame:
    """Windows of 10 s of `series` series, 3 of each machine."""
    rng = np.random.default_rng(9)
    table, rows = [], []
    for i in range(series):
        channel = CHANNELS[i % 3]
        table.append(WireSeries(f"press-{i // 3 + 1:03}", *channel[:3]))
        samples = np.round(signal(rng, channel, windows * WINDOW_SAMPLES), channel[3]).reshape(windows, -1)
        for window, readings in enumerate(samples):
            rows.append(summarise(i, START_NS + window * WINDOW_SAMPLES * SECOND_NS, readings, channel[3]))
    rows.sort(key=lambda row: row["time_ns"])
    return Frame(HEADER, table, SummaryBody(np.array(rows, dtype=SUMMARY_DTYPE)))


def summarise(series: int, time_ns: int, readings: Floats, decimals: int) -> NDArray[Any]:
    """One row, rounded as the edge does it; one window in twenty lacks a reading."""
    if (time_ns // SECOND_NS // WINDOW_SAMPLES + series * 7) % 20 == 0:
        readings = readings[:-1]
    row = np.zeros((), dtype=SUMMARY_DTYPE)
    row["series"], row["time_ns"], row["span_ns"] = series, time_ns, WINDOW_SAMPLES * SECOND_NS
    row["count"], row["first"], row["last"] = len(readings), readings[0], readings[-1]
    row["min"], row["max"] = readings.min(), readings.max()
    row["mean"], row["stddev"] = round(readings.mean(), decimals + 3), round(readings.std(), decimals + 2)
    row["increase"] = np.nan
    return row


def best_ns(run: Callable[[], object], runs: int) -> int:
    """The shortest of many runs."""
    shortest = 1 << 62
    for _ in range(runs):
        begun = time.perf_counter_ns()
        run()
        shortest = min(shortest, time.perf_counter_ns() - begun)
    return shortest


def figures_of(frame: Frame, rows: int, runs: int) -> tuple[float, float, float]:
    """Bytes, nanoseconds to encode and nanoseconds to decode, all for one row."""
    payload = encode(frame)
    limits = FrameLimits()
    encode_ns = best_ns(lambda: encode(frame), runs)
    decode_ns = best_ns(lambda: decode(payload, limits), runs)
    return len(payload) / rows, encode_ns / rows, decode_ns / rows


def measure() -> dict[str, float]:
    """All figures; see the module's docstring."""
    figures: dict[str, float] = {}
    for suffix, frame in (
        ("", raw_frame()),
        ("_arrival", raw_frame(stamps="arrival")),
        ("_float64", raw_frame(digits=True)),
    ):
        size, encode_ns, decode_ns = figures_of(frame, RAW_ROWS, 400)
        figures |= {
            f"bytes_per_sample{suffix}": size,
            f"encode_ns{suffix}": encode_ns,
            f"decode_ns{suffix}": decode_ns,
        }
    for series, windows in ((600, 1), (50, 20)):
        suffix = f"_per_summary_{series}x{windows}"
        size, encode_ns, decode_ns = figures_of(summary_frame(series, windows), series * windows, 100)
        figures |= {f"bytes{suffix}": size, f"encode_ns{suffix}": encode_ns, f"decode_ns{suffix}": decode_ns}
    return figures


def main() -> None:
    options = harness.parser(__doc__).parse_args()
    figures = measure()
    rows: list[tuple[object, ...]] = [("frame", "B/row", "encode ns/row", "decode ns/row")]
    for title, size, suffix in (
        ("raw, 4,096 samples, 50 series", "bytes_per_sample", ""),
        ("  stamped on arrival", "bytes_per_sample_arrival", "_arrival"),
        ("  all digits of a float64", "bytes_per_sample_float64", "_float64"),
        ("summaries, 600 series x 1", "bytes_per_summary_600x1", "_per_summary_600x1"),
        ("summaries, 50 series x 20", "bytes_per_summary_50x20", "_per_summary_50x20"),
    ):
        rows.append((title, figures[size], figures[f"encode_ns{suffix}"], figures[f"decode_ns{suffix}"]))
    harness.report("Frames", rows, figures, options.json)


if __name__ == "__main__":
    main()
