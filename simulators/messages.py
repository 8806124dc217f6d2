"""What simulated devices put on the wire: an encoding of their own, so that no codec tests itself.

MQTT         {"device":"press-007","channel":"temperature","timestamp":1764000000123,"value":61.23,
              "unit":"°C","status":"ok"}                          one message a channel, about 120 bytes
serial-json  {"time":1764000000123,"temperature":61.23,"running":true}         one line a reading
serial-text  1764000000123;61.23;0.119         a time in ms, then the channels in order of the scenario
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from simulators.signals import Shape, State


def shown(shape: Shape, value: float) -> str:
    """How a device shows a value in JSON: with its decimals, or as a word or boolean."""
    if isinstance(shape, State):
        return json.dumps(shape.words[int(value)]) if shape.words else ("true" if value else "false")
    return f"{value:.{shape.decimals}f}"


def value_message(device: str, channel: str, time_ms: int, shape: Shape, value: float) -> bytes:
    """The payload of an MQTT device: one channel's value."""
    return (
        f'{{"device":{json.dumps(device)},"channel":{json.dumps(channel)},"timestamp":{time_ms},'
        f'"value":{shown(shape, value)},"unit":{json.dumps(shape.unit, ensure_ascii=False)},"status":"ok"}}'
    ).encode()


def json_line(time_ms: int, readings: Sequence[tuple[str, Shape, float]]) -> bytes:
    """A line of a serial device that speaks JSON: (channel, shape, value) of each reading."""
    fields = "".join(f",{json.dumps(channel)}:{shown(shape, value)}" for channel, shape, value in readings)
    return f'{{"time":{time_ms}{fields}}}\n'.encode()


def text_line(time_ms: int, readings: Sequence[tuple[str, Shape, float]]) -> bytes:
    """A line of a serial device that speaks delimited text."""
    fields = "".join(f";{shown(shape, value).strip(chr(34))}" for _, shape, value in readings)
    return f"{time_ms}{fields}\n".encode()


def _with_value(message: bytes, value: str) -> bytes:
    before, after = message.split(b'"value":')
    return before + b'"value":' + value.encode() + after[after.index(b",") :]


BREAKAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda message: message[: len(message) // 2],
    "binary": lambda message: bytes(byte ^ 0x95 for byte in message),
    "wrong type": lambda message: _with_value(message, '{"is":[1,2]}'),
    "text without a mapping": lambda message: _with_value(message, '"rather warm"'),
    "not a number": lambda message: _with_value(message, "NaN"),
    "beyond a double": lambda message: _with_value(message, "1e999"),
    "wrong time": lambda message: message.replace(b'"timestamp":', b'"timestamp":"yesterday","at":'),
}
"""How a malformed device spoils a message: one sample each, which the edge must reject."""


def spoiled(message: bytes, number: int) -> bytes:
    """The message, broken in the way that is `number`'s turn."""
    ways = list(BREAKAGES.values())
    return ways[number % len(ways)](message)
