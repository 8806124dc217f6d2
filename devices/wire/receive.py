"""The bulk receive path: PUBLISH packets cut in batches out of large reads. Sans I/O.

    PUBLISH   [ 0011 | dup qos qos retain ] [ remaining length, 1 to 4 bytes, 7 bits each, low first ]
              [ u16 n | topic, n bytes of UTF-8 ] [ u16 packet id, if qos > 0 ] [ properties, MQTT 5 ] [ payload ]
    properties [ length, as above ] ( [ id ] [ value, by the id's type ] )*

Source: MQTT 5.0 and 3.1.1 (OASIS), sections 1.5, 2.1, 2.2.2 and 3.3. Of the properties only Correlation
Data (9) is kept; a Topic Alias (35) is refused, since we announce that we take none.

A packet may arrive in any pieces. What is held back is at most one packet of `max_packet_bytes`: a longer
one is refused when its length is known, before its bytes are waited for. Not so a message from a broker of
MQTT 3.1.1, which cannot be told our limit: refused, it would come again with the next connection, and with
every one after that, and hold up all others. Its beginning is handed on, and the rest is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from devices.errors import LinkLost

TOPICS_CACHED: Final = 4096
TOPIC_CACHED_BYTES: Final = 256
"""Longer topics are decoded each time, so that the cache stays below 3 MB whatever arrives."""

CUT_SHORT_BYTES: Final = 1024
"""So much of the payload of a message that is too long is handed on: enough to see what came."""

CONTROL_MAX_BYTES: Final = 16 * 1024
"""For every packet but PUBLISH: paho's parser of properties takes time quadratic in their number."""

_ONE_BYTE, _FOUR_BYTES, _VARIABLE, _TWO_BYTES, _PAIR = 0x01, 0x02, 0x0B, 0x23, 0x26
_STRINGS: Final = (0x03, 0x08, 0x09)
_CORRELATION: Final = 0x09


class PacketRefused(LinkLost):
    """A packet that ends the link. `code` is the MQTT 5 reason for our DISCONNECT."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def malformed(what: str) -> PacketRefused:
    """For bytes that are not MQTT. `what` says where, without showing the bytes."""
    return PacketRefused(f"what arrives is not MQTT ({what}): is this the address of an MQTT broker?", 0x81)


@dataclass(slots=True)
class Inbound:
    """Messages that one read brought, in order of receipt: lists of one length."""

    connection: int
    """Names the connection; packet ids mean something on this one only."""
    session_present: bool
    """Whether the broker had kept the session when that connection began."""
    topics: list[str] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    packet_ids: list[int] = field(default_factory=list)
    """0 for QoS 0, which is not acknowledged."""
    dups: list[bool] = field(default_factory=list)
    retained: list[int] = field(default_factory=list)
    """Places of those that the broker had kept, and sent because we subscribed: it marks no others so."""
    correlations: list[bytes | None] = field(default_factory=list)
    cut_short: dict[int, int] = field(default_factory=dict)
    """Place -> bytes of a payload that is too long, and of which `payloads` has only the beginning."""

    def __len__(self) -> int:
        return len(self.payloads)


class PacketCutter:
    """Cuts a byte stream into packets.

    Order of calls: `feed` with what was read, then `cut` until it returns None. After PacketRefused the
    stream is of no use; a new connection begins with `reset`.
    """

    def __init__(self, *, version5: bool, max_packet_bytes: int) -> None:
        self._version5 = version5
        self._max_packet_bytes = max_packet_bytes
        self._topics: dict[bytes, str] = {}
        self.reset()

    def reset(self) -> None:
        """Forget what was left of the last connection."""
        self._data = b""
        self._at = 0
        self._pending = bytearray()
        self._need_bytes = 0
        self._skip_bytes = 0
        """Of a message that is too long, and was handed on: what is still to come of it."""

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream, in any pieces; those fed before must have been cut."""
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(data))
            self._skip_bytes -= skipped
            data = data[skipped:]
        if self._pending:
            # Appended in place and looked at again only when the packet is whole: a peer that sends a
            # large packet byte by byte costs no more than one that sends it at once.
            self._pending += data
            if len(self._pending) < self._need_bytes:
                data = b""
            else:
                data, self._pending = bytes(self._pending), bytearray()
        self._data = data
        self._at = 0

    def cut(self, inbound: Inbound) -> tuple[int, bytes] | None:
        """Append PUBLISH packets to `inbound`, up to the next packet of another type or the end.

        Returns that other packet as (first byte, what follows its remaining length), or None at the end.
        Raises PacketRefused; `inbound` then holds the whole packets before it.
        """
        try:
            return self._cut(inbound)
        except IndexError:
            raise malformed("a packet shorter than its fields") from None

    def _cut(self, inbound: Inbound) -> tuple[int, bytes] | None:
        # One long loop on local names: at 50,000 messages/s each call a message costs 5 % of a core.
        data, at, size = self._data, self._at, len(self._data)
        limit, version5, topic_of = self._max_packet_bytes, self._version5, self._topics.get
        add_topic, add_payload = inbound.topics.append, inbound.payloads.append
        add_id, add_dup, add_correlation = inbound.packet_ids.append, inbound.dups.append, inbound.correlations.append
        while size - at >= 2:
            first = data[at]
            start = at + 2
            remaining = data[at + 1]
            if remaining > 127:
                if start < size and data[start] < 128:
                    remaining += (data[start] << 7) - 128
                    start += 1
                else:
                    remaining, start = _long_length(data, at + 1)
                    if start == 0:
                        break
            end = start + remaining
            kind = first & 0xF6
            if end - at > limit:
                if version5 or (kind != 0x32 and kind != 0x30):
                    raise self._too_large(end - at)
                need_bytes = self._cut_short(inbound, at, start, end)
                if need_bytes:
                    self._hold(at, need_bytes)
                    return None
                at = min(end, size)
                continue
            if kind != 0x32 and kind != 0x30:
                if first & 0xF0 == 0x30:
                    raise _refused_quality(data[start:end], first)
                if end - at > CONTROL_MAX_BYTES:
                    raise malformed(f"a control packet of {end - at} bytes")
                if end > size:
                    break
                self._at = end
                return first, data[start:end]
            if end > size:
                break
            body = start + 2 + (data[start] << 8 | data[start + 1])
            name = data[start + 2 : body]
            packet_id = 0
            if kind == 0x32:
                packet_id = data[body] << 8 | data[body + 1]
                body += 2
                if not packet_id:
                    raise malformed("a message at QoS 1 with packet id 0")
            correlation = None
            if version5:
                if body < end and not data[body]:
                    body += 1
                else:
                    correlation, body = _properties(data, body, end)
            if body > end:
                raise malformed("a topic longer than its packet")
            add_topic(topic_of(name) or self._topic(name))
            if first & 0x01:
                inbound.retained.append(len(inbound.payloads))
            add_payload(data[body:end])
            add_id(packet_id)
            add_dup(first & 0x08 != 0)
            add_correlation(correlation)
            at = end
        self._hold(at)
        return None

    def _cut_short(self, inbound: Inbound, at: int, start: int, end: int) -> int:
        """Append the beginning of a message that is too long, or return how many of its bytes are needed for that."""
        data, size = self._data, len(self._data)
        if size < start + 2:
            return start + 2 - at
        body = start + 2 + (data[start] << 8 | data[start + 1]) + (2 if data[at] & 0x02 else 0)
        if body > end:
            raise malformed("a topic longer than its packet")
        shown = min(body + CUT_SHORT_BYTES, end)
        if size < shown:
            return shown - at
        packet_id = 0
        if data[at] & 0x02:
            packet_id = data[body - 2] << 8 | data[body - 1]
            if not packet_id:
                raise malformed("a message at QoS 1 with packet id 0")
        name = data[start + 2 : body - 2 if packet_id else body]
        inbound.topics.append(self._topics.get(name) or self._topic(name))
        inbound.cut_short[len(inbound.payloads)] = end - body
        inbound.payloads.append(data[body:shown])
        inbound.packet_ids.append(packet_id)
        inbound.dups.append(data[at] & 0x08 != 0)
        inbound.correlations.append(None)
        self._skip_bytes = max(end - size, 0)
        return 0

    def _hold(self, at: int, need_bytes: int = 0) -> None:
        """Keep the start of a packet that is not whole, and the number of bytes worth looking at again."""
        if at < len(self._data):
            self._pending = bytearray(self._data[at:])
            remaining, start = _long_length(self._data, at + 1)
            self._need_bytes = need_bytes or (start + remaining - at if start else len(self._pending) + 1)
        self._data, self._at = b"", 0

    def _topic(self, name: bytes) -> str:
        if not name:
            raise PacketRefused("the broker sent a message without a topic, and we take no topic aliases", 0x94)
        try:
            topic = name.decode()
        except UnicodeDecodeError:
            raise malformed("a topic that is not UTF-8") from None
        if len(name) <= TOPIC_CACHED_BYTES:
            if len(self._topics) >= TOPICS_CACHED:
                self._topics.clear()
            self._topics[name] = topic
        return topic

    def _too_large(self, packet_bytes: int) -> PacketRefused:
        return PacketRefused(
            f"the broker sends a packet of {packet_bytes} bytes, more than max_packet_bytes = "
            f"{self._max_packet_bytes}: raise that limit, or let its sender publish smaller messages",
            0x95,
        )


def _long_length(data: bytes, at: int) -> tuple[int, int]:
    """The variable byte integer at `at`: (value, where it ends); (0, 0) if the bytes end before it does."""
    value = 0
    for index, byte in enumerate(data[at : at + 4]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, at + index + 1
    if len(data) - at >= 4:
        raise malformed("a length of more than four bytes")
    return 0, 0


def _properties(data: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    """The properties of a PUBLISH at `at`, in a packet that ends at `end`: (correlation data, where they end)."""
    length, at = _long_length(data, at)
    stop = at + length
    if at == 0 or stop > end:
        raise malformed("properties longer than their packet")
    correlation = None
    while at < stop:
        kind = data[at]
        at += 1
        if kind in _STRINGS:
            value_at, at = at + 2, at + 2 + (data[at] << 8 | data[at + 1])
            if kind == _CORRELATION:
                if correlation is not None:
                    raise malformed("correlation data twice in one message")
                correlation = data[value_at:at]
        elif kind == _PAIR:
            at += 2 + (data[at] << 8 | data[at + 1])
            at += 2 + (data[at] << 8 | data[at + 1])
        elif kind == _VARIABLE:
            _, at = _long_length(data, at)
            if at == 0:
                break
        elif kind == _ONE_BYTE:
            at += 1
        elif kind == _FOUR_BYTES:
            at += 4
        elif kind == _TWO_BYTES:
            raise PacketRefused("the broker uses a topic alias, though we announced that we take none", 0x94)
        else:
            raise malformed(f"property {kind} in a message")
    if at != stop:
        raise malformed("a property longer than the properties")
    return correlation, stop


def _refused_quality(packet: bytes, first: int) -> PacketRefused:
    if first & 0x06 == 0x06:
        return malformed("a message at QoS 3")
    topic = packet[2 : 2 + int.from_bytes(packet[:2])].decode(errors="replace")[:100]
    return PacketRefused(
        f"the broker sends {topic!r} at QoS 2, which Forebay never subscribes to: an older session of this client id "
        "holds that subscription; give the source another client_id, or let the broker forget the session",
        0x83,
    )
