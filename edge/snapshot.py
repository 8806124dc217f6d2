"""The operators' state as the rows in which the store keeps it: pieces of its arrays, compressed one by one.

Compressed whole, the state of 1,000 series costs 18 MB of RSS for a moment; in pieces it does not show.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from devices.errors import StoreCorrupt

PIECE_BYTES = 32 << 10
"""Before compression."""


def pieces(state: dict[str, NDArray[Any]]) -> Iterator[tuple[str, int, bytes]]:
    """(part, number of the piece in it, data) of a state: part -> array of any dtype without objects."""
    for part, array in state.items():
        rows = max(PIECE_BYTES // max(array[:1].nbytes, 1), 1)
        for piece, start in enumerate(range(0, max(len(array), 1), rows)):
            yield part, piece, _packed(array[start : start + rows])


def joined(rows: Iterable[tuple[str, bytes]]) -> dict[str, NDArray[Any]]:
    """The state, from (part, data) of all its pieces, those of each part in order. Raises StoreCorrupt."""
    parts: dict[str, list[NDArray[Any]]] = {}
    try:
        for part, data in rows:
            parts.setdefault(part, []).append(_unpacked(data))
    except (zstandard.ZstdError, ValueError) as error:
        raise StoreCorrupt(f"the snapshot is damaged: {error}") from error
    return {part: np.concatenate(arrays) for part, arrays in parts.items()}


def _packed(array: NDArray[Any]) -> bytes:
    """numpy's own format, which knows structured dtypes, in zstd with a checksum."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return zstandard.ZstdCompressor(1, write_checksum=True).compress(buffer.getvalue())


def _unpacked(data: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(zstandard.decompress(data)), allow_pickle=False)
    return array
