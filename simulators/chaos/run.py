"""START HERE for `./task chaos N`: real processes under load, N random faults, and the account at the end.

    plan ─▶ faults begin and end, while load goes on ─▶ all faults over, load ends ─▶ the edge comes to rest ─▶ account

The plan follows from the seed alone (`plan.py`); what the processes make of it does not, so a seed that failed
once fails often, not always. The log says when each fault really began and ended.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulators.chaos.account import ChaosReport, account, ledger_balances
from simulators.chaos.links import LoopThread
from simulators.chaos.load import LoadThread
from simulators.chaos.plan import SPACING_S, Fault, draw
from simulators.chaos.world import World, find_faketime, may_mount
from simulators.records import RecordReader
from simulators.servers import InfluxVersion

WATCH_S = 0.25
SAVED_BEFORE_S = 3.0
"""A broker that comes back with an old snapshot of itself has that from so long before."""
REST_TIMEOUT_S = 180.0
QUIET_S = 3.0
"""The edge has all that its broker held once it has acknowledged nothing for so long."""
SAY_EVERY_S = 10.0


@dataclass(slots=True)
class Chaos:
    """One run. `run` does it all; `log` then says what happened when."""

    folder: Path
    count: int
    seed: int
    version: InfluxVersion
    only: Sequence[str]
    """Of these kinds of fault alone; of all when empty."""
    without: Sequence[str]
    """And of none of these."""
    say: Callable[[str], None]
    stop: threading.Event
    spacing_s: float = SPACING_S
    """Mean time between faults."""
    look: Callable[[World], None] = lambda world: None
    """Called every WATCH_S while the faults happen."""
    log: list[str] = field(default_factory=list)
    _started_s: float = 0.0
    _ended: list[str] = field(default_factory=list)

    def run(self) -> ChaosReport:
        """Raises ForebayError where a part is missing."""
        self._started_s = time.monotonic()
        missing = {"fill": not may_mount(), "move": not find_faketime()}
        without = {*self.without, *(kind for kind, is_missing in missing.items() if is_missing)}
        faults = draw(self.count, self.seed, without=without, only=self.only, spacing_s=self.spacing_s)
        with contextlib.ExitStack() as stack:
            loop = stack.enter_context(LoopThread())
            world = World(self.folder, self.version, self.seed, loop, stack)
            world.build()
            world.start()
            load = stack.enter_context(LoadThread(world.load))
            self._note(f"all parts are ready; seed {self.seed}, {self.count} faults, InfluxDB {self.version}")
            begun = self._work(world, load, faults)
            load.stop()
            seconds = time.monotonic() - self._started_s
            self._note("the faults are over, and the sensors have stopped")
            settle_s, settled = self._rest(world, load)
            return self._report(world, begun, settle_s, settled, seconds)

    # -- the faults ------------------------------------------------------------------------------------------

    def _work(self, world: World, load: LoadThread, faults: Sequence[Fault]) -> list[Fault]:
        """Let the faults happen; gives those that did, which are all unless somebody asked to stop."""
        began_s = time.monotonic()
        agenda = sorted(self._agenda(world, faults), key=lambda entry: entry[:2])
        heapq.heapify(agenda)
        begun: list[Fault] = []
        ending: dict[int, Fault] = {}
        said_s = began_s
        while agenda and not self.stop.is_set():
            now_s = time.monotonic()
            due_s = began_s + agenda[0][0]
            if due_s > now_s:
                self.stop.wait(min(due_s - now_s, WATCH_S))
                self._watch(world, load)
                self.look(world)
            else:
                _, _, what, fault = heapq.heappop(agenda)
                self._happen(world, what, fault)
                if what == "begin":
                    begun.append(fault)
                    ending[fault.number] = fault
                elif what == "end":
                    del ending[fault.number]
            if time.monotonic() - said_s >= SAY_EVERY_S:
                said_s = time.monotonic()
                self.say(f"{said_s - self._started_s:5.0f} s  {len(begun)} faults, {world.load.sent} messages sent")
        for fault in ending.values():
            self._happen(world, "end", fault)
        return begun

    def _agenda(self, world: World, faults: Sequence[Fault]) -> Iterator[tuple[float, int, str, Fault]]:
        order = itertools.count()
        for fault in faults:
            if fault.kind == "old":
                yield max(0.0, fault.at_s - SAVED_BEFORE_S), next(order), "prepare", fault
            yield fault.at_s, next(order), "begin", fault
            yield fault.at_s + fault.for_s, next(order), "end", fault

    def _happen(self, world: World, what: str, fault: Fault) -> None:
        if what == "prepare":
            world.prepare(fault)
        elif what == "begin":
            drawn = world.begin(fault)
            self._note(f"{fault.number:4} {fault.name} begins{f' ({drawn})' if drawn else ''}")
        else:
            world.end(fault)
            self._note(f"{fault.number:4} {fault.name} ends")

    def _watch(self, world: World, load: LoadThread) -> None:
        """Every process runs that no fault has ended: one that has ended by itself is noted, and started again."""
        if load.failure is not None:
            raise load.failure
        world.watch_edge()
        for name, process in world.processes.items():
            if name not in world.down and not process.running:
                self._ended.append(f"{name}, with {process.returncode}")
                self._note(f"     {name} ENDED BY ITSELF with {process.returncode}:\n{process.output()[-2000:]}")
                process.start()

    def _note(self, text: str) -> None:
        line = f"{time.monotonic() - self._started_s:8.2f} s  {text}"
        self.log.append(line)
        self.say(line)

    # -- the end -----------------------------------------------------------------------------------------------

    def _rest(self, world: World, load: LoadThread) -> tuple[float, bool]:
        """Wait until the edge has all that its broker held, and the cloud all that the edge held; how long it took."""
        began_s = said_s = time.monotonic()
        world.loop.run(world.http.landed())
        while time.monotonic() < began_s + REST_TIMEOUT_S:
            self._watch(world, load)
            status = self._status(world)
            heard = world.acknowledged
            if is_at_rest(status) and not heard.outstanding and time.monotonic() - heard.last_s > QUIET_S:
                self._note("the edge is at rest")
                return time.monotonic() - began_s, True
            if time.monotonic() - said_s >= SAY_EVERY_S:
                said_s = time.monotonic()
                self.say(f"{said_s - self._started_s:5.0f} s  {_waiting_for(status)}")
            time.sleep(WATCH_S)
        unrest = f"{_waiting_for(self._status(world))}; {world.acknowledged.outstanding} messages not acknowledged"
        self._note(f"the edge has NOT come to rest within {REST_TIMEOUT_S:g} s: {unrest}")
        return REST_TIMEOUT_S, False

    def _status(self, world: World) -> dict[str, Any]:
        page = world.edge.page("/status")
        status: dict[str, Any] = json.loads(page) if page else {}
        return status

    def _report(
        self, world: World, begun: Sequence[Fault], settle_s: float, settled: bool, seconds: float
    ) -> ChaosReport:
        status = self._status(world)
        ledger = status.get("ledger", {})
        records = RecordReader(self.folder / "record").by_series()
        found = account(records, world.acknowledged, world.away, world.stored)
        waiting = min(found.missing, ledger.get("waiting", 0))
        kinds = collections.Counter(fault.name for fault in begun)
        return ChaosReport(
            faults=len(begun),
            kinds=dict(sorted(kinds.items())),
            skipped=world.skipped,
            produced=found.produced,
            acknowledged=found.acknowledged,
            stored=found.stored,
            lost=found.missing - waiting,
            waiting=waiting,
            doubled=found.doubled,
            altered=found.altered,
            late=ledger.get("late", 0),
            rejected=_counted(ledger.get("rejected", {})),
            dropped=_counted(ledger.get("dropped", {})),
            serial_exposed=found.serial_exposed,
            undelivered=found.undelivered,
            twice=world.load.twice,
            damaged=world.acknowledged.unreadable,
            alarms=len(world.stored.alarms()),
            ledger={name: ledger.get(name, 0) for name in ("produced", "stored", "waiting")},
            ledger_balances=ledger_balances(status, found.stored),
            settled=settled,
            settle_s=round(settle_s, 1),
            ended_by_themselves=self._ended,
            troubled=found.troubled,
            influxdb=self.version,
            seed=self.seed,
            seconds=round(seconds, 1),
        )


def is_at_rest(status: dict[str, Any]) -> bool:
    """Whether nothing waits at the edge, by its `/status`."""
    if not status:
        return False
    connected = status["link"]["connected"] and all(one["state"] == "open" for one in status["sources"].values())
    return bool(connected and status["ledger"]["waiting"] == 0 and status["store"]["outbox_frames"] == 0)


def _waiting_for(status: dict[str, Any]) -> str:
    if not status:
        return "the edge does not answer"
    sources = ", ".join(f"{name} {one['state']}" for name, one in status["sources"].items())
    link = "connected" if status["link"]["connected"] else f"down: {status['link']['error']}"
    store = status["store"]
    return (
        f"waiting for {status['ledger']['waiting']} samples, {store['outbox_frames']} frames "
        f"({store['slow_frames']} slow); link {link}; {sources}; {store['error']}"
    )


def _counted(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def sentences(report: ChaosReport) -> Iterator[str]:
    """The report for people."""
    verdict = "HOLDS" if report.holds else "DOES NOT HOLD"
    yield (
        f"{report.faults} faults in {report.seconds:.0f} s, seed {report.seed}: {report.produced} samples produced, "
        f"{report.acknowledged} acknowledged, {report.stored} stored"
    )
    yield f"{report.lost} lost, {report.doubled} doubled, {report.altered} altered: the promise {verdict}"
    yield (
        f"late {report.late}; rejected {report.rejected}; dropped {report.dropped}; serial exposed "
        f"{report.serial_exposed}; the ledger {'balances' if report.ledger_balances else 'DOES NOT balance'}; "
        f"at rest after {report.settle_s:.0f} s"
    )
    for kind, why in report.skipped.items():
        yield f"without {kind}: {why}"
    for name in report.ended_by_themselves:
        yield f"ended by itself: {name}"
