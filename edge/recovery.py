"""After a start: the store opened, and the operators as they were at the last commit.

The last whole snapshot is loaded, and the blocks of the journal that follow it are replayed: the same
samples with the same verdicts, the same ticks, and the same changes of settings. Nothing is emitted: what they
led to is in the outbox, or was receipted.

What can be wrong, and what becomes of it
  a snapshot that this version cannot read    the state is built anew from all of the journal that there is, and
                                              the account begins with what is waiting
  a damaged block of the journal              left out: its samples are lost to windows that were open
  any other damage of the file                the file is set aside whole, and an empty one is begun, into which the
                                              frames and dead letters that can be read are taken over
                                              (edge/salvage.py)
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from devices.errors import StoreCorrupt, StoreError
from devices.model import SeriesSpec
from edge import journal
from edge.custody import OutboxRow
from edge.identity import History
from edge.operators import Operators, series_of
from edge.recent import ROWS, Recent
from edge.salvage import salvage
from edge.store import Store
from edge.storefile import is_damage

log = logging.getLogger("forebay.recovery")


class Recovered(NamedTuple):
    """What the daemon begins with."""

    store: Store
    operators: Operators
    snapshot_block: int
    """The block that the last whole snapshot covers."""
    changed: dict[int, SeriesSpec]
    """Settings that count by now, and that only the journal has."""
    outbox: list[OutboxRow]
    unconfirmed: dict[str, bytes]
    recent: Recent


def recover(path: Path, max_size_bytes: int, history: History) -> Recovered:
    """Open the store, or begin a new one. Raises StoreError only where none can be used or made."""
    store = Store.open(path, max_size_bytes)
    try:
        return _recover(store, history)
    except (StoreCorrupt, sqlite3.DatabaseError) as error:
        store.close()
        if isinstance(error, sqlite3.DatabaseError) and not is_damage(error):
            raise StoreError(f"{path} cannot be read: {error}") from error
        return _recover(Store.anew(path, max_size_bytes, str(error)), history)


def _recover(store: Store, history: History) -> Recovered:
    started_s = time.monotonic()
    salvage(store)
    outbox, specs = store.outbox(), store.series()
    for row in outbox:
        if any(row.custody.series >= len(specs)):
            raise StoreCorrupt(f"frame {row.seq} answers for series that are not in the table")
    after_block = 0
    try:
        after_block, state = store.read_snapshot()
        operators = _known(specs, series_of(state), history)
        if state:
            operators.restore(state)
    except StoreError as error:
        log.error("the snapshot cannot be used (%s): building the state from the journal", error)
        operators, after_block = _known(specs, 0, history), 0
        _replay(store, specs, operators, after_block)
        _balance(operators, outbox)
    else:
        if not _replay(store, specs, operators, after_block):
            _balance(operators, outbox)
    log.info(
        "recovered in %.2f s: %d series, %d frames wait",
        time.monotonic() - started_s,
        len(operators.specs),
        len(outbox),
    )
    changed = {index: now for index, (now, was) in enumerate(zip(operators.specs, specs, strict=True)) if now != was}
    return Recovered(store, operators, after_block, changed, outbox, store.unconfirmed(), _recent(store))


def _recent(store: Store) -> Recent:
    """What was in memory before: else every sample that is sent again would be looked for in the journal."""
    forgotten_ns, blocks = store.newest_blocks(ROWS)
    recent = Recent(forgotten_ns)
    for data in blocks:
        try:
            if data is None:
                raise StoreCorrupt("a block does not have its checksum")
            block = journal.decode(data)
            recent.add(block.batch, block.verdict)
        except StoreCorrupt:
            recent.forgotten_ns = store.committed().high_ns
    return recent


def _known(specs: list[SeriesSpec], count: int, history: History) -> Operators:
    operators = Operators(history)
    for index, spec in enumerate(specs[:count]):
        operators.set_series(index, spec)
    return operators


def _replay(store: Store, specs: list[SeriesSpec], operators: Operators, after_block: int) -> bool:
    """Whether every block could be replayed. Each series joins with the block that first knew it."""
    is_whole = True
    for block_id, data in store.blocks(after_block):
        try:
            if data is None:
                raise StoreCorrupt(f"journal block {block_id} does not have its checksum")
            block = journal.decode(data)
        except StoreCorrupt as error:
            log.error("%s: it is left out", error)
            operators.take()  # most blocks end so; what was sent must not be sent again
            is_whole = False
            continue
        for index in range(len(operators.specs), block.series):
            operators.set_series(index, specs[index])
        operators.replay(block)
    for index in range(len(operators.specs), len(specs)):
        operators.set_series(index, specs[index])
    return is_whole


def _balance(operators: Operators, outbox: list[OutboxRow]) -> None:
    """Let the account begin with what there is: what was produced before is known no more."""
    ledger = operators.ledger
    waiting = operators.open_samples()
    for row in outbox:
        custody = row.custody
        np.add.at(waiting, custody.series, custody.samples)
    ledger.produced[: ledger.size] -= ledger.imbalance(waiting)
