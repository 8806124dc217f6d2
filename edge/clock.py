"""Time for the edge, injected: UTC for stamping, and when the next tick is due.

Ticks are events of the stream: they are journaled, and replay repeats them (design §3). They never step
back, even where the system's clock does: a tick is at least 1 ns after the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TICK_S = 1.0
"""Windows of silent series close, `silent` is raised, and summaries are sealed into frames, this often."""


class Clock:
    """UTC in ns from `wall` (the system's clock, or the simulation's)."""

    def __init__(self, wall: Callable[[], int] = time.time_ns) -> None:
        self._wall = wall
        self._last_tick_ns = 0

    def now_ns(self) -> int:
        return self._wall()

    def tick_ns(self) -> int:
        """The time of a tick that happens now."""
        self._last_tick_ns = max(self._wall(), self._last_tick_ns + 1)
        return self._last_tick_ns

    def resume(self, tick_ns: int) -> None:
        """Ticks up to this one have happened (before a restart)."""
        self._last_tick_ns = max(self._last_tick_ns, tick_ns)
