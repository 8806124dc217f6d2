"""The edge daemon: its parts (edge/parts.py) from start to end. Nothing is decided here.

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
commits what it has taken, with a snapshot, and ends; a new one takes over. Store, operators, intake and uplink stay. A
source that reads the same thing as before stays open, and so does a link whose settings are the same
(docs/decisions/0013-reload.md).
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from devices.errors import StoreCorrupt
from devices.wire.session import Session, SessionOptions
from edge.clock import system_clock
from edge.config import EdgeConfig
from edge.intake import Intake, Source
from edge.letters import Letters
from edge.parts import (
    History,
    Parts,
    add_sources,
    intake_limits,
    make_intake,
    make_session,
    make_sources,
    session_options,
)
from edge.pump import Pump
from edge.recovery import Recovered, recover
from edge.reload import Reloads
from edge.status import StatusServer
from edge.status import Views as ServedViews
from edge.storefile import set_aside
from edge.storethread import StoreThread
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
    history = History()
    recovered = recover(Path(config.store.path), config.store.max_size, history)
    with ThreadPoolExecutor(1, "store") as executor:
        try:
            recovered.store.belong_to(config.gateway)
            return asyncio.run(_serve(config, recovered, history, executor, reloads))
        finally:
            executor.submit(recovered.store.close).result()


async def _serve(
    config: EdgeConfig, recovered: Recovered, history: History, executor: ThreadPoolExecutor, reloads: Reloads
) -> int:
    """Make what stays as long as the process, and run it with one configuration after the other."""
    loop = asyncio.get_running_loop()
    store = recovered.store
    clock = system_clock(config.clock.trust_after_ns)
    thread = StoreThread(store, executor)
    parts = Parts(config, recovered, history, thread, clock)
    intake = make_intake(config, parts.registry, clock)
    await _forget_old_filters(thread, add_sources(intake, config, recovered.unconfirmed))
    views = Views(store, recovered.operators, intake, reloads)
    letters = Letters(thread, parts.sealer, intake, parts.uplink)
    server = StatusServer(ServedViews(views.status, views.metrics, views.ready, intake.watch))
    server.letters = letters
    link = _Link(parts.uplink)
    told = _Told(loop)
    intaking = loop.create_task(intake.run(), name="intake")
    sending = loop.create_task(parts.uplink.run(), name="uplink")
    try:
        while True:
            await link.use(config)
            pump = letters.pump = parts.begin(config, intake)
            views.show(config, pump, parts.uplink, link.session)
            store.dead_letters_bytes = config.limits.dead_letters
            if not server.is_open:
                host, port = config.status.address
                port = await server.open(host, port)
                log.info("gateway %s runs; its status is at %s:%d", config.gateway, host, port)
            read = partial(reloads.read, config, partial(_try_out, intake, parts.uplink, config))
            wanted = await _run_until_told(pump, [intaking, sending, link.task], told, intake, read)
            if wanted is None:
                break
            sources = make_sources(intake, wanted, _unchanged(config, wanted))
            await _forget_old_filters(thread, sources)
            await intake.replace(sources, intake_limits(wanted))
            reloads.taken(config, wanted)
            config = wanted
    finally:
        for task in (intaking, sending):
            task.cancel()
        ends = await asyncio.gather(intaking, sending, link.close(), return_exceptions=True)
        await server.close()
    for end in ends:
        if isinstance(end, Exception):
            raise end
    return 0


def _try_out(intake: Intake, uplink: Uplink, config: EdgeConfig, wanted: EdgeConfig) -> None:
    """Raises for what cannot be made; what can is thrown away, and made again when the pump has handed over."""
    make_sources(intake, wanted, _unchanged(config, wanted))
    make_session(wanted, uplink)


async def _run_until_told(
    pump: Pump,
    others: list[asyncio.Task[None]],
    told: _Told,
    intake: Intake,
    read: Callable[[], EdgeConfig | None],
) -> EdgeConfig | None:
    """Run a configuration's pump beside the other parts. None: ended; else the configuration to go on with."""
    loop = asyncio.get_running_loop()
    pumping = loop.create_task(pump.run(), name="pump")
    wanted: EdgeConfig | None = None
    is_ending = False
    hearing = loop.create_task(told.next(), name="signals")
    ended: set[asyncio.Task[Any]] = set()
    while not ended:
        done, _ = await asyncio.wait([pumping, hearing, *others], return_when=asyncio.FIRST_COMPLETED)
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
    for task in ended:
        if not task.cancelled():
            task.result()  # a part that ended by itself has failed: say so, and let the supervisor restart us
    return wanted


class _Link:
    """The uplink's session, which stays open through a reload that leaves its settings as they are."""

    session: Session
    task: asyncio.Task[None]
    """Its `run`."""

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        self._options: SessionOptions | None = None

    async def use(self, config: EdgeConfig) -> None:
        """Go on with this configuration's session: the one that is there, or another, once that has ended."""
        options = session_options(config)
        if options == self._options:
            return
        await self.close()
        self.session = make_session(config, self._uplink)
        self._uplink.relink(self.session)
        self.task = asyncio.get_running_loop().create_task(self.session.run(), name="session")
        self._options = options

    async def close(self) -> None:
        """Say goodbye, so that no will is sent."""
        if self._options is not None:
            self.task.cancel()
            await asyncio.wait([self.task])


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
