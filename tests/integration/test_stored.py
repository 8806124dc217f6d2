"""What the score reads of a sink: the same from each server, whatever the names of devices."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from cloud.sinks.sqlite import SqliteOptions, SqliteSink
from devices.model import SECOND_NS
from simulators.stored import InfluxStored, SinkUnreadable, SqliteStored

pytestmark = pytest.mark.real
T0 = 1_764_000_000 * SECOND_NS
TAGS = r"gateway=o'brien\ 1,device=press\ 1"
SERIES = rf"temperature,{TAGS},channel=bearing\,left,unit=Cel"
NUMBERS = "mean=1.5,min=1,max=2,stddev=0.5,first=1,last=2"
ALARM = r'id="a/b",state="open",severity="warning",score=2.5,value=9,reason="too \"hot\"",ingested_ms=1764000000001'
LINES = "\n".join(
    [
        f"{SERIES} {NUMBERS},count=2i,span_ms=10000i {T0}",
        f"{SERIES} mean=7,min=7,max=7,stddev=0,first=7,last=7,count=1i,span_ms=10000i {T0 + 1}",
        SERIES.replace("o'brien", "other") + f" {NUMBERS},count=9i,span_ms=10000i {T0}",
        SERIES.replace("temperature", "temperature_raw", 1) + f" value=3.5 {T0 + 77}",
        f'mode,{TAGS},channel=mode state=1,text="running" {T0 + 5}',
        f"alarm,{TAGS},channel=mode,detector=zscore {ALARM} {T0 + 9}",
        f"ledger,{TAGS} produced=5,stored=1,waiting=4,late=0,rejected_malformed=1 {T0}",
        f"ledger,{TAGS} produced=9,stored=9,waiting=0,late=0,rejected_malformed=2 {T0 + 50}",
        rf"gateway,gateway=o'brien\ 1 store_bytes=5 {T0}",
    ]
)


@pytest.fixture(params=["sqlite", "1.8", "2.7"])
def stored(request, tmp_path, influxdb_servers):
    """A sink that holds LINES, read for one of its two gateways."""
    if request.param == "sqlite":
        path = tmp_path / "points.db"

        async def write() -> None:
            sink = SqliteSink(f"sqlite://{path}", SqliteOptions())
            await sink.open()
            await sink.write(LINES.encode())
            await sink.close()

        asyncio.run(write())
        return SqliteStored(path, "o'brien 1")
    server = influxdb_servers(request.param)
    server.create_database(f"stored{T0 % 1000}-{tmp_path.name}")
    server.write(LINES)
    return InfluxStored(server.url, server.database, server.token, "o'brien 1")


def test_summaries_and_raw_points_are_read_of_one_gateway_alone(stored):
    assert stored.holds_samples()
    held = stored.series()
    assert held.keys() == {("press 1", "bearing,left"), ("press 1", "mode")}
    series = held["press 1", "bearing,left"]
    assert series.time_ns.tolist() == [T0, T0 + 1]
    assert series.count.tolist() == [2, 1]
    assert series.span_ms.tolist() == [10_000, 10_000]
    assert series.mean.tolist() == [1.5, 7.0]
    assert (series.min.tolist(), series.max.tolist()) == ([1, 7], [2, 7])
    assert (series.first.tolist(), series.last.tolist()) == ([1, 7], [2, 7])
    assert series.raw_ns.tolist() == [T0 + 77]
    mode = held["press 1", "mode"]
    assert (mode.change_ns.tolist(), mode.change.tolist(), len(mode.count)) == ([T0 + 5], [1.0], 0)
    assert series.time_ns.dtype == series.count.dtype == np.int64


def test_alarms_are_read_with_their_texts(stored):
    (alarm,) = stored.alarms()
    assert (alarm.id, alarm.state, alarm.reason) == ("a/b", "open", 'too "hot"')
    assert (alarm.device, alarm.channel, alarm.detector) == ("press 1", "mode", "zscore")
    assert (alarm.time_ns, alarm.ingested_ms) == (T0 + 9, 1764000000001)


def test_the_last_account_of_each_device_is_read(stored):
    accounts = stored.ledger()
    assert accounts.keys() == {("press 1", "")}
    account = accounts["press 1", ""]
    assert (account["produced"], account["waiting"], account["rejected_malformed"]) == (9, 0, 2)


def test_a_file_that_is_not_there_yet_is_an_empty_sink(tmp_path):
    stored = SqliteStored(tmp_path / "points.db", "g")
    assert not stored.holds_samples()
    assert (stored.series(), stored.alarms(), stored.ledger()) == ({}, [], {})


def test_a_file_that_is_no_database_is_said_to_be_unreadable(tmp_path):
    path = tmp_path / "points.db"
    path.write_bytes(b"this is a letter, not a database" * 100)
    with pytest.raises(SinkUnreadable, match=r"points\.db"):
        SqliteStored(path, "g").series()


def test_a_refused_query_and_a_server_that_is_away_are_said_to_be_unreadable(influxdb, free_port):
    with pytest.raises(SinkUnreadable, match="401"):
        InfluxStored(influxdb.url, influxdb.database, "wrong:token", "g").alarms()
    with pytest.raises(SinkUnreadable, match="does not answer"):
        InfluxStored(f"http://127.0.0.1:{free_port()}", "db", "", "g").alarms()
