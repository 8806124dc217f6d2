"""The account at the end: every sample in custody against every point in the database, per series and window.

Never from totals, in which what is lost and what is doubled cancel. What the ledger names as dropped or rejected
may be missing; without such, count, sum, lowest and highest of each stretch of time must be those of its samples.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from devices.model import DROP_POLICIES, REJECT_REASONS
from edge.operators import Operators
from tests.world.database import Database, place
from tests.world.witness import Witness

SUPPLEMENT_GRID_NS = 1_000_000
MEAN_ROUNDED = 1e-3
"""Means go up with some digits only (edge/kernels/settle.py)."""
RETRACTABLE = [REJECT_REASONS.index(reason) for reason in ("sink", "refused")]


@dataclass
class Stored:
    """What the database holds of one series."""

    raw: dict[int, float] = field(default_factory=dict)
    windows: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    """(start, end, fields) of summaries and supplements."""


def hold(operators: Operators, witness: Witness, database: Database, fail: Callable[[str], None]) -> None:
    """Compare, and report the first difference."""
    stored = _read(database)
    for index, spec in enumerate(operators.specs):
        topic = f"plant/{spec.device}/{spec.channel}"
        ledger = operators.ledger
        dropped = dict(zip(DROP_POLICIES, ledger.dropped[index].tolist(), strict=True))
        rejected = sum(ledger.rejected[index].tolist()[reason] for reason in RETRACTABLE)
        may_lack = dropped["drop_oldest"] + dropped["unconfirmed"] + rejected
        lost = witness.lost_with_the_disk.get(topic, set())
        accepted = witness.accepted.get(topic, {})
        here = stored.get(topic, Stored())
        raw = dict(witness.behind.get(topic, {}))
        lacking = 0
        if spec.report == "raw":
            raw |= accepted
        else:
            lacking += _windows(topic, accepted, here, lost, fail, exact=not may_lack)
        for time_ns, value in here.raw.items():
            if raw.get(time_ns) != value and (topic, time_ns) not in database.contested:
                fail(f"{topic}: the raw point {value} at {time_ns} is not what was taken in: {raw.get(time_ns)}")
        lacking += sum(time_ns not in here.raw and time_ns not in lost for time_ns in raw)
        if lacking > may_lack:
            fail(f"{topic}: {lacking} samples are lost, and the ledger knows of {may_lack}")
        if lacking < may_lack - dropped["unconfirmed"] and not lost and topic not in witness.behind:
            fail(f"{topic}: the ledger gives up {may_lack}, and only {lacking} are not there")


def _windows(
    topic: str,
    accepted: dict[int, float],
    here: Stored,
    lost: set[int],
    fail: Callable[[str], None],
    *,
    exact: bool,
) -> int:
    """How many samples the summaries of a series lack; none may be there twice."""
    times = sorted(accepted)
    lacking = counted = 0
    for start_ns, end_ns, points in _stretches(here.windows):
        inside = times[bisect_left(times, start_ns) : bisect_left(times, end_ns)]
        counted += len(inside)
        count = sum(int(point["count"]) for point in points)
        where = f"{topic} from {start_ns} to {end_ns}"
        if count > len(inside):
            fail(f"{where}: {count} samples are stored, and {len(inside)} were taken in")
        lacking += max(sum(time_ns not in lost for time_ns in inside) - count, 0)
        if exact and count == len(inside):
            _compare(where, [accepted[time_ns] for time_ns in inside], points, fail)
    covered = [(start, end) for start, end, _ in _stretches(here.windows)]
    outside = sum(not _is_covered(time_ns, covered) and time_ns not in lost for time_ns in times)
    return lacking + outside


def _compare(where: str, values: list[float], points: list[dict[str, float]], fail: Callable[[str], None]) -> None:
    if any("mean" not in point for point in points):
        return  # of states
    told = (
        sum(point["mean"] * point["count"] for point in points),
        min(point["min"] for point in points),
        max(point["max"] for point in points),
    )
    true = (math.fsum(values), min(values), max(values))
    if any(not math.isclose(a, b, abs_tol=MEAN_ROUNDED * len(values)) for a, b in zip(told, true, strict=True)):
        fail(f"{where}: sum, lowest and highest are {true}, and stored as {told}")


def _stretches(windows: list[tuple[int, int, dict[str, float]]]) -> list[tuple[int, int, list[dict[str, float]]]]:
    """Windows that overlap (a supplement and its window; a merged one and what it holds) are one stretch."""
    joined: list[tuple[int, int, list[dict[str, float]]]] = []
    for start, end, fields in sorted(windows, key=lambda window: window[:2]):
        if joined and start < joined[-1][1]:
            before = joined[-1]
            joined[-1] = before[0], max(before[1], end), [*before[2], fields]
        else:
            joined.append((start, end, [fields]))
    return joined


def _is_covered(time_ns: int, covered: list[tuple[int, int]]) -> bool:
    at = bisect_left(covered, (time_ns + 1, 0)) - 1
    return at >= 0 and covered[at][0] <= time_ns < covered[at][1]


def _read(database: Database) -> dict[str, Stored]:
    """The points of the sensors' series, by topic."""
    stored: dict[str, Stored] = {}
    for key, content in database.points.items():
        if key.startswith((b"alarm,", b"ledger,", b"gateway,", b"channel,")):
            continue
        topic, time_ns = place(key)
        series = stored.setdefault(topic, Stored())
        fields = {k: v for k, _, v in (pair.partition("=") for pair in content.decode().split(","))}
        if "value" in fields:
            series.raw[time_ns] = float(fields["value"])
        elif "count" in fields:
            numbers = {k: float(v.rstrip("i")) for k, v in fields.items()}
            start_ns = time_ns - time_ns % SUPPLEMENT_GRID_NS
            series.windows.append((start_ns, start_ns + int(numbers["span_ms"]) * 1_000_000, numbers))
    return stored
