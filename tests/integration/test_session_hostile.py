"""A session against brokers that refuse, break the protocol or fall silent: scripted servers on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from devices.errors import (
    ConfigError,
    ForebayError,
    HostUnknown,
    IdentityTaken,
    LinkLost,
    LoginRefused,
    NoAnswer,
    Unreachable,
)
from devices.wire import session as session_module
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions

ACCEPTED = b"\x20\x03\x00\x00\x00"
PINGREQ, PINGRESP = b"\xc0\x00", b"\xd0\x00"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def packet(reader: asyncio.StreamReader) -> bytes:
    """One packet of a client's (all are shorter than 128 bytes here)."""
    head = await reader.readexactly(2)
    return head + await reader.readexactly(head[1])


@asynccontextmanager
async def broker(script: Script) -> AsyncIterator[str]:
    """A server that runs `script` for each connection; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await script(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def answering(*answers: bytes) -> Script:
    """Answers CONNECT with the first and goes on; then waits for the client to leave."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        for answer in answers:
            writer.write(answer)
            await writer.drain()
        await reader.read()

    return script


class Peer:
    """A session with everything that it said."""

    def __init__(self, url: str, rand: Callable[[], float] = lambda: 1.0, **options: Any) -> None:
        self.failures: list[ForebayError] = []
        self.inbound: list[Inbound] = []
        self.confirmed: list[tuple[int, int]] = []
        self.failed = asyncio.Event()
        self.session = Session(
            SessionOptions(broker=url, client_id="pump-7", **options),
            on_messages=self.inbound.append,
            on_connect=lambda _present: None,
            on_disconnect=self._on_disconnect,
            on_published=lambda _mid, _reason: None,
            on_confirmed=lambda connection, count: self.confirmed.append((connection, count)),
            rand=rand,
        )

    def _on_disconnect(self, failure: ForebayError) -> None:
        self.failures.append(failure)
        self.failed.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Session]:
        task = asyncio.create_task(self.session.run())
        try:
            yield self.session
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def first_failure(self) -> ForebayError:
        async with self.running():
            await asyncio.wait_for(self.failed.wait(), 20)
        return self.failures[0]


async def failure_of(script: Script, **options: Any) -> ForebayError:
    async with broker(script) as url:
        return await Peer(url, **options).first_failure()


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (0x84, Unreachable, 'protocol = "3.1.1"'),
        (0x85, LoginRefused, "choose another client_id"),
        (0x86, LoginRefused, "user name or password of user 'edge'"),
        (0x87, LoginRefused, "does not let user 'edge' in"),
        (0x88, Unreachable, "tried again"),
        (0x89, Unreachable, "busy"),
        (0x8A, LoginRefused, "banned"),
        (0x97, Unreachable, "full"),
        (0x9B, Unreachable, "QoS 1"),
        (0x80, Unreachable, "Unspecified error"),
    ],
)
def test_each_refusal_of_mqtt_5_says_what_to_do(code: int, kind: type[ForebayError], says: str) -> None:
    failure = asyncio.run(failure_of(answering(bytes([0x20, 3, 0, code, 0])), username="edge"))
    assert type(failure) is kind
    assert says in str(failure)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(1, Unreachable), (2, LoginRefused), (3, Unreachable), (4, LoginRefused), (5, LoginRefused)],
)
def test_each_refusal_of_mqtt_3_is_told_as_its_kind(code: int, kind: type[ForebayError]) -> None:
    failure = asyncio.run(failure_of(answering(bytes([0x20, 2, 0, code])), protocol="3.1.1"))
    assert type(failure) is kind


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (0x8E, IdentityTaken, "as 'pump-7': two gateways"),
        (0x8B, LinkLost, "shutting down"),
        (0x95, LinkLost, "max_packet_size"),
        (0x98, LinkLost, "administrator"),
        (0x87, LoginRefused, "ACL"),
        (0x97, LinkLost, "quotas"),
    ],
)
def test_each_goodbye_of_the_broker_is_told(code: int, kind: type[ForebayError], says: str) -> None:
    failure = asyncio.run(failure_of(answering(ACCEPTED + bytes([0xE0, 1, code]))))
    assert type(failure) is kind
    assert says in str(failure)


@pytest.mark.parametrize(
    ("answer", "says", "goodbye"),
    [
        (ACCEPTED + b"\x34\x07\x00\x01t\x00\x01\x00x", "QoS 2", 0x83),
        (ACCEPTED + b"\x32\xff\xff\xff\x7f", "more than max_packet_bytes", 0x95),
        (ACCEPTED + b"\x30\x07\x00\x01t\x03\x23\x00\x01", "topic alias", 0x94),
        (ACCEPTED + b"\x90\x01\x00", "broken packet of type 9", 0x81),
        (ACCEPTED + b"\xf0\x00", "not MQTT|closed by it", None),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100), "is this the address of an MQTT broker", None),
        (b"\x30\x04\x00\x01t\x00", "another packet|before the connection was accepted", None),
        (b"\x20\x03\x00\xff\x00", "broken packet of type 2", None),
    ],
)
def test_a_broker_that_breaks_the_protocol_is_left_with_a_reason(answer: bytes, says: str, goodbye: int | None) -> None:
    said = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(answer)
        said.append(await reader.read())

    failure = asyncio.run(failure_of(script))
    assert isinstance(failure, LinkLost)
    assert any(words in str(failure) for words in says.split("|")), failure
    if goodbye is not None:
        assert said[0] == bytes([0xE0, 1, goodbye])


def test_messages_before_a_goodbye_are_handed_on_first() -> None:
    async def story() -> None:
        async with broker(answering(ACCEPTED + b"\x32\x08\x00\x01t\x00\x05\x00hi" + b"\xe0\x01\x8b")) as url:
            peer = Peer(url)
            await peer.first_failure()
            assert [inbound.payloads for inbound in peer.inbound] == [[b"hi"]]
            assert peer.inbound[0].connection == 1

    asyncio.run(story())


def test_a_refused_subscription_is_said_and_the_link_stays() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(ACCEPTED)
        subscribe = await packet(reader)
        writer.write(b"\x90\x05" + subscribe[2:4] + b"\x00\x87\x01")
        writer.write(b"\x30\x06\x00\x01t\x00hi")
        await reader.read()

    async def story() -> None:
        async with broker(script) as url:
            peer = Peer(url, username="edge")
            peer.session.subscribe([("secret/#", 1), ("t", 1)])
            async with peer.running() as session:
                while not peer.inbound:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert "refuses the subscription to secret/#: let its ACL allow user 'edge'" in session.error
                assert session.connected

    asyncio.run(asyncio.wait_for(story(), 20))


def test_a_server_that_takes_the_connection_and_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "CONNECT_TIMEOUT_S", 0.2)
    failure = asyncio.run(failure_of(answering()))
    assert isinstance(failure, NoAnswer)


def test_an_unknown_host_and_a_closed_port_are_told_apart(free_port: Callable[[], int]) -> None:
    async def story() -> None:
        assert isinstance(await Peer("mqtt://no-such-host.invalid").first_failure(), HostUnknown)
        refused = await Peer(f"mqtt://127.0.0.1:{free_port()}").first_failure()
        assert isinstance(refused, Unreachable)
        assert "does the broker run" in str(refused)

    asyncio.run(story())


def test_a_password_file_that_is_missing_is_a_failure_and_not_the_end() -> None:
    async def story() -> None:
        peer = Peer("mqtt://127.0.0.1:1", username="edge", password_file="/nowhere/password")
        failure = await peer.first_failure()
        assert isinstance(failure, ConfigError)
        assert "/nowhere/password" in str(failure)

    asyncio.run(story())


def test_the_event_loop_runs_on_while_a_server_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # a TLS handshake that is never answered

    async def story() -> None:
        async with broker(script) as url:
            peer = Peer(url.replace("mqtt", "mqtts"))
            ticks = 0
            async with peer.running():
                while not peer.failed.is_set():
                    await asyncio.sleep(0.01)
                    ticks += 1
            assert isinstance(peer.failures[0], Unreachable)
            assert "does not answer within" in str(peer.failures[0])
            assert ticks > 5

    monkeypatch.setattr(session_module, "CONNECT_TIMEOUT_S", 0.3)
    asyncio.run(story())


def record_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the session slept for between its links; each of those sleeps ends at once."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def recorded(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", recorded)
    return waits


def test_the_waits_between_attempts_double_up_to_their_cap_and_are_drawn_in_full(
    monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    waits = record_waits(monkeypatch)

    async def run(rand: Callable[[], float]) -> list[float]:
        waits.clear()
        peer = Peer(f"mqtt://127.0.0.1:{free_port()}", rand)
        async with peer.running():
            while len(waits) < 9:
                peer.failed.clear()
                await peer.failed.wait()
        return waits[:9]

    assert asyncio.run(run(lambda: 1.0)) == [0.5, 1, 2, 4, 8, 15, 15, 15, 15]
    assert asyncio.run(run(lambda: 0.25)) == [0.125, 0.25, 0.5, 1, 2, 3.75, 3.75, 3.75, 3.75]


def test_a_link_that_is_refused_at_once_does_not_count_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = record_waits(monkeypatch)

    async def story() -> None:
        async with broker(answering(ACCEPTED + b"\xe0\x01\x8e")) as url:
            peer = Peer(url)
            async with peer.running():
                while len(waits) < 4:
                    peer.failed.clear()
                    await peer.failed.wait()

    asyncio.run(story())
    assert waits[:4] == [0.5, 1, 2, 4]


def test_one_ping_at_a_time_asks_for_the_acknowledgements_before_it() -> None:
    """The broker answers the first ping only after three acknowledgements; the next ping covers the other two."""
    seen = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(ACCEPTED)
        for n in (1, 2, 3):
            writer.write(bytes([0x32, 7, 0, 1, 0x74, 0, n, 0, 0x30 + n]))
            await writer.drain()
            seen.append(await packet(reader))
            if n == 1:
                seen.append(await packet(reader))
        writer.write(PINGRESP)
        seen.append(await packet(reader))
        writer.write(PINGRESP)
        await reader.read()

    async def story() -> None:
        async with broker(script) as url:
            peer = Peer(url)
            take = peer.inbound.append

            def on_messages(inbound: Inbound) -> None:
                take(inbound)
                peer.session.acknowledge(inbound.packet_ids, inbound.connection)

            peer.session._client._on_batch = on_messages
            async with peer.running():
                while len(peer.confirmed) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert peer.confirmed == [(1, 1), (1, 2)]

    asyncio.run(asyncio.wait_for(story(), 20))
    assert seen == [b"\x40\x02\x00\x01", PINGREQ, b"\x40\x02\x00\x02", b"\x40\x02\x00\x03", PINGREQ]


def test_acknowledgements_of_one_batch_leave_joined_and_in_order() -> None:
    ids = [513, 2, 65_535, 7]
    sent = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(ACCEPTED)
        sent.append(await reader.readexactly(4 * len(ids)))

    async def story() -> None:
        async with broker(script) as url:
            peer = Peer(url)
            async with peer.running() as session:
                while not session.connected:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                session.acknowledge(ids, session.connection + 1)
                session.acknowledge([], session.connection)
                session.acknowledge(ids, session.connection)
                await asyncio.wait_for(peer.failed.wait(), 20)

    asyncio.run(asyncio.wait_for(story(), 20))
    assert sent == [b"".join(b"\x40\x02" + i.to_bytes(2, "big") for i in ids)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"client_id": ""}, "client_id"),
        ({"keepalive_s": 70_000}, "keepalive_s: 70000 is not between"),
        ({"receive_maximum": 0}, "receive_maximum"),
        ({"password_env": "X"}, "user: it is missing"),
        ({"ca_file": "ca.pem"}, "mqtts://"),
        ({"broker": "mqtts://h", "key_file": "k.pem"}, "cert_file"),
        ({"broker": "http://h"}, "mqtt://HOST:PORT"),
        ({"broker": "mqtt://h:99999"}, "mqtt://HOST:PORT"),
        ({"broker": "mqtt://user:hunter2@h"}, "user, password_file"),
    ],
)
def test_options_that_can_never_work_are_refused_by_their_key(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Session(
            SessionOptions(**{"broker": "mqtt://h", "client_id": "c", **options}),
            on_messages=lambda _inbound: None,
            on_connect=lambda _present: None,
            on_disconnect=lambda _failure: None,
            on_published=lambda _mid, _reason: None,
        )
    assert says in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_subscriptions_at_qos_2_are_not_made() -> None:
    async def story() -> None:
        with pytest.raises(ValueError, match="QoS 0 or 1"):
            Peer("mqtt://127.0.0.1").session.subscribe([("t", 2)])

    asyncio.run(story())


def test_a_subscription_that_was_not_answered_is_made_again_in_the_same_session() -> None:
    """MQTT 3.1.1: the broker has the session, and perhaps not what was asked for in it."""
    asked: list[int] = []
    asked_again = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(bytes([0x20, 2, min(len(asked), 1), 0]))
        asked.append((await packet(reader))[0])
        if len(asked) == 2:
            asked_again.set()
            await reader.read()

    async def test() -> None:
        async with broker(script) as url:
            peer = Peer(url, lambda: 0.01, protocol="3.1.1")
            peer.session.subscribe([("plant/#", 1)])
            async with peer.running():
                await asyncio.wait_for(asked_again.wait(), 20)
        assert asked == [0x82, 0x82]

    asyncio.run(test())
