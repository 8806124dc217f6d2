"""Profiles: what a device model measures, and how its messages are read. The schema registry.

A profile is a TOML file with a version; Forebay's own lie in `devices/catalog/`.

    name = "acme-p100"
    version = "1"
    time_resolution = "1 s"              # its clock counts whole seconds

    [codec]
    name = "json"                        # a codec, and its own options
    time = "at"

    [driver.serial]                      # defaults of a driver's options, below those of the gateway's file
    baud_rate = 9600

    [channel.bearing_temperature]        # a channel's name, or a pattern such as "core_*"
    source = "bearing.temp"              # its key in the message, where that differs
    unit = "Cel"
    range = [-20, 95]
    filters.rate = { max_per_s = 2.0 }   # a filter, and its own options; `false`: not this one

A wrong profile is refused with the path of the key: unknown field `rnage`: acme-p100.toml [channel.flow].
Drivers, codecs, filters and sinks are found by name through entry points (`load`), so that a package
installed beside Forebay can add some.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from devices.errors import PluginError, ProfileError
from devices.model import SECOND_NS, Kind, Report, SeriesSpec
from devices.quantities import Duration
from devices.tables import Table, builtins, convert, did_you_mean, key_path, read_toml

CATALOG: Final = Path(__file__).parent / "catalog"
MAX_NAME_BYTES: Final = 200
"""UTF-8 bytes of a device's or channel's name: each goes into tables, frames and tags, and a peer chooses it."""
RESERVED_QUANTITIES: Final = frozenset({"alarm", "ledger", "gateway", "channel"})
"""Measurements that Forebay writes itself; those of raw samples end in `_raw`."""

_GLOB = re.compile(r"[*?\[]")
_NOT_IN_QUANTITY = re.compile(r"[^\w.\-]+")
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_MILLISECOND_NS: Final = 1_000_000
_NANOSECOND: Final = Duration(1)


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[channel.NAME]` of a profile, and `[source.SOURCE.channel.NAME]` of a gateway's file."""

    source: str = ""
    """The value's key in the message (nested keys joined by dots) where it differs from the channel's name."""
    quantity: str = ""
    """What is measured: the measurement in InfluxDB; "": the channel's name."""
    unit: str = ""
    """Unit of the values once scaled, as the UCUM writes it: `Cel`, `bar`, `%`."""
    kind: Literal["gauge", "counter", "state"] = "gauge"
    """`gauge`: a level. `counter`: a total that grows, resets and wraps. `state`: every change is kept."""
    scale: float = 1.0
    """Values are multiplied by this, then `offset` is added."""
    offset: float = 0.0
    """Added after scaling."""
    mapping: dict[str, float] = {}
    """For states: the number that stands for a text, `{ run = 1, off = 0 }`; other texts are `unmapped`."""
    bit: int | None = None
    """For states: the number of the bit in the message's integer, 0 the lowest; several channels may share a key."""
    wrap: float = 0.0
    """For counters: the value at which the register starts again at 0; 0: it only resets. All values are float64, which
    tell whole numbers apart up to 2^53 (9.0e15): above it small increases are lost."""
    window: Duration = Duration(10 * SECOND_NS)
    """Length of a summary's window, in whole milliseconds."""
    lateness: Duration = Duration(2 * SECOND_NS)
    """How long after its end, in the samples' own time, a window waits for samples that come out of order."""
    idle_close: Duration = Duration(5 * SECOND_NS)
    """A window closes this long after its end when nothing comes any more."""
    max_ahead: Duration = Duration(60 * SECOND_NS)
    """Samples further ahead of the gateway's clock are rejected as `future`."""
    expect_every: Duration | None = None
    """Longer silence raises the alarm `silent`, from the start where the source is one device; left out: never."""
    report: Report = "summary"
    """`summary`: every window. `on_change`: windows that tell something new. `raw`: every sample, unsummarised."""
    tolerance: float = 0.0
    """For `on_change`: a window tells nothing new while last, min and max lie this near to the last one sent."""
    heartbeat: Duration = Duration(600 * SECOND_NS)
    """For `on_change`: something is sent at least this often."""
    range: tuple[float, float] | None = None
    """Lowest and highest legal value, in `unit`: the filter `range` runs with these."""
    filters: dict[str, dict[str, Any] | bool] = {}
    """Filters by name, each with its own options; `false` turns a default off. Gauges have `zscore` by default."""
    severity: Literal["info", "warning", "critical"] = "warning"
    """Of this channel's alarms."""
    on_delay: Duration = Duration(0)
    """An alarm opens once a value has been abnormal for so long."""
    off_delay: Duration = Duration(5 * SECOND_NS)
    """An alarm closes once a value has been normal for so long."""
    deadband: float = 0.1
    """An alarm closes only once the score is below 1 - deadband."""

    def __post_init__(self) -> None:
        if self.quantity and (why := _illegal_quantity(self.quantity)):
            raise ValueError(f"`quantity` {why}")
        if self.unit and not is_name(self.unit):
            raise ValueError(f"`unit` has at most {MAX_NAME_BYTES} printable bytes")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"`range` runs from low to high, not from {self.range[0]} to {self.range[1]}")
        if not math.isfinite(self.scale) or self.scale == 0 or not math.isfinite(self.offset):
            raise ValueError("`scale` and `offset` are finite, and `scale` is not 0")
        if self.window.ns == 0 or self.window.ns % _MILLISECOND_NS:
            raise ValueError(f"`window` is at least 1 ms, in whole milliseconds, not {self.window}")
        if not 0 <= self.deadband < 1:
            raise ValueError(f"`deadband` lies between 0 and 1, not at {self.deadband}")
        if not 0 <= self.tolerance < math.inf or not 0 <= self.wrap < math.inf:
            raise ValueError("`tolerance` and `wrap` are finite and not negative")
        if self.heartbeat.ns == 0 or (self.expect_every is not None and self.expect_every.ns == 0):
            raise ValueError("`heartbeat` and `expect_every` are longer than nothing")
        if not all(is_name(text) and math.isfinite(number) for text, number in self.mapping.items()):
            raise ValueError(f"`mapping` has texts of 1 to {MAX_NAME_BYTES} printable bytes, and finite numbers")
        if self.bit is not None and not 0 <= self.bit < 53:
            raise ValueError(f"`bit` lies between 0 and 52, not at {self.bit}: a float64 holds no more")


class Reading(NamedTuple):
    """A channel that a value of a message feeds, and how: value * scale + offset, or one bit of the value."""

    channel: str
    scale: float
    offset: float
    bit: int | None


class CodecChoice(msgspec.Struct, frozen=True):
    """Which codec a profile uses, with its options."""

    name: str
    options: Any
    """An instance of the codec's `Options`."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One device model. Made by `load_profile`."""

    name: str
    version: str
    codec: CodecChoice
    description: str = ""
    time_resolution: Duration = _NANOSECOND
    driver: Mapping[str, Table] = field(default_factory=dict)
    """Driver name -> defaults of its options."""
    channel: Mapping[str, Channel] = field(default_factory=dict)
    """Channel name or pattern -> its settings, in the file's order."""

    @property
    def id(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    def find(self, channel: str) -> Channel | None:
        """The settings of the channel of this name: an exact entry, or the first pattern that matches."""
        exact = self.channel.get(channel)
        if exact is not None and not is_pattern(channel):
            return exact
        return next((c for pattern, c in self.channel.items() if _is_match(pattern, channel)), None)

    def readings(self, key: str) -> tuple[Reading, ...]:
        """The channels that the message's `key` feeds: none when the profile knows nothing of it.

        Several, when they take different bits of one word.
        """
        fed = {n: c for n, c in self.channel.items() if (c.source or n) == key and not is_pattern(n)}
        if not fed and key not in self.channel:  # a channel that is fed from another key is not fed from its own
            matched = self.find(key)
            fed = {} if matched is None else {key: matched}
        return tuple(Reading(name, c.scale, c.offset, c.bit) for name, c in fed.items())

    def series(self, device: str, channel: str) -> SeriesSpec | None:
        """All that the edge must know of the series; None for an unknown channel, or an unusable name."""
        found = self.find(channel) if is_name(channel) and is_name(device) else None
        if found is None:
            return None
        return SeriesSpec(
            device=device,
            channel=channel,
            quantity=found.quantity or legal_quantity(channel),
            unit=found.unit,
            kind=Kind[found.kind.upper()],
            window_ns=found.window.ns,
            lateness_ns=found.lateness.ns,
            idle_close_ns=found.idle_close.ns,
            max_ahead_ns=found.max_ahead.ns,
            time_resolution_ns=self.time_resolution.ns,
            expect_every_ns=found.expect_every.ns if found.expect_every else 0,
            report=found.report,
            tolerance=found.tolerance,
            heartbeat_ns=found.heartbeat.ns,
            counter_wrap=found.wrap,
            texts=found.mapping,
            filters=_filters(found, f"{self.id} {key_path('channel', channel)}"),
            severity=found.severity,
            on_delay_ns=found.on_delay.ns,
            off_delay_ns=found.off_delay.ns,
            deadband=found.deadband,
            profile=self.id,
        )

    def overridden(self, codec: Table, channel: Mapping[str, object], where: Sequence[str]) -> Profile:
        """This profile with the tables `codec` and `channel` of a gateway's file laid over it.

        Only the keys that stand there change. `where` is the file's name and the keys down to the tables.
        Raises ProfileError.
        """
        file, *path = where
        changed = dict(self.channel)
        for name, table in channel.items():
            place = f"{file} {key_path(*path, 'channel', name)}"
            own = convert(table, Channel, place, ProfileError)
            keys = {key: getattr(own, key) for key in table} if isinstance(table, dict) else {}
            base = self.channel.get(name) or self.find(name) or Channel()
            if "filters" in keys:
                keys["filters"] = {**base.filters, **own.filters}
            changed[name] = _checked(name, msgspec.structs.replace(base, **keys), place)
        choice = self.codec
        if codec:
            options = {"name": choice.name, **builtins(choice.options), **codec}
            choice = _codec(options, f"{file} {key_path(*path, 'codec')}")
        return replace(self, codec=choice, channel=changed)


class ProfileFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The top level of a profile."""

    name: str
    """Name of the profile, and of its file."""
    version: str
    """Version of the profile; series remember it."""
    codec: dict[str, Any]
    """`name`: the codec; the other keys are its options."""
    description: str = ""
    """One line for people."""
    time_resolution: Duration = _NANOSECOND
    """How coarsely the device stamps; equal stamps are spread within it, in order of arrival."""
    driver: dict[str, dict[str, Any]] = {}
    """`[driver.NAME]`: defaults of a driver's options."""
    channel: dict[str, dict[str, Any]] = {}
    """`[channel.NAME]`: one table a channel, or a pattern of channels."""

    def __post_init__(self) -> None:
        if not _REFERENCE.fullmatch(self.name):
            raise ValueError("`name` is made of letters, digits, dots, dashes and underscores")
        if not 0 < len(self.version) <= 40 or not self.version.isprintable() or " " in self.version:
            raise ValueError("`version` is a short text without blanks")
        if self.time_resolution.ns == 0:
            raise ValueError("`time_resolution` is longer than nothing")
        if not self.channel:
            raise ValueError('`channel` has no tables: add [channel."*"] to take whatever comes')


def load_profile(ref: str, folders: Sequence[Path] = ()) -> Profile:
    """The profile named `ref`, from the first of the folders that has it, else from the catalog.

    A `ref` that ends with `.toml` is the file itself. Raises ProfileError.
    """
    path = _path(ref, folders)
    table = read_toml(path, ProfileError)
    file = convert(table, ProfileFile, path.name, ProfileError)
    if file.name != path.stem:
        raise ProfileError(f"`name` is {file.name!r}, and the file is called {path.name}: they must agree")
    for name, defaults in file.driver.items():
        _check_driver(name, defaults, f"{path.name} {key_path('driver', name)}")
    channels = {}
    for name, settings in file.channel.items():
        place = f"{path.name} {key_path('channel', name)}"
        channels[name] = _checked(name, convert(settings, Channel, place, ProfileError), place)
    return Profile(
        name=file.name,
        version=file.version,
        codec=_codec(file.codec, f"{path.name} [codec]"),
        description=file.description,
        time_resolution=file.time_resolution,
        driver=file.driver,
        channel=channels,
    )


def profile_names(folders: Sequence[Path] = ()) -> list[str]:
    """Names that `load_profile` knows."""
    return sorted({path.stem for folder in (*folders, CATALOG) for path in folder.glob("*.toml")})


def load(group: str, name: str) -> Any:
    """The class called `name` in the entry-point group `forebay.<group>`.

    `group` is `drivers`, `codecs`, `filters` or `sinks`. Only what is asked for is imported. Raises
    PluginError, which names what is installed.
    """
    found = [point for point in _entry_points(group) if point.name == name]
    what = f"{group[:-1]} `{name}`"
    if not found:
        raise PluginError(f"the {what} is not installed{did_you_mean(name, installed(group))}")
    if len({point.value for point in found}) > 1:
        raise PluginError(f"the {what} is installed twice ({', '.join(p.value for p in found)}): remove one")
    try:
        plugin = found[0].load()
    except (ImportError, AttributeError) as error:
        raise PluginError(f"the {what} cannot be imported from {found[0].value}: {error}") from error
    if not (isinstance(plugin, type) and isinstance(getattr(plugin, "Options", None), type)):
        raise PluginError(f"the {what} is not one: {found[0].value} must be a class with `Options`")
    return plugin


def installed(group: str) -> list[str]:
    """Names in the entry-point group `forebay.<group>`."""
    return sorted({point.name for point in _entry_points(group)})


@functools.cache
def _entry_points(group: str) -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=f"forebay.{group}"))


def is_pattern(channel: str) -> bool:
    """Whether a table of this name is for all channels that match it."""
    return _GLOB.search(channel) is not None


def is_name(text: str) -> bool:
    """Whether a device or channel may be called so: 1 to 200 bytes of UTF-8, all of it printable."""
    return text.isprintable() and 0 < len(text.encode()) <= MAX_NAME_BYTES


def legal_quantity(channel: str) -> str:
    """A channel's name as the name of a measurement: `Motor temp.` -> `Motor_temp.`."""
    name = _NOT_IN_QUANTITY.sub("_", channel).strip("_") or "value"
    return f"{name}_value" if _illegal_quantity(name) else name


def _illegal_quantity(name: str) -> str:
    """Why the name may not be a quantity; "" when it may."""
    if name in RESERVED_QUANTITIES or name.endswith("_raw"):
        return f"must not be {name!r}: Forebay writes measurements of this name itself"
    if name.startswith("_") or not is_name(name) or _NOT_IN_QUANTITY.search(name):
        return f"is made of letters, digits, dots, dashes and underscores, not starting with one, unlike {name!r}"
    return ""


def _is_match(pattern: str, channel: str) -> bool:
    return is_pattern(pattern) and fnmatchcase(channel, pattern)


def _path(ref: str, folders: Sequence[Path]) -> Path:
    if ref.endswith(".toml"):
        return Path(ref)
    if _REFERENCE.fullmatch(ref):
        for folder in (*folders, CATALOG):
            path = folder / f"{ref}.toml"
            if path.is_file():
                return path
    raise ProfileError(f"there is no profile `{ref}`{did_you_mean(ref, profile_names(folders))}")


def _checked(name: str, channel: Channel, where: str) -> Channel:
    """The channel once what its keys ask of each other holds. Raises ProfileError."""
    problem = ""
    if not is_name(name):
        problem = f"a channel's name has 1 to {MAX_NAME_BYTES} printable bytes"
    elif channel.source and is_pattern(name):
        problem = "`source` belongs to one channel, not to a pattern"
    elif channel.kind != "state" and (channel.mapping or channel.bit is not None):
        problem = '`mapping` and `bit` need `kind = "state"`'
    elif channel.bit is not None and (channel.scale != 1 or channel.offset):
        problem = "a `bit` is not scaled"
    elif channel.kind != "counter" and channel.wrap:
        problem = '`wrap` needs `kind = "counter"`'
    if problem:
        raise ProfileError(f"{problem}: {where}")
    _filters(channel, where)
    return channel


def _filters(channel: Channel, where: str) -> dict[str, dict[str, Any]]:
    """Filter -> all its options: those that run by default, and those that the channel asks for.

    An infinite default is left out, since JSON has none: the filter's `Options` fill it in again.
    """
    chosen: dict[str, Table] = {}
    if channel.kind == "gauge":
        chosen["zscore"] = {}
    if channel.range is not None:
        chosen["range"] = dict(zip(("low", "high"), channel.range, strict=True))
    for name, table in channel.filters.items():
        if isinstance(table, dict):
            chosen[name] = chosen.get(name, {}) | table
        elif table:
            chosen.setdefault(name, {})
        else:
            chosen.pop(name, None)
    return {name: _filled(name, table, where) for name, table in chosen.items()}


def _filled(name: str, table: Table, where: str) -> Table:
    place = f"{where[:-1]}.filters.{name}]"
    options = convert(table, _plugin("filters", name, place).Options, place, ProfileError)
    return {key: value for key, value in builtins(options).items() if not _is_infinite(value)}


def _is_infinite(value: object) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _codec(table: Table, where: str) -> CodecChoice:
    options = dict(table)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ProfileError(f"`name` must be the name of a codec: {where}")
    return CodecChoice(name, convert(options, _plugin("codecs", name, where).Options, where, ProfileError))


def _check_driver(name: str, defaults: Table, where: str) -> None:
    """Key by key, since the defaults alone are not the driver's whole table."""
    kinds = {f.encode_name: f.type for f in msgspec.structs.fields(_plugin("drivers", name, where).Options)}
    for key, value in defaults.items():
        if key not in kinds:
            raise ProfileError(f"unknown field `{key}`: {where}{did_you_mean(key, list(kinds))}")
        convert(value, kinds[key], f"{where} {key}", ProfileError)


def _plugin(group: str, name: str, where: str) -> Any:
    try:
        return load(group, name)
    except PluginError as error:
        raise ProfileError(f"{error}: {where}") from error
