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

import msgspec

from cloud.sinks import Sink
from devices.quantities import Duration, Size
from devices.wire.session import SessionOptions


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
        if not self.group or any(c in self.group for c in "/+#"):
            raise ValueError(f"`group` is the name of a shared subscription, without /, + and #, not {self.group!r}")


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]`: every length and queue of the ingester."""

    frame_size: Size = Size.parse("1 MiB")
    """Largest frame as it comes. The broker drops larger ones without a word: keep the edges' below it."""
    body_size: Size = Size.parse("16 MiB")
    """Largest frame once unpacked; when larger: refused."""
    rows: int = 1_000_000
    """Most rows in a frame; when more: refused."""
    series: int = 100_000
    """Most series in a frame's table; when more: refused."""
    name_size: Size = Size.parse("1 KiB")
    """Longest name or text in a frame; when longer: refused."""
    max_ahead: Duration = Duration.parse("1 d")
    """Points later than now and this are rejected as `future`."""
    queue_size: Size = Size.parse("8 MiB")
    """Frames received and not yet stored; when full: the socket is not read."""
    batch_lines: int = 5_000
    """Lines of a write."""
    batch_size: Size = Size.parse("1 MiB")
    """Bytes of a write."""
    linger: Duration = Duration.parse("5 ms")
    """How long a batch waits for more frames; alarms never wait."""
    connections: int = 2
    """Writes at a time; alarms have one more of their own."""
    retry_most: Duration = Duration.parse("30 s")
    """Longest wait between two attempts at a sink that is busy."""
    shutdown: Duration = Duration.parse("5 s")
    """How long writes that have begun may go on after SIGTERM; what is left, the edges send again."""

    def __post_init__(self) -> None:
        for name in ("rows", "series", "batch_lines", "connections", "frame_size", "queue_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1")


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[metrics]`: Prometheus metrics at http://LISTEN/metrics."""

    listen: str = "127.0.0.1:9465"
    """HOST:PORT; port 0 takes a free one, "" none."""


class Config(msgspec.Struct, frozen=True):
    """A whole configuration, and the sink that it names."""

    broker: SessionOptions
    group: str
    sink: Sink
    sink_url: str
    limits: Limits
    metrics: Metrics
