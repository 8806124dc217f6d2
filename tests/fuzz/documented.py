"""What an error says must be one of the words that are documented: others count by them."""

from __future__ import annotations

from collections.abc import Collection

from devices.errors import DecodeError, FrameError


def expect_documented(refused: DecodeError | FrameError, reasons: Collection[str]) -> None:
    """AssertionError, from the error itself, for a reason that nobody knows."""
    if refused.reason not in reasons:
        raise AssertionError(f"refused as {refused.reason!r}, which is not documented: {refused}") from refused
