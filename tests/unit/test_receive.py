"""The bulk receive path against an encoder of our own and paho's decoder, in any pieces and with hostile bytes."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt import _packet
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.exception import MalformedPacket

from devices.wire.receive import (
    CONTROL_MAX_BYTES,
    CUT_SHORT_BYTES,
    TOPICS_CACHED,
    Inbound,
    PacketCutter,
    PacketRefused,
)

LIMIT = 1 << 20


def length(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 127 | (128 if value > 127 else 0))
        value >>= 7
        if not value:
            return bytes(out)


def text(value: bytes) -> bytes:
    return struct.pack("!H", len(value)) + value


@dataclass(frozen=True)
class Message:
    topic: str
    payload: bytes
    packet_id: int = 0
    dup: bool = False
    retain: bool = False
    correlation: bytes | None = None
    others: bytes = b""

    def packet(self, *, version5: bool) -> bytes:
        first = 0x30 | self.dup << 3 | (0x02 if self.packet_id else 0) | self.retain
        body = text(self.topic.encode())
        if self.packet_id:
            body += struct.pack("!H", self.packet_id)
        if version5:
            properties = self.others
            if self.correlation is not None:
                properties += b"\x09" + text(self.correlation)
            body += length(len(properties)) + properties
        body += self.payload
        return bytes([first]) + length(len(body)) + body

    def row(self, *, version5: bool) -> tuple[object, ...]:
        correlation = self.correlation if version5 else None
        return self.topic, self.payload, self.packet_id, self.dup and bool(self.packet_id), correlation


def rows(inbound: Inbound) -> list[tuple[object, ...]]:
    columns = (inbound.topics, inbound.payloads, inbound.packet_ids, inbound.dups, inbound.correlations)
    return list(zip(*columns, strict=True))


def cut_all(
    pieces: Iterable[bytes], *, version5: bool = True, limit: int = LIMIT
) -> tuple[Inbound, list[tuple[int, bytes]]]:
    cutter = PacketCutter(version5=version5, max_packet_bytes=limit)
    inbound, others = Inbound(1, False), []
    for piece in pieces:
        cutter.feed(piece)
        while (other := cutter.cut(inbound)) is not None:
            others.append(other)
    return inbound, others


topics = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="#+\0"), min_size=1, max_size=40)
other_properties = st.lists(
    st.sampled_from(
        [
            b"\x01\x01",
            b"\x02\x00\x00\x00\x3c",
            b"\x03" + text(b"application/json"),
            b"\x08" + text(b"answer/here"),
            b"\x0b\x81\x01",
            b"\x26" + text(b"key") + text(b"value"),
        ]
    ),
    max_size=4,
    unique=True,
).map(b"".join)
messages = st.builds(
    Message,
    topics,
    st.one_of(st.binary(max_size=60), st.integers(100, 20_000).map(bytes)),
    st.integers(0, 65_535),
    st.booleans(),
    st.booleans(),
    st.none() | st.binary(max_size=200),
    other_properties,
).filter(lambda m: not (m.dup and not m.packet_id))
controls = st.tuples(st.sampled_from([0x40, 0xD0, 0x90, 0x20, 0xE0]), st.binary(max_size=300))
packets = st.lists(st.one_of(messages, controls), max_size=12)


@given(packets, st.booleans(), st.data())
def test_packets_in_any_pieces_come_out_whole_and_in_order(
    sent: list[Message | tuple[int, bytes]], version5: bool, data: st.DataObject
) -> None:
    stream = b"".join(
        p.packet(version5=version5) if isinstance(p, Message) else bytes([p[0]]) + length(len(p[1])) + p[1]
        for p in sent
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    inbound, others = cut_all(pieces, version5=version5)
    assert rows(inbound) == [p.row(version5=version5) for p in sent if isinstance(p, Message)]
    assert others == [p for p in sent if not isinstance(p, Message)]


@given(st.lists(messages, max_size=4))
def test_byte_by_byte_gives_what_one_read_gives(sent: list[Message]) -> None:
    stream = b"".join(m.packet(version5=True) for m in sent)[:30_000]
    whole, _ = cut_all([stream])
    single, _ = cut_all(stream[i : i + 1] for i in range(len(stream)))
    assert rows(single) == rows(whole)


@given(messages, st.integers(0, 40_000))
def test_a_truncated_packet_is_no_message(message: Message, cut: int) -> None:
    packet = message.packet(version5=True)
    inbound, others = cut_all([packet[: cut % len(packet)]])
    assert rows(inbound) == []
    assert others == []


@given(messages, st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=4), st.booleans())
def test_what_is_accepted_from_a_damaged_packet_is_what_paho_reads(
    message: Message, damage: list[tuple[int, int]], version5: bool
) -> None:
    packet = bytearray(message.packet(version5=version5))
    for at, byte in damage:
        packet[1 + at % (len(packet) - 1)] = byte  # its type stays
    try:
        inbound, _ = cut_all([bytes(packet)], version5=version5)
    except PacketRefused:
        return
    if not len(inbound):
        return
    # What follows a packet that became shorter may be packets again: the first is compared.
    size, at = 0, 1
    while True:
        size |= (packet[at] & 127) << 7 * (at - 1)
        at += 1
        if packet[at - 1] < 128:
            break
    protocol = MQTTProtocolVersion.MQTTv5 if version5 else MQTTProtocolVersion.MQTTv311
    try:
        expected = _packet.decode_publish(packet[0], bytes(packet[at : at + size]), protocol)
    except MalformedPacket:
        # paho also refuses properties for their values (a Payload Format Indicator of 7), which we skip.
        return
    topic, payload, packet_id, dup, correlation = rows(inbound)[0]
    assert (topic, payload, packet_id, dup) == (expected.topic.decode(), expected.payload, expected.mid, expected.dup)
    assert correlation == getattr(expected.properties, "CorrelationData", None)


@given(st.lists(st.binary(max_size=200), max_size=5), st.booleans())
def test_noise_is_either_cut_or_refused_and_never_another_error(pieces: list[bytes], version5: bool) -> None:
    try:
        inbound, others = cut_all(pieces, version5=version5, limit=4096)
    except PacketRefused:
        return
    total = sum(map(len, inbound.payloads)) + sum(len(body) for _, body in others)
    assert total <= sum(map(len, pieces))


@given(st.binary(max_size=60), st.booleans())
def test_noise_inside_a_message_is_read_within_its_packet_or_refused(body: bytes, qos1: bool) -> None:
    follower = Message("plant/next", b"42", packet_id=7)
    first = bytes([0x32 if qos1 else 0x30]) + length(len(body)) + body
    try:
        inbound, _ = cut_all([first + follower.packet(version5=True)])
    except PacketRefused:
        return
    assert rows(inbound)[1:] == [follower.row(version5=True)]
    assert inbound.payloads[0] == body[len(body) - len(inbound.payloads[0]) :]


@pytest.mark.parametrize("claimed", [LIMIT, 268_435_455])
def test_a_claimed_length_above_the_limit_is_refused_before_its_bytes_are_waited_for(claimed: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PacketRefused, match="max_packet_bytes = 1048576") as refused:
            cut_all([b"\x32" + length(claimed)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.code == 0x95
    assert peak < 100_000


def test_a_packet_of_exactly_the_limit_is_taken() -> None:
    message = Message("t", bytes(2000), packet_id=1)
    packet = message.packet(version5=True)
    inbound, _ = cut_all([packet], limit=len(packet))
    assert rows(inbound) == [message.row(version5=True)]
    with pytest.raises(PacketRefused):
        cut_all([packet], limit=len(packet) - 1)


def test_a_large_packet_in_small_pieces_is_held_once() -> None:
    message = Message("t", bytes(900_000), packet_id=1)
    packet = message.packet(version5=True)
    tracemalloc.start()
    try:
        inbound, _ = cut_all(packet[i : i + 500] for i in range(0, len(packet), 500))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rows(inbound) == [message.row(version5=True)]
    assert peak < 4 * len(packet)


def test_messages_before_a_refused_packet_are_kept() -> None:
    good = Message("t", b"1", packet_id=5)
    cutter = PacketCutter(version5=True, max_packet_bytes=LIMIT)
    inbound = Inbound(1, False)
    cutter.feed(good.packet(version5=True) + b"\x36\x02\x00\x00")
    with pytest.raises(PacketRefused, match="QoS 3"):
        cutter.cut(inbound)
    assert rows(inbound) == [good.row(version5=True)]


@pytest.mark.parametrize(
    ("packet", "says", "code"),
    [
        (b"\x34\x09\x00\x03a/b\x00\x01\x00x", "'a/b' at QoS 2", 0x83),
        (b"\x32\x06\x00\x01a\x00\x00\x00", "packet id 0", 0x81),
        (b"\x30\x04\x00\x00\x00x", "without a topic", 0x94),
        (b"\x30\x07\x00\x01a\x03\x23\x00\x01", "topic alias", 0x94),
        (b"\x30\x06\x00\x02\xff\xfe\x00x", "not UTF-8", 0x81),
        (b"\x30\x04\x00\x09a\x00" + bytes(9), "longer than", 0x81),
        (b"\x30\x05\x00\x01a\x05\x01", "properties longer", 0x81),
        (b"\x30\x0a\x00\x01a\x06\x09\x00\x00\x09\x00\x00", "twice", 0x81),
        (b"\x30\x06\x00\x01a\x02\x7f\x00", "property 127", 0x81),
        (b"\x30\x07\x00\x01a\x03\x09\x00\x09", "longer than the properties", 0x81),
        (b"\x30\x80\x80\x80\x80\x01", "four bytes", 0x81),
        (b"\x40" + length(CONTROL_MAX_BYTES + 1), "control packet", 0x81),
    ],
)
def test_each_broken_packet_has_a_sentence_and_a_reason(packet: bytes, says: str, code: int) -> None:
    with pytest.raises(PacketRefused, match=says) as refused:
        cut_all([packet])
    assert refused.value.code == code


def test_any_number_of_topics_leaves_the_cache_bounded() -> None:
    cutter = PacketCutter(version5=True, max_packet_bytes=LIMIT)
    names = [f"plant/device-{n}/temperature" for n in range(3 * TOPICS_CACHED)]
    seen = []
    for name in names:
        inbound = Inbound(1, False)
        cutter.feed(Message(name, b"1").packet(version5=True))
        cutter.cut(inbound)
        seen += inbound.topics
    assert seen == names
    assert len(cutter._topics) <= TOPICS_CACHED


def test_a_repeated_topic_is_one_string() -> None:
    inbound, _ = cut_all([Message("plant/a", b"1").packet(version5=True)] * 2)
    assert inbound.topics[0] is inbound.topics[1]


def test_a_new_connection_begins_with_nothing_of_the_last() -> None:
    cutter = PacketCutter(version5=True, max_packet_bytes=LIMIT)
    packet = Message("t", b"payload", packet_id=3).packet(version5=True)
    cutter.feed(packet[:6])
    cutter.cut(Inbound(1, False))
    cutter.reset()
    cutter.feed(packet)
    inbound = Inbound(2, False)
    assert cutter.cut(inbound) is None
    assert inbound.payloads == [b"payload"]


@pytest.mark.parametrize("qos1", [True, False])
def test_a_message_too_long_for_us_is_passed_over_where_its_broker_cannot_be_told(qos1: bool) -> None:
    """Refused, it would come again with every connection, and hold up all others."""
    long = Message("plant/a", bytes(range(256)) * 40_000, packet_id=7 if qos1 else 0)
    good = Message("plant/b", b"23.5", packet_id=8)
    stream = long.packet(version5=False) + good.packet(version5=False)
    for piece_bytes in (len(stream), 70_000, 997):
        cutter, inbound = PacketCutter(version5=False, max_packet_bytes=LIMIT), Inbound(1, False)
        for at in range(0, len(stream), piece_bytes):
            cutter.feed(stream[at : at + piece_bytes])
            assert cutter.cut(inbound) is None
            assert len(cutter._pending) < 70_000
        assert inbound.cut_short == {0: len(long.payload)}
        assert inbound.payloads == [long.payload[:CUT_SHORT_BYTES], b"23.5"]
        assert inbound.packet_ids == [long.packet_id, 8]
        assert inbound.topics == ["plant/a", "plant/b"]


def test_what_was_passed_over_is_forgotten_with_its_connection() -> None:
    cutter = PacketCutter(version5=False, max_packet_bytes=LIMIT)
    cutter.feed(Message("t", bytes(2 * LIMIT), packet_id=1).packet(version5=False)[:2000])
    cutter.cut(Inbound(1, False))
    cutter.reset()
    inbound = Inbound(2, False)
    cutter.feed(Message("t", b"1", packet_id=1).packet(version5=False))
    cutter.cut(inbound)
    assert inbound.payloads == [b"1"]


@pytest.mark.parametrize("version5", [True, False])
def test_what_the_broker_had_kept_is_marked_and_nothing_else(version5: bool) -> None:
    packets = [Message("t", b"x", packet_id, retain=retain) for packet_id, retain in ((0, True), (1, False), (2, True))]
    stream = b"".join(packet.packet(version5=version5) for packet in packets)
    for pieces in ([stream], [bytes([byte]) for byte in stream]):
        inbound, _ = cut_all(pieces, version5=version5)
        assert inbound.retained == [0, 2]
