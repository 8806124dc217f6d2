"""A child process whose output goes to a file, and which is ended by its pid."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from devices.errors import ForebayError

POLL_S = 0.02
LOG_TAIL_BYTES = 4096


class ProcessError(ForebayError):
    """A child process did not start, or did not become ready. Carries the end of its output."""


class Process:
    """One program, started and ended as often as wanted; its output is appended to `log`.

    It leads a process group of its own, so that Ctrl-C in a terminal ends the parent first, which then
    ends its children in order. Should the parent be killed, the kernel kills the child: it goes with the
    thread that called `start`.
    """

    def __init__(
        self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.argv = list(argv)
        self.log = log
        self.env = dict(env or {})
        self.cwd = cwd
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. It must not be running. Raises ProcessError where the program cannot be run."""
        if self.running:
            raise ProcessError(f"{self.argv[0]} is running already, as pid {self.pid}")
        setpriv = shutil.which("setpriv")
        wrapper = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        if shutil.which(self.argv[0]) is None:
            raise ProcessError(f"there is no program {self.argv[0]}")
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [*wrapper, *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.env},
                cwd=self.cwd,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """Of the last start. Raises ProcessError before the first."""
        if self._child is None:
            raise ProcessError(f"{self.argv[0]} was never started")
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """As in `subprocess`: None while it runs, minus the signal's number where a signal ended it."""
        return None if self._child is None else self._child.poll()

    def wait(self, timeout_s: float) -> int:
        """Wait for it to end by itself; gives the return code. Raises ProcessError after `timeout_s`."""
        if self._child is None:
            raise ProcessError(f"{self.argv[0]} was never started")
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"{self.argv[0]} still runs after {timeout_s:g} s{self._said()}") from None

    def wait_until(self, ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until `ready()`. Raises ProcessError if it ends before, or after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                raise ProcessError(f"{self.argv[0]} ended with {self.returncode} before {what}{self._said()}")
            if time.monotonic() > deadline_s:
                raise ProcessError(f"{self.argv[0]} was not {what} within {timeout_s:g} s{self._said()}")
            time.sleep(POLL_S)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def stop(self, timeout_s: float = 10.0) -> int | None:
        """Ask it to end (SIGTERM), and kill it if it has not after `timeout_s`; gives the return code."""
        if self._child is None:
            return None
        self.resume()
        self.send(signal.SIGTERM)
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int | None:
        """End it at once (SIGKILL); gives the return code."""
        if self._child is None:
            return None
        self.send(signal.SIGKILL)
        return self._child.wait()

    def suspend(self) -> None:
        """Stop it in its tracks (SIGSTOP): its sockets stay open, and nobody answers."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    def output(self) -> str:
        """All that it has written so far, over all starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _said(self) -> str:
        tail = self.output()[-LOG_TAIL_BYTES:].strip()
        return f". It said:\n{tail}" if tail else ", and said nothing"
