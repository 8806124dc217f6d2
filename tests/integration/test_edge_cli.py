"""`forebay-edge check`, `watch` and `status`: what a user sees, and the exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import publish

from edge.cli import COMMANDS, main
from edge.status import StatusServer, Views

real = pytest.mark.real


@contextmanager
def device(line: bytes | None) -> Iterator[str]:
    """A serial device that says the line again and again; None: nothing. Gives its port."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    ended = threading.Event()

    def speak() -> None:
        while line is not None and not ended.wait(0.02):
            try:
                os.write(master, line)
            except BlockingIOError:
                continue

    speaker = threading.Thread(target=speak)
    speaker.start()
    try:
        yield os.ttyname(slave)
    finally:
        ended.set()
        speaker.join()
        os.close(master)
        os.close(slave)


def write_config(tmp_path: Path, sources: str, *, broker: str = "mqtt://127.0.0.1:1", more: str = "") -> str:
    path = tmp_path / "gateway.toml"
    if "[status]" not in more:
        more += '\n[status]\nlisten = "127.0.0.1:0"'
    path.write_text(f'gateway = "g1"\n[uplink]\nbroker = "{broker}"\n{more}\n{sources}')
    return str(path)


PUMP = b'{"time":%d,"bearing_temperature":61.2,"vibration":2.14,"running":true,"mode":"auto"}\n'


@real
def test_check_shows_samples_series_and_frames_and_the_brokers_limit(
    tmp_path: Path, mosquitto: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    broker = mosquitto()
    message: Any = {"topic": "plant/fan/speed", "payload": b"1480", "retain": True}
    publish.multiple([message], hostname=broker.host, port=broker.port)
    with device(PUMP % (time.time() * 1000)) as port:
        sources = f"""
[source.pump1]
driver = "serial"
port = "{port}"
profile = "acme-p100"
[source.plant]
driver = "mqtt"
broker = "{broker.url}"
topics = ["plant/{{device}}/{{channel}}"]
profile = "json-value"
[source.host]
driver = "host"
every = "100 ms"
"""
        code = main(["check", write_config(tmp_path, sources, broker=broker.url), "--seconds", "2"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "pump1  bearing_temperature = 61.2 Cel" in said
    assert "unknown_channel" in said
    assert "fan  speed = 1480" in said
    assert "host  cpu = " in said
    assert "pump1/vibration: vibration [mm/s], gauge, window 10 s, filters: zscore, range" in said
    assert "forebay/v1/g1/data" in said
    assert "as frames: " in said
    assert "the broker takes packets of" in said
    assert "max_queued_messages" in said
    assert said.rstrip().endswith("all is well")


def test_check_names_what_the_profile_does_not_have_and_shows_no_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with device(b'{"time":%d,"vibration":2.14,"m\\u001bode":1}\n' % (time.time() * 1000)) as port:
        sources = f'[source.pump1]\ndriver = "serial"\nport = "{port}"\nprofile = "acme-p100"'
        main(["check", write_config(tmp_path, sources), "--seconds", "0.5"])
    said = capsys.readouterr().out
    assert (
        "profile acme-p100@1 has no channel 'm\\x1bode': to keep one, add it to the profile, or as [source.pump1"
        in said
    )


def test_check_says_that_bytes_came_and_no_message_was_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with device(b"\x80\xfe\x1f") as port:
        sources = f'[source.pump1]\ndriver = "serial"\nport = "{port}"\nprofile = "acme-p100"'
        main(["check", write_config(tmp_path, sources), "--seconds", "0.5"])
    assert "bytes came within 0.5 s, but no whole message: compare baud_rate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("store", "sentence"),
    [
        ('path = "{folder}"', "is no file that this user may read and write"),
        ('path = "{folder}/gateway.toml/edge.db"', "may not write to"),
        ('path = "{folder}/edge.db"\nmax_size = "4096 TiB"', "make room, or lower [store] max_size"),
    ],
)
def test_check_says_why_the_store_could_not_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str, sentence: str
) -> None:
    more = f"[store]\n{store.format(folder=tmp_path)}"
    config = write_config(tmp_path, '[source.host]\ndriver = "host"\nevery = "100 ms"', more=more)
    assert main(["check", config, "--seconds", "0.5"]) == 1
    assert sentence in capsys.readouterr().out
    assert not (tmp_path / "edge.db").exists()


def test_run_says_once_that_another_program_has_the_status_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        more = f'[store]\npath = "{tmp_path}/edge.db"\n[status]\nlisten = "{listen}"'
        config = write_config(tmp_path, '[source.host]\ndriver = "host"', more=more)
        assert main(["run", config]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"forebay-edge: [status] listen: another program listens at {listen} already: name another address\n"
    )
    assert not (tmp_path / "edge.db").exists()


def test_check_listens_for_a_time_that_makes_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path), "--seconds", "-1"])
    assert ended.value.code == 2
    assert "-1 does not lie between 0 and 3600" in capsys.readouterr().err


@real
def test_check_compares_the_frame_size_with_what_the_broker_takes(
    tmp_path: Path, mosquitto: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    broker = mosquitto(lines=["max_packet_size 20000"])
    config = write_config(tmp_path, '[source.host]\ndriver = "host"\nevery = "100 ms"', broker=broker.url)
    assert main(["check", config, "--seconds", "2"]) == 1
    assert "the broker takes packets of 20000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (None, "nothing came within"),
        (bytes(range(128, 256)) + b"\n", "compare baud_rate"),
        (b"12;13\n", "not the JSON"),
    ],
)
def test_check_says_what_is_wrong_with_a_source_and_with_the_uplink(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes | None, sentence: str
) -> None:
    with device(line) as port:
        sources = f'[source.pump1]\ndriver = "serial"\nport = "{port}"\nprofile = "json-object"'
        assert main(["check", write_config(tmp_path, sources), "--seconds", "0.5"]) == 1
    said = capsys.readouterr().out
    assert f"PROBLEM: {sentence}" in said or sentence in said
    assert "refuses the connection" in said
    assert "problems: 2" in said


def test_a_wrong_configuration_is_one_line_with_the_path_of_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, '[source.plant]\ndriver = "mqtt"\ntopcs = ["x"]\nprofile = "json-value"')
    for command in (["check", config], ["run", config]):
        assert main(command) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert "unknown field `topcs`: gateway.toml [source.plant]" in said.err


def test_asking_a_gateway_that_does_not_run_says_so(
    tmp_path: Path, free_port: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    more = f'[status]\nlisten = "127.0.0.1:{free_port()}"'
    config = write_config(tmp_path, '[source.host]\ndriver = "host"', more=more)
    assert main(["status", config]) == 2
    assert "is `forebay-edge run` running" in capsys.readouterr().err


STATUS = {
    "gateway": "g1",
    "link": {"connected": True, "error": ""},
    "sources": {"a\x1b[2J": {"state": "open", "samples": 12}, "b": {"state": "failed", "samples": 0}},
    "ledger": {"produced": 12, "rejected": {}, "stored": 0.5},
}


async def two_records(name: str) -> AsyncIterator[dict[str, Any]]:
    if name != "host":
        raise KeyError(name)
    yield {
        "at_ns": 1,
        "text": '{"t": 1}\n\x00\\xff',
        "hex": "7b 22",
        "values": [{"device": "d", "channel": "t\x07", "time_ns": 0, "value": 1.0}],
        "rejected": {"malformed": 1},
        "state": "open",
        "error": "not the JSON that is expected",
    }
    yield {"at_ns": 2, "state": "open", "error": ""}


def ask(tmp_path: Path, *command: str) -> int:
    """Run a command against a daemon's window."""

    async def run() -> int:
        server = StatusServer(Views(lambda: STATUS, lambda: "", lambda: "", two_records))
        port = await server.open("127.0.0.1", 0)
        more = f'[status]\nlisten = "127.0.0.1:{port}"'
        config = write_config(tmp_path, '[source.host]\ndriver = "host"', more=more)
        try:
            return await asyncio.to_thread(main, [command[0], config, *command[1:]])
        finally:
            await server.close()

    return asyncio.run(run())


def test_status_is_an_outline_that_no_device_can_break(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path, "status") == 0
    assert capsys.readouterr().out.splitlines() == [
        "gateway  g1",
        "link",
        "  connected  yes",
        "  error",
        "sources",
        "            state   samples",
        "  a\\x1b[2J  open    12",
        "  b         failed  0",
        "ledger",
        "  produced  12",
        "  stored    0.5",
    ]


def test_status_as_json_is_what_the_gateway_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_watch_shows_raw_bytes_values_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path, "watch", "host") == 0
    assert capsys.readouterr().out.splitlines() == [
        '<  {"t": 1}\\x0a\\x00\\xff',
        "   7b 22",
        "   d  t\\x07 = 1.0",
        "   rejected: malformed 1",
        "!  not the JSON that is expected",
        "   (open, nothing new)",
    ]


def test_watching_a_source_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path, "watch", "nobody") == 2
    assert "there is no source nobody" in capsys.readouterr().err


@pytest.mark.parametrize("command", [c.name for c in COMMANDS])
def test_each_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"example: forebay-edge {command} /etc/forebay/edge.toml" in " ".join(capsys.readouterr().out.split())
