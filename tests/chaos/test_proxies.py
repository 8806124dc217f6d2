"""The proxies fail in the way that they say, and work before and after."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.error
import urllib.request

import pytest

from simulators.chaos.httpfaults import HttpFaults
from simulators.chaos.links import Link, LoopThread, damaged, listen
from simulators.chaos.tap import Tap
from simulators.servers import HOST, free_port

LIMIT_S = 20.0
SOON_S = 0.3


@pytest.fixture
def loop():
    with LoopThread() as thread:
        yield thread


# -- TCP ---------------------------------------------------------------------------------------------------------


async def echo(reader, writer):
    try:
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # the client was reset
    finally:
        writer.close()


class Client:
    """One connection through a link to a server that sends back what it gets."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def says(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.hears(len(data))

    async def hears(self, size: int) -> bytes:
        async with asyncio.timeout(LIMIT_S):
            return await self.reader.readexactly(size)

    async def is_ended(self) -> bool:
        async with asyncio.timeout(LIMIT_S):
            try:
                return await self.reader.read(1) == b""
            except OSError:
                return True


@pytest.fixture
def link(loop):
    """A link to an echo; `with_client(work)` runs a coroutine function with a client of it."""
    port = free_port()
    made = Link("test", port)

    async def prepare():
        await listen(echo, port)
        await made.open()

    loop.run(prepare())
    return made


def with_client(loop, link, work):
    async def run():
        reader, writer = await asyncio.open_connection(HOST, link.port)
        try:
            await work(Client(reader, writer))
        finally:
            writer.transport.abort()

    loop.run(run())


def test_a_link_that_is_cut_resets_old_and_new_connections_and_then_works_again(loop, link):
    async def work(client):
        assert await client.says(b"hello") == b"hello"
        await link.begin("cut", 1)
        assert await client.is_ended()
        reader, writer = await asyncio.open_connection(HOST, link.port)
        assert await Client(reader, writer).is_ended()
        writer.transport.abort()
        await link.end()

    with_client(loop, link, work)

    async def again(client):
        assert await client.says(b"hello") == b"hello"

    with_client(loop, link, again)


def test_what_is_sent_into_a_stall_arrives_after_it(loop, link):
    async def work(client):
        await link.begin("stall", 1)
        waiting = asyncio.ensure_future(client.says(b"patience"))
        done, _ = await asyncio.wait([waiting], timeout=SOON_S)
        assert not done
        await link.end()
        assert await waiting == b"patience"

    with_client(loop, link, work)


def test_a_slow_link_passes_everything(loop, link):
    async def work(client):
        assert (await link.begin("slow", 1)).endswith("B/s")
        assert await client.says(bytes(range(200))) == bytes(range(200))
        await link.end()

    with_client(loop, link, work)


@pytest.mark.parametrize("seed", range(4))
def test_a_half_closed_connection_ends_on_one_side_and_is_reset_at_last(loop, link, seed):
    async def work(client):
        assert await client.says(b"hello") == b"hello"
        way = await link.begin("half_close", seed)
        assert way in ("towards the server", "towards the client")
        assert await client.is_ended()  # the echo ends when its client does
        await link.end()

    with_client(loop, link, work)


def test_a_corrupting_link_changes_bytes_and_is_reset_at_last(loop, link):
    async def work(client):
        await link.begin("corrupt", 3)
        sent = [bytes([n]) * 50 for n in range(60)]
        heard = [await client.says(piece) for piece in sent]
        assert 0 < sum(one != other for one, other in zip(sent, heard, strict=True)) < len(sent)
        await link.end()
        assert await client.is_ended()

    with_client(loop, link, work)


def test_a_reading_that_is_damaged_never_becomes_another_one():
    source = random.Random(1)
    reading = b'{"timestamp":1731405912123,"value":23.5}'
    for _ in range(200):
        with pytest.raises(ValueError):
            json.loads(damaged(reading, source, in_text=True).decode())


def test_a_tap_hears_both_ways(loop):
    port = free_port()
    heard = []

    class Recording(Tap):
        def up(self, data):
            heard.append(("up", data))

        def down(self, data):
            heard.append(("down", data))

    link = Link("test", port, lambda: Recording(lambda *_: None))

    async def prepare():
        await listen(echo, port)
        await link.open()

    async def work(client):
        assert await client.says(b"hello") == b"hello"

    loop.run(prepare())
    with_client(loop, link, work)
    assert heard == [("up", b"hello"), ("down", b"hello")]


# -- HTTP --------------------------------------------------------------------------------------------------------


class Influx:
    """Keeps the bodies of writes, and answers 204."""

    def __init__(self):
        self.port = free_port()
        self.lines: list[bytes] = []

    async def serve(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            self.lines += (await reader.readexactly(length)).splitlines()
            writer.write(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        finally:
            writer.close()


@pytest.fixture
def influx(loop):
    server = Influx()
    loop.run(listen(server.serve, server.port))
    return server


@pytest.fixture
def proxy(loop, influx):
    made = HttpFaults(influx.port)
    loop.run(made.open())
    return made


def write(proxy, body: bytes, timeout_s: float = LIMIT_S):
    """(status, headers) of a write; (0, None) where the connection ended without an answer."""
    request = urllib.request.Request(f"{proxy.url}/api/v2/write?bucket=b", body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers
    except OSError:
        return 0, None


def statuses(loop, proxy, mode: str, body: bytes, count: int = 30) -> set[int]:
    loop.run(proxy.begin(mode, 5))
    seen = {write(proxy, body)[0] for _ in range(count)}
    loop.run(proxy.end())
    return seen


def test_without_a_fault_a_write_passes(proxy, influx):
    assert write(proxy, b"m f=1 1\nm f=1 2\n")[0] == 204
    assert influx.lines == [b"m f=1 1", b"m f=1 2"]


@pytest.mark.parametrize("status", [503, 429, 401])
def test_a_write_that_is_refused_is_not_stored_and_others_get_through(loop, proxy, influx, status):
    loop.run(proxy.begin(str(status), 5))
    seen = [write(proxy, b"m f=1 1\n")[0] for _ in range(30)]
    loop.run(proxy.end())
    assert set(seen) == {204, status}
    assert len(influx.lines) == seen.count(204)
    assert write(proxy, b"m f=1 1\n")[0] == 204


def test_429_says_when_to_come_back(loop, proxy):
    loop.run(proxy.begin("429", 5))
    answers = [write(proxy, b"m f=1 1\n") for _ in range(10)]
    assert all(headers["Retry-After"].isdigit() for status, headers in answers if status == 429)


def test_a_partial_write_stores_some_lines_and_never_refuses_a_single_one(loop, proxy, influx):
    lines = b"".join(b"m f=1 %d\n" % n for n in range(50))
    assert statuses(loop, proxy, "400", lines) == {204, 400}
    assert 0 < len(influx.lines) < 30 * 50
    assert statuses(loop, proxy, "400", b"m f=1 1\n") == {204}


def test_413_is_for_large_writes(loop, proxy):
    assert statuses(loop, proxy, "413", b"m f=1 1\n" * 1000) == {204, 413}
    assert statuses(loop, proxy, "413", b"m f=1 1\n") == {204}


def test_a_mute_server_has_stored_what_it_did_not_answer(loop, proxy, influx):
    assert statuses(loop, proxy, "mute", b"m f=1 1\n") == {0, 204}
    assert len(influx.lines) == 30


def test_a_write_that_hung_lands_after_its_client_has_gone(loop, proxy, influx):
    loop.run(proxy.begin("hang", 5))
    seen = [write(proxy, b"m f=1 %d\n" % n, timeout_s=SOON_S)[0] for n in range(10)]
    hung = seen.count(0)
    assert hung > 0
    assert len(influx.lines) == 10 - hung
    loop.run(proxy.end())
    loop.run(proxy.landed())
    assert sorted(influx.lines) == [b"m f=1 %d" % n for n in range(10)]


def test_a_server_that_is_away_gives_no_answer(loop):
    proxy = HttpFaults(free_port())
    loop.run(proxy.open())
    assert write(proxy, b"m f=1 1\n")[0] == 0
