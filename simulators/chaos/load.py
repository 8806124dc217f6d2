"""What the devices send meanwhile: a small plant, some of whose messages come late and some twice.

Everything is stamped by its device in whole milliseconds, so that every sample has an identity. About 190
samples/s: gauges, counters and states over MQTT at QoS 1, one series that is reported raw, one serial port,
and spikes that demand alarms.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from simulators.fleet import Fleet, Message, Token
from simulators.scenario import Scenario

LATE_SHARE, LATEST_S = 0.01, 20.0
"""Of the messages of gauges and counters so many are held back, for up to so long."""
TWICE_SHARE, TWICE_WITHIN_S = 0.02, 20.0
"""So many are sent again on purpose, as new messages, within this time."""

SERIAL_DEVICE = "scale"
RAW_DEVICE, RAW_CHANNEL = "spindle", "current"
WINDOW_S = 2

SCENARIO = """
profile = "chaos-plant"
connections = 3

[device.press]
count = 20
rate_hz = 1.0
channel.temperature = { kind = "gauge", unit = "Cel", level = 61.0, noise = 0.25, load = 0.6, decimals = 2 }
channel.pressure = { kind = "gauge", unit = "bar", level = 160.0, noise = 1.2, vibration = 1.0, decimals = 1 }
channel.strokes = { kind = "counter", unit = "1", per_second = 1.6 }

[device.spindle]
count = 5
rate_hz = 10.0
channel.vibration = { kind = "gauge", unit = "mm/s", level = 2.4, noise = 0.08, decimals = 3 }
channel.current = { kind = "gauge", unit = "A", level = 14.2, noise = 0.2, decimals = 2 }

[device.conveyor]
count = 5
rate_hz = 2.0
channel.mode = { kind = "state", words = ["idle", "running", "cleaning", "fault"], change_every_s = 5.0 }
channel.parts = { kind = "counter", unit = "1", per_second = 3.0, wrap = 1000.0 }

[device.scale]
via = "serial-json"
profile = "chaos-scale"
rate_hz = 5.0
channel.weight = { kind = "gauge", unit = "kg", level = 212.0, noise = 0.4, decimals = 1 }
channel.stable = { kind = "state", change_every_s = 9.0 }

[[fault]]
kind = "spike"
device = "press-003"
channel = "temperature"
at_s = 8.0
magnitude = 60.0
every_s = 7.0

[[fault]]
kind = "spike"
device = "press-011"
channel = "pressure"
at_s = 9.0
magnitude = 120.0
every_s = 11.0
"""

_COMMON = f'window = "{WINDOW_S} s", lateness = "1 s", idle_close = "3 s", max_ahead = "2 h"'

PROFILES = {
    "chaos-plant": f"""\
name = "chaos-plant"
version = "1"
codec = {{ name = "json", value = "value", time = "timestamp", time_format = "ms" }}

[channel]
temperature = {{ {_COMMON}, unit = "Cel", range = [0, 95], severity = "critical" }}
pressure = {{ {_COMMON}, unit = "bar", range = [0, 250] }}
strokes = {{ {_COMMON}, unit = "1", kind = "counter" }}
vibration = {{ {_COMMON}, unit = "mm/s" }}
current = {{ {_COMMON}, unit = "A", report = "raw" }}
mode = {{ {_COMMON}, kind = "state", mapping = {{ idle = 0, running = 1, cleaning = 2, fault = 3 }} }}
parts = {{ {_COMMON}, unit = "1", kind = "counter", wrap = 1000 }}
""",
    "chaos-scale": f"""\
name = "chaos-scale"
version = "1"
codec = {{ name = "json", time = "time", time_format = "ms" }}

[driver.serial]
baud_rate = 115200

[channel]
weight = {{ {_COMMON}, unit = "kg", range = [0, 500] }}
stable = {{ {_COMMON}, kind = "state" }}
""",
}
"""By name; the plant's devices speak MQTT, the scale a serial line."""


def scenario() -> Scenario:
    """The plant."""
    return msgspec.toml.decode(SCENARIO, type=Scenario)


class Load(Fleet):
    """The fleet, with messages that come late or twice. Runs in one thread; others may call `ask`."""

    def __init__(self, seed: int, folder: Path, broker: str) -> None:
        super().__init__(scenario(), seed, folder, broker)
        self._random = random.Random(f"load {seed}")
        self._order = itertools.count()
        self._held: list[tuple[float, int, Message, bool]] = []
        """(when, order, what, whether it was sent before), the soonest first."""
        self._asked: deque[Callable[[], None]] = deque()
        self.late = 0
        """Messages that were held back."""
        self.twice = 0
        """Messages that were sent again."""

    def ask(self, what: Callable[[], None]) -> None:
        """Have something done by the thread that sends."""
        self._asked.append(what)

    def unplug(self) -> None:
        """Pull the serial device's cable. For `ask`."""
        for port in self._ports.values():
            port.unplug()

    def plug(self) -> None:
        """Put it in again. For `ask`."""
        for port in self._ports.values():
            port.plug()

    def _poll(self) -> None:
        while self._asked:
            self._asked.popleft()()
        now_s = time.monotonic()
        while self._held and self._held[0][0] <= now_s:
            _, _, message, again = heapq.heappop(self._held)
            self._send_held(message, again)
        super()._poll()

    def _send(self, message: Message) -> None:
        chance = self._random.random()
        if message.topic and chance < LATE_SHARE and not message.topic.endswith("/mode"):
            self._hold(message, LATEST_S, again=False)
            self.late += 1
            return
        super()._send(message)
        if message.topic and LATE_SHARE <= chance < LATE_SHARE + TWICE_SHARE:
            self._hold(message, TWICE_WITHIN_S, again=True)

    def _hold(self, message: Message, longest_s: float, *, again: bool) -> None:
        due_s = time.monotonic() + self._random.uniform(0.0, longest_s)
        heapq.heappush(self._held, (due_s, next(self._order), message, again))

    def _send_held(self, message: Message, again: bool) -> None:
        if not again:
            super()._send(message)
            return
        self.twice += 1
        unrecorded: Token = (message.time_ns, [], False)
        self._publishers[message.machine % len(self._publishers)].publish(message.topic, message.payload, unrecorded)

    def _settle(self) -> None:
        for _, _, message, again in sorted(self._held):
            self._send_held(message, again)
        self._held.clear()
        super()._settle()


class LoadThread:
    """Runs a Load in a thread of its own; a context."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> LoadThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.load.close()

    def stop(self) -> None:
        """Send no more, and wait until what was sent is acknowledged, or a bounded time is over."""
        self._stop.set()
        self._thread.join()
        self.load.recorder.flush()

    def _run(self) -> None:
        try:
            self.load.run(self._stop)
        except BaseException as error:  # noqa: BLE001  told by the thread that waits
            self.failure = error
