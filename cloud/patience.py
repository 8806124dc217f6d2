"""A sink that is asked until it answers.

One that is busy or lets nobody in is asked again with full jitter, for ever. It may also be only *this body* that
does not pass: some servers answer the points of a damaged shard with 500, whatever else they take. After some
failures of one body that may be its own the sink is asked something else; if it lives, who wrote the body is told
(`SinkBusy`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import structlog

from cloud.metrics import IngestMetrics
from cloud.sinks import Sink
from devices.errors import BadLines, SinkBusy, SinkError, SinkRefused

log = structlog.get_logger("forebay.ingester")

RETRY_FIRST_S: Final = 0.25
PATIENCE: Final = 5
"""Failures of one body in a row until it is looked whether the sink lives."""
LOOK_S: Final = 0.25
"""Between two looks at whether the sink still fails."""


def backoff_s(failures: int, most_s: float, asked_s: float | None, rand: float) -> float:
    """How long to leave a failing sink alone. Full jitter: `rand` is uniform in [0, 1).

    `asked_s`: what the sink asked for (Retry-After); the jitter is put on top of it, lest all come back at once.
    No more than `most_s` of it is believed: pages of proxies ask for an hour.
    """
    ceiling_s = min(most_s, RETRY_FIRST_S * 2.0 ** min(failures, 20))
    return min(asked_s or 0.0, most_s) + rand * ceiling_s


class PatientSink:
    """In front of a sink: `open`, then `write` from several tasks at once."""

    def __init__(
        self,
        sink: Sink,
        retry_most_s: float,
        metrics: IngestMetrics,
        on_change: Callable[[], None],
        rand: Callable[[], float],
    ) -> None:
        """`on_change` is called when `trouble` or `takes_nothing` may be others than before."""
        self.trouble = ""
        """What the sink said when it last took nothing; "" when it does."""
        self.answers = 0
        """Bodies that it stored or refused."""
        self._failures = 0
        """In a row, of whatever it was asked: what the wait grows with."""
        self._since_s = 0.0
        """Of the trouble, by the loop's clock."""
        self._lives = False
        """In spite of that it answers when it is asked something else."""
        self._sink = sink
        self._retry_most_s = retry_most_s
        self._metrics = metrics
        self._on_change = on_change
        self._rand = rand

    @property
    def takes_nothing(self) -> bool:
        """Whether all would fail now, as far as is known."""
        return bool(self.trouble) and not self._lives

    async def open(self) -> None:
        """Open the sink, however long that takes."""
        while True:
            try:
                await self._sink.open()
            except (SinkBusy, SinkRefused) as error:
                await self._wait(error)
            else:
                return self._has_answered("stored")

    async def write(self, body: bytes) -> None:
        """Store newline-separated lines, however long that takes.

        BadLines and BatchTooLarge are the sink's; SinkBusy: it does not pass, though the sink lives.
        """
        begun_s = asyncio.get_running_loop().time()
        await self._insist(body)
        self._metrics.stage_s.labels("write").observe(asyncio.get_running_loop().time() - begun_s)
        self._metrics.written_bytes.inc(len(body))

    async def fails_for(self, seconds: float) -> None:
        """Return once the sink has been in trouble for so long."""
        loop = asyncio.get_running_loop()
        while not self.trouble or loop.time() < self._since_s + seconds:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)

    async def is_well(self) -> None:
        """Return once the sink is in no trouble."""
        while self.trouble:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)

    async def _insist(self, body: bytes) -> None:
        failures = 0
        while True:
            try:
                await self._sink.write(body)
            except (SinkBusy, SinkRefused) as error:
                failures += 1
                await self._wait(error)
                maybe_the_body = isinstance(error, SinkBusy) and error.maybe_the_body
                if maybe_the_body and failures % PATIENCE == 0 and await self._look():
                    raise
            except SinkError as error:
                self._has_answered("bad" if isinstance(error, BadLines) else "too_large")
                raise
            else:
                return self._has_answered("stored")

    async def _look(self) -> bool:
        """Whether it answers when it is asked something else."""
        try:
            await self._sink.open()
        except SinkError:
            self._lives = False
        else:
            self._lives = True
        self._on_change()
        return self._lives

    async def _wait(self, error: SinkBusy | SinkRefused) -> None:
        """Note a failure, and leave the sink alone for a while."""
        self._failures += 1
        refused = isinstance(error, SinkRefused)
        self._metrics.sink_answers.labels("refused" if refused else "busy").inc()
        if str(error) != self.trouble:
            log.log(
                logging.ERROR if refused else logging.WARNING,
                "the sink refuses everything: nothing is stored until this is put right"
                if refused
                else "the sink is busy",
                error=str(error),
            )
        if not self.trouble:
            self._since_s = asyncio.get_running_loop().time()
        self.trouble = str(error)
        self._metrics.sink_failing.set(1)
        self._on_change()
        asked_s = error.retry_after_s if isinstance(error, SinkBusy) else None
        await asyncio.sleep(backoff_s(self._failures, self._retry_most_s, asked_s, self._rand()))

    def _has_answered(self, answer: str) -> None:
        self._metrics.sink_answers.labels(answer).inc()
        self.answers += 1
        self._failures = 0
        self._lives = False
        if self.trouble:
            log.info("the sink is back")
            self.trouble = ""
            self._metrics.sink_failing.set(0)
            self._on_change()
