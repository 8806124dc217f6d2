"""A serial port: whatever pyserial opens, read in bulk by the event loop.

pyserial opens and configures the port (exclusively: a second program that asks for a lock is refused);
from then on the event loop watches its descriptor and takes all that is there with one read.

The port is opened again for ever: a cable that was pulled and put back is found within a few seconds,
also under a new number if the configuration names it by `/dev/serial/by-id/...`. What follows such a
gap is delivered with `restart`, so that two halves of different lines never make one.

A port cannot be told to wait (unless it has flow control). While paused its bytes are left to the
kernel's buffer for as long as that surely holds them; after that they are read and thrown away, and
counted in `status.overruns`, so that what is lost is known to the byte.
"""

from __future__ import annotations

import asyncio
import errno
import grp
import logging
import os
import random
from collections.abc import Callable
from typing import ClassVar, Literal

import msgspec
import serial

from devices.drivers import Delivery, SourceStatus
from devices.errors import LinkLost, PermissionMissing, PortBusy, PortMissing, SourceError

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
"""More than a port's kernel buffers hold together: one read empties them."""
RETRY_CAP_S = 3.0
"""Full jitter below this: a replugged device is read again within seconds, and nothing spins."""
RETRY_FIRST_S = 0.1
KERNEL_HOLDS_BYTES = 2048
"""Half of the 4,096 bytes that Linux keeps for a tty nobody reads."""
BITS_PER_BYTE = 10
"""Start bit, eight bits, stop bit."""


class SerialOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keys of `[source.NAME]` with `driver = "serial"`."""

    port: str
    """A device (`/dev/serial/by-id/...` survives replugging), or a URL that pyserial knows (`socket://host:port`)."""
    baud_rate: int = 9600
    """Bits a second, as the device is set."""
    data_bits: Literal[5, 6, 7, 8] = 8
    """Data bits of a character."""
    parity: Literal["none", "even", "odd", "mark", "space"] = "none"
    """Parity bit of a character."""
    stop_bits: Literal[1, 2] = 1
    """Stop bits of a character."""
    flow_control: Literal["none", "hardware", "software"] = "none"
    """`hardware` (RTS/CTS) or `software` (XON/XOFF): the device waits while the gateway is busy."""

    def __post_init__(self) -> None:
        if not 50 <= self.baud_rate <= 4_000_000:
            raise ValueError("`baud_rate` lies between 50 and 4000000")


class SerialDriver:
    """Reads one port; see the module's docstring."""

    Options: ClassVar[type[msgspec.Struct]] = SerialOptions
    stream: ClassVar[bool] = True
    when_silent: ClassVar[str] = (
        "is the device switched on, is its cable in this port, with TX and RX crossed, and does it send by itself?"
    )

    def __init__(
        self,
        device: str,
        options: SerialOptions,
        deliver: Callable[[Delivery], None],
        now_ns: Callable[[], int],
        *,
        probe: bool = False,
    ) -> None:
        del probe  # Reading changes nothing on the device.
        self.status = SourceStatus()
        self._device = device
        self._options = options
        self._deliver = deliver
        self._now_ns = now_ns
        self._paused = False
        self._restart = True
        self._port: serial.SerialBase | None = None
        self._lost: asyncio.Future[SourceError] | None = None
        self._discarding: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Open, read until the link is lost, open again; until cancelled."""
        attempts = 0
        while True:
            try:
                port = await _open_port(self._options)
            except SourceError as error:
                self._failed(error)
                limit_s = min(RETRY_CAP_S, RETRY_FIRST_S * 2.0 ** min(attempts, 10))
                attempts += 1
                await asyncio.sleep(random.uniform(0.0, limit_s))
                continue
            try:
                attempts = 0
                self._failed(await self._read_until_lost(port))
            finally:
                self._stop_reading()
                self._port = None
                port.close()
            self.status.reconnects += 1
            await asyncio.sleep(random.uniform(0.0, RETRY_FIRST_S))

    async def _read_until_lost(self, port: serial.SerialBase) -> SourceError:
        self._port = port
        self._restart = True
        if self.status.error:
            log.info("source %s: %s is open again", self._device, self._options.port)
        self._lost = asyncio.get_running_loop().create_future()
        self.status.error, self.status.held = "", False
        if self._paused:
            self.pause()
        else:
            self.resume()
        return await self._lost

    def pause(self) -> None:
        """Leave the bytes to the kernel for a moment, and to nobody after that, unless the device waits."""
        self._paused = True
        if self._port is None:
            return
        self._stop_reading()
        self.status.state = "paused"
        if self._options.flow_control == "none":
            holds_s = KERNEL_HOLDS_BYTES * BITS_PER_BYTE / self._options.baud_rate
            self._discarding = asyncio.get_running_loop().call_later(holds_s, self._watch, self._discard)

    def resume(self) -> None:
        self._paused = False
        if self._port is None:
            return
        self._stop_reading()
        self.status.state = "open"
        self._watch(self._read)

    def _watch(self, what: Callable[[], None]) -> None:
        assert self._port is not None
        asyncio.get_running_loop().add_reader(self._port.fileno(), what)

    def _stop_reading(self) -> None:
        if self._discarding is not None:
            self._discarding.cancel()
            self._discarding = None
        if self._port is not None and self._port.is_open:
            asyncio.get_running_loop().remove_reader(self._port.fileno())

    def _read(self) -> None:
        data = self._take()
        if data:
            self.status.messages += 1
            self._deliver(Delivery([data], arrived_ns=self._now_ns(), restart=self._restart))
            self._restart = False

    def _discard(self) -> None:
        self.status.overruns += len(self._take())
        self._restart = True

    def _take(self) -> bytes:
        """All that is there; b"" at the end of the link, which is then told to `run`."""
        assert self._port is not None
        try:
            data = os.read(self._port.fileno(), READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            self._end(f"{error.strerror} ({errno.errorcode.get(error.errno or 0, '?')})")
            return b""
        if not data:
            self._end("end of the stream")
        self.status.bytes_in += len(data)
        return data

    def _end(self, why: str) -> None:
        self._stop_reading()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(
                LinkLost(
                    f"{self._options.port} went away while it was read ({why}): check cable and power of the "
                    "device; it is opened again as soon as it is back"
                )
            )

    def _failed(self, error: SourceError) -> None:
        if str(error) != self.status.error:  # said once, not at each attempt
            log.warning("source %s: %s", self._device, error)
        self.status.state, self.status.error = "failed", str(error)
        self.status.held = isinstance(error, PortBusy)


async def _open_port(options: SerialOptions) -> serial.SerialBase:
    """Open in a thread, since URLs may take seconds; when cancelled meanwhile, what was opened is closed."""
    opening = asyncio.ensure_future(asyncio.to_thread(_open, options))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_opened)
        raise


def _close_opened(opening: asyncio.Future[serial.SerialBase]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _open(options: SerialOptions) -> serial.SerialBase:
    """The opened port. Raises SourceError with what to do."""
    port = options.port
    try:
        opened = serial.serial_for_url(
            port,
            baudrate=options.baud_rate,
            bytesize=options.data_bits,
            parity=options.parity[0].upper(),
            stopbits=options.stop_bits,
            rtscts=options.flow_control == "hardware",
            xonxoff=options.flow_control == "software",
            timeout=0,
            exclusive=True,
        )
    except (serial.SerialException, OSError, ValueError) as error:
        raise _explain(port, error) from None
    try:
        os.set_blocking(opened.fileno(), False)
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        opened.close()
        raise SourceError(f"{port} has no descriptor to wait on: use a device or `socket://host:port`") from None
    return opened


def _explain(port: str, error: Exception) -> SourceError:
    """What pyserial says, as a sentence that says what to do."""
    number = getattr(error, "errno", None)
    text = str(error)
    if number in (errno.EACCES, errno.EPERM):
        return PermissionMissing(f"{port} exists, but this user may not open it: {_advice(port)}")
    if "://" not in port and not os.path.exists(port):
        return PortMissing(
            f"there is no port {port}: plug the device in, or look for its name with `ls /dev/serial/by-id/`"
        )
    if number in (errno.EBUSY, errno.EAGAIN):
        return PortBusy(f"another program holds {port}: find it with `fuser -v {port}` and end it")
    if isinstance(error, ValueError):
        return SourceError(f"{port} does not take these settings: {text}")
    return SourceError(f"cannot open {port}: {text}")


def _advice(port: str) -> str:
    """Who may open the port, and how to become one of them."""
    try:
        group = grp.getgrgid(os.stat(port).st_gid).gr_name
    except (OSError, KeyError):
        return "run as a user who may"
    return f"add it to the group {group} with `sudo usermod -aG {group} USER`, and log in again"
