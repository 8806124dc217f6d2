"""What the sink holds of one gateway, read by queries as anybody may put them: InfluxQL over `/query`
(InfluxDB 1.8 and 2.7) or SQL on the file of the SQLite sink.
"""

from __future__ import annotations

import http.client
import json
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.errors import ForebayError
from devices.model import Floats, Int64s

TIMEOUT_S = 30.0
SUMMARY_FIELDS = ("span_ms", "count", "mean", "min", "max", "first", "last")
NOT_SUMMARIES = ("alarm", "ledger", "gateway", "channel")

SeriesKey: TypeAlias = tuple[str, str]
"""(device, channel)"""


class SinkUnreadable(ForebayError):
    """A query did not succeed. The message says which, and what was answered."""


@dataclass(slots=True)
class StoredSeries:
    """One series in order of time: summaries in columns of one length n, and the points of other kinds."""

    time_ns: Int64s
    """Window start, or start + k ns for a supplement. Numbers that a point does not hold are NaN."""
    span_ms: Int64s
    count: Int64s
    mean: Floats
    min: Floats
    max: Floats
    first: Floats
    last: Floats
    raw_ns: Int64s
    change_ns: Int64s
    """Times of the changes of a state, and below the values that it took."""
    change: Floats


class StoredAlarm(msgspec.Struct, frozen=True):
    """One point of `alarm`."""

    id: str
    device: str
    channel: str
    detector: str
    state: str
    time_ns: int
    ingested_ms: float
    reason: str


class StoredSink(Protocol):
    """All methods raise SinkUnreadable."""

    def holds_samples(self) -> bool:
        """Whether any sample of a device has arrived, in whatever form."""

    def series(self) -> dict[SeriesKey, StoredSeries]: ...

    def alarms(self) -> list[StoredAlarm]: ...

    def ledger(self) -> dict[SeriesKey, dict[str, float]]:
        """The last account of each device (channel "") and of the series that were named."""


class _Point(msgspec.Struct):
    measurement: str
    tags: Mapping[str, str]
    time_ns: int
    fields: Mapping[str, Any]


class SqliteStored:
    """The file of an SQLite sink. It may not be there yet, and is empty then."""

    _OF_SAMPLES = f"measurement NOT IN ({','.join(map(repr, NOT_SUMMARIES))})"

    def __init__(self, path: Path, gateway: str) -> None:
        self._path = path
        self._gateway = gateway

    def holds_samples(self) -> bool:
        return any(True for _ in self._points(self._OF_SAMPLES, "LIMIT 1"))

    def series(self) -> dict[SeriesKey, StoredSeries]:
        return _gathered(self._points(self._OF_SAMPLES))

    def alarms(self) -> list[StoredAlarm]:
        return [_alarm(point) for point in self._points("measurement = 'alarm'")]

    def ledger(self) -> dict[SeriesKey, dict[str, float]]:
        return _last_accounts(self._points("measurement = 'ledger'"))

    def _points(self, where: str, limit: str = "") -> Iterator[_Point]:
        if not self._path.exists():
            return
        columns = "measurement, tags, time_ns, fields"
        query = f"SELECT {columns} FROM points WHERE {where} AND gateway = ? ORDER BY time_ns {limit}"
        try:
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=TIMEOUT_S)) as database:
                rows = database.execute(query, (self._gateway,)).fetchall()
        except sqlite3.Error as error:
            if "no such table" in str(error):  # the ingester is just making it
                return
            raise SinkUnreadable(f"{self._path} cannot be read: {error}") from error
        for measurement, tags, time_ns, fields in rows:
            yield _Point(measurement, json.loads(tags), time_ns, json.loads(fields))


class InfluxStored:
    """A database of InfluxDB 1.8, or a bucket of 2.7, through its InfluxQL."""

    def __init__(self, url: str, database: str, token: str, gateway: str) -> None:
        """`token` "": ask without one."""
        self._url = url.rstrip("/")
        self._database = database
        self._token = token
        self._gateway = gateway

    def holds_samples(self) -> bool:
        return any(True for measurement in self._of_samples() for _ in self._points(measurement, "LIMIT 1"))

    def series(self) -> dict[SeriesKey, StoredSeries]:
        return _gathered(point for measurement in self._of_samples() for point in self._points(measurement))

    def alarms(self) -> list[StoredAlarm]:
        return [_alarm(point) for point in self._points("alarm")]

    def ledger(self) -> dict[SeriesKey, dict[str, float]]:
        return _last_accounts(self._points("ledger"))

    def _of_samples(self) -> list[str]:
        """Measurements that hold samples: all but Forebay's own."""
        names = [name for answer in self._query("SHOW MEASUREMENTS") for (name,) in answer["values"]]
        return [name for name in names if name not in NOT_SUMMARIES]

    def _points(self, measurement: str, limit: str = "") -> Iterator[_Point]:
        name = measurement.replace("\\", "\\\\").replace('"', '\\"')
        gateway = self._gateway.replace("\\", "\\\\").replace("'", "\\'")
        for series in self._query(f"SELECT * FROM \"{name}\" WHERE gateway = '{gateway}' GROUP BY * {limit}"):
            columns = series["columns"][1:]
            for time_ns, *values in series["values"]:
                fields = {column: value for column, value in zip(columns, values, strict=True) if value is not None}
                yield _Point(measurement, series.get("tags", {}), time_ns, fields)

    def _query(self, query: str) -> list[dict[str, Any]]:
        address = f"{self._url}/query?" + urllib.parse.urlencode({"db": self._database, "q": query, "epoch": "ns"})
        request = urllib.request.Request(address)
        if self._token:
            request.add_header("Authorization", f"Token {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace").strip()
            raise SinkUnreadable(f"{self._url} answers {error.code} to {query!r}: {said}") from None
        except (OSError, http.client.HTTPException) as error:
            raise SinkUnreadable(f"{self._url} does not answer {query!r}: {error}") from None
        result = answer["results"][0]
        if "error" in result:
            raise SinkUnreadable(f"{self._url} refuses {query!r}: {result['error']}")
        series: list[dict[str, Any]] = result.get("series", [])
        return series


def _gathered(points: Iterable[_Point]) -> dict[SeriesKey, StoredSeries]:
    """Summaries, changes and raw points by series."""
    summaries: dict[SeriesKey, list[tuple[float, ...]]] = {}
    changes: dict[SeriesKey, list[tuple[float, ...]]] = {}
    raw: dict[SeriesKey, list[tuple[float, ...]]] = {}
    for point in points:
        key = point.tags.get("device", ""), point.tags.get("channel", "")
        # InfluxDB 1.8 shows a point while it writes it, field by field: what lacks one of these is not there yet.
        if {"count", "span_ms"} <= point.fields.keys():
            row = (point.time_ns, *(point.fields.get(name, np.nan) for name in SUMMARY_FIELDS))
            summaries.setdefault(key, []).append(row)
        if "state" in point.fields:  # a change at a window's very start shares the point of the window's summary
            changes.setdefault(key, []).append((point.time_ns, point.fields["state"]))
        if point.measurement.endswith("_raw"):
            raw.setdefault(key, []).append((point.time_ns,))
    return {
        key: StoredSeries(
            *_columns(summaries.get(key, []), [np.int64] * 3 + [np.float64] * 5),
            *_columns(raw.get(key, []), [np.int64]),
            *_columns(changes.get(key, []), [np.int64, np.float64]),
        )
        for key in summaries.keys() | changes.keys() | raw.keys()
    }


def _columns(rows: list[tuple[float, ...]], kinds: list[type[np.generic]]) -> list[NDArray[Any]]:
    """Rows in order as arrays, one a column."""
    columns = list(zip(*sorted(rows), strict=True)) or [()] * len(kinds)
    return [np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]


def _alarm(point: _Point) -> StoredAlarm:
    return StoredAlarm(
        id=point.fields["id"],
        device=point.tags.get("device", ""),
        channel=point.tags.get("channel", ""),
        detector=point.tags.get("detector", ""),
        state=point.fields["state"],
        time_ns=point.time_ns,
        ingested_ms=point.fields["ingested_ms"],
        reason=point.fields.get("reason", ""),
    )


def _last_accounts(points: Iterator[_Point]) -> dict[SeriesKey, dict[str, float]]:
    last: dict[SeriesKey, _Point] = {}
    for point in points:
        key = point.tags.get("device", ""), point.tags.get("channel", "")
        if key not in last or last[key].time_ns <= point.time_ns:
            last[key] = point
    return {key: {name: float(value) for name, value in point.fields.items()} for key, point in last.items()}
