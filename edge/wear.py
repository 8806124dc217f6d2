"""What this process has written to the disk, and how long the disk lasts at that rate.

The kernel's own account is taken, `write_bytes` in /proc/self/io: whole pages of 4 KiB, the WAL, the checkpoints and a
file that is made at its full size alike. SQLite's pages would say less than is true: a commit of one page begins and
ends within two of the disk's. What the file system writes for itself (its journal), and the flash for levelling, nobody
can see from here; `store.endurance` as makers state it already allows for the latter.

Time and bytes are added up over restarts in the store (`pack`, with each snapshot; the minutes after the last one
are lost to a crash, both of them), but for the making of the file itself. The rate is that of the last day of running.
"""

from __future__ import annotations

import re
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ACCOUNT = Path("/proc/self/io")
SPAN_S = 86_400.0
GAP_S = 600.0
"""Marks are so far apart at least."""
YEAR_DAYS = 365.25

_PACKED = struct.Struct(">dQdQ")


class Mark(NamedTuple):
    """How much had been written after so much time of running."""

    running_s: float
    bytes: int


def written_bytes() -> int:
    """By this process, since it began; 0 where the kernel does not say."""
    try:
        found = re.search(r"^write_bytes: (\d+)$", ACCOUNT.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


class Wear:
    """Of the disk, by the daemon, over the life of its store."""

    def __init__(
        self,
        packed: bytes = b"",
        since_bytes: int = 0,
        account: Callable[[], int] = written_bytes,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`packed`: what the last life of the store left, b"" for none; `since_bytes`: the account when this life
        began, before the WAL was written to its size. Of a new store that does not count in the rate."""
        self._account = account
        self._now_s = now_s
        self._began_s = now_s()
        self._before = Mark(0.0, -since_bytes)
        self._marks: deque[Mark] = deque()
        self._lock = threading.Lock()
        """The store's thread packs, and the event loop looks."""
        if len(packed) == _PACKED.size:
            old_s, old_bytes, running_s, total = _PACKED.unpack(packed)
            self._before = Mark(running_s, total - since_bytes)
            self._marks.append(Mark(old_s, old_bytes))
        else:
            self.look()

    def look(self) -> Mark:
        """What stands now."""
        now = Mark(self._before.running_s + self._now_s() - self._began_s, self._before.bytes + self._account())
        marks = self._marks
        with self._lock:
            if not marks or now.running_s >= marks[-1].running_s + GAP_S:
                marks.append(now)
            while len(marks) > 1 and marks[1].running_s <= now.running_s - SPAN_S:
                marks.popleft()
        return now

    def bytes_per_day(self) -> float:
        """Over the last day of running, or as much of it as there is."""
        now, oldest = self.look(), self._marks[0]
        return (now.bytes - oldest.bytes) / max(now.running_s - oldest.running_s, 1.0) * 86_400.0

    def years(self, endurance_bytes: int) -> float | None:
        """How long a disk lasts that may be written so much, and was written by this store alone; None: for ever."""
        per_day = self.bytes_per_day()
        return max(endurance_bytes - self.look().bytes, 0) / per_day / YEAR_DAYS if per_day > 0 else None

    def pack(self) -> bytes:
        """For the next process."""
        now = self.look()
        return _PACKED.pack(*self._marks[0], *now)
