"""One world: sensors ─▶ broker ─▶ edge ─▶ broker ─▶ ingesters ─▶ database, and the weather over all of it.

`run(seed, days)` lets a world live for some virtual days, ends the weather, waits until all has come through,
and holds the account. What breaks a promise ends the world at once with a `Violation`, which shows the last events.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest import mock

import structlog

from devices.errors import StoreError
from devices.model import SECOND_NS
from edge import pump as pump_module
from edge import replay as replay_module
from edge import storefile
from edge.clock import Clock
from simulators.virtual import Stalled, VirtualLoop
from tests.world import account
from tests.world.broker import Broker, Unwell
from tests.world.climate import DAY_S, HOUR_S, PACES, WINDOWS_S, Climate, draw
from tests.world.database import Database, Moods
from tests.world.edge import EdgeLife, damage
from tests.world.ingest import IngesterLife
from tests.world.life import task_factory
from tests.world.sensors import T0_NS, Sensors, profile
from tests.world.witness import Witness

LAST_EVENTS = 50
DRAINED_WITHIN_S = 12 * HOUR_S
LOOK_S = 30.0
ACTS_TO_CRASH = 30
"""On average, from the moment a crash is decided on: so it comes before or after any act."""
CRASHES_AGAIN = 0.25
MACHINE_STARTS = 0.3
"""Of the starts of the edge, in climates where the clock is wrong after one of the machine."""
UNSET_S = 1200.0
BOOTED_NS = 60 * SECOND_NS


class Violation(AssertionError):
    """A promise is broken."""


class Outcome(NamedTuple):
    """What a run was."""

    seed: int
    days: float
    events: int
    digest: str
    """Of all events with their times: the same for the same seed."""
    counts: dict[str, int]


def run(seed: int, days: float, climate: Climate | None = None) -> Outcome:
    """Let the world of a seed live. Raises Violation."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, _quiet():
        climate = climate or draw(seed, days)
        loop = VirtualLoop()
        loop.set_task_factory(task_factory)
        world = World(seed, days, climate, Path(folder) / "edge.db", loop)
        try:
            with world.ports():
                try:
                    loop.run_until_complete(world.live())
                except Stalled as error:
                    raise Violation(world.told(f"the world stands still: {error}")) from error
            if world.violation is not None:
                raise Violation(world.violation)
            return world.outcome()
        finally:
            loop.run_until_complete(world.end())
            loop.close()


class World:
    """See the module's docstring."""

    def __init__(self, seed: int, days: float, climate: Climate, path: Path, loop: VirtualLoop) -> None:
        self.violation: str | None = None
        self.seed = seed
        self.days = days
        self.climate = climate
        self.counts = dict.fromkeys(("edge crashes", "edge stops", "ingester crashes", "faults"), 0)
        self._loop = loop
        self._path = path
        self._digest = hashlib.blake2b(digest_size=16)
        self._events = 0
        self._last: deque[tuple[float, str, str]] = deque(maxlen=LAST_EVENTS)
        self._rng = Random(f"weather {seed}")
        self._edge_rng = Random(f"edge {seed}")
        self.database = Database(Random(f"database {seed}"), self.note, self.fail)
        self.sensors_broker = Broker(
            "sensors' broker", Random(f"sensors {seed}"), self.note, ids=climate.ids, ahead=climate.ahead
        )
        self.uplink_broker = Broker("uplink broker", Random(f"uplink {seed}"), self.note, ids=65_535, ahead=1000)
        self.sensors = Sensors(Random(f"sensor {seed}"), self.sensors_broker, climate.habits)
        self.witness = Witness(self.sensors.record, self.database, self.fail)
        self.edge: EdgeLife | None = None
        self.ingesters: dict[int, IngesterLife] = {}
        self._offset_ns = self._most_offset_ns = 0
        """Of the gateway's clock."""
        self._starts = 0
        """Of the gateway's machine."""
        self._pace_rng = Random(f"pace {seed}")
        """Of processes that start: no two take the same time to the nanosecond, so that no two new stores that begin
        with an estimate of the time come to the same one."""
        self._is_set = True
        """The gateway's clock, since the machine's last start."""
        self._ended_ns = T0_NS
        self._trouble: tuple[str, float] | None = None
        """Of the disk: what it says, and how likely."""
        self._disk_dies = False
        self._is_calm = False
        self._is_over = asyncio.Event()

    # -- what happened -------------------------------------------------------------------------------

    def note(self, who: str, what: str) -> None:
        now_s = self._loop.time()
        self._events += 1
        self._digest.update(f"{now_s:.6f}{who}{what}\n".encode())
        self._last.append((now_s, who, what))

    def fail(self, why: str) -> None:
        """A promise is broken: the world ends here."""
        self._end_with(why)
        raise Violation(why)

    def _end_with(self, why: str) -> None:
        if self.violation is None:
            self.violation = self.told(why)
            self._is_over.set()

    def told(self, why: str) -> str:
        lines = [f"{at_s / DAY_S:9.5f} d  {who:16} {what}" for at_s, who, what in self._last]
        where = f"seed {self.seed}, day {self._loop.time() / DAY_S:.3f} of {self.days:g}, event {self._events}"
        return "\n".join([f"{where}: {why}", f"the last {len(lines)} events:", *lines])

    def outcome(self) -> Outcome:
        witness = self.witness
        counts = self.counts | {
            "messages": self.sensors.messages,
            "held": witness.held,
            "commits": witness.commits,
            "frames": witness.frames,
            "receipts": witness.receipts,
            "points": len(self.database.points),
        }
        return Outcome(self.seed, self.days, self._events, self._digest.hexdigest(), counts)

    # -- ports ---------------------------------------------------------------------------------------

    @contextmanager
    def ports(self) -> Iterator[None]:
        """What the product takes from its own modules: chance, and how often it looks at the clock."""
        secrets = mock.Mock()
        secrets.token_bytes = Random(f"epoch {self.seed}").randbytes
        secrets.token_hex = lambda size: Random().randbytes(size).hex()
        with ExitStack() as patches:
            patches.enter_context(mock.patch.object(storefile, "secrets", secrets))
            tick_s, snapshot_s = self.climate.tick_s, self.climate.snapshot_s
            own = {(pump_module, "TICK_S"): tick_s, (replay_module, "SNAPSHOT_S"): snapshot_s}
            for (module, name), pace in (PACES | own).items():
                patches.enter_context(mock.patch.object(module, name, pace))
            yield

    def _true_ns(self) -> int:
        return T0_NS + int(self._loop.time() * 1e9)

    def _edge_ns(self) -> int:
        return self._true_ns() + self._offset_ns

    def _disk_trouble(self) -> StoreError | None:
        if self._trouble is None or self._rng.random() > self._trouble[1]:
            return None
        self.note("disk", self._trouble[0])
        return StoreError(self._trouble[0])

    # -- life ----------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Until the account has been held, or a promise was broken."""
        self._loop.set_exception_handler(self._unhandled)
        self._last_for(self._story())
        await self._is_over.wait()

    async def _story(self) -> None:
        """Days of weather, then calm, then the account."""
        climate = self.climate
        for broker in (self.sensors_broker, self.uplink_broker):
            broker.latency_s = climate.latency_s
        self.uplink_broker.unwell, self.database.moods = climate.unwell, climate.moods
        self.database.bad_of, self.database.most_bytes = climate.bad_of, climate.most_bytes
        self._last_for(self._keep_edge())
        for number in range(climate.ingesters):
            self._last_for(self._keep_ingester(number))
        self._last_for(self._sense())
        for fault, mean_s in climate.every_s.items():
            self._last_for(self._every(mean_s, getattr(self, f"_{fault}")))
        await asyncio.sleep(self.days * DAY_S)
        self._calm_down()
        await self._drain()
        assert self.edge is not None
        ledger = self.edge.operators.ledger
        self.counts |= {
            "samples": int(ledger.produced.sum()),
            "stored": int(ledger.stored.sum()),
            "rejected": int(ledger.rejected.sum()),
            "dropped": int(ledger.dropped.sum()),
        }
        account.hold(self.edge.operators, self.witness, self.database, self.fail)
        self.edge.stop()
        await asyncio.sleep(LOOK_S)
        self._is_over.set()

    def _last_for(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.create_task(work).add_done_callback(self._lasting_ended)

    def _lasting_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._end_with("".join(traceback.format_exception(error)))

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._end_with(context["message"] + "".join(traceback.format_exception(error) if error else []))

    async def end(self) -> None:
        """Leave no task and no open file."""
        self.violation = self.violation or ""
        for life in (self.edge, *self.ingesters.values()):
            if life is not None:
                life.crash()
        tasks = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.edge is not None and hasattr(self.edge, "store"):
            self.edge.store.close()

    async def _keep_edge(self) -> None:
        while True:
            life = self.edge = EdgeLife("edge", self.note, self.fail, self._fuse("crash_edge"))
            life.start(
                self._path,
                self.climate.settings,
                rng=self._edge_rng,
                clock=self._clock_of_a_start(),
                sensors=self.sensors_broker,
                uplink=self.uplink_broker,
                witness=self.witness,
                trouble=self._disk_trouble,
            )
            how = await life.ended
            self._ended_ns = self._edge_ns()
            self.counts["edge crashes" if how == "crash" else "edge stops"] += 1
            await life.bury()
            self.edge = None
            if self._disk_dies:
                self._disk_dies = False
                self.note("edge", "loses its disk")
                damage(self._path)
                self.witness.disk_is_lost()
            await asyncio.sleep(self._rng.choice((0.1, 5.0, 600.0)) * self._rng.random())

    def _clock_of_a_start(self) -> Clock:
        """Of the process, which starts now, and sometimes the machine with it."""
        climate = self.climate
        if climate.boots and not self._is_calm and self._rng.random() < MACHINE_STARTS:
            self._starts += 1
            self._is_set = False
            shown_ns = self._ended_ns if climate.boots == "stop" else BOOTED_NS
            self._offset_ns = shown_ns - self._true_ns()
            self.note("clock", f"is {self._offset_ns / 1e9:.3f} s ahead after a start of the machine")
            self._last_for(self._set_clock(self._starts))
        is_synchronised = bool(climate.boots) and climate.is_synchronised
        return Clock(
            self._edge_ns,
            lambda: round(self._loop.time() * 1e9),
            synchronised=lambda: is_synchronised and self._is_set,
            boot=str(self._starts),
            trust_after_ns=None if is_synchronised else 0,
            not_before_ns=T0_NS - self._pace_rng.randrange(SECOND_NS) if climate.boots else 0,
        )

    async def _set_clock(self, start: int) -> None:
        await self._for_a_while(UNSET_S)
        if self._starts == start and not self._is_calm:
            self._is_set, self._offset_ns = True, 0
            self.note("clock", "is set")

    async def _keep_ingester(self, number: int) -> None:
        name = f"ingester {number}"
        while True:
            life = self.ingesters[number] = IngesterLife(name, self.note, self.fail, self._fuse("crash_ingester"))
            life.start(
                name,
                rng=self._edge_rng,
                now_ns=self._true_ns,
                broker=self.uplink_broker,
                database=self.database,
                witness=self.witness,
            )
            await life.ended
            self.counts["ingester crashes"] += 1
            await life.bury()
            await asyncio.sleep(self._rng.choice((0.1, 5.0, 600.0)) * self._rng.random())

    def _fuse(self, fault: str) -> int:
        """Of a new life: where processes crash at all, some crash again before they have caught up."""
        is_lit = fault in self.climate.every_s and not self._is_calm and self._rng.random() < CRASHES_AGAIN
        return self._acts() if is_lit else 0

    def _acts(self) -> int:
        return 1 + int(self._rng.expovariate(1 / ACTS_TO_CRASH))

    async def _sense(self) -> None:
        while not self._is_calm:
            await asyncio.sleep(self.sensors.next_in_s())
            self.sensors.send(self._loop.time())

    # -- the end -------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        """All is well from now on; the gateway's clock is never again where it was before."""
        self.note("weather", "calms down")
        self._is_calm = True
        for life in (self.edge, *self.ingesters.values()):
            if life is not None:
                life.spare()
        for broker in (self.sensors_broker, self.uplink_broker):
            broker.up = broker.reachable = True
            broker.closed_to = ""
            broker.unwell = Unwell()
        self.database.up, self.database.moods = True, Moods()
        self._trouble = None
        self._is_set, self._offset_ns = True, self._most_offset_ns
        self.sensors.send(self._loop.time())

    async def _drain(self) -> None:
        until_s = self._loop.time() + DRAINED_WITHIN_S
        while self._loop.time() < until_s:
            await asyncio.sleep(LOOK_S)
            edge = self.edge
            if edge is None or not self.sensors_broker.is_empty() or edge.intake.waiting_samples:
                continue
            if not edge.pump.waiting().any() and not edge.pump.committer.store_error:
                return
        waiting = self.edge.pump.waiting().tolist() if self.edge else "no edge"
        self.fail(f"all is well, and after {DRAINED_WITHIN_S / HOUR_S:g} h there still wait {waiting}")

    # -- the weather -----------------------------------------------------------------------------------

    async def _every(self, mean_s: float, fault: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while not self._is_calm:
            await asyncio.sleep(self._rng.expovariate(1 / mean_s))
            if not self._is_calm:
                self.counts["faults"] += 1
                await fault()

    async def _for_a_while(self, mean_s: float) -> None:
        await asyncio.sleep(min(self._rng.expovariate(1 / mean_s), DAY_S))

    async def _crash_edge(self) -> None:
        if self.edge is not None:
            self.edge.light(self._acts())

    async def _crash_ingester(self) -> None:
        self.ingesters[self._rng.randrange(self.climate.ingesters)].light(self._acts())

    async def _cut_sensors(self) -> None:
        for _ in range(self._rng.choice((1, 1, 4))):
            self.sensors_broker.cut()
            await self._for_a_while(5.0)

    async def _cut_edge(self) -> None:
        self.uplink_broker.cut("forebay-g1")

    async def _cut_ingester(self) -> None:
        self.uplink_broker.cut(f"ingester {self._rng.randrange(self.climate.ingesters)}")

    async def _stall(self) -> None:
        broker = self._rng.choice((self.sensors_broker, self.uplink_broker))
        broker.stall(self._rng.choice((1.0, 60.0, 600.0)))
        if self._rng.random() < 0.5:
            await self._for_a_while(60.0)
            broker.cut()

    async def _sensor_broker(self) -> None:
        broker, rng = self.sensors_broker, self._rng
        if rng.random() < 0.5:
            broker.save()
            await self._for_a_while(600.0)
        broker.crash(rng.choice(("whole", "whole", "old", "old", "empty")))
        self.witness.sent_again(broker.sent_again)
        broker.sent_again = []
        await self._for_a_while(rng.choice((1.0, 300.0)))
        broker.restart()
        for _ in range(rng.choice((0, 0, 3))):
            await self._for_a_while(5.0)
            broker.cut()

    async def _uplink_broker(self) -> None:
        broker = self.uplink_broker
        broker.crash("empty")
        await self._for_a_while(self._rng.choice((1.0, 300.0)))
        broker.restart()
        if self._rng.random() < 0.7:
            await self._for_a_while(60.0)
            broker.echo(self._rng.choice((5, 50)))

    async def _outage(self) -> None:
        """The gateway cannot be reached from anywhere, nor reach anybody, but for its sensors."""
        self.note("network", "the uplink is away")
        self.uplink_broker.reachable = False
        self.uplink_broker.cut("forebay-g1")
        await self._for_a_while(self.climate.outage_s)
        self.uplink_broker.reachable = True

    async def _nobody(self) -> None:
        """No ingester is there for a while."""
        self.note("ingesters", "are all away")
        self.uplink_broker.closed_to = "ingester"
        self.uplink_broker.cut("ingester")
        await self._for_a_while(self.climate.outage_s)
        self.uplink_broker.closed_to = ""

    async def _sink_down(self) -> None:
        self.database.up = False
        await self._for_a_while(self.climate.outage_s)
        self.database.up = True

    async def _disk(self) -> None:
        self._trouble = self._rng.choice(("the disk is full", "I/O error")), self._rng.choice((0.3, 1.0))
        await self._for_a_while(self._rng.choice((1.0, 60.0, 1800.0)))
        self._trouble = None

    async def _clock(self) -> None:
        self._offset_ns = int(self._rng.uniform(-1.0, 1.0) * self.climate.clock_s * 1e9)
        self._most_offset_ns = max(self._most_offset_ns, self._offset_ns)
        self.note("clock", f"is {self._offset_ns / 1e9:.3f} s ahead")
        await self._for_a_while(600.0)
        self._offset_ns = self._rng.choice((0, 0, self._offset_ns // 1000))

    async def _stop(self) -> None:
        if self.edge is not None:
            self.edge.stop()

    async def _settings(self) -> None:
        """At the next start the windows have another length."""
        self.climate.settings.profile = profile(self._rng.choice(WINDOWS_S))
        await self._stop()

    async def _disk_loss(self) -> None:
        self._disk_dies = True
        if self.edge is not None:
            self.edge.crash()


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines: a violation says what matters."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        structlog.configure(**before)
