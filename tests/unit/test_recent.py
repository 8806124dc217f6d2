"""The ring of recent samples answers as a list of all of them would, for what it has not forgotten."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from devices.model import SampleBatch
from edge.identity import ACCEPTED, BEHIND_JOURNAL, DUPLICATE
from edge.recent import Recent

ROWS = 10
rows = st.tuples(st.integers(0, 2), st.integers(1, 50), st.sampled_from([ACCEPTED, BEHIND_JOURNAL, DUPLICATE]))


@given(st.lists(st.lists(rows, min_size=1, max_size=25), max_size=8), st.integers(0, 2), st.integers(0, 50))
def test_a_sample_is_found_or_lies_where_the_journal_must_be_asked(
    batches: list[list[tuple[int, int, int]]], series: int, lo: int
) -> None:
    recent = Recent(0, ROWS)
    kept: list[tuple[int, int, float]] = []
    for number, batch in enumerate(batches):
        of, times, verdicts = (np.array(column) for column in zip(*batch, strict=True))
        values = number + np.arange(len(batch)) / 100
        recent.add(
            SampleBatch(of.astype(np.int32), times, values, np.zeros(len(batch), np.uint8)), verdicts.astype(np.uint8)
        )
        kept += [(s, t, v) for (s, t, w), v in zip(batch, values.tolist(), strict=True) if w != DUPLICATE]
    found_times, found_values = recent.find(series, np.arange(lo, lo + 6))
    found = sorted(zip(found_times.tolist(), found_values.tolist(), strict=True))
    asked = [(t, v) for s, t, v in kept if s == series and lo <= t <= lo + 5]
    assert found == sorted((t, v) for s, t, v in kept[-ROWS:] if s == series and lo <= t <= lo + 5)
    assert all((t, v) in found or t <= recent.forgotten_ns for t, v in asked)
