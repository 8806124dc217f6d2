"""Fuzz targets: the MQTT receive path, fed whole and in pieces. The broker may be anything that answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from devices.wire.client import BulkClient
from devices.wire.receive import CUT_SHORT_BYTES, Inbound, PacketCutter, PacketRefused
from tests.fuzz.pieces import cuttings

_LIMIT = 200
"""Bytes of a packet: so low that longer ones are found often."""
_ACCEPTED = {True: b"\x20\x03\x00\x00\x00", False: b"\x20\x02\x00\x00"}
"""CONNACK, by whether it is MQTT 5."""
_HELD_BYTES = 5 + 2 + 65_535 + 2 + CUT_SHORT_BYTES
"""Of a message that is too long: what stands before its payload, and the payload's beginning."""

Row = tuple[Any, ...]


def packets(data: bytes) -> None:
    """Messages and other packets of a stream, and why it ends, are the same however it is cut.

    The first byte of the input chooses the version, and with it the pieces (see `pieces.cuttings`).
    """
    version5 = bool(data[:1] < b"\x80")
    outcomes = [_cut(pieces, version5) for pieces in cuttings(data)]
    assert all(outcome == outcomes[0] for outcome in outcomes), "cut otherwise, it is read otherwise"


def _cut(pieces: list[bytes], version5: bool) -> tuple[list[Row], list[tuple[int, bytes]], int]:
    cutter = PacketCutter(version5=version5, max_packet_bytes=_LIMIT)
    inbound, others = Inbound(1, False), []
    try:
        for piece in pieces:
            cutter.feed(piece)
            while (other := cutter.cut(inbound)) is not None:
                others.append(other)
            assert len(cutter._pending) <= _HELD_BYTES, "more than one packet is held back"
    except PacketRefused as refused:
        return _rows(inbound), others, refused.code
    return _rows(inbound), others, 0


def _rows(inbound: Inbound) -> list[Row]:
    columns = (inbound.topics, inbound.payloads, inbound.packet_ids, inbound.dups, inbound.correlations)
    rows = list(zip(*columns, strict=True))
    assert all(
        len(inbound.payloads[place]) < size for place, size in inbound.cut_short.items() if size > CUT_SHORT_BYTES
    )
    return [(*row, inbound.cut_short.get(place)) for place, row in enumerate(rows)]


def client(data: bytes) -> None:
    """The whole client: nothing that a broker sends raises, and how it is cut changes nothing. Each message that
    was cut out is handed on once, in order, up to the end of the link.

    Of the first byte, the highest bit chooses the version, the next whether CONNACK is the input's own.
    """
    version5 = bool(data[:1] < b"\x80")
    accepted = b"" if data and data[0] & 0x40 else _ACCEPTED[version5]
    whole, cut, *_ = cuttings(data)  # `packets` has the single bytes
    outcomes = [_receive([accepted, *pieces], version5) for pieces in (whole, cut)]
    assert all(outcome == outcomes[0] for outcome in outcomes), "cut otherwise, it is read otherwise"
    rows, *_ = outcomes[0]
    cut_out, *_ = _cut([accepted, *whole], version5)
    assert rows == cut_out[: len(rows)], "messages are handed on twice, or not in order"


class _Socket:
    """A peer's bytes in pieces; whatever is sent to it is taken."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in reversed(pieces) if piece]

    def recv(self, _size: int) -> bytes:
        if not self._pieces:
            raise BlockingIOError
        return self._pieces.pop()

    @property
    def is_read(self) -> bool:
        return not self._pieces

    def send(self, data: bytes) -> int:
        return len(data)

    def setblocking(self, _flag: bool) -> None: ...

    def close(self) -> None: ...


def _receive(pieces: list[bytes], version5: bool) -> tuple[list[Row], list[str], object]:
    """What a client hands on, which events it tells, and how the link stands at the end."""
    rows: list[Row] = []
    events: list[str] = []

    def on_batch(inbound: Inbound) -> None:
        rows.extend(_rows(inbound))
        made.acknowledge([packet_id for packet_id in inbound.packet_ids if packet_id])

    made = BulkClient(
        "pump-7",
        version5=version5,
        clean_session=True,
        max_packet_bytes=_LIMIT,
        on_batch=on_batch,
        on_confirmed=lambda count: None,
    )

    def on_connect(_client: Any, _data: Any, flags: Any, reason: Any, properties: Any) -> None:
        events.append(f"connected {flags} {reason} {properties}")
        made.subscribe("plant/#", 1)
        made.publish("forebay/v1/g1/data", b"frame", 1)

    made.on_connect = on_connect
    made.on_subscribe = lambda _client, _data, mid, reasons, _properties: events.append(f"suback {mid} {reasons}")
    made.on_publish = lambda _client, _data, mid, reason, _properties: events.append(f"puback {mid} {reason}")
    made.on_disconnect = lambda _client, _data, flags, reason, _properties: events.append(f"ended {flags} {reason}")
    peer = _Socket(pieces)
    made.connect_async("127.0.0.1", 1883, 60)
    made.attach(peer)  # type: ignore[arg-type]
    while made.socket() is not None and not peer.is_read:
        made.loop_read()
        made.loop_write()
    is_open = made.socket() is not None
    failure = made.failure.code if isinstance(made.failure, PacketRefused) else made.failure
    return rows, events, (is_open, failure, made.connection)


# ---------------------------------------------------------------- seeds


def _packet(first: int, body: bytes) -> bytes:
    assert len(body) < 1 << 14
    size = bytes([len(body)]) if len(body) < 128 else bytes([len(body) & 127 | 128, len(body) >> 7])
    return bytes([first]) + size + body


def _text(text: bytes) -> bytes:
    return len(text).to_bytes(2) + text


def _stream(version5: bool) -> bytes:
    none = b"\0" if version5 else b""
    correlated = b"\x1b\x09\x00\x18" + bytes(24) if version5 else b""
    others = b"\x18\x01\x01\x02\0\0\0\x3c\x03\0\x01t\x08\0\x01r\x0b\x81\x01\x26\0\x01k\0\x01v" if version5 else b""
    return b"".join(
        (
            _packet(0x30, _text(b"plant/fan/speed") + none + b"1480"),
            _packet(0x32, _text(b"plant/fan/speed") + b"\x00\x07" + (correlated or none) + b"23.5"),
            _packet(0x3B, _text("plant/溫/é".encode()) + b"\x00\x08" + (others or none) + bytes(150)),
            _packet(0x90, b"\x00\x01" + none + b"\x01"),
            _packet(0x40, b"\x00\x02"),
            _packet(0xD0, b""),
            _packet(0x62, b"\x00\x02"),
            _packet(0xB0, b"\x00\x01" + none),
            _packet(0xE0, b"\x8e\x00" if version5 else b""),
        )
    )


def stream_seeds() -> Iterator[bytes]:
    for version in (0, 0x80):
        whole = _stream(not version)
        yield bytes([version + 5]) + whole
        yield bytes([version + 9]) + whole[: len(whole) // 2]
        yield bytes([version + 17]) + b"\x34\x09\x00\x03a/b\x00\x01\x00x"
        yield bytes([version + 33]) + b"\x30\xff\xff\xff\x7f"
        yield bytes([version + 34]) + b"\x30\x80\x80\x80\x80\x01"
        yield bytes([version + 35]) + _packet(0x32, _text(b"t") + b"\0\0" + b"x")
        yield bytes([version + 37]) + _packet(0x32, _text(b"plant/a/b") + b"\0\x09" + bytes(300)) + whole
        yield bytes([version + 38]) + _packet(0x30, _text(b"plant/a/b") + bytes(1500))[:700]
        yield bytes([version + 36]) + _packet(0x30, _text(b"\xff\xfe") + b"\0x") + whole


def client_seeds() -> Iterator[bytes]:
    yield from stream_seeds()
    connack5 = b"\x00\x00\x13\x21\x00\x14\x27\x00\x01\x00\x00\x13\x00\x1e\x22\x00\x00\x24\x01\x1f\x00\x01r"
    yield b"\x45" + _packet(0x20, connack5[:2] + bytes([len(connack5) - 3]) + connack5[3:]) + _stream(True)
    yield b"\xc5" + _packet(0x20, b"\x01\x00") + _stream(False)
    for reason in (0x80, 0x84, 0x87, 0x9F, 0x01, 0xFF):
        yield b"\x41" + _packet(0x20, bytes([0, reason, 0]))
        yield b"\xc1" + _packet(0x20, bytes([0, reason & 7]))
        yield b"\x01" + _packet(0xE0, bytes([reason, 0]))
        yield b"\x01" + _packet(0x40, bytes([0, 2, reason, 0]))
        yield b"\x01" + _packet(0x90, bytes([0, 1, 0, reason]))
    for first in range(0x10, 0x100, 0x10):
        yield b"\x02" + _packet(first, b"")
        yield b"\x82" + _packet(first, b"\0")
