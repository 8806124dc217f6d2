"""A block of the journal gives back what it was made of, series by series in order of arrival."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import StoreCorrupt
from devices.model import SampleBatch
from edge.journal import Block, decode, encode
from edge.ledger import Deltas

samples = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(-(1 << 61), 1 << 61),
        st.floats(allow_nan=False, allow_infinity=False),
        st.integers(0, 255),
        st.integers(0, 255),
    ),
    max_size=60,
)


@given(rows=samples, positions=st.lists(st.integers(0, 60), max_size=5))
def test_replayed_as_it_was_fed(rows: list[tuple[int, int, float, int, int]], positions: list[int]) -> None:
    n = len(rows)
    series, time_ns, value, quality, verdict = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    batch = SampleBatch(
        np.array(series, np.int32), np.array(time_ns, np.int64), np.array(value, float), np.array(quality, np.uint8)
    )
    ticks = [(min(position, n), 1000 + i) for i, position in enumerate(sorted(positions))]
    deltas = Deltas(stored=[(1, 0, 5)], rejected=[(2, 3, 4)])
    block = decode(encode(Block(batch, np.array(verdict, np.uint8), ticks, deltas, sealed=True)))
    assert block.ticks == ticks
    assert block.deltas == deltas
    assert block.sealed
    # Between two ticks each series has its rows in order; the series themselves may change places.
    edges = [0, *(position for position, _ in ticks), n]
    for lo, hi in itertools.pairwise(edges):
        for one in set(series[lo:hi]):
            fed = [row for row in rows[lo:hi] if row[0] == one]
            at = np.flatnonzero(block.batch.series[lo:hi] == one) + lo
            assert block.batch.time_ns[at].tolist() == [row[1] for row in fed]
            assert list(map(repr, block.batch.value[at].tolist())) == [repr(row[2]) for row in fed]
            assert block.batch.quality[at].tolist() == [row[3] for row in fed]
            assert block.verdict[at].tolist() == [row[4] for row in fed]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_block_are_refused(data: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        decode(data)
