"""A gateway that is told something: SIGHUP with a good and a bad file, SIGTERM once and twice; real processes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt import publish

from edge.cli import main
from simulators.parts import fetch, program
from simulators.servers import Broker, free_port
from simulators.stored import SqliteStored

pytestmark = pytest.mark.real
LIMIT_S = 60.0

PROFILE = """\
name = "numbers"
version = "1"
[codec]
name = "json"
time = "t"
time_format = "ms"
[channel.n]
window = "%s"
lateness = "1 s"
idle_close = "2 s"
filters.zscore = false
"""


class Device:
    """Sends numbered lines until told to end, and knows how many they were."""

    def __init__(self, send: Callable[[bytes], None], every_s: float) -> None:
        self.sent = 0
        self._send = send
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._send(b'{"n": %d, "t": %d}\n' % (self.sent, time.time_ns() // 1_000_000))
            self.sent += 1

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()


@contextmanager
def serial_device() -> Iterator[tuple[str, Device]]:
    """Never waits for anybody, as a serial line does: what finds no room is lost, which the account will show."""
    master, slave = os.openpty()
    tty.setraw(slave)
    port = os.ttyname(slave)
    os.set_blocking(master, False)

    def send(line: bytes) -> None:
        with suppress(BlockingIOError):
            os.write(master, line)

    device = Device(send, 0.002)
    try:
        yield port, device
    finally:
        device.stop()
        os.close(master)
        os.close(slave)


@contextmanager
def mqtt_device(broker: Broker) -> Iterator[Device]:
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.connect(broker.host, broker.port)
    client.loop_start()
    while not client.is_connected():
        time.sleep(0.01)
    device = Device(lambda line: client.publish("plant/fan", line, qos=1).wait_for_publish(LIMIT_S), 0.002)
    try:
        yield device
    finally:
        device.stop()
        client.loop_stop()
        client.disconnect()


class World:
    """An uplink's broker with an ingester, a sensors' broker, and one gateway."""

    def __init__(self, folder: Path, mosquitto: Callable[..., Broker], spawn: Callable[..., Any]) -> None:
        self.folder, self.spawn = folder, spawn
        self.sensors, self.uplink = mosquitto(), mosquitto()
        self.listen = f"127.0.0.1:{free_port()}"
        self.stored = SqliteStored(folder / "points.db", "g1")
        self.edge: Any = None
        self.ingester: Any = None

    def start_ingester(self, limits: str = "") -> None:
        listen = f"127.0.0.1:{free_port()}"
        path = self.folder / "cloud.toml"
        path.write_text(
            f'[broker]\nurl = "{self.uplink.url}"\n[sink]\nurl = "sqlite://{self.folder}/points.db"\n'
            f'[metrics]\nlisten = "{listen}"\n[limits]\n{limits}\n'
        )
        self.ingester = self.spawn([program("forebay-cloud"), "run", str(path)])
        self.ingester.wait_until(lambda: fetch(f"http://{listen}/healthz") is not None, LIMIT_S, "ready")

    def configure(self, sources: str, *, window: str = "1 s", more: str = "", gateway: str = "g1") -> None:
        (self.folder / "numbers.toml").write_text(PROFILE % window)
        (self.folder / "edge.toml").write_text(f"""\
gateway = "{gateway}"
[uplink]
broker = "{self.uplink.url}"
receipt_timeout = "2 s"
{more}
[store]
path = "{self.folder}/edge.db"
max_size = "16 MiB"
[status]
listen = "{self.listen}"
{sources}
""")

    def start_edge(self) -> None:
        self.edge = self.spawn([program("forebay-edge"), "run", str(self.folder / "edge.toml")])
        self.until(lambda: fetch(f"http://{self.listen}/readyz") is not None, "ready")

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(fetch(f"http://{self.listen}/status") or "{}")
        return status

    def until(self, condition: Callable[[], bool], what: str) -> None:
        self.edge.wait_until(condition, LIMIT_S, what)

    def reload(self) -> dict[str, Any]:
        """SIGHUP, and the status once it was taken or refused."""

        def count() -> int:
            told = self.status()["configuration"]
            return int(told["reloads"] + told["refused"])

        before = count()
        self.edge.send(signal.SIGHUP)
        self.until(lambda: count() > before, "reloaded")
        return self.status()

    def serial(self, port: str) -> str:
        return f'[source.pump]\ndriver = "serial"\nport = "{port}"\nbaud_rate = 115200\nprofile = "numbers.toml"\n'

    def mqtt(self, ahead: int = 8192, topic: str = "plant/{device}") -> str:
        return (
            f'[source.plant]\ndriver = "mqtt"\nbroker = "{self.sensors.url}"\ntopics = ["{topic}"]\n'
            f'receive_maximum = {ahead}\nprofile = "numbers.toml"\n'
        )

    def is_open(self) -> bool:
        return bool(self.status()["sources"]["plant"]["state"] == "open")

    def publish(self, topic: str, payload: str) -> None:
        publish.single(topic, payload, qos=1, hostname=self.sensors.host, port=self.sensors.port)

    def counts(self) -> dict[str, int]:
        """Samples in the sink, by device."""
        return {key[0]: int(one.count.sum()) for key, one in self.stored.series().items()}


@pytest.fixture
def world(tmp_path: Path, mosquitto: Any, spawn: Any) -> World:
    return World(tmp_path, mosquitto, spawn)


def test_no_line_and_no_message_is_lost_or_doubled_by_reloads(world: World) -> None:
    """Of a serial device that never waits, and of a broker whose session is ended and begun again by each reload."""
    world.start_ingester()
    host = '[source.host]\ndriver = "host"\nevery = "1 s"\n'
    with serial_device() as (port, pump), mqtt_device(world.sensors) as fan:
        world.configure(world.serial(port) + world.mqtt())
        world.start_edge()
        world.until(lambda: all(s["state"] == "open" for s in world.status()["sources"].values()), "open")
        pump.start()
        fan.start()
        for ahead, window, more, extra in (
            (1000, "2 s", "", ""),
            (2000, "2 s", 'max_rate = "64 KiB/s"', host),
            (1000, "1 s", 'keepalive = "30 s"', ""),
            (1000, "1 s", 'max_rate = "32 KiB/s"', ""),
        ):
            time.sleep(0.7)
            world.configure(world.serial(port) + world.mqtt(ahead) + extra, window=window, more=more)
            status = world.reload()
            assert status["configuration"]["refused"] == 0, status["configuration"]
            assert ("host" in status["sources"]) == bool(extra)
        time.sleep(0.7)
        pump.stop()
        fan.stop()
        sent = {"pump": pump.sent, "fan": fan.sent}
        said = world.edge.output
        world.until(lambda: world.status()["sources"]["pump"]["samples"] >= sent["pump"], f"done with {sent}\n")
        world.until(lambda: {k: v for k, v in world.counts().items() if k in sent} == sent, f"{sent}")
        assert world.status()["sources"]["pump"]["reconnects"] == 0
    ledger = world.status()["ledger"]
    assert (ledger["rejected"], ledger["dropped"], ledger["imbalance"]) == ({}, {}, 0), said()
    assert "max_rate" in said()


def test_a_bad_file_is_refused_with_a_sentence_while_the_old_one_runs_on(world: World) -> None:
    with mqtt_device(world.sensors) as fan:
        world.configure(world.mqtt())
        world.start_edge()
        fan.start()
        world.configure(world.mqtt() + 'topcs = ["x"]\n')
        told = world.reload()["configuration"]
        assert (told["reloads"], told["refused"]) == (0, 1)
        assert "unknown field `topcs`: edge.toml [source.plant]" in told["refusal"]
        world.configure(world.mqtt(), gateway="g2")
        assert "gateway cannot change while the gateway runs" in world.reload()["configuration"]["refusal"]
        world.configure(world.mqtt() + '[clock]\ntrust_after = "2020-01-01"\n')
        assert "clock.trust_after cannot change while the gateway runs" in world.reload()["configuration"]["refusal"]
        taken = world.status()["ledger"]["produced"]
        world.until(lambda: world.status()["ledger"]["produced"] > taken, "running on")
        world.configure(world.mqtt())
        told = world.reload()["configuration"]
        assert (told["reloads"], told["refused"], told["refusal"]) == (1, 3, "")
    assert "is refused, the old configuration runs on: unknown field `topcs`" in world.edge.output()


def test_a_reload_while_the_cloud_is_away_neither_loses_nor_doubles_the_backlog(world: World) -> None:
    world.start_ingester()
    with mqtt_device(world.sensors) as fan:
        world.configure(world.mqtt())
        world.start_edge()
        fan.start()
        world.until(lambda: sum(world.counts().values()) > 0, "storing")
        world.uplink.kill()
        for window, more in (("2 s", ""), ("1 s", 'max_rate = "64 KiB/s"')):
            wanted = world.status()["ledger"]["produced"] + 1500
            world.until(partial(lambda n: world.status()["ledger"]["produced"] >= n, wanted), "a backlog")
            before = world.status()
            world.configure(world.mqtt(), window=window, more=more)
            after = world.reload()
            assert after["configuration"]["refused"] == 0
            assert not after["link"]["connected"]
            assert after["store"]["outbox_frames"] > before["store"]["outbox_frames"]
            assert after["uptime_s"] > before["uptime_s"]
    world.uplink.start()
    world.until(lambda: world.status()["ledger"]["produced"] == fan.sent, "all taken")
    world.until(lambda: world.counts() == {"fan": fan.sent}, f"{fan.sent} stored")
    world.until(lambda: world.status()["ledger"]["stored"] == fan.sent, "receipted")
    ledger = world.status()["ledger"]
    assert (ledger["rejected"], ledger["dropped"], ledger["imbalance"]) == ({}, {}, 0), world.edge.output()


def test_the_link_stays_open_through_reloads_that_leave_its_settings_as_they_are(world: World) -> None:
    def connects() -> int:
        return world.uplink.process.output().count(" as forebay-g1 ")

    def is_connected() -> bool:
        return bool(world.status()["link"]["connected"])

    world.start_ingester()
    with mqtt_device(world.sensors) as fan:
        world.configure(world.mqtt())
        world.start_edge()
        world.until(is_connected, "connected")
        fan.start()
        for window, more in (("2 s", 'max_rate = "64 KiB/s"'), ("1 s", 'max_per_month = "1 GB"'), ("1 s", "")):
            world.configure(world.mqtt(), window=window, more=more)
            status = world.reload()
            assert status["configuration"]["refused"] == 0
            assert status["link"]["connected"]
            assert bool(status["month"]) == ("month" in more)
        assert connects() == 1
        world.configure(world.mqtt(), more='client_id = "forebay-g1-anew"')
        world.reload()
        world.until(is_connected, "connected again")
    assert connects() == 1
    assert world.uplink.process.output().count(" as forebay-g1-anew ") == 1
    world.until(lambda: world.counts() == {"fan": fan.sent}, f"{fan.sent} stored")
    assert world.status()["ledger"]["imbalance"] == 0


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_topics_that_a_new_configuration_leaves_out_bring_nothing_more(world: World, protocol: str) -> None:
    """Over a kill and over a reload: the broker's session remembers what it was asked for before."""
    told = f'protocol = "{protocol}"\n'
    numbers = iter(range(1000, 2000))

    def bring(*topics: str) -> int:
        """How many samples so many messages have led to; the last one is read in any case."""
        before = int(world.status()["sources"]["plant"]["messages"])
        for topic in topics:
            number = next(numbers)
            world.publish(topic, json.dumps({"n": number, "t": number}))
        world.until(lambda: world.is_open() and world.status()["sources"]["plant"]["messages"] > before, "read")
        time.sleep(0.3)  # a second copy would come behind it
        return int(world.status()["sources"]["plant"]["messages"]) - before

    world.configure(world.mqtt(topic="plant/{device}") + told)
    world.start_edge()
    world.until(world.is_open, "open")
    assert bring("plant/a") == 1
    world.edge.kill()
    world.configure(world.mqtt(topic="+/{device}") + told)
    world.start_edge()
    world.until(world.is_open, "open")
    assert bring("plant/a") == 1
    assert bring("other/a") == 1
    world.configure(world.mqtt(topic="other/{device}") + told)
    assert world.reload()["configuration"]["reloads"] == 1
    world.until(world.is_open, "open")
    assert bring("plant/a", "else/a", "other/b") == 1
    world.edge.kill()
    world.configure(world.mqtt(topic="plant/{device}") + told)
    world.start_edge()
    world.until(world.is_open, "open")
    assert bring("other/b", "plant/b") == 1


def test_sigterm_sends_what_is_there_and_ends_with_zero(world: World) -> None:
    world.start_ingester()
    with mqtt_device(world.sensors) as fan:
        world.configure(world.mqtt())
        world.start_edge()
        fan.start()
        world.until(lambda: sum(world.counts().values()) > 0, "storing")
    world.until(lambda: world.status()["ledger"]["produced"] >= fan.sent, "all taken")
    world.until(lambda: world.status()["ledger"]["waiting"] == 0, "closed windows")
    world.edge.send(signal.SIGTERM)
    assert world.edge.wait(LIMIT_S) == 0
    assert world.counts() == {"fan": fan.sent}


def test_a_second_sigterm_ends_at_once_and_nothing_is_lost(world: World) -> None:
    """Nobody gives receipts, so the first one alone would wait for its whole limit."""
    with mqtt_device(world.sensors) as fan:
        world.configure(world.mqtt())
        world.start_edge()
        fan.start()
        world.until(lambda: world.status()["ledger"]["produced"] > 200, "taking samples")
    world.edge.send(signal.SIGTERM)
    world.until(lambda: "ending:" in world.edge.output(), "ending")
    world.edge.send(signal.SIGTERM)
    assert world.edge.wait(LIMIT_S) == 0
    assert "Traceback" not in world.edge.output()
    world.start_ingester()
    world.start_edge()
    world.until(lambda: world.counts() == {"fan": fan.sent}, "stored")


def test_a_dead_letter_is_replayed_once_the_profile_can_read_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.configure(world.mqtt())
    world.start_edge()
    config = str(world.folder / "edge.toml")

    def said(*arguments: str) -> str:
        code = main(["deadletters", config, *arguments])
        out, error = capsys.readouterr()
        return f"{code} {out}{error}"

    world.until(world.is_open, "open")
    world.publish("plant/fan", '{"n": 1, "t": "yesterday"}')
    world.until(lambda: "malformed" in said("list"), "listing it")
    assert world.status()["dead_letters"] == {"kept": 1, "bytes": 26, "gone": 0}
    assert "\nforebay_dead_letters 1\n" in (fetch(f"http://{world.listen}/metrics") or b"").decode()
    assert "plant/fan" in said("show", "1")
    assert '{"n": 1, "t": "yesterday"}' in said("show", "1")
    assert said("replay", "1").startswith("2 ")
    assert said("replay", "7").startswith("2 forebay-edge: the gateway says: there is no dead letter")
    (world.folder / "numbers.toml").write_text((PROFILE % "1 s").replace('time = "t"\ntime_format = "ms"\n', ""))
    with (world.folder / "numbers.toml").open("a") as profile:
        profile.write('[channel.t]\nkind = "state"\nmapping = { yesterday = 1 }\n')
    assert world.reload()["configuration"]["reloads"] == 1
    assert said("replay", "1") == "0 replayed\n"
    world.until(lambda: said("list") == "0 no dead letters\n", "gone")
    assert world.status()["dead_letters"] == {"kept": 0, "bytes": 0, "gone": 0}
    ledger = world.status()["ledger"]
    assert (ledger["produced"], ledger["rejected"], ledger["imbalance"]) == (3, {"malformed": 1}, 0)


def test_frames_that_the_cloud_refused_are_replayed_once_it_takes_them(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.start_ingester('body_size = "1 B"')
    world.configure(world.mqtt())
    world.start_edge()
    config = str(world.folder / "edge.toml")
    world.until(world.is_open, "open")
    begun_ms = time.time_ns() // 1_000_000
    for n in range(20):
        message = json.dumps({"n": n, "t": begun_ms + n})
        world.publish("plant/fan", message)
        world.publish("plant/pump", message)
    world.until(lambda: world.status()["ledger"]["produced"] == 40, "taken")
    world.until(lambda: world.status()["ledger"]["waiting"] == 0, "receipted")
    world.until(lambda: world.status()["store"]["outbox_frames"] == 0, "committed")
    ledger = world.status()["ledger"]
    assert (ledger["rejected"], ledger["stored"], ledger["imbalance"]) == ({"refused": 40}, 0, 0)
    world.ingester.kill()

    main(["deadletters", config, "list", "--json"])
    letters = json.loads(capsys.readouterr().out)
    assert {(letter["source"], letter["reason"]) for letter in letters} == {("uplink", "refused")}
    assert world.status()["dead_letters"]["bytes"] == sum(letter["bytes"] for letter in letters)
    for letter in letters:
        main(["deadletters", config, "show", str(letter["id"])])
    assert "'fan'" in capsys.readouterr().out

    world.start_ingester()
    for letter in letters:
        assert main(["deadletters", config, "replay", str(letter["id"])]) == 0
    world.until(lambda: world.counts() == {"fan": 20, "pump": 20}, "stored")
    world.until(lambda: world.status()["store"]["outbox_frames"] == 0, "receipted")
    assert world.status()["dead_letters"] == {"kept": 0, "bytes": 0, "gone": 0}
    after = world.status()["ledger"]
    assert (after["produced"], after["rejected"], after["imbalance"]) == (40, ledger["rejected"], 0)
    assert main(["deadletters", config, "replay", str(letters[0]["id"])]) == 2
