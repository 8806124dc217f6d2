"""What every filter must keep to, Forebay's own and those of other packages (see edge/kernels/__init__.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgspec
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from devices.model import SECOND_NS, SampleBatch, SeriesSpec
from devices.profiles import installed, load
from edge.filters import Filters
from edge.kernels import SCORE_MAX, Filter, detect, dispatcher

pytestmark = pytest.mark.parametrize("name", installed("filters"))

thorough = settings(max_examples=40)
SAMPLES = 80
START_NS = 1_700_000_000 * SECOND_NS

levels = st.floats(-100, 100)
extremes = st.sampled_from([0.0, -0.0, 5e-324, 1e-300, 1e300, -1e300, 1.7976931348623157e308, -1.7976931348623157e308])
values = st.lists(levels | levels | levels | extremes, min_size=1, max_size=SAMPLES)
steps_ns = st.sampled_from([1, 1_000_000, SECOND_NS, SECOND_NS, 600 * SECOND_NS])


def options_of(name: str) -> dict[str, Any]:
    """Settings under which a filter soon has something to say: required numbers are 1, warm-ups short, limits near."""
    fields = msgspec.structs.fields(load("filters", name).Options)
    chosen = {"low": -50.0, "high": 50.0, "warm_up_s": 5.0, "warm_up_samples": 5, "after_s": 3.0, "threshold": 2.0}
    return {field.name: chosen.get(field.name, 1.0) for field in fields if field.name in chosen or field.required}


def spec_of(name: str) -> SeriesSpec:
    options = options_of(name)
    return SeriesSpec(
        device="pump", channel="flow", quantity="flow", unit="l/s", filters={name: options}, off_delay_ns=SECOND_NS
    )


def stream(numbers: list[float], gaps_ns: list[int], series: int = 0) -> SampleBatch:
    count = min(len(numbers), len(gaps_ns))
    return SampleBatch(
        np.full(count, series, np.int32),
        START_NS + np.cumsum(np.array(gaps_ns[:count], np.int64)),
        np.array(numbers[:count], np.float64),
        np.zeros(count, np.uint8),
    )


batches = st.builds(stream, values, st.lists(steps_ns, min_size=SAMPLES, max_size=SAMPLES))


@functools.cache
def filters_of(name: str, series: int) -> tuple[Filters, dict[str, NDArray[Any]]]:
    """The operator with one filter on so many series, and its first state: an external filter is compiled once."""
    operator = Filters()
    for index in range(series):
        operator.add_series(index, spec_of(name))
    return operator, operator.snapshot()


def fresh(name: str, series: int = 1) -> Filters:
    operator, first = filters_of(name, series)
    operator.restore(first)
    return operator


def run(operator: Filters, *parts: SampleBatch) -> list[tuple[Any, ...]]:
    """All events, without their places in the batches."""
    fields = [field for field in detect.EVENT_DTYPE.names or () if field != "position"]
    events = [operator.run(part)[fields].tolist() for part in parts]
    return [tuple("nan" if x != x else x for x in event) for part in events for event in part]


def state(operator: Filters) -> dict[str, bytes]:
    return {key: saved.tobytes() for key, saved in operator.snapshot().items()}


@functools.cache
def scorer(name: str) -> Callable[..., tuple[Any, Any, Any]]:
    """The filter's own step over a whole stream, from its first state."""
    filter_: type[Filter] = load("filters", name)
    step = dispatcher(filter_.step)

    @numba.njit(error_model="numpy")  # type: ignore[untyped-decorator,unused-ignore]
    def scores(state: Any, params: Any, time_ns: Any, value: Any) -> Any:
        found = np.empty((len(value), 3))
        for i in range(len(value)):
            found[i] = step(state[0], params[0], time_ns[i], value[i])
        return found

    def run_steps(batch: SampleBatch) -> tuple[Any, Any, Any]:
        options = msgspec.convert(options_of(name), filter_.Options)
        params = np.array([filter_.params_of(options, spec_of(name))], filter_.params)
        memory = np.zeros(1, filter_.state)
        return scores(memory, params, batch.time_ns, batch.value).T, memory, params

    return run_steps


def test_it_has_the_name_of_its_entry_point(name: str) -> None:
    assert load("filters", name).name == name


def test_it_refuses_options_that_it_does_not_know(name: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="no_such_key"):
        msgspec.convert({**options_of(name), "no_such_key": 1}, load("filters", name).Options)


@thorough
@given(batch=batches)
def test_a_score_is_a_number_and_the_band_is_in_order(name: str, batch: SampleBatch) -> None:
    (score, low, high), memory, _ = scorer(name)(batch)
    assert np.isfinite(score).all()
    assert ((score >= 0) & (score <= SCORE_MAX)).all()
    assert not (low > high).any()
    if load("filters", name).memoryless:
        assert memory.tobytes() == bytes(memory.nbytes)


@thorough
@given(batch=batches)
def test_what_is_abnormal_opens_an_alarm_with_its_evidence(name: str, batch: SampleBatch) -> None:
    score, low, high = scorer(name)(batch)[0]
    abnormal = np.flatnonzero(score >= 1)
    events = fresh(name).run(batch)
    assert len(events) == 0 if len(abnormal) == 0 else events[0]["position"] == abnormal[0]
    for event in events:
        place = event["position"]
        np.testing.assert_array_equal(
            [event["value"], event["score"], event["low"], event["high"]],
            [batch.value[place], score[place], low[place], high[place]],
        )
    assert list(events["open"]) == [number % 2 == 0 for number in range(len(events))]


@thorough
@given(batch=batches, data=st.data())
def test_how_the_stream_is_cut_changes_nothing(name: str, batch: SampleBatch, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(batch)), max_size=5)))
    parts = [batch.take(part) for part in np.split(np.arange(len(batch)), cuts)]
    whole = fresh(name)
    expected, expected_state = run(whole, batch), state(whole)
    cut = fresh(name)
    assert run(cut, *parts) == expected
    assert state(cut) == expected_state


@thorough
@given(batch=batches, at=st.integers(0, SAMPLES), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_a_finite_number_changes_nothing(name: str, batch: SampleBatch, at: int, bad: float) -> None:
    clean = fresh(name)
    expected, expected_state = run(clean, batch), state(clean)
    at = min(at, len(batch))
    before, after = batch.take(np.arange(at)), batch.take(np.arange(at, len(batch)))
    time_ns = (before.time_ns[-1] if at else START_NS) + 1
    odd = SampleBatch(np.zeros(1, np.int32), np.array([time_ns]), np.array([bad]), np.zeros(1, np.uint8))
    disturbed = fresh(name)
    assert run(disturbed, SampleBatch.concat([before, odd, after])) == expected
    assert state(disturbed) == expected_state


@thorough
@given(batch=batches, at=st.integers(0, SAMPLES - 1))
def test_a_sample_at_a_time_that_was_teaches_it_nothing(name: str, batch: SampleBatch, at: int) -> None:
    operator = fresh(name)
    run(operator, batch)
    before = operator.snapshot()
    late = batch.take(np.array([min(at, len(batch) - 1)]))
    run(operator, SampleBatch(late.series, late.time_ns, late.value + 1, late.quality))
    for key, saved in operator.snapshot().items():
        own = name if name in (saved.dtype.names or ()) else "filter"
        if own in (saved.dtype.names or ()):
            assert saved[own].tobytes() == before[key][own].tobytes()


@thorough
@given(batch=batches, other=batches)
def test_series_do_not_touch_each_other(name: str, batch: SampleBatch, other: SampleBatch) -> None:
    expected = run(fresh(name, 2), batch)
    neighbour = SampleBatch(other.series + np.int32(1), other.time_ns, other.value, other.quality)
    together = SampleBatch.concat([batch, neighbour])
    order = np.argsort(together.time_ns, kind="stable")
    events = run(fresh(name, 2), together.take(order))
    assert [event for event in events if event[0] == 0] == expected


@thorough
@given(batch=batches, at=st.integers(0, SAMPLES))
def test_a_restored_one_goes_on_as_if_nothing_had_happened(name: str, batch: SampleBatch, at: int) -> None:
    before, after = batch.take(np.arange(len(batch)) < at), batch.take(np.arange(len(batch)) >= at)
    straight = fresh(name)
    run(straight, before)
    saved = straight.snapshot()
    expected, expected_state = run(straight, after), state(straight)
    again = fresh(name)
    again.restore(saved)
    assert run(again, after) == expected
    assert state(again) == expected_state
