"""What every sink promises (cloud.sinks.Sink), tried on each with its real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web

from cloud.lines import encode
from cloud.sinks import Sink
from cloud.sinks.parsing import parse_key, parse_line
from devices.errors import BadLines, SinkBusy, SinkError, SinkRefused
from devices.model import CHANGE_DTYPE, Lane
from devices.profiles import installed, load
from devices.tables import convert
from devices.wire.frame import ChangeBody, Frame, Header, WireSeries
from simulators.servers import InfluxServer

NOW_NS = 1_763_980_000_000_000_000
Point = tuple[str, dict[str, str], int, dict[str, Any]]


@dataclass
class Stand:
    """A sink in front of its store, and all points of one measurement as the store itself tells them."""

    make: Callable[[], Sink]
    read: Callable[[str], list[Point]]
    is_sqlite: bool

    def run(self, work: Callable[[Sink], Awaitable[None]]) -> None:
        async def whole() -> None:
            sink = self.make()
            await sink.open()
            try:
                await work(sink)
            finally:
                await sink.close()

        asyncio.run(whole())

    def write(self, *bodies: bytes) -> None:
        async def work(sink: Sink) -> None:
            for body in bodies:
                await sink.write(body)

        self.run(work)


def options(sink: Any, **keys: Any) -> Any:
    return convert(keys, sink.Options, "test", ValueError)


def influx_keys(server: InfluxServer, folder: Path) -> dict[str, str]:
    secret = folder / f"secret-{server.version}"
    if server.version == "1.8":
        secret.write_text(server.password)
        secret.chmod(0o600)
        return {"database": server.database, "user": server.user, "password_file": str(secret)}
    secret.write_text(server.token)
    secret.chmod(0o600)
    return {"org": server.org, "bucket": server.database, "token_file": str(secret)}


def influx_points(server: InfluxServer, measurement: str) -> list[Point]:
    name = measurement.replace("\\", "\\\\").replace('"', '\\"')
    tags = {row["tagKey"] for row in server.query(f'SHOW TAG KEYS FROM "{name}"')}
    points = []
    for row in server.query(f'SELECT * FROM "{name}"'):
        fields = {k: v for k, v in row.items() if v is not None and k not in tags and k not in ("time", "measurement")}
        points.append((measurement, {k: row[k] for k in tags if row.get(k)}, row["time"], fields))
    return points


def sqlite_points(path: Path, measurement: str) -> list[Point]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "SELECT measurement, tags, time_ns, fields FROM points WHERE measurement = ? ORDER BY time_ns, tags",
            (measurement,),
        ).fetchall()
    return [(m, json.loads(tags), time_ns, json.loads(fields)) for m, tags, time_ns, fields in rows]


def file_points(path: Path, measurement: str) -> list[Point]:
    """Of a file of line protocol, in which a point may stand more than once."""
    points: dict[tuple[str, int], Point] = {}
    for line in path.read_text().split("\n")[:-1]:
        point = parse_line(line)
        name, tags = parse_key(point.key)
        key = f"{name} {tags}", point.time_ns
        merged = {**(points[key][3] if key in points else {}), **point.fields}
        points[key] = (name, tags, point.time_ns, merged)
    return [point for point in points.values() if point[0] == measurement]


EXAMPLE = [name for name in installed("sinks") if name == "linefile"]
"""The sink of tests/conformance/external, where test_external_package.py has installed it."""


@pytest.fixture(params=["sqlite", "influxdb 1.8", "influxdb 2.7", *EXAMPLE])
def stand(request: pytest.FixtureRequest, tmp_path: Path) -> Stand:
    if request.param == "linefile":
        path = tmp_path / "points.lp"
        example = load("sinks", "linefile")
        return Stand(lambda: example(f"linefile://{path}", options(example)), lambda m: file_points(path, m), False)
    if request.param == "sqlite":
        path = tmp_path / "points.db"
        sink = load("sinks", "sqlite")
        return Stand(lambda: sink(f"sqlite://{path}", options(sink)), lambda m: sqlite_points(path, m), True)
    server: InfluxServer = request.getfixturevalue("influxdb_servers")(request.param.split()[1])
    server.create_database(f"sinks{abs(hash(request.node.name))}")
    sink = load("sinks", "http")
    keys = influx_keys(server, tmp_path)
    return Stand(lambda: sink(server.url, options(sink, **keys)), lambda m: influx_points(server, m), False)


def test_every_installed_sink_is_tried_here() -> None:
    tried = {load("sinks", name) for name in ("sqlite", "http", *EXAMPLE)}
    assert {load("sinks", name) for name in installed("sinks")} == tried


@pytest.mark.real
def test_a_point_comes_back_as_it_was_written(stand: Stand) -> None:
    stand.write(b'motor,device=d1,gateway=g mean=1.5,count=3i,reason="hot, \\"very\\"",big=1e300 %d\n' % NOW_NS)
    fields = {"mean": 1.5, "count": 3, "reason": 'hot, "very"', "big": 1e300}
    assert stand.read("motor") == [("motor", {"device": "d1", "gateway": "g"}, NOW_NS, fields)]


@pytest.mark.real
def test_writing_a_batch_again_changes_nothing(stand: Stand) -> None:
    body = b"".join(b"m,device=d%d v=%d.5 %d\n" % (n % 7, n, NOW_NS + n) for n in range(1000))
    stand.write(body)
    before = stand.read("m")
    stand.write(body, body[: len(body) // 2].rpartition(b"\n")[0], body)
    assert len(before) == 1000
    assert stand.read("m") == before


@pytest.mark.real
def test_fields_of_one_key_are_merged(stand: Stand) -> None:
    stand.write(b"m,device=d a=1.0 %d\n" % NOW_NS, b"m,device=d b=2.0 %d\n" % NOW_NS)
    assert stand.read("m") == [("m", {"device": "d"}, NOW_NS, {"a": 1.0, "b": 2.0})]


@pytest.mark.real
def test_tags_in_another_order_are_the_same_series(stand: Stand) -> None:
    stand.write(b"m,a=1,b=2 v=1.0 %d\n" % NOW_NS, b"m,b=2,a=1 w=1.0 %d\n" % NOW_NS)
    assert len(stand.read("m")) == 1


@pytest.mark.real
@pytest.mark.parametrize(
    "bad", [b"m,device=d v=NaN 1", b"m,device=d v=1.0,w= 1", b"m,device= v=1.0 1", b"nonsense", b",a=b v=1.0 1"]
)
def test_a_bad_line_among_good_ones_is_bad_lines_and_the_good_ones_can_be_written_again(
    stand: Stand, bad: bytes
) -> None:
    good = [b"m,device=d v=%d.0 %d\n" % (n, NOW_NS + n) for n in range(10)]

    async def work(sink: Sink) -> None:
        with pytest.raises(BadLines):
            await sink.write(b"".join([*good[:5], bad + b"\n", *good[5:]]))
        await sink.write(b"".join(good))

    stand.run(work)
    assert [point[3]["v"] for point in stand.read("m")] == list(range(10))


@pytest.mark.real
def test_many_writes_at_once_are_all_stored(stand: Stand) -> None:
    async def work(sink: Sink) -> None:
        bodies = [
            b"".join(b"m,device=d%d v=1.0 %d\n" % (writer, NOW_NS + n) for n in range(50)) for writer in range(20)
        ]
        await asyncio.gather(*(sink.write(body) for body in bodies))

    stand.run(work)
    assert len(stand.read("m")) == 1000


@pytest.mark.real
def test_a_check_says_what_it_finds_and_changes_nothing(stand: Stand, tmp_path: Path) -> None:
    def look() -> str:
        async def whole() -> str:
            sink = stand.make()
            try:
                return await sink.check()
            finally:
                await sink.close()

        return asyncio.run(whole())

    before = sorted(tmp_path.iterdir())
    assert look()
    assert sorted(tmp_path.iterdir()) == before
    stand.write(b"m,device=d v=1.0 %d\n" % NOW_NS)
    written = sorted(tmp_path.iterdir())
    assert look()
    assert sorted(tmp_path.iterdir()) == written
    assert len(stand.read("m")) == 1


HOSTILE = [
    "with space",
    "comma,equals=quote\"single'",
    "tab\tnewline\nreturn\rnul\x00end",
    "backslash\\inside",
    "backslash at the end\\",
    "two at the end\\\\",
    "backslash \\, before \\= and \\ space",
    "#comment",
    " leading and trailing ",
    "=,",
    "unité °C µ 温度 🌡",
    '{json:"[1]"}',
    "$*?%/|;--",
    "null",
    "1e5",
    "t",
    "_underscore",
    "é" * 100,
]


def seen(name: str) -> str:
    """How the docstring of cloud.lines says that a name is shown."""
    for code in range(32):
        name = name.replace(chr(code), chr(0x2400 + code))
    while (stripped := name.rstrip("\\")) != name:
        name = stripped + "⧵" * (len(name) - len(stripped))
    for special in ",= ":
        while "\\" + special in name:
            name = name.replace("\\" + special, "⧵" + special)
    return name


@pytest.mark.real
def test_hostile_names_come_back_as_they_are_or_as_their_picture(stand: Stand) -> None:
    table = [WireSeries(name, name, name, name, texts={name: 1.0}) for name in HOSTILE]
    rows = np.zeros(len(HOSTILE), CHANGE_DTYPE)
    rows["series"], rows["time_ns"], rows["value"] = np.arange(len(rows)), NOW_NS, 1.0
    frame = Frame(Header("g", 1, 1, Lane.LIVE, NOW_NS), table, ChangeBody(rows))
    stand.write(encode(frame, NOW_NS).body)
    for name in HOSTILE:
        shown = seen(name)
        measurement = "＃" + shown[1:] if shown.startswith("#") else shown
        ((_, tags, time_ns, fields),) = stand.read(measurement)
        assert tags == {"channel": shown, "device": shown, "gateway": "g", "unit": shown}
        assert time_ns == NOW_NS
        text = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 else c for c in name)
        assert fields == {"state": 1.0, "text": text}


@pytest.mark.real
def test_a_missing_database_is_made(influxdb_servers: Any, tmp_path: Path) -> None:
    server = influxdb_servers("1.8")
    sink = load("sinks", "http")
    keys = influx_keys(server, tmp_path) | {"database": 'made "here"'}
    stand = Stand(lambda: sink(server.url, options(sink, **keys)), lambda m: [], False)
    stand.write(b"m v=1.0 1\n")
    assert keys["database"] in {row["name"] for row in server.query("SHOW DATABASES")}


@pytest.mark.real
def test_a_database_that_vanishes_while_writing_is_made_again_and_the_write_asked_for_again(
    influxdb_servers: Any, tmp_path: Path
) -> None:
    server = influxdb_servers("1.8")
    sink = load("sinks", "http")
    keys = influx_keys(server, tmp_path) | {"database": "vanishing"}

    async def work(sink: Sink) -> None:
        server.query('DROP DATABASE "vanishing"')
        with pytest.raises(SinkBusy, match="has been made"):
            await sink.write(b"m v=1.0 1\n")
        await sink.write(b"m v=1.0 1\n")

    Stand(lambda: sink(server.url, options(sink, **keys)), lambda m: [], False).run(work)


@pytest.mark.real
def test_who_may_not_come_in_is_refused_without_the_secret_in_the_message(
    influxdb: InfluxServer, tmp_path: Path
) -> None:
    sink = load("sinks", "http")
    keys = influx_keys(influxdb, tmp_path)
    Path(keys.get("password_file") or keys["token_file"]).write_text("wrong-secret")

    async def work() -> SinkError:
        made = sink(influxdb.url, options(sink, **keys))
        try:
            await made.open()  # 2.7 answers a ping to anybody
            await made.write(b"m v=1.0 1\n")
        except SinkRefused as error:
            return error
        finally:
            await made.close()
        raise AssertionError("a wrong secret was let in")

    said = str(asyncio.run(work()))
    assert "401" in said
    assert "[sink]" in said
    assert "wrong-secret" not in said


@pytest.mark.real
def test_a_bucket_that_is_not_there_is_refused_with_the_keys_to_check(influxdb_servers: Any, tmp_path: Path) -> None:
    server = influxdb_servers("2.7")
    sink = load("sinks", "http")
    keys = influx_keys(server, tmp_path) | {"bucket": "nowhere"}

    async def work(sink: Sink) -> None:
        with pytest.raises(SinkRefused, match="`bucket`"):
            await sink.write(b"m v=1.0 1\n")

    Stand(lambda: sink(server.url, options(sink, **keys)), lambda m: [], False).run(work)


def test_a_server_that_is_not_there_is_busy(free_port: Callable[[], int]) -> None:
    sink = load("sinks", "http")

    async def work() -> None:
        made = sink(f"http://127.0.0.1:{free_port()}", options(sink, database="x"))
        try:
            with pytest.raises(SinkBusy, match="no connection"):
                await made.open()
        finally:
            await made.close()

    asyncio.run(work())


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 302, "headers": {"Location": "/login"}},
        {"status": 200, "text": "<html>down for maintenance</html>"},
        {"status": 400, "text": "Client sent an HTTP request to an HTTPS server.\n"},
        {"status": 422, "text": '{"detail": "of something else"}'},
    ],
    ids=["a login page", "a page", "a server that wants TLS", "another API"],
)
def test_what_is_no_influxdb_neither_stores_nor_rejects(answer: dict[str, Any], free_port: Callable[[], int]) -> None:
    """Lines that nobody has looked at are kept until somebody puts the address right."""
    port = free_port()

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="please log in") if request.path == "/login" else web.Response(**answer)

    async def work() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", page)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        sink = load("sinks", "http")
        made = sink(f"http://127.0.0.1:{port}", options(sink, database="x"))
        try:
            with contextlib.suppress(SinkRefused):  # a page that answers 200 may pass for one until the first write
                await made.open()
            with pytest.raises(SinkRefused, match="check `url`"):
                await made.write(b"m v=1.0 1\n")
        finally:
            await made.close()
            await runner.cleanup()

    asyncio.run(work())


@pytest.mark.real
def test_a_server_that_hangs_is_busy_after_the_time_out(influxdb: InfluxServer, tmp_path: Path) -> None:
    sink = load("sinks", "http")
    keys = influx_keys(influxdb, tmp_path) | {"timeout": "200 ms"}

    async def work(sink: Sink) -> None:
        influxdb.suspend()
        try:
            with pytest.raises(SinkBusy, match="200 ms"):
                await sink.write(b"m v=1.0 1\n")
        finally:
            influxdb.resume()

    Stand(lambda: sink(influxdb.url, options(sink, **keys)), lambda m: [], False).run(work)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({}, "database"),
        ({"database": "d", "token_env": "X"}, "org"),
        ({"bucket": "b", "org": "o"}, "database"),
        ({"token_env": "X", "org": "o"}, "bucket"),
    ],
)
def test_keys_that_do_not_belong_together_are_refused(keys: dict[str, str], named: str) -> None:
    sink = load("sinks", "http")
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert(keys, sink.Options)
