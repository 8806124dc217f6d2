"""What was there before: what admission asks (edge/identity.py) about a sample that is out of order."""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np

from devices.errors import StoreCorrupt, StoreError
from devices.model import Floats, Int64s
from edge import journal
from edge.identity import has_time
from edge.recent import Recent

log = logging.getLogger("forebay.pump")


class BlocksPort(Protocol):
    """What is asked of the store."""

    def blocks_around(self, times_ns: Int64s, after: int) -> list[tuple[int, bytes]]: ...


class Past:
    """The accepted samples of memory and journal; an `identity.History`."""

    def __init__(self, store: BlocksPort, recent: Recent) -> None:
        self._store = store
        self.recent = recent

    def __call__(self, series: int, times_ns: Int64s) -> tuple[Int64s, Floats]:
        """Times and values of a series' accepted samples at these times, in order: from memory, or else from the
        journal, which is asked for all of them at once, since the loop waits for it."""
        found = [self.recent.find(series, times_ns)]
        forgotten = times_ns[times_ns <= self.recent.forgotten_ns]
        if len(forgotten):
            found += self._in_journal(series, forgotten)
        times, values = zip(*found, strict=True)
        return np.concatenate(times), np.concatenate(values)

    def _in_journal(self, series: int, times_ns: Int64s) -> list[tuple[Int64s, Floats]]:
        found = []
        last = 0
        try:
            while blocks := self._store.blocks_around(times_ns, last):
                last = blocks[-1][0]
                for _, data in blocks:
                    block = journal.decode(data)
                    here = has_time(block.verdict) & (block.batch.series == series)
                    here[here] = np.isin(block.batch.time_ns[here], times_ns)
                    found.append((block.batch.time_ns[here], block.batch.value[here]))
        except (StoreError, StoreCorrupt) as error:
            log.error("%s: whether an old sample was there before cannot be told", error)
        return found
