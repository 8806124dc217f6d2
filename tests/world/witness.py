"""Sees every commit as it becomes durable, every frame and receipt that is sent, and holds them to the promises.

Its own state is the simplest that can tell: the outbox as rows and limits, the operators as a *shadow* that is
fed each block of the journal from the first on, and never crashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from cloud.lines import encode as lines_of
from cloud.validate import admit
from devices.errors import FrameError
from devices.model import DROP_POLICIES, Lane, SeriesSpec
from devices.wire import topics
from devices.wire.frame import FrameLimits, decode
from devices.wire.receipt import decode_receipt
from edge import journal
from edge.custody import Commit, OutboxRow, Usage
from edge.identity import ACCEPTED, BEHIND_JOURNAL, HELD, RELEASED
from edge.operators import Operators
from edge.retention import START
from tests.world.broker import Message
from tests.world.database import Database
from tests.world.sensors import GARBAGE, ON_ARRIVAL, Record

UNCONFIRMED = DROP_POLICIES.index("unconfirmed")
DAY_NS = 86_400 * 10**9


class Taken(NamedTuple):
    """A sample in custody: of one accepted for the windows, or raw."""

    time_ns: int
    value: float


class Witness:
    """Of one gateway; `new_store` when its disk was replaced."""

    def __init__(self, record: Record, database: Database, fail: Callable[[str], None]) -> None:
        self.accepted: dict[str, dict[int, float]] = {}
        """Topic of the series -> time -> value."""
        self.behind: dict[str, dict[int, float]] = {}
        """The same, of what came behind the journal's end."""
        self.lost_with_the_disk: dict[str, set[int]] = {}
        """Times of what a disk took along: it may be in the database, or not."""
        self.twice: set[tuple[str, float]] = set()
        """(topic, value) on arrival, of what the sensors' broker may have sent twice without a mark."""
        self.disks = 0
        self.commits = self.frames = self.receipts = self.held = 0
        self._record = record
        self._database = database
        self._fail = fail
        self._published: dict[bytes, tuple[str, bytes]] = {}
        self._receipted: set[bytes] = set()
        self.new_store()

    def new_store(self) -> None:
        self.disks += 1
        self.shadow = Operators(_no_history)
        self._seen: set[tuple[str, float]] = set()
        """(topic, time or value) of all samples that were committed, whatever their verdict."""
        self._held: Counter[tuple[str, float]] = Counter()
        """Of those, how many wait for a trusted clock: what came twice without a mark is held twice."""
        self._rows: dict[int, OutboxRow] = {}
        self._lanes: dict[int, Lane] = {}
        self._limits: dict[Lane, int] = {}
        self._max_seq = 0
        self._epoch = 0
        self._snapshot = 0
        self.is_pressed = False
        """The store is nearly full, or the last commit found it so: only then anything may be given up."""

    # -- the store -----------------------------------------------------------------------------------

    def opened(
        self, epoch: int, operators: Operators, rows: list[OutboxRow], limits: dict[Lane, int], usage: Usage
    ) -> None:
        """After a start: what was recovered is what was committed, bit for bit."""
        if self._epoch and epoch != self._epoch:
            self._fail("the store's epoch has changed")
        self._epoch = epoch
        self.is_pressed = is_pressed(usage)
        if {row.seq for row in rows} != self._rows.keys():
            self._fail(f"the outbox holds {[row.seq for row in rows]}, and should hold {sorted(self._rows)}")
        if any(row.lane != self._lanes[row.seq] for row in rows) or limits != self._limits:
            self._fail(f"lanes or limits are others than was committed: {limits}, {self._limits}")
        self.compare(operators, "recovered")

    def compare(self, operators: Operators, what: str) -> None:
        """Whether these operators are those of a run that never crashed."""
        before, after = _state(self.shadow), _state(operators)
        mine, theirs = _as_text(before, after), _as_text(after, before)
        for name, rows in mine.items():
            for place, (row, other) in enumerate(zip_longest(rows, theirs[name])):
                if row != other:
                    self._fail(f"{what}: {name} {place} is {other}, and without crashes {row}")
        if not np.array_equal(self.shadow.open_samples(), operators.open_samples()):
            self._fail(f"the {what} operators hold other samples open than those of a run without crashes")

    def committed(self, commit: Commit, usage: Usage) -> None:
        """A transaction is durable."""
        self.commits += 1
        if usage.used_bytes > usage.limit_bytes:
            self._fail(f"the store uses {usage.used_bytes} of {usage.limit_bytes} bytes")
        if commit.trim_journal_to > self._snapshot:
            self._fail(f"the journal is trimmed to block {commit.trim_journal_to}, past snapshot {self._snapshot}")
        block = journal.decode(commit.block) if commit.block else None
        self._removed(commit, block)
        if commit.to_backfill_above is not None:
            for seq, lane in self._lanes.items():
                if lane == Lane.LIVE and seq > commit.to_backfill_above:
                    self._lanes[seq] = Lane.BACKFILL
        for row, _ in commit.frames:
            self.frames += 1
            if row.seq <= self._max_seq:
                self._fail(f"the outbox gives seq {row.seq} after {self._max_seq}")
            self._max_seq = row.seq
            self._rows[row.seq], self._lanes[row.seq] = row, row.lane
        for lane, limit in commit.send_limits.items():
            if limit < self._limits.get(lane, 0):
                self._fail(f"the send limit of {lane.name} falls from {self._limits[lane]} to {limit}")
            self._limits[lane] = limit
        self.is_pressed = is_pressed(usage)
        for index, spec in commit.new_series:
            self.shadow.set_series(index, spec)
        if block is not None:
            self._replay(block)

    def _removed(self, commit: Commit, block: journal.Block | None) -> None:
        unconfirmed = {s for s, policy, _ in (block.deltas.dropped if block else []) if policy == UNCONFIRMED}
        for seq in commit.removed:
            row = self._rows.pop(seq, None)
            if row is None:
                self._fail(f"frame {seq} is removed, and was not there")
                continue
            lane = self._lanes.pop(seq)
            was_published = seq <= self._limits.get(lane, 0)
            may_go = self.is_pressed and set(row.custody.series.tolist()) <= unconfirmed
            if was_published and self._correlation(row) not in self._receipted and not may_go:
                self._fail(f"frame {seq} ({row.leaf}) is removed without a receipt, and may have been published")

    def _correlation(self, row: OutboxRow) -> bytes:
        return self._epoch.to_bytes(8, "big") + row.seq.to_bytes(8, "big") + row.digest

    def _replay(self, block: journal.Block) -> None:
        shadow, batch = self.shadow, block.batch
        for series, time_ns, value, verdict in zip(
            batch.series.tolist(), batch.time_ns.tolist(), batch.value.tolist(), block.verdict.tolist(), strict=True
        ):
            self._sample(shadow.specs[series], time_ns, value, verdict)
        shadow.replay(block)

    def _sample(self, spec: SeriesSpec, time_ns: int, value: float, verdict: int) -> None:
        topic = f"plant/{spec.device}/{spec.channel}"
        on_arrival = spec.channel in ON_ARRIVAL
        if on_arrival:
            was_sent = (topic, value) in self._record.values
            known: tuple[str, float] = (topic, value)
        else:
            was_sent = value in self._record.stamped.get((topic, time_ns), ())
            known = (topic, time_ns)
        if not was_sent:
            self._fail(f"{topic} at {time_ns} is {value}, and was never sent so")
        if verdict == HELD:
            self.held += 1
            self._came_once(topic, value)
            self._held[known] += 1  # its time is an estimate, and it is in no window: it comes again as RELEASED
        elif verdict in (ACCEPTED, RELEASED):
            accepted = self.accepted.setdefault(topic, {})
            if time_ns in accepted and time_ns not in self.lost_with_the_disk.get(topic, ()):
                self._fail(f"{topic} at {time_ns} is accepted twice")
            if verdict == RELEASED:
                if not self._held[known]:
                    self._fail(f"{topic} = {value} is released, and was not held")
                self._held[known] -= 1
            elif on_arrival:
                self._came_once(topic, value)
            accepted[time_ns] = value
        elif verdict == BEHIND_JOURNAL:
            behind = self.behind.setdefault(topic, {})
            if behind.setdefault(time_ns, value) != value:
                self._database.contested.add((topic, time_ns))
        self._seen.add(known)

    def _came_once(self, topic: str, value: float) -> None:
        """What is stamped on arrival is in custody once, but where its broker forgot that it had sent it."""
        if (topic, value) in self._seen and (topic, value) not in self.twice:
            number = self._record.values[topic, value]
            self._fail(f"message {number} ({topic} = {value}) came once, and is accepted twice")

    def snapshot_is_whole(self, after_block: int) -> None:
        self._snapshot = after_block

    def disk_is_lost(self) -> None:
        """The store's file is replaced: what had no receipt is gone, and may be in the database or not."""
        for topic, accepted in self.accepted.items():
            self.lost_with_the_disk.setdefault(topic, set()).update(accepted)
        for topic, behind in self.behind.items():
            self.lost_with_the_disk.setdefault(topic, set()).update(behind)
        self.new_store()

    # -- the sources -----------------------------------------------------------------------------------

    def acknowledged(self, messages: list[Message]) -> None:
        """Forebay answers for these from now on."""
        for message in messages:
            if message.payload == GARBAGE:
                continue
            channel = message.topic.rpartition("/")[2]
            if channel in ON_ARRIVAL:
                known: tuple[str, float] = (message.topic, float(message.payload))
            else:
                known = (message.topic, int(message.payload.rpartition(b":")[2][:-1]))
            if known not in self._seen:
                self._fail(f"message {message.number} ({message.topic}) is acknowledged, and not committed")

    def sent_again(self, messages: list[Message]) -> None:
        """The sensors' broker came back as it was some time ago, with these."""
        for message in messages:
            if message.topic.rpartition("/")[2] in ON_ARRIVAL and message.payload != GARBAGE:
                self.twice.add((message.topic, float(message.payload)))

    # -- the uplink ----------------------------------------------------------------------------------

    def published(self, topic: str, payload: bytes, correlation: bytes | None) -> None:
        """The edge publishes a frame."""
        assert correlation is not None
        told = topics.parse_correlation(correlation)
        row = self._rows.get(told.seq)
        if row is None or self._correlation(row) != correlation:
            self._fail(f"frame {told.seq} is published, and the outbox has no such frame")
            return
        lane = self._lanes[told.seq]
        if told.seq > self._limits.get(lane, 0):
            self._fail(f"frame {told.seq} is published above the send limit of {lane.name}")
        self._published[correlation] = topic, payload

    def receipted(self, payload: bytes, correlation: bytes | None, now_ns: int) -> None:
        """An ingester sends a receipt: all that it does not reject must be in the database."""
        assert correlation is not None
        self.receipts += 1
        if correlation in self._receipted:
            return  # it was looked for before, and nothing leaves the database
        topic, frame_bytes = self._published[correlation]
        receipt = decode_receipt(payload)
        if receipt.refused:
            self._fail(f"a frame under {topic} is refused: {receipt.refused}")
        frame = decode(frame_bytes, FrameLimits())
        admitted = admit(frame, topics.parse(topic)[0], now_ns=now_ns, max_ahead_ns=DAY_NS)
        named = {(one.series, one.reason) for one in receipt.rejected}
        lines = lines_of(admitted.frame, now_ns)
        for line, series in zip(lines.body.split(b"\n"), lines.series.tolist(), strict=False):
            if self._database.is_bad(line):
                if (series, "sink") not in named:
                    self._fail(f"a receipt does not name the rejected line {line.decode()!r}")
            elif not self._database.holds(line):
                self._fail(f"a receipt is sent, and the database does not hold {line.decode()!r}")
        self._receipted.add(correlation)


def is_pressed(usage: Usage) -> bool:
    return usage.used_bytes > usage.limit_bytes * START


def _state(operators: Operators) -> dict[str, Any]:
    """All state, but what may differ."""
    alarms = operators.alarms.snapshot()
    alarms.known_ns = []  # counts until a series has a sample; a replay knows of the series some ticks earlier
    alarms.open.sort(key=lambda alarm: alarm[:2])  # the journal has samples by series, not all in order of arrival
    alarms.last_ns.sort()
    return operators.snapshot() | {"alarms": np.array([repr(alarms)])}


def _as_text(state: dict[str, Any], other: dict[str, Any]) -> dict[str, list[str]]:
    """What differs bit by bit, as text, which shows every bit of a float, row by row: padding and NaNs do not."""
    return {
        name: list(map(repr, array.tolist()))
        for name, array in state.items()
        if array.tobytes() != other[name].tobytes()
    }


def _no_history(series: int, times_ns: Any) -> tuple[Any, Any]:
    raise FrameError("a replay asks no history", "internal")
