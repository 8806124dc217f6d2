"""The gateway's configuration: frozen structs from TOML, as short as it should be.

    gateway = "pump-station-7"

    [uplink]
    broker = "mqtts://broker.example.com"
    password_file = "/etc/forebay/uplink.password"

    [store]
    path = "/var/lib/forebay/edge.db"

    [source.pump1]                       # the table's name is the device
    driver = "serial"                    # a driver, and its own options
    port = "/dev/serial/by-id/usb-FTDI_A50285BI"
    profile = "acme-p100"

Each table is converted with its own struct, so that an error names the file and the path of the key. Only
the drivers, codecs and filters that are in use are imported. The text below each key is its description in
docs/configuration.md, which `docs/generate_configuration.py` makes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from devices.errors import ConfigError, PluginError
from devices.profiles import Profile, is_name, load, load_profile, profile_names
from devices.quantities import Duration, Rate, Size
from devices.tables import Table, builtins, convert, did_you_mean, key_path, read_toml, whole_paths
from devices.wire.dial import check_access
from devices.wire.topics import legal_gateway
from edge.overlaps import refuse_overlaps

_MAX_COMMIT_DELAY: Final = Duration.parse("60 s")
"""What has not been committed may be lost when the power fails, or is sent again by its source."""


class UplinkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[uplink]`: the broker that takes the frames to the cloud."""

    broker: str
    """`mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for TLS."""
    user: str = ""
    """User name at the broker; "": the gateway's name, if there is a password."""
    password_file: str = ""
    """File that holds the password in one line; `chmod 600` it."""
    password_env: str = ""
    """Environment variable that holds the password, instead of a file."""
    ca_file: str = ""
    """PEM file of the authorities that may sign the broker's certificate; "": those of the system."""
    cert_file: str = ""
    """PEM file of the gateway's own certificate, where the broker asks for one."""
    key_file: str = ""
    """PEM file of the key of `cert_file`."""
    client_id: str = ""
    """MQTT client identifier, unique at the broker; "": `forebay-` and the gateway's name."""
    keepalive: Duration = Duration.parse("60 s")
    """A link on which nothing passed for one and a half times as long is given up."""
    max_rate: Rate | None = None
    """Most that is published in a second, on average; left out: as much as the link takes."""
    max_per_month: Size | None = None
    """Most that passes the socket in a month, both ways, at least 1 MB; left out: no limit. Near it windows are merged;
    a tenth is kept for alarms; when all is spent they wait too, and only what keeps the link alive goes on."""
    month_starts: int = 1
    """Day of the month, 1 to 28, on which `max_per_month` begins anew, at 00:00 UTC."""
    receipt_timeout: Duration = Duration.parse("10 s")
    """A frame without a receipt is published again after this, doubling up to 5 min."""
    window_bytes: Size = Size.parse("1 MiB")
    """Bytes of frames in each lane that are published and not yet receipted; when full: the lane waits."""
    frame_bytes: Size = Size.parse("256 KiB")
    """Largest frame; keep it below the limits of broker and ingester, which drop larger ones without a word."""

    def __post_init__(self) -> None:
        if self.cert_file and not self.key_file:
            raise ValueError("`cert_file` needs `key_file`")
        check_access(self.broker, "the gateway's", "", self.ca_file, self.cert_file, self.key_file)
        if self.password_file and self.password_env:
            raise ValueError("keep one of `password_file` and `password_env`")
        if not 5 <= self.keepalive.s <= 65_535:
            raise ValueError(f"`keepalive` lies between 5 s and 65535 s, not at {self.keepalive}")
        if self.max_rate is not None and self.max_rate < 128:
            raise ValueError(f"`max_rate` is at least 128 B/s, not {self.max_rate}: the keepalive needs some of it")
        if self.max_per_month is not None and self.max_per_month < 1_000_000:
            raise ValueError(f"`max_per_month` is at least 1 MB, not {self.max_per_month}: an idle gateway needs that")
        if not 1 <= self.month_starts <= 28:
            raise ValueError(f"`month_starts` lies between 1 and 28, not at {self.month_starts}")
        if self.receipt_timeout.s < 1:
            raise ValueError(f"`receipt_timeout` is at least 1 s, not {self.receipt_timeout}")
        if not 16 * 1024 <= self.frame_bytes <= self.window_bytes:
            raise ValueError("`frame_bytes` lies between 16 KiB and `window_bytes`")


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[store]`: the one file that holds everything until the cloud has it."""

    path: str = "/var/lib/forebay/edge.db"
    """The file; it is made at its full size at the first start. Never put an older copy in its place: docs/install.md
    says what to do instead."""
    max_size: Size = Size.parse("256 MiB")
    """Hard bound on the file and its write-ahead log."""
    when_full: Literal["degrade", "block", "drop_oldest"] = "degrade"
    """`degrade`: raw samples go, then old summaries are merged. `block`: sources wait. `drop_oldest`: as named."""
    commit_delay: Duration = Duration.parse("250 ms")
    """Samples are committed, and their sources acknowledged, at the latest after this; up to 60 s spares the disk."""
    endurance: Size | None = None
    """Bytes that the disk may be written in its life (makers: TBW), as "36 TB"; `status` says how long it lasts."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("`path` names the store's file")
        if self.max_size < 8 * 2**20:
            raise ValueError(f"`max_size` is at least 8 MiB, not {self.max_size}")
        if self.endurance is not None and self.endurance < 2**30:
            raise ValueError(f"`endurance` is at least 1 GiB, not {self.endurance}: it is what may be written in all")
        if not 0 < self.commit_delay.ns <= _MAX_COMMIT_DELAY.ns:
            raise ValueError(f"`commit_delay` is longer than 0 and at most {_MAX_COMMIT_DELAY}")


class JournalConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[journal]`: the samples as they came, in the store; a ring that recovery, late samples and evidence read."""

    keep: Duration = Duration.parse("1 h")
    """Raw samples are kept for so long, and longer only while recovery needs them."""
    max_size: Size = Size.parse("64 MiB")
    """And at most so many bytes of them; when full: the oldest go."""


class ClockConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[clock]`: when the system's clock is believed. Until then samples without a time of their own are held, and get
    their true time when it is; alarms are raised all the same."""

    trust_after: str = "2024-01-01"
    """A clock that nobody synchronises (NTP, PTP) is believed after this UTC date. `never`: only a synchronised one;
    for a gateway whose clock has no battery, and starts at the time when it was last shut down."""
    max_held: int = 100_000
    """Samples that are held until the clock is believed; when full: the older half gets estimated times, quality
    `clock`."""

    def __post_init__(self) -> None:
        try:
            self.trust_after_ns  # noqa: B018
        except ValueError:
            raise ValueError(
                f'`trust_after` is a date such as "2026-03-01", or "never", not {self.trust_after!r}'
            ) from None
        if self.max_held < 1000:
            raise ValueError(f"`max_held` is at least 1000, not {self.max_held}")

    @property
    def trust_after_ns(self) -> int | None:
        """UTC; None: never."""
        if self.trust_after == "never":
            return None
        return int(datetime.strptime(self.trust_after, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * 10**9


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]`: bounds on what devices can make the gateway hold."""

    series: int = 10_000
    """Most series of this gateway; when full: samples of further ones are rejected as `series_limit`."""
    intake_samples: int = 65_536
    """Samples that wait for the pump; when full: MQTT sources stop reading, polls are skipped, serial ports overrun."""
    intake_bytes: Size = Size.parse("16 MiB")
    """Bytes of messages that wait for the pump; when full: as above."""
    message_bytes: Size = Size.parse("64 KiB")
    """Longest message or line of a device; longer ones are rejected as `oversize`."""
    dead_letters: Size = Size.parse("1 MiB")
    """Bytes of messages that could not be read and frames that were refused, in the store; when full: the oldest go."""

    def __post_init__(self) -> None:
        if self.series < 1:
            raise ValueError("`series` is at least 1")
        if self.intake_samples < 1024:
            raise ValueError("`intake_samples` is at least 1024: batches would be too small to be fast")
        if not 64 * 1024 <= self.dead_letters <= 64 * 2**20:
            raise ValueError(f"`dead_letters` lies between 64 KiB and 64 MiB, not at {self.dead_letters}")
        if not 64 <= self.message_bytes <= self.intake_bytes:
            raise ValueError("`message_bytes` lies between 64 and `intake_bytes`")


class StatusConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[status]`: where `forebay-edge status` and Prometheus ask the daemon."""

    listen: str = "127.0.0.1:9273"
    """`HOST:PORT`; whoever reaches it can read the status. Port 0 takes a free one."""

    def __post_init__(self) -> None:
        host, colon, port = self.listen.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise ValueError(f"`listen` is HOST:PORT, such as 127.0.0.1:9273, not {self.listen!r}")

    @property
    def address(self) -> tuple[str, int]:
        """(host, port)."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class SourceConfig(msgspec.Struct, frozen=True):
    """`[source.NAME]`: one thing to read. All other keys are the driver's own options.

    `[source.NAME.codec]` and `[source.NAME.channel.CHANNEL]` change single keys of the profile.
    """

    device: str
    """The table's name: the device, unless the topic names one."""
    driver: str
    """Name of the driver: `serial`, `mqtt`, `host`, or one that is installed beside."""
    options: Any
    """The driver's own options."""
    profile: Profile
    """Name of a profile, or path of its file, from this one on; left out: the one that is called like the driver."""


class GatewayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The top of the file."""

    gateway: str
    """Name of this gateway, unique in the installation: 1 to 64 letters, digits, dots, dashes, underscores."""
    heartbeat: Duration = Duration.parse("30 min")
    """How often the gateway tells the cloud how full its store is; more often for an hour after each connect. That it
    is lost its broker tells, one and a half `keepalive` after."""
    ledger: Duration = Duration.parse("15 min")
    """How often at most the accounts of all devices go to the cloud: when they have changed."""
    profiles: list[str] = []
    """Folders with profiles of your own, searched before the catalog."""

    def __post_init__(self) -> None:
        if not legal_gateway(self.gateway):
            raise ValueError(
                f"`gateway` is made of letters, digits, dots, dashes and underscores, at most 64, not {self.gateway!r}"
            )
        if self.heartbeat.s < 1 or self.ledger.s < 1:
            raise ValueError("`heartbeat` and `ledger` are at least 1 s")


class EdgeConfig(GatewayConfig, frozen=True, kw_only=True):
    """A whole file. Made by `load_config`."""

    uplink: UplinkConfig
    store: StoreConfig
    journal: JournalConfig
    clock: ClockConfig
    limits: LimitsConfig
    status: StatusConfig
    source: dict[str, SourceConfig]

    @property
    def uplink_user(self) -> str:
        """User name at the uplink's broker; "" for none."""
        has_password = bool(self.uplink.password_file or self.uplink.password_env)
        return self.uplink.user or (self.gateway if has_password else "")

    @property
    def digest(self) -> str:
        """16 hex digits that change with anything in the file or in the profiles that it uses; no secret is in it."""
        text = msgspec.json.encode(builtins(self), order="deterministic")
        return hashlib.sha256(text).hexdigest()[:16]


SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    "uplink": UplinkConfig,
    "store": StoreConfig,
    "journal": JournalConfig,
    "clock": ClockConfig,
    "limits": LimitsConfig,
    "status": StatusConfig,
}
"""Tables with a fixed name."""
_SOURCE_KEYS: Final = ("driver", "profile", "codec", "channel")
"""Keys of a source that are not its driver's."""


def load_config(path: Path) -> EdgeConfig:
    """The configuration in the file. Raises ConfigError or ProfileError, with the path of the key."""
    table = read_toml(path, ConfigError)
    file = path.name
    known = [*GatewayConfig.__struct_encode_fields__, *SECTIONS, "source"]
    for key in table:
        if key not in known:
            raise ConfigError(f"unknown field `{key}`: {file}{did_you_mean(key, known)}")
    if "uplink" not in table:
        raise ConfigError(f'missing table [uplink]: {file}; it says where to send: broker = "mqtts://HOST"')
    sections: dict[str, Any] = {
        name: convert(whole_paths(table.pop(name, {}), path), kind, f"{file} [{name}]", ConfigError)
        for name, kind in SECTIONS.items()
    }
    tables = table.pop("source", {})
    top = convert(table, GatewayConfig, file, ConfigError)
    folders = [path.parent / folder for folder in top.profiles]
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"missing table [source.NAME]: {file}; there is nothing to read without one")
    sources = {name: _source(name, source, path, folders) for name, source in tables.items()}
    refuse_overlaps(sources, file)
    return EdgeConfig(**msgspec.structs.asdict(top), **sections, source=sources)


def load_status(path: Path) -> StatusConfig:
    """`[status]` alone, whatever else is in the file. Raises ConfigError."""
    return convert(read_toml(path, ConfigError).get("status", {}), StatusConfig, f"{path.name} [status]", ConfigError)


def _source(device: str, table: object, path: Path, folders: Sequence[Path]) -> SourceConfig:
    where = f"{path.name} {key_path('source', device)}"
    if not isinstance(table, dict):
        raise ConfigError(f"expected a table: {where}")
    if not is_name(device):
        raise ConfigError(f"a device's name has 1 to 200 printable bytes: {where}")
    own = {key: table[key] for key in _SOURCE_KEYS if key in table}
    driver = _text(own, "driver", where)
    if not driver:
        raise ConfigError(f"missing field `driver`: {where}")
    try:
        plugin = load("drivers", driver)
    except PluginError as error:
        raise ConfigError(f"{error}: {where}") from error
    ref = _text(own, "profile", where) or (driver if driver in profile_names(folders) else "")
    if not ref:
        raise ConfigError(f"missing field `profile`: {where}; known are {', '.join(profile_names(folders))}")
    profile = _profile(ref, path.parent, folders, where)
    codec, channel = _table(own, "codec", where), _table(own, "channel", where)
    if codec or channel:
        profile = profile.overridden(codec, channel, (path.name, "source", device))
    options = {key: value for key, value in table.items() if key not in _SOURCE_KEYS}
    options = whole_paths({**profile.driver.get(driver, {}), **options}, path)
    return SourceConfig(device, driver, convert(options, plugin.Options, where, ConfigError), profile)


def _profile(ref: str, here: Path, folders: Sequence[Path], where: str) -> Profile:
    """The profile: one that is not there is a mistake of the gateway's file, one that is wrong its own."""
    if ref.endswith(".toml"):
        if not (here / ref).is_file():
            raise ConfigError(f"there is no file {here / ref}: {where} profile; its path begins at the gateway's file")
        return load_profile(str(here / ref))
    if ref not in profile_names(folders):
        raise ConfigError(f"there is no profile `{ref}`: {where}{did_you_mean(ref, profile_names(folders))}")
    return load_profile(ref, folders)


def _text(table: Table, key: str, where: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise ConfigError(f"expected a text: {where} {key}")
    return value


def _table(table: Table, key: str, where: str) -> Table:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"expected a table: {where} {key}")
    return value
