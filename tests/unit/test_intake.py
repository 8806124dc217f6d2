"""From deliveries to batches: what becomes a sample, what is counted, and what bounds it all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.drivers import Delivery, Marks, SourceStatus
from devices.drivers.templates import TopicTemplate
from devices.model import SeriesSpec
from devices.profiles import Profile, load, load_profile
from edge.intake import DEAD_LETTER_BYTES, DEAD_LETTERS_A_MINUTE, Intake, IntakeLimits, Source

NOW_NS = 1_700_000_000_000_000_000


class Fake:
    """A driver whose deliveries the test makes. `options` are its topic templates; None: a stream."""

    def __init__(
        self,
        device: str,
        options: list[str] | None,
        deliver: Callable[[Delivery], None],
        now_ns: Callable[[], int],
        *,
        probe: bool = False,
    ) -> None:
        self.deliver = deliver
        self.status = SourceStatus(state="open")
        self.stream = options is None
        self.paused = False
        self.calls: list[str] = []
        if options:
            templates = [TopicTemplate(text) for text in options]
            self.origin = lambda topic: next((m for t in templates if (m := t.match(topic))), None)

    async def run(self) -> None:
        await asyncio.Event().wait()

    def pause(self) -> None:
        self.paused = True
        self.calls.append("pause")

    def resume(self) -> None:
        self.paused = False
        self.calls.append("resume")


class World:
    """An intake with a registry of its own."""

    def __init__(self, limits: IntakeLimits | None = None, max_series: int = 1000) -> None:
        self.specs: list[SeriesSpec] = []
        self.max_series = max_series
        self.intake = Intake(limits or IntakeLimits(), lambda: NOW_NS, self.resolve)

    def resolve(self, spec: SeriesSpec) -> int | str:
        for index, known in enumerate(self.specs):
            if known.key == spec.key:
                return index
        if len(self.specs) >= self.max_series:
            return "series_limit"
        self.specs.append(spec)
        return len(self.specs) - 1

    def add(self, name: str, profile: Profile, topics: list[str] | None = None) -> tuple[Source, Fake]:
        codec = load("codecs", profile.codec.name)(profile.codec.options)
        source = self.intake.add(name, Fake, topics, codec, profile)
        return source, source.driver

    def take(self) -> tuple[list[tuple[str, str, float]], dict[tuple[Any, str], int]]:
        """((device, channel, value) of every sample, rejects by name)"""
        drained = self.intake.drain(1_000_000)
        samples = [
            (self.specs[i].device, self.specs[i].channel, value)
            for i, value in zip(drained.batch.series.tolist(), drained.batch.value.tolist(), strict=True)
        ]
        names = {
            (account if isinstance(account, str) else self.specs[account].channel, reason): count
            for (account, reason), count in drained.rejects.items()
        }
        return samples, names


@pytest.fixture
def profile(tmp_path: Path) -> Callable[[str, str], Profile]:
    """A function that makes a profile from its codec's keys and its channels."""

    def make(codec: str, channels: str) -> Profile:
        path = tmp_path / "p.toml"
        path.write_text(f'name = "p"\nversion = "1"\n[codec]\n{codec}\n{channels}')
        return load_profile(str(path))

    return make


JSON = 'name = "json"'
ANY = '[channel."*"]'


def test_one_value_a_message_is_a_sample_of_the_topics_device_and_channel(
    profile: Callable[[str, str], Profile],
) -> None:
    world = World()
    _, fake = world.add("plant", profile(f'{JSON}\nvalue = "v"', ANY), ["plant/{device}/{channel}"])
    fake.deliver(Delivery([b'{"v": 1.5}', b"2", b'{"v": true}'], ["plant/a/t", "plant/b/t", "plant/a/on"], NOW_NS))
    assert world.take() == ([("a", "t", 1.5), ("b", "t", 2.0), ("a", "on", 1.0)], {})


@pytest.mark.parametrize(
    ("template", "topic", "payload", "expected"),
    [
        ("{device}/telemetry", "a/telemetry", b'{"t": 1, "m": {"rpm": 2}}', [("a", "t", 1.0), ("a", "m.rpm", 2.0)]),
        ("lab/{channel}", "lab/t", b'{"in": 1, "out": 2}', [("src", "t.in", 1.0), ("src", "t.out", 2.0)]),
        ("all/#", "all/x/y", b'{"t": 1}', [("src", "t", 1.0)]),
        ("{device}/{channel}", "a/b", b'{"v": 1}', [("a", "b.v", 1.0)]),
    ],
)
def test_what_the_topic_does_not_name_is_named_by_source_and_codec(
    profile: Callable[[str, str], Profile],
    template: str,
    topic: str,
    payload: bytes,
    expected: list[tuple[str, str, float]],
) -> None:
    world = World()
    _, fake = world.add("src", profile(JSON, ANY), [template])
    fake.deliver(Delivery([payload], [topic], NOW_NS))
    assert world.take() == (expected, {})


def test_a_single_value_that_nobody_names_is_the_channel_value(profile: Callable[[str, str], Profile]) -> None:
    world = World()
    _, fake = world.add("src", profile(f'{JSON}\nvalue = "v"', ANY), ["{device}"])
    fake.deliver(Delivery([b"3"], ["a"], NOW_NS))
    assert world.take() == ([("a", "value", 3.0)], {})


def test_scale_mapping_bits_and_source_keys_are_applied(profile: Callable[[str, str], Profile]) -> None:
    channels = """
[channel.temperature]
source = "t.raw"
scale = 0.1
offset = -40
[channel.mode]
kind = "state"
mapping = { run = 1, off = 0 }
[channel.fault]
kind = "state"
source = "word"
bit = 3
[channel.open]
kind = "state"
source = "word"
bit = 0
"""
    world = World()
    _, fake = world.add("d", profile(JSON, channels))
    fake.deliver(Delivery([b'{"t": {"raw": 612}, "mode": "run", "word": 8}\n'], arrived_ns=NOW_NS))
    samples, rejects = world.take()
    assert samples == [
        ("d", "temperature", pytest.approx(21.2)),
        ("d", "mode", 1.0),
        ("d", "fault", 1.0),
        ("d", "open", 0.0),
    ]
    assert rejects == {}


def test_a_text_without_mapping_is_counted_and_the_rest_of_its_message_stored(
    profile: Callable[[str, str], Profile],
) -> None:
    channels = '[channel.t]\n[channel.mode]\nkind = "state"\nmapping = { run = 1 }'
    world = World()
    _, fake = world.add("d", profile(JSON, channels))
    fake.deliver(Delivery([b'{"mode": "stolen", "t": 4, "nobody": 1}\n'], arrived_ns=NOW_NS))
    drained = world.intake.drain(10)
    assert drained.batch.value.tolist() == [4.0]
    assert drained.rejects == {(0, "unmapped"): 1, ("d", "unknown_channel"): 1}
    assert [(d.source, d.reason, d.payload) for d in drained.dead_letters] == [("d", "unmapped", b"stolen")]


def test_numbers_that_are_none_are_counted_as_nonfinite(profile: Callable[[str, str], Profile]) -> None:
    world = World()
    bits = '[channel.a]\n[channel.bit]\nkind = "state"\nbit = 1\n'
    _, fake = world.add("d", profile('name = "delimited"\ncolumns = ["a", "bit"]', bits))
    fake.deliver(Delivery([b"\nnan,inf\n1,2\n"], arrived_ns=NOW_NS))
    assert world.take() == ([("d", "a", 1.0), ("d", "bit", 1.0)], {("a", "nonfinite"): 1, ("bit", "nonfinite"): 1})


def test_more_series_than_the_limit_are_counted_and_take_no_memory(profile: Callable[[str, str], Profile]) -> None:
    world = World(IntakeLimits(max_routes=8), max_series=2)
    source, fake = world.add("plant", profile(f'{JSON}\nvalue = "v"', ANY), ["{device}/{channel}"])
    for i in range(50):
        fake.deliver(Delivery([b"1"], [f"a/c{i}"], NOW_NS))
    samples, rejects = world.take()
    assert samples == [("a", "c0", 1.0), ("a", "c1", 1.0)]
    assert rejects == {("a", "series_limit"): 48}
    assert len(source.router.singles) + len(source.router.topics) + len(source.router.detours) <= 10


def test_huge_topics_and_keys_are_counted_and_take_no_memory(profile: Callable[[str, str], Profile]) -> None:
    world = World()
    source, fake = world.add("plant", profile(JSON, "[channel.t]"), ["{device}/#"])
    huge = "x" * 60_000
    fake.deliver(Delivery([b'{"t": 1}'] * 20, [f"d/{n}/{huge}" for n in range(20)], NOW_NS))
    fake.deliver(Delivery([b'{"no": 1}'] * 20, [f"{n}{huge}/x" for n in range(20)], NOW_NS))
    assert world.take() == ([("d", "t", 1.0)] * 20, {("plant", "unknown_channel"): 20})
    kept = [*source.router.topics, *(device for device, _ in source.router._devices)]
    assert max(map(len, kept)) < 1000


def test_a_word_of_bits_is_known_by_one_route_even_where_no_route_is_kept(
    profile: Callable[[str, str], Profile],
) -> None:
    bits = "".join(f'[channel.bit{n}]\nkind = "state"\nsource = "word"\nbit = {n}\n' for n in range(2))
    world = World(IntakeLimits(max_routes=0))
    source, fake = world.add("plant", profile(JSON, bits), ["{device}"])
    for _ in range(10):
        fake.deliver(Delivery([b'{"word": 2}'], ["d"], NOW_NS))
    samples, _ = world.take()
    assert samples == [("d", "bit0", 0.0), ("d", "bit1", 1.0)] * 10
    assert len(source.router.detours) == 1


def test_a_message_that_was_too_long_for_its_driver_is_rejected_and_its_neighbours_are_not(
    profile: Callable[[str, str], Profile],
) -> None:
    world = World()
    source, fake = world.add("plant", profile(f'{JSON}\nvalue = "v"', ANY), ["{device}/{channel}"])
    topics = ["d/a", "d/a", "d/b"]
    for marks in (None, Marks([1, 2, 3], [False] * 3, 1, False)):
        # The beginning of a longer number is a number.
        fake.deliver(Delivery([b"1", b"23456", b"3"], topics, NOW_NS, None, marks, {1: 2_000_000}))
        drained = world.intake.drain(100)
        assert drained.batch.value.tolist() == [1.0, 3.0]
        assert drained.rejects == {("d", "oversize"): 1}
        assert [(letter.reason, letter.payload) for letter in drained.dead_letters] == [("oversize", b"23456")]
        assert "2000000 bytes" in source.last_error


def test_a_device_without_a_series_opens_no_account_of_its_own(profile: Callable[[str, str], Profile]) -> None:
    world = World()
    _, fake = world.add("plant", profile(f'{JSON}\nvalue = "v"', "[channel.t]"), ["{device}/{channel}"])
    fake.deliver(Delivery([b"{", b"1", b"1"], ["ghost/t", "ghost/no", "real/t"], NOW_NS))
    fake.deliver(Delivery([b"{", b"1"], ["real/t", "not/ours/at/all"], NOW_NS))
    assert world.take() == (
        [("real", "t", 1.0)],
        {("plant", "malformed"): 1, ("plant", "unknown_channel"): 2, ("real", "malformed"): 1},
    )


def test_a_message_and_its_acknowledgement_are_never_parted(profile: Callable[[str, str], Profile]) -> None:
    settled: list[int] = []
    world = World()
    _, fake = world.add("plant", profile(f'{JSON}\nvalue = "v"', ANY), ["{device}/{channel}"])
    for i in range(3):
        fake.deliver(Delivery([b"1"] * 10, ["a/b"] * 10, NOW_NS + i, lambda i=i: settled.append(i)))  # type: ignore[misc]
    first, second, third = world.intake.drain(11), world.intake.drain(1), world.intake.drain(1)
    assert [len(d.batch) for d in (first, second, third)] == [20, 10, 0]
    assert first.arrived_ns.tolist() == [NOW_NS] * 10 + [NOW_NS + 1] * 10
    for drained in (first, second):
        for settle in drained.settles:
            settle()
    assert settled == [0, 1, 2]


def test_what_is_rejected_is_settled_like_what_is_stored(profile: Callable[[str, str], Profile]) -> None:
    world = World()
    _, fake = world.add("plant", profile(JSON, ANY), ["{device}"])
    fake.deliver(Delivery([b"garbage"], ["a"], NOW_NS, lambda: None))
    drained = world.intake.drain(1)
    assert len(drained.batch) == 0
    assert len(drained.settles) == 1


def test_sources_are_paused_above_the_limit_and_resumed_below_half_of_it(
    profile: Callable[[str, str], Profile],
) -> None:
    world = World(IntakeLimits(max_samples=100))
    _, one = world.add("one", profile(f'{JSON}\nvalue = "v"', ANY), ["{device}"])
    _, other = world.add("other", profile(JSON, ANY))
    for _ in range(10):
        one.deliver(Delivery([b"1"] * 10, ["a"] * 10, NOW_NS))
    assert one.paused
    assert other.paused
    world.intake.drain(40)
    assert one.paused
    world.intake.drain(10)
    assert not one.paused
    assert other.calls == ["pause", "resume"]
    world.intake.pause()
    world.intake.drain(1000)
    assert one.paused


def test_bytes_that_hold_no_sample_pause_a_babbling_device_too(profile: Callable[[str, str], Profile]) -> None:
    world = World(IntakeLimits(max_bytes=64 * 1024, message_bytes=1024))
    source, fake = world.add("d", profile(JSON, ANY))
    deliveries = 0
    while not fake.paused:
        fake.deliver(Delivery([b"\xff" * 4096], arrived_ns=NOW_NS + deliveries))
        deliveries += 1
    assert deliveries <= 16
    drained = world.intake.drain(10)
    assert drained.rejects == {("d", "oversize"): 1}
    assert "baud_rate" in source.last_error
    assert not fake.paused


def test_dead_letters_of_a_device_that_sends_only_garbage_are_bounded(profile: Callable[[str, str], Profile]) -> None:
    world = World()
    source, fake = world.add("d", profile(JSON, ANY))
    fake.deliver(Delivery([b"{" + b"x" * 4999 + b"\n"] * 100, arrived_ns=NOW_NS))
    fake.deliver(Delivery([b"x\n"] * 100, arrived_ns=NOW_NS + 3_000_000_000))
    drained = world.intake.drain(10)
    assert drained.rejects == {("d", "malformed"): 200}
    assert len(drained.dead_letters) == DEAD_LETTERS_A_MINUTE
    assert max(len(letter.payload) for letter in drained.dead_letters) <= DEAD_LETTER_BYTES
    assert "JSON" in source.last_error
    fake.deliver(Delivery([b'{"t": 1}\n'], arrived_ns=NOW_NS + 4_000_000_000))
    assert source.last_error == ""


def test_half_a_line_is_not_a_sample_and_two_halves_are_none_either(profile: Callable[[str, str], Profile]) -> None:
    world = World()
    _, fake = world.add("d", profile(JSON, ANY))
    fake.deliver(Delivery([b't": 7}\n{"t": 1}\n{"t": '], arrived_ns=NOW_NS, restart=True))
    fake.deliver(Delivery([b'2}\n{"t": 3'], arrived_ns=NOW_NS))
    fake.deliver(Delivery([b'4}\n{"t": 5}\n'], arrived_ns=NOW_NS, restart=True))
    assert world.take() == ([("d", "t", 1.0), ("d", "t", 2.0), ("d", "t", 5.0)], {})


def test_a_message_beyond_its_limit_is_oversize(profile: Callable[[str, str], Profile]) -> None:
    world = World(IntakeLimits(message_bytes=100))
    _, fake = world.add("plant", profile(JSON, ANY), ["{device}"])
    fake.deliver(Delivery([b'{"t": %d}' % 7 + b" " * 100, b'{"t": 8}'], ["a", "a"], NOW_NS))
    assert world.take() == ([("a", "t", 8.0)], {("plant", "oversize"): 1})


def test_a_message_that_the_broker_repeats_counts_once_and_is_acknowledged_again(
    profile: Callable[[str, str], Profile],
) -> None:
    world = World()
    settled: list[str] = []
    _, fake = world.add("plant", profile(f'{JSON}\nvalue = "v"', ANY), ["{device}"])

    def message(packet_id: int, dup: bool, connection: int) -> Delivery:
        marks = Marks([packet_id], [dup], connection, session_present=True)
        return Delivery([b"1"], ["a"], NOW_NS, lambda: settled.append(f"{connection}:{packet_id}"), marks)

    fake.deliver(message(1, False, 1))
    fake.deliver(message(2, False, 1))
    first = world.intake.drain(1)
    fake.deliver(message(1, True, 2))
    fake.deliver(message(2, True, 2))
    fake.deliver(message(3, False, 2))
    second = world.intake.drain(10)
    assert [len(first.batch), len(second.batch)] == [1, 2]
    for settle in [*first.settles, *second.settles]:
        settle()
    assert settled == ["1:1", "1:2", "2:1", "2:2", "2:3"]
    assert set(first.repeating) == {"plant"}


def test_who_watches_sees_raw_bytes_values_and_the_last_error(profile: Callable[[str, str], Profile]) -> None:
    world = World()
    _, fake = world.add("d", profile(JSON, ANY))

    async def watch() -> list[dict[str, Any]]:
        records = world.intake.watch("d")
        first = asyncio.ensure_future(anext(records))
        await asyncio.sleep(0)
        fake.deliver(Delivery([b'{"t": 1}\n\xff\x00oops\n'], arrived_ns=NOW_NS))
        seen = [await first]
        await records.aclose()
        return seen

    (record,) = asyncio.run(watch())
    assert record["text"] == '{"t": 1}\n\\xff\x00oops\n'
    assert record["hex"].startswith("7b 22 74")
    assert record["values"] == [{"device": "d", "channel": "t", "time_ns": 0, "value": 1.0}]
    assert record["rejected"] == {"malformed": 1}
    assert "not the JSON" in record["error"]
    assert record["state"] == "open"


def test_a_driver_that_raises_does_not_take_the_others_along(
    profile: Callable[[str, str], Profile], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    source, broken = world.add("broken", profile(JSON, ANY))
    _, good = world.add("good", profile(JSON, ANY))

    async def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(broken, "run", fail)

    async def run() -> None:
        running = asyncio.create_task(world.intake.run())
        for _ in range(5):
            await asyncio.sleep(0)
        good.deliver(Delivery([b'{"t": 1}\n'], arrived_ns=NOW_NS))
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
    assert "RuntimeError: a bug" in source.last_error
    assert len(world.intake.drain(1).batch) == 1


def test_times_of_the_payload_are_kept_and_missing_ones_are_left_to_admission(
    profile: Callable[[str, str], Profile],
) -> None:
    world = World()
    _, fake = world.add("d", profile(f'{JSON}\ntime = "at"', ANY))
    fake.deliver(Delivery([b'{"t": 1, "at": 1731405912}\n{"t": 1}\n'], arrived_ns=NOW_NS))
    drained = world.intake.drain(10)
    assert drained.batch.time_ns.tolist() == [1_731_405_912_000_000_000, 0]
    assert drained.batch.series.dtype == np.int32


def test_what_a_sender_had_kept_is_a_sample_only_with_its_own_time_or_as_the_first_of_its_series(
    profile: Callable[[str, str], Profile],
) -> None:
    world = World()
    world.intake = Intake(IntakeLimits(), lambda: NOW_NS, world.resolve, has_sample=lambda series: series in seen)
    seen: set[int] = set()
    _, fake = world.add("plant", profile(f'{JSON}\nvalue = "v"\ntime = "at"', ANY), ["{device}/{channel}"])
    settled: list[int] = []

    def kept() -> Delivery:
        payloads = [b'{"v": 1}', b'{"v": 2}', b'{"v": 3, "at": 1700000000}']
        marks = Marks([1, 2, 3], [False] * 3, 1, True)
        return Delivery(payloads, ["a/on", "a/t", "a/t"], NOW_NS, lambda: settled.append(1), marks, retained={0, 2})

    fake.deliver(kept())
    assert world.take() == ([("a", "on", 1.0), ("a", "t", 3.0), ("a", "t", 2.0)], {})
    seen |= {0, 1}
    fake.deliver(kept())
    drained = world.intake.drain(10)
    assert drained.batch.value.tolist() == [3.0, 2.0]
    assert not drained.rejects
    for settle in drained.settles:
        settle()
    assert settled == [1]


def test_bits_that_a_sender_had_kept_are_no_news_either(profile: Callable[[str, str], Profile]) -> None:
    world = World()
    seen: set[int] = set()
    world.intake = Intake(IntakeLimits(), lambda: NOW_NS, world.resolve, has_sample=lambda series: series in seen)
    bits = '[channel.on]\nkind = "state"\nsource = "w"\nbit = 0\n[channel.bad]\nkind = "state"\nsource = "w"\nbit = 1'
    _, fake = world.add("plant", profile(JSON, bits), ["{device}"])
    fake.deliver(Delivery([b'{"w": 2}'], ["a"], NOW_NS, retained={0}))
    assert world.take()[0] == [("a", "on", 0.0), ("a", "bad", 1.0)]
    seen |= {0, 1}
    fake.deliver(Delivery([b'{"w": 2}', b'{"w": 1}'], ["a", "a"], NOW_NS, retained={0}))
    assert world.take()[0] == [("a", "on", 1.0), ("a", "bad", 0.0)]


def test_what_a_sender_has_forgotten_is_forgotten_with_a_commit_of_its_own(
    profile: Callable[[str, str], Profile],
) -> None:
    world = World()
    source, fake = world.add("plant", profile(f'{JSON}\nvalue = "v"', ANY), ["{device}"])

    def forgotten(connection: int) -> Delivery:
        return Delivery([], [], NOW_NS, lambda: None, Marks([], [], connection, session_present=False))

    fake.deliver(forgotten(1))
    assert not world.intake.drain(10).settles, "there is nothing to forget"
    fake.deliver(Delivery([b"1"], ["a"], NOW_NS, lambda: None, Marks([1], [False], 1, session_present=False)))
    assert world.intake.drain(10).repeating["plant"].state()
    fake.deliver(forgotten(2))
    drained = world.intake.drain(10)
    assert drained.settles
    assert drained.repeating["plant"].state() == b""
    assert source.last_arrival_ns == NOW_NS


def test_a_source_of_another_name_knows_what_its_senders_session_repeats(
    profile: Callable[[str, str], Profile],
) -> None:
    """After a restart, where the store of before has it by the source's name, too; and with a reload."""
    made = profile(f'{JSON}\nvalue = "v"', ANY)

    class Named(Fake):
        session_name = "mqtt://broker plant-x"

    def once(dup: bool, connection: int = 1) -> Delivery:
        return Delivery([b"1"], ["a"], NOW_NS, lambda: None, Marks([1], [dup], connection, session_present=True))

    def listening(world: World, name: str) -> tuple[Source, Any]:
        codec = load("codecs", made.codec.name)(made.codec.options)
        source = world.intake.build(name, Named, ["{device}"], codec, made, IntakeLimits())
        return source, source.driver

    first = World()
    source, driver = listening(first, "plant")
    first.intake.add_built(source)
    driver.deliver(once(False))
    ((session, unconfirmed),) = first.intake.drain(10).repeating.items()
    assert session == "mqtt://broker plant-x"

    for key in (session, "plant_north"):
        restarted = World()
        restarted.intake.unconfirmed = {key: unconfirmed.state()}
        source, driver = listening(restarted, "plant_north")
        restarted.intake.add_built(source)
        driver.deliver(once(True))
        assert not len(restarted.intake.drain(10).batch)

    async def reload() -> None:
        running = asyncio.ensure_future(first.intake.run())
        await asyncio.sleep(0)
        renamed, driver = listening(first, "plant_north")
        await first.intake.replace([renamed], IntakeLimits())
        driver.deliver(once(True))
        assert not len(first.intake.drain(10).batch)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(reload())


def test_the_end_of_a_number_is_not_a_sample(profile: Callable[[str, str], Profile]) -> None:
    world = World()
    _, fake = world.add("d", profile(f'{JSON}\nvalue = "value"', ANY))
    fake.deliver(Delivery([b"2.5\n13.5\n"], arrived_ns=NOW_NS, restart=True))
    fake.deliver(Delivery([b'2.5\n{"value": 14.5}\n'], arrived_ns=NOW_NS, restart=True))
    fake.deliver(Delivery([b'{"value": 15.5}\n'], arrived_ns=NOW_NS, restart=True))
    assert world.take() == ([("d", "value", 13.5), ("d", "value", 14.5), ("d", "value", 15.5)], {})


def test_channels_that_the_profile_lacks_are_named_in_the_log_each_once_and_not_for_ever(
    profile: Callable[[str, str], Profile], caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    _, fake = world.add("plant", profile(JSON, "[channel.t]"), ["{device}"])
    for _ in range(2):
        for n in range(30):
            fake.deliver(Delivery([b'{"t": 1, "odd%d": 2}' % n], ["unk"], NOW_NS))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 10
    assert "profile p@1 has no channel 'odd0', which device 'unk' sends" in said[0]
    assert "no more such channels" in said[-1]
