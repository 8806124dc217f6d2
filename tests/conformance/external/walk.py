"""Three beats of the metronome through all four parts, as a gateway's file names them.

python walk.py FILE        FILE gets the points
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np

from devices.drivers import Delivery
from devices.model import Rows, SampleBatch
from devices.profiles import load
from edge.config import SourceConfig, load_config
from edge.filters import Filters


async def three_beats(source: SourceConfig) -> list[bytes]:
    """What the driver delivers."""
    payloads: list[bytes] = []
    enough = asyncio.Event()

    def deliver(delivery: Delivery) -> None:
        payloads.extend(delivery.payloads)
        if len(payloads) >= 3:
            enough.set()

    driver = load("drivers", source.driver)(source.device, source.options, deliver, lambda: 1)
    running = asyncio.create_task(driver.run())
    await enough.wait()
    running.cancel()
    return payloads[:3]


async def store(path: str, lines: list[str]) -> None:
    sink_class = load("sinks", "linefile")
    sink = sink_class(f"linefile://{path}", sink_class.Options())
    await sink.open()
    await sink.write("\n".join(lines).encode())
    await sink.close()


def main() -> None:
    source = load_config(Path(__file__).with_name("gateway.toml")).source["clock"]
    codec = load("codecs", source.profile.codec.name)(source.profile.codec.options)
    rows = Rows()
    for payload in asyncio.run(three_beats(source)):
        codec.decode(payload, rows)
    spec = source.profile.series(source.device, rows.channel[0])
    assert spec is not None
    filters = Filters()
    filters.add_series(0, spec)
    values = [*map(float, rows.value), -1.0]
    stamps = np.arange(1, 5, dtype=np.int64)
    events = filters.run(SampleBatch(np.zeros(4, np.int32), stamps, np.array(values), np.zeros(4, np.uint8)))
    points = [f"{spec.quantity},device={spec.device} last={value} {n}" for n, value in enumerate(values, 1)]
    asyncio.run(store(sys.argv[1], points))
    for event in events:
        print(filters.detectors[event["detector"]], "alarm at", event["time_ns"], "with score", event["score"])


if __name__ == "__main__":
    main()
