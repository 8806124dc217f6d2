"""Fuzz targets: from a frame to the lines that a sink gets, and from a line to a point of the SQLite sink."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

from cloud import lines as line_protocol
from cloud.sinks.parsing import parse_key, parse_line
from cloud.validate import admit
from devices.errors import BadLines, FrameError
from devices.wire.frame import FrameLimits
from tests.fuzz.documented import expect_documented
from tests.fuzz.wire import GATEWAY, body_seeds, decoded, packed

NOW_NS = 1_780_000_000_000_000_000
DAY_NS = 86_400 * 10**9
FEW = FrameLimits(rows=64, series=16)
"""Each line is parsed here, at some 20 us."""
_INT64 = range(-(2**63), 2**63)


def lines(data: bytes) -> None:
    """What is admitted of a body becomes lines, one a row, each of which a strict parser reads back."""
    read = decoded(packed(data), FEW)
    if read is None:
        return
    try:
        admitted = admit(read, GATEWAY, now_ns=NOW_NS, max_ahead_ns=DAY_NS)
    except FrameError as refused:
        expect_documented(refused, ("future",))
        return
    assert all(0 <= one.series < len(read.series) and one.count > 0 for one in admitted.rejected)
    made = line_protocol.encode(admitted.frame, NOW_NS)
    *rows, end = made.body.decode().split("\n")
    assert end == "", "the last line does not end"
    assert len(rows) == len(made.series), f"{len(rows)} lines, and series of {len(made.series)}"
    for row, series in zip(rows, made.series.tolist(), strict=True):
        point = parse_line(row)
        measurement, tags = parse_key(point.key)
        assert tags["gateway"] == GATEWAY
        assert not row.startswith("#"), "a comment: the line would be lost"
        assert 0 <= point.time_ns <= NOW_NS + DAY_NS
        if series != line_protocol.NO_SERIES:
            of = read.series[series]
            assert tags["device"] == shown(of.device)
            assert tags["channel"] == shown(of.channel)
            assert measurement


@cache
def shown(name: str) -> str:
    """A name as a tag reads back: what line protocol cannot say is replaced, as cloud.lines describes it."""
    text = "".join(chr(0x2400 + ord(c)) if c < " " else "\u2421" if c == "\x7f" else c for c in name)
    out = list(text)
    for at in reversed(range(len(out))):
        following = out[at + 1] if at + 1 < len(out) else ""
        if out[at] == "\\" and following in ("", ",", "=", " ", "\u29f5"):
            # A run of backslashes is lost as a whole; a U+29F5 that was there before does not lose the one before it.
            if following == "\u29f5" and text[at + 1] == "\u29f5":
                continue
            out[at] = "\u29f5"
    return "".join(out)


def points(data: bytes) -> None:
    """Text is a point with values that SQLite and JSON can hold, or BadLines."""
    text = data.decode("utf-8", "replace")
    try:
        point = parse_line(text)
        measurement, tags = parse_key(point.key)
    except BadLines:
        return
    assert measurement
    assert list(tags) == sorted(tags)
    assert all(tags)
    assert all(tags.values())
    assert point.fields
    assert point.time_ns in _INT64
    for value in point.fields.values():
        if isinstance(value, float):
            assert math.isfinite(value)
        elif isinstance(value, int):
            assert value in _INT64


def line_body_seeds() -> Iterator[bytes]:
    """Bodies without the byte that chooses limits."""
    yield from dict.fromkeys(seed[1:] for seed in body_seeds())


def point_seeds() -> Iterator[bytes]:
    """Every line of every golden frame, and the escapes that ours do not need."""
    for seed in line_body_seeds():
        read = decoded(packed(seed), FrameLimits())
        assert read is not None
        made = line_protocol.encode(read, NOW_NS)
        yield from made.body.splitlines()[:4]
    yield rb'm\,n\ o,t\=a=v\,w\ x f="a \"b\\ ,=c",g=-1.5e-9,h=t,i=-9223372036854775808i  -1 '
    yield b"m f=1 " + b"9" * 19
    yield b"m f=" + b"9" * 400 + b",g=" + b"9" * 20 + b"i 1"
    yield b'm f="' + b"\\" * 101 + b'" 1'
