"""What a frame can carry, and each kind's way into columns and back.

`pack_*` take what the edge made and trust it; `unpack_*` take what a peer claims and check all of it.
Rows of samples, changes and summaries come back grouped by series and sorted by time (table.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.errors import FrameError
from devices.model import CHANGE_DTYPE, Alarm, Int64s, SampleBatch
from devices.wire import telemetry_pb2 as pb
from devices.wire.columns import (
    expect_counts,
    pack_decimals,
    pack_differences,
    pack_floats,
    pack_ints,
    pack_texts,
    pack_times,
    unpack_decimals,
    unpack_differences,
    unpack_floats,
    unpack_ints,
    unpack_texts,
    unpack_times,
)
from devices.wire.limits import FrameLimits
from devices.wire.summaries import pack_summaries, unpack_summaries
from devices.wire.table import Table, arrange, unpack_groups, unpack_names

# eq=False: arrays have no truth value, so rows cannot be compared with ==.


class SummaryBody(msgspec.Struct, frozen=True, eq=False):
    rows: NDArray[Any]
    """SUMMARY_DTYPE[n]; `series` is an index into the frame's table."""


class ChangeBody(msgspec.Struct, frozen=True, eq=False):
    rows: NDArray[Any]
    """CHANGE_DTYPE[n]; `series` is an index into the frame's table."""


class RawBody(msgspec.Struct, frozen=True, eq=False):
    samples: SampleBatch
    """`series` is an index into the frame's table."""


class AlarmBody(msgspec.Struct, frozen=True):
    alarms: list[Alarm]
    """`series` is an index into the frame's table."""


class InventoryDevice(msgspec.Struct, frozen=True):
    name: str
    profile: str
    """`name@version`; "" where there is none."""
    channels: list[str]


class Inventory(msgspec.Struct, frozen=True):
    """What the gateway has: sent when it changes and with the heartbeat."""

    software: str
    config_digest: str
    devices: list[InventoryDevice]


class Account(msgspec.Struct, frozen=True):
    """Counts since the birth of the store: produced = stored + waiting + rejected + dropped."""

    device: str
    channel: str
    """"" for the whole device."""
    produced: int = 0
    stored: int = 0
    waiting: int = 0
    late: int = 0
    """An attribute, not a fate: late samples are among the others too."""
    rejected: dict[str, int] = {}
    dropped: dict[str, int] = {}


class Ledger(msgspec.Struct, frozen=True):
    time_ns: int
    accounts: list[Account]


class Heartbeat(msgspec.Struct, frozen=True):
    time_ns: int
    software: str
    inventory_digest: str
    store_bytes: int = 0
    store_limit_bytes: int = 0
    outbox_frames: int = 0
    oldest_unsent_ms: int = 0
    open_alarms: int = 0
    outage_budget_s: float = 0.0


BodyKind: TypeAlias = SummaryBody | ChangeBody | RawBody | AlarmBody | Inventory | Ledger | Heartbeat


def pack_body(body: BodyKind, table: Table, message: pb.Body) -> None:
    """Put `body` into `message`. ValueError for values that are not finite or series that are not there."""
    match body:
        case SummaryBody():
            message.summaries.CopyFrom(pack_summaries(body.rows, table))
        case ChangeBody():
            message.changes.CopyFrom(_pack_changes(body.rows, table))
        case RawBody():
            message.raw.CopyFrom(_pack_raw(body.samples, table))
        case AlarmBody():
            message.alarms.CopyFrom(_pack_alarms(body.alarms, table))
        case Inventory():
            message.inventory.CopyFrom(_pack_inventory(body))
        case Ledger():
            message.ledger.CopyFrom(_pack_ledger(body))
        case Heartbeat():
            message.heartbeat.CopyFrom(pb.Heartbeat(**msgspec.structs.asdict(body)))


def unpack_body(message: pb.Body, table: Table, limits: FrameLimits) -> BodyKind:
    """What `message` carries; FrameError if that is nothing we know or not right."""
    match message.WhichOneof("content"):
        case "summaries":
            return SummaryBody(unpack_summaries(message.summaries, table, limits))
        case "changes":
            return _unpack_changes(message.changes, table, limits)
        case "raw":
            return _unpack_raw(message.raw, table, limits)
        case "alarms":
            return _unpack_alarms(message.alarms, table, limits)
        case "inventory":
            return _unpack_inventory(message.inventory, limits)
        case "ledger":
            return _unpack_ledger(message.ledger, limits)
        case "heartbeat":
            return _unpack_heartbeat(message.heartbeat, limits)
        case _:
            raise FrameError("the body has no content that this version knows", "malformed")


# ---------------------------------------------------------------- samples and changes


def _pack_raw(samples: SampleBatch, table: Table) -> pb.Raw:
    order, groups, _, series_rows = arrange(samples.series, samples.time_ns, table)
    return pb.Raw(
        rows=len(samples),
        series_rows=series_rows,
        time=pack_times(samples.time_ns.take(order), groups),
        value=pack_decimals(_finite(samples.value.take(order)), groups),
        quality=pack_ints(samples.quality.take(order).astype(np.int64)) if samples.quality.any() else b"",
    )


def _unpack_raw(message: pb.Raw, table: Table, limits: FrameLimits) -> RawBody:
    groups, of_group = unpack_groups(message.series_rows, message.rows, table, limits)
    value = _expect_finite(unpack_decimals(message.value, groups, "value"))
    quality = unpack_ints(message.quality, groups.n, "quality")
    if groups.n and not 0 <= int(quality.min()) <= int(quality.max()) <= 255:
        raise FrameError("quality: 0 to 255 are possible", "malformed")
    return RawBody(
        SampleBatch(
            series=groups.spread(of_group.astype(np.int32)),
            time_ns=unpack_times(message.time, groups),
            value=value,
            quality=quality.astype(np.uint8),
        )
    )


def _pack_changes(rows: NDArray[Any], table: Table) -> pb.Changes:
    order, groups, _, series_rows = arrange(rows["series"], rows["time_ns"], table)
    return pb.Changes(
        rows=len(rows),
        series_rows=series_rows,
        time=pack_times(rows["time_ns"][order], groups),
        value=pack_decimals(_finite(rows["value"][order]), groups),
    )


def _unpack_changes(message: pb.Changes, table: Table, limits: FrameLimits) -> ChangeBody:
    groups, of_group = unpack_groups(message.series_rows, message.rows, table, limits)
    rows = np.empty(groups.n, dtype=CHANGE_DTYPE)
    rows["series"] = groups.spread(of_group)
    rows["time_ns"] = unpack_times(message.time, groups)
    rows["value"] = _expect_finite(unpack_decimals(message.value, groups, "value"))
    return ChangeBody(rows)


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite; such samples are rejected before they come to a frame")
    return values


def _expect_finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise FrameError("a value is not finite", "nonfinite")
    return values


# ---------------------------------------------------------------- alarms


def _pack_alarms(alarms: Sequence[Alarm], table: Table) -> pb.Alarms:
    series = _ints(alarm.series for alarm in alarms)
    if len(alarms) and not 0 <= int(series.min()) <= int(series.max()) < len(table):
        raise ValueError(f"an alarm names series {series.max()}; the frame's table has {len(table)}")
    time_ns = _ints(alarm.time_ns for alarm in alarms)
    return pb.Alarms(
        rows=len(alarms),
        id=pack_texts([alarm.id for alarm in alarms]),
        series=pack_ints(series),
        detector=pack_texts([alarm.detector for alarm in alarms]),
        open=pack_ints(_ints(alarm.state == "open" for alarm in alarms)),
        severity=pack_texts([alarm.severity for alarm in alarms]),
        time_ns=pack_ints(time_ns),
        arrived_ns=pack_ints(_ints(alarm.arrived_ns for alarm in alarms) - time_ns),
        value=pack_floats(np.array([alarm.value for alarm in alarms])),
        low=pack_floats(np.array([alarm.low for alarm in alarms])),
        high=pack_floats(np.array([alarm.high for alarm in alarms])),
        score=pack_floats(np.array([alarm.score for alarm in alarms])),
        reason=pack_texts([alarm.reason for alarm in alarms]),
    )


def _unpack_alarms(message: pb.Alarms, table: Table, limits: FrameLimits) -> AlarmBody:
    n = _expect_rows(message.rows, limits)
    series = unpack_ints(message.series, n, "series")
    if n and not 0 <= int(series.min()) <= int(series.max()) < len(table):
        raise FrameError(f"an alarm names a series outside of the table's {len(table)}", "series")
    opens = unpack_ints(message.open, n, "open").tolist()
    if not set(opens) <= {0, 1}:
        raise FrameError("column open: 0 and 1 are possible", "malformed")
    time_ns = unpack_ints(message.time_ns, n, "time_ns")
    columns = zip(
        unpack_names(message.id, n, "id", limits),
        series.tolist(),
        unpack_names(message.detector, n, "detector", limits),
        ["open" if one else "closed" for one in opens],
        unpack_texts(message.severity, n, "severity", limits.name_bytes),
        time_ns.tolist(),
        (time_ns + unpack_ints(message.arrived_ns, n, "arrived_ns")).tolist(),
        unpack_floats(message.value, n, "value").tolist(),
        unpack_floats(message.low, n, "low").tolist(),
        unpack_floats(message.high, n, "high").tolist(),
        unpack_floats(message.score, n, "score").tolist(),
        unpack_texts(message.reason, n, "reason", limits.sentence_bytes),
        strict=True,
    )
    return AlarmBody([Alarm(*row) for row in columns])


# ---------------------------------------------------------------- inventory, ledger, heartbeat


def _pack_inventory(inventory: Inventory) -> pb.Inventory:
    devices = inventory.devices
    return pb.Inventory(
        software=inventory.software,
        config_digest=inventory.config_digest,
        devices=len(devices),
        name=pack_texts([device.name for device in devices]),
        profile=pack_texts([device.profile for device in devices]),
        channels=pack_ints(_ints(len(device.channels) for device in devices)),
        channel=pack_texts([channel for device in devices for channel in device.channels]),
    )


def _unpack_inventory(message: pb.Inventory, limits: FrameLimits) -> Inventory:
    n = _expect_rows(message.devices, limits)
    counts = unpack_ints(message.channels, n, "channels")
    channels = unpack_names(message.channel, expect_counts(counts, "channels", limits.rows), "channel", limits)
    names = unpack_names(message.name, n, "name", limits)
    profiles = unpack_texts(message.profile, n, "profile", limits.name_bytes)
    ends = np.cumsum(counts).tolist()
    devices = [
        InventoryDevice(name, profile, channels[end - k : end])
        for name, profile, k, end in zip(names, profiles, counts.tolist(), ends, strict=True)
    ]
    return Inventory(
        _word(message.software, "software", limits), _word(message.config_digest, "config_digest", limits), devices
    )


def _pack_ledger(ledger: Ledger) -> pb.Ledger:
    accounts = ledger.accounts
    return pb.Ledger(
        time_ns=ledger.time_ns,
        accounts=len(accounts),
        device=pack_texts([account.device for account in accounts]),
        channel=pack_texts([account.channel for account in accounts]),
        produced=pack_ints(_ints(account.produced for account in accounts)),
        stored=pack_ints(_ints(account.stored for account in accounts)),
        waiting=pack_ints(_ints(account.waiting for account in accounts)),
        late=pack_ints(_ints(account.late for account in accounts)),
        rejected=_pack_counts([account.rejected for account in accounts]),
        dropped=_pack_counts([account.dropped for account in accounts]),
    )


def _unpack_ledger(message: pb.Ledger, limits: FrameLimits) -> Ledger:
    n = _expect_rows(message.accounts, limits)
    columns = zip(
        unpack_names(message.device, n, "device", limits),
        unpack_texts(message.channel, n, "channel", limits.name_bytes),
        _unpack_amounts(message.produced, n, "produced"),
        _unpack_amounts(message.stored, n, "stored"),
        _unpack_amounts(message.waiting, n, "waiting"),
        _unpack_amounts(message.late, n, "late"),
        _unpack_counts(message.rejected, n, "rejected", limits),
        _unpack_counts(message.dropped, n, "dropped", limits),
        strict=True,
    )
    return Ledger(message.time_ns, [Account(*row) for row in columns])


def _pack_counts(by_account: Sequence[dict[str, int]]) -> pb.Counts:
    rows = [(place, word, count) for place, counts in enumerate(by_account) for word, count in counts.items()]
    return pb.Counts(
        rows=len(rows),
        account=pack_differences(_ints(place for place, _, _ in rows)),
        word=pack_texts([word for _, word, _ in rows]),
        count=pack_ints(_ints(count for _, _, count in rows)),
    )


def _unpack_counts(message: pb.Counts, accounts: int, what: str, limits: FrameLimits) -> list[dict[str, int]]:
    n = _expect_rows(message.rows, limits)
    places = unpack_differences(message.account, n, f"{what}.account")
    if n and not 0 <= int(places.min()) <= int(places.max()) < accounts:
        raise FrameError(f"{what}: an account outside of the ledger's {accounts}", "malformed")
    words = unpack_names(message.word, n, f"{what}.word", limits)
    by_account: list[dict[str, int]] = [{} for _ in range(accounts)]
    for place, word, count in zip(places.tolist(), words, _unpack_amounts(message.count, n, what), strict=True):
        by_account[place][word] = count
    return by_account


def _unpack_amounts(column: bytes, n: int, what: str) -> list[int]:
    amounts = unpack_ints(column, n, what)
    if n and int(amounts.min()) < 0:
        raise FrameError(f"column {what}: a count below 0", "malformed")
    listed: list[int] = amounts.tolist()
    return listed


def _unpack_heartbeat(message: pb.Heartbeat, limits: FrameLimits) -> Heartbeat:
    _word(message.software, "software", limits)
    _word(message.inventory_digest, "inventory_digest", limits)
    return Heartbeat(*(getattr(message, name) for name in Heartbeat.__struct_fields__))


def _expect_rows(rows: int, limits: FrameLimits) -> int:
    if rows > limits.rows:
        raise FrameError(f"{rows} rows; at most {limits.rows}", "oversize")
    return rows


def _word(text: str, what: str, limits: FrameLimits) -> str:
    if len(text.encode()) > limits.name_bytes:
        raise FrameError(f"{what}: longer than {limits.name_bytes} bytes", "oversize")
    return text


def _ints(values: Iterable[int]) -> Int64s:
    return np.fromiter(values, dtype=np.int64)
