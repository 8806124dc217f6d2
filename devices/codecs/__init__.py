"""The role of a codec: it turns the bytes of one message into values. Pure, no I/O, no clock.

A codec is found by name through the entry-point group `forebay.codecs` (see `devices.profiles.load`)
and is built with `Codec(options)`. `decode` either appends rows for the whole message, or raises
`DecodeError` and has appended nothing. It keeps no state between messages. Lengths and counts that
the bytes claim are checked against limits before memory is taken.

Bytes of a stream are first cut into messages by a framer (`devices.codecs.framing`), which bounds
the length of a message, and for which it makes no difference how the stream was cut into pieces.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import msgspec

from devices.model import Rows


class Codec(Protocol):
    """See the module's docstring."""

    Options: ClassVar[type[msgspec.Struct]]
    """The codec's own keys in the profile's `[codec]` table, with defaults."""
    framing: ClassVar[str]
    """How a byte stream is cut into messages: `line`."""

    def __init__(self, options: Any) -> None: ...

    def decode(self, message: bytes, rows: Rows) -> None:
        """Append the message's values to `rows`; raise DecodeError if it cannot be read."""
