"""Filter `zscore`: a robust z-score against an exponentially weighted mean and deviation.

With r = value - mean, the score is |r| / B and the expected band mean +- B, where

    B = max(threshold * deviation, PEAK_MARGIN * peak)

and, for a machine that was seen to jump (JUMP_MARGIN * peak > threshold * deviation, within the last 0.7 `memory_s`),
B on either side reaches at least threshold * deviation beyond the lowest and the highest normal value: where such a
machine has been before is normal.

- mean and deviation are exponentially weighted with the time constant `tau_s`: a sample that comes dt after
  the one before weighs w = 1 - exp(-dt / tau), at most 1/MIN_MEMORY (so that a slow series keeps
  a memory of some samples), at least 1/n (so that the first n samples are averaged evenly).
- deviation is the weighted mean of |r|, scaled so that it is the standard deviation of Gaussian noise.
  It is not less than half the resolution of the sensor (`resolution`, or the smallest step ever seen)
  and `floor_relative` times the level. No square is taken, so 1e300 is only a large number.
- Influence is bounded (Huber, "Robust Estimation of a Location Parameter", 1964): |r| counts as at most CLIP
  deviations, and an abnormal sample weighs a quarter. So a fault does not soon pass for normal: a level
  20 deviations off is learnt after 2 time constants, one 100 off after 5.
- peak is the largest |r| of samples within threshold * deviation (of all while warming up). It, the lowest and the
  highest fade towards the mean with `memory_s`. So load steps that are part of a machine's day do not alarm again
  and again, and a signal without them keeps its full sensitivity.

Nothing is abnormal during the warm-up (`warm_up_s` and `warm_up_samples`, both; in the latter influence is not
bounded), nor while the value was never
seen to move: without a deviation there is no measure (that is what `stuck` and `range` are for).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import numpy as np

from devices.model import SECOND_NS, SeriesSpec
from edge.kernels import SCORE_MAX, jit

MIN_MEMORY = 64
"""A deviation from fewer samples is too uncertain: its relative error is about 0.76 / sqrt(samples * 2)."""
FULL = -math.log1p(-1 / MIN_MEMORY)
"""dt / tau from which on a sample weighs 1 / MIN_MEMORY; below it three terms give 1 - exp(-x) to 2e-7."""
CLIP = 2.0
FROM_MEAN_ABS = math.sqrt(math.pi / 2)
"""Standard deviation / mean |r| of Gaussian noise."""
FROM_CLIPPED = 1 / (math.sqrt(2 / math.pi) * (1 - math.exp(-CLIP * CLIP / 2)) + CLIP * math.erfc(CLIP / math.sqrt(2)))
"""Standard deviation / mean of min(|r|, CLIP standard deviations), of Gaussian noise."""
ABNORMAL_WEIGHT = 0.25
PEAK_MARGIN = 1.5
JUMP_MARGIN = 1.25
"""Gaussian noise passes 8 / 1.25 deviations once in 6e9 samples."""
DEVIATION_MIN = 1e-300
"""Half of the smallest step that a double can make is 0, and no band."""
RESIDUAL_MAX = 1e308
"""Differences of huge values are clipped here, which keeps the state finite."""


class ZscoreOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    threshold: float = 8.0
    """Deviations from the mean that are abnormal."""
    tau_s: float = 300.0
    """Time constant of mean and deviation, seconds."""
    warm_up_s: float = 300.0
    """Nothing is abnormal in so many seconds after the first sample: best one working cycle of the machine."""
    warm_up_samples: int = 64
    """And in the first so many samples."""
    memory_s: float = 86_400.0
    """Time constant with which the largest normal deviation is forgotten, seconds."""
    resolution: float = 0.0
    """Smallest step of the sensor in the channel's unit; 0: the smallest that was seen."""
    floor_relative: float = 1e-5
    """The deviation is at least this share of the level."""

    def __post_init__(self) -> None:
        for name in ("threshold", "tau_s", "memory_s"):
            if not 0 < getattr(self, name) < 1e12:
                raise ValueError(f"`{name}` must be positive: {getattr(self, name)}")
        for name in ("warm_up_s", "warm_up_samples", "resolution", "floor_relative"):
            if not 0 <= getattr(self, name) < 1e9:
                raise ValueError(f"`{name}` must not be negative, nor huge: {getattr(self, name)}")


@jit
def step(state: Any, params: Any, time_ns: int, value: float) -> tuple[float, float, float]:
    """One sample; see the module's docstring for the formulas."""
    if state.seen == 0:
        state.seen = 1
        state.start_ns = state.time_ns = time_ns
        state.mean = state.last = state.lowest = state.highest = value
        state.step = params.resolution if params.resolution > 0.0 else np.inf
        return 0.0, np.nan, np.nan

    x = (time_ns - state.time_ns) * params.per_ns
    weight = 1.0 / MIN_MEMORY if x >= FULL else x * (1.0 - x * (0.5 - x / 6.0))
    state.seen += 1
    if weight * state.seen < 1.0:
        weight = 1.0 / state.seen
    state.time_ns = time_ns

    moved = abs(value - state.last)
    state.last = value
    if 0.0 < moved < state.step and params.resolution <= 0.0:
        state.step = moved

    residual = min(max(value - state.mean, -RESIDUAL_MAX), RESIDUAL_MAX)
    size = abs(residual)
    if state.seen <= params.warm_up_samples:
        state.mean += weight * residual
        state.deviation += weight * (FROM_MEAN_ABS * size - state.deviation)
        state.peak = max(state.peak, size)
        state.lowest = min(state.lowest, value)
        state.highest = max(state.highest, value)
        return 0.0, np.nan, np.nan
    if state.step == np.inf:
        return 0.0, np.nan, np.nan

    mean = state.mean
    deviation = max(max(state.deviation, DEVIATION_MIN), max(0.5 * state.step, params.floor_relative * abs(mean)))
    usual = params.threshold * deviation
    below = above = max(usual, PEAK_MARGIN * state.peak)
    if JUMP_MARGIN * state.peak > usual:
        state.jumps = 1.0
    if state.jumps > 0.5:
        below = max(below, min(mean - state.lowest, RESIDUAL_MAX) + usual)
        above = max(above, min(state.highest - mean, RESIDUAL_MAX) + usual)
    score = min(size / (above if residual > 0.0 else below), SCORE_MAX)

    learning = time_ns - state.start_ns < params.warm_up_ns
    fading = min(1.0, x * params.fading)
    state.peak *= 1.0 - fading
    state.jumps *= 1.0 - fading
    state.lowest += fading * (mean - state.lowest)
    state.highest += fading * (mean - state.highest)
    if size <= usual or learning:
        state.peak = max(state.peak, size)
    if score < 1.0 or learning:
        state.lowest = min(state.lowest, value)
        state.highest = max(state.highest, value)
    else:
        weight *= ABNORMAL_WEIGHT
    counted = min(size, CLIP * deviation)
    state.mean += math.copysign(weight * counted, residual)
    state.deviation += weight * (FROM_CLIPPED * counted - state.deviation)
    if learning:
        return 0.0, np.nan, np.nan
    return score, mean - below, mean + above


class ZscoreFilter:
    """See the module's docstring."""

    name: ClassVar[str] = "zscore"
    Options: ClassVar[type[msgspec.Struct]] = ZscoreOptions
    state: ClassVar[np.dtype[Any]] = np.dtype(
        [
            ("time_ns", np.int64),  # of the last sample
            ("start_ns", np.int64),  # of the first
            ("seen", np.int64),  # samples
            ("mean", np.float64),
            ("deviation", np.float64),
            ("peak", np.float64),
            ("jumps", np.float64),  # 1 when it last jumped; fades
            ("lowest", np.float64),
            ("highest", np.float64),
            ("step", np.float64),  # smallest movement seen; inf: none
            ("last", np.float64),
        ],
        align=True,
    )
    params: ClassVar[np.dtype[Any]] = np.dtype(
        [
            ("per_ns", np.float64),  # 1 / tau
            ("fading", np.float64),  # tau / memory
            ("threshold", np.float64),
            ("resolution", np.float64),
            ("floor_relative", np.float64),
            ("warm_up_ns", np.int64),
            ("warm_up_samples", np.int64),
        ],
        align=True,
    )
    memoryless: ClassVar[bool] = False
    step: ClassVar[Callable[..., Any]] = staticmethod(step)

    @staticmethod
    def params_of(options: ZscoreOptions, spec: SeriesSpec) -> tuple[Any, ...]:
        return (
            1 / (options.tau_s * SECOND_NS),
            options.tau_s / options.memory_s,
            options.threshold,
            options.resolution,
            options.floor_relative,
            round(options.warm_up_s * SECOND_NS),
            options.warm_up_samples,
        )
