"""A byte stream cut into messages.

    ...temp=1 CR LF temp=2 LF LF temp=3
       ──┬───       ──┬───       ──┬───
     message        message       kept until its line ends, or `reset`

A line ends with LF; a CR before it belongs to the end; empty lines are no messages. A line longer than
`max_bytes` is thrown away up to its end and counted once in `oversize`, so that a device that babbles
without a line end costs at most `max_bytes` of memory.

**Half a line is not a sample.** What a port delivers first after it was opened may be the rest of a line
that began before, and `2.5,40.1` is as readable as the `12.5,40.1` that it was. Codecs whose messages
show by themselves that they are whole use `line`; the others use `line_after_end`, which throws away
what comes before the first line end, after the start and after each `reset`. With JSON it depends on the
message: the end of an object or array is none, but that of the number `12.5` is one. So `json_line` throws a
first line away unless it begins as an object or array does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final


class Framer:
    """Lines of one stream. `feed` gives the same lines however the stream was cut into pieces."""

    __slots__ = ("_beginnings", "_inside", "_is_first", "_max_bytes", "_needs_end", "_rest", "oversize")

    def __init__(self, max_bytes: int, *, after_end: bool = False, beginnings: tuple[bytes, ...] = (b"",)) -> None:
        """`after_end`: a stream's first line counts only from a line end on; `beginnings`: it counts only if it begins
        with one of these (see the module's docstring)."""
        self.oversize = 0
        """Lines that were longer than `max_bytes`."""
        self._max_bytes = max_bytes
        self._needs_end = after_end
        self._beginnings = beginnings
        self._is_first = True
        self._rest = bytearray()
        self._inside = not after_end
        """False: bytes are thrown away until the line ends."""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes, without their line ends."""
        first, *others = data.split(b"\n")
        self._extend(first)
        if not others:
            return []
        lines = [bytes(self._rest)] if self._inside else []
        if self._is_first:
            lines = [line for line in lines if line.lstrip().startswith(self._beginnings)]
            self._is_first = False
        self._rest.clear()
        self._inside = True
        *whole, rest = others
        for line in whole:
            if len(line) > self._max_bytes:
                self.oversize += 1
            else:
                lines.append(line)
        self._extend(rest)
        return [stripped for line in lines if (stripped := line.removesuffix(b"\r"))]

    def reset(self) -> None:
        """The stream was interrupted: the half line before is void."""
        self._rest.clear()
        self._inside = not self._needs_end
        self._is_first = True

    def _extend(self, piece: bytes) -> None:
        if not self._inside:
            return
        if len(self._rest) + len(piece) > self._max_bytes:
            self.oversize += 1
            self._rest.clear()
            self._inside = False
        else:
            self._rest += piece


FRAMINGS: Final[dict[str, Callable[[int], Framer]]] = {
    "line": Framer,
    "line_after_end": lambda max_bytes: Framer(max_bytes, after_end=True),
    "json_line": lambda max_bytes: Framer(max_bytes, beginnings=(b"{", b"[")),
}
"""What a codec's `framing` may be: a function from the largest message's bytes to a framer."""
