"""The account of every sample, by series and fate: produced = stored + waiting + rejected + dropped.

Pure counters in arrays with one row a series. They are part of the operators' state: a snapshot holds
them, and the journal's blocks hold what has changed since (`Deltas`), so that they survive a crash exactly.
`waiting` is not counted but measured: what the windows hold open, what is sealed next, what the outbox
holds; so the equation can fail, and `status` shows whether it holds.

What is rejected before it has a channel (bytes that cannot be decoded) is counted at its device's own
account: the series whose channel is "".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.model import DROP_POLICIES, REJECT_REASONS, Bytes, Int32s, Int64s

VERSION = 1


@dataclass(slots=True)
class Deltas:
    """Changes of the ledger that do not follow from the samples of a block: sparse (series, code, count)."""

    stored: list[tuple[int, int, int]] = field(default_factory=list)
    """(series, 0, samples): a receipt came."""
    rejected: list[tuple[int, int, int]] = field(default_factory=list)
    """(series, index in REJECT_REASONS, samples): refused before it was a sample of the block, or by the cloud.

    `produced` counts those that were never in a block: see `Ledger.apply`.
    """
    refused: list[tuple[int, int, int]] = field(default_factory=list)
    """(series, index in REJECT_REASONS, samples): taken back from `waiting` by a receipt."""
    dropped: list[tuple[int, int, int]] = field(default_factory=list)
    """(series, index in DROP_POLICIES, samples): taken from the outbox because it was full."""
    overrun: list[tuple[int, int, int]] = field(default_factory=list)
    """(series, index in DROP_POLICIES, samples): lost before the intake."""

    def extend(self, other: Deltas) -> None:
        self.stored += other.stored
        self.rejected += other.rejected
        self.refused += other.refused
        self.dropped += other.dropped
        self.overrun += other.overrun

    def __bool__(self) -> bool:
        return bool(self.stored or self.rejected or self.refused or self.dropped or self.overrun)


class Ledger:
    """Cumulative counts since the birth of the store; arrays of one row a series."""

    def __init__(self) -> None:
        self.size = 0
        self.produced: Int64s = np.zeros(0, np.int64)
        self.stored: Int64s = np.zeros(0, np.int64)
        self.late: Int64s = np.zeros(0, np.int64)
        self.rejected: NDArray[np.int64] = np.zeros((0, len(REJECT_REASONS)), np.int64)
        """int64[series, reason]."""
        self.dropped: NDArray[np.int64] = np.zeros((0, len(DROP_POLICIES)), np.int64)
        """int64[series, policy]."""

    def grow(self, size: int) -> None:
        """Make room for `size` series."""
        self.size = max(self.size, size)
        if size <= len(self.produced):
            return
        rows = max(size, 2 * len(self.produced), 64)
        for name in ("produced", "stored", "late", "rejected", "dropped"):
            old = getattr(self, name)
            new = np.zeros((rows, *old.shape[1:]), np.int64)
            new[: len(old)] = old
            setattr(self, name, new)

    def samples(self, series: Int32s, verdict: Bytes | None) -> None:
        """Samples that reached admission. `verdict` as in edge/identity.py; None: all accepted."""
        self.produced[: self.size] += np.bincount(series, minlength=self.size)
        if verdict is not None:
            bad = np.flatnonzero((verdict > 0) & (verdict <= len(REJECT_REASONS)))
            np.add.at(self.rejected, (series[bad], verdict[bad] - 1), 1)

    def count_late(self, series: Int32s) -> None:
        np.add.at(self.late, series, 1)

    def apply(self, deltas: Deltas) -> None:
        for series, _, count in deltas.stored:
            self.stored[series] += count
        for series, reason, count in deltas.rejected:
            self.produced[series] += count
            self.rejected[series, reason] += count
        for series, reason, count in deltas.refused:
            self.rejected[series, reason] += count
        for series, policy, count in deltas.dropped:
            self.dropped[series, policy] += count
        for series, policy, count in deltas.overrun:
            self.produced[series] += count
            self.dropped[series, policy] += count

    def imbalance(self, waiting: Int64s) -> Int64s:
        """int64[series]: produced less its fates; all 0 when the account is in order."""
        n = self.size
        fates = self.stored[:n] + waiting + self.rejected[:n].sum(axis=1) + self.dropped[:n].sum(axis=1)
        return np.asarray(self.produced[:n] - fates)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        n = self.size
        return {name: getattr(self, name)[:n].copy() for name in ("produced", "stored", "late", "rejected", "dropped")}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Columns that were appended to REJECT_REASONS or DROP_POLICIES since begin at 0."""
        self.grow(len(state["produced"]))
        for name, saved in state.items():
            array = getattr(self, name)
            if saved.ndim == 1:
                array[: len(saved)] = saved
            else:
                array[: len(saved), : saved.shape[1]] = saved
