"""An HTTP proxy before InfluxDB that answers in its stead, or late, or not at all. Only writes are touched.

| mode        | a write is answered, mostly                                                              |
|-------------|------------------------------------------------------------------------------------------|
| `503`  | 503, nothing stored                                                                      |
| `429`  | 429 with Retry-After, nothing stored                                                     |
| `400`  | 400 "partial write", with none, some or all of its lines stored; a single line is stored |
| `413`  | 413 if it is larger than a limit that is drawn; a single line is stored                  |
| `401`  | 401, nothing stored                                                                      |
| `hang` | not before the fault's end, and only then stored: long after the client has given up     |
| `mute` | not at all: it is stored, and the connection reset                                       |

What the real server would never take back is not done: a single line that it refuses is rejected for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Literal, NamedTuple, TypeAlias

from simulators.chaos.links import listen, reset
from simulators.servers import HOST, free_port

HttpMode: TypeAlias = Literal["", "503", "429", "400", "413", "401", "hang", "mute"]

HIT_SHARE = 0.8
"""Of the writes while a fault lasts: the others get through."""
LONGEST_BODY_BYTES = 64 << 20
REASONS = {400: "Bad Request", 401: "Unauthorized", 413: "Too Large", 429: "Too Many", 503: "Unavailable"}


class Request(NamedTuple):
    """One request as it came."""

    head: bytes
    """Request line and headers, without the empty line."""
    body: bytes

    @property
    def is_write(self) -> bool:
        return b"/write" in self.head.partition(b"\r\n")[0]

    def with_body(self, body: bytes) -> bytes:
        """For the server, which is to close the connection after its answer."""
        lines = [
            line for line in self.head.split(b"\r\n") if not line.lower().startswith((b"content-length", b"connection"))
        ]
        return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"Connection: close", b"", b""]) + body


class HttpFaults:
    """The proxy. `begin` and `end` are coroutines of the loop that `open` ran on."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self._target_port = target_port
        self._mode: HttpMode = ""
        self._random = random.Random(0)
        self._largest_bytes = 0
        self._over = asyncio.Event()
        self._landing: set[asyncio.Task[bytes]] = set()

    async def open(self) -> None:
        """Listen."""
        await listen(self._serve, self.port)

    async def begin(self, mode: HttpMode, seed: int) -> str:
        """Fail from now on; gives what was drawn, in words."""
        self._mode, self._random = mode, random.Random(seed)
        self._over = asyncio.Event()
        if mode == "413":
            self._largest_bytes = self._random.randint(200, 4000)
            return f"above {self._largest_bytes} bytes"
        return ""

    async def end(self) -> None:
        """Work again; writes that hung land now."""
        self._mode = ""
        self._over.set()

    async def landed(self) -> None:
        """Wait until no write is on its way to the server any more."""
        while self._landing:
            await asyncio.wait(self._landing)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _request(reader)) is not None:
                # It lands, even if its client has gone: so it is a task of its own.
                task = asyncio.get_running_loop().create_task(self._answer(request))
                self._landing.add(task)
                task.add_done_callback(self._landing.discard)
                answer = await asyncio.shield(task)
                if not answer:
                    break
                writer.write(answer)
                await writer.drain()
                break  # the server's answer says `Connection: close`
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has gone, or is none of HTTP
        finally:
            with contextlib.suppress(OSError):
                writer.close() if not writer.is_closing() else reset(writer)

    async def _answer(self, request: Request) -> bytes:
        """The answer's bytes; none: the connection ends without one."""
        mode, source = self._mode, self._random
        if not request.is_write or not mode or source.random() > HIT_SHARE:
            return await self._forward(request.with_body(request.body))
        lines = request.body.splitlines(keepends=True)
        if mode == "503":
            return _said(503, "chaos: unavailable")
        if mode == "429":
            return _said(429, "chaos: too many requests", f"Retry-After: {source.randint(0, 2)}")
        if mode == "401":
            return _said(401, "chaos: authorization failed")
        if mode == "413" and len(lines) > 1 and len(request.body) > self._largest_bytes:
            return _said(413, "chaos: the request is too large")
        if mode == "400" and len(lines) > 1:
            share = source.choice((0.0, 0.3, 0.7, 1.0))
            some = b"".join(line for line in lines if source.random() < share)
            if some:
                await self._forward(request.with_body(some))
            return _said(400, f"partial write: chaos dropped={source.randint(0, len(lines))}")
        if mode == "hang":
            await self._over.wait()
        answer = await self._forward(request.with_body(request.body))
        return b"" if mode == "mute" else answer

    async def _forward(self, request: bytes) -> bytes:
        """The server's answer; none where it is away, or goes away."""
        try:
            reader, writer = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            return b""
        try:
            writer.write(request)
            return await reader.read(-1)
        except OSError:
            return b""
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection; None at its end. Raises IncompleteReadError and LimitOverrunError."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
    except asyncio.IncompleteReadError:
        return None
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = min(int(value), LONGEST_BODY_BYTES)
    return Request(head, await reader.readexactly(length))


def _said(status: int, text: str, *headers: str) -> bytes:
    """An answer such as InfluxDB's: `error` is 1.8's key, `message` 2.x's."""
    body = f'{{"code":"chaos","error":"{text}","message":"{text}"}}'
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "Connection: close", "", body]).encode()
