"""The role of a codec: it turns the bytes of one message into values. Pure, no I/O, no clock.

A codec is found by name through the entry-point group `forebay.codecs` (see `devices.profiles.load`)
and is built with `Codec(options)`. `decode` either appends rows for the whole message, or raises
`DecodeError` and has appended nothing. It keeps no state between messages. Lengths and counts that
the bytes claim are checked against limits before memory is taken.

Bytes of a stream are first cut into messages by a framer (`devices.codecs.framing`), which bounds
the length of a message, and for which it makes no difference how the stream was cut into pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import msgspec

from devices.model import Rows


@dataclass(frozen=True, slots=True)
class Example:
    """A message that a codec reads, and what it reads out of it: documentation that tests hold it to."""

    message: bytes
    rows: list[tuple[str, int, float | bool | str]]
    """(channel, time_ns, value) in order; see `devices.model.Rows`."""
    options: dict[str, Any] = field(default_factory=dict)
    """What stands in the profile's `[codec]` table beside `name`."""


class Codec(Protocol):
    """See the module's docstring."""

    Options: ClassVar[type[msgspec.Struct]]
    """The codec's own keys in the profile's `[codec]` table, with defaults."""
    framing: ClassVar[str]
    """How a byte stream is cut into messages: a name in `devices.codecs.framing.FRAMINGS`."""
    examples: ClassVar[tuple[Example, ...]]
    """At least one message; the conformance suite decodes them, and damages them."""

    def __init__(self, options: Any) -> None: ...

    def decode(self, message: bytes, rows: Rows) -> None:
        """Append the message's values to `rows`; raise DecodeError if it cannot be read."""
