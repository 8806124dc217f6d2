"""A disk that is full, fails or has destroyed pages: the daemon stays up, says so, and keeps what it acknowledged."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paho.mqtt import publish

from devices.model import Lane
from devices.wire.topics import digest
from edge.custody import Commit, Custody, OutboxRow
from edge.store import Store
from edge.storefile import ASIDE, PAGE_BYTES, SALVAGED
from simulators.parts import fetch, program
from simulators.processes import Process
from simulators.servers import Broker, free_port

pytestmark = pytest.mark.real
MIB = 1 << 20
LIMIT_S = 30.0

PROFILE = """\
name = "plant"
version = "1"
[codec]
name = "json"
value = "value"
time = "time"
time_format = "ms"
[channel."*"]
window = "1 s"
"""


class Gateway:
    """An edge process on a store in `folder`, one broker on both sides, and nobody who answers frames."""

    def __init__(self, folder: Path, config: Path, broker: Broker, spawn: Callable[..., Process]) -> None:
        self.store = folder / "edge.db"
        self._broker = broker
        self._spawn = spawn
        self._listen = f"127.0.0.1:{free_port()}"
        self._config = config / "edge.toml"
        (config / "plant.toml").write_text(PROFILE)
        self._config.write_text(f"""\
gateway = "g1"
[uplink]
broker = "{broker.url}"
[store]
path = "{self.store}"
max_size = "8 MiB"
[status]
listen = "{self._listen}"
[source.plant]
driver = "mqtt"
broker = "{broker.url}"
topics = ["plant/{{device}}/{{channel}}"]
profile = "plant.toml"
""")
        self._time_ms = time.time_ns() // 1_000_000
        """Of the next sample."""
        self.process: Process

    def start(self) -> None:
        self.process = self._spawn([program("forebay-edge"), "run", str(self._config)])
        self.wait(lambda status: status["sources"]["plant"]["state"] == "open", "reading")

    def stop(self) -> None:
        self.process.stop()

    def status(self) -> dict[str, Any]:
        body = fetch(f"http://{self._listen}/status")
        found: dict[str, Any] = json.loads(body) if body else {}
        return found

    def wait(self, ready: Callable[[dict[str, Any]], bool], what: str) -> None:
        def is_so() -> bool:
            status = self.status()
            return bool(status) and ready(status)

        self.process.wait_until(is_so, LIMIT_S, what)

    def send(self, count: int) -> None:
        """Acknowledged by the broker, which keeps them until the gateway has acknowledged them."""
        messages: Any = [
            {"topic": "plant/fan/speed", "payload": json.dumps({"time": self._time_ms + i, "value": i}), "qos": 1}
            for i in range(count)
        ]
        self._time_ms += count
        publish.multiple(messages, hostname=self._broker.host, port=self._broker.port)

    def has_taken(self, count: int) -> Callable[[dict[str, Any]], bool]:
        """It is durable: the source is told only then, and the store says that it works."""

        def check(status: dict[str, Any]) -> bool:
            ledger, store = status["ledger"], status["store"]
            return ledger["produced"] == ledger["waiting"] == count and not store["error"]

        return check


@pytest.fixture
def broker(mosquitto: Callable[..., Broker]) -> Broker:
    return mosquitto()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "forebay-test", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take the last byte."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass
    return filler


def test_a_disk_that_others_fill_does_not_stop_a_store_that_has_its_size(
    small_disk: Path, tmp_path: Path, broker: Broker, spawn: Callable[..., Process]
) -> None:
    gateway = Gateway(small_disk, tmp_path, broker, spawn)
    gateway.start()
    fill(small_disk)
    for round_ in range(1, 4):
        gateway.send(200)
        gateway.wait(gateway.has_taken(200 * round_), "taking in samples on a full disk")


def test_on_a_disk_that_is_full_when_it_starts_the_gateway_waits_says_so_and_loses_nothing(
    small_disk: Path, tmp_path: Path, broker: Broker, spawn: Callable[..., Process]
) -> None:
    gateway = Gateway(small_disk, tmp_path, broker, spawn)
    gateway.start()
    gateway.send(100)
    gateway.wait(gateway.has_taken(100), "taking in samples")
    gateway.stop()  # which removes the WAL: what follows cannot have it
    filler = fill(small_disk)
    gateway.start()
    gateway.send(100)
    gateway.wait(lambda status: "the disk is full" in status["store"]["error"], "saying that the disk is full")
    assert not gateway.status()["ready"]
    filler.unlink()
    gateway.wait(gateway.has_taken(200), "taking in what waited")


def test_writes_that_fail_are_tried_again_and_nothing_is_acknowledged_meanwhile(
    tmp_path: Path, broker: Broker, spawn: Callable[..., Process]
) -> None:
    gateway = Gateway(tmp_path, tmp_path, broker, spawn)
    gateway.start()
    gateway.send(100)
    gateway.wait(gateway.has_taken(100), "taking in samples")
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    gateway.send(100)
    gateway.wait(lambda status: "I/O error" in status["store"]["error"], "saying that writes fail")
    assert not gateway.status()["ready"]
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    gateway.wait(gateway.has_taken(200), "taking in what waited")
    gateway.process.kill()
    gateway.start()
    gateway.wait(gateway.has_taken(200), "all there after a kill")


def test_a_file_found_damaged_while_it_is_in_use_is_set_aside_and_the_same_process_goes_on(
    tmp_path: Path, broker: Broker, spawn: Callable[..., Process]
) -> None:
    gateway = Gateway(tmp_path, tmp_path, broker, spawn)
    frames = {seq: os.urandom(20_000) for seq in range(1, 101)}
    damaged = _store_with_a_destroyed_frame(gateway.store, frames)
    gateway.start()
    gateway.process.wait_until(lambda: _aside(tmp_path) != [], LIMIT_S, "setting the file aside")
    gateway.wait(lambda status: status["store"]["outbox_frames"] >= 90 and status["ready"], "running on a new file")
    gateway.send(100)
    gateway.wait(gateway.has_taken(100), "taking in samples")
    gateway.process.kill()
    store = Store.open(gateway.store, 8 * MIB)
    kept = set(store.frames([row.seq for row in store.outbox()]).values())
    store.close()
    assert {frame for seq, frame in frames.items() if seq not in damaged} <= kept
    assert len(_aside(tmp_path)) == 1


def _aside(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"*{ASIDE}*") if not path.name.endswith(("-wal", "-shm", SALVAGED))]


def _store_with_a_destroyed_frame(path: Path, frames: dict[int, bytes]) -> set[int]:
    """Whose rows can be listed, so that it opens; the seqs of the frames that cannot be read."""
    store = Store.open(path, 8 * MIB)
    custody = Custody(np.empty(0, np.int32), np.empty(0, np.int64)).pack()
    rows = [(OutboxRow(seq, Lane.LIVE, "data", 1, digest(f), custody, len(f)), f) for seq, f in frames.items()]
    store.commit(Commit(frames=rows))
    store.close()
    target = 1
    data = bytearray(path.read_bytes())
    at = data.index(frames[target][10_000:10_100]) // PAGE_BYTES * PAGE_BYTES
    data[at : at + PAGE_BYTES] = b"\xa5" * PAGE_BYTES
    path.write_bytes(data)
    return {target}
