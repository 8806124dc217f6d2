"""Whether a source has stopped because it waits for acknowledgements.

A broker sends so many messages ahead of their acknowledgements and no more: what the client allows
(`receive_maximum`), or less, if its own configuration says so (mosquitto's `max_inflight_messages`, 20 unless
changed), and it does not tell. With acknowledgements every 250 ms such a source brings 80 messages a second,
whatever waits at the broker. So it is found out by watching: a source that stood at exactly the same number
twice running, and stands there again, has stopped, and a commit that acknowledges it is worth its price.

                    came                 came, came        settled
    0 waiting ─────────────▶ climbing ─────────────▶ 20 ─────────────▶ 0 waiting
                                                     └ a peak: the next ones tell whether it was chance

Early commits keep a number that came by chance alive, since each begins the count anew. So now and then one
is left out: a source that had not stopped then goes past its number.
"""

from __future__ import annotations

PEAKS = 2
"""So many equal ones in a row are no chance."""
TRIED_EVERY = 100
"""One in so many early commits is left out."""


class Flow:
    """The messages of one source that wait for their acknowledgement, and the numbers at which they stopped."""

    def __init__(self) -> None:
        self._waiting = 0
        self._peak = 0
        """The most since it last fell."""
        self._last_peak = 0
        self._equal_peaks = 0
        """How many in a row were `_last_peak`."""
        self._falling = False

    @property
    def has_stopped(self) -> bool:
        """No more comes before something is acknowledged, as far as can be told."""
        if self._equal_peaks < PEAKS or self._equal_peaks % TRIED_EVERY == 0:
            return False
        return self._waiting == self._last_peak and not self._falling

    def connected(self) -> None:
        """A new connection: what came with the one before comes again, or never."""
        self._waiting = self._peak = self._last_peak = self._equal_peaks = 0
        self._falling = False

    def came(self, count: int) -> None:
        """So many messages that want an acknowledgement."""
        if self._falling:
            self._equal_peaks = self._equal_peaks + 1 if self._peak == self._last_peak else 1
            self._last_peak, self._peak = self._peak, 0
            self._falling = False
        self._waiting += count
        self._peak = max(self._peak, self._waiting)

    def settled(self, count: int) -> None:
        """So many of them are acknowledged."""
        self._waiting -= count
        self._falling = True
