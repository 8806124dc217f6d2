"""Subscriptions at an MQTT broker: whole messages with their topics, acknowledged after the commit.

A durable receiver: a client id that stays, a session that the broker keeps while we are away, QoS 1, and an
acknowledgement only when `settle` is called. What arrives in one read goes on in pieces of at most
MESSAGES_MAX, each of which is settled by itself.

A probe (`forebay-edge check`) must not take messages from the daemon's session: it comes as a client of its
own, keeps nothing at the broker, and asks for QoS 0.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from typing import ClassVar, Literal

import msgspec

from devices.drivers import Delivery, Marks, SourceStatus
from devices.drivers.templates import TopicTemplate
from devices.errors import ForebayError
from devices.model import SECOND_NS
from devices.quantities import Duration, Size
from devices.wire.dial import check_access, parse_broker
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions

MESSAGES_MAX = 1024
PART_BYTES = 64 * 1024
"""A delivery is never cut, so it must be small beside a commit's 4,096 samples, and a message may hold hundreds."""


class MqttOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keys of `[source.NAME]` with `driver = "mqtt"`."""

    broker: str
    """`mqtt://HOST[:1883]` or `mqtts://HOST[:8883]`."""
    topics: list[str]
    """Templates such as `plant/{device}/{channel}`, no two for one topic; see `devices.drivers.templates`. What the
    broker retains counts if it bears its time, or is the first of its series."""
    qos: Literal[0, 1] = 1
    """1: messages wait at the broker until Forebay has stored them; 0: what comes while nobody listens is lost."""
    client_id: str = ""
    """Under which the broker keeps messages for us; "": made of the gateway's and the source's name."""
    user: str = ""
    password_file: str = ""
    password_env: str = ""
    ca_file: str = ""
    """CA of the broker's certificate; "": the system's CAs."""
    cert_file: str = ""
    """Our own certificate; "": none is shown."""
    key_file: str = ""
    keepalive: Duration = Duration(60 * SECOND_NS)
    session_expiry: Duration = Duration(7 * 86_400 * SECOND_NS)
    """How long the broker keeps messages for us while we are away (MQTT 5)."""
    receive_maximum: int = 8192
    """Messages that the broker may send ahead of our acknowledgement (MQTT 5)."""
    max_message: Size = Size(1 << 20)
    """A longer message is not taken: an MQTT 5 broker, which is told, drops it; with MQTT 3.1.1 it is `oversize`."""
    protocol: Literal["5", "3.1.1"] = "5"
    """MQTT version of the broker."""

    def __post_init__(self) -> None:
        if not self.topics:
            raise ValueError("`topics` must name at least one topic")
        for one, two in combinations([TopicTemplate(text) for text in self.topics], 2):
            if (topic := one.common_topic(two)) is not None:
                raise ValueError(
                    f"`topics`: {one.text!r} and {two.text!r} both match {topic!r}, and a broker may send such a "
                    "message once for each of them: leave one out, or make it narrower"
                )
        password = self.password_file or self.password_env
        check_access(self.broker, self.user, password, self.ca_file, self.cert_file, self.key_file)
        if not 0 < self.receive_maximum <= 65_535:
            raise ValueError("`receive_maximum` lies between 1 and 65535")
        if not 5 <= self.keepalive.s <= 65_535:
            raise ValueError('`keepalive` lies between "5 s" and "65535 s"')


class MqttDriver:
    """Receives what is published below the topic templates; see the module's docstring."""

    Options: ClassVar[type[msgspec.Struct]] = MqttOptions
    stream: ClassVar[bool] = False

    def __init__(
        self,
        device: str,
        options: MqttOptions,
        deliver: Callable[[Delivery], None],
        now_ns: Callable[[], int],
        *,
        probe: bool = False,
    ) -> None:
        self.on_confirmed: Callable[[int], None] = _nobody_asks
        self._deliver = deliver
        self._now_ns = now_ns
        self._status = SourceStatus()
        self._paused = False
        self._templates = [TopicTemplate(text) for text in options.topics]
        self._options = session_options(options, device, probe=probe)
        self._session = Session(
            self._options,
            on_messages=self._received,
            on_connect=self._connected,
            on_disconnect=self._disconnected,
            on_published=_nothing_is_published,
            on_confirmed=self._confirmed if options.qos and not probe else None,
        )
        qos = 0 if probe else options.qos
        self.filters = [template.filter for template in self._templates]
        self._session.subscribe([(name, qos) for name in self.filters])

    @property
    def status(self) -> SourceStatus:
        """How the session is doing now."""
        self._status.bytes_in = self._session.bytes_in
        self._status.error = self._session.error
        return self._status

    def origin(self, topic: str) -> tuple[str, str] | None:
        """Device and channel by the first template that matches."""
        for template in self._templates:
            if (names := template.match(topic)) is not None:
                return names
        return None

    @property
    def when_silent(self) -> str:
        """What to look at when it is open and nothing comes."""
        broker = parse_broker(self._options.broker)
        return (
            f"nobody has published to {', '.join(self.filters)} at {broker} meanwhile, and no message is retained. "
            f"See what there is (mosquitto_sub -h {broker.host} -p {broker.port} -v -t '#'): compare spelling and case "
            "of each level, and ask whether the broker's ACL lets this user read it"
        )

    @property
    def session_name(self) -> str:
        """What the broker's session is known by."""
        return f"{self._options.broker} {self._options.client_id}"

    def forget(self, filters: list[str]) -> None:
        """These were asked for in the broker's session by earlier configurations, and are no more."""
        self._session.unsubscribe(filters)

    async def run(self) -> None:
        """The session's own loop: connects for ever."""
        await self._session.run()

    def pause(self) -> None:
        self._paused = True
        self._session.pause()
        self._show()

    def resume(self) -> None:
        self._paused = False
        self._session.resume()
        self._show()

    def _received(self, inbound: Inbound) -> None:
        arrived_ns = self._now_ns()
        self._status.messages += len(inbound)
        for part in _parts(inbound.payloads):
            start = part.start
            packet_ids = inbound.packet_ids[part]
            settle: Callable[[], None] | None = None
            marks = None
            if any(packet_ids):
                waiting = packet_ids if all(packet_ids) else [i for i in packet_ids if i]
                settle = partial(self._session.acknowledge, waiting, inbound.connection)
                marks = Marks(packet_ids, inbound.dups[part], inbound.connection, inbound.session_present)
            cut_short = retained = None
            if inbound.cut_short:
                cut_short = {k - start: n for k, n in inbound.cut_short.items() if start <= k < part.stop}
            if inbound.retained:
                retained = {k - start for k in inbound.retained if start <= k < part.stop}
            payloads, topics = inbound.payloads[part], inbound.topics[part]
            self._deliver(Delivery(payloads, topics, arrived_ns, settle, marks, cut_short, retained))

    def _connected(self, session_present: bool) -> None:
        self._show()
        if not session_present:
            # At once, and to be committed: the link may end before the first message, and the gateway as well.
            marks = Marks([], [], self._session.connection, session_present)
            self._deliver(Delivery([], [], self._now_ns(), _nothing_to_acknowledge, marks))

    def _disconnected(self, failure: ForebayError) -> None:
        del failure  # The session's own `error` is shown.
        if self._status.state in ("open", "paused"):
            self._status.reconnects += 1
        self._status.state = "failed"

    def _confirmed(self, connection: int, count: int) -> None:
        if connection == self._session.connection:
            self.on_confirmed(count)

    def _show(self) -> None:
        if self._session.connected:
            self._status.state = "paused" if self._paused else "open"


def session_options(options: MqttOptions, device: str, *, probe: bool) -> SessionOptions:
    """The session that a source needs; a probe's leaves nothing behind."""
    client_id = options.client_id or f"forebay-{socket.gethostname()}-{device}"
    return SessionOptions(
        broker=options.broker,
        client_id=f"forebay-check-{secrets.token_hex(6)}" if probe else client_id,
        username=options.user,
        password_file=options.password_file,
        password_env=options.password_env,
        ca_file=options.ca_file,
        cert_file=options.cert_file,
        key_file=options.key_file,
        keepalive_s=round(options.keepalive.s),
        clean_start=probe,
        session_expiry_s=0 if probe else round(options.session_expiry.s),
        receive_maximum=options.receive_maximum,
        max_packet_bytes=int(options.max_message),
        protocol=options.protocol,
    )


def _parts(payloads: list[bytes]) -> Iterator[slice]:
    """At most MESSAGES_MAX messages of together PART_BYTES; or one that is larger."""
    start = size_bytes = 0
    for at, payload in enumerate(payloads):
        if at > start and (at - start == MESSAGES_MAX or size_bytes + len(payload) > PART_BYTES):
            yield slice(start, at)
            start, size_bytes = at, 0
        size_bytes += len(payload)
    yield slice(start, len(payloads))


def _nobody_asks(count: int) -> None:
    """Until the intake sets `on_confirmed`."""


def _nothing_to_acknowledge() -> None:
    """After the commit that forgets what the broker has forgotten."""


def _nothing_is_published(mid: int, reason: int) -> None:
    """A source only listens."""
