"""What can be fuzzed: each target takes any bytes, and raises only if something is wrong with the program.

| target | what it feeds | what must hold, beside: nothing but the documented error comes out |
|---|---|---|
| frame | payloads of frames | decode(encode(frame)) is the frame, and its bytes are always the same |
| body | the unpacked body of a frame | the same |
| receipt | receipts | decode(encode(receipt)) is the receipt |
| lines | bodies, up to the line protocol | one line a row, which reads back under its own series |
| points | text lines of the SQLite sink | values are finite, integers within 64 bits |
| json, delimited | messages of devices | whole messages or nothing; times within 64 bits; no broken text |
| framing | byte streams | the same lines however the stream is cut |
| intake | topics and messages, up to the admitted sample | counted or admitted; one time once a series |
| packets | MQTT streams | the same packets and the same end however the stream is cut |
| client | MQTT streams, up to the session's callbacks | the same |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import device, mqtt, stored, wire

FOUND = Path(__file__).parents[1] / "vectors" / "fuzz"
"""FOUND/<target>/ has the inputs that once showed a fault."""


class Target(NamedTuple):
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    max_bytes: int = 4096
    """Of one input of the fuzzer's own making."""


TARGETS = {
    "frame": Target(wire.frame, wire.payload_seeds),
    "body": Target(wire.body, wire.body_seeds),
    "receipt": Target(wire.receipt, wire.receipt_seeds, 1024),
    "lines": Target(stored.lines, stored.line_body_seeds),
    "points": Target(stored.points, stored.point_seeds, 512),
    "json": Target(device.json, device.json_seeds, 5200),
    "delimited": Target(device.delimited, device.delimited_seeds, 5200),
    "framing": Target(device.framing, device.stream_seeds, 256),
    "intake": Target(device.intake, device.intake_seeds),
    "packets": Target(mqtt.packets, mqtt.stream_seeds, 600),
    "client": Target(mqtt.client, mqtt.client_seeds, 600),
}


def found(target: str) -> list[Path]:
    """The inputs that once showed a fault."""
    return sorted(path for path in (FOUND / target).glob("*") if path.is_file())
