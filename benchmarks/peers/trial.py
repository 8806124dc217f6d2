"""One contender on one load: killed while it comes, given time to settle, and held to account at InfluxDB.

    load ─▶ mosquitto ─▶ [ Forebay's edge ─▶ mosquitto ─▶ ingester | Telegraf ] ─▶ InfluxDB 1.8
                            killed                                   killed

The broker keeps the session of whoever is away, and its queue has no limit: what has not been acknowledged is sent
again after the restart. Settled is a contender from which nothing new has come for a while, which is longer than it
holds a window open. Where something is missing then, it is asked to end, started once more, and settles again:
what it had kept to itself, or the broker for it, has its chance to arrive.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load
from benchmarks.harness import cpu_s
from benchmarks.path import wait_for_subscriber
from benchmarks.peers.account import MILLISECOND_NS, Account, Places, Sent, compare, gathered
from benchmarks.peers.contenders import Contender, Peer
from simulators.processes import Process
from simulators.servers import Broker, InfluxServer

DEVICES = 100
INFLIGHT = 20_000
"""Messages that the broker sends ahead of acknowledgements: as many as Telegraf is allowed to hold undelivered.
With mosquitto's default of 20 it would get 20 a flush."""
QUIET_S = 8.0
"""Without anything new for this long, and the length of a window: settled. Forebay closes an idle window after 5 s."""
SETTLE_LIMIT_S = 120.0
POLL_S = 0.5


@dataclass(frozen=True)
class Plan:
    messages: int = 150_000
    per_s: float = 5_000.0
    pause_s: tuple[float, float] = (1.5, 3.5)
    """Between a start and the next kill, drawn evenly from the seed."""
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    sent: int
    account: Account
    later: Account
    """After one more restart; as `account` where nothing was missing."""
    kills: int
    ended: int
    """Times that it was found to have ended by itself."""
    seconds: float
    """From the first message to the last point that came before that restart."""
    cpu_s: float
    """Of what is killed, over all its lives, from the first message on."""
    cloud_cpu_s: float
    written_bytes: int
    """That it caused to be written to the disk, likewise."""
    load: float
    """Of the machine, the average of the minute before."""


class Meter:
    """The cost of one process over all its lives, since this was made: read before each death."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._cpu_s, self._written_bytes = -cpu_s(process.pid), -_written_bytes(process.pid)

    def read(self) -> tuple[float, int]:
        """CPU seconds and bytes written so far, including the present life."""
        return self._cpu_s + cpu_s(self._process.pid), self._written_bytes + _written_bytes(self._process.pid)

    def keep(self) -> None:
        """The present life is about to end."""
        self._cpu_s, self._written_bytes = self.read()


def _written_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))


def run(contender: Contender, plan: Plan, folder: Path) -> Outcome:
    with ExitStack() as ending:
        sensors = Broker(folder / "sensors", max_inflight_messages=INFLIGHT, lines=["log_type subscribe"])
        influxdb = InfluxServer(folder / "influxdb", "1.8")
        for server in (sensors, influxdb):
            ending.callback(server.kill)
            server.start()
        peer = contender.make(folder, sensors, influxdb, ending)
        ending.callback(peer.process.kill)
        peer.process.start()
        wait_for_subscriber(sensors, peer.process)
        return _under_load(contender, plan, peer, sensors, influxdb)


def _under_load(contender: Contender, plan: Plan, peer: Peer, sensors: Broker, influxdb: InfluxServer) -> Outcome:
    machine_load = os.getloadavg()[0]
    sent = Sent(plan.messages, DEVICES, time.time_ns(), int(1e9 / plan.per_s))
    assert sent.step_ns * DEVICES >= MILLISECOND_NS, "two messages of a device would bear the same time"
    times = ("--start-ns", str(sent.start_ns), "--step-ns", str(sent.step_ns), "--devices", str(DEVICES))
    loader = load.start(sensors.port, plan.messages, "--rate", str(plan.per_s), *times)
    try:
        meter = Meter(peer.process)
        cloud = Meter(peer.cloud) if peer.cloud else None
        began_s = time.monotonic()
        load.go(loader)
        kills, ended = _kill(peer.process, loader, meter, plan)
        load.finish(loader)
    finally:
        loader.kill()
    last_s = _settle(contender, influxdb)
    used_s, written_bytes = meter.read()
    places = sent.places(contender.grain_ns)
    account = later = _account(contender, influxdb, places)
    if account.lost:
        peer.process.stop()
        peer.process.start()
        _settle(contender, influxdb)
        later = _account(contender, influxdb, places)
    return Outcome(
        sent=plan.messages,
        account=account,
        later=later,
        kills=kills,
        ended=ended,
        seconds=last_s - began_s,
        cpu_s=used_s,
        cloud_cpu_s=cloud.read()[0] if cloud else 0.0,
        written_bytes=written_bytes,
        load=machine_load,
    )


def _kill(process: Process, loader: subprocess.Popen[str], meter: Meter, plan: Plan) -> tuple[int, int]:
    """Kill it, and start it again at once, until all messages are sent; gives how often, and how often it had ended."""
    source = random.Random(plan.seed)
    kills = ended = 0
    while True:
        try:
            loader.wait(source.uniform(*plan.pause_s))
        except subprocess.TimeoutExpired:
            if process.running:
                meter.keep()
                process.kill()
                kills += 1
            else:
                ended += 1
            process.start()
        else:
            return kills, ended


def _settle(contender: Contender, influxdb: InfluxServer) -> float:
    """Wait until nothing new comes any more, for a bounded time; gives when the last came, on the monotonic clock."""
    began_s = changed_s = time.monotonic()
    seen = -1
    while time.monotonic() - changed_s < QUIET_S + contender.window_s:
        total = contender.total(influxdb)
        if total != seen:
            seen, changed_s = total, time.monotonic()
        if time.monotonic() - began_s > SETTLE_LIMIT_S:
            break
        time.sleep(POLL_S)
    return changed_s


def _account(contender: Contender, influxdb: InfluxServer, sent: Places) -> Account:
    return compare(sent, gathered(contender.stored(influxdb), contender.grain_ns))
