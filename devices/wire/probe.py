"""`check` at a broker: come in under a name of its own that leaves nothing behind, ask, and go.

Clean start and no session expiry: the broker forgets the name with the link. What is subscribed to and published is
the caller's to choose so that nobody notices.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from devices.errors import ForebayError
from devices.wire.session import Session, SessionOptions

UNLIMITED_BYTES: Final = 268_435_455
"""The largest packet that MQTT can say; a broker that takes more says nothing."""


class Asked(NamedTuple):
    """What came of it."""

    error: str
    """Why it did not let us in, or what it refuses; "" when all is well."""
    connected: bool
    takes_bytes: int
    """The largest packet that it takes."""

    @property
    def takes(self) -> str:
        """The same, for people."""
        return f"of {self.takes_bytes} bytes" if self.takes_bytes < UNLIMITED_BYTES else "of any size"


async def ask(options: SessionOptions, wait_s: float, filters: Sequence[str] = (), topic: str = "") -> Asked:
    """Connect, subscribe to `filters` and publish an empty message to `topic` ("": none), all within `wait_s`.

    The broker answers in order: its answer to the message says that it has judged the subscriptions too.
    Raises ConfigError for options that can never work.
    """
    ended = asyncio.Event()

    def on_connect(session_present: bool) -> None:
        del session_present
        if topic:
            asyncio.get_running_loop().call_soon(session.publish, topic, b"")
        else:
            ended.set()

    def on_disconnect(error: ForebayError) -> None:
        del error
        ended.set()

    session = Session(
        msgspec.structs.replace(
            options, client_id=f"forebay-check-{secrets.token_hex(6)}", clean_start=True, session_expiry_s=0, will=None
        ),
        on_messages=lambda inbound: None,
        on_connect=on_connect,
        on_disconnect=on_disconnect,
        on_published=lambda mid, reason: ended.set(),
    )
    session.subscribe([(name, 1) for name in filters])
    running = asyncio.ensure_future(session.run())
    try:
        async with asyncio.timeout(wait_s):
            await ended.wait()
    except TimeoutError:
        pass
    finally:
        connected, error = session.connected, session.error
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    if not ended.is_set():
        what = "took us in, but did not say what it allows" if connected else "did not answer"
        error = error or f"{options.broker} {what} within {wait_s:g} s: is it overloaded, or no MQTT broker?"
    return Asked(error, connected, session.broker_max_packet_bytes)
