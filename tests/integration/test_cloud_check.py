"""`forebay-cloud check`: what an operator sees of broker, sink and page, and that nothing is changed by looking."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from aiohttp import web
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.subscribeoptions import SubscribeOptions
from typer.testing import CliRunner

from cloud.cli import app
from devices.wire.topics import shared_filter, topic
from simulators.servers import Broker, InfluxServer

pytestmark = pytest.mark.real

Mosquitto = Callable[..., Broker]
PATIENCE_S = 20.0
MESSAGES = 40


def write(folder: Path, broker: str, sink: str, *, listen: str = "127.0.0.1:0") -> Path:
    path = folder / "ingest.toml"
    path.write_text(f'[broker]\n{broker}\n[sink]\n{sink}\n[metrics]\nlisten = "{listen}"\n')
    return path


def check(path: Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["check", str(path), "--seconds", "10"])
    return done.exit_code, done.output


def at(broker: Broker) -> str:
    return f'url = "{broker.url}"'


def sqlite(folder: Path) -> str:
    return f'url = "sqlite://{folder}/points.db"'


def test_where_all_is_well_it_says_what_it_found(tmp_path: Path, mosquitto: Mosquitto) -> None:
    code, said = check(write(tmp_path, at(mosquitto()), sqlite(tmp_path)))
    assert code == 0, said
    assert "connected; the broker takes packets of" in said
    assert f"{tmp_path}/points.db is not there yet: the ingester makes it" in said
    assert said.endswith("all is well\n")
    assert not (tmp_path / "points.db").exists()


def test_it_takes_no_frame_from_the_ingesters_and_leaves_no_session(tmp_path: Path, mosquitto: Mosquitto) -> None:
    broker = mosquitto(persistence=True)
    heard: list[bytes] = []
    ingester = mqtt.Client(CallbackAPIVersion.VERSION2, "ingester", protocol=mqtt.MQTTv5)
    ingester.on_message = lambda client, data, message: heard.append(message.payload)
    subscribed = threading.Event()
    ingester.on_subscribe = lambda *_: subscribed.set()
    ingester.connect(broker.host, broker.port)
    ingester.loop_start()
    ingester.subscribe(shared_filter("forebay", "data"), options=SubscribeOptions(qos=1))
    assert subscribed.wait(PATIENCE_S)
    ended = threading.Event()

    def gateway() -> None:
        for number in range(MESSAGES):
            ingester.publish(topic("g1", "data"), b"%d" % number, qos=1).wait_for_publish(PATIENCE_S)
            ended.wait(0.01)

    publishing = threading.Thread(target=gateway)
    publishing.start()
    code, said = check(write(tmp_path, at(broker), sqlite(tmp_path)))
    publishing.join()
    assert code == 0, said
    deadline = threading.Event()
    for _ in range(200):
        if len(heard) == MESSAGES or deadline.wait(0.05):
            break
    assert sorted(map(int, heard)) == list(range(MESSAGES))
    ingester.disconnect()
    ingester.loop_stop()
    broker.stop()  # in order: what it would keep of sessions is in its file now
    assert b"forebay-check" not in (broker.folder / "mosquitto.db").read_bytes()


def test_a_broker_that_is_away_or_asks_for_more_is_a_problem(tmp_path: Path, mosquitto: Mosquitto) -> None:
    code, said = check(write(tmp_path, 'url = "mqtt://127.0.0.1:1"', sqlite(tmp_path)))
    assert code == 1
    assert "PROBLEM: 127.0.0.1:1 refuses the connection: does the broker run" in said
    guarded = mosquitto(users={"ingest": "secret"})
    code, said = check(write(tmp_path, at(guarded), sqlite(tmp_path)))
    assert code == 1
    assert "does not let a client without a user in" in said
    code, said = check(write(tmp_path, f'{at(guarded)}\nuser = "ingest"\npassword_file = "/no/such"', sqlite(tmp_path)))
    assert code == 1
    assert "cannot read /no/such that password_file names: No such file or directory; write the password there" in said
    assert said.endswith("problems: 1\n")


def test_an_ingester_that_may_not_send_receipts_is_told_so(tmp_path: Path, mosquitto: Mosquitto) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read forebay/v1/#\n")
    code, said = check(write(tmp_path, at(mosquitto(lines=[f"acl_file {acl}"])), sqlite(tmp_path)))
    assert code == 1, said
    assert "/receipt: let its ACL allow clients without a user to write it" in said


def test_a_sink_says_what_is_wrong_with_it_and_nothing_is_made_there(
    tmp_path: Path, mosquitto: Mosquitto, influxdb: InfluxServer
) -> None:
    broker = at(mosquitto())
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(influxdb.password if influxdb.version == "1.8" else influxdb.token)
    bad.write_text("wrong")
    for secret in (good, bad):
        secret.chmod(0o600)

    def sink(database: str, secret: Path) -> str:
        if influxdb.version == "1.8":
            return f'url = "{influxdb.url}"\ndatabase = "{database}"\nuser = "forebay"\npassword_file = "{secret}"'
        return f'url = "{influxdb.url}"\norg = "forebay"\nbucket = "{database}"\ntoken_file = "{secret}"'

    code, said = check(write(tmp_path, broker, sink(influxdb.database, good)))
    assert code == 0, said
    assert "the server answers, and lets us write to the" in said
    code, said = check(write(tmp_path, broker, sink(influxdb.database, bad)))
    assert code == 1
    assert "check the token or the user and password in [sink]" in said
    code, said = check(write(tmp_path, broker, sink("nowhere", good)))
    if influxdb.version == "1.8":
        assert "has no database 'nowhere' yet: the ingester makes it" in said
    else:
        assert "check `url`, `org` and `bucket` in [sink]" in said
    assert "nowhere" not in {row["name"] for row in influxdb.query("SHOW DATABASES")}


def test_a_page_that_an_ingester_serves_already_is_no_problem_and_another_programs_is(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    broker = at(mosquitto())
    for text, code, sentence in (
        ("forebay_ingest_connected 1\n", 0, "an ingester is running there already, and says: forebay_ingest_connected"),
        ("something else", 1, "PROBLEM: [metrics] listen: another program listens at"),
    ):

        async def beside(text: str = text) -> tuple[int, str]:
            async def page(_: web.Request) -> web.Response:
                return web.Response(text=text)

            pages = web.Application()
            pages.add_routes([web.get("/{any}", page)])
            runner = web.AppRunner(pages)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0]
            path = write(tmp_path, broker, sqlite(tmp_path), listen=f"{host}:{port}")
            try:
                return await asyncio.to_thread(check, path)
            finally:
                await runner.cleanup()

        found, said = asyncio.run(beside())
        assert found == code, said
        assert sentence in said
