"""One stream, cut in several ways: what comes out must be the same."""

from __future__ import annotations

from collections.abc import Iterator

BYTE_BY_BYTE = 24
"""Longer streams are not cut into single bytes, which would take most of the time."""


def cuttings(data: bytes) -> Iterator[list[bytes]]:
    """Whole; cut where the input's first byte says; and, if it is short, byte by byte. The stream is the rest."""
    step, stream = data[0] if data else 0, data[1:]
    yield [stream]
    yield _cut(stream, step)
    if len(stream) <= BYTE_BY_BYTE:
        yield [stream[i : i + 1] for i in range(len(stream))]


def _cut(stream: bytes, step: int) -> list[bytes]:
    """Pieces of 1 to 31 bytes, now and then none, that follow from `step` alone."""
    pieces, at = [], 0
    while at < len(stream):
        step = (step * 73 + 41) & 0xFF
        size = step & 31
        pieces.append(stream[at : at + size])
        at += size
    return pieces
