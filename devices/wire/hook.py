"""paho's socket, hooked into the asyncio event loop: when it is read, and when it is written.

paho says by callbacks when it opens and closes its socket and when it has something to write. Reads are
gathered while messages stream in; writes leave at the end of the turn of the loop in which they were queued.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from devices.wire.client import BulkClient

GATHER_S: Final = 0.01
"""While messages stream in, reads are this far apart: a read costs some 60 us whatever it brings. At 700 messages/s
2 ms cost 187 us of CPU a message, 10 ms 140. A message that comes alone is read at once."""

GATHER_BYTES: Final = 64 * 1024
"""A read that brought this much is followed by the next without waiting."""


class LoopHook:
    """Reads and writes one client's socket from the running event loop."""

    def __init__(self, client: BulkClient) -> None:
        self._client = client
        self._loop: asyncio.AbstractEventLoop
        self._sock: Any = None
        self._read_at_s = 0.0
        """When messages were last read, by the loop's clock."""
        self._reader = False
        self._writer = False
        self._next_read: asyncio.Handle | None = None
        client.on_socket_open = self._socket_open
        client.on_socket_close = self._socket_close
        client.on_socket_register_write = self._register_write
        client.on_socket_unregister_write = self._unregister_write

    def pause(self) -> None:
        """Read no more, on this connection and on later ones; of those only until they are accepted."""
        self._client.paused = True
        if self._holds():
            self._stop_reading()

    def resume(self) -> None:
        """Read again."""
        self._client.resume()
        self._start_reading()

    def _socket_open(self, client: Any, _data: Any, sock: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._read_at_s = 0.0
        self._start_reading()

    def _socket_close(self, client: Any, _data: Any, sock: Any) -> None:
        self._stop_reading()
        self._sock = None

    def _holds(self) -> bool:
        """Paused; but the broker's answer to CONNECT is read even so, or there would be no connection to hold."""
        return self._client.paused and self._client.is_connected()

    def _start_reading(self) -> None:
        if self._sock is not None and not self._holds() and self._next_read is None and not self._reader:
            self._loop.add_reader(self._sock, self._readable)
            self._reader = True

    def _stop_reading(self) -> None:
        if self._next_read is not None:
            self._next_read.cancel()
            self._next_read = None
        if self._reader and self._sock is not None:
            self._loop.remove_reader(self._sock)
        self._reader = False

    def _readable(self) -> None:
        """The socket has bytes: read now, or a little later, when more have come."""
        wait_s = self._read_at_s + GATHER_S - self._loop.time()
        if wait_s > 0:
            self._stop_reading()
            self._next_read = self._loop.call_later(wait_s, self._read_gathered)
        else:
            self._read()

    def _read_gathered(self) -> None:
        self._next_read = None
        try:
            self._read()
        finally:
            self._read_on()

    def _read_on(self) -> None:
        client = self._client
        if self._holds() or self._sock is None or self._reader or self._next_read is not None:
            return
        if client.last_read_bytes >= GATHER_BYTES:
            self._next_read = self._loop.call_soon(self._read_gathered)
        elif client.last_read_messages:
            self._next_read = self._loop.call_later(GATHER_S, self._read_gathered)
        else:
            self._start_reading()

    def _read(self) -> None:
        self._client.loop_read()
        if self._holds():
            self._stop_reading()
        if self._client.last_read_messages and self._client.last_read_bytes < GATHER_BYTES:
            self._read_at_s = self._loop.time()

    def _register_write(self, client: Any, _data: Any, sock: Any) -> None:
        # Written at the end of this turn of the loop, with whatever else is queued until then; only a
        # socket that takes no more is waited for.
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._client.loop_write()
        if self._client.want_write() and self._sock is not None and not self._writer:
            self._loop.add_writer(self._sock, self._client.loop_write)
            self._writer = True

    def _unregister_write(self, client: Any, _data: Any, sock: Any) -> None:
        if self._writer:
            self._loop.remove_writer(sock)
            self._writer = False
