"""The entry of samples: each gets its time and its verdict, and goes on into the operators.

While the clock is trusted that happens at once. While it is not, samples that it would have to stamp are held
(edge/held.py): they enter under an estimate, and once more, with their times, when they are released.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from devices.model import Bytes, Int64s, Quality, SampleBatch
from edge.clock import Clock
from edge.committer import Committer
from edge.custody import BIRTH_UNKNOWN_NS
from edge.held import Step
from edge.identity import ACCEPTED, BEHIND_JOURNAL, HELD, RELEASED
from edge.intake import Intake
from edge.operators import Operators
from edge.past import Past

log = logging.getLogger("forebay.pump")


class Entry:
    """Where samples come in, and come out of being held; what they lead to goes with the commit that gathers."""

    def __init__(
        self,
        operators: Operators,
        intake: Intake,
        clock: Clock,
        committer: Committer,
        past: Past,
        *,
        born_ns: int,
        max_held: int,
    ) -> None:
        self._operators = operators
        self._intake = intake
        self._clock = clock
        self._committer = committer
        self._past = past
        self._born_ns = born_ns
        self._max_held = max_held

    def take(self, batch: SampleBatch, arrived_ns: Int64s) -> None:
        """Samples have just come, one at least."""
        stamp = batch.time_ns == 0
        if not self._clock.trusted and stamp.any():
            verdict = self._hold(batch, arrived_ns, stamp)
        else:
            verdict = self._admit(batch, arrived_ns)
        self._enter(batch, arrived_ns, verdict, int(arrived_ns[0]))

    def _admit(self, batch: SampleBatch, arrived_ns: Int64s) -> Bytes:
        """Give samples their final times; -> their verdicts."""
        admission, floor_ns = self._operators.admission, self._committer.journal_floor_ns()
        verdict = admission.admit(batch, arrived_ns, self._clock.latest_ns(), journal_floor_ns=floor_ns)
        if self._born_ns:
            self._pass_by_windows(batch, verdict)
        return verdict

    def _pass_by_windows(self, batch: SampleBatch, verdict: Bytes) -> None:
        """Windows that began before the store's birth, or no further ahead of it than samples may be, may have been
        published out of the store before it. A second summary would replace the first: their samples go raw."""
        specs = self._operators.specs
        window_ns = np.array([spec.window_ns for spec in specs], np.int64)[batch.series]
        reached_ns = self._born_ns + np.array([spec.max_ahead_ns for spec in specs], np.int64)[batch.series]
        first_ns = -(-reached_ns // window_ns) * window_ns
        verdict[(verdict == ACCEPTED) & (batch.time_ns < first_ns)] = BEHIND_JOURNAL

    def _enter(self, batch: SampleBatch, arrived_ns: Int64s, verdict: Bytes, oldest_arrival_ns: int) -> None:
        """Filters, windows and alarms; then they wait for the commit."""
        pending = self._committer.pending
        alarms = self._operators.samples(batch, arrived_ns, verdict)
        pending.add(batch, verdict, oldest_arrival_ns)
        self._past.recent.add(batch, verdict)
        self._committer.raise_alarms(pending, alarms)

    # -- while the clock is not trusted (edge/clock.py) ----------------------------------------------

    def resume(self) -> None:
        """What the life before this one has held goes on to be held, if the time in between is known."""
        held, pending = self._operators.held, self._committer.pending
        goes_on = held.anchor is not None and held.samples > 0 and self._clock.go_on(held.anchor)
        pending.resumed_ns = self._clock.tick_ns()
        self._operators.resume(pending.resumed_ns)
        if held.samples and not goes_on:
            log.warning("%d samples that were held keep estimated times: the clock was never trusted", held.samples)
            self._release(Step(0, held.newest_ns()), Quality.CLOCK)

    def _hold(self, batch: SampleBatch, arrived_ns: Int64s, stamp: NDArray[np.bool_]) -> Bytes:
        """Samples to be stamped (where `stamp`) get an estimate for now, the others what they always get."""
        verdict = np.full(len(batch), HELD, np.uint8)
        others = batch.take(~stamp)
        verdict[~stamp] = self._admit(others, arrived_ns[~stamp])
        batch.time_ns[~stamp], batch.quality[~stamp] = others.time_ns, others.quality
        held = self._operators.held
        batch.time_ns[stamp] = held.stamp(batch.series[stamp], arrived_ns[stamp], self._operators.admission.last_ns)
        held.anchor = self._committer.pending.anchor = self._clock.anchor()
        return verdict

    def mind_the_clock(self) -> bool:
        """When it can be trusted, everything that was held gets its time; when too much is held, half of that an
        estimate. Both happen at the beginning of a block. True: a new time counts from now on."""
        held, clock = self._operators.held, self._clock
        if self._born_ns == BIRTH_UNKNOWN_NS and clock.trusted:
            self._born_ns = self._committer.pending.born_ns = clock.now_ns()
        may_step = clock.may_step()
        if not may_step and held.samples <= self._max_held:
            return False
        if not self._committer.pending.is_at_its_beginning():
            self._committer.soon = True
            return False
        if may_step:
            by_ns = clock.step()
            self._intake.clock_stepped(by_ns)
            self._release(Step(by_ns, held.newest_ns(), clock.now_ns(), clock.tick_ns()), Quality.GOOD)
            return True
        log.warning("%d samples are held: the older half keeps estimated times", held.samples)
        self._release(Step(0, held.middle_ns()), Quality.CLOCK)
        return False

    def _release(self, step: Step, quality: Quality) -> None:
        """Held samples get their times, and go on as if they had just come."""
        self._committer.pending.step, self._committer.soon = step, True
        batch = self._operators.step(step)
        if not len(batch):
            return
        arrived_ns = batch.time_ns + step.by_ns
        batch.time_ns = np.zeros(len(batch), np.int64)
        batch.quality |= np.uint8(quality)
        verdict = self._admit(batch, arrived_ns)
        verdict[verdict == ACCEPTED] = RELEASED
        self._enter(batch, arrived_ns, verdict, self._clock.now_ns())
