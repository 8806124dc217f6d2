"""Time for the edge, injected: UTC for stamping, and the times of ticks.

Ticks are events of the stream: they are journaled, and replay repeats them (design §3). They never step
back, and never stand still: where the system's clock steps back, they go on from the last one by the time
that has really passed, until the clock has caught up. What hangs on ticks (windows of silent series,
`silent`, reports) goes on as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TICK_S = 1.0
"""Windows of silent series close, `silent` is raised, and summaries are sealed into frames, this often."""


class Clock:
    """UTC in ns from `wall`, passing time in ns from `elapsed`: the system's, or the simulation's."""

    def __init__(self, wall: Callable[[], int] = time.time_ns, elapsed: Callable[[], int] = time.monotonic_ns) -> None:
        self._wall = wall
        self._elapsed = elapsed
        self._last_tick_ns = 0
        self._last_elapsed_ns = elapsed()

    def now_ns(self) -> int:
        return self._wall()

    def tick_ns(self) -> int:
        """The time of a tick that happens now."""
        elapsed_ns = self._elapsed()
        passed_ns = max(elapsed_ns - self._last_elapsed_ns, 1)
        self._last_elapsed_ns = elapsed_ns
        self._last_tick_ns = max(self._wall(), self._last_tick_ns + passed_ns)
        return self._last_tick_ns

    def resume(self, tick_ns: int) -> None:
        """Ticks up to this one have happened (before a restart)."""
        self._last_tick_ns = max(self._last_tick_ns, tick_ns)
