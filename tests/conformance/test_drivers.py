"""What every driver must keep to, Forebay's own and those of other packages (see devices/drivers/__init__.py).

A driver that runs with the defaults of its options is tested as it is; the others have a rig here: a real
pseudo-terminal, a real broker.
"""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from paho.mqtt import publish

from devices.drivers import Delivery
from devices.errors import ConfigError
from devices.profiles import installed, load
from devices.tables import convert

NOW_NS = 1_700_000_000_000_000_000
PATIENCE_S = 20.0
QUIET_S = 0.5

pytestmark = [pytest.mark.parametrize("name", installed("drivers")), pytest.mark.real]


@dataclass
class Rig:
    """A source that the driver can read."""

    options: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, Any] | None = None
    """Options of a source that is not there; None where it always is."""
    produce: Callable[[], None] = lambda: None
    """Make the source say something; a polled one says it by itself."""


@contextmanager
def serial_rig(tmp_path: Path) -> Iterator[Rig]:
    master, slave = os.openpty()
    tty.setraw(slave)

    def speak() -> None:
        os.write(master, b'{"t": 1}\n')

    try:
        yield Rig(
            {"port": os.ttyname(slave)},
            {"port": str(tmp_path / "nothing")},
            speak,
        )
    finally:
        os.close(master)
        os.close(slave)


@contextmanager
def mqtt_rig(mosquitto: Callable[..., Any], free_port: Callable[[], int]) -> Iterator[Rig]:
    broker = mosquitto()
    topics = ["plant/{device}/{channel}"]
    yield Rig(
        {"broker": broker.url, "topics": topics},
        {"broker": f"mqtt://127.0.0.1:{free_port()}", "topics": topics},
        lambda: publish.single("plant/a/t", b'{"value": 1}', qos=1, hostname=broker.host, port=broker.port),
    )


@pytest.fixture
def rig(name: str, tmp_path: Path, mosquitto: Callable[..., Any], free_port: Callable[[], int]) -> Iterator[Rig]:
    if name == "serial":
        with serial_rig(tmp_path) as made:
            yield made
    elif name == "mqtt":
        with mqtt_rig(mosquitto, free_port) as made:
            yield made
    else:
        fields = msgspec.structs.fields(load("drivers", name).Options)
        if any(f.required for f in fields):
            pytest.skip(f"{name} needs options, and has no rig here")
        yield Rig()


class Bench:
    """A driver, and what it delivered."""

    def __init__(self, name: str, options: dict[str, Any], *, probe: bool = False) -> None:
        plugin = load("drivers", name)
        built = convert(options, plugin.Options, "rig", ConfigError)
        self.deliveries: list[Delivery] = []
        self.driver = plugin("device", built, self._take, lambda: NOW_NS, probe=probe)

    def _take(self, delivery: Delivery) -> None:
        if delivery.payloads:
            self.deliveries.append(delivery)
        else:  # the sender has forgotten what it sent before
            assert delivery.marks is not None
            assert not delivery.marks.session_present

    async def hear(self, rig: Rig) -> list[Delivery]:
        """Let the source speak until something more is delivered."""
        before = len(self.deliveries)
        await until(lambda: len(self.deliveries) > before, lambda: asyncio.to_thread(rig.produce))
        return self.deliveries[before:]


async def until(reached: Callable[[], bool], meanwhile: Callable[[], Awaitable[None]] | None = None) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not reached():
            if meanwhile is not None:
                await meanwhile()
            await asyncio.sleep(0.05)


def drive(bench: Bench, test: Callable[[], Awaitable[None]]) -> None:
    """Run the driver while the test runs; it must be cancelled as any task is, and leave nothing behind."""

    async def run() -> None:
        running = asyncio.ensure_future(bench.driver.run())
        try:
            await test()
            assert not running.done()
        finally:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert not others

    asyncio.run(run())


def test_what_is_read_goes_on_as_it_came_with_its_time_and_topics(name: str, rig: Rig) -> None:
    bench = Bench(name, rig.options)

    async def test() -> None:
        for delivery in await bench.hear(rig):
            assert delivery.payloads
            assert all(isinstance(payload, bytes) and payload for payload in delivery.payloads)
            assert delivery.arrived_ns == NOW_NS
            if delivery.topics is not None:
                assert len(delivery.topics) == len(delivery.payloads)
                assert bench.driver.origin(delivery.topics[0]) is not None
            if delivery.marks is not None:
                assert len(delivery.marks.packet_ids) == len(delivery.marks.dups) == len(delivery.payloads)
        status = bench.driver.status
        assert (status.state, status.error) == ("open", "")
        assert status.messages > 0
        assert status.bytes_in > 0

    drive(bench, test)


def test_a_paused_driver_delivers_nothing_and_goes_on_when_resumed(name: str, rig: Rig) -> None:
    bench = Bench(name, rig.options)

    async def test() -> None:
        await bench.hear(rig)
        bench.driver.pause()
        bench.driver.pause()
        await asyncio.to_thread(rig.produce)
        await asyncio.sleep(0)
        before = len(bench.deliveries)
        await asyncio.sleep(QUIET_S)
        assert len(bench.deliveries) == before
        assert bench.driver.status.state == "paused"
        bench.driver.resume()
        bench.driver.resume()
        await bench.hear(rig)
        assert bench.driver.status.state == "open"

    drive(bench, test)


def test_a_driver_that_is_paused_before_it_runs_waits(name: str, rig: Rig) -> None:
    bench = Bench(name, rig.options)
    bench.driver.pause()

    async def test() -> None:
        await asyncio.sleep(QUIET_S)
        assert not bench.deliveries
        bench.driver.resume()
        await bench.hear(rig)

    drive(bench, test)


def test_a_source_that_is_not_there_is_a_sentence_and_never_raised(name: str, rig: Rig) -> None:
    if rig.absent is None:
        pytest.skip(f"{name} is always there")
    bench = Bench(name, rig.absent)

    async def test() -> None:
        await until(lambda: bench.driver.status.state == "failed")
        sentence = bench.driver.status.error
        assert len(sentence.split()) >= 6
        assert "Error" not in sentence
        assert "Errno" not in sentence

    drive(bench, test)
    assert not bench.deliveries


def test_settling_after_the_end_does_nothing(name: str, rig: Rig) -> None:
    bench = Bench(name, rig.options)

    async def test() -> None:
        await bench.hear(rig)

    drive(bench, test)
    for delivery in bench.deliveries:
        if delivery.settle is not None:
            delivery.settle()


def test_a_probe_sees_what_the_driver_sees(name: str, rig: Rig) -> None:
    bench = Bench(name, rig.options, probe=True)

    async def test() -> None:
        assert await bench.hear(rig)

    drive(bench, test)


def test_unknown_options_are_refused_by_name(name: str, rig: Rig) -> None:
    with pytest.raises(ConfigError, match="unknown field `topcs`"):
        Bench(name, rig.options | {"topcs": 1})
