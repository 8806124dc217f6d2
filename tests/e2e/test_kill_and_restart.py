"""The real path under `kill -9`: each part is killed in turn while devices send; the account is made at the end."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.model import SECOND_NS
from simulators.fleet import Fleet
from simulators.parts import fetch, program
from simulators.records import RecordReader
from simulators.scenario import load_scenario
from simulators.score import is_settled, score
from simulators.servers import Broker, free_port
from simulators.stored import SqliteStored

pytestmark = pytest.mark.real
LIMIT_S = 60.0

SCENARIO = """\
[device.press]
count = 40
rate_hz = 5.0
channel.temperature = { kind = "gauge", unit = "Cel", level = 61.0, noise = 0.25, decimals = 2 }
channel.strokes = { kind = "counter", unit = "1", per_second = 16.0 }
channel.mode = { kind = "state", words = ["idle", "running"], change_every_s = 3.0 }
"""
PROFILE = """\
name = "plant"
version = "1"

[codec]
name = "json"
value = "value"
time = "timestamp"
time_format = "ms"

[channel.temperature]
unit = "Cel"
window = "2 s"
lateness = "1 s"
idle_close = "%(idle)s"
filters.zscore = false

[channel.strokes]
kind = "counter"
unit = "1"
window = "1 s"
lateness = "1 s"
idle_close = "%(idle)s"

[channel.mode]
kind = "state"
window = "2 s"
lateness = "1 s"
idle_close = "%(idle)s"
mapping = { idle = 0, running = 1 }
"""


class World:
    """Brokers, an ingester and gateways, as processes."""

    def __init__(self, folder: Path, mosquitto: Callable[..., Broker], spawn: Callable[..., Any], idle: str) -> None:
        self.folder = folder
        self.sensors = mosquitto(max_inflight_messages=500)
        self.uplink = mosquitto()
        self._spawn = spawn
        (folder / "plant.toml").write_text(PROFILE % {"idle": idle})
        (folder / "scenario.toml").write_text(SCENARIO)
        sink = f"sqlite://{folder / 'points.db'}"
        self.ingester = self._start(
            "forebay-cloud",
            "cloud",
            f'[broker]\nurl = "{self.uplink.url}"\n[sink]\nurl = "{sink}"\n',
            "metrics",
            "healthz",
        )

    def _start(self, name: str, file: str, config: str, table: str, ready: str) -> Any:
        listen = f"127.0.0.1:{free_port()}"
        path = self.folder / f"{file}.toml"
        path.write_text(f'{config}\n[{table}]\nlisten = "{listen}"\n')
        process = self._spawn([program(name), "run", str(path)])
        process.page = lambda page: fetch(f"http://{listen}/{page}")
        process.wait_until(lambda: process.page(ready) is not None, LIMIT_S, "ready")
        return process

    def gateway(self, name: str) -> Any:
        """A running edge; its own store, and a session of its own at the sensors' broker."""
        config = f"""\
gateway = "{name}"
ledger = "1 s"
[uplink]
broker = "{self.uplink.url}"
receipt_timeout = "2 s"
[store]
path = "{self.folder}/{name}/edge.db"
max_size = "32 MiB"
[source.plant]
driver = "mqtt"
broker = "{self.sensors.url}"
topics = ["plant/{{device}}/{{channel}}"]
profile = "plant.toml"
"""
        return self._start("forebay-edge", name, config, "status", "readyz")

    def stored(self, name: str) -> SqliteStored:
        return SqliteStored(self.folder / "points.db", name)

    @contextmanager
    def devices(self) -> Iterator[RecordReader]:
        """They send while this lasts; after it all that they sent has been acknowledged by their broker."""
        fleet = Fleet(load_scenario(str(self.folder / "scenario.toml")), 1, self.folder / "record", self.sensors.url)
        stop = threading.Event()
        sending = threading.Thread(target=fleet.run, args=(stop,))
        sending.start()
        try:
            yield RecordReader(self.folder / "record")
        finally:
            stop.set()
            sending.join()
            fleet.close()


def kill_and_restart(process: Any, ready: str, away_s: float = 0.0) -> None:
    process.kill()
    time.sleep(away_s)
    process.start()
    process.wait_until(lambda: process.page(ready) is not None, LIMIT_S, "ready")


@pytest.fixture
def world(tmp_path: Path, mosquitto: Any, spawn: Any) -> Callable[[str], World]:
    return lambda idle: World(tmp_path, mosquitto, spawn, idle)


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError
        time.sleep(0.2)


def test_nothing_is_lost_or_doubled_whatever_is_killed(world: Callable[[str], World]) -> None:
    parts = world("3 s")
    edge = parts.gateway("g1")
    with parts.devices() as record:
        time.sleep(2)
        kill_and_restart(edge, "readyz")
        time.sleep(1)
        kill_and_restart(edge, "readyz", away_s=0.7)
        kill_and_restart(parts.ingester, "healthz")
        time.sleep(1)
        parts.uplink.kill()
        time.sleep(1)
        kill_and_restart(edge, "readyz")
        parts.uplink.start()  # empty
        time.sleep(1)
        kill_and_restart(parts.ingester, "healthz", away_s=0.5)
        kill_and_restart(edge, "readyz")
    records, stored = record.by_series(), parts.stored("g1")
    assert sum(len(one.time_ns) for one in records) > 3000
    until(lambda: is_settled(records, stored))
    report = score(records, [], stored)
    said = f"{report}\n{edge.output()[-3000:]}"
    assert (report.lost, report.doubled, report.altered, report.waiting) == (0, 0, 0, 0), said
    assert report.rejected == {}, said
    assert report.dropped == {}, said
    ledger = json.loads(edge.page("status"))["ledger"]
    assert ledger["imbalance"] == 0, ledger
    assert ledger["produced"] == report.produced, ledger


def test_a_gateway_that_is_killed_makes_the_same_points_as_one_that_is_not(world: Callable[[str], World]) -> None:
    """Windows close by the samples' own times here: the same input must lead to the same points, to the last bit."""
    parts = world("60 s")
    parts.gateway("calm")
    edge = parts.gateway("killed")
    with parts.devices() as record:
        for away_s in (0.0, 0.5, 0.0, 0.3):
            time.sleep(1.7)
            kill_and_restart(edge, "readyz", away_s)
    records = record.by_series()
    strokes = [one for one in records if one.series.channel == "strokes"]
    assert len(strokes) == 40

    def is_complete(gateway: str) -> bool:
        """The last windows that the samples' times can close are there."""
        stored = parts.stored(gateway).series()
        return all(
            (found := stored.get((one.series.device, "strokes"))) is not None
            and found.time_ns.max(initial=0) >= one.time_ns.max() - 3 * SECOND_NS
            for one in strokes
        )

    until(lambda: is_complete("calm") and is_complete("killed"))
    with contextlib.suppress(TimeoutError):  # what was sent last may still be on its way
        until(lambda: not differences(parts.stored("calm"), parts.stored("killed")))
    assert differences(parts.stored("calm"), parts.stored("killed")) == []


def differences(one: SqliteStored, other: SqliteStored) -> list[str]:
    """Series and columns in which two gateways differ."""
    first, second = one.series(), other.series()
    found = [f"{key} is missing" for key in first.keys() ^ second.keys()]
    for key in first.keys() & second.keys():
        for column in ("time_ns", "span_ms", "count", "mean", "min", "max", "first", "last", "change_ns", "change"):
            a, b = getattr(first[key], column), getattr(second[key], column)
            if not np.array_equal(a, b, equal_nan=True):
                found.append(f"{key} {column}: {a} {b}")
    return found
