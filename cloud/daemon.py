"""One ingester process: what is started, in which order, and how it ends. Only wires.

sink.open ──▶ sessions + writers + /metrics ──▶ SIGTERM: stop reading, finish writes ──▶ goodbye, sink.close

Alarms come over a session of their own: what the broker holds for one session it hands out in order, and a fleet
that returns with a backlog would put minutes of it before an alarm.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog

from cloud import metrics as pages
from cloud.config import Config
from cloud.ingester import Ingester
from cloud.metrics import IngestMetrics
from devices.errors import LinkLost
from devices.wire.session import Session, SessionOptions
from devices.wire.topics import UP, shared_filter

log = structlog.get_logger("forebay.ingester")


async def serve(config: Config, ended: asyncio.Event, now_ns: Callable[[], int] = time.time_ns) -> None:
    """Ingest until `ended` is set, then end in order. Raises ConfigError for what can never work."""
    metrics = IngestMetrics()
    ingester, session = _end(config, config.session, metrics, now_ns, [leaf for leaf in UP if leaf != "alarm"])
    alarm_options = msgspec.structs.replace(config.session, client_id=f"{config.session.client_id}-alarm")
    alarms, alarm_session = _end(config, alarm_options, metrics.of_alarms(), now_ns, ["alarm"])

    def healthy() -> str:
        unconnected = "" if session.connected and alarm_session.connected else "not yet connected to the broker"
        return ingester.sink.trouble or alarms.sink.trouble or session.error or alarm_session.error or unconnected

    async with contextlib.AsyncExitStack() as ending:
        if config.metrics.listen:
            page, port = await pages.serve(metrics, config.metrics.listen, healthy)
            ending.push_async_callback(page.cleanup)
            log.info("metrics are served", port=port)
        ending.push_async_callback(config.sink.close)
        asked = _start(ended.wait(), "end", ending)
        opening = _start(ingester.open(), "opening", ending)
        await _first_of(asked, opening)
        if not asked.done():
            log.info("ingesting", broker=config.broker.url, group=config.broker.group, client=config.session.client_id)
            leave_after_s = config.limits.leave_after.s
            links = [
                _start(_be_in_the_group(*one, leave_after_s), "session", ending)
                for one in ((alarms, alarm_session), (ingester, session))
            ]
            writers = [_start(one.run(), "writers", ending) for one in (alarms, ingester)]
            await _first_of(asked, *links, *writers)
            log.info("ending: what has come is stored, nothing more is read")
            await _drain([alarms, ingester], config.limits.shutdown.s)


def _end(
    config: Config, options: SessionOptions, metrics: IngestMetrics, now_ns: Callable[[], int], leaves: list[str]
) -> tuple[Ingester, Session]:
    """One session, subscribed to these topics, and what is done with what it brings."""
    ingester = Ingester(config.sink, config.limits, metrics, now_ns)
    session = Session(
        options,
        on_messages=ingester.on_messages,
        on_connect=ingester.on_connect,
        on_disconnect=ingester.on_disconnect,
        on_published=ingester.on_published,
    )
    ingester.link = session
    session.subscribe([(shared_filter(config.broker.group, leaf), 1) for leaf in leaves])
    return ingester, session


async def _be_in_the_group(ingester: Ingester, session: Session, leave_after_s: float) -> None:
    """Connected while the sink takes what comes. The broker gives each member its share, whether or not it reads: one
    whose sink fails for long would keep frames from the others."""
    while True:
        async with contextlib.AsyncExitStack() as leaving:
            link = _start(session.run(), "session", leaving)
            await _first_of(link, _start(ingester.sink.fails_for(leave_after_s), "watch", leaving))
        ingester.on_disconnect(LinkLost("the sink takes nothing"))
        log.error(
            "the sink takes nothing: the broker's frames are left to others until it does", sink=ingester.sink.trouble
        )
        await ingester.sink.is_well()


async def _drain(ingesters: list[Ingester], at_most_s: float) -> None:
    try:
        async with asyncio.timeout(at_most_s):
            await asyncio.gather(*(ingester.drain() for ingester in ingesters))
    except TimeoutError:
        log.warning("ended before everything was stored; the edges will send the rest again")


def _start(work: Coroutine[Any, Any, Any], name: str, ending: contextlib.AsyncExitStack) -> asyncio.Task[Any]:
    """A task that is cancelled, and waited for, when `ending` is left."""
    task = asyncio.create_task(work, name=name)

    async def end() -> None:
        task.cancel()
        await asyncio.wait([task])

    ending.push_async_callback(end)
    return task


async def _first_of(*tasks: asyncio.Task[Any]) -> None:
    """Return when one of them is done; raise what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def ends_by_signal() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set; a second one ends the process at once."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked(number: int) -> None:
        ended.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    return ended
