"""How much of a backlog may be on its way: as much as the cloud answers for within a second. Plain decisions.

What a broker has taken waits there for the ingesters, and a thousand gateways that return at once have more than those
can write in minutes: all of it published, live data and alarms would stand behind it, and frames without a
receipt would be published again, and again. So each gateway begins with one frame, has one more on its way
for each receipt that comes soon, and half as many when one comes late: then the queue before the ingesters stays
about as long as SOON_S, however many gateways share them. One frame is always on its way, so the last
resort is the wait for its receipt, which follows what receipts have lately taken (as in RFC 6298).
"""

from __future__ import annotations

SOON_S = 1.0
SMOOTHING = 1 / 8
PATIENCE = 3.0
"""A receipt is missed after so many times what they took lately."""
PATIENCE_MAX_S = 60.0


class Pace:
    """Of one lane."""

    def __init__(self, most_bytes: int) -> None:
        self.window_bytes = 0
        """On their way at most; 0: one frame."""
        self.most_bytes = most_bytes
        self._delay_s = 0.0
        """What receipts took lately, from the first publication on this link."""
        self._slowed_at_s = 0.0

    def answered(self, size_bytes: int, sent_s: float, now_s: float) -> None:
        """The receipt has come for what was first published at `sent_s`."""
        delay_s = now_s - sent_s
        self._delay_s = delay_s if not self._delay_s else self._delay_s + (delay_s - self._delay_s) * SMOOTHING
        if delay_s <= SOON_S:
            self.window_bytes = min(self.window_bytes + size_bytes, self.most_bytes)
        else:
            self.late(sent_s, now_s)

    def late(self, sent_s: float, now_s: float) -> None:
        """One that was published at `sent_s` took long. What went before the last halving says nothing new."""
        if sent_s >= self._slowed_at_s:
            self.window_bytes //= 2
            self._slowed_at_s = now_s

    def timeout_s(self, least_s: float) -> float:
        """How long to wait for a receipt, at first."""
        return max(least_s, min(PATIENCE * self._delay_s, PATIENCE_MAX_S))

    def begin(self) -> None:
        """A new link: others may have come back with us."""
        self.window_bytes = 0
