"""What is written to the sink at once: the lines of some frames, each traceable to its frame. Pure.

When the sink refuses a body, the bad lines in it are found by writing again, which the points' keys make
safe: the lines are laid newest first and halved until single ones are refused. Newest first, since a server
refuses whatever is older than its retention: once it has refused one line for that, all older ones are
refused too without asking, so that a backlog beyond the retention costs a few writes and not two a line.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from cloud.lines import NO_SERIES, Lines
from devices.wire.receipt import Rejected

_RETENTION: Final = re.compile("beyond retention policy|outside retention policy(?!.*Upper Bound)")
"""As 1.8 and as 2.7 say it."""
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*(?:"|$)')
"""Names in a server's sentence: they are whatever somebody called a measurement."""
DETAIL_CHARS: Final = 200
"""How much of the sink's sentence goes into a receipt: it may come once for each series."""
DETAILS_BYTES: Final = 4096
"""Of all these sentences in one receipt."""


class Piece(NamedTuple):
    """Some lines of a batch, newest first, and the number of each within the batch."""

    lines: list[bytes]
    numbers: list[int]

    @property
    def body(self) -> bytes:
        return b"".join(self.lines)

    def halves(self) -> tuple[Piece, Piece]:
        middle = len(self.lines) // 2
        return Piece(self.lines[:middle], self.numbers[:middle]), Piece(self.lines[middle:], self.numbers[middle:])


class Batch:
    """Frames are added, bodies are written, bad lines are rejected; then each frame's rejections are read."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.refused = 0
        """Lines that the sink will never store."""
        self._frames: list[Lines] = []
        self._ends: list[int] = []
        """For each frame the number of the line after its last."""
        self._rejected: list[dict[tuple[int, str], Rejected]] = []
        self._expired_ns = -(2**63)
        """The newest time that the sink has refused as older than its retention."""

    def __len__(self) -> int:
        """Lines."""
        return self._ends[-1] if self._ends else 0

    def add(self, lines: Lines, rejected: list[Rejected]) -> None:
        """Add a frame, with what of it was rejected before."""
        self._ends.append(len(self) + len(lines))
        self._frames.append(lines)
        self._rejected.append({(r.series, r.reason): r for r in rejected})
        self.size_bytes += len(lines.body)

    def only(self, frames: Iterable[int]) -> Batch:
        """A batch of these frames alone."""
        part = Batch()
        for frame in frames:
            part.add(self._frames[frame], self.rejected(frame))
        return part

    def rejected(self, frame: int) -> list[Rejected]:
        """What was rejected of the n-th frame that was added: one entry for each series and reason.

        The first say why: a receipt for a thousand series must still be one that brokers take.
        """
        room_bytes, rejected = DETAILS_BYTES, []
        for one in self._rejected[frame].values():
            room_bytes -= len(one.detail.encode())
            rejected.append(one if room_bytes >= 0 else Rejected(one.series, one.reason, one.count))
        return rejected

    def bodies(self, most_bytes: int) -> Iterator[tuple[bytes, int]]:
        """All lines, in bodies of at most `most_bytes` or of one line; each with the number of its first line."""
        whole = b"".join(lines.body for lines in self._frames)
        at = first = 0
        while at < len(whole):
            end = len(whole)
            if end - at > most_bytes:
                end = (whole.rfind(b"\n", at, at + most_bytes) + 1) or (whole.index(b"\n", at) + 1)
            body = whole[at:end]
            yield body, first
            at, first = end, first + body.count(b"\n")

    def newest_first(self, body: bytes, first: int) -> Piece:
        """The lines of a body that the sink did not take."""
        lines = [line + b"\n" for line in body.split(b"\n")[:-1]]
        order = sorted(range(len(lines)), key=lambda place: -_time_ns(lines[place]))
        return Piece([lines[place] for place in order], [first + place for place in order])

    def is_expired(self, piece: Piece) -> bool:
        """Whether all its lines are known to be older than the sink's retention."""
        return _time_ns(piece.lines[0]) <= self._expired_ns

    def reject(self, piece: Piece, detail: str) -> None:
        """The sink will never store these lines. `detail` is its own sentence about one of them."""
        if _RETENTION.search(_QUOTED.sub("", detail)):
            self._expired_ns = max(self._expired_ns, _time_ns(piece.lines[0]))
        self.refused += len(piece.numbers)
        for number in piece.numbers:
            frame = bisect_right(self._ends, number)
            lines = self._frames[frame]
            place = number - self._ends[frame] + len(lines)
            series = int(lines.series[place])
            samples = 1 if lines.samples is None else int(lines.samples[place])
            self._count(frame, 0 if series == NO_SERIES else series, samples, detail[:DETAIL_CHARS])

    def _count(self, frame: int, series: int, samples: int, detail: str) -> None:
        of_frame = self._rejected[frame]
        before = of_frame.get((series, "sink"), Rejected(series, "sink", 0, detail))
        of_frame[series, "sink"] = Rejected(series, "sink", before.count + samples, before.detail)


def _time_ns(line: bytes) -> int:
    """The time stands behind the last space, whatever spaces the names have."""
    return int(line[line.rindex(b" ") :])
