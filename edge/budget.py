"""What may be sent: bytes a second (`uplink.max_rate`) and bytes a month (`uplink.max_per_month`). Pure.

The month's budget counts what passes the socket, both ways, connects and pings included. Its stages:

  free         everything goes at once
  saving       at the rate of the last hour the month would not last: summaries are held for minutes (edge/room.py),
               merged ten into one (edge/degrade.py), and go then
  alarms only  what is left is the share of the alarms: all else waits in the store, where it is merged when full
  spent        alarms wait too: in the store, which gives them up last. What keeps the link alive goes on

Nothing is lost by waiting; a limit that alarms could break would be none. The share is a tenth, which is some
30,000 alarms of 100 MB.

The count is in the store (`meta`, with a commit, each time that it has grown by a thousandth of the limit or
64 KiB): so much a crash may forget. A month begins at 00:00 UTC of `month_starts`. A clock that is wrong
begins another month only for as long as it is believed: when it returns, the count of the month that it left
goes on, with what was spent meanwhile added.
"""

from __future__ import annotations

import struct
from collections import deque
from datetime import UTC, datetime
from enum import IntEnum
from typing import Final

from devices.model import SECOND_NS
from devices.quantities import Size

ALARM_SHARE: Final = 0.1
STORE_EACH_BYTES: Final = 64 << 10
STORE_EACH_SHARE: Final = 1 / 1000
PACKET_BYTES: Final = 200
"""What a frame costs at the socket beside its own bytes: topic, identity, PUBACK, and the receipt."""
RATE_SPAN_S: Final = 3600.0
RATE_STEP_S: Final = 60.0
RATE_FROM_S: Final = 600.0
"""The rate is that of the last hour, and not known before so much of it has passed."""
MERGE_FACTOR: Final = 10
"""Merging saves at most this: only where ten times the rate would last are windows whole again."""

_ROW = struct.Struct(">qQqQ")


class TokenBucket:
    """At most `rate` bytes a second over any longer time, in bursts of up to one second's worth."""

    def __init__(self, rate_bytes_per_s: float) -> None:
        self.rate_bytes_per_s = rate_bytes_per_s
        """May be changed at any time."""
        self._tokens = rate_bytes_per_s
        self._at_s = 0.0

    def wait_s(self, size_bytes: int, now_s: float, *, urgent: bool = False) -> float:
        """0.0, and the tokens are taken; or how long until they will be there. What is urgent takes them in advance."""
        rate = self.rate_bytes_per_s
        if rate <= 0:
            return 0.0
        self._tokens = min(rate, self._tokens + (now_s - self._at_s) * rate)
        self._at_s = now_s
        needed = min(size_bytes, rate)
        if self._tokens < needed and not urgent:
            return (needed - self._tokens) / rate
        self._tokens -= size_bytes
        return 0.0


class Stage(IntEnum):
    """What the month's budget allows."""

    FREE = 0
    SAVING = 1
    ALARMS_ONLY = 2
    SPENT = 3


def month(now_ns: int, starts: int) -> tuple[int, int]:
    """Begin and end, in ns, of the month that holds this time and begins on day `starts` (1 to 28), UTC."""
    now = datetime.fromtimestamp(now_ns // SECOND_NS, UTC)
    begin = now.replace(day=starts, hour=0, minute=0, second=0, microsecond=0)
    if begin > now:
        begin = begin.replace(year=begin.year - (begin.month == 1), month=(begin.month - 2) % 12 + 1)
    end = begin.replace(year=begin.year + (begin.month == 12), month=begin.month % 12 + 1)
    return int(begin.timestamp()) * SECOND_NS, int(end.timestamp()) * SECOND_NS


class MonthBudget:
    """The account of one month. `look` before asking; bytes at the socket are those since the program's start."""

    def __init__(self, max_bytes: int, month_starts: int, stored: bytes = b"") -> None:
        """`stored`: what `row` gave, in the life before this one."""
        self.limit(max_bytes, month_starts)
        self._begin_ns, self.spent_bytes, self._left_ns, self._left_bytes = (
            _ROW.unpack(stored) if len(stored) == _ROW.size else (0, 0, 0, 0)
        )
        self.end_ns = 0
        self.stage = Stage.FREE
        self._stored = (self._begin_ns, self.spent_bytes)
        self._socket = (0, 0)
        self._ahead_bytes = 0
        """Published, and not yet seen at the socket."""
        self._total = 0
        self._course: deque[tuple[float, int]] = deque()
        """(time, bytes since the start) of the last hour."""
        self._saving = False

    def limit(self, max_bytes: int, month_starts: int) -> None:
        """Another limit from now on; what is spent, and the course, go on."""
        self.max_bytes = max_bytes
        self.for_all_bytes = int(max_bytes * (1 - ALARM_SHARE))
        self._starts = month_starts
        self._store_each = min(STORE_EACH_BYTES, int(max_bytes * STORE_EACH_SHARE))
        self._closed = Stage.FREE
        """What is left of this month is less than a frame."""

    def count_from(self, bytes_in: int, bytes_out: int) -> None:
        """Another socket, or the first look at this one: what it has passed until now is not of this account."""
        self._socket = (bytes_in, bytes_out)
        self._ahead_bytes = 0

    def look(self, now_ns: int, now_s: float, bytes_in: int, bytes_out: int) -> Stage:
        """Count what has passed the socket until now. `now_ns`: UTC; `now_s`: a clock that only goes on."""
        passed_in, passed_out = bytes_in - self._socket[0], bytes_out - self._socket[1]
        self._socket = (bytes_in, bytes_out)
        self.spent_bytes += passed_in + passed_out
        self._ahead_bytes = max(self._ahead_bytes - passed_out, 0)
        self._total += passed_in + passed_out
        begin_ns, self.end_ns = month(now_ns, self._starts)
        if begin_ns != self._begin_ns:
            self._enter(begin_ns)
        self._plan(now_ns, now_s)
        if self.spent_bytes >= self.max_bytes:
            self.stage = Stage.SPENT
        elif self.spent_bytes >= self.for_all_bytes:
            self.stage = Stage.ALARMS_ONLY
        else:
            self.stage = Stage.SAVING if self._saving else Stage.FREE
        self.stage = max(self.stage, self._closed)
        return self.stage

    def _enter(self, begin_ns: int) -> None:
        """Another month; or the clock was wrong, or is."""
        left = (self._begin_ns, self.spent_bytes)
        known = self._left_ns == begin_ns
        if not self._begin_ns:
            left = (0, 0)
        elif begin_ns < self._begin_ns:
            if known:  # the clock had leapt ahead: the month that it left goes on
                self.spent_bytes += self._left_bytes
                left = (0, 0)
        elif not known:  # else it had stepped back, and the count went with it
            self.spent_bytes = 0
        self._begin_ns, self._closed = begin_ns, Stage.FREE
        self._left_ns, self._left_bytes = left

    def _plan(self, now_ns: int, now_s: float) -> None:
        """Whether the rest of the month lasts at the rate of the last hour."""
        if not self._course or now_s - self._course[-1][0] >= RATE_STEP_S:
            self._course.append((now_s, self._total))
        while now_s - self._course[0][0] > RATE_SPAN_S and len(self._course) > 1:
            self._course.popleft()
        began_s, began_bytes = self._course[0]
        if now_s - began_s < RATE_FROM_S:
            return
        rate = (self._total - began_bytes) / (now_s - began_s)
        needed_bytes = rate * (self.end_ns - now_ns) / SECOND_NS
        left_bytes = max(self.for_all_bytes - self.spent_bytes, 0)
        if needed_bytes > left_bytes:
            self._saving = True
        elif needed_bytes * MERGE_FACTOR <= left_bytes:
            self._saving = False

    def sentence(self) -> str:
        """The stage, for people."""
        until = datetime.fromtimestamp(self.end_ns // SECOND_NS, UTC).strftime("%Y-%m-%d")
        limit = Size(self.max_bytes)
        if self.stage == Stage.SPENT:
            return f"the month's {limit} are spent: alarms too wait in the store, until {until}"
        if self.stage == Stage.ALARMS_ONLY:
            share = f"{ALARM_SHARE:.0%} of the month's {limit}"
            return f"only the {share} that are kept for alarms are left: all else waits in the store, until {until}"
        if self.stage == Stage.SAVING:
            return f"at this rate the month's {limit} would not last until {until}: windows are merged, ten into one"
        return f"the month's {limit} last until {until}"

    def may(self, frame_bytes: int, *, urgent: bool) -> bool:
        """Whether a frame may be published now; `urgent`: an alarm."""
        limit = self.max_bytes if urgent else self.for_all_bytes
        if self.spent_bytes + self._ahead_bytes + frame_bytes + PACKET_BYTES <= limit:
            return True
        self._closed = max(self._closed, Stage.SPENT if urgent else Stage.ALARMS_ONLY)
        return False

    def published(self, frame_bytes: int) -> None:
        """It is on its way to the socket."""
        self._ahead_bytes += frame_bytes

    def row(self, last: bool = False) -> bytes:
        """What the next commit should keep; empty while that would be hardly more than what was kept last."""
        begin_ns, bytes_ = self._stored
        if not last and begin_ns == self._begin_ns and self.spent_bytes - bytes_ < self._store_each:
            return b""
        return _ROW.pack(self._begin_ns, self.spent_bytes, self._left_ns, self._left_bytes)

    def kept(self, row: bytes) -> None:
        """A commit with this row is durable."""
        self._stored = _ROW.unpack(row)[:2]
