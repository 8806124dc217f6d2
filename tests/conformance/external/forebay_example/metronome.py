"""A device that is no device: it counts its beats, and says each as two bytes in hexadecimal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

import msgspec

from devices.drivers import Delivery, SourceStatus
from devices.quantities import Duration


class MetronomeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keys of `[source.NAME]` with `driver = "metronome"`."""

    every: Duration = Duration(1_000_000_000)
    """Time between two beats."""


class MetronomeDriver:
    """Beats from 0 on; one that falls into a pause is skipped and counted."""

    Options: ClassVar[type[msgspec.Struct]] = MetronomeOptions
    stream: ClassVar[bool] = False

    def __init__(
        self,
        device: str,
        options: MetronomeOptions,
        deliver: Callable[[Delivery], None],
        now_ns: Callable[[], int],
        *,
        probe: bool = False,
    ) -> None:
        self.status = SourceStatus()
        self._every_s = options.every.s
        self._deliver = deliver
        self._now_ns = now_ns
        self._paused = False

    async def run(self) -> None:
        beat = 0
        while True:
            await asyncio.sleep(self._every_s)
            if self._paused:
                self.status.skipped += 1
                continue
            payload = b"%04x" % (beat & 0xFFFF)
            beat += 1
            self.status.state = "open"
            self.status.messages += 1
            self.status.bytes_in += len(payload)
            self._deliver(Delivery([payload], arrived_ns=self._now_ns()))

    def pause(self) -> None:
        self._paused = True
        self.status.state = "paused"

    def resume(self) -> None:
        self._paused = False
        self.status.state = "open"
