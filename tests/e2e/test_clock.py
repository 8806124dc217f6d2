"""A gateway without a battery behind its clock: it boots in 1970, and the clock jumps to now while sensors send."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import publish

from simulators.chaos.world import find_faketime
from simulators.parts import fetch, program
from simulators.processes import Process
from simulators.servers import Broker, free_port
from simulators.stored import SqliteStored

pytestmark = pytest.mark.real
LIMIT_S = 20.0

PROFILE = """\
name = "plain"
version = "1"

[codec]
name = "json"
value = "value"

[channel.level]
unit = "m"
report = "raw"
"""


@pytest.fixture
def faketime() -> str:
    library = find_faketime()
    if not library:
        missing = "libfaketime is not installed (Debian's package `libfaketime`; ./task test installs it)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return library


class Gateway:
    """The edge under a wall clock of its own; nothing else is moved."""

    def __init__(
        self, folder: Path, faketime: str, sensors: Broker, uplink: Broker, spawn: Callable[..., Process]
    ) -> None:
        self.sensors = sensors
        self.sent = 0
        self.clock = folder / "clock"
        self.listen = f"127.0.0.1:{free_port()}"
        (folder / "plain.toml").write_text(PROFILE)
        self.config = config = folder / "edge.toml"
        config.write_text(
            f'gateway = "g1"\n[uplink]\nbroker = "{uplink.url}"\n[status]\nlisten = "{self.listen}"\n'
            f'[store]\npath = "{folder}/store/edge.db"\nmax_size = "16 MiB"\n'
            f'[source.tank]\ndriver = "mqtt"\nbroker = "{sensors.url}"\ntopics = ["plant/{{device}}/{{channel}}"]\n'
            f'profile = "plain.toml"\n'
        )
        env = {
            "LD_PRELOAD": faketime,
            "FAKETIME_TIMESTAMP_FILE": str(self.clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
        self.set_clock(-time.time() + 3600)
        self.process = spawn([program("forebay-edge"), "run", str(config)], env=env)
        self.wait_ready()

    def set_clock(self, ahead_s: float) -> None:
        fresh = self.clock.with_suffix(".new")
        fresh.write_text(f"{ahead_s:+.3f}\n")
        fresh.replace(self.clock)

    def wait_ready(self) -> None:
        self.process.wait_until(lambda: fetch(f"http://{self.listen}/readyz") is not None, LIMIT_S, "ready")

    def reload(self) -> None:
        """With another configuration, while it runs."""
        self.config.write_text(self.config.read_text() + '[journal]\nkeep = "2 h"\n')
        self.process.send(signal.SIGHUP)
        until(lambda: self.status()["configuration"]["reloads"] == 1, self.process)

    def status(self) -> dict[str, Any]:
        page = fetch(f"http://{self.listen}/status")
        return json.loads(page) if page else {}

    def send(self, count: int) -> None:
        """And wait until the edge has taken it."""
        for _ in range(count):
            publish.single(
                "plant/tank/level", json.dumps({"value": self.sent}), 1, hostname="127.0.0.1", port=self.sensors.port
            )
            self.sent += 1
        until(lambda: self.produced() == self.sent, self.process)

    def produced(self) -> int:
        return int(self.status().get("ledger", {}).get("produced", 0))


def until(condition: Callable[[], bool], process: Process) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, process.output()[-3000:]
        time.sleep(0.1)


@pytest.mark.parametrize("meanwhile", ["killed", "reloaded"])
def test_a_gateway_that_boots_in_1970_stores_nothing_of_that_year_and_loses_nothing(
    tmp_path: Path, faketime: str, mosquitto: Callable[..., Broker], spawn: Callable[..., Process], meanwhile: str
) -> None:
    sensors, uplink = mosquitto(), mosquitto()
    listen = f"127.0.0.1:{free_port()}"
    (tmp_path / "cloud.toml").write_text(
        f'[broker]\nurl = "{uplink.url}"\n[sink]\nurl = "sqlite://{tmp_path / "points.db"}"\n'
        f'[metrics]\nlisten = "{listen}"\n'
    )
    cloud = spawn([program("forebay-cloud"), "run", str(tmp_path / "cloud.toml")])
    cloud.wait_until(lambda: fetch(f"http://{listen}/healthz") is not None, LIMIT_S, "ready")
    begun_ns = time.time_ns()
    gateway = Gateway(tmp_path, faketime, sensors, uplink, spawn)
    gateway.send(20)
    clock = gateway.status()["clock"]
    assert not clock["trusted"]
    assert clock["held"] == 20

    if meanwhile == "killed":
        gateway.process.kill()
        gateway.process.start()
        gateway.wait_ready()
    else:
        gateway.reload()
    gateway.send(20)
    assert gateway.status()["clock"]["held"] == 40

    gateway.set_clock(0.0)
    until(lambda: gateway.status()["clock"]["trusted"], gateway.process)
    gateway.send(20)
    stored = SqliteStored(tmp_path / "points.db", "g1")

    def arrived() -> int:
        found = stored.series().get(("tank", "level")) if (tmp_path / "points.db").exists() else None
        return 0 if found is None else len(found.raw_ns)

    until(lambda: arrived() == gateway.sent, cloud)
    times_ns = stored.series()["tank", "level"].raw_ns
    assert (times_ns > begun_ns).all()
    assert (times_ns < time.time_ns()).all()
    assert gateway.status()["ledger"]["imbalance"] == 0
