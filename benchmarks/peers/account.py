"""What was sent, and what of it arrived: pure counts, compared place by place and never in total.

A place is a series and a stretch of time `grain_ns` long: one millisecond holds one sample, a window all of its
samples. Grain 0 is the whole run, for points that do not bear the time of their samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

Places: TypeAlias = "Counter[tuple[str, int]]"
"""(device, start of the stretch in UTC ns) -> samples."""

MILLISECOND_NS = 1_000_000


@dataclass(frozen=True)
class Sent:
    """The load: message n is from device n modulo `devices` and bears the time `start_ns` + n * `step_ns`, in ms.

    `step_ns` times `devices` is at least a millisecond, so that no two messages of a device bear the same time.
    """

    messages: int
    devices: int
    start_ns: int
    step_ns: int

    def places(self, grain_ns: int) -> Places:
        return Counter(
            (f"press-{n % self.devices}", start_of(self.start_ns + n * self.step_ns, grain_ns))
            for n in range(self.messages)
        )


def start_of(time_ns: int, grain_ns: int) -> int:
    """The start of the stretch that holds this time; a supplement's start + k ns lies in its window."""
    return time_ns // grain_ns * grain_ns if grain_ns else 0


def gathered(points: Iterable[tuple[str, int, int]], grain_ns: int) -> Places:
    """Points (device, time_ns, samples) as places."""
    places: Places = Counter()
    for device, time_ns, samples in points:
        places[device, start_of(time_ns, grain_ns)] += samples
    return places


class Account(NamedTuple):
    stored: int
    lost: int
    """Of all places, what each holds less than was sent."""
    doubled: int
    """Of all places, what each holds more than was sent."""


def compare(sent: Places, stored: Places) -> Account:
    return Account(stored.total(), (sent - stored).total(), (stored - sent).total())
