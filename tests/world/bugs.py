"""Bugs that somebody might write, each put into the product for the length of a run, and the climate it dies in.

A simulation that has not found these would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

from devices.wire.receipt import Receipt
from edge import retention
from edge.intake import Drained
from edge.outbox import Outbox
from edge.pump import Pump
from edge.redelivery import Unconfirmed
from edge.retention import Keep
from edge.seal import Sealer
from edge.store import Store
from edge.uplink import Answer, Uplink
from tests.world.climate import HOUR_S, KIB, MIB, Climate, draw
from tests.world.sensors import profile


class Bug(NamedTuple):
    """`patch` puts it in; `found`: what the violation says; `climate`: where it shows."""

    patch: Callable[[], Any]
    found: str
    climate: Callable[[Climate], None]


def climate_for(bug: Bug, seed: int, days: float) -> Climate:
    """The climate of a seed, with what the bug needs to show. Nothing is taken away but haste."""
    climate = draw(seed, days)
    climate.habits.rate_per_s = max(climate.habits.rate_per_s, 0.02)
    climate.bad_of = 0
    bug.climate(climate)
    return climate


def _acknowledge_before_commit() -> Any:
    original = Pump._take_samples

    def take(self: Pump, drained: Drained) -> None:
        for settle in drained.settles:
            settle()
        original(self, replace(drained, settles=[]))

    return mock.patch.object(Pump, "_take_samples", take)


def _delete_before_receipt() -> Any:
    original = Uplink.on_published

    def on_published(self: Uplink, mid: int, reason_code: int) -> None:
        seq = self._mids.get(mid, 0)
        original(self, mid, reason_code)
        if reason_code == 0 and self.outbox.find(seq) is not None:
            self._answers.append(Answer(self.outbox.leave(seq), Receipt()))
            self.answered.set()

    return mock.patch.object(Uplink, "on_published", on_published)


def _packet_id_alone() -> Any:
    original = Unconfirmed._is_fresh

    def is_fresh(self: Unconfirmed, packet_id: int, dup: bool, digest: int) -> bool:
        return original(self, packet_id, dup, self._known.get(packet_id, digest) if dup else digest)

    return mock.patch.object(Unconfirmed, "_is_fresh", is_fresh)


def _seq_from_rows() -> Any:
    def next_seq(self: Store) -> int:
        return self._one("SELECT max(seq) FROM outbox", default=0) + 1

    return mock.patch.object(Store, "next_seq", next_seq)


def _replace_a_summary() -> Any:
    original = Sealer._summaries

    def summaries(self: Sealer, rows: Any, *rest: Any) -> Any:
        rows = rows.copy()
        rows["time_ns"] -= rows["time_ns"] % 1_000_000
        return original(self, rows, *rest)

    return mock.patch.object(Sealer, "_summaries", summaries)


def _merge_without_send_limit() -> Any:
    return mock.patch.object(Outbox, "held", Outbox.staying)


def _match_by_seq_only() -> Any:
    original = Uplink._receipt

    def receipt(self: Uplink, told: Any, payload: bytes) -> None:
        row = self.outbox.find(told.seq)
        original(self, told if row is None else told._replace(epoch=self._epoch, digest=row.digest), payload)

    return mock.patch.object(Uplink, "_receipt", receipt)


def _trim_past_the_snapshot() -> Any:
    original = retention.plan

    def plan(usage: Any, now_ns: int, journal: Any, keep: Keep, snapshot_block: int, *rest: Any, **more: Any) -> Any:
        return original(usage, now_ns, journal, keep, 1 << 60, *rest, **more)

    return mock.patch.object(retention, "plan", plan)


def _any(climate: Climate) -> None:
    """It shows anywhere."""


def _restarts(climate: Climate) -> None:
    climate.every_s |= {"crash_edge": 0.5 * HOUR_S}


def _late(climate: Climate) -> None:
    climate.habits.late, climate.habits.late_s = 0.2, 600.0


def _old_sessions(climate: Climate) -> None:
    climate.ids, climate.ahead, climate.latency_s = 20, 10, 0.5
    climate.every_s |= {"sensor_broker": 0.2 * HOUR_S, "cut_sensors": 0.1 * HOUR_S}


def _outages_that_fill(climate: Climate) -> None:
    climate.settings.when_full, climate.settings.max_size = "degrade", MIB + 160 * KIB
    climate.settings.keep = Keep(16 * KIB, climate.settings.keep.span_ns)
    climate.settings.profile, climate.settings.window_bytes = profile(60), MIB
    climate.habits.rate_per_s, climate.tick_s = 0.2, 60.0
    climate.outage_s = 4 * HOUR_S
    climate.every_s |= {"sink_down": HOUR_S}
    climate.every_s.pop("disk_loss", None)


def _new_disks(climate: Climate) -> None:
    climate.every_s |= {"disk_loss": HOUR_S, "uplink_broker": 0.3 * HOUR_S}
    climate.every_s.pop("clock", None)


def _short_journal(climate: Climate) -> None:
    climate.settings.keep = Keep(4 * KIB, climate.settings.keep.span_ns)


BUGS = {
    "acknowledge before commit": Bug(_acknowledge_before_commit, "is acknowledged, and not committed", _any),
    "delete before receipt": Bug(_delete_before_receipt, "is removed without a receipt", _any),
    "packet id alone as identity": Bug(_packet_id_alone, "is acknowledged, and not committed", _old_sessions),
    "seq from the rows present": Bug(_seq_from_rows, "the outbox gives seq", _restarts),
    "replace a summary under its key": Bug(_replace_a_summary, "was written with", _late),
    "merge without a send limit": Bug(_merge_without_send_limit, "is removed without a receipt", _outages_that_fill),
    "match a receipt by seq only": Bug(_match_by_seq_only, "is removed without a receipt", _new_disks),
    "trim the journal past the snapshot": Bug(_trim_past_the_snapshot, "past snapshot", _short_journal),
}
