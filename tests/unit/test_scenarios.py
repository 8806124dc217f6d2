"""Scenarios: what is shipped is whole, and what is wrong is refused with a sentence."""

from __future__ import annotations

import itertools
import json

import pytest

from devices.errors import ConfigError
from devices.profiles import load_profile
from simulators.fleet import messages
from simulators.messages import BREAKAGES
from simulators.scenario import PROFILES, SCENARIOS, device_names, load_scenario

STARTED_NS = 1_764_000_000_000_000_000
SMALL = """
[device.press]
count = 2
channel.temperature = { kind = "gauge", level = 61.0 }
channel.running = { kind = "state" }
[device.pump]
via = "serial-text"
channel.flow = { kind = "gauge", level = 3.0 }
"""


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_channel_of_a_shipped_scenario_is_in_the_profile_that_reads_it(path):
    scenario = load_scenario(path.stem)
    for name, group in scenario.device.items():
        profile = load_profile(str(PROFILES / f"{group.profile or scenario.profile}.toml"))
        for channel, shape in group.channel.items():
            spec = profile.series(name, channel)
            assert spec is not None
            assert (spec.unit, spec.kind.name.lower()) == (shape.unit, shape.__struct_config__.tag)
            if words := getattr(shape, "words", []):
                assert spec.texts == {word: float(number) for number, word in enumerate(words)}


def test_the_demo_has_what_it_promises():
    machines = load_scenario("demo").devices(1)
    via = [machine.group.via for machine in machines]
    assert 60 <= via.count("mqtt") <= 200
    assert via.count("serial-json") == via.count("serial-text") == 1
    assert [machine.name for machine in machines if machine.group.malformed] == ["gremlin"]
    assert {machine.group.rate_hz for machine in machines} >= {0.1, 1.0, 10.0}


def test_every_alarm_that_the_demo_expects_is_due_within_40_seconds():
    truths = []
    scenario = load_scenario("demo")
    for machine in scenario.devices(1):
        stream = messages(machine, 0, scenario.topic, 1, STARTED_NS, truths.append)
        for _ in itertools.takewhile(lambda message: message.time_ns < STARTED_NS + 40_000_000_000, stream):
            pass
    first = [t for t in truths if t.alarm and t.start_ns < STARTED_NS + 40_000_000_000]
    assert len(first) == sum(fault.alarm for fault in scenario.fault)
    assert all(t.start_ns > STARTED_NS + 11_000_000_000 and t.by_ns < STARTED_NS + 40_000_000_000 for t in first)


def test_a_group_of_several_numbers_its_devices():
    assert device_names("press", 1) == ["press"]
    assert device_names("press", 2) == ["press-001", "press-002"]


def test_devices_of_one_group_do_not_all_send_at_the_same_moment(tmp_path):
    path = tmp_path / "many.toml"
    path.write_text(SMALL.replace("count = 2", "count = 50"))
    phases = {machine.schedule.phase_s for machine in load_scenario(str(path)).devices(1)}
    assert len(phases) == 51
    assert max(phases) < 1.0


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("[device.x]\nchannl.t = 1", "unknown field `channl`"),
        ("[device.x]\ncount = 0\nchannel.t = { kind = 'state' }", "count"),
        ("[device.x]\nchannel.t = { kind = 'wave' }", "wave"),
        ("[device.x]\nmalformed = true\nvia = 'serial-json'\nchannel.t = { kind = 'state' }", "only MQTT devices"),
        ("[[fault]]\nkind = 'spike'\ndevice = 'press'\nat_s = 1.0", "names the device press, which is not"),
        ("[[fault]]\nkind = 'spike'\ndevice = 'pump'\nchannel = 'x'\nat_s = 1.0", "pump/x, which is not"),
        ("[[fault]]\nkind = 'drift'\ndevice = 'press-001'\nchannel = 'running'\nat_s = 1.0", "only a gauge"),
        ("[[fault]]\nkind = 'dropout'\ndevice = 'pump'\nchannel = 'flow'\nat_s = 1.0", "no channel"),
        ("[[fault]]\nkind = 'stuck'\ndevice = 'pump'\nat_s = 1.0\nfor_s = 5.0\nevery_s = 5.0", "begins again"),
        ("[[unplug]]\ndevice = 'press-001'\nat_s = 1.0\nfor_s = 1.0", "no serial device"),
        ("[[burst]]\ndevices = '*'\nat_s = 1.0\nfor_s = 1.0\nfactor = 1000.0", "the most"),
        ("[device.y", "y"),
    ],
)
def test_a_wrong_scenario_is_refused_with_the_file_and_the_reason(tmp_path, addition, words):
    path = tmp_path / "wrong.toml"
    path.write_text(f"{SMALL}\n{addition}\n")
    with pytest.raises(ConfigError) as raised:
        load_scenario(str(path))
    assert "wrong.toml" in str(raised.value)
    assert words in str(raised.value)


def test_an_unknown_scenario_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(ConfigError, match="demo"):
        load_scenario("nowhere")


def sent(name: str, count: int):
    scenario = load_scenario("demo")
    machine = next(machine for machine in scenario.devices(1) if machine.name == name)
    return list(itertools.islice(messages(machine, 0, scenario.topic, 1, STARTED_NS, lambda _: None), count))


def test_mqtt_devices_send_one_json_message_a_channel():
    for message in sent("press-001", 3):
        said = json.loads(message.payload)
        ((channel, value),) = message.samples
        assert message.topic == f"plant/press-001/{channel}"
        assert (said["device"], said["channel"], said["value"]) == ("press-001", channel, value)
        assert said["timestamp"] * 1_000_000 == message.time_ns
        assert 90 <= len(message.payload) <= 140


def test_serial_devices_send_one_line_a_reading():
    (line,) = sent("scale", 1)
    said = json.loads(line.payload)
    assert line.payload.endswith(b"\n")
    assert said["time"] * 1_000_000 == line.time_ns
    assert {channel: float(said[channel]) for channel, _ in line.samples} == dict(line.samples)
    (line,) = sent("pump", 1)
    time_ms, *fields = line.payload.decode().strip().split(";")
    assert int(time_ms) * 1_000_000 == line.time_ns
    assert [float(field) for field in fields] == [value for _, value in line.samples]


def test_a_malformed_device_breaks_every_second_message_in_every_way_in_turn():
    sequence = sent("gremlin", 4 * len(BREAKAGES))
    assert [message.spoiled for message in sequence] == [False, True] * (2 * len(BREAKAGES))
    first_round = {message.payload for message in sequence[: 2 * len(BREAKAGES)] if message.spoiled}
    assert len(first_round) == len(BREAKAGES)
    for message in sequence:
        try:
            said = json.loads(message.payload)
            whole = (
                isinstance(said["value"], float) and abs(said["value"]) < 1e300 and isinstance(said["timestamp"], int)
            )
        except ValueError:
            whole = False
        assert whole is not message.spoiled
