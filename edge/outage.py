"""How long the link may be away before the store must give something up. Pure.

What grows without a link is the outbox; the journal grows too, and gives way first (edge/retention.py). So the
answer is what the same rules lead to when frames and blocks go on coming at the rate of the last hour: at
90 % the journal is trimmed to 85 %, as far as the last snapshot; when that no longer frees enough, frames are
next. That moment is meant, whatever the policy does then: merge, drop, or let the sources wait.

While the link is up frames are smaller and more than they would be without it (edge/pump.py seals once a
minute then), and cost more a sample: the answer is then on the safe side, and exact some minutes after the
link went.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from edge.custody import Usage
from edge.retention import AIM, SNAPSHOT_WORTH, START, Keep

LONGEST_S: Final = 366 * 86_400.0
"""Nobody plans further; and nothing grows for ever at the rate of one hour."""
SPAN_S: Final = 3600.0
STEP_S: Final = 60.0
STEPS: Final = 2000
"""Of the calculation: each a two-thousandth of the way to the limit."""

PAGE_BYTES: Final = 4096
_LOCAL_MAX: Final = PAGE_BYTES - 35
_LOCAL_MIN: Final = (PAGE_BYTES - 12) * 32 // 255 - 23
_OVERFLOW: Final = PAGE_BYTES - 4
_ROW_BYTES: Final = 40
"""Of a row of the outbox beside frame and custody: key, lane, leaf, time, digest, header."""


def row_pages_bytes(data_bytes: int) -> int:
    """Bytes of pages that a row takes (SQLite's file format, 1.6: cells that overflow)."""
    payload = data_bytes + _ROW_BYTES
    if payload <= _LOCAL_MAX:
        return payload
    local = _LOCAL_MIN + (payload - _LOCAL_MIN) % _OVERFLOW
    local = local if local <= _LOCAL_MAX else _LOCAL_MIN
    return local + -(-(payload - local) // _OVERFLOW) * PAGE_BYTES


def sentence(budget_s: float, when_full: str) -> str:
    """The answer, for people; `when_full` is the store's policy."""
    if budget_s != budget_s:
        return "not known yet: some minutes of data are needed"
    if budget_s >= LONGEST_S:
        return "the link may be away for more than a year"
    minutes = int(budget_s // 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    span = f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
    what = {"degrade": "summaries are merged", "drop_oldest": "the oldest are dropped", "block": "sources must wait"}
    return f"the link may be away for {span} before {what[when_full]}"


class Growth:
    """Bytes a second over the last hour, of what comes in bursts: measured from burst to burst."""

    def __init__(self) -> None:
        self._steps: deque[list[float]] = deque()
        """[begin, last burst, bytes]: bursts of the same minute are one."""

    def add(self, now_s: float, size_bytes: int) -> None:
        if not size_bytes:
            return
        if self._steps and now_s - self._steps[-1][0] < STEP_S:
            self._steps[-1][1] = now_s
            self._steps[-1][2] += size_bytes
        else:
            self._steps.append([now_s, now_s, float(size_bytes)])
        while self._steps[-1][1] - self._steps[0][1] > SPAN_S:
            self._steps.popleft()

    def per_s(self, now_s: float) -> float:
        """NaN until two bursts were seen, a minute apart."""
        if len(self._steps) < 2:
            return float("nan")
        # What is in the first came before the time that is measured; what is overdue counts as nothing.
        span_s = max(self._steps[-1][1], now_s - 2 * STEP_S) - self._steps[0][1]
        return sum(step[2] for step in list(self._steps)[1:]) / span_s


class Journal(NamedTuple):
    """What is known of the journal beside its size."""

    fresh_bytes: int
    """Since the last snapshot: these cannot be trimmed."""
    per_s: float
    snapshot_each_s: float
    keep: Keep


def budget_s(usage: Usage, frames_per_s: float, journal: Journal) -> float:
    """Seconds without a link until frames are merged, dropped, or sources wait; NaN: not known yet."""
    limit = usage.limit_bytes
    if frames_per_s != frames_per_s or journal.per_s != journal.per_s:
        return float("nan")
    step_s = min(limit / max(frames_per_s + journal.per_s, 1e-9), 10 * LONGEST_S) / STEPS
    used, fresh = float(usage.used_bytes), float(journal.fresh_bytes)
    old = max(usage.journal_bytes - fresh, 0.0)
    keep_bytes = min(float(journal.keep.size_bytes), journal.per_s * journal.keep.span_ns / 1e9)
    passed_s, snapshot_s = 0.0, 0.0
    while passed_s < LONGEST_S:
        passed_s, snapshot_s = passed_s + step_s, snapshot_s + step_s
        used, fresh = used + (frames_per_s + journal.per_s) * step_s, fresh + journal.per_s * step_s
        if snapshot_s >= journal.snapshot_each_s:
            old, fresh, snapshot_s = old + fresh, 0.0, 0.0
        excess = used - limit * AIM if used > limit * START else 0.0
        if excess > old and fresh > limit * SNAPSHOT_WORTH:
            old, fresh, snapshot_s = old + fresh, 0.0, 0.0
        if excess > old:
            return passed_s
        trimmed = min(max(excess, old + fresh - keep_bytes, 0.0), old)
        used, old = used - trimmed, old - trimmed
    return LONGEST_S
