"""What the benchmarks share: their options, the table, the JSON file, and the cost of a process."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

CLOCK_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PROCESS_STAT_UTIME = 11  # fields after the name, which may hold blanks; see proc(5)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has; it adds its own."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures as one flat JSON object")
    return made


def report(title: str, rows: Sequence[Sequence[object]], figures: Mapping[str, float], path: Path | None) -> None:
    """Print the table, whose first row is its head, and the figures that count; write them to `path` if asked."""
    print(f"\n{title}\n{machine()}\n")
    print(table(rows), end="\n\n")
    for name, value in figures.items():
        print(f"{name} = {_text(value)}")
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(dict(figures)), indent=2) + b"\n")


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows in columns, the first row as their head; numbers to the right."""
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    align = [str.rjust if isinstance(cell, int | float) else str.ljust for cell in rows[-1]]
    lines = [
        "  ".join(set_in(cell, width) for set_in, cell, width in zip(align, row, widths, strict=True)) for row in texts
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def machine() -> str:
    """The machine in one line: a figure without it means little."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return (
        f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()} {platform.release()}"
    )


def cpu_s(pid: int) -> float:
    """CPU of a process since it started, user and system, with the children that it has waited for; 10 ms steps."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[PROCESS_STAT_UTIME : PROCESS_STAT_UTIME + 4])) * CLOCK_TICK_S


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def wait_for(ready: Callable[[], bool], timeout_s: float, what: str, poll_s: float = 0.05) -> None:
    """Wait until `ready()`; end the benchmark with a sentence if that takes longer than `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline_s:
            sys.exit(f"{what}: not within {timeout_s:g} s")
        time.sleep(poll_s)


class Meter:
    """The time and CPU of processes between `with` and its end: `wall_s`, and `cpu_s` by name."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        self.cpu_s: dict[str, float] = {}
        self.wall_s = 0.0

    def __enter__(self) -> Meter:
        self._before = {name: cpu_s(pid) for name, pid in self._pids.items()}
        self._started_s = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall_s = time.monotonic() - self._started_s
        self.cpu_s = {name: cpu_s(pid) - self._before[name] for name, pid in self._pids.items()}
