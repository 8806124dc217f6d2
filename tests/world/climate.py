"""What a world is like: drawn from its seed, so that each has other limits, habits and faults (swarm testing:
a fault that is always there would hide what only happens without it)."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from types import ModuleType

from devices.model import SECOND_NS
from edge import committer, outbox, pump, replay, uplink
from edge.retention import Keep
from tests.world.broker import Unwell
from tests.world.database import Moods
from tests.world.edge import Settings
from tests.world.sensors import Habits, profile

KIB, MIB = 1 << 10, 1 << 20
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
WEEK_DAYS = 7.0

WINDOWS_S = (300, 900, 3600)

PACES: dict[tuple[ModuleType, str], object] = {
    (committer, "STORE_RETRY_S"): 60.0,
    (committer, "STORE_FULL_RETRY_S"): 30.0,
    (replay, "SNAPSHOT_RETRY_S"): 300.0,
    (pump, "SEAL_SHUT_S"): 600.0,
    (uplink, "STORE_RETRY_S"): 60.0,
    (uplink, "NOBODY_LISTENS_S"): (10.0, 900.0),
    (outbox, "RECEIPT_TIMEOUT_MAX_S"): HOUR_S,
}
"""The product's times between two tries, as long against the product's own as a sample is rare here: else a day in
which something is away is a day of tries, in which nothing else happens."""

FAULTS = (
    "crash_edge",
    "crash_ingester",
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
    ingesters: int
    every_s: dict[str, float]
    """Fault -> mean time between two."""
    outage_s: float
    clock_s: float
    unwell: Unwell = field(default_factory=Unwell)
    moods: Moods = field(default_factory=Moods)
    bad_of: int = 0
    most_bytes: int = MIB
    boots: str = ""
    """What the clock shows when the machine starts: `1970`, or the time of the `stop` before; "": it is right, and
    machines do not start again, only processes."""
    is_synchronised: bool = False
    """Where it boots so: the kernel tells when the clock is right. Else only its date can."""


def draw(seed: int, days: float) -> Climate:
    """The climate of a seed. Long runs are calmer, or they would take longer than they are worth."""
    rng = Random(f"climate {seed}")
    slower = 2.0 if days > WEEK_DAYS else 1.0
    window_s = rng.choice(WINDOWS_S)
    habits = Habits(
        rate_per_s=0.005 if days > WEEK_DAYS else rng.choice((*(0.005,) * 14, 0.02, 0.05)),
        burst=rng.choice((2, 8, 32)),
        late=rng.choice((0.0, 0.05, 0.2)),
        late_s=rng.choice((300.0, 1800.0, 4 * HOUR_S)),
        again=rng.choice((0.0, 0.05)),
        conflict=rng.choice((0.0, 0.02)),
        garbage=rng.choice((0.0, 0.01)),
        window_s=window_s,
    )
    settings = Settings(
        max_size=MIB + rng.choice((112, 144, 256, 1024)) * KIB,
        when_full=rng.choice(("degrade", "degrade", "degrade", "block", "drop_oldest")),
        keep=Keep(rng.choice((8, 16, 128)) * KIB, int(rng.choice((4, 24, 1000)) * HOUR_S) * SECOND_NS),
        commit_delay_s=rng.choice((0.25, 5.0, 30.0)),
        window_bytes=rng.choice((16, 64, 1024)) * KIB,
        profile=profile(window_s),
        receive_maximum=8192,
        intake_samples=rng.choice((16, 16_384)),
        max_rate_bytes_per_s=rng.choice((0.0, 0.0, 2000.0)),
    )
    if settings.when_full == "block":
        # Room for a snapshot beside what waits, without which the journal cannot give way: as any legal size has.
        settings.max_size = MIB + 1024 * KIB
    every_s = {
        fault: HOUR_S * slower * rng.choice((1.0, 3.0, 10.0, 30.0))
        for fault in FAULTS
        if rng.random() < (0.1 if fault == "disk_loss" else 0.6)
    }
    if "disk_loss" in every_s:
        every_s["disk_loss"] *= 10.0  # with the disk goes the account
        # Of a store that is gone, under a clock that was ahead, nobody knows how far its windows reached.
        every_s.pop("clock", None)
    return Climate(
        settings=settings,
        habits=habits,
        tick_s=rng.choice((60.0, 300.0, 600.0)),
        snapshot_s=rng.choice((HOUR_S, 4 * HOUR_S, DAY_S)),
        ids=rng.choice((20, 200, 65_535)),
        ahead=rng.choice((10, 100, 8192)),
        latency_s=rng.choice((0.005, 0.05, 0.5)),
        ingesters=rng.choice((1, 2, 2, 3)),
        every_s=every_s,
        outage_s=HOUR_S * rng.choice((0.02, 0.5, 2.0, 8.0, 24.0)),
        clock_s=rng.choice((1.0, 120.0, HOUR_S)),
        unwell=Unwell(*(rng.choice((0.0, 0.0, 0.02, 0.1)) for _ in range(4))),
        moods=Moods(*(rng.choice((0.0, 0.0, 0.02, 0.1)) for _ in range(4))),
        bad_of=rng.choice((0, 0, 500)),
        most_bytes=rng.choice((2000, MIB)),
        boots=rng.choice(("", "", "", "1970", "stop")),
        is_synchronised=rng.choice((False, True)),
    )
