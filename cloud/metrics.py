"""The ingester's Prometheus metrics, and the page that serves them."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Callable
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from devices.errors import ConfigError

_STAGE_BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_LAG_BUCKETS_S: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 21600, 86400, 604800)
_ALARM_BUCKETS_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 600, 3600, 86400)


class IngestMetrics:
    """All that the ingester counts. One registry of its own, so that several may live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"forebay_ingest_{name}", help_text, labels, registry=registry)

        def gauge(name: str, help_text: str) -> Gauge:
            return Gauge(f"forebay_ingest_{name}", help_text, registry=registry)

        def histogram(name: str, help_text: str, buckets_s: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"forebay_ingest_{name}", help_text, labels, registry=registry, buckets=buckets_s)

        self.received_frames = counter("received_frames", "Messages received, by the last part of their topic", "leaf")
        self.received_bytes = counter("received_bytes", "Payload bytes received")
        self.stored_frames = counter("stored_frames", "Frames stored and receipted", "leaf")
        self.refused_frames = counter("refused_frames", "Frames refused with a receipt", "reason")
        self.ignored_messages = counter("ignored_messages", "Messages that no receipt can answer", "reason")
        self.unsent_receipts = counter("unsent_receipts", "Receipts that found no connection; the frames come again")
        self.stored_lines = counter("stored_lines", "Lines that the sink has taken")
        self.rejected_points = counter("rejected_points", "Points named in receipts as rejected", "reason")
        self.written_bytes = counter("written_bytes", "Bytes of line protocol that the sink has taken")
        self.sink_answers = counter("sink_answers", "What the sink answered", "answer")
        self.unsettled_bytes = gauge("unsettled_bytes", "Frames received and not yet settled")
        self.reading = gauge("reading", "1 while the broker's socket is read, 0 while it is left unread")
        self.connected = gauge("connected", "1 while connected to the broker")
        self.sink_failing = gauge("sink_failing", "1 while the sink does not take anything")
        self.stage_s = histogram(
            "stage_seconds",
            "Time per stage: `wait` until its turn, `prepare` to decode, validate and encode a frame, `write` a batch",
            _STAGE_BUCKETS_S,
            "stage",
        )
        self.lag_s = histogram(
            "lag_seconds", "From a frame's making at the edge to its storing", _LAG_BUCKETS_S, "leaf"
        )
        self.alarm_latency_s = histogram(
            "alarm_latency_seconds", "From a sample's arrival at the edge to its alarm's storing", _ALARM_BUCKETS_S
        )

    def of_alarms(self) -> IngestMetrics:
        """The same counts, for the session that brings only alarms: the gauges are about the other one, which
        stands still first."""
        alarms = copy.copy(self)
        for name in ("unsettled_bytes", "reading", "connected", "sink_failing"):
            setattr(alarms, name, Gauge(name, "Of the alarms' session", registry=None))
        return alarms


async def serve(metrics: IngestMetrics, listen: str, healthy: Callable[[], str]) -> tuple[web.AppRunner, int]:
    """Serve /metrics and /healthz at HOST:PORT. `healthy` returns "" or what is wrong.

    Returns the runner, whose `cleanup()` ends it, and the port. Raises ConfigError when it cannot listen.
    """

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def health(_: web.Request) -> web.Response:
        wrong = healthy()
        return web.Response(text=wrong or "ok", status=503 if wrong else 200)

    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"`listen` in [metrics] is HOST:PORT, not {listen!r}")
    app = web.Application()
    app.add_routes([web.get("/metrics", page), web.get("/healthz", health)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host.strip("[]"), int(port)).start()
    except (OSError, OverflowError) as error:
        await runner.cleanup()
        raise ConfigError(_why_not(listen, error)) from error
    return runner, runner.addresses[0][1]


def _why_not(listen: str, error: OSError | OverflowError) -> str:
    """asyncio's own sentence says all of it twice."""
    number = getattr(error, "errno", None) or 0
    if number == errno.EADDRINUSE:
        return (
            f"[metrics] listen: another program listens at {listen} already, maybe another ingester: "
            'name another address, or "" for none'
        )
    why = os.strerror(number) if number > 0 else str(error)
    return f"[metrics] listen: {listen} cannot be had ({why}): name an address of this machine, and a port above 1023"
