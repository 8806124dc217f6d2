"""Time for the edge, injected: UTC for stamping, the times of ticks, and whether the system's clock can be believed.

While it is trusted the system's clock is the time. While it is not, the time is an *estimate*: that of the last tick
(or of that of NOT_BEFORE_NS, for a new store) and what has passed since. Arrival-stamped samples are held under it
(edge/held.py) until the clock is trusted again.

    not trusted   at a start, while the clock lies before this program or before the last tick, or before
                  `trust_after` without being synchronised
                  after a leap by more than LEAP_NS that no synchronisation explains
    trusted       once the kernel says that it is synchronised; at a start, once it lies after all of these;
                  after a leap, once it has come back, or has gone on from its new place for PATIENCE_NS

The kernel's word counts for nothing while the clock lies before this program was written.

Ticks are events of the stream: they are journaled, and replay repeats them (design §3). They never step
back, and never stand still: where the system's clock steps back, they go on from the last one by the time
that has really passed, until the clock has caught up. What hangs on ticks (windows of silent series,
`silent`, reports) goes on as if nothing had happened.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from devices.model import SECOND_NS

log = logging.getLogger("forebay.clock")

TICK_S = 1.0
"""Windows of silent series close, `silent` is raised, and summaries are sealed into frames, this often."""
NOT_BEFORE_NS = 1_704_067_200 * SECOND_NS
"""2024-01-01: this program was not there before it, so no clock that shows an earlier time is right."""
LEAP_NS = 600 * SECOND_NS
"""A smaller step is followed at once. A larger one may be undone soon, and what was stamped by it would stay."""
PATIENCE_NS = 600 * SECOND_NS
DRIFT_NS = SECOND_NS
"""A clock that goes by this much otherwise than time passes has leapt again."""
GROUNDS = {
    "kernel": "the kernel says that NTP or PTP keeps it right",
    "date": "neither NTP nor PTP had set it, but it lies after [clock] trust_after and all that this gateway has seen",
    "stood": "it leapt, and has gone on from its new place for 10 min",
    "came back": "it leapt, and has come back",
    "before last tick": "it shows an earlier time than this gateway has already seen",
    "before program": "it shows a time at which this program had not been written",
    "not synchronised": "neither NTP nor PTP has set it, and [clock] trust_after does not let it be believed without",
    "leap": "it leapt, and nobody has synchronised it since",
}
"""Each `Clock.why`, for people."""
UNTIL_TRUSTED = "samples without a time of their own are held until it is: synchronise it (NTP), or set it"
LATE_NS = 10 * 365 * 86_400 * SECOND_NS
"""How far the estimate may lie behind: a gateway may have lain in a store for years."""


class Anchor(msgspec.Struct, array_like=True, frozen=True):
    """An estimate, by which it can go on over a restart of the daemon."""

    boot: str
    """Of the machine: passing time is counted from it."""
    offset_ns: int
    """The estimate less the passing time."""
    leapt: bool
    """It is doubted since a leap; else since its start."""


class Clock:
    """UTC in ns from `wall`, passing time in ns from `elapsed`: the system's, or the simulation's."""

    def __init__(
        self,
        wall: Callable[[], int] = time.time_ns,
        elapsed: Callable[[], int] = time.monotonic_ns,
        *,
        synchronised: Callable[[], bool] = lambda: False,
        boot: str = "",
        trust_after_ns: int | None = 0,
        not_before_ns: int = 0,
    ) -> None:
        """`boot`: within one, `elapsed` goes on over restarts; "": it does not. `trust_after_ns`: after this the clock
        is believed even if nothing synchronises it; None: never. `not_before_ns`: before this it is wrong."""
        self._wall = wall
        self._elapsed = elapsed
        self._synchronised = synchronised
        self._trust_after_ns = trust_after_ns
        self._not_before_ns = not_before_ns
        self._last_tick_ns = 0
        self._last_elapsed_ns = elapsed()
        self._boot = boot
        self.offset_ns = wall() - elapsed()
        """The time less `elapsed`: of the estimate while the clock is not trusted."""
        self.trusted = True
        self.why = "date"
        """By what it is trusted: `kernel`, `date`, `stood` (after a leap), `came back`; or why not: `before last tick`,
        `before program`, `not synchronised`, `leap`."""
        self.since_ns = wall()
        """When that began, by the time that counted then."""
        self._leapt_to: tuple[int, int] | None = None
        """(offset, elapsed) at the first look at a clock that has leapt."""
        self._begin()

    # -- the time ------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """The time, trusted or not. To ask is to look at the system's clock, and that changes this one: a clock that
        has leapt is doubted from now on, and one that was set a little is followed."""
        elapsed_ns = self._elapsed()
        if not self.trusted:
            return elapsed_ns + self.offset_ns
        wall_ns = self._wall()
        if abs(wall_ns - elapsed_ns - self.offset_ns) > LEAP_NS and not self._is_synchronised(wall_ns):
            self._doubt("leap", self.offset_ns)
            return elapsed_ns + self.offset_ns
        self.offset_ns = wall_ns - elapsed_ns
        return wall_ns

    def latest_ns(self) -> int:
        """No time that is right now lies after this: what `max_ahead` is counted from."""
        return self.now_ns() + (0 if self.trusted else LATE_NS)

    def tick_ns(self) -> int:
        """The time of a tick that happens now."""
        now_ns, elapsed_ns = self.now_ns(), self._elapsed()
        passed_ns = max(elapsed_ns - self._last_elapsed_ns, 1)
        self._last_elapsed_ns = elapsed_ns
        self._last_tick_ns = max(now_ns, self._last_tick_ns + passed_ns)
        return self._last_tick_ns

    # -- a start -------------------------------------------------------------------------------------

    def resume(self, tick_ns: int) -> None:
        """Ticks up to this one have happened (before a restart)."""
        self._last_tick_ns = max(self._last_tick_ns, tick_ns)
        self._begin()

    def _begin(self) -> None:
        wall_ns = self._wall()
        if self._is_believed(wall_ns):
            self.trusted, self.why = True, "kernel" if self._is_synchronised(wall_ns) else "date"
            self.offset_ns = wall_ns - self._elapsed()
        else:  # it is at least as late as all of these
            known_ns = max(wall_ns, self._last_tick_ns + 1, self._trust_after_ns or 0, self._not_before_ns)
            self._doubt(self._why_not(wall_ns), known_ns - self._elapsed())

    def anchor(self) -> Anchor:
        """Of the estimate that counts now."""
        return Anchor(self._boot, self.offset_ns, self.why == "leap")

    def go_on(self, anchor: Anchor) -> bool:
        """Go on with the estimate of a life before this one; False where nobody knows how much time lies between."""
        if not self._boot or anchor.boot != self._boot:
            return False
        self._doubt("leap" if anchor.leapt else self._why_not(self._wall()) or "not synchronised", anchor.offset_ns)
        return True

    # -- trust ---------------------------------------------------------------------------------------

    def ground(self) -> str:
        """On what ground it is trusted, or why it is not and what to do, for people."""
        return GROUNDS[self.why] if self.trusted else f"{GROUNDS[self.why]}; {UNTIL_TRUSTED}"

    def ahead_ns(self) -> int:
        """How far the system's clock is ahead of the time that counts; 0 while it is trusted."""
        return 0 if self.trusted else self._wall() - self.now_ns()

    def may_step(self) -> bool:
        """The system's clock can be trusted from now on: `step` is due. To be asked with each tick."""
        if self.trusted:
            return False
        wall_ns, elapsed_ns = self._wall(), self._elapsed()
        if self.why == "leap":
            return self._has_settled(wall_ns, elapsed_ns)
        return self._is_believed(wall_ns)

    def step(self) -> int:
        """Go over from the estimate to the system's clock, and say by how many ns."""
        wall_ns, elapsed_ns = self._wall(), self._elapsed()
        by_ns = wall_ns - elapsed_ns - self.offset_ns
        self.offset_ns += by_ns
        self.trusted, self.since_ns = True, wall_ns
        if self._is_synchronised(wall_ns):
            self.why = "kernel"
        elif self.why == "leap":
            self.why = "came back" if abs(by_ns) <= LEAP_NS else "stood"
        else:
            self.why = "date"
        log.warning("the clock is trusted: %s; it lies %+.3f s from the estimate", self.ground(), by_ns / SECOND_NS)
        return by_ns

    def _doubt(self, why: str, offset_ns: int) -> None:
        is_new = (self.trusted, self.why) != (False, why)
        self.trusted, self.why, self.offset_ns, self._leapt_to = False, why, offset_ns, None
        self.since_ns = self._elapsed() + offset_ns
        if not is_new:
            return
        log.warning("the clock is not trusted: %s", self.ground())

    def _is_synchronised(self, wall_ns: int) -> bool:
        return wall_ns >= self._not_before_ns and self._synchronised()

    def _is_believed(self, wall_ns: int) -> bool:
        return self._is_synchronised(wall_ns) or not self._why_not(wall_ns)

    def _why_not(self, wall_ns: int) -> str:
        if wall_ns < self._not_before_ns:
            return "before program"
        if self._trust_after_ns is None or wall_ns < self._trust_after_ns:
            return "not synchronised"
        return "before last tick" if wall_ns < self._last_tick_ns - LEAP_NS else ""

    def _has_settled(self, wall_ns: int, elapsed_ns: int) -> bool:
        """After a leap: it has been undone, explained, or has lasted."""
        offset_ns = wall_ns - elapsed_ns
        if self._is_synchronised(wall_ns) or abs(offset_ns - self.offset_ns) <= LEAP_NS:
            return True
        if self._leapt_to is None or abs(offset_ns - self._leapt_to[0]) > DRIFT_NS:
            self._leapt_to = offset_ns, elapsed_ns
        may_last = self._trust_after_ns is not None and wall_ns >= max(self._trust_after_ns, self._not_before_ns)
        return may_last and elapsed_ns - self._leapt_to[1] >= PATIENCE_NS


# -- the system's ------------------------------------------------------------------------------------


def boot_time_ns() -> int:
    """Time since the machine's start, that of its sleep included: a suspended machine's clock has not leapt."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Of this run of the kernel; "" where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


TIME_ERROR = 5
STA_UNSYNC = 0x40


class _Timex(ctypes.Structure):
    """The beginning of `struct timex` (adjtimex(2)), and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def kernel_is_synchronised() -> bool:
    """Whether NTP or PTP sets the clock, as the kernel knows it (`timedatectl` shows the same). It clears this when
    anybody else sets the clock, and when it has not heard of its source for long."""
    timex = _Timex(modes=0)
    try:
        state = _libc.adjtimex(ctypes.byref(timex))
    except AttributeError:  # no Linux
        return False
    return 0 <= state != TIME_ERROR and not timex.status & STA_UNSYNC


def system_clock(trust_after_ns: int | None) -> Clock:
    """The machine's own."""
    return Clock(
        time.time_ns,
        boot_time_ns,
        synchronised=kernel_is_synchronised,
        boot=boot_id(),
        trust_after_ns=trust_after_ns,
        not_before_ns=NOT_BEFORE_NS,
    )
