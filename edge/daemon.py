"""The wiring of the edge daemon, and its shutdown order. Nothing is decided here.

    [source.*] ─▶ Intake ─▶ Pump ─▶ StoreThread (one SQLite file)
                             │ ▲
                             ▼ │ receipts
                           Uplink ◀──▶ Session ◀──▶ broker
                             ▲
    StatusServer ◀── Views ──┘ (looks at all of them)

Start: store, recovery, sources, uplink; `/readyz` says ready with the first commit.
End (SIGTERM, SIGINT): sources pause, the pump commits what was taken in and acknowledges it, the uplink
sends what it can within SHUTDOWN_S, then everything closes. A second signal ends at once: what was
acknowledged is in the store in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devices.model import Floats, Int64s
from devices.profiles import load
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions
from devices.wire.topics import topic
from edge.clock import Clock
from edge.config import EdgeConfig
from edge.intake import Intake, IntakeLimits
from edge.outbox import Outbox
from edge.pump import Pump
from edge.recovery import Recovered, recover
from edge.registry import Registry
from edge.report import Reporter
from edge.retention import Keep
from edge.seal import Sealer, will
from edge.status import StatusServer
from edge.status import Views as ServedViews
from edge.store import StoreThread
from edge.uplink import Uplink
from edge.views import Views

log = logging.getLogger("forebay.daemon")

SHUTDOWN_S = 5.0
SWITCH_INTERVAL_S = 0.0005
"""With Python's own 5 ms a commit under a busy loop takes 42 ms at the median; with this, 6 ms."""


def run(config: EdgeConfig) -> int:
    """Run the daemon until it is told to end; the exit code."""
    os.umask(0o077)  # the store holds what the plant does: nobody else's to read
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    history = _History()
    recovered = recover(Path(config.store.path), config.store.max_size, history)
    with ThreadPoolExecutor(1, "store") as executor:
        try:
            return asyncio.run(_serve(config, recovered, history, executor))
        finally:
            executor.submit(recovered.store.close).result()


async def _serve(config: EdgeConfig, recovered: Recovered, history: _History, executor: ThreadPoolExecutor) -> int:
    clock = Clock()
    store, operators = recovered.store, recovered.operators
    thread = StoreThread(store, executor)
    clock.resume(operators.last_tick_ns)

    registry = Registry(operators, config.limits.series)
    intake = Intake(_intake_limits(config), clock.now_ns, registry.resolve, gateway=config.gateway)
    for name, source in config.source.items():
        codec = load("codecs", source.profile.codec.name)(source.profile.codec.options)
        intake.add(name, load("drivers", source.driver), source.options, codec, source.profile)
    for name, messages in recovered.unconfirmed.items():
        if name in intake.sources:
            intake.sources[name].unconfirmed.restore(messages)

    outbox = Outbox(recovered.outbox, store.send_limits(), config.uplink.window_bytes)
    uplink = Uplink(
        config.gateway,
        store.epoch,
        outbox,
        thread.frames,
        receipt_timeout_s=config.uplink.receipt_timeout.s,
        max_rate_bytes_per_s=config.uplink.max_rate or 0,
    )
    session = _session(config, uplink)
    uplink.link = session
    sealer = Sealer(config.gateway, store.epoch, store.next_seq(), operators.specs)
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
    )
    history.source = pump
    pump.reporter = Reporter(
        sealer,
        operators,
        outbox,
        pump.waiting,
        lambda: pump.committed.usage,
        heartbeat_ns=config.heartbeat.ns,
        ledger_ns=config.ledger.ns,
        config_digest=config.digest,
    )
    views = Views(config, operators, intake, pump, uplink, session)
    server = StatusServer(ServedViews(views.status, views.metrics, views.ready, intake.watch))
    host, port = config.status.address
    port = await server.open(host, port)
    log.info("gateway %s runs; its status is at %s:%d", config.gateway, host, port)
    try:
        await _run_until_told(intake, pump, uplink, session)
    finally:
        await server.close()
    return 0


async def _run_until_told(intake: Intake, pump: Pump, uplink: Uplink, session: Session) -> None:
    loop = asyncio.get_running_loop()
    pumping = loop.create_task(pump.run(), name="pump")
    others = [
        loop.create_task(intake.run(), name="intake"),
        loop.create_task(session.run(), name="session"),
        loop.create_task(uplink.run(), name="uplink"),
    ]

    def told() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, pumping.cancel)
        log.info("ending: committing what was taken in, sending what can be sent in %g s", SHUTDOWN_S)
        intake.pause()
        pump.stop(SHUTDOWN_S)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    done, _ = await asyncio.wait([pumping, *others], return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    results = await asyncio.gather(*others, return_exceptions=True)
    for task in done:
        if not task.cancelled():
            task.result()  # a part that ended by itself has failed: say so, and let the supervisor restart us
    for result in results:
        if isinstance(result, Exception):
            raise result
    with contextlib.suppress(asyncio.CancelledError):
        await pumping


class _History:
    """What admission asks about old samples; the pump that answers is made after it."""

    source: Pump

    def __call__(self, series: int, lo_ns: int, hi_ns: int) -> tuple[Int64s, Floats]:
        return self.source.history(series, lo_ns, hi_ns)


def _intake_limits(config: EdgeConfig) -> IntakeLimits:
    limits = config.limits
    return IntakeLimits(limits.intake_samples, limits.intake_bytes, limits.message_bytes)


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
