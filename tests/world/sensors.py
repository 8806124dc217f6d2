"""Sensors, and their own record of what they sent.

Each sends through the sensors' broker at QoS 1, now and again some messages at once; some are late, some come
twice, some are not what they should be. No two messages of a channel are alike: a stamped one is known by its
time, one that is stamped on arrival by its value.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from devices.model import SECOND_NS
from devices.profiles import Channel, CodecChoice, Profile, load
from devices.quantities import Duration
from tests.world.broker import Broker, Message

T0_NS = 1_700_000_000 * SECOND_NS
GARBAGE = b"{'not': json"


@dataclass
class Habits:
    """What the sensors are like."""

    rate_per_s: float = 0.005
    burst: int = 4
    late: float = 0.05
    late_s: float = 600.0
    again: float = 0.02
    conflict: float = 0.01
    garbage: float = 0.002
    window_s: int = 60


@dataclass
class Record:
    """What was ever sent, by what it can be known by."""

    stamped: dict[tuple[str, int], set[float]] = field(default_factory=dict)
    """(channel, time) -> values: more than one is a conflict."""
    values: dict[tuple[str, float], int] = field(default_factory=dict)
    """(channel, value) of what is stamped on arrival -> the message's number."""


def profile(window_s: int) -> Profile:
    """One channel of each sort."""

    def channel(**settings: object) -> Channel:
        window = Duration(window_s * SECOND_NS)
        common = {"window": window, "lateness": Duration(window_s * SECOND_NS // 6), "idle_close": window}
        return Channel(**(common | {"max_ahead": Duration(300 * SECOND_NS)} | settings))  # type: ignore[arg-type]

    return Profile(
        name="world",
        version=str(window_s),
        codec=CodecChoice("json", load("codecs", "json").Options(value="value", time="timestamp", time_format="ns")),
        channel={
            "temperature": channel(range=(-40.0, 60.0), expect_every=Duration(4 * 3600 * SECOND_NS), unit="Cel"),
            "energy": channel(kind="counter", wrap=65_536.0, unit="kWh"),
            "running": channel(kind="state"),
            "vibration": channel(report="raw", unit="mm/s"),
            "pressure": channel(report="on_change", tolerance=1.0, expect_every=Duration(4 * 3600 * SECOND_NS)),
            "flow": channel(unit="l/s"),
        },
    )


TOPICS = "plant/{device}/{channel}"
ON_ARRIVAL = ("flow",)
RAW = ("vibration",)
_CHANNELS = ("temperature", "energy", "running", "vibration", "pressure", "flow")
_DEVICES = ("pump1", "pump2")


class Sensors:
    """Makes messages; `send` gives them to the broker, or keeps them until it is there."""

    def __init__(self, rng: random.Random, broker: Broker, habits: Habits) -> None:
        self.record = Record()
        self.messages = 0
        self._rng = rng
        self._broker = broker
        self._habits = habits
        self._waiting: list[Message] = []
        self._sent: list[Message] = []
        self._latest_ns: dict[str, int] = {}
        """Times to which another value may be sent: on raw channels, once the journal has forgotten the first, that
        would write another value under its key."""
        self._energy = 0.0

    def next_in_s(self) -> float:
        habits = self._habits
        return self._rng.expovariate(habits.rate_per_s / habits.burst)

    def send(self, now_s: float) -> None:
        """Some messages at once."""
        habits, rng = self._habits, self._rng
        for _ in range(rng.randint(1, 2 * habits.burst - 1)):
            if self._sent and rng.random() < habits.again:
                self._waiting.append(rng.choice(self._sent))
            else:
                self._waiting.append(self._make(now_s))
        if self._broker.up:
            for message in self._waiting:
                self._broker.publish(message)
            self._waiting = []

    def _make(self, now_s: float) -> Message:
        rng, habits = self._rng, self._habits
        self.messages += 1
        channel, device = rng.choice(_CHANNELS), rng.choice(_DEVICES)
        topic = f"plant/{device}/{channel}"
        if rng.random() < habits.garbage:
            return Message(topic, GARBAGE, number=self.messages)
        value = self._value(channel)
        if channel in ON_ARRIVAL:
            value = self.messages + round(0.9 * rng.random(), 2)
            self.record.values[topic, value] = self.messages
            return Message(topic, b"%r" % value, number=self.messages)
        late_s = rng.expovariate(1 / habits.late_s) if rng.random() < habits.late else 0.0
        time_ns = T0_NS + (int((now_s - late_s) * 1e6) + self.messages % 1000) * 1000
        if rng.random() < habits.conflict and topic in self._latest_ns:
            time_ns = self._latest_ns[topic]
        self.record.stamped.setdefault((topic, time_ns), set()).add(value)
        message = Message(topic, b'{"value":%r,"timestamp":%d}' % (value, time_ns), number=self.messages)
        if not late_s and channel not in RAW:
            self._latest_ns[topic] = time_ns
        if len(self.record.stamped[topic, time_ns]) == 1:
            self._sent.append(message)
            del self._sent[:-200]
        return message

    def _value(self, channel: str) -> float:
        rng = self._rng
        if channel == "energy":
            self._energy = (self._energy + rng.random() * 10) % 65_536.0
            return round(self._energy, 2)
        if channel == "running":
            return float(rng.randrange(3))
        spike = 100.0 if rng.random() < 0.003 else 0.0
        return round(rng.gauss(20.0, 1.0) + spike, 2)
