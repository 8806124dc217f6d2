"""Rounds the figures of summaries to what their readings can carry, so that they travel in few bytes.

Where first, last, min and max all have at most d <= DECIMALS decimals, exactly, the mean is rounded to d + 3 decimals
and the stddev to d + 2: errors of at most 1/2000 and 1/200 of the last decimal of a reading. Other rows stay as they
are, and so do figures of 16 digits and more, where a double has no such decimals. What comes out is the double nearest
to a decimal number: a reader that parses that number gets the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from devices.model import SUMMARY_DTYPE
from edge.kernels import entry, jit

DECIMALS = 6
POWERS = np.array([10.0**d for d in range(DECIMALS + 4)])
EXACT = 2.0**53
"""Below this every integer is a double, and so integer / power of ten is rounded correctly."""


@jit
def decimals(value: float, fewest: int) -> int:
    """Fewest decimals, from `fewest` on, that write the value exactly; DECIMALS + 1 where more are needed."""
    for d in range(fewest, DECIMALS + 1):
        scaled = value * POWERS[d]
        if not abs(scaled) < EXACT:
            break
        if np.rint(scaled) / POWERS[d] == value:
            return d
    return DECIMALS + 1


@jit
def rounded(value: float, digits: int) -> float:
    scaled = value * POWERS[digits]
    return np.rint(scaled) / POWERS[digits] if abs(scaled) < EXACT else value


def settle(rows: Any) -> int:
    """Round mean and stddev of rows, SUMMARY_DTYPE[n], in place; -> how many rows could be."""
    done = 0
    for row in rows:
        d = decimals(row.first, 0)
        d = decimals(row.last, d)
        d = decimals(row.min, d)
        d = decimals(row.max, d)
        if d <= DECIMALS:
            row.mean = rounded(row.mean, d + 3)
            row.stddev = rounded(row.stddev, d + 2)
            done += 1
    return done


SETTLE = (settle, 1, (SUMMARY_DTYPE,))
settle_entry = entry(*SETTLE)
