"""Connections, and one end of them: the session as edge and ingester know it (devices.wire.session.Session).

A connection is a TCP stream: what is sent on it arrives in order, some time later, or it is cut, and then
nothing that was on its way arrives. Each end learns of a cut at a time of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from devices.errors import ForebayError, LinkLost, Unreachable
from devices.wire.receive import Inbound
from devices.wire.session import MQTT_MAX_BYTES, SessionOptions
from tests.world.life import Life

if TYPE_CHECKING:
    from tests.world.broker import Broker, Message

UP, DOWN = 0, 1
GAP_S = 1e-5
"""Between two arrivals on one wire: more than the loop's resolution, so that their order stands."""
CUT_NOTICED_S = (0.0, 1.0, 90.0)
"""At once, by a failing write, or by a ping that is not answered."""
BACKOFF_CAP_S = 600.0


class Wire:
    """One connection."""

    def __init__(self, rng: random.Random, latency_s: float) -> None:
        self.is_open = True
        self.stalled_until_s = 0.0
        self._rng = rng
        self._latency_s = latency_s
        self._last_s = [0.0, 0.0]
        self._on_cut: list[Callable[[], None]] = []

    def carry(self, way: int, act: Callable[..., None], *arguments: Any) -> None:
        """Let `act` happen at the other end."""
        loop = asyncio.get_running_loop()
        at_s = max(loop.time(), self.stalled_until_s) + self._latency_s * (0.5 + self._rng.random())
        self._last_s[way] = max(at_s, self._last_s[way] + GAP_S)
        loop.call_at(self._last_s[way], self._arrive, act, arguments)

    def _arrive(self, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self.is_open:
            act(*arguments)

    def when_cut(self, tell: Callable[[], None]) -> None:
        self._on_cut.append(tell)

    def cut(self) -> None:
        if not self.is_open:
            return
        self.is_open = False
        loop = asyncio.get_running_loop()
        for tell in self._on_cut:
            loop.call_later(self._rng.choice(CUT_NOTICED_S), tell)


class SimSession:
    """In the place of `Session`, with the same promises."""

    def __init__(
        self,
        life: Life,
        broker: Broker,
        on_acknowledged: Callable[[list[Message]], None],
        options: SessionOptions,
        *,
        on_messages: Callable[[Inbound], None],
        on_connect: Callable[[bool], None],
        on_disconnect: Callable[[ForebayError], None],
        on_published: Callable[[int, int], None],
        on_confirmed: Callable[[int, int], None] | None = None,
    ) -> None:
        """`on_acknowledged`: what a witness is told of."""
        self.options = options
        self.connected = False
        self.connection = 0
        self.error = ""
        self.bytes_in = self.bytes_out = 0
        self.broker_max_packet_bytes = MQTT_MAX_BYTES
        self.filters: list[str] = []
        self._life = life
        self._broker = broker
        self._rng = broker.rng
        self._on_acknowledged = on_acknowledged
        self._on_messages = on_messages
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._on_published = on_published
        self._on_confirmed = on_confirmed
        self._wire: Wire | None = None
        self._ended = asyncio.Event()
        self._next_mid = 1
        self._received: dict[int, Message] = {}
        self._session_present = False
        self._paused = False
        self._unread: list[tuple[int, bool, Message]] = []
        self._settling = False
        life.on_death.append(self._severed)

    def subscribe(self, filters: list[tuple[str, int]]) -> None:
        self.filters += [name for name, _ in filters]

    async def run(self) -> None:
        ceiling_s = 0.5
        while True:
            await asyncio.sleep(0.001 + 0.05 * self._rng.random())
            if not self._life.step("dials"):
                return
            self._ended.clear()
            if self._broker.accept(self):
                begun_s = asyncio.get_running_loop().time()
                await self._ended.wait()
                if asyncio.get_running_loop().time() - begun_s > ceiling_s:
                    ceiling_s = 0.5
            else:
                self._on_disconnect(Unreachable("the broker is not there"))
            await asyncio.sleep(self._rng.random() * ceiling_s)
            ceiling_s = min(BACKOFF_CAP_S, 2 * ceiling_s)

    # -- what the process does -----------------------------------------------------------------------

    def publish(
        self, topic: str, payload: bytes, *, correlation: bytes | None = None, qos: int = 1, retain: bool = False
    ) -> int | None:
        if not self.connected or self._wire is None or not self._life.step(f"publishes {topic.rpartition('/')[2]}"):
            return None
        mid, self._next_mid = self._next_mid, self._next_mid + 1
        self._wire.carry(UP, self._broker.published, self, self._wire, mid, topic, payload, correlation)
        self._life.step("has published")
        return mid

    def acknowledge(self, packet_ids: Sequence[int], connection: int) -> None:
        if not self.connected or self._wire is None or connection != self.connection or not packet_ids:
            return
        if not self._life.step(f"acknowledges {' '.join(map(str, packet_ids))}"):
            return
        self._on_acknowledged([self._received.pop(packet_id) for packet_id in packet_ids])
        self._wire.carry(UP, self._broker.acknowledged, self.options.client_id, self._wire, list(packet_ids))
        self._life.step("has acknowledged")

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            asyncio.get_running_loop().call_soon(self._read, self._wire)

    # -- what comes from the broker ------------------------------------------------------------------

    def opened(self, wire: Wire, session_present: bool) -> None:
        """CONNACK."""
        if wire is not self._wire or not self._life.step("is connected"):
            return
        self.connected = True
        self.connection += 1
        self._session_present = session_present
        self.error = ""
        self._received.clear()
        self._on_connect(session_present)

    def dialled(self, wire: Wire) -> None:
        self._wire = wire
        wire.when_cut(lambda: self._lost(wire))

    def arrive(self, wire: Wire, messages: list[tuple[int, bool, Message]]) -> None:
        """PUBLISH: (packet id, DUP, message)."""
        if wire is self._wire:
            self._unread += messages
            self._read(wire)

    def _read(self, wire: Wire | None) -> None:
        if self._paused or not self._unread or wire is not self._wire:
            return
        told = " ".join(f"{pid}{'!' * dup}={message.number}" for pid, dup, message in self._unread if message.number)
        if not self._life.step(f"receives {told}"):
            return
        inbound = Inbound(self.connection, self._session_present)
        for packet_id, dup, message in self._unread:
            inbound.topics.append(message.topic)
            inbound.payloads.append(message.payload)
            inbound.packet_ids.append(packet_id)
            inbound.dups.append(dup)
            inbound.correlations.append(message.correlation)
            self._received[packet_id] = message
        self._unread = []
        self._on_messages(inbound)

    def answered(self, wire: Wire, mid: int, reason: int) -> None:
        """PUBACK."""
        if wire is self._wire and self._life.step("is answered"):
            self._on_published(mid, reason)

    def confirmed(self, wire: Wire, count: int) -> None:
        """PINGRESP."""
        if wire is self._wire and self._on_confirmed is not None and self._life.step("is confirmed"):
            self._on_confirmed(self.connection, count)

    def _lost(self, wire: Wire) -> None:
        if wire is not self._wire:
            return
        self._wire = None
        self._unread = []
        was_connected, self.connected = self.connected, False
        if was_connected and self._life.step("has lost its link"):
            self._on_disconnect(LinkLost("the link was cut"))
        self._ended.set()

    def _severed(self) -> None:
        """The process is gone: the kernel closes its socket."""
        if self._wire is not None:
            self._wire.cut()
        self._wire, self.connected = None, False
