"""A thousand gateways whose broker comes back after an hour.

    ./task bench fleet [--gateways N] [--backlog-s S] [--series N] [--max-rate RATE] [--processes N]
                       [--ingesters N] [--inflight N] [--json FILE]

Real are mosquitto, `forebay-cloud run`, and InfluxDB 1.8. The gateways are the product's own sessions, uplinks and
outboxes, in some processes of their own (benchmarks/gateways.py). Each has `--backlog-s` seconds of windows of 10 s
in frames of a minute, as the edge makes them while its link is away, and looks for its broker
with growing waits and full jitter, until it starts. All the time it makes a live frame every 10 s
and raises an alarm every 60 s on average. Once the backlog is through nothing new is made, the last receipts are
waited for, and what InfluxDB holds is counted against what each gateway made.

    alarm_p99_s      from the making to the receipt, of alarms raised while the way was open
    live_p99_s       the same, of live frames
    lag_p99_s        how late the bench's own event loops woke up; it is in both of these
    drain_s          from the broker's start to the last receipt of the backlog
    resends          publications of frames that the broker had already, over frames
    thrown_away      publications before the first ingester was back: the broker says so, and keeps none
    lost, doubled    points that InfluxDB lacks, or has beyond those made: of each gateway, added up
    lines_per_s, write_p99_s, sink_busy (answers 429, 503 and none), rate_share (the largest share of max_rate
    that a gateway used); influxdb_cpu, ingester_cpu, broker_cpu, gateways_cpu (cores); *_rss_mb (peaks)
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np

from benchmarks.gateways import END, FRAME_S, LAST_RECEIPTS_S, Plan, Progress, Tally, carry
from benchmarks.harness import Meter, parser, report, rss_bytes
from devices.quantities import Rate
from simulators.parts import Service, ingester_service, sink_part
from simulators.servers import Broker, InfluxServer, free_port

PATIENCE_S = 1800.0
TOLD_EVERY_S = 10.0
AWAY_S = 30.0
"""For so long the gateways look for a broker that is not there: their waits have grown by then."""


class Child:
    """One process of gateways, and what it said last."""

    def __init__(self, numbers: range, plan: Plan) -> None:
        spawn = get_context("spawn")
        self._pipe: Connection
        self._pipe, theirs = spawn.Pipe()
        self.process: SpawnProcess = spawn.Process(target=carry, args=(numbers, plan, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.progress: Progress | None = None
        self.alarm_s: list[float] = []

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def listen(self) -> None:
        """Take what it has said meanwhile. Exits where it has ended."""
        while self._pipe.poll():
            try:
                self.progress = self._pipe.recv()
            except EOFError:
                sys.exit("a process of gateways has ended; its own words are above")
            assert self.progress is not None
            self.alarm_s += self.progress.alarm_s

    def end(self) -> None:
        self._pipe.send(END)

    def tally(self) -> Tally:
        while True:
            if not self._pipe.poll(LAST_RECEIPTS_S + 60):
                sys.exit("a process of gateways does not end")
            said = self._pipe.recv()
            if isinstance(said, Tally):
                return said

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


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


def differences(made: Mapping[str, int], stored: Mapping[str, int]) -> tuple[int, int]:
    """(lost, doubled): what one gateway lacks, another does not make up for."""
    lost = sum(max(0, n - stored.get(name, 0)) for name, n in made.items())
    return lost, sum(max(0, n - made.get(name, 0)) for name, n in stored.items())


def stored_by_gateway(server: InfluxServer, measurement: str, field: str) -> dict[str, int]:
    rows = server.query(f"SELECT count({field}) FROM {measurement} GROUP BY gateway")
    return {row["gateway"]: row["count"] for row in rows}


def drain(children: list[Child], peaks: dict[str, int], pids: Mapping[str, int]) -> float:
    """Wait until no frame of the backlog is left, and say now and then how it goes; how long it took."""
    begun_s = told_s = time.monotonic()
    while True:
        for child in children:
            child.listen()
        for name, pid in pids.items():
            peaks[name] = max(peaks.get(name, 0), rss_bytes(pid))
        said = [child.progress for child in children if child.progress]
        left, now_s = sum(one.backlog for one in said), time.monotonic()
        if not left or now_s - begun_s > PATIENCE_S:
            return now_s - begun_s
        if now_s > told_s + TOLD_EVERY_S:
            told_s, alarm_s = now_s, [one for child in children for one in child.alarm_s]
            print(
                f"{now_s - begun_s:5.0f} s  backlog {left} frames, {sum(one.connected for one in said)} connected, "
                f"alarm p99 {quantile_s(alarm_s, 0.99):.2f} s of {len(alarm_s)}",
                file=sys.stderr,
            )
        time.sleep(0.1)


def wait_until_ready(children: list[Child]) -> None:
    """Until all backlogs are made."""
    while not all(child.progress for child in children):
        for child in children:
            child.listen()
            if not child.process.is_alive():
                sys.exit("a process of gateways has ended; its own words are above")
        time.sleep(0.1)


def figures_of(tallies: list[Tally], server: InfluxServer, pages: list[str], drain_s: float) -> dict[str, float]:
    alarm_s = [one for tally in tallies for one in tally.alarm_s]
    live_s = [one for tally in tallies for one in tally.live_s]
    lag_s = [one for tally in tallies for one in tally.lag_s]
    points = {name: n for tally in tallies for name, n in tally.points.items()}
    alarms = {name: n for tally in tallies for name, n in tally.alarms.items()}
    lost, doubled = differences(points, stored_by_gateway(server, "temperature", "mean"))
    alarms_lost, alarms_doubled = differences(alarms, stored_by_gateway(server, "alarm", "id"))
    frames, thrown_away = sum(tally.frames for tally in tallies), sum(tally.thrown_away for tally in tallies)
    lines = sum(metric(page, "forebay_ingest_stored_lines_total") for page in pages)
    return {
        "alarm_p99_s": quantile_s(alarm_s, 0.99),
        "alarm_max_s": max(alarm_s, default=float("nan")),
        "alarms": len(alarm_s),
        "live_p50_s": quantile_s(live_s, 0.5),
        "live_p99_s": quantile_s(live_s, 0.99),
        "lag_p99_s": quantile_s(lag_s, 0.99),
        "lag_max_s": max(lag_s, default=float("nan")),
        "drain_s": drain_s,
        "backlog_mb": sum(tally.backlog_bytes for tally in tallies) / 1e6,
        "frames": frames,
        "resends": (sum(tally.publications for tally in tallies) - thrown_away - frames) / max(frames, 1),
        "thrown_away": thrown_away,
        "points": sum(points.values()),
        "alarms_raised": sum(alarms.values()),
        "lost": lost + alarms_lost,
        "doubled": doubled + alarms_doubled,
        "waiting": sum(tally.waiting for tally in tallies),
        "lines": lines,
        "lines_per_s": lines / drain_s,
        "write_p99_s": p99_of(pages, "forebay_ingest_stage_seconds", 'stage="write"'),
        "sink_busy": sum(metric(page, "forebay_ingest_sink_answers_total", 'answer="busy"') for page in pages),
    }


def run(
    folder: Path,
    gateways: int,
    plan: Plan,
    *,
    processes: int = 4,
    ingesters: int = 2,
    inflight: int = 20,
    away_s: float = AWAY_S,
) -> dict[str, float]:
    """All of it, in `folder`. `inflight`: mosquitto's max_inflight_messages."""
    with ExitStack() as ending:
        sink = sink_part("influxdb1", folder, "")
        assert sink.server is not None
        ending.callback(sink.server.kill)
        broker = Broker(folder / "uplink", port=int(plan.broker.rpartition(":")[2]), max_inflight_messages=inflight)
        services: list[Service] = []
        for number in range(ingesters):
            own = folder / f"ingester-{number}"
            own.mkdir()
            services.append(ingester_service(own, broker, sink))
            services[-1].process.start()
            ending.callback(services[-1].process.stop)
        ending.callback(broker.kill)
        shares = [range(gateways * n // processes, gateways * (n + 1) // processes) for n in range(processes)]
        children = [Child(share, plan) for share in shares]
        for child in children:
            ending.callback(child.kill)
        wait_until_ready(children)
        time.sleep(away_s)
        broker.start()
        pids = {"influxdb": sink.server.process.pid, "broker": broker.process.pid}
        pids |= {f"ingester {n}": service.process.pid for n, service in enumerate(services)}
        peaks: dict[str, int] = {}
        with Meter(**pids, **{f"gateways {n}": child.pid for n, child in enumerate(children)}) as meter:
            drain_s = drain(children, peaks, pids)
        pages = [service.page("/metrics").decode() for service in services]
        for child in children:
            child.end()
        tallies = [child.tally() for child in children]
        figures = figures_of(tallies, sink.server, pages, drain_s)
        for kind in ("influxdb", "ingester", "broker", "gateways"):
            own_s = [cpu for name, cpu in meter.cpu_s.items() if name.startswith(kind)]
            figures[f"{kind}_cpu"] = sum(own_s) / drain_s
        for kind in ("influxdb", "ingester", "broker"):
            figures[f"{kind}_rss_mb"] = max(size for name, size in peaks.items() if name.startswith(kind)) / 1e6
        most_bytes = max(n for tally in tallies for n in tally.sent_bytes.values())
        figures["rate_share"] = most_bytes / drain_s / plan.max_rate if plan.max_rate else 0.0
        return figures


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--gateways", type=int, default=1000)
    options.add_argument("--backlog-s", type=int, default=3600, help=f"a multiple of {FRAME_S}")
    options.add_argument("--series", type=int, default=5)
    options.add_argument("--max-rate", default="16 KiB/s")
    options.add_argument("--processes", type=int, default=4)
    options.add_argument("--ingesters", type=int, default=2)
    options.add_argument("--inflight", type=int, default=20, help="mosquitto's max_inflight_messages; 20 is its own")
    chosen = options.parse_args()
    plan = Plan(f"mqtt://127.0.0.1:{free_port()}", chosen.series, chosen.backlog_s, round(Rate.parse(chosen.max_rate)))
    with tempfile.TemporaryDirectory(prefix="forebay-fleet-") as name:
        figures = run(
            Path(name),
            chosen.gateways,
            plan,
            processes=chosen.processes,
            ingesters=chosen.ingesters,
            inflight=chosen.inflight,
        )
    rows: list[list[object]] = [["figure", "value"], *([name, float(value)] for name, value in figures.items())]
    report(f"{chosen.gateways} gateways return with {chosen.backlog_s} s of backlog", rows, figures, chosen.json)


if __name__ == "__main__":
    main()
