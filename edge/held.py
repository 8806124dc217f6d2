"""Arrival-stamped samples that came while the clock was not trusted: held until it is.

They are in the journal, with the verdict HELD, under the *estimate* of the clock (edge/clock.py): the time that
passes, laid upon the last time that was known. So by how much they are wrong is the same for all of a boot. Once the
clock is trusted they get that much more, and go on as if they had just come, with the verdict RELEASED; what was
watched for alarms when it came is not watched again.

A boot that ends before that leaves nothing to tell how long the machine was off: its samples keep the estimate, with
quality `clock`. So do the oldest where more are held than may be. Neither is ever corrected.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.model import Int32s, Int64s, SampleBatch
from edge.clock import Anchor

BATCHES_MAX = 256
"""More are joined: each look at all of them costs some microseconds a batch."""


class Step(msgspec.Struct, array_like=True, frozen=True):
    """At the beginning of a journal block, before its samples: held samples were released."""

    by_ns: int
    """What was added to their times; 0: they keep the estimate."""
    until_ns: int
    """Those went that were held under this estimate or one before."""
    now_ns: int = 0
    """The trusted time from which the clock went on; 0: it is still not trusted."""
    tick_ns: int = 0
    """The time of ticks then."""


class Held:
    """The samples that are held, in order of arrival within each series."""

    def __init__(self) -> None:
        self.samples = 0
        self.anchor: Anchor | None = None
        """Of the estimate of the newest."""
        self._batches: list[SampleBatch] = []
        self._last_ns: dict[int, int] = {}

    def stamp(self, series: Int32s, arrived_ns: Int64s, last_ns: Int64s) -> Int64s:
        """The estimates under which samples are held: strictly increasing in each series, after its `last_ns`."""
        latest: dict[int, int] = {}
        times = np.empty(len(series), np.int64)
        for row, (index, arrived) in enumerate(zip(series.tolist(), arrived_ns.tolist(), strict=True)):
            before = latest.get(index, max(self._last_ns.get(index, 0), int(last_ns[index])))
            latest[index] = times[row] = max(arrived, before + 1)
        return times

    def add(self, batch: SampleBatch) -> None:
        if not len(batch):
            return
        self._batches.append(batch)
        if len(self._batches) > BATCHES_MAX:
            self._batches = [self._joined()]
        self.samples += len(batch)
        for index, time_ns in zip(batch.series.tolist(), batch.time_ns.tolist(), strict=True):
            self._last_ns[index] = max(self._last_ns.get(index, time_ns), time_ns)

    def counts(self, size: int) -> Int64s:
        """int64[series]: how many are held."""
        counts = np.zeros(size, np.int64)
        for batch in self._batches:
            counts += np.bincount(batch.series, minlength=size)
        return counts

    def middle_ns(self) -> int:
        """Half of the samples are held under this estimate or one before."""
        times = np.sort(self._joined().time_ns)
        return int(times[(len(times) - 1) // 2])

    def newest_ns(self) -> int:
        """0 where none is held."""
        return max((int(batch.time_ns.max()) for batch in self._batches), default=0)

    def take(self, until_ns: int) -> SampleBatch:
        """Let go of those up to an estimate, in order of time."""
        every = self._joined()
        goes = every.time_ns <= until_ns
        taken, stays = every.take(goes), every.take(~goes)
        self._batches, self._last_ns, self.samples = [], {}, 0
        self.add(stays)
        return taken.take(np.argsort(taken.time_ns, kind="stable"))

    def _joined(self) -> SampleBatch:
        return SampleBatch.concat([SampleBatch.empty(), *self._batches])

    # -- state ---------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Columns in order of time, and the anchor of the estimate; nothing where nothing is held."""
        if not self.samples:
            return {}
        every = self._joined()
        every = every.take(np.lexsort((every.series, every.time_ns)))
        return {
            "series": every.series,
            "time_ns": every.time_ns,
            "value": every.value,
            "anchor": np.frombuffer(msgspec.json.encode(self.anchor), np.uint8),
        }

    def restore(self, saved: dict[str, NDArray[Any]]) -> None:
        """Take over what `snapshot` gave. Raises KeyError or MsgspecError."""
        if saved:
            series = saved["series"]
            self.add(SampleBatch(series, saved["time_ns"], saved["value"], np.zeros(len(series), np.uint8)))
            self.anchor = msgspec.json.decode(saved["anchor"].tobytes(), type=Anchor | None)
