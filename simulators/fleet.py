"""Runs a scenario: hundreds of devices in one process, each sample sent at its own time.

    machines ─▶ messages, merged by time ─▶ record: sent ─▶ publisher or port ─▶ record: taken

What is sent is planned in chunks of samples and depends on seed and scenario alone; only the start of the
run and the moment of sending come from the clock.
"""

from __future__ import annotations

import heapq
import itertools
import math
import operator
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from devices.model import SECOND_NS, Floats, Int64s
from simulators.faults import Truth, TruthWriter, disturb, truth_of
from simulators.messages import json_line, shown, spoiled, text_line, value_message
from simulators.ports import Port
from simulators.publishers import Publisher
from simulators.records import Event, RecordedSeries, Recorder
from simulators.scenario import Machine, Scenario
from simulators.signals import MILLISECOND_NS, Shape, State, healthy_values, key_of

CHUNK = 64
"""Samples that a device plans at once: for numpy they cost what one costs."""
POLL_S = 0.02
ACKNOWLEDGE_TIMEOUT_S = 10.0

Token: TypeAlias = tuple[int, list[tuple[int, float]], bool]
"""(time_ns, [(series, value)], spoiled) of a message that is on its way."""


class Message(NamedTuple):
    """What leaves a device at one moment."""

    time_ns: int
    machine: int
    """Number of the device in the fleet."""
    topic: str
    """Empty on a serial line."""
    payload: bytes
    samples: tuple[tuple[str, float], ...]
    """(channel, value) as the payload shows it; for a spoiled message, as it would have."""
    spoiled: bool


def messages(
    machine: Machine, number: int, topic: str, seed: int, started_ns: int, on_truth: Callable[[Truth], None]
) -> Iterator[Message]:
    """All that a device will ever send, in order of time. `on_truth` hears of a fault before it begins."""
    for first in itertools.count(step=CHUNK):
        index = np.arange(first, first + CHUNK, dtype=np.int64)
        columns = _planned(machine, seed, index, started_ns, on_truth)
        times_ns = (started_ns + machine.schedule.offsets_ns(index)).tolist()
        for row, time_ns in enumerate(times_ns):
            readings = [
                (channel, machine.group.channel[channel], float(values[row]))
                for channel, (values, sent) in columns.items()
                if sent[row]
            ]
            yield from _encoded(machine, number, topic, first + row, time_ns, readings)


def _planned(
    machine: Machine, seed: int, index: Int64s, started_ns: int, on_truth: Callable[[Truth], None]
) -> dict[str, tuple[Floats, NDArray[np.bool_]]]:
    """Each channel's values, faults included, and which of them are sent, at the given samples."""
    schedule = machine.schedule
    offset_s = schedule.offsets_ns(index) / SECOND_NS
    keys = {channel: key_of(seed, machine.name, channel) for channel in machine.group.channel}
    columns = {
        channel: (healthy_values(shape, keys[channel], index, offset_s), np.ones(len(index), np.bool_))
        for channel, shape in machine.group.channel.items()
    }
    first, end = int(index[0]), int(index[-1]) + 1
    for fault in machine.faults:
        for start, stop in fault.spans(schedule, first, end):
            for channel in [fault.channel] if fault.channel else machine.group.channel:
                values, sent = columns[channel]
                shape = machine.group.channel[channel]
                disturb(values, sent, fault, start, stop, index, shape=shape, key=keys[channel], schedule=schedule)
            if start >= first:
                on_truth(truth_of(fault, start, stop, schedule, started_ns))
    return columns


def _encoded(
    machine: Machine, number: int, topic: str, index: int, time_ns: int, readings: list[tuple[str, Shape, float]]
) -> Iterator[Message]:
    time_ms = time_ns // MILLISECOND_NS
    samples = tuple((channel, _as_shown(shape, value)) for channel, shape, value in readings)
    if machine.group.via != "mqtt":
        line = json_line if machine.group.via == "serial-json" else text_line
        if readings:
            yield Message(time_ns, number, "", line(time_ms, readings), samples, False)
        return
    for place, (channel, shape, value) in enumerate(readings):
        payload = value_message(machine.name, channel, time_ms, shape, value)
        spoil = machine.group.malformed and index % 2 == 1
        if spoil:
            payload = spoiled(payload, index // 2 + place)
        address = topic.format(device=machine.name, channel=channel)
        yield Message(time_ns, number, address, payload, (samples[place],), spoil)


def _greeting(machine: Machine) -> bytes:
    """Delimited text does not show by itself where a line begins, so its device begins with a comment."""
    return (
        f"# {machine.name}: {';'.join(machine.group.channel)}\n".encode() if machine.group.via == "serial-text" else b""
    )


def _as_shown(shape: Shape, value: float) -> float:
    return value if isinstance(shape, State) else float(shown(shape, value))


class Fleet:
    """All devices of a scenario, and the record of what they send.

    The folder holds the record (`records.py`), `truth.jsonl`, and `ports/NAME`, a link for each serial device.
    """

    def __init__(self, scenario: Scenario, seed: int, folder: Path, broker: str) -> None:
        """`broker`: URL of the sensor broker; not used where no device sends by MQTT."""
        self.scenario = scenario
        self.seed = seed
        self.machines = scenario.devices(seed)
        self.recorder = Recorder(folder)
        self.truths = TruthWriter(folder / "truth.jsonl")
        self.sent = 0
        """Messages so far."""
        self._series = [
            {channel: self._register(machine, channel) for channel in machine.group.channel}
            for machine in self.machines
        ]
        ports = folder / "ports"
        ports.mkdir(exist_ok=True)
        self._ports = {
            number: Port(ports / machine.name, self._settled, greeting=_greeting(machine))
            for number, machine in enumerate(self.machines)
            if machine.group.via != "mqtt"
        }
        count = min(scenario.connections, len(self.machines) - len(self._ports))
        self._publishers = [Publisher(broker, f"simulators-{number}", self._settled) for number in range(count)]
        self.recorder.begin()

    def run(self, stop: threading.Event, seconds: float = math.inf) -> None:
        """Send until `stop` is set, or for so many seconds; then wait until what was sent is acknowledged."""
        started_ns = time.time_ns() // MILLISECOND_NS * MILLISECOND_NS
        started_s = time.monotonic()
        actions = self._unplugs(started_s)
        streams = [
            messages(machine, number, self.scenario.topic, self.seed, started_ns, self.truths.write)
            for number, machine in enumerate(self.machines)
        ]
        for message in heapq.merge(*streams, key=operator.itemgetter(0)):
            offset_s = (message.time_ns - started_ns) / SECOND_NS
            going_on = self._wait_until(started_s + min(offset_s, seconds), stop, actions)
            if not going_on or offset_s >= seconds:
                break
            self._send(message)
        self._settle()

    @property
    def unacknowledged(self) -> int:
        """Messages that no broker has taken."""
        return sum(publisher.unacknowledged for publisher in self._publishers)

    def close(self) -> None:
        for port in self._ports.values():
            port.close()
        for publisher in self._publishers:
            publisher.close()
        self.recorder.close()
        self.truths.close()

    def _register(self, machine: Machine, channel: str) -> int:
        shape = machine.group.channel[channel]
        kind: Any = shape.__struct_config__.tag
        return self.recorder.add_series(
            RecordedSeries(machine.name, channel, shape.unit, kind, machine.group.rate_hz, shape.decimals)
        )

    def _unplugs(self, started_s: float) -> list[tuple[float, Callable[[], None]]]:
        """(monotonic time, what to do), soonest first."""
        actions: list[tuple[float, Callable[[], None]]] = []
        for number, port in self._ports.items():
            for pull in self.machines[number].unplugs:
                actions.append((started_s + pull.at_s, port.unplug))
                actions.append((started_s + pull.at_s + pull.for_s, port.plug))
        return sorted(actions, key=operator.itemgetter(0))

    def _wait_until(self, due_s: float, stop: threading.Event, actions: list[tuple[float, Callable[[], None]]]) -> bool:
        """Sleep until then, hearing what was taken; longer while the broker owes too much. False: stop."""
        while not stop.is_set():
            now_s = time.monotonic()
            while actions and actions[0][0] <= now_s:
                actions.pop(0)[1]()
            self._poll()
            if now_s >= due_s and not any(publisher.full for publisher in self._publishers):
                return True
            stop.wait(min(max(due_s - now_s, 0.001), POLL_S))
        return False

    def _send(self, message: Message) -> None:
        series = self._series[message.machine]
        rows = [(series[channel], value) for channel, value in message.samples]
        token: Token = (message.time_ns, rows, message.spoiled)
        sent_ns = time.time_ns()
        port = self._ports.get(message.machine)
        if port is not None and not port.write(message.payload, token):
            return
        event = Event.SPOILED if message.spoiled else Event.SENT
        payload_bytes = len(message.payload)
        for number, value in rows:
            self.recorder.write(event, number, message.time_ns, value, sent_ns=sent_ns, payload_bytes=payload_bytes)
            payload_bytes = 0
        if port is None:
            self._publishers[message.machine % len(self._publishers)].publish(message.topic, message.payload, token)
        self.sent += 1

    def _settled(self, token: Token, heard: bool = True) -> None:
        time_ns, rows, is_spoiled = token
        if heard and is_spoiled:
            return
        event = Event.TAKEN if heard else Event.UNHEARD
        for number, value in rows:
            self.recorder.write(event, number, time_ns, value)

    def _poll(self) -> None:
        for publisher in self._publishers:
            publisher.poll()
        for port in self._ports.values():
            port.poll()

    def _settle(self) -> None:
        deadline_s = time.monotonic() + ACKNOWLEDGE_TIMEOUT_S
        while any(publisher.unacknowledged for publisher in self._publishers) and time.monotonic() < deadline_s:
            self._poll()
            time.sleep(POLL_S)
        self._poll()
