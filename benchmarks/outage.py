"""One gateway through one long outage, on virtual time: `benchmarks/week.py` starts this as a process of its own.

    python -m benchmarks.outage degrade|block|drop_oldest [--days N] [--scale N] [--max-size SIZE] --json FILE

Pump, operators, kernels, store, outbox and uplink are the daemon's own (edge/parts.py); the SQLite file is real, in
/dev/shm. What is not: the intake, in whose place 1,000 polled series hand over columns, four seconds of them at once
while the link is away and one second once it is back; the loop, whose time jumps (simulators/virtual.py); and the
broker and the cloud, which take each frame and answer after 100 ms. What the cloud gets is written
to a file as it comes, and looked at once the gateway has ended, so that memory and CPU are the gateway's.

`--scale 7` divides outage, store and journal by 7: what is kept is then the same share of a seventh of the time.

One reading in each 10 minutes, and of each 10 s once the link is back, is out of range: an alarm.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import struct
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import rss_bytes
from devices.model import SECOND_NS, Floats, Lane, SampleBatch, SeriesSpec
from devices.quantities import Duration, Rate, Size
from devices.wire.frame import Frame, FrameLimits, SummaryBody, decode
from devices.wire.receipt import Receipt, encode_receipt
from devices.wire.receive import Inbound
from devices.wire.topics import parse_correlation
from edge.clock import Clock
from edge.config import (
    ClockConfig,
    EdgeConfig,
    JournalConfig,
    LimitsConfig,
    StatusConfig,
    StoreConfig,
    UplinkConfig,
)
from edge.intake import Drained
from edge.parts import History, Parts
from edge.pump import Pump
from edge.recovery import recover
from edge.storethread import StoreThread
from edge.uplink import Uplink
from simulators.virtual import Thread, VirtualLoop

Policy = Literal["degrade", "block", "drop_oldest"]

GATEWAY = "pump-station-7"
SERIES = 1000
"""Each is read once a second."""
T0_NS = 1_780_000_000 * SECOND_NS
DAY_S = 86_400
WINDOW_S = 10
LEVELS_S = (10, 100, 1_000, 10_000)
"""Resolutions: windows up to so long."""
OUTAGE_BATCH_S, LIVE_BATCH_S = 4, 1
OUTAGE_SPIKE_S, LIVE_SPIKE_S = 600, 10
STORE_CALL_S = 0.002
ANSWER_S = 0.1
"""From the publication to the receipt, on an idle link."""
RECORD = struct.Struct("<I")
SPIKE = 1000.0
"""Out of range: normal readings lie between 50 and 80."""
BINS = 168
"""Parts of the outage for which the kept resolution is told: hours of a week."""


class Sensors:
    """In the intake's place: readings that wait for the pump, at most so many; a poll that finds no room is skipped."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.batch_s, self.spike_s = OUTAGE_BATCH_S, OUTAGE_SPIKE_S
        self.read = self.skipped = 0
        self.is_reading = True
        self.has_stopped = False
        self._waiting: deque[SampleBatch] = deque()
        rng = np.random.default_rng(4)
        levels = 65 + 10 * (rng.random(SERIES) - 0.5)
        self._noise = np.round(levels + rng.normal(0, 0.4, (64, SERIES)), 2)
        self._series = np.tile(np.arange(SERIES, dtype=np.int32), OUTAGE_BATCH_S)
        self._offsets_ns = (np.arange(SERIES * OUTAGE_BATCH_S) * (SECOND_NS // SERIES)).astype(np.int64)

    async def run(self, pump: Pump) -> None:
        """Poll for ever: every second each series."""
        loop, at_s = asyncio.get_running_loop(), 0
        while self.is_reading:
            span_s = self.batch_s
            await asyncio.sleep(at_s + span_s - loop.time())
            if pump.room.blocked or len(self._waiting) >= 4:
                self.skipped += span_s * SERIES
            else:
                self._waiting.append(self._readings(at_s, span_s))
                self.read += span_s * SERIES
                self.ready.set()
            at_s += span_s

    def _readings(self, at_s: int, span_s: int) -> SampleBatch:
        n = span_s * SERIES
        rows = [(at_s + second) * 7 % len(self._noise) for second in range(span_s)]
        daily = 3 * np.sin(2 * np.pi * at_s / DAY_S)
        value: Floats = np.round(self._noise[rows].ravel() + daily, 2)
        if at_s % self.spike_s == 0:
            value[0] = SPIKE
        time_ns = T0_NS + at_s * SECOND_NS + self._offsets_ns[:n]
        return SampleBatch(self._series[:n], time_ns, value, np.zeros(n, np.uint8))

    def drain(self, max_samples: int) -> Drained:
        if not self._waiting or len(self._waiting[0]) > max_samples:
            return Drained(SampleBatch.empty(), np.empty(0, np.int64), {}, [], [], {})
        batch = self._waiting.popleft()
        if self._waiting:
            self.ready.set()
        return Drained(batch, batch.time_ns.copy(), {}, [], [], {})


class Cloud:
    """Broker, ingester and sink in one: writes down what comes, and answers a little later."""

    def __init__(self, file: BinaryIO) -> None:
        self.connected = False
        self.uplink: Uplink
        self.seen: set[int] = set()
        self.repeated = 0
        self.bytes = 0
        self.live_s: list[float] = []
        self.alarm_s: list[float] = []
        """From a frame's making to its receipt, of those made since the link is back."""
        self.back_ns = 0
        self._file = file

    def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> int | None:
        if not self.connected or correlation is None:
            return None
        seq = parse_correlation(correlation).seq
        row = self.uplink.outbox.find(seq)
        assert row is not None
        self.repeated += seq in self.seen
        self.seen.add(seq)
        self.bytes += len(payload)
        self._file.write(RECORD.pack(len(payload)))
        self._file.write(payload)
        loop = asyncio.get_running_loop()
        if row.created_ns >= self.back_ns and row.lane in (Lane.ALARM, Lane.LIVE):
            latency_s = loop.time() + ANSWER_S - (row.created_ns - T0_NS) / 1e9
            (self.alarm_s if row.lane == Lane.ALARM else self.live_s).append(latency_s)
        loop.call_later(ANSWER_S, self._receipt, correlation)
        return len(self.seen)

    def _receipt(self, correlation: bytes) -> None:
        answer = encode_receipt(Receipt())
        self.uplink.on_messages(
            Inbound(1, False, topics=[""], payloads=[answer], packet_ids=[0], dups=[False], correlations=[correlation])
        )


class Gateway:
    """The daemon's parts, with these sensors and this cloud."""

    def __init__(self, config: EdgeConfig, cloud: Cloud) -> None:
        loop = asyncio.get_running_loop()
        self.sensors, self.cloud = Sensors(), cloud
        history = History()
        recovered = recover(Path(config.store.path), config.store.max_size, history)
        self.operators, self.file = recovered.operators, recovered.store
        executor: Any = Thread(lambda _: True, lambda: STORE_CALL_S)
        clock = Clock(lambda: T0_NS + round(loop.time() * 1e9), lambda: round(loop.time() * 1e9))
        parts = Parts(config, recovered, history, StoreThread(recovered.store, executor), clock)
        for n in range(SERIES):
            filters = {"range": {"low": 0.0, "high": 100.0}}
            parts.registry.resolve(
                SeriesSpec(f"press-{n // 10:02}", f"c{n % 10}", "temperature", "°C", filters=filters)
            )
        self.uplink, self.outbox = parts.uplink, parts.uplink.outbox
        link: Any = cloud
        self.uplink.link, cloud.uplink = link, self.uplink
        intake: Any = self.sensors
        self.pump = parts.begin(config, intake)


def configured(folder: Path, policy: Policy, scale: int, max_size: int, max_rate: int) -> EdgeConfig:
    """As a user would have it, but for the scale, and a report each minute."""
    journal = JournalConfig()
    return EdgeConfig(
        gateway=GATEWAY,
        heartbeat=Duration.parse("1 min"),
        ledger=Duration.parse("1 min"),
        uplink=UplinkConfig("mqtt://cloud", max_rate=Rate(max_rate)),
        store=StoreConfig(str(folder / "edge.db"), Size(max_size // scale), policy),
        journal=JournalConfig(Duration(journal.keep.ns // scale), Size(journal.max_size // scale)),
        clock=ClockConfig(),
        limits=LimitsConfig(series=SERIES),
        status=StatusConfig(),
        source={},
    )


class Course(msgspec.Struct):
    """How it went, sampled: parallel lists."""

    at_s: list[float] = []
    used_bytes: list[int] = []
    journal_bytes: list[int] = []
    outbox_bytes: list[int] = []
    frames: list[int] = []
    rss_bytes: list[int] = []

    def note(self, gateway: Gateway) -> None:
        usage = gateway.pump.committer.committed.usage
        self.at_s.append(asyncio.get_running_loop().time())
        self.used_bytes.append(usage.used_bytes)
        self.journal_bytes.append(usage.journal_bytes)
        self.outbox_bytes.append(gateway.outbox.size_bytes)
        self.frames.append(len(gateway.outbox))
        self.rss_bytes.append(rss_bytes(os.getpid()))


class Outcome(msgspec.Struct):
    """What is known at the end."""

    policy: str
    days: float
    scale: int
    limit_bytes: int
    max_rate: int
    course: Course
    kept: list[list[float]]
    """By part of the outage (BINS of them): the share of its series and time at each of LEVELS_S, then longer."""
    holes_s: int
    """Series times seconds of the outage that no window covers."""
    overlaps_s: int
    wrong_counts: int
    """Windows whose count is not one a second."""
    samples_read: int
    samples_skipped: int
    samples_stored: int
    samples_dropped: int
    samples_cloud: int
    alarms_cloud: int
    ledger_balances: bool
    outage_wall_s: float
    outage_cpu_s: float
    drain_s: float
    drain_cpu_s: float
    drained_bytes: int
    live_p99_s: float
    alarm_p99_s: float
    repeated_frames: int
    peak_rss_bytes: int
    file_bytes: int


def outage_of(days: float) -> int:
    """In s, of whole merged windows."""
    return round(days * DAY_S / 1000) * 1000


async def live(gateway: Gateway, days: float, course: Course) -> dict[str, float]:
    """The outage, the return, the drain, and an orderly end."""
    loop, cloud = asyncio.get_running_loop(), gateway.cloud
    outage_s = outage_of(days)
    running = [loop.create_task(gateway.pump.run()), loop.create_task(gateway.uplink.run())]
    reading = loop.create_task(gateway.sensors.run(gateway.pump))
    begun_s, begun_cpu_s = time.monotonic(), time.process_time()
    while loop.time() < outage_s:
        course.note(gateway)
        await asyncio.sleep(min(outage_s / 1000, outage_s - loop.time()))
    figures = {
        "outage_s": outage_s,
        "outage_wall_s": time.monotonic() - begun_s,
        "outage_cpu_s": time.process_time() - begun_cpu_s,
    }
    course.note(gateway)
    begun_cpu_s = time.process_time()
    cloud.back_ns = T0_NS + round(loop.time() * 1e9)
    gateway.sensors.batch_s, gateway.sensors.spike_s = LIVE_BATCH_S, LIVE_SPIKE_S
    cloud.connected = True
    gateway.uplink.on_connect(False)
    while any(row.created_ns < cloud.back_ns or row.lane == Lane.BACKFILL for row in gateway.outbox.staying()):
        course.note(gateway)
        await asyncio.sleep(5)
    course.note(gateway)
    figures["drain_s"] = loop.time() - outage_s
    figures["drain_cpu_s"] = time.process_time() - begun_cpu_s
    figures["drained_bytes"] = cloud.bytes
    gateway.sensors.is_reading = False
    await reading
    gateway.pump.stop(60)
    await running[0]
    running[1].cancel()
    await asyncio.wait(running)
    return figures


def frames_of(path: Path) -> Iterator[Frame]:
    with path.open("rb") as file:
        while head := file.read(RECORD.size):
            yield decode(file.read(RECORD.unpack(head)[0]), FrameLimits())


def kept(path: Path, outage_s: int) -> dict[str, Any]:
    """What the cloud holds of the outage: which second of which series lies in how many windows, and of what length."""
    slots = outage_s // WINDOW_S
    edges = np.zeros((SERIES, slots + 1), np.int16)
    shares = np.zeros((BINS, len(LEVELS_S) + 1))
    samples = wrong = alarms = 0
    done: set[int] = set()
    for frame in frames_of(path):
        if frame.header.seq in done:
            continue
        done.add(frame.header.seq)
        if not isinstance(frame.body, SummaryBody):
            alarms += len(getattr(frame.body, "alarms", ()))
            continue
        rows: NDArray[Any] = frame.body.rows
        samples += int(rows["count"].sum())
        wrong += int((rows["count"] * SECOND_NS != rows["span_ns"]).sum())
        table = np.array([int(s.device[6:]) * 10 + int(s.channel[1:]) for s in frame.series])
        series = table[rows["series"]]
        first = (rows["time_ns"] - T0_NS) // (WINDOW_S * SECOND_NS)
        last = np.minimum(first + rows["span_ns"] // (WINDOW_S * SECOND_NS), slots)
        inside = first < slots
        np.add.at(edges, (series[inside], first[inside]), 1)
        np.subtract.at(edges, (series[inside], last[inside]), 1)
        level = np.searchsorted(LEVELS_S, rows["span_ns"][inside] // SECOND_NS)
        np.add.at(shares, (first[inside] * BINS // slots, level), (last - first)[inside])
    covered = np.cumsum(edges, axis=1, dtype=np.int16)[:, :slots]
    return {
        "holes_s": int((covered == 0).sum()) * WINDOW_S,
        "overlaps_s": int((covered > 1).sum()) * WINDOW_S,
        "wrong_counts": wrong,
        "samples_cloud": samples,
        "alarms_cloud": alarms,
        "kept": (shares * BINS / (slots * SERIES)).tolist(),
    }


def p99_s(latencies_s: list[float]) -> float:
    return float(np.quantile(latencies_s, 0.99)) if latencies_s else float("nan")


def run(folder: Path, policy: Policy, days: float, scale: int, max_size: int, max_rate: int) -> Outcome:
    """One outage in `folder`, which should be in memory."""
    received, course = folder / "received", Course()
    loop = VirtualLoop()
    with received.open("wb") as file:

        async def story() -> tuple[Gateway, dict[str, float]]:
            gateway = Gateway(configured(folder, policy, scale, max_size, max_rate), Cloud(file))
            return gateway, await live(gateway, days / scale, course)

        gateway, figures = loop.run_until_complete(story())
    loop.close()
    ledger, cloud = gateway.operators.ledger, gateway.cloud
    peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gateway.file.close()
    outage_s = int(figures.pop("outage_s"))
    return msgspec.convert(
        {
            "policy": policy,
            "days": days,
            "scale": scale,
            "limit_bytes": max_size,
            "max_rate": max_rate,
            "course": course,
            "samples_read": gateway.sensors.read,
            "samples_skipped": gateway.sensors.skipped,
            "samples_stored": int(ledger.stored.sum()),
            "samples_dropped": int(ledger.dropped.sum()),
            "ledger_balances": not ledger.imbalance(gateway.pump.waiting()).any(),
            "live_p99_s": p99_s(cloud.live_s),
            "alarm_p99_s": p99_s(cloud.alarm_s),
            "repeated_frames": cloud.repeated,
            "peak_rss_bytes": peak_rss_bytes,
            "file_bytes": (folder / "edge.db").stat().st_size,
            **figures,
            **kept(received, outage_s),
        },
        Outcome,
        strict=False,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("policy", choices=get_args(Policy))
    options.add_argument("--days", type=float, default=7.0)
    options.add_argument("--scale", type=int, default=1)
    options.add_argument("--max-size", default="256 MiB")
    options.add_argument("--max-rate", default="64 KiB/s")
    options.add_argument("--json", type=Path, required=True)
    chosen = options.parse_args()
    logging.disable(logging.CRITICAL)  # thousands of lines, which the daemon would have a week for
    with tempfile.TemporaryDirectory(prefix="forebay-outage-", dir="/dev/shm") as folder:
        outcome = run(
            Path(folder),
            chosen.policy,
            chosen.days,
            chosen.scale,
            Size.parse(chosen.max_size),
            Rate.parse(chosen.max_rate),
        )
    chosen.json.write_bytes(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()
