"""Points in one SQLite file: the sink when there is no InfluxDB; enough for a demo, a bench or one machine.

`url = "sqlite:forebay.db"` (beside the configuration's file) or `"sqlite:///var/lib/forebay/points.db"`.

    series   one row a series: measurement, and its tags as JSON with sorted names
    point    one row a key (series, time): its fields as JSON; writing a key again merges fields, as InfluxDB does
    points   the view that people query; the usual tags are columns of their own

    SELECT time, device, channel, fields ->> 'mean' FROM points WHERE measurement = 'temperature' ORDER BY time_ns

One batch is one transaction with `synchronous=FULL` in WAL mode, so an answered write is on the disk, and
others may read at any time. A batch with a bad line stores nothing. The measurements that chose this shape
are in docs/decisions/0005-sinks.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from cloud.sinks.parsing import parse_key, parse_line
from devices.errors import BadLines, ConfigError, SinkBusy, SinkError, SinkRefused

_VERSION: Final = 1
_SCHEMA: Final = (
    """
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    measurement TEXT NOT NULL,
    tags TEXT NOT NULL,
    gateway TEXT AS (tags ->> 'gateway'),
    device TEXT AS (tags ->> 'device'),
    channel TEXT AS (tags ->> 'channel'),
    unit TEXT AS (tags ->> 'unit'),
    detector TEXT AS (tags ->> 'detector'),
    UNIQUE (measurement, tags)
)""",
    """
CREATE TABLE point (
    series INTEGER NOT NULL REFERENCES series,
    time_ns INTEGER NOT NULL,
    fields TEXT NOT NULL,
    PRIMARY KEY (series, time_ns)
) WITHOUT ROWID""",
    """
CREATE VIEW points AS
    SELECT measurement, gateway, device, channel, unit, detector, tags,
           time_ns, datetime(time_ns / 1000000000, 'unixepoch') AS time, fields
    FROM series JOIN point ON point.series = series.id""",
    f"PRAGMA user_version = {_VERSION}",
)
_UPSERT: Final = """
INSERT INTO point VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET fields = json_patch(fields, excluded.fields) WHERE fields <> excluded.fields
"""
_MAX_KNOWN_SERIES: Final = 65_536
"""Series ids kept in memory: at some 300 B each 20 MB; beyond it they are looked up again."""
_BUSY_S: Final = 5.0
"""How long to wait for another process that writes to the file."""


class SqliteOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`url` is `sqlite:` and the path of the file, which is made when it is missing."""


class SqliteSink:
    """See cloud.sinks.Sink. All of SQLite happens on the sink's one thread."""

    Options = SqliteOptions

    def __init__(self, url: str, options: SqliteOptions) -> None:
        parts = urlsplit(url)
        self._path = Path(unquote(parts.path))
        if parts.netloc or not parts.path or parts.path == "/":
            raise ConfigError(f"the url of an SQLite sink is sqlite:FILE or sqlite:///FOLDER/FILE, not {url!r}")
        self._thread = ThreadPoolExecutor(1, "sqlite-sink")
        self._database: sqlite3.Connection | None = None
        self._series: dict[str, int] = {}

    async def open(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def check(self) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._check)

    async def write(self, lines: bytes) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, lines)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _open(self) -> None:
        if self._database is not None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise SinkRefused(f"cannot open {self._path}: {error}; check `url` in [sink] and the folder") from error
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            self._make_tables(database)
        except sqlite3.Error as error:
            database.close()
            raise self._meaning(error) from error
        except SinkError:
            database.close()
            raise
        self._database = database

    def _check(self) -> str:
        path = self._path.absolute()
        if not path.exists():
            folder = next(folder for folder in path.parents if folder.exists())
            if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
                raise SinkRefused(f"{path} cannot be made: this user may not write to {folder}; check `url` in [sink]")
            return f"{path} is not there yet: the ingester makes it"
        if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
            raise SinkRefused(
                f"{path} is no file that this user may read and write: check `url` in [sink], and its owner"
            )
        # While nobody has it open, there is no log beside it, and even a reader would make one and leave it there.
        how = "mode=ro" if Path(f"{path}-wal").exists() else "immutable=1"
        try:
            with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?{how}", timeout=_BUSY_S, uri=True)) as database:
                self._see_version(database)
        except sqlite3.Error as error:
            raise self._meaning(error) from error
        return f"{path} is there, and can be written"

    def _see_version(self, database: sqlite3.Connection) -> int:
        """Of its tables; 0: it has none. Raises SinkRefused for one that this program does not know."""
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise SinkRefused(
                f"{self._path} was written by a newer Forebay (version {version} of its tables, "
                f"this one knows {_VERSION}): update Forebay, or name another file in [sink] url"
            )
        return int(version)

    def _make_tables(self, database: sqlite3.Connection) -> None:
        database.execute("BEGIN IMMEDIATE")  # two processes may open a new file at once
        if self._see_version(database) == 0:
            for statement in _SCHEMA:
                database.execute(statement)
        database.execute("COMMIT")

    def _write(self, lines: bytes) -> None:
        database = self._database
        if database is None:
            raise SinkBusy(f"{self._path} is not open")
        try:
            points = [parse_line(line) for line in lines.decode().split("\n") if line]
            database.execute("BEGIN IMMEDIATE")
            database.executemany(
                _UPSERT,
                [(self._series_id(database, p.key), p.time_ns, msgspec.json.encode(p.fields).decode()) for p in points],
            )
            database.execute("COMMIT")
        except UnicodeDecodeError as error:
            raise BadLines(f"not UTF-8: {error}") from error
        except sqlite3.Error as error:
            raise self._meaning(error) from error
        finally:
            if database.in_transaction:
                self._series.clear()  # it may hold series that are rolled back
                database.execute("ROLLBACK")

    def _series_id(self, database: sqlite3.Connection, key: str) -> int:
        known = self._series.get(key)
        if known is not None:
            return known
        measurement, tags = parse_key(key)
        row = (measurement, msgspec.json.encode(tags).decode())
        database.execute("INSERT INTO series (measurement, tags) VALUES (?, ?) ON CONFLICT DO NOTHING", row)
        (number,) = database.execute("SELECT id FROM series WHERE measurement = ? AND tags = ?", row).fetchone()
        if len(self._series) >= _MAX_KNOWN_SERIES:
            self._series.clear()
        self._series[key] = number
        return int(number)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _meaning(self, error: sqlite3.Error) -> SinkError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return SinkRefused(f"{self._path} is damaged, or is no SQLite file ({error}): move it aside")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return SinkRefused(f"{self._path} cannot be written ({error}): check its owner and its folder")
        return SinkBusy(f"{self._path} cannot take it now: {error}")
