"""The last samples in memory: what admission asks about a sample that is out of order, without reading the journal.

Three columns used as a ring: their size is fixed, however few samples a batch holds.
"""

from __future__ import annotations

import numpy as np

from devices.model import Bytes, Floats, Int64s, SampleBatch
from edge.identity import has_time

ROWS = 65_536
"""More than the pump can have taken in and not committed: what is not here is in the journal."""


class Recent:
    """Accepted samples, the latest ROWS of them in order of arrival."""

    def __init__(self, forgotten_ns: int, rows: int = ROWS) -> None:
        self.forgotten_ns = forgotten_ns
        """The highest time that the ring does not hold: up to it the journal must be asked as well."""
        self._series = np.full(rows, -1, np.int32)
        self._time_ns = np.zeros(rows, np.int64)
        self._value = np.zeros(rows)
        self._next = 0

    def add(self, batch: SampleBatch, verdict: Bytes) -> None:
        """Keep what was accepted; the oldest go."""
        if verdict.any():
            batch = batch.take(has_time(verdict))
        rows = len(self._series)
        for start in range(0, len(batch), rows):
            part = batch.take(np.arange(start, min(start + rows, len(batch))))
            at = (self._next + np.arange(len(part))) % rows
            old = self._time_ns[at][self._series[at] >= 0]
            if len(old):
                self.forgotten_ns = max(self.forgotten_ns, int(old.max()))
            self._series[at], self._time_ns[at], self._value[at] = part.series, part.time_ns, part.value
            self._next = int(at[-1] + 1) % rows

    def find(self, series: int, times_ns: Int64s) -> tuple[Int64s, Floats]:
        """Times and values of a series' samples that have one of these times, in any order."""
        found = np.flatnonzero(self._series == series)
        found = found[np.isin(self._time_ns[found], times_ns)]
        return self._time_ns[found], self._value[found]
