"""The role of a sink: it stores line protocol, durably, before it answers.

A sink is found by the scheme of its URL through the entry-point group `forebay.sinks` and is built
with `Sink(url, options)`. Its guarantee: when `write` returns, every line is stored; when it raises,
any part of the lines may be stored, and writing them again changes nothing, since a key is only ever
written with one content.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import msgspec


class Sink(Protocol):
    """Order of calls: `open`, then `write` from several tasks at once, then `close`; or `check` alone, then `close`."""

    Options: ClassVar[type[msgspec.Struct]]
    """The sink's own keys in `[sink]` beside `url`, with defaults."""

    def __init__(self, url: str, options: Any) -> None: ...

    async def open(self) -> None:
        """Connect, and make sure that the database is there. Raises SinkError with what to do."""

    async def check(self) -> str:
        """What it finds, as a sentence, without changing anything: for `forebay-cloud check`, in the place of `open`.

        Raises SinkError with what to do where a write would fail.
        """

    async def write(self, lines: bytes) -> None:
        """Store newline-separated line protocol with timestamps in ns.

        Raises SinkBusy, SinkRefused, BatchTooLarge or BadLines (see devices.errors).
        """

    async def close(self) -> None: ...
