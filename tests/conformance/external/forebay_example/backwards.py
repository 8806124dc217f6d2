"""Filter `backwards`: a value that has fallen by more than `by` since the sample before.

score = fall / by; the expected band is everything above the last value less `by`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import numba
import numpy as np

from devices.model import SeriesSpec

SCORE_MAX = 1e6


class BackwardsOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    by: float = 1.0
    """Smallest fall that is abnormal, in the channel's unit."""

    def __post_init__(self) -> None:
        if not 0 < self.by < 1e12:
            raise ValueError(f"`by` must be positive: {self.by}")


@numba.njit
def step(state: Any, params: Any, time_ns: int, value: float) -> tuple[float, float, float]:
    """The first sample only sets the state."""
    last = state.last
    seen = state.seen
    state.last = value
    state.seen = 1
    if seen == 0:
        return 0.0, np.nan, np.nan
    return min(max(last - value, 0.0) / params.by, SCORE_MAX), last - params.by, np.nan


class BackwardsFilter:
    """See the module's docstring."""

    name: ClassVar[str] = "backwards"
    Options: ClassVar[type[msgspec.Struct]] = BackwardsOptions
    state: ClassVar[np.dtype[Any]] = np.dtype([("last", np.float64), ("seen", np.int64)], align=True)
    params: ClassVar[np.dtype[Any]] = np.dtype([("by", np.float64)], align=True)
    memoryless: ClassVar[bool] = False
    step = staticmethod(step)

    @staticmethod
    def params_of(options: BackwardsOptions, spec: SeriesSpec) -> tuple[Any, ...]:
        return (options.by,)
