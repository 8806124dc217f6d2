"""What a world is like: drawn from its seed, so that each has other limits, habits and faults (swarm testing:
a fault that is always there would hide what only happens without it)."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from devices.model import SECOND_NS
from edge.retention import Keep
from tests.world.broker import Unwell
from tests.world.database import Moods
from tests.world.edge import Settings
from tests.world.sensors import Habits, profile

KIB, MIB = 1 << 10, 1 << 20
HOUR_S = 3600.0

FAULTS = (
    "cut_sensors",
    "cut_edge",
    "cut_ingester",
    "stall",
    "sensor_broker",
    "uplink_broker",
    "outage",
    "nobody",
    "sink_down",
    "disk",
    "disk_loss",
    "clock",
    "stop",
    "settings",
)


@dataclass
class Climate:
    """One world's."""

    settings: Settings
    habits: Habits
    tick_s: float
    snapshot_s: float
    ids: int
    """Packet ids of the sensors' broker."""
    ahead: int
    """Messages that it sends ahead of acknowledgements."""
    latency_s: float
    edge_acts: float
    """Mean number of acts of the edge from a start to a crash; 0: it never crashes."""
    ingester_acts: float
    ingesters: int
    every_s: dict[str, float]
    """Fault -> mean time between two."""
    outage_s: float
    clock_s: float
    unwell: Unwell = field(default_factory=Unwell)
    moods: Moods = field(default_factory=Moods)
    bad_of: int = 0
    most_bytes: int = MIB


def draw(seed: int, days: float) -> Climate:
    """The climate of a seed. Long runs are calmer, or they would take longer than they are worth."""
    rng = Random(f"climate {seed}")
    slower = max(days, 1.0)
    window_s = rng.choice((60, 300, 900))
    habits = Habits(
        rate_per_s=0.02 if days > 2 else rng.choice((*(0.02,) * 12, 0.1, 0.1, 0.5)),
        burst=rng.choice((2, 8, 32)),
        late=rng.choice((0.0, 0.05, 0.2)),
        late_s=rng.choice((60.0, 600.0, 7200.0)),
        again=rng.choice((0.0, 0.05)),
        conflict=rng.choice((0.0, 0.02)),
        garbage=rng.choice((0.0, 0.01)),
        window_s=window_s,
    )
    settings = Settings(
        max_size=MIB + rng.choice((112, 144, 256, 1024)) * KIB,
        when_full=rng.choice(("degrade", "degrade", "degrade", "block", "drop_oldest")),
        keep=Keep(rng.choice((8, 16, 128)) * KIB, int(rng.choice((1, 12, 1000)) * HOUR_S) * SECOND_NS),
        commit_delay_s=rng.choice((0.25, 5.0, 30.0)),
        window_bytes=rng.choice((16, 64, 1024)) * KIB,
        profile=profile(window_s),
        receive_maximum=8192,
        intake_samples=rng.choice((16, 16_384)),
        max_rate_bytes_per_s=rng.choice((0.0, 0.0, 2000.0)),
    )
    every_s = {
        fault: HOUR_S * slower * rng.choice((0.3, 1.0, 4.0, 12.0))
        for fault in FAULTS
        if rng.random() < (0.1 if fault == "disk_loss" else 0.6)
    }
    if "disk_loss" in every_s:
        # Of a store that is gone, under a clock that was ahead, nobody knows how far its windows reached.
        every_s.pop("clock", None)
    return Climate(
        settings=settings,
        habits=habits,
        tick_s=rng.choice((15.0, 60.0, 120.0)),
        snapshot_s=rng.choice((600.0, HOUR_S, 6 * HOUR_S)),
        ids=rng.choice((20, 200, 65_535)),
        ahead=rng.choice((10, 100, 8192)),
        latency_s=rng.choice((0.005, 0.05, 0.5)),
        edge_acts=rng.choice((0.0, 200.0, 1000.0, 5000.0)) * slower,
        ingester_acts=rng.choice((0.0, 20.0, 200.0, 2000.0)) * slower,
        ingesters=rng.choice((1, 2, 2, 3)),
        every_s=every_s,
        outage_s=HOUR_S * rng.choice((0.02, 0.5, 4.0, 12.0, 24.0)),
        clock_s=rng.choice((1.0, 120.0, HOUR_S)),
        unwell=Unwell(*(rng.choice((0.0, 0.0, 0.02, 0.1)) for _ in range(4))),
        moods=Moods(*(rng.choice((0.0, 0.0, 0.02, 0.1)) for _ in range(4))),
        bad_of=rng.choice((0, 0, 500)),
        most_bytes=rng.choice((2000, MIB)),
    )
