"""After a start: the state of the last commit, whatever became of snapshot, journal or file."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.errors import StoreError
from devices.model import SECOND_NS, Lane, SampleBatch, SeriesSpec
from edge import operators as operators_module
from edge.custody import Commit, Custody, OutboxRow
from edge.ledger import Deltas
from edge.operators import Operators
from edge.pending import Pending
from edge.recovery import Recovered, recover
from edge.registry import Registry
from edge.store import Store

MIB = 1 << 20
T0_NS = 1_700_000_000 * SECOND_NS


def spec(channel: str, **settings: Any) -> SeriesSpec:
    return SeriesSpec("d", channel, "q", "", lateness_ns=0, **({"window_ns": SECOND_NS} | settings))


def no_history(series: int, times_ns: Any) -> tuple[Any, Any]:
    return np.empty(0, np.int64), np.empty(0)


class Edge:
    """Operators that are fed, and a store to which each step is committed; no pump, no time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recovered = recover(path, 8 * MIB, no_history)
        self.operators, self.store = self.recovered.operators, self.recovered.store
        self.known = len(self.operators.specs)

    def add(self, *specs: SeriesSpec) -> None:
        for one in specs:
            self.operators.set_series(len(self.operators.specs), one)

    def step(
        self,
        samples: list[tuple[int, float, float]] = [],  # noqa: B006
        *,
        tick_s: float = 0.0,
        changed: list[tuple[int, SeriesSpec]] = [],  # noqa: B006
        resumed_s: float = 0.0,
        deltas: Deltas | None = None,
        snapshot: bool = False,
    ) -> list[str]:
        """One commit of samples (series, second, value), a tick and changes; -> the alarms of the tick."""
        operators, pending = self.operators, Pending()
        if resumed_s:
            pending.resumed_ns = T0_NS + int(resumed_s * SECOND_NS)
            operators.resume(pending.resumed_ns)
        if samples:
            series, times_s, values = (np.array(column) for column in zip(*samples, strict=True))
            times_ns = T0_NS + (times_s * SECOND_NS).astype(np.int64)
            quality = np.zeros(len(samples), np.uint8)
            batch = SampleBatch(series.astype(np.int32), times_ns, values.astype(float), quality)
            verdict = operators.admission.admit(batch, times_ns.copy(), T0_NS + 10**15)
            operators.samples(batch, times_ns, verdict)
            pending.add(batch, verdict, 0)
        alarms = []
        if tick_s:
            tick_ns = T0_NS + int(tick_s * SECOND_NS)
            pending.tick(tick_ns, was_idle=operators.tick_was_idle)
            alarms = operators.tick(tick_ns)
        if deltas:
            operators.apply(deltas)
            pending.deltas.extend(deltas)
        for index, one in changed:
            operators.set_series(index, one)
        pending.changed, pending.sealed = changed, True
        pending.new_series = list(enumerate(operators.specs))[self.known :]
        self.known = pending.series = len(operators.specs)
        operators.take()
        self.store.commit(pending.build())
        if snapshot:
            known = self.recovered.changed | dict(changed)
            for _ in self.store.snapshot_steps(self.store.last_block(), operators.snapshot(), known):
                pass
        return [f"{alarm.detector} {alarm.state}" for alarm in alarms]

    def again(self) -> Edge:
        self.store.close()
        return Edge(self.path)

    def close(self) -> None:
        self.store.close()


def assert_same(a: Operators, b: Operators) -> None:
    first, second = a.snapshot(), b.snapshot()
    assert a.specs == b.specs
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert repr(array.tolist()) == repr(second[name].tolist()), name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edge.db"


def ramp(series: int, first_s: int, last_s: int) -> list[tuple[int, float, float]]:
    return [(series, s / 4, float(s)) for s in range(4 * first_s, 4 * last_s)]


def test_changed_settings_count_from_the_block_that_brought_them(path: Path) -> None:
    """No snapshot was taken, or it was not finished: the journal alone knows the change."""
    edge = Edge(path)
    edge.add(spec("a"), spec("b"))
    edge.step(ramp(0, 0, 5) + ramp(1, 0, 5), tick_s=5)
    edge.step(ramp(0, 5, 7), tick_s=7, changed=[(0, spec("a", window_ns=4 * SECOND_NS))])
    edge.step(ramp(0, 7, 30) + ramp(1, 7, 30), tick_s=30)
    again = edge.again()
    assert_same(edge.operators, again.operators)
    again.step(ramp(0, 30, 31), tick_s=31, snapshot=True, changed=[(1, spec("b", tolerance=3.0))])
    last = again.again()
    assert_same(again.operators, last.operators)
    assert last.store.series() == last.operators.specs
    last.close()


def test_settings_that_the_file_changed_wait_for_the_pump(path: Path) -> None:
    edge = Edge(path)
    edge.add(spec("a"))
    edge.step(ramp(0, 0, 3), snapshot=True)
    again = edge.again()
    registry = Registry(again.operators, 10)
    new = spec("a", window_ns=2 * SECOND_NS)
    assert registry.resolve(new) == 0
    assert again.operators.specs == [spec("a")]
    assert registry.take_changed() == {0: new}
    assert registry.resolve(spec("other")) == 1
    assert registry.take_new() == [(1, spec("other"))]
    again.close()


def test_a_series_that_came_later_was_not_silent_before(path: Path) -> None:
    edge = Edge(path)
    edge.add(spec("a"))
    edge.step(ramp(0, 0, 5), tick_s=5, snapshot=True)
    for second in range(6, 30):
        edge.step(ramp(0, second, second + 1), tick_s=second)
    edge.add(spec("late", expect_every_ns=2 * SECOND_NS))
    edge.step([(1, 30.0, 1.0)])
    again = edge.again()
    assert_same(edge.operators, again.operators)
    assert again.step(tick_s=31.0) == []
    again.close()


def test_nobody_was_silent_while_the_gateway_was_away(path: Path) -> None:
    edge = Edge(path)
    edge.add(spec("a", expect_every_ns=3 * SECOND_NS, idle_close_ns=5 * SECOND_NS))
    edge.step([(0, 0.5, 1.0)], tick_s=1)
    edge.step([(0, 1.5, 1.0)], tick_s=2)
    again = edge.again()
    assert again.step(tick_s=3601.0, resumed_s=3600.0) == []
    assert again.operators.open_samples().sum() == 1
    last = again.again()
    assert_same(again.operators, last.operators)
    assert last.step(tick_s=3606.0) == ["silent open"]
    last.close()


def damage(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()


def waiting(recovered: Recovered) -> Any:
    counts = recovered.operators.open_samples()
    for row in recovered.outbox:
        np.add.at(counts, row.custody.series, row.custody.samples)
    return counts


@pytest.fixture
def half_sent(path: Path) -> Path:
    """A store with a snapshot, blocks after it, and a frame that waits; the account balances."""
    edge = Edge(path)
    edge.add(spec("a"))
    edge.step(ramp(0, 0, 10), tick_s=10)
    edge.step(deltas=Deltas(stored=[(0, 0, 36 - 8)]), snapshot=True)
    custody = Custody(np.array([0], np.int32), np.array([8])).pack()
    edge.store.commit(Commit(frames=[(OutboxRow(1, Lane.LIVE, "data", 0, b"d", custody, 5), b"frame")]))
    edge.step(ramp(0, 10, 12))
    edge.step(ramp(0, 12, 13))
    edge.step(deltas=Deltas(stored=[(0, 0, 12)]))
    again = edge.again()
    assert not again.operators.ledger.imbalance(waiting(again.recovered)).any()
    again.close()
    return path


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE snapshot SET data = substr(data, 1, length(data) - 5) WHERE part = 'windows.state'",
        "UPDATE snapshot SET data = x'00' WHERE part = 'alarms'",
        "DELETE FROM snapshot WHERE part = 'ledger.produced'",
        "DELETE FROM snapshot WHERE part = 'versions'",
        "UPDATE journal SET block = x'0102' WHERE id = 4",
        "UPDATE journal SET crc = crc + 1 WHERE id = 4",
    ],
)
def test_a_damaged_row_costs_no_start_and_the_account_balances(half_sent: Path, statement: str) -> None:
    damage(half_sent, statement)
    edge = Edge(half_sent)
    assert edge.store.set_aside == ""
    assert edge.operators.specs == [spec("a")]
    assert len(edge.recovered.outbox) == 1
    assert not edge.operators.ledger.imbalance(waiting(edge.recovered)).any()
    edge.step(ramp(0, 20, 25), tick_s=25, snapshot=True)
    again = edge.again()
    assert_same(edge.operators, again.operators)
    again.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE meta SET value = 99 WHERE key = 'schema'",
        "UPDATE series SET spec = 'nonsense'",
        "UPDATE outbox SET custody = x'01'",
        "DROP TABLE outbox",
        "DROP TABLE unconfirmed",
    ],
)
def test_a_file_that_is_newer_or_cannot_be_understood_is_set_aside_whole(half_sent: Path, statement: str) -> None:
    damage(half_sent, statement)
    before = half_sent.read_bytes()
    edge = Edge(half_sent)
    assert Path(edge.store.set_aside).read_bytes() == before
    assert edge.operators.specs == []
    assert edge.recovered.outbox == []
    edge.close()


def test_pages_that_the_disk_destroyed_do_not_stop_the_start(half_sent: Path) -> None:
    with open(half_sent, "r+b") as file:
        for page in range(1, 40):
            file.seek(page * 4096)
            file.write(b"\xa5" * 4096)
    edge = Edge(half_sent)
    assert edge.store.set_aside
    edge.add(spec("a"))
    edge.step(ramp(0, 0, 3), snapshot=True)
    edge.again().close()


def test_a_store_that_another_daemon_holds_is_not_set_aside(half_sent: Path) -> None:
    store = Store.open(half_sent, 8 * MIB)
    store.commit(Commit(block=b"x"))
    with pytest.raises(StoreError, match="already running"):
        recover(half_sent, 8 * MIB, no_history)
    store.close()
    assert [p.name for p in half_sent.parent.iterdir() if "aside" in p.name] == []


def test_what_came_last_is_in_memory_again_so_that_a_repeat_need_not_be_looked_for_in_the_journal(path: Path) -> None:
    edge = Edge(path)
    edge.add(spec("a"), spec("b"))
    for second in range(5):
        edge.step([(0, second + 0.1, 1.0), (1, second + 0.2, float(second))], tick_s=second + 0.5, snapshot=second == 2)
    edge = edge.again()
    recent = edge.recovered.recent
    times_ns, values = recent.find(1, T0_NS + np.arange(50) * SECOND_NS // 10)
    assert sorted(values.tolist()) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert recent.forgotten_ns < times_ns.min()
    edge.close()


def test_state_of_another_version_is_built_anew_from_the_journal_and_the_log_says_so(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = Edge(path)
    edge.add(spec("a"), spec("b"))
    edge.step(ramp(0, 0, 5) + ramp(1, 0, 5), tick_s=5, snapshot=True)
    edge.step(ramp(0, 5, 9), tick_s=9)
    expected = edge.operators.open_samples().tolist()
    monkeypatch.setattr(operators_module, "_VERSIONS", operators_module._VERSIONS + 1)  # as a newer program has
    again = edge.again()
    assert "building the state from the journal" in caplog.text
    assert again.operators.open_samples().tolist() == expected
    assert not again.operators.ledger.imbalance(waiting(again.recovered)).any()
    again.close()
