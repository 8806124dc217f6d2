"""What the next commit will make durable: gathered turn by turn, and built into a `Commit` at each attempt.

A store that is full or fails for a while changes nothing in what will be stored, only when.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from devices.model import Bytes, Int64s, SampleBatch, SeriesSpec
from edge import journal
from edge.clock import Anchor
from edge.custody import BuriedFrame, Commit, DeadLetter, OutboxRow
from edge.held import Step
from edge.identity import has_time
from edge.ledger import Deltas
from edge.operators import Operators
from edge.redelivery import Unconfirmed
from edge.seal import Sealed

SAMPLES_MAX = 4096
"""The pump runs ahead of the store by at most this; without the wait the store's thread never gets the GIL."""


@dataclass(slots=True)
class Pending:
    """One commit in the making."""

    resumed_ns: int = 0
    """The daemon started, at this time, before all else."""
    step: Step | None = None
    """Held samples were released, before all else but that."""
    anchor: Anchor | None = None
    """Of the times of samples that are held."""
    batches: list[SampleBatch] = field(default_factory=list)
    verdicts: list[Bytes] = field(default_factory=list)
    samples: int = 0
    oldest_arrival_ns: int = 0
    ticks: list[tuple[int, int]] = field(default_factory=list)
    """(number of samples before it, its time in ns)."""
    deltas: Deltas = field(default_factory=Deltas)
    sealed: bool = False
    """What has closed goes into frames with this commit; decided by a tick, done when the commit begins."""
    new_series: list[tuple[int, SeriesSpec]] = field(default_factory=list)
    changed: list[tuple[int, SeriesSpec]] = field(default_factory=list)
    series: int = 0
    """How many there are at its end."""
    frames: list[Sealed] = field(default_factory=list)
    removed: list[OutboxRow] = field(default_factory=list)
    """Frames that leave the outbox: receipted, refused or dropped."""
    merged: list[OutboxRow] = field(default_factory=list)
    """Frames whose windows are in `frames` now: they leave the outbox with those, never before."""
    buried: list[BuriedFrame] = field(default_factory=list)
    to_backfill: bool = False
    trim_journal_to: int = 0
    trim_bytes: int = 0
    """Of the blocks that go."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    replayed: list[int] = field(default_factory=list)
    """Dead letters that go, since what was in them is here."""
    settles: list[Callable[[], None]] = field(default_factory=list)
    """Acknowledge the sources: to be called once it is durable."""
    repeating: dict[str, Unconfirmed] = field(default_factory=dict)
    """Sources whose brokers may send again what is in it."""
    unconfirmed: dict[str, bytes] = field(default_factory=dict)
    """Their state when the commit began."""
    born_ns: int = 0
    """The store followed one set aside, and a trusted clock has now told when."""

    def is_worth_it(self) -> bool:
        """False: only ticks without consequences, which the next block may as well hold."""
        return bool(
            self.batches
            or self.step
            or self.sealed
            or self.frames
            or self.removed
            or self.dead_letters
            or self.replayed
            or self.deltas
            or self.settles
            or self.to_backfill
        )

    def is_at_its_beginning(self) -> bool:
        """Nothing has been done yet that is done again in order."""
        return not (self.batches or self.ticks or self.step)

    def tick(self, tick_ns: int, *, was_idle: bool) -> None:
        """Note a tick. If the one before it changed nothing (`was_idle`), and no sample has come since, this one stands
        for both."""
        if was_idle and self.ticks and self.ticks[-1][0] == self.samples:
            self.ticks.pop()
        self.ticks.append((self.samples, tick_ns))

    def add(self, batch: SampleBatch, verdict: Bytes, arrived_ns: int) -> None:
        if not self.batches:
            self.oldest_arrival_ns = arrived_ns
        self.batches.append(batch)
        self.verdicts.append(verdict)
        self.samples += len(batch)

    def count(self, operators: Operators, deltas: Deltas) -> None:
        """Move samples in the ledger now, and again when the block is replayed."""
        operators.apply(deltas)
        self.deltas.extend(deltas)

    def move_samples(self, counts: Int64s) -> None:
        """`counts` int64[series]: add the samples of frames that come into the outbox, less those that leave it."""
        for row, _ in self.frames:
            np.add.at(counts, row.custody.series, row.custody.samples)
        for row in (*self.removed, *self.merged):
            np.subtract.at(counts, row.custody.series, row.custody.samples)

    def take_removals(self, later: Pending) -> None:
        """What has left the outbox since leaves it with this commit, which may need the room."""
        self.removed += later.removed
        self.buried += later.buried
        for fate in ("stored", "refused", "dropped"):
            getattr(self.deltas, fate).extend(getattr(later.deltas, fate))
            getattr(later.deltas, fate).clear()
        later.removed, later.buried = [], []
        self.to_backfill, later.to_backfill = self.to_backfill or later.to_backfill, False

    def relief(self) -> Pending:
        """What makes room, taken out of it: for a commit of its own, before this one, which found none."""
        first = Pending(series=self.series - len(self.new_series))
        first.take_removals(self)
        return first

    def build(self) -> Commit:
        """What the store is to do; send limits are the uplink's to add."""
        commit = Commit(
            new_series=self.new_series,
            frames=list(self.frames),
            removed=[row.seq for row in (*self.removed, *self.merged)],
            buried=list(self.buried),
            dead_letters=self.dead_letters,
            replayed=self.replayed,
            trim_journal_to=self.trim_journal_to,
            unconfirmed=self.unconfirmed,
            born_ns=self.born_ns,
        )
        if self.batches or self.ticks or self.step or self.deltas or self.sealed or self.changed:
            self._build_block(commit)
        return commit

    def _build_block(self, commit: Commit) -> None:
        batch, verdict = SampleBatch.empty(), np.empty(0, np.uint8)
        if self.batches:
            batch, verdict = SampleBatch.concat(self.batches), np.concatenate(self.verdicts)
        block = journal.Block(
            batch, verdict, self.ticks, self.deltas, self.sealed, self.resumed_ns, self.changed, self.series
        )
        block.step, block.anchor = self.step, self.anchor
        commit.block = journal.encode(block)
        commit.samples = len(batch)
        # A rejected time, years ahead, must not count as how far the journal reaches.
        times_ns = batch.time_ns[has_time(verdict)]
        if len(times_ns):
            commit.first_ns, commit.last_ns = int(times_ns.min()), int(times_ns.max())
