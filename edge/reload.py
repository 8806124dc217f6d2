"""SIGHUP: the configuration file is read again, and what has changed is told.

A file that is wrong, or that asks for what only a restart can change, is refused with a sentence, and the
gateway runs on as it was. Nothing is decided here about how the parts change over: that is edge/daemon.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from devices.errors import ForebayError
from devices.tables import builtins
from edge.config import EdgeConfig, load_config

log = logging.getLogger("forebay.reload")

FIXED = ("gateway", "store.path", "store.max_size", "status.listen", "clock.trust_after")
"""What the store, the status page and the clock were made with."""
CHANGES_SHOWN = 20
_ABSENT = object()


class Reloads:
    """Reads the file again when told, and remembers how that went."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = 0
        self.refused = 0
        self.running: EdgeConfig | None = None
        """The last that was taken."""
        self.last_refusal = ""
        """Why the last file was refused; "" once one was taken."""

    def read(self, running: EdgeConfig, prepare: Callable[[EdgeConfig], object]) -> EdgeConfig | None:
        """The file's configuration; None, and said, where it is refused. `prepare` may refuse it too: ForebayError."""
        try:
            wanted = load_config(self.path)
            if fixed := [key for key in FIXED if _at(running, key) != _at(wanted, key)]:
                raise ForebayError(
                    f"{' and '.join(fixed)} cannot change while the gateway runs: put it back, or restart forebay-edge"
                )
            prepare(wanted)
        except ForebayError as error:
            self.refused += 1
            self.last_refusal = str(error)
            log.error("%s is refused, the old configuration runs on: %s", self.path, error)
            return None
        return wanted

    def taken(self, before: EdgeConfig, now: EdgeConfig) -> None:
        """The parts run with the new configuration."""
        self.done += 1
        self.running = now
        self.last_refusal = ""
        changed = list(changes(builtins(before), builtins(now)))
        said = "; ".join(changed[:CHANGES_SHOWN]) or "nothing has changed"
        if len(changed) > CHANGES_SHOWN:
            said += f"; and {len(changed) - CHANGES_SHOWN} more"
        log.info("the configuration was read again: %s", said)


def changes(before: object, now: object, path: str = "") -> Iterator[str]:
    """Each key that differs, with both values; a table that came or went as one."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            was, will_be = before.get(key, _ABSENT), now.get(key, _ABSENT)
            yield from changes(was, will_be, f"{path}.{key}" if path else str(key))
    elif before is _ABSENT:
        yield f"{path} is new"
    elif now is _ABSENT:
        yield f"{path} is gone"
    elif before != now:
        yield f"{path}: {before!r} -> {now!r}"


def _at(config: EdgeConfig, path: str) -> object:
    value: object = config
    for name in path.split("."):
        value = getattr(value, name)
    return value
