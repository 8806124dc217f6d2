"""The peer: Telegraf 1.39.3 as its users run it, mqtt_consumer to InfluxDB, acknowledged after the write."""

from __future__ import annotations

from pathlib import Path

from simulators.processes import Process
from simulators.servers import Broker, InfluxServer, ServerMissing, cache_folder

VERSION = "1.39.3"


def find_telegraf() -> Path:
    """Raises ServerMissing."""
    program = cache_folder() / "bin" / f"telegraf-{VERSION}"
    if not program.exists():
        raise ServerMissing(f"Telegraf {VERSION} is not here: `tools/real_parts.sh telegraf` builds it")
    return program


def telegraf(
    folder: Path, sensors: Broker, influxdb: InfluxServer, *, agent: str = "", parser: str = "", tables: str = ""
) -> Process:
    """A Telegraf, not yet started, that takes JSON from plant/# at QoS 1 and writes it to the database.

    Its limits are raised far above their defaults (1,000, 1,000 and 10,000), so that they bound nothing, and it flushes
    each second instead of each ten: both favour it. It tracks each message and acknowledges it when InfluxDB has
    answered; it holds nothing on the disk. `agent`, `parser`: more keys of `[agent]` and of the input; `tables`: more
    plugins.
    """
    config = folder / "telegraf.conf"
    config.write_text(f"""\
[agent]
  interval = "1s"
  flush_interval = "1s"
  metric_batch_size = 5000
  metric_buffer_limit = 200000
  omit_hostname = true
  quiet = true
{agent}

[[inputs.mqtt_consumer]]
  servers = ["tcp://{sensors.host}:{sensors.port}"]
  topics = ["plant/#"]
  qos = 1
  persistent_session = true
  client_id = "telegraf"
  max_undelivered_messages = 20000
  data_format = "json"
{parser}
{tables}
[[outputs.influxdb]]
  urls = ["{influxdb.url}"]
  database = "{influxdb.database}"
  username = "{influxdb.user}"
  password = "{influxdb.password}"
  skip_database_creation = true
""")
    return Process([str(find_telegraf()), "--config", str(config)], log=folder / "telegraf.log")
