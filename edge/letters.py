"""Dead letters: listed, shown, and replayed (design section 2).

What is replayed goes into the same commit that removes the letter. A device's message enters as a new delivery: its
samples are produced anew, while its one rejection stays counted. A frame goes back into the outbox under its own
identity and answers for no samples, since they are counted as `refused`: so the account balances in both cases. One of
an earlier store (edge/salvage.py) goes as it is too, under a number of this one: its points keep their keys.
"""

from __future__ import annotations

from typing import Any

from devices.errors import FrameError
from devices.wire.frame import AlarmBody, FrameLimits, Ledger, RawBody, SummaryBody, decode
from devices.wire.frame import ChangeBody as Changes
from devices.wire.topics import digest
from edge.custody import Custody, DeadLetter, OutboxRow
from edge.intake import Intake
from edge.pump import Pump
from edge.salvage import taken_over
from edge.seal import Sealer
from edge.storethread import StoreThread
from edge.uplink import Uplink

UPLINK = "uplink"
"""The source of frames."""
_LEAVES = {AlarmBody: "alarm", SummaryBody: "data", Changes: "data", RawBody: "raw", Ledger: "ledger"}


class Letters:
    """The dead letters of the running gateway."""

    pump: Pump
    """That of the newest configuration; what is given to one that is handing over, the next one takes with the rest."""

    def __init__(self, store: StoreThread, sealer: Sealer, intake: Intake, uplink: Uplink) -> None:
        self._store = store
        self._sealer = sealer
        self._intake = intake
        self._uplink = uplink
        self._replayed: set[int] = set()
        """Their commit may still be under way."""

    async def list(self) -> list[dict[str, Any]]:
        """All that are kept, the newest first, without their bytes."""
        return [_outline(letter) for letter in await self._store.dead_letters()]

    async def show(self, letter_id: int) -> dict[str, Any] | None:
        """One, whole; None if there is none with this id."""
        for letter in await self._store.dead_letters(letter_id):
            shown = {**_outline(letter), "topic": letter.topic, "kept_bytes": len(letter.payload)}
            if letter.source == UPLINK:
                shown["frame"] = _frame(letter)
            text = letter.payload.decode("utf-8", "backslashreplace")
            return {**shown, "text": text, "hex": letter.payload.hex(" ")}
        return None

    async def replay(self, letter_id: int) -> str | None:
        """Take it in again; "", or why that cannot be; None if there is none with this id."""
        for letter in await self._store.dead_letters(letter_id):
            if letter_id in self._replayed:
                return "it is being replayed already"
            why = self._replay_frame(letter) if letter.source == UPLINK else self._intake.replay(letter)
            if not why:
                self._replayed.add(letter_id)
            return why
        return None

    def _replay_frame(self, letter: DeadLetter) -> str:
        try:
            frame = decode(letter.payload, FrameLimits())
        except FrameError as error:
            return f"the frame cannot be read: {error}"
        header, leaf = frame.header, _LEAVES.get(type(frame.body), "state")
        if header.epoch != self._sealer.epoch:
            seq = self._sealer.take_seq()
            row, _ = taken_over(seq, leaf, header.lane, header.created_ns, letter.payload)
        elif self._uplink.outbox.find(header.seq) is not None:
            return f"frame {header.seq} waits in the outbox already"
        else:
            lane = self._uplink.outbox.lane_back(header.seq, header.lane)
            identity, custody = digest(letter.payload), Custody.none().pack()
            row = OutboxRow(header.seq, lane, leaf, header.created_ns, identity, custody, len(letter.payload))
        self.pump.bring_back(row, letter.payload, letter.id)
        return ""


def _outline(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "at_ns": letter.at_ns,
        "source": letter.source,
        "reason": letter.reason,
        "bytes": letter.size_bytes or len(letter.payload),
        "detail": letter.detail,
    }


def _frame(letter: DeadLetter) -> str:
    """A frame as text; the reason where it cannot be read."""
    try:
        frame = decode(letter.payload, FrameLimits())
    except FrameError as error:
        return f"cannot be read: {error}"
    return f"{frame.header} {list(frame.series)} {frame.body}"
