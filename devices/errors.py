"""The errors of Forebay. Each says what happened, where, and what to do about it.

ForebayError
├── ConfigError            a configuration file is wrong; names the file and the path of the key
├── ProfileError           a profile is wrong; names the profile and the path of the key
├── PluginError            a driver, codec, filter or sink is not installed, or is not one
├── SourceError            a source cannot be read
│   ├── PermissionMissing  the port exists, this user may not open it
│   ├── PortMissing        there is no such port (unplugged, or a wrong name)
│   ├── PortBusy           another process holds the port
│   ├── WrongBaud          bytes arrive, but they are not text: most likely the wrong baud rate
│   ├── NoAnswer           the port or broker is open and nothing comes
│   ├── HostUnknown        the name of the host does not resolve
│   ├── Unreachable        the host is known and does not accept the connection
│   ├── LoginRefused       the broker or server refuses the user, password, token or certificate
│   └── LinkLost           an open link ended
│       └── IdentityTaken  another client came in under our identity: two gateways are clones
├── DecodeError            bytes from a device that cannot be decoded; carries `reason`
├── FrameError             a frame that cannot be accepted; carries `reason` for the receipt
├── StoreError             the edge's store cannot be used
│   ├── StoreFull          its limit is reached, and the policy says stop
│   └── StoreCorrupt       its file is damaged; it has been set aside
└── SinkError              the cloud's sink did not take a batch
    ├── SinkBusy           try again later (429, 5xx, time-out); may carry `retry_after_s`
    ├── SinkRefused        the sink does not let us in (401, 403)
    ├── BatchTooLarge      split it (413)
    └── BadLines           something in the batch cannot be written (400, 422)
"""

from __future__ import annotations


class ForebayError(Exception):
    """Base of all errors that Forebay raises on purpose."""


class ConfigError(ForebayError):
    """A configuration file is wrong. The message names the file and the path of the key."""


class ProfileError(ForebayError):
    """A profile is wrong. The message names the profile and the path of the key."""


class PluginError(ForebayError):
    """A driver, codec, filter or sink is not installed, or does not keep its role's contract."""


class SourceError(ForebayError):
    """A source cannot be read."""


class PermissionMissing(SourceError):
    """The port exists, but this user may not open it."""


class PortMissing(SourceError):
    """There is no such port: it is unplugged, or the name is wrong."""


class PortBusy(SourceError):
    """Another process holds the port."""


class WrongBaud(SourceError):
    """Bytes arrive, but they are not text: most likely the wrong baud rate."""


class NoAnswer(SourceError):
    """The port or broker is open and nothing comes."""


class HostUnknown(SourceError):
    """The name of the host does not resolve."""


class Unreachable(SourceError):
    """The host is known and does not accept the connection."""


class LoginRefused(SourceError):
    """The broker or server refuses the user, password, token or certificate."""


class LinkLost(SourceError):
    """An open link ended."""


class IdentityTaken(LinkLost):
    """The broker ended the link because another client came in under the same identity."""


class DecodeError(ForebayError):
    """Bytes from a device that cannot be decoded.

    `reason` is one of `devices.model.REJECT_REASONS`; the message says what was expected and found.
    """

    def __init__(self, message: str, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = reason


class FrameError(ForebayError):
    """A frame that cannot be accepted. `reason` is a short word that goes into the receipt."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class NotForUs(FrameError):
    """A frame on which another ingester, or this one later, may say better: it gets no answer."""


class StoreError(ForebayError):
    """The edge's store cannot be used."""


class StoreFull(StoreError):
    """The limit of the store is reached and its policy says stop."""


class StoreCorrupt(StoreError):
    """The store's file is damaged; it has been set aside."""


class SinkError(ForebayError):
    """The cloud's sink did not take a batch."""


class SinkBusy(SinkError):
    """The sink wants to be asked again later (429, 5xx, time-out).

    `maybe_the_body`: it may be that only what was to be written does not pass (500: a damaged shard says so for ever).
    """

    def __init__(self, message: str, retry_after_s: float | None = None, *, maybe_the_body: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.maybe_the_body = maybe_the_body


class SinkRefused(SinkError):
    """The sink does not let us in (401, 403): keep everything, and say so loudly."""


class BatchTooLarge(SinkError):
    """The batch is larger than the sink takes (413): split it."""


class BadLines(SinkError):
    """Something in the batch cannot be written (400, 422); which line is found by bisection."""
