"""Filter `stuck`: a value that no longer changes, as of a sensor that hangs or a wire that is off.

score = time since the value last moved by more than `tolerance` / `after_s`. A single pair of equal values far
apart proves nothing, so at least MIN_SAMPLES equal ones must have come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import numpy as np

from devices.model import SECOND_NS, SeriesSpec
from edge.kernels import SCORE_MAX, jit

MIN_SAMPLES = 3


class StuckOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after_s: float = 600.0
    """Unchanged for so many seconds is abnormal."""
    tolerance: float = 0.0
    """A movement up to this, in the channel's unit, is none: the resolution of the sensor."""

    def __post_init__(self) -> None:
        if not 0 < self.after_s < 1e9 or not 0 <= self.tolerance < float("inf"):
            raise ValueError(
                f"`after_s` must be positive and `tolerance` not negative: {self.after_s}, {self.tolerance}"
            )


@jit
def step(state: Any, params: Any, time_ns: int, value: float) -> tuple[float, float, float]:
    """There is no expected band."""
    if state.samples == 0 or abs(value - state.value) > params.tolerance:
        state.value = value
        state.since_ns = time_ns
        state.samples = 1
        return 0.0, np.nan, np.nan
    state.samples = min(state.samples + 1, MIN_SAMPLES)
    if state.samples < MIN_SAMPLES:
        return 0.0, np.nan, np.nan
    return min((time_ns - state.since_ns) / params.after_ns, SCORE_MAX), np.nan, np.nan


class StuckFilter:
    """See the module's docstring."""

    name: ClassVar[str] = "stuck"
    Options: ClassVar[type[msgspec.Struct]] = StuckOptions
    state: ClassVar[np.dtype[Any]] = np.dtype(
        [("since_ns", np.int64), ("value", np.float64), ("samples", np.int64)], align=True
    )
    params: ClassVar[np.dtype[Any]] = np.dtype([("after_ns", np.float64), ("tolerance", np.float64)], align=True)
    memoryless: ClassVar[bool] = False
    step: ClassVar[Callable[..., Any]] = staticmethod(step)

    @staticmethod
    def params_of(options: StuckOptions, spec: SeriesSpec) -> tuple[Any, ...]:
        return options.after_s * SECOND_NS, options.tolerance
