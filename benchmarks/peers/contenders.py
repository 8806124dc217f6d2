"""The programs that are killed, each configured to lose as little as its documentation knows how.

Forebay   An edge as a user would write it, with windows of 1 s or 10 s, or every sample (`report = "raw"`).
          Ingester and the uplink's broker run beside it and are not killed.

Telegraf  mqtt_consumer with `qos = 1`, `persistent_session` and a client id: it then tracks each message and
          acknowledges it once its outputs have taken it, which is what its documentation offers against loss.
          `max_undelivered_messages` (20,000) and the limits of batch and buffer are raised far above their defaults
          (1,000, 1,000 and 10,000), so that they bound nothing here, and it flushes each second instead of each ten.
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
from benchmarks.peers.account import MILLISECOND_NS
from benchmarks.telegraf import find_telegraf
from simulators.parts import PASSWORD_VARIABLE, SinkPart, ingester_service, program
from simulators.processes import Process
from simulators.servers import Broker, InfluxServer, free_port
from simulators.stored import InfluxStored

SECOND_NS = 1_000_000_000
READY_TIMEOUT_S = 60.0
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
name = "peers"
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
        sink = SinkPart(
            "influxdb1",
            f'url = "{influxdb.url}"\ndatabase = "{influxdb.database}"\n'
            f'user = "{influxdb.user}"\npassword_env = "{PASSWORD_VARIABLE}"',
            InfluxStored(influxdb.url, influxdb.database, influxdb.token, "peers"),
            influxdb,
            {PASSWORD_VARIABLE: influxdb.password},
        )
        ingester = ingester_service(folder, uplink, sink)
        ending.callback(ingester.process.kill)
        ingester.process.start()
        ingester.process.wait_until(ingester.is_ready, READY_TIMEOUT_S, "ready")
        (folder / "peers.toml").write_text(f"{PROFILE}{channel}\n")
        config = folder / "edge.toml"
        config.write_text(f"""\
gateway = "peers"

[uplink]
broker = "{uplink.url}"

[store]
path = "{folder}/edge.db"

[status]
listen = "127.0.0.1:{free_port()}"

[source.plant]
driver = "mqtt"
broker = "{sensors.url}"
topics = ["plant/{{device}}/{{channel}}"]
profile = "peers.toml"
""")
        edge = Process([program("forebay-edge"), "run", str(config)], log=folder / "edge.log")
        return Peer(edge, ingester.process)

    return make


def telegraf(agent: str = "", tables: str = "") -> Callable[[Path, Broker, InfluxServer, ExitStack], Peer]:
    """`agent`: more keys of `[agent]`, which may name `{folder}`; `tables`: more plugins."""

    def make(folder: Path, sensors: Broker, influxdb: InfluxServer, ending: ExitStack) -> Peer:
        config = folder / "telegraf.conf"
        config.write_text(f"""\
[agent]
  interval = "1s"
  flush_interval = "1s"
  metric_batch_size = 5000
  metric_buffer_limit = 200000
  omit_hostname = true
  quiet = true
{agent.format(folder=folder)}

[[inputs.mqtt_consumer]]
  servers = ["tcp://{sensors.host}:{sensors.port}"]
  topics = ["plant/#"]
  qos = 1
  persistent_session = true
  client_id = "telegraf"
  max_undelivered_messages = 20000
  data_format = "json"
  json_time_key = "time"
  json_time_format = "unix_ms"

{tables}

[[outputs.influxdb]]
  urls = ["{influxdb.url}"]
  database = "{influxdb.database}"
  username = "{influxdb.user}"
  password = "{influxdb.password}"
  skip_database_creation = true
""")
        return Peer(Process([str(find_telegraf()), "--config", str(config)], log=folder / "telegraf.log"))

    return make


def basicstats(period_s: int) -> str:
    return f"""\
[[aggregators.basicstats]]
  period = "{period_s}s"
  grace = "60s"
  drop_original = true
  stats = ["count", "min", "max", "mean", "stdev"]
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
