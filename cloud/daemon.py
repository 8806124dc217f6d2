"""One ingester process: what is started, in which order, and how it ends. Only wires.

sink.open ──▶ session.run + writers + /metrics ──▶ SIGTERM: stop reading, finish writes ──▶ goodbye, sink.close
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from cloud import metrics as pages
from cloud.config import Config
from cloud.ingester import Ingester
from cloud.metrics import IngestMetrics
from devices.wire.session import Session
from devices.wire.topics import UP, shared_filter

log = structlog.get_logger("forebay.ingester")


async def serve(config: Config, ended: asyncio.Event, now_ns: Callable[[], int] = time.time_ns) -> None:
    """Ingest until `ended` is set, then end in order. Raises ConfigError for what can never work."""
    metrics = IngestMetrics()
    ingester = Ingester(config.sink, config.limits, metrics, now_ns)
    session = Session(
        config.session,
        on_messages=ingester.on_messages,
        on_connect=ingester.on_connect,
        on_disconnect=ingester.on_disconnect,
        on_published=lambda mid, reason: None,  # a receipt that nobody hears: its edge will send the frame again
    )
    ingester.link = session

    def healthy() -> str:
        return ingester.trouble or session.error or ("" if session.connected else "not yet connected to the broker")

    session.subscribe([(shared_filter(config.broker.group, leaf), 1) for leaf in UP])
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
            link = _start(session.run(), "session", ending)
            writers = _start(ingester.run(), "writers", ending)
            await _first_of(asked, link, writers)
            log.info("ending: what has come is stored, nothing more is read")
            await _drain(ingester, config.limits.shutdown.s)


async def _drain(ingester: Ingester, at_most_s: float) -> None:
    try:
        await asyncio.wait_for(ingester.drain(), at_most_s)
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
