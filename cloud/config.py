"""What `forebay-cloud run FILE` reads: frozen structs from TOML, unknown keys refused with their path.

[broker]
url = "mqtts://broker.example.com"
user = "ingest"
password_file = "/etc/forebay/ingest.password"

[sink]
url = "http://influxdb.example.com:8086"
org = "plant"
bucket = "telemetry"
token_file = "/etc/forebay/influxdb.token"
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import msgspec

from cloud.sinks import Sink
from devices.errors import ConfigError, PluginError
from devices.profiles import load
from devices.quantities import Duration, Size
from devices.tables import Table, convert, did_you_mean, key_path, read_toml, whole_paths
from devices.wire.dial import check_access
from devices.wire.limits import FrameLimits
from devices.wire.session import SessionOptions

_TABLES: Final = ("broker", "sink", "limits", "metrics")
_PACKET_OVERHEAD_BYTES: Final = 1024
"""Of a frame's MQTT packet: header, topic, id and properties."""


class Broker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[broker]`: where the frames come from."""

    url: str
    """mqtt://HOST:PORT, or mqtts:// for TLS."""
    group: str = "forebay"
    """Ingesters of one group share the frames; another group would get them all a second time."""
    client_id: str = ""
    """Must be unique; the default is made anew at each start, which it may be: nothing is kept under it."""
    user: str = ""
    password_file: str = ""
    password_env: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    keepalive: Duration = Duration.parse("60 s")

    def __post_init__(self) -> None:
        password = self.password_file or self.password_env
        check_access(self.url, self.user, password, self.ca_file, self.cert_file, self.key_file)
        if not self.group or any(c in self.group for c in "/+#"):
            raise ValueError(f"`group` is the name of a shared subscription, without /, + and #, not {self.group!r}")


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]`: every length and queue of the ingester."""

    frame_size: Size = Size.parse("1 MiB")
    """Largest frame as it comes; a broker that was told drops larger ones without a word."""
    body_size: Size = Size.parse("4 MiB")
    """Largest frame once unpacked; larger ones are refused."""
    rows: int = 1 << 16
    """Most rows of a frame; more are refused."""
    series: int = 10_000
    """Most series of a frame; more are refused."""
    max_ahead: Duration = Duration.parse("1 d")
    """Points later than now and this are rejected as `future`."""
    queue_size: Size = Size.parse("8 MiB")
    """Frames received and not yet stored; when full: the socket is not read."""
    batch_lines: int = 5_000
    """Lines of a write; only a frame that is larger by itself makes a larger one."""
    batch_size: Size = Size.parse("1000 kB")
    """Bytes of a write."""
    connections: int = 2
    """Writes at a time; alarms have one more of their own."""
    retry_most: Duration = Duration.parse("30 s")
    """Longest wait between two attempts at a sink that is busy."""
    leave_after: Duration = Duration.parse("30 s")
    """When the sink has taken nothing for so long the ingester leaves its group, so that others get all frames, or the
    gateways hold them where they can be merged; it comes back when the sink does."""
    shutdown: Duration = Duration.parse("5 s")
    """How long writes may go on after SIGTERM; what is left then, the edges send again."""

    def __post_init__(self) -> None:
        for name in ("frame_size", "body_size", "rows", "series", "batch_lines", "batch_size", "connections"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1")
        if self.queue_size < self.frame_size:
            raise ValueError("`queue_size` must hold at least one frame of `frame_size`")

    def of_frames(self) -> FrameLimits:
        """What a frame may hold."""
        return FrameLimits(frame_bytes=self.frame_size, body_bytes=self.body_size, rows=self.rows, series=self.series)


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[metrics]`: Prometheus metrics at http://LISTEN/metrics."""

    listen: str = "127.0.0.1:9465"
    """HOST:PORT; port 0 takes a free one, "" none."""


@dataclass(frozen=True)
class Config:
    """A whole configuration, with the sink that it names, not yet opened."""

    broker: Broker
    session: SessionOptions
    sink: Sink
    sink_url: str
    limits: Limits
    metrics: Metrics


def load_config(path: Path) -> Config:
    """The configuration in a TOML file. ConfigError names the path of the key that is wrong."""
    tables = _tables(path)
    broker = convert(tables["broker"], Broker, f"{path.name} [broker]", ConfigError)
    limits = convert(tables["limits"], Limits, f"{path.name} [limits]", ConfigError)
    return Config(
        broker=broker,
        session=_session(broker, limits),
        sink=_sink(tables["sink"], path),
        sink_url=tables["sink"]["url"],
        limits=limits,
        metrics=convert(tables["metrics"], Metrics, f"{path.name} [metrics]", ConfigError),
    )


def _tables(path: Path) -> dict[str, Table]:
    file, name = read_toml(path, ConfigError), path.name
    for key in file:
        if key not in _TABLES:
            raise ConfigError(f"unknown field `{key}`: {name}{did_you_mean(key, list(_TABLES))}")
    for key in ("broker", "sink"):
        if key not in file:
            raise ConfigError(f"missing table [{key}]: {name}")
    tables = {key: whole_paths(file.get(key, {}), path) for key in _TABLES}
    return {key: convert(table, Table, f"{name} {key_path(key)}", ConfigError) for key, table in tables.items()}


def _session(broker: Broker, limits: Limits) -> SessionOptions:
    return SessionOptions(
        broker=broker.url,
        client_id=broker.client_id or f"forebay-ingest-{secrets.token_hex(6)}",
        username=broker.user,
        password_file=broker.password_file,
        password_env=broker.password_env,
        ca_file=broker.ca_file,
        cert_file=broker.cert_file,
        key_file=broker.key_file,
        keepalive_s=max(1, round(broker.keepalive.s)),
        # Nothing is kept for an ingester that is gone: its share must go to the others, not wait for it.
        clean_start=True,
        session_expiry_s=0,
        max_packet_bytes=limits.frame_size + _PACKET_OVERHEAD_BYTES,
    )


def _sink(table: Table, path: Path) -> Sink:
    """The sink that the scheme of `url` names; the other keys are its own."""
    place = f"{path.name} {key_path('sink')}"
    url = table.get("url")
    if not isinstance(url, str) or ":" not in url:
        raise ConfigError(f"`url` names the sink, such as sqlite:forebay.db or http://localhost:8086: {place}")
    try:
        sink = load("sinks", urlsplit(url).scheme)
        own = {key: value for key, value in table.items() if key != "url"}
        made: Sink = sink(_whole_url(url, path), convert(own, sink.Options, place, ConfigError))
    except (PluginError, ConfigError) as error:
        if place in str(error):
            raise
        raise ConfigError(f"{error}: {place}") from error
    return made


def _whole_url(url: str, path: Path) -> str:
    """`sqlite:points.db`: a file, whose path begins, as all of them, at the folder of the configuration."""
    scheme, _, file = url.partition(":")
    if scheme in ("http", "https") or not file or file.startswith("/"):
        return url
    return f"{scheme}:{quote(str(path.absolute().parent))}/{file}"
