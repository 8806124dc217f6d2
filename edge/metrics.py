"""Prometheus text straight from numbers, and the one histogram that the edge needs. Pure.

    # HELP forebay_store_bytes Bytes of the store in use
    # TYPE forebay_store_bytes gauge
    forebay_store_bytes 1048576

Names begin with `forebay_` and end with their unit; counters end with `_total`. Text format 0.0.4.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Final, Literal

BUCKETS_S: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 21_600.0, 86_400.0),
)
"""From a commit on a fast disk to the lag of a day without a link."""

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Histogram:
    """Counts of durations, in s, by fixed buckets."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        """By bucket, not cumulative; the last is for what is above all of them."""
        self.sum_s = 0.0

    def observe(self, duration_s: float, times: int = 1) -> None:
        """Count one duration, or several equal ones. Negative ones (a clock that stepped back) count as 0."""
        duration_s = max(duration_s, 0.0)
        self.counts[bisect_left(BUCKETS_S, duration_s)] += times
        self.sum_s += duration_s * times

    @property
    def count(self) -> int:
        """How many were counted."""
        return sum(self.counts)

    def quantile_s(self, q: float) -> float:
        """Upper edge of the bucket that holds the q-quantile, 0 <= q <= 1; NaN when nothing was counted."""
        total = self.count
        if not total:
            return float("nan")
        reached = 0
        for edge_s, count in zip(BUCKETS_S, self.counts, strict=False):
            reached += count
            if reached >= q * total:
                return edge_s
        return float("inf")

    def lines(self, name: str, help_text: str, labels: Mapping[str, str] | None = None) -> list[str]:
        """The histogram as lines of the text format."""
        return histogram_lines(name, help_text, {"": self} if labels is None else {label_text(labels): self})


def histogram_lines(name: str, help_text: str, by_labels: Mapping[str, Histogram]) -> list[str]:
    """Several histograms of one name; keys are labels as `label_text` makes them, "" for none."""
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} histogram"]
    for labels, histogram in by_labels.items():
        inner = f"{labels}," if labels else ""
        braces = f"{{{labels}}}" if labels else ""
        reached = list(accumulate(histogram.counts))
        lines += [f'{name}_bucket{{{inner}le="{edge:g}"}} {n}' for edge, n in zip(BUCKETS_S, reached, strict=False)]
        lines.append(f'{name}_bucket{{{inner}le="+Inf"}} {reached[-1]}')
        lines.append(f"{name}_sum{braces} {histogram.sum_s!r}")
        lines.append(f"{name}_count{braces} {reached[-1]}")
    return lines


def family(
    name: str,
    kind: Literal["gauge", "counter"],
    help_text: str,
    samples: float | Iterable[tuple[Mapping[str, str], float]],
) -> list[str]:
    """One metric: a number, or one number a set of labels."""
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
    if isinstance(samples, int | float):
        lines.append(f"{name} {_number(samples)}")
    else:
        lines += [f"{name}{{{label_text(labels)}}} {_number(value)}" for labels, value in samples]
    return lines


def label_text(labels: Mapping[str, str]) -> str:
    """`device="pump1",channel="flow"`, with everything escaped that a device may have put into a name."""
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
