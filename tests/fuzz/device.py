"""Fuzz targets: what devices send, from bytes to samples of a series."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from devices.codecs.delimited import DelimitedCodec, DelimitedOptions
from devices.codecs.framing import FRAMINGS
from devices.codecs.json import JsonCodec, JsonOptions
from devices.drivers import Delivery, Marks, SourceStatus
from devices.drivers.templates import TopicTemplate
from devices.errors import DecodeError
from devices.model import REJECT_REASONS, Floats, Int64s, Rows, SeriesSpec
from devices.profiles import load_profile
from edge.identity import ACCEPTED, NEVER_NS, Admission
from edge.intake import Intake, IntakeLimits
from tests.fuzz.documented import expect_documented
from tests.fuzz.pieces import cuttings

_MAX_NS = 2**63 - 1
_LINE_BYTES = 40
"""So short that inputs of a few hundred bytes have lines beyond it."""


# ---------------------------------------------------------------- codecs

_JSON = [
    JsonCodec(msgspec.convert(options, JsonOptions))
    for options in (
        {},
        {"value": "value", "time": "timestamp"},
        {"value": "value"},
        {"value": "d.v", "channel": "id", "time": "t"},
        {"records": "list", "time": "at", "time_format": "iso8601"},
        {"records": "list", "channel": "n", "value": "v", "time": "at", "time_format": "ms"},
        {"time": "at", "time_format": "s"},
        {"value": "v", "time": "at", "time_format": "us"},
        {"value": "v", "time": "at", "time_format": "ns"},
    )
]
_DELIMITED = [
    DelimitedCodec(msgspec.convert(options, DelimitedOptions))
    for options in (
        {"columns": ["a"]},
        {"columns": ["t", "a", "b"], "time": "t"},
        {"columns": ["t", "a", "b"], "time": "t", "delimiter": " "},
        {"columns": ["a", "", "b", "t"], "time": "t", "delimiter": ";", "decimal": ",", "time_format": "ms"},
        {"columns": ["t", "a"], "time": "t", "time_format": "iso8601"},
        {"columns": ["t", "a"], "time": "t", "time_format": "ns", "comment": ""},
        {"columns": ["t", "a"], "time": "t", "time_format": "s", "delimiter": "::"},
    )
]


def json(data: bytes) -> None:
    """The first byte chooses the options, the rest is the message. What is not UTF-8 is no JSON, wherever it lies."""
    if _decode(_JSON, data):
        data[1:].decode()


def delimited(data: bytes) -> None:
    """The first byte chooses the options, the rest is the line."""
    _decode(_DELIMITED, data)


def _decode(codecs: list[Any], data: bytes) -> bool:
    """Rows of one length that the edge can take, or DecodeError and nothing appended; the same each time.

    Returns whether the message was taken.
    """
    codec, message = codecs[data[0] % len(codecs) if data else 0], data[1:]
    rows, again = Rows(["kept"], [1], [0.5]), Rows()
    try:
        codec.decode(message, rows)
    except DecodeError as refused:
        expect_documented(refused, REJECT_REASONS)
        assert (rows.channel, rows.time_ns, rows.value) == (["kept"], [1], [0.5]), "half a message was appended"
        return False
    codec.decode(message, again)
    assert repr(rows) == repr(Rows(["kept", *again.channel], [1, *again.time_ns], [0.5, *again.value]))
    assert len(again.channel) == len(again.time_ns) == len(again.value)
    for channel, time_ns, value in zip(again.channel, again.time_ns, again.value, strict=True):
        assert type(channel) is str
        assert type(time_ns) is int
        assert 0 <= time_ns <= _MAX_NS
        assert type(value) in (float, bool, str)
        if isinstance(value, str):
            value.encode()  # half of a surrogate pair would fail later, where nobody expects it
        channel.encode()
    return True


# ---------------------------------------------------------------- framing


def framing(data: bytes) -> None:
    """The lines of a stream are those of a slow oracle, however it is cut; a line beyond the limit is counted."""
    for after_end, make in ((False, FRAMINGS["line"]), (True, FRAMINGS["line_after_end"])):
        expected = _lines(data[1:], after_end)
        for pieces in cuttings(data):
            framer = make(_LINE_BYTES)
            found = [line for piece in pieces for line in framer.feed(piece)]
            assert (found, framer.oversize) == expected
            framer.reset()
            assert framer.feed(b"\nwhole\n") == [b"whole"], "something was left of the stream before"


def _lines(stream: bytes, after_end: bool) -> tuple[list[bytes], int]:
    """All at once: the whole lines, and how many were too long (the last one, which has no end, too)."""
    *ended, rest = stream.split(b"\n")
    if after_end and ended:
        del ended[0]
    elif after_end:
        rest = b""
    lines = [line.removesuffix(b"\r") for line in ended if len(line) <= _LINE_BYTES]
    return [line for line in lines if line], sum(len(line) > _LINE_BYTES for line in (*ended, rest))


# ---------------------------------------------------------------- intake


class _Driver:
    """A driver without I/O: topics with a device and a channel."""

    Options = dict
    stream = False

    def __init__(self, device: str, options: Any, deliver: Any, now_ns: Any, *, probe: bool = False) -> None:
        self.status = SourceStatus()
        self.origin: Callable[[str], tuple[str, str] | None] = TopicTemplate("plant/{device}/{channel}").match

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class _World:
    """One intake that goes on from input to input, as the edge's does from message to message."""

    NOW_NS = 1_780_000_000_000_000_000

    def __init__(self) -> None:
        self.specs: list[SeriesSpec] = []
        self.admission = Admission(_nothing_before)
        self.intake = Intake(IntakeLimits(message_bytes=4096, max_routes=64), lambda: self.NOW_NS, self.resolve)
        for name, codec in (("json-value", _JSON[1]), ("json-object", _JSON[0]), ("acme-p100", _JSON[0])):
            self.intake.add(name, _Driver, {}, codec, load_profile(name))

    def resolve(self, spec: SeriesSpec) -> int | str:
        for index, known in enumerate(self.specs):
            if known.key == spec.key:
                return index
        if len(self.specs) == 32:
            return "series_limit"
        self.specs.append(spec)
        self.admission.add_series(len(self.specs) - 1, spec)
        return len(self.specs) - 1


def _nothing_before(series: int, times_ns: Int64s) -> tuple[Int64s, Floats]:
    assert (np.diff(times_ns) >= 0).all()
    return np.empty(0, np.int64), np.empty(0)


_world: list[_World] = []


def intake(data: bytes) -> None:
    """Messages with their topics: never an error, everything counted, every admitted time its series' own.

    `n | topic, n bytes | payload` again and again, payloads ended by a byte 0; the first byte chooses the source.
    """
    if not _world:
        _world.append(_World())
    world = _world[0]
    source = list(world.intake.sources.values())[data[0] % 3 if data else 0]
    topics, payloads = _messages(data[1:])
    marks = Marks([0] * len(payloads), [False] * len(payloads), 1, False)
    piece = source.decode(Delivery(payloads, topics, world.NOW_NS, None, marks))
    assert len(piece.series) == len(piece.time_ns) == len(piece.value)
    assert np.isfinite(piece.value).all()
    assert all(reason in REJECT_REASONS and count > 0 for (_, reason), count in piece.rejects.items())
    world.intake._pieces.append(piece)
    world.intake.waiting_samples += len(piece.series)
    world.intake.waiting_bytes += piece.size_bytes
    drained = world.intake.drain(1 << 20)
    last = world.admission.last_ns.copy()
    verdict = world.admission.admit(drained.batch, drained.arrived_ns, world.NOW_NS)
    times, series = drained.batch.time_ns[verdict == ACCEPTED], drained.batch.series[verdict == ACCEPTED]
    assert len(set(zip(series.tolist(), times.tolist(), strict=True))) == len(times), "one time was given twice"
    assert (world.admission.last_ns >= last).all()
    assert (world.admission.last_ns > NEVER_NS)[series].all()


def _messages(data: bytes) -> tuple[list[str], list[bytes]]:
    topics, payloads = [], []
    for part in data.split(b"\0")[:8]:
        length = part[0] if part else 0
        topics.append(part[1 : 1 + length].decode("utf-8", "replace"))
        payloads.append(part[1 + length :])
    return topics, payloads


# ---------------------------------------------------------------- seeds

_HARD_JSON = (
    b'{"value": 23.5, "timestamp": 1731405912123}',
    b'{"value": NaN}',
    b'{"value": 1e400}',
    b'{"value": ' + b"9" * 4300 + b"}",
    b'{"timestamp": ' + b"9" * 4300 + b', "value": 1}',
    b'{"at": "9999-12-31T23:59:59Z", "v": 1, "list": [{"v": 1, "n": 7}]}',
    b'{"at": "0001-01-01T00:00:00+14:00", "v": 1}',
    b'{"at": -1e300, "v": true}',
    b'{"at": 9223372036854775807, "v": "on"}',
    b'{"value": "\\ud83d\\ude00"}',
    b'{"value": "\\ud800"}',
    b'{"a": {"a": {"a": [1, [2, [3]]]}}, "": 1, "b.c": null}',
    b"[" * 2000,
    b'{"a":' * 2000,
    b"[1,2]",
    b"\xff\xfe",
    b'{"value": 1, "skipped\xff": 2}',
    b"",
    b"\0",
)


def json_seeds() -> Iterator[bytes]:
    for chosen in range(len(_JSON)):
        for example in JsonCodec.examples:
            yield bytes([chosen]) + example.message
        for message in _HARD_JSON:
            yield bytes([chosen]) + message


def delimited_seeds() -> Iterator[bytes]:
    lines = [example.message for example in DelimitedCodec.examples]
    lines += [
        b"# comment",
        b"nan",
        b"-inf",
        b"1_0",
        b"1731405912,1,2",
        b"1e308;,;1,5;1731405912123",
        b"\xff",
        b"",
        b"\0",
    ]
    lines += [b"9" * 4300 + b",1", b"9" * 5000 + b",1,2", b"\xd9\xa1\xd9\xa2,1", b"2024-11-12T10:05:12Z,1", b"1::2"]
    for chosen in range(len(_DELIMITED)):
        for line in lines:
            yield bytes([chosen]) + line


def stream_seeds() -> Iterator[bytes]:
    yield b"\x03temp=1\r\ntemp=2\n\ntemp=3"
    yield b"\x07" + b"x" * _LINE_BYTES + b"\n" + b"y" * (_LINE_BYTES + 1) + b"\r\n" + b"z" * 200
    yield b"\x20\n\r\n\r\r\n\n"


def intake_seeds() -> Iterator[bytes]:
    def message(topic: bytes, payload: bytes) -> bytes:
        return bytes([len(topic)]) + topic + payload

    for chosen in range(3):
        for payload in (
            *_HARD_JSON,
            b'{"bearing_temperature": 61.2, "running": true, "mode": "auto", "time": 1731405912123}',
        ):
            same = message(b"plant/fan/speed", payload.replace(b"\0", b""))
            yield bytes([chosen]) + b"\0".join((same, message(b"plant/fan/speed", b"1480"), same))
        yield bytes([chosen]) + b"\0".join((message(b"other", b"1"), message(b"plant//x", b"1"), message(b"", b"")))
        yield bytes([chosen]) + message(b"plant/" + "温度\u200b".encode() + b"/a b", b"7")
