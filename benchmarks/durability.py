"""What durability costs: the disk, the commits and the memory of a real edge, and how fast a backlog drains.

    ./task bench durability [--seconds N] [--slow-seconds N] [--messages N] [--json FILE]

    load ─▶ mosquitto ─▶ forebay-edge ─▶ SQLite, then PUBACK
                              └─▶ mosquitto ─▶ ingester ─▶ InfluxDB 1.8

Four runs, each on a new store, with messages of 120 B that carry their time:

    steady    1,000 series at 1 Hz, windows of 10 s, the default `commit_delay` of 250 ms
    slow      10 series at 1 Hz, `commit_delay = "60 s"`
    flat out  as fast as the broker takes them, 100 series, windows of 1 s
    drain     as much again while the uplink's broker is away: 1 ms of the devices' time a message, so that half a
              million are 500 s of 1,000 samples/s. Then the broker is started, and it is over when 99 % are stored.
              Each sample is kept in a summary of 1 s, and raw as well

Bytes written are the kernel's account of the process (`write_bytes` in /proc/PID/io, whole pages, WAL and checkpoints
alike), from a warm-up on. A run is shorter than what comes round seldom, so this is added, and shown apart:

    snapshot    the one that is in the file at the end, once to the WAL and once to the file, with what the trimming of
                the journal behind it changes (a page in twenty), every 10 min or 500,000 samples
    checkpoint  where none fell into the run, all that went to the WAL once more: more than it can be

On a file system in memory nothing is written to a disk: the benchmark says so and ends.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load
from benchmarks.harness import Meter, parser, report, rss_bytes, wait_for
from benchmarks.path import RunningPath, running_path
from edge.metrics import BUCKETS_S
from edge.replay import SNAPSHOT_S, SNAPSHOT_SAMPLES
from edge.storefile import PAGE_BYTES

PROFILE = """\
name = "bench"
version = "1"

[codec]
name = "json"
value = "value"
time = "time"

[channel."*"]
range = [0, 100]
off_delay = "0 s"
"""
FAST = PROFILE + 'window = "1 s"\nmax_ahead = "30 d"\n'
RAW = FAST + 'report = "raw"\n'
PAYLOAD = '{{"time": {time_ns}, "value": {value}}}'
FLAT_OUT_STEP_NS = 20_000
"""The devices' time then goes about as fast as ours."""
BACKLOG_STEP_NS = 1_000_000
OPEN_SHARE = 0.01
"""Of the backlog: less than that may lie in windows that are still open."""
WARM_UP_S = 15.0
TIMEOUT_S = 300.0
DAY_S = 86_400.0
TRIM_SHARE = 0.05
"""Pages of the file that the trimming of as many pages of the journal changes: freed ones are not written."""
WAL_CHECKPOINT_BYTES = 8 << 20
"""Of the default store: less than that in a run may hold no checkpoint."""


@dataclass(frozen=True)
class Run:
    """The figures of one run; rates are of bytes, commits and samples in a second."""

    name: str
    samples_per_s: float
    measured_bytes_per_s: float
    added_bytes_per_s: float
    """What comes round more seldom than the run was long."""
    commits_per_s: float
    commit_ms_p50: float
    commit_ms_p99: float
    cpu_us: float
    """Per sample."""
    rss_mb: float

    @property
    def bytes_per_s(self) -> float:
        return self.measured_bytes_per_s + self.added_bytes_per_s


class Commits:
    """The commits between two looks at the edge's metrics."""

    def __init__(self, path: RunningPath) -> None:
        self._path = path
        self._before = self._counts()

    def _counts(self) -> list[int]:
        """Commits at or below each bucket's edge."""
        page = self._path.edge.page("/metrics").decode()
        found = re.findall(r'^forebay_commit_seconds_bucket\{le="[^"]+"\} (\d+)$', page, re.MULTILINE)
        return [int(count) for count in found]

    def since(self) -> list[int]:
        return [now - was for now, was in zip(self._counts(), self._before, strict=True)]


def quantile_ms(counts: list[int], q: float) -> float:
    """By straight lines between the edges of the buckets."""
    target, below, low_s = q * counts[-1], 0, 0.0
    for edge_s, count in zip(BUCKETS_S, counts, strict=False):
        if count >= target and count > below:
            return (low_s + (edge_s - low_s) * (target - below) / (count - below)) * 1e3
        below, low_s = count, edge_s
    return float("inf")


def written_bytes(pid: int) -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["write_bytes"])


def measure_rate(name: str, folder: Path, per_s: int, seconds: float, store: str) -> Run:
    """At a steady rate, one series for each message of a second."""
    with running_path(folder, profile=PROFILE, store=store) as path:
        count = int(per_s * (seconds + WARM_UP_S + 60))
        step = ["--devices", str(per_s), "--rate", str(per_s), "--step-ns", str(10**9 // per_s)]
        loader = load.start(path.sensors.port, count, *step)
        load.go(loader)
        time.sleep(WARM_UP_S)
        run = _measured(name, path, seconds)
        loader.kill()
        loader.wait()
    return _with_what_is_seldom(run, folder, seconds)


def _measured(name: str, path: RunningPath, seconds: float) -> Run:
    pid, commits, before, was_bytes = path.edge.process.pid, Commits(path), path.produced(), 0
    with Meter(own=pid) as meter:
        was_bytes = written_bytes(pid)
        time.sleep(seconds)
        bytes_ = written_bytes(pid) - was_bytes
    return _run(name, path, commits, path.produced() - before, bytes_, meter)


def _run(name: str, path: RunningPath, commits: Commits, samples: int, bytes_: int, meter: Meter) -> Run:
    counts = commits.since()
    return Run(
        name,
        samples / meter.wall_s,
        bytes_ / meter.wall_s,
        0.0,
        counts[-1] / meter.wall_s,
        quantile_ms(counts, 0.5),
        quantile_ms(counts, 0.99),
        meter.cpu_s["own"] / samples * 1e6,
        rss_bytes(path.edge.process.pid) / 1e6,
    )


def _with_what_is_seldom(run: Run, folder: Path, seconds: float) -> Run:
    """Look into the store that was closed in order: its last snapshot holds all series."""
    with closing(sqlite3.connect(folder / "edge.db")) as db:
        pieces = [size for (size,) in db.execute("SELECT length(data) + length(part) + 16 FROM snapshot")]
        journal = db.execute("SELECT sum(length(block)) * 1.0 / (max(id) - min(id) + 1) FROM journal").fetchone()[0]
    every_s = min(SNAPSHOT_S, SNAPSHOT_SAMPLES / run.samples_per_s)
    snapshot_bytes = sum(-(-size // PAGE_BYTES) * PAGE_BYTES for size in pieces)
    trimmed_bytes = TRIM_SHARE * max(journal, PAGE_BYTES) * run.commits_per_s * every_s
    added = 2 * (snapshot_bytes + trimmed_bytes) / every_s
    if run.measured_bytes_per_s * seconds < WAL_CHECKPOINT_BYTES:
        added += run.measured_bytes_per_s
    return Run(**{**vars(run), "added_bytes_per_s": added})


def measure_flat_out(folder: Path, messages: int) -> Run:
    with running_path(folder, profile=FAST) as path:
        _send(path, messages // 10, FLAT_OUT_STEP_NS)
        pid, commits, was_bytes = path.edge.process.pid, Commits(path), written_bytes(path.edge.process.pid)
        with Meter(own=pid) as meter:
            _send(path, messages, FLAT_OUT_STEP_NS)
        return _run("flat out", path, commits, messages, written_bytes(pid) - was_bytes, meter)


def _send(path: RunningPath, messages: int, step_ns: int) -> None:
    """Until all are taken in."""
    target = path.produced() + messages
    loader = load.start(path.sensors.port, messages, "--payload", PAYLOAD, "--step-ns", str(step_ns))
    load.go(loader)
    wait_for(lambda: path.produced() >= target, TIMEOUT_S, f"{messages} messages taken in", poll_s=0.1)
    load.finish(loader)


def measure_drain(folder: Path, messages: int) -> tuple[float, float]:
    """(seconds of the devices' time that the backlog holds, seconds from the broker's return until it had drained)."""
    with running_path(folder, profile=RAW) as path:
        path.uplink.stop()
        _send(path, messages, BACKLOG_STEP_NS)
        path.uplink.start()
        began_s = time.monotonic()
        left = messages * OPEN_SHARE
        wait_for(
            lambda: path.status("ledger").get("waiting", messages) <= left,
            TIMEOUT_S,
            "the backlog has drained",
            poll_s=0.1,
        )
        return messages * BACKLOG_STEP_NS / 1e9, time.monotonic() - began_s


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=120, help="of the steady run")
    options.add_argument("--slow-seconds", type=float, default=240, help="of the slow run")
    options.add_argument("--messages", type=int, default=500_000, help="flat out, and again for the backlog")
    arguments = options.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        steady = measure_rate("steady, 1,000/s", Path(folder), 1000, arguments.seconds, "")
    if not steady.measured_bytes_per_s:
        sys.exit(f"{tempfile.gettempdir()} lies in memory: set TMPDIR to a folder on a disk")
    with tempfile.TemporaryDirectory() as folder:
        slow = measure_rate("slow, 10/s", Path(folder), 10, arguments.slow_seconds, 'commit_delay = "60 s"')
    with tempfile.TemporaryDirectory() as folder:
        flat_out = measure_flat_out(Path(folder), arguments.messages)
    with tempfile.TemporaryDirectory() as folder:
        backlog_s, drain_s = measure_drain(Path(folder), arguments.messages)

    head = ["", "samples/s", "commits/s", "p50 ms", "p99 ms", "CPU us/sample", "RSS MB", "KB/s", "seldom", "all"]
    rows = [
        [
            run.name,
            *(run.samples_per_s, run.commits_per_s, run.commit_ms_p50, run.commit_ms_p99, run.cpu_us, run.rss_mb),
            *(run.measured_bytes_per_s / 1e3, run.added_bytes_per_s / 1e3, run.bytes_per_s / 1e3),
        ]
        for run in (steady, slow, flat_out)
    ]
    report(
        f"The store at work; {backlog_s:,.0f} s of backlog drained in {drain_s:.1f} s",
        [head, *rows],
        {
            "written_bytes_per_s": steady.bytes_per_s,
            "written_mb_per_day_slow": slow.bytes_per_s * DAY_S / 1e6,
            "commits_per_s": steady.commits_per_s,
            "commit_ms_p99": steady.commit_ms_p99,
            "cpu_us_per_sample": steady.cpu_us,
            "rss_mb": steady.rss_mb,
            "saturated_samples_per_s": flat_out.samples_per_s,
            "saturated_written_bytes_per_s": flat_out.measured_bytes_per_s,
            "saturated_commit_ms_p99": flat_out.commit_ms_p99,
            "saturated_cpu_us_per_sample": flat_out.cpu_us,
            "saturated_rss_mb": flat_out.rss_mb,
            "drain_ratio": backlog_s / drain_s,
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
