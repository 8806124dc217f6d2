"""What a frame may hold at most. Whoever decodes checks a claim against these before taking memory for it."""

from __future__ import annotations

import msgspec


class FrameLimits(msgspec.Struct, frozen=True):
    """A frame of 4,096 samples or 600 summaries is far below every one of them."""

    frame_bytes: int = 1 << 20
    """Of the MQTT payload."""
    body_bytes: int = 4 << 20
    """Of the body once unpacked."""
    rows: int = 1 << 16
    """Of samples, summaries, changes, alarms, accounts, channels of an inventory."""
    series: int = 10_000
    """Of the table of series."""
    name_bytes: int = 256
    """UTF-8 bytes of one name: device, channel, unit, reason word."""
    sentence_bytes: int = 1_024
    """UTF-8 bytes of one sentence: an alarm's reason, a detail of a receipt."""
