"""Topics of the uplink, and the correlation data that joins a frame with its receipt.

    forebay/v1/<gateway>/alarm      frames of alarms
    forebay/v1/<gateway>/data       frames of summaries and changes
    forebay/v1/<gateway>/raw        frames of raw samples
    forebay/v1/<gateway>/ledger     frames of the ledger
    forebay/v1/<gateway>/state      frames of inventory and heartbeat, and the gateway's MQTT will
    forebay/v1/<gateway>/receipt    down: the ingester's word on each frame
    forebay/v1/<gateway>/command    down: what the cloud asks

    correlation data, 24 bytes:     epoch, 8 bytes | seq, 8 bytes | digest, 8 bytes
                                    unsigned, big-endian            BLAKE2b of the payload

A receipt bears the correlation data of its frame, byte for byte. The edge acts on it only if all three
parts are those of a frame that it holds: an old store's numbers, or a frame that was merged since, do
not match.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import NamedTuple

from devices.errors import FrameError

ROOT = "forebay/v1"
UP = ("alarm", "data", "raw", "ledger", "state")
DOWN = ("receipt", "command")

_LEGAL_GATEWAY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST_BYTES = 8
CORRELATION_BYTES = 16 + _DIGEST_BYTES


class Correlation(NamedTuple):
    """The identity of one frame of one content."""

    epoch: int
    seq: int
    digest: bytes
    """8 bytes."""


def legal_gateway(name: str) -> bool:
    """1 to 64 of ASCII letters, digits, `.`, `_`, `-`, the first a letter or digit.

    So it is one level of an MQTT topic, may be a user name in the broker's ACL (`%u`), and needs no
    escaping anywhere.
    """
    return _LEGAL_GATEWAY.fullmatch(name) is not None


def topic(gateway: str, leaf: str) -> str:
    """The topic of a gateway's `leaf`, one of UP or DOWN. ValueError for any other, or an illegal name."""
    if leaf not in UP and leaf not in DOWN:
        raise ValueError(f"no topic {leaf!r}: there are {', '.join(UP + DOWN)}")
    if not legal_gateway(gateway):
        raise ValueError(f"gateway {gateway!r} is not a legal name: letters, digits, `.`, `_`, `-`, at most 64")
    return f"{ROOT}/{gateway}/{leaf}"


def shared_filter(group: str, leaf: str) -> str:
    """What an ingester of `group` subscribes to, to share the frames of all gateways with its like."""
    return f"$share/{group}/{ROOT}/+/{leaf}"


def parse(received: str) -> tuple[str, str]:
    """A topic -> (gateway, leaf). FrameError if it is not one of ours."""
    parts = received.split("/")
    if len(parts) != 4 or "/".join(parts[:2]) != ROOT or parts[3] not in UP + DOWN or not legal_gateway(parts[2]):
        raise FrameError(f"topic {received[:120]!r} is not {ROOT}/<gateway>/<one of {', '.join(UP + DOWN)}>", "topic")
    return parts[2], parts[3]


def digest(payload: bytes) -> bytes:
    """8 bytes that tell one content from another."""
    return blake2b(payload, digest_size=_DIGEST_BYTES).digest()


def correlation(epoch: int, seq: int, payload: bytes) -> bytes:
    """The correlation data that a frame is published with."""
    return epoch.to_bytes(8, "big") + seq.to_bytes(8, "big") + digest(payload)


def parse_correlation(data: bytes) -> Correlation:
    """Correlation data -> its parts. FrameError unless it has 24 bytes."""
    if len(data) != CORRELATION_BYTES:
        raise FrameError(f"correlation data of {len(data)} bytes; {CORRELATION_BYTES} are right", "correlation")
    return Correlation(int.from_bytes(data[:8], "big"), int.from_bytes(data[8:16], "big"), data[16:])
