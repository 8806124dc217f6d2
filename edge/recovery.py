"""After a start: the operators as they were at the last commit.

The last whole snapshot is loaded, and the blocks of the journal that follow it are replayed: the same
samples with the same verdicts, and the same ticks. Nothing is emitted: what they led to is in the outbox,
or was receipted. State that this version cannot read is built anew from all of the journal that there is.
"""

from __future__ import annotations

import logging
import time

from devices.errors import StoreCorrupt, StoreError
from edge import journal
from edge.operators import Operators
from edge.store import Store

log = logging.getLogger("forebay.recovery")


def recover(store: Store, operators: Operators) -> int:
    """Bring the operators to the state of the last commit; return the block that the snapshot covered."""
    started_s = time.monotonic()
    for index, spec in enumerate(store.series()):
        operators.set_series(index, spec)
    after_block, state = store.read_snapshot()
    if state:
        try:
            operators.restore(state)
        except (StoreError, KeyError, ValueError) as error:
            log.warning("the snapshot cannot be used (%s): building the state from the journal", error)
            after_block = 0
    blocks = samples = 0
    try:
        for _, data in store.blocks(after_block):
            block = journal.decode(data)
            operators.replay(block)
            blocks, samples = blocks + 1, samples + len(block.batch)
    except StoreCorrupt as error:
        log.error("%s: what follows it in the journal is not replayed", error)
    if blocks:
        log.info("replayed %d blocks, %d samples in %.2f s", blocks, samples, time.monotonic() - started_s)
    return after_block
