"""An event loop of virtual time, and a thread that is none.

Nothing waits: where a real loop would sleep in `select`, this one moves its clock. So a day passes in seconds,
and a run is a function of its seed: what happens, and in which order, is the same each time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

TURN_S = 1e-6
"""What a turn of the loop takes at least: where no time passed, who waits for less than a float can tell would wait
for ever."""


class Stalled(Exception):
    """Every task waits, and nothing will ever happen: a deadlock."""


class VirtualLoop(asyncio.BaseEventLoop):
    """`time()` is virtual; `select` advances it; executors are `Thread`s."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._selector = self
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._now_s

    def select(self, timeout_s: float | None) -> Sequence[Any]:
        if timeout_s is None:
            raise Stalled("nothing will ever happen")
        self._now_s += max(timeout_s, TURN_S)
        return ()

    def _process_events(self, events: Sequence[Any]) -> None:
        """There are none: all that comes from outside comes from timers."""

    def _write_to_self(self) -> None:
        """Nobody else's thread is there to wake it."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        return executor.call(func, *args)  # type: ignore[no-any-return]


class Thread:
    """In the place of the store's thread: one call at a time, in order; each runs as one event, and its result
    comes as a second, so that "it happened, and nobody was told" can happen."""

    def __init__(self, step: Callable[[str], bool], delay_s: Callable[[], float]) -> None:
        """`step` says whether the process still lives; `delay_s`: how long a call, and its answer, take."""
        self._step = step
        self._delay_s = delay_s
        self._calls: deque[tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._free_at_s = 0.0

    def call(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._calls.append((answer, function, arguments))
        self._free_at_s = max(self._free_at_s, loop.time()) + self._delay_s()
        loop.call_at(self._free_at_s, self._run_next)
        return answer

    def submit(self, function: Callable[..., Any], *arguments: Any) -> _Done:
        """As of a real executor whose result is waited for at once: what was called before runs first."""
        while self._calls:
            self._run_next()
        return _Done(function(*arguments))

    def _run_next(self) -> None:
        if not self._calls:
            return  # it had to run earlier
        answer, function, arguments = self._calls.popleft()
        name = getattr(function, "__name__", "call").strip("_")
        if not self._step(f"{name} begins"):
            return
        result, failure = None, None
        try:
            result = function(*arguments)
        except Exception as error:  # noqa: BLE001  as an executor does: it goes to who waits
            failure = error
        if self._step(f"{name} {'fails' if failure else 'is done'}"):
            asyncio.get_running_loop().call_later(self._delay_s(), self._tell, answer, result, failure, name)

    def _tell(self, answer: asyncio.Future[Any], result: Any, failure: Exception | None, name: str) -> None:
        if not self._step(f"{name} is known") or answer.done():
            return
        if failure is not None:
            answer.set_exception(failure)
        else:
            answer.set_result(result)


class _Done:
    """A result that is there."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        return self._value
