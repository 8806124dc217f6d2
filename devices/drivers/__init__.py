"""The role of a driver: it moves bytes from a device to the edge, and nothing else.

A driver never decodes: what it reads goes on as it came, with the topic where there is one. It is
found by name through the entry-point group `forebay.drivers` (see `devices.profiles.load`), is built
with `Driver(device, options, deliver, now_ns)`, and promises, in this order:

1. `run()` opens the source, and opens it again after every failure, with full jitter, until it is
   cancelled. A failure is written to `status.error` as a sentence that says what to do; it is never raised.
2. `deliver(delivery)` is called from the event loop's thread. It never blocks.
3. After `pause()` it reads no more (a socket is left unread, polls are skipped and counted in
   `status.skipped`, a streaming port counts `status.overruns`) until `resume()`. It stays connected.
4. `delivery.settle()` is called at most once, after the commit that holds what was delivered; it may
   be called after the link that brought it is gone, and then does nothing.
5. When `run()` is cancelled it closes what it opened.

A driver that delivers topics says what they mean with `origin(topic)`: the device and the channel that a
topic names ("" for what it does not name), or None for a topic that is not its own.

If the sender repeats what it has not seen acknowledged (MQTT at QoS 1), deliveries carry `marks`, and the
driver calls its attribute `on_confirmed(n)`, which the intake sets, when the sender has taken n more of the
acknowledgements, in their order. A connection to a sender that has forgotten what it sent before begins with a
delivery of no messages, whose marks say so. If such a sender must know us again after a restart, `Options` has a
`client_id`: left "", it is filled in with a name that stays, made of the gateway's and the source's.
A driver may say in `when_silent` what to look at when it is open and nothing comes.
A sender that knows us again has kept what it was asked for as well. Then the driver says under which `session_name`
it asks for which `filters`, and `forget(filters)`, called before `run`, tells it which others earlier
configurations have asked for under that name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import msgspec


@dataclass(slots=True)
class Marks:
    """How a sender names the messages that it repeats until they are acknowledged: lists, one entry a payload."""

    packet_ids: list[int]
    """0 for a message that is not acknowledged."""
    dups: list[bool]
    """Marked by the sender as sent before."""
    connection: int
    """Number of the connection that brought them."""
    session_present: bool
    """When that connection began, the sender still knew what it had sent before."""


@dataclass(slots=True)
class Delivery:
    """What a driver read at once: whole messages (MQTT), or pieces of a stream as they came (serial)."""

    payloads: list[bytes]
    topics: list[str] | None = None
    """One topic a payload; None where the source is one device."""
    arrived_ns: int = 0
    """UTC of the reading, by the clock that the driver was given."""
    settle: Callable[[], None] | None = None
    """Called after the commit; None where nobody waits for it."""
    marks: Marks | None = None
    """None where nothing is ever repeated under the same name."""
    cut_short: dict[int, int] | None = None
    """Place -> bytes of a message that was too long for the driver, of which `payloads` has only the beginning."""
    retained: set[int] | None = None
    """Places of messages that the sender had kept for whoever asks: what is known, at an unknown time."""
    restart: bool = False
    """The stream was interrupted before these bytes: half a line that went before is void."""


@dataclass(slots=True)
class SourceStatus:
    """What a driver says of itself, for `status` and `watch`."""

    state: str = "starting"
    """`starting`, `open`, `paused` or `failed`."""
    error: str = ""
    """The last error as a sentence that says what to do; "" when there was none since it opened."""
    bytes_in: int = 0
    messages: int = 0
    reconnects: int = 0
    skipped: int = 0
    """Polls left out because the intake was full."""
    overruns: int = 0
    """Bytes that a streaming port lost because the intake was full."""
    held: bool = False
    """Another program holds the port: it may be the gateway that runs, when `check` looks."""


class Driver(Protocol):
    """See the module's docstring for the order of calls."""

    Options: ClassVar[type[msgspec.Struct]]
    """The driver's own keys in `[source.NAME]`, with defaults; unknown keys are refused."""
    stream: ClassVar[bool]
    """True: payloads are pieces of a byte stream that the codec's framer must cut."""

    @property
    def status(self) -> SourceStatus:
        """How it is doing now."""

    def __init__(
        self,
        device: str,
        options: Any,
        deliver: Callable[[Delivery], None],
        now_ns: Callable[[], int],
        *,
        probe: bool = False,
    ) -> None:
        """`probe`: only look (`forebay-edge check`): change nothing on the device or broker."""

    async def run(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...
