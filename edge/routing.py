"""Which series a decoded value belongs to, and what its number becomes on the way.

A codec gives (key, time, value). With the topic's device and channel, and the profile, the key names no
series (then it is counted under a reason), one, or several (bits of one word). The answer is looked up
once for each topic and key and then kept as a number in a dict, which the hot path reads:

    route >= 0     the index of the series
    route < 0      `Router.detours[-1 - route]`: a Refusal, or the bits of a Word

A name that the topic gives and a name that the codec gives are joined by a dot, as nested keys are. Keys
that are not kept (the tables are full) are looked up again each time; they never take memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from devices.model import Floats, Int32s, SeriesSpec
from devices.profiles import Profile

Resolve: TypeAlias = Callable[[SeriesSpec], "int | str"]
"""The registry: index of the series (made if it is new), or the reason why there can be none."""
Origin: TypeAlias = Callable[[str], "tuple[str, str] | None"]
"""(device, channel) that a topic names, "" for what it does not name; None for a topic that is not ours."""
Account: TypeAlias = "int | str"
"""Whose account a rejected sample goes to: a series, or a device (by its name) where there is no series."""

log = logging.getLogger("forebay.routing")

NAMELESS_CHANNEL: Final = "value"
"""The channel of a single value that neither topic nor codec names."""
_UNKNOWN_SAID: Final = 10
"""Channels of a source that the profile lacks, and that the log names: a device may send hundreds."""
_ROOM_CHARACTERS: Final = 128
"""A route takes some 500 bytes; a longer name takes the room of several."""
_KEPT_CHARACTERS: Final = 512
"""A topic may have 65,535 bytes: longer names are never kept."""


class Refusal(NamedTuple):
    """Values under this route are rejected."""

    account: Account
    reason: str


class Word(NamedTuple):
    """The value is an integer whose bits are series of their own."""

    bits: tuple[tuple[int, int], ...]
    """(series, bit)"""


class Router:
    """The routes of one source."""

    def __init__(self, source: str, profile: Profile, resolve: Resolve, origin: Origin | None, max_routes: int) -> None:
        self._source = source
        self._profile = profile
        self._resolve = resolve
        self._origin = origin
        self._max_routes = max_routes
        self._kept = 0
        self._devices: dict[tuple[str, str], Routes] = {}
        self._known: set[str] = set()
        self._unknown: set[str] = set()
        """Channels that the log has named."""
        self._detours: dict[Refusal | Word, int] = {}
        self.detours: list[Refusal | Word] = []
        self.topics = _TopicRoutes(self)
        """topic -> `Routes` of its device"""
        self.singles = _Singles(self)
        """topic -> route of a value without a name"""
        self.own = self.routes(source, "")
        """Routes of a source that is one device."""
        self.texts: dict[int, dict[str, float]] = {}
        """Series -> text -> number."""
        self.names: dict[int, tuple[str, str]] = {}
        """Series -> (device, channel), for `watch` and for sentences."""
        self._scaled = False
        self._scale: Floats = np.ones(0)
        self._offset: Floats = np.zeros(0)

    def scale(self, series: Int32s, value: Floats) -> Floats:
        """value * scale + offset of each series' channel."""
        if not self._scaled:
            return value
        return value * self._scale[series] + self._offset[series]

    def account(self, device: str) -> Account:
        """Where samples of a device that have no series are counted: a name that anyone may send opens no account."""
        return device if device in self._known else self._source

    def routes(self, device: str, prefix: str) -> Routes:
        """Routes of the keys that a codec gives for a device, below `prefix` ("" or a channel of the topic's)."""
        found = self._devices.get((device, prefix))
        if found is None:
            found = Routes(self, device, prefix)
            if self.keep(device + prefix):
                self._devices[device, prefix] = found
        return found

    def of_topic(self, topic: str) -> Routes:
        """Routes below a topic."""
        origin = ("", "") if self._origin is None else self._origin(topic)
        if origin is None:
            return Routes(self, "", "", refused=True)
        device, channel = origin
        return self.routes(device or self._source, channel)

    def keep(self, name: str) -> bool:
        """Whether there is room for one more route under this name; if so, it is taken."""
        room = 1 + len(name) // _ROOM_CHARACTERS
        if len(name) > _KEPT_CHARACTERS or self._kept + room > self._max_routes:
            return False
        self._kept += room
        return True

    def find(self, device: str, channel: str) -> int:
        """The route of one channel, from the profile and the registry."""
        bits: list[tuple[int, int]] = []
        plain = -1
        refused = "unknown_channel"
        for reading in self._profile.readings(channel):
            spec = self._profile.series(device, reading.channel)
            if spec is None:
                continue
            index = self._resolve(spec)
            if isinstance(index, str):
                refused = index
                continue
            self._known.add(device)
            self._take(index, spec, reading.scale, reading.offset)
            if reading.bit is None:
                plain = index
            else:
                bits.append((index, reading.bit))
        if bits:
            if plain >= 0:
                bits.append((plain, -1))
            return self._detour(Word(tuple(bits)))
        if plain >= 0:
            return plain
        if refused == "unknown_channel":
            self._say_unknown(device, channel)
        return self.refuse(device, refused)

    def _say_unknown(self, device: str, channel: str) -> None:
        if channel in self._unknown or len(self._unknown) == _UNKNOWN_SAID:
            return
        self._unknown.add(channel)
        log.warning(
            "source %s: profile %s has no channel %r, which device %r sends: it is rejected as unknown_channel; to "
            "keep it, add it to the profile%s",
            *(self._source, self._profile.id, channel[:_ROOM_CHARACTERS], device[:_ROOM_CHARACTERS]),
            " (no more such channels are named here)" if len(self._unknown) == _UNKNOWN_SAID else "",
        )

    def refused(self, reason: str) -> list[str]:
        """Channels that came and were refused so, as far as they are remembered."""
        return sorted(
            {
                ".".join(part for part in (prefix, key) if part)
                for (_, prefix), routes in self._devices.items()
                for key, route in routes.items()
                if route < 0 and isinstance(refusal := self.detours[-route - 1], Refusal) and refusal.reason == reason
            }
        )

    def refuse(self, device: str, reason: str) -> int:
        """The route of what is rejected."""
        return self._detour(Refusal(self.account(device), reason))

    def _detour(self, detour: Refusal | Word) -> int:
        route = self._detours.get(detour)
        if route is None:
            self.detours.append(detour)
            route = self._detours[detour] = -len(self.detours)
        return route

    def _take(self, index: int, spec: SeriesSpec, scale: float, offset: float) -> None:
        self.names[index] = spec.device, spec.channel
        if spec.texts:
            self.texts[index] = spec.texts
        if index >= len(self._scale):
            more = max(index + 1, 2 * len(self._scale)) - len(self._scale)
            self._scale = np.concatenate([self._scale, np.ones(more)])
            self._offset = np.concatenate([self._offset, np.zeros(more)])
        self._scale[index], self._offset[index] = scale, offset
        self._scaled = self._scaled or scale != 1.0 or offset != 0.0


class Routes(dict[str, int]):
    """Key of the codec -> route, for one device and one channel of the topic's; fills itself."""

    __slots__ = ("_device", "_prefix", "_refused", "_router")

    def __init__(self, router: Router, device: str, prefix: str, *, refused: bool = False) -> None:
        super().__init__()
        self._router = router
        self._device = device
        self._prefix = prefix
        self._refused = refused

    @property
    def device(self) -> str:
        """The device that the topic names."""
        return self._device

    def __missing__(self, key: str) -> int:
        if self._refused:
            return self._router.refuse("", "unknown_channel")
        channel = f"{self._prefix}.{key}" if self._prefix and key else self._prefix or key or NAMELESS_CHANNEL
        route = self._router.find(self._device, channel)
        if self._router.keep(key):
            self[key] = route
        return route


class _TopicRoutes(dict[str, Routes]):
    """Topic -> routes; fills itself."""

    __slots__ = ("_router",)

    def __init__(self, router: Router) -> None:
        super().__init__()
        self._router = router

    def __missing__(self, topic: str) -> Routes:
        routes = self._router.of_topic(topic)
        if self._router.keep(topic):
            self[topic] = routes
        return routes


class _Singles(dict[str, int]):
    """Topic -> route of its only value; fills itself."""

    __slots__ = ("_router",)

    def __init__(self, router: Router) -> None:
        super().__init__()
        self._router = router

    def __missing__(self, topic: str) -> int:
        route = self._router.topics[topic][""]
        if self._router.keep(topic):
            self[topic] = route
        return route
