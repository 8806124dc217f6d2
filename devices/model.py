"""The vocabulary: what a sample, a series, a summary and an alarm are.

Values travel as columns: one NumPy array per quantity, all of one length. Inside the edge a series
is an int32 index into an append-only table; on the wire it is an index into the frame's own table.
Times are int64 nanoseconds UTC since the epoch.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

Int32s: TypeAlias = NDArray[np.int32]
Int64s: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Bytes: TypeAlias = NDArray[np.uint8]

SECOND_NS = 1_000_000_000


class Kind(enum.IntEnum):
    """What a channel's numbers mean."""

    GAUGE = 0
    """A level: temperature, load."""
    COUNTER = 1
    """A running total that resets and wraps; its increase per window is what counts."""
    STATE = 2
    """A boolean, an enum, a mapped text: every change is kept with its own time."""


class Quality(enum.IntFlag):
    """What is known about a sample's time and value. 0 is good."""

    GOOD = 0
    CLOCK = 1
    """Stamped by a clock that was not trusted."""
    SPREAD = 2
    """Its device stamps coarsely; it was moved within `time_resolution` to keep it apart."""


class Lane(enum.IntEnum):
    """The order in which frames go up: the lower goes first."""

    ALARM = 0
    LIVE = 1
    BACKFILL = 2
    RAW = 3


REJECT_REASONS = (
    "malformed",  # bytes that are not what the codec reads
    "oversize",  # a message or line beyond its limit
    "unmapped",  # a text without a mapping
    "nonfinite",  # NaN or an infinity
    "unknown_channel",  # the profile has no such channel
    "series_limit",  # `limits.series` is reached
    "future",  # further ahead of the clock than `max_ahead`
    "duplicate",  # same series, time and value as one before
    "conflict",  # same series and time as one before, another value
    "refused",  # the ingester refused the whole frame
    "sink",  # the sink cannot store this point
)
"""Why a sample can be rejected. The index in this tuple is stored: only ever append."""

DROP_POLICIES = (
    "drop_oldest",  # the store was full
    "overrun",  # a source that cannot wait sent more than the intake holds
    "unconfirmed",  # the store was full, and the frame had been published: the cloud may have it
)
"""Why a sample can be dropped. The index in this tuple is stored: only ever append."""

Report: TypeAlias = Literal["summary", "on_change", "raw"]


class SeriesSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that the edge must know of one series; made from a profile, kept in the store's table."""

    device: str
    channel: str
    quantity: str
    """Name of the InfluxDB measurement."""
    unit: str
    kind: Kind = Kind.GAUGE
    window_ns: int = 10 * SECOND_NS
    lateness_ns: int = 2 * SECOND_NS
    idle_close_ns: int = 5 * SECOND_NS
    max_ahead_ns: int = 60 * SECOND_NS
    time_resolution_ns: int = 1
    """Coarseness of the device's own stamps; equal stamps are spread within it."""
    expect_every_ns: int = 0
    """Silence longer than this raises the alarm `silent`; 0: never."""
    report: Report = "summary"
    tolerance: float = 0.0
    """For `report = "on_change"`: a window whose last, min and max lie this near to the last one sent."""
    heartbeat_ns: int = 600 * SECOND_NS
    """For `report = "on_change"`: something is sent at least this often."""
    counter_wrap: float = 0.0
    """For counters: the value at which the device's register wraps to 0; 0: it only resets."""
    texts: dict[str, float] = {}
    """For states: text -> number."""
    filters: dict[str, dict[str, Any]] = {}
    """Filter name -> its options, defaults filled in; a filter that is not named does not run."""
    severity: Literal["info", "warning", "critical"] = "warning"
    on_delay_ns: int = 0
    off_delay_ns: int = 5 * SECOND_NS
    deadband: float = 0.1
    """An alarm closes only once the score is below 1 - deadband."""
    profile: str = ""
    """`name@version` of the profile that made it."""

    @property
    def key(self) -> tuple[str, str, str]:
        """(device, channel, unit): the identity of the series within its gateway."""
        return self.device, self.channel, self.unit


@dataclass(slots=True)
class Rows:
    """Decoded values on their way into a batch: three parallel lists that a codec appends to.

    `channel` "" means: the channel that the message's topic names. `time_ns` 0 means: no time in the
    payload, stamp on arrival.
    """

    channel: list[str] = field(default_factory=list)
    time_ns: list[int] = field(default_factory=list)
    value: list[float | bool | str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.channel)


@dataclass(slots=True)
class SampleBatch:
    """Samples in order of arrival: columns of one length n."""

    series: Int32s
    time_ns: Int64s
    value: Floats
    quality: Bytes

    def __len__(self) -> int:
        return len(self.series)

    def take(self, which: NDArray[Any]) -> SampleBatch:
        """The rows named by a mask or an index array."""
        return SampleBatch(self.series[which], self.time_ns[which], self.value[which], self.quality[which])

    @staticmethod
    def empty() -> SampleBatch:
        return SampleBatch(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0), np.empty(0, np.uint8))

    @staticmethod
    def concat(batches: list[SampleBatch]) -> SampleBatch:
        return SampleBatch(
            np.concatenate([b.series for b in batches]),
            np.concatenate([b.time_ns for b in batches]),
            np.concatenate([b.value for b in batches]),
            np.concatenate([b.quality for b in batches]),
        )


SUMMARY_DTYPE = np.dtype(
    [
        ("series", np.int32),
        ("time_ns", np.int64),  # window start, or start + k for a supplement
        ("span_ns", np.int64),
        ("count", np.int64),
        ("mean", np.float64),
        ("min", np.float64),
        ("max", np.float64),
        ("stddev", np.float64),  # of the population: sqrt(sum((x - mean)^2) / n)
        ("first", np.float64),
        ("last", np.float64),
        ("increase", np.float64),  # counters; NaN for every other kind
    ],
    align=True,
)
"""One row a summary; a batch of summaries is an array of this dtype."""

CHANGE_DTYPE = np.dtype([("series", np.int32), ("time_ns", np.int64), ("value", np.float64)], align=True)
"""One row a state change, at its own time."""


class Alarm(msgspec.Struct, frozen=True):
    """One opening or closing of an alarm. `id` joins the two."""

    id: str
    series: int
    """Index into the table that surrounds it (the edge's, or the frame's)."""
    detector: str
    state: Literal["open", "closed"]
    severity: str
    time_ns: int
    """Of the sample that decided it; strictly increasing per (series, detector)."""
    arrived_ns: int
    """When that sample arrived at the edge."""
    value: float
    low: float
    """Expected band, lower edge; NaN: none."""
    high: float
    score: float
    """Distance from normal; the alarm's threshold is 1."""
    reason: str
    """A sentence that a technician understands."""
