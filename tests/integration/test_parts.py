"""What the demo writes for edge and ingester is what they read."""

from __future__ import annotations

import pytest

from cloud.config import load_config as load_cloud
from cloud.sinks.influxdb import InfluxSink
from cloud.sinks.sqlite import SqliteSink
from devices.errors import ConfigError
from edge.config import load_config as load_edge
from simulators.parts import edge_service, ingester_service, sink_part
from simulators.scenario import load_scenario
from simulators.servers import Broker


@pytest.fixture
def brokers(tmp_path):
    return Broker(tmp_path / "sensors"), Broker(tmp_path / "uplink")


def test_the_edge_reads_the_configuration_of_the_demo(tmp_path, brokers):
    sensors, uplink = brokers
    edge_service(tmp_path, "demo-1", load_scenario("demo"), sensors, uplink)
    config = load_edge(tmp_path / "edge.toml")
    assert config.gateway == "demo-1"
    assert config.uplink.broker == uplink.url
    assert {name: source.driver for name, source in config.source.items()} == {
        "host": "host",
        "plant": "mqtt",
        "scale": "serial",
        "pump": "serial",
    }
    assert config.source["plant"].options.broker == sensors.url
    assert config.source["pump"].options.port == str(tmp_path / "record" / "ports" / "pump")


@pytest.mark.parametrize(
    ("choice", "env", "kind"),
    [
        ("sqlite", {}, SqliteSink),
        ("http://localhost:8086", {}, InfluxSink),
        ("http://localhost:8086/?database=plant&user=me", {"FOREBAY_INFLUXDB_PASSWORD": "x"}, InfluxSink),
        ("http://localhost:8086/?org=o&bucket=b", {"FOREBAY_INFLUXDB_TOKEN": "t"}, InfluxSink),
    ],
)
def test_the_ingester_reads_the_configuration_of_the_demo(tmp_path, brokers, monkeypatch, choice, env, kind):
    for name in ("FOREBAY_INFLUXDB_PASSWORD", "FOREBAY_INFLUXDB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    ingester_service(tmp_path, brokers[1], sink_part(choice, tmp_path, "demo-1"))
    config = load_cloud(tmp_path / "cloud.toml")
    assert isinstance(config.sink, kind)
    assert config.broker.url == brokers[1].url


@pytest.mark.parametrize("choice", ["postgres", "ftp://x", "http://localhost:8086/?bukket=x"])
def test_a_sink_that_cannot_be_is_refused_with_what_can(tmp_path, choice):
    with pytest.raises(ConfigError, match=r"URL"):
        sink_part(choice, tmp_path, "demo-1")
