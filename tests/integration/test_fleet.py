"""The whole fleet: what it records is what arrives."""

from __future__ import annotations

import json
import threading

import numpy as np
import paho.mqtt.client as paho
import pytest
import serial
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from simulators.faults import read_truth
from simulators.fleet import Fleet
from simulators.records import RecordReader
from simulators.scenario import load_scenario

pytestmark = pytest.mark.real
SCENARIO = """
[device.press]
count = 30
rate_hz = 20.0
channel.temperature = { kind = "gauge", level = 61.0, noise = 0.3 }
channel.running = { kind = "state", change_every_s = 0.3 }
[device.gremlin]
malformed = true
rate_hz = 20.0
channel.temperature = { kind = "gauge", level = 61.0, noise = 0.3 }
[device.scale]
via = "serial-json"
rate_hz = 20.0
channel.weight = { kind = "gauge", level = 200.0, noise = 0.3, decimals = 1 }
[[fault]]
kind = "spike"
device = "press-003"
channel = "temperature"
at_s = 0.5
magnitude = 30.0
[[unplug]]
device = "scale"
at_s = 1.0
for_s = 0.3
"""


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SCENARIO)
    return load_scenario(str(path))


@pytest.fixture
def received(mosquitto):
    """The broker, and the messages that a subscriber got, by topic."""
    broker = mosquitto()
    messages: dict[str, list[bytes]] = {}
    subscribed = threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, "listener", protocol=MQTTProtocolVersion.MQTTv5)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _client, _data, message: messages.setdefault(message.topic, []).append(message.payload)
    client.connect(broker.host, broker.port)
    client.subscribe("plant/#", 1)
    client.loop_start()
    assert subscribed.wait(10)
    yield broker, messages
    client.disconnect()
    client.loop_stop()


class SerialReader:
    """Reads lines from a link, and opens it again when it is gone."""

    def __init__(self, link):
        self._link = link
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.lines: list[bytes] = []
        self._thread.start()

    def _run(self):
        while not self._stop.is_set():
            try:
                with serial.Serial(str(self._link), timeout=0.1) as line:
                    while not self._stop.is_set():
                        if text := line.readline():
                            self.lines.append(text)
            except serial.SerialException:
                self._stop.wait(0.05)

    def close(self):
        self._stop.set()
        self._thread.join()


def test_the_record_holds_exactly_what_was_acknowledged_and_everything_of_it_arrived(scenario, received, tmp_path):
    broker, messages = received
    fleet = Fleet(scenario, 5, tmp_path / "record", broker.url)
    reader = SerialReader(tmp_path / "record" / "ports" / "scale")
    try:
        fleet.run(threading.Event(), 3.0)
    finally:
        fleet.close()
        reader.close()
    assert len(read_truth(tmp_path / "record" / "truth.jsonl")) == 1
    records = {(r.series.device, r.series.channel): r for r in RecordReader(tmp_path / "record").by_series()}
    assert len(records) == 62
    for (device, channel), record in records.items():
        if device == "scale":
            continue
        payloads = messages[f"plant/{device}/{channel}"]
        good = [p for p in payloads if device != "gremlin" or is_whole(p)]
        assert record.taken.all()
        assert len(good) == len(record.time_ns)
        assert record.spoiled == len(payloads) - len(good)
        assert record.payload_bytes == sum(map(len, payloads))
        said = [json.loads(payload) for payload in good]
        assert [s["timestamp"] * 1_000_000 for s in said] == record.time_ns.tolist()
        assert [float(s["value"]) for s in said] == record.value.tolist()
    scale = records["scale", "weight"]
    assert 0 < scale.taken.sum() < 60
    read = {said["time"] * 1_000_000: said["weight"] for said in map(json.loads, reader.lines)}
    assert (
        dict(zip(scale.time_ns[scale.taken].tolist(), scale.value[scale.taken].tolist(), strict=True)).items()
        <= read.items()
    )
    assert read.keys() <= set(scale.time_ns.tolist())


def test_two_runs_of_one_seed_send_the_same_values(scenario, received, tmp_path):
    broker, _ = received
    values = []
    for run in ("one", "two"):
        fleet = Fleet(scenario, 9, tmp_path / run, broker.url)
        try:
            fleet.run(threading.Event(), 0.5)
        finally:
            fleet.close()
        values.append([r.value for r in RecordReader(tmp_path / run).by_series() if r.series.device != "scale"])
    for one, two in zip(*values, strict=True):
        assert len(one)
        assert np.array_equal(one, two)


def is_whole(payload: bytes) -> bool:
    try:
        said = json.loads(payload)
    except ValueError:
        return False
    return isinstance(said["value"], float) and said["value"] < 1e300 and isinstance(said["timestamp"], int)
