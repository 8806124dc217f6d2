"""What the ingester accepts of a decoded frame. Pure; never against a profile: an edge may have a newer one.

`devices.wire.frame.decode` has checked all that a frame says of itself. Here it is held against its topic and
the clock. A frame under another gateway's topic is refused whole; rows are rejected by series, and the rest
of their frame is stored:

    future   later than now (the edge's or ours) and `max_ahead`: a clock that runs years ahead would hide all later
             points
    sink     before 1970, or in a measurement whose name is kept for Forebay's own points

A frame without rows (ledger, inventory, heartbeat) has one time, and is refused whole as `future`.

A frame that was *made* later than now and `max_ahead` says that its edge's clock is wrong, or ours. Nobody can tell
here, and a refusal is final: were it ours, every edge would give up good frames. So it gets no answer (`NotForUs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.errors import FrameError, NotForUs
from devices.model import Int32s, Int64s
from devices.profiles import RESERVED_QUANTITIES
from devices.wire.frame import (
    AlarmBody,
    BodyKind,
    ChangeBody,
    Frame,
    Heartbeat,
    Ledger,
    RawBody,
    SummaryBody,
    WireSeries,
)
from devices.wire.receipt import Rejected

Mask = NDArray[np.bool_]


@dataclass(slots=True)
class Admitted:
    """What of a frame is stored, and what of it the receipt must name."""

    frame: Frame
    rejected: list[Rejected]


def admit(frame: Frame, gateway: str, *, now_ns: int, max_ahead_ns: int) -> Admitted:
    """The rows of a frame that may be stored. `gateway` is that of its topic.

    NotForUs: it is not for us to answer. Any other FrameError refuses it whole.
    """
    if frame.header.gateway != gateway:
        raise FrameError(f"a frame of {frame.header.gateway!r} under the topic of {gateway!r}", "gateway")
    created_ns = frame.header.created_ns
    if created_ns > now_ns + max_ahead_ns:
        raise NotForUs("it was made later than our clock and max_ahead: its gateway's clock is wrong, or ours", "clock")
    latest_ns = max(now_ns, created_ns) + max_ahead_ns
    rows = _rows(frame.body)
    if rows is None:
        _expect_past(frame, latest_ns)
        return Admitted(frame, [])
    series, time_ns = rows
    future, ancient, named = time_ns > latest_ns, time_ns < 0, np.zeros(len(series), bool)
    # Alarms lie in a measurement of ours, whatever they speak of.
    reserved: set[str] = set() if isinstance(frame.body, AlarmBody) else _reserved(frame.series)
    if reserved:
        named = np.array([of.quantity in reserved for of in frame.series], bool)[series]
    bad = future | ancient | named
    if not bad.any():
        return Admitted(frame, [])
    samples = frame.body.rows["count"] if isinstance(frame.body, SummaryBody) else np.ones(len(series), np.int64)
    rejected = [
        *_rejections(series, samples, future, "future", "later than the ingester's clock and max_ahead"),
        *_rejections(series, samples, ancient & ~named, "sink", "a time before 1970"),
        *_rejections(
            series, samples, named & ~future, "sink", "its measurement's name is kept for Forebay's own points"
        ),
    ]
    return Admitted(msgspec.structs.replace(frame, body=_without(frame.body, bad)), rejected)


def _rows(body: BodyKind) -> tuple[Int32s, Int64s] | None:
    """(series int32[n], time_ns int64[n]) of a body with rows."""
    match body:
        case SummaryBody() | ChangeBody():
            return body.rows["series"], body.rows["time_ns"]
        case RawBody():
            return body.samples.series, body.samples.time_ns
        case AlarmBody():
            series = np.array([alarm.series for alarm in body.alarms], np.int32)
            return series, np.array([alarm.time_ns for alarm in body.alarms], np.int64)
        case _:
            return None


def _without(body: BodyKind, bad: Mask) -> BodyKind:
    match body:
        case SummaryBody():
            return SummaryBody(body.rows[~bad])
        case ChangeBody():
            return ChangeBody(body.rows[~bad])
        case RawBody():
            return RawBody(body.samples.take(~bad))
        case AlarmBody():
            return AlarmBody([alarm for alarm, is_bad in zip(body.alarms, bad.tolist(), strict=True) if not is_bad])
        case _:
            return body


def _reserved(table: Sequence[WireSeries]) -> set[str]:
    """The quantities of the table whose points would lie among Forebay's own."""
    quantities = {of.quantity for of in table}
    return {name for name in quantities if name in RESERVED_QUANTITIES or name.endswith("_raw")}


def _rejections(series: Int32s, samples: Int64s, bad: Mask, reason: str, detail: str) -> list[Rejected]:
    """By series, the samples that its bad rows stand for: what the edge must take off its account."""
    places, inverse = np.unique(series[bad], return_inverse=True)
    counts = np.zeros(len(places), np.int64)
    np.add.at(counts, inverse, samples[bad])
    return [Rejected(place, reason, n, detail) for place, n in zip(places.tolist(), counts.tolist(), strict=True)]


def _expect_past(frame: Frame, latest_ns: int) -> None:
    body = frame.body
    time_ns = body.time_ns if isinstance(body, Ledger | Heartbeat) else frame.header.created_ns
    if time_ns > latest_ns:
        raise FrameError("its time is later than the clocks and max_ahead", "future")
    if time_ns < 0:
        raise FrameError("made before 1970", "future")
