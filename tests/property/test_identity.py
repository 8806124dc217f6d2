"""Final times and verdicts against an oracle that looks at one sample at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.model import REJECT_REASONS, SECOND_NS, Bytes, Floats, Int64s, Quality, SampleBatch, SeriesSpec
from edge.identity import BEHIND_JOURNAL, CONFLICT, DUPLICATE, FUTURE, NEVER_NS, Admission, spread

BIRTH_NS = 1_700_000_000 * SECOND_NS
RESOLUTIONS = (1, 1, SECOND_NS, 7)
MAX_AHEAD_NS = 60 * SECOND_NS


@dataclass
class Oracle:
    """Design §3, sample by sample, with every accepted sample kept in one dict."""

    floor_ns: int
    accepted: dict[tuple[int, int], float] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)

    def admit(self, series: int, time_ns: int, value: float, arrived_ns: int, now_ns: int) -> tuple[int, int]:
        last = self.last.get(series, NEVER_NS)
        resolution = RESOLUTIONS[series]
        if time_ns == 0:
            time_ns = max(arrived_ns, last + 1)
        elif time_ns > now_ns + MAX_AHEAD_NS:
            return time_ns, FUTURE
        elif resolution > 1 and time_ns <= last < time_ns + resolution - 1:
            time_ns = spread(time_ns, last, resolution)
        if time_ns <= last and time_ns <= self.floor_ns:
            return time_ns, BEHIND_JOURNAL
        if (series, time_ns) in self.accepted:
            return time_ns, DUPLICATE if self.accepted[series, time_ns] == value else CONFLICT
        self.accepted[series, time_ns] = value
        self.last[series] = max(last, time_ns)
        return time_ns, 0


class Past:
    """The history port: what was accepted in earlier batches."""

    def __init__(self) -> None:
        self.rows: dict[int, list[tuple[int, float]]] = {}

    def add(self, batch: SampleBatch, verdict: Bytes) -> None:
        for s, t, v, refused in zip(batch.series, batch.time_ns, batch.value, verdict, strict=True):
            if not refused:
                self.rows.setdefault(int(s), []).append((int(t), float(v)))

    def __call__(self, series: int, times_ns: Int64s) -> tuple[Int64s, Floats]:
        found = [(t, v) for t, v in self.rows.get(series, []) if t in times_ns]
        return np.array([t for t, _ in found], np.int64), np.array([v for _, v in found], np.float64)


@st.composite
def samples(draw: st.DrawFn) -> list[tuple[int, int, float, int]]:
    """(series, time or 0, value, arrival): mostly in order, with repeats, old ones, leaps and a clock that steps."""
    out: list[tuple[int, int, float, int]] = []
    arrived = BIRTH_NS
    for _ in range(draw(st.integers(1, 40))):
        arrived += draw(st.sampled_from([0, 0, 1, 1_000, SECOND_NS, 10 * SECOND_NS, -3 * SECOND_NS, -(1 << 58)]))
        series = draw(st.integers(0, len(RESOLUTIONS) - 1))
        offset = draw(st.sampled_from([0, 0, 1, 2, -1, SECOND_NS, -SECOND_NS, 300 * SECOND_NS, -(1 << 57), 1 << 57]))
        time_ns = draw(st.sampled_from([0, BIRTH_NS + offset, arrived + offset, arrived // SECOND_NS * SECOND_NS]))
        out.append((series, time_ns, float(draw(st.integers(0, 2))), arrived))
    return out


def run(
    stream: list[tuple[int, int, float, int]],
    cuts: list[int],
    now_ns: int,
    *,
    restart: bool = False,
    floor_ns: int = NEVER_NS,
) -> tuple[list[int], list[int], Admission]:
    past = Past()
    admission = new_admission(past)
    times: list[int] = []
    verdicts: list[int] = []
    for lo, hi in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        piece = stream[lo:hi]
        batch = SampleBatch(
            np.array([s for s, _, _, _ in piece], np.int32),
            np.array([t for _, t, _, _ in piece], np.int64),
            np.array([v for _, _, v, _ in piece], np.float64),
            np.zeros(len(piece), np.uint8),
        )
        verdict = admission.admit(batch, np.array([a for *_, a in piece], np.int64), now_ns, journal_floor_ns=floor_ns)
        past.add(batch, verdict)
        times += batch.time_ns.tolist()
        verdicts += verdict.tolist()
        if restart:
            state = admission.snapshot()
            admission = new_admission(past)
            admission.restore(state)
    return times, verdicts, admission


def new_admission(past: Past) -> Admission:
    admission = Admission(past)
    for index, resolution in enumerate(RESOLUTIONS):
        admission.add_series(
            index,
            SeriesSpec("d", f"c{index}", "q", "u", max_ahead_ns=MAX_AHEAD_NS, time_resolution_ns=resolution),
        )
    return admission


@given(
    stream=samples(),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    restart=st.booleans(),
    floor_ns=st.sampled_from([NEVER_NS, BIRTH_NS - 1, BIRTH_NS]),
)
def test_columns_decide_as_one_sample_at_a_time_does_for_any_cutting(
    stream: list[tuple[int, int, float, int]], cuts: list[int], restart: bool, floor_ns: int
) -> None:
    now_ns = BIRTH_NS + 20 * SECOND_NS
    oracle = Oracle(floor_ns)
    expected = [oracle.admit(s, t, v, a, now_ns) for s, t, v, a in stream]
    times, verdicts, admission = run(
        stream, sorted(min(c, len(stream)) for c in cuts), now_ns, restart=restart, floor_ns=floor_ns
    )
    assert list(zip(times, verdicts, strict=True)) == expected
    assert {s: int(t) for s, t in enumerate(admission.last_ns) if t != NEVER_NS} == oracle.last


@given(stream=samples())
def test_a_replay_of_the_journal_restores_the_state(stream: list[tuple[int, int, float, int]]) -> None:
    times, verdicts, lived = run(stream, [], BIRTH_NS)
    replayed = new_admission(Past())
    n = len(stream)
    series = np.array([s for s, _, _, _ in stream], np.int32)
    replayed.replay(
        SampleBatch(series, np.array(times, np.int64), np.zeros(n), np.zeros(n, np.uint8)), np.array(verdicts, np.uint8)
    )
    assert told(replayed) == told(lived)


@dataclass(frozen=True)
class Step:
    """The clock is set back to `now_ns`, and what was held goes on after `until_ns`."""

    now_ns: int
    until_ns: int


STEPS_NS = (0, 1, SECOND_NS, 90 * SECOND_NS, 3600 * SECOND_NS, 3 * 86_400 * SECOND_NS, 9 * 365 * 86_400 * SECOND_NS)


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[Step | None, int, list[tuple[int, int, float, int]]]]:
    """(set back, clock, samples as above), under a clock that is wrong by much, to and fro; many are sent again."""
    eras: list[tuple[Step | None, int, list[tuple[int, int, float, int]]]] = []
    sent: list[tuple[int, int, float]] = []
    true_ns, wrong_ns = BIRTH_NS, 0
    for _ in range(draw(st.integers(1, 8))):
        before_ns, wrong_ns = wrong_ns, draw(st.sampled_from([1, -1])) * draw(st.sampled_from(STEPS_NS))
        now_ns = true_ns + wrong_ns
        until_ns = now_ns - draw(st.sampled_from([1, SECOND_NS, 600 * SECOND_NS]))
        samples: list[tuple[int, int, float, int]] = []
        for _ in range(draw(st.integers(0, 8))):
            true_ns += SECOND_NS // 2
            series, value = draw(st.sampled_from([0, 1, 3])), float(draw(st.integers(0, 1)))
            wrongly_ns = true_ns + wrong_ns
            time_ns = draw(st.sampled_from([0, wrongly_ns, true_ns, true_ns - 20 * SECOND_NS, now_ns - SECOND_NS]))
            again = draw(st.booleans())
            if sent and again:
                series, time_ns, value = draw(st.sampled_from(sent))
            elif time_ns:
                sent.append((series, time_ns, value))
            samples.append((series, time_ns, value, wrongly_ns + len(sent)))
        eras.append((Step(now_ns, until_ns) if wrong_ns < before_ns else None, now_ns, samples))
    return eras


class Trimmed(Past):
    """A journal that has forgotten all up to a time."""

    def __init__(self, floor_ns: int) -> None:
        super().__init__()
        self.floor_ns = floor_ns

    def __call__(self, series: int, times_ns: Int64s) -> tuple[Int64s, Floats]:
        return super().__call__(series, times_ns[times_ns > self.floor_ns])


def live_through(
    eras: list[tuple[Step | None, int, list[tuple[int, int, float, int]]]], floor_ns: int, pieces: int, restart: bool
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, float]], Admission, Admission]:
    """(series, time sent, verdict) and (series, time, value) of all samples, the state, and that of a replay."""
    past = Trimmed(floor_ns)
    admission, replayed = new_admission(past), new_admission(past)
    verdicts: list[tuple[int, int, int]] = []
    finals: list[tuple[int, int, float]] = []
    for step, now_ns, samples in eras:
        if step is not None:
            admission.step_back(step.now_ns, step.until_ns)
            replayed.step_back(step.now_ns, step.until_ns)
        for start in range(0, len(samples), pieces):
            piece = samples[start : start + pieces]
            series, times, values, arrived = (np.array(column) for column in zip(*piece, strict=True))
            batch = SampleBatch(series.astype(np.int32), times.copy(), values, np.zeros(len(piece), np.uint8))
            verdict = admission.admit(batch, arrived, now_ns, journal_floor_ns=floor_ns)
            past.add(batch, np.where(verdict == BEHIND_JOURNAL, 0, verdict).astype(np.uint8))
            verdicts += zip(series.tolist(), times.tolist(), verdict.tolist(), strict=True)
            finals += zip(series.tolist(), batch.time_ns.tolist(), values.tolist(), strict=True)
            replayed.replay(batch, verdict)
            if restart:
                state, admission = admission.snapshot(), new_admission(past)
                admission.restore(state)
    return verdicts, finals, admission, replayed


def told(admission: Admission) -> dict[str, object]:
    return {name: array.tolist() for name, array in admission.snapshot().items()}


@settings(max_examples=300)
@given(
    eras=lives(),
    pieces=st.integers(1, 5),
    restart=st.booleans(),
    floor_ns=st.sampled_from([NEVER_NS, BIRTH_NS + 5 * SECOND_NS, BIRTH_NS + 2 * STEPS_NS[-1]]),
)
def test_whatever_the_clock_does_a_time_is_accepted_once(
    eras: list[tuple[Step | None, int, list[tuple[int, int, float, int]]]], pieces: int, restart: bool, floor_ns: int
) -> None:
    verdicts, finals, lived, replayed = live_through(eras, floor_ns, pieces, restart)
    seen: dict[tuple[int, int], float] = {}
    for (series, sent_ns, verdict), (_, time_ns, value) in zip(verdicts, finals, strict=True):
        key = series, time_ns
        if verdict == 0 and sent_ns == time_ns:  # an arrival stamp, or one that is spread, is never a repeat
            assert key not in seen
        if verdict in (DUPLICATE, CONFLICT):
            assert (verdict == DUPLICATE) == (seen[key] == value)
        elif verdict != FUTURE:
            seen[key] = value
    assert told(replayed) == told(lived)
    whole = live_through(eras, floor_ns, len(verdicts) + 1, restart=False)
    assert (whole[0], whole[1], told(whole[2])) == (verdicts, finals, told(lived))


def test_series_that_a_clock_took_along_for_years_are_not_asked_about_once_it_is_right_again() -> None:
    """Though the journal has forgotten all of it."""
    years_ns = 9 * 365 * 86_400 * SECOND_NS
    admission = new_admission(Past())

    def admit(times_ns: list[int], now_ns: int) -> list[int]:
        n = len(times_ns)
        batch = SampleBatch(np.zeros(n, np.int32), np.array(times_ns), np.ones(n), np.zeros(n, np.uint8))
        floor_ns = BIRTH_NS + years_ns + 9 * SECOND_NS
        return list(admission.admit(batch, np.full(n, now_ns), now_ns, journal_floor_ns=floor_ns))

    admit([BIRTH_NS], BIRTH_NS)
    ahead_ns = [BIRTH_NS + years_ns + number * SECOND_NS for number in range(10)]
    admit(ahead_ns, ahead_ns[-1])
    now_ns = BIRTH_NS + 20 * SECOND_NS
    admission.step_back(now_ns, now_ns - 1)
    assert admit([now_ns, now_ns + SECOND_NS, now_ns - SECOND_NS], now_ns) == [0, 0, BEHIND_JOURNAL]
    assert admit(ahead_ns, ahead_ns[-1]) == [BEHIND_JOURNAL] * 10
    assert admit([ahead_ns[-1] + 1], ahead_ns[-1]) == [0]
    assert admission.snapshot()["spans"].tolist() == []


def test_equal_coarse_stamps_are_spread_and_say_so() -> None:
    stream = [(2, BIRTH_NS, 1.0, BIRTH_NS)] * 4 + [(2, BIRTH_NS + SECOND_NS, 1.0, BIRTH_NS)]
    times, verdicts, _ = run(stream, [2], BIRTH_NS)
    assert [t - BIRTH_NS for t in times] == [0, 500_000_000, 666_666_666, 749_999_999, SECOND_NS]
    assert not any(verdicts)
    batch = SampleBatch(np.full(2, 2, np.int32), np.full(2, BIRTH_NS), np.ones(2), np.zeros(2, np.uint8))
    new_admission(Past()).admit(batch, np.full(2, BIRTH_NS), BIRTH_NS)
    assert batch.quality.tolist() == [0, Quality.SPREAD]


def test_more_equal_coarse_stamps_than_the_resolution_holds_are_no_new_samples() -> None:
    stream = [(3, BIRTH_NS, 1.0, BIRTH_NS)] * 9
    times, verdicts, _ = run(stream, [], BIRTH_NS)
    accepted = [t - BIRTH_NS for t, v in zip(times, verdicts, strict=True) if not v]
    assert accepted == sorted(set(accepted))
    assert all(0 <= t < 7 for t in accepted)
    assert verdicts[-1] == DUPLICATE


def test_an_arrival_stamp_is_never_future_however_far_the_clock_stepped_back() -> None:
    hour = 3600 * SECOND_NS
    times, verdicts, _ = run([(0, 0, 1.0, BIRTH_NS), (0, 0, 1.0, BIRTH_NS - hour)], [1], BIRTH_NS - hour)
    assert times == [BIRTH_NS, BIRTH_NS + 1]
    assert verdicts == [0, 0]


def test_the_old_samples_of_a_batch_are_asked_about_at_once() -> None:
    asked: list[list[int]] = []

    def history(_series: int, times_ns: Int64s) -> tuple[Int64s, Floats]:
        asked.append(times_ns.tolist())
        return np.empty(0, np.int64), np.empty(0)

    admission = Admission(history)
    admission.add_series(0, SeriesSpec("d", "c", "q", "u"))
    for times_ns in ([BIRTH_NS], [1, 2, BIRTH_NS - 1]):
        n = len(times_ns)
        batch = SampleBatch(np.zeros(n, np.int32), np.array(times_ns), np.ones(n), np.zeros(n, np.uint8))
        admission.admit(batch, np.full(n, BIRTH_NS), BIRTH_NS)
    assert asked == [[1, 2, BIRTH_NS - 1]]


@pytest.mark.parametrize(("code", "reason"), [(FUTURE, "future"), (DUPLICATE, "duplicate"), (CONFLICT, "conflict")])
def test_a_verdict_is_one_more_than_the_index_of_its_reason(code: int, reason: str) -> None:
    assert REJECT_REASONS[code - 1] == reason
