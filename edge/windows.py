"""Samples -> windows -> summaries, and the changes of states. A pure function of samples and ticks, in their order.

`kernels/window.py` has the rules; this module keeps its arrays. What has closed is settled (`kernels/settle.py`) before
it is handed out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.errors import StoreError
from devices.model import CHANGE_DTYPE, SUMMARY_DTYPE, Int64s, SampleBatch, SeriesSpec
from edge.kernels import window
from edge.kernels.growing import Records
from edge.kernels.settle import settle_entry
from edge.kernels.window import EVER_NS, NEVER_NS

BUFFER_ROWS = 256
"""Summaries, or changes, that a pass may make before it is drained: 22 KB stay in the processor's cache."""


class Windows:
    """The windowing operator of all series."""

    VERSION = 1
    """Of the snapshot's layout and of what the passes do with it."""

    def __init__(self) -> None:
        self._params = Records(window.PARAMS)
        self._state = Records(
            window.STATE,
            switch_ns=EVER_NS,
            newest_ns=NEVER_NS,
            touched_ns=NEVER_NS,
            closed_ns=NEVER_NS,
            earliest_ns=EVER_NS,
        )
        self._slots = Records(window.SLOT, (window.SLOTS,))
        self._count = 0
        self._tick_ns = NEVER_NS
        self._rows = np.zeros(BUFFER_ROWS, SUMMARY_DTYPE)
        self._change_rows = np.zeros(BUFFER_ROWS, CHANGE_DTYPE)
        self._closed = bytearray()  # rows as bytes: NumPy copies structured arrays field by field
        self._changed = bytearray()

    def add_series(self, index: int, spec: SeriesSpec) -> None:
        """Add a series, or change one that is there: a new window size takes effect at the next boundary, after
        the newest sample, that both sizes share; the rest at once."""
        for records in (self._params, self._state, self._slots):
            records.reach(index)
        self._params.array[index] = (
            int(spec.kind),
            window.REPORTS[spec.report],
            spec.lateness_ns,
            spec.idle_close_ns,
            spec.heartbeat_ns,
            spec.tolerance,
            spec.counter_wrap,
        )
        own = self._state.array[index]
        if own["window_ns"] == 0:
            own["window_ns"] = spec.window_ns
        else:
            self._resize(index, spec.window_ns)
        self._count = max(self._count, index + 1)

    def _resize(self, index: int, window_ns: int) -> None:
        own = self._state.array[index]
        if own["switch_ns"] <= own["newest_ns"]:  # an earlier change is in use
            if own["next_window_ns"] == window_ns:
                return
            self._close_until(index, int(own["switch_ns"]))
            own["closed_ns"] = max(own["closed_ns"], own["switch_ns"])
            own["window_ns"] = own["next_window_ns"]
        own["switch_ns"] = EVER_NS
        if own["window_ns"] == window_ns:
            return
        if own["newest_ns"] == NEVER_NS:
            own["window_ns"] = window_ns
            return
        own["next_window_ns"] = window_ns
        shared_ns = math.lcm(int(own["window_ns"]), window_ns)
        own["switch_ns"] = min((int(own["newest_ns"]) // shared_ns + 1) * shared_ns, EVER_NS)

    def _close_until(self, index: int, limit_ns: int) -> None:
        made = window.close_one_entry(
            limit_ns, index, self._params.array, self._state.array, self._slots.array, self._rows
        )
        self._keep(made)

    def run(self, batch: SampleBatch) -> None:
        """Put samples into their windows, in order of arrival. Series that report raw are passed over."""
        done, n = 0, len(batch)
        series = np.ascontiguousarray(batch.series, np.int32)
        time_ns = np.ascontiguousarray(batch.time_ns, np.int64)
        value = np.ascontiguousarray(batch.value, np.float64)
        while done < n:
            done, made, changed = window.fold_entry(
                series,
                time_ns,
                value,
                done,
                self._tick_ns,
                self._params.array,
                self._state.array,
                self._slots.array,
                self._rows,
                self._change_rows,
            )
            self._keep(made)
            if changed:
                self._changed += self._change_rows[:changed].tobytes()

    def tick(self, now_ns: int) -> bool:
        """Close supplements, the windows of series without a sample for `idle_close` (counted from the last tick
        before their last sample) that ended `lateness` ago, and what such series held back for a heartbeat.

        Returns whether any window closed, be it only into what is held back.
        """
        self._tick_ns = max(self._tick_ns, now_ns)
        before = self._slots.array["count"][: self._count].copy()
        done = 0
        while done < self._count:
            done, made = window.sweep_entry(
                self._tick_ns,
                done,
                self._count,
                self._params.array,
                self._state.array,
                self._slots.array,
                self._rows,
            )
            self._keep(made)
        return not np.array_equal(before, self._slots.array["count"][: self._count])

    def away(self, span_ns: int) -> None:
        """Nobody listened for so long: no series fell silent in that time."""
        touched = self._state.array["touched_ns"]
        touched[touched != NEVER_NS] += span_ns

    def _keep(self, made: int) -> None:
        if made:
            self._closed += self._rows[:made].tobytes()

    def has_closed(self) -> bool:
        """Whether `take` or `changes` would return anything."""
        return bool(self._closed or self._changed)

    def take(self) -> NDArray[Any]:
        """SUMMARY_DTYPE: what has closed since the last call, settled, in order of closing."""
        rows = np.frombuffer(self._closed, SUMMARY_DTYPE)
        self._closed = bytearray()
        settle_entry(rows)
        return rows

    def changes(self) -> NDArray[Any]:
        """CHANGE_DTYPE: changes of states since the last call, in order of arrival."""
        rows = np.frombuffer(self._changed, CHANGE_DTYPE)
        self._changed = bytearray()
        return rows

    def open_counts(self) -> Int64s:
        """Samples a series that no summary holds yet: in open windows, supplements, and held back windows."""
        counts: Int64s = self._slots.array["count"][: self._count].sum(axis=1)
        return counts

    def late_counts(self) -> Int64s:
        """Samples a series, ever, that came after their window had closed."""
        counts: Int64s = self._state.array["late"][: self._count].copy()
        return counts

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """A copy of all that this operator remembers; first axis of `state` and `slots`: the series.

        What has closed must have been taken: it belongs to the commit, not to the snapshot.
        """
        return {
            "state": self._state.saved(self._count),
            "slots": self._slots.saved(self._count),
            "tick_ns": np.array([self._tick_ns]),
        }

    def restore(self, saved: dict[str, NDArray[Any]]) -> None:
        """Go on from a snapshot of this VERSION, after `add_series` was called for its series.

        Raises StoreError, and has changed nothing, if its layout is another one.
        """
        try:
            self._state.load(saved["state"])
            self._slots.load(saved["slots"])
        except (KeyError, ValueError) as error:
            raise StoreError(f"the snapshot of the windows does not fit this version: {error}") from error
        self._tick_ns = int(saved["tick_ns"][0])
        self._params.reach(len(saved["state"]) - 1)
        self._count = max(self._count, len(saved["state"]))
