"""What the daemon shows of itself: the state for the command line, and the metrics for Prometheus.

Plain functions of the daemon's parts, called when somebody asks; nothing is computed otherwise.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from devices.model import DROP_POLICIES, REJECT_REASONS, Int64s
from devices.wire.session import Session
from edge import kernels
from edge.config import EdgeConfig
from edge.intake import Intake
from edge.metrics import family
from edge.operators import Operators
from edge.outage import sentence as outage_sentence
from edge.pump import Pump
from edge.reload import Reloads
from edge.report import SOFTWARE, ledger_of
from edge.store import Store
from edge.uplink import Uplink

NOBODY_LISTENS = (
    "no ingester is subscribed at the broker, and frames are kept: does forebay-cloud run, with this broker?"
)
RATE_S = 1.0
"""Rates are those of the last stretch of at least this long."""


@dataclass(slots=True)
class Rates:
    """Per second, between two looks."""

    at_s: float
    samples: int
    frames: int
    samples_per_s: float = 0.0
    frames_per_s: float = 0.0

    def look(self, now_s: float, samples: int, frames: int) -> None:
        span_s = now_s - self.at_s
        if span_s < RATE_S:
            return
        self.samples_per_s = (samples - self.samples) / span_s
        self.frames_per_s = (frames - self.frames) / span_s
        self.at_s, self.samples, self.frames = now_s, samples, frames


class Views:
    """The daemon's parts, looked at. Order of calls: `show`, and again after each reload; then any other."""

    def __init__(self, store: Store, operators: Operators, intake: Intake, reloads: Reloads) -> None:
        self._store = store
        self._operators = operators
        self._intake = intake
        self._reloads = reloads
        self._started_s = time.monotonic()
        self._config: EdgeConfig
        self._pump: Pump
        self._uplink: Uplink
        self._session: Session
        self._rates: Rates

    def show(self, config: EdgeConfig, pump: Pump, uplink: Uplink, session: Session) -> None:
        """Look at these from now on: the parts that one configuration has."""
        self._config, self._pump, self._uplink, self._session = config, pump, uplink, session
        self._rates = Rates(time.monotonic(), pump.samples, uplink.frames_published)

    def ready(self) -> str:
        """ "" once samples can be taken in and committed."""
        committer = self._pump.committer
        if self._pump.room.blocked:
            return "the store is full: samples wait at their sources until receipts make room"
        return committer.store_error or ("" if committer.commits else "nothing has been committed yet")

    def status(self) -> dict[str, Any]:
        """The state as JSON; docs/configuration.md does not bind it, `forebay-edge status` prints it."""
        now_s = time.monotonic()
        pump, uplink, session = self._pump, self._uplink, self._session
        outbox = uplink.outbox
        self._rates.look(now_s, pump.samples, uplink.frames_published)
        usage = pump.committer.committed.usage
        oldest_ns = outbox.oldest_held_ns()
        return {
            "gateway": self._config.gateway,
            "software": SOFTWARE,
            "pid": os.getpid(),
            "kernels": kernels.backend,
            "uptime_s": now_s - self._started_s,
            "ready": not self.ready(),
            "link": {
                "connected": session.connected,
                "error": (
                    session.error
                    or uplink.refusal
                    or (NOBODY_LISTENS if uplink.nobody_listens else "")
                    or uplink.twins.sentence(now_s)
                ),
                "twin": bool(uplink.twins.sentence(now_s)),
                "tried_ago_s": session.tried_ago_s,
                "next_try_in_s": session.next_try_in_s,
                "nobody_listens": uplink.nobody_listens,
                "bytes_in": session.bytes_in,
                "bytes_out": session.bytes_out,
            },
            "sources": {name: self._source(name) for name in self._intake.sources},
            "store": {
                "bytes": usage.used_bytes,
                "limit_bytes": usage.limit_bytes,
                "journal_bytes": usage.journal_bytes,
                "outbox_frames": len(outbox),
                "outbox_bytes": outbox.size_bytes,
                "slow_frames": len(outbox.slow()),
                "when_full": self._config.store.when_full,
                "blocked": pump.room.blocked,
                "merged_windows": pump.room.merged_windows,
                "error": pump.committer.store_error,
            },
            "outage": self._outage(),
            "month": self._month(),
            "disk": self._disk(),
            "dead_letters": self._dead_letters(),
            "configuration": {
                "digest": self._config.digest,
                "reloads": self._reloads.done,
                "refused": self._reloads.refused,
                "refusal": self._reloads.last_refusal,
            },
            "clock": self._clock(),
            "ledger": self._ledger(),
            "alarms": {"open": self._operators.alarms.open_count()},
            "series": sum(1 for spec in self._operators.specs if spec.channel),
            "rates": {"samples_per_s": self._rates.samples_per_s, "frames_per_s": self._rates.frames_per_s},
            "lag_ms": (pump.clock.now_ns() - oldest_ns) / 1e6 if oldest_ns else 0.0,
        }

    def _outage(self) -> dict[str, Any]:
        budget_s = self._pump.committer.outage_budget_s()
        known = budget_s == budget_s
        return {
            "budget_s": budget_s if known else None,
            "means": outage_sentence(budget_s, self._config.store.when_full),
        }

    def _month(self) -> dict[str, Any]:
        """Empty without `uplink.max_per_month`."""
        month = self._uplink.month
        if month is None:
            return {}
        return {
            "spent_bytes": month.spent_bytes,
            "limit_bytes": month.max_bytes,
            "stage": month.stage.name.lower().replace("_", " "),
            "means": month.sentence(),
        }

    def _dead_letters(self) -> dict[str, Any]:
        letters = self._store.letters
        return {"kept": letters.kept, "bytes": letters.size_bytes, "gone": letters.gone}

    def _disk(self) -> dict[str, Any]:
        """`years_left` with `store.endurance` alone."""
        wear, endurance = self._store.wear, self._config.store.endurance
        disk = {"written_bytes": wear.look().bytes, "written_bytes_per_day": wear.bytes_per_day()}
        return disk if endurance is None else {**disk, "years_left": wear.years(endurance)}

    def _source(self, name: str) -> dict[str, Any]:
        source = self._intake.sources[name]
        status = source.status
        return {
            "state": status.state,
            "error": status.error or source.last_error,
            "bytes_in": status.bytes_in,
            "messages": status.messages,
            "samples": source.samples,
            "rejected": source.rejected,
            "reconnects": status.reconnects,
            "skipped": status.skipped,
            "overruns": status.overruns,
        }

    def _clock(self) -> dict[str, Any]:
        clock = self._pump.clock
        since = datetime.fromtimestamp(clock.since_ns / 1e9, UTC)
        return {
            "trusted": clock.trusted,
            "why": clock.ground(),
            "since": since.isoformat(timespec="seconds"),
            "ahead_s": clock.ahead_ns() / 1e9,
            "held": self._operators.held.samples,
        }

    def _ledger(self) -> dict[str, Any]:
        ledger, n = self._operators.ledger, len(self._operators.specs)
        waiting = self._pump.waiting()
        return {
            "produced": int(ledger.produced[:n].sum()),
            "stored": int(ledger.stored[:n].sum()),
            "waiting": int(waiting.sum()),
            "rejected": _named(REJECT_REASONS, ledger.rejected[:n]),
            "dropped": _named(DROP_POLICIES, ledger.dropped[:n]),
            "late": int(ledger.late[:n].sum() + self._operators.windows.late_counts().sum()),
            "imbalance": int(np.abs(ledger.imbalance(waiting)).sum()),
            "accounts": ledger_of(self._operators, waiting, self._pump.clock.now_ns()).accounts,
        }

    def metrics(self) -> str:
        """All metrics as Prometheus text."""
        status = self.status()
        ledger, store, link, clock = status["ledger"], status["store"], status["link"], status["clock"]
        letters, pump, uplink = status["dead_letters"], self._pump, self._uplink
        lines = [
            *family("forebay_samples_produced_total", "counter", "Samples taken in", ledger["produced"]),
            *family("forebay_samples_stored_total", "counter", "Samples with a receipt", ledger["stored"]),
            *family("forebay_samples_waiting", "gauge", "Samples that await a receipt", ledger["waiting"]),
            *family("forebay_samples_late_total", "counter", "Samples behind their window", ledger["late"]),
            *family(
                "forebay_samples_rejected_total",
                "counter",
                "Samples rejected, by reason",
                [({"reason": reason}, count) for reason, count in ledger["rejected"].items()],
            ),
            *family(
                "forebay_samples_dropped_total",
                "counter",
                "Samples dropped, by policy",
                [({"policy": policy}, count) for policy, count in ledger["dropped"].items()],
            ),
            *family("forebay_ledger_imbalance_samples", "gauge", "Samples unaccounted for", ledger["imbalance"]),
            *family("forebay_reloads_total", "counter", "Configurations taken while running", self._reloads.done),
            *family("forebay_reloads_refused_total", "counter", "Files refused at a reload", self._reloads.refused),
            *family("forebay_clock_trusted", "gauge", "1 while the clock is believed", int(clock["trusted"])),
            *family("forebay_clock_ahead_seconds", "gauge", "System clock less the estimate", clock["ahead_s"]),
            *family("forebay_samples_held", "gauge", "Samples that wait for a clock to be believed", clock["held"]),
            *family("forebay_series", "gauge", "Series of this gateway", status["series"]),
            *family("forebay_alarms_open", "gauge", "Alarms that are open", status["alarms"]["open"]),
            *family("forebay_store_used_bytes", "gauge", "Bytes of the store in use", store["bytes"]),
            *family("forebay_store_limit_bytes", "gauge", "Bytes that the store may hold", store["limit_bytes"]),
            *self._disk_metrics(status["disk"]),
            *family("forebay_store_blocked", "gauge", "1 while sources wait for room", int(store["blocked"])),
            *family(
                "forebay_merged_windows_total",
                "counter",
                "Windows that went into longer ones for lack of room, or to spare the month's budget",
                store["merged_windows"],
            ),
            *family("forebay_journal_bytes", "gauge", "Bytes of raw samples kept", store["journal_bytes"]),
            *family("forebay_outbox_frames", "gauge", "Frames that await a receipt", store["outbox_frames"]),
            *family("forebay_outbox_bytes", "gauge", "Bytes of these frames", store["outbox_bytes"]),
            *family("forebay_dead_letters", "gauge", "Dead letters that are kept", letters["kept"]),
            *family("forebay_dead_letters_bytes", "gauge", "Bytes of these", letters["bytes"]),
            *family("forebay_dead_letters_gone_total", "counter", "Those gone for lack of room", letters["gone"]),
            *family(
                "forebay_outage_budget_seconds",
                "gauge",
                "How long the link may be away before data are merged, dropped or wait",
                pump.committer.outage_budget_s(),
            ),
            *self._month_metrics(),
            *family("forebay_uplink_twin", "gauge", "1 while another gateway has this name", int(link["twin"])),
            *family("forebay_uplink_connected", "gauge", "1 while the broker is connected", int(link["connected"])),
            *family("forebay_uplink_received_bytes_total", "counter", "Bytes read from the uplink", link["bytes_in"]),
            *family("forebay_uplink_sent_bytes_total", "counter", "Bytes written to the uplink", link["bytes_out"]),
            *family("forebay_frames_published_total", "counter", "Frames published", uplink.frames_published),
            *family("forebay_frames_receipted_total", "counter", "Frames receipted", uplink.frames_receipted),
            *family("forebay_commits_total", "counter", "Commits of the store", pump.committer.commits),
            *self._source_metrics(status["sources"]),
            *pump.committer.commit_seconds.lines("forebay_commit_seconds", "Duration of a commit"),
            *pump.committer.arrival_to_commit_seconds.lines(
                "forebay_arrival_to_commit_seconds", "From the arrival of a batch's first sample to its commit"
            ),
            *pump.receipts.created_to_receipt_seconds.lines(
                "forebay_frame_to_receipt_seconds", "From the making of a frame to its receipt"
            ),
        ]
        return "\n".join(lines) + "\n"

    def _disk_metrics(self, disk: dict[str, Any]) -> list[str]:
        years = disk.get("years_left")
        return [
            *family(
                "forebay_disk_written_bytes_total",
                "counter",
                "Bytes that the gateway wrote to the disk, restarts included, by the kernel's account",
                disk["written_bytes"],
            ),
            *family(
                "forebay_disk_written_bytes_per_day",
                "gauge",
                "The same, of the last day of running, restarts included",
                disk["written_bytes_per_day"],
            ),
            *(
                family("forebay_disk_years_left", "gauge", "Until store.endurance is used up at this rate", years)
                if years is not None
                else []
            ),
        ]

    def _month_metrics(self) -> list[str]:
        month = self._uplink.month
        if month is None:
            return []
        return [
            *family("forebay_month_spent_bytes", "gauge", "Bytes at the uplink's socket this month", month.spent_bytes),
            *family("forebay_month_limit_bytes", "gauge", "Bytes that the month may have", month.max_bytes),
            *family("forebay_month_stage", "gauge", "0 free, 1 saving, 2 alarms only, 3 spent", int(month.stage)),
        ]

    def _source_metrics(self, sources: dict[str, dict[str, Any]]) -> list[str]:
        def by_source(key: str) -> list[tuple[dict[str, str], float]]:
            return [({"source": name}, source[key]) for name, source in sources.items()]

        up = [({"source": name}, float(source["state"] == "open")) for name, source in sources.items()]
        return [
            *family("forebay_source_up", "gauge", "1 while the source is open", up),
            *family("forebay_source_received_bytes_total", "counter", "Bytes read", by_source("bytes_in")),
            *family("forebay_source_messages_total", "counter", "Messages read", by_source("messages")),
            *family("forebay_source_reconnects_total", "counter", "Times it was opened again", by_source("reconnects")),
            *family("forebay_source_skipped_polls_total", "counter", "Polls left out", by_source("skipped")),
            *family("forebay_source_overrun_bytes_total", "counter", "Bytes lost by overrun", by_source("overruns")),
        ]


def _named(names: tuple[str, ...], counts: Any) -> dict[str, int]:
    totals: Int64s = counts.sum(axis=0)
    return {name: int(total) for name, total in zip(names, totals, strict=True) if total}
