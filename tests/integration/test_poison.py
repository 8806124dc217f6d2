"""Poison of every kind, against the real edge and the real ingester between real brokers.

Each is counted under its reason and kept as a dead letter, or refused in a receipt; a good sample sent after
each of them arrives; and the process grows by less than 64 MiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
import struct
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from paho.mqtt import publish

from devices.model import Lane, SampleBatch
from devices.wire import telemetry_pb2 as pb
from devices.wire.frame import BodyKind, Frame, Header, RawBody, WireSeries, encode
from devices.wire.receipt import Receipt, decode_receipt
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions
from devices.wire.topics import correlation, topic
from edge.intake import DEAD_LETTER_BYTES, DEAD_LETTERS_A_MINUTE
from simulators.parts import program
from simulators.processes import Process
from simulators.servers import Broker

pytestmark = pytest.mark.real

PATIENCE_S = 60.0
MOST_GROWTH_BYTES = 64 << 20
NOW_NS = 1_763_980_000_000_000_000

Mosquitto = Callable[..., Broker]
Spawn = Callable[..., Process]


async def until(ready: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not ready():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def memory_bytes(process: Process, name: str) -> int:
    """`VmRSS`: now; `VmHWM`: at most, so far."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) << 10


class Growth:
    """How much memory a process took at most since this was made."""

    def __init__(self, process: Process) -> None:
        self._process = process
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        self._before_bytes = memory_bytes(process, "VmRSS")

    def check(self) -> None:
        grown_bytes = memory_bytes(self._process, "VmHWM") - self._before_bytes
        assert grown_bytes < MOST_GROWTH_BYTES, f"it grew by {grown_bytes >> 20} MiB"


def page(address: str) -> str:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=10) as answer:
        text: str = answer.read().decode()
        return text
    return ""


def stored(path: Path, measurement: str, device: str, field: str) -> list[float]:
    """Values of one device in the SQLite sink, in order of time."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        try:
            rows = database.execute(
                "SELECT fields FROM points WHERE measurement = ? AND device = ? ORDER BY time_ns", (measurement, device)
            ).fetchall()
        except sqlite3.OperationalError:  # its tables are not there yet
            return []
    return [json.loads(fields)[field] for (fields,) in rows]


# ---------------------------------------------------------------- the edge


@dataclass(frozen=True)
class Poison:
    """One message of a device, and what becomes of it."""

    name: str
    payload: bytes
    reason: str = "malformed"
    """"": it is taken, strange as it is."""
    channel: str = "temperature"
    letter: bool = True
    """It is kept as a dead letter: nobody could read it. (What was read and rejected is in the ledger.)"""


def kept_part(poison: Poison) -> bytes:
    """What a dead letter has of it: of an unmapped text the text alone."""
    text = poison.payload if poison.reason != "unmapped" else json.loads(poison.payload).encode()
    return text[:DEAD_LETTER_BYTES]


def timed(time: str) -> bytes:
    return b'{"value": 1, "timestamp": ' + time.encode() + b"}"


UNREADABLE = [
    Poison("empty", b""),
    Poison("truncated", b'{"value": 23.5, "timest'),
    Poison("NUL bytes", bytes(100)),
    Poison("not UTF-8", b'{"value": "\xff\xfe\x80"}'),
    Poison("half of a surrogate pair", b'{"value": "\\ud800"}'),
    Poison("NaN", b'{"value": NaN}'),
    Poison("Infinity", b'{"value": -Infinity}'),
    Poison("larger than float64", b'{"value": 1e999}'),
    Poison("arrays 50,000 deep", b"[" * 50_000),
    Poison("objects 10,000 deep", b'{"a":' * 10_000),
    Poison("a number of 60,000 digits", b"9" * 60_000),
    Poison("a value of 60,000 digits", b'{"value": ' + b"9" * 60_000 + b"}"),
    Poison("30,000 values", b"[" + b"0," * 29_999 + b"0]"),
    Poison("no object", b'[{"value": 1}, 7]'),
]
STRANGE = [
    Poison("longer than message_bytes", b" " * 70_000 + b"1", "oversize"),
    Poison("a megabyte", b'{"value": "' + b"x" * 1_000_000 + b'"}', "oversize"),
    Poison("eight megabytes, beyond max_message", b'{"value": "' + b"x" * 8_000_000 + b'"}', "oversize"),
    Poison("a text of 60,000 characters", b'"' + b"x" * 60_000 + b'"', "unmapped", "mode"),
    Poison("a text with NUL", b'"\\u0000"', "unmapped", "mode"),
    Poison("year 1", timed('"0001-01-01T00:00:00Z"')),
    Poison("year 9999", timed('"9999-12-31T23:59:59.999999999Z"')),
    Poison("time 0", timed("0")),
    Poison("a negative time", timed("-1e18")),
    Poison("a time of 4,300 digits", timed("9" * 4_300)),
    Poison("no time", timed("{}")),
    Poison("year 2261", timed('"2261-01-01T00:00:00Z"'), "future", letter=False),
    Poison("2^63 - 1 ns", timed("9223372036854775807"), "future", letter=False),
    Poison("year 1971", timed('"1971-01-01T00:00:00Z"'), ""),
    Poison("unknown channel", b"1", "unknown_channel", "unheard-of", letter=False),
    Poison("an invisible channel", b"1", "unknown_channel", "\u200b", letter=False),
    Poison("a name of 60,000 bytes", b"1", "unknown_channel", "x" * 60_000, letter=False),
    Poison("5e-324", b"5e-324", ""),
    Poison("-1.7976931348623157e308", b"-1.7976931348623157e308", ""),
]
PROFILE = """
name = "poisoned"
version = "1"
[codec]
name = "json"
value = "value"
time = "timestamp"
[channel.temperature]
report = "raw"
window = "1 s"
[channel.mode]
kind = "state"
mapping = { on = 1, off = 0 }
"""


class Chain:
    """One broker, the edge and the ingester as processes, and the SQLite sink."""

    def __init__(self, folder: Path, broker: Broker, spawn: Spawn, edge_port: int, ingest_port: int) -> None:
        self.broker = broker
        self.points = folder / "points.db"
        self.store = folder / "edge.db"
        (folder / "poisoned.toml").write_text(PROFILE)
        (folder / "gateway.toml").write_text(
            f"""
gateway = "g1"
profiles = ["."]
[uplink]
broker = "{broker.url}"
[store]
path = "{self.store}"
max_size = "32 MiB"
[status]
listen = "127.0.0.1:{edge_port}"
"""
            + "".join(
                f"""
[source.{name}]
driver = "mqtt"
broker = "{broker.url}"
topics = ["{name}/{{device}}/{{channel}}"]
profile = "poisoned"
protocol = "{protocol}"
"""
                for name, protocol in (("plant", "5"), ("yard", "3.1.1"))
            )
        )
        (folder / "ingest.toml").write_text(
            f'[broker]\nurl = "{broker.url}"\n[sink]\nurl = "sqlite://{self.points}"\n'
            f'[metrics]\nlisten = "127.0.0.1:{ingest_port}"\n'
        )
        self.ingester = spawn([program("forebay-cloud"), "run", str(folder / "ingest.toml")])
        self.edge = spawn([program("forebay-edge"), "run", str(folder / "gateway.toml")])
        self._status = f"http://127.0.0.1:{edge_port}/status"

    def status(self) -> dict[str, Any]:
        """Of the edge; {} while it does not answer."""
        return json.loads(page(self._status) or "{}")  # type: ignore[no-any-return]

    def is_ready(self) -> bool:
        """Both sources are open: from now on their broker keeps what it cannot deliver."""
        return all(source["state"] == "open" for source in self.status().get("sources", {"": {"state": ""}}).values())

    def publish(self, messages: list[tuple[str, bytes]]) -> None:
        rows: Any = [(name, payload, 1, False) for name, payload in messages]
        publish.multiple(rows, hostname=self.broker.host, port=self.broker.port)

    def rejected(self) -> dict[str, int]:
        return dict(self.status().get("ledger", {}).get("rejected", {}))

    def letters(self, source: str) -> list[tuple[str, bytes]]:
        """(reason, payload) of a source's dead letters, once the edge has ended."""
        with closing(sqlite3.connect(self.store)) as database:
            query = "SELECT reason, payload FROM deadletter WHERE source = ? ORDER BY id"
            return database.execute(query, (source,)).fetchall()


@pytest.fixture
def chain(tmp_path: Path, mosquitto: Mosquitto, spawn: Spawn, free_port: Callable[[], int]) -> Chain:
    return Chain(tmp_path, mosquitto(), spawn, free_port(), free_port())


def test_what_devices_send_is_counted_and_kept_and_the_good_sample_after_it_arrives(chain: Chain) -> None:
    cases = [("plant", poison) for poison in UNREADABLE] + [("yard", poison) for poison in STRANGE]

    async def story() -> None:
        await until(chain.is_ready)
        chain.publish([("plant/good/temperature", b"-1")])
        await until(lambda: stored(chain.points, "temperature_raw", "good", "value"))
        growth = Growth(chain.edge)
        for number, (source, poison) in enumerate(cases):
            chain.publish(
                [
                    (f"{source}/bad-{number}/{poison.channel}", poison.payload),
                    ("plant/good/temperature", str(number).encode()),
                ]
            )
        expected = [float(number) for number in range(-1, len(cases))]
        await until(lambda: stored(chain.points, "temperature_raw", "good", "value") == expected)
        growth.check()
        reasons = Counter(poison.reason for _, poison in cases if poison.reason)
        await until(lambda: chain.rejected() == reasons)
        taken = [number for number, (_, poison) in enumerate(cases) if not poison.reason]
        for number in taken:
            await until(lambda number=number: stored(chain.points, "temperature_raw", f"bad-{number}", "value"))
        ledger = chain.status()["ledger"]
        assert ledger["produced"] == 1 + 2 * len(cases)
        assert ledger["imbalance"] == 0

    asyncio.run(story())
    chain.edge.stop()
    for source, poisons in (("plant", UNREADABLE), ("yard", STRANGE)):
        kept = [poison for poison in poisons if poison.letter and poison.reason]
        letters = chain.letters(source)
        for reason, payload in letters:  # of an oversize one the beginning
            assert any(p.reason == reason and kept_part(p)[: len(payload)] == payload for p in kept), (reason, payload)
        each = Counter(reason for reason, _ in letters)
        for reason, count in Counter(poison.reason for poison in kept).items():
            assert each[reason] >= min(count, DEAD_LETTERS_A_MINUTE)


def test_thousands_of_huge_topics_take_no_memory_and_the_samples_among_them_arrive(chain: Chain) -> None:
    rounds, topics_a_round, topic_bytes = 20, 100, 30_000

    async def story() -> None:
        await until(chain.is_ready)
        chain.publish([("plant/good/temperature", b"-1")])
        await until(lambda: stored(chain.points, "temperature_raw", "good", "value"))
        growth = Growth(chain.edge)
        for number in range(rounds):
            names = [f"plant/{number}-{k}-{'x' * topic_bytes}/temperature" for k in range(topics_a_round)]
            chain.publish([*((name, b"1") for name in names), ("plant/good/temperature", str(number).encode())])
        expected = [float(number) for number in range(-1, rounds)]
        await until(lambda: stored(chain.points, "temperature_raw", "good", "value") == expected)
        await until(lambda: chain.rejected() == {"unknown_channel": rounds * topics_a_round})
        growth.check()

    asyncio.run(story())


# ---------------------------------------------------------------- the ingester

TABLE = [WireSeries("pump1", "motor", "temperature", "°C"), WireSeries("pump2", "motor", "temperature", "°C")]
_zstd = zstandard.ZstdCompressor()
MANY = 100_000_000
"""What is claimed where nothing is: 0x81 n is a column of any length that says n, again and again."""
AGAIN = b"\x81\x02"


def raw(time_ns: int = NOW_NS, value: float = 1.5) -> RawBody:
    return RawBody(
        SampleBatch(np.array([0], np.int32), np.array([time_ns], np.int64), np.array([value]), np.array([0], np.uint8))
    )


def frame(body: BodyKind, *, gateway: str = "g1", table: list[WireSeries] = TABLE) -> bytes:
    return encode(Frame(Header(gateway, 7, 1, Lane.LIVE, NOW_NS), table, body))


def packed(body: pb.Body | bytes, claimed: int | None = None, /, **header: Any) -> bytes:
    """A frame around any body, with a header that says anything."""
    unpacked = body if isinstance(body, bytes) else body.SerializeToString()
    fields: dict[str, Any] = {"version": 1, "gateway": "g1", "epoch": 7, "seq": 1, "lane": 1, "created_ns": NOW_NS}
    fields |= {"body_bytes": len(unpacked) if claimed is None else claimed, "body": _zstd.compress(unpacked)}
    return pb.Frame(**(fields | header)).SerializeToString()


def changed(change: Callable[[pb.Body], None]) -> bytes:
    """A good frame whose body was changed before it was packed."""
    body = pb.Body.FromString(zstandard.ZstdDecompressor().decompress(pb.Frame.FromString(frame(raw())).body))
    change(body)
    return packed(body)


def floats(*values: float) -> bytes:
    """A column of floats, in planes."""
    return np.array(values, "<f8").view(np.uint8).reshape(-1, 8).T.tobytes()


def not_finite(value: float) -> Callable[[pb.Body], None]:
    def change(body: pb.Body) -> None:
        body.raw.value.exponent, body.raw.value.float = b"\x81\x1e", floats(value)
        body.raw.value.first = body.raw.value.step = b""

    return change


def claims(**counts: int) -> Callable[[pb.Body], None]:
    def change(body: pb.Body) -> None:
        for path, count in counts.items():
            *inner, name = path.split("__")
            message = body
            for part in inner:
                message = getattr(message, part)
            setattr(message, name, count)

    return change


def a_device_called(name: bytes, characters: bytes) -> Callable[[pb.Body], None]:
    def change(body: pb.Body) -> None:
        body.table.devices, body.table.device.utf8, body.table.device.characters = 1, name, characters
        body.table.series_device = b""

    return change


def stream_of(zeros: int) -> bytes:
    """zstd without the length in its header."""
    packer = _zstd.compressobj()
    return packer.compress(bytes(zeros)) + packer.flush()


BAD_TIMES = b"\x88" + b"\xfd" * 8
LONG_NAME, SIX_MILLION = b"x" * 3_000_000, b"\x83" + struct.pack("<I", 6_000_000)[:3]
WINDOW_OF_2_GB = b"\x28\xb5\x2f\xfd\x43\xa8\x64\0" * 9

REFUSED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": ("version", lambda: b""),
    "NUL bytes": ("malformed", lambda: bytes(1000)),
    "text": ("malformed", lambda: b'{"value": 1}'),
    "truncated": ("malformed", lambda: frame(raw())[:-7]),
    "truncated inside the body": ("malformed", lambda: packed(b"", 300, body=_zstd.compress(bytes(300))[:-3])),
    "no version": ("version", lambda: packed(b"", version=0)),
    "another's gateway": ("gateway", lambda: frame(raw(), gateway="g2")),
    "an illegal gateway": ("name", lambda: packed(b"", gateway="g1/../#")),
    "a gateway of a megabyte": ("name", lambda: packed(b"", gateway="g" * 1_000_000)),
    "larger than frame_size": ("oversize", lambda: frame(raw()) + bytes(1 << 20)),
    "rows of no series": ("series", lambda: changed(claims(raw__rows=2))),
    "a shape beyond the table": ("series", lambda: changed(lambda b: setattr(b.table, "series_shape", b"\x81\x63"))),
    "a hundred million rows": ("oversize", lambda: changed(claims(raw__rows=MANY))),
    "a hundred million series": ("oversize", lambda: changed(claims(table__series=MANY))),
    "a hundred million shapes": ("oversize", lambda: changed(claims(table__shapes=MANY))),
    "a hundred million alarms": ("oversize", lambda: packed(pb.Body(alarms=pb.Alarms(rows=MANY, series=AGAIN)))),
    "a hundred million accounts": ("oversize", lambda: packed(pb.Body(ledger=pb.Ledger(accounts=MANY)))),
    "a hundred million devices": ("oversize", lambda: packed(pb.Body(inventory=pb.Inventory(devices=MANY)))),
    "a hundred million zeros": ("malformed", lambda: changed(claims(raw__value__minus_zeros=MANY))),
    "a field of 2 GB": ("malformed", lambda: b"\x42\xff\xff\xff\xff\x07" + bytes(100)),
    "groups 100,000 deep": ("malformed", lambda: packed(b"\x0b" * 100_000)),
    "no content": ("malformed", lambda: packed(b"")),
    "a gigabyte in zstd, admitted": ("oversize", lambda: packed(b"", 1 << 30, body=bomb())),
    "a gigabyte in zstd, denied": ("malformed", lambda: packed(b"", 100, body=bomb())),
    "zstd without a length": ("malformed", lambda: packed(b"", 1 << 20, body=stream_of(1 << 24))),
    "zstd with a window of 2 GB": ("malformed", lambda: packed(b"", 100, body=WINDOW_OF_2_GB)),
    "no zstd": ("malformed", lambda: packed(b"", 100, body=bytes(100))),
    "NaN": ("nonfinite", lambda: changed(not_finite(float("nan")))),
    "Infinity": ("nonfinite", lambda: changed(not_finite(float("-inf")))),
    "times beyond 64 bits": ("malformed", lambda: changed(lambda b: setattr(b.raw.time, "first", BAD_TIMES))),
    "a name of 3 MB": ("oversize", lambda: changed(a_device_called(LONG_NAME, SIX_MILLION))),
    "a name that is not UTF-8": ("malformed", lambda: changed(a_device_called(b"\xff\xfe", b"\x81\x04"))),
    "a name of no characters": ("name", lambda: changed(a_device_called(b"", b""))),
}


def bomb() -> bytes:
    """A gigabyte of zeros in 32 KiB of zstd, which says so in its header."""
    packer = _zstd.compressobj(size=1 << 30)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(1 << 10)) + packer.flush()


STORED_IN_PART = {
    "year 1678": ("sink", lambda: frame(raw(-(2**63) + 10**9))),
    "year 2262": ("future", lambda: frame(raw(2**63 - 1 - 2**30))),
    "a measurement of ours": ("sink", lambda: frame(raw(), table=[WireSeries("p", "c", "ledger", "")])),
}
IGNORED = {
    "no correlation data": ("correlation", "forebay/v1/g1/data", None),
    "correlation data of 60,000 bytes": ("correlation", "forebay/v1/g1/data", bytes(60_000)),
    "damaged on the way": ("damaged", "forebay/v1/g1/data", bytes(24)),
    "an illegal gateway in the topic": ("topic", "forebay/v1/bad gateway/data", bytes(24)),
    "a gateway of 60,000 bytes in the topic": ("topic", f"forebay/v1/{'g' * 60_000}/data", bytes(24)),
}


class Gateway:
    """A gateway's side of the uplink, that says whatever it is told."""

    def __init__(self, broker: Broker) -> None:
        self.receipts: dict[bytes, Receipt] = {}
        self._answers: dict[int, int] = {}
        self._session = Session(
            SessionOptions(broker=broker.url, client_id="edge-g1"),
            on_messages=self._on_messages,
            on_connect=lambda present: None,
            on_disconnect=lambda error: None,
            on_published=lambda mid, reason: self._answers.update({mid: reason}),
        )
        self._session.subscribe([(topic("g1", "receipt"), 1)])
        self._seq = 0

    def _on_messages(self, inbound: Inbound) -> None:
        for payload, data in zip(inbound.payloads, inbound.correlations, strict=True):
            assert data is not None
            self.receipts[data] = decode_receipt(payload)
        self._session.acknowledge(inbound.packet_ids, inbound.connection)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._session.run())
        try:
            await until(lambda: self._session.connected)
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def publish(self, name: str, payload: bytes, data: bytes | None) -> None:
        """Until somebody is subscribed."""
        while True:
            mid = self._session.publish(name, payload, correlation=data)
            assert mid is not None
            await until(lambda mid=mid: mid in self._answers)
            if self._answers[mid] == 0:
                return
            await asyncio.sleep(0.05)

    async def send(self, payload: bytes) -> Receipt:
        """Publish a frame, and wait for the word on it."""
        self._seq += 1
        data = correlation(7, self._seq, payload)
        await self.publish(topic("g1", "data"), payload, data)
        await until(lambda: data in self.receipts)
        return self.receipts[data]


def test_what_gateways_send_is_refused_with_its_reason_and_the_good_frame_after_it_is_stored(
    tmp_path: Path, mosquitto: Mosquitto, spawn: Spawn, free_port: Callable[[], int]
) -> None:
    broker, port, points = mosquitto(), free_port(), tmp_path / "points.db"
    (tmp_path / "ingest.toml").write_text(
        f'[broker]\nurl = "{broker.url}"\n[sink]\nurl = "sqlite://{points}"\n[metrics]\nlisten = "127.0.0.1:{port}"\n'
    )
    ingester = spawn([program("forebay-cloud"), "run", str(tmp_path / "ingest.toml")])
    good = iter(range(1_000))

    async def story() -> None:
        gateway = Gateway(broker)

        async def is_well() -> None:
            number = next(good)
            assert await gateway.send(frame(raw(NOW_NS + number, number))) == Receipt()

        async with gateway.running():
            await is_well()
            growth = Growth(ingester)
            for name, (reason, make) in REFUSED.items():
                assert (await gateway.send(make())).refused == reason, name
                await is_well()
            for name, (reason, make) in STORED_IN_PART.items():
                receipt = await gateway.send(make())
                assert (receipt.refused, [(r.series, r.reason) for r in receipt.rejected]) == ("", [(0, reason)]), name
                await is_well()
            for _, where, data in IGNORED.values():
                await gateway.publish(where, frame(raw(NOW_NS - 1)), data)
                await is_well()
            newer = packed(b"", version=2)  # it may be a good one: another ingester can tell
            await gateway.publish(topic("g1", "data"), newer, correlation(7, 1 << 20, newer))
            await is_well()
            growth.check()

    asyncio.run(story())
    metrics = page(f"http://127.0.0.1:{port}/metrics")
    refused = Counter(reason for reason, _ in REFUSED.values())
    ignored = Counter([*(reason for reason, *_ in IGNORED.values()), "version"])
    for name, counts in (("refused_frames", refused), ("ignored_messages", ignored)):
        for reason, count in counts.items():
            assert f'forebay_ingest_{name}_total{{reason="{reason}"}} {count}.0' in metrics.splitlines()
    sent = next(good)
    assert stored(points, "temperature_raw", "pump1", "value") == [float(number) for number in range(sent)]
