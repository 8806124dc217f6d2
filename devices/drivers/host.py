"""This machine itself as a device: processor, memory, disk, network and temperatures, by psutil.

Each poll delivers one flat JSON object; what the machine does not have is left out:

    {"cpu": 12.5, "core_0": 20.1, "core_1": 4.9,          processor in use, percent since the last poll
     "load_1m": 0.42,                                     runnable processes, averaged over a minute
     "memory": 38.2, "memory_available": 8123456789,      percent in use; bytes
     "swap": 0.0,                                         percent in use, where there is swap
     "disk": 61.0, "disk_free": 12345678901,              of the file system that holds `disk`: percent; bytes
     "disk_read": 123456, "disk_written": 654321,         bytes since boot (counters)
     "network_received": 123, "network_sent": 456,        bytes since boot, loopback left out (counters)
     "uptime": 86400.5,                                   seconds since boot
     "temperature_coretemp_core_0": 47.0}                 degrees Celsius, one a sensor
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import psutil

from devices.drivers import Delivery, SourceStatus
from devices.quantities import Duration

_NOT_A_NAME = re.compile(r"[^a-z0-9]+")


class HostOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keys of `[source.NAME]` with `driver = "host"`."""

    every: Duration = Duration(1_000_000_000)
    """Time between two polls."""
    disk: str = "/"
    """A folder of the file system whose filling is reported."""

    def __post_init__(self) -> None:
        if self.every.ns < 10_000_000:
            raise ValueError('`every` is at least "10 ms": the kernel counts processor time in such steps')


class HostDriver:
    """Polls psutil; a poll that falls into a pause is skipped and counted."""

    Options: ClassVar[type[msgspec.Struct]] = HostOptions
    stream: ClassVar[bool] = False

    def __init__(
        self,
        device: str,
        options: HostOptions,
        deliver: Callable[[Delivery], None],
        now_ns: Callable[[], int],
        *,
        probe: bool = False,
    ) -> None:
        del device, probe  # Reading psutil changes nothing.
        self.status = SourceStatus()
        self._options = options
        self._deliver = deliver
        self._now_ns = now_ns
        self._paused = False

    async def run(self) -> None:
        """Poll at fixed times until cancelled; what falls due while the machine sleeps is polled once."""
        loop = asyncio.get_running_loop()
        every_s = self._options.every.s
        psutil.cpu_percent(percpu=True)  # The first answer is since never, and 0.
        due = loop.time()
        while True:
            due = max(due + every_s, loop.time())
            await asyncio.sleep(due - loop.time())
            if self._paused:
                self.status.skipped += 1
            else:
                self._poll()

    def _poll(self) -> None:
        try:
            readings = read_host(self._options.disk)
        except (OSError, psutil.Error) as error:
            self.status.state, self.status.error = "failed", f"cannot read this machine's sensors: {error}"
            return
        payload = msgspec.json.encode(readings)
        self.status.state, self.status.error = "open", ""
        self.status.messages += 1
        self.status.bytes_in += len(payload)
        self._deliver(Delivery([payload], arrived_ns=self._now_ns()))

    def pause(self) -> None:
        self._paused = True
        self.status.state = "paused"

    def resume(self) -> None:
        self._paused = False
        self.status.state = "open"


def read_host(disk: str) -> dict[str, float]:
    """One poll: see the module's docstring. Takes about a millisecond."""
    cores = psutil.cpu_percent(percpu=True)
    readings: dict[str, float] = {"cpu": round(sum(cores) / len(cores), 1)}
    readings.update((f"core_{i}", percent) for i, percent in enumerate(cores))
    readings["load_1m"] = round(psutil.getloadavg()[0], 2)
    memory = psutil.virtual_memory()
    readings["memory"] = memory.percent
    readings["memory_available"] = memory.available
    if (swap := psutil.swap_memory()).total:
        readings["swap"] = swap.percent
    filling = psutil.disk_usage(disk)
    readings["disk"] = filling.percent
    readings["disk_free"] = filling.free
    if (disk_io := psutil.disk_io_counters()) is not None:
        readings["disk_read"] = disk_io.read_bytes
        readings["disk_written"] = disk_io.write_bytes
    cards = [io for name, io in psutil.net_io_counters(pernic=True).items() if name != "lo"]
    if cards:
        readings["network_received"] = sum(io.bytes_recv for io in cards)
        readings["network_sent"] = sum(io.bytes_sent for io in cards)
    readings["uptime"] = round(time.time() - psutil.boot_time(), 1)
    readings.update(_temperatures())
    return readings


def _temperatures() -> dict[str, float]:
    """Named by chip and label, numbered where a machine has several of one name."""
    found: dict[str, float] = {}
    sensors: Callable[[], dict[str, list[Any]]] | None = getattr(psutil, "sensors_temperatures", None)
    for chip, entries in (sensors() if sensors else {}).items():
        for entry in entries:
            words = _NOT_A_NAME.sub("_", f"{chip}_{entry.label}".lower()).strip("_")
            name = f"temperature_{words}"
            number = 2
            while name in found:
                name = f"temperature_{words}_{number}"
                number += 1
            found[name] = float(entry.current)
    return found
