"""The daemon's window: a small HTTP server for Prometheus, health checks and the command line.

    GET /metrics              Prometheus text
    GET /healthz              200 while the event loop turns
    GET /readyz               200 once samples can be taken and committed, else 503 with the reason
    GET /status               JSON for `forebay-edge status`
    GET /watch?source=NAME    JSON lines, one a delivery, until the client goes
    GET /deadletters[/ID]     JSON for `forebay-edge deadletters list|show`
    POST /deadletters/ID/replay

Read-only but for the last, which is done for this machine's own users alone: a request from another address, or one
that a browser sends for a page (it has an Origin), is refused. On loopback unless the configuration says otherwise.
Bounded: a request has REQUEST_BYTES and REQUEST_S to come, an answer ANSWER_S to be taken, and there are at most
MAX_CONNECTIONS at once; one more is closed without an answer. What is served is handed in: this module knows
nothing of the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import msgspec

from devices.errors import ConfigError, ForebayError
from edge.metrics import CONTENT_TYPE

log = logging.getLogger("forebay.status")

REQUEST_BYTES = 8192
REQUEST_S = 5.0
ANSWER_S = 10.0
MAX_CONNECTIONS = 16
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Views:
    """What there is to see: functions of the daemon, called from the event loop."""

    status: Callable[[], dict[str, Any]]
    """Anything that JSON can hold; NaN becomes null."""
    metrics: Callable[[], str]
    """Prometheus text."""
    ready: Callable[[], str]
    """"" when ready, else why not."""
    watch: Callable[[str], AsyncIterator[dict[str, Any]]]
    """Records of a source; KeyError at once or at the first record where there is none of that name."""


class Letters(Protocol):
    """The dead letters. None: there is none with this id."""

    async def list(self) -> list[dict[str, Any]]: ...

    async def show(self, letter_id: int) -> dict[str, Any] | None: ...

    async def replay(self, letter_id: int) -> str | None:
        """ "" once it will be in the next commit, else why it cannot."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole HTTP answer."""

    code: int
    body: bytes
    content_type: str = TEXT


class StatusServer:
    """Order of calls: `open`, `close`."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self.letters: Letters | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        return self._server is not None

    async def open(self, host: str, port: int) -> int:
        """Listen; returns the port (a free one was taken for 0). Raises ConfigError when the address cannot be had."""
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=REQUEST_BYTES)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}): is another forebay-edge running? "
                "Choose another address with [status] listen"
            ) from None
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening and end what is open."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client went away, or is none
        except asyncio.CancelledError:
            pass  # the server closes; asyncio would log a cancelled handler as an error
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) > MAX_CONNECTIONS:
            return
        async with asyncio.timeout(REQUEST_S):
            head = await reader.readuntil(b"\r\n\r\n")
        method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        target = rest.rpartition(" ")[0]
        if not target.startswith("/"):
            await _send(writer, Answer(400, b"this is not HTTP/1.1\n"))
        elif urlsplit(target).path.startswith("/deadletters"):
            await _send(writer, await self._deadletters(method, urlsplit(target).path, head, writer))
        elif method != "GET":
            await _send(writer, Answer(405, b"only GET\n"))
        elif urlsplit(target).path == "/watch":
            await self._watch(target, reader, writer)
        else:
            await _send(writer, self._answer(urlsplit(target).path))

    async def _deadletters(self, method: str, path: str, head: bytes, writer: asyncio.StreamWriter) -> Answer:
        match = re.fullmatch(r"/deadletters(?:/(\d{1,18})(/replay)?)?", path)
        if match is None or self.letters is None:
            return Answer(404, b"try /deadletters, /deadletters/ID or /deadletters/ID/replay\n")
        if method != ("POST" if match[2] else "GET"):
            return Answer(405, b"GET shows dead letters, POST replays one\n")
        try:
            if match[1] is None:
                return Answer(200, msgspec.json.encode(await self.letters.list()) + b"\n", JSON)
            if match[2] is None:
                letter = await self.letters.show(int(match[1]))
                return Answer(200, msgspec.json.encode(letter) + b"\n", JSON) if letter else _NO_LETTER
            if not is_local(writer.get_extra_info("peername")) or re.search(rb"\r\norigin\s*:", head, re.IGNORECASE):
                return Answer(403, b"dead letters are replayed from the gateway's own machine, and by no web page\n")
            why = await self.letters.replay(int(match[1]))
        except ForebayError as error:
            return Answer(503, f"{error}\n".encode())
        if why is None:
            return _NO_LETTER
        return Answer(409, f"{why}\n".encode()) if why else Answer(200, b"replayed\n")

    def _answer(self, path: str) -> Answer:
        views = self._views
        try:
            if path == "/metrics":
                return Answer(200, views.metrics().encode(), CONTENT_TYPE)
            if path == "/status":
                return Answer(200, msgspec.json.encode(views.status()) + b"\n", JSON)
            if path == "/readyz":
                why = views.ready()
                return Answer(503 if why else 200, f"{why or 'ready'}\n".encode())
        except Exception:
            log.exception("GET %s failed", path)
            return Answer(500, b"an error of the daemon's own; its log says more\n")
        if path == "/healthz":
            return Answer(200, b"alive\n")
        return Answer(404, b"try /metrics, /healthz, /readyz, /status or /watch?source=NAME\n")

    async def _watch(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Stream until the client goes: its end of file is all that it can say."""
        names = parse_qs(urlsplit(target).query).get("source", [])
        if len(names) != 1:
            await _send(writer, Answer(400, b"name one source: /watch?source=NAME\n"))
            return
        stream = asyncio.ensure_future(self._stream(names[0], writer))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait([stream, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stream, gone):
                task.cancel()
            await asyncio.gather(stream, gone, return_exceptions=True)

    async def _stream(self, name: str, writer: asyncio.StreamWriter) -> None:
        records = self._views.watch(name)
        try:
            first = True
            async for record in records:
                if first:
                    writer.write(_head(200, "application/jsonl", None))
                    first = False
                writer.write(msgspec.json.encode(record) + b"\n")
                async with asyncio.timeout(ANSWER_S):
                    await writer.drain()
        except KeyError:
            await _send(writer, Answer(404, f"there is no source {name}\n".encode()))
        finally:
            close = getattr(records, "aclose", None)
            if close is not None:
                await close()


_NO_LETTER = Answer(404, b"there is no dead letter with this id\n")


def is_local(peer: tuple[Any, ...] | None) -> bool:
    """Whether a socket's peer is a program of this machine."""
    return peer is not None and ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback


def _head(code: int, content_type: str, length: int | None) -> bytes:
    size = "" if length is None else f"Content-Length: {length}\r\n"
    return (
        f"HTTP/1.1 {code} {_PHRASES[code]}\r\nContent-Type: {content_type}\r\n{size}"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode()


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    writer.write(_head(answer.code, answer.content_type, len(answer.body)) + answer.body)
    async with asyncio.timeout(ANSWER_S):
        await writer.drain()
