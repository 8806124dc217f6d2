"""Real servers of one's own: mosquitto and InfluxDB 1.8 and 2.7.

Each runs from a folder of its own, listens on a free port of 127.0.0.1, keeps that port and its data over
restarts, and is ended by its pid. The demo, the tests and the benchmarks use the same.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from devices.errors import ForebayError
from simulators.processes import Process

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0  # influxd 2.7 needs 3 s; a busy machine with two cores is slower
ANSWER_TIMEOUT_S = 30.0
PORTS = range(15_000, 30_000)
"""Below the ports that Linux gives to outgoing connections: a client that tries to reconnect to a port of
those while its server is away may connect to itself, and keep the server from coming back."""

InfluxVersion: TypeAlias = Literal["1.8", "2.7"]
INFLUX_RELEASES: dict[InfluxVersion, str] = {"1.8": "1.8.10", "2.7": "2.7.12"}
INFLUX_VARIABLES: dict[InfluxVersion, str] = {"1.8": "FOREBAY_INFLUXD_1", "2.7": "FOREBAY_INFLUXD_2"}


class ServerMissing(ForebayError):
    """A server's program is not on this machine. The message says how to get it."""


class QueryFailed(ForebayError):
    """A server refused a request, or did not answer."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    for _ in range(200):
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ForebayError(f"no free port between {PORTS.start} and {PORTS.stop} on {HOST}: what holds them all?")


def find_mosquitto() -> str:
    """Path of mosquitto. Raises ServerMissing."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which("mosquitto", path=path)
    if found is None:
        raise ServerMissing("mosquitto is not installed: `apt-get install mosquitto`, or let `./task` do it")
    return found


def cache_folder() -> Path:
    """Where `tools/real_parts.sh` puts what it builds: FOREBAY_CACHE, or ~/.cache/forebay."""
    return Path(os.environ.get("FOREBAY_CACHE") or Path.home() / ".cache" / "forebay")


def find_influxd(version: InfluxVersion) -> str:
    """Path of influxd: named in the environment, on PATH with the right version, or built. Raises ServerMissing."""
    variable = INFLUX_VARIABLES[version]
    named = os.environ.get(variable)
    if named:
        if shutil.which(named) is None:
            raise ServerMissing(f"{variable} names {named}, which is not a program")
        return named
    on_path = shutil.which("influxd")
    if on_path is not None and _influxd_version(on_path) == version[0]:
        return on_path
    built = cache_folder() / "bin" / f"influxd-{INFLUX_RELEASES[version]}"
    if built.exists():
        return str(built)
    raise ServerMissing(
        f"InfluxDB {version} is not here: `tools/real_parts.sh influxdb{version[0]}` builds it, "
        f"or name an influxd {version} in {variable}"
    )


@functools.cache
def _influxd_version(program: str) -> str:
    """The major version. One built from source does not know its own: 1.x says `vunknown`, 2.x says `dev`."""
    said = subprocess.run([program, "version"], capture_output=True, text=True, check=False).stdout
    word = ([*said.split(), "", ""])[1]
    return {"vunknown": "1", "dev": "2"}.get(word, word.lstrip("v")[:1])


@dataclass(frozen=True)
class Tls:
    """Certificates of a broker, as PEM files."""

    ca_file: Path
    cert_file: Path
    key_file: Path
    require_certificate: bool = False
    """Clients must show a certificate of this CA; its common name becomes their user name."""


class Broker:
    """One mosquitto. A restart keeps the port, and the sessions if `persistence`."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        persistence: bool = False,
        max_queued_messages: int = 0,
        max_inflight_messages: int = 20,
        users: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        lines: Sequence[str] = (),
    ) -> None:
        """`port` 0: a free one. `users`: name -> password, and nobody else may come in. `lines`: more of
        mosquitto.conf, after the listener. `max_queued_messages` 0: no limit, as a broker of sensors needs.
        """
        self.folder = folder
        self.host = HOST
        self.port = port or free_port()
        self.url = f"{'mqtts' if tls else 'mqtt'}://{self.host}:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        config = [
            # Started as root it would become the user `mosquitto`, who may not write to our folder.
            *(["user root"] if os.geteuid() == 0 else []),
            f"listener {self.port} {self.host}",
            f"allow_anonymous {'false' if users else 'true'}",
            f"persistence {'true' if persistence else 'false'}",
            f"persistence_location {folder}/",
            f"max_queued_messages {max_queued_messages}",
            f"max_inflight_messages {max_inflight_messages}",
            "set_tcp_nodelay true",  # or an acknowledgement waits 40 ms for the next packet
            *(self._password_lines(users) if users else []),
            *(_tls_lines(tls) if tls else []),
            *lines,
        ]
        path = folder / "mosquitto.conf"
        path.write_text("\n".join(config) + "\n")
        self.process = Process([find_mosquitto(), "-c", str(path)], log=folder / "mosquitto.log")

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self.process.start()
        self.process.wait_until(self._accepts, START_TIMEOUT_S, "accepting connections")

    def stop(self) -> None:
        """End it in order: with `persistence` it saves its sessions."""
        self.process.stop()

    def kill(self) -> None:
        """End it with SIGKILL: what it has not saved is gone."""
        self.process.kill()

    def suspend(self) -> None:
        self.process.suspend()

    def resume(self) -> None:
        self.process.resume()

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def _password_lines(self, users: Mapping[str, str]) -> list[str]:
        path = self.folder / "passwords"
        path.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
        path.chmod(0o600)
        subprocess.run(["mosquitto_passwd", "-U", str(path)], check=True, capture_output=True)
        return [f"password_file {path}"]


def _tls_lines(tls: Tls) -> list[str]:
    certificate = "true" if tls.require_certificate else "false"
    return [
        f"cafile {tls.ca_file}",
        f"certfile {tls.cert_file}",
        f"keyfile {tls.key_file}",
        f"require_certificate {certificate}",
        f"use_identity_as_username {certificate}",
    ]


class InfluxServer:
    """One InfluxDB with a database, which asks for its token. A restart keeps port and data.

    `token` goes into `Authorization: Token ...` for both versions, as `user:password` for 1.8, where `org`
    means nothing. `database` is the bucket of 2.7.
    """

    user = "forebay"
    password = "forebay-forebay"
    org = "forebay"

    def __init__(self, folder: Path, version: InfluxVersion, *, port: int = 0, database: str = "forebay") -> None:
        self.folder = folder
        self.version = version
        self.host = HOST
        self.port = port or free_port()
        self.url = f"http://{self.host}:{self.port}"
        self.database = database
        self.token = f"{self.user}:{self.password}" if version == "1.8" else "forebay-token"
        self._org_id = ""
        folder.mkdir(parents=True, exist_ok=True)
        program = find_influxd(version)
        if version == "1.8":
            config = folder / "influxdb.conf"
            config.write_text(_influxdb1_config(folder, self.port))
            self.process = Process([program, "run", "-config", str(config)], log=folder / "influxd.log")
        else:
            env = _influxdb2_environment(folder, self.port)
            self.process = Process([program], log=folder / "influxd.log", env=env)

    def start(self) -> None:
        """Start it, wait until it answers, and set it up the first time."""
        self.process.start()
        self.process.wait_until(self._answers, START_TIMEOUT_S, "answering")
        marker = self.folder / "set-up"
        if not marker.exists():
            self._set_up()
            self.create_database(self.database)
            marker.touch()

    def stop(self) -> None:
        self.process.stop()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()

    def suspend(self) -> None:
        """It answers no more, and its connections stay open."""
        self.process.suspend()

    def resume(self) -> None:
        self.process.resume()

    def create_database(self, name: str) -> None:
        """Make an empty database (2.7: a bucket) that keeps everything, and make it `database`."""
        if self.version == "1.8":
            self._request("/query", form={"q": f'CREATE DATABASE "{name}"'})
        else:
            self._request("/api/v2/buckets", json={"orgID": self._org_id, "name": name, "retentionRules": []})
        self.database = name

    def query(self, q: str) -> list[dict[str, Any]]:
        """The rows of an InfluxQL query, times in ns: columns, tags of GROUP BY, and `measurement`.

        Raises QueryFailed where the server refuses the query, or any of its statements.
        """
        answer = self._request("/query", form={"q": q}, arguments={"db": self.database, "epoch": "ns"})
        rows = []
        for result in answer["results"]:
            if "error" in result:
                raise QueryFailed(f"InfluxDB {self.version} refuses {q}: {result['error']}")
            for series in result.get("series", []):
                shared = {"measurement": series.get("name", ""), **series.get("tags", {})}
                rows += [
                    {**shared, **dict(zip(series["columns"], row, strict=True))} for row in series.get("values", [])
                ]
        return rows

    def write(self, lines: str) -> None:
        """Store line protocol, times in ns. Raises QueryFailed."""
        arguments = {"bucket": self.database, "org": self.org, "precision": "ns"}
        self._request("/api/v2/write", body=lines.encode(), arguments=arguments)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ping", timeout=ANSWER_TIMEOUT_S) as response:
                return int(response.status) == 204
        except OSError:
            return False

    def _set_up(self) -> None:
        if self.version == "1.8":
            self._request(
                "/query", form={"q": f"CREATE USER {self.user} WITH PASSWORD '{self.password}' WITH ALL PRIVILEGES"}
            )
            return
        account = {"username": self.user, "password": self.password, "org": self.org, "token": self.token}
        answer = self._request("/api/v2/setup", json={**account, "bucket": "unused"})
        self._org_id = answer["org"]["id"]

    def _request(
        self,
        path: str,
        *,
        arguments: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        json: object = None,
        body: bytes = b"",
    ) -> Any:
        headers = {"Authorization": f"Token {self.token}"}
        if form is not None:
            body = urllib.parse.urlencode(form).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif json is not None:
            body = msgspec.json.encode(json)
            headers["Content-Type"] = "application/json"
        address = f"{self.url}{path}?{urllib.parse.urlencode(arguments or {})}"
        request = urllib.request.Request(address, body, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace").strip()
            raise QueryFailed(f"InfluxDB {self.version} answers {error.code} to {path}: {said}") from None
        except OSError as error:
            raise QueryFailed(f"InfluxDB {self.version} at {self.url} does not answer: {error}") from None
        return msgspec.json.decode(answer) if answer else {}


def _influxdb1_config(folder: Path, port: int) -> str:
    return f"""\
reporting-disabled = true
bind-address = "{HOST}:{free_port()}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  query-log-enabled = false
  max-series-per-database = 0
  max-values-per-tag = 0
[monitor]
  store-enabled = false
[http]
  bind-address = "{HOST}:{port}"
  auth-enabled = true
  log-enabled = false
"""


def _influxdb2_environment(folder: Path, port: int) -> dict[str, str]:
    return {
        "INFLUXD_BOLT_PATH": f"{folder}/influxd.bolt",
        "INFLUXD_ENGINE_PATH": f"{folder}/engine",
        "INFLUXD_SQLITE_PATH": f"{folder}/influxd.sqlite",
        "INFLUXD_HTTP_BIND_ADDRESS": f"{HOST}:{port}",
        "INFLUXD_REPORTING_DISABLED": "true",
        "INFLUXD_LOG_LEVEL": "warn",
    }
