"""Serial devices on pseudo-terminals: a port appears under a name of its own, and its cable can be pulled.

The device holds the pty's master; whoever opens the link (`folder/pump1`) holds the cable's other end.
Nothing acknowledges a serial line: what is on it when the cable is pulled, or when the reader goes away,
is lost. So that the record says only what must have been read, a line counts as taken once the cable and
its reader have been there for SETTLE_S after it.
"""

from __future__ import annotations

import os
import select
import time
import tty
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLL_S = 0.02
SETTLE_S = 0.5
"""A reader that waits for its port takes milliseconds; this leaves room for a busy machine."""
HUSH_S = 0.3
"""A program that has just opened a port may throw away what is in its buffer, as pyserial does."""


class Port:
    """One serial device's end, plugged in from the start. `link` is a symlink to the pty that is there now."""

    def __init__(self, link: Path, on_taken: Callable[[Any], None], *, greeting: bytes = b"") -> None:
        """`on_taken(token)` is called, from `poll`, for each line that was taken. `greeting`: a line that the
        device says whenever somebody begins to listen, as many do.
        """
        self.link = link
        self._greeting = greeting
        self._on_taken = on_taken
        self._master = -1
        self._heard_since_s: float | None = None
        self._greeted = False
        self._torn = False
        self._written: deque[tuple[float, Any]] = deque()
        self.plug()

    @property
    def plugged(self) -> bool:
        return self._master >= 0

    def plug(self) -> None:
        """Put a new pty, in raw mode, under the link, if it is not plugged."""
        if self.plugged:
            return
        self._master, slave = os.openpty()
        tty.setraw(slave)
        fresh = self.link.with_name(f".{self.link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.ttyname(slave))
        fresh.replace(self.link)
        os.close(slave)  # from now on the master reports a hang-up until somebody opens the link
        os.set_blocking(self._master, False)

    def unplug(self) -> None:
        """Pull the cable: the pty ends, and with it what nobody has read."""
        if not self.plugged:
            return
        self.link.unlink(missing_ok=True)
        os.close(self._master)
        self._master = -1
        self._nobody_listens()

    def write(self, line: bytes, token: Any) -> bool:
        """Send a line that ends with a line feed. False: nobody listens, or there was no room: it is void."""
        now_s = time.monotonic()
        if not self._listened_to(now_s):
            return False
        data = b"\n" + line if self._torn else line
        try:
            sent = os.write(self._master, data)
        except BlockingIOError:
            return False
        self._torn = sent < len(data)
        if not self._torn:
            self._written.append((now_s, token))
        return not self._torn

    def poll(self) -> None:
        """To be called often: reports the lines that have settled."""
        now_s = time.monotonic()
        self._listened_to(now_s)
        while self._written and self._written[0][0] <= now_s - SETTLE_S:
            self._on_taken(self._written.popleft()[1])

    def close(self) -> None:
        """An orderly end: what was written stays readable until it has settled."""
        while self._written:
            self.poll()
            time.sleep(POLL_S)
        self.unplug()

    def _listened_to(self, now_s: float) -> bool:
        """Whether somebody has had the port open for HUSH_S."""
        if not self.plugged:
            return False
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        seen = sum(events for _, events in poll.poll(0))
        if seen & select.POLLHUP:
            self._nobody_listens()
            return False
        if seen & select.POLLIN:
            os.read(self._master, 4096)  # commands of the other end: these devices only talk
        if self._heard_since_s is None:
            self._heard_since_s = now_s
            self._greeted = False
        if now_s - self._heard_since_s < HUSH_S:
            return False
        if not self._greeted:
            os.write(self._master, self._greeting)
            self._greeted = True
        return True

    def _nobody_listens(self) -> None:
        self._heard_since_s = None
        self._torn = False
        self._written.clear()
