"""The store on a thread of its own, for the event loop: a commit waits for the disk, and nothing waits for it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from numpy.typing import NDArray

from devices.errors import StoreCorrupt, StoreError
from devices.model import Int64s, SeriesSpec
from edge.custody import Commit, Committed, DeadLetter, JournalRow
from edge.store import Store
from edge.storefile import is_damage

T = TypeVar("T")


class StoreThread:
    """One call at a time, in order. Every method may raise StoreError; one that met damage, StoreCorrupt."""

    def __init__(self, store: Store, executor: ThreadPoolExecutor) -> None:
        self._store = store
        self._executor = executor
        self._damage: StoreCorrupt | None = None
        """Found by whoever reads or writes; the next commit raises it, so that the pump ends."""

    async def commit(self, commit: Commit) -> Committed:
        if self._damage is not None:
            raise self._damage
        return await self._call(self._store.commit, commit)

    async def write_snapshot(
        self, after_block: int, state: dict[str, NDArray[Any]], changed: dict[int, SeriesSpec]
    ) -> None:
        """Commits go in between its steps."""
        steps = self._store.snapshot_steps(after_block, state, changed)
        while await self._call(_step, steps):
            pass

    async def oldest_blocks(self) -> list[JournalRow]:
        return await self._call(self._store.oldest_blocks)

    async def frames(self, seqs: list[int]) -> dict[int, bytes]:
        return await self._call(self._store.frames, seqs)

    def blocks_around(self, times_ns: Int64s, after: int) -> list[tuple[int, bytes]]:
        """Waits for the thread: for the rare sample that is older than what is in memory."""
        try:
            return self._executor.submit(self._store.blocks_around, times_ns, after).result()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    async def subscribed(self, session_name: str, filters: list[str]) -> list[str]:
        return await self._call(self._store.subscribed, session_name, filters)

    async def dead_letters(self, only: int = 0) -> list[DeadLetter]:
        return await self._call(self._store.dead_letters, only)

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
        except StoreCorrupt as error:
            self._damage = error
            raise
        except sqlite3.Error as error:  # of the methods that only read
            raise self._unreadable(error) from error

    def _unreadable(self, error: sqlite3.Error) -> StoreError:
        if not is_damage(error):
            return StoreError(f"{self._store.path} cannot be read: {error}")
        self._damage = StoreCorrupt(f"{self._store.path} is damaged: {error}")
        return self._damage


def _step(steps: Iterator[None]) -> bool:
    """Whether there is another."""
    return next(steps, steps) is not steps
