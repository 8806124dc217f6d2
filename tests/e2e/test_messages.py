"""Each trouble has a sentence of its own that says what to do: the real command line, as a user meets it."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import threading
import tty
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from simulators.processes import Process
from simulators.servers import Broker, free_port

pytestmark = pytest.mark.real

PROGRAMS = Path(sys.executable).parent
PATIENCE_S = 60.0
NOBODY = "nobody"

HOST = '[source.host]\ndriver = "host"\nevery = "100 ms"\n'
MQTT = '[source.{name}]\ndriver = "mqtt"\nbroker = "{broker}"\ntopics = ["t"]\nprofile = "json-value"\n'
SERIAL = '[source.pump1]\ndriver = "serial"\nport = "{port}"\nprofile = "json-object"\n'


def run(
    program: str, *arguments: object, before: Sequence[str] = (), env: dict[str, str] | None = None
) -> tuple[int, str]:
    """Exit code, and what is said on stdout and stderr."""
    argv = [*before, str(PROGRAMS / program), *map(str, arguments)]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=PATIENCE_S, env={**os.environ, "COLUMNS": "200", **(env or {})}
    )
    return done.returncode, done.stdout + done.stderr


class Gateway:
    """The configuration of a gateway in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.store = folder / "edge.db"
        self.path = folder / "gateway.toml"

    def write(self, sources: str = HOST, *, broker: str = "mqtt://127.0.0.1:1", more: str = "") -> Path:
        """`more`: further keys of the uplink."""
        self.path.write_text(
            f'gateway = "g1"\n[uplink]\nbroker = "{broker}"\n{more}\n'
            f'[store]\npath = "{self.store}"\nmax_size = "8 MiB"\n'
            f'[status]\nlisten = "127.0.0.1:{self.port}"\n{sources}'
        )
        return self.path

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return int(answer.status) == 200
        except OSError:
            return False

    def status(self) -> dict[str, Any]:
        """What `status --json` says; without sources before the daemon answers."""
        code, said = run("forebay-edge", "status", self.path, "--json")
        return {"sources": {}} if code else dict(json.loads(said))

    def errors(self) -> str:
        """What `status` says is wrong with link and sources; "" before the daemon answers."""
        status = self.status()
        if not status["sources"]:
            return ""
        return "\n".join([status["link"]["error"], *(source["error"] for source in status["sources"].values())])


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


def one_line(said: str, program: str) -> bool:
    """A refusal is one line that names the program: no traceback, no warnings around it."""
    return said.startswith(f"{program}: ") and said.count("\n") == 1


# -- the file is wrong --------------------------------------------------------------------------------------------


WRONG_FILES = {
    "an unknown key of a table": (
        HOST + 'evry = "1 s"\n',
        "unknown field `evry`: gateway.toml [source.host]; did you mean `every`?",
    ),
    "an unknown table": ('[stroe]\npath = "x"\n' + HOST, "unknown field `stroe`: gateway.toml; did you mean `store`?"),
    "a wrong type": ('[source.host]\ndriver = "host"\nevery = 3\n', "gateway.toml [source.host] every"),
    "an unknown driver": (
        '[source.a]\ndriver = "seriel"\n',
        "the driver `seriel` is not installed; did you mean `serial`?: gateway.toml [source.a]",
    ),
    "an unknown profile": (
        '[source.a]\ndriver = "serial"\nport = "/dev/x"\nprofile = "acme-p10"\n',
        "there is no profile `acme-p10`: gateway.toml [source.a]; did you mean `acme-p100`?",
    ),
    "a missing key": (
        '[source.a]\ndriver = "serial"\nprofile = "acme-p100"\n',
        "missing field `port`: gateway.toml [source.a]",
    ),
    "a wrong key of a channel": (
        HOST + "[source.host.channel.cpu]\nrnage = [0, 1]\n",
        "unknown field `rnage`: gateway.toml [source.host.channel.cpu]; did you mean `range`?",
    ),
    "a password without a user": (
        MQTT.format(name="a", broker="mqtt://h") + 'password_env = "X"\n',
        "user: it is missing, and a password without a user is of no use in MQTT: gateway.toml [source.a]",
    ),
    "a password in the address": (
        MQTT.format(name="a", broker="mqtt://u:p@h"),
        "use user, password_file: gateway.toml [source.a]",
    ),
    "a CA without TLS": (
        MQTT.format(name="a", broker="mqtt://h") + 'ca_file = "x"\n',
        "address must begin with mqtts://: gateway.toml [source.a]",
    ),
    "a list without brackets": (
        MQTT.format(name="a", broker="mqtt://h").replace('["t"]', '"t"'),
        "gateway.toml [source.a] topics; a list stands in brackets",
    ),
    "a profile's file that is not there": (
        '[source.a]\ndriver = "serial"\nport = "/dev/x"\nprofile = "my.toml"\n',
        "my.toml: gateway.toml [source.a] profile; its path begins at the gateway's file",
    ),
    "a text without quotes": ("[clock]\ntrust_after = never\n", "is a text without its quotes there?"),
    "no TOML": ("[source\n", "gateway.toml is not TOML"),
}


@pytest.mark.parametrize("trouble", WRONG_FILES)
@pytest.mark.parametrize("command", ["run", "check"])
def test_what_is_wrong_in_the_gateways_file_is_named_with_its_place(
    gateway: Gateway, command: str, trouble: str
) -> None:
    sources, sentence = WRONG_FILES[trouble]
    code, said = run("forebay-edge", command, gateway.write(sources))
    assert code == 2
    assert sentence in said
    assert one_line(said, "forebay-edge")
    assert not gateway.store.exists()


def test_a_wrong_profile_is_named_with_its_own_file(gateway: Gateway) -> None:
    profile = 'name = "mine"\nversion = "1"\n[codec]\nname = "json"\n[channel.temperature]\nuint = "Cel"\n'
    (gateway.folder / "mine.toml").write_text(profile)
    source = '[source.a]\ndriver = "serial"\nport = "/dev/x"\nprofile = "mine.toml"\n'
    code, said = run("forebay-edge", "check", gateway.write(source))
    assert code == 2
    assert "unknown field `uint`: mine.toml [channel.temperature]; did you mean `unit`?" in said
    assert one_line(said, "forebay-edge")


def test_a_file_that_is_not_there_is_said_by_every_command(tmp_path: Path) -> None:
    missing = tmp_path / "nothing.toml"
    for command in (["run"], ["check"], ["status"], ["watch"]):
        more = ["pump1"] if command == ["watch"] else []
        code, said = run("forebay-edge", *command, missing, *more)
        assert (code, said) == (2, f"forebay-edge: cannot read {missing}: No such file or directory\n")
    for command in (["run"], ["check"]):
        code, said = run("forebay-cloud", *command, missing)
        assert (code, said) == (2, f"forebay-cloud: cannot read {missing}: No such file or directory\n")


INGEST_FILES = {
    "an unknown key": ('[broker]\nurl = "mqtt://h"\nuser_name = "x"\n[sink]\nurl = "sqlite:x.db"\n', "unknown field"),
    "an unknown sink": ('[broker]\nurl = "mqtt://h"\n[sink]\nurl = "postgres://h"\n', "postgres"),
    "no secret": (
        '[broker]\nurl = "mqtt://h"\n[sink]\nurl = "http://h:8086"\norg = "o"\nbucket = "b"\ntoken_env = "NO_SUCH"\n',
        "the environment variable NO_SUCH that token_env names is empty or not set",
    ),
    "two ways to log in": (
        '[broker]\nurl = "mqtt://h"\n[sink]\nurl = "http://h:8086"\norg = "o"\nbucket = "b"\ntoken_env = "NO_SUCH"\n'
        'token_file = "x"\n',
        "both token_file and token_env are set: keep one of them",
    ),
    "a password in the sink's address": (
        '[broker]\nurl = "mqtt://h"\n[sink]\nurl = "http://u:p@h:8086"\ndatabase = "d"\n',
        "without user, password or query",
    ),
    "a CA without TLS": (
        '[broker]\nurl = "mqtt://h"\nca_file = "x"\n[sink]\nurl = "sqlite:x.db"\n',
        "address must begin with mqtts://: ingest.toml [broker]",
    ),
}


@pytest.mark.parametrize("trouble", INGEST_FILES)
@pytest.mark.parametrize("command", ["run", "check"])
def test_what_is_wrong_in_the_ingesters_file_is_named_with_its_place(
    tmp_path: Path, trouble: str, command: str
) -> None:
    text, sentence = INGEST_FILES[trouble]
    (tmp_path / "ingest.toml").write_text(text)
    code, said = run("forebay-cloud", command, tmp_path / "ingest.toml")
    assert code == 2
    assert sentence in said
    assert "ingest.toml [" in said
    assert one_line(said, "forebay-cloud")


# -- a serial port -------------------------------------------------------------------------------------------------


@contextmanager
def device(says: bytes = b"") -> Iterator[tuple[str, int]]:
    """A serial device that says this again and again: its port, and the descriptor that keeps it open."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    ended = threading.Event()

    def speak() -> None:
        while says and not ended.wait(0.02):
            try:
                os.write(master, says)
            except BlockingIOError:
                continue

    speaker = threading.Thread(target=speak)
    speaker.start()
    try:
        yield os.ttyname(slave), slave
    finally:
        ended.set()
        speaker.join()
        os.close(master)
        os.close(slave)


def checked(gateway: Gateway, sources: str, *, before: Sequence[str] = (), env: dict[str, str] | None = None) -> str:
    """What `check` says of a source in trouble."""
    code, said = run("forebay-edge", "check", gateway.write(sources), "--seconds", "1", before=before, env=env)
    assert code == 1, said
    assert "Traceback" not in said
    return said


def test_a_port_that_is_not_there(gateway: Gateway) -> None:
    said = checked(gateway, SERIAL.format(port="/dev/ttyUSB77"))
    assert (
        "there is no port /dev/ttyUSB77: plug the device in, or look for its name with `ls /dev/serial/by-id/`" in said
    )


def test_a_port_that_another_program_holds(gateway: Gateway) -> None:
    with device() as (port, descriptor):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        said = checked(gateway, SERIAL.format(port=port))
    assert f"another program holds {port}: find it with `fuser -v {port}` and end it" in said


def as_nobody() -> list[str]:
    """The words that run a command as another user; skips where that cannot be."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root, with setpriv, can run a command as another user")
    user = pwd.getpwnam(NOBODY)
    words = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    tried = subprocess.run([*words, str(PROGRAMS / "forebay-edge"), "--help"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"the user {NOBODY} may not read this checkout or its Python")
    return words


@pytest.fixture
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that every user may look into, unlike those of pytest."""
    folder = Path(tmp_path_factory.getbasetemp().parent.parent) / f"forebay-open-{os.getpid()}"
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_port_that_this_user_may_not_open(open_folder: Path) -> None:
    before = as_nobody()
    with device() as (port, _):
        group = stat.S_IMODE(os.stat(port).st_mode)
        assert not group & stat.S_IROTH
        said = checked(Gateway(open_folder), SERIAL.format(port=port), before=before, env={"HOME": str(open_folder)})
    assert f"{port} exists, but this user may not open it: add it to the group" in said
    assert "sudo usermod -aG" in said


def test_a_wrong_baud_rate_is_suspected_where_garbage_comes(gateway: Gateway) -> None:
    with device(bytes(range(128, 256)) + b"\n") as (port, _):
        said = checked(gateway, SERIAL.format(port=port))
    assert "compare baud_rate" in said


def test_a_device_that_says_nothing(gateway: Gateway) -> None:
    with device() as (port, _):
        said = checked(gateway, SERIAL.format(port=port))
    assert "nothing came within 1 s" in said


def test_the_running_daemon_says_the_same_of_its_ports(gateway: Gateway, spawn: Callable[..., Process]) -> None:
    with device(bytes(range(128, 256)) + b"\n") as (garbage, _), device() as (held, descriptor):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        sources = "".join(
            SERIAL.format(port=port).replace("pump1", name)
            for name, port in {"a": garbage, "b": held, "c": "/dev/ttyUSB77"}.items()
        )
        daemon = spawn([str(PROGRAMS / "forebay-edge"), "run", str(gateway.write(sources))])
        sentences = ("baud_rate", f"another program holds {held}", "there is no port /dev/ttyUSB77")
        daemon.wait_until(lambda: all(one in gateway.errors() for one in sentences), PATIENCE_S, "saying all three")
        assert daemon.stop() == 0


def test_check_leaves_a_port_to_the_gateway_that_runs_and_says_how_to_watch_it(
    gateway: Gateway, spawn: Callable[..., Process]
) -> None:
    with device(b'{"temperature": 21.5}\n') as (port, _):
        daemon = spawn([str(PROGRAMS / "forebay-edge"), "run", str(gateway.write(SERIAL.format(port=port)))])
        daemon.wait_until(
            lambda: gateway.status()["sources"].get("pump1", {}).get("samples", 0) > 0, PATIENCE_S, "reading"
        )
        _, said = run("forebay-edge", "check", gateway.path, "--seconds", "1")
        assert f"held by the gateway g1 (pid {daemon.pid}), as it should be" in said
        assert f"forebay-edge watch {gateway.path} pump1" in said
        assert "fuser" not in said
        assert "the running gateway has it open" in said
        assert "another configuration" not in said

        gateway.write(SERIAL.format(port=port) + HOST)
        _, said = run("forebay-edge", "check", gateway.path, "--seconds", "1")
        assert "it runs with another configuration than is in this file now: SIGHUP" in said


# -- brokers and hosts -----------------------------------------------------------------------------------------------


BROKERS = {
    "refused": ("mqtt://127.0.0.1:1", "127.0.0.1:1 refuses the connection: does the broker run"),
    "unknown": ("mqtt://no-such-host.invalid", "the host no-such-host.invalid is not known"),
    "no_mqtt": ("mqtt://127.0.0.1:{silent}", "takes the connection and does not answer in MQTT: is that its port?"),
    "login": ("mqtt://127.0.0.1:{guarded}", "does not let a client without a user in"),
}


@pytest.fixture
def ports(mosquitto: Callable[..., Broker]) -> Iterator[dict[str, int]]:
    """A broker that asks for a password, and a port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield {"guarded": mosquitto(users={"edge": "secret"}).port, "silent": silent.getsockname()[1]}


def test_each_trouble_with_a_broker_has_its_own_sentence_in_check_and_status(
    gateway: Gateway, ports: dict[str, int], spawn: Callable[..., Process]
) -> None:
    troubles = {name: (url.format(**ports), says) for name, (url, says) in BROKERS.items()}
    sources = "".join(MQTT.format(name=name, broker=url) for name, (url, _) in troubles.items())
    uplink, refused = troubles["login"]
    daemon = spawn([str(PROGRAMS / "forebay-edge"), "run", str(gateway.write(sources, broker=uplink))])
    code, said = run("forebay-edge", "check", gateway.path, "--seconds", "12")  # while the daemon tries the same
    assert code == 1
    assert all(says in said for _, says in troubles.values()), said
    assert said.count(refused) == 2  # the source's, and the uplink's
    daemon.wait_until(lambda: all(says in gateway.errors() for _, says in troubles.values()), PATIENCE_S, "saying all")
    assert gateway.errors().count(refused) == 2
    assert daemon.stop() == 0
    for _, says in troubles.values():
        assert daemon.output().count(says) == 1 + (says == refused), "once, not at each attempt"


def test_a_gateway_without_its_password_runs_and_keeps_what_comes_and_says_so_as_an_error(
    gateway: Gateway, spawn: Callable[..., Process]
) -> None:
    missing = gateway.folder / "uplink.password"
    sentence = f"cannot read {missing} that password_file names: No such file or directory; write the password there"
    gateway.write(more=f'password_file = "{missing}"')
    daemon = spawn([str(PROGRAMS / "forebay-edge"), "run", str(gateway.path)])
    daemon.wait_until(gateway.ready, PATIENCE_S, "ready")
    daemon.wait_until(lambda: sentence in gateway.errors(), PATIENCE_S, "saying what is missing")
    lines = [json.loads(line) for line in daemon.output().splitlines()]
    (line,) = [line for line in lines if sentence in line["event"]]
    assert line["level"] == "error"
    assert line["event"].startswith("forebay-g1 cannot ask the broker 127.0.0.1:1: ")

    status = gateway.status()
    assert not status["link"]["connected"]
    assert status["link"]["tried_ago_s"] >= 0
    assert status["link"]["next_try_in_s"] >= 0
    assert status["ledger"]["produced"] > 0


def test_a_topic_on_which_nothing_comes_is_told_in_the_words_of_mqtt(
    gateway: Gateway, mosquitto: Callable[..., Broker]
) -> None:
    broker = mosquitto()
    said = checked(gateway, MQTT.format(name="plant", broker=broker.url))
    assert f"nobody has published to t at {broker.host}:{broker.port} meanwhile, and no message is retained" in said
    assert f"mosquitto_sub -h {broker.host} -p {broker.port} -v -t '#'" in said
    assert "ACL" in said
    assert not any(word in said for word in ("cable", "baud", "switched on"))


# -- the daemon and its commands ---------------------------------------------------------------------------------------


def test_what_a_running_gateway_holds_is_refused_to_a_second_one(
    gateway: Gateway, spawn: Callable[..., Process]
) -> None:
    daemon = spawn([str(PROGRAMS / "forebay-edge"), "run", str(gateway.write())])
    daemon.wait_until(gateway.ready, PATIENCE_S, "ready")
    other = Gateway(gateway.folder / "other")
    other.folder.mkdir()

    other.store = gateway.store
    code, said = run("forebay-edge", "run", other.write())
    assert code == 2
    assert f"{gateway.store} is in use by another process: is a forebay-edge already running on it?" in said

    other.store, other.port = other.folder / "own.db", gateway.port
    code, said = run("forebay-edge", "run", other.write())
    assert code == 2
    assert f"[status] listen: the gateway g1 (pid {daemon.pid}) runs already and listens at 127.0.0.1" in said
    assert "end it, or give this one another address" in said
    assert one_line(said, "forebay-edge")
    assert not other.store.exists(), "noticed before anything else"

    code, said = run("forebay-edge", "watch", gateway.path, "pump7")
    assert code == 2
    assert "there is no source pump7" in said
    assert daemon.running


def test_a_store_folder_that_this_user_may_not_write(open_folder: Path) -> None:
    before = as_nobody()
    gateway = Gateway(open_folder)
    for store in (open_folder / "edge.db", open_folder / "deeper" / "edge.db"):
        gateway.store = store
        said = checked(gateway, HOST, before=before, env={"HOME": str(open_folder)})
        assert f"this user may not write to {open_folder}: set [store] path" in said
        code, said = run("forebay-edge", "run", gateway.write(), before=before, env={"HOME": str(open_folder)})
        assert code == 2, said
        assert str(store.parent) in said
        assert "[store] path" in said
        assert "Traceback" not in said


def test_commands_that_ask_a_daemon_say_that_there_is_none(gateway: Gateway) -> None:
    for command in (["status"], ["watch", "host"]):
        code, said = run("forebay-edge", command[0], gateway.write(), *command[1:])
        assert code == 2
        assert f"the gateway does not answer at 127.0.0.1:{gateway.port}" in said
        assert "is `forebay-edge run` running with this file?" in said
        assert one_line(said, "forebay-edge")


def test_an_influxdb_that_is_down_and_a_page_that_is_taken(
    tmp_path: Path, mosquitto: Callable[..., Broker], spawn: Callable[..., Process]
) -> None:
    broker, nowhere, page = mosquitto(), free_port(), free_port()
    config = tmp_path / "ingest.toml"
    config.write_text(
        f'[broker]\nurl = "{broker.url}"\n[sink]\nurl = "http://127.0.0.1:{nowhere}"\ndatabase = "d"\n'
        f'[metrics]\nlisten = "127.0.0.1:{page}"\n'
    )
    ingester = spawn([str(PROGRAMS / "forebay-cloud"), "run", str(config)])
    sentence = f"no connection to http://127.0.0.1:{nowhere}"
    ingester.wait_until(lambda: sentence in ingester.output(), PATIENCE_S, "saying that the sink is away")
    assert "does InfluxDB run there? Check `url` in [sink]" in ingester.output()
    code, said = run("forebay-cloud", "run", config)
    assert code == 2
    assert f"[metrics] listen: another program listens at 127.0.0.1:{page} already, maybe another ingester" in said
    assert one_line(said, "forebay-cloud")
    assert ingester.stop() == 0


# -- help ------------------------------------------------------------------------------------------------------------


COMMANDS = [
    *(("forebay-edge", command) for command in ("run", "check", "watch", "status")),
    *(("forebay-cloud", command) for command in ("run", "check")),
    *(("forebay-sim", command) for command in ("run", "demo", "score")),
]


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_every_command_has_help_with_an_example(program: str, command: str) -> None:
    code, said = run(program, command, "--help")
    assert code == 0
    words = " ".join(said.split()).lower()
    assert f"example: {program} {command} " in words


@pytest.mark.parametrize("program", ["forebay-edge", "forebay-cloud", "forebay-sim"])
def test_every_program_has_help_that_names_its_commands(program: str) -> None:
    code, said = run(program, "--help")
    assert code == 0
    assert all(command in said for owner, command in COMMANDS if owner == program)
