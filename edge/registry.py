"""The table of series: append-only, bounded, the same across restarts. The index of a series never changes.

A series whose settings were changed by configuration keeps running with the old ones until the pump applies
the new (`changed`) at the end of a journal block, which holds them: so a replay always runs with the settings
that its samples met.
"""

from __future__ import annotations

from devices.model import SeriesSpec
from edge.operators import Operators


class Registry:
    """Gives out indexes, and keeps what is new or changed until the pump has committed it."""

    def __init__(self, operators: Operators, max_series: int) -> None:
        self._operators = operators
        self.max_series = max_series
        self._index = {spec.key: index for index, spec in enumerate(operators.specs)}
        self._accounts = {spec.device: index for index, spec in enumerate(operators.specs) if not spec.channel}
        self.new: list[tuple[int, SeriesSpec]] = []
        self.changed: dict[int, SeriesSpec] = {}

    def resolve(self, spec: SeriesSpec) -> int | str:
        """The index of a series, which is added if it is new; or `series_limit`."""
        index = self._index.get(spec.key)
        if index is None:
            if len(self._index) - len(self._accounts) >= self.max_series:
                return "series_limit"
            return self._add(spec)
        if self._operators.specs[index] != spec:
            self.change(index, spec)
        return index

    def change(self, index: int, spec: SeriesSpec) -> None:
        """Other settings for a series, from the end of a block on."""
        self.changed[index] = spec

    def unheard(self) -> list[tuple[int, SeriesSpec]]:
        """Series of which nothing ever came."""
        known = enumerate(self._operators.specs)
        return [(index, spec) for index, spec in known if spec.channel and not self.has_sample(index)]

    def has_sample(self, index: int) -> bool:
        """Whether anything ever came of the series, whatever became of it."""
        return bool(self._operators.ledger.produced[index])

    def device_account(self, device: str) -> int:
        """The series that stands for what a device sent before it had a channel (its channel is "")."""
        if device not in self._accounts:
            self._accounts[device] = self._add(SeriesSpec(device=device, channel="", quantity="", unit=""))
        return self._accounts[device]

    def take_new(self) -> list[tuple[int, SeriesSpec]]:
        new, self.new = self.new, []
        return new

    def take_changed(self) -> dict[int, SeriesSpec]:
        changed, self.changed = self.changed, {}
        return changed

    def _add(self, spec: SeriesSpec) -> int:
        index = len(self._operators.specs)
        self._operators.set_series(index, spec)
        self._index[spec.key] = index
        self.new.append((index, spec))
        return index
