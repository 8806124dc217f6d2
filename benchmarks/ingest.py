"""Frames into InfluxDB, beside the same server fed with the same lines already made.

    ./task bench ingest [--influxdb 1.8|2.7] [--lines N] [--rounds N] [--json FILE]

Four gateways publish frames of summaries (eight fields each) through a real mosquitto to a real
`forebay-cloud run`, with 1 MiB each that has no receipt yet, as edges do. Beside it the same client library
writes the very same lines, made before the clock starts, over as many connections, in bodies of as many lines.
Both write to databases of their own that hold every series already, in turns; the better round of each counts,
since a shared machine only ever adds to the times. Publisher, broker, ingester and InfluxDB share the cores.

Three shapes of frame, of windows of 10 s:

    600x6    600 series of six windows each: what a gateway makes of each minute while its uplink is shut, and
             sends once it is open again. Then a fleet drains its backlog, and the cost of a line counts
    600x1    600 series of one window each: what a large gateway sends live, every 10 s
    50x20    50 series of twenty windows each: a small table under many rows, which no gateway sends

    ratio_raw          lines/s from frames over lines/s ready-made, 600x6: at least 0.8
    cpu_us_per_line    CPU of the ingester, user and system, 600x6: at most 1.8
    ratio_raw_..., cpu_us_per_line_...              the same for the other shapes, and for 600x1_other_tables:
             each frame leaves out another tenth of its series, so that the ingester has never seen its table
    lines_per_s, raw_lines_per_s, raw_cpu_us_per_line, bytes_per_line
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.harness import Meter, parser, report
from cloud.config import Limits
from cloud.lines import encode as lines_of
from cloud.sinks.influxdb import InfluxSink
from devices.model import SUMMARY_DTYPE, Lane
from devices.wire.frame import Frame, Header, SummaryBody, WireSeries, encode
from devices.wire.receipt import decode_receipt
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions
from devices.wire.topics import correlation, topic
from simulators.parts import fetch, program
from simulators.processes import Process
from simulators.servers import Broker, InfluxServer, free_port

GATEWAYS = 4
WINDOW_BYTES = 1 << 20
WINDOW_NS = 10_000_000_000
PATIENCE_S = 120
SECRET = "FOREBAY_BENCH_SECRET"


class Shape(NamedTuple):
    all_series: int
    windows: int
    other_tables: bool = False
    """Each frame has nine tenths of the series, others than the frame before."""

    @property
    def series(self) -> int:
        """Of one frame."""
        return self.all_series * 9 // 10 if self.other_tables else self.all_series

    @property
    def rows(self) -> int:
        return self.series * self.windows

    def __str__(self) -> str:
        return f"{self.all_series}x{self.windows}{'_other_tables' if self.other_tables else ''}"


SHAPES = (Shape(600, 6), Shape(600, 1), Shape(600, 1, other_tables=True), Shape(50, 20))
"""The first is the one that the target is about."""


def frame(shape: Shape, gateway: int, seq: int, start_ns: int) -> Frame:
    """Summaries of windows that no other frame has: sensors with three decimals, ten samples a window."""
    rng = np.random.default_rng(gateway * 1_000_003 + seq)
    row = np.arange(shape.rows)
    samples = np.round(61 + rng.normal(0, 3, (10, shape.rows)), 3)
    rows = np.zeros(shape.rows, SUMMARY_DTYPE)
    rows["series"] = row // shape.windows
    rows["time_ns"] = start_ns + ((seq - 1) * shape.windows + row % shape.windows) * WINDOW_NS
    rows["span_ns"], rows["count"], rows["increase"] = WINDOW_NS, len(samples), np.nan
    rows["mean"], rows["stddev"] = np.round(samples.mean(0), 6), np.round(samples.std(0), 5)  # as the edge rounds
    rows["min"], rows["max"], rows["first"], rows["last"] = samples.min(0), samples.max(0), samples[0], samples[-1]
    named = np.sort(rng.permutation(shape.all_series)[: shape.series]).tolist()
    table = [WireSeries(f"press-{n // 5:03}", f"channel{n % 5}", "temperature", "°C") for n in named]
    return Frame(Header(f"gateway-{gateway}", 7, seq, Lane.LIVE, start_ns), table, SummaryBody(rows))


class Load:
    """The frames of one run as payloads, and their lines as ready bodies."""

    def __init__(self, shape: Shape, lines: int, limits: Limits) -> None:
        self.shape = shape
        start_ns = time.time_ns() // WINDOW_NS * WINDOW_NS - 30 * 86_400 * 10**9
        per_gateway = max(2, lines // (GATEWAYS * shape.rows))
        frames = [[frame(shape, g, seq, start_ns) for seq in range(1, per_gateway + 1)] for g in range(GATEWAYS)]
        self.payloads = [[encode(one) for one in of_gateway] for of_gateway in frames]
        turns = [one for turn in zip(*frames, strict=True) for one in turn]
        made = [lines_of(one, 0).body for one in turns]
        together = limits.batch_lines // shape.rows
        self.bodies = [b"".join(made[at : at + together]) for at in range(0, len(made), together)]
        self.warm = b"".join(made[:GATEWAYS])
        self.lines = shape.rows * len(turns)
        self.line_bytes = sum(map(len, made)) / self.lines


def sink_keys(server: InfluxServer) -> dict[str, str]:
    if server.version == "1.8":
        return {"database": server.database, "user": server.user, "password_env": SECRET}
    return {"org": server.org, "bucket": server.database, "token_env": SECRET}


@asynccontextmanager
async def open_sink(server: InfluxServer) -> AsyncIterator[InfluxSink]:
    sink = InfluxSink(server.url, msgspec.convert(sink_keys(server), InfluxSink.Options))
    await sink.open()
    try:
        yield sink
    finally:
        await sink.close()


async def ready_made(server: InfluxServer, load: Load, limits: Limits) -> Meter:
    """Write the ready bodies over as many connections as the ingester has."""
    async with open_sink(server) as sink:
        await sink.write(load.warm)
        bodies = iter(load.bodies)

        async def connection() -> None:
            for body in bodies:
                await sink.write(body)

        with Meter(own=os.getpid(), server=server.process.pid) as meter:
            await asyncio.gather(*(connection() for _ in range(limits.connections)))
    return meter


class Publisher:
    """One gateway: publishes its frames as fast as their receipts allow."""

    def __init__(self, broker: Broker, gateway: int, payloads: list[bytes]) -> None:
        self._name = f"gateway-{gateway}"
        self._waiting = deque(enumerate(payloads, 1))
        self._in_flight: dict[bytes, int] = {}
        self.connected, self.done = asyncio.Event(), asyncio.Event()
        self.session = Session(
            SessionOptions(broker=broker.url, client_id=self._name, clean_start=True, session_expiry_s=0),
            on_messages=self._on_messages,
            on_connect=lambda present: self.connected.set(),
            on_disconnect=lambda error: sys.exit(str(error)),
            on_published=lambda mid, reason: None,
        )
        self.session.subscribe([(topic(self._name, "receipt"), 1)])

    def publish(self) -> None:
        while self._waiting and sum(self._in_flight.values()) < WINDOW_BYTES:
            seq, payload = self._waiting.popleft()
            data = correlation(7, seq, payload)
            self._in_flight[data] = len(payload)
            self.session.publish(topic(self._name, "data"), payload, correlation=data)

    def _on_messages(self, inbound: Inbound) -> None:
        for payload, data in zip(inbound.payloads, inbound.correlations, strict=True):
            receipt = decode_receipt(payload)
            if receipt.refused or receipt.rejected:
                sys.exit(f"a frame was not stored: {receipt}")
            if data is not None:
                self._in_flight.pop(data, None)
        self.session.acknowledge(inbound.packet_ids, inbound.connection)
        self.publish()
        if not self._in_flight:
            self.done.set()


async def from_frames(folder: Path, server: InfluxServer, broker: Broker, load: Load) -> Meter:
    """Publish the frames and wait for the last receipt."""
    async with open_sink(server) as sink:
        await sink.write(load.warm)
    address = f"127.0.0.1:{free_port()}"
    keys = {"url": server.url, **sink_keys(server)}
    config = folder / f"{server.database}.toml"
    config.write_text(
        f'[broker]\nurl = "{broker.url}"\n[metrics]\nlisten = "{address}"\n[sink]\n'
        + "\n".join(f'{key} = "{value}"' for key, value in keys.items())
    )
    ingester = Process(
        [program("forebay-cloud"), "run", str(config)], log=folder / f"{server.database}.log", env=dict(os.environ)
    )
    publishers = [Publisher(broker, n, payloads) for n, payloads in enumerate(load.payloads)]
    ingester.start()
    links = [asyncio.create_task(publisher.session.run()) for publisher in publishers]
    try:
        async with asyncio.timeout(PATIENCE_S):
            while fetch(f"http://{address}/healthz") is None:  # noqa: ASYNC110  it is another process
                await asyncio.sleep(0.1)
            for publisher in publishers:
                await publisher.connected.wait()
            await asyncio.sleep(0.2)  # until the subscriptions stand
            pids = {"own": ingester.pid, "publisher": os.getpid(), "broker": broker.process.pid}
            with Meter(**pids, server=server.process.pid) as meter:
                for publisher in publishers:
                    publisher.publish()
                for publisher in publishers:
                    await publisher.done.wait()
    finally:
        for link in links:
            link.cancel()
        await asyncio.wait(links)
        ingester.stop()
    return meter


def compare(
    folder: Path, server: InfluxServer, broker: Broker, load: Load, limits: Limits, rounds: int
) -> tuple[list[Meter], list[Meter]]:
    """Rounds of ready-made lines and of frames, in turns."""
    raw, ours = [], []
    for turn in range(rounds):
        server.create_database(f"raw-{load.shape}-{turn}")
        raw.append(asyncio.run(ready_made(server, load, limits)))
        server.create_database(f"frames-{load.shape}-{turn}")
        ours.append(asyncio.run(from_frames(folder, server, broker, load)))
        (stored,) = server.query("SELECT count(last) FROM temperature")
        if stored["count"] != load.lines:
            sys.exit(f"{stored['count']} of {load.lines} points are in the database")
    return raw, ours


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--influxdb", choices=["1.8", "2.7"], default="1.8")
    options.add_argument("--lines", type=int, default=300_000)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    limits = Limits()
    rows: list[list[object]] = [["frames", "lines/s", "own us/line", "InfluxDB us/line", "broker us/line", "publisher"]]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as name, ExitStack() as ending:
        folder = Path(name)
        server = InfluxServer(folder / "influxdb", chosen.influxdb)
        broker = Broker(folder / "mosquitto", lines=["set_tcp_nodelay true"])
        ending.callback(server.kill)
        server.start()
        ending.callback(broker.kill)
        broker.start()
        os.environ[SECRET] = server.password if server.version == "1.8" else server.token
        for shape in SHAPES:
            load = Load(shape, chosen.lines, limits)
            raw, ours = compare(folder, server, broker, load, limits, chosen.rounds)
            rows += [row(f"{shape} ready-made", meter, load.lines) for meter in raw]
            rows += [row(f"{shape}", meter, load.lines) for meter in ours]
            figures |= figures_of(raw, ours, load, "" if shape == SHAPES[0] else f"_{shape}")
    report(f"{chosen.lines:,} lines into InfluxDB {chosen.influxdb}", rows, figures, chosen.json)


def row(what: str, meter: Meter, lines: int) -> list[object]:
    costs = [meter.cpu_s.get(who, 0.0) / lines * 1e6 for who in ("own", "server", "broker", "publisher")]
    return [what, lines / meter.wall_s, *costs]


def figures_of(raw: list[Meter], ours: list[Meter], load: Load, suffix: str) -> dict[str, float]:
    wall_raw_s, wall_s = (min(meter.wall_s for meter in meters) for meters in (raw, ours))
    raw_us, us = (min(meter.cpu_s["own"] for meter in meters) / load.lines * 1e6 for meters in (raw, ours))
    figures = {f"ratio_raw{suffix}": wall_raw_s / wall_s, f"cpu_us_per_line{suffix}": us}
    if suffix:
        return figures
    return figures | {
        "lines_per_s": load.lines / wall_s,
        "raw_lines_per_s": load.lines / wall_raw_s,
        "raw_cpu_us_per_line": raw_us,
        "bytes_per_line": load.line_bytes,
    }


if __name__ == "__main__":
    main()
