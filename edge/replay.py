"""What a restart would have to replay, and the snapshots that keep it short (design §9).

A restart loads the last whole snapshot and replays the journal's blocks after it (edge/recovery.py). These blocks
cannot be trimmed, so a snapshot is due when there is much to replay, when little of the journal can go, and
when settings have changed. It is copied at the end of a commit's block, and written once that commit is durable.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from numpy.typing import NDArray

from devices.errors import StoreError
from devices.model import SeriesSpec
from edge.clock import TICK_S
from edge.operators import Operators

log = logging.getLogger("forebay.pump")

SNAPSHOT_SAMPLES = 500_000
SNAPSHOT_S = 600.0
SNAPSHOT_SHARE = 1 / 8
"""Or once so much of the limit is journal that cannot be trimmed: a small store would find no room for a commit."""
SNAPSHOT_RETRY_S = 10.0


class SnapshotPort(Protocol):
    """What is asked of the store."""

    async def write_snapshot(
        self, after_block: int, state: dict[str, NDArray[Any]], changed: dict[int, SeriesSpec]
    ) -> None: ...


class Replay:
    """From the last snapshot to now. Order of calls: `begin`; then `take`, and `write` once its block is durable."""

    def __init__(
        self, operators: Operators, store: SnapshotPort, *, snapshot_block: int, changed: dict[int, SeriesSpec]
    ) -> None:
        self._operators = operators
        self._store = store
        self.snapshot_block = snapshot_block
        """The last that the last whole snapshot covers."""
        self.samples = SNAPSHOT_SAMPLES  # one soon after a start: the replay must not grow
        """Taken in since the last one was copied."""
        self.fresh_bytes = 0
        """Of the journal, since the last one was whole."""
        self._changed = changed
        """Settings that count by now, and that only the journal has: they go with the next snapshot."""
        self._task: asyncio.Task[None] | None = None
        self._last_s = 0.0
        self._due_s = 0.0

    def begin(self, now_s: float) -> None:
        self._due_s = now_s + SNAPSHOT_S

    def follow(self, before: Replay) -> None:
        """Go on where another has ended."""
        self.snapshot_block, self._changed, self.samples = before.snapshot_block, before._changed, before.samples

    def is_due(self, now_s: float, limit_bytes: int, *, is_asked: bool, changed: bool) -> bool:
        """Whether to copy one at the end of the block that is being made. `limit_bytes`: the store's; `is_asked`: after
        it the journal could be trimmed further; `changed`: settings are to change there."""
        if self._task is not None and not self._task.done():
            return False
        if is_asked and now_s >= self._last_s + SNAPSHOT_RETRY_S:
            return True
        too_much = self.fresh_bytes > limit_bytes * SNAPSHOT_SHARE
        return changed or self.samples >= SNAPSHOT_SAMPLES or now_s >= self._due_s or too_much

    def take(self, now_s: float, changed: dict[int, SeriesSpec]) -> dict[str, NDArray[Any]]:
        """Copy the state, with settings that have just `changed`."""
        self._changed |= changed
        self.samples = 0
        self._last_s, self._due_s = now_s, now_s + SNAPSHOT_S
        return self._operators.snapshot()

    def discard(self, now_s: float) -> None:
        """The copy is of no use: the commit goes on to change what it would have to hold."""
        self._due_s = min(self._due_s, now_s + SNAPSHOT_RETRY_S)

    def write(self, after_block: int, state: dict[str, NDArray[Any]]) -> None:
        """Begin to write the copy; commits go in between."""
        self._task = asyncio.get_running_loop().create_task(self._write(after_block, state), name="snapshot")

    async def written(self) -> None:
        """Wait until none is being written."""
        if self._task is not None:
            await self._task

    async def _write(self, after_block: int, state: dict[str, NDArray[Any]]) -> None:
        changed = dict(self._changed)
        try:
            await self._store.write_snapshot(after_block, state, changed)
        except StoreError as error:
            log.warning("%s; the journal is kept from the last snapshot on", error)
            self._due_s = asyncio.get_running_loop().time() + SNAPSHOT_RETRY_S
            return
        self.snapshot_block, self.fresh_bytes = after_block, 0
        self._changed = {index: spec for index, spec in self._changed.items() if changed.get(index) is not spec}

    def snapshot_each_s(self, now_s: float) -> float:
        """From one to the next, at the rate since the last."""
        since_s = max(now_s - self._last_s, TICK_S)
        return min(SNAPSHOT_S, SNAPSHOT_SAMPLES * since_s / max(self.samples, 1))
