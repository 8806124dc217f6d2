"""The MQTT source at a real mosquitto: what is not settled comes again, and what comes again counts once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from paho.mqtt import publish

from devices.drivers.mqtt import MqttDriver, MqttOptions
from devices.model import SeriesSpec
from devices.profiles import load, load_profile
from edge.intake import Drained, Intake, IntakeLimits

pytestmark = pytest.mark.real

PATIENCE = 2000
Test = Callable[[Intake], Awaitable[None]]


def options(broker: Any, **more: Any) -> MqttOptions:
    return MqttOptions(broker=broker.url, topics=["plant/{device}/{channel}"], **more)


def send(broker: Any, values: range, *, device: str = "a", qos: int = 1, **more: Any) -> None:
    """Publish whole numbers, each as a message of its own."""
    messages: list[Any] = [{"topic": f"plant/{device}/t", "payload": b"%d" % value, "qos": qos} for value in values]
    publish.multiple(messages, hostname=broker.host, port=broker.port, **more)


def run(
    settings: MqttOptions, test: Test, *, unconfirmed: bytes = b"", has_sample: bool = False, probe: bool = False
) -> None:
    """One life of the gateway: an intake with the source `plant`, until the test is over. `has_sample`: of any."""
    specs: list[SeriesSpec] = []

    def resolve(spec: SeriesSpec) -> int | str:
        for index, known in enumerate(specs):
            if known.key == spec.key:
                return index
        specs.append(spec)
        return len(specs) - 1

    async def live() -> None:
        profile = load_profile("json-value")
        codec = load("codecs", profile.codec.name)(profile.codec.options)
        limits = IntakeLimits(max_samples=2000)
        intake = Intake(limits, lambda: 1, resolve, has_sample=lambda series: has_sample, gateway="g")
        source = intake.add("plant", MqttDriver, settings, codec, profile, probe=probe)
        source.unconfirmed.restore(unconfirmed)
        running = asyncio.ensure_future(intake.run())
        try:
            await test(intake)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(live())


async def until(reached: Callable[[], Any]) -> None:
    for _ in range(PATIENCE):
        if reached():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


async def opened(intake: Intake) -> None:
    await until(lambda: intake.sources["plant"].status.state == "open")


async def take(intake: Intake, count: int) -> tuple[list[float], list[Drained]]:
    """Drain until so many samples came."""
    values: list[float] = []
    drained: list[Drained] = []

    def more() -> bool:
        drained.append(intake.drain(4096))
        values.extend(drained[-1].batch.value.tolist())
        return len(values) >= count

    await until(more)
    return values, drained


def settle(drained: list[Drained]) -> None:
    for each in drained:
        for function in each.settles:
            function()


async def nothing(intake: Intake) -> None:
    """Connect, so that the broker has a session, and go."""
    await opened(intake)
    await asyncio.sleep(0.1)


def test_what_is_published_while_the_gateway_is_away_waits_for_it(mosquitto: Callable[..., Any]) -> None:
    broker = mosquitto()
    run(options(broker), nothing)
    send(broker, range(50))

    async def test(intake: Intake) -> None:
        values, drained = await take(intake, 50)
        assert values == list(range(50))
        settle(drained)
        await until(lambda: not len(intake.sources["plant"].unconfirmed))

    run(options(broker), test)


def test_what_was_not_settled_comes_again_after_a_crash(mosquitto: Callable[..., Any]) -> None:
    broker = mosquitto()
    run(options(broker), nothing)
    send(broker, range(5))

    async def crash(intake: Intake) -> None:
        await take(intake, 5)

    async def test(intake: Intake) -> None:
        values, _ = await take(intake, 5)
        assert values == list(range(5))

    run(options(broker), crash)
    run(options(broker), test)


def test_what_was_committed_and_not_acknowledged_comes_again_and_counts_once(mosquitto: Callable[..., Any]) -> None:
    broker = mosquitto()
    run(options(broker), nothing)
    send(broker, range(5))
    stored = b""

    async def commit_and_crash(intake: Intake) -> None:
        nonlocal stored
        _, drained = await take(intake, 5)
        session = intake.sources["plant"].session
        stored = next(d.repeating[session].state() for d in reversed(drained) if d.repeating)

    async def test(intake: Intake) -> None:
        await opened(intake)
        await until(lambda: intake.sources["plant"].status.messages == 5)
        send(broker, range(5, 8))
        values, drained = await take(intake, 3)
        assert values == [5, 6, 7]
        settle(drained)
        await until(lambda: not len(intake.sources["plant"].unconfirmed))

    async def all_is_acknowledged(intake: Intake) -> None:
        await opened(intake)
        send(broker, range(9, 10))
        assert (await take(intake, 1))[0] == [9]

    run(options(broker), commit_and_crash)
    run(options(broker), test, unconfirmed=stored)
    run(options(broker), all_is_acknowledged)


def test_what_a_broker_has_forgotten_is_forgotten_with_a_commit_though_no_message_comes(
    mosquitto: Callable[..., Any],
) -> None:
    broker = mosquitto()

    async def test(intake: Intake) -> None:
        await opened(intake)
        await asyncio.sleep(0.1)
        send(broker, range(5))
        _, drained = await take(intake, 5)
        session = intake.sources["plant"].session
        assert drained[-1].repeating[session].state()
        await asyncio.to_thread(broker.kill)
        await until(lambda: intake.sources["plant"].status.state == "failed")
        await asyncio.to_thread(broker.start)
        await opened(intake)
        drained = [intake.drain(4096)]
        assert drained[0].repeating[session].state() == b""
        assert drained[0].settles, "so that it is committed"

    run(options(broker), test)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_message_that_the_broker_keeps_is_a_sample_once(mosquitto: Callable[..., Any], protocol: str) -> None:
    """It tells what a device says when it is seen for the first time, and is no news at any start after that."""
    broker = mosquitto()
    publish.single("plant/a/t", b"1", qos=1, retain=True, hostname=broker.host, port=broker.port)

    async def first(intake: Intake) -> None:
        values, drained = await take(intake, 1)
        assert values == [1]
        settle(drained)
        await until(lambda: not len(intake.sources["plant"].unconfirmed))

    async def later(intake: Intake) -> None:
        await until(lambda: intake.sources["plant"].status.messages == 1)
        publish.single("plant/a/t", b"2", qos=1, retain=True, hostname=broker.host, port=broker.port)
        values, drained = await take(intake, 1)
        assert values == [2]
        settle(drained)
        await until(lambda: not len(intake.sources["plant"].unconfirmed))

    run(options(broker, protocol=protocol), first)
    run(options(broker, protocol=protocol, client_id="another"), later, has_sample=True)


def test_a_full_intake_leaves_the_messages_at_the_broker_and_stays_connected(mosquitto: Callable[..., Any]) -> None:
    broker = mosquitto()
    run(options(broker), nothing)
    send(broker, range(6_000))

    async def test(intake: Intake) -> None:
        await until(lambda: intake.paused)
        held = intake.waiting_samples
        await asyncio.sleep(0.5)
        assert intake.waiting_samples == held < 6_000
        assert intake.sources["plant"].status.state == "paused"
        values: list[float] = []

        def more() -> bool:
            drained = intake.drain(1000)
            settle([drained])
            values.extend(drained.batch.value.tolist())
            return len(values) >= 6_000

        await until(more)
        assert values == list(range(6_000))
        assert intake.sources["plant"].status.reconnects == 0

    run(options(broker), test)


def test_a_probe_sees_messages_and_takes_none_away(mosquitto: Callable[..., Any]) -> None:
    broker = mosquitto()
    run(options(broker), nothing)

    async def look(intake: Intake) -> None:
        await opened(intake)
        await asyncio.sleep(0.1)
        send(broker, range(3))
        values, drained = await take(intake, 3)
        assert values == [0, 1, 2]
        assert not any(d.settles for d in drained)

    async def test(intake: Intake) -> None:
        assert (await take(intake, 3))[0] == [0, 1, 2]

    run(options(broker), look, probe=True)
    run(options(broker), test)


def test_a_broker_that_comes_back_is_found_again(mosquitto: Callable[..., Any]) -> None:
    broker = mosquitto()

    async def test(intake: Intake) -> None:
        await opened(intake)
        await asyncio.to_thread(broker.kill)
        await until(lambda: intake.sources["plant"].status.state == "failed")
        assert intake.sources["plant"].status.error
        await asyncio.to_thread(broker.start)
        await opened(intake)
        assert intake.sources["plant"].status.reconnects == 1
        await asyncio.sleep(0.1)
        send(broker, range(2))
        assert (await take(intake, 2))[0] == [0, 1]

    run(options(broker), test)


def test_a_refused_login_says_what_to_do_and_shows_no_password(
    mosquitto: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = mosquitto(users={"edge": "right"})
    monkeypatch.setenv("PLANT_PASSWORD", "wr0ng-s3cret")

    async def refused(intake: Intake) -> None:
        source = intake.sources["plant"]
        await until(lambda: source.status.state == "failed")
        assert "does not let user 'edge' in" in source.status.error
        assert "wr0ng" not in source.status.error

    run(options(broker, user="edge", password_env="PLANT_PASSWORD"), refused)
    monkeypatch.setenv("PLANT_PASSWORD", "right")
    run(options(broker, user="edge", password_env="PLANT_PASSWORD"), nothing)


def test_messages_below_quality_1_need_no_acknowledgement(mosquitto: Callable[..., Any]) -> None:
    broker = mosquitto()

    async def test(intake: Intake) -> None:
        await opened(intake)
        await asyncio.sleep(0.1)
        send(broker, range(3), qos=0)
        values, drained = await take(intake, 3)
        assert values == [0, 1, 2]
        assert not any(d.settles or d.repeating for d in drained)

    run(options(broker, qos=0), test)
    run(options(broker), test)


@pytest.mark.parametrize(
    "wrong",
    [
        {"topics": []},
        {"topics": ["a/{dev}"]},
        {"topics": ["a/{device}", "a/#"]},
        {"receive_maximum": 0},
        {"receive_maximum": 70_000},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        MqttOptions(**({"broker": "mqtt://127.0.0.1", "topics": ["a/{device}"]} | wrong))
