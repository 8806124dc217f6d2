"""Golden frames: what every released version wrote must decode for ever, and to what it said then.

`python tests/unit/test_frame_vectors.py` writes the vectors that are not there yet, of the version that the
code now writes; those that are there are never written again. Beside each NAME.bin lies NAME.json: what it
decodes to, NaN as null, infinities as texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from devices.model import CHANGE_DTYPE, SUMMARY_DTYPE, Alarm, Kind, Lane, SampleBatch
from devices.wire.frame import (
    Account,
    AlarmBody,
    BodyKind,
    ChangeBody,
    Frame,
    FrameLimits,
    Header,
    Heartbeat,
    Inventory,
    InventoryDevice,
    Ledger,
    RawBody,
    SummaryBody,
    WireSeries,
    decode,
    encode,
)

FOLDER = Path(__file__).parents[1] / "vectors" / "frames"
NEWEST = "v1"
T0 = 1_780_000_000_000_000_000
WINDOW_NS = 10_000_000_000
NAN, INF = math.nan, math.inf

TEMPERATURE = WireSeries("press-001", "temperature", "temperature", "°C")
PRESSURE = WireSeries("press-001", "pressure", "pressure", "bar")
STROKES = WireSeries("press-001", "strokes", "strokes", "", Kind.COUNTER)
DOOR = WireSeries("press-001", "door", "door", "", Kind.STATE, {"shut": 0.0, "open": 1.0, "ajar": 0.5})
OTHER = WireSeries("press-002", "temperature", "temperature", "°C")


def frame(series: list[WireSeries], body: BodyKind, lane: Lane = Lane.LIVE, seq: int = 48_211) -> Frame:
    return Frame(Header("pump-station-7", 0x1F3A5C7E9B2D4F60, seq, lane, T0 + 123_456_789), series, body)


def raw(*rows: tuple[int, int, float, int]) -> RawBody:
    series, time_ns, value, quality = zip(*rows, strict=True)
    return RawBody(
        SampleBatch(
            np.array(series, dtype=np.int32),
            np.array(time_ns, dtype=np.int64),
            np.array(value, dtype=np.float64),
            np.array(quality, dtype=np.uint8),
        )
    )


def window(series: int, k: int, count: int, last: float, **fields: float) -> tuple[Any, ...]:
    low, high, first = fields.get("low", last), fields.get("high", last), fields.get("first", last)
    mean, stddev = fields.get("mean", last), fields.get("stddev", 0.0)
    start = T0 + k * WINDOW_NS + int(fields.get("supplement", 0))
    span = int(fields.get("span", WINDOW_NS))
    return (series, start, span, count, mean, low, high, stddev, first, last, fields.get("increase", NAN))


def summaries(*rows: tuple[Any, ...]) -> SummaryBody:
    return SummaryBody(np.array(list(rows), dtype=SUMMARY_DTYPE))


def alarm(number: int, **fields: Any) -> Alarm:
    usual: dict[str, Any] = {
        "id": f"press-001/temperature/zscore/{number}",
        "series": 0,
        "detector": "zscore",
        "state": "open",
        "severity": "warning",
        "time_ns": T0 + number,
        "arrived_ns": T0 + number + 2_500_000,
        "value": 91.5,
        "low": 58.25,
        "high": 66.75,
        "score": 4.125,
        "reason": "temperature 91.5 °C is far above the usual 58.25 to 66.75 °C",
    }
    return Alarm(**(usual | fields))


HOSTILE = [
    "a,b =c",
    'q"\\\\',
    "line\nbreak\r\n",
    "nul\x00",
    "Förderpumpe",
    "温度",
    "👩‍🔧",
    "$share/#/+",
    " ",
    "é" * 128,
]

VECTORS: dict[str, Callable[[], Frame]] = {
    "raw_decimals": lambda: frame(
        [TEMPERATURE, PRESSURE, OTHER],
        raw(
            *[
                (i % 3, T0 + k * 1_000_000_000 + i, 20 + i + k / (1, 10, 1000)[i], 0)
                for k in range(40)
                for i in (2, 0, 1)
            ]
        ),
        Lane.RAW,
    ),
    "raw_full_doubles": lambda: frame(
        [TEMPERATURE, PRESSURE],
        raw(
            *[(i, T0 + k * 250_000_000, (math.sqrt(k + 2), round(k * 0.1, 1))[i], 0) for k in range(20) for i in (0, 1)]
        ),
        Lane.RAW,
    ),
    "raw_edges_of_float64": lambda: frame(
        [TEMPERATURE, PRESSURE, STROKES, OTHER],
        raw(
            *[(0, T0 + k, value, 0) for k, value in enumerate([-0.0, 0.0, 0.5, -0.0, -1.25])],
            *[(1, T0 + k, value, 0) for k, value in enumerate([5e-324, -2.2250738585072009e-308, 1e-300, -0.0])],
            *[(2, T0 + k, value, 0) for k, value in enumerate([2.0**53, 2.0**53 + 2, 1.7976931348623157e308, -1e300])],
            (3, T0, 0.1 + 0.2, 0),
        ),
        Lane.RAW,
    ),
    "raw_qualities_and_late_times": lambda: frame(
        [TEMPERATURE, OTHER],
        raw(
            (0, T0 + 5, 1.5, 1),
            (0, T0 - 86_400_000_000_000, 2.5, 0),
            (1, 1, 3.0, 3),
            (1, T0, 4.0, 255),
            (0, T0, 5.0, 2),
        ),
        Lane.RAW,
    ),
    "raw_empty": lambda: frame([TEMPERATURE], RawBody(SampleBatch.empty()), Lane.RAW),
    "changes": lambda: frame(
        [DOOR, TEMPERATURE],
        ChangeBody(np.array([(0, T0 + 7, 1.0), (0, T0, 0.0), (0, T0 + 1_500_000_000, 0.5)], dtype=CHANGE_DTYPE)),
    ),
    "summaries_gauges": lambda: frame(
        [TEMPERATURE, OTHER, PRESSURE],
        summaries(
            window(0, 0, 10, 61.25, low=60.5, high=62.0, first=60.75, mean=61.18125, stddev=0.4312),
            window(0, 1, 9, 61.5, low=61.0, high=61.75, first=61.25, mean=61.38889, stddev=0.2241),
            window(1, 1, 10, 58.0, low=57.75, high=58.25, first=58.25, mean=58.025, stddev=0.175),
            window(2, 0, 1000, 5.125, low=4.875, high=5.375, first=5.0, mean=5.124875, stddev=0.10311),
            window(2, 1, 2, 5.0, low=5.0, high=5.5, first=5.5, mean=5.25, stddev=0.25),
        ),
    ),
    "summaries_supplements_and_spans": lambda: frame(
        [TEMPERATURE, PRESSURE],
        summaries(
            window(0, 0, 3, 61.0, low=60.0, high=62.0, first=62.0, mean=61.0, stddev=0.8165, supplement=1),
            window(0, 0, 1, 60.5, supplement=2),
            window(0, 1, 10, 61.0),
            window(1, 0, 100, 5.0, low=4.0, high=6.0, first=4.5, mean=5.0125, stddev=0.5, span=100_000_000_000),
            window(1, 10, 5, 5.5, low=5.0, high=5.5, first=5.0, mean=5.2, stddev=0.2449, span=250_000_000),
        ),
        Lane.BACKFILL,
    ),
    "summaries_single_samples": lambda: frame(
        [TEMPERATURE, OTHER, PRESSURE], summaries(window(0, 0, 1, -0.0), window(0, 1, 1, 61.25), window(2, 0, 1, 1 / 3))
    ),
    "summaries_counters_and_states": lambda: frame(
        [STROKES, DOOR, TEMPERATURE],
        summaries(
            window(
                0,
                0,
                10,
                1_000_045.0,
                low=1_000_000.0,
                high=1_000_045.0,
                first=1_000_000.0,
                mean=1_000_022.5,
                stddev=14.36,
                increase=50.0,
            ),
            window(
                0,
                1,
                10,
                12.0,
                low=3.0,
                high=1_000_060.0,
                first=1_000_050.0,
                mean=500_030.5,
                stddev=500_020.1,
                increase=27.0,
            ),
            window(0, 2, 1, 15.0, increase=3.0),
            window(1, 0, 3, 1.0, low=0.0, high=1.0, first=0.0, mean=NAN, stddev=NAN),
            window(1, 1, 1, 1.0, mean=NAN, stddev=NAN),
            window(2, 0, 4, 20.5, low=20.0, high=21.0, first=20.0, mean=20.5, stddev=0.3536),
        ),
    ),
    "summaries_edges_of_float64": lambda: frame(
        [TEMPERATURE, OTHER, PRESSURE, STROKES],
        summaries(
            window(0, 0, 4, -0.0, low=-0.5, high=0.25, first=-0.0, mean=-0.0, stddev=0.2707),
            window(1, 0, 3, math.pi, low=math.e, high=math.tau, first=math.sqrt(2), mean=3.3636, stddev=5e-324),
            window(1, 1, 2, 0.1 + 0.2, low=0.1, high=0.3 + 1e-16, first=-0.0, mean=1 / 3, stddev=1 / 7),
            window(2, 0, 2, 1e308, low=-1e308, high=1.7976931348623157e308, first=1e308, mean=INF, stddev=NAN),
            window(
                3,
                0,
                5,
                2.0**53 + 2,
                low=2.0**53,
                high=2.0**53 + 2,
                first=2.0**53,
                mean=2.0**53,
                stddev=1.0,
                increase=0.1 + 0.2,
            ),
        ),
    ),
    "summaries_hostile_names": lambda: frame(
        [WireSeries(name, name, name, name, Kind.GAUGE) for name in HOSTILE],
        summaries(*[window(i, 0, 1, float(i)) for i in range(len(HOSTILE))]),
    ),
    "changes_hostile_texts": lambda: frame(
        [WireSeries("d", "c", "q", "", Kind.STATE, {text: float(i) for i, text in enumerate(["", *HOSTILE])})],
        ChangeBody(np.array([(0, T0, 3.0)], dtype=CHANGE_DTYPE)),
    ),
    "alarms": lambda: frame(
        [TEMPERATURE, DOOR],
        AlarmBody(
            [
                alarm(1),
                alarm(2, detector="silent", series=1, value=NAN, low=NAN, high=NAN, score=INF, severity="critical"),
                alarm(3, state="closed", value=-0.0, low=-INF, high=5e-324, score=0.5, reason='back "to" normal\n'),
            ]
        ),
        Lane.ALARM,
        1,
    ),
    "inventory": lambda: frame(
        [],
        Inventory(
            "forebay 0.1.0",
            "8f14e45fceea167a",
            [InventoryDevice("press-001", "acme-p100@3", ["temperature", "door"]), InventoryDevice("温度", "", [])],
        ),
    ),
    "ledger": lambda: frame(
        [],
        Ledger(
            T0,
            [
                Account(
                    "press-001",
                    "",
                    1_000_000_000_000,
                    999_999_999_900,
                    60,
                    7,
                    {"future": 30, "malformed": 5},
                    {"overrun": 5},
                ),
                Account("press-001", "temperature", 10, 3, 0, 1, {"duplicate": 7}),
                Account("press-002", ""),
            ],
        ),
    ),
    "heartbeat": lambda: frame(
        [],
        Heartbeat(T0, "forebay 0.1.0", "8f14e45fceea167a", 1 << 28, 1 << 40, 12, 3_600_000, 2, 86_400.125),
        seq=(1 << 63) - 1,
    ),
}


def plain_number(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def plain_rows(rows: np.ndarray[Any, Any]) -> list[list[Any]]:
    return [[plain_number(one) if isinstance(one, float) else one for one in row] for row in rows.tolist()]


def plain(decoded: Frame) -> dict[str, Any]:
    """A frame as JSON can hold it."""
    content: Any
    match decoded.body:
        case SummaryBody(rows=rows) | ChangeBody(rows=rows):
            content = plain_rows(rows)
        case RawBody(samples=samples):
            content = [
                list(row)
                for row in zip(
                    samples.series.tolist(),
                    samples.time_ns.tolist(),
                    samples.value.tolist(),
                    samples.quality.tolist(),
                    strict=True,
                )
            ]
        case AlarmBody(alarms=alarms):
            content = [
                {name: plain_number(one) if isinstance(one, float) else one for name, one in row.items()}
                for row in map(msgspec.structs.asdict, alarms)
            ]
        case other:
            content = msgspec.to_builtins(other)
    return {
        "header": msgspec.to_builtins(decoded.header),
        "series": [msgspec.to_builtins(one) for one in decoded.series],
        "kind": type(decoded.body).__name__,
        "body": content,
    }


def as_json(decoded: Frame) -> str:
    """Floats are written with `repr`, which tells -0.0 from 0.0 and gives back every bit."""
    return json.dumps(plain(decoded), ensure_ascii=True, allow_nan=False, indent=1) + "\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*/*.bin")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_golden_frame_decodes_to_what_it_said_when_it_was_made(path: Path) -> None:
    assert as_json(decode(path.read_bytes(), FrameLimits())) == path.with_suffix(".json").read_text()


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_what_is_written_today_says_the_same_as_the_golden_frame(name: str) -> None:
    today = decode(encode(VECTORS[name]()), FrameLimits())
    assert as_json(today) == (FOLDER / NEWEST / f"{name}.json").read_text()


def test_no_golden_frame_was_forgotten() -> None:
    assert {path.stem for path in (FOLDER / NEWEST).glob("*.bin")} == VECTORS.keys()
    assert {path.stem for path in (FOLDER / NEWEST).glob("*.json")} == VECTORS.keys()


def write_new_vectors() -> None:
    (FOLDER / NEWEST).mkdir(parents=True, exist_ok=True)
    for name, build in VECTORS.items():
        path = FOLDER / NEWEST / f"{name}.bin"
        if not path.exists():
            path.write_bytes(encode(build()))
            path.with_suffix(".json").write_text(as_json(decode(path.read_bytes(), FrameLimits())))
            print(f"wrote {path}")


if __name__ == "__main__":
    write_new_vectors()
