"""The gateway's daemon on modelled ports: the same parts (edge/parts.py), with their own coroutines and a real store.

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
from typing import Any, Literal, cast
from unittest import mock

from devices.drivers import mqtt
from devices.drivers.mqtt import MqttOptions
from devices.errors import StoreError, StoreFull
from devices.model import SECOND_NS
from devices.profiles import Profile
from devices.quantities import Duration, Rate, Size
from devices.wire.session import Session
from edge.clock import Clock
from edge.config import (
    ClockConfig,
    EdgeConfig,
    JournalConfig,
    LimitsConfig,
    SourceConfig,
    StatusConfig,
    StoreConfig,
    UplinkConfig,
)
from edge.custody import Commit, Committed
from edge.parts import History, Parts, add_sources, make_intake, make_session
from edge.recovery import recover
from edge.retention import Keep
from edge.store import Store
from edge.storefile import ASIDE
from edge.storethread import StoreThread
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
    when_full: Literal["degrade", "block", "drop_oldest"]
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

    def config(self, path: Path) -> EdgeConfig:
        """The configuration of a gateway whose store is at `path`."""
        options = MqttOptions(broker="mqtt://sensors", topics=[TOPICS], receive_maximum=self.receive_maximum)
        return _Config(
            gateway=GATEWAY,
            heartbeat=Duration(self.heartbeat_ns),
            ledger=Duration(self.ledger_ns),
            uplink=_Uplink(
                "mqtt://uplink",
                max_rate=Rate(int(self.max_rate_bytes_per_s)),
                receipt_timeout=_duration(self.receipt_timeout_s),
                window_bytes=Size(self.window_bytes),
            ),
            store=_Store(str(path), Size(self.max_size), self.when_full, _duration(self.commit_delay_s)),
            journal=JournalConfig(Duration(self.keep.span_ns), Size(self.keep.size_bytes)),
            clock=ClockConfig(),
            limits=_Limits(series=self.series, intake_samples=self.intake_samples),
            status=StatusConfig(),
            source={"plant": SourceConfig("plant", "mqtt", options, self.profile)},
        )


class _Config(EdgeConfig, frozen=True, kw_only=True):
    digest = ""
    """A world is the same whatever becomes of the configuration's digest."""


class _Uplink(UplinkConfig, frozen=True):
    def __post_init__(self) -> None:
        """Windows may be smaller than any gateway's, so that days fill them."""


class _Store(StoreConfig, frozen=True):
    def __post_init__(self) -> None:
        """And so may the file."""


class _Limits(LimitsConfig, frozen=True):
    def __post_init__(self) -> None:
        """And the intake."""


def _duration(seconds: float) -> Duration:
    return Duration(round(seconds * 1e9))


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
        config, history = settings.config(path), History()
        recovered = recover(path, config.store.max_size, history)
        self.store, self.operators = recovered.store, recovered.operators
        limits, usage = self.store.send_limits(), self.store.usage()
        witness.opened(self.store.epoch, self.operators, recovered.outbox, limits, usage)
        disk = cast(Store, Disk(self.store, witness, trouble))
        executor: Any = Thread(self.step, lambda: rng.choice((0.001, 0.001, 0.01, 0.3)))
        thread = StoreThread(disk, executor)

        parts = Parts(config, recovered, history, thread, clock, Random(rng.random()))
        self.intake, self.uplink = make_intake(config, parts.registry, clock), parts.uplink
        with mock.patch.object(mqtt, "Session", partial(SimSession, self, sensors, witness.acknowledged)):
            add_sources(self.intake, config, recovered.unconfirmed)
        session = self.uplink.link = make_session(config, self.uplink, self._maker_of_sessions(uplink))
        self.pump = parts.begin(config, self.intake)
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

    def _maker_of_sessions(self, broker: Broker) -> Callable[..., Session]:
        witness = self._witness

        class Uplinked(SimSession):
            def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None, **_: Any) -> int | None:
                if self.connected and self._life.alive:
                    witness.published(topic, payload, correlation)
                return super().publish(topic, payload, correlation=correlation)

        return cast(Callable[..., Session], partial(Uplinked, self, broker, lambda messages: None))


def damage(path: Path) -> None:
    """What lies on the disk is no store any more."""
    path.write_bytes(b"not a store")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    for old in path.parent.glob(f"{path.name}{ASIDE}*"):
        old.unlink()
