"""A long run: everything under load with a fault now and then, and what grows meanwhile.

No fault of a soak ends edge or ingester, so that each is one process from beginning to end. Of each the
resident memory, descriptors and threads are noted, and of the edge the size of its store; what they were in the
second fifth of the run, after the start, is held against the last fifth.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import msgspec
import psutil

from simulators.chaos.account import ChaosReport
from simulators.chaos.plan import INGESTERS
from simulators.chaos.run import Chaos, sentences
from simulators.chaos.world import STORE_BYTES, World
from simulators.servers import InfluxVersion

SPACING_S = 20.0
"""Mean time between faults: a soak looks for what grows, `./task chaos` for what breaks."""
ENDS_PROCESSES = ("kill",)
LOOK_S = 1.0
SHARE = 5
"""The run in so many parts: the second against the last."""
MOST_GROWTH = 0.10
"""Of memory, between these; less than that is caches that fill."""


class Size(msgspec.Struct, frozen=True):
    """How large a process is at a moment."""

    rss_bytes: float
    descriptors: float
    threads: float


class Growth(msgspec.Struct, frozen=True):
    """Medians over the second and the last fifth of the run."""

    early: Size
    late: Size

    @property
    def is_steady(self) -> bool:
        """Whether it holds no more at the end than after its start; a connection more or less is none."""
        early, late = self.early, self.late
        grown = late.rss_bytes > (1 + MOST_GROWTH) * early.rss_bytes
        return not grown and late.descriptors <= early.descriptors + 4 and late.threads <= early.threads + 1


class SoakReport(msgspec.Struct, frozen=True):
    """What `--report FILE` holds."""

    chaos: ChaosReport
    growth: dict[str, Growth]
    store_bytes: int
    """The most that the edge's file and its WAL took."""
    store_limit_bytes: int

    @property
    def holds(self) -> bool:
        steady = all(growth.is_steady for growth in self.growth.values())
        return self.chaos.holds and steady and self.store_bytes <= self.store_limit_bytes


@dataclass(slots=True)
class Soak:
    """One run of about `seconds`. `run` does it all."""

    folder: Path
    seconds: float
    seed: int
    version: InfluxVersion
    say: Callable[[str], None]
    stop: threading.Event
    log: list[str] = field(default_factory=list)
    _sizes: dict[str, list[Size]] = field(default_factory=dict)
    _store_bytes: int = 0
    _due_s: float = 0.0

    def run(self) -> SoakReport:
        """Raises ForebayError where a part is missing."""
        count = max(1, round(self.seconds / SPACING_S))
        chaos = Chaos(
            self.folder,
            count,
            self.seed,
            self.version,
            only=(),
            without=ENDS_PROCESSES,
            say=self.say,
            stop=self.stop,
            spacing_s=SPACING_S,
            look=self._look,
            log=self.log,
        )
        account = chaos.run()
        growth = {name: _growth(sizes) for name, sizes in self._sizes.items()}
        return SoakReport(account, growth, self._store_bytes, STORE_BYTES)

    def _look(self, world: World) -> None:
        if time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + LOOK_S
        for name in ("edge", *INGESTERS):
            process = psutil.Process(world.processes[name].pid)
            with process.oneshot():
                size = Size(process.memory_info().rss, process.num_fds(), process.num_threads())
            self._sizes.setdefault(name, []).append(size)
        files = world.store_folder.glob("edge.db*")
        self._store_bytes = max(self._store_bytes, sum(file.stat().st_size for file in files))


def _growth(sizes: list[Size]) -> Growth:
    part = max(1, len(sizes) // SHARE)
    return Growth(_median(sizes[part : 2 * part] or sizes), _median(sizes[-part:]))


def _median(sizes: list[Size]) -> Size:
    return Size(
        median(size.rss_bytes for size in sizes),
        median(size.descriptors for size in sizes),
        median(size.threads for size in sizes),
    )


def soak_sentences(report: SoakReport) -> Iterator[str]:
    """The report for people."""
    yield from sentences(report.chaos)
    for name, growth in report.growth.items():
        early, late = growth.early, growth.late
        yield (
            f"{name:10} {'is steady' if growth.is_steady else 'GROWS'}: RSS {early.rss_bytes / 2**20:.1f} -> "
            f"{late.rss_bytes / 2**20:.1f} MiB, descriptors {early.descriptors:g} -> {late.descriptors:g}, "
            f"threads {early.threads:g} -> {late.threads:g}"
        )
    most_mib, limit_mib = report.store_bytes / 2**20, report.store_limit_bytes / 2**20
    yield f"the edge's store took at most {most_mib:.1f} of {limit_mib:.0f} MiB"
