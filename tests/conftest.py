"""Fixtures with real parts: each test gets servers and processes of its own, ended by their pids."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from simulators import servers
from simulators.processes import Process
from simulators.servers import Broker, InfluxServer, InfluxVersion, ServerMissing, Tls

# Tests never assert a time; and what makes an example reproducible must not depend on a machine's database.
settings.register_profile("forebay", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("forebay")

_numbers = itertools.count()


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that gives a TCP port of 127.0.0.1 that nobody listens on."""
    return servers.free_port


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """A factory of running brokers: `mosquitto(persistence=True, users={"edge": "secret"}, tls=...)`."""
    brokers: list[Broker] = []

    def start(**options: Any) -> Broker:
        broker = Broker(tmp_path / f"mosquitto-{len(brokers)}", **options)
        brokers.append(broker)
        broker.start()
        return broker

    yield start
    for broker in brokers:
        broker.kill()


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """A factory of running processes: `spawn(["forebay-edge", "run", path], env={...})`; killed at the end."""
    processes: list[Process] = []

    def start(argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Process:
        process = Process(argv, log=tmp_path / f"process-{len(processes)}.log", env=env, cwd=cwd)
        processes.append(process)
        process.start()
        return process

    yield start
    for process in processes:
        process.kill()


@pytest.fixture(scope="session")
def influxdb_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[InfluxVersion], InfluxServer]]:
    """One server a version for the whole run, started when a test first asks for it."""
    running: dict[InfluxVersion, InfluxServer] = {}

    def get(version: InfluxVersion) -> InfluxServer:
        if version not in running:
            try:
                running[version] = InfluxServer(tmp_path_factory.mktemp("influxdb"), version)
            except ServerMissing as missing:
                if version == "1.8" or os.environ.get("CI"):
                    raise
                pytest.skip(str(missing))
        server = running[version]
        server.resume()
        if not server.process.running:
            server.start()
        return server

    yield get
    for server in running.values():
        server.kill()


@pytest.fixture(params=["1.8", "2.7"])
def influxdb(request: pytest.FixtureRequest, influxdb_servers: Callable[[InfluxVersion], InfluxServer]) -> InfluxServer:
    """A running InfluxDB, once of each version, with an empty database that this test alone has.

    A test may stop, kill, suspend and start it. Without a 2.7 on this machine its half is skipped; without
    a 1.8 it fails, and in CI (variable `CI`) both must be there.
    """
    server = influxdb_servers(request.param)
    server.create_database(f"test{next(_numbers)}")
    return server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tls]:
    """A factory of certificates of one CA of our own: `certificates("localhost")` for a broker, any name for a client.

    Each is valid for `localhost` and 127.0.0.1 and bears the given common name.
    """
    folder = tmp_path_factory.mktemp("certificates")
    ca_file, ca_key = folder / "ca.pem", folder / "ca.key"
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", "req", "-x509", *new_key, "-days", "2", *arguments], check=True, capture_output=True)

    openssl("-subj", "/CN=Forebay test CA", "-keyout", str(ca_key), "-out", str(ca_file))

    def make(name: str) -> Tls:
        cert_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
        openssl(
            *("-subj", f"/CN={name}", "-keyout", str(key_file), "-out", str(cert_file)),
            *("-CA", str(ca_file), "-CAkey", str(ca_key)),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"),
        )
        return Tls(ca_file, cert_file, key_file)

    return make
