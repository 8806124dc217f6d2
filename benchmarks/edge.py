"""The cost of one message: JSON over MQTT at QoS 1 to an acknowledged commit, beside Telegraf on the same load.

    ./task bench edge [--messages N] [--rounds N] [--json FILE]

    load ─▶ mosquitto ─▶ forebay-edge ─▶ SQLite, then PUBACK ─▶ mosquitto ─▶ ingester ─▶ InfluxDB 1.8
                 └─────▶ Telegraf ─▶ InfluxDB 1.8, then PUBACK

Messages of 120 B come as fast as the broker takes them, from 100 devices, stamped on arrival, and all processes
share this machine. The figure is CPU of the process itself (user and system, children included), after a
warm-up, from the first message to the last that is stored. Each round runs both; medians count.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load
from benchmarks.harness import Meter, parser, report, rss_bytes, wait_for
from benchmarks.path import running_path, sensors_broker, wait_for_subscriber
from benchmarks.telegraf import telegraf
from simulators.servers import Broker, InfluxServer

PAYLOAD = (
    '{{"value": {value}, "unit": "Cel", "site": "pump-station-7", "serial": "A50285BI-{n:06d}", "status": "running"}}'
)
WARM_UP_MESSAGES = 20_000
TIMEOUT_S = 300.0
SETTLED_S = 3.0


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    cpu_us: float
    """Per message, of the process that is measured."""
    broker_cpu_us: float
    others_cpu_us: float
    """Per message, of all that the process writes to on this machine."""
    per_s: float
    rss_mb: float
    stored: int


def measure(
    messages: int, sensors: Broker, own: int, others: dict[str, int], stored: Callable[[], int], exact: bool
) -> Cost:
    """Send a warm-up, then the messages, and wait for them. `own`: pid; `stored()`: messages taken in so far."""
    _send(sensors, WARM_UP_MESSAGES, stored, exact)
    before = stored()
    with Meter(own=own, broker=sensors.process.pid, **others) as meter:
        done_s = _send(sensors, messages, stored, exact)
    used_us = {name: used_s / messages * 1e6 for name, used_s in meter.cpu_s.items()}
    return Cost(
        cpu_us=used_us.pop("own"),
        broker_cpu_us=used_us.pop("broker"),
        others_cpu_us=sum(used_us.values()),
        per_s=messages / done_s,
        rss_mb=rss_bytes(own) / 1e6,
        stored=stored() - before,
    )


def _send(sensors: Broker, messages: int, stored: Callable[[], int], exact: bool) -> float:
    """Seconds from the first message until the last one is stored.

    Where not `exact`, a few may be missing at the end: then it is over when nothing more has come for a while.
    """
    target = stored() + messages
    loader = load.start(sensors.port, messages, "--payload", PAYLOAD)
    began_s = changed_s = time.monotonic()
    load.go(loader)
    seen = -1

    def is_done() -> bool:
        nonlocal seen, changed_s
        now = stored()
        if now != seen:
            seen, changed_s = now, time.monotonic()
        settled = not exact and loader.poll() is not None and time.monotonic() - changed_s > SETTLED_S
        return now >= target or settled

    wait_for(is_done, TIMEOUT_S, f"{messages} messages stored", poll_s=0.2)
    load.finish(loader)
    return changed_s - began_s


def measure_forebay(messages: int, folder: Path) -> Cost:
    with running_path(folder) as path:
        others = {"ingester": path.ingester.process.pid, "influxdb": path.influxdb.process.pid}
        return measure(messages, path.sensors, path.edge.process.pid, others, path.produced, exact=True)


def measure_telegraf(messages: int, folder: Path) -> Cost:
    """Telegraf gives messages that arrive within one tick of its clock one time: of a series one is kept."""
    sensors, influxdb = sensors_broker(folder), InfluxServer(folder / "influxdb", "1.8")
    peer = telegraf(folder, sensors, influxdb)

    def stored() -> int:
        rows = influxdb.query("SELECT count(value) FROM mqtt_consumer")
        return int(rows[0]["count"]) if rows else 0

    try:
        sensors.start()
        influxdb.start()
        peer.start()
        wait_for_subscriber(sensors, peer)
        return measure(messages, sensors, peer.pid, {"influxdb": influxdb.process.pid}, stored, exact=False)
    finally:
        peer.stop()
        influxdb.stop()
        sensors.stop()


CONTENDERS = {"Forebay": measure_forebay, "Telegraf 1.39.3": measure_telegraf}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--messages", type=int, default=300_000)
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    costs: dict[str, list[Cost]] = {name: [] for name in CONTENDERS}
    for _ in range(arguments.rounds):
        for name, contender in CONTENDERS.items():
            with tempfile.TemporaryDirectory() as folder:
                costs[name].append(contender(arguments.messages, Path(folder)))

    def median(name: str, figure: str) -> float:
        return float(statistics.median(getattr(cost, figure) for cost in costs[name]))

    columns = ["cpu_us", "broker_cpu_us", "others_cpu_us", "per_s", "rss_mb"]
    ours, theirs = costs
    report(
        f"JSON 120 B over MQTT QoS 1, {arguments.messages} messages, medians of {arguments.rounds} rounds",
        [
            ["", "CPU us/message", "broker's", "sink's", "messages/s", "RSS MB", "lost"],
            *(
                [name, *(median(name, column) for column in columns), arguments.messages - costs[name][-1].stored]
                for name in costs
            ),
        ],
        {
            "cpu_us_per_message": median(ours, "cpu_us"),
            "telegraf_cpu_us_per_message": median(theirs, "cpu_us"),
            "ratio_telegraf": median(ours, "cpu_us") / median(theirs, "cpu_us"),
            "messages_per_s": median(ours, "per_s"),
            "telegraf_messages_per_s": median(theirs, "per_s"),
            "rss_mb": median(ours, "rss_mb"),
            "telegraf_rss_mb": median(theirs, "rss_mb"),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
