"""What a running demo shows: a live table in a terminal, and otherwise a line every few seconds."""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from simulators.parts import Service

LINE_EVERY_S = 2.0


class Vitals:
    """What edge and ingester say of themselves at one moment; for people to see, not for the account."""

    def __init__(self, edge: Service, ingester: Service) -> None:
        self.time_s = time.monotonic()
        page = edge.page("/status")
        self.status: dict[str, Any] = json.loads(page) if page else {}
        self.metrics = _metric_totals(ingester.page("/metrics").decode())

    def of(self, *path: str) -> Any:
        """A value of the edge's status; None where it is not there."""
        value: Any = self.status
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def linked(self) -> bool:
        """Whether edge and ingester both hold the uplink's broker."""
        return bool(self.of("link", "connected")) and self.metrics.get("forebay_ingest_connected") == 1

    @property
    def uplink_bytes(self) -> int:
        """At the edge's uplink socket, both directions."""
        return int(self.of("link", "bytes_in") or 0) + int(self.of("link", "bytes_out") or 0)


def _metric_totals(page: str) -> dict[str, float]:
    """Prometheus' text, each metric summed over its labels."""
    totals: dict[str, float] = {}
    for line in page.splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.rpartition(" ")
            name = key.partition("{")[0]
            totals[name] = totals.get(name, 0.0) + float(value)
    return totals


class Display:
    """A context in which `show` may be called as often as wanted."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        self._before: Vitals | None = None
        self._shown_s = 0.0

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, elapsed_s: float, vitals: Vitals, alarms_seen: int, note: str) -> None:
        """The state at `elapsed_s` of the run; `note`: what the demo itself is doing."""
        rows = _rows(vitals, self._before, alarms_seen)
        if self._live is not None:
            table = Table(title=f"{elapsed_s:.0f} s  {note}", title_justify="left", show_header=False)
            for name, text in rows:
                table.add_row(name, text)
            self._live.update(table, refresh=True)
        elif vitals.time_s - self._shown_s >= LINE_EVERY_S:
            self._shown_s = vitals.time_s
            self.say(f"{elapsed_s:4.0f} s  " + "; ".join(f"{name}: {text}" for name, text in rows) + f"; {note}")
        else:
            return
        self._before = vitals


def _rows(vitals: Vitals, before: Vitals | None, alarms_seen: int) -> list[tuple[str, str]]:
    lines = vitals.metrics.get("forebay_ingest_stored_lines_total", 0.0)
    pace = 0.0
    if before is not None:
        pace = (lines - before.metrics.get("forebay_ingest_stored_lines_total", 0.0)) / (vitals.time_s - before.time_s)
    link = "connected" if vitals.of("link", "connected") else f"down ({vitals.of('link', 'error') or 'not connected'})"
    if vitals.of("link", "connected") and vitals.of("link", "nobody_listens"):
        link = "connected; the ingester is not yet"
    outbox = f"{vitals.of('store', 'outbox_frames') or 0} frames, {_size(vitals.of('store', 'outbox_bytes') or 0)}"
    return [
        ("edge", f"{vitals.of('rates', 'samples_per_s') or 0:.0f} samples/s in"),
        ("frames", f"{vitals.of('rates', 'frames_per_s') or 0:.1f}/s out"),
        ("link", link),
        ("outbox", outbox),
        ("ingester", f"{pace:.0f} lines/s, {lines:.0f} in all"),
        ("lag", f"{vitals.of('lag_ms') or 0:.0f} ms"),
        ("alarms", f"{vitals.of('alarms', 'open') or 0} open, {alarms_seen} records in the sink"),
        ("ledger", _ledger(vitals)),
    ]


def _ledger(vitals: Vitals) -> str:
    produced, stored, waiting = (vitals.of("ledger", name) or 0 for name in ("produced", "stored", "waiting"))
    rejected, dropped = (sum((vitals.of("ledger", name) or {}).values()) for name in ("rejected", "dropped"))
    return f"{produced} = {stored} stored + {waiting} waiting + {rejected} rejected + {dropped} dropped"


def _size(count: float) -> str:
    return f"{count / 1024:.0f} KiB" if count < 1024 * 1024 else f"{count / 1024 / 1024:.1f} MiB"
