"""The deterministic half of the edge: a function of its state, the samples in order, and the ticks.

Nothing here waits, reads a clock or touches the disk. The pump feeds it live, and recovery feeds it the
journal: the same samples, with the verdicts they got, and the same ticks bring it to the same state, bit
for bit. However the stream is cut into batches, the result is the same.

    samples ─▶ filters ─▶ alarms ─▶ .alarms        (open or closed since the last `take`)
       └─────▶ windows ─────────▶ .take()          (summaries, state changes, raw samples)
       └─────▶ ledger

Each operator's state has a version; a snapshot whose versions are others is refused whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from devices.errors import StoreError
from devices.model import CHANGE_DTYPE, SECOND_NS, SUMMARY_DTYPE, Alarm, Bytes, Int64s, SampleBatch, SeriesSpec
from edge import identity, ledger
from edge.alarms import Alarms, AlarmsState
from edge.filters import Filters
from edge.held import Held, Step
from edge.identity import ACCEPTED, BEHIND_JOURNAL, HELD, RELEASED, Admission, History
from edge.journal import Block
from edge.ledger import Deltas, Ledger
from edge.windows import Windows

GAP_NS = 2 * SECOND_NS
"""Between the last tick before a stop and the start after it; less is the usual distance of ticks."""


_VERSIONS = np.array([1, identity.VERSION, Filters.VERSION, Alarms.VERSION, Windows.VERSION, ledger.VERSION])
"""Of this module's own state, and of each operator's."""


@dataclass(slots=True)
class Closed:
    """What is ready to be sealed into frames."""

    summaries: NDArray[Any]
    """SUMMARY_DTYPE, in order of closing."""
    changes: NDArray[Any]
    """CHANGE_DTYPE, in order of arrival."""
    raw: SampleBatch
    """Samples of series that report raw, and those that came behind the journal's end."""


class Operators:
    """Admission, filters, alarms, windows and ledger over one table of series."""

    def __init__(self, history: History) -> None:
        self.specs: list[SeriesSpec] = []
        self.admission = Admission(history)
        self.filters = Filters()
        self.alarms = Alarms()
        self.windows = Windows()
        self.ledger = Ledger()
        self.held = Held()
        self.last_tick_ns = 0
        self.tick_was_idle = False
        """The last tick left all state as it was: the next one stands for it as well."""
        self._seen_ns = np.zeros(64, np.int64)
        """By series: the last tick before its latest sample. What `silent` goes by: devices' clocks may be wrong."""
        self._summaries: list[NDArray[Any]] = []
        self._changes: list[NDArray[Any]] = []
        self._raw: list[SampleBatch] = []
        self._is_raw = np.zeros(64, np.bool_)
        self._any_raw = False
        self._tables: dict[bytes, dict[str, Any]] = {}
        """The specs' tables `filters` and `texts`, each once: for a thousand series of one profile 0.7 MB less."""

    def set_series(self, index: int, spec: SeriesSpec) -> list[Alarm]:
        """Add the next series, or change the settings of one, which keeps its state.

        Returns the closings of its alarms whose detector no longer runs.
        """
        spec = self._sharing(spec)
        if index == len(self.specs):
            self.specs.append(spec)
        else:
            self.specs[index] = spec
        if index >= len(self._is_raw):
            self._is_raw = np.concatenate([self._is_raw, np.zeros(len(self._is_raw), np.bool_)])
            self._seen_ns = np.concatenate([self._seen_ns, np.zeros(len(self._seen_ns), np.int64)])
        self._is_raw[index] = spec.report == "raw"
        self._any_raw = bool(self._is_raw[: len(self.specs)].any())
        self.ledger.grow(len(self.specs))
        self.admission.add_series(index, spec)
        self.filters.add_series(index, spec)
        self.windows.add_series(index, spec)
        return self.alarms.add_series(index, spec, self.last_tick_ns)

    def _sharing(self, spec: SeriesSpec) -> SeriesSpec:
        """The same settings, with tables that other series have as well."""
        filters, texts = (
            self._tables.setdefault(msgspec.json.encode(table), table) for table in (spec.filters, spec.texts)
        )
        return msgspec.structs.replace(spec, filters=filters, texts=texts)

    # -- the stream ----------------------------------------------------------------------------------

    def samples(self, batch: SampleBatch, arrived_ns: Int64s, verdict: Bytes) -> list[Alarm]:
        """Take in samples with their final times and verdicts; return the alarms that open or close."""
        all_good = not verdict.any()
        self.ledger.samples(batch.series, None if all_good else verdict)
        if not all_good:
            self._behind_the_journal(batch.take(verdict == BEHIND_JOURNAL))
            self.held.add(batch.take(verdict == HELD))
            new = (verdict == ACCEPTED) | (verdict == HELD)
            alarms = self._watch(batch.take(new), arrived_ns[new])
            batch = batch.take((verdict == ACCEPTED) | (verdict == RELEASED))
        else:
            alarms = self._watch(batch, arrived_ns)
        if not len(batch):
            return alarms
        self.windows.run(batch)
        self._collect()
        if self._any_raw and (raw := self._is_raw[batch.series]).any():
            self._raw.append(batch.take(raw))
        return alarms

    def _watch(self, batch: SampleBatch, arrived_ns: Int64s) -> list[Alarm]:
        """Alarms at once, also of what is held."""
        if not len(batch):
            return []
        self._seen_ns[batch.series] = self.last_tick_ns
        events = self.filters.run(batch)
        return self.alarms.records(events, self.filters.detectors, int(arrived_ns[0])) if len(events) else []

    def step(self, step: Step) -> SampleBatch:
        """Let go of held samples, which are to come again with the verdict RELEASED; -> they, with their estimates."""
        released = self.held.take(step.until_ns)
        self.ledger.produced[: len(self.specs)] -= np.bincount(released.series, minlength=len(self.specs))
        if step.now_ns:
            self.filters.shift(np.unique(released.series).astype(np.int64), step.by_ns)
            if step.by_ns < 0:
                first_ns = int(released.time_ns.min()) + step.by_ns if len(released) else step.now_ns
                self.admission.step_back(step.now_ns, min(first_ns, step.now_ns) - 1)
            self.resume(step.tick_ns)
        return released

    def _behind_the_journal(self, batch: SampleBatch) -> None:
        """Too old to know whether they were there before: they go raw, where writing twice changes nothing. Who sends
        them is not silent."""
        if len(batch):
            self._seen_ns[batch.series] = self.last_tick_ns
            self.ledger.count_late(batch.series)
            self._raw.append(batch)

    def tick(self, now_ns: int) -> list[Alarm]:
        """The clock's own event: windows of silent series close, and `silent` is raised or cleared."""
        self.last_tick_ns = now_ns
        expected = self.alarms.known_count()
        moved = self.windows.tick(now_ns)
        self._collect()
        alarms = self.alarms.tick(now_ns, self._seen_ns[: len(self.specs)])
        self.tick_was_idle = not (moved or alarms or self.alarms.known_count() != expected)
        return alarms

    def _collect(self) -> None:
        """What has closed waits here, where `open_samples` sees it."""
        if self.windows.has_closed():
            self._summaries.append(self.windows.take())
            self._changes.append(self.windows.changes())

    def resume(self, now_ns: int) -> None:
        """The gateway was away since the last tick: nobody was silent in that time."""
        away_ns = now_ns - self.last_tick_ns
        if self.last_tick_ns and away_ns > GAP_NS:
            self._seen_ns[self._seen_ns > 0] += away_ns
            self.windows.away(away_ns)
            self.alarms.away(away_ns)

    def replay(self, block: Block) -> None:
        """Take in a block of the journal once more; what it led to was sent, or is in the outbox."""
        if block.resumed_ns:
            self.resume(block.resumed_ns)
        if block.step:
            self.step(block.step)
        if block.anchor:
            self.held.anchor = block.anchor
        start = 0
        for position, tick_ns in [*block.ticks, (len(block.batch), None)]:
            part = slice(start, position)
            batch = SampleBatch(
                block.batch.series[part], block.batch.time_ns[part], block.batch.value[part], block.batch.quality[part]
            )
            if len(batch):
                verdict = block.verdict[part]
                self.admission.replay(batch, verdict)
                self.samples(batch, batch.time_ns, verdict)
            if tick_ns is not None:
                self.tick(tick_ns)
            start = position
        self.apply(block.deltas)
        for index, spec in block.changed:
            self.set_series(index, spec)
        if block.sealed:
            self.take()

    def apply(self, deltas: Deltas) -> None:
        self.ledger.apply(deltas)

    def closed_rows(self) -> int:
        """How much `take` would return."""
        return sum(map(len, self._summaries)) + sum(map(len, self._changes)) + sum(map(len, self._raw))

    # -- what comes out ------------------------------------------------------------------------------

    def take(self) -> Closed:
        """All that has closed since the last call."""
        self._collect()
        closed = Closed(
            np.concatenate(self._summaries) if self._summaries else np.empty(0, SUMMARY_DTYPE),
            np.concatenate(self._changes) if self._changes else np.empty(0, CHANGE_DTYPE),
            SampleBatch.concat(self._raw) if self._raw else SampleBatch.empty(),
        )
        self._summaries, self._changes, self._raw = [], [], []
        return closed

    def open_samples(self) -> Int64s:
        """int64[series]: samples that are in no frame yet."""
        counts = np.zeros(len(self.specs), np.int64)
        in_windows = self.windows.open_counts()[: len(counts)]
        counts[: len(in_windows)] = in_windows
        for rows in self._summaries:
            np.add.at(counts, rows["series"], rows["count"])
        counts += self.held.counts(len(counts))
        for batch in self._raw:
            counts += np.bincount(batch.series, minlength=len(counts))
        return counts

    # -- state ---------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """A copy of all state, as arrays; to be taken right after `take`, when nothing waits to be sealed."""
        state: dict[str, NDArray[Any]] = {
            "versions": _VERSIONS,
            "last_tick_ns": np.array([self.last_tick_ns]),
            "seen_ns": self._seen_ns[: len(self.specs)].copy(),
            "alarms": np.frombuffer(msgspec.json.encode(self.alarms.snapshot()), np.uint8),
        }
        for name, operator in self._operators().items():
            state |= {f"{name}.{part}": array for part, array in operator.snapshot().items()}
        return state

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take over what `snapshot` gave. The series of that time must have been set before.

        Raises StoreError for state that this version cannot read; these operators are of no use then.
        """
        try:
            if state["versions"].tolist() != _VERSIONS.tolist():
                raise StoreError(f"it has the versions {state['versions'].tolist()}, not {_VERSIONS.tolist()}")
            self.last_tick_ns = int(state["last_tick_ns"][0])
            self._seen_ns[: len(state["seen_ns"])] = state["seen_ns"]
            self.alarms.restore(msgspec.json.decode(state["alarms"].tobytes(), type=AlarmsState))
            for name, operator in self._operators().items():
                own = f"{name}."
                operator.restore({part[len(own) :]: array for part, array in state.items() if part.startswith(own)})
        except (KeyError, IndexError, ValueError, msgspec.MsgspecError) as error:
            raise StoreError(f"it does not fit this version: {error!r}") from error

    def _operators(self) -> dict[str, Any]:
        return {
            "admission": self.admission,
            "filters": self.filters,
            "windows": self.windows,
            "ledger": self.ledger,
            "held": self.held,
        }


def series_of(state: dict[str, NDArray[Any]]) -> int:
    """How many series there were when a snapshot was taken."""
    return len(state.get("seen_ns", ()))
