"""The daemon's HTTP window, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from devices.errors import ConfigError
from edge import status
from edge.status import StatusServer, Views


def views(**changes: Any) -> Views:
    async def watch(name: str) -> AsyncIterator[dict[str, Any]]:
        if name != "pump 1":
            raise KeyError(name)
        n = 0
        while True:
            yield {"n": n, "text": "ä"}
            n += 1
            await asyncio.sleep(0.01)

    kept: dict[str, Any] = {
        "status": lambda: {"gateway": "g", "rate": float("nan")},
        "metrics": lambda: "forebay_up 1\n",
        "ready": lambda: "",
        "watch": watch,
    }
    return Views(**(kept | changes))


def serve(test: Callable[[int], Awaitable[None]], **changes: Any) -> None:
    async def run() -> None:
        server = StatusServer(views(**changes))
        port = await server.open("127.0.0.1", 0)
        try:
            await test(port)
        finally:
            await server.close()

    asyncio.run(run())


async def ask(port: int, request: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


async def get(port: int, path: str) -> tuple[int, bytes]:
    return await ask(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def test_each_path_answers() -> None:
    async def test(port: int) -> None:
        assert await get(port, "/metrics") == (200, b"forebay_up 1\n")
        assert await get(port, "/healthz") == (200, b"alive\n")
        assert await get(port, "/readyz") == (200, b"ready\n")
        code, body = await get(port, "/status?x=1")
        assert (code, json.loads(body)) == (200, {"gateway": "g", "rate": None})
        assert (await get(port, "/etc/passwd"))[0] == 404

    serve(test)


def test_not_ready_says_why() -> None:
    async def test(port: int) -> None:
        assert await get(port, "/readyz") == (503, b"the store is full\n")

    serve(test, ready=lambda: "the store is full")


def test_an_error_of_the_daemons_own_is_an_answer_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async def test(port: int) -> None:
        assert (await get(port, "/status"))[0] == 500
        assert (await get(port, "/healthz"))[0] == 200

    serve(test, status=lambda: {"x": 1 / 0})
    assert "ZeroDivisionError" in caplog.text


def test_what_is_not_a_get_request_is_refused() -> None:
    async def test(port: int) -> None:
        assert (await ask(port, b"POST /status HTTP/1.1\r\n\r\n"))[0] == 405
        assert (await ask(port, b"hello\r\n\r\n"))[0] == 400
        assert await ask(port, b"GET /" + b"x" * 100_000) == (0, b"")
        assert (await get(port, "/healthz"))[0] == 200

    serve(test)


class OneLetter:
    """Dead letter 17, which may be replayed once."""

    def __init__(self) -> None:
        self.replayed = 0

    async def list(self) -> list[dict[str, Any]]:
        return [{"id": 17}]

    async def show(self, letter_id: int) -> dict[str, Any] | None:
        return {"id": 17, "text": "x"} if letter_id == 17 else None

    async def replay(self, letter_id: int) -> str | None:
        if letter_id != 17:
            return None
        self.replayed += 1
        return "" if self.replayed == 1 else "it is being replayed already"


def test_a_dead_letter_is_replayed_for_who_asks_rightly_and_for_nobody_else() -> None:
    letters = OneLetter()

    async def post(port: int, path: str, *headers: str) -> tuple[int, bytes]:
        return await ask(port, "\r\n".join([f"POST {path} HTTP/1.1", *headers, "", ""]).encode())

    async def run() -> None:
        server = StatusServer(views())
        port = await server.open("127.0.0.1", 0)
        assert (await get(port, "/deadletters"))[0] == 404
        server.letters = letters
        assert json.loads((await get(port, "/deadletters"))[1]) == [{"id": 17}]
        assert (await get(port, "/deadletters/17"))[0] == 200
        for path in ("/deadletters/18/replay", "/deadletters/x/replay", "/deadletters/17/replay/now"):
            assert (await post(port, path))[0] == 404
        assert (await get(port, "/deadletters/18"))[0] == 404
        assert (await get(port, "/deadletters/17/replay"))[0] == 405
        assert (await post(port, "/deadletters/17"))[0] == 405
        for origin in ("Origin: http://127.0.0.1", "ORIGIN:null", "origin : http://evil.example"):
            code, why = await post(port, "/deadletters/17/replay", "Host: x", origin)
            assert (code, b"no web page" in why) == (403, True)
        assert letters.replayed == 0
        assert await post(port, "/deadletters/17/replay", "Host: x") == (200, b"replayed\n")
        assert await post(port, "/deadletters/17/replay") == (409, b"it is being replayed already\n")
        await server.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        (("127.0.0.1", 1), True),
        (("127.8.0.1", 1), True),
        (("::1", 1, 0, 0), True),
        (("10.0.0.7", 1), False),
        (("fe80::1%eth0", 1, 0, 3), False),
        (("::ffff:10.0.0.7", 1, 0, 0), False),
        (None, False),
    ],
)
def test_only_the_gateways_own_machine_is_local(peer: tuple[Any, ...] | None, expected: bool) -> None:
    assert status.is_local(peer) is expected


def test_a_client_that_says_nothing_is_let_go_and_too_many_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "REQUEST_S", 0.2)

    async def test(port: int) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(status.MAX_CONNECTIONS)]
        for _, writer in silent:
            writer.write(b"GET")
            await writer.drain()
        one_more, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await one_more.read() == b""
        writer.close()
        await writer.wait_closed()
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        assert (await get(port, "/healthz"))[0] == 200

    serve(test)


def test_watch_streams_lines_until_the_client_goes() -> None:
    ended = asyncio.Event()

    async def watch(name: str) -> AsyncIterator[dict[str, Any]]:
        assert name == "pump 1"
        try:
            for n in range(1_000_000):
                yield {"n": n}
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /watch?source=pump%201 HTTP/1.1\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert [json.loads(await reader.readline())["n"] for _ in range(3)] == [0, 1, 2]
        writer.close()
        await writer.wait_closed()
        await asyncio.wait_for(ended.wait(), 5)

    serve(test, watch=watch)


def test_watching_a_source_that_is_not_there_says_so() -> None:
    async def test(port: int) -> None:
        assert await get(port, "/watch?source=nobody") == (404, b"there is no source nobody\n")
        assert (await get(port, "/watch"))[0] == 400

    serve(test)


def test_the_server_closes_while_somebody_watches() -> None:
    async def run() -> None:
        server = StatusServer(views())
        port = await server.open("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /watch?source=pump%201 HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await server.close()
        await reader.read()
        writer.close()
        await writer.wait_closed()

    asyncio.run(run())


def test_an_address_that_is_taken_is_a_sentence() -> None:
    async def run() -> None:
        first, second = StatusServer(views()), StatusServer(views())
        port = await first.open("127.0.0.1", 0)
        with pytest.raises(ConfigError, match="another forebay-edge"):
            await second.open("127.0.0.1", port)
        await first.close()
        await second.close()

    asyncio.run(run())
