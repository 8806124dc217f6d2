"""A scenario: which devices there are, what they measure, how they send it, and what goes wrong when.

Scenarios are TOML files; those in `simulators/scenarios/` are found by name.

    rate_hz = 1.0

    [device.press]                      # press-001 ... press-080
    count = 80
    [device.press.channel.temperature]
    kind = "gauge"
    level = 61.0
    noise = 0.2

    [[fault]]
    kind = "spike"
    device = "press-007"
    channel = "temperature"
    at_s = 12.0
    magnitude = 20.0
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
import numpy as np

from devices.errors import ConfigError
from simulators.faults import Fault
from simulators.signals import Burst, Gauge, NotNegative, Positive, Schedule, Shape, key_of, uniform

SCENARIOS = Path(__file__).parent / "scenarios"
PROFILES = Path(__file__).parent / "profiles"
MAX_RATE_HZ = 500.0  # devices stamp whole milliseconds: faster, and two samples could bear one time

Via: TypeAlias = Literal["mqtt", "serial-json", "serial-text"]


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Devices of one sort. A group of one bears the group's name; others a number behind it."""

    channel: dict[str, Shape]
    count: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    via: Via = "mqtt"
    rate_hz: Annotated[float, msgspec.Meta(gt=0, le=MAX_RATE_HZ)] = 1.0
    malformed: bool = False
    """Every second message is broken, each time in another way (see `messages.BREAKAGES`)."""
    profile: str = ""
    """What `forebay-sim demo` writes into the edge's configuration for it (serial devices alone)."""


class Unplug(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A serial device whose cable is pulled for a while."""

    device: str
    at_s: NotNegative
    for_s: Positive


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One TOML file."""

    device: dict[str, Group]
    description: str = ""
    topic: str = "plant/{device}/{channel}"
    """Where MQTT devices publish."""
    profile: str = ""
    """What the edge reads the messages of that topic with."""
    connections: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """All MQTT devices share so many connections."""
    fault: list[Fault] = []
    burst: list[Burst] = []
    unplug: list[Unplug] = []

    def devices(self, seed: int) -> list[Machine]:
        """Every device, in order of the file."""
        return list(self._machines(seed))

    def _machines(self, seed: int) -> Iterator[Machine]:
        for name, group in self.device.items():
            for device in device_names(name, group.count):
                bursts = tuple(burst for burst in self.burst if fnmatch.fnmatchcase(device, burst.devices))
                share = float(uniform(key_of(seed, device, ""), np.zeros(1, np.int64), 0)[0])
                schedule = Schedule(group.rate_hz, share / group.rate_hz, bursts)
                faults = tuple(fault for fault in self.fault if fault.device == device)
                unplugs = tuple(unplug for unplug in self.unplug if unplug.device == device)
                yield Machine(device, group, schedule, faults, unplugs)


class Machine(msgspec.Struct, frozen=True):
    """One device of a scenario."""

    name: str
    group: Group
    schedule: Schedule
    faults: tuple[Fault, ...]
    unplugs: tuple[Unplug, ...]


def device_names(name: str, count: int) -> list[str]:
    """`press` alone for one, `press-001`, `press-002`, ... for several."""
    return [name] if count == 1 else [f"{name}-{number:03d}" for number in range(1, count + 1)]


def load_scenario(name_or_path: str) -> Scenario:
    """A scenario by the name of one that is shipped, or by its file. Raises ConfigError."""
    shipped = SCENARIOS / f"{name_or_path}.toml"
    path = shipped if shipped.is_file() else Path(name_or_path)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SCENARIOS.glob("*.toml")))
        raise ConfigError(f"there is no scenario {name_or_path}: give a TOML file, or one of {names}")
    try:
        scenario = msgspec.toml.decode(path.read_bytes(), type=Scenario)
    except msgspec.DecodeError as error:  # wrong TOML, and values that the structs refuse
        raise ConfigError(f"{path}: {error}") from None
    _check(scenario, path)
    return scenario


def _check(scenario: Scenario, path: Path) -> None:
    groups = {device: group for name, group in scenario.device.items() for device in device_names(name, group.count)}
    for fault in scenario.fault:
        group = groups.get(fault.device)
        if group is None:
            raise ConfigError(f"{path}: [[fault]] names the device {fault.device}, which is not in the scenario")
        if fault.channel and fault.channel not in group.channel:
            raise ConfigError(f"{path}: [[fault]] names {fault.device}/{fault.channel}, which is not in the scenario")
        shapes = [group.channel[fault.channel]] if fault.channel else list(group.channel.values())
        if fault.kind not in ("dropout", "stuck") and not all(isinstance(shape, Gauge) for shape in shapes):
            raise ConfigError(
                f"{path}: only a gauge can have the fault {fault.kind}, not {fault.device}/{fault.channel}"
            )
        if fault.kind == "dropout" and fault.channel and group.via == "serial-text":
            raise ConfigError(f"{path}: {fault.device} sends all channels in one line: its dropout has no channel")
        if fault.every_s and fault.every_s <= fault.for_s:
            raise ConfigError(f"{path}: the {fault.kind} of {fault.device} begins again before it has ended")
    for unplug in scenario.unplug:
        if unplug.device not in groups or groups[unplug.device].via == "mqtt":
            raise ConfigError(f"{path}: [[unplug]] names {unplug.device}, which is no serial device of the scenario")
    for name, group in scenario.device.items():
        fastest = group.rate_hz * max((burst.factor for burst in scenario.burst), default=1.0)
        if fastest > MAX_RATE_HZ:
            raise ConfigError(
                f"{path}: in a burst [device.{name}] would send {fastest:g} a second; {MAX_RATE_HZ:g} is the most"
            )
        if group.malformed and group.via != "mqtt":
            raise ConfigError(f"{path}: [device.{name}]: only MQTT devices can be malformed")
