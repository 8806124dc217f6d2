"""When each sample was, and whether it was there before (design §3).

A sample is identified by (series, time). `Admission` gives every sample its final time, once, and its
verdict, in order of arrival:

- arrival-stamped samples (time 0) get max(arrival, last + 1 ns), so that they are strictly increasing;
- equal stamps of a device that stamps coarsely (`time_resolution`) are spread within that resolution:
  the next one goes a half, two thirds, three quarters ... into it, for which only the last time is needed;
- a sample further ahead of the clock than `max_ahead` is `future`, and leaves no trace;
- a time that the series has had before is a `duplicate` with the same value, a `conflict` with another;
- an old sample about which the journal cannot tell any more, since it has been trimmed past its time, is
  BEHIND_JOURNAL: neither accepted nor rejected, it goes raw, where writing it twice changes nothing;
- what cannot be stamped yet, since the clock is not trusted, is HELD, and RELEASED later (edge/held.py).

The usual sample is later than all of its series before it, and is decided on columns. A series with
anything else in the batch is walked through sample by sample, and for what lies at or before its last
time the history is asked. How the stream is cut into batches changes nothing, but for `future`, which
depends on the clock at the batch: verdicts are kept in the journal, and `replay` repeats them.

The state of a series is its *last* time, up to which every sample is asked about. A clock that is set back takes it
back (`step_back`): what the series had beyond is kept as *spans*, in which samples are asked about as well, until the
series has passed them. A clock that was years ahead must not leave a span of years, in which all would go raw once the
journal has forgotten it: therefore the widest *gap* in the times of a series is known, and lies between two spans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from devices.model import REJECT_REASONS, SECOND_NS, Bytes, Floats, Int64s, Quality, SampleBatch, SeriesSpec

VERSION = 1

ACCEPTED = 0
FUTURE = 1 + REJECT_REASONS.index("future")
DUPLICATE = 1 + REJECT_REASONS.index("duplicate")
CONFLICT = 1 + REJECT_REASONS.index("conflict")
BEHIND_JOURNAL = 255
HELD = 254
RELEASED = 253

NEVER_NS = -(1 << 62)
"""Last time of a series without a sample."""
SPAN_BITS = 62
"""Room of an int64 in which the times of all groups of a batch are laid end to end."""
EVER_NS = 1 << 62
"""Where the spans of a series that has none begin."""
GAP_NS = 86_400 * SECOND_NS
"""A stretch of time without samples is noted if it is longer than this."""
SPANS_MAX = 8
"""Of one series; of more the two that are nearest to each other become one."""

History: TypeAlias = Callable[[int, Int64s], tuple[Int64s, Floats]]
"""(series, times in order) -> times and values of its accepted samples that have one of these times, in any order."""

_MIN_SERIES = 64


class Admission:
    """Final times and verdicts. Series are added in the order of their index."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._series = 0
        self._last = np.full(_MIN_SERIES, NEVER_NS, np.int64)
        self._max_ahead = np.zeros(_MIN_SERIES, np.int64)
        self._resolution = np.ones(_MIN_SERIES, np.int64)
        self._any_coarse = False
        self._gap = np.full((_MIN_SERIES, 2), NEVER_NS, np.int64)
        """(a, b) of a series: no sample lies after a and before b. (NEVER_NS, NEVER_NS): not known."""
        self._spans: dict[int, list[tuple[int, int]]] = {}
        """By series, in order: from a to b, both included, times may have been there, though they are after `_last`."""
        self._beyond = np.full(_MIN_SERIES, EVER_NS, np.int64)
        """Where the first span of a series begins."""

    def add_series(self, index: int, spec: SeriesSpec) -> None:
        """Make room for a series, or change the settings of one, which keeps its state."""
        if index >= len(self._last):
            more = max(index + 1, 2 * len(self._last)) - len(self._last)
            self._last = np.concatenate([self._last, np.full(more, NEVER_NS, np.int64)])
            self._max_ahead = np.concatenate([self._max_ahead, np.zeros(more, np.int64)])
            self._resolution = np.concatenate([self._resolution, np.ones(more, np.int64)])
            self._gap = np.concatenate([self._gap, np.full((more, 2), NEVER_NS, np.int64)])
            self._beyond = np.concatenate([self._beyond, np.full(more, EVER_NS, np.int64)])
        self._series = max(self._series, index + 1)
        self._max_ahead[index] = spec.max_ahead_ns
        self._resolution[index] = max(spec.time_resolution_ns, 1)
        self._any_coarse = bool((self._resolution > 1).any())

    @property
    def last_ns(self) -> Int64s:
        """Time of the latest accepted sample by series; NEVER_NS without one. A view: do not write to it."""
        return self._last[: self._series]

    def admit(self, batch: SampleBatch, arrived_ns: Int64s, now_ns: int, *, journal_floor_ns: int = NEVER_NS) -> Bytes:
        """Give the batch its final times (in place, with their quality) and return uint8[n] verdicts.

        0 is accepted, BEHIND_JOURNAL is for raw, otherwise 1 + the index in REJECT_REASONS. `arrived_ns`
        int64[n]: when each sample arrived; `now_ns`: the clock, against which `future` is judged;
        `journal_floor_ns`: the latest time in what the journal was trimmed of, up to which it cannot answer.
        """
        n = len(batch)
        verdict = np.zeros(n, np.uint8)
        if n == 0:
            return verdict
        stamp = batch.time_ns == 0
        ahead = batch.time_ns > now_ns + self._max_ahead[batch.series]
        if not ahead.any():
            rows = _by_series(batch.series)
        else:
            verdict[ahead] = FUTURE
            left = np.flatnonzero(~ahead)
            if len(left) == 0:
                return verdict
            rows = left[_by_series(batch.series[left])]
        odd = self._admit_columns(batch, arrived_ns, rows, stamp)
        for group in odd:
            self._walk(batch, arrived_ns, group, stamp, verdict, journal_floor_ns)
        return verdict

    def replay(self, batch: SampleBatch, verdict: Bytes) -> None:
        """Take over a batch of the journal, whose times and verdicts stand."""
        good = np.flatnonzero(has_time(verdict))
        if len(good) == 0:
            return
        rows = good[_by_series(batch.series[good])]
        series, times = batch.series[rows], batch.time_ns[rows]
        heads = np.flatnonzero(np.concatenate([[True], series[1:] != series[:-1]]))
        before = np.concatenate([times[:1], times[:-1]])
        before[heads] = self._last[series[heads]]
        odd = np.logical_or.reduceat((times <= before) | self._is_far(series, times, before), heads)
        ends = np.append(heads[1:], len(rows))
        self._last[series[heads[~odd]]] = times[ends[~odd] - 1]
        for g in np.flatnonzero(odd):
            for time_ns in times[heads[g] : ends[g]].tolist():
                self._took(int(series[heads[g]]), time_ns)

    def step_back(self, now_ns: int, until_ns: int) -> None:
        """It is `now_ns`, and the clock was ahead or is behind: series that lie further ahead than samples may be go on
        from `until_ns`, which is before it. What they have had since is asked about as what lies before."""
        ahead = self._last[: self._series] > now_ns + self._max_ahead[: self._series]
        for series in np.flatnonzero(ahead).tolist():
            last, (lo, hi) = int(self._last[series]), self._gap[series].tolist()
            had = [(until_ns + 1, lo), (max(until_ns + 1, hi), last)] if hi > until_ns else [(until_ns + 1, last)]
            self._set_spans(series, [*self._spans.get(series, []), *had])
            self._last[series], self._gap[series] = until_ns, NEVER_NS

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """A copy of the state: `last_ns` int64[series], `gap_ns` int64[series, 2], `spans` int64[n, 3] of series and
        both ends."""
        spans = [(series, *span) for series in sorted(self._spans) for span in self._spans[series]]
        return {
            "last_ns": self.last_ns.copy(),
            "gap_ns": self._gap[: self._series].copy(),
            "spans": np.array(spans, np.int64).reshape(-1, 3),
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take over what `snapshot` gave, in this version or before it knew of gaps; series that were added since keep
        theirs."""
        last = state["last_ns"]
        self._last[: len(last)] = last[: len(self._last)]
        if "spans" in state:
            self._gap[: len(last)] = state["gap_ns"][: len(self._gap)]
            for series, lo, hi in state["spans"].tolist():
                self._set_spans(series, [*self._spans.get(series, []), (lo, hi)])

    # -- one sample more -----------------------------------------------------------------------------

    def _is_far(self, series: NDArray[np.int32], times: Int64s, before: Int64s) -> NDArray[np.bool_]:
        """Which samples are more to the state than a last time."""
        far: NDArray[np.bool_] = times > before + GAP_NS
        if self._spans:
            far |= times >= self._beyond[series]
        return far

    def _took(self, series: int, time_ns: int) -> None:
        """A sample with this time is there from now on."""
        last, (gap_lo, gap_hi) = int(self._last[series]), self._gap[series].tolist()
        if time_ns <= last:
            if gap_lo < time_ns < gap_hi:
                self._gap[series, 0] = time_ns
            return
        self._last[series] = time_ns
        spans = self._spans.get(series, [])
        before = max([last, *(hi for lo, hi in spans if lo <= time_ns)])
        widest = max(gap_hi - gap_lo, GAP_NS) if gap_lo > NEVER_NS else GAP_NS
        if time_ns - before > widest:
            self._gap[series] = before, time_ns
        if spans and spans[0][1] <= time_ns:
            self._set_spans(series, [span for span in spans if span[1] > time_ns])

    def _is_in_a_span(self, series: int, time_ns: int) -> bool:
        return any(lo <= time_ns <= hi for lo, hi in self._spans.get(series, ()))

    def _set_spans(self, series: int, spans: list[tuple[int, int]]) -> None:
        """Keep them in order, and apart from each other."""
        kept: list[tuple[int, int]] = []
        for lo, hi in sorted(span for span in spans if span[0] <= span[1]):
            if kept and lo <= kept[-1][1] + 1:
                kept[-1] = kept[-1][0], max(kept[-1][1], hi)
            else:
                kept.append((lo, hi))
        while len(kept) > SPANS_MAX:
            nearest = min(range(1, len(kept)), key=lambda i: kept[i][0] - kept[i - 1][1])
            kept[nearest - 1 : nearest + 1] = [(kept[nearest - 1][0], kept[nearest][1])]
        self._spans.pop(series, None)
        self._beyond[series] = EVER_NS
        if kept:
            self._spans[series], self._beyond[series] = kept, kept[0][0]

    # -- on columns ----------------------------------------------------------------------------------

    def _admit_columns(
        self, batch: SampleBatch, arrived_ns: Int64s, rows: NDArray[np.int64], stamp: NDArray[np.bool_]
    ) -> list[NDArray[np.int64]]:
        """Decide every series whose samples are all of one sort and in order; return the rows of the others.

        `rows` are positions in the batch, sorted by series and then by arrival.
        """
        series = batch.series[rows]
        head = np.empty(len(rows), np.bool_)
        head[0] = True
        np.not_equal(series[1:], series[:-1], out=head[1:])
        heads = np.flatnonzero(head)
        of_group = series[heads]
        group = np.cumsum(head) - 1
        last = self._last[of_group]

        stamped = stamp[rows]
        n_stamped = int(np.count_nonzero(stamped))
        times = batch.time_ns[rows]
        if n_stamped:
            times = np.where(stamped, _increasing(arrived_ns[rows], head, heads, group, last), times)
        before = np.empty_like(times)
        before[1:] = times[:-1]
        before[heads] = last
        wrong = (times <= before) | self._is_far(series, times, before)
        if 0 < n_stamped < len(rows):
            wrong |= stamped != stamped[heads][group]
        if self._any_coarse:
            wrong |= (self._resolution[series] > 1) & ~stamped
        ends = np.append(heads[1:], len(rows)) - 1

        if not wrong.any():
            if n_stamped:
                batch.time_ns[rows] = times
            self._last[of_group] = times[ends]
            return []
        odd = np.logical_or.reduceat(wrong, heads)
        good = ~odd
        if n_stamped:
            keep = good[group]
            batch.time_ns[rows[keep]] = times[keep]
        self._last[of_group[good]] = times[ends[good]]
        return [rows[heads[g] : ends[g] + 1] for g in np.flatnonzero(odd)]

    # -- sample by sample ----------------------------------------------------------------------------

    def _walk(
        self,
        batch: SampleBatch,
        arrived_ns: Int64s,
        rows: NDArray[np.int64],
        stamp: NDArray[np.bool_],
        verdict: Bytes,
        journal_floor_ns: int,
    ) -> None:
        """Decide the samples of one series, in order of arrival."""
        series = int(batch.series[rows[0]])
        resolution = int(self._resolution[series])
        reach = max([int(self._last[series]), *(hi for _, hi in self._spans.get(series, ()))])
        told = batch.time_ns[rows[~stamp[rows]]]
        old = np.unique(told[(told > journal_floor_ns) & (told <= reach)])
        known = self._known(series, old) if len(old) else {}
        for row, time_ns, arrived, is_stamped, value in zip(
            rows.tolist(),
            batch.time_ns[rows].tolist(),
            arrived_ns[rows].tolist(),
            stamp[rows].tolist(),
            batch.value[rows].tolist(),
            strict=True,
        ):
            last = int(self._last[series])
            final = time_ns
            if is_stamped:
                final = max(arrived, last + 1)
            elif time_ns <= last < time_ns + resolution - 1:
                final = spread(time_ns, last, resolution)
                batch.quality[row] |= Quality.SPREAD
            elif time_ns <= journal_floor_ns and (time_ns <= last or self._is_in_a_span(series, time_ns)):
                verdict[row] = BEHIND_JOURNAL
            elif time_ns in known:
                verdict[row] = DUPLICATE if known[time_ns] == value else CONFLICT
                continue
            batch.time_ns[row] = final
            known[final] = value
            self._took(series, final)

    def _known(self, series: int, old_ns: Int64s) -> dict[int, float]:
        """What the history has of a series at these times: time -> value."""
        times, values = self._history(series, old_ns)
        return dict(zip(times.tolist(), values.tolist(), strict=True))


def has_time(verdict: Bytes) -> NDArray[np.bool_]:
    """Whose time is final, and was not there before."""
    final: NDArray[np.bool_] = (verdict == ACCEPTED) | (verdict == BEHIND_JOURNAL) | (verdict == RELEASED)
    return final


def spread(time_ns: int, last_ns: int, resolution_ns: int) -> int:
    """The place of the next of several equal coarse stamps, after `last_ns`, within the resolution.

    If the last one lies k / (k + 1) into the resolution, the next goes to (k + 1) / (k + 2). With the
    offset o = r k / (k + 1) that is r² / (2 r - o). Needs time_ns <= last_ns < time_ns + resolution_ns - 1.
    """
    offset = last_ns - time_ns
    following = resolution_ns * resolution_ns // (2 * resolution_ns - offset)
    return time_ns + min(max(following, offset + 1), resolution_ns - 1)


def _by_series(series: NDArray[np.int32]) -> NDArray[np.int64]:
    """Positions sorted by series and then by arrival: the sort of one packed integer is the fastest there is."""
    n = len(series)
    bits = max(n - 1, 1).bit_length()
    packed = (series.astype(np.int64) << bits) | np.arange(n)
    packed.sort()
    return packed & ((1 << bits) - 1)


def _increasing(
    arrived_ns: Int64s, head: NDArray[np.bool_], heads: NDArray[np.int64], group: NDArray[np.int64], last_ns: Int64s
) -> Int64s:
    """Strictly increasing times by group: t[i] = max(arrived[i], t[i-1] + 1), where t before a head is the last.

    With the rank r in the group, t - r is a running maximum; all groups are laid end to end so that one
    running maximum serves them all.
    """
    n = len(arrived_ns)
    rank = np.arange(n) - heads[group]
    floor = arrived_ns - rank
    floor[heads] = np.maximum(floor[heads], last_ns + 1)
    lowest = int(floor.min())
    span = int(floor.max()) - lowest + 1
    if span.bit_length() + len(heads).bit_length() > SPAN_BITS:
        return _increasing_slowly(arrived_ns, head, group, last_ns)
    lanes = group * span
    running: Int64s = np.maximum.accumulate(floor - lowest + lanes) - lanes + lowest + rank
    return running


def _increasing_slowly(
    arrived_ns: Int64s, head: NDArray[np.bool_], group: NDArray[np.int64], last_ns: Int64s
) -> Int64s:
    """The same, sample by sample: for times so far apart (a clock that leapt) that they cannot be laid end to end."""
    last = NEVER_NS
    times: list[int] = []
    for arrived, is_head, g in zip(arrived_ns.tolist(), head.tolist(), group.tolist(), strict=True):
        last = max(arrived, (int(last_ns[g]) if is_head else last) + 1)
        times.append(last)
    return np.array(times, np.int64)
