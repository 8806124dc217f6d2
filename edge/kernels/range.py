"""Filter `range`: a value outside its limits.

score = 1 + (distance beyond the nearer limit) / half the width: at least 1 outside, less than 1 on the limits
and inside, 0 in the middle. A limit itself is legal. With one limit alone distances are measured
in units of that limit (of 1, where it is 0), so that a deadband of 0.1 asks for a return by a tenth of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import numpy as np

from devices.model import SeriesSpec
from edge.kernels import SCORE_MAX, jit

BELOW_ONE = math.nextafter(1.0, 0.0)


class RangeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits in the channel's unit; one that is left out does not bound."""

    low: float | None = None
    """Lowest normal value; left out: none."""
    high: float | None = None
    """Highest normal value; left out: none."""

    def __post_init__(self) -> None:
        low, high = _limits(self)
        if not low <= high:
            raise ValueError(f"`low` must not be above `high`, and neither may be NaN: {low}, {high}")


def _limits(options: RangeOptions) -> tuple[float, float]:
    low = -math.inf if options.low is None else options.low
    return low, math.inf if options.high is None else options.high


@jit
def step(state: Any, params: Any, time_ns: int, value: float) -> tuple[float, float, float]:
    """Memoryless; the limits themselves are the expected band."""
    score = 1.0 + max(value - params.high, params.low - value) * params.per_unit
    if params.low <= value <= params.high:
        return max(0.0, min(score, BELOW_ONE)), params.low, params.high
    return max(1.0, min(score, SCORE_MAX)), params.low, params.high


class RangeFilter:
    """See the module's docstring."""

    name: ClassVar[str] = "range"
    Options: ClassVar[type[msgspec.Struct]] = RangeOptions
    state: ClassVar[np.dtype[Any]] = np.dtype([("unused", np.uint8)])
    params: ClassVar[np.dtype[Any]] = np.dtype(
        [("low", np.float64), ("high", np.float64), ("per_unit", np.float64)], align=True
    )
    memoryless: ClassVar[bool] = True
    step: ClassVar[Callable[..., Any]] = staticmethod(step)

    @staticmethod
    def params_of(options: RangeOptions, spec: SeriesSpec) -> tuple[Any, ...]:
        low, high = _limits(options)
        unit = high / 2 - low / 2
        if not 0 < unit < math.inf:
            unit = max((abs(edge) for edge in (low, high) if math.isfinite(edge)), default=0.0) or 1.0
        return low, high, max(1 / unit, 5e-324) if unit > 1e-300 else 1e300
