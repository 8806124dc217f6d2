"""The edge's parts, put together: one way for the daemon, the simulated worlds and the benchmarks.

    Intake ─▶ Pump ─▶ store's thread
               │ ▲
               ▼ │ receipts
             Uplink ◀──▶ Session

What waits for the world outside is handed in: the store's thread, the clock, the class of sessions, and where no device
is to be read something in the intake's place.

Registry, sealer, and the uplink with its outbox live as long as the process: what is on its way goes on through a
reload. Each configuration has a pump of its own, which follows the one before it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from devices.model import Floats, Int64s
from devices.profiles import load
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions
from devices.wire.topics import topic
from edge.budget import MonthBudget
from edge.clock import Clock
from edge.config import EdgeConfig
from edge.expected import expect
from edge.intake import Intake, IntakeLimits, Source
from edge.outbox import Outbox
from edge.pump import Pump, StorePort
from edge.recovery import Recovered
from edge.registry import Registry
from edge.report import Reporter
from edge.retention import Keep
from edge.seal import PACKET_OVERHEAD_BYTES, Sealer, will
from edge.uplink import Uplink


class History:
    """What admission asks about old samples; the pump that answers is made after it."""

    pump: Pump

    def __call__(self, series: int, times_ns: Int64s) -> tuple[Int64s, Floats]:
        return self.pump.history(series, times_ns)


class Parts:
    """What lies between intake and session. Who uses it gives `uplink` a link, and begins with each configuration."""

    def __init__(
        self,
        config: EdgeConfig,
        recovered: Recovered,
        history: History,
        store: StorePort,
        clock: Clock,
        random_source: random.Random | None = None,
    ) -> None:
        """`history`: the one that `recovered` was made with; `store`: the thread of its file."""
        self._recovered = recovered
        self._history = history
        self._store = store
        self._clock = clock
        file, operators = recovered.store, recovered.operators
        self._committed = file.committed()
        self._stored_month = file.month()
        self._month: MonthBudget | None = None
        """Kept where a configuration has no limit: another may have one again."""
        clock.resume(operators.last_tick_ns)
        self.registry = Registry(operators, config.limits.series)
        self.sealer = Sealer(config.gateway, file.epoch, file.next_seq(), operators.specs, self._frame_bytes)
        told = config.uplink
        self._most_bytes = int(told.frame_bytes)
        self.uplink = Uplink(
            config.gateway,
            file.epoch,
            Outbox(recovered.outbox, file.send_limits(), told.window_bytes),
            store.frames,
            receipt_timeout_s=told.receipt_timeout.s,
            max_rate_bytes_per_s=told.max_rate or 0,
            month=self._month_of(config),
            now_ns=clock.now_ns,
            random_source=random_source,
        )
        self.pump: Pump | None = None
        """That of the newest configuration."""

    def begin(self, config: EdgeConfig, intake: Intake) -> Pump:
        """A pump for this configuration. It goes on where the last one, which has handed over, has ended."""
        recovered, operators, before = self._recovered, self._recovered.operators, self.pump
        expect(self.registry, config.source.values())
        pump = Pump(
            operators=operators,
            registry=self.registry,
            intake=intake,
            store=self._store,
            uplink=self.uplink,
            sealer=self.sealer,
            clock=self._clock,
            committed=self._committed,
            recent=recovered.recent,
            snapshot_block=recovered.snapshot_block,
            born_ns=recovered.store.born_ns,
            changed=recovered.changed,
            commit_delay_s=config.store.commit_delay.s,
            when_full=config.store.when_full,
            keep=Keep(config.journal.max_size, config.journal.keep.ns),
            max_held=config.clock.max_held,
        )
        if before is not None:
            pump.follow(before)
            self._adjust(config)
        pump.reporter = Reporter(
            self.sealer,
            operators,
            self.uplink.outbox,
            pump.waiting,
            lambda: pump.committer.committed.usage,
            heartbeat_ns=config.heartbeat.ns,
            ledger_ns=config.ledger.ns,
            config_digest=config.digest,
            outage_budget_s=pump.committer.outage_budget_s,
        )
        self.pump = self._history.pump = pump
        return pump

    def _adjust(self, config: EdgeConfig) -> None:
        """To a configuration that is not the first."""
        told = config.uplink
        self.registry.max_series = config.limits.series
        self._most_bytes = int(told.frame_bytes)
        self.uplink.adjust(
            window_bytes=told.window_bytes,
            receipt_timeout_s=told.receipt_timeout.s,
            max_rate_bytes_per_s=told.max_rate or 0,
            month=self._month_of(config),
        )

    def _frame_bytes(self) -> int:
        """The largest frame: what the configuration says, or less where the broker takes less."""
        link = self.uplink.link
        broker_bytes = link.broker_max_packet_bytes - PACKET_OVERHEAD_BYTES if link is not None else self._most_bytes
        return min(self._most_bytes, broker_bytes)

    def _month_of(self, config: EdgeConfig) -> MonthBudget | None:
        told = config.uplink
        if told.max_per_month is None:
            return None
        max_bytes = int(told.max_per_month)
        if self._month is None:
            self._month = MonthBudget(max_bytes, told.month_starts, self._stored_month)
        else:
            self._month.limit(max_bytes, told.month_starts)
        return self._month


def make_intake(config: EdgeConfig, registry: Registry, clock: Clock) -> Intake:
    """The intake, without sources yet."""
    return Intake(
        *(intake_limits(config), clock.now_ns, registry.resolve),
        has_sample=registry.has_sample,
        gateway=config.gateway,
    )


def intake_limits(config: EdgeConfig) -> IntakeLimits:
    limits = config.limits
    return IntakeLimits(limits.intake_samples, limits.intake_bytes, limits.message_bytes)


def add_sources(intake: Intake, config: EdgeConfig, unconfirmed: dict[str, bytes]) -> list[Source]:
    """The first configuration's sources, added. `unconfirmed`: by session, what its broker may send again."""
    sources = make_sources(intake, config, keep=set())
    intake.unconfirmed = dict(unconfirmed)
    for source in sources:
        intake.add_built(source)
    return sources


def make_sources(intake: Intake, config: EdgeConfig, keep: set[str]) -> list[Source]:
    """The sources of a configuration, not yet running. `keep`: whose driver stays. Raises ForebayError."""
    limits = intake_limits(config)
    made = []
    for name, source in config.source.items():
        codec = load("codecs", source.profile.codec.name)(source.profile.codec.options)
        driver = load("drivers", source.driver)
        made.append(intake.build(name, driver, source.options, codec, source.profile, limits, keep_driver=name in keep))
    return made


def session_options(config: EdgeConfig) -> SessionOptions:
    """How the uplink connects: a session that is to be another has other options."""
    told = config.uplink
    return SessionOptions(
        broker=told.broker,
        client_id=told.client_id or f"forebay-{config.gateway}",
        username=config.uplink_user,
        password_file=told.password_file,
        password_env=told.password_env,
        ca_file=told.ca_file,
        cert_file=told.cert_file,
        key_file=told.key_file,
        keepalive_s=int(told.keepalive.s),
        clean_start=True,
        session_expiry_s=0,
        will=(topic(config.gateway, "state"), will(config.gateway)),
    )


def make_session(config: EdgeConfig, uplink: Uplink, make: Callable[..., Session] = Session) -> Session:
    """The uplink's session, made with `make`, not yet running. Raises ConfigError.

    Receipts come at QoS 1 and are acknowledged at once: a frame whose receipt is lost is sent again.
    """

    def on_messages(inbound: Inbound) -> None:
        uplink.on_messages(inbound)
        session.acknowledge(inbound.packet_ids, inbound.connection)

    session = make(
        session_options(config),
        on_messages=on_messages,
        on_connect=uplink.on_connect,
        on_disconnect=uplink.on_disconnect,
        on_published=uplink.on_published,
    )
    session.subscribe([(topic(config.gateway, "receipt"), 1)])
    return session
