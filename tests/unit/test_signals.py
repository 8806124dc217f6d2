"""The simulators' signals: what a machine reads at a sample is a function of its place alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.model import SECOND_NS
from simulators.signals import (
    DAY_S,
    MILLISECOND_NS,
    Burst,
    Counter,
    Gauge,
    Schedule,
    State,
    healthy_values,
    key_of,
    normal,
    uniform,
)

MACHINE = Gauge(level=60.0, noise=0.5, daily=4.0, load=2.0, load_every_s=20.0, vibration=0.7)
SHAPES = [MACHINE, Counter(per_second=3.0, wrap=1000.0), State(words=["off", "on", "fault"]), State()]


def values(shape, seed, index, device="press", channel="temperature"):
    offset_s = Schedule(4.0, 0.1).offsets_ns(index) / SECOND_NS
    return healthy_values(shape, key_of(seed, device, channel), index, offset_s)


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=st.integers(0, 2**40), first=st.integers(0, 10**6), cut=st.integers(1, 99))
def test_a_value_does_not_depend_on_how_many_are_asked_for_at_once(shape, seed, first, cut):
    index = np.arange(first, first + 100)
    whole = values(shape, seed, index)
    pieces = np.concatenate([values(shape, seed, index[:cut]), values(shape, seed, index[cut:])])
    assert np.array_equal(whole, pieces)


def test_another_seed_device_or_channel_reads_other_values():
    index = np.arange(50)
    readings = [
        values(MACHINE, 1, index),
        values(MACHINE, 2, index),
        values(MACHINE, 1, index, device="other"),
        values(MACHINE, 1, index, channel="other"),
    ]
    for one, other in itertools.combinations(readings, 2):
        assert not np.isclose(one, other).any()


def test_random_numbers_are_uniform_and_gaussian_and_unrelated():
    index = np.arange(200_000)
    even, bell = uniform(7, index, 0), normal(7, index, 0)
    assert even.min() >= 0
    assert even.max() < 1
    assert np.histogram(even, 10, (0, 1))[0] == pytest.approx(20_000, rel=0.03)
    assert bell.mean() == pytest.approx(0, abs=0.01)
    assert bell.std() == pytest.approx(1, abs=0.01)
    for other in (uniform(8, index, 0), uniform(7, index, 1), uniform(7, index + 1, 0)):
        assert abs(np.corrcoef(even, other)[0, 1]) < 0.01


def test_a_machine_has_a_day_and_loads_and_noise_of_the_size_it_was_given():
    index = np.arange(0, 4 * int(DAY_S), 60)
    day = healthy_values(Gauge(level=60, daily=4), 1, index, index.astype(float))
    assert day.min() == pytest.approx(56, abs=0.01)
    assert day.max() == pytest.approx(64, abs=0.01)
    noise = values(Gauge(level=60, noise=0.5), 1, index) - 60
    assert noise.std() == pytest.approx(0.5, rel=0.05)
    loads = np.unique(values(Gauge(level=0, load=2, load_every_s=20), 1, np.arange(800)))
    assert len(loads) == 10
    assert loads.min() >= 0
    assert loads.max() <= 2


def test_a_counter_never_falls_but_where_its_register_wraps():
    rising = values(Counter(per_second=3.0), 5, np.arange(2000))
    assert (np.diff(rising) >= 0).all()
    assert rising[-1] == pytest.approx(3.0 * 500, rel=0.1)
    wrapped = values(Counter(per_second=3.0, wrap=100.0), 5, np.arange(2000))
    assert np.array_equal(wrapped, rising % 100)


def test_a_state_is_one_of_its_words_and_holds_for_a_while():
    words = values(State(words=["off", "on", "fault"], change_every_s=10.0), 3, np.arange(4000))
    assert set(words) == {0, 1, 2}
    assert (np.diff(words) != 0).sum() <= 100


bursts = st.lists(
    st.builds(Burst, devices=st.just("*"), at_s=st.floats(0, 50), for_s=st.floats(0.1, 20), factor=st.floats(1, 9)),
    max_size=3,
)
rates = st.sampled_from([0.1, 0.5, 1.0, 2.0, 10.0, 33.0])


@given(rate=rates, phase=st.floats(0, 1, exclude_max=True), bursts=bursts)
def test_a_device_samples_in_order_at_whole_milliseconds(rate, phase, bursts):
    offsets = Schedule(rate, phase / rate, tuple(bursts)).offsets_ns(np.arange(500))
    assert (np.diff(offsets) > 0).all()
    assert (offsets % MILLISECOND_NS == 0).all()
    assert offsets[0] >= 0


@given(rate=rates, phase=st.floats(0, 1, exclude_max=True), bursts=bursts, at_s=st.floats(0, 60))
def test_the_first_sample_from_a_time_on_is_found(rate, phase, bursts, at_s):
    schedule = Schedule(rate, phase / rate, tuple(bursts))
    index = schedule.index_at(at_s)
    offsets_ms = schedule.offsets_ns(np.arange(max(index - 1, 0), index + 1)) // MILLISECOND_NS
    assert offsets_ms[-1] >= round(at_s * 1000)
    assert index == 0 or offsets_ms[0] < round(at_s * 1000)


def test_a_burst_multiplies_the_rate_for_its_time():
    schedule = Schedule(2.0, 0.0, (Burst(devices="*", at_s=10.0, for_s=5.0, factor=4.0),))
    offsets_s = schedule.offsets_ns(np.arange(200)) / SECOND_NS
    per_second = np.bincount(offsets_s.astype(int))[:30]
    assert per_second.tolist() == [2] * 10 + [8] * 5 + [2] * 15
