"""What a `check` finds: lines for people, and how many of them are problems."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Findings:
    """Lines to print, and how many of them are problems."""

    lines: list[str] = field(default_factory=list)
    problems: int = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def problem(self, line: str) -> None:
        """Something that must be put right."""
        self.problems += 1
        self.lines.append(f"  PROBLEM: {line}")

    def note(self, line: str) -> None:
        """Something to know."""
        self.lines.append(f"  note: {line}")

    def add(self, other: Findings) -> None:
        self.lines += other.lines
        self.problems += other.problems

    def close(self) -> None:
        """The last line, which says whether all is well."""
        self.say("all is well" if not self.problems else f"problems: {self.problems}")


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """While this lasts the parts that are looked at log nothing: the findings say it."""
    parts = logging.getLogger("devices")
    level = parts.level
    parts.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        parts.setLevel(level)
