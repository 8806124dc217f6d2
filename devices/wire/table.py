"""The table of series that each frame carries, and the order that it gives to the frame's rows.

Devices of one model have the same channels, so the table is factored: names of devices, shapes
(channel, quantity, unit, kind, texts), and for each series a pair of indexes. Rows are grouped by
series in the order of (shape, series): like stands beside like, whatever the order of the table,
which is the writer's and is kept, since receipts name series by their place in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from devices.errors import FrameError
from devices.model import Int32s, Int64s, Kind
from devices.wire import telemetry_pb2 as pb
from devices.wire.columns import (
    Groups,
    expect_counts,
    pack_differences,
    pack_floats,
    pack_ints,
    pack_texts,
    unpack_differences,
    unpack_floats,
    unpack_ints,
    unpack_texts,
)
from devices.wire.limits import FrameLimits

_KINDS = {int(kind): kind for kind in Kind}


class WireSeries(msgspec.Struct, frozen=True, gc=False):  # remembered by the 100,000, and never part of a cycle
    """What a frame says of one series; with its gateway, all that a point in InfluxDB needs."""

    device: str
    channel: str
    quantity: str
    unit: str
    kind: Kind = Kind.GAUGE
    texts: dict[str, float] = {}
    """For states: text -> number. Shared between series; not to be changed."""


class Table:
    """Columns about the series of one frame, in the table's order."""

    def __init__(self, shape: Int64s, kind: Int64s) -> None:
        self.kind = kind
        """int64[series]: devices.model.Kind."""
        self.order: Int64s = np.argsort(shape, kind="stable")
        """int64[series]: the series in the order in which their rows stand."""

    def __len__(self) -> int:
        return len(self.kind)


def pack_table(series: Sequence[WireSeries]) -> tuple[pb.Table, Table]:
    """The message, and the columns by which the body's rows are then grouped."""
    devices: dict[str, int] = {}
    shapes: dict[tuple[str, str, str, int, tuple[tuple[str, float], ...]], int] = {}
    device, shape = [], []
    for one in series:
        pairs = tuple(one.texts.items()) if one.texts else ()
        device.append(devices.setdefault(one.device, len(devices)))
        key = one.channel, one.quantity, one.unit, int(one.kind), pairs  # an enum's hash is slow
        shape.append(shapes.setdefault(key, len(shapes)))
    kinds = np.array([kind for _, _, _, kind, _ in shapes], dtype=np.int64)
    texts = [pair for *_, pairs in shapes for pair in pairs]
    series_shape = np.array(shape, dtype=np.int64)
    message = pb.Table(
        series=len(series),
        devices=len(devices),
        shapes=len(shapes),
        device=pack_texts(list(devices)),
        channel=pack_texts([channel for channel, *_ in shapes]),
        quantity=pack_texts([quantity for _, quantity, *_ in shapes]),
        unit=pack_texts([unit for _, _, unit, *_ in shapes]),
        kind=pack_ints(kinds),
        series_device=pack_differences(np.array(device, dtype=np.int64)),
        series_shape=pack_ints(series_shape),
    )
    if texts:
        message.mapped = pack_ints(np.array([len(pairs) for *_, pairs in shapes], dtype=np.int64))
        message.text.CopyFrom(pack_texts([text for text, _ in texts]))
        message.text_value = pack_floats(np.array([value for _, value in texts], dtype=np.float64))
    return message, Table(series_shape, kinds[series_shape])


_KNOWN_BYTES = 16 << 20
"""Of the tables remembered in one of two generations: some 100 gateways of 600 series."""
_SERIES_BYTES = 200
_UNPACKED = 20
"""A text that a state is mapped from has nine bytes and more on the wire, and some 150 in memory."""


class KnownTables:
    """Tables by their bytes: a gateway sends the same few again and again, and to unpack one costs as much
    as 1,000 rows do. The same bytes give the same list, by which others may remember what follows from it.

    Two generations: once the younger is full, it is the elder, and what nobody asked for since is forgotten.
    Threads may share it; at worst a table is unpacked twice.
    """

    def __init__(self, most_bytes: int = _KNOWN_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._young: dict[tuple[bytes, FrameLimits], tuple[list[WireSeries], Table]] = {}
        self._old: dict[tuple[bytes, FrameLimits], tuple[list[WireSeries], Table]] = {}

    def unpack(self, message: pb.Table, limits: FrameLimits) -> tuple[list[WireSeries], Table]:
        """As `unpack_table`. What it returns is not to be changed."""
        packed = message.SerializeToString(deterministic=True)
        key = packed, limits
        known = self._young.get(key)
        if known is None:
            known = self._old.get(key) or unpack_table(message, limits)
            size_bytes = _UNPACKED * len(packed) + _SERIES_BYTES * len(known[0])
            if self._bytes + size_bytes > self._most_bytes:
                self._old, self._young, self._bytes = self._young, {}, 0
            self._young[key] = known
            self._bytes += size_bytes
        return known


def unpack_table(message: pb.Table, limits: FrameLimits) -> tuple[list[WireSeries], Table]:
    """The series of a frame, and their columns; FrameError if they are not whole or not within limits."""
    n = message.series
    if n > limits.series or message.devices > n or message.shapes > n:
        raise FrameError(
            f"table: {n} series of {message.devices} devices and {message.shapes} shapes; at most {limits.series}",
            "oversize",
        )
    devices = unpack_names(message.device, message.devices, "device", limits)
    kinds, shapes = _unpack_shapes(message, limits)
    device = unpack_differences(message.series_device, n, "table.series_device")
    shape = unpack_ints(message.series_shape, n, "table.series_shape")
    _expect_indexes(device, len(devices), "table.series_device")
    _expect_indexes(shape, len(shapes), "table.series_shape")
    pairs = zip(device.tolist(), shape.tolist(), strict=True)
    return [WireSeries(devices[d], *shapes[s]) for d, s in pairs], Table(shape, kinds[shape])


def _unpack_shapes(
    message: pb.Table, limits: FrameLimits
) -> tuple[Int64s, list[tuple[str, str, str, Kind, dict[str, float]]]]:
    n = message.shapes
    channels = unpack_names(message.channel, n, "channel", limits)
    quantities = unpack_names(message.quantity, n, "quantity", limits)
    units = unpack_texts(message.unit, n, "unit", limits.name_bytes)
    kinds = unpack_ints(message.kind, n, "kind")
    if not set(kinds.tolist()) <= _KINDS.keys():
        raise FrameError("table: a kind of channel that this version does not know", "malformed")
    counts = unpack_ints(message.mapped, n, "mapped")
    total = expect_counts(counts, "table.mapped", limits.rows)
    texts = unpack_texts(message.text, total, "text", limits.name_bytes)
    numbers = unpack_floats(message.text_value, total, "text_value").tolist()
    ends = np.cumsum(counts).tolist()
    slices = [slice(end - count, end) for count, end in zip(counts.tolist(), ends, strict=True)]
    mappings = [dict(zip(texts[cut], numbers[cut], strict=True)) for cut in slices]
    kind = [_KINDS[k] for k in kinds.tolist()]
    return kinds, list(zip(channels, quantities, units, kind, mappings, strict=True))


def unpack_names(column: pb.Texts, n: int, what: str, limits: FrameLimits) -> list[str]:
    """Texts none of which may be empty."""
    names = unpack_texts(column, n, what, limits.name_bytes)
    if "" in names:
        raise FrameError(f"column {what}: a name is empty", "name")
    return names


def _expect_indexes(indexes: Int64s, n: int, what: str) -> None:
    if len(indexes) and not 0 <= int(indexes.min()) <= int(indexes.max()) < n:
        raise FrameError(f"{what}: an index outside of 0..{n - 1}", "series")


# ---------------------------------------------------------------- rows


def arrange(series: Int32s, time_ns: Int64s, table: Table) -> tuple[Int64s, Groups, Int64s, bytes]:
    """Sort rows by (shape, series, time).

    Returns the rows' order int64[n], their groups, the series of each group int64[g], and the column
    `series_rows`. ValueError if a row names a series that the table does not have.
    """
    counts = np.bincount(series, minlength=len(table))  # itself a ValueError below 0
    if len(counts) > len(table):
        raise ValueError(f"rows name series up to {len(counts) - 1}; the frame's table has {len(table)}")
    place = np.empty(len(table), dtype=np.min_scalar_type(len(table)))  # up to 16 bits: a radix sort
    place[table.order] = np.arange(len(table))
    key = place.take(series)
    order = np.argsort(key, kind="stable")
    sorted_key, sorted_time = key.take(order), time_ns.take(order)
    if np.any((sorted_time[1:] < sorted_time[:-1]) & (sorted_key[1:] == sorted_key[:-1])):
        order = np.lexsort((time_ns, key))
    of_group = table.order[counts[table.order] > 0]
    return order, Groups(counts[of_group]), of_group, pack_ints(counts)


def unpack_groups(column: bytes, rows: int, table: Table, limits: FrameLimits) -> tuple[Groups, Int64s]:
    """The groups of `rows` rows and the series of each group int64[g]; the inverse of `arrange`."""
    if rows > limits.rows:
        raise FrameError(f"{rows} rows; at most {limits.rows}", "oversize")
    counts = unpack_ints(column, len(table), "series_rows")
    if expect_counts(counts, "series_rows", limits.rows) != rows:
        raise FrameError(f"series_rows: the series have {int(counts.sum())} rows, the frame {rows}", "series")
    of_group = table.order[counts[table.order] > 0]
    return Groups(counts[of_group]), of_group
