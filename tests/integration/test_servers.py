"""The real parts that other tests stand on: they start, keep their port, keep or lose their data, and end."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from simulators import servers
from simulators.processes import Process, ProcessError
from simulators.servers import Broker, InfluxServer, QueryFailed, ServerMissing, Tls

pytestmark = pytest.mark.real


def connect_packet(user: str = "", password: str = "") -> bytes:
    """An MQTT 3.1.1 CONNECT of a client without a name."""
    flags = 0b11000010 if user else 0b00000010
    texts = [b"", user.encode(), password.encode()] if user else [b""]
    body = b"\x00\x04MQTT\x04" + bytes([flags, 0, 60]) + b"".join(len(t).to_bytes(2, "big") + t for t in texts)
    return bytes([0x10, len(body)]) + body


def connack(broker: Broker, packet: bytes, context: ssl.SSLContext | None = None) -> int:
    """The broker's return code to a CONNECT."""
    with socket.create_connection((broker.host, broker.port), timeout=10) as plain:
        link = context.wrap_socket(plain, server_hostname=broker.host) if context else plain
        with link:
            link.sendall(packet)
            return link.recv(4)[3]


def test_a_broker_accepts_anonymous_clients_and_comes_back_on_its_port(mosquitto: Callable[..., Broker]) -> None:
    broker = mosquitto()
    assert connack(broker, connect_packet()) == 0
    broker.kill()
    with pytest.raises(ConnectionRefusedError):
        connack(broker, connect_packet())
    broker.start()
    assert connack(broker, connect_packet()) == 0


def test_a_broker_with_users_refuses_others(mosquitto: Callable[..., Broker]) -> None:
    broker = mosquitto(users={"edge": "secret"})
    assert connack(broker, connect_packet("edge", "secret")) == 0
    assert connack(broker, connect_packet("edge", "wrong")) != 0
    assert connack(broker, connect_packet()) != 0


def test_a_broker_with_certificates_lets_in_those_of_its_own_authority(
    mosquitto: Callable[..., Broker], certificates: Callable[[str], Tls]
) -> None:
    broker = mosquitto(tls=replace(certificates("broker"), require_certificate=True))
    client = certificates("pump-station-7")
    context = ssl.create_default_context(cafile=str(client.ca_file))
    context.load_cert_chain(client.cert_file, client.key_file)
    assert broker.url.startswith("mqtts://")
    assert connack(broker, connect_packet(), context) == 0
    stranger = ssl.create_default_context(cafile=str(client.ca_file))
    with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):
        connack(broker, connect_packet(), stranger)


def test_influxdb_keeps_what_it_was_given_over_a_kill(influxdb: InfluxServer) -> None:
    influxdb.write(
        "temperature,device=d1 mean=21.5 1700000000000000001\ntemperature,device=d2 mean=3 1700000000000000002"
    )
    influxdb.kill()
    influxdb.start()
    rows = influxdb.query("SELECT mean FROM temperature GROUP BY device")
    assert rows == [
        {"measurement": "temperature", "device": "d1", "time": 1700000000000000001, "mean": 21.5},
        {"measurement": "temperature", "device": "d2", "time": 1700000000000000002, "mean": 3},
    ]


def test_each_test_has_an_empty_database(influxdb: InfluxServer) -> None:
    assert influxdb.query("SHOW MEASUREMENTS") == []


def test_influxdb_asks_for_its_token(influxdb: InfluxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(influxdb, "token", "someone:else")
    with pytest.raises(QueryFailed, match="401"):
        influxdb.write("temperature value=1 1")


def test_a_query_that_the_server_refuses_says_why(influxdb: InfluxServer) -> None:
    with pytest.raises(QueryFailed, match="SELEKT"):
        influxdb.query("SELEKT nothing")


def test_a_missing_influxd_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FOREBAY_INFLUXD_2", raising=False)
    with pytest.raises(ServerMissing, match=r"tools/real_parts.sh influxdb2"):
        servers.find_influxd("2.7")


def test_an_influxd_on_the_path_is_used_only_if_its_version_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "influxd"
    program.write_text("#!/bin/sh\necho 'InfluxDB v2.7.11 (git: fbf5d4ab5e) build_date: 2024-12-02T17:48:15Z'\n")
    program.chmod(0o755)
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("FOREBAY_INFLUXD_1", raising=False)
    monkeypatch.delenv("FOREBAY_INFLUXD_2", raising=False)
    assert servers.find_influxd("2.7") == str(program)
    with pytest.raises(ServerMissing):
        servers.find_influxd("1.8")


def test_a_process_that_ends_early_is_reported_with_its_output(spawn: Callable[..., Process]) -> None:
    process = spawn(["sh", "-c", "echo no such port; exit 3"])
    with pytest.raises(ProcessError, match=r"ended with 3 before ready. It said:\nno such port"):
        process.wait_until(lambda: False, 10, "ready")
