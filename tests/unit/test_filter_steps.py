"""Each filter's step beside a slow, obvious twin, on hostile series."""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.model import SECOND_NS, SeriesSpec
from edge.kernels import dispatcher
from edge.kernels.range import RangeFilter
from edge.kernels.rate import RateFilter
from edge.kernels.stuck import StuckFilter
from edge.kernels.zscore import ZscoreFilter

SPEC = SeriesSpec("device", "channel", "level", "")
Sample = tuple[int, float]

VALUES = st.one_of(
    st.floats(-100, 100),
    st.sampled_from([0.0, 1.0, 1.0, 1e300, -1e300, 1.7e308, -1.7e308, 5e-324, 1e9, 1e9 + 0.25]),
)
STEPS_NS = st.one_of(st.integers(1, 5 * SECOND_NS), st.sampled_from([1, SECOND_NS, 3600 * SECOND_NS, 10**17]))


@st.composite
def increasing(draw: st.DrawFn) -> list[Sample]:
    """Samples at strictly increasing times, as the pass promises them to a step."""
    time_ns, samples = 0, []
    for step_ns, value in draw(st.lists(st.tuples(STEPS_NS, VALUES), min_size=1, max_size=60)):
        time_ns += step_ns
        samples.append((time_ns, value))
    return samples


@functools.cache
def compiled_step(filter_: Any) -> Any:
    return dispatcher(filter_.step)


def run(filter_: Any, options: dict[str, Any], samples: list[Sample]) -> list[tuple[float, float, float]]:
    """The scores and bands of the real step."""
    params = np.zeros(1, filter_.params)
    params[0] = filter_.params_of(msgspec.convert(options, filter_.Options), SPEC)
    state = np.zeros(1, filter_.state)
    step = compiled_step(filter_)
    return [step(state[0], params[0], time_ns, value) for time_ns, value in samples]


def slow_range(samples: list[Sample], low: float, high: float) -> list[bool]:
    return [not low <= value <= high for _, value in samples]


def slow_stuck(samples: list[Sample], after_s: float, tolerance: float) -> list[float]:
    scores, anchor = [], 0
    for i, (time_ns, value) in enumerate(samples):
        if abs(value - samples[anchor][1]) > tolerance:
            anchor = i
        scores.append((time_ns - samples[anchor][0]) / (after_s * 1e9) if i - anchor >= 2 else 0.0)
    return [min(score, 1e6) for score in scores]


def slow_rate(samples: list[Sample], max_per_s: float) -> list[float]:
    scores = [0.0]
    for (before_ns, before), (time_ns, value) in pairwise(samples):
        scores.append(min(abs(value - before) / ((time_ns - before_ns) * (max_per_s / 1e9)), 1e6))
    return scores


def slow_zscore(samples: list[Sample], o: Any) -> list[float]:
    """As the docstring of the module tells it, with the whole history at hand."""
    scores = [0.0]
    mean, deviation, peak, jumps = samples[0][1], 0.0, 0.0, 0.0
    lowest = highest = mean
    for n in range(2, len(samples) + 1):
        time_ns, value = samples[n - 1]
        tau_count = (time_ns - samples[n - 2][0]) / (o.tau_s * 1e9)
        weight = max(min(1 - math.exp(-tau_count), 1 / 64), 1 / n)
        r = max(-1e308, min(1e308, value - mean))
        moves = [abs(b[1] - a[1]) for a, b in pairwise(samples[:n])]
        step = min((move for move in moves if move > 0), default=math.inf)
        if n <= o.warm_up_samples:
            mean += weight * r
            deviation += weight * (math.sqrt(math.pi / 2) * abs(r) - deviation)
            peak, lowest, highest = max(peak, abs(r)), min(lowest, value), max(highest, value)
            scores.append(0.0)
            continue
        if step == math.inf:
            scores.append(0.0)
            continue
        sigma = max(deviation, 1e-300, step / 2, o.floor_relative * abs(mean))
        usual = o.threshold * sigma
        below = above = max(usual, 1.5 * peak)
        if 1.25 * peak > usual:
            jumps = 1.0
        if jumps > 0.5:
            below = max(below, min(mean - lowest, 1e308) + usual)
            above = max(above, min(highest - mean, 1e308) + usual)
        score = min(abs(r) / (above if r > 0 else below), 1e6)
        learning = time_ns - samples[0][0] < o.warm_up_s * 1e9
        fading = min(1.0, tau_count * o.tau_s / o.memory_s)
        peak -= peak * fading
        jumps -= jumps * fading
        lowest, highest = lowest + fading * (mean - lowest), highest + fading * (mean - highest)
        if abs(r) <= usual or learning:
            peak = max(peak, abs(r))
        if score < 1 or learning:
            lowest, highest = min(lowest, value), max(highest, value)
        else:
            weight /= 4
        clipped = min(abs(r), 2 * sigma)
        mean += math.copysign(weight * clipped, r)
        gaussian = math.sqrt(2 / math.pi) * (1 - math.exp(-2)) + 2 * math.erfc(math.sqrt(2))
        deviation += weight * (clipped / gaussian - deviation)
        scores.append(0.0 if learning else score)
    return scores


@given(increasing(), st.tuples(VALUES, VALUES))
def test_range_is_abnormal_exactly_outside_its_limits(samples: list[Sample], edges: tuple[float, float]) -> None:
    low, high = sorted(edges)
    got = run(RangeFilter, {"low": low, "high": high}, [*samples, (0, low), (0, high)])
    assert [score >= 1 for score, _, _ in got] == [*slow_range(samples, low, high), False, False]
    assert all(0 <= score <= 1e6 for score, _, _ in got)


@given(increasing(), VALUES)
def test_range_with_one_limit_bounds_one_side(samples: list[Sample], edge: float) -> None:
    above = run(RangeFilter, {"high": edge}, samples)
    assert [score >= 1 for score, _, _ in above] == slow_range(samples, -math.inf, edge)
    below = run(RangeFilter, {"low": edge}, samples)
    assert [score >= 1 for score, _, _ in below] == slow_range(samples, edge, math.inf)


def test_range_scores_by_the_distance_from_the_middle() -> None:
    scores = [score for score, _, _ in run(RangeFilter, {"low": 0, "high": 100}, [(0, v) for v in (50, 75, 150, 0)])]
    assert scores == [0.0, 0.5, 2.0, math.nextafter(1.0, 0.0)]


@given(increasing(), st.sampled_from([0.5, 60.0]), st.sampled_from([0.0, 0.5]))
def test_stuck_counts_the_time_since_the_value_moved(samples: list[Sample], after_s: float, tolerance: float) -> None:
    got = run(StuckFilter, {"after_s": after_s, "tolerance": tolerance}, samples)
    assert [score for score, _, _ in got] == pytest.approx(slow_stuck(samples, after_s, tolerance))


@given(increasing(), st.sampled_from([0.01, 1.0, 1e6]))
def test_rate_measures_the_change_per_second(samples: list[Sample], max_per_s: float) -> None:
    got = run(RateFilter, {"max_per_s": max_per_s}, samples)
    assert [score for score, _, _ in got] == pytest.approx(slow_rate(samples, max_per_s))


ZSCORES = [
    {"warm_up_samples": 3, "warm_up_s": 0.0},
    {"warm_up_samples": 5, "warm_up_s": 20.0, "tau_s": 10.0, "memory_s": 100.0, "threshold": 3.0},
    {"warm_up_samples": 0, "warm_up_s": 0.0, "tau_s": 1e6, "floor_relative": 0.0},
]


@given(increasing(), st.sampled_from(ZSCORES))
def test_zscore_follows_its_formula(samples: list[Sample], options: dict[str, Any]) -> None:
    got = run(ZscoreFilter, options, samples)
    want = slow_zscore(samples, msgspec.convert(options, ZscoreFilter.Options))
    assert [score for score, _, _ in got] == pytest.approx(want, rel=1e-4, abs=1e-9)


@given(increasing(), st.sampled_from(ZSCORES))
def test_no_finite_series_makes_a_score_that_is_not_a_number(samples: list[Sample], options: dict[str, Any]) -> None:
    assert all(0 <= score <= 1e6 for score, _, _ in run(ZscoreFilter, options, samples))


def noisy(n: int, step_s: float = 1.0) -> list[Sample]:
    values = np.random.default_rng(7).normal(60.0, 0.5, n)
    return [(round(i * step_s * SECOND_NS), float(value)) for i, value in enumerate(values)]


@pytest.mark.parametrize("step_s", [0.01, 1.0, 60.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_spike_of_12_deviations_is_abnormal_at_its_first_sample(step_s: float, sign: int) -> None:
    samples = noisy(40_000, step_s)
    scores = [score for score, _, _ in run(ZscoreFilter, {}, [*samples, (samples[-1][0] + 10**7, 60 + sign * 6.0)])]
    assert scores[-1] >= 1
    assert max(scores[:-1]) < 1


def test_a_fault_does_not_soon_pass_for_normal_but_a_lasting_level_is_learnt() -> None:
    samples = noisy(5000)
    fault = [(5000 * SECOND_NS + time_ns, value + 10.0) for time_ns, value in noisy(3000)]
    scores = [score for score, _, _ in run(ZscoreFilter, {}, samples + fault)]
    assert min(scores[5000 : 5000 + 300]) >= 1, "for one time constant it stays abnormal"
    assert max(scores[-1000:]) < 1, "after some it is the new level"


def test_a_load_step_that_the_warm_up_has_seen_is_normal() -> None:
    def level(i: int) -> float:
        return 20.0 if i // 600 % 2 else 0.0

    samples = [(time_ns, value + level(i)) for i, (time_ns, value) in enumerate(noisy(20_000))]
    scores = [score for score, _, _ in run(ZscoreFilter, {"warm_up_s": 1500.0}, samples)]
    assert max(scores) < 1
    assert run(ZscoreFilter, {"warm_up_s": 1500.0}, [*samples, (20_000 * SECOND_NS, 300.0)])[-1][0] >= 1


def test_a_coarse_sensor_that_moves_by_its_resolution_is_normal() -> None:
    samples = [(i * SECOND_NS, 20.0 if i < 6000 else 20.1) for i in range(9000)]
    samples[30] = (30 * SECOND_NS, 20.1)
    assert max(score for score, _, _ in run(ZscoreFilter, {}, samples)) < 1


@pytest.mark.parametrize(
    ("filter_", "options"),
    [
        (RangeFilter, {"low": 2, "high": 1}),
        (RangeFilter, {"low": math.nan}),
        (StuckFilter, {"after_s": 0}),
        (RateFilter, {}),
        (RateFilter, {"max_per_s": -1}),
        (ZscoreFilter, {"tau_s": 0}),
        (ZscoreFilter, {"warm_up_s": -1}),
        (ZscoreFilter, {"treshold": 3}),
    ],
)
def test_options_without_sense_are_refused(filter_: Any, options: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(options, filter_.Options)
