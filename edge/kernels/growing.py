"""Arrays of one record a series, which grow as series come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST_ROWS = 16


class Records:
    """A structured array whose first axis is the series; `blank` is what a new record holds.

    It doubles when a series beyond its end is asked for, so its memory is at most twice what the series need;
    their number is the caller's to bound.
    """

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...] = (), **blank: Any) -> None:
        self._blank = blank
        self.array = self._new(FIRST_ROWS, dtype, shape)

    def _new(self, rows: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        array = np.zeros((rows, *shape), dtype)
        for name, value in self._blank.items():
            array[name] = value
        return array

    def reach(self, index: int) -> None:
        """Make sure that there is a record `index`."""
        rows = len(self.array)
        if index < rows:
            return
        while rows <= index:
            rows *= 2
        grown = self._new(rows, self.array.dtype, self.array.shape[1:])
        grown[: len(self.array)] = self.array
        self.array = grown

    def saved(self, count: int) -> NDArray[Any]:
        """A copy of the first `count` records, byte for byte: NumPy would go field by field, ten times slower."""
        part = self.array[:count]
        return np.frombuffer(bytearray(part.tobytes()), part.dtype).reshape(part.shape)

    def load(self, saved: NDArray[Any]) -> None:
        """Take over the first len(saved) records; ValueError where they are of another layout."""
        if saved.dtype != self.array.dtype or saved.shape[1:] != self.array.shape[1:]:
            raise ValueError(f"saved records have the layout {saved.dtype}, this version has {self.array.dtype}")
        if len(saved):
            self.reach(len(saved) - 1)
            self.array[: len(saved)] = saved
