"""Fresh inputs for a few seconds in `./task test`, without coverage: one of the seeds, damaged a few times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

_EDGES = (0x00, 0x01, 0x0A, 0x20, 0x22, 0x2D, 0x39, 0x5B, 0x5C, 0x7B, 0x7F, 0x80, 0x81, 0x88, 0xFE, 0xFF)
"""Bytes that mean something to one of the formats: ends, escapes, signs, constant columns."""


def mutations(seeds: list[bytes], count: int, max_bytes: int, rand: Random) -> Iterator[bytes]:
    """`count` inputs, each a seed after one to eight changes."""
    for _ in range(count):
        data = bytearray(rand.choice(seeds))
        for _ in range(rand.randint(1, 8)):
            rand.choice(_CHANGES)(data, seeds, rand)
        yield bytes(data[:max_bytes])


def _flip(data: bytearray, _seeds: list[bytes], rand: Random) -> None:
    if data:
        data[rand.randrange(len(data))] ^= 1 << rand.randrange(8)


def _set(data: bytearray, _seeds: list[bytes], rand: Random) -> None:
    if data:
        data[rand.randrange(len(data))] = rand.choice(_EDGES)


def _insert(data: bytearray, _seeds: list[bytes], rand: Random) -> None:
    at = rand.randint(0, len(data))
    data[at:at] = rand.randbytes(rand.randint(1, 4)) if rand.random() < 0.5 else bytes([rand.choice(_EDGES)]) * 9


def _delete(data: bytearray, _seeds: list[bytes], rand: Random) -> None:
    at = rand.randint(0, len(data))
    del data[at : at + rand.randint(1, 16)]


def _truncate(data: bytearray, _seeds: list[bytes], rand: Random) -> None:
    del data[rand.randint(0, len(data)) :]


def _repeat(data: bytearray, _seeds: list[bytes], rand: Random) -> None:
    at = rand.randint(0, len(data))
    data[at:at] = data[at : at + rand.randint(1, 64)] * rand.randint(1, 4)


def _splice(data: bytearray, seeds: list[bytes], rand: Random) -> None:
    other = rand.choice(seeds)
    data[rand.randint(0, len(data)) :] = other[rand.randint(0, len(other)) :]


_CHANGES: tuple[Callable[[bytearray, list[bytes], Random], None], ...] = (
    *(_flip, _set, _set, _insert, _delete, _truncate, _repeat, _splice),
)
