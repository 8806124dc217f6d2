"""What every codec must keep to, Forebay's own and those of other packages (see devices/codecs/__init__.py)."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.codecs import Codec, Example
from devices.codecs.framing import FRAMINGS
from devices.errors import DecodeError
from devices.model import REJECT_REASONS, Rows
from devices.profiles import installed, load
from devices.tables import convert

EXAMPLES = [
    pytest.param(name, example, id=f"{name}-{number}")
    for name in installed("codecs")
    for number, example in enumerate(load("codecs", name).examples)
]
WHOLE_BY_THEMSELVES = [
    pytest.param(*param.values, id=param.id)
    for param in EXAMPLES
    if load("codecs", param.values[0]).framing != "line" or param.values[1].message.startswith((b"{", b"["))
]
"""A bare `12.5` whose first digit is missing is a number too: such messages need a framing that knows."""
LONG = 64 * 1024
"""Bytes of the longest message that an intake passes on by default."""


def codec_of(name: str, options: dict[str, Any]) -> Codec:
    plugin = load("codecs", name)
    codec: Codec = plugin(convert(options, plugin.Options, name, AssertionError))  # type: ignore[type-var, arg-type]
    return codec


def decoded(codec: Codec, message: bytes) -> list[tuple[str, int, float | bool | str]] | str:
    """The rows, or the reason of the refusal; asserts what a codec promises for any bytes at all."""
    rows = Rows(["before"], [1], [2.0])
    refused: DecodeError | None = None
    try:
        codec.decode(message, rows)
    except DecodeError as error:
        refused = error
    if refused is not None:
        assert refused.reason in REJECT_REASONS
        assert 0 < len(str(refused)) < 1_000
        assert len(rows) == 1, "a refused message has appended rows"
    assert len(rows.channel) == len(rows.time_ns) == len(rows.value)
    assert (rows.channel[0], rows.time_ns[0], rows.value[0]) == ("before", 1, 2.0)
    for channel, time_ns, value in zip(rows.channel[1:], rows.time_ns[1:], rows.value[1:], strict=True):
        assert type(channel) is str
        assert type(time_ns) is int
        assert 0 <= time_ns < 2**63
        assert type(value) in (float, bool, str)
    if refused is not None:
        return refused.reason
    return list(zip(rows.channel[1:], rows.time_ns[1:], rows.value[1:], strict=True))


@pytest.mark.parametrize("name", installed("codecs"))
def test_a_codec_declares_options_framing_and_examples(name: str) -> None:
    plugin = load("codecs", name)
    assert issubclass(plugin.Options, msgspec.Struct)
    assert plugin.Options.__struct_config__.forbid_unknown_fields
    assert plugin.Options.__struct_config__.frozen
    assert plugin.framing in FRAMINGS
    assert plugin.examples
    assert all(isinstance(example, Example) and example.rows for example in plugin.examples)


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_an_example_is_read_as_it_says(name: str, example: Example) -> None:
    rows = decoded(codec_of(name, example.options), example.message)
    assert rows == example.rows
    assert [type(row[2]) for row in rows] == [type(row[2]) for row in example.rows]


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_a_codec_keeps_no_state_between_messages(name: str, example: Example) -> None:
    codec = codec_of(name, example.options)
    for spoiled in (b"", b"\xff", example.message[:-1], example.message * 2):
        decoded(codec, spoiled)
        assert decoded(codec, example.message) == example.rows


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_a_stream_is_read_the_same_whole_and_byte_by_byte(name: str, example: Example) -> None:
    codec = codec_of(name, example.options)
    stream = b"\r\n" + b"\r\n".join([example.message] * 3) + b"\r\n" + example.message
    for pieces in ([stream], [bytes([byte]) for byte in stream]):
        framer = FRAMINGS[codec.framing](LONG)
        messages = [message for piece in pieces for message in framer.feed(piece)]
        assert [decoded(codec, message) for message in messages] == [example.rows] * 3


@pytest.mark.parametrize(("name", "example"), WHOLE_BY_THEMSELVES)
def test_the_rest_of_a_line_is_never_a_sample(name: str, example: Example) -> None:
    codec = codec_of(name, example.options)
    for start in range(1, len(example.message)):
        framer = FRAMINGS[codec.framing](LONG)
        first = framer.feed(example.message[start:] + b"\n" + example.message + b"\n")
        assert [rows for message in first if isinstance(rows := decoded(codec, message), list)] == [example.rows]


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
@given(data=st.data())
@settings(max_examples=100)
def test_damaged_messages_are_read_or_refused_whole(name: str, example: Example, data: st.DataObject) -> None:
    codec = codec_of(name, example.options)
    message = bytearray(example.message)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(message)))
        end = data.draw(st.integers(place, min(place + 4, len(message))))
        message[place:end] = data.draw(st.binary(max_size=4))
    decoded(codec, bytes(message))


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
@given(message=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@settings(max_examples=100)
def test_any_bytes_are_read_or_refused_whole(name: str, example: Example, message: bytes) -> None:
    decoded(codec_of(name, example.options), message)


HOSTILE = {
    "nothing": b"",
    "zeroes": b"\0" * LONG,
    "a string without end": b'"' + b"a" * LONG,
    "arrays within arrays": b"[" * LONG,
    "objects within objects": b'{"a":' * (LONG // 5),
    "many small values": b"[" + b"0," * (LONG // 2) + b"0]",
    "many small objects": b"[" + b'{"a":0},' * (LONG // 8) + b'{"a":0}]',
    "a long key above many values": b'{"' + b"k" * (LONG // 2) + b'":[' + b"0," * (LONG // 4) + b"0]}",
    "a number of many digits": b"9" * LONG,
    "a number below a key": b'{"value":' + b"9" * LONG + b"}",
    "an exponent of many digits": b"1e" + b"9" * LONG,
    "separators alone": b",;\t " * (LONG // 4),
    "not UTF-8": b"\xc3\x28" * (LONG // 2),
    "a byte order mark": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_hostile_bytes_cost_little_memory(name: str, example: Example, hostile: bytes) -> None:
    codec = codec_of(name, example.options)
    decoded(codec, hostile)
    tracemalloc.start()
    try:
        decoded(codec, hostile)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 60 * LONG
