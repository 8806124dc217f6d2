from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.codecs.framing import FRAMINGS, Framer

streams = st.lists(st.sampled_from([b"a", b"bc", b"\r", b"\n", b"\r\n", b"\x00", b"long line"])).map(b"".join)


def pieces_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(stream) + 1) for cut in cuts})
    return [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]


def slow_lines(stream: bytes, max_bytes: int, *, after_end: bool) -> tuple[list[bytes], int]:
    """The oracle: (lines, oversize) of the whole stream at once."""
    *whole, rest = stream.split(b"\n")
    if after_end:
        skipped, whole = whole[:1], whole[1:]
        rest = rest if skipped else b""
    oversize = sum(len(line) > max_bytes for line in [*whole, rest])
    lines = [line.removesuffix(b"\r") for line in whole if len(line) <= max_bytes]
    return [line for line in lines if line], oversize


@given(streams, st.lists(st.integers(0, 10_000), max_size=12), st.integers(1, 12), st.booleans())
def test_lines_do_not_depend_on_how_the_stream_is_cut(
    stream: bytes, cuts: list[int], max_bytes: int, after_end: bool
) -> None:
    framer = Framer(max_bytes, after_end=after_end)
    lines = [line for piece in pieces_of(stream, cuts) for line in framer.feed(piece)]
    assert (lines, framer.oversize) == slow_lines(stream, max_bytes, after_end=after_end)


@given(streams, st.integers(1, 12), st.booleans())
def test_byte_by_byte_gives_the_same_lines(stream: bytes, max_bytes: int, after_end: bool) -> None:
    framer = Framer(max_bytes, after_end=after_end)
    lines = [line for byte in stream for line in framer.feed(bytes([byte]))]
    assert (lines, framer.oversize) == slow_lines(stream, max_bytes, after_end=after_end)


def test_half_a_line_waits_for_its_end() -> None:
    framer = Framer(100)
    assert framer.feed(b"temp=1") == []
    assert framer.feed(b"2.5\r") == []
    assert framer.feed(b"\nhum") == [b"temp=12.5"]


@pytest.mark.parametrize("framing", sorted(FRAMINGS))
def test_two_halves_of_different_lines_never_make_one(framing: str) -> None:
    framer = FRAMINGS[framing](100)
    framer.feed(b"\n1,2\n12")
    framer.reset()
    assert b"125,7" not in framer.feed(b"5,7\n")


def test_after_an_interruption_the_rest_of_a_line_is_no_line() -> None:
    framer = FRAMINGS["line_after_end"](100)
    assert framer.feed(b"2.5,40\n12.5,40\n12.") == [b"12.5,40"]
    framer.reset()
    assert framer.feed(b"7,41\n12.7,41\n") == [b"12.7,41"]


def test_a_device_that_babbles_is_bounded_and_counted_once() -> None:
    framer = Framer(64)
    for _ in range(1_000):
        assert framer.feed(b"x" * 1_000) == []
        assert len(framer._rest) <= 64
    assert framer.oversize == 1
    assert framer.feed(b"\nok\n") == [b"ok"]


def test_a_line_of_just_the_limit_is_kept() -> None:
    framer = Framer(4)
    assert framer.feed(b"1234\n12345\n123\r\n") == [b"1234", b"123"]
    assert framer.oversize == 1


@pytest.mark.parametrize(
    ("stream", "lines"),
    [
        (b"2.5\n13.5\n", [b"13.5"]),
        (b"\n12.5\n", [b"12.5"]),
        (b'alue": 1}\n12.5\n', [b"12.5"]),
        (b' {"value": 1}\r\n12.5\n', [b' {"value": 1}', b"12.5"]),
        (b'[{"value": 1}]\n12.5\n', [b'[{"value": 1}]', b"12.5"]),
    ],
)
def test_a_first_line_that_may_be_the_end_of_a_number_is_no_json(stream: bytes, lines: list[bytes]) -> None:
    framer = FRAMINGS["json_line"](100)
    assert framer.feed(stream) == lines
    framer.reset()
    assert [line for byte in stream for line in framer.feed(bytes([byte]))] == lines
