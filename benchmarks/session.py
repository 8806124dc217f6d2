"""What one MQTT session costs: receiving and acknowledging small messages, publishing frames.

    python -m benchmarks.session [--count 300000] [--json FILE]

Against a real mosquitto on this machine, which shares its cores with the loader and with us: the rate is the
broker's limit, the figure of ours is CPU a message (user and system time of this process).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import load
from devices.errors import ForebayError
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions
from simulators.servers import Broker

FRAME_BYTES = 16 * 1024
FRAMES_IN_FLIGHT = 64  # 1 MiB, the uplink's window


@dataclass
class Meter:
    """CPU of this process and of the broker, and wall time, since it was made."""

    broker_pid: int
    cpu_s: float = field(default_factory=time.process_time)
    wall_s: float = field(default_factory=time.perf_counter)
    broker_s: float = 0.0

    def __post_init__(self) -> None:
        self.broker_s = self._broker_cpu_s()

    def _broker_cpu_s(self) -> float:
        times = psutil.Process(self.broker_pid).cpu_times()
        return float(times.user + times.system)

    def figures(self, name: str, count: int) -> dict[str, float]:
        wall_s = time.perf_counter() - self.wall_s
        return {
            f"{name}_cpu_us": (time.process_time() - self.cpu_s) / count * 1e6,
            f"{name}_per_s": count / wall_s,
            f"{name}_broker_cpu_us": (self._broker_cpu_s() - self.broker_s) / count * 1e6,
        }


async def receiving(broker: Broker, count: int, *, confirm: bool) -> dict[str, float]:
    """Receive and acknowledge `count` messages of 120 B at QoS 1."""
    name = "receive_confirmed" if confirm else "receive"
    done = asyncio.Event()
    subscribed = asyncio.Event()
    received = batches = 0

    def on_messages(inbound: Inbound) -> None:
        nonlocal received, batches
        received += len(inbound)
        batches += 1
        session.acknowledge(inbound.packet_ids, inbound.connection)
        if received >= count:
            done.set()

    session = Session(
        SessionOptions(broker=broker.url, client_id=name, clean_start=True, session_expiry_s=0),
        on_messages=on_messages,
        on_connect=lambda _present: subscribed.set(),
        on_disconnect=_complain,
        on_published=lambda _mid, _reason: None,
        on_confirmed=(lambda _connection, _count: None) if confirm else None,
    )
    session.subscribe([("plant/+/temperature", 1)])
    loader = await asyncio.to_thread(load.start, broker.port, count)

    async def measure() -> dict[str, float]:
        await asyncio.wait_for(subscribed.wait(), 10)
        await asyncio.sleep(0.2)
        meter = Meter(broker.process.pid)
        load.go(loader)
        await asyncio.wait_for(done.wait(), 120)
        return {**meter.figures(name, count), f"{name}_batch": received / batches}

    figures = await _beside(session, measure)
    await asyncio.to_thread(load.finish, loader)
    return figures


async def publishing(broker: Broker, count: int) -> dict[str, float]:
    """Publish `count` frames of 16 KiB with correlation data at QoS 1, up to 1 MiB ahead of the PUBACKs."""
    done = asyncio.Event()
    ready = asyncio.Event()
    payload, correlation = bytes(FRAME_BYTES), bytes(24)
    sent = acknowledged = 0

    def fill() -> None:
        nonlocal sent
        while sent < count and sent - acknowledged < FRAMES_IN_FLIGHT:
            session.publish("forebay/v1/bench/data", payload, correlation=correlation)
            sent += 1

    def on_published(_mid: int, _reason: int) -> None:
        nonlocal acknowledged
        acknowledged += 1
        fill()
        if acknowledged >= count:
            done.set()

    session = Session(
        SessionOptions(broker=broker.url, client_id="publish", clean_start=True, session_expiry_s=0),
        on_messages=lambda _inbound: None,
        on_connect=lambda _present: ready.set(),
        on_disconnect=_complain,
        on_published=on_published,
    )

    async def measure() -> dict[str, float]:
        await asyncio.wait_for(ready.wait(), 10)
        meter = Meter(broker.process.pid)
        fill()
        await asyncio.wait_for(done.wait(), 120)
        figures = meter.figures("publish_16k", count)
        return {**figures, "publish_16k_mb_per_s": figures["publish_16k_per_s"] * FRAME_BYTES / 1e6}

    return await _beside(session, measure)


async def _beside(session: Session, measure: Callable[[], Awaitable[dict[str, float]]]) -> dict[str, float]:
    task = asyncio.create_task(session.run())
    try:
        return await measure()
    finally:
        task.cancel()
        await asyncio.wait([task])


def _complain(failure: ForebayError) -> None:
    print(f"disconnected: {failure}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300_000, help="messages received; a 30th as many frames published")
    parser.add_argument("--json", type=Path, help="write the figures there as one flat object")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            figures |= asyncio.run(receiving(broker, arguments.count, confirm=False))
            figures |= asyncio.run(receiving(broker, arguments.count, confirm=True))
            figures |= asyncio.run(publishing(broker, max(arguments.count // 30, 1)))
        finally:
            broker.kill()
    for name, value in figures.items():
        print(f"{name:<34}{value:>14,.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
