"""Which faults happen when: drawn from a seed alone.

Faults overlap, but not two on one part: a process that is down cannot be stopped, and a link has one way of
failing at a time. What a fault of each kind does is in `world.py`; docs/reliability.md has the table.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import NamedTuple

SPACING_S = 2.5
"""Mean time from the beginning of one fault to that of the next."""
FIRST_S = 4.0
"""Before it nothing goes wrong: windows, sessions and queues are there to be lost."""
REST_S = 0.5
"""A part is left alone for so long after each of its faults."""

INGESTERS = ("ingester-a", "ingester-b")
PROCESSES = ("edge", *INGESTERS, "sensor-broker", "uplink-broker", "influxdb")
LINKS = ("sensors", "source", "uplink", "link-a", "link-b")


class Kind(NamedTuple):
    """One kind of fault."""

    name: str
    weight: float
    """How often it is drawn, beside the others."""
    parts: tuple[str, ...]
    """Of which one is hit."""
    shortest_s: float
    longest_s: float


KINDS: tuple[Kind, ...] = (
    Kind("kill", 5.0, ("edge", "edge", *INGESTERS, "sensor-broker", "influxdb"), 0.0, 5.0),
    Kind("empty", 1.0, ("uplink-broker", "uplink-broker", "sensor-broker"), 0.0, 5.0),
    Kind("old", 1.0, ("uplink-broker", "uplink-broker", "sensor-broker"), 0.0, 5.0),
    Kind("stop", 2.5, PROCESSES, 0.3, 8.0),
    Kind("cut", 2.0, LINKS, 0.1, 6.0),
    Kind("stall", 1.5, LINKS, 0.5, 10.0),
    Kind("half_close", 1.0, LINKS, 0.5, 8.0),
    Kind("slow", 1.0, LINKS, 1.0, 10.0),
    Kind("corrupt", 1.5, ("source", "uplink", "link-a", "link-b"), 0.5, 5.0),
    Kind("503", 1.0, ("http",), 0.5, 6.0),
    Kind("429", 1.0, ("http",), 0.5, 6.0),
    Kind("400", 1.5, ("http",), 0.5, 6.0),
    Kind("413", 1.0, ("http",), 0.5, 6.0),
    Kind("401", 0.7, ("http",), 0.5, 6.0),
    Kind("hang", 1.5, ("http",), 2.0, 12.0),
    Kind("mute", 1.0, ("http",), 0.5, 6.0),
    Kind("fill", 1.0, ("disk",), 0.5, 6.0),
    Kind("pull", 1.0, ("cable",), 0.3, 5.0),
    Kind("move", 1.0, ("clock",), 1.0, 8.0),
)


class Fault(NamedTuple):
    """One fault: it begins `at_s` into the run and ends after `for_s`."""

    number: int
    kind: str
    part: str
    at_s: float
    for_s: float
    seed: int
    """Of whatever the fault itself draws."""

    @property
    def name(self) -> str:
        return f"{self.part} {self.kind}"


def draw(
    count: int, seed: int, without: Collection[str] = (), only: Collection[str] = (), spacing_s: float = SPACING_S
) -> list[Fault]:
    """`count` faults, in order of their beginning. `without`: kinds that cannot be had here; `only`: of these kinds."""
    kinds = [kind for kind in KINDS if kind.name not in without and (not only or kind.name in only)]
    if not kinds:
        raise ValueError("no kind of fault is left")
    source = random.Random(f"chaos {seed}")
    free_at_s: dict[str, float] = {}
    faults: list[Fault] = []
    at_s = FIRST_S
    for number in range(count):
        kind, part = _drawn(source, kinds, free_at_s, at_s)
        at_s = max(at_s, free_at_s.get(part, 0.0))
        for_s = source.uniform(kind.shortest_s, kind.longest_s)
        faults.append(Fault(number, kind.name, part, round(at_s, 3), round(for_s, 3), source.getrandbits(32)))
        free_at_s[part] = at_s + for_s + REST_S
        at_s += source.expovariate(1.0 / spacing_s)
    return faults


def _drawn(source: random.Random, kinds: Sequence[Kind], free_at_s: dict[str, float], at_s: float) -> tuple[Kind, str]:
    """A kind and a part that is free, or, where none was found, one that soon will be."""
    weights = [kind.weight for kind in kinds]
    for _ in range(20):
        [kind] = source.choices(kinds, weights)
        part = source.choice(kind.parts)
        if free_at_s.get(part, 0.0) <= at_s:
            return kind, part
    return kind, part
