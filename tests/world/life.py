"""One life of a process: from its start to its crash. All that it does outside itself goes through `step`.

A crash severs first: from that moment on no port does anything, whatever the dying code still tries; then
its tasks are cancelled. Memory dies with the process, so all that a crash can leave behind is decided by
which of its acts on the outside still happened: a crash may come before and after each of them (`fuse`),
and that is a crash at every await.
"""

from __future__ import annotations

import asyncio
import contextvars
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

OWNER: contextvars.ContextVar[Life | None] = contextvars.ContextVar("owner", default=None)

Note = Callable[[str, str], None]


class Life:
    """A process that lives until it crashes, or ends."""

    looks_after: tuple[str, ...] = ()
    """Acts after which `look` is called, once whoever acts has come to wait."""

    def __init__(self, name: str, note: Note, fail: Callable[[str], None], fuse: int) -> None:
        """`fuse`: the number of acts after which it crashes; 0: never."""
        self.name = name
        self.alive = True
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """How: `crash` or `stop`."""
        self.on_death: list[Callable[[], None]] = []
        self._note = note
        self._fail = fail
        self._fuse = fuse
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._context = contextvars.copy_context()
        self._context.run(OWNER.set, self)
        self._looks = False

    def step(self, what: str) -> bool:
        """Whether the process, which is about to act or has acted on the outside, still lives."""
        if not self.alive:
            return False
        self._note(self.name, what)
        self._fuse -= 1
        if self._fuse == 0:
            self.crash()
            return False
        if what in self.looks_after and not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_soon(self._look)
        return True

    def _look(self) -> None:
        self._looks = False
        if self.alive:
            self.look()

    def look(self) -> None:
        """What must be true of a living process whenever it waits."""

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """A task of this process; whatever tasks it makes belong to the process too."""
        task = self._context.run(asyncio.get_running_loop().create_task, work, name=name)
        task.add_done_callback(self._one_ended)
        return task

    def adopt(self, task: asyncio.Task[Any]) -> None:
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    def _one_ended(self, task: asyncio.Task[Any]) -> None:
        if self.alive and not task.cancelled() and (error := task.exception()) is not None:
            trace = "".join(traceback.format_exception(error))
            self._fail(f"the task {task.get_name()!r} of {self.name} ended with {error!r}\n{trace}")

    def light(self, fuse: int) -> None:
        """It crashes after so many acts."""
        self._fuse = fuse

    def spare(self) -> None:
        """It does not crash any more."""
        self._fuse = 0

    def crash(self) -> None:
        if self.alive:
            self._note(self.name, "CRASHES")
            self._die("crash")

    def stopped(self) -> None:
        """It has ended by itself, in order."""
        if self.alive:
            self._note(self.name, "has ended")
            self._die("stop")

    def _die(self, how: str) -> None:
        self.alive = False
        for tell in self.on_death:
            tell()
        self.ended.set_result(how)

    async def bury(self) -> None:
        """Cancel its tasks, and those that they make while they die."""
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.001)


def task_factory(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    """Makes tasks, and lets the process that they belong to know."""
    task = asyncio.Task(work, loop=loop, **options)
    owner = OWNER.get()
    if owner is not None:
        owner.adopt(task)
    return task
