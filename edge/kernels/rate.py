"""Filter `rate`: a value that moves faster than the machine can.

score = |value - last| / (max_per_s * seconds between them). The expected band is last +- max_per_s * seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import numpy as np

from devices.model import SECOND_NS, SeriesSpec
from edge.kernels import SCORE_MAX, jit


class RateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    max_per_s: float
    """Largest change per second, in the channel's unit, either way."""

    def __post_init__(self) -> None:
        if not 0 < self.max_per_s < float("inf"):
            raise ValueError(f"`max_per_s` must be positive: {self.max_per_s}")


@jit
def step(state: Any, params: Any, time_ns: int, value: float) -> tuple[float, float, float]:
    """The first sample has no rate."""
    last = state.value
    reach = (time_ns - state.time_ns) * params.max_per_ns
    first = state.known == 0
    state.value = value
    state.time_ns = time_ns
    state.known = 1
    if first or reach <= 0.0:
        return 0.0, np.nan, np.nan
    return min(abs(value - last) / reach, SCORE_MAX), last - reach, last + reach


class RateFilter:
    """See the module's docstring."""

    name: ClassVar[str] = "rate"
    Options: ClassVar[type[msgspec.Struct]] = RateOptions
    state: ClassVar[np.dtype[Any]] = np.dtype(
        [("time_ns", np.int64), ("value", np.float64), ("known", np.int64)], align=True
    )
    params: ClassVar[np.dtype[Any]] = np.dtype([("max_per_ns", np.float64)], align=True)
    memoryless: ClassVar[bool] = False
    step: ClassVar[Callable[..., Any]] = staticmethod(step)

    @staticmethod
    def params_of(options: RateOptions, spec: SeriesSpec) -> tuple[Any, ...]:
        return (options.max_per_s / SECOND_NS,)
