"""What the ingester admits of a frame."""

from __future__ import annotations

import numpy as np
import pytest

from cloud.validate import admit
from devices.errors import FrameError, NotForUs
from devices.model import CHANGE_DTYPE, SUMMARY_DTYPE, Alarm, Lane, SampleBatch
from devices.wire.frame import (
    AlarmBody,
    BodyKind,
    ChangeBody,
    Frame,
    Header,
    Heartbeat,
    Inventory,
    Ledger,
    RawBody,
    SummaryBody,
    WireSeries,
)

NOW = 1_763_980_000_000_000_000
HOUR = 3_600_000_000_000
TIMES = [NOW, NOW + 2 * HOUR, -1, NOW + HOUR]
"""Good, future, before 1970, and just not too far ahead."""
TABLE = [WireSeries("d", "a", "temperature", "°C"), WireSeries("d", "b", "pressure", "bar")]


def frame(body: BodyKind, table: list[WireSeries] = TABLE, created_ns: int = NOW) -> Frame:
    return Frame(Header("g1", 7, 1, Lane.LIVE, created_ns), table, body)


def admitted(body: BodyKind, table: list[WireSeries] = TABLE) -> tuple[BodyKind, dict[tuple[int, str], int]]:
    result = admit(frame(body, table), "g1", now_ns=NOW, max_ahead_ns=HOUR)
    assert all(one.detail for one in result.rejected)
    return result.frame.body, {(one.series, one.reason): one.count for one in result.rejected}


def test_a_frame_of_another_gateway_than_its_topics_is_refused() -> None:
    with pytest.raises(FrameError, match="'g1' under the topic of 'g2'") as refused:
        admit(frame(Ledger(NOW, [])), "g2", now_ns=NOW, max_ahead_ns=HOUR)
    assert refused.value.reason == "gateway"


@pytest.mark.parametrize("dtype", [SUMMARY_DTYPE, CHANGE_DTYPE])
def test_rows_at_absurd_times_are_rejected_by_series_and_the_others_kept(dtype: np.dtype[np.void]) -> None:
    rows = np.zeros(8, dtype)
    rows["series"], rows["time_ns"] = [0, 0, 0, 0, 1, 1, 1, 1], TIMES * 2
    each = 1
    body: BodyKind = ChangeBody(rows)
    if dtype == SUMMARY_DTYPE:
        rows["count"] = each = 7
        body = SummaryBody(rows)
    kept, rejected = admitted(body)
    assert isinstance(kept, SummaryBody | ChangeBody)
    assert kept.rows["time_ns"].tolist() == [NOW, NOW + HOUR] * 2
    assert rejected == {(0, "future"): each, (1, "future"): each, (0, "sink"): each, (1, "sink"): each}


def test_raw_samples_at_absurd_times_are_rejected() -> None:
    batch = SampleBatch(np.array([0, 0, 1, 1], np.int32), np.array(TIMES), np.zeros(4), np.zeros(4, np.uint8))
    kept, rejected = admitted(RawBody(batch))
    assert isinstance(kept, RawBody)
    assert kept.samples.time_ns.tolist() == [NOW, NOW + HOUR]
    assert rejected == {(0, "future"): 1, (1, "sink"): 1}


def test_alarms_at_absurd_times_are_rejected() -> None:
    alarms = [Alarm(str(t), 0, "range", "open", "info", t, t, 1.0, 0.0, 2.0, 1.0, "") for t in TIMES]
    kept, rejected = admitted(AlarmBody(alarms))
    assert isinstance(kept, AlarmBody)
    assert [alarm.time_ns for alarm in kept.alarms] == [NOW, NOW + HOUR]
    assert rejected == {(0, "future"): 1, (0, "sink"): 1}


def test_whose_clock_is_wrong_is_not_for_the_ingester_to_say() -> None:
    """Were it its own, a refusal would make each edge give up what is good."""
    of_tomorrow = Ledger(NOW + 2 * HOUR, [])
    with pytest.raises(NotForUs, match="its gateway's clock is wrong, or ours"):
        admit(frame(of_tomorrow, created_ns=NOW + 2 * HOUR), "g1", now_ns=NOW, max_ahead_ns=HOUR)


def test_rows_are_as_far_ahead_as_they_are_of_the_later_clock() -> None:
    rows = np.zeros(2, CHANGE_DTYPE)
    rows["time_ns"] = NOW + HOUR, NOW + 2 * HOUR
    made = frame(ChangeBody(rows), created_ns=NOW + HOUR // 2)
    assert [one.count for one in admit(made, "g1", now_ns=NOW, max_ahead_ns=HOUR).rejected] == [1]
    made = frame(ChangeBody(rows), created_ns=NOW + HOUR)
    assert admit(made, "g1", now_ns=NOW, max_ahead_ns=HOUR).rejected == []


@pytest.mark.parametrize("quantity", ["alarm", "ledger", "gateway", "channel", "temperature_raw"])
def test_a_series_that_would_lie_among_forebays_own_points_is_rejected(quantity: str) -> None:
    rows = np.zeros(3, CHANGE_DTYPE)
    rows["series"], rows["time_ns"] = [0, 1, 1], NOW
    kept, rejected = admitted(ChangeBody(rows), [TABLE[0], WireSeries("d", "b", quantity, "")])
    assert isinstance(kept, ChangeBody)
    assert kept.rows["series"].tolist() == [0]
    assert rejected == {(1, "sink"): 2}


def test_an_alarm_may_speak_of_any_series() -> None:
    alarm = Alarm("1", 0, "range", "open", "info", NOW, NOW, 1.0, 0.0, 2.0, 1.0, "")
    kept, rejected = admitted(AlarmBody([alarm]), [WireSeries("d", "b", "alarm", "")])
    assert kept == AlarmBody([alarm])
    assert rejected == {}


@pytest.mark.parametrize("time_ns", [NOW + 2 * HOUR, -1])
def test_a_frame_with_one_time_is_refused_whole_when_that_is_absurd(time_ns: int) -> None:
    for refused in (
        frame(Ledger(time_ns, [])),
        frame(Heartbeat(time_ns, "", "")),
        frame(Inventory("", "", []), created_ns=-1),
    ):
        with pytest.raises(FrameError) as error:
            admit(refused, "g1", now_ns=NOW, max_ahead_ns=HOUR)
        assert error.value.reason == "future"


def test_a_good_frame_is_admitted_as_it_is() -> None:
    whole = frame(Heartbeat(0, "", ""))
    result = admit(whole, "g1", now_ns=NOW, max_ahead_ns=HOUR)
    assert result.frame is whole
    assert result.rejected == []
