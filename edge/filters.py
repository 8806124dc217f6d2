"""Samples -> the openings and closings of alarms. A pure function of the samples, in their order.

`kernels/detect.py` has the passes and the alarm machine; this module keeps their arrays, finds filters by name, and
puts the events of all passes into one order.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.errors import ProfileError, StoreError
from devices.model import Int64s, SampleBatch, SeriesSpec
from devices.profiles import load
from edge.kernels import Filter, detect
from edge.kernels.detect import EVENT_DTYPE, FUSED, NEVER_NS
from edge.kernels.growing import Records

BUFFER_EVENTS = 64
"""Events that a pass may make before it is drained."""

NO_EVENTS = np.empty(0, EVENT_DTYPE)


class _Pass:
    """One compiled pass with its arrays: the fused one, or that of one external filter."""

    def __init__(self, name: str, call: Any, params: np.dtype[Any], state: np.dtype[Any]) -> None:
        self.name = name
        self.call = call
        self.params = Records(params)
        self.state = Records(state, last_ns=NEVER_NS, event_ns=NEVER_NS)

    def reach(self, index: int) -> None:
        self.params.reach(index)
        self.state.reach(index)

    def configure(self, index: int, spec: SeriesSpec, enabled: int) -> None:
        """Set what is common to all of the pass's filters; `enabled` has a bit for each that runs."""
        params = self.params.array[index]
        params["enabled"] = enabled
        params["on_delay_ns"] = spec.on_delay_ns
        params["off_delay_ns"] = spec.off_delay_ns
        params["close_below"] = 1.0 - spec.deadband
        state = self.state.array[index]
        state["open"] &= enabled
        state["pending"] &= enabled


class Filters:
    """The detecting operator of all series."""

    VERSION = 1
    """Of the snapshot's layout and of what the passes do with it."""

    def __init__(self) -> None:
        self.detectors: list[str] = [filter_.name for filter_ in FUSED]
        """Names by detector index: the fused ones, then external ones in the order in which they were asked for."""
        self._fused = _Pass("fused", detect.detect_entry, detect.PARAMS, detect.STATE)
        self._external: dict[str, _Pass] = {}
        self._classes: dict[str, type[Filter]] = {filter_.name: filter_ for filter_ in FUSED}
        self._events = np.zeros(BUFFER_EVENTS, EVENT_DTYPE)
        self._count = 0

    def add_series(self, index: int, spec: SeriesSpec) -> None:
        """Add a series, or change the settings of one that is there; what its filters have learnt stays, and
        an alarm of a filter that no longer runs is forgotten here (`Alarms.add_series` closes it).

        Raises PluginError for a filter that is not installed and ProfileError for options that it refuses.
        """
        for name in spec.filters:
            self._find(name)
        passes = [self._fused, *self._external.values()]
        for each in passes:
            each.reach(index)
        enabled = 0
        for bit, filter_ in enumerate(FUSED):
            if filter_.name in spec.filters:
                enabled |= 1 << bit
                self._fused.params.array[filter_.name][index] = _params(filter_, spec)
        self._fused.configure(index, spec, enabled)
        for name, each in self._external.items():
            runs = name in spec.filters
            each.configure(index, spec, int(runs))
            if runs:
                each.params.array["filter"][index] = _params(self._classes[name], spec)
        self._count = max(self._count, index + 1)

    def _find(self, name: str) -> None:
        if name in self._classes:
            return
        filter_: type[Filter] = load("filters", name)
        call = detect.generic_pass(filter_, len(self.detectors))
        external = _Pass(name, call, *detect.generic_dtypes(filter_))
        if self._count:
            external.reach(self._count - 1)
        self._external[name] = external
        self._classes[name] = filter_
        self.detectors.append(name)

    def run(self, batch: SampleBatch) -> NDArray[Any]:
        """EVENT_DTYPE: the openings and closings that the samples decide, in order of samples, then detectors."""
        columns = (
            np.ascontiguousarray(batch.series, np.int32),
            np.ascontiguousarray(batch.time_ns, np.int64),
            np.ascontiguousarray(batch.value, np.float64),
        )
        parts: list[NDArray[Any]] = []
        for each in (self._fused, *self._external.values()):
            done, n = 0, len(batch)
            while done < n:
                done, found = each.call(*columns, done, each.params.array, each.state.array, self._events)
                if found:
                    parts.append(self._events[:found].copy())
        if not parts:
            return NO_EVENTS
        events = np.concatenate(parts)
        return events[np.lexsort((events["detector"], events["position"]))]

    def shift(self, series: Int64s, by_ns: int) -> None:
        """The clock by which these series were watched has stepped: what is remembered with its time goes along."""
        for each in (self._fused, *self._external.values()):
            own = each.state.array[series]
            _shift(own, by_ns)
            each.state.array[series] = own

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """A copy of all that the filters remember: by pass, first axis the series."""
        passes = (self._fused, *self._external.values())
        return {each.name: each.state.saved(self._count) for each in passes}

    def restore(self, saved: dict[str, NDArray[Any]]) -> None:
        """Go on from a snapshot of this VERSION, after `add_series` was called for its series.

        Raises StoreError, and has changed nothing, if the layout of Forebay's own filters is another one. An external
        filter whose record has changed, or that was not there, starts anew.
        """
        try:
            self._fused.state.load(saved["fused"])
        except (KeyError, ValueError) as error:
            raise StoreError(f"the snapshot of the filters does not fit this version: {error}") from error
        count = len(saved["fused"])
        self._fused.params.reach(count - 1)
        for name, each in self._external.items():
            each.reach(count - 1)
            if name in saved and saved[name].dtype == each.state.array.dtype:
                each.state.load(saved[name])
        self._count = max(self._count, count)


def _shift(records: NDArray[Any], by_ns: int) -> None:
    """All fields of int64 whose name ends with `_ns`, but for those that were never set."""
    for name in records.dtype.names or ():
        field = records[name]
        if field.dtype.names:
            _shift(field, by_ns)
        elif name.endswith("_ns") and field.dtype == np.int64:
            field[(field != NEVER_NS) & (field != 0)] += by_ns


def _params(filter_: type[Filter], spec: SeriesSpec) -> tuple[Any, ...]:
    try:
        options = msgspec.convert(spec.filters[filter_.name], filter_.Options)
    except msgspec.ValidationError as error:
        raise ProfileError(
            f"{error}: filter {filter_.name} of {spec.device} {spec.channel} ({spec.profile})"
        ) from error
    return filter_.params_of(options, spec)
