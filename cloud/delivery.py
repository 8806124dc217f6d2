"""One message on its way through the ingester, and the queues in which messages wait for a writer."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from devices.wire.frame import Frame


@dataclass(slots=True, eq=False)
class Delivery:
    """One message, from its arrival until we are done with it."""

    topic: str
    payload: bytes
    correlation: bytes | None
    packet_id: int
    connection: int
    arrived_s: float
    """By the loop's clock."""
    gateway: str = ""
    leaf: str = ""
    frame: Frame | None = None
    forgettable: bool = False
    """By the broker."""
    answers_before: int | None = None
    """What the sink had answered when it did not answer for this, though it lives."""


class Queue:
    """What waits for a writer."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._deliveries: deque[Delivery] = deque()
        self._arrived = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._deliveries)

    def put(self, delivery: Delivery) -> None:
        self._deliveries.append(delivery)
        self.size_bytes += len(delivery.payload)
        self._arrived.set()

    def take(self) -> Delivery:
        """The one that has waited longest."""
        delivery = self._deliveries.popleft()
        self.size_bytes -= len(delivery.payload)
        return delivery

    async def wait(self) -> None:
        """Until there is something."""
        while not self._deliveries:
            self._arrived.clear()
            await self._arrived.wait()
