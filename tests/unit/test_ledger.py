"""The account: produced = stored + waiting + rejected + dropped, by series, whatever happens in whatever order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from devices.model import DROP_POLICIES, REJECT_REASONS
from edge.identity import ACCEPTED, BEHIND_JOURNAL
from edge.ledger import Deltas, Ledger

SERIES = 4
series = st.integers(0, SERIES - 1)
count = st.integers(1, 50)
verdicts = st.sampled_from([ACCEPTED, ACCEPTED, BEHIND_JOURNAL, *range(1, len(REJECT_REASONS) + 1)])


@given(st.data())
def test_the_account_balances_after_every_event(data: st.DataObject) -> None:
    ledger = Ledger()
    ledger.grow(SERIES)
    waiting = np.zeros(SERIES, np.int64)
    for _ in range(data.draw(st.integers(1, 20))):
        kind = data.draw(st.sampled_from(["samples", "rejected", "overrun", "stored", "refused", "dropped"]))
        one, n = data.draw(series), data.draw(count)
        if kind == "samples":
            rows = data.draw(st.lists(st.tuples(series, verdicts), min_size=1, max_size=30))
            of, verdict = np.array([s for s, _ in rows], np.int32), np.array([v for _, v in rows], np.uint8)
            ledger.samples(of, verdict if verdict.any() else None)
            for s, v in rows:
                waiting[s] += v in (ACCEPTED, BEHIND_JOURNAL)
        elif kind == "rejected":
            ledger.apply(Deltas(rejected=[(one, data.draw(st.integers(0, len(REJECT_REASONS) - 1)), n)]))
        elif kind == "overrun":
            ledger.apply(Deltas(overrun=[(one, DROP_POLICIES.index("overrun"), n)]))
        else:
            n = min(n, int(waiting[one]))
            waiting[one] -= n
            ledger.apply(Deltas(**{kind: [(one, 0, n)]}))
        assert not ledger.imbalance(waiting).any()


def test_a_sample_that_is_counted_nowhere_shows() -> None:
    ledger = Ledger()
    ledger.grow(2)
    ledger.samples(np.array([0, 0, 1], np.int32), None)
    assert ledger.imbalance(np.array([1, 1])).tolist() == [1, 0]
    ledger.apply(Deltas(stored=[(0, 0, 3)]))
    assert ledger.imbalance(np.array([1, 1])).tolist() == [-2, 0]


def test_each_reason_and_policy_has_its_own_count() -> None:
    ledger = Ledger()
    ledger.grow(1)
    future = REJECT_REASONS.index("future")
    ledger.samples(np.zeros(2, np.int32), np.array([1 + future, ACCEPTED], np.uint8))
    ledger.apply(Deltas(rejected=[(0, 0, 4)], refused=[(0, 2, 1)], overrun=[(0, 1, 7)]))
    assert ledger.produced[0] == 13
    assert {i: int(n) for i, n in enumerate(ledger.rejected[0]) if n} == {0: 4, 2: 1, future: 1}
    assert ledger.dropped[0].tolist() == [0, 7, *[0] * (len(DROP_POLICIES) - 2)]


def test_a_snapshot_of_fewer_series_and_reasons_is_taken_over() -> None:
    """An older version knew fewer reasons, and series have come since."""
    old = Ledger()
    old.grow(2)
    old.samples(np.array([0, 1, 1], np.int32), np.array([0, 2, 0], np.uint8))
    state = old.snapshot()
    state["rejected"] = state["rejected"][:, :3]
    new = Ledger()
    new.grow(5)
    new.restore(state)
    assert new.produced[:5].tolist() == [1, 2, 0, 0, 0]
    assert new.rejected[:5].sum(axis=1).tolist() == [0, 1, 0, 0, 0]


def test_counts_survive_the_coming_of_many_series() -> None:
    ledger = Ledger()
    for size in (1, 3, 500):
        ledger.grow(size)
        ledger.samples(np.arange(size, dtype=np.int32), None)
    assert ledger.produced[:3].tolist() == [3, 2, 2]
    assert ledger.produced[499] == 1


@given(st.lists(st.tuples(series, count), max_size=5), st.lists(st.tuples(series, count), max_size=5))
def test_deltas_join_without_loss(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    together, apart = Ledger(), Ledger()
    deltas = [
        Deltas(stored=[(s, 0, n) for s, n in part], overrun=[(s, 1, n) for s, n in part]) for part in (first, second)
    ]
    for ledger in (together, apart):
        ledger.grow(SERIES)
    for delta in deltas:
        apart.apply(delta)
    joined = Deltas()
    for delta in deltas:
        joined.extend(delta)
    assert bool(joined) == bool(first or second)
    together.apply(joined)
    for name, counts in together.snapshot().items():
        assert (counts == apart.snapshot()[name]).all(), name
