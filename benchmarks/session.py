"""What one MQTT session costs: receiving and acknowledging small messages, publishing frames.

    ./task bench session [--messages N] [--json FILE]

Against a real mosquitto on this machine, which shares its cores with the loader and with us. The rate is the
broker's limit; what counts is CPU a message, user and system time of this process. Beside it paho's own receive
path on the same load, acknowledging by hand as it does.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from benchmarks import load
from benchmarks.harness import Meter, parser, report
from devices.errors import ForebayError
from devices.wire.receive import Inbound
from devices.wire.session import Session, SessionOptions
from simulators.servers import Broker

TOPIC = "plant/+/temperature"
PAHO_MESSAGES = 50_000
FRAME_BYTES = 16 * 1024
FRAMES_IN_FLIGHT = 64  # 1 MiB, the window of a lane
PATIENCE_S = 120


def meter(broker: Broker) -> Meter:
    return Meter(own=os.getpid(), broker=broker.process.pid)


def row(name: str, count: int, measured: Meter, batch: float) -> list[object]:
    costs = [measured.cpu_s[who] / count * 1e6 for who in ("own", "broker")]
    return [name, *costs, count / measured.wall_s, batch]


async def receiving(broker: Broker, count: int, *, confirm: bool) -> list[object]:
    """Receive and acknowledge `count` messages of 120 B at QoS 1; `confirm`: and learn that the broker knows."""
    done, connected = asyncio.Event(), asyncio.Event()
    received = batches = confirmed = 0

    def on_messages(inbound: Inbound) -> None:
        nonlocal received, batches
        received += len(inbound)
        batches += 1
        session.acknowledge(inbound.packet_ids, inbound.connection)
        if received >= count and not confirm:
            done.set()

    def on_confirmed(_connection: int, number: int) -> None:
        nonlocal confirmed
        confirmed += number
        if confirmed >= count:
            done.set()

    session = Session(
        options(broker, "receiver"),
        on_messages=on_messages,
        on_connect=lambda _present: connected.set(),
        on_disconnect=complain,
        on_published=lambda _mid, _reason: None,
        on_confirmed=on_confirmed if confirm else None,
    )
    session.subscribe([(TOPIC, 1)])
    loader = await asyncio.to_thread(load.start, broker.port, count)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(session.run())
        await asyncio.wait_for(connected.wait(), PATIENCE_S)
        with meter(broker) as measured:
            load.go(loader)
            await asyncio.wait_for(done.wait(), PATIENCE_S)
        running.cancel()
    await asyncio.to_thread(load.finish, loader)
    return row("received, acknowledged" + (", confirmed" if confirm else ""), count, measured, received / batches)


async def publishing(broker: Broker, count: int) -> list[object]:
    """Publish `count` frames of 16 KiB with correlation data at QoS 1, up to 1 MiB ahead of the PUBACKs."""
    done, connected = asyncio.Event(), asyncio.Event()
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
        options(broker, "publisher"),
        on_messages=lambda _inbound: None,
        on_connect=lambda _present: connected.set(),
        on_disconnect=complain,
        on_published=on_published,
    )
    async with asyncio.TaskGroup() as group:
        running = group.create_task(session.run())
        await asyncio.wait_for(connected.wait(), PATIENCE_S)
        with meter(broker) as measured:
            fill()
            await asyncio.wait_for(done.wait(), PATIENCE_S)
        running.cancel()
    return row("published, 16 KiB", count, measured, 1)


def receiving_with_paho(broker: Broker, count: int) -> list[object]:
    """The same with paho as it comes."""
    received = 0
    client = Client(CallbackAPIVersion.VERSION2, "paho", protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True)
    measuring: AbstractContextManager[Meter] = meter(broker)
    loader = load.start(broker.port, count)

    def on_message(client: Client, _data: Any, message: Any) -> None:
        nonlocal received
        received += 1
        client.ack(message.mid, message.qos)
        if received == count:
            client.disconnect()

    client.on_message = on_message
    client.on_connect = lambda client, *_: client.subscribe(TOPIC, 1)
    client.on_subscribe = lambda *_: load.go(loader)
    client.connect(broker.host, broker.port)
    with measuring as measured:
        client.loop_forever()
    load.finish(loader)
    return row("paho's own receive path", count, measured, 1)


def options(broker: Broker, client_id: str) -> SessionOptions:
    return SessionOptions(broker=broker.url, client_id=client_id, clean_start=True, session_expiry_s=0)


def complain(failure: ForebayError) -> None:
    print(f"disconnected: {failure}")


@contextmanager
def fresh_broker() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            yield broker
        finally:
            broker.kill()


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--messages", type=int, default=300_000, help="received; a 30th as many frames are sent")
    arguments = arguments_of.parse_args()
    count, frames = arguments.messages, max(arguments.messages // 30, 1)
    runs: list[Callable[[Broker], list[object]]] = [
        lambda broker: asyncio.run(receiving(broker, count, confirm=False)),
        lambda broker: asyncio.run(receiving(broker, count, confirm=True)),
        lambda broker: receiving_with_paho(broker, min(count, PAHO_MESSAGES)),
        lambda broker: asyncio.run(publishing(broker, frames)),
    ]
    rows = []
    for run in runs:
        with fresh_broker() as broker:
            rows.append(run(broker))
    plain, confirmed, paho, frame = [[float(str(cell)) for cell in cells[1:]] for cells in rows]
    report(
        f"One MQTT 5 session, QoS 1, {count} messages of 120 B and {frames} frames",
        [["", "CPU us/message", "broker's", "messages/s", "messages a read"], *rows],
        {
            "session_cpu_us_per_message": plain[0],
            "session_confirmed_cpu_us_per_message": confirmed[0],
            "session_messages_per_s": plain[2],
            "paho_cpu_us_per_message": paho[0],
            "ratio_paho": plain[0] / paho[0],
            "publish_cpu_us_per_frame": frame[0],
            "publish_mb_per_s": frame[2] * FRAME_BYTES / 1e6,
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
