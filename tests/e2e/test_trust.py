"""Trust with real parts: guarded brokers and sinks, what each refusal says, and that no secret leaves its file."""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import subprocess
import sys
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from paho.mqtt import publish

from cloud.config import Metrics
from edge.config import StatusConfig
from simulators.processes import Process
from simulators.servers import Broker, InfluxServer, Tls, free_port

pytestmark = pytest.mark.real

PROGRAMS = Path(sys.executable).parent
GUIDE = Path(__file__).parents[2] / "docs" / "trust.md"
PATIENCE_S = 60.0
Keys = Mapping[str, object]

SENSORS_ACL = "user edge\ntopic read plant/#\nuser sensor\ntopic write plant/#\n"
UPLINK_ACL = "pattern readwrite forebay/v1/%u/#\nuser ingest\ntopic readwrite forebay/v1/#\n"


class Vault:
    """The secrets of a test, the files that hold them, and the search for copies of them elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.everywhere = folder
        self.folder = folder / "vault"
        self.folder.mkdir()
        self.told: dict[str, str] = {}

    def secret(self, name: str) -> str:
        """A text that is nowhere else."""
        self.told[name] = f"{name}-{secrets.token_hex(8)}"
        return self.told[name]

    def file(self, name: str, text: str) -> str:
        """A file that its owner alone may read; replaced at once, as a careful administrator does."""
        path = self.folder / name
        fresh = path.with_suffix(".new")
        fresh.write_text(text + "\n")
        fresh.chmod(0o600)
        fresh.replace(path)
        return str(path)

    def leaks(self) -> list[str]:
        """Files that hold a secret and should not: logs, the store, what was shown, the broker's folder."""
        files = [path for path in self.everywhere.rglob("*") if path.is_file() and self.folder not in path.parents]
        return [f"{path}: {name}" for path in files for name, text in self.told.items() if _holds(path, text)]


def _holds(path: Path, text: str) -> bool:
    return text.encode() in path.read_bytes()


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """Whatever a test does, in the end no file but those of the vault may hold a secret; InfluxDB keeps its own."""
    vault = Vault(tmp_path)
    yield vault
    assert vault.told, "a test that has no secret proves nothing here"
    assert vault.leaks() == []


def toml(tables: Mapping[str, Keys]) -> str:
    """Tables by their path; "" is the top of the file. For texts and lists of them JSON's form is TOML's."""
    parts = []
    for path, keys in tables.items():
        parts += [f"[{path}]"] if path else []
        parts += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(parts) + "\n"


class Program:
    """A daemon of Forebay with its configuration, and all that it shows, which is kept to be searched."""

    def __init__(self, config: Path, port: int, spawn: Callable[[], Process]) -> None:
        self.config = config
        self._port = port
        self._spawn = spawn
        self._seen = config.with_suffix(".seen")
        self.process = spawn()

    def restart(self) -> None:
        self.process = self._spawn()

    def page(self, path: str) -> tuple[int, str]:
        """Status and text; (0, "") while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=10) as answer:
                code, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                code, body = error.code, error.read()
        except OSError:
            return 0, ""
        self.keep(body)
        return code, body.decode()

    def keep(self, shown: bytes) -> None:
        with self._seen.open("ab") as seen:
            seen.write(shown)

    def wait(self, ready: Callable[[], object], what: str) -> None:
        self.process.wait_until(lambda: bool(ready()), PATIENCE_S, what)

    def status(self) -> dict[str, Any]:
        """{} before it answers."""
        code, body = self.page("/status")
        return dict(json.loads(body)) if code == 200 else {}

    def link(self) -> str:
        """The uplink's error."""
        return str(self.status().get("link", {}).get("error", ""))

    def source(self, name: str) -> dict[str, Any]:
        return dict(self.status().get("sources", {}).get(name, {}))

    def health(self) -> str:
        """Of the ingester: what is wrong; "" while it does not answer or all is well."""
        code, body = self.page("/healthz")
        return body if code == 503 else ""

    def command(self, name: str, *more: str) -> tuple[int, str]:
        """`forebay-edge NAME CONFIG` as a user runs it: exit code, and all that it says."""
        argv = [str(PROGRAMS / "forebay-edge"), name, str(self.config), *more]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
        self.keep((done.stdout + done.stderr).encode())
        return done.returncode, done.stdout + done.stderr


class Site:
    """Starts edges and ingesters in a folder of their own."""

    def __init__(self, folder: Path, spawn: Callable[..., Process]) -> None:
        self.folder = folder
        self._spawn = spawn
        self._count = 0

    def edge(
        self,
        uplink: Keys,
        sources: Mapping[str, Keys],
        *,
        gateway: str = "g1",
        env: Mapping[str, str] | None = None,
    ) -> Program:
        """Sources are MQTT; each message of `temperature` becomes a window of its own a moment later."""
        tables: dict[str, Keys] = {
            "": {"gateway": gateway, "heartbeat": "1 s", "ledger": "1 s"},
            "uplink": {"receipt_timeout": "1 s", **uplink},
            "store": {"path": str(self.folder / f"{gateway}.db"), "max_size": "8 MiB", "commit_delay": "50 ms"},
        }
        for name, keys in sources.items():
            topics = {"topics": ["plant/{device}/{channel}"], "profile": "json-value"}
            tables[f"source.{name}"] = {"driver": "mqtt", **topics, **keys}
            tables[f"source.{name}.channel.temperature"] = {
                "window": "100 ms",
                "lateness": "0 s",
                "idle_close": "100 ms",
            }
        return self._program("forebay-edge", tables, "status", env)

    def ingester(self, broker: Keys, sink: Keys, *, env: Mapping[str, str] | None = None) -> Program:
        limits = {"retry_most": "200 ms"}
        return self._program("forebay-cloud", {"broker": broker, "sink": sink, "limits": limits}, "metrics", env)

    def sqlite(self) -> dict[str, object]:
        """A sink that asks for nothing."""
        return {"url": f"sqlite://{self.folder}/points.db"}

    def sqlite_samples(self) -> int:
        """Samples of `temperature` that the SQLite sink holds; 0 while the ingester has not made its table."""
        if not (self.folder / "points.db").exists():
            return 0
        with closing(sqlite3.connect(f"file:{self.folder}/points.db?mode=ro", uri=True)) as database:
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'points'").fetchone() is None:
                return 0
            rows = database.execute("SELECT fields FROM points WHERE measurement = 'temperature'").fetchall()
        return sum(int(json.loads(fields)["count"]) for (fields,) in rows)

    def _program(self, name: str, tables: dict[str, Keys], listener: str, env: Mapping[str, str] | None) -> Program:
        port = free_port()
        config = self.folder / f"{name}-{self._count}.toml"
        self._count += 1
        config.write_text(toml({**tables, listener: {"listen": f"127.0.0.1:{port}"}}))
        argv = [str(PROGRAMS / name), "run", str(config)]
        # One variable that the libraries read would make every `ca_file` needless.
        return Program(config, port, lambda: self._spawn(argv, env={"SSL_CERT_FILE": "", **(env or {})}))


@pytest.fixture
def site(vault: Vault, spawn: Callable[..., Process], tmp_path: Path) -> Site:
    """After the vault, so that the processes are gone when it is searched."""
    return Site(tmp_path, spawn)


Mosquitto = Callable[..., Broker]
Certificates = Callable[[str], Tls]


def guarded(tls: Tls, *, certificate: bool = False) -> Tls:
    return Tls(tls.ca_file, tls.cert_file, tls.key_file, require_certificate=certificate)


def acl(vault: Vault, name: str, text: str) -> list[str]:
    return [f"acl_file {vault.file(name, text)}"]


def send(broker: Broker, count: int, **login: Any) -> None:
    """Publish `count` samples, as a sensor does, each acknowledged by the broker."""
    messages = [("plant/fan/temperature", str(20 + i), 1, False) for i in range(count)]
    publish.multiple(messages, hostname="localhost", port=broker.port, client_id="sensor", **login)


def shown(tls: Tls) -> dict[str, object]:
    """The keys that show a client certificate."""
    return {"ca_file": str(tls.ca_file), "cert_file": str(tls.cert_file), "key_file": str(tls.key_file)}


# -- InfluxDB with rights of its own -----------------------------------------------------------------------


def influx_login(server: InfluxServer, vault: Vault, *, may_write: bool = True) -> dict[str, object]:
    """A user (1.8) or a token (2.7) that may write into the server's database and do nothing else."""
    if server.version == "1.8":
        password = vault.secret("influx-password")
        user = f"ingest{secrets.token_hex(4)}"
        server.query(f"CREATE USER {user} WITH PASSWORD '{password}'")
        if may_write:
            server.query(f'GRANT WRITE ON "{server.database}" TO {user}')
        return {"user": user, "password_file": vault.file("influx", password)}
    bucket = _influx2(server, "GET", f"/api/v2/buckets?name={server.database}")["buckets"][0]
    wanted = bucket["id"] if may_write else _influx2(server, "GET", "/api/v2/buckets?name=unused")["buckets"][0]["id"]
    right = {"action": "write", "resource": {"type": "buckets", "id": wanted, "orgID": bucket["orgID"]}}
    made = _influx2(server, "POST", "/api/v2/authorizations", {"orgID": bucket["orgID"], "permissions": [right]})
    vault.told["influx-token"] = made["token"]
    return {"token_file": vault.file("influx", made["token"])}


def _influx2(server: InfluxServer, method: str, path: str, body: object = None) -> Any:
    headers = {"Authorization": f"Token {server.token}", "Content-Type": "application/json"}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def influx_sink(server: InfluxServer, **login: object) -> dict[str, object]:
    if server.version == "1.8":
        return {"url": server.url, "database": server.database, **login}
    return {"url": server.url, "org": server.org, "bucket": server.database, **login}


def influx_samples(server: InfluxServer) -> int:
    return sum(int(row["count"]) for row in server.query('SELECT "count" FROM "temperature"'))


# -- the whole path ------------------------------------------------------------------------------------------


def listens_at(program: Program) -> set[str]:
    """The addresses that a process listens at."""
    connections = psutil.Process(program.process.pid).net_connections("inet")
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN or not c.raddr}


def test_a_sample_passes_every_guarded_door_and_no_secret_is_seen(
    vault: Vault, site: Site, mosquitto: Mosquitto, certificates: Certificates, influxdb: InfluxServer
) -> None:
    """With 1.8 the uplink goes by certificates and the sensors by password from the environment, with 2.7 the
    other way round and by password from a file."""
    server = certificates("localhost")
    sensor, edge, ingest = (vault.secret(name) for name in ("sensor", "edge", "ingest"))
    by_password = {"sensor": sensor, "edge": edge, "g1": edge, "ingest": ingest}
    uplink_certificate = influxdb.version == "1.8"
    doors = {"users": by_password, "tls": guarded(server)}, {"tls": guarded(server, certificate=True)}
    sensors = mosquitto(lines=acl(vault, "sensors.acl", SENSORS_ACL), **doors[not uplink_certificate])
    uplink = mosquitto(lines=acl(vault, "uplink.acl", UPLINK_ACL), **doors[uplink_certificate])
    ca = {"ca_file": str(server.ca_file)}
    if uplink_certificate:
        env = {"PLANT_PASSWORD": edge}
        source = {"user": "edge", "password_env": "PLANT_PASSWORD", **ca}
        up, down = shown(certificates("g1")), shown(certificates("ingest"))
        login: dict[str, Any] = {"auth": {"username": "sensor", "password": sensor}, "tls": {"ca_certs": ca["ca_file"]}}
    else:
        env = {}
        source = shown(certificates("edge"))
        up = {"password_file": vault.file("uplink", edge), **ca}  # the user is the gateway's name
        down = {"user": "ingest", "password_file": vault.file("ingest", ingest), **ca}
        own = certificates("sensor")
        login = {"tls": {"ca_certs": ca["ca_file"], "certfile": str(own.cert_file), "keyfile": str(own.key_file)}}

    cloud = site.ingester({"url": uplink.url, **down}, influx_sink(influxdb, **influx_login(influxdb, vault)))
    gateway = site.edge({"broker": uplink.url, **up}, {"plant": {"broker": sensors.url, **source}}, env=env)
    gateway.wait(lambda: gateway.source("plant").get("state") == "open", "subscribed")
    send(sensors, 5, **login)
    cloud.wait(lambda: influx_samples(influxdb) == 5, "storing five samples")

    gateway.wait(lambda: gateway.status()["ledger"]["stored"] == 5, "told so")
    assert gateway.page("/readyz") == (200, "ready\n")
    assert gateway.link() == ""
    assert cloud.page("/healthz") == (200, "ok")
    for program in (gateway, cloud):
        assert program.page("/metrics")[0] == 200
        argv = " ".join(psutil.Process(program.process.pid).cmdline())
        assert not [name for name, text in vault.told.items() if text in argv]
        assert listens_at(program) == {"127.0.0.1"}
    assert gateway.command("status")[0] == 0
    code, said = gateway.command("check", "--seconds", "1")
    assert "connected; the broker takes packets" in said, code
    assert gateway.process.stop() == 0
    assert cloud.process.stop() == 0
    assert vault.leaks() == []  # the store is closed now, its log of writes folded in


def guide(*changes: tuple[str, str]) -> dict[str, list[str]]:
    """The fenced blocks of docs/trust.md by their language, with these texts changed."""
    text = GUIDE.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    blocks: dict[str, list[str]] = {}
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        blocks.setdefault(language, []).append(block)
    return blocks


@pytest.mark.parametrize("by", ["certificates", "passwords"])
def test_the_commands_of_the_guide_make_a_guarded_path(vault: Vault, site: Site, mosquitto: Mosquitto, by: str) -> None:
    folder, port = str(vault.folder), free_port()
    blocks = guide(
        ("/etc/mosquitto/forebay", folder),
        ("/etc/forebay", folder),
        ("mqtts://broker.example.com", f"mqtts://localhost:{port}"),
        ("broker.example.com", "localhost"),
    )
    vault.secret("none")
    for commands in blocks["sh"][:2]:
        subprocess.run(["sh", "-euc", commands], cwd=folder, check=True, capture_output=True)
    (vault.folder / "acl").write_text(blocks["acl"][0])
    passwords = {name: (vault.folder / f"{name}.password").read_text().strip() for name in ("pump-station-7", "ingest")}
    vault.told |= passwords
    lines = [line for line in blocks["conf"][0].splitlines() if not line.startswith("listener")]
    if by == "passwords":
        lines = [line for line in lines if "certificate" not in line.split()[0] and "identity" not in line]
        lines.append(f"password_file {folder}/passwords")
    mosquitto(port=port, lines=lines)
    uplink = tomllib.loads(blocks["toml"][by == "passwords"])["uplink"]
    keys = {key: value.replace("pump-station-7", "ingest") for key, value in uplink.items() if key != "broker"}
    cloud = site.ingester({"url": uplink["broker"], "user": "ingest", **keys}, site.sqlite())
    sensors = mosquitto()
    gateway = site.edge(uplink, {"plant": {"broker": sensors.url}}, gateway="pump-station-7")
    gateway.wait(lambda: gateway.source("plant").get("state") == "open", "subscribed")
    send(sensors, 2)
    cloud.wait(lambda: site.sqlite_samples() == 2, "storing two samples")


def test_by_default_the_daemons_listen_on_loopback_alone() -> None:
    assert StatusConfig().address[0] == "127.0.0.1"
    assert Metrics().listen.rpartition(":")[0] == "127.0.0.1"


# -- what each refusal says ------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of our own, for the certificates that a broker must not accept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.ca_file = folder / "ca.pem"
        self._openssl("req", "-x509", *self._key("ca"), "-subj", "/CN=An authority", "-out", str(self.ca_file))

    def certificate(self, name: str, *, address: str = "localhost", expired: bool = False) -> Tls:
        """For a client or server of this name, valid for `address`."""
        certificate, request, names = (self._folder / f"{name}.{kind}" for kind in ("pem", "csr", "names"))
        names.write_text(f"subjectAltName=DNS:{address}\n")
        self._openssl("req", "-new", *self._key(name), "-subj", f"/CN={name}", "-out", str(request))
        signed = ["x509", "-req", "-in", str(request), "-CA", str(self.ca_file), "-CAkey", str(self._folder / "ca.key")]
        days = "-1" if expired else "2"
        self._openssl(*signed, "-extfile", str(names), "-days", days, "-out", str(certificate))
        return Tls(self.ca_file, certificate, self._folder / f"{name}.key")

    def _key(self, name: str) -> list[str]:
        key = self._folder / f"{name}.key"
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture
def authority(vault: Vault) -> Authority:
    return Authority(vault.folder / "authority")


@pytest.fixture
def foreign(vault: Vault) -> Authority:
    """Another authority, which nobody trusts."""
    return Authority(vault.folder / "foreign")


def test_each_refusal_of_a_sensors_broker_says_what_to_do_and_harms_no_other_source(
    vault: Vault, site: Site, mosquitto: Mosquitto, authority: Authority, foreign: Authority
) -> None:
    server = authority.certificate("localhost")
    right, wrong = vault.secret("right"), vault.secret("wrong")
    with_password = mosquitto(tls=guarded(server), users={"edge": right})
    with_certificate = mosquitto(tls=guarded(server, certificate=True))
    misnamed = mosquitto(tls=guarded(authority.certificate("misnamed", address="broker.example.com")))
    outdated = mosquitto(tls=guarded(authority.certificate("outdated", expired=True)))
    plain = mosquitto()
    ca = {"ca_file": str(authority.ca_file)}
    user = {"user": "edge", "password_file": vault.file("right", right)}

    def localhost(broker: Broker) -> str:
        return f"mqtts://localhost:{broker.port}"

    expected: dict[str, tuple[dict[str, object], Sequence[str]]] = {
        "wrong_password": (
            {"broker": localhost(with_password), **ca, "user": "edge", "password_file": vault.file("wrong", wrong)},
            ["does not let user 'edge' in", "check user, password_file"],
        ),
        "no_user": ({"broker": localhost(with_password), **ca}, ["does not let a client without a user in"]),
        "no_file": (
            {"broker": localhost(with_password), **ca, "user": "edge", "password_file": f"{vault.folder}/nothing"},
            ["cannot read", "that password_file names: No such file"],
        ),
        "no_variable": (
            {"broker": localhost(with_password), **ca, "user": "edge", "password_env": "NO_SUCH_VARIABLE"},
            ["the environment variable NO_SUCH_VARIABLE that password_env names is empty or not set"],
        ),
        "unknown_ca": (
            {"broker": localhost(with_password), "ca_file": str(foreign.ca_file), **user},
            ["is not trusted", "name the CA that signed it in ca_file"],
        ),
        "wrong_name": ({"broker": localhost(misnamed), **ca}, ["is not trusted", "name the server as its certificate"]),
        "outdated": ({"broker": localhost(outdated), **ca}, ["expired", "or this machine's clock is wrong"]),
        "no_certificate": ({"broker": localhost(with_certificate), **ca}, ["certificate", "check cert_file, key_file"]),
        "expired": (
            {"broker": localhost(with_certificate), **shown(authority.certificate("old", expired=True))},
            ["refuses our certificate", "EXPIRED", "check cert_file, key_file"],
        ),
        "foreign": (
            {"broker": localhost(with_certificate), **shown(foreign.certificate("edge")), **ca},
            ["refuses our certificate", "UNKNOWN_CA", "check cert_file, key_file"],
        ),
        "no_tls": ({"broker": localhost(plain), **ca}, ["does not speak TLS", "mqtt:// without TLS"]),
        "tls": ({"broker": f"mqtt://localhost:{with_password.port}"}, ["closed the connection", "it may expect TLS"]),
    }
    # Topics of their own: two sources on one broker may not count one message twice.
    sources = {name: {**keys, "topics": [f"{name}/{{device}}/{{channel}}"]} for name, (keys, _) in expected.items()}
    sources["good"] = {"broker": localhost(with_password), **ca, **user}
    gateway = site.edge({"broker": "mqtt://127.0.0.1:1"}, sources)

    def unsaid() -> list[str]:
        found = {name: gateway.source(name).get("error", "") for name in expected}
        return [f"{n}: {found[n]}" for n, (_, words) in expected.items() if any(word not in found[n] for word in words)]

    try:
        gateway.wait(lambda: not unsaid(), "saying what is wrong with each source")
    finally:
        print("\n".join(unsaid()))
    gateway.wait(lambda: gateway.source("good").get("state") == "open", "reading the good one")
    send(with_password, 3, auth={"username": "edge", "password": right}, tls={"ca_certs": str(authority.ca_file)})
    gateway.wait(lambda: gateway.source("good")["samples"] == 3, "taking its samples")
    assert gateway.page("/readyz") == (200, "ready\n")

    code, said = gateway.command("status")
    assert code == 0
    code, checked = gateway.command("check", "--seconds", "4")
    assert code == 1
    for name, (_, words) in expected.items():
        assert all(word in checked for word in words), name
        assert all(word in said for word in words), name
    assert gateway.process.stop(30.0) == 0


def test_samples_wait_for_the_right_password_and_none_is_lost(
    vault: Vault, site: Site, mosquitto: Mosquitto, certificates: Certificates
) -> None:
    tls = certificates("localhost")
    right = {name: vault.secret(name) for name in ("edge", "g1", "ingest")}
    wrong = vault.secret("wrong")
    sensors, uplink = (mosquitto(tls=guarded(tls), users=right) for _ in range(2))
    ca = {"ca_file": str(tls.ca_file)}
    files = {name: vault.file(name, password) for name, password in right.items()}
    login = {"auth": {"username": "edge", "password": right["edge"]}, "tls": {"ca_certs": ca["ca_file"]}}
    cloud = site.ingester({"url": uplink.url, "user": "ingest", "password_file": files["ingest"], **ca}, site.sqlite())
    source = {"broker": sensors.url, "user": "edge", "password_file": files["edge"], **ca}
    gateway = site.edge({"broker": uplink.url, "password_file": files["g1"], **ca}, {"plant": source})
    gateway.wait(lambda: gateway.source("plant").get("state") == "open", "subscribed")  # from now on the broker keeps
    vault.file("g1", wrong)
    uplink.kill()
    uplink.start()
    gateway.wait(lambda: "does not let user 'g1' in as client 'forebay-g1'" in gateway.link(), "refused at the uplink")
    send(sensors, 3, **login)
    gateway.wait(lambda: gateway.status()["ledger"]["waiting"] == 3, "keeping three samples")
    assert gateway.process.stop(30.0) == 0

    vault.file("edge", wrong)
    gateway.restart()
    gateway.wait(lambda: "does not let user 'edge' in" in gateway.source("plant").get("error", ""), "refused")
    send(sensors, 4, **login)
    gateway.wait(lambda: gateway.page("/readyz")[0] == 200, "ready all the same")
    assert "check user, password_file" in gateway.link()
    for sentence in ("user 'edge'", "user 'g1'"):
        assert sentence in gateway.process.output()
    assert site.sqlite_samples() == 0

    vault.file("edge", right["edge"])
    vault.file("g1", right["g1"])
    cloud.wait(lambda: site.sqlite_samples() == 7, "storing all seven samples")
    gateway.wait(lambda: gateway.status()["ledger"]["stored"] == 7, "told so")
    assert gateway.link() == ""
    assert gateway.source("plant")["error"] == ""


def test_a_gateway_that_comes_as_another_is_held_off_by_the_acl_and_says_so(
    vault: Vault, site: Site, mosquitto: Mosquitto
) -> None:
    passwords = {name: vault.secret(name) for name in ("g1", "ingest")}
    uplink = mosquitto(users=passwords, lines=acl(vault, "uplink.acl", UPLINK_ACL))
    sensors = mosquitto()
    cloud = site.ingester(
        {"url": uplink.url, "user": "ingest", "password_file": vault.file("ingest", passwords["ingest"])},
        site.sqlite(),
    )
    login = {"broker": uplink.url, "user": "g1", "password_file": vault.file("g1", passwords["g1"])}
    stranger = site.edge(login, {"plant": {"broker": sensors.url}}, gateway="g2")
    stranger.wait(lambda: stranger.source("plant").get("state") == "open", "subscribed")
    send(sensors, 2)
    sentence = "let its ACL allow user 'g1' to write it"
    stranger.wait(lambda: sentence in stranger.link(), "refused by the ACL")
    assert "does not take what is published to forebay/v1/g2/" in stranger.link()
    assert sentence in stranger.process.output()
    honest = site.edge(login, {"plant": {"broker": sensors.url}})
    honest.wait(lambda: honest.source("plant").get("state") == "open", "subscribed")
    send(sensors, 3)
    cloud.wait(lambda: site.sqlite_samples() == 3, "storing the honest gateway's")
    assert "g2" not in cloud.process.output()
    assert stranger.status()["ledger"]["waiting"] >= 2


def test_each_refusal_of_the_uplinks_broker_is_told_by_the_ingester(
    vault: Vault, site: Site, mosquitto: Mosquitto, authority: Authority, foreign: Authority
) -> None:
    server = authority.certificate("localhost")
    right, wrong = vault.secret("right"), vault.secret("wrong")
    with_password = mosquitto(tls=guarded(server), users={"ingest": right})
    with_certificate = mosquitto(tls=guarded(server, certificate=True))
    url = f"mqtts://localhost:{with_password.port}"
    ca = {"ca_file": str(authority.ca_file)}
    password = {"user": "ingest", "password_file": vault.file("ingest", wrong)}
    refused = site.ingester({"url": url, **ca, **password}, site.sqlite())
    expected = {
        refused: "does not let user 'ingest' in",
        site.ingester({"url": url, "ca_file": str(foreign.ca_file), **password}, site.sqlite()): "name the CA",
        site.ingester(
            {"url": f"mqtts://localhost:{with_certificate.port}", **shown(foreign.certificate("ingest")), **ca},
            site.sqlite(),
        ): "refuses our certificate",
    }
    for one, sentence in expected.items():
        one.wait(lambda one=one, sentence=sentence: sentence in one.health(), "saying what is wrong")
        assert sentence in one.process.output()
        assert "forebay_ingest_connected 0.0" in one.page("/metrics")[1]
    vault.file("ingest", right)
    refused.wait(lambda: refused.page("/healthz") == (200, "ok"), "let in with the right password")


def test_a_sink_that_lets_nobody_in_is_told_loudly_and_gets_everything_once_it_does(
    vault: Vault, site: Site, mosquitto: Mosquitto, influxdb: InfluxServer
) -> None:
    uplink, sensors = mosquitto(), mosquitto()
    login = influx_login(influxdb, vault)
    file = Path(str(login.get("password_file") or login["token_file"]))
    right = file.read_text().strip()
    vault.file("influx", vault.secret("wrong"))
    cloud = site.ingester({"url": uplink.url}, influx_sink(influxdb, **login))
    gateway = site.edge({"broker": uplink.url}, {"plant": {"broker": sensors.url}})
    gateway.wait(lambda: gateway.source("plant").get("state") == "open", "subscribed")
    send(sensors, 4)
    cloud.wait(lambda: "check the token or the user and password in [sink]" in cloud.health(), "refused by the sink")
    gateway.wait(lambda: gateway.status()["ledger"]["waiting"] == 4, "keeping its samples")
    errors = [line for line in cloud.process.output().splitlines() if json.loads(line)["level"] == "error"]
    assert len(errors) == 1
    assert "answered 401" in errors[0]
    assert "forebay_ingest_sink_failing 1.0" in cloud.page("/metrics")[1]
    assert 'forebay_ingest_sink_answers_total{answer="refused"}' in cloud.page("/metrics")[1]
    vault.file("influx", right)
    cloud.wait(lambda: influx_samples(influxdb) == 4, "storing all four samples")


def test_a_login_without_the_right_to_write_is_told_as_that(
    vault: Vault, site: Site, mosquitto: Mosquitto, influxdb: InfluxServer
) -> None:
    uplink, sensors = mosquitto(), mosquitto()
    cloud = site.ingester({"url": uplink.url}, influx_sink(influxdb, **influx_login(influxdb, vault, may_write=False)))
    gateway = site.edge({"broker": uplink.url}, {"plant": {"broker": sensors.url}})
    gateway.wait(lambda: gateway.source("plant").get("state") == "open", "subscribed")
    send(sensors, 2)
    cloud.wait(lambda: "and what they may write" in cloud.health(), "refused by the sink")
    assert "answered 403" in cloud.health()
    assert gateway.status()["ledger"]["stored"] == 0


# -- InfluxDB over HTTPS -----------------------------------------------------------------------------------------


@pytest.fixture(params=["1.8", "2.7"])
def https_influxdb(
    request: pytest.FixtureRequest,
    influxdb_servers: Callable[..., InfluxServer],
    authority: Authority,
    vault: Vault,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[InfluxServer]:
    """A server of its own that speaks TLS; this process trusts its authority, the ingester must be told."""
    influxdb_servers(request.param)  # skips, or fails in CI, where there is none
    tls = authority.certificate("localhost")
    server = InfluxServer(vault.folder / "influxdb", request.param)
    server.url = f"https://localhost:{server.port}"
    if request.param == "1.8":
        with (server.folder / "influxdb.conf").open("a") as config:
            config.write("  https-enabled = true\n")
            config.write(f'  https-certificate = "{tls.cert_file}"\n  https-private-key = "{tls.key_file}"\n')
    else:
        server.process.env |= {"INFLUXD_TLS_CERT": str(tls.cert_file), "INFLUXD_TLS_KEY": str(tls.key_file)}
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    monkeypatch.setattr(urllib.request, "_opener", None)
    server.start()
    yield server
    server.kill()


def test_influxdb_over_https_is_trusted_by_its_authority_alone(
    vault: Vault,
    site: Site,
    mosquitto: Mosquitto,
    https_influxdb: InfluxServer,
    authority: Authority,
    foreign: Authority,
) -> None:
    server = https_influxdb
    uplink, sensors = mosquitto(), mosquitto()
    login = influx_login(server, vault)

    def ingester(**keys: object) -> Program:
        return site.ingester({"url": uplink.url}, {**influx_sink(server, **login), **keys})

    untrusting = ingester(ca_file=str(foreign.ca_file))
    misnaming = ingester(ca_file=str(authority.ca_file), url=f"https://127.0.0.1:{server.port}")
    for one, sentence in ((untrusting, "name the CA"), (misnaming, "name the server as its certificate does")):
        one.wait(lambda one=one, sentence=sentence: sentence in one.health(), "saying what is wrong")
        assert "is not trusted" in one.process.output()
        assert one.process.stop() == 0
    without_file = ingester(ca_file=str(vault.folder / "nothing"))
    assert without_file.process.wait(PATIENCE_S) == 2
    assert "ca_file" in without_file.process.output().splitlines()[-1]
    cloud = ingester(ca_file=str(authority.ca_file))
    gateway = site.edge({"broker": uplink.url}, {"plant": {"broker": sensors.url}})
    gateway.wait(lambda: gateway.source("plant").get("state") == "open", "subscribed")
    send(sensors, 2)
    cloud.wait(lambda: influx_samples(server) == 2, "storing two samples")
