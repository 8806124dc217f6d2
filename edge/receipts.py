"""Receipts: the cloud has answered for a frame, and its custody ends with the next commit.

The ledger moves its samples from `waiting` to `stored`, or to `rejected` where the sink would not have them. A frame
that the cloud could not take whole is kept as a dead letter.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

from devices.model import DROP_POLICIES, REJECT_REASONS
from edge.clock import Clock
from edge.custody import BuriedFrame, OutboxRow
from edge.ledger import Deltas
from edge.metrics import Histogram
from edge.operators import Operators
from edge.pending import Pending
from edge.uplink import Uplink

log = logging.getLogger("forebay.pump")

UNCONFIRMED = DROP_POLICIES.index("unconfirmed")
SAY_AGAIN_S = 60.0
"""The same is said of a frame once in this time: where the sink takes none of a series, no frame of it passes."""
SAID_MAX = 64
"""Different things said in this time; of others the dead letters tell."""


class Receipts:
    """Carries what the uplink was answered into a commit."""

    def __init__(self, operators: Operators, uplink: Uplink, clock: Clock) -> None:
        self._operators = operators
        self._uplink = uplink
        self._clock = clock
        self.created_to_receipt_seconds = Histogram()
        self._said: dict[str, tuple[float, int]] = {}
        """What was said -> when, and of how many frames it was not said since."""

    def take(self, pending: Pending) -> None:
        """What has come since the last call goes with this commit. What was dropped as `unconfirmed` is not dropped
        after all."""
        for row, receipt, was_dropped in self._uplink.take_answers():
            now_ns = self._clock.now_ns()
            self.created_to_receipt_seconds.observe((now_ns - row.created_ns) / 1e9)
            custody = row.custody
            series, stored = custody.series.tolist(), custody.samples.tolist()
            if was_dropped:
                back = [(s, UNCONFIRMED, -n) for s, n in zip(series, stored, strict=True) if n]
                pending.count(self._operators, Deltas(dropped=back))
            else:
                pending.removed.append(row)
            if receipt.refused:
                sentence = f"the cloud refused frame {row.seq} ({receipt.refused}): kept as a dead letter"
                self._say(receipt.refused, sentence)
                pending.buried.append(BuriedFrame(row.seq, now_ns, "refused", receipt.refused))
                code = REJECT_REASONS.index("refused")
                refused = [(s, code, n) for s, n in zip(series, stored, strict=True) if n]
                pending.count(self._operators, Deltas(refused=refused))
                continue
            if receipt.rejected:
                self._rejected_by_sink(pending, row, receipt.rejected, series, stored)
            fate = [(s, 0, n) for s, n in zip(series, stored, strict=True) if n]
            pending.count(self._operators, Deltas(stored=fate))

    def _rejected_by_sink(
        self, pending: Pending, row: OutboxRow, rejected: list[Any], series: list[int], stored: list[int]
    ) -> None:
        """Take from `stored` what the sink does not hold. `rejected[].series` is a place in the frame's table, as is
        that in the custody; alarms and state changes are copies, and count nothing."""
        for bad in rejected:
            if bad.series < len(stored):
                count = min(bad.count, stored[bad.series])
                stored[bad.series] -= count
                code = REJECT_REASONS.index(bad.reason if bad.reason in REJECT_REASONS else "sink")
                pending.count(self._operators, Deltas(refused=[(series[bad.series], code, count)]))
        counts: Counter[str] = Counter()
        for bad in rejected:
            counts[f"{bad.reason}: {bad.detail}"] += bad.count
        first = next(iter(counts))
        places = len({bad.series for bad in rejected})
        more = " (and for other reasons)" if len(counts) > 1 else ""
        of_frame = f"{counts.total()} samples of {places} series in frame {row.seq}"
        self._say(first, f"the sink rejected {of_frame}: {first}{more}")
        detail = "; ".join(f"{count} {why}" for why, count in counts.items())
        pending.buried.append(BuriedFrame(row.seq, self._clock.now_ns(), "sink", detail))

    def _say(self, why: str, sentence: str) -> None:
        """Log it, unless the same `why` was logged a moment ago."""
        now_s = asyncio.get_running_loop().time()
        said_s, unsaid = self._said.get(why, (-SAY_AGAIN_S, 0))
        if now_s < said_s + SAY_AGAIN_S:
            self._said[why] = said_s, unsaid + 1
            return
        if why not in self._said and len(self._said) >= SAID_MAX:
            oldest, (oldest_s, _) = next(iter(self._said.items()))
            if now_s < oldest_s + SAY_AGAIN_S:
                return
            del self._said[oldest]
        self._said.pop(why, None)  # they stay in the order in which they were said
        self._said[why] = now_s, 0
        log.error("%s%s", sentence, f"; so with {unsaid} frames before it, unsaid" if unsaid else "")
