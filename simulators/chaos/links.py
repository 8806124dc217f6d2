"""TCP proxies that fail on demand, all on one event loop in a thread of its own.

    client ◀─── down ─── proxy ◀────── server
           ──── up ────▶       ──────▶

| mode         | while it lasts                                                                          |
|--------------|-----------------------------------------------------------------------------------------|
| `cut`        | connections are reset, and so is each new one                                           |
| `stall`      | nothing passes and nothing ends; then everything goes on                                |
| `half_close` | one side of the connections that are there has ended, the other goes on; reset at the end |
| `slow`       | so many bytes a second each way                                                         |
| `corrupt`    | bytes are changed; reset at the end                                                     |

A link that was damaged is reset at the end, since plain TCP has its own checksum, and MQTT therefore none: a
subscription that was damaged on its way would otherwise stay wrong, unnoticed, for as long as the link holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from simulators.chaos.tap import Tap
from simulators.servers import HOST, free_port

Mode: TypeAlias = Literal["", "cut", "stall", "half_close", "slow", "corrupt"]
T = TypeVar("T")

READ_BYTES = 16 << 10
SLOW_PIECE_S = 0.05
SLOWEST_BYTES_PER_S, FASTEST_BYTES_PER_S = 500, 20_000
DAMAGED_SHARE = 0.2
"""Of the pieces that pass while a link corrupts."""
ANSWER_TIMEOUT_S = 30.0
LISTENER = "proxy on"
"""How the names of tasks begin that let connections in."""


class LoopThread:
    """An event loop in a thread; a context. Coroutines are given to it from outside."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)

    def __enter__(self) -> LoopThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine on the loop, and give what it gives."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_TIMEOUT_S)

    async def _end(self) -> None:
        """First nobody is let in any more, then whoever is in is sent away."""
        for name in (LISTENER, ""):
            tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith(name)]
            others = [task for task in tasks if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            for _ in range(3):
                await asyncio.sleep(0)  # transports open and close their sockets in the turns that follow


async def listen(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], port: int) -> None:
    """Accept connections on a port of 127.0.0.1 until the loop ends."""
    connections = await asyncio.start_server(serve, HOST, port, limit=READ_BYTES)
    asyncio.get_running_loop().create_task(connections.serve_forever(), name=f"{LISTENER} {port}")


@dataclass(slots=True, eq=False)
class _Pair:
    """One connection: both of its sockets. Index 0 is what goes up to the server, 1 what comes down."""

    readers: tuple[asyncio.StreamReader, asyncio.StreamReader]
    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    tap: Tap | None
    ended: list[bool] = field(default_factory=lambda: [False, False])

    def reset(self) -> None:
        for writer in self.writers:
            reset(writer)


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST: whatever is on its way is gone."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


class Link:
    """One proxy before a port of 127.0.0.1. `begin` and `end` are coroutines of the loop that `open` ran on."""

    def __init__(self, name: str, target_port: int, tap: Callable[[], Tap] | None = None) -> None:
        """`tap` makes one for each connection."""
        self.name = name
        self.port = free_port()
        self.url = f"mqtt://{HOST}:{self.port}"
        self._target_port = target_port
        self._tap = tap
        self._mode: Mode = ""
        self._random = random.Random(0)
        self._rate_bytes_per_s = 0
        self._flows = asyncio.Event()
        self._flows.set()
        self._pairs: set[_Pair] = set()

    async def open(self) -> None:
        """Listen."""
        await listen(self._serve, self.port)

    async def begin(self, mode: Mode, seed: int) -> str:
        """Fail from now on; gives what was drawn, in words."""
        self._mode, self._random = mode, random.Random(seed)
        if mode == "cut":
            self._reset_all()
        elif mode == "stall":
            self._flows.clear()
        elif mode == "slow":
            self._rate_bytes_per_s = self._random.randint(SLOWEST_BYTES_PER_S, FASTEST_BYTES_PER_S)
            return f"{self._rate_bytes_per_s} B/s"
        elif mode == "half_close":
            way = self._random.randrange(2)
            for pair in self._pairs:
                pair.ended[way] = True
                with contextlib.suppress(OSError, RuntimeError):
                    pair.writers[way].write_eof()
            return ("towards the server", "towards the client")[way]
        return ""

    async def end(self) -> None:
        """Work again."""
        mode, self._mode = self._mode, ""
        self._flows.set()
        if mode in ("corrupt", "half_close"):
            self._reset_all()

    def _reset_all(self) -> None:
        for pair in self._pairs:
            pair.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "cut":
            reset(writer)
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(HOST, self._target_port, limit=READ_BYTES)
        except OSError:
            reset(writer)
            return
        for one in (writer, up_writer):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair((reader, up_reader), (up_writer, writer), self._tap() if self._tap else None)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pump(pair, 0), self._pump(pair, 1))
        except OSError:
            pass  # one end was reset: so is the other
        finally:
            self._pairs.discard(pair)
            pair.reset()

    async def _pump(self, pair: _Pair, way: int) -> None:
        """All that goes one way, until it ends."""
        reader, writer = pair.readers[way], pair.writers[way]
        while data := await reader.read(READ_BYTES):
            if way == 0 and pair.tap is not None:
                pair.tap.up(data)
            await self._flows.wait()
            if pair.ended[way]:
                continue
            if self._mode == "corrupt" and self._random.random() < DAMAGED_SHARE:
                data = damaged(data, self._random, in_text=pair.tap is not None)
            if way == 1 and pair.tap is not None:
                pair.tap.down(data)
            await self._write(writer, data)
        await self._flows.wait()
        if not pair.ended[way]:
            writer.write_eof()

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        while self._mode == "slow" and data:
            size = max(1, int(self._rate_bytes_per_s * SLOW_PIECE_S))
            writer.write(data[:size])
            await writer.drain()
            data = data[size:]
            await asyncio.sleep(SLOW_PIECE_S)
        writer.write(data)
        await writer.drain()


def damaged(data: bytes, source: random.Random, *, in_text: bool) -> bytes:
    """Some bytes changed. `in_text`: to such as no text may have, so that a reading never becomes another one."""
    changed = bytearray(data)
    at = source.randrange(len(changed))
    for place in range(at, min(at + source.choice((1, 1, 2, 16)), len(changed))):
        changed[place] = source.randrange(0xF8, 0x100) if in_text else changed[place] ^ source.randrange(1, 0x100)
    return bytes(changed)
