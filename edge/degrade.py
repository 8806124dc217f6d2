"""Fewer, longer windows out of many short ones: what a full store does instead of forgetting (design §5). Pure.

Windows of one series are merged ten into one: 1 s -> 10 s -> 100 s ... Count, mean, min, max, stddev, first,
last and increase of the merged window are those of all its samples; the time line stays whole. A merged
window bears the start of the first window that it holds and spans to the end of the last. Supplements are
not merged: they are not windows of their own, and their key is taken.

Only frames that were never published come here (edge/uplink.py: above the send limit), so a key that the
cloud may have seen is never written with another content.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.model import SUMMARY_DTYPE, Int64s

FACTOR = 10
_SUPPLEMENT_GRID_NS = 1_000_000
"""Windows start at whole milliseconds, supplements some nanoseconds later."""


def merge(rows: NDArray[Any], window_ns: Int64s) -> NDArray[Any]:
    """SUMMARY_DTYPE[n] -> at most as many rows. window_ns int64[series]: each series' own window size."""
    plain = rows["time_ns"] % _SUPPLEMENT_GRID_NS == 0
    supplements: NDArray[Any] = rows[~plain]
    rows = rows[plain]
    if not len(rows):
        return supplements
    bucket_ns = _bucket_ns(rows, window_ns)[rows["series"]]
    order = np.lexsort((rows["time_ns"], rows["series"]))
    rows, bucket_ns = rows[order], bucket_ns[order]
    place = rows["time_ns"] // bucket_ns
    head = np.ones(len(rows), np.bool_)
    head[1:] = (rows["series"][1:] != rows["series"][:-1]) | (place[1:] != place[:-1])
    return np.concatenate([_merged(rows, np.flatnonzero(head)), supplements])


def _bucket_ns(rows: NDArray[Any], window_ns: Int64s) -> Int64s:
    """By series, the size of the level above all of its rows: window * 10^k, the smallest that is ten times their
    longest span. One level for all: else a short window could lie within a merged one that does not hold it."""
    longest_ns = np.zeros(len(window_ns), np.int64)
    np.maximum.at(longest_ns, rows["series"], rows["span_ns"])
    bucket: Int64s = window_ns * FACTOR
    while (short := bucket < longest_ns * FACTOR).any():
        bucket = np.where(short, bucket * FACTOR, bucket)
    return bucket


def _merged(rows: NDArray[Any], heads: NDArray[np.int64]) -> NDArray[Any]:
    """One row for each stretch that begins at a head; the rows of a stretch are in order of time."""
    ends = np.append(heads[1:], len(rows)) - 1
    sizes = ends - heads + 1
    merged = np.zeros(len(heads), SUMMARY_DTYPE)
    for name in ("series", "time_ns", "first"):
        merged[name] = rows[name][heads]
    merged["last"] = rows["last"][ends]
    merged["span_ns"] = rows["time_ns"][ends] + rows["span_ns"][ends] - rows["time_ns"][heads]
    merged["min"] = np.minimum.reduceat(rows["min"], heads)
    merged["max"] = np.maximum.reduceat(rows["max"], heads)
    merged["increase"] = np.add.reduceat(rows["increase"], heads)
    count = np.add.reduceat(rows["count"], heads)
    merged["count"] = count
    # Chan, Golub, LeVeque 1983: spread within the windows plus spread of their means about the common one.
    mean = np.add.reduceat(rows["mean"] * rows["count"], heads) / count
    apart = rows["mean"] - np.repeat(mean, sizes)
    squares = np.add.reduceat(rows["count"] * (rows["stddev"] ** 2 + apart**2), heads)
    alone = sizes == 1
    merged["mean"] = np.where(alone, rows["mean"][heads], mean)
    merged["stddev"] = np.where(alone, rows["stddev"][heads], np.sqrt(squares / count))
    return merged
