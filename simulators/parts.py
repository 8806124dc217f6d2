"""The parts of a demo: the configuration of each, its process, and the sink that is asked at the end.

folder/  edge.toml  cloud.toml  profiles/  edge.db  points.db  record/  *.log  and a folder a broker
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.errors import ConfigError
from simulators.processes import Process
from simulators.scenario import PROFILES, Scenario, device_names
from simulators.servers import Broker, InfluxServer, free_port
from simulators.stored import InfluxStored, SqliteStored, StoredSink

ANSWER_TIMEOUT_S = 2.0
TOKEN_VARIABLE = "FOREBAY_INFLUXDB_TOKEN"
PASSWORD_VARIABLE = "FOREBAY_INFLUXDB_PASSWORD"


@dataclass(slots=True)
class SinkPart:
    """Where the points go: the ingester's `[sink]`, how it is read, and the server if it is the demo's own."""

    name: str
    toml: str
    stored: StoredSink
    server: InfluxServer | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    """Secrets, for the ingester alone."""


def sink_part(choice: str, folder: Path, gateway: str) -> SinkPart:
    """`choice`: `sqlite`, `influxdb1`, `influxdb2`, or the URL of a running InfluxDB. Starts what it needs.

    http://HOST:8086/?database=NAME for 1.8, with ?user=NAME and the password in FOREBAY_INFLUXDB_PASSWORD;
    http://HOST:8086/?org=ORG&bucket=BUCKET for 2.x, with the token in FOREBAY_INFLUXDB_TOKEN.
    """
    if choice == "sqlite":
        path = folder / "points.db"
        return SinkPart("sqlite", f"url = {_text(f'sqlite://{path}')}", SqliteStored(path, gateway))
    if choice in ("influxdb1", "influxdb2"):
        server = InfluxServer(folder / "influxdb", "1.8" if choice == "influxdb1" else "2.7")
        server.start()
        return influxdb_part(server, gateway)
    return _running_influxdb(choice, gateway)


def influxdb_part(server: InfluxServer, gateway: str) -> SinkPart:
    """One that was started here."""
    stored = InfluxStored(server.url, server.database, server.token, gateway)
    if server.version == "1.8":
        toml = _sink(server.url, database=server.database, user=server.user, password_env=PASSWORD_VARIABLE)
        return SinkPart("influxdb1", toml, stored, server, {PASSWORD_VARIABLE: server.password})
    toml = _sink(server.url, org=server.org, bucket=server.database, token_env=TOKEN_VARIABLE)
    return SinkPart("influxdb2", toml, stored, server, {TOKEN_VARIABLE: server.token})


def _running_influxdb(address: str, gateway: str) -> SinkPart:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"the sink is sqlite, influxdb1, influxdb2 or the URL of an InfluxDB, not {address!r}")
    keys = dict(urllib.parse.parse_qsl(parts.query))
    url = f"{parts.scheme}://{parts.netloc}"
    unknown = keys.keys() - {"database", "user", "org", "bucket"}
    if unknown:
        raise ConfigError(f"the sink's URL may say database and user, or org and bucket, not {', '.join(unknown)}")
    token, password = os.environ.get(TOKEN_VARIABLE, ""), os.environ.get(PASSWORD_VARIABLE, "")
    if token:
        org, bucket = keys.get("org", "forebay"), keys.get("bucket", "forebay")
        stored = InfluxStored(url, bucket, token, gateway)
        return SinkPart(url, _sink(url, org=org, bucket=bucket, token_env=TOKEN_VARIABLE), stored)
    database, user = keys.get("database", "forebay"), keys.get("user", "")
    login = {"user": user, "password_env": PASSWORD_VARIABLE} if user else {}
    stored = InfluxStored(url, database, f"{user}:{password}" if user else "", gateway)
    return SinkPart(url, _sink(url, database=database, **login), stored)


def _sink(url: str, **keys: str) -> str:
    return "\n".join(f"{key} = {_text(value)}" for key, value in {"url": url, **keys}.items())


def _text(value: str) -> str:
    """A TOML text: for the texts here JSON's form is one."""
    return json.dumps(value, ensure_ascii=False)


@dataclass(slots=True)
class Service:
    """One of Forebay's own programs as a process, and where it answers."""

    process: Process
    address: str
    """http://HOST:PORT"""
    ready_path: str

    def is_ready(self) -> bool:
        return fetch(self.address + self.ready_path) is not None

    def page(self, path: str) -> bytes:
        """Empty while it does not answer."""
        return fetch(self.address + path) or b""


def fetch(url: str) -> bytes | None:
    """The body of a 200; None for every other answer, and for none."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_TIMEOUT_S) as response:
            body: bytes = response.read()
            return body
    except (OSError, urllib.error.HTTPError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        return None


def program(name: str) -> str:
    """Path of one of Forebay's commands: the one installed beside this interpreter."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name


def ingester_service(folder: Path, uplink: Broker, sink: SinkPart) -> Service:
    """Writes cloud.toml."""
    listen = f"127.0.0.1:{free_port()}"
    config = folder / "cloud.toml"
    config.write_text(
        f"[broker]\nurl = {_text(uplink.url)}\n\n[sink]\n{sink.toml}\n\n[metrics]\nlisten = {_text(listen)}\n"
    )
    argv = [program("forebay-cloud"), "run", str(config)]
    return Service(Process(argv, log=folder / "ingester.log", env=sink.env), f"http://{listen}", "/healthz")


def edge_service(folder: Path, gateway: str, scenario: Scenario, sensors: Broker, uplink: Broker) -> Service:
    """Writes edge.toml, and the profiles beside it."""
    listen = f"127.0.0.1:{free_port()}"
    shutil.copytree(PROFILES, folder / "profiles", dirs_exist_ok=True)
    tables: list[tuple[str, dict[str, Any]]] = [
        ("uplink", {"broker": uplink.url}),
        ("store", {"path": str(folder / "edge.db"), "max_size": "64 MiB"}),
        ("status", {"listen": listen}),
        ("source.host", {"driver": "host", "every": "1 s"}),
    ]
    if any(group.via == "mqtt" for group in scenario.device.values()):
        plant = {"driver": "mqtt", "broker": sensors.url, "topics": [scenario.topic], "profile": scenario.profile}
        tables.append(("source.plant", plant))
    for name, group in scenario.device.items():
        if group.via != "mqtt":
            for device in device_names(name, group.count):
                port = str(folder / "record" / "ports" / device)
                tables.append((f"source.{device}", {"driver": "serial", "port": port, "profile": group.profile}))
    lines = [f"gateway = {_text(gateway)}", 'profiles = ["profiles"]', 'ledger = "5 s"', 'heartbeat = "60 s"']
    for table, keys in tables:
        lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    config = folder / "edge.toml"
    config.write_text("\n".join(lines) + "\n")
    argv = [program("forebay-edge"), "run", str(config)]
    return Service(Process(argv, log=folder / "edge.log"), f"http://{listen}", "/readyz")


def simulators_process(folder: Path, scenario: str, seed: int, sensors: Broker, edge: Service) -> Process:
    argv = [program("forebay-sim"), "run", scenario, "--folder", str(folder / "record"), "--seed", str(seed)]
    argv += ["--broker", sensors.url, "--wait-for", edge.address + edge.ready_path]
    return Process(argv, log=folder / "simulators.log")
