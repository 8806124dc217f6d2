"""What goes wrong with a channel, and the truth about it, written down as it happens.

| kind          | what the channel does                                    | `magnitude`                        |
|---------------|----------------------------------------------------------|------------------------------------|
| `spike`       | one sample is far off                                    | how far, in the channel's unit     |
| `drift`       | it runs away steadily                                    | how fast, in the unit per second   |
| `stuck`       | it repeats the fault's first reading                     | not used                           |
| `dropout`     | it sends nothing                                         | not used                           |
| `noise`       | its noise grows                                          | times the usual deviation          |
| `overheating` | it rises within a third, stays, and falls within a third | how far, in the channel's unit     |
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.model import SECOND_NS, Floats, Int64s
from simulators.signals import FAULT_LANE, Gauge, NotNegative, Positive, Schedule, Shape, healthy_values, normal

FaultKind: TypeAlias = Literal["spike", "drift", "stuck", "dropout", "noise", "overheating"]


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One fault of one channel, once or again and again."""

    kind: FaultKind
    device: str
    at_s: NotNegative
    channel: str = ""
    """Empty: every channel of the device at once, and one line of truth for all."""
    for_s: Positive = 1.0
    magnitude: float = 0.0
    alarm: bool = True
    """Whether an alarm must be raised. Without it one may be."""
    within_s: Positive = 3.0
    """The alarm must come this soon after the fault's first sample."""
    every_s: NotNegative = 0.0
    """Again after this time; 0: once."""

    def spans(self, schedule: Schedule, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Index ranges [start, stop) of its occurrences that touch the samples [first, end)."""
        offsets_ns = schedule.offsets_ns(np.array([first, end]))
        number = 0
        if self.every_s:
            number = max(0, int((offsets_ns[0] / SECOND_NS - self.at_s - self.for_s) // self.every_s))
        while True:
            at_s = self.at_s + number * self.every_s
            start = schedule.index_at(at_s)
            if start >= end:
                return
            stop = start + 1 if self.kind == "spike" else schedule.index_at(at_s + self.for_s)
            if stop > max(first, start):
                yield start, stop
            if not self.every_s:
                return
            number += 1


class Truth(msgspec.Struct, frozen=True):
    """One line of `truth.jsonl`: one occurrence of a fault on one channel."""

    kind: FaultKind
    device: str
    channel: str
    """Empty: the whole device."""
    start_ns: int
    """UTC of its first sample; of a dropout, of the first that is not sent."""
    end_ns: int
    """UTC of its last sample."""
    magnitude: float
    alarm: bool
    """Whether an alarm must be raised between `start_ns` and `by_ns`."""
    by_ns: int


class TruthWriter:
    """Writes `truth.jsonl`, a line for each fault that has begun."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb")

    def write(self, truth: Truth) -> None:
        self._file.write(msgspec.json.encode(truth) + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_truth(path: Path) -> list[Truth]:
    """All complete lines of a `truth.jsonl`."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return [msgspec.json.decode(line, type=Truth) for line in lines]


def disturb(
    values: Floats, sent: NDArray[np.bool_], fault: Fault, start: int, stop: int, index: Int64s,
    *, shape: Shape, key: int, schedule: Schedule,
) -> None:  # fmt: skip
    """Put one occurrence of a fault, samples [start, stop), into values float64[n] and sent bool[n], in place."""
    inside = (index >= start) & (index < stop)
    if not inside.any():
        return
    where = index[inside]
    if fault.kind == "dropout":
        sent[inside] = False
    elif fault.kind == "stuck":
        first = np.array([start])
        values[inside] = healthy_values(shape, key, first, schedule.offsets_ns(first) / SECOND_NS)[0]
    elif fault.kind == "noise":
        deviation = shape.noise if isinstance(shape, Gauge) else 0.0
        values[inside] += fault.magnitude * deviation * normal(key, where, FAULT_LANE)
    elif fault.kind == "drift":
        since_ns = schedule.offsets_ns(where) - schedule.offsets_ns(np.array([start]))
        values[inside] += fault.magnitude * (since_ns / SECOND_NS + 1.0 / schedule.rate_hz)
    elif fault.kind == "overheating":
        way = (where - start + 1) / (stop - start + 1)
        values[inside] += fault.magnitude * np.minimum(1.0, 3.0 * np.minimum(way, 1.0 - way))
    else:
        values[inside] += fault.magnitude


def truth_of(fault: Fault, start: int, stop: int, schedule: Schedule, started_ns: int) -> Truth:
    """The truth about one occurrence, samples [start, stop), of a run that began at `started_ns`."""
    first_ns, last_ns = (started_ns + schedule.offsets_ns(np.array([start, max(start, stop - 1)]))).tolist()
    return Truth(
        kind=fault.kind,
        device=fault.device,
        channel=fault.channel,
        start_ns=first_ns,
        end_ns=last_ns,
        magnitude=fault.magnitude,
        alarm=fault.alarm,
        by_ns=first_ns + round(fault.within_s * SECOND_NS),
    )
