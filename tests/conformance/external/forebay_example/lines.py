"""Line protocol appended to a plain file: `url = "lines:///var/log/forebay.lp"`.

Writing a line again appends it again: the points are a set, and a reader takes each key once.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import msgspec

from devices.errors import SinkBusy, SinkRefused


class LinesOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sink has no keys of its own beside `url`."""


class LinesSink:
    """See cloud.sinks.Sink."""

    Options: ClassVar[type[msgspec.Struct]] = LinesOptions

    def __init__(self, url: str, options: LinesOptions) -> None:
        self._path = Path(unquote(urlsplit(url).path))
        self._file = -1

    async def open(self) -> None:
        try:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        except OSError as error:
            raise SinkRefused(f"cannot write {self._path}: {error.strerror}") from None

    async def write(self, lines: bytes) -> None:
        await asyncio.to_thread(self._append, lines.rstrip(b"\n") + b"\n")

    def _append(self, lines: bytes) -> None:
        try:
            while lines:
                lines = lines[os.write(self._file, lines) :]
            os.fsync(self._file)
        except OSError as error:
            raise SinkBusy(f"cannot write {self._path}: {error.strerror}") from None

    async def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
