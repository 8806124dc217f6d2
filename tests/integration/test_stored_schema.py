"""docs/stored.md against what released frames become: its queries are run, and its fields are all there are."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cloud.lines import encode
from cloud.sinks.parsing import parse_key, parse_line
from cloud.sinks.sqlite import SqliteOptions, SqliteSink
from devices.model import DROP_POLICIES, REJECT_REASONS, Quality
from devices.wire.frame import FrameLimits, decode
from simulators.servers import InfluxServer

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "stored.md").read_text(encoding="utf-8")
FRAMES = (
    *("alarms", "changes", "heartbeat", "inventory", "ledger", "raw_qualities_and_late_times"),
    *("summaries_counters_and_states", "summaries_gauges", "summaries_single_samples"),
    "summaries_supplements_and_spans",
)
"""Golden ones, as an edge has sent them."""
INGESTED_NS = 1_780_000_100 * 10**9
OURS = ("alarm", "ledger", "gateway", "channel")


def lines() -> str:
    found = []
    for name in FRAMES:
        (path,) = (ROOT / "tests" / "vectors" / "frames").glob(f"*/{name}.bin")
        found.append(encode(decode(path.read_bytes(), FrameLimits()), INGESTED_NS).body.decode())
    return "".join(found)


def queries(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def documented() -> dict[str, dict[str, str]]:
    """Measurement -> field -> type, from the tables below each heading; "" where the table has no column of types."""
    fields: dict[str, dict[str, str]] = {}
    for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        name = re.match(r"`([^`]+)`", section)
        if name is None:
            continue
        typed = "| field | type |" in section
        for row in re.findall(r"^\| (`.*) \|$", section, re.MULTILINE):
            cells = row.split(" | ")
            for field in re.findall(r"`([^`]+)`", cells[0]):
                fields.setdefault(name[1], {})[field] = cells[1] if typed else "float"
    fields.setdefault("channel", {})["profile"] = "string"
    return fields


def stored_fields() -> Iterator[tuple[str, str, str]]:
    """(Measurement as the page calls it, field, type) of each field of each point."""
    for line in lines().splitlines():
        measurement, _ = parse_key(parse_line(line).key)
        of_a_channel = "<quantity>_raw" if measurement.endswith("_raw") else "<quantity>"
        kind = measurement if measurement in OURS else of_a_channel
        for field, value in parse_line(line).fields.items():
            yield kind, field, {int: "integer", float: "float", str: "string"}[type(value)]


def test_every_field_that_is_stored_is_in_the_page_with_its_type() -> None:
    page = documented()
    for measurement, field, kind in set(stored_fields()):
        general = re.sub(r"^rejected_.*", "rejected_<reason>", re.sub(r"^dropped_.*", "dropped_<policy>", field))
        assert page[measurement].get(general) == kind, f"{measurement} {field}"


def test_every_field_of_the_page_is_stored() -> None:
    stored = {(measurement, field) for measurement, field, _ in stored_fields()}
    for measurement, fields in documented().items():
        for field in fields:
            assert any(m == measurement and re.fullmatch(re.sub("<.*>", ".*", field), f) for m, f in stored), field


def test_every_reason_and_policy_of_the_ledger_is_in_the_page() -> None:
    (reasons,) = re.findall(r"^\| `rejected_<reason>` \| (.*) \|$", PAGE, re.MULTILINE)
    (policies,) = re.findall(r"^\| `dropped_<policy>` \| (.*) \|$", PAGE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", reasons) == list(REJECT_REASONS)
    assert re.findall(r"`(\w+)`", policies) == list(DROP_POLICIES)


def test_the_bits_of_a_raw_samples_quality_are_those_of_the_page() -> None:
    (text,) = re.findall(r"^\| `quality` \| float \| (.*) \|$", PAGE, re.MULTILINE)
    assert f"{Quality.CLOCK} the time is an estimate" in text
    assert f"{Quality.SPREAD} the time was moved within the device's `time_resolution`" in text


def check_answers(means: list[dict[str, Any]], alarms: list[dict[str, Any]]) -> None:
    """All temperatures lie within one hour."""
    weighted, counts = defaultdict[str, float](float), defaultdict[str, int](int)
    for point in {(point.key, point.time_ns): point for point in map(parse_line, lines().splitlines())}.values():
        measurement, tags = parse_key(point.key)
        mean, count = point.fields.get("mean"), point.fields.get("count")
        if measurement == "temperature" and isinstance(mean, float) and isinstance(count, int):
            weighted[tags["device"]] += mean * count
            counts[tags["device"]] += count
    assert {row["device"]: row["samples"] for row in means} == counts
    for row in means:
        assert row["mean"] == pytest.approx(weighted[row["device"]] / counts[row["device"]])
    assert {(row["device"], row["channel"], row["detector"]) for row in alarms} == {("press-001", "door", "silent")}
    assert all(row["severity"] and row["reason"] for row in alarms)


def test_the_queries_of_the_page_are_answered_by_influxdb(influxdb: InfluxServer) -> None:
    influxdb.write(lines())
    means, alarms = (influxdb.query(" ".join(query.split())) for query in queries("influxql"))
    check_answers(means, alarms)


def test_the_queries_of_the_page_are_answered_by_sqlite(tmp_path: Path) -> None:
    async def write() -> None:
        sink = SqliteSink(f"sqlite://{tmp_path}/points.db", SqliteOptions())
        await sink.open()
        await sink.write(lines().encode())
        await sink.close()

    asyncio.run(write())
    with closing(sqlite3.connect(tmp_path / "points.db")) as database:
        database.row_factory = sqlite3.Row
        means, alarms = ([dict(row) for row in database.execute(query)] for query in queries("sql"))
    check_answers(means, alarms)
