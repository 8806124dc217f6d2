"""The sink: what it holds, by key, and how it fails. A field of a key that is written with another value is a
violation.

A write may be refused as busy, be stored in part and refused, hang and land long after everybody has given it
up (its ingester may be dead by then), or be refused for a line that the database will never take.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar
from zlib import crc32

import msgspec

from devices.errors import BadLines, BatchTooLarge, SinkBusy, SinkRefused
from tests.world.life import Life

_INGESTED = re.compile(rb",ingested_ms=[^,]*$")
"""When an alarm reached the cloud is no part of what it says."""
TIMEOUT_S = 10.0
LANDS_S = (1.0, 4 * 3600.0)


@dataclass
class Moods:
    """Probabilities, for each write."""

    busy: float = 0.0
    in_part: float = 0.0
    hangs: float = 0.0
    refuses: float = 0.0


class Database:
    """All points that were ever stored."""

    def __init__(self, rng: random.Random, note: Callable[[str, str], None], fail: Callable[[str], None]) -> None:
        self.points: dict[bytes, bytes] = {}
        """Measurement, tags and time -> fields."""
        self.up = True
        self.moods = Moods()
        self.most_bytes = 1 << 20
        self.bad_of = 0
        """One key in so many is never taken; 0: all are."""
        self.contested: set[tuple[str, int]] = set()
        """(topic, time) of what came twice, with two values, when the journal had forgotten that time: both go raw, and
        which one stays is open (docs/reliability.md)."""
        self._rng = rng
        self._note = note
        self._fail = fail

    def is_bad(self, line: bytes) -> bool:
        """Whether this line is never taken: Forebay's own points always are."""
        if not self.bad_of or line.startswith((b"ledger,", b"gateway,", b"channel,", b"alarm,")):
            return False
        return crc32(split(line)[0]) % self.bad_of == 0

    def holds(self, line: bytes) -> bool:
        key, content = split(line)
        held = self.points.get(key)
        if held is None or held == content:
            return held == content
        return _fields(content).items() <= _fields(held).items() or place(key) in self.contested

    def land(self, lines: list[bytes]) -> None:
        """The lines are stored."""
        for line in lines:
            key, content = split(line)
            before = self.points.setdefault(key, content)
            if before != content:
                self.points[key] = self._joined(key, before, content)

    def _joined(self, key: bytes, before: bytes, content: bytes) -> bytes:
        """As InfluxDB has it: fields that were not there are added. None may get another value."""
        old, new = _fields(before), _fields(content)
        if b"value" in new and place(key) in self.contested:
            return content
        if any(old.get(name, value) != value for name, value in new.items()):
            self._fail(f"{key.decode()} was written with {before.decode()!r}, and now with {content.decode()!r}")
        return b",".join(name + b"=" + value for name, value in (old | new).items())

    async def write(self, body: bytes, step: Callable[[str], bool]) -> None:
        """As `cloud.sinks.Sink.write`. `step`: whether the one who writes is still there to hear the answer."""
        rng, moods = self._rng, self.moods
        lines = body.split(b"\n")[:-1]
        await asyncio.sleep(0.002 + 0.05 * rng.random())
        if not step("writes"):
            return
        drawn = rng.random()
        if not self.up or drawn < moods.busy:
            raise SinkBusy("503", rng.choice([None, None, 2.0]))
        drawn -= moods.busy
        if drawn < moods.refuses:
            raise SinkRefused("401")
        drawn -= moods.refuses
        if len(body) > self.most_bytes:
            raise BatchTooLarge("413")
        bad = [line for line in lines if self.is_bad(line)]
        if bad:
            self.land([line for line in lines if not self.is_bad(line) and rng.random() < 0.5])
            raise BadLines(f"400: a line cannot be stored: {bad[0][:40].decode()}")
        if drawn < moods.in_part:
            self.land(lines[: rng.randrange(len(lines))])
            raise SinkBusy("500, and a part is stored")
        drawn -= moods.in_part
        if drawn < moods.hangs:
            asyncio.get_running_loop().call_later(rng.uniform(*LANDS_S), self._late, lines)
            await asyncio.sleep(TIMEOUT_S)
            raise SinkBusy("time-out")
        self.land(lines)
        if step("has written"):
            await asyncio.sleep(0.05 * rng.random())

    def _late(self, lines: list[bytes]) -> None:
        self._note("database", "a write that hung has landed")
        self.land(lines)


class SinkPort:
    """The database, as one ingester sees it."""

    Options: ClassVar[type[msgspec.Struct]] = msgspec.Struct

    def __init__(self, url: str, options: Any) -> None:
        """`options`: the database and the ingester's life."""
        self._database: Database
        self._life: Life
        self._database, self._life = options

    async def open(self) -> None:
        """It is always open."""

    async def write(self, lines: bytes) -> None:
        await self._database.write(lines, self._life.step)

    async def close(self) -> None:
        """There is nothing to close."""


def place(key: bytes) -> tuple[str, int]:
    """(topic, time) of a point of a sensor's series."""
    name, _, time_ns = key.decode().rpartition(" ")
    of = dict(tag.split("=") for tag in name.split(",")[1:])
    return f"plant/{of['device']}/{of['channel']}", int(time_ns)


def _fields(content: bytes) -> dict[bytes, bytes]:
    pairs = (field.partition(b"=") for field in content.split(b","))
    return {name: value for name, _, value in pairs}


def split(line: bytes) -> tuple[bytes, bytes]:
    """(measurement, tags and time; fields) of a line without its newline; no name in the world has a blank."""
    name, _, rest = line.partition(b" ")
    fields, _, time_ns = rest.rpartition(b" ")
    return name + b" " + time_ns, _INGESTED.sub(b"", fields)
