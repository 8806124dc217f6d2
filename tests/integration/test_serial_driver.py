"""The serial driver on real pseudo-terminals: cables are pulled, devices babble, programs compete."""

from __future__ import annotations

import asyncio
import os
import stat
import tty
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serial

from devices.drivers import Delivery
from devices.drivers import serial as driver_module
from devices.drivers.serial import SerialDriver, SerialOptions

PATIENCE = 2000


class Cable:
    """A port under a name that stays, as `/dev/serial/by-id` gives it, whose device can be pulled and put back."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self.master = -1
        self._slave = -1
        self.plug()

    def plug(self) -> None:
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.link.symlink_to(os.ttyname(self._slave))

    def pull(self) -> None:
        if self.master >= 0:
            self.link.unlink()
            os.close(self.master)
            os.close(self._slave)
            self.master = -1

    def send(self, data: bytes) -> int:
        """Bytes that the line took."""
        try:
            return os.write(self.master, data)
        except BlockingIOError:
            return 0


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[Cable]:
    made = Cable(tmp_path / "port")
    yield made
    made.pull()


def drive(options: SerialOptions, test: Callable[[SerialDriver, list[Delivery]], Awaitable[None]]) -> list[Delivery]:
    deliveries: list[Delivery] = []

    async def run() -> None:
        driver = SerialDriver("d", options, deliveries.append, lambda: 1)
        running = asyncio.ensure_future(driver.run())
        try:
            await test(driver, deliveries)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
    return deliveries


async def until(reached: Callable[[], Any]) -> None:
    for _ in range(PATIENCE):
        if reached():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


def text(deliveries: list[Delivery]) -> bytes:
    return b"".join(payload for delivery in deliveries for payload in delivery.payloads)


def test_a_pulled_cable_is_found_again_and_the_gap_is_marked(cable: Cable) -> None:
    async def test(driver: SerialDriver, deliveries: list[Delivery]) -> None:
        await until(lambda: driver.status.state == "open")
        cable.send(b"one\nhal")
        await until(lambda: text(deliveries) == b"one\nhal")
        cable.pull()
        await until(lambda: driver.status.state == "failed")
        assert "went away" in driver.status.error or "there is no port" in driver.status.error  # if we looked late
        await until(lambda: "there is no port" in driver.status.error)
        cable.plug()
        await until(lambda: driver.status.state == "open")
        assert driver.status.error == ""
        cable.send(b"two\n")
        cable.send(b"three\n")
        await until(lambda: text(deliveries).endswith(b"three\n"))
        assert driver.status.reconnects == 1

    deliveries = drive(SerialOptions(str(cable.link)), test)
    assert deliveries[0].restart
    after_the_gap = next(i for i, d in enumerate(deliveries) if b"two" in d.payloads[0])
    assert deliveries[after_the_gap].restart
    assert not any(d.restart for d in deliveries[1:after_the_gap])


def test_why_a_port_is_not_open_is_logged_once_and_that_it_is_again(
    cable: Cable, caplog: pytest.LogCaptureFixture
) -> None:
    cable.pull()
    tried: list[SerialOptions] = []
    really_open = driver_module._open

    def counted(options: SerialOptions) -> serial.SerialBase:
        tried.append(options)
        return really_open(options)

    async def test(driver: SerialDriver, deliveries: list[Delivery]) -> None:
        await until(lambda: len(tried) >= 3)
        cable.plug()
        await until(lambda: driver.status.state == "open")

    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO", driver_module.__name__):
        patch.setattr(driver_module, "_open", counted)
        drive(SerialOptions(str(cable.link)), test)
    said = [record.getMessage() for record in caplog.records if record.name == driver_module.__name__]
    assert len(said) == 2
    assert said[0].startswith(f"source d: there is no port {cable.link}")
    assert said[1] == f"source d: {cable.link} is open again"


def test_a_paused_port_waits_a_moment_and_then_counts_every_byte_it_loses(
    cable: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "KERNEL_HOLDS_BYTES", 200)

    async def test(driver: SerialDriver, deliveries: list[Delivery]) -> None:
        await until(lambda: driver.status.state == "open")
        driver.pause()
        cable.send(b"kept\n")
        driver.resume()
        await until(lambda: text(deliveries) == b"kept\n")
        assert driver.status.overruns == 0
        driver.pause()
        lost = cable.send(b"lost\n" * 20)
        await until(lambda: driver.status.overruns == lost)
        driver.resume()
        cable.send(b"after\n")
        await until(lambda: text(deliveries) == b"kept\nafter\n")

    deliveries = drive(SerialOptions(str(cable.link), baud_rate=9600), test)
    assert [d.restart for d in deliveries] == [True, True]


def test_with_flow_control_the_device_waits_and_nothing_is_lost(cable: Cable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "KERNEL_HOLDS_BYTES", 0)

    async def test(driver: SerialDriver, deliveries: list[Delivery]) -> None:
        await until(lambda: driver.status.state == "open")
        driver.pause()
        sent = 0
        while taken := cable.send(b"x" * 1000):
            sent += taken
        await asyncio.sleep(0.2)
        assert not deliveries
        driver.resume()
        await until(lambda: len(text(deliveries)) == sent)
        assert driver.status.overruns == 0

    drive(SerialOptions(str(cable.link), flow_control="software"), test)


def test_a_babbling_device_is_read_in_large_pieces_and_can_be_stopped(cable: Cable) -> None:
    async def test(driver: SerialDriver, deliveries: list[Delivery]) -> None:
        await until(lambda: driver.status.state == "open")

        def babble() -> bool:
            cable.send(os.urandom(4096))
            return len(text(deliveries)) > 100_000

        await until(babble)
        driver.pause()
        before = driver.status.messages
        cable.send(os.urandom(4096))
        await asyncio.sleep(0.05)
        assert driver.status.messages == before

    deliveries = drive(SerialOptions(str(cable.link), baud_rate=115_200), test)
    assert max(len(d.payloads[0]) for d in deliveries) <= driver_module.READ_BYTES


def test_a_port_that_another_program_holds_says_so(cable: Cable) -> None:
    async def test(driver: SerialDriver, deliveries: list[Delivery]) -> None:
        await until(lambda: driver.status.state == "failed")
        assert "another program holds" in driver.status.error
        holder.close()
        await until(lambda: driver.status.state == "open")

    holder = serial.Serial(str(cable.link), exclusive=True)
    try:
        drive(SerialOptions(str(cable.link)), test)
    finally:
        holder.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every port")
def test_a_port_without_permission_says_which_group_may_open_it(cable: Cable) -> None:
    os.chmod(os.ttyname(cable._slave), 0)

    async def test(driver: SerialDriver, deliveries: list[Delivery]) -> None:
        await until(lambda: driver.status.state == "failed")
        assert "usermod -aG" in driver.status.error

    drive(SerialOptions(str(cable.link)), test)


def test_a_refusal_by_the_system_names_the_group(cable: Cable, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise serial.SerialException(13, "could not open port: Permission denied")

    monkeypatch.setattr(serial, "serial_for_url", refuse)

    async def test(driver: SerialDriver, deliveries: list[Delivery]) -> None:
        await until(lambda: driver.status.state == "failed")
        assert "this user may not open it" in driver.status.error
        assert "usermod -aG" in driver.status.error

    drive(SerialOptions(str(cable.link)), test)


def test_a_file_that_is_no_port_says_so(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_ISREG(plain.stat().st_mode)

    async def test(driver: SerialDriver, deliveries: list[Delivery]) -> None:
        await until(lambda: driver.status.state == "failed")
        assert str(plain) in driver.status.error

    drive(SerialOptions(str(plain)), test)


def test_a_port_behind_tcp_is_read_like_a_cable_and_lost_like_one() -> None:
    """A terminal server, by pyserial's own URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"over tcp\n")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
        await writer.wait_closed()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        deliveries: list[Delivery] = []
        driver = SerialDriver("d", SerialOptions(f"socket://127.0.0.1:{port}"), deliveries.append, lambda: 1)
        running = asyncio.ensure_future(driver.run())
        await until(lambda: text(deliveries).count(b"over tcp\n") >= 2)
        assert driver.status.reconnects >= 1
        server.close()
        await until(lambda: "cannot open" in driver.status.error)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.wait_closed()

    asyncio.run(run())


@pytest.mark.parametrize("options", [{"baud_rate": 0}, {"baud_rate": 10**9}])
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SerialOptions("/dev/null", **options)
