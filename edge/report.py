"""What the gateway says of itself: ledger, heartbeat and inventory, as frames, when they are due.

They are cumulative or of the moment, so an older one that was never sent is worth nothing beside a newer:
while one waits, no other is made, and a week without a link leaves one of each.

An idle gateway must cost next to nothing. So heartbeats are rare while nothing happens, since a lost gateway is
told of by its broker (the MQTT will); after each connect, which ends what the will said, they come at once, after
a minute, and from then on in intervals that double. A ledger goes only when a count is another than in the last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version

import msgspec
import numpy as np

from devices.model import DROP_POLICIES, REJECT_REASONS, SECOND_NS, Int64s
from devices.wire.frame import Account, Heartbeat, Inventory, InventoryDevice, Ledger
from edge.custody import Usage
from edge.operators import Operators
from edge.outbox import Outbox
from edge.seal import Sealed, Sealer

SOFTWARE = f"forebay {version('forebay')}"


FIRST_HEARTBEATS_NS = 60 * SECOND_NS
"""From the first to the second heartbeat of a connection, where `heartbeat` is longer. A clock that is a little slow
dates the first before the will that it answers."""
INVENTORY_GAP_NS = 10 * SECOND_NS
"""An inventory that has grown follows the one before it at the earliest after this."""


class Reporter:
    """Makes the frames that are due at a tick."""

    def __init__(
        self,
        sealer: Sealer,
        operators: Operators,
        outbox: Outbox,
        waiting: Callable[[], Int64s],
        usage: Callable[[], Usage],
        *,
        heartbeat_ns: int,
        ledger_ns: int,
        config_digest: str,
        outage_budget_s: Callable[[], float] = lambda: float("nan"),
    ) -> None:
        """`outage_budget_s`: how long the link may be away (edge/outage.py)."""
        self._sealer = sealer
        self._operators = operators
        self._outbox = outbox
        self._waiting = waiting
        self._usage = usage
        self._heartbeat_ns = heartbeat_ns
        self._ledger_ns = ledger_ns
        self._config_digest = config_digest
        self._outage_budget_s = outage_budget_s
        self._heartbeat_due_ns = 0
        self._heartbeat_gap_ns = min(FIRST_HEARTBEATS_NS, heartbeat_ns)
        self._ledger_due_ns = 0
        self._accounts: list[Account] | None = None
        """As they were last told."""
        self._inventory_due_ns = 0
        self._inventory_digest = ""
        self._inventory_series = 0

    def due(self, now_ns: int, final: bool) -> list[Sealed]:
        """Frames for this tick; `final`: the account before the end, whether or not it is due."""
        frames = []
        beats = now_ns >= self._heartbeat_due_ns
        if (beats or self._has_grown(now_ns)) and not self._outbox.has_held("state"):
            frames += self._inventory(now_ns)
            if beats:
                self._heartbeat_due_ns = now_ns + self._heartbeat_gap_ns
                self._heartbeat_gap_ns = min(self._heartbeat_gap_ns * 2, self._heartbeat_ns)
                frames += self._sealer.heartbeat(self._heartbeat(now_ns), now_ns)
        if final or (now_ns >= self._ledger_due_ns and not self._outbox.has_held("ledger")):
            self._ledger_due_ns = now_ns + self._ledger_ns
            frames += self._ledger(now_ns, final)
        return frames

    def connected(self) -> None:
        """The link is back: the cloud may have been told that this gateway is lost."""
        self._heartbeat_due_ns = 0
        self._heartbeat_gap_ns = min(FIRST_HEARTBEATS_NS, self._heartbeat_ns)

    def _ledger(self, now_ns: int, final: bool) -> list[Sealed]:
        """The ledger, if it is the final one, or a count is another than in the last that was sent."""
        ledger = ledger_of(self._operators, self._waiting(), now_ns)
        if ledger.accounts == self._accounts and not final:
            return []
        self._accounts = ledger.accounts
        return list(self._sealer.ledger(ledger, now_ns))

    def _has_grown(self, now_ns: int) -> bool:
        """New series are told soon, but together: after a start they come one after the other."""
        return len(self._operators.specs) != self._inventory_series and now_ns >= self._inventory_due_ns

    def _inventory(self, now_ns: int) -> list[Sealed]:
        """The inventory, if it is another one than the last that was sent."""
        self._inventory_due_ns = now_ns + INVENTORY_GAP_NS
        self._inventory_series = len(self._operators.specs)
        inventory = inventory_of(self._operators, self._config_digest)
        digest = hashlib.sha256(msgspec.json.encode(inventory)).hexdigest()[:16]
        if digest == self._inventory_digest:
            return []
        self._inventory_digest = digest
        return list(self._sealer.inventory(inventory, now_ns))

    def _heartbeat(self, now_ns: int) -> Heartbeat:
        usage = self._usage()
        oldest_ns = self._outbox.oldest_held_ns() or now_ns
        return Heartbeat(
            time_ns=now_ns,
            software=SOFTWARE,
            inventory_digest=self._inventory_digest,
            store_bytes=usage.used_bytes,
            store_limit_bytes=usage.limit_bytes,
            outbox_frames=len(self._outbox),
            oldest_unsent_ms=max(now_ns - oldest_ns, 0) // 1_000_000,  # it was made before the clock stepped back
            open_alarms=self._operators.alarms.open_count(),
            outage_budget_s=self._outage_budget_s(),
        )


def inventory_of(operators: Operators, config_digest: str) -> Inventory:
    """The devices of the gateway with their channels and profiles."""
    devices: dict[str, tuple[str, list[str]]] = {}
    for spec in operators.specs:
        if spec.channel:
            devices.setdefault(spec.device, (spec.profile, []))[1].append(spec.channel)
    return Inventory(SOFTWARE, config_digest, [InventoryDevice(name, *devices[name]) for name in sorted(devices)])


def ledger_of(operators: Operators, waiting: Int64s, now_ns: int) -> Ledger:
    """One account a device, and one for each series of which something was rejected or dropped."""
    ledger, specs = operators.ledger, operators.specs
    late = ledger.late[: len(specs)] + operators.windows.late_counts()
    devices = sorted({spec.device for spec in specs})
    place = {device: i for i, device in enumerate(devices)}
    of_device = np.array([place[spec.device] for spec in specs], np.int64)

    def account(device: str, channel: str, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Account:
        rejected, dropped = ledger.rejected[rows].sum(axis=0), ledger.dropped[rows].sum(axis=0)
        return Account(
            device,
            channel,
            produced=int(ledger.produced[rows].sum()),
            stored=int(ledger.stored[rows].sum()),
            waiting=int(waiting[rows].sum()),
            late=int(late[rows].sum()),
            rejected={reason: int(n) for reason, n in zip(REJECT_REASONS, rejected, strict=True) if n},
            dropped={policy: int(n) for policy, n in zip(DROP_POLICIES, dropped, strict=True) if n},
        )

    accounts = [account(device, "", np.flatnonzero(of_device == i)) for i, device in enumerate(devices)]
    n = len(specs)
    troubled = np.flatnonzero(ledger.rejected[:n].any(axis=1) | ledger.dropped[:n].any(axis=1))
    accounts += [account(specs[i].device, specs[i].channel, np.array([i])) for i in troubled if specs[i].channel]
    return Ledger(now_ns, accounts)
