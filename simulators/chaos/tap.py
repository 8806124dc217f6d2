"""Reads along on an MQTT connection between a sensors' broker and the edge: which messages the edge acknowledged.

That, and not what the broker acknowledged to the sensors, is what Forebay answers for: a broker that is killed
may forget what it has acknowledged. The tap sees what the edge is handed, damage included, and what the edge
writes before any damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

PUBLISH, PUBACK = 3, 4
LONGEST_PACKET_BYTES = 1 << 20


class Tap:
    """One connection, MQTT 5. Bytes are fed as they pass, in any pieces."""

    def __init__(self, on_acknowledged: Callable[[bytes, bytes], None]) -> None:
        """`on_acknowledged(topic, payload)` is called for each message of QoS 1 that the edge has acknowledged."""
        self._on_acknowledged = on_acknowledged
        self._handed: dict[int, tuple[bytes, bytes]] = {}
        self._down = _Packets()
        self._up = _Packets()

    @property
    def unacknowledged(self) -> int:
        """Messages that the edge was handed and has not acknowledged."""
        return len(self._handed)

    def down(self, data: bytes) -> None:
        """Bytes that the edge is about to be handed."""
        for first, body in self._down.feed(data):
            if first >> 4 == PUBLISH and first & 0x06:
                message = _published(body)
                if message is not None:
                    packet_id, topic, payload = message
                    self._handed[packet_id] = topic, payload

    def up(self, data: bytes) -> None:
        """Bytes that the edge has written."""
        for first, body in self._up.feed(data):
            if first >> 4 == PUBACK and len(body) >= 2 and (len(body) == 2 or body[2] < 0x80):
                message = self._handed.pop(int.from_bytes(body[:2], "big"), None)
                if message is not None:
                    self._on_acknowledged(*message)


class _Packets:
    """Cuts a stream into MQTT packets; a stream that is damaged beyond that gives none any more."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._lost = False

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(first byte, body) of each packet that is complete."""
        if self._lost:
            return
        rest = self._rest
        rest += data
        while len(rest) >= 2:
            length = _variable_length(rest, 1)
            if length is None:
                self._lost = len(rest) >= 5
                return
            size, start = length
            if size > LONGEST_PACKET_BYTES:
                self._lost = True
                return
            if len(rest) < start + size:
                return
            packet = rest[0], bytes(rest[start : start + size])
            del rest[: start + size]
            yield packet


def _variable_length(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """A variable byte integer (MQTT 5, 1.5.5) and the place after it; None when it is not whole, or too long."""
    value = 0
    for place, byte in enumerate(data[at : at + 4]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    return None


def _published(body: bytes) -> tuple[int, bytes, bytes] | None:
    """(packet id, topic, payload) of a PUBLISH of QoS 1: topic length, topic, packet id, properties, payload."""
    topic_end = 2 + int.from_bytes(body[:2], "big")
    properties = _variable_length(body, topic_end + 2)
    if properties is None:
        return None
    size, start = properties
    packet_id = int.from_bytes(body[topic_end : topic_end + 2], "big")
    return packet_id, body[2:topic_end], body[start + size :]
