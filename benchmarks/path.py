"""The real path for benchmarks: the sensors' broker, the edge, the uplink's broker, the ingester and InfluxDB 1.8."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulators.parts import Service, ingester_service, program, sink_part
from simulators.processes import Process
from simulators.servers import Broker, InfluxServer, free_port

GATEWAY = "bench"
READY_TIMEOUT_S = 60.0
INFLIGHT = 2000
"""Messages that the sensors' broker sends ahead of acknowledgements; its default of 20 would be what is measured."""

PROFILE = """\
name = "bench"
version = "1"

[codec]
name = "json"
value = "value"

[channel."*"]
range = [0, 100]
window = "1 s"
off_delay = "0 s"
"""
"""Windows of 1 s, so that summaries are made, sent and receipted while a benchmark of a few seconds runs."""


@dataclass(frozen=True)
class RunningPath:
    """Its processes, all of them ready."""

    sensors: Broker
    uplink: Broker
    influxdb: InfluxServer
    edge: Service
    ingester: Service

    def produced(self) -> int:
        """Samples that the edge's ledger has taken in. Raises RuntimeError when it rejected or dropped any."""
        ledger = self.status("ledger")
        if any(ledger.get("rejected", {}).values()) or any(ledger.get("dropped", {}).values()):
            raise RuntimeError(f"the edge rejected or dropped samples of the load: {ledger}")
        return int(ledger.get("produced", 0))

    def status(self, part: str) -> dict[str, Any]:
        """A part of the edge's status; empty while it does not answer."""
        page = self.edge.page("/status")
        found: dict[str, Any] = json.loads(page)[part] if page else {}
        return found


def sensors_broker(folder: Path) -> Broker:
    """A broker without limits that writes to its log who subscribes."""
    return Broker(folder / "sensors", max_inflight_messages=INFLIGHT, lines=["log_type subscribe"])


def wait_for_subscriber(sensors: Broker, consumer: Process) -> None:
    consumer.wait_until(lambda: "plant/" in sensors.process.output(), READY_TIMEOUT_S, "subscribed to the sensors")


@contextmanager
def running_path(folder: Path, *, profile: str = PROFILE, store: str = "") -> Iterator[RunningPath]:
    """All of it, started in order in `folder`, and ended in reverse. `store`: more lines of the edge's [store]."""
    sensors, uplink = sensors_broker(folder), Broker(folder / "uplink")
    with ExitStack() as ending:
        for broker in (sensors, uplink):
            broker.start()
            ending.callback(broker.stop)
        sink = sink_part("influxdb1", folder, GATEWAY)
        assert sink.server is not None
        ending.callback(sink.server.stop)
        ingester = ingester_service(folder, uplink, sink)
        edge = edge_service(folder, sensors, uplink, profile, store=store)
        for service in (ingester, edge):
            service.process.start()
            ending.callback(service.process.stop)
            service.process.wait_until(service.is_ready, READY_TIMEOUT_S, "ready")
        wait_for_subscriber(sensors, edge.process)
        yield RunningPath(sensors, uplink, sink.server, edge, ingester)


def edge_service(folder: Path, sensors: Broker, uplink: Broker, profile: str, *, store: str = "") -> Service:
    """An edge as a user would write it, not yet started. JSON comes from plant/DEVICE/CHANNEL; `profile`: the text of
    bench.toml."""
    listen = f"127.0.0.1:{free_port()}"
    (folder / "bench.toml").write_text(profile)
    config = folder / "edge.toml"
    config.write_text(f"""\
gateway = "{GATEWAY}"

[uplink]
broker = "{uplink.url}"

[store]
path = "{folder}/edge.db"
{store}

[status]
listen = "{listen}"

[source.plant]
driver = "mqtt"
broker = "{sensors.url}"
topics = ["plant/{{device}}/{{channel}}"]
profile = "bench.toml"
""")
    process = Process([program("forebay-edge"), "run", str(config)], log=folder / "edge.log")
    return Service(process, f"http://{listen}", "/readyz")
