"""Golden stores: a file of every released version, with a full outbox, opens in this one without loss.

`python -m tests.unit.test_store_vectors` writes the vector of the version that the code now writes, if it is not there
yet; one that is there is never written again. Beside each NAME.db.zst lies NAME.json: what it holds.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from devices.model import Lane
from devices.wire.frame import FrameLimits, decode
from devices.wire.topics import digest
from edge.custody import Commit
from edge.outbox import Outbox
from edge.recovery import Recovered, recover
from edge.seal import Sealer
from edge.storefile import SCHEMA_VERSION
from tests.unit.test_recovery import MIB, T0_NS, Edge, no_history, ramp, spec

FOLDER = Path(__file__).parents[1] / "vectors" / "stores"
NAMES = sorted(path.name.removesuffix(".db.zst") for path in FOLDER.glob("*.db.zst"))
GATEWAY = "g1"


def summary_of(recovered: Recovered) -> dict[str, Any]:
    """What must be the same in every later version."""
    operators, store = recovered.operators, recovered.store
    frames = store.frames([row.seq for row in recovered.outbox])
    n = len(operators.specs)
    return {
        "epoch": store.epoch,
        "next_seq": store.next_seq(),
        "series": [f"{spec.device}/{spec.channel}" for spec in operators.specs],
        "outbox": {
            str(row.seq): [row.lane, row.leaf, hashlib.sha256(frames[row.seq]).hexdigest()] for row in recovered.outbox
        },
        "send_limits": {str(int(lane)): limit for lane, limit in store.send_limits().items()},
        "open": operators.open_samples().tolist(),
        "produced": operators.ledger.produced[:n].tolist(),
        "stored": operators.ledger.stored[:n].tolist(),
        "open_alarms": operators.alarms.open_count(),
        "state": {
            name: hashlib.sha256(repr(array.tolist()).encode()).hexdigest()
            for name, array in operators.snapshot().items()
        },
    }


@pytest.fixture(params=NAMES)
def vector(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "edge.db"
    path.write_bytes(zstandard.decompress((FOLDER / f"{request.param}.db.zst").read_bytes(), 64 * MIB))
    return path, json.loads((FOLDER / f"{request.param}.json").read_text())


def test_this_versions_store_is_among_the_vectors() -> None:
    assert f"v{SCHEMA_VERSION}" in NAMES


def test_a_released_store_opens_with_its_outbox_and_the_state_of_all_operators(
    vector: tuple[Path, dict[str, Any]],
) -> None:
    path, expected = vector
    recovered = recover(path, 8 * MIB, no_history)
    assert recovered.store.set_aside == ""
    summary = summary_of(recovered)
    state = {name: value for name, value in summary["state"].items() if name in expected["state"]}
    assert summary | {"state": state} == expected  # what later versions know besides is not in it
    recovered.store.close()


def test_every_frame_of_a_released_store_may_be_published_under_its_own_identity(
    vector: tuple[Path, dict[str, Any]],
) -> None:
    path, expected = vector
    recovered = recover(path, 8 * MIB, no_history)
    store = recovered.store
    outbox = Outbox(recovered.outbox, store.send_limits(), 64 * MIB)
    published = set()
    while len(outbox):
        limits = outbox.plan_limits([])
        store.commit(Commit(send_limits=limits))
        outbox.committed([], limits, [])
        due = [flight.row for flight in outbox.due(0.0)]
        assert due
        frames = store.frames([row.seq for row in due])
        for row in due:
            header = decode(frames[row.seq], FrameLimits()).header
            assert (header.gateway, header.epoch, header.seq) == (GATEWAY, store.epoch, row.seq)
            assert digest(frames[row.seq]) == row.digest
            published.add(str(row.seq))
        removed = [outbox.leave(row.seq).seq for row in due]
        store.commit(Commit(removed=removed))
        outbox.committed([], {}, removed)
    assert published == expected["outbox"].keys()
    assert len(published) > 20
    assert store.outbox() == []
    assert store.next_seq() == expected["next_seq"]
    store.close()


def make(path: Path) -> dict[str, Any]:
    """Windows, alarms and ledger in the middle of it: a snapshot, blocks after it, frames of each lane."""
    edge = Edge(path)
    edge.add(spec("a"), spec("b", expect_every_ns=20 * 10**9), spec("raw", report="raw"))
    operators, store = edge.operators, edge.store
    sealer = Sealer(GATEWAY, store.epoch, store.next_seq(), operators.specs)
    take, closed = operators.take, []
    operators.take = lambda: closed.append(take()) or closed[-1]  # type: ignore[method-assign,func-returns-value]
    for second in range(0, 40, 2):
        samples = ramp(0, second, second + 2) + ramp(2, second, second + 2)
        if second < 10:
            samples += ramp(1, second, second + 2)
        edge.step(samples, tick_s=second + 2, snapshot=second == 30)
        limits = {Lane.LIVE: sealer._next_seq - 1} if second == 20 else {}
        store.commit(Commit(frames=list(sealer.closed(closed.pop(), T0_NS)), send_limits=limits))
    store.close()
    recovered = recover(path, 8 * MIB, no_history)
    found = summary_of(recovered)
    recovered.store.close()
    return found


def main() -> None:
    name = f"v{SCHEMA_VERSION}"
    if name in NAMES:
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edge.db"
        found = make(path)
        (FOLDER / f"{name}.db.zst").write_bytes(zstandard.compress(path.read_bytes(), 19))
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    assert np.sum(found["open"]) > 0


if __name__ == "__main__":
    main()
