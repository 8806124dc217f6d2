"""Channels that the configuration names are missed before they ever spoke."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.model import SECOND_NS, SampleBatch
from edge.clock import Clock
from edge.config import EdgeConfig, load_config
from edge.expected import expect
from edge.operators import Operators
from edge.parts import History, Parts
from edge.recovery import recover
from edge.registry import Registry
from edge.storethread import StoreThread
from simulators.virtual import Thread, VirtualLoop
from tests.unit.test_pump import T0_NS, Feed, Loopback
from tests.unit.test_recovery import assert_same, no_history

SERIAL = 'driver = "serial"\nport = "/dev/null"\nprofile = "json-object"\n'
PUMP = """
[source.pump1.channel.flow]
expect_every = "2 s"
[source.pump1.channel.pressure]
expect_every = "2 s"
"""


def configured(folder: Path, sources: str) -> EdgeConfig:
    path = folder / "gateway.toml"
    store = f'[store]\npath = "{folder}/edge.db"\nmax_size = "8 MiB"\n'
    path.write_text(f'gateway = "g1"\n[uplink]\nbroker = "mqtt://127.0.0.1"\n{store}{sources}')
    return load_config(path)


def expected(folder: Path, source: str) -> list[tuple[str, str]]:
    operators = Operators(no_history)
    expect(Registry(operators, 10), configured(folder, source).source.values())
    return [(spec.device, spec.channel) for spec in operators.specs]


def test_the_named_channels_of_a_serial_device_are_expected(tmp_path: Path) -> None:
    assert expected(tmp_path, f"[source.pump1]\n{SERIAL}{PUMP}") == [("pump1", "flow"), ("pump1", "pressure")]


def test_patterns_and_channels_that_need_not_speak_are_not_expected(tmp_path: Path) -> None:
    channels = '[source.pump1.channel."core_*"]\nexpect_every = "2 s"\n[source.pump1.channel.flow]\nunit = "l/s"\n'
    assert expected(tmp_path, f"[source.pump1]\n{SERIAL}{channels}") == []


@pytest.mark.parametrize(
    ("topics", "count"),
    [('["plant/pump1/{channel}"]', 2), ('["plant/{device}/{channel}"]', 0), ('["pump1/a/#", "{device}/b"]', 0)],
)
def test_topics_that_name_devices_make_nobody_expected(tmp_path: Path, topics: str, count: int) -> None:
    mqtt = f'driver = "mqtt"\nbroker = "mqtt://127.0.0.1"\ntopics = {topics}\nprofile = "json-value"\n'
    assert len(expected(tmp_path, f"[source.pump1]\n{mqtt}{PUMP}")) == count


class Gateway:
    """The edge's parts on virtual time, their sources given by a configuration; nothing speaks by itself."""

    def __init__(self, config: EdgeConfig) -> None:
        def elapsed_ns() -> int:
            return round(asyncio.get_running_loop().time() * SECOND_NS)

        history = History()
        self.recovered = recover(Path(config.store.path), config.store.max_size, history)
        self.operators = self.recovered.operators
        thread: Any = Thread(lambda _: True, lambda: 0.001)
        clock = Clock(lambda: T0_NS + elapsed_ns(), elapsed_ns)
        self.parts = Parts(
            config, self.recovered, history, StoreThread(self.recovered.store, thread), clock, random.Random(1)
        )
        self.parts.uplink.link = Loopback()
        self.feed = Feed()
        self.begin(config)

    def begin(self, config: EdgeConfig) -> None:
        feed: Any = self.feed
        self.pump = self.parts.begin(config, feed)
        self.pumping = asyncio.ensure_future(self.pump.run())

    async def reload(self, config: EdgeConfig) -> None:
        self.pump.hand_over()
        await self.pumping
        self.begin(config)

    def speak(self, *series: int) -> None:
        n = len(series)
        times = np.zeros(n, np.int64)
        self.feed.put(SampleBatch(np.array(series, np.int32), times, np.ones(n), np.zeros(n, np.uint8)))

    @property
    def open(self) -> list[str]:
        return [f"{self.operators.specs[series].channel} {name}" for series, name in self.operators.alarms._open]


def tell(config: EdgeConfig, story: Callable[[Gateway], Coroutine[Any, Any, None]], *, crash: bool = False) -> None:
    """Run a story, and end: by `crash` without a last commit."""

    async def told() -> None:
        gateway = Gateway(config)
        try:
            await story(gateway)
            if not crash:
                gateway.pump.stop(0.0)
                await gateway.pumping
        finally:
            gateway.pumping.cancel()
            gateway.recovered.store.close()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(told())


def test_a_device_that_is_dead_from_the_start_is_silent(tmp_path: Path) -> None:
    config = configured(tmp_path, f"[source.pump1]\n{SERIAL}{PUMP}")

    async def story(gateway: Gateway) -> None:
        await asyncio.sleep(1.5)
        assert gateway.open == []
        await asyncio.sleep(3)
        assert gateway.open == ["flow device_silent"]
        gateway.speak(0, 1)
        await asyncio.sleep(1.5)
        assert gateway.open == []

    tell(config, story)


def test_one_sensor_that_is_dead_from_the_start_is_silent(tmp_path: Path) -> None:
    config = configured(tmp_path, f"[source.pump1]\n{SERIAL}{PUMP}")

    async def story(gateway: Gateway) -> None:
        for _ in range(6):
            gateway.speak(0)
            await asyncio.sleep(1)
        assert gateway.open == ["pressure silent"]

    tell(config, story)


@pytest.mark.parametrize("crash", [False, True])
def test_a_restart_finds_the_silence_as_it_was(tmp_path: Path, crash: bool) -> None:
    """From the snapshot of the end, or, after a crash, from the journal alone."""
    config = configured(tmp_path, f"[source.pump1]\n{SERIAL}{PUMP}")
    before: list[Operators] = []

    async def first(gateway: Gateway) -> None:
        await asyncio.sleep(3.5)
        assert gateway.open == ["flow device_silent"]
        before.append(gateway.operators)

    async def again(gateway: Gateway) -> None:
        assert gateway.operators.specs == before[0].specs
        assert gateway.operators.alarms.snapshot() == before[0].alarms.snapshot()
        if not crash:
            assert_same(before[0], gateway.operators)
        await asyncio.sleep(3)
        assert gateway.open == ["flow device_silent"]
        assert len(gateway.operators.specs) == 2

    tell(config, first, crash=crash)
    tell(config, again)


def test_a_name_that_was_put_right_leaves_no_alarm(tmp_path: Path) -> None:
    wrong = configured(tmp_path, f'[source.pump1]\n{SERIAL}[source.pump1.channel.folw]\nexpect_every = "2 s"\n')
    right = configured(tmp_path, f'[source.pump1]\n{SERIAL}[source.pump1.channel.flow]\nexpect_every = "2 s"\n')

    async def story(gateway: Gateway) -> None:
        await asyncio.sleep(4)
        assert gateway.open == ["folw silent"]
        await gateway.reload(right)
        await asyncio.sleep(1.5)
        assert gateway.open == []
        await asyncio.sleep(3)
        assert gateway.open == ["flow silent"]
        gateway.speak(1)
        await asyncio.sleep(1.5)
        assert gateway.open == []

    tell(wrong, story)


def test_a_channel_that_spoke_stays_expected_when_its_source_has_gone(tmp_path: Path) -> None:
    config = configured(tmp_path, f'[source.pump1]\n{SERIAL}[source.pump1.channel.flow]\nexpect_every = "2 s"\n')

    async def story(gateway: Gateway) -> None:
        gateway.speak(0)
        await asyncio.sleep(1)
        await gateway.reload(configured(tmp_path, f"[source.other]\n{SERIAL}"))
        await asyncio.sleep(4)
        assert gateway.open == ["flow silent"]

    tell(config, story)
