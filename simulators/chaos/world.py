"""All parts of a run as processes of their own, the proxies between them, and how each fault hits them.

    sensors ─(sensors)─▶ broker ─(source)─▶ edge ─(uplink)─▶ broker ─(link-a)─▶ ingester-a ─┬─(http)─▶ InfluxDB
    scale ───(cable)────────────────────────▶ │                └─────(link-b)─▶ ingester-b ─┘
                                         disk, clock

In brackets: the proxies, and what else can be taken away. Everything listens on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from simulators.chaos.httpfaults import HttpFaults, HttpMode
from simulators.chaos.links import Link, LoopThread, Mode
from simulators.chaos.load import PROFILES, SERIAL_DEVICE, Load, scenario
from simulators.chaos.plan import INGESTERS, Fault
from simulators.chaos.tap import Tap
from simulators.parts import Service, program, sink_part
from simulators.processes import Process
from simulators.servers import Broker, InfluxVersion, free_port
from simulators.stored import StoredSink

STORE_BYTES = 32 << 20
DISK_BYTES = 40 << 20
"""Of the small file system that the store is on: the store and its WAL fit, and little else."""
JOURNAL_KEEP = "2 h"
"""Longer than the clock ever leaps, which ages the journal. What lies behind it cannot be recognised when it is sent
again, and counts again in the ledger, though its raw point is the same: the ledger could not be held against the sink.
"""
READY_TIMEOUT_S = 60.0
STARVED_WITHIN_S = 5.0
SAVE_S = 0.5
"""A broker that is told to save has done so after this."""
AHEAD_S = (-1800.0, -60.0, -5.0, 5.0, 60.0, 1800.0)
"""The clock moves by somewhat less than one of these."""

SENSOR_BROKER = ("autosave_interval 1",)
"""The sensors' broker saves every second. Saving after every change would not make it keep what it has
acknowledged, since it acknowledges first; and with some thousand messages waiting it does nothing else any more.
So it forgets up to a second when it is killed, and `tap.py` says what Forebay answers for.
"""


def find_faketime() -> str:
    """The path of libfaketime; "" where Debian's `libfaketime` is not installed."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return str(found[0]) if found else ""


def may_mount() -> bool:
    """Whether this user may mount a small file system for the store."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


class Acknowledged:
    """The samples that the edge has acknowledged to the sensors' broker: (topic, ms) -> how often."""

    def __init__(self) -> None:
        self.times_ms: dict[str, set[int]] = {}
        """By topic."""
        self.messages = 0
        self.unreadable = 0
        """Messages that were damaged on their way, and acknowledged after they had been rejected."""
        self.last_s = time.monotonic()
        self._present = Tap(self._hear)

    def tap(self) -> Tap:
        """Of a new connection, which ends the one before."""
        self._present = Tap(self._hear)
        return self._present

    @property
    def outstanding(self) -> int:
        """Messages that the edge was handed over the present connection and has not acknowledged."""
        return self._present.unacknowledged

    def _hear(self, topic: bytes, payload: bytes) -> None:
        self.messages += 1
        self.last_s = time.monotonic()
        try:
            time_ms = json.loads(payload.decode())["timestamp"]
            self.times_ms.setdefault(topic.decode(), set()).add(int(time_ms))
        except (ValueError, KeyError, TypeError):
            self.unreadable += 1


@dataclass(slots=True)
class Away:
    """When something that a serial line needs was taken away, in UTC ns."""

    cause: str
    begun_ns: int
    ended_ns: int = 0
    starved_ns: int = 0
    """How long the edge's threads had waited for a processor in the last STARVED_WITHIN_S."""


@dataclass(slots=True)
class World:
    """Order of calls: `build`, `start`, then `prepare`, `begin` and `end` of each fault, all from one thread."""

    folder: Path
    version: InfluxVersion
    seed: int
    loop: LoopThread
    stack: contextlib.ExitStack
    gateway: str = "chaos"
    acknowledged: Acknowledged = field(default_factory=Acknowledged)
    away: list[Away] = field(default_factory=list)
    """Of the edge and the cable: what a streaming line loses."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Kinds of fault that cannot be had here, and why."""
    processes: dict[str, Process] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    """Processes that a fault has ended."""
    links: dict[str, Link] = field(default_factory=dict)
    http: HttpFaults = field(init=False)
    edge: Service = field(init=False)
    ingesters: list[Service] = field(default_factory=list)
    brokers: dict[str, Broker] = field(default_factory=dict)
    waits: deque[tuple[float, int, int]] = field(default_factory=deque)
    """(monotonic s, pid, ns) of the edge's waiting for a processor, lately."""
    stored: StoredSink = field(init=False)
    load: Load = field(init=False)
    store_folder: Path = field(init=False)
    _clock_file: Path = field(init=False)

    def build(self) -> None:
        """Start the servers, lay the links, and write all configurations. Raises ForebayError."""
        self.store_folder = self.folder / "store"
        self.store_folder.mkdir()
        self._clock_file = self.folder / "clock"
        self._small_disk()
        self.brokers = {
            "sensor-broker": Broker(self.folder / "sensor-broker", persistence=True, lines=SENSOR_BROKER),
            "uplink-broker": Broker(self.folder / "uplink-broker", persistence=True),
        }
        for name, broker in self.brokers.items():
            self._process(name, broker.process)
            broker.start()
        sensors, uplink = self.brokers["sensor-broker"].port, self.brokers["uplink-broker"].port
        self.links = {
            "sensors": Link("sensors", sensors),
            "source": Link("source", sensors, self.acknowledged.tap),
            "uplink": Link("uplink", uplink),
            "link-a": Link("link-a", uplink),
            "link-b": Link("link-b", uplink),
        }
        for link in self.links.values():
            self.loop.run(link.open())
        self._build_cloud()
        self._build_edge()
        self.load = Load(self.seed, self.folder / "record", self.links["sensors"].url)

    def start(self) -> None:
        """Start Forebay's own processes and wait until they are ready."""
        for name in (*INGESTERS, "edge"):
            self.processes[name].start()
        for service in (*self.ingesters, self.edge):
            service.process.wait_until(service.is_ready, READY_TIMEOUT_S, "ready")
        self.edge.process.wait_until(self._is_subscribed, READY_TIMEOUT_S, "subscribed")

    def _is_subscribed(self) -> bool:
        page = self.edge.page("/status")
        return bool(page) and json.loads(page)["sources"]["plant"]["state"] == "open"

    # -- building --------------------------------------------------------------------------------------

    def _process(self, name: str, process: Process) -> None:
        self.processes[name] = process
        self.stack.callback(process.kill)

    def _small_disk(self) -> None:
        if not may_mount():
            self.skipped["fill"] = "only root may mount the small file system that it fills"
            return
        options = f"size={DISK_BYTES},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "forebay-chaos", str(self.store_folder)], check=True)
        self.stack.callback(subprocess.run, ["umount", str(self.store_folder)], check=True)

    def _build_cloud(self) -> None:
        sink = sink_part("influxdb1" if self.version == "1.8" else "influxdb2", self.folder, self.gateway)
        assert sink.server is not None, "these choices have a server"
        self._process("influxdb", sink.server.process)
        self.stored = sink.stored
        self.http = HttpFaults(sink.server.port)
        self.loop.run(self.http.open())
        toml = sink.toml.replace(sink.server.url, self.http.url)
        for name, link in zip(INGESTERS, ("link-a", "link-b"), strict=True):
            listen = f"127.0.0.1:{free_port()}"
            config = self.folder / f"{name}.toml"
            config.write_text(
                f'[broker]\nurl = "{self.links[link].url}"\nkeepalive = "5 s"\n\n[sink]\n{toml}\ntimeout = "3 s"\n\n'
                f'[limits]\nretry_most = "5 s"\n\n[metrics]\nlisten = "{listen}"\n'
            )
            process = Process(
                [program("forebay-cloud"), "run", str(config)], log=self.folder / f"{name}.log", env=sink.env
            )
            self._process(name, process)
            self.ingesters.append(Service(process, f"http://{listen}", "/healthz"))

    def _build_edge(self) -> None:
        listen = f"127.0.0.1:{free_port()}"
        profiles = self.folder / "profiles"
        profiles.mkdir()
        for name, text in PROFILES.items():
            (profiles / f"{name}.toml").write_text(text)
        plant = scenario()
        tables: dict[str, dict[str, Any]] = {
            "uplink": {"broker": self.links["uplink"].url, "keepalive": "5 s", "receipt_timeout": "2 s"},
            "store": {"path": str(self.store_folder / "edge.db"), "max_size": STORE_BYTES},
            "journal": {"keep": JOURNAL_KEEP, "max_size": "16 MiB"},
            "status": {"listen": listen},
            "source.plant": {
                "driver": "mqtt",
                "broker": self.links["source"].url,
                "topics": [plant.topic],
                "profile": plant.profile,
                "keepalive": "5 s",
            },
            f"source.{SERIAL_DEVICE}": {
                "driver": "serial",
                "port": str(self.folder / "record" / "ports" / SERIAL_DEVICE),
                "profile": plant.device[SERIAL_DEVICE].profile,
            },
        }
        lines = [f'gateway = "{self.gateway}"', 'profiles = ["profiles"]', 'ledger = "5 s"', 'heartbeat = "10 s"']
        for table, keys in tables.items():
            lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        config = self.folder / "edge.toml"
        config.write_text("\n".join(lines) + "\n")
        argv = [program("forebay-edge"), "run", str(config)]
        process = Process(argv, log=self.folder / "edge.log", env=self._clock_environment())
        self._process("edge", process)
        self.edge = Service(process, f"http://{listen}", "/readyz")

    def _clock_environment(self) -> dict[str, str]:
        """What makes the edge's wall clock (and no other) follow a file."""
        library = find_faketime()
        if not library:
            self.skipped["move"] = "libfaketime is not installed (Debian's package `libfaketime`)"
            return {}
        self._set_clock(0.0)
        return {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self._clock_file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }

    def _set_clock(self, ahead_s: float) -> None:
        fresh = self._clock_file.with_suffix(".new")
        fresh.write_text(f"{ahead_s:+.3f}\n")
        fresh.replace(self._clock_file)

    def watch_edge(self) -> int:
        """Note how long the edge has waited for a processor; ns in the last STARVED_WITHIN_S. To be called often."""
        now_s, pid = time.monotonic(), self.edge.process.pid
        waited_ns = 0
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                waited_ns += int(task.read_text().split()[1])
        self.waits.append((now_s, pid, waited_ns))
        while self.waits[0][0] < now_s - STARVED_WITHIN_S or self.waits[0][1] != pid:
            self.waits.popleft()
        return max(waited_ns - self.waits[0][2], 0)

    # -- faults ------------------------------------------------------------------------------------------

    def prepare(self, fault: Fault) -> None:
        """Some time before an `old` fault: have the broker save what it will later come back with."""
        broker = self.brokers[fault.part]
        broker.process.send(signal.SIGUSR1)
        time.sleep(SAVE_S)
        saved = broker.folder / "mosquitto.db"
        if saved.exists():
            shutil.copy(saved, broker.folder / f"old-{fault.number}.db")

    def begin(self, fault: Fault) -> str:
        """What there is to say about it beside its name."""
        begin: dict[str, Callable[[Fault], str]] = {
            "kill": self._kill,
            "empty": self._kill,
            "old": self._kill,
            "stop": self._suspend,
            "fill": self._fill_disk,
            "pull": self._pull,
            "move": self._move_clock,
        }
        if fault.kind in begin:
            return begin[fault.kind](fault)
        if fault.part == "http":
            return self.loop.run(self.http.begin(cast(HttpMode, fault.kind), fault.seed))
        return self.loop.run(self.links[fault.part].begin(cast(Mode, fault.kind), fault.seed))

    def end(self, fault: Fault) -> None:
        """Undo what `begin` has done."""
        end: dict[str, Callable[[Fault], None]] = {
            "kill": self._restart,
            "empty": self._restart,
            "old": self._restart,
            "stop": self._resume,
            "fill": lambda _: self._ballast.unlink(missing_ok=True),
            "pull": lambda _: self._plug(),
            "move": lambda _: self._set_clock(0.0),
        }
        if fault.kind in end:
            end[fault.kind](fault)
        elif fault.part == "http":
            self.loop.run(self.http.end())
        else:
            self.loop.run(self.links[fault.part].end())

    def _kill(self, fault: Fault) -> str:
        self.down.add(fault.part)
        starved_ns = self.watch_edge() if fault.part == "edge" else 0
        self.processes[fault.part].kill()
        if fault.part == "edge":
            self.away.append(Away("kill", time.time_ns(), starved_ns=starved_ns))
        if fault.kind == "empty":
            (self.brokers[fault.part].folder / "mosquitto.db").unlink(missing_ok=True)
        if fault.kind == "old":
            folder = self.brokers[fault.part].folder
            old = folder / f"old-{fault.number}.db"
            if not old.exists():
                return "it had saved nothing: as it was"
            old.replace(folder / "mosquitto.db")
        return ""

    def _restart(self, fault: Fault) -> None:
        self.processes[fault.part].start()
        self.down.discard(fault.part)
        if fault.part == "edge":
            self._is_back("kill")

    def _suspend(self, fault: Fault) -> str:
        self.processes[fault.part].suspend()
        if fault.part == "edge":
            self.away.append(Away("stop", time.time_ns()))
        return ""

    def _resume(self, fault: Fault) -> None:
        self.processes[fault.part].resume()
        if fault.part == "edge":
            self._is_back("stop")

    def _pull(self, fault: Fault) -> str:
        self._on_load(self.load.unplug)
        self.away.append(Away("cable", time.time_ns(), starved_ns=self.watch_edge()))
        return ""

    def _plug(self) -> None:
        self._on_load(self.load.plug)
        self._is_back("cable")

    def _is_back(self, cause: str) -> None:
        next(away for away in reversed(self.away) if away.cause == cause).ended_ns = time.time_ns()

    def _on_load(self, what: Callable[[], None]) -> None:
        done = threading.Event()
        self.load.ask(what)
        self.load.ask(done.set)
        done.wait(READY_TIMEOUT_S)

    @property
    def _ballast(self) -> Path:
        return self.store_folder / "ballast"

    def _fill_disk(self, fault: Fault) -> str:
        size = 0
        with self._ballast.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while written := ballast.write(bytes(64 << 10)):
                size += written
        return f"{size >> 10} KiB of ballast"

    def _move_clock(self, fault: Fault) -> str:
        source = random.Random(fault.seed)
        ahead_s = round(source.choice(AHEAD_S) * source.uniform(0.3, 1.0), 3)
        self._set_clock(ahead_s)
        return f"{ahead_s:+.1f} s"
