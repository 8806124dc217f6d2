"""A broker that keeps MQTT's promises while it is well, and forgets, repeats and confuses at a crash.

Of the kind of mosquitto: sessions with a queue and messages in flight under packet ids; repeats with DUP, in
order, when a client whose session it kept comes back; shared subscriptions. `unwell` says what it does, with
which probability, to messages that it has acknowledged. `crash` lets it come back as it was, empty, or as it
was some time ago.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tests.world.wires import DOWN, SimSession, Wire

NOBODY = 0x10
QUOTA_EXCEEDED = 0x97
LATER_S = (1.0, 3600.0)
REMEMBERED = 300
"""Messages that a broker which comes back as it was some time ago may send once more."""


@dataclass(frozen=True, slots=True)
class Message:
    """One publication. `number` is the sensor's own, where one has sent it."""

    topic: str
    payload: bytes
    correlation: bytes | None = None
    number: int = 0


@dataclass
class Unwell:
    """Probabilities, for each message that has been acknowledged to its publisher."""

    drops: float = 0.0
    repeats: float = 0.0
    delays: float = 0.0
    refuses: float = 0.0


@dataclass
class Kept:
    """What the broker knows of one client."""

    filters: list[str]
    stays: bool
    """The session outlives the connection."""
    queue: deque[Message] = field(default_factory=deque)
    in_flight: dict[int, Message] = field(default_factory=dict)
    next_id: int = 1


class Broker:
    """See the module's docstring."""

    def __init__(
        self, name: str, rng: random.Random, note: Callable[[str, str], None], *, ids: int, ahead: int
    ) -> None:
        """`ids`: packet ids after which they begin again; `ahead`: messages in flight to one client."""
        self.name = name
        self.rng = rng
        self.up = True
        self.reachable = True
        """By the gateway."""
        self.closed_to = ""
        """Clients whose id begins so are not there for now."""
        self.latency_s = 0.02
        self.unwell = Unwell()
        self.sent_again: list[Message] = []
        """What came back with an old state, and may reach its receiver a second time under another name."""
        self._note = note
        self._ids = ids
        self._ahead = ahead
        self._sessions: dict[str, Kept] = {}
        self._links: dict[str, tuple[SimSession, Wire]] = {}
        self._to_send: set[str] = set()
        self._past: deque[Message] = deque(maxlen=REMEMBERED)
        self._saved: dict[str, Kept] = {}

    # -- connections ---------------------------------------------------------------------------------

    def accept(self, session: SimSession) -> bool:
        """CONNECT; whether anybody is there."""
        options = session.options
        is_closed = bool(self.closed_to) and options.client_id.startswith(self.closed_to)
        is_away = not self.reachable and options.client_id.startswith("forebay-")
        if not self.up or is_closed or is_away:
            return False
        self._drop_link(options.client_id)  # of the same client, if one is still believed to be there
        present = options.client_id in self._sessions and not options.clean_start
        if not present:
            self._sessions[options.client_id] = Kept([], options.session_expiry_s > 0)
        kept = self._sessions[options.client_id]
        kept.filters = session.filters
        wire = Wire(self.rng, self.latency_s)
        session.dialled(wire)
        self._links[options.client_id] = session, wire
        wire.when_cut(lambda: self._noticed(options.client_id, wire))
        wire.carry(DOWN, session.opened, wire, present)
        again = [(packet_id, True, message) for packet_id, message in kept.in_flight.items()]
        if again:
            wire.carry(DOWN, session.arrive, wire, again)
        self._send(options.client_id)
        return True

    def _noticed(self, client_id: str, wire: Wire) -> None:
        """The broker finds that a client is gone, and publishes its will."""
        link = self._links.get(client_id)
        if link is not None and link[1] is wire:
            self._drop_link(client_id)

    def _drop_link(self, client_id: str) -> None:
        link = self._links.pop(client_id, None)
        if link is None:
            return
        session, wire = link
        wire.cut()
        kept = self._sessions[client_id]
        if not kept.stays:
            del self._sessions[client_id]
        if self.up and session.options.will is not None:
            self.publish(Message(*session.options.will))

    def cut(self, clients: str = "") -> None:
        """The network cuts the links of clients whose id begins so."""
        for name, (_, wire) in list(self._links.items()):
            if name.startswith(clients):
                wire.cut()

    def stall(self, seconds: float) -> None:
        """Nothing arrives for a while, in either direction."""
        until_s = asyncio.get_running_loop().time() + seconds
        for _, wire in self._links.values():
            wire.stalled_until_s = until_s

    def is_empty(self) -> bool:
        """Whether nothing waits for anybody."""
        return not any(kept.queue or kept.in_flight for kept in self._sessions.values())

    # -- publications --------------------------------------------------------------------------------

    def published(
        self, session: SimSession, wire: Wire, mid: int, topic: str, payload: bytes, correlation: bytes | None
    ) -> None:
        """PUBLISH from a client: routed, and answered."""
        reason = 0
        if self.rng.random() < self.unwell.refuses:
            reason = QUOTA_EXCEEDED
        elif not self._has_receiver(topic):
            reason = NOBODY
        else:
            self._maybe_publish(Message(topic, payload, correlation))
        wire.carry(DOWN, session.answered, wire, mid, reason)

    def _maybe_publish(self, message: Message) -> None:
        unwell, rng, loop = self.unwell, self.rng, asyncio.get_running_loop()
        if rng.random() < unwell.drops:
            self._note(self.name, "drops a message")
            return
        if rng.random() < unwell.repeats:
            loop.call_later(rng.uniform(*LATER_S), self.publish, message)
        if rng.random() < unwell.delays:
            loop.call_later(rng.uniform(*LATER_S), self.publish, message)
        else:
            self.publish(message)

    def publish(self, message: Message) -> None:
        """Put a message into the queues of those who want it."""
        if not self.up:
            return
        self._past.append(message)
        groups: dict[str, list[str]] = {}
        for client_id, kept in self._sessions.items():
            for name in kept.filters:
                if not _matches(name, message.topic):
                    continue
                if name.startswith("$share/"):
                    groups.setdefault(name, []).append(client_id)
                else:
                    self._queue(client_id, message)
        for members in groups.values():
            self._queue(self.rng.choice(members), message)

    def _has_receiver(self, topic: str) -> bool:
        return any(_matches(name, topic) for kept in self._sessions.values() for name in kept.filters)

    def _queue(self, client_id: str, message: Message) -> None:
        self._sessions[client_id].queue.append(message)
        if client_id in self._links and client_id not in self._to_send:
            self._to_send.add(client_id)
            asyncio.get_running_loop().call_soon(self._send, client_id)

    def _send(self, client_id: str) -> None:
        self._to_send.discard(client_id)
        if client_id not in self._links or client_id not in self._sessions:
            return
        session, wire = self._links[client_id]
        kept = self._sessions[client_id]
        batch = []
        while kept.queue and len(kept.in_flight) < min(self._ahead, self._ids - 1):
            while kept.next_id in kept.in_flight:
                kept.next_id = kept.next_id % self._ids + 1
            message = kept.queue.popleft()
            kept.in_flight[kept.next_id] = message
            batch.append((kept.next_id, False, message))
            kept.next_id = kept.next_id % self._ids + 1
        if batch:
            wire.carry(DOWN, session.arrive, wire, batch)

    def acknowledged(self, client_id: str, wire: Wire, packet_ids: list[int]) -> None:
        """PUBACKs, and the PINGREQ that follows them."""
        link = self._links.get(client_id)
        if link is None or link[1] is not wire:
            return
        kept = self._sessions[client_id]
        for packet_id in packet_ids:
            kept.in_flight.pop(packet_id, None)
        wire.carry(DOWN, link[0].confirmed, wire, len(packet_ids))
        self._send(client_id)

    # -- crashes -------------------------------------------------------------------------------------

    def save(self) -> None:
        """What it may come back as."""
        self._saved = _copy(self._sessions)

    def crash(self, comes_back: str) -> None:
        """Go away; `comes_back`: `whole`, `empty` or `old`, once `restart` is called."""
        self._note(self.name, f"crashes; it comes back {comes_back}")
        self.up = False
        for client_id in list(self._links):
            self._drop_link(client_id)
        if comes_back == "empty":
            self._sessions, self._saved = {}, {}
        elif comes_back == "old":
            self._sessions = _copy(self._saved)
            for kept in self._sessions.values():
                self.sent_again += [*kept.in_flight.values(), *kept.queue]

    def restart(self) -> None:
        self.up = True

    def echo(self, count: int) -> None:
        """Send some messages of the past once more, in any order."""
        self._note(self.name, f"repeats {count} messages of the past")
        for message in self.rng.sample(list(self._past), min(count, len(self._past))):
            self._maybe_publish(message)


def _copy(sessions: dict[str, Kept]) -> dict[str, Kept]:
    kept = {name: copy.copy(one) for name, one in sessions.items() if one.stays}
    for one in kept.values():
        one.queue, one.in_flight = deque(one.queue), dict(one.in_flight)
    return kept


@lru_cache
def _matches(name: str, topic: str) -> bool:
    """MQTT's filters, as far as they are used: `+`, and `$share/GROUP/`."""
    levels: list[Any] = name.split("/")
    if levels[0] == "$share":
        levels = levels[2:]
    parts = topic.split("/")
    return len(parts) == len(levels) and all(level in ("+", part) for level, part in zip(levels, parts, strict=True))
