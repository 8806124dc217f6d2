"""Repeated messages, against a model of a broker that repeats, forgets, and reuses packet ids."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from devices.drivers import Marks
from edge.redelivery import Unconfirmed, digests


def marks(packet_id: int, *, dup: bool = False, connection: int = 1, present: bool = True) -> Marks:
    return Marks([packet_id], [dup], connection, present)


def digest(content: str) -> list[int]:
    return digests(["topic"], [content.encode()])


def test_a_repeat_needs_mark_session_id_and_digest() -> None:
    for packet_id, dup, present, content, fresh in [
        (7, True, True, "a", False),
        (7, False, True, "a", True),
        (7, True, False, "a", True),
        (8, True, True, "a", True),
        (7, True, True, "b", True),
    ]:
        unconfirmed = Unconfirmed()
        assert unconfirmed.fresh(marks(7), digest("a")) is None
        again = unconfirmed.fresh(marks(packet_id, dup=dup, connection=2, present=present), digest(content))
        assert (again is None or again == [True]) is fresh


def test_what_is_in_a_commit_is_recognised_after_a_crash_and_what_only_waited_is_not() -> None:
    unconfirmed = Unconfirmed()
    unconfirmed.fresh(Marks([1, 2], [False, False], 1, True), digests(["t", "t"], [b"a", b"b"]))
    unconfirmed.hold(marks(1), digests(["t"], [b"a"]))
    restarted = Unconfirmed()
    restarted.restore(unconfirmed.state())
    repeated = Marks([1, 2], [True, True], 1, True)
    assert restarted.fresh(repeated, digests(["t", "t"], [b"a", b"b"])) == [False, True]


def test_a_confirmed_id_may_come_again_with_the_same_content() -> None:
    unconfirmed = Unconfirmed()
    taken = digest("on")
    unconfirmed.fresh(marks(1), taken)
    unconfirmed.hold(marks(1), taken)
    unconfirmed.acknowledged(marks(1), taken)
    unconfirmed.confirm(1)
    assert len(unconfirmed) == 0
    assert unconfirmed.state() == b""
    assert unconfirmed.fresh(marks(1, dup=True, connection=2), digest("on")) == [True]


def test_a_session_lost_on_a_connection_without_messages_is_forgotten_with_the_next_commit() -> None:
    unconfirmed = Unconfirmed()
    unconfirmed.fresh(marks(1), digest("on"))
    unconfirmed.hold(marks(1), digest("on"))
    nothing = Marks([], [], 2, False)
    assert unconfirmed.fresh(nothing, []) is None
    unconfirmed.hold(nothing, [])
    assert unconfirmed.state() == b""
    assert unconfirmed.fresh(marks(1, dup=True, connection=3), digest("on")) == [True]


def test_messages_without_acknowledgement_leave_no_trace() -> None:
    unconfirmed = Unconfirmed()
    assert unconfirmed.fresh(marks(0), digest("a")) is None
    unconfirmed.hold(marks(0), digest("a"))
    assert len(unconfirmed) == 0
    assert unconfirmed.state() == b""


@given(st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=40)), min_size=1, max_size=20))
def test_digests_do_not_depend_on_the_company_and_tell_messages_apart(messages: list[tuple[str, bytes]]) -> None:
    together = digests([t for t, _ in messages], [p for _, p in messages])
    alone = [digests([t], [p])[0] for t, p in messages]
    assert together == alone
    assert len(set(alone)) == len(set(messages))


def test_a_huge_topic_is_digested_like_any_other_and_takes_no_memory() -> None:
    huge = [f"{n}{'x' * 60_000}" for n in range(200)]
    tracemalloc.start()
    try:
        together = digests([*huge, "t"], [b"1"] * 201)
        kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert together[0] == digests(huge[:1], [b"1"])[0]
    assert together[200] == digests(["t"], [b"1"])[0]
    assert len(set(together)) == 201
    assert peak_bytes < 1_000_000
    assert kept_bytes < 100_000


def test_digests_are_the_same_in_every_process() -> None:
    assert digests(["plant/a/t"], [b"23.5"]) == [4_943_741_056_525_459_928]


@dataclass
class Message:
    """One message in the broker's session."""

    number: int
    packet_id: int
    content: str
    sent_before: bool = False


@dataclass
class Receiver:
    """What a crash leaves of us, and what it takes."""

    stored: list[int] = field(default_factory=list)
    state: bytes = b""


class Custody(RuleBasedStateMachine):
    """A broker with six packet ids and two contents, so that everything that can be mixed up is."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.outstanding: list[Message] = []
        """In the broker's session, in order, and not acknowledged there."""
        self.receiver = Receiver()
        self.connect_as_new()
        self.published: list[int] = []

    def connect_as_new(self) -> None:
        self.unconfirmed = Unconfirmed()
        self.unconfirmed.restore(self.receiver.state)
        self.connection = 0
        self.waiting: list[tuple[Marks, list[int], list[int]]] = []
        self.reconnect()

    def reconnect(self) -> None:
        self.connection += 1
        self.to_settle: list[tuple[Marks, list[int]]] = getattr(self, "to_settle", [])
        self.acked = 0
        for message in self.outstanding:
            self.deliver(message, dup=message.sent_before)

    def deliver(self, message: Message, *, dup: bool) -> None:
        message.sent_before = True
        m = marks(message.packet_id, dup=dup, connection=self.connection)
        d = digest(message.content)
        fresh = self.unconfirmed.fresh(m, d)
        numbers = [message.number] if fresh is None or fresh[0] else []
        self.waiting.append((m, d, numbers))

    @precondition(lambda self: len(self.outstanding) < 4)
    @rule(content=st.sampled_from(["on", "off"]), arrives=st.booleans())
    def publish(self, content: str, arrives: bool) -> None:
        """Ids go round, as mosquitto's do. `arrives` False: lost with the link."""
        self.number += 1
        message = Message(self.number, self.number % 6 + 1, content)
        self.published.append(self.number)
        self.outstanding.append(message)
        if arrives:
            self.deliver(message, dup=False)
        else:
            message.sent_before = True
            self.reconnect()

    @rule(count=st.integers(1, 4))
    def commit(self, count: int) -> None:
        """The oldest deliveries are drained and committed; they will be acknowledged."""
        drained, self.waiting = self.waiting[:count], self.waiting[count:]
        for m, d, _ in drained:
            self.unconfirmed.hold(m, d)
        for m, d, numbers in drained:
            self.receiver.stored += numbers
            self.to_settle.append((m, d))
        if drained:
            self.receiver.state = self.unconfirmed.state()

    @rule(arrives=st.booleans(), confirmed=st.booleans())
    def settle(self, arrives: bool, confirmed: bool) -> None:
        """Acknowledgements go out; they may be lost with the link, or their confirmation may."""
        settled, self.to_settle = self.to_settle, []
        taken = 0
        for m, d in settled:
            if m.connection != self.connection:
                continue  # the session ignores it
            self.unconfirmed.acknowledged(m, d)
            if arrives:
                taken += 1
                self.outstanding = [o for o in self.outstanding if o.packet_id != m.packet_ids[0]]
        if arrives and confirmed:
            self.unconfirmed.confirm(taken)
        else:
            self.reconnect()

    @rule()
    def lose_the_link(self) -> None:
        self.reconnect()

    @rule()
    def crash(self) -> None:
        """Everything that was not committed is gone, acknowledgements that were not sent as well."""
        self.to_settle = []
        self.connect_as_new()

    @invariant()
    def nothing_is_stored_twice(self) -> None:
        assert len(self.receiver.stored) == len(set(self.receiver.stored))

    def teardown(self) -> None:
        """In the end everything is stored."""
        while self.waiting:
            self.commit(4)
        assert sorted(self.receiver.stored) == self.published


TestCustody = Custody.TestCase
TestCustody.settings = settings(max_examples=150, stateful_step_count=40)
