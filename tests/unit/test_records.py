"""The simulators' own record: what was written comes back, and what was cut off does no harm."""

from __future__ import annotations

import pytest

from simulators.records import EVENT_DTYPE, Event, RecordedSeries, Recorder, RecordReader

TEMPERATURE = RecordedSeries("press", "temperature", "Cel", "gauge", 1.0, 2)
FLOW = RecordedSeries("pump", "flow", "L/s", "gauge", 2.0, 3)


@pytest.fixture
def recorder(tmp_path):
    recorder = Recorder(tmp_path)
    yield recorder
    recorder.close()


def test_a_record_gives_back_each_series_in_order_of_sample_time(recorder, tmp_path):
    one, other = recorder.add_series(TEMPERATURE), recorder.add_series(FLOW)
    recorder.begin()
    recorder.write(Event.SENT, one, 20, 61.5, sent_ns=21, payload_bytes=120)
    recorder.write(Event.SENT, other, 15, -0.1, sent_ns=16, payload_bytes=30)
    recorder.write(Event.SENT, one, 10, 61.25, sent_ns=22, payload_bytes=118)
    recorder.write(Event.TAKEN, one, 10, 61.25)
    recorder.flush()
    temperature, flow = RecordReader(tmp_path).by_series()
    assert (temperature.series, flow.series) == (TEMPERATURE, FLOW)
    assert temperature.time_ns.tolist() == [10, 20]
    assert temperature.sent_ns.tolist() == [22, 21]
    assert temperature.value.tolist() == [61.25, 61.5]
    assert temperature.taken.tolist() == [True, False]
    assert (temperature.payload_bytes, flow.payload_bytes) == (238, 30)
    assert flow.taken.tolist() == [False]


def test_what_nobody_heard_is_marked_and_a_broken_sample_that_nobody_heard_is_not_counted(recorder, tmp_path):
    one = recorder.add_series(TEMPERATURE)
    recorder.begin()
    for time_ns, event in [(10, Event.SENT), (11, Event.SPOILED), (12, Event.SENT), (13, Event.SPOILED)]:
        recorder.write(event, one, time_ns, 1.0, sent_ns=time_ns)
    for time_ns in (10, 11):
        recorder.write(Event.UNHEARD, one, time_ns, 1.0)
    recorder.write(Event.TAKEN, one, 12, 1.0)
    recorder.flush()
    (temperature,) = RecordReader(tmp_path).by_series()
    assert temperature.time_ns.tolist() == [10, 12]
    assert temperature.unheard.tolist() == [True, False]
    assert temperature.taken.tolist() == [False, True]
    assert temperature.spoiled == 1


def test_half_a_row_at_the_end_is_left_out(recorder, tmp_path):
    one = recorder.add_series(TEMPERATURE)
    recorder.begin()
    recorder.write(Event.SENT, one, 10, 1.0)
    recorder.write(Event.SENT, one, 20, 2.0)
    recorder.flush()
    path = tmp_path / "events.bin"
    path.write_bytes(path.read_bytes()[: -EVENT_DTYPE.itemsize // 2])
    (temperature,) = RecordReader(tmp_path).by_series()
    assert temperature.time_ns.tolist() == [10]


def test_a_series_that_sent_nothing_has_an_empty_record(recorder, tmp_path):
    recorder.add_series(TEMPERATURE)
    assert not RecordReader(tmp_path).is_ready()
    recorder.begin()
    assert RecordReader(tmp_path).is_ready()
    (temperature,) = RecordReader(tmp_path).by_series()
    assert len(temperature.time_ns) == 0
    assert temperature.spoiled == 0
