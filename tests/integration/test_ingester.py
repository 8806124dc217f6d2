"""The ingester as a process, between a real mosquitto and a real InfluxDB or SQLite."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.model import CHANGE_DTYPE, SUMMARY_DTYPE, Alarm, Lane
from devices.wire.frame import (
    AlarmBody,
    BodyKind,
    ChangeBody,
    Frame,
    Header,
    Heartbeat,
    SummaryBody,
    WireSeries,
    encode,
)
from devices.wire.receipt import Receipt, decode_receipt
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions
from devices.wire.topics import correlation, topic
from simulators.parts import program
from simulators.processes import Process
from simulators.servers import Broker, InfluxServer, QueryFailed, Tls

pytestmark = pytest.mark.real

START_NS = 1_763_980_000_000_000_000
PATIENCE_S = 30.0
SERIES = [WireSeries("pump1", "motor", "temperature", "°C"), WireSeries("pump2", "motor", "temperature", "°C")]

Mosquitto = Callable[..., Broker]
Spawn = Callable[..., Process]


class Edge:
    """A gateway's side of the uplink: it publishes frames and keeps the receipts by their correlation data."""

    def __init__(self, broker: Broker, gateway: str = "g1", **options: Any) -> None:
        self.gateway = gateway
        self.receipts: dict[bytes, Receipt] = {}
        self.answers: dict[int, int] = {}
        self.session = Session(
            SessionOptions(broker=broker.url, client_id=f"edge-{gateway}", **options),
            on_messages=self._on_messages,
            on_connect=lambda present: None,
            on_disconnect=lambda error: None,
            on_published=lambda mid, reason: self.answers.update({mid: reason}),
            rand=lambda: 0.1,
        )
        self.session.subscribe([(topic(gateway, "receipt"), 1)])

    def _on_messages(self, inbound: Inbound) -> None:
        for payload, data in zip(inbound.payloads, inbound.correlations, strict=True):
            assert data is not None
            self.receipts[data] = decode_receipt(payload)
        self.session.acknowledge(inbound.packet_ids, inbound.connection)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.session.run())
        try:
            await until(lambda: self.session.connected)
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def send(self, leaf: str, payload: bytes, seq: int) -> bytes:
        """Publish until somebody is subscribed, as an edge does; returns the correlation data."""
        data = correlation(7, seq, payload)
        while True:
            mid = self.session.publish(topic(self.gateway, leaf), payload, correlation=data)
            if mid is not None:
                await until(lambda mid=mid: mid in self.answers or not self.session.connected)
                if self.answers.get(mid) == 0:
                    return data
            await asyncio.sleep(0.05)

    async def receipt(self, data: bytes) -> Receipt:
        await until(lambda: data in self.receipts)
        return self.receipts[data]


async def until(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not ready():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def frame(body: BodyKind, seq: int, *, gateway: str = "g1", table: list[WireSeries] = SERIES) -> bytes:
    return encode(Frame(Header(gateway, 7, seq, Lane.LIVE, START_NS), table, body))


def summaries(n: int, first: int = 0) -> SummaryBody:
    rows = np.zeros(n, SUMMARY_DTYPE)
    rows["time_ns"] = START_NS + np.arange(first, first + n) * 10**10
    rows["span_ns"], rows["count"], rows["increase"] = 10**10, 1, np.nan
    for name in ("mean", "min", "max", "first", "last"):
        rows[name] = np.arange(first, first + n) + 0.5
    return SummaryBody(rows)


class Ingest:
    """One ingester process and its configuration."""

    def __init__(
        self, folder: Path, spawn: Spawn, broker: Broker, sink: str, port: int, more: str, limits: str
    ) -> None:
        folder.mkdir(exist_ok=True)
        path = folder / "ingest.toml"
        path.write_text(
            f'[broker]\nurl = "{broker.url}"\n{more}\n[sink]\n{sink}\n[metrics]\nlisten = "127.0.0.1:{port}"\n'
            f'[limits]\nretry_most = "100 ms"\n{limits}\n'
        )
        self.address = f"http://127.0.0.1:{port}"
        self.process = spawn([program("forebay-cloud"), "run", str(path)])

    def page(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.address + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    async def ready(self) -> None:
        await until(lambda: self.page("/healthz")[0] == 200)

    def metric(self, line: str) -> float:
        found = [row.rpartition(" ")[2] for row in self.page("/metrics")[1].splitlines() if row.startswith(line + " ")]
        return float(found[0]) if found else 0.0


@pytest.fixture
def ingest(tmp_path: Path, spawn: Spawn, free_port: Callable[[], int]) -> Callable[..., Ingest]:
    made: list[Ingest] = []

    def make(broker: Broker, sink: str, more: str = "", limits: str = "") -> Ingest:
        made.append(Ingest(tmp_path / f"ingest-{len(made)}", spawn, broker, sink, free_port(), more, limits))
        return made[-1]

    return make


def sink_of(server: InfluxServer, folder: Path) -> str:
    secret = folder / "secret"
    secret.write_text(server.password if server.version == "1.8" else server.token)
    secret.chmod(0o600)
    keys = {"url": server.url, "timeout": "500 ms"}
    if server.version == "1.8":
        keys |= {"database": server.database, "user": server.user, "password_file": str(secret)}
    else:
        keys |= {"org": server.org, "bucket": server.database, "token_file": str(secret)}
    return "\n".join(f'{key} = "{value}"' for key, value in keys.items())


def test_frames_become_points_and_each_gets_its_receipt(
    mosquitto: Mosquitto, influxdb: InfluxServer, ingest: Callable[..., Ingest], tmp_path: Path
) -> None:
    broker = mosquitto()
    ingester = ingest(broker, sink_of(influxdb, tmp_path))
    alarm = Alarm("a1", 0, "zscore", "open", "warning", START_NS, START_NS, 90.0, 1.0, 80.0, 1.5, "too hot")

    async def story() -> None:
        edge = Edge(broker)
        async with edge.running():
            sent = [
                await edge.send("data", frame(summaries(500), 1), 1),
                await edge.send("alarm", frame(AlarmBody([alarm]), 2), 2),
                await edge.send("state", frame(Heartbeat(START_NS, "forebay", "d", 5), 3), 3),
                await edge.send("data", frame(summaries(500), 1), 1),
            ]
            for data in sent:
                assert await edge.receipt(data) == Receipt()
            # The first and the last are one frame, and so one receipt to the eye.
            await until(lambda: ingester.metric("forebay_ingest_stored_lines_total") == 1002)

    asyncio.run(story())
    rows = influxdb.query("SELECT * FROM temperature")
    assert [row["mean"] for row in rows] == [n + 0.5 for n in range(500)]
    assert rows[0] == {
        "measurement": "temperature",
        "channel": "motor",
        "device": "pump1",
        "gateway": "g1",
        "unit": "°C",
        "time": START_NS,
        "mean": 0.5,
        "min": 0.5,
        "max": 0.5,
        "stddev": 0,
        "first": 0.5,
        "last": 0.5,
        "count": 1,
        "span_ms": 10000,
    }
    (told,) = influxdb.query("SELECT * FROM alarm")
    assert (told["detector"], told["state"], told["reason"], told["low"]) == ("zscore", "open", "too hot", 1)
    (gateway,) = influxdb.query("SELECT * FROM gateway")
    assert gateway["store_bytes"] == 5
    assert ingester.metric('forebay_ingest_lag_seconds_count{leaf="data"}') == 2


def test_there_is_no_receipt_while_the_sink_does_not_answer(
    mosquitto: Mosquitto, influxdb: InfluxServer, ingest: Callable[..., Ingest], tmp_path: Path
) -> None:
    broker = mosquitto()
    ingester = ingest(broker, sink_of(influxdb, tmp_path))

    async def story() -> None:
        edge = Edge(broker)
        async with edge.running():
            await edge.receipt(await edge.send("data", frame(summaries(1), 1), 1))
            influxdb.suspend()
            data = await edge.send("data", frame(summaries(10, first=1), 2), 2)
            await until(lambda: ingester.page("/healthz")[0] == 503)
            assert "did not answer" in ingester.page("/healthz")[1]
            assert ingester.metric("forebay_ingest_reading") == 0
            assert data not in edge.receipts
            influxdb.resume()
            assert await edge.receipt(data) == Receipt()
            await ingester.ready()

    asyncio.run(story())
    assert len(influxdb.query("SELECT * FROM temperature")) == 11


def test_a_field_of_another_type_is_rejected_by_series_and_the_rest_of_the_batch_stored(
    mosquitto: Mosquitto, influxdb: InfluxServer, ingest: Callable[..., Ingest], tmp_path: Path
) -> None:
    broker = mosquitto()
    influxdb.write(f'valve,device=other state="a text" {START_NS}')
    ingest(broker, sink_of(influxdb, tmp_path))
    table = [*SERIES, WireSeries("pump1", "valve", "valve", "")]
    rows = np.zeros(200, CHANGE_DTYPE)
    rows["series"], rows["time_ns"], rows["value"] = np.arange(200) % 3, START_NS + np.arange(200), 1.0

    async def story() -> None:
        edge = Edge(broker)
        async with edge.running():
            mixed = await edge.send("data", frame(ChangeBody(rows), 1, table=table), 1)
            good = await edge.send("data", frame(summaries(5), 2), 2)
            (told,) = (await edge.receipt(mixed)).rejected
            assert (told.series, told.reason, told.count) == (2, "sink", 66)
            assert "conflict" in told.detail
            assert await edge.receipt(good) == Receipt()

    asyncio.run(story())
    assert len(influxdb.query("SELECT state FROM temperature")) == 134


def test_a_backlog_beyond_the_retention_is_rejected_and_newer_frames_go_on(
    mosquitto: Mosquitto, influxdb_servers: Any, ingest: Callable[..., Ingest], tmp_path: Path
) -> None:
    broker, server = mosquitto(), influxdb_servers("1.8")
    server.create_database("short")
    server.query('CREATE RETENTION POLICY hours ON "short" DURATION 24h REPLICATION 1 DEFAULT')
    ingester = ingest(broker, sink_of(server, tmp_path))
    old = summaries(3000)
    old.rows["time_ns"] -= 10**18

    async def story() -> None:
        edge = Edge(broker)
        async with edge.running():
            receipt = await edge.receipt(await edge.send("data", frame(old, 1), 1))
            assert [(one.series, one.reason, one.count) for one in receipt.rejected] == [(0, "sink", 3000)]
            assert "retention" in receipt.rejected[0].detail

    asyncio.run(story())
    assert ingester.metric('forebay_ingest_sink_answers_total{answer="bad"}') < 30


def test_poisonous_frames_are_refused_acknowledged_and_do_not_come_back(
    mosquitto: Mosquitto, ingest: Callable[..., Ingest], tmp_path: Path
) -> None:
    broker = mosquitto()
    ingester = ingest(broker, f'url = "sqlite://{tmp_path}/points.db"')
    good = frame(summaries(3), 1)

    async def story() -> None:
        edge = Edge(broker)
        async with edge.running():
            refused = {
                await edge.send("data", b"", 1): "version",
                await edge.send("data", b"\xff" * 50_000, 2): "malformed",
                await edge.send("data", good[:-1], 3): "malformed",
                await edge.send("data", frame(summaries(3), 4, gateway="g2"), 4): "gateway",
            }
            for data, reason in refused.items():
                assert (await edge.receipt(data)).refused == reason
            # A frame with another's correlation data was damaged on its way: no receipt, and no PUBACK withheld.
            assert edge.session.publish(topic("g1", "data"), good, correlation=correlation(7, 5, good[:-1])) is not None
            for seq in range(10, 60):  # more than the broker lets stand unacknowledged
                assert await edge.receipt(await edge.send("data", frame(summaries(3), seq), seq)) == Receipt()
            assert correlation(7, 5, good[:-1]) not in edge.receipts

    asyncio.run(story())
    assert ingester.metric('forebay_ingest_ignored_messages_total{reason="damaged"}') == 1
    assert ingester.metric('forebay_ingest_refused_frames_total{reason="malformed"}') == 2
    with closing(sqlite3.connect(tmp_path / "points.db")) as database:
        assert database.execute("SELECT count(*) FROM points").fetchone() == (3,)


def test_two_ingesters_share_the_frames_and_one_may_be_killed(
    mosquitto: Mosquitto, ingest: Callable[..., Ingest], tmp_path: Path
) -> None:
    broker = mosquitto()
    sink = f'url = "sqlite://{tmp_path}/points.db"'
    ingesters = [ingest(broker, sink), ingest(broker, sink)]

    async def story() -> None:
        for one in ingesters:
            await one.ready()
        edge = Edge(broker)
        async with edge.running():
            for seq in range(1, 41):
                await edge.receipt(await edge.send("data", frame(summaries(5, seq * 5), seq), seq))
            assert all(one.metric('forebay_ingest_stored_frames_total{leaf="data"}') > 0 for one in ingesters)
            ingesters[0].process.kill()
            for seq in range(41, 61):
                payload = frame(summaries(5, seq * 5), seq)
                data = await edge.send("data", payload, seq)
                while data not in edge.receipts:  # what the dead one had in hand is sent again
                    await asyncio.sleep(0.2)
                    if data not in edge.receipts:
                        await edge.send("data", payload, seq)

    asyncio.run(story())
    with closing(sqlite3.connect(tmp_path / "points.db")) as database:
        assert database.execute("SELECT count(*) FROM points").fetchone() == (300,)


def test_an_ingester_whose_sink_fails_leaves_its_group_to_others_and_comes_back(
    mosquitto: Mosquitto, influxdb_servers: Any, ingest: Callable[..., Ingest], tmp_path: Path
) -> None:
    """The broker would go on to give it every second frame."""
    broker, server = mosquitto(), influxdb_servers("1.8")
    server.create_database("left")
    failing = ingest(broker, sink_of(server, tmp_path), limits='leave_after = "500 ms"')

    async def story() -> None:
        await failing.ready()
        edge = Edge(broker)
        async with edge.running():
            server.suspend()
            try:
                await edge.send("data", frame(summaries(5), 1), 1)
                await until(lambda: failing.metric("forebay_ingest_connected") == 0)
                well = ingest(broker, f'url = "sqlite://{tmp_path}/points.db"')
                await well.ready()
                for seq in range(2, 22):
                    assert (
                        await edge.receipt(await edge.send("data", frame(summaries(5, seq * 5), seq), seq)) == Receipt()
                    )
                assert well.metric('forebay_ingest_stored_frames_total{leaf="data"}') == 20
            finally:
                server.resume()
            await failing.ready()

    asyncio.run(story())


def test_sigterm_finishes_what_has_come_and_ends_with_0(
    mosquitto: Mosquitto, ingest: Callable[..., Ingest], tmp_path: Path
) -> None:
    broker = mosquitto()
    ingester = ingest(broker, f'url = "sqlite://{tmp_path}/points.db"')

    async def story() -> None:
        edge = Edge(broker)
        async with edge.running():
            await ingester.ready()
            sent = [await edge.send("data", frame(summaries(500, seq * 500), seq), seq) for seq in range(1, 11)]
            await edge.receipt(sent[0])
            ingester.process.send(signal.SIGTERM)
            assert await asyncio.to_thread(ingester.process.wait, 10.0) == 0
            with closing(sqlite3.connect(tmp_path / "points.db")) as database:
                (stored,) = database.execute("SELECT count(*) FROM points").fetchone()
            await until(lambda: len(edge.receipts) * 500 == stored)  # the last are with the broker

    asyncio.run(story())
    logged = [json.loads(line) for line in ingester.process.output().splitlines()]
    assert "ending: what has come is stored, nothing more is read" in [line["event"] for line in logged]


def test_tls_user_and_password_are_used_and_the_secret_is_in_no_log(
    mosquitto: Mosquitto, ingest: Callable[..., Ingest], tmp_path: Path, certificates: Callable[[str], Tls]
) -> None:
    tls = certificates("localhost")
    broker = mosquitto(tls=tls, users={"ingest": "hush-hush", "g1": "edge-secret"})
    secret = tmp_path / "password"
    secret.write_text("hush-hush\n")
    secret.chmod(0o600)
    login = f'user = "ingest"\npassword_file = "{secret}"\nca_file = "{tls.ca_file}"'
    right = ingest(broker, f'url = "sqlite://{tmp_path}/points.db"', login)
    wrong = ingest(broker, f'url = "sqlite://{tmp_path}/points.db"', login.replace('"ingest"', '"nobody"'))
    (tmp_path / "edge").write_text("edge-secret")
    (tmp_path / "edge").chmod(0o600)

    async def story() -> None:
        edge = Edge(broker, username="g1", password_file=str(tmp_path / "edge"), ca_file=str(tls.ca_file))
        async with edge.running():
            assert await edge.receipt(await edge.send("data", frame(summaries(1), 1), 1)) == Receipt()
        await until(lambda: "nobody" in wrong.page("/healthz")[1])

    asyncio.run(story())
    for one in (right, wrong):
        assert "hush-hush" not in one.process.output()
        assert "hush-hush" not in one.page("/metrics")[1] + one.page("/healthz")[1]


def test_a_wrong_configuration_ends_with_2_and_a_sentence(spawn: Spawn, tmp_path: Path) -> None:
    path = tmp_path / "ingest.toml"
    path.write_text('[broker]\nurl = "mqtt://h"\n[sink]\nurl = "sqlite:x.db"\nfile = "y"\n')
    process = spawn([program("forebay-cloud"), "run", str(path)])
    assert process.wait(20.0) == 2
    assert "unknown field `file`: ingest.toml [sink]" in process.output()


def test_the_servers_of_these_tests_refuse_what_is_wrong(influxdb: InfluxServer) -> None:
    with pytest.raises(QueryFailed):
        influxdb.write("nonsense")
