"""What was handed to the link and the broker has not taken: so little that an alarm soon passes it.

Whatever waits in a socket's buffers goes before an alarm that comes after it. Filled with a lane's window, 1 MiB,
a link of 64 kbit/s takes two minutes for it. So no more is handed over than the broker has taken, by its PUBACKs,
in about the last second, and 16 KiB at least: a fast link is never waited for (what is taken doubles with each
round trip), and on a slow one an alarm waits a second or two, or for the frame that is on its way.
"""

from __future__ import annotations

import math

AT_LEAST_BYTES = 16 << 10
SPAN_S = 1.0


class Underway:
    """Bytes by frame, and how fast they go."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        """By seq."""
        self._bytes = 0
        self._taken_bytes = 0.0
        """In about the last SPAN_S: what is older fades."""
        self._at_s = 0.0

    def may(self, size_bytes: int, now_s: float) -> bool:
        """Whether as much again may be handed over. One frame always may, however large."""
        return not self._sizes or self._bytes + size_bytes <= max(AT_LEAST_BYTES, self._taken_lately(now_s))

    def sent(self, seq: int, size_bytes: int) -> None:
        self._bytes += size_bytes - self._sizes.get(seq, 0)
        self._sizes[seq] = size_bytes

    def taken(self, seq: int, now_s: float) -> None:
        """The broker has it, or has refused it."""
        size_bytes = self._sizes.pop(seq, 0)
        self._bytes -= size_bytes
        self._taken_bytes = self._taken_lately(now_s) + size_bytes
        self._at_s = now_s

    def clear(self) -> None:
        """The link has ended, and what was on its way with it."""
        self._sizes.clear()
        self._bytes = 0

    def _taken_lately(self, now_s: float) -> float:
        return self._taken_bytes * math.exp((self._at_s - now_s) / SPAN_S)
