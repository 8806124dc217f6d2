"""One number in hexadecimal, at most 13 digits: more do not fit into a float64.

00ff  ─▶  255.0        for the channel that the topic names, or the one in `channel`
"""

from __future__ import annotations

import re
from typing import ClassVar

import msgspec

from devices.codecs import Example
from devices.errors import DecodeError
from devices.model import Rows

_NUMBER = re.compile(rb"[0-9a-fA-F]{1,13}")


class HexOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[codec]` of a profile with `name = "hexnumber"`."""

    channel: str = ""
    """The channel that the number belongs to; "": the one in the topic."""


class HexCodec:
    """See the module's docstring."""

    Options: ClassVar[type[msgspec.Struct]] = HexOptions
    framing: ClassVar[str] = "line"
    examples: ClassVar[tuple[Example, ...]] = (
        Example(b"00ff", [("", 0, 255.0)]),
        Example(b"10", [("beat", 0, 16.0)], {"channel": "beat"}),
    )

    def __init__(self, options: HexOptions) -> None:
        self._channel = options.channel

    def decode(self, message: bytes, rows: Rows) -> None:
        text = message.strip()
        if not _NUMBER.fullmatch(text):
            raise DecodeError(f"expected up to 13 hexadecimal digits, and found {text[:40]!r}")
        rows.channel.append(self._channel)
        rows.time_ns.append(0)
        rows.value.append(float(int(text, 16)))
