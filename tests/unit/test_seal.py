"""Frames: no larger than what brokers and ingesters take, and all of what went in comes out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from devices.model import CHANGE_DTYPE, SECOND_NS, SUMMARY_DTYPE, Alarm, SampleBatch, SeriesSpec
from devices.wire.frame import Account, AlarmBody, Frame, FrameLimits, Inventory, InventoryDevice, Ledger, decode
from edge.custody import Custody
from edge.operators import Closed
from edge.seal import SERIES_MAX, Sealed, Sealer

T0_NS = 1_700_000_000 * SECOND_NS
SMALL = 16 << 10
RNG = np.random.default_rng(1)
NAMES = ["".join(RNG.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), 100)) for _ in range(3000)]
SPECS = [SeriesSpec(name, "c", "temperature", "Cel") for name in NAMES]


def sealer(frame_bytes: int = SMALL) -> Sealer:
    return Sealer("g1", 7, 1, list(SPECS), lambda: frame_bytes)


def decoded(sealed: Iterable[Sealed], most_bytes: int = SMALL) -> list[Frame]:
    """The frames, which are numbered one after the other, and of which none is larger."""
    frames = list(sealed)
    assert [row.seq for row, _ in frames] == list(range(1, len(frames) + 1))
    assert all(len(frame) <= most_bytes for _, frame in frames)
    assert all(row.size_bytes == len(frame) for row, frame in frames)
    return [decode(frame, FrameLimits()) for _, frame in frames]


def closed(**more: Any) -> Closed:
    parts = {"summaries": np.empty(0, SUMMARY_DTYPE), "changes": np.empty(0, CHANGE_DTYPE), "raw": SampleBatch.empty()}
    return Closed(**(parts | more))


def table_of(dtype: np.dtype[Any], rows: int) -> Any:
    table = np.zeros(rows, dtype)
    table["series"] = RNG.integers(0, len(NAMES), rows)
    table["time_ns"] = T0_NS + np.arange(rows) * SECOND_NS
    if "count" in table.dtype.names:
        table["count"], table["span_ns"] = 3, SECOND_NS
    return table


@pytest.mark.parametrize("kind", ["summaries", "changes"])
def test_rows_are_halved_until_their_frames_pass(kind: str) -> None:
    rows = table_of(SUMMARY_DTYPE if kind == "summaries" else CHANGE_DTYPE, 5000)
    before = rows.copy()
    frames = decoded(sealer().closed(closed(**{kind: rows}), T0_NS))
    assert len(frames) > 5000 * 100 // 2 // SMALL
    seen = [(f.series[row["series"]].device, row["time_ns"]) for f in frames for row in f.body.rows]  # type: ignore[union-attr]
    assert sorted(seen) == sorted((NAMES[row["series"]], row["time_ns"]) for row in before)
    assert (rows == before).all()


def test_each_part_answers_for_its_own_samples() -> None:
    batch = SampleBatch(
        RNG.integers(0, len(NAMES), 3000).astype(np.int32),
        T0_NS + np.arange(3000),
        RNG.random(3000),
        np.zeros(3000, np.uint8),
    )
    sealed = list(sealer().closed(closed(raw=batch), T0_NS))
    decoded(sealed)
    counts = np.zeros(len(NAMES), np.int64)
    for row, _ in sealed:
        custody: Custody = row.custody
        counts[custody.series] += custody.samples
    assert counts.tolist() == np.bincount(batch.series, minlength=len(NAMES)).tolist()


def test_alarms_ledgers_and_inventories_are_halved_too() -> None:
    alarms = [
        Alarm(name, i, "range", "open", "info", T0_NS, T0_NS, 1.0, 0.0, 2.0, 1.0, name) for i, name in enumerate(NAMES)
    ]
    frames = decoded(sealer().alarms(alarms, T0_NS))
    assert [a.id for f in frames if isinstance(f.body, AlarmBody) for a in f.body.alarms] == NAMES
    accounts = [Account(name, "", 1, 1, 0, 0, {}, {}) for name in NAMES]
    frames = decoded(sealer().ledger(Ledger(T0_NS, accounts), T0_NS))
    assert [a for f in frames if isinstance(f.body, Ledger) for a in f.body.accounts] == accounts
    devices = [InventoryDevice(name, "acme@1", ["c"]) for name in NAMES]
    frames = decoded(sealer().inventory(Inventory("forebay 1", "digest", devices), T0_NS))
    assert [d for f in frames if isinstance(f.body, Inventory) for d in f.body.devices] == devices
    assert {f.body.software for f in frames if isinstance(f.body, Inventory)} == {"forebay 1"}


def test_a_frame_has_at_most_so_many_series_that_any_ingester_unpacks_it() -> None:
    rows = table_of(SUMMARY_DTYPE, 3000)
    rows["series"] = np.arange(3000)
    frames = decoded(sealer(1 << 20).closed(closed(summaries=rows), T0_NS), 1 << 20)
    assert [len(f.series) for f in frames] == [1500, 1500]
    assert SERIES_MAX < 3000


def test_what_cannot_be_halved_goes_as_it_is() -> None:
    rows = table_of(SUMMARY_DTYPE, 1)
    assert len(decoded(sealer(1).closed(closed(summaries=rows), T0_NS))) == 1
