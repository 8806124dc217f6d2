"""Messages that a broker sends again although Forebay has them (design §4.3).

An MQTT broker repeats at QoS 1 what it has not seen acknowledged. Whether a message is such a repeat its
packet id alone does not tell: ids wrap after 65,535 messages, and a broker that was restored from an old
snapshot gives them again. A repeat needs all of: the mark DUP, a session that the broker remembered when
the connection began, and the id and the digest (of topic and payload) of a message that Forebay has taken
and whose acknowledgement the broker has not confirmed.

                    fresh()            hold()              acknowledged()         confirm()
    not known ──▶ in the intake ──▶ in a commit ──▶ PUBACK and PINGREQ sent ──▶ forgotten

What is in a commit is stored with it (`state`), so that it is recognised after a crash as well.

A broker repeats in the order in which it sent, and goes on with new messages after that (MQTT 5, 4.6). So
what earlier connections left unconfirmed, and is not repeated before something that came after it, was
taken by the broker after all, and is forgotten: kept, it could be confused with a later message that has
its id. What cannot be told apart: a broker that gives an id again to the very next message, with the same
topic and payload, and loses that message on the way, in the moment in which our PUBACK was not confirmed.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache

import numpy as np
from xxhash import xxh3_64_intdigest

from devices.drivers import Marks
from edge.flow import Flow

_TOPICS_CACHED = 8192
_TOPIC_CACHED_CHARACTERS = 256
"""A topic may have 65,535 bytes: longer ones are digested each time, so that the cache stays below 4 MB."""
_ENTRY = np.dtype([("packet_id", "<u2"), ("digest", "<u8")])


def digests(topics: list[str], payloads: list[bytes]) -> list[int]:
    """64-bit digest of each message's topic and payload (XXH3), the same in every process.

    It tells different messages apart; it does not resist one who makes collisions, who would only lose
    messages of their own.
    """
    seed = _known_seed if max(map(len, topics), default=0) <= _TOPIC_CACHED_CHARACTERS else _seed
    return [xxh3_64_intdigest(payload, seed(topic)) for topic, payload in zip(topics, payloads, strict=True)]


def _seed(topic: str) -> int:
    return xxh3_64_intdigest(topic.encode("utf-8", "surrogatepass"))


_known_seed = lru_cache(_TOPICS_CACHED)(_seed)


class Unconfirmed:
    """Messages of one source that Forebay has, and the broker may not know it."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        """Packet id -> digest, in order of receipt: in the intake, or in a commit."""
        self._held: dict[int, int] = {}
        """Those of them that are in a commit."""
        self._acknowledged: deque[tuple[int, int]] = deque()
        """On this connection, in order, and not yet confirmed."""
        self._connection = -1
        self._session_since = 0
        """The connection with which the broker's session began: names of earlier ones mean nothing."""
        self._earlier: deque[int] = deque()
        """Ids that earlier connections left, in order of receipt, as long as this one may still repeat them."""
        self.flow = Flow()

    def fresh(self, marks: Marks, digest: list[int]) -> list[bool] | None:
        """Which messages are new, in order of receipt; None: all of them. The new ones are known from now on."""
        if marks.connection != self._connection:
            self._connect(marks)
        ids = marks.packet_ids
        self.flow.came(len(ids) - ids.count(0))
        if not self._earlier and not any(marks.dups):
            for reused in self._known.keys() & ids:
                self._forget(reused)  # so that it goes to the end
            self._known.update(zip(ids, digest, strict=True))
            self._known.pop(0, None)
            return None
        return [self._is_fresh(*message) for message in zip(ids, marks.dups, digest, strict=True)]

    def _connect(self, marks: Marks) -> None:
        self._connection = marks.connection
        self._acknowledged.clear()
        self.flow.connected()
        if not marks.session_present:
            self._session_since = marks.connection
            self._known.clear()
            self._held.clear()
        self._earlier = deque(self._known)

    def _is_fresh(self, packet_id: int, dup: bool, digest: int) -> bool:
        if packet_id == 0:
            return True
        if dup and packet_id in self._earlier and self._known[packet_id] == digest:
            while (passed_over := self._earlier.popleft()) != packet_id:
                self._forget(passed_over)
            self._known[packet_id] = digest  # this object, by which `confirm` will know it
            return False
        for passed_over in self._earlier:
            self._forget(passed_over)
        self._earlier.clear()
        self._forget(packet_id)
        self._known[packet_id] = digest
        return True

    def _forget(self, packet_id: int) -> None:
        self._known.pop(packet_id, None)
        self._held.pop(packet_id, None)

    def hold(self, marks: Marks, digest: list[int]) -> None:
        """The messages go into the next commit: from it on `state` has them."""
        if marks.connection < self._session_since:
            return
        self._held.update(zip(marks.packet_ids, digest, strict=True))
        self._held.pop(0, None)

    def acknowledged(self, marks: Marks, digest: list[int]) -> None:
        """Acknowledgements were handed to the connection that brought the messages."""
        if marks.connection == self._connection:
            self._acknowledged.extend(m for m in zip(marks.packet_ids, digest, strict=True) if m[0])
            self.flow.settled(len(digest) - marks.packet_ids.count(0))

    def confirm(self, count: int) -> None:
        """The broker has taken `count` more of the acknowledgements on this connection, in their order."""
        known = self._known
        for _ in range(min(count, len(self._acknowledged))):
            packet_id, digest = self._acknowledged.popleft()
            # By identity: the id may have come again meanwhile, with a message of the same content.
            if known.get(packet_id) is digest:
                self._forget(packet_id)

    def state(self) -> bytes:
        """What must be stored with the commit: for each message 2 bytes of packet id and 8 of digest."""
        entries = np.empty(len(self._held), _ENTRY)
        entries["packet_id"] = np.fromiter(self._held.keys(), np.uint16, len(entries))
        entries["digest"] = np.fromiter(self._held.values(), np.uint64, len(entries))
        return entries.tobytes()

    def restore(self, state: bytes) -> None:
        """Take over what was stored with the last commit."""
        entries = np.frombuffer(state, _ENTRY)
        self._held = dict(zip(entries["packet_id"].tolist(), entries["digest"].tolist(), strict=True))
        self._known = dict(self._held)

    def __len__(self) -> int:
        return len(self._known)
