"""One MQTT session: connected again after every failure, acknowledged when its user says so, bounded.

    dial ──▶ CONNECT ──▶ CONNACK ──▶ on_connect ──▶ SUBSCRIBE ──▶ on_messages ... ──▶ on_disconnect
      ▲                                                                                    │
      └─────────────────────── full jitter: random() * min(15 s, 0.5 s * 2^n) ◀────────────┘

What a user may rely on:

1. `run` never raises for the network; every failure is a sentence in `error` and goes to `on_disconnect`,
   once for each link that ended and for each attempt that failed.
2. Messages arrive in batches (`devices.wire.receive.Inbound`), in order of receipt. Nothing is acknowledged
   but by `acknowledge`, which does nothing when the connection that brought the messages is gone: the broker
   sends those again.
3. `publish` keeps nothing: without a connection it returns None, and when a link ends whatever was published
   and not acknowledged is forgotten. Its user publishes again, or not.
4. After `pause` nothing is read but what one read had brought already (256 KiB); the link stays up.
5. Everything happens in the event loop's thread. There is no other; only the resolver's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec
from paho.mqtt.client import ConnectFlags, DisconnectFlags
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from devices.errors import ConfigError, ForebayError, IdentityTaken, LinkLost, LoginRefused, NoAnswer, Unreachable
from devices.secrets import read_secret
from devices.wire.client import BulkClient
from devices.wire.dial import check_access, dial, parse_broker, tls_context, tls_failure
from devices.wire.hook import LoopHook
from devices.wire.receive import Inbound, PacketRefused
from devices.wire.refusals import (
    Reason,
    connection_ended,
    connection_refused,
    publication_refused,
    subscription_refused,
)

log = logging.getLogger(__name__)

BACKOFF_BASE_S: Final = 0.5
BACKOFF_CAP_S: Final = 15.0
"""A thousand clients that come back at once are 70 a second then; and who waits for a link waits 7 s on average."""

CONNECT_TIMEOUT_S: Final = 10.0
"""For each of: the name, the connection, the broker's answer to CONNECT."""

LEAVE_TIMEOUT_S: Final = 1.0
"""How long acknowledgements and DISCONNECT may take to leave when `run` is cancelled."""

CLONE_SUSPECTED_AFTER: Final = 3
SHORT_LINK_S: Final = 60.0
"""mosquitto 2.0.11 closes the older of two clients with one id without a word (no DISCONNECT 0x8E): so many
short links that end so are told as a suspicion."""

MQTT_MAX_BYTES: Final = 268_435_455 + 5
_PUBLISH_OVERHEAD_BYTES: Final = 5 + 2 + 2 + 1 + 3  # fixed header, topic's length, id, properties, correlation's


class SessionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a session needs to know; the password itself is read at each connect, so that it can be changed."""

    broker: str
    """`mqtt://HOST[:1883]` or `mqtts://HOST[:8883]`."""
    client_id: str
    username: str = ""
    password_file: str = ""
    password_env: str = ""
    ca_file: str = ""
    """CA of the broker's certificate; "": the system's CAs."""
    cert_file: str = ""
    """Our own certificate; "": none is shown."""
    key_file: str = ""
    keepalive_s: int = 60
    clean_start: bool = False
    """True: the broker forgets what it kept for this client. MQTT 3.1.1: also when the link ends."""
    session_expiry_s: int = 7 * 86_400
    """How long the broker keeps subscriptions and messages after the link ended (MQTT 5)."""
    receive_maximum: int = 8192
    """Messages that the broker may have sent without our acknowledgement (MQTT 5): two commits of the edge."""
    max_packet_bytes: int = 1024 * 1024
    """A longer packet ends the link. MQTT 5 brokers are told, and drop such messages themselves."""
    protocol: Literal["5", "3.1.1"] = "5"
    will: tuple[str, bytes] | None = None
    """(topic, payload) that the broker publishes at QoS 1 when the link ends without our goodbye."""


class Session:
    """See the module's docstring for what a user may rely on."""

    def __init__(
        self,
        options: SessionOptions,
        *,
        on_messages: Callable[[Inbound], None],
        on_connect: Callable[[bool], None],
        on_disconnect: Callable[[ForebayError], None],
        on_published: Callable[[int, int], None],
        on_confirmed: Callable[[int, int], None] | None = None,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """Raises ConfigError for options that can never work.

        `on_connect(session_present)` comes before the first messages. `on_published(mid, reason)` brings the
        broker's answer to a publish: 0; 0x10, nobody is subscribed (MQTT 5); 0x80 and above, refused; at
        QoS 0 it says that the message was sent. `on_confirmed(connection, n)`: the broker has taken n more of
        the acknowledgements, in their order; without it no pings are spent on finding out.
        """
        self.connected = False
        self.error = ""
        """The last failure, or what the broker refuses to a connected client, as a sentence; "" once connected."""
        self._options = options
        self._address = parse_broker(options.broker)
        self._where = f"the broker {self._address}"
        self._version5 = options.protocol == "5"
        _check(options)
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._on_published = on_published
        self._on_confirmed = on_confirmed
        self._rand = rand
        self._filters: dict[str, int] = {}
        self._stale: list[str] = []
        """Filters that the broker's session may have, and should not."""
        self._asked: dict[int, list[str]] = {}
        """Filters by the id of the SUBSCRIBE that waits for its answer."""
        self._topics: dict[int, str] = {}
        """Topics by the id of the PUBLISH that waits for its answer."""
        self._forbidden = ""
        """A topic that we may not write: `error` says so until the broker takes something that goes there. Over links:
        mosquitto 2.0.11 answers with 0x87 and ends the link, often before the answer is read."""
        self._subscribed = False
        self._leaving = False
        self._client = self._make_client(on_messages)
        self._hook = LoopHook(self._client)
        self._loop: asyncio.AbstractEventLoop
        self._ended: asyncio.Future[ForebayError]
        self._silent_closings = 0
        """Short links in a row that ended without DISCONNECT or an error of the socket."""
        self._accepted_at_s = float("inf")
        self._tried_at_s: float | None = None
        self._next_try_at_s = 0.0
        self._broker_max_bytes = MQTT_MAX_BYTES
        self._timer: asyncio.TimerHandle | None = None
        """Of CONNACK first, then of the keepalive."""

    @property
    def connection(self) -> int:
        """Number of the connection, from 1; 0 before the first."""
        return self._client.connection

    @property
    def broker_max_packet_bytes(self) -> int:
        """The largest packet that the broker takes, as it said when it last accepted us (MQTT 5)."""
        return self._broker_max_bytes

    @property
    def tried_ago_s(self) -> float | None:
        """Since the last attempt to connect began; None before the first."""
        return None if self._tried_at_s is None else self._loop.time() - self._tried_at_s

    @property
    def next_try_in_s(self) -> float | None:
        """Until the next attempt begins; 0 while one is under way; None while connected, and before the first."""
        if self.connected or self._tried_at_s is None:
            return None
        return max(self._next_try_at_s - self._loop.time(), 0.0)

    @property
    def bytes_in(self) -> int:
        """Read from the socket since the start, every packet counted (with TLS: inside it)."""
        return self._client.bytes_in

    @property
    def bytes_out(self) -> int:
        """Written to the socket since the start, every packet counted (with TLS: inside it)."""
        return self._client.bytes_out

    # --- what users call ---

    async def run(self) -> None:
        """Connect, and again after every failure, until cancelled; then say goodbye, so that no will is sent."""
        self._loop = asyncio.get_running_loop()
        self._leaving = False
        ceiling_s = BACKOFF_BASE_S
        try:
            while True:
                failure, lasted_s = await self._one_link()
                # A link that outlived the longest wait before it was a good one, and the next wait is short
                # again. Clones end each other's links for as long as both run: those never count as good.
                if lasted_s > ceiling_s and not isinstance(failure, IdentityTaken):
                    ceiling_s = BACKOFF_BASE_S
                wait_s = self._rand() * ceiling_s
                self._next_try_at_s = self._loop.time() + wait_s
                await asyncio.sleep(wait_s)
                ceiling_s = min(BACKOFF_CAP_S, 2 * ceiling_s)
        finally:
            self._leaving = True
            await self._leave()

    def subscribe(self, filters: list[tuple[str, int]]) -> None:
        """Ask for these (filter, QoS 0 or 1): now, and at each connect at which the broker may not know it."""
        if any(quality not in (0, 1) for _, quality in filters):
            raise ValueError("subscriptions are made at QoS 0 or 1")
        self._filters.update(filters)
        if self.connected:
            self._send_subscriptions(filters)

    def unsubscribe(self, filters: list[str]) -> None:
        """Ask for these no more, which an earlier run may have left in the broker's session: at each connect to one.

        New filters go first: what both match is not missed, and may come twice in the moment between.
        """
        self._stale = filters

    def publish(
        self, topic: str, payload: bytes, *, correlation: bytes | None = None, qos: int = 1, retain: bool = False
    ) -> int | None:
        """The message's id, which `on_published` will name; None without a connection: nothing is kept.

        A message above the broker's Maximum Packet Size (MQTT 5) is not sent, and answered with reason 0x95.
        """
        if not self.connected:
            return None
        properties = None
        if correlation is not None:
            if not self._version5:
                raise ValueError("correlation data needs MQTT 5")
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = correlation
        packet_bytes = _PUBLISH_OVERHEAD_BYTES + len(topic.encode()) + len(payload) + len(correlation or b"")
        if packet_bytes > self._broker_max_bytes:
            # Sent, it would end the link, again and again.
            mid = self._client.next_id()
            self._loop.call_soon(self._on_published, mid, Reason.PACKET_TOO_LARGE)
            return mid
        info = self._client.publish(topic, payload, qos, retain, properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return None
        if qos:
            self._topics[info.mid] = topic
        return info.mid

    def acknowledge(self, packet_ids: Sequence[int], connection: int) -> None:
        """Acknowledge messages of QoS 1, in order of receipt, that `connection` brought; nothing if that is gone."""
        if self.connected and connection == self.connection and packet_ids:
            self._client.acknowledge(packet_ids)

    def pause(self) -> None:
        """Read no more, so that the broker's messages wait at the broker. Also before and between connections."""
        self._hook.pause()

    def resume(self) -> None:
        """Read again."""
        if self._client.paused:
            self._hook.resume()
            self._schedule_keepalive()

    # --- one link ---

    async def _one_link(self) -> tuple[ForebayError, float]:
        """From the dialling to the end of the link; returns why it ended, and how long it was up, in s."""
        options = self._options
        self._tried_at_s = self._loop.time()
        try:
            secret = read_secret(options.password_file, options.password_env)
            context = None
            if self._address.tls:
                context = tls_context(options.ca_file, options.cert_file, options.key_file)
            sock = await dial(self._address, context, CONNECT_TIMEOUT_S)
        except ForebayError as error:
            self._silent_closings = 0
            self._report(error)
            return error, 0.0
        client = self._client
        client.username_pw_set(options.username or None, secret.reveal() if secret else None)
        version5: dict[str, Any] = {}
        if self._version5:
            version5 = {"clean_start": options.clean_start, "properties": _connect_properties(options)}
        client.connect_async(self._address.host, self._address.port, options.keepalive_s, **version5)
        self._ended = self._loop.create_future()
        self._accepted_at_s = float("inf")
        self._timer = self._loop.call_later(CONNECT_TIMEOUT_S, self._not_answered)
        client.attach(sock)
        failure = await self._ended
        return failure, max(self._loop.time() - self._accepted_at_s, 0.0)

    def _not_answered(self) -> None:
        self._client.abandon(
            NoAnswer(f"{self._where} takes the connection and does not answer in MQTT: is that its port?")
        )

    async def _leave(self) -> None:
        client = self._client
        if client.socket() is not None and self.connected:
            client.disconnect()
            client.loop_write()
            if client.socket() is not None:
                await asyncio.wait([self._ended], timeout=LEAVE_TIMEOUT_S)
        client.abandon(LinkLost("ended by us"))

    def _report(self, failure: ForebayError) -> None:
        sentence = str(failure)
        # The same failure is said once, not at each attempt. A file that is missing is put right by a person alone.
        is_ours = isinstance(failure, ConfigError)
        who = f"{self._options.client_id} cannot ask {self._where}" if is_ours else self._options.client_id
        level = logging.ERROR if is_ours else logging.WARNING
        log.log(logging.DEBUG if sentence == self.error else level, "%s: %s", who, sentence)
        self.error = sentence
        self._on_disconnect(failure)

    # --- paho's callbacks ---

    def _make_client(self, on_messages: Callable[[Inbound], None]) -> BulkClient:
        options = self._options
        client = BulkClient(
            options.client_id,
            version5=self._version5,
            clean_session=options.clean_start,
            max_packet_bytes=options.max_packet_bytes,
            on_batch=on_messages,
            on_confirmed=self._confirmed if self._on_confirmed is not None else None,
        )
        client.on_connect = self._connack
        client.on_disconnect = self._link_ended
        client.on_subscribe = self._suback
        client.on_publish = self._puback
        if options.will is not None:
            client.will_set(*options.will, qos=1)
        return client

    def _connack(
        self, client: Any, _data: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.value != 0:
            options = self._options
            self._client.failure = connection_refused(reason, self._where, options.client_id, options.username)
            return
        self._client.allow_in_flight(getattr(properties, "ReceiveMaximum", 65_535))
        self._client.connection += 1
        self._client.session_present = flags.session_present
        self._accepted_at_s = self._loop.time()
        self._broker_max_bytes = getattr(properties, "MaximumPacketSize", MQTT_MAX_BYTES)
        self.connected = True
        self.error = self._sentence_of_forbidden()
        self._schedule_keepalive()
        log.info("connected to %s as %s", self._where, self._options.client_id)
        self._on_connect(flags.session_present)
        if self._version5 or not flags.session_present or not self._subscribed:
            # A session that is present may have the filters of an earlier run, or of an old snapshot. With MQTT 3.1.1
            # it is told once in each run of the program (what it answered to): it repeats retained messages each time.
            self._send_subscriptions(list(self._filters.items()))
        if flags.session_present and self._stale:
            self._client.unsubscribe(self._stale)

    def _link_ended(
        self, client: Any, _data: Any, flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        was_connected, self.connected = self.connected, False
        if not was_connected:
            self._subscribed = False  # it may have begun a session, and its answer was lost
        if self._timer is not None:
            self._timer.cancel()
        self._client.forget_outgoing()
        self._asked.clear()
        self._topics.clear()
        failure = self._why_ended(was_connected, flags, reason)
        if not self._ended.done():
            self._ended.set_result(failure)
        if not self._leaving:
            self._report(failure)

    def _why_ended(self, was_connected: bool, flags: DisconnectFlags, reason: ReasonCode) -> ForebayError:
        failure = self._client.failure
        if isinstance(failure, PacketRefused):
            return LinkLost(f"the link to {self._where} was ended: {failure}")
        if failure is not None:
            return failure
        if flags.is_disconnect_packet_from_server:
            return connection_ended(reason, self._where, self._options.client_id)
        error = self._client.socket_error
        if isinstance(error, ssl.SSLError):
            return tls_failure(self._address, error)
        if not was_connected:
            maybe = (
                "it may want a client certificate (cert_file, key_file)" if self._address.tls else "it may expect TLS"
            )
            return Unreachable(
                f"{self._where} closed the connection before it answered: {maybe}, another version of MQTT than "
                f"{self._options.protocol}, or not be a broker"
            )
        if self._forbidden and self._loop.time() - self._accepted_at_s < SHORT_LINK_S:
            return LoginRefused(self._sentence_of_forbidden())
        if error is not None:
            return LinkLost(f"the connection to {self._where} was lost ({error.strerror or error})")
        if reason == "Keep alive timeout":
            return LinkLost(f"{self._where} did not answer a ping within {self._client.keepalive} s")
        return self._closed_without_a_word()

    def _closed_without_a_word(self) -> LinkLost:
        lasted_s = self._loop.time() - self._accepted_at_s
        self._silent_closings = self._silent_closings + 1 if lasted_s < SHORT_LINK_S else 1
        sentence = f"the connection to {self._where} was closed by it, or by the network"
        if self._silent_closings >= CLONE_SUSPECTED_AFTER:
            sentence += (
                f", again and again: does another gateway or program connect as {self._options.client_id!r} (a clone)?"
            )
        return LinkLost(sentence)

    def _confirmed(self, count: int) -> None:
        assert self._on_confirmed is not None
        self._on_confirmed(self.connection, count)

    # --- subscriptions ---

    def _send_subscriptions(self, filters: list[tuple[str, int]]) -> None:
        if not filters:
            return
        if self._version5:
            # Retained messages come with a new subscription only, not again with each repetition of it.
            handling = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
            _, mid = self._client.subscribe(
                [(name, SubscribeOptions(quality, retainHandling=handling)) for name, quality in filters]
            )
        else:
            _, mid = self._client.subscribe(filters)
        if mid is not None:
            self._asked[mid] = [name for name, _ in filters]

    def _suback(self, client: Any, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        self._subscribed = True
        asked = self._asked.pop(mid, [])
        refused = [name for name, reason in zip(asked, reasons, strict=False) if reason.value >= 0x80]
        if refused:
            # The other filters go on; the sentence stays visible in `error`.
            self.error = subscription_refused(refused, self._where, self._options.username)
            log.warning("%s", self.error)

    # --- publications ---

    def _puback(self, client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        topic = self._topics.pop(mid, "")
        if reason.value == Reason.NOT_AUTHORIZED and topic != self._forbidden:
            self._forbidden = topic
            self.error = self._sentence_of_forbidden()
            log.warning("%s", self.error)
        elif reason.value < Reason.UNSPECIFIED and topic and topic == self._forbidden:
            self.error = self._forbidden = ""
        self._on_published(mid, reason.value)

    def _sentence_of_forbidden(self) -> str:
        return self._forbidden and publication_refused(self._forbidden, self._where, self._options.username)

    # --- keepalive ---

    def _schedule_keepalive(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait_s = self._client.seconds_to_misc()
        if self.connected and wait_s != float("inf"):
            self._timer = self._loop.call_later(wait_s, self._keep_alive)

    def _keep_alive(self) -> None:
        self._client.loop_misc()
        self._schedule_keepalive()


def _connect_properties(options: SessionOptions) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = options.session_expiry_s
    properties.ReceiveMaximum = options.receive_maximum
    properties.MaximumPacketSize = options.max_packet_bytes
    properties.TopicAliasMaximum = 0
    return properties


def _check(options: SessionOptions) -> None:
    """Raises ConfigError for options that can never work."""
    limits = {
        "keepalive_s": (0, 65_535),
        "session_expiry_s": (0, 0xFFFF_FFFF),
        "receive_maximum": (1, 65_535),
        "max_packet_bytes": (1024, 268_435_455),
    }
    for key, (low, high) in limits.items():
        value = getattr(options, key)
        if not low <= value <= high:
            raise ConfigError(f"{key}: {value} is not between {low} and {high}")
    if not options.client_id:
        raise ConfigError("client_id: it must not be empty, or the broker could not keep a session for it")
    password = options.password_file or options.password_env
    check_access(options.broker, options.username, password, options.ca_file, options.cert_file, options.key_file)
