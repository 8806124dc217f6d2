"""An ingester on modelled ports: the real `Ingester` between a modelled session and a modelled database."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, cast

from cloud.config import Limits
from cloud.ingester import Ingester
from cloud.ingester import Link as IngesterLink
from cloud.metrics import IngestMetrics
from cloud.sinks import Sink
from devices.model import SECOND_NS
from devices.quantities import Duration
from devices.wire.session import SessionOptions
from devices.wire.topics import UP, shared_filter
from tests.world.broker import Broker
from tests.world.database import Database, SinkPort
from tests.world.life import Life
from tests.world.wires import SimSession
from tests.world.witness import Witness


class IngesterLife(Life):
    """One life of an ingester: it ends by crashes only."""

    def start(
        self,
        client_id: str,
        *,
        rng: Random,
        now_ns: Callable[[], int],
        broker: Broker,
        database: Database,
        witness: Witness,
    ) -> None:
        class Receipting(SimSession):
            def publish(self, topic: str, payload: bytes, *, correlation: bytes | None = None, **_: Any) -> int | None:
                if self.connected and self._life.alive:
                    witness.receipted(payload, correlation, now_ns())
                return super().publish(topic, payload, correlation=correlation)

        sink = cast(Sink, SinkPort("", (database, self)))
        ingester = Ingester(
            sink, Limits(retry_most=Duration(600 * SECOND_NS)), IngestMetrics(), now_ns, Random(rng.random()).random
        )
        session = Receipting(
            self,
            broker,
            lambda messages: None,
            SessionOptions(broker="mqtt://uplink", client_id=client_id, clean_start=True, session_expiry_s=0),
            on_messages=ingester.on_messages,
            on_connect=ingester.on_connect,
            on_disconnect=ingester.on_disconnect,
            on_published=lambda mid, reason: None,
        )
        ingester.link = cast(IngesterLink, session)
        session.subscribe([(shared_filter("forebay", leaf), 1) for leaf in UP])
        self.spawn(ingester.run(), "writers")
        self.spawn(session.run(), "session")
