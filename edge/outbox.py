"""The index of the outbox: which frames there are, and which may go. Plain decisions, no waiting.

A frame is in one of these states, and `Outbox` is the only judge of which:

  held       above its lane's send limit: never published, may be merged or dropped by edge/retention.py
  due        at or below the limit, not on its way: published as soon as link and budget allow
  published  sent, waiting for its receipt; due again after `receipt_timeout`, doubling to 5 min, with jitter
  quiet      sent twice since the last receipt of all: nobody stores now, and the broker has it. One of each lane
             at a time goes on asking, and all follow when there is a receipt, or another link
  slow       sent five times while others were receipted: out of the window, so that it holds up nothing; due
             again after an hour at most
  leaving    receipted, merged or dropped: gone with the next commit, and no longer anybody's choice

The send limit of a lane is raised in a commit and published from only after it, so no frame that the cloud
may have seen is ever merged. It never falls. The window of a lane counts the bytes at or below its limit that
have no receipt; alarms have a window of their own, so a backlog never stands before an alarm. That of a
backlog grows and shrinks with the time that receipts take (edge/pace.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from devices.model import Int64s, Lane
from edge.custody import OutboxRow
from edge.pace import Pace

log = logging.getLogger("forebay.uplink")

SENDS_BEFORE_SLOW = 5
RECEIPT_TIMEOUT_MAX_S = 300.0
SLOW_TIMEOUT_MAX_S = 3600.0
TRIES_BEFORE_QUIET = 2
"""A second, since a broker may have forgotten the first without a word; more of them only fill its queue and the
month's budget: at a sink away for half a day each frame was sent 145 times."""
QUIET_ENDS_S = 60.0
"""After a receipt those that were quiet are left so much longer alone: the broker gives what it has to the cloud."""
GIVEN_UP_MAX = 1000
"""Frames remembered whose receipt may still come: what they hold is `unconfirmed` until then."""
PACED = (Lane.BACKFILL, Lane.RAW)
"""Lanes whose windows follow the cloud's pace; what is made now goes now."""


@dataclass(slots=True)
class Flight:
    """What is known of a frame that may be published, beside its row."""

    row: OutboxRow
    sends: int = 0
    tries: int = 0
    """Sends on this connection: what the wait for the receipt grows with."""
    sent_at_s: float = 0.0
    """Loop time of the first of them."""
    due_at_s: float = 0.0
    """Loop time from which it may be published (again)."""
    receipts_seen: int = 0
    """Receipts of the whole uplink at its last send: the frame is slow only if others got through."""
    slow: bool = False


@dataclass(slots=True)
class _Lane:
    pace: Pace
    limit: int = 0
    below: dict[int, Flight] = field(default_factory=dict)
    """At or below the send limit, by seq."""
    above: dict[int, OutboxRow] = field(default_factory=dict)
    """Held, in order of seq."""
    window_bytes: int = 0


class Outbox:
    """All frames of the store, by lane."""

    def __init__(self, rows: Iterable[OutboxRow], limits: dict[Lane, int], window_bytes: int) -> None:
        self._window_limit = window_bytes
        self._lanes = {lane: _Lane(Pace(window_bytes), limits.get(lane, 0)) for lane in Lane}
        self._lane_of: dict[int, Lane] = {}
        self._leaving: dict[int, OutboxRow] = {}
        self._given_up: dict[int, OutboxRow] = {}
        """Published, and dropped before their receipts; not over a restart."""
        self.samples: Int64s = np.zeros(64, np.int64)
        """By series: the samples that the frames are answerable for, those of leaving ones included."""
        self.size_bytes = 0
        self.receipts = 0
        self._any_quiet = False
        for row in rows:
            self._insert(row)

    def __len__(self) -> int:
        return len(self._lane_of) + len(self._leaving)

    def resize(self, window_bytes: int) -> None:
        """Other windows from now on; what is below a send limit stays there."""
        self._window_limit = window_bytes
        for lane in self._lanes.values():
            lane.pace.most_bytes = window_bytes

    # -- what there is -------------------------------------------------------------------------------

    def staying(self) -> list[OutboxRow]:
        """The frames that are not leaving, oldest first."""
        return [self._row(seq) for seq in sorted(self._lane_of)]

    def held(self) -> list[OutboxRow]:
        """The frames that were never published."""
        return [row for lane in self._lanes.values() for row in lane.above.values()]

    def has_held(self, leaf: str = "") -> bool:
        """Whether a frame (for this topic leaf) has never been published."""
        return any(not leaf or row.leaf == leaf for lane in self._lanes.values() for row in lane.above.values())

    def has_published(self) -> bool:
        """Whether any frame may have been published, and waits."""
        return any(lane.below for lane in self._lanes.values())

    def oldest_held_ns(self) -> int:
        """When the oldest frame that was never published was made; 0: there is none."""
        return min(
            (next(iter(lane.above.values())).created_ns for lane in self._lanes.values() if lane.above), default=0
        )

    def slow(self) -> list[int]:
        return [seq for lane in self._lanes.values() for seq, flight in lane.below.items() if flight.slow]

    def find(self, seq: int) -> OutboxRow | None:
        """The frame, if it is there and not leaving."""
        return self._row(seq) if seq in self._lane_of else None

    def _row(self, seq: int) -> OutboxRow:
        lane = self._lanes[self._lane_of[seq]]
        flight = lane.below.get(seq)
        return flight.row if flight else lane.above[seq]

    def lane_back(self, seq: int, lane: Lane) -> Lane:
        """Where a frame goes that was published before: its lane, or one whose send limit covers it, since what the
        cloud may have seen is never merged."""
        return lane if seq <= self._lanes[lane].limit else max(self._lanes, key=lambda name: self._lanes[name].limit)

    # -- coming and going ----------------------------------------------------------------------------

    def receipted(self, seq: int, now_s: float) -> OutboxRow:
        """A receipt has come for it: how long that took says how much of its lane may be on its way."""
        lane = self._lanes[self._lane_of[seq]]
        flight = lane.below.get(seq)
        if flight and flight.tries:
            lane.pace.answered(flight.row.size_bytes, flight.sent_at_s, now_s)
        if self._any_quiet:
            for quiet in self._below():
                if self._is_quiet(quiet):
                    quiet.due_at_s = max(quiet.due_at_s, now_s + QUIET_ENDS_S)
            self._any_quiet = False
        self.receipts += 1
        return self.leave(seq)

    def give_up(self, seq: int) -> OutboxRow:
        """The store drops it, though the cloud may have it."""
        row = self._given_up[seq] = self.leave(seq)
        if len(self._given_up) > GIVEN_UP_MAX:
            del self._given_up[next(iter(self._given_up))]
        return row

    def given_up(self, seq: int) -> OutboxRow | None:
        """The frame, if it was given up and is remembered."""
        return self._given_up.get(seq)

    def receipted_late(self, seq: int) -> OutboxRow:
        """The cloud has what was given up."""
        return self._given_up.pop(seq)

    def leave(self, seq: int) -> OutboxRow:
        """It is receipted, or the store gives it up: its window is free, and the next commit removes it."""
        lane = self._lanes[self._lane_of.pop(seq)]
        flight = lane.below.pop(seq, None)
        if flight and not flight.slow:
            lane.window_bytes -= flight.row.size_bytes
        row = self._leaving[seq] = flight.row if flight else lane.above.pop(seq)
        return row

    def committed(
        self, new: Iterable[OutboxRow], limits: dict[Lane, int], removed: Iterable[int], to_backfill: bool = False
    ) -> None:
        """The commit with these frames and limits, and without the removed ones, is durable."""
        for seq in removed:
            row = self._leaving.pop(seq)
            self.size_bytes -= row.size_bytes
            custody = row.custody
            np.subtract.at(self.samples, custody.series, custody.samples)
        if to_backfill:
            self._to_backfill()
        for name, limit in limits.items():
            lane = self._lanes[name]
            lane.limit = limit
            for seq in [seq for seq in lane.above if seq <= limit]:
                self._let_go(lane, lane.above.pop(seq))
        for row in new:
            self._insert(row)

    def _to_backfill(self) -> None:
        """The live frames that were never published are backlog: they follow what is made from now on."""
        live, backfill = self._lanes[Lane.LIVE], self._lanes[Lane.BACKFILL]
        for row in live.above.values():
            row.lane = self._lane_of[row.seq] = Lane.BACKFILL
            if row.seq <= backfill.limit:  # in the store it cannot be told from one that was published
                self._let_go(backfill, row)
            else:
                backfill.above[row.seq] = row
        live.above = {}
        backfill.above = dict(sorted(backfill.above.items()))

    def _insert(self, row: OutboxRow) -> None:
        lane = self._lanes[row.lane]
        self._lane_of[row.seq] = row.lane
        self.size_bytes += row.size_bytes
        custody = row.custody
        if len(custody.series):
            highest = int(custody.series.max())
            if highest >= len(self.samples):
                self.samples = np.concatenate([self.samples, np.zeros(highest + 1, np.int64)])
            np.add.at(self.samples, custody.series, custody.samples)
        if row.seq <= lane.limit:
            self._let_go(lane, row)
        else:
            lane.above[row.seq] = row

    def _let_go(self, lane: _Lane, row: OutboxRow) -> None:
        lane.below[row.seq] = Flight(row)
        lane.window_bytes += row.size_bytes

    # -- send limits ---------------------------------------------------------------------------------

    def plan_limits(self, new: Sequence[OutboxRow], to_backfill: bool = False) -> dict[Lane, int]:
        """The send limits that the windows allow, once `new` is committed and (`to_backfill`) what is live and held
        has become backlog; only those that rise."""
        limits = {}
        for name, lane in self._lanes.items():
            limit, window = lane.limit, lane.window_bytes
            allowed = lane.pace.window_bytes if name in PACED else self._window_limit
            for row in (*self._waiting(name, to_backfill), *(row for row in new if row.lane == name)):
                if window and window + row.size_bytes > allowed:
                    break
                limit, window = max(limit, row.seq), window + row.size_bytes
            if limit > lane.limit:
                limits[name] = limit
        return limits

    def _waiting(self, name: Lane, to_backfill: bool) -> Iterable[OutboxRow]:
        above = self._lanes[name].above
        if not to_backfill or name not in (Lane.LIVE, Lane.BACKFILL):
            return above.values()
        live = self._lanes[Lane.LIVE].above
        return () if name == Lane.LIVE else [row for _, row in sorted({**above, **live}.items())]

    def live_limit(self) -> int:
        return self._lanes[Lane.LIVE].limit

    # -- what may be published -----------------------------------------------------------------------

    def due(self, now_s: float) -> list[Flight]:
        """What may be published now: lane by lane, oldest first."""
        return [flight for flight in self._asking() if flight.due_at_s <= now_s]

    def next_due_s(self) -> float:
        """The loop time at which the next frame is due; infinity when none is below a limit."""
        return min((flight.due_at_s for flight in self._asking()), default=float("inf"))

    def _below(self) -> Iterator[Flight]:
        return (flight for lane in self._lanes.values() for flight in lane.below.values())

    def _is_quiet(self, flight: Flight) -> bool:
        return flight.tries >= TRIES_BEFORE_QUIET and flight.receipts_seen == self.receipts

    def _asking(self) -> Iterator[Flight]:
        """All that may be published, but the quiet ones: of those one of each lane."""
        for lane in self._lanes.values():
            quiet = []
            for flight in lane.below.values():
                if self._is_quiet(flight):
                    quiet.append(flight)
                else:
                    yield flight
            if quiet:
                yield min(quiet, key=lambda flight: (flight.due_at_s, flight.tries))

    def published(self, flight: Flight, now_s: float, timeout_s: float, jitter: float) -> None:
        lane = self._lanes[flight.row.lane]
        pace, asks = lane.pace, self._is_quiet(flight)
        if not flight.tries:
            flight.sent_at_s = now_s
        else:
            pace.late(flight.sent_at_s, now_s)
        flight.sends += 1
        flight.tries += 1
        most_s = SLOW_TIMEOUT_MAX_S if flight.slow else RECEIPT_TIMEOUT_MAX_S
        wait_s = min(pace.timeout_s(timeout_s) * 2 ** min(flight.tries - 1, 30), most_s)
        flight.due_at_s = now_s + wait_s * (0.75 + 0.5 * jitter)
        others_got_through = self.receipts > flight.receipts_seen
        flight.receipts_seen = self.receipts
        self._any_quiet |= self._is_quiet(flight)
        if asks:  # it may be what nobody takes: next time another one asks
            for other in lane.below.values():
                other.due_at_s = max(other.due_at_s, flight.due_at_s if self._is_quiet(other) else 0.0)
        if flight.sends > SENDS_BEFORE_SLOW and others_got_through and not flight.slow:
            flight.slow = True
            lane.window_bytes -= flight.row.size_bytes
            log.warning("frame %d has no receipt after %d sends: moved to the slow lane", flight.row.seq, flight.sends)

    def not_sent(self, seq: int) -> None:
        """The broker threw it away: as if it had not been published."""
        if seq in self._lane_of and (flight := self._lanes[self._lane_of[seq]].below.get(seq)):
            flight.sends, flight.tries, flight.due_at_s = flight.sends - 1, max(flight.tries - 1, 0), 0.0

    def link_lost(self) -> None:
        """What was on its way may be lost with the link: all of it is due again."""
        for lane in self._lanes.values():
            lane.pace.begin()
            for flight in lane.below.values():
                flight.due_at_s, flight.tries = 0.0, 0
