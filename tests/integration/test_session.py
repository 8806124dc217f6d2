"""One MQTT session against a real mosquitto."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from devices.errors import ForebayError, LinkLost, LoginRefused, Unreachable
from devices.wire.receive import CUT_SHORT_BYTES, Inbound
from devices.wire.session import Session, SessionOptions
from simulators.servers import Broker, Tls

pytestmark = pytest.mark.real

Mosquitto = Callable[..., Broker]
PATIENCE_S = 20.0


class Peer:
    """A session with everything that it said."""

    def __init__(self, broker: str, client_id: str, *, acknowledge: bool = True, **options: Any) -> None:
        self.inbound: list[Inbound] = []
        self.connects: list[bool] = []
        self.failures: list[ForebayError] = []
        self.published: list[tuple[int, int]] = []
        self.confirmed: list[tuple[int, int]] = []
        self.acknowledge = acknowledge
        on_confirmed = options.pop("on_confirmed", lambda connection, count: self.confirmed.append((connection, count)))
        self.session = Session(
            SessionOptions(broker=broker, client_id=client_id, **options),
            on_messages=self._on_messages,
            on_connect=self.connects.append,
            on_disconnect=self.failures.append,
            on_published=lambda mid, reason: self.published.append((mid, reason)),
            on_confirmed=on_confirmed,
            rand=lambda: 0.1,
        )

    def _on_messages(self, inbound: Inbound) -> None:
        self.inbound.append(inbound)
        if self.acknowledge:
            self.session.acknowledge([i for i in inbound.packet_ids if i], inbound.connection)

    @property
    def payloads(self) -> list[bytes]:
        return [payload for inbound in self.inbound for payload in inbound.payloads]

    @property
    def last_failure(self) -> ForebayError | None:
        return self.failures[-1] if self.failures else None

    @asynccontextmanager
    async def running(self, *, connected: bool = True) -> AsyncIterator[Session]:
        task = asyncio.create_task(self.session.run())
        try:
            if connected:
                await until(lambda: self.session.connected)
            yield self.session
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()


async def until(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not ready():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def publish(session: Session, topic: str, payload: bytes, **options: Any) -> int:
    mid = session.publish(topic, payload, **options)
    assert mid is not None
    return mid


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_messages_arrive_in_order_and_publishes_are_answered(mosquitto: Mosquitto, protocol: str) -> None:
    async def story() -> None:
        broker = mosquitto()
        reader = Peer(broker.url, "reader", protocol=protocol)
        reader.session.subscribe([("plant/+/t", 1), ("plant/+/fast", 0)])
        writer = Peer(broker.url, "writer", protocol=protocol)
        async with reader.running(), writer.running() as session:
            sent = [b"%d" % n for n in range(500)]
            mids = [await publish(session, "plant/a/t", payload) for payload in sent]
            await until(lambda: len(reader.payloads) == len(sent))
            await until(lambda: len(writer.published) == len(sent))
            await publish(session, "plant/a/fast", b"at most once", qos=0)
            await until(lambda: reader.payloads[-1] == b"at most once")
        assert reader.payloads[:-1] == sent
        assert [mid for mid, _ in writer.published[: len(sent)]] == mids
        assert {reason for _, reason in writer.published} == {0}
        assert reader.inbound[0].topics[0] == "plant/a/t"
        assert reader.inbound[-1].packet_ids[-1] == 0
        assert all(i for inbound in reader.inbound[:-1] for i in inbound.packet_ids)

    asyncio.run(story())


def test_a_session_says_when_it_last_tried_and_when_it_tries_again(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        peer = Peer(broker.url, "reader")
        assert (peer.session.tried_ago_s, peer.session.next_try_in_s) == (None, None)
        async with peer.running() as session:
            assert session.next_try_in_s is None
            assert session.tried_ago_s is not None
            broker.kill()
            await until(lambda: len(peer.failures) >= 2)
            assert session.tried_ago_s >= 0
            assert session.next_try_in_s is not None

    asyncio.run(story())


def test_correlation_data_travels_and_nobody_subscribed_is_told(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        reader = Peer(broker.url, "reader")
        writer = Peer(broker.url, "writer")
        async with reader.running(), writer.running() as session:
            await publish(session, "a/b", b"1")
            await until(lambda: [reason for _, reason in writer.published] == [0x10])
            reader.session.subscribe([("$share/group/a/b", 1)])
            await asyncio.sleep(0.1)
            await publish(session, "a/b", b"2", correlation=b"\x00\x01epoch")
            await publish(session, "a/b", b"3")
            await until(lambda: len(reader.payloads) == 2)
        assert [c for inbound in reader.inbound for c in inbound.correlations] == [b"\x00\x01epoch", None]

    asyncio.run(story())


def test_what_is_not_acknowledged_comes_again_with_its_id_and_what_is_does_not(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        first = Peer(broker.url, "reader", acknowledge=False)
        first.session.subscribe([("t", 1)])
        writer = Peer(broker.url, "writer")
        async with writer.running() as session:
            async with first.running():
                for payload in (b"1", b"2", b"3"):
                    await publish(session, "t", payload)
                await until(lambda: len(first.payloads) == 3)
                ids = [i for inbound in first.inbound for i in inbound.packet_ids]
                first.session.acknowledge(ids[:1], first.session.connection)
                await until(lambda: first.confirmed == [(1, 1)])
            second = Peer(broker.url, "reader")
            async with second.running():
                await until(lambda: len(second.payloads) == 2)
            assert second.payloads == [b"2", b"3"]
            assert [d for inbound in second.inbound for d in inbound.dups] == [True, True]
            assert [i for inbound in second.inbound for i in inbound.packet_ids] == ids[1:]
            assert second.connects == [True]
            assert second.inbound[0].session_present
            third = Peer(broker.url, "reader")
            async with third.running():
                await asyncio.sleep(0.2)
            assert third.payloads == []

    asyncio.run(story())


def test_an_acknowledgement_for_an_earlier_connection_is_not_sent(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto(persistence=True)
        reader = Peer(broker.url, "reader", acknowledge=False)
        reader.session.subscribe([("t", 1)])
        async with reader.running() as session:
            await publish(session, "t", b"1")
            await until(lambda: len(reader.payloads) == 1)
            old = reader.inbound[0]
            broker.stop()
            broker.start()
            await until(lambda: len(reader.payloads) == 2)
            session.acknowledge(old.packet_ids, old.connection)
            await asyncio.sleep(0.1)
            assert reader.confirmed == []
            assert reader.inbound[1].connection == session.connection == 2
            session.acknowledge(reader.inbound[1].packet_ids, reader.inbound[1].connection)
            await until(lambda: reader.confirmed == [(2, 1)])

    asyncio.run(story())


def test_every_acknowledgement_is_confirmed_however_fast_they_come(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        reader = Peer(broker.url, "reader")
        reader.session.subscribe([("t", 1)])
        async with reader.running() as session:
            for n in range(1000):
                await publish(session, "t", b"%d" % n)
            await until(lambda: sum(count for _, count in reader.confirmed) == 1000)
            await asyncio.sleep(0.05)
        assert sum(count for _, count in reader.confirmed) == 1000

    asyncio.run(story())


def test_filters_of_an_earlier_run_are_taken_back_and_what_waited_for_both_is_kept(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        first = Peer(broker.url, "reader")
        first.session.subscribe([("a/+", 1), ("b", 1)])
        writer = Peer(broker.url, "writer")
        async with writer.running() as session:
            async with first.running():
                await until(lambda: first.session.connected)
                await asyncio.sleep(0.1)
            await publish(session, "a/1", b"waited")
            second = Peer(broker.url, "reader")
            second.session.subscribe([("a/#", 1)])
            second.session.unsubscribe(["a/+", "b"])
            async with second.running():
                await until(lambda: second.payloads == [b"waited"])
                await asyncio.sleep(0.1)
                for topic in ("b", "a/1", "a/1/x"):
                    await publish(session, topic, topic.encode())
                await until(lambda: b"a/1/x" in second.payloads)
                assert second.payloads == [b"waited", b"a/1", b"a/1/x"]
            assert second.connects == [True]

    asyncio.run(story())


def test_a_broker_that_comes_back_with_an_old_snapshot_is_told_the_filters_of_now(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto(persistence=True)
        first = Peer(broker.url, "reader")
        first.session.subscribe([("old", 1)])
        async with first.running():
            await asyncio.sleep(0.1)
        broker.stop()  # this is the snapshot: it saves another only when it is stopped in order
        broker.start()
        reader = Peer(broker.url, "reader")
        reader.session.subscribe([("new", 1)])
        reader.session.unsubscribe(["old"])
        async with reader.running() as session:
            await publish(session, "new", b"1")
            await until(lambda: reader.payloads == [b"1"])
            broker.kill()
            await until(lambda: not session.connected)
            broker.start()
            await until(lambda: session.connected)
            await asyncio.sleep(0.1)
            await publish(session, "old", b"2")
            await publish(session, "new", b"3")
            await until(lambda: b"3" in reader.payloads)
        assert reader.payloads == [b"1", b"3"]
        assert reader.connects == [True, True]

    asyncio.run(story())


def test_a_broker_that_comes_back_empty_is_subscribed_again(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        reader = Peer(broker.url, "reader")
        reader.session.subscribe([("t", 1)])
        async with reader.running() as session:
            broker.kill()
            await until(lambda: isinstance(reader.last_failure, LinkLost))
            assert not session.connected
            assert session.publish("t", b"kept by nobody") is None
            await until(lambda: isinstance(reader.last_failure, Unreachable))
            assert "refuses the connection" in session.error
            broker.start()
            await until(lambda: session.connected)
            assert session.error == ""
            await asyncio.sleep(0.1)
            await publish(session, "t", b"after")
            await until(lambda: reader.payloads == [b"after"])
        assert reader.connects == [False, False]

    asyncio.run(story())


def test_what_was_published_into_a_dying_link_is_not_sent_again_by_itself(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto(persistence=True)
        reader = Peer(broker.url, "reader")
        reader.session.subscribe([("t", 1)])
        async with reader.running():
            writer = Peer(broker.url, "writer")
            async with writer.running() as session:
                broker.suspend()
                for _ in range(50):
                    await publish(session, "t", b"old")
                await asyncio.sleep(0.05)
                broker.kill()
                await until(lambda: not session.connected)
                broker.start()
                await until(lambda: session.connected and reader.session.connected)
                await publish(session, "t", b"new")
                await until(lambda: b"new" in reader.payloads)
                assert b"old" not in reader.payloads

    asyncio.run(story())


def test_a_paused_session_reads_nothing_and_outlives_its_keepalive(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        reader = Peer(broker.url, "reader", keepalive_s=1)
        reader.session.subscribe([("t", 1)])
        writer = Peer(broker.url, "writer")
        async with reader.running() as session, writer.running():
            session.pause()
            before = session.bytes_in
            for n in range(2000):
                await publish(writer.session, "t", b"%d" % n + bytes(500))
            await asyncio.sleep(3.2)
            assert session.bytes_in == before
            assert session.connected
            assert reader.failures == []
            assert reader.payloads == []
            session.resume()
            await until(lambda: len(reader.payloads) == 2000)
            await asyncio.sleep(1.5)
        assert reader.connects == [False]

    asyncio.run(story())


def test_a_session_that_is_paused_before_it_connects_still_connects(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        reader = Peer(broker.url, "reader")
        reader.session.subscribe([("t", 1)])
        reader.session.pause()
        async with reader.running() as session:
            await publish(session, "t", b"1")
            await asyncio.sleep(0.2)
            assert reader.payloads == []
            session.resume()
            await until(lambda: reader.payloads == [b"1"])

    asyncio.run(story())


def test_pausing_inside_a_batch_ends_the_reading_after_it(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        reader = Peer(broker.url, "reader", acknowledge=False)
        reader.session.subscribe([("t", 1)])
        writer = Peer(broker.url, "writer")
        take = reader._on_messages

        def take_one_batch(inbound: Inbound) -> None:
            take(inbound)
            reader.session.pause()

        reader.session._client._on_batch = take_one_batch
        async with reader.running() as session, writer.running():
            for _ in range(3):
                await publish(writer.session, "t", b"x")
                await until(lambda: len(writer.published) > 0)
                await asyncio.sleep(0.1)
            assert len(reader.inbound) == 1
            session.resume()
            await until(lambda: len(reader.payloads) == 3)

    asyncio.run(story())


def test_messages_that_their_taker_fails_on_come_again(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context["exception"]))
        broker = mosquitto()
        reader = Peer(broker.url, "reader")
        reader.session.subscribe([("t", 1)])
        take = reader._on_messages

        def fail_once(inbound: Inbound) -> None:
            if not raised:
                raise KeyError("a bug")
            take(inbound)

        reader.session._client._on_batch = fail_once
        writer = Peer(broker.url, "writer")  # on a link of its own, which does not end
        async with reader.running(), writer.running():
            for n in range(3):
                await publish(writer.session, "t", b"%d" % n)
            await until(lambda: len(reader.payloads) == 3)
        assert reader.payloads == [b"0", b"1", b"2"]
        assert "could not be handed on" in str(reader.failures[0])
        assert [type(error) for error in raised] == [KeyError]

    raised: list[Exception] = []
    asyncio.run(story())


def test_a_broker_that_stops_answering_is_noticed_by_its_missing_ping(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        reader = Peer(broker.url, "reader", keepalive_s=1)
        async with reader.running():
            broker.suspend()
            await until(lambda: reader.last_failure is not None)
            broker.resume()
        assert isinstance(reader.failures[0], LinkLost)
        assert "did not answer a ping within 1 s" in str(reader.failures[0])

    asyncio.run(story())


def test_a_clone_is_suspected_when_the_broker_closes_link_after_link(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        first, second = Peer(broker.url, "pump-7"), Peer(broker.url, "pump-7")
        async with first.running(), second.running():
            await until(lambda: any("(a clone)" in str(failure) for failure in first.failures + second.failures))

    asyncio.run(story())


def test_the_will_is_sent_after_a_crash_and_not_after_a_goodbye(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        reader = Peer(broker.url, "reader")
        reader.session.subscribe([("state/+", 1)])
        async with reader.running():
            leaving = Peer(broker.url, "leaving", will=("state/leaving", b"gone"), session_expiry_s=0)
            async with leaving.running():
                pass
            crashing = Peer(broker.url, "crashing", will=("state/crashing", b"gone"), session_expiry_s=0)
            async with crashing.running() as session:
                sock: Any = session._client.socket()
                sock.shutdown(2)
                await until(lambda: reader.payloads != [])
            assert [t for inbound in reader.inbound for t in inbound.topics] == ["state/crashing"]

    asyncio.run(story())


def test_acknowledgements_queued_before_the_end_still_leave(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        reader = Peer(broker.url, "reader", acknowledge=False)
        reader.session.subscribe([("t", 1)])
        async with reader.running() as session:
            await publish(session, "t", b"1")
            await until(lambda: len(reader.payloads) == 1)
            session.acknowledge(reader.inbound[0].packet_ids, 1)
        again = Peer(broker.url, "reader")
        async with again.running():
            await asyncio.sleep(0.2)
        assert again.connects == [True]
        assert again.payloads == []

    asyncio.run(story())


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_wrong_password_is_a_refused_login_and_never_shown(
    mosquitto: Mosquitto, tmp_path: Path, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        broker = mosquitto(users={"edge": "right-horse"})
        password = tmp_path / "password"
        password.write_text("wrong-horse\n")
        password.chmod(0o600)
        peer = Peer(broker.url, "edge", protocol=protocol, username="edge", password_file=str(password))
        async with peer.running(connected=False) as session:
            await until(lambda: peer.last_failure is not None)
            assert isinstance(peer.failures[0], LoginRefused)
            assert "'edge'" in session.error
            assert "wrong-horse" not in session.error + caplog.text + repr(session._options)
            password.write_text("right-horse\n")
            await until(lambda: session.connected)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(story())


def test_tls_with_a_client_certificate(mosquitto: Mosquitto, certificates: Callable[[str], Tls]) -> None:
    async def story() -> None:
        ours, theirs = certificates("pump-7"), certificates("broker")
        broker = mosquitto(tls=Tls(theirs.ca_file, theirs.cert_file, theirs.key_file, require_certificate=True))
        files = {"ca_file": str(ours.ca_file), "cert_file": str(ours.cert_file), "key_file": str(ours.key_file)}
        peer = Peer(broker.url, "pump-7", max_packet_bytes=4_000_000, **files)
        peer.session.subscribe([("t", 1)])
        async with peer.running() as session:
            large = bytes(range(256)) * 8000
            await publish(session, "t", large)
            for n in range(2000):
                await publish(session, "t", b"%d" % n)
            await until(lambda: len(peer.payloads) == 2001)
        assert peer.payloads == [large, *(b"%d" % n for n in range(2000))]
        await _expect(
            {**files, "cert_file": "", "key_file": ""}, broker.url, (LoginRefused, Unreachable), "certificate"
        )
        await _expect({**files, "ca_file": ""}, broker.url, Unreachable, "is not trusted")
        await _expect({}, broker.url.replace("mqtts", "mqtt"), Unreachable, "it may expect TLS,")

    asyncio.run(story())


def test_tls_to_a_plain_port_says_so(mosquitto: Mosquitto) -> None:
    broker = mosquitto()
    asyncio.run(_expect({}, broker.url.replace("mqtt", "mqtts"), Unreachable, "does not speak TLS"))


async def _expect(files: dict[str, str], url: str, kind: Any, says: str) -> None:
    peer = Peer(url, "pump-8", **files)
    async with peer.running(connected=False):
        await until(lambda: peer.last_failure is not None)
    assert isinstance(peer.failures[0], kind), peer.failures
    assert says in str(peer.failures[0])


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_message_above_the_limit_never_takes_memory(mosquitto: Mosquitto, protocol: str) -> None:
    async def story() -> None:
        broker = mosquitto()
        reader = Peer(broker.url, "reader", protocol=protocol, max_packet_bytes=2000)
        reader.session.subscribe([("t", 1)])
        writer = Peer(broker.url, "writer")
        async with reader.running(), writer.running():
            await publish(writer.session, "t", bytes(3000))
            await publish(writer.session, "t", b"small")
            beginning = [bytes(CUT_SHORT_BYTES)] if protocol == "3.1.1" else []  # its broker cannot be told
            await until(lambda: reader.payloads == [*beginning, b"small"])
            assert reader.failures == []

    asyncio.run(story())


def test_a_publish_above_the_brokers_limit_is_answered_and_the_link_lives(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto(lines=["max_packet_size 5000"])
        writer = Peer(broker.url, "writer")
        async with writer.running() as session:
            small = await publish(session, "t", bytes(4000))
            large = await publish(session, "t", bytes(5000))
            await until(lambda: len(writer.published) == 2)
        assert sorted(writer.published) == sorted([(small, 0x10), (large, 0x95)])
        assert writer.failures == []

    asyncio.run(story())


def test_bytes_are_counted_as_the_socket_carries_them(mosquitto: Mosquitto) -> None:
    async def story() -> None:
        broker = mosquitto()
        peer = Peer(broker.url, "count", protocol="3.1.1", clean_start=True, on_confirmed=None)
        peer.session.subscribe([("t", 1)])
        async with peer.running() as session:
            await asyncio.sleep(0.2)
            await publish(session, "t", bytes(10))
            await until(lambda: len(peer.payloads) == 1 and len(peer.published) == 1)
            await asyncio.sleep(0.1)
            connect, subscribe, publication, puback = 2 + 10 + 2 + 5, 2 + 2 + 2 + 1 + 1, 2 + 2 + 1 + 2 + 10, 4
            connack, suback = 4, 5
            assert session.bytes_out == connect + subscribe + publication + puback
            assert session.bytes_in == connack + suback + publication + puback

    asyncio.run(story())
