"""The tap knows which messages were acknowledged, however the stream is cut, and believes no damaged one."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from simulators.chaos.tap import Tap


def packet(first: int, body: bytes) -> bytes:
    length, size = b"", len(body)
    while True:
        size, digit = size >> 7, size & 0x7F
        length += bytes([digit | (0x80 if size else 0)])
        if not size:
            return bytes([first]) + length + body


def publish(packet_id: int, topic: bytes, payload: bytes, *, dup: bool = False) -> bytes:
    head = len(topic).to_bytes(2, "big") + topic + packet_id.to_bytes(2, "big")
    properties = b"\x05\x02\x00\x00\x00\x3c"  # five bytes: message expiry interval 60 s
    return packet(0x3A if dup else 0x32, head + properties + payload)


def puback(packet_id: int, reason: bytes = b"") -> bytes:
    return packet(0x40, packet_id.to_bytes(2, "big") + reason)


messages = st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.binary(max_size=300)), min_size=1, max_size=20)


@given(messages, st.data())
def test_acknowledged_messages_are_heard_however_the_stream_is_cut(sent, data):
    heard: list[tuple[bytes, bytes]] = []
    tap = Tap(lambda topic, payload: heard.append((topic, payload)))
    connack, pingresp = packet(0x20, b"\0\0\0"), packet(0xD0, b"")
    stream = connack + pingresp.join(publish(n, *one) for n, one in enumerate(sent, 1))
    for piece in pieces(stream, data):
        tap.down(piece)
    assert heard == []
    order = data.draw(st.permutations(range(1, len(sent) + 1)))
    chosen = order[: data.draw(st.integers(0, len(sent)))]
    for piece in pieces(packet(0xC0, b"") + b"".join(map(puback, chosen)), data):
        tap.up(piece)
    assert heard == [sent[n - 1] for n in chosen]


def pieces(stream: bytes, data: st.DataObject) -> list[bytes]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    bounds = [0, *cuts, len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(bounds)]


def test_an_id_that_is_given_again_stands_for_the_later_message():
    heard = []
    tap = Tap(lambda *message: heard.append(message))
    tap.down(publish(7, b"t", b"first") + publish(7, b"t", b"second", dup=True))
    tap.up(puback(7) + puback(7))
    assert heard == [(b"t", b"second")]


def test_a_refusal_is_no_acknowledgement():
    heard = []
    tap = Tap(lambda *message: heard.append(message))
    tap.down(publish(7, b"t", b"payload"))
    tap.up(puback(7, b"\x97\x00"))
    assert heard == []


@given(st.binary(max_size=200))
def test_a_damaged_stream_is_survived(rubbish):
    tap = Tap(lambda *message: None)
    tap.down(publish(1, b"t", b"x") + rubbish)
    tap.up(rubbish + puback(1))
