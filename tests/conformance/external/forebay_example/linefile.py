"""Line protocol appended to a plain file: `url = "linefile:///var/log/forebay.lp"`.

A line that is written again stands there again: the points are a set, and a reader takes each key once.
A batch with a bad line stores nothing.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import msgspec

from cloud.sinks.parsing import parse_key, parse_line
from devices.errors import BadLines, SinkBusy, SinkRefused


class LineFileOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sink has no keys of its own beside `url`."""


class LineFileSink:
    """See cloud.sinks.Sink."""

    Options: ClassVar[type[msgspec.Struct]] = LineFileOptions

    def __init__(self, url: str, options: LineFileOptions) -> None:
        self._path = Path(unquote(urlsplit(url).path))
        self._one_at_a_time = asyncio.Lock()
        self._file = -1

    async def open(self) -> None:
        try:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        except OSError as error:
            raise SinkRefused(f"cannot write {self._path}: {error.strerror}") from None

    async def check(self) -> str:
        if not os.access(self._path if self._path.exists() else self._path.parent, os.W_OK):
            raise SinkRefused(f"cannot write {self._path}: this user may not")
        return f"{self._path} can be written"

    async def write(self, lines: bytes) -> None:
        _check(lines)
        async with self._one_at_a_time:
            await asyncio.to_thread(self._append, lines.rstrip(b"\n") + b"\n")

    async def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, lines: bytes) -> None:
        """A batch that does not fit is taken back: half a line would spoil the one after it."""
        end = os.fstat(self._file).st_size
        try:
            while lines:
                lines = lines[os.write(self._file, lines) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, end)
            raise SinkBusy(f"cannot write {self._path}: {error.strerror}") from None


def _check(lines: bytes) -> None:
    """Raises BadLines."""
    try:
        text = lines.decode()
    except UnicodeDecodeError as error:
        raise BadLines(f"not UTF-8: {error}") from None
    for line in text.split("\n"):
        if line:
            parse_key(parse_line(line).key)
