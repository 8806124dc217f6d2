"""A gateway that can take no more: what its sources notice, and that it stays connected to them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import sqlite3
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from paho.mqtt import publish, subscribe

from simulators.parts import fetch, program

pytestmark = pytest.mark.real

CHANNELS = 200
LARGE = 1_500
"""Messages that are more than the intake and the socket's buffers hold."""
KEEPALIVE_S = 5

EDGE = """
gateway = "g1"
profiles = ["profiles"]
[uplink]
broker = "{uplink}"
[store]
path = "{folder}/edge.db"
max_size = "8 MiB"
when_full = "block"
[limits]
intake_samples = 2000
[status]
listen = "{listen}"
[source.plant]
driver = "mqtt"
broker = "{sensors}"
topics = ["plant/{{device}}"]
profile = "all-raw"
keepalive = "{keepalive} s"
[source.host]
driver = "host"
every = "20 ms"
[source.scale]
driver = "serial"
port = "{port}"
baud_rate = 115200
profile = "all-raw"
"""
PROFILE = """
name = "all-raw"
version = "1"
[codec]
name = "json"
[channel."*"]
report = "raw"
"""


def until(reached: Callable[[], Any]) -> Any:
    for _ in range(3000):
        if found := reached():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came to that")


def message(number: int) -> bytes:
    """Raw doubles that do not compress."""
    drawn = random.Random(number)
    return json.dumps({f"c{i}": drawn.random() for i in range(CHANNELS)}).encode()


def stored_of_a(path: Path) -> int:
    """Samples of the device `a` in the sink."""
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as sink:
        query = "SELECT count(*) FROM points WHERE json_extract(tags, '$.device') = 'a' AND measurement LIKE '%_raw'"
        with contextlib.suppress(sqlite3.OperationalError):  # the ingester is just making it
            return int(sink.execute(query).fetchone()[0])
    return 0


def test_a_full_gateway_makes_its_sources_wait_skips_polls_and_counts_what_a_port_loses(
    mosquitto: Callable[..., Any], spawn: Callable[..., Any], free_port: Callable[[], int], tmp_path: Path
) -> None:
    sensors, uplink = mosquitto(lines=["sys_interval 1"]), mosquitto()
    listen = f"127.0.0.1:{free_port()}"
    master, slave = pty.openpty()
    tty.setraw(master)
    os.set_blocking(master, False)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "all-raw.toml").write_text(PROFILE)
    config = tmp_path / "edge.toml"
    config.write_text(
        EDGE.format(
            uplink=uplink.url, sensors=sensors.url, folder=tmp_path, listen=listen, port=os.ttyname(slave),
            keepalive=KEEPALIVE_S,
        )
    )  # fmt: skip
    edge = spawn([program("forebay-edge"), "run", str(config)])

    def status() -> dict[str, Any]:
        return json.loads(fetch(f"http://{listen}/status") or b"{}")

    def source(name: str) -> dict[str, Any]:
        found: dict[str, Any] = status().get("sources", {}).get(name, {})
        return found

    def stored_at_broker() -> int:
        said = subscribe.simple("$SYS/broker/store/messages/count", hostname=sensors.host, port=sensors.port)
        return int(said.payload)

    until(lambda: source("plant").get("state") == "open")
    sent = 0
    while not status()["store"]["blocked"]:
        part = range(sent, sent + 100)
        publish.multiple([("plant/a", message(n), 1, False) for n in part], hostname=sensors.host, port=sensors.port)
        sent += 100
    until(lambda: source("plant")["state"] == "paused")
    taken, size_bytes = source("plant")["messages"], psutil.Process(edge.pid).memory_info().rss
    waited = stored_at_broker()
    paused_s = time.monotonic()
    part = range(sent, sent + LARGE)
    publish.multiple([("plant/a", message(n), 1, False) for n in part], hostname=sensors.host, port=sensors.port)
    sent += LARGE

    def device_talks() -> int:
        with contextlib.suppress(BlockingIOError):
            os.write(master, b'{"weight": 1.5}\n' * 50)
        return int(source("scale")["overruns"])

    until(device_talks)
    until(lambda: source("host")["skipped"] > 10)
    until(lambda: stored_at_broker() >= waited + LARGE)
    until(lambda: time.monotonic() > paused_s + 1.6 * KEEPALIVE_S)
    metrics = (fetch(f"http://{listen}/metrics") or b"").decode()
    assert 'forebay_source_skipped_polls_total{source="host"} 0' not in metrics
    assert 'forebay_source_overrun_bytes_total{source="scale"} 0' not in metrics
    plant = source("plant")
    assert (plant["state"], plant["messages"], plant["reconnects"]) == ("paused", taken, 0)
    assert psutil.Process(edge.pid).memory_info().rss < size_bytes + (8 << 20)

    cloud = tmp_path / "cloud.toml"
    metrics_address = f"127.0.0.1:{free_port()}"
    cloud.write_text(
        f'[broker]\nurl = "{uplink.url}"\n[sink]\nurl = "sqlite:{tmp_path}/sink.db"\n'
        f'[metrics]\nlisten = "{metrics_address}"\n'
    )
    spawn([program("forebay-cloud"), "run", str(cloud)])
    until(lambda: stored_of_a(tmp_path / "sink.db") == sent * CHANNELS)
    until(lambda: source("plant")["state"] == "open" and not status()["store"]["blocked"])
    assert source("plant")["messages"] == sent
    os.close(master)
    os.close(slave)
