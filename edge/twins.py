"""Another gateway of the same name, told by receipts for frames that are not ours. Pure.

A receipt goes to the gateway that its topic names. One that bears another epoch, or the seq of a frame of ours with
another digest, answers a frame of another store. That store may be one before this (set aside, deleted, put back from
a backup), whose last frames are still answered while they lie at broker or ingester. But it makes no new ones: a
gateway that lives goes on, so that the seqs that are answered rise, for minutes and hours.
"""

from __future__ import annotations

GAP_S = 60.0
RISES_MIN = 3
"""A gateway is there once the highest seq of its epoch has risen this often, at least GAP_S apart: what a store before
this has left, at most a window of each lane, is answered in one go as soon as the sink takes it."""
KNOWN_S = 3600.0
"""It is said as often as this while it goes on, and shown for so long after the last sign."""
EPOCHS_MAX = 8


class Twins:
    """What was heard of stores that bear this gateway's name."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._seen: dict[int, tuple[int, int, float]] = {}
        """Epoch -> highest seq, how often it has risen, and when it last did; the oldest of EPOCHS_MAX goes."""
        self._last_s = self._said_s = -KNOWN_S

    def answered(self, epoch: int, seq: int, now_s: float) -> bool:
        """A receipt came for a frame that is not ours; whether it is time to say that another gateway is there."""
        highest, rises, rose_s = self._seen.get(epoch, (-1, 0, -GAP_S))
        if seq <= highest or now_s < rose_s + GAP_S:
            return False
        if epoch not in self._seen and len(self._seen) >= EPOCHS_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[epoch] = seq, rises + 1, now_s
        if rises + 1 < RISES_MIN:
            return False
        self._last_s = now_s
        if now_s < self._said_s + KNOWN_S:
            return False
        self._said_s = now_s
        return True

    def sentence(self, now_s: float) -> str:
        """What is wrong, and what to do; "" while no other gateway is known."""
        if now_s >= self._last_s + KNOWN_S:
            return ""
        return (
            f"another gateway is called {self._gateway}: receipts come for frames that this one never sent, and each "
            "overwrites points of the other; give one of the two another name (`gateway` in its file)"
        )
