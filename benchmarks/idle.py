"""What an idle gateway costs in a month, at the socket of its uplink, in both directions.

    ./task bench idle [--json FILE]

The real gateway on a real mosquitto, with a real ingester that receipts (SQLite as its sink). It takes a few samples
at the start and none after that. Two stretches are measured, each with only one thing going on, by the gateway's
own count of the bytes at its socket: heartbeats of 1 s with their receipts, and pings of 5 s, the shortest keepalive.
The month is computed from these, from what the start cost, and from the configuration's defaults: it holds the
heartbeats, one ping every keepalive, and a new connect every day with the heartbeats that follow it.
With TCP/IP: 40 bytes more for each packet and each bare acknowledgement, estimated and not measured; TLS is not in it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.harness import parser, report, wait_for
from edge.config import GatewayConfig, UplinkConfig
from edge.report import FIRST_HEARTBEATS_NS
from simulators.parts import Service, ingester_service, program, sink_part
from simulators.processes import Process
from simulators.servers import Broker, free_port

MONTH_S = 31 * 86_400
CONNECTS = 31
READY_TIMEOUT_S = 60.0
SETTLE_S = 8.0
MEASURE_S = 30.0
TCP_IP_BYTES = 40
PACKETS_PER_HEARTBEAT = 6
"""Frame, PUBACK, receipt, its PUBACK, and some bare acknowledgements between them."""
PACKETS_PER_PING = 3


def traffic(edge: Service) -> tuple[int, int]:
    """(bytes at the socket, frames published)."""
    link = json.loads(edge.page("/status"))["link"]
    page = edge.page("/metrics").decode()
    frames = next(line for line in page.splitlines() if line.startswith("forebay_frames_published_total "))
    return link["bytes_in"] + link["bytes_out"], int(float(frames.split()[1]))


@contextmanager
def idle_gateway(folder: Path, heartbeat: str, keepalive: str) -> Iterator[Service]:
    """A gateway of which nothing is read any more, and whose frames are receipted."""
    folder.mkdir()
    uplink = Broker(folder / "uplink")
    listen = f"127.0.0.1:{free_port()}"
    config = folder / "edge.toml"
    config.write_text(f"""\
gateway = "pump-station-7"
heartbeat = "{heartbeat}"
ledger = "15 min"
[uplink]
broker = "{uplink.url}"
keepalive = "{keepalive}"
[store]
path = "{folder}/edge.db"
max_size = "8 MiB"
[status]
listen = "{listen}"
[source.host]
driver = "host"
every = "1 d"
""")
    with ExitStack() as ending:
        uplink.start()
        ending.callback(uplink.stop)
        process = Process([program("forebay-edge"), "run", str(config)], log=folder / "edge.log")
        edge = Service(process, f"http://{listen}", "/readyz")
        for service in (ingester_service(folder, uplink, sink_part("sqlite", folder, "pump-station-7")), edge):
            service.process.start()
            ending.callback(service.process.stop)
            service.process.wait_until(service.is_ready, READY_TIMEOUT_S, "ready")
        wait_for(lambda: json.loads(edge.page("/status"))["store"]["outbox_frames"] == 0, READY_TIMEOUT_S, "receipts")
        time.sleep(SETTLE_S)
        yield edge


def measure(folder: Path, heartbeat: str, keepalive: str) -> tuple[int, int, int]:
    """(bytes until it was idle, bytes while it was, frames published while it was)."""
    with idle_gateway(folder, heartbeat, keepalive) as edge:
        start_bytes, start_frames = traffic(edge)
        time.sleep(MEASURE_S)
        end_bytes, end_frames = traffic(edge)
    return start_bytes, end_bytes - start_bytes, end_frames - start_frames


def main() -> None:
    arguments = parser(__doc__).parse_args()
    defaults, keepalive_s = GatewayConfig("g"), UplinkConfig("mqtt://localhost").keepalive.s
    with tempfile.TemporaryDirectory() as name:
        _, beating_bytes, beats = measure(Path(name) / "beating", "1 s", "65535 s")
        start_bytes, pinging_bytes, frames = measure(Path(name) / "pinging", "1 d", "5 s")
    if frames or beats < MEASURE_S / 2:
        raise SystemExit(f"not what was to be measured: {frames} frames beside pings, {beats} heartbeats in a stretch")
    heartbeat_bytes = beating_bytes / beats
    ping_bytes = pinging_bytes / (MEASURE_S / 5)
    doublings = (defaults.heartbeat.ns // FIRST_HEARTBEATS_NS).bit_length()
    heartbeats = MONTH_S / defaults.heartbeat.s + CONNECTS * doublings
    pings = MONTH_S / keepalive_s
    month_bytes = heartbeats * heartbeat_bytes + pings * ping_bytes + CONNECTS * start_bytes
    packets = heartbeats * PACKETS_PER_HEARTBEAT + pings * PACKETS_PER_PING
    report(
        f"An idle gateway, heartbeat {defaults.heartbeat}, keepalive {keepalive_s:g} s, one connect a day",
        [
            ["", "bytes each", "a month", "bytes a month"],
            ["heartbeat and receipt", heartbeat_bytes, heartbeats, heartbeats * heartbeat_bytes],
            ["ping and answer", ping_bytes, pings, pings * ping_bytes],
            ["start: connect, inventory, ledger, samples", start_bytes, CONNECTS, CONNECTS * start_bytes],
        ],
        {
            "heartbeat_bytes": heartbeat_bytes,
            "ping_bytes": ping_bytes,
            "idle_bytes_per_month": month_bytes,
            "idle_ip_bytes_per_month": month_bytes + packets * TCP_IP_BYTES,
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
