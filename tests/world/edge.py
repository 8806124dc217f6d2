"""The gateway's daemon on modelled ports: wired as edge/daemon.py wires it, with its own coroutines and a real store.

Its ports: the sensors' session and the uplink's (wires.py), the store's thread (virtual.py) with faults (`Disk`),
the clock.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast
from unittest import mock

from devices.drivers import mqtt
from devices.drivers.mqtt import MqttDriver, MqttOptions
from devices.errors import StoreError, StoreFull
from devices.model import SECOND_NS, Floats, Int64s
from devices.profiles import Profile, load
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions
from devices.wire.topics import topic
from edge.clock import Clock
from edge.custody import Commit, Committed
from edge.intake import Intake, IntakeLimits
from edge.outbox import Outbox
from edge.pump import Pump
from edge.recovery import recover
from edge.registry import Registry
from edge.report import Reporter
from edge.retention import Keep
from edge.seal import Sealer, will
from edge.store import ASIDE, Store, StoreThread
from edge.uplink import Uplink
from simulators.virtual import Thread
from tests.world.broker import Broker
from tests.world.life import Life
from tests.world.sensors import TOPICS
from tests.world.wires import SimSession
from tests.world.witness import Witness

GATEWAY = "g1"
STOP_WITHIN_S = 5.0


@dataclass
class Settings:
    """What `gateway.toml` would say."""

    max_size: int
    when_full: str
    keep: Keep
    commit_delay_s: float
    window_bytes: int
    profile: Profile
    receive_maximum: int = 8192
    intake_samples: int = 16_384
    receipt_timeout_s: float = 60.0
    max_rate_bytes_per_s: float = 0.0
    heartbeat_ns: int = 4 * 3600 * SECOND_NS
    ledger_ns: int = 2 * 3600 * SECOND_NS
    series: int = 1000


class Disk:
    """The store as its thread knows it, on a disk that may be full or fail."""

    def __init__(self, store: Store, witness: Witness, trouble: Callable[[], StoreError | None]) -> None:
        self._store = store
        self._witness = witness
        self._trouble = trouble

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, commit: Commit) -> Committed:
        try:
            if trouble := self._trouble():
                raise trouble
            done = self._store.commit(commit)
        except StoreFull:
            self._witness.is_pressed = True
            raise
        self._witness.committed(commit, done.usage)
        return done

    def snapshot_steps(self, after_block: int, *rest: Any) -> Iterator[None]:
        for step in self._store.snapshot_steps(after_block, *rest):
            yield step
            if trouble := self._trouble():
                raise trouble
        self._witness.snapshot_is_whole(after_block)

    def frames(self, seqs: list[int]) -> dict[int, bytes]:
        if trouble := self._trouble():
            raise trouble
        return self._store.frames(seqs)


class EdgeLife(Life):
    """One life of the daemon, from `start` to a crash or the end of `stop`."""

    looks_after = ("commit begins", "commit is done", "commit fails", "commit is known", "has published")

    def start(
        self,
        path: Path,
        settings: Settings,
        *,
        rng: Random,
        clock: Clock,
        sensors: Broker,
        uplink: Broker,
        witness: Witness,
        trouble: Callable[[], StoreError | None],
    ) -> None:
        self.path, self._witness, self._is_told = path, witness, False
        recovered = recover(path, settings.max_size, self._history)
        self.store, self.operators = recovered.store, recovered.operators
        limits, usage = self.store.send_limits(), self.store.usage()
        witness.opened(self.store.epoch, self.operators, recovered.outbox, limits, usage)
        clock.resume(self.operators.last_tick_ns)
        disk = cast(Store, Disk(self.store, witness, trouble))
        executor: Any = Thread(self.step, lambda: rng.choice((0.001, 0.001, 0.01, 0.3)))
        thread = StoreThread(disk, executor)

        registry = Registry(self.operators, settings.series)
        intake_limits = IntakeLimits(max_samples=settings.intake_samples)
        self.intake = Intake(intake_limits, clock.now_ns, registry.resolve, gateway=GATEWAY)
        codec = load("codecs", settings.profile.codec.name)(settings.profile.codec.options)
        options = MqttOptions(broker="mqtt://sensors", topics=[TOPICS], receive_maximum=settings.receive_maximum)
        with mock.patch.object(mqtt, "Session", partial(SimSession, self, sensors, witness.acknowledged)):
            source = self.intake.add("plant", MqttDriver, options, codec, settings.profile)
        if "plant" in recovered.unconfirmed:
            source.unconfirmed.restore(recovered.unconfirmed["plant"])

        outbox = Outbox(recovered.outbox, limits, settings.window_bytes)
        self.uplink = Uplink(
            GATEWAY,
            self.store.epoch,
            outbox,
            thread.frames,
            receipt_timeout_s=settings.receipt_timeout_s,
            max_rate_bytes_per_s=settings.max_rate_bytes_per_s,
            random_source=Random(rng.random()),
        )
        session = self._session(uplink)
        self.uplink.link = session
        sealer = Sealer(GATEWAY, self.store.epoch, self.store.next_seq(), self.operators.specs)
        self.pump = Pump(
            operators=self.operators,
            registry=registry,
            intake=self.intake,
            store=thread,
            uplink=self.uplink,
            sealer=sealer,
            clock=clock,
            committed=self.store.committed(),
            recent=recovered.recent,
            snapshot_block=recovered.snapshot_block,
            born_ns=self.store.born_ns,
            changed=recovered.changed,
            commit_delay_s=settings.commit_delay_s,
            when_full=settings.when_full,
            keep=settings.keep,
        )
        self.pump.reporter = Reporter(
            sealer,
            self.operators,
            outbox,
            self.pump.waiting,
            lambda: self.pump.committed.usage,
            heartbeat_ns=settings.heartbeat_ns,
            ledger_ns=settings.ledger_ns,
            config_digest="",
        )
        self.spawn(self._pumping(), "pump")
        self.spawn(self.intake.run(), "intake")
        self.spawn(session.run(), "session")
        self.spawn(self.uplink.run(), "uplink")

    def stop(self) -> None:
        """SIGTERM."""
        if self.alive:
            self.step("is told to end")
            self._is_told = True
            self.intake.pause()
            self.pump.stop(STOP_WITHIN_S)

    async def _pumping(self) -> None:
        try:
            await self.pump.run()
        except StoreError:
            if not self._is_told:
                raise
            self.crash()  # it cannot write, and its time is over: what was not committed was not acknowledged
        if self.alive:
            self._witness.compare(self.operators, "ending")
        self.stopped()

    def look(self) -> None:
        if self.operators.ledger.imbalance(self.pump.waiting()).any():
            self._fail(f"the ledger does not balance: {self.operators.ledger.imbalance(self.pump.waiting())}")

    async def bury(self) -> None:
        """Close the file as the end of a process leaves it: after a crash the WAL is still there."""
        await super().bury()
        if self.ended.result() == "stop":
            self.store.close()
            return
        copies = []
        for suffix in ("", "-wal"):
            file = self.path.with_name(self.path.name + suffix)
            copies.append((shutil.copyfile(file, file.with_name(file.name + ".left")), file))
        self.store.close()
        for copy, file in copies:
            os.rename(copy, file)

    def _history(self, series: int, lo_ns: int, hi_ns: int) -> tuple[Int64s, Floats]:
        return self.pump.history(series, lo_ns, hi_ns)

    def _session(self, broker: Broker) -> Session:
        """As edge/daemon.py makes it: receipts are acknowledged at once."""
        witness = self._witness

        class Uplinked(SimSession):
            def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None, **_: Any) -> int | None:
                if self.connected and self._life.alive:
                    witness.published(topic, payload, correlation)
                return super().publish(topic, payload, correlation=correlation)

        def on_messages(inbound: Inbound) -> None:
            self.uplink.on_messages(inbound)
            session.acknowledge(inbound.packet_ids, inbound.connection)

        session = Uplinked(
            self,
            broker,
            lambda messages: None,
            SessionOptions(
                broker="mqtt://uplink",
                client_id=f"forebay-{GATEWAY}",
                clean_start=True,
                session_expiry_s=0,
                will=(topic(GATEWAY, "state"), will(GATEWAY)),
            ),
            on_messages=on_messages,
            on_connect=self.uplink.on_connect,
            on_disconnect=self.uplink.on_disconnect,
            on_published=self.uplink.on_published,
        )
        session.subscribe([(topic(GATEWAY, "receipt"), 1)])
        return cast(Session, session)


def damage(path: Path) -> None:
    """What lies on the disk is no store any more."""
    path.write_bytes(b"not a store")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    for old in path.parent.glob(f"{path.name}{ASIDE}*"):
        old.unlink()
