"""What a simulated machine's channel reads at sample i: a pure function of (seed, device, channel, i).

Nothing is drawn one after the other: every random number is a hash of its place, so that a sample's
value depends neither on the pace at which samples are taken nor on how many are asked for at once.

Times here are seconds since the run's start (float64[n]); indices are int64[n]; values are float64[n].
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.model import Floats, Int64s

DAY_S = 86_400.0
MILLISECOND_NS = 1_000_000

# Which random number of a sample or segment: one lane each, so that no two uses share numbers.
NOISE_LANE, LOAD_LANE, STATE_LANE, PHASE_LANE, FAULT_LANE = range(5)

# splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
NotNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]


class Gauge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="gauge"):
    """A level with a daily cycle, load steps, vibration and noise, in the channel's unit."""

    level: float
    unit: str = ""
    decimals: int = 2
    noise: NotNegative = 0.0
    """Standard deviation of Gaussian noise."""
    daily: float = 0.0
    """Amplitude of a sine with a period of one day."""
    load: float = 0.0
    """Height of load steps: the machine runs at a new load between 0 and this every `load_every_s`."""
    load_every_s: Positive = 60.0
    vibration: float = 0.0
    """Amplitude of a vibration and of its second harmonic at half of that."""
    vibration_hz: Positive = 0.13


class Counter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="counter"):
    """A running total that goes by `per_second`, more at one time than at another, and wraps."""

    per_second: Positive
    unit: str = ""
    decimals: int = 0
    wrap: NotNegative = 0.0
    """The register starts again from 0 at this value; 0: never."""
    swing_s: Positive = 40.0
    """Period of the swing of its pace."""


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="state"):
    """One of several words; a value is the word's index. Without words it is a boolean, 0 or 1."""

    words: list[str] = []
    unit: str = ""
    change_every_s: Positive = 15.0

    decimals = 0


Shape: TypeAlias = Gauge | Counter | State


def key_of(seed: int, device: str, channel: str) -> int:
    """The 64-bit key of a channel's random numbers."""
    text = f"{seed}\0{device}\0{channel}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def uniform(key: int, index: Int64s, lane: int) -> Floats:
    """Random numbers in [0, 1): the same for the same (key, index, lane)."""
    with np.errstate(over="ignore"):
        start = np.uint64(key) ^ (np.uint64(lane + 1) * _MIX_2)
        z = _mixed(start + index.astype(np.uint64) * _GOLDEN)
    return np.asarray((z >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def normal(key: int, index: Int64s, lane: int) -> Floats:
    """Gaussian random numbers of mean 0 and deviation 1 (Box and Muller)."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(key, 2 * index, lane)))
    return np.asarray(radius * np.cos(2.0 * np.pi * uniform(key, 2 * index + 1, lane)))


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def healthy_values(shape: Shape, key: int, index: Int64s, offset_s: Floats) -> Floats:
    """The channel without any fault, not yet rounded to what its device shows."""
    if isinstance(shape, Gauge):
        return _gauge(shape, key, index, offset_s)
    if isinstance(shape, Counter):
        return _counter(shape, key, offset_s)
    segment = np.floor_divide(offset_s, shape.change_every_s).astype(np.int64)
    return np.floor(uniform(key, segment, STATE_LANE) * (len(shape.words) or 2))


def _gauge(shape: Gauge, key: int, index: Int64s, offset_s: Floats) -> Floats:
    phase = 2.0 * np.pi * uniform(key, np.arange(2), PHASE_LANE)
    value = shape.level + shape.daily * np.sin(2.0 * np.pi * offset_s / DAY_S + phase[0])
    if shape.load:
        segment = np.floor_divide(offset_s, shape.load_every_s).astype(np.int64)
        value += shape.load * uniform(key, segment, LOAD_LANE)
    if shape.vibration:
        angle = 2.0 * np.pi * shape.vibration_hz * offset_s + phase[1]
        value += shape.vibration * (np.sin(angle) + 0.5 * np.sin(2.0 * angle))
    if shape.noise:
        value += shape.noise * normal(key, index, NOISE_LANE)
    return np.asarray(value)


def _counter(shape: Counter, key: int, offset_s: Floats) -> Floats:
    swing = 2.0 * np.pi / shape.swing_s
    phase = 2.0 * np.pi * float(uniform(key, np.zeros(1, np.int64), PHASE_LANE)[0])
    # The integral of a pace per_second * (1 + 0.8 cos(...)), which is never negative.
    total = shape.per_second * (offset_s + 0.8 / swing * (np.sin(swing * offset_s + phase) - np.sin(phase)))
    scale = 10.0**shape.decimals
    total = np.floor(total * scale) / scale
    return np.asarray(np.mod(total, shape.wrap) if shape.wrap else total)


class Burst(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For a while the devices that match send `factor` times as often; of two bursts at once the larger counts."""

    devices: str
    """A pattern of device names, such as `press-*`."""
    at_s: NotNegative
    for_s: Positive
    factor: Annotated[float, msgspec.Meta(ge=1)]


@dataclass(frozen=True)
class Schedule:
    """When a device takes its samples: `rate_hz`, more often in bursts, and not all devices at once."""

    rate_hz: float
    phase_s: float
    bursts: tuple[Burst, ...] = ()

    def offsets_ns(self, index: Int64s) -> Int64s:
        """Times of the samples since the run's start: whole milliseconds, as devices stamp them."""
        at_s, count = self._knots()
        offset_s = np.interp(index.astype(np.float64), count, at_s)
        return np.asarray(np.rint(offset_s * 1000.0).astype(np.int64) * MILLISECOND_NS)

    def index_at(self, offset_s: float) -> int:
        """Index of the first sample that is not before `offset_s`."""
        at_s, count = self._knots()
        guess = max(int(np.interp(offset_s, at_s, count)) - 1, 0)
        near = np.arange(guess, guess + 4)
        return int(near[np.searchsorted(self.offsets_ns(near), round(offset_s * 1000.0) * MILLISECOND_NS)])

    def _knots(self) -> tuple[Floats, Floats]:
        """Times at which the rate changes, and how many samples there are before each."""
        at_s = {self.phase_s, 1e9}
        for burst in self.bursts:
            at_s |= {max(burst.at_s, self.phase_s), max(burst.at_s + burst.for_s, self.phase_s)}
        times = np.array(sorted(at_s))
        middle = (times[1:] + times[:-1]) / 2.0
        rate = np.full(len(middle), self.rate_hz)
        for burst in self.bursts:
            inside = (middle >= burst.at_s) & (middle < burst.at_s + burst.for_s)
            rate[inside] = np.maximum(rate[inside], self.rate_hz * burst.factor)
        return times, np.concatenate([[0.0], np.cumsum(np.diff(times) * rate)])
