"""The programs that are killed, each configured to lose as little as its documentation knows how.

Forebay   An edge as a user would write it, with windows of 1 s or 10 s, or every sample (`report = "raw"`).
          Ingester and the uplink's broker run beside it and are not killed.

Telegraf  mqtt_consumer with `qos = 1`, `persistent_session` and a client id: it then tracks each message and
          acknowledges it once its outputs have taken it, which is what its documentation offers against loss.
          The rest of it is in `benchmarks/telegraf.py`.
          Times come from the message (`json_time_key`): a message that comes twice replaces its own point.
  disk buffer  `buffer_strategy = "disk"`, with `buffer_disk_sync` off, which only a power failure could tell: with it,
               one fsync a message, it took some 600 messages/s here.
  basicstats   `drop_original`, with a `grace` of a minute, without which it throws away each message that has waited
               for a restart. Its points bear the time at which they were made, so that they can be compared by
               series alone: a message that is lost makes up for one that is counted twice, in its favour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import TOPIC
from benchmarks.path import GATEWAY, READY_TIMEOUT_S, edge_service
from benchmarks.peers.account import MILLISECOND_NS
from benchmarks.telegraf import telegraf as a_telegraf
from simulators.parts import influxdb_part, ingester_service
from simulators.processes import Process
from simulators.servers import Broker, InfluxServer

SECOND_NS = 1_000_000_000
TOPIC_HEAD, _, TOPIC_TAIL = TOPIC.partition("press-{device}")


@dataclass(frozen=True)
class Peer:
    """A contender that has not been started."""

    process: Process
    """What is killed."""
    cloud: Process | None = None
    """What runs beside it, and writes for it."""


@dataclass(frozen=True)
class Points:
    """Where its samples are in InfluxDB."""

    measurement: str
    field: str
    is_count: bool
    """The field counts samples; else each point is one."""
    tag: str

    def read(self, influxdb: InfluxServer) -> Iterator[tuple[str, int, int]]:
        """(device, time_ns, samples) of each point."""
        for row in influxdb.query(f'SELECT "{self.field}" FROM "{self.measurement}" GROUP BY "{self.tag}"'):
            device = row[self.tag].removeprefix(TOPIC_HEAD).removesuffix(TOPIC_TAIL)
            yield device, row["time"], int(row[self.field]) if self.is_count else 1

    def total(self, influxdb: InfluxServer) -> int:
        """Samples of all points."""
        function = "sum" if self.is_count else "count"
        rows = influxdb.query(f'SELECT {function}("{self.field}") FROM "{self.measurement}"')
        return int(rows[0][function]) if rows else 0


@dataclass(frozen=True)
class Contender:
    key: str
    """In the JSON file."""
    name: str
    grain_ns: int
    """By which its points are compared; see `account`."""
    window_s: int
    """For so long it may hold samples back; 0: it does not summarise."""
    points: tuple[Points, ...]
    make: Callable[[Path, Broker, InfluxServer, ExitStack], Peer]
    """Its processes, in a folder; the stack ends what runs beside it."""

    def stored(self, influxdb: InfluxServer) -> Iterator[tuple[str, int, int]]:
        for points in self.points:
            yield from points.read(influxdb)

    def total(self, influxdb: InfluxServer) -> int:
        return sum(points.total(influxdb) for points in self.points)


PROFILE = """\
name = "bench"
version = "1"

[codec]
name = "json"
value = "value"
time = "time"
time_format = "ms"

[channel.temperature]
unit = "Cel"
range = [0, 100]
"""


def forebay(channel: str) -> Callable[[Path, Broker, InfluxServer, ExitStack], Peer]:
    """`channel`: the settings of the channel in the profile."""

    def make(folder: Path, sensors: Broker, influxdb: InfluxServer, ending: ExitStack) -> Peer:
        uplink = Broker(folder / "uplink")
        ending.callback(uplink.kill)
        uplink.start()
        ingester = ingester_service(folder, uplink, influxdb_part(influxdb, GATEWAY))
        ending.callback(ingester.process.kill)
        ingester.process.start()
        ingester.process.wait_until(ingester.is_ready, READY_TIMEOUT_S, "ready")
        edge = edge_service(folder, sensors, uplink, f"{PROFILE}{channel}\n")
        return Peer(edge.process, ingester.process)

    return make


def telegraf(agent: str = "", tables: str = "") -> Callable[[Path, Broker, InfluxServer, ExitStack], Peer]:
    """`agent`: more keys of `[agent]`, which may name `{folder}`; `tables`: more plugins."""

    def make(folder: Path, sensors: Broker, influxdb: InfluxServer, ending: ExitStack) -> Peer:
        told = agent.format(folder=folder)
        return Peer(a_telegraf(folder, sensors, influxdb, agent=told, parser=TIMED, tables=tables))

    return make


def basicstats(period_s: int) -> str:
    return f"""\
[[aggregators.basicstats]]
  period = "{period_s}s"
  grace = "60s"
  drop_original = true
  stats = ["count", "min", "max", "mean", "stdev"]
"""


TIMED = """\
  json_time_key = "time"
  json_time_format = "unix_ms"
"""
DISK_BUFFER = """\
  buffer_strategy = "disk"
  buffer_directory = "{folder}/buffer"
  buffer_disk_sync = false
"""

_SUMMARIES = Points("temperature", "count", is_count=True, tag="device")
_RAW = Points("temperature_raw", "value", is_count=False, tag="device")
_PASSED = Points("mqtt_consumer", "value", is_count=False, tag="topic")
_COUNTED = Points("mqtt_consumer", "value_count", is_count=True, tag="topic")

CONTENDERS = (
    Contender("forebay_1s", "Forebay, 1 s", SECOND_NS, 1, (_SUMMARIES, _RAW), forebay('window = "1 s"')),
    Contender("forebay_10s", "Forebay, 10 s", 10 * SECOND_NS, 10, (_SUMMARIES, _RAW), forebay('window = "10 s"')),
    Contender("forebay_raw", "Forebay, raw", MILLISECOND_NS, 0, (_SUMMARIES, _RAW), forebay('report = "raw"')),
    Contender("telegraf", "Telegraf", MILLISECOND_NS, 0, (_PASSED,), telegraf()),
    Contender("telegraf_disk", "Telegraf, disk buffer", MILLISECOND_NS, 0, (_PASSED,), telegraf(DISK_BUFFER)),
    Contender("telegraf_1s", "Telegraf, basicstats 1 s", 0, 1, (_COUNTED,), telegraf(tables=basicstats(1))),
    Contender("telegraf_10s", "Telegraf, basicstats 10 s", 0, 10, (_COUNTED,), telegraf(tables=basicstats(10))),
)
"""In the order of the table. What summarises does so in windows or periods of 1 s and of 10 s."""
