"""A thousand gateways whose broker comes back after an hour.

    ./task bench fleet [--gateways N] [--hour-s S] [--series N] [--max-rate RATE] [--ingesters N] [--json FILE]

Real are mosquitto, `forebay-cloud run`, and InfluxDB 1.8. The gateways are the product's own sessions, uplinks and
outboxes, all on one event loop of this process; in the place of their pumps and stores stand a dictionary of frames and
a commit of nothing 50 ms after there is something to commit. Each gateway has `--hour-s` seconds of windows of 10 s
in frames of a minute, as the edge makes them while its link is away. The gateways look for their broker
with growing waits and full jitter, until it starts. Then each makes a live frame every 10 s
and raises an alarm every 60 s on average, as it did before.

    alarm_p99_s      from the sample to the receipt, of alarms raised while the way was open
    live_p99_s       from the frame's making to the receipt, of frames made while the way was open
    drain_s          from the broker's start to the last receipt of the backlog
    resends          frames published more than once, over frames published
    lines_per_s, influxdb_cpu, ingester_cpu, broker_cpu (cores), write_p99_s, sink_busy (answers 429, 503 and none),
    ingester_rss_mb, broker_rss_mb (peaks), rate_share (the largest share of max_rate that a gateway used)
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Meter, parser, report, rss_bytes
from devices.model import SECOND_NS, SUMMARY_DTYPE, Alarm, Lane, SeriesSpec
from devices.quantities import Rate
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions
from devices.wire.topics import topic
from edge.config import UplinkConfig
from edge.custody import OutboxRow
from edge.outbox import Outbox
from edge.seal import Sealed, Sealer, will
from edge.uplink import Uplink
from simulators.parts import Service, ingester_service, sink_part
from simulators.servers import Broker, free_port

WINDOW_S, FRAME_S = 10, 60
ALARM_EVERY_S = 60.0
COMMIT_GAP_S = 0.05
PATIENCE_S = 1800.0
AWAY_S = 30.0
"""For so long the gateways look for a broker that is not there: their waits have grown by then."""


class Gateway:
    """The uplink of one gateway, over frames in memory."""

    def __init__(self, number: int, broker: str, series: int, max_rate: int) -> None:
        self.name = f"gateway-{number:04}"
        self.epoch = 1_000_000 + number
        self.frames: dict[int, bytes] = {}
        self.sent: dict[int, int] = {}
        """Frame -> how often it was published."""
        self.live_s: list[float] = []
        self.alarm_s: list[float] = []
        self.alarms_raised = self.alarms_receipted = 0
        self.bytes = 0
        self.backlog: set[int] = set()
        self.open_since_s = 0.0
        self._rng = random.Random(number)
        self._specs = [SeriesSpec(f"press-{n // 5}", f"c{n % 5}", "temperature", "°C") for n in range(series)]
        self._sealer = Sealer(self.name, self.epoch, 1, self._specs)
        self._new: list[Sealed] = []
        self._made_open: set[int] = set()
        options = UplinkConfig(broker)
        self.uplink = Uplink(
            self.name,
            self.epoch,
            Outbox([], {}, options.window_bytes),
            self._read,
            receipt_timeout_s=options.receipt_timeout.s,
            max_rate_bytes_per_s=max_rate,
        )
        self.session = Session(
            SessionOptions(
                broker=broker,
                client_id=f"forebay-{self.name}",
                keepalive_s=int(options.keepalive.s),
                clean_start=True,
                session_expiry_s=0,
                will=(topic(self.name, "state"), will(self.name)),
            ),
            on_messages=self._on_messages,
            on_connect=self.uplink.on_connect,
            on_disconnect=self.uplink.on_disconnect,
            on_published=self.uplink.on_published,
        )
        self.session.subscribe([(topic(self.name, "receipt"), 1)])
        link: Any = self
        self.uplink.link = link

    # -- what the uplink asks ------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self.session.connected

    def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> int | None:
        mid = self.session.publish(topic, payload, correlation=correlation)
        if mid is not None and correlation is not None:
            seq = int.from_bytes(correlation[8:16], "big")
            self.sent[seq] = self.sent.get(seq, 0) + 1
            self.bytes += len(payload)
        return mid

    async def _read(self, seqs: list[int]) -> dict[int, bytes]:
        return {seq: self.frames[seq] for seq in seqs if seq in self.frames}

    def _on_messages(self, inbound: Inbound) -> None:
        self.uplink.on_messages(inbound)
        self.session.acknowledge(inbound.packet_ids, inbound.connection)

    # -- in the pump's place -------------------------------------------------------------------------

    def make_backlog(self, hour_s: int, now_ns: int) -> None:
        for start_s in range(0, hour_s, FRAME_S):
            rows = self._windows(now_ns - (hour_s - start_s) * SECOND_NS, FRAME_S // WINDOW_S)
            self._new += self._sealer.backlog(rows, now_ns)
        self.backlog = {row.seq for row, _ in self._new}

    def _windows(self, start_ns: int, windows: int) -> np.ndarray[Any, np.dtype[Any]]:
        n = len(self._specs) * windows
        rows = np.zeros(n, SUMMARY_DTYPE)
        rows["series"] = np.arange(n) // windows
        window_ns = WINDOW_S * SECOND_NS
        rows["time_ns"] = start_ns // window_ns * window_ns + np.arange(n) % windows * window_ns
        rows["span_ns"], rows["count"], rows["increase"] = window_ns, WINDOW_S, np.nan
        middle = np.array([round(61 + self._rng.gauss(0, 3), 3) for _ in range(n)])
        rows["mean"], rows["stddev"], rows["min"], rows["max"] = middle, 0.125, middle - 0.5, middle + 0.5
        rows["first"] = rows["last"] = middle
        return rows

    def _made(self, sealed: Sequence[Sealed]) -> None:
        self._new += sealed
        if self.uplink.is_open:
            self._made_open.update(row.seq for row, _ in sealed)
        self.uplink.answered.set()

    async def _live(self) -> None:
        await asyncio.sleep(self._rng.random() * WINDOW_S)
        while True:
            now_ns = time.time_ns()
            self._made(list(self._sealer._summaries(self._windows(now_ns, 1), Lane.LIVE, now_ns)))
            await asyncio.sleep(WINDOW_S)

    async def _alarming(self) -> None:
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / ALARM_EVERY_S))
            now_ns = time.time_ns()
            name = f"press-0/c0/range/{now_ns}"
            why = "press-0 c0 is 140 °C, above its limit of 100 °C"
            alarm = Alarm(name, 0, "range", "open", "warning", now_ns, now_ns, 140.0, 0.0, 100.0, 1.8, why)
            self._made(list(self._sealer.alarms([alarm], now_ns)))
            self.alarms_raised += 1

    async def _committing(self) -> None:
        """Take receipts, raise send limits, let new frames go: what a commit does, without the disk."""
        uplink = self.uplink
        while True:
            await uplink.answered.wait()
            uplink.answered.clear()
            now_ns = time.time_ns()
            answers = uplink.take_answers()
            for answer in answers:
                self._receipted(answer.row, (now_ns - answer.row.created_ns) / 1e9)
            removed = [answer.row.seq for answer in answers]
            new, self._new = self._new, []
            to_backfill, uplink.reopened = uplink.reopened, False
            limits = uplink.plan_limits([row for row, _ in new], to_backfill)
            self.frames |= {row.seq: frame for row, frame in new}
            uplink.committed(new, limits, removed, to_backfill)
            await asyncio.sleep(COMMIT_GAP_S)

    def _receipted(self, row: OutboxRow, latency_s: float) -> None:
        self.frames.pop(row.seq, None)
        self.backlog.discard(row.seq)
        if row.lane == Lane.ALARM:
            self.alarms_receipted += 1
        if row.seq in self._made_open and row.lane in (Lane.ALARM, Lane.LIVE):
            (self.alarm_s if row.lane == Lane.ALARM else self.live_s).append(latency_s)

    def start(self) -> list[asyncio.Task[None]]:
        work = (self.session.run(), self.uplink.run(), self._committing(), self._live(), self._alarming())
        self.uplink.answered.set()
        return [asyncio.ensure_future(one) for one in work]


def metric(page: str, name: str, labels: str = "") -> float:
    """The sum of a metric's samples whose labels contain `labels`."""
    lines = re.findall(rf"^{name}(?:{{([^}}]*)}})? (\S+)$", page, re.MULTILINE)
    return sum(float(value) for told, value in lines if labels in told)


def p99_of(pages: list[str], name: str, labels: str) -> float:
    """Upper edge of the histogram's bucket that holds the 99th percentile."""
    buckets: dict[float, float] = {}
    for page in pages:
        for told, value in re.findall(rf"^{name}_bucket{{([^}}]*)}} (\S+)$", page, re.MULTILINE):
            if labels in told:
                edge = float(re.search(r'le="([^"]*)"', told)[1])  # type: ignore[index]
                buckets[edge] = buckets.get(edge, 0) + float(value)
    total = max(buckets.values(), default=0.0)
    return min((edge for edge, count in buckets.items() if count >= 0.99 * total), default=float("nan"))


def quantile_s(latencies_s: list[float], q: float) -> float:
    return float(np.quantile(latencies_s, q)) if latencies_s else float("nan")


class Peaks:
    """The largest resident memory of processes, looked at every half second."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        self.bytes = dict.fromkeys(pids, 0)

    async def watch(self) -> None:
        while True:
            for name, pid in self._pids.items():
                self.bytes[name] = max(self.bytes[name], rss_bytes(pid))
            await asyncio.sleep(0.5)


async def come_back(
    broker: Broker, ingesters: list[Service], influxdb: int, gateways: list[Gateway], hour_s: int
) -> dict[str, float]:
    """Let the broker be away, start it, and wait until the backlog is through."""
    now_ns = time.time_ns()
    for gateway in gateways:
        gateway.make_backlog(hour_s, now_ns)
    backlog = sum(len(frame) for gateway in gateways for _, frame in gateway._new)
    tasks = [task for gateway in gateways for task in gateway.start()]
    try:
        await asyncio.sleep(AWAY_S)
        broker.start()
        begun_s = time.monotonic()
        peaks = Peaks(broker=broker.process.pid, influxdb=influxdb, ingester=ingesters[0].process.pid)
        tasks.append(asyncio.ensure_future(peaks.watch()))
        pids = {f"ingester{n}": service.process.pid for n, service in enumerate(ingesters)}
        with Meter(influxdb=influxdb, broker=broker.process.pid, gateways=os.getpid(), **pids) as meter:
            told_s = begun_s
            while left := sum(len(gateway.backlog) for gateway in gateways):
                await asyncio.sleep(0.5)
                if time.monotonic() - begun_s > PATIENCE_S:
                    break
                if time.monotonic() > told_s + 10:
                    told_s = time.monotonic()
                    alarms = [one for gateway in gateways for one in gateway.alarm_s]
                    print(
                        f"{told_s - begun_s:5.0f} s  backlog {left} frames, "
                        f"{sum(gateway.connected for gateway in gateways)} connected, "
                        f"resent {sum(n - 1 for g in gateways for n in g.sent.values())}, "
                        f"alarm p99 {quantile_s(alarms, 0.99):.2f} s of {len(alarms)}",
                        file=sys.stderr,
                    )
            drain_s = time.monotonic() - begun_s
        pages = [(await asyncio.to_thread(service.page, "/metrics")).decode() for service in ingesters]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    sent = [n for gateway in gateways for n in gateway.sent.values()]
    alarm_s = [one for gateway in gateways for one in gateway.alarm_s]
    live_s = [one for gateway in gateways for one in gateway.live_s]
    lines = sum(metric(page, "forebay_ingest_stored_lines_total") for page in pages)
    ingester_s = sum(cpu for name, cpu in meter.cpu_s.items() if name.startswith("ingester"))
    return {
        "alarm_p99_s": quantile_s(alarm_s, 0.99),
        "alarm_max_s": max(alarm_s, default=float("nan")),
        "alarms": len(alarm_s),
        "live_p50_s": quantile_s(live_s, 0.5),
        "live_p99_s": quantile_s(live_s, 0.99),
        "drain_s": drain_s,
        "backlog_left": left,
        "backlog_mb": backlog / 1e6,
        "frames": len(sent),
        "resends": (sum(sent) - len(sent)) / len(sent),
        "lines": lines,
        "lines_per_s": lines / drain_s,
        "influxdb_cpu": meter.cpu_s["influxdb"] / drain_s,
        "ingester_cpu": ingester_s / drain_s,
        "broker_cpu": meter.cpu_s["broker"] / drain_s,
        "gateways_cpu": meter.cpu_s["gateways"] / drain_s,
        "write_p99_s": p99_of(pages, "forebay_ingest_stage_seconds", 'stage="write"'),
        "sink_busy": sum(metric(page, "forebay_ingest_sink_answers_total", 'answer="busy"') for page in pages),
        "ingester_rss_mb": peaks.bytes["ingester"] / 1e6,
        "broker_rss_mb": peaks.bytes["broker"] / 1e6,
        "influxdb_rss_mb": peaks.bytes["influxdb"] / 1e6,
    }


def run(folder: Path, gateways: int, hour_s: int, series: int, max_rate: int, ingesters: int) -> dict[str, float]:
    """All of it, in `folder`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with ExitStack() as ending:
        sink = sink_part("influxdb1", folder, "gateway-0000")
        assert sink.server is not None
        ending.callback(sink.server.kill)
        broker = Broker(folder / "uplink", port=free_port())
        services = []
        for number in range(ingesters):
            own = folder / f"ingester-{number}"
            own.mkdir()
            service = ingester_service(own, broker, sink)
            service.process.start()
            ending.callback(service.process.stop)
            services.append(service)
        ending.callback(broker.kill)
        fleet = [Gateway(number, broker.url, series, max_rate) for number in range(gateways)]
        figures = asyncio.run(come_back(broker, services, sink.server.process.pid, fleet, hour_s))
        (stored,) = sink.server.query("SELECT count(mean) FROM temperature")
        figures["backlog_points"] = gateways * series * (hour_s // WINDOW_S)
        figures["stored_points"] = stored["count"]
        figures["rate_share"] = max(g.bytes for g in fleet) / figures["drain_s"] / max_rate if max_rate else 0.0
        return figures


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--gateways", type=int, default=1000)
    options.add_argument("--hour-s", type=int, default=3600)
    options.add_argument("--series", type=int, default=5)
    options.add_argument("--max-rate", default="16 KiB/s")
    options.add_argument("--ingesters", type=int, default=2)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="forebay-fleet-") as name:
        figures = run(
            Path(name),
            chosen.gateways,
            chosen.hour_s,
            chosen.series,
            round(Rate.parse(chosen.max_rate)),
            chosen.ingesters,
        )
    rows: list[list[object]] = [["figure", "value"], *([name, float(value)] for name, value in figures.items())]
    report(f"{chosen.gateways} gateways return with {chosen.hour_s} s of backlog", rows, figures, chosen.json)


if __name__ == "__main__":
    main()
