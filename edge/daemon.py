"""The wiring of the edge daemon, and its shutdown order. Nothing is decided here.

    [source.*] ─▶ Intake ─▶ Pump ─▶ StoreThread (one SQLite file)
                             │ ▲
                             ▼ │ receipts
                           Uplink ◀──▶ Session ◀──▶ broker
                             ▲
    StatusServer ◀── Views ──┘ (looks at all of them), Letters (shows and replays dead letters)

Start: store, recovery, sources (told what earlier configurations have left at their brokers), uplink; `/readyz`
says ready with the first commit.
End (SIGTERM, SIGINT): sources pause, the pump commits what was taken in and acknowledges it, the uplink
sends what it can within SHUTDOWN_S, then everything closes. A second signal ends at once: what was
acknowledged is in the store in any case.
Reload (SIGHUP): the file is read and all that it names is built; if that fails the old one runs on. Then the pump
commits what it has taken, with a snapshot, and ends with the uplink. A new pair takes over store, operators and
intake: sources that read the same thing as before stay open through all of this (docs/decisions/0013-reload.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.errors import StoreCorrupt
from devices.model import Floats, Int64s
from devices.profiles import load
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions
from devices.wire.topics import topic
from edge.budget import MonthBudget
from edge.clock import Clock, system_clock
from edge.config import EdgeConfig
from edge.intake import Intake, IntakeLimits, Source
from edge.letters import Letters
from edge.outbox import Outbox
from edge.pump import Pump
from edge.recovery import Recovered, recover
from edge.registry import Registry
from edge.reload import Reloads
from edge.report import Reporter
from edge.retention import Keep
from edge.seal import Sealer, will
from edge.status import StatusServer
from edge.status import Views as ServedViews
from edge.store import Store, StoreThread, set_aside
from edge.uplink import Uplink
from edge.views import Views

log = logging.getLogger("forebay.daemon")

SHUTDOWN_S = 5.0
SWITCH_INTERVAL_S = 0.0005
"""With Python's own 5 ms a commit under a busy loop takes 42 ms at the median; with this, 6 ms."""


def run(config: EdgeConfig, path: Path) -> int:
    """Run the daemon until it is told to end; the exit code. `path`: the configuration's file, to read it again."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload: it would end the process
    os.umask(0o077)  # the store holds what the plant does: nobody else's to read
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    reloads = Reloads(path)
    while True:
        try:
            return _run(config, reloads)
        except StoreCorrupt as error:
            # All that was acknowledged and can still be read goes on from the new file (edge/recovery.py).
            set_aside(Path(config.store.path), str(error))
            config = reloads.running or config


def _run(config: EdgeConfig, reloads: Reloads) -> int:
    """Raises StoreCorrupt where the file is found damaged while it is in use."""
    history = _History()
    recovered = recover(Path(config.store.path), config.store.max_size, history)
    with ThreadPoolExecutor(1, "store") as executor:
        try:
            return asyncio.run(_serve(config, recovered, history, executor, reloads))
        finally:
            executor.submit(recovered.store.close).result()


async def _serve(
    config: EdgeConfig, recovered: Recovered, history: _History, executor: ThreadPoolExecutor, reloads: Reloads
) -> int:
    """Make what stays as long as the process, and run it with one configuration after the other."""
    clock = system_clock(config.clock.trust_after_ns)
    store, operators = recovered.store, recovered.operators
    thread = StoreThread(store, executor)
    clock.resume(operators.last_tick_ns)

    registry = Registry(operators, config.limits.series)
    intake = Intake(_intake_limits(config), clock.now_ns, registry.resolve, gateway=config.gateway)
    sources = _build_sources(intake, config, keep=set())
    await _forget_old_filters(thread, sources)
    for source in sources:
        intake.add_built(source)
    for name, messages in recovered.unconfirmed.items():
        if name in intake.sources:
            intake.sources[name].unconfirmed.restore(messages)
    sealer = Sealer(config.gateway, store.epoch, store.next_seq(), operators.specs)
    views = Views(store, operators, intake, reloads)
    server = StatusServer(ServedViews(views.status, views.metrics, views.ready, intake.watch))
    stays = _Stays(recovered, thread, registry, intake, sealer, clock, history, reloads, views, server)
    told = _Told(asyncio.get_running_loop())
    intaking = asyncio.get_running_loop().create_task(intake.run(), name="intake")
    try:
        while (wanted := await _serve_with(config, stays, told, intaking)) is not None:
            sources = _build_sources(intake, wanted, _unchanged(config, wanted))
            await _forget_old_filters(thread, sources)
            await intake.replace(sources, _intake_limits(wanted))
            registry.max_series = wanted.limits.series
            outbox = await asyncio.get_running_loop().run_in_executor(executor, store.outbox)
            stays.recovered = recovered._replace(outbox=outbox)
            reloads.taken(config, wanted)
            config = wanted
    finally:
        intaking.cancel()
        await asyncio.gather(intaking, return_exceptions=True)
        await server.close()
    return 0


async def _serve_with(
    config: EdgeConfig, stays: _Stays, told: _Told, intaking: asyncio.Task[None]
) -> EdgeConfig | None:
    """Run with one configuration until told to end, or to go on with the one that is given back."""
    recovered, registry, intake = stays.recovered, stays.registry, stays.intake
    store, operators, thread = recovered.store, recovered.operators, stays.thread
    sealer, clock, server = stays.sealer, stays.clock, stays.server

    outbox = Outbox(recovered.outbox, store.send_limits(), config.uplink.window_bytes)
    uplink = Uplink(
        config.gateway,
        store.epoch,
        outbox,
        thread.frames,
        receipt_timeout_s=config.uplink.receipt_timeout.s,
        max_rate_bytes_per_s=config.uplink.max_rate or 0,
        month=_month(config, store),
        now_ns=clock.now_ns,
    )
    session = _session(config, uplink)
    uplink.link = session
    pump = Pump(
        operators=operators,
        registry=registry,
        intake=intake,
        store=thread,
        uplink=uplink,
        sealer=sealer,
        clock=clock,
        committed=store.committed(),
        recent=recovered.recent,
        snapshot_block=recovered.snapshot_block,
        born_ns=store.born_ns,
        changed=recovered.changed,
        commit_delay_s=config.store.commit_delay.s,
        when_full=config.store.when_full,
        keep=Keep(config.journal.max_size, config.journal.keep.ns),
        max_held=config.clock.max_held,
    )
    if stays.pump is not None:
        pump.follow(stays.pump)
    stays.pump = stays.history.source = pump
    pump.reporter = Reporter(
        sealer,
        operators,
        outbox,
        pump.waiting,
        lambda: pump.committed.usage,
        heartbeat_ns=config.heartbeat.ns,
        ledger_ns=config.ledger.ns,
        config_digest=config.digest,
        outage_budget_s=pump.outage_budget_s,
    )
    stays.views.show(config, pump, uplink, session)
    store.dead_letters_bytes = config.limits.dead_letters
    server.letters = Letters(thread, store.epoch, intake, pump, uplink)
    if not server.is_open:
        host, port = config.status.address
        port = await server.open(host, port)
        log.info("gateway %s runs; its status is at %s:%d", config.gateway, host, port)
    parts = _Parts(pump, uplink, session)

    def prepare(wanted: EdgeConfig) -> None:
        """Raises for what cannot be built; what can is thrown away, and built again when the old parts have ended."""
        _build_sources(intake, wanted, _unchanged(config, wanted))
        _session(wanted, uplink)

    return await _run_until_told(intake, parts, told, intaking, lambda: stays.reloads.read(config, prepare))


async def _run_until_told(
    intake: Intake,
    parts: _Parts,
    told: _Told,
    intaking: asyncio.Task[None],
    read: Callable[[], EdgeConfig | None],
) -> EdgeConfig | None:
    """Run the parts that go with a configuration. None: ended; else the configuration to go on with."""
    loop, pump = asyncio.get_running_loop(), parts.pump
    pumping = loop.create_task(pump.run(), name="pump")
    others = [
        loop.create_task(parts.session.run(), name="session"),
        loop.create_task(parts.uplink.run(), name="uplink"),
    ]
    wanted: EdgeConfig | None = None
    is_ending = False
    hearing = loop.create_task(told.next(), name="signals")
    ended: set[asyncio.Task[Any]] = set()
    while not ended:
        done, _ = await asyncio.wait([pumping, intaking, *others, hearing], return_when=asyncio.FIRST_COMPLETED)
        ended = done - {hearing}
        if hearing not in done:
            continue
        order = hearing.result()
        hearing = loop.create_task(told.next(), name="signals")
        if order is _Order.RELOAD and not is_ending and (newer := read()) is not None:
            wanted = newer
            pump.hand_over()
        elif order is _Order.END and not is_ending:
            is_ending, wanted = True, None
            log.info("ending: committing what was taken in, sending what can be sent in %g s", SHUTDOWN_S)
            intake.pause()
            pump.stop(SHUTDOWN_S)
        elif order is _Order.END:
            pumping.cancel()
    hearing.cancel()
    for task in others:
        task.cancel()
    results = await asyncio.gather(*others, return_exceptions=True)
    for task in ended:
        if not task.cancelled():
            task.result()  # a part that ended by itself has failed: say so, and let the supervisor restart us
    for result in results:
        if isinstance(result, Exception):
            raise result
    with contextlib.suppress(asyncio.CancelledError):
        await pumping
    return wanted


class _Order(enum.Enum):
    RELOAD = enum.auto()
    END = enum.auto()


class _Told:
    """What signals say, in their order; kept while nobody listens."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._orders: asyncio.Queue[_Order] = asyncio.Queue()
        for number, order in (
            (signal.SIGHUP, _Order.RELOAD),
            (signal.SIGTERM, _Order.END),
            (signal.SIGINT, _Order.END),
        ):
            loop.add_signal_handler(number, self._orders.put_nowait, order)

    async def next(self) -> _Order:
        return await self._orders.get()


@dataclass(slots=True)
class _Parts:
    """What is made anew for each configuration."""

    pump: Pump
    uplink: Uplink
    session: Session


@dataclass(slots=True)
class _Stays:
    """What one configuration hands on to the next."""

    recovered: Recovered
    thread: StoreThread
    registry: Registry
    intake: Intake
    sealer: Sealer
    clock: Clock
    history: _History
    reloads: Reloads
    views: Views
    server: StatusServer
    pump: Pump | None = None
    """The last one that ran."""


class _History:
    """What admission asks about old samples; the pump that answers is made after it."""

    source: Pump

    def __call__(self, series: int, lo_ns: int, hi_ns: int) -> tuple[Int64s, Floats]:
        return self.source.history(series, lo_ns, hi_ns)


def _build_sources(intake: Intake, config: EdgeConfig, keep: set[str]) -> list[Source]:
    """The sources of a configuration, not yet running. `keep`: whose driver stays. Raises ForebayError."""
    limits = _intake_limits(config)
    built = []
    for name, source in config.source.items():
        codec = load("codecs", source.profile.codec.name)(source.profile.codec.options)
        driver = load("drivers", source.driver)
        built.append(
            intake.build(name, driver, source.options, codec, source.profile, limits, keep_driver=name in keep)
        )
    return built


async def _forget_old_filters(thread: StoreThread, sources: list[Source]) -> None:
    """A broker's session has kept what earlier configurations have asked for: the drivers are to take it back."""
    for driver in (source.driver for source in sources):
        if hasattr(driver, "forget"):
            driver.forget(await thread.subscribed(driver.session_name, driver.filters))


def _unchanged(config: EdgeConfig, wanted: EdgeConfig) -> set[str]:
    """Sources that read the same thing in the same way; what their bytes mean may have changed."""
    return {
        name
        for name, source in wanted.source.items()
        if (old := config.source.get(name)) and (old.driver, old.options) == (source.driver, source.options)
    }


def _intake_limits(config: EdgeConfig) -> IntakeLimits:
    limits = config.limits
    return IntakeLimits(limits.intake_samples, limits.intake_bytes, limits.message_bytes)


def _month(config: EdgeConfig, store: Store) -> MonthBudget | None:
    told = config.uplink
    if told.max_per_month is None:
        return None
    return MonthBudget(int(told.max_per_month), told.month_starts, store.month())


def _session(config: EdgeConfig, uplink: Uplink) -> Session:
    """Receipts come at QoS 1 and are acknowledged at once: a frame whose receipt is lost is sent again."""
    told = config.uplink

    def on_messages(inbound: Inbound) -> None:
        uplink.on_messages(inbound)
        session.acknowledge(inbound.packet_ids, inbound.connection)

    session = Session(
        SessionOptions(
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
        ),
        on_messages=on_messages,
        on_connect=uplink.on_connect,
        on_disconnect=uplink.on_disconnect,
        on_published=uplink.on_published,
    )
    session.subscribe([(topic(config.gateway, "receipt"), 1)])
    return session
