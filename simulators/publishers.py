"""MQTT 5 at QoS 1 for many devices over one connection.

What the broker has not acknowledged stays here, and goes out again after a reconnect, whatever became of
the session: a message may arrive twice, none is forgotten. That is paho's own behaviour for a client object
that lives on; its thread sends and receives.
"""

from __future__ import annotations

import urllib.parse
from collections import deque
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

MAX_UNACKNOWLEDGED = 20_000  # packet ids end at 65,535; beyond this the devices wait
RECONNECT_S = 1
MAX_RECONNECT_S = 4
NOBODY_SUBSCRIBED = 0x10


class Publisher:
    """One connection. All methods are for one thread; `on_settled` is called from `poll` alone."""

    def __init__(self, url: str, client_id: str, on_settled: Callable[[Any, bool], None]) -> None:
        """`on_settled(token, heard)`: the broker has acknowledged the message; `heard` if anybody is
        subscribed to it: if not, the broker has thrown it away.
        """
        address = urllib.parse.urlsplit(url)
        self._on_settled = on_settled
        self._tokens: dict[int, Any] = {}
        self._acknowledged: deque[tuple[int, int]] = deque()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5, reconnect_on_failure=True
        )
        self._client.max_queued_messages_set(0)  # no limit of paho's: MAX_UNACKNOWLEDGED is ours
        self._client.reconnect_delay_set(RECONNECT_S, MAX_RECONNECT_S)
        self._client.on_publish = self._on_publish
        if address.username:
            self._client.username_pw_set(address.username, address.password)
        if address.scheme == "mqtts":
            self._client.tls_set()
        self._client.connect_async(address.hostname or "localhost", address.port or 1883, keepalive=20)
        self._client.loop_start()

    @property
    def connected(self) -> bool:
        return self._client.is_connected()

    @property
    def unacknowledged(self) -> int:
        return len(self._tokens)

    @property
    def full(self) -> bool:
        return len(self._tokens) >= MAX_UNACKNOWLEDGED

    def publish(self, topic: str, payload: bytes, token: Any) -> None:
        """Send it, now or as soon as the broker is there, until it is acknowledged."""
        self._tokens[self._client.publish(topic, payload, qos=1).mid] = token

    def poll(self) -> None:
        """To be called often: reports what the broker has acknowledged."""
        while self._acknowledged:
            packet_id, reason = self._acknowledged.popleft()
            token = self._tokens.pop(packet_id)
            if reason < 0x80:  # what the broker refuses was never taken: it stays in the record as sent alone
                self._on_settled(token, reason != NOBODY_SUBSCRIBED)

    def close(self) -> None:
        """Disconnect; what is unacknowledged is forgotten."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_publish(self, _client: Any, _data: Any, packet_id: int, reason: ReasonCode, _properties: Any) -> None:
        # In paho's thread, which holds paho's locks: no lock of ours may be taken here.
        self._acknowledged.append((packet_id, reason.value))
